// readahead.c: a thread that reads and maps a file ahead of its use (see readahead.h).
//
// In order: the thread, starting it, stopping it.
#include "readahead.h"

#include "threads.h"

#include <errno.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>

enum {
    LEAST = 32 << 20,          // bytes of a file that are worth a thread
    PIECE = 4 << 20,           // of a request; nothing else of this process can map memory meanwhile
    STACK_BYTES = 1 << 17
};

#if defined(__linux__) && !defined(MADV_POPULATE_READ)
#define MADV_POPULATE_READ 22      // older C libraries do not name it
#endif

struct ReadAhead {
    char *map;
    size_t bytes;
    pthread_t id;
    atomic_bool stop, done;
};

// Nothing depends on an answer. An old system knows no MADV_POPULATE_READ and is asked to read the piece, no more. A
// file that was cut off meanwhile is an error here, not a signal.
static int ask(char *at, size_t n) {
#ifdef MADV_POPULATE_READ
    if (!madvise(at, n, MADV_POPULATE_READ)) return 0;
    if (errno != EINVAL) return -1;
#endif
    return madvise(at, n, MADV_WILLNEED);
}

static void *run(void *arg) {
    ReadAhead *r = arg;
    for (size_t at = 0; at < r->bytes && !atomic_load(&r->stop); at += PIECE)
        if (ask(r->map + at, r->bytes - at < PIECE ? r->bytes - at : PIECE)) break;
    atomic_store(&r->done, true);
    return NULL;
}

ReadAhead *read_ahead_start(const void *map, size_t bytes) {
    ReadAhead *r = bytes < LEAST ? NULL : malloc(sizeof *r);
    if (!r) return NULL;
    *r = (ReadAhead){.map = (char *)(uintptr_t)map, .bytes = bytes};
    if (!thread_start(&r->id, STACK_BYTES, run, r)) return r;
    free(r);
    return NULL;
}

bool read_ahead_done(const ReadAhead *r) { return atomic_load(&r->done); }

void read_ahead_stop(ReadAhead *r) {
    if (!r) return;
    atomic_store(&r->stop, true);
    pthread_join(r->id, NULL);
    free(r);
}
