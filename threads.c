// threads.c: the pool of threads of threads.h, on POSIX threads and C11 atomics.
//
// In order: the pool, one thread's share of the work, the helpers' loop, waiting for the last job, public functions.
//
// Each thread has a range of neighbouring jobs of its own and takes them from the front, so that its jobs continue each
// other in memory: what the end of one asks of memory ahead, the next one finds there. Who has none left takes from the
// back of the others' ranges. A range is one word, so that a job is taken by one exchange:
//
//     jobs      0 1 2 3 4 5 6 7 8 9         thread 0 ->        <- thread 1, once its own are gone
//     ranges    [thread 0 ) [thread 1 )                 thread 1 ->
//
// `open` counts jobs that are not done. The fields that describe the work are written while it is zero and read only by
// who has taken a job, so that a helper that comes late finds either nothing to do or the next piece of work. Between
// two pieces of work helpers spin for some microseconds, since a forward pass is many small ones; then they sleep, and
// so does the caller when it waits for a job whose thread has lost its core: the system can then move that thread over
// here.
#include "threads.h"

#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

enum {
    SPINS = 4000,               // looks at a counter before sleeping, some 50 us
    STACK_BYTES = 1 << 21
};

// The jobs from .. to-1 of a thread that nobody has begun: from in the upper half, to in the lower.
typedef struct { _Alignas(64) _Atomic uint64_t jobs; Pool *pool; pthread_t id; int thread; } Share;

struct Pool {
    _Alignas(64) atomic_int open;
    _Alignas(64) Job *run;
    void *arg;
    int shares;                 // threads asked for
    int threads;                // threads there are; only the caller looks at it
    int spins;
    atomic_int asleep;          // helpers that wait for `work`
    atomic_bool waiting;        // the caller waits for `done`
    bool stop;                  // under the lock
    pthread_mutex_t lock;
    pthread_cond_t work, done;
    Share share[];              // (threads), the caller's first
};

