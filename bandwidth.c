// bandwidth.c: a short test of the rate at which memory is read (see bandwidth.h), for -v.
//
// A block that no cache holds is read from its start to its end by all threads, several times; the fastest pass counts,
// because others on the machine can only make it slower. dev/ceiling.c does this at length, beside the multiply peak.

#include "bandwidth.h"

#include "timing.h"

#include <stdint.h>
#include <string.h>
#include <sys/mman.h>

enum { CHUNK = 1 << 20, CHUNKS = 256 };   // bytes that a thread reads before it asks for more; 256 MB in all
#define BYTES ((size_t)CHUNK * CHUNKS)

// Sixteen sums at once, so that the loop is as wide as compilers make it and waits for no addition.
static uint64_t read_chunk(const uint64_t *p) {
    uint64_t lane[16] = {0}, sum = 0;
    for (int i = 0; i < CHUNK / 8; i += 16)
        for (int j = 0; j < 16; j++) lane[j] += p[i + j];
    for (int j = 0; j < 16; j++) sum += lane[j];
    return sum;
}

double read_bandwidth(int threads, double seconds) {
    char *block = mmap(NULL, BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (block == MAP_FAILED) return 0;
    madvise(block, BYTES, MADV_HUGEPAGE);     // only a wish
    double best = 0;
    volatile uint64_t sink = 0;
    #pragma omp parallel for num_threads(threads)
    for (int i = 0; i < CHUNKS; i++) memset(block + (size_t)i * CHUNK, 1, CHUNK);   // pages of zeros may be one page
    const double start = seconds_now();
    do {
        uint64_t sum = 0;
        const double t = seconds_now();
        #pragma omp parallel for num_threads(threads) schedule(dynamic, 4) reduction(+ : sum)
        for (int i = 0; i < CHUNKS; i++) sum += read_chunk((const uint64_t *)(const void *)(block + (size_t)i * CHUNK));
        const double rate = (double)BYTES / (seconds_now() - t);
        sink = sum;
        if (rate > best) best = rate;
    } while (seconds_now() - start < seconds);
    munmap(block, BYTES);
    return sink ? best : 0;
}
