// matmul_jobs.h: how a product is cut into jobs for threads, the same for matmul.c and matmul_narrow.c.
//
// In order: whether threads pay; the rows of w in a job of few rows of x; the columns and rows of a block of a large
// product; what is done before a job and behind it.
// Not here: the jobs themselves, and the pool that runs them (threads.h).
#ifndef MATMUL_JOBS_H
#define MATMUL_JOBS_H

#include "matmul_weights.h"

#include <limits.h>

// Few rows of x, which memory binds.
enum {
    CHUNK_BYTES = 1 << 19,   // about so many bytes of weights in a job
    BAND = 24                // rows of w whose sums are finished together
};

// Below some ten microseconds of work, waking threads costs more than they save, much more on busy cores.
static inline bool worth_threads(int T, int OC, int C) { return (double)T * OC * C > 2e5; }

// The same for putting x (T,C) in order or converting it.
static inline bool worth_threads_for_x(int T, int C) { return (double)T * C > 1e5; }

// Few rows of x: the rows of w in a job. A job's weights are enough for the hardware to read ahead; there are at least
// four jobs a thread where w has so many rows, and as many for each thread, since threads that share the memory are
// equally fast; and no band is cut, but for the last one.
static inline int rows_in_a_job(const Weights *w, int OC, int C, int threads) {
    const size_t chunks = (size_t)OC * bytes_of(w, (size_t)C) / CHUNK_BYTES + 1;
    const int for_each = ceil_div((int)chunks, threads);
    const int rows = ceil_div(OC, threads * (for_each > 4 ? for_each : 4));
    return rows < 2 * BAND ? ceil_div(rows, 4) * 4 : ceil_div(rows, BAND) * BAND;
}

// Many rows of x: the width of a job, at most `most` in steps of a tile's NR, that leaves the least to wait for at the
// end.
static inline int columns_in_a_job(int OC, int most, int NR, int threads) {
    int best = INT_MAX, wide = most;
    for (int cols = most; cols >= 64; cols -= NR) {
        const int rounds = ceil_div(ceil_div(OC, cols), threads) * cols;
        if (rounds < best) best = rounds, wide = cols;
    }
    return wide;
}

// Few columns and many threads: the rows are split as well, at the price of packing the weights again. across: jobs
// side by side.
static inline int rows_in_a_block(int T, int across, int MR, int threads) {
    const int down = ceil_div(4 * threads, across);
    return down > 1 ? ceil_div(ceil_div(T, down), 4 * MR) * 4 * MR : T;
}

// Before a job: out (T,n) += b, from column `from` of b (or NULL) on, where the product is added to out; elsewhere the
// bias is what a tile begins with.
static inline void add_bias(float *out, size_t ldo, const float *b, int from, int then, int T, int n) {
    if (then != THEN_ADD || !b) return;
    for (size_t t = 0; t < (size_t)T; t++)
        for (int j = 0; j < n; j++) out[t * ldo + (size_t)j] += b[from + j];
}

// Behind it: the activation of out (T,n), while the block is in the cache.
static inline void activate_block(float *out, size_t ldo, void (*act)(float *x, int act, int n), int then, int T,
                                  int n) {
    if (then >= THEN_NOTHING) return;
    for (size_t t = 0; t < (size_t)T; t++) act(out + t * ldo, then, n);
}

#endif