static inline void pause_briefly(void) {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

// ---------------------------------------------------------------------------------------------------------

static uint64_t range(int from, int to) { return (uint64_t)(uint32_t)from << 32 | (uint32_t)to; }
static int range_from(uint64_t r) { return (int)(r >> 32); }
static int range_to(uint64_t r) { return (int)(uint32_t)r; }

// A job of s, from its front or its back; -1 when there is none.
static int take(Share *s, bool front) {
    uint64_t r = atomic_load_explicit(&s->jobs, memory_order_relaxed);
    while (range_from(r) < range_to(r)) {
        const uint64_t rest = front ? range(range_from(r) + 1, range_to(r)) : range(range_from(r), range_to(r) - 1);
        if (atomic_compare_exchange_weak(&s->jobs, &r, rest)) return front ? range_from(r) : range_to(r) - 1;
    }
    return -1;
}

static bool any(Pool *p) {
    for (int i = 0; i < p->shares; i++) {
        const uint64_t r = atomic_load(&p->share[i].jobs);
        if (range_from(r) < range_to(r)) return true;
    }
    return false;
}

// Does jobs until none is left.
static void work(Pool *p, int thread) {
    for (int i = 0; i < p->shares; ) {
        const int whose = (thread + i) % p->shares, job = take(&p->share[whose], i == 0);
        if (job < 0) {
            i++;
            continue;
        }
        p->run(p->arg, job, thread);
        if (atomic_fetch_sub(&p->open, 1) == 1 && atomic_load(&p->waiting)) {
            pthread_mutex_lock(&p->lock);
            pthread_cond_signal(&p->done);
            pthread_mutex_unlock(&p->lock);
        }
    }
}

static void *help(void *arg) {
    const Share *s = arg;
    Pool *p = s->pool;
    for (;;) {
        work(p, s->thread);
        for (int i = 0; i < p->spins && !any(p); i++) pause_briefly();
        if (any(p)) continue;
        pthread_mutex_lock(&p->lock);
        // Said before the last look, so that a caller that brings work after that look sees it and wakes us.
        atomic_fetch_add(&p->asleep, 1);
        while (!p->stop && !any(p)) pthread_cond_wait(&p->work, &p->lock);
        atomic_fetch_sub(&p->asleep, 1);
        const bool stop = p->stop;
        pthread_mutex_unlock(&p->lock);
        if (stop) return NULL;
    }
}

static void wait_for_last(Pool *p) {
    for (int i = 0; i < p->spins && atomic_load_explicit(&p->open, memory_order_relaxed) > 0; i++) pause_briefly();
    if (atomic_load(&p->open) == 0) return;
    pthread_mutex_lock(&p->lock);
    atomic_store(&p->waiting, true);
    while (atomic_load(&p->open) > 0) pthread_cond_wait(&p->done, &p->lock);
    atomic_store(&p->waiting, false);
    pthread_mutex_unlock(&p->lock);
}

// ---------------------------------------------------------------------------------------------------------

// Spinning on more threads than there are processors would only keep the others from working.
static int processors(void) {
#if defined(__linux__)
    cpu_set_t set;
    if (sched_getaffinity(0, sizeof set, &set) == 0) return CPU_COUNT(&set);
#endif
    return 1;
}

int thread_start(pthread_t *id, size_t stack_bytes, void *(*run)(void *), void *arg) {
    pthread_attr_t attr;
    sigset_t all, before;
    pthread_attr_init(&attr);
    pthread_attr_setstacksize(&attr, stack_bytes);
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    const int code = pthread_create(id, &attr, run, arg);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    pthread_attr_destroy(&attr);
    return code;
}

Pool *pool_open(int threads) {
    const size_t bytes = sizeof(Pool) + (size_t)threads * sizeof(Share);
    Pool *p = aligned_alloc(64, bytes);
    if (!p) return NULL;
    *p = (Pool){.shares = threads, .threads = 1, .spins = threads <= processors() ? SPINS : 0};
    for (int i = 0; i < threads; i++) p->share[i] = (Share){.pool = p, .thread = i};
    pthread_mutex_init(&p->lock, NULL);
    pthread_cond_init(&p->work, NULL);
    pthread_cond_init(&p->done, NULL);
    while (p->threads < threads) {
        Share *s = &p->share[p->threads];
        if (thread_start(&s->id, STACK_BYTES, help, s)) break;
        p->threads++;
    }
    return p;
}

void pool_close(Pool *p) {
    if (!p) return;
    pthread_mutex_lock(&p->lock);
    p->stop = true;
    pthread_cond_broadcast(&p->work);
    pthread_mutex_unlock(&p->lock);
    for (int i = 1; i < p->threads; i++) pthread_join(p->share[i].id, NULL);
    pthread_cond_destroy(&p->done);
    pthread_cond_destroy(&p->work);
    pthread_mutex_destroy(&p->lock);
    free(p);
}

int pool_threads(const Pool *p) { return p ? p->threads : 1; }

void pool_run(Pool *p, Job *run, void *arg, int jobs) {
    if (!p || p->threads == 1 || jobs == 1) {
        for (int i = 0; i < jobs; i++) run(arg, i, 0);
        return;
    }
    if (jobs <= 0) return;
    p->run = run;
    p->arg = arg;
    atomic_store(&p->open, jobs);
    for (int i = 0; i < p->threads; i++)
        atomic_store(&p->share[i].jobs, range((int)((int64_t)jobs * i / p->threads),
                                              (int)((int64_t)jobs * (i + 1) / p->threads)));
    if (atomic_load(&p->asleep) > 0) {
        pthread_mutex_lock(&p->lock);
        pthread_cond_broadcast(&p->work);
        pthread_mutex_unlock(&p->lock);
    }
    work(p, 0);
    wait_for_last(p);
}

typedef struct { char *to; const char *from; size_t n; } Copy;

enum { COPY_BYTES = 1 << 20 };  // of a job

static void copy_job(void *arg, int job, int thread) {
    const Copy *c = arg;
    const size_t at = (size_t)job * COPY_BYTES, left = c->n - at;
    (void)thread;
    memcpy(c->to + at, c->from + at, left < COPY_BYTES ? left : COPY_BYTES);
}

void pool_copy(Pool *p, void *to, const void *from, size_t n) {
    Copy c = {to, from, n};
    pool_run(p, copy_job, &c, (int)((n + COPY_BYTES - 1) / COPY_BYTES));
}
