// bandwidth.c: a short test of the rate at which memory is read (see bandwidth.h), for -v.
//
// A block that no cache holds is read from its start to its end by all threads, several times; the fastest pass counts,
// because others on the machine can only make it slower. dev/ceiling.c does this at length, beside the multiply peak.

#include "bandwidth.h"

#include "common.h"
#include "threads.h"

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

typedef struct {
    char *block;
    _Atomic uint64_t sum;     // of what was read, so that no compiler leaves the reading out
} Reading;

static void fill_job(void *arg, int job, int thread) {
    Reading *r = arg;
    (void)thread;
    memset(r->block + (size_t)job * CHUNK, 1, CHUNK);
}

static void read_job(void *arg, int job, int thread) {
    Reading *r = arg;
    (void)thread;
    r->sum += read_chunk((const uint64_t *)(const void *)(r->block + (size_t)job * CHUNK));
}

double read_bandwidth(int threads, double seconds) {
    Reading r = {mmap(NULL, BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0), 0};
    if (r.block == MAP_FAILED) return 0;
    madvise(r.block, BYTES, MADV_HUGEPAGE);     // only a wish
    Pool *pool = pool_open(threads);            // NULL: this thread alone
    double best = 0;
    pool_run(pool, fill_job, &r, CHUNKS);       // untouched pages may all be one page of zeros
    const double start = seconds_now();
    do {
        const double t = seconds_now();
        pool_run(pool, read_job, &r, CHUNKS);
        const double rate = (double)BYTES / (seconds_now() - t);
        if (rate > best) best = rate;
    } while (seconds_now() - start < seconds);
    pool_close(pool);
    munmap(r.block, BYTES);
    return r.sum ? best : 0;
}
