// test/test_threads.c: the pool of threads of threads.c.
//
// In order: jobs that count themselves, one pool, two pools in two threads, a pool that is not there.
// What a sanitizer for threads finds is looked for by hand:
//   gcc -g -fsanitize=thread -D_GNU_SOURCE test/test_threads.c threads.c -pthread && ./a.out
#include "../threads.h"
#include "check.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>

enum { JOBS = 37, THREADS = 3, ROUNDS = 300 };

typedef struct {
    int times[JOBS];                // plain: each job is done by one thread, and pool_run() returns behind it
    atomic_bool busy[THREADS];
    atomic_int wrong;
} Work;

static void count(void *arg, int job, int thread) {
    Work *w = arg;
    if (thread < 0 || thread >= THREADS || job < 0 || job >= JOBS || atomic_exchange(&w->busy[thread], true)) {
        atomic_fetch_add(&w->wrong, 1);
        return;
    }
    w->times[job]++;
    atomic_store(&w->busy[thread], false);
}

// Every number of jobs, over and over. Returns what was wrong: jobs not done once, or two at once with one number.
static int use(Pool *p) {
    int wrong = 0;
    for (int round = 0; round < ROUNDS; round++) {
        const int jobs = round % (JOBS + 1);
        Work w = {.wrong = 0};
        pool_run(p, count, &w, jobs);
        for (int j = 0; j < JOBS; j++) wrong += w.times[j] != (j < jobs);
        wrong += atomic_load(&w.wrong);
    }
    return wrong;
}

static void *use_own(void *arg) {
    Pool *p = pool_open(THREADS);
    *(int *)arg = p ? use(p) : -1;
    pool_close(p);
    return NULL;
}

int main(void) {
    Tally t = {0};
    for (int threads = 1; threads <= THREADS; threads++) {
        Pool *p = pool_open(threads);
        EXPECT(&t, p && pool_threads(p) >= 1 && pool_threads(p) <= threads, "a pool of %d", threads);
        EXPECT(&t, use(p) == 0, "%d threads", threads);
        pool_close(p);
    }
    int wrong[2] = {-1, -1};
    pthread_t id;
    EXPECT(&t, pthread_create(&id, NULL, use_own, &wrong[0]) == 0, "no thread");
    use_own(&wrong[1]);
    pthread_join(id, NULL);
    EXPECT(&t, wrong[0] == 0 && wrong[1] == 0, "two pools: %d and %d wrong", wrong[0], wrong[1]);
    EXPECT(&t, use(NULL) == 0 && pool_threads(NULL) == 1, "without a pool");
    pool_close(NULL);
    // control: a job done twice is noticed
    Work w = {.wrong = 0};
    pool_run(NULL, count, &w, 1), pool_run(NULL, count, &w, 1);
    EXPECT(&t, w.times[0] == 2, "counted %d", w.times[0]);
    return tally_close(&t);
}
