// test/test_readahead.c: a file that is read ahead is in memory afterwards; stopping early; what is not worth a thread.
//
// In order: a file and its pages, reading to the end, stopping at once, a file that was cut off, a small one.
#include "../readahead.h"
#include "check.h"

#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

enum { BYTES = (33 << 20) + 12345 };

static const char *map(FILE *f) {
    const char *p = mmap(NULL, BYTES, PROT_READ, MAP_SHARED, fileno(f), 0);
    if (p == MAP_FAILED) { perror("mmap"); exit(1); }
    return p;
}

static bool wait_for(const ReadAhead *r) {
    for (int i = 0; i < 2000 && !read_ahead_done(r); i++) nanosleep(&(struct timespec){.tv_nsec = 5000000}, NULL);
    return read_ahead_done(r);
}

// Pages that are mapped into this process; -1 where the system does not tell.
static long mapped(const char *p) {
    FILE *f = fopen("/proc/self/smaps", "re");
    char line[256], start[32];
    long kb = -1;
    bool here = false;
    snprintf(start, sizeof start, "%lx-", (unsigned long)(uintptr_t)p);
    while (f && kb < 0 && fgets(line, sizeof line, f)) {
        here = here || !strncmp(line, start, strlen(start));
        if (here && sscanf(line, "Rss: %ld kB", &kb) != 1) kb = -1;
    }
    if (f) fclose(f);
    return kb;
}

int main(void) {
    Tally t = {0};
    FILE *f = tmpfile();
    char *block = calloc(1, BYTES);
    if (!f || !block || fwrite(block, 1, BYTES, f) != BYTES || fflush(f)) { perror("tmpfile"); exit(1); }
    free(block);

    const char *p = map(f);
    const long before = mapped(p);
    ReadAhead *r = read_ahead_start(p, BYTES);
    EXPECT(&t, r && wait_for(r), "it comes to no end");
    const long after = mapped(p);
    // a system before Linux 5.14 reads but does not map
    if (before != 0 || after == 0) SKIP(&t, "this system does not map ahead, or does not tell");
    else EXPECT(&t, after >= BYTES / 1024, "%ld of %d KB are mapped", after, BYTES / 1024);
    read_ahead_stop(r);
    munmap((void *)(uintptr_t)p, BYTES);

    p = map(f);
    for (int i = 0; i < 50; i++) {
        r = read_ahead_start(p, BYTES);
        EXPECT(&t, r, "no thread, time %d", i);
        read_ahead_stop(r);
    }
    EXPECT(&t, ftruncate(fileno(f), 1 << 20) == 0, "cannot cut the file off");
    r = read_ahead_start(p, BYTES);         // to touch what is gone would end this program
    EXPECT(&t, r && wait_for(r), "a file that was cut off");
    read_ahead_stop(r);
    munmap((void *)(uintptr_t)p, BYTES);
    fclose(f);

    EXPECT(&t, !read_ahead_start(&t, sizeof t), "a small file");
    read_ahead_stop(NULL);
    return tally_close(&t);
}
