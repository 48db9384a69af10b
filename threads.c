// threads.c: the pool of threads of threads.h, on POSIX threads and C11 atomics.
//
// In order: the pool, one thread's share of the work, the helpers' loop, waiting for the last job, public functions.
//
// `left` counts jobs that nobody has begun; whoever lowers it from n to n-1 does job (jobs - n). `open` counts jobs
// that are not done. The fields that describe the work are written while both are zero and read only by who has begun a
// job, so that a helper that comes late finds either nothing to do or the next piece of work. Between two pieces of
// work helpers spin for some microseconds, since a forward pass is many small ones; then they sleep, and so does the
// caller when it waits for a job whose thread has lost its core: the system can then move that thread over here.
#include "threads.h"

#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

enum {
    SPINS = 4000,               // looks at a counter before sleeping, some 50 us
    STACK_BYTES = 1 << 21
};

typedef struct { Pool *pool; pthread_t id; int thread; } Helper;

struct Pool {
    _Alignas(64) atomic_int left;
    _Alignas(64) atomic_int open;
    _Alignas(64) Job *run;
    void *arg;
    int jobs;
    int threads, spins;
    atomic_int asleep;          // helpers that wait for `work`
    atomic_bool waiting;        // the caller waits for `done`
    bool stop;                  // under the lock
    pthread_mutex_t lock;
    pthread_cond_t work, done;
    Helper helper[];            // (threads - 1)
};

static inline void pause_briefly(void) {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

// ---------------------------------------------------------------------------------------------------------

// Does jobs until none is left.
static void work(Pool *p, int thread) {
    int n = atomic_load(&p->left);
    while (n > 0) {
        if (!atomic_compare_exchange_weak(&p->left, &n, n - 1)) continue;
        p->run(p->arg, p->jobs - n, thread);
        if (atomic_fetch_sub(&p->open, 1) == 1 && atomic_load(&p->waiting)) {
            pthread_mutex_lock(&p->lock);
            pthread_cond_signal(&p->done);
            pthread_mutex_unlock(&p->lock);
        }
        n = atomic_load(&p->left);
    }
}

static void *help(void *arg) {
    const Helper *h = arg;
    Pool *p = h->pool;
    for (;;) {
        work(p, h->thread);
        for (int i = 0; i < p->spins && atomic_load_explicit(&p->left, memory_order_relaxed) <= 0; i++) pause_briefly();
        if (atomic_load(&p->left) > 0) continue;
        pthread_mutex_lock(&p->lock);
        // Said before the last look, so that a caller that brings work after that look sees it and wakes us.
        atomic_fetch_add(&p->asleep, 1);
        while (!p->stop && atomic_load(&p->left) <= 0) pthread_cond_wait(&p->work, &p->lock);
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

Pool *pool_open(int threads) {
    const size_t bytes = (sizeof(Pool) + (size_t)threads * sizeof(Helper) + 63) / 64 * 64;
    Pool *p = aligned_alloc(64, bytes);
    if (!p) return NULL;
    *p = (Pool){.threads = 1, .spins = threads <= processors() ? SPINS : 0};
    pthread_mutex_init(&p->lock, NULL);
    pthread_cond_init(&p->work, NULL);
    pthread_cond_init(&p->done, NULL);
    pthread_attr_t attr;
    sigset_t all, before;
    pthread_attr_init(&attr);
    pthread_attr_setstacksize(&attr, STACK_BYTES);
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);        // signals are the caller's business
    while (p->threads < threads) {
        Helper *h = &p->helper[p->threads - 1];
        *h = (Helper){.pool = p, .thread = p->threads};
        if (pthread_create(&h->id, &attr, help, h)) break;
        p->threads++;
    }
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    pthread_attr_destroy(&attr);
    return p;
}

void pool_close(Pool *p) {
    if (!p) return;
    pthread_mutex_lock(&p->lock);
    p->stop = true;
    pthread_cond_broadcast(&p->work);
    pthread_mutex_unlock(&p->lock);
    for (int i = 0; i < p->threads - 1; i++) pthread_join(p->helper[i].id, NULL);
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
    p->jobs = jobs;
    atomic_store(&p->open, jobs);
    atomic_store(&p->left, jobs);
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
