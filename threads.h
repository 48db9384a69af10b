// threads.h: a pool of threads that hands out jobs one by one, neighbours to the same thread as long as there are any.
//
// Made for machines that are shared: a thread that does not get its core takes no job, so nobody waits for it; only a
// job that was begun is waited for. The caller works too. A pool belongs to one caller at a time; pools share nothing,
// so that two models can run in two threads. Jobs must not call pool_run() on their own pool.
// Not here: what the jobs do.
#ifndef THREADS_H
#define THREADS_H

#include <pthread.h>
#include <stddef.h>

typedef struct Pool Pool;
// Does job number `job`; thread is below the number of threads, and no two jobs run at once with the same one.
typedef void Job(void *arg, int job, int thread);

// threads >= 1, the caller included. Fewer when the system gives no more; NULL when there is no memory.
Pool *pool_open(int threads);
void pool_close(Pool *p);       // NULL is fine
int pool_threads(const Pool *p);

// Runs jobs 0 .. jobs-1 and returns when all are done. With p NULL in the calling thread alone, in order.
void pool_run(Pool *p, Job *run, void *arg, int jobs);

// memcpy of n bytes by all threads: one alone is slower than the bus to a GPU.
void pool_copy(Pool *p, void *to, const void *from, size_t n);

// A thread by itself that gets no signals: they are the caller's business. Returns 0, or what pthread_create says.
int thread_start(pthread_t *id, size_t stack_bytes, void *(*run)(void *), void *arg);

#endif
