// cuda_sample.cuh: sums over a block and a token drawn by one: what generate_process.c does, in parallel.
//
// In order:
//   1. reductions and scans over a block
//   2. exponentials, and their sum in generate_process.c's order
//   3. radix search: where a running total crosses a line; sampling
//
// A sample is one block's work: top-k, soft-max, top-p and the pick need each other's totals over the row, seven passes
// that would be as many kernels.
// Not here: kernels, the processors, beams (cuda_choose.cuh).
#ifndef CUDA_SAMPLE_CUH
#define CUDA_SAMPLE_CUH

#include "cuda_common.h"

extern "C" {
#include "generate_parts.h"
}

enum { CHOOSE_THREADS = 512, CHOOSE_WARPS = CHOOSE_THREADS / 32, BINS = 2048 };

typedef unsigned long long u64;

// ---------------------------------------------------------------------------------------------------------
// 1. Over a block of CHOOSE_THREADS. Every thread calls and every thread gets the result.

template <typename N, typename Op> static __device__ __forceinline__ N block_reduce(N x, Op op) {
    SHARED(N, part, [CHOOSE_WARPS]);
    #pragma unroll
    for (int d = 16; d; d >>= 1) x = op(x, __shfl_xor_sync(0xFFFFFFFFu, x, d));
    __syncthreads();                        // part may still be read from the last call
    if (threadIdx.x % 32 == 0) part[threadIdx.x / 32] = x;
    __syncthreads();
    x = part[0];
    for (int w = 1; w < CHOOSE_WARPS; w++) x = op(x, part[w]);
    return x;
}

static __device__ __forceinline__ float block_max(float x) {
    return block_reduce(x, [](float a, float b) { return a > b ? a : b; });
}
static __device__ __forceinline__ double block_sum(double x) {
    return block_reduce(x, [](double a, double b) { return a + b; });
}
static __device__ __forceinline__ u64 block_max(u64 x) {
    return block_reduce(x, [](u64 a, u64 b) { return a > b ? a : b; });
}
static __device__ __forceinline__ u64 block_min(u64 x) {
    return block_reduce(x, [](u64 a, u64 b) { return a < b ? a : b; });
}

// What the threads before this one have together.
static __device__ u64 block_scan(u64 x) {
    SHARED(u64, part, [CHOOSE_WARPS]);
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    u64 upto = x;
    #pragma unroll
    for (int d = 1; d < 32; d <<= 1) {
        const u64 y = __shfl_up_sync(0xFFFFFFFFu, upto, d);
        if (lane >= d) upto += y;
    }
    __syncthreads();
    if (lane == 31) part[warp] = upto;
    __syncthreads();
    for (int w = 0; w < warp; w++) upto += part[w];
    return upto - x;
}

// ---------------------------------------------------------------------------------------------------------
// 2. Exponentials.

// exp(x - max) as exp_minus in generate_process.c, step by step and without fused multiply-adds, which round otherwise.
static __device__ __forceinline__ float exp_minus(float x, float max) {
    const float y = fmaxf(__fsub_rn(x, max), -88.0f), magic = 12582912.0f;
    const float k = __fsub_rn(__fadd_rn(__fmul_rn(y, 1.44269504f), magic), magic);
    const float r = __fadd_rn(__fsub_rn(y, __fmul_rn(k, 0.693359375f)), __fmul_rn(k, 2.12194440e-4f));
    float p = 1.0f / 5040;
    const float terms[7] = {1.0f / 720, 1.0f / 120, 1.0f / 24, 1.0f / 6, 0.5f, 1.0f, 1.0f};
    #pragma unroll
    for (int i = 0; i < 7; i++) p = __fadd_rn(__fmul_rn(p, r), terms[i]);
    return __fmul_rn(p, __uint_as_float((u32)((int)k + 127) << 23));
}

// at(v), v < V, summed as `sum` in generate_process.c: f32 along each of 16 lanes of each 512, those in double.
template <typename At> static __device__ double row_sum(At at, int V) {
    double total = 0;
    for (int g = threadIdx.x; g < (V + 511) / 512 * 16; g += CHOOSE_THREADS) {
        const int lane = g % 16, start = g / 16 * 512, end = V - start < 512 ? V : start + 512;
        float x = 0;
        int v = start;
        for (; v + 16 <= end; v += 16) x = __fadd_rn(x, at(v + lane));
        if (lane == 0) for (; v < end; v++) x = __fadd_rn(x, at(v));
        total += (double)x;
    }
    return block_sum(total);
}

// ---------------------------------------------------------------------------------------------------------
// 3. Sampling. Probabilities are added as integers, multiples of 2^-62.

static __device__ __forceinline__ u64 fixed(float p) { return (u64)(p * 4611686018427387904.0f); }
static __device__ __forceinline__ double unfixed(u64 p) { return (double)p / 4611686018427387904.0; }

// One piece for all uses of the template below.
static __device__ u64 *shared_bins() {
    SHARED(u64, bins, [BINS]);
    return bins;
}

// `crossing` of generate_process.c: 11, 11 and 10 bits of the key. key_at(v), weight_at(v); real(total) is the total's
// value, compared in f32. -> the key at which the total exceeds `line`; *below: the total of smaller keys.
template <typename Key, typename Weight, typename Real>
static __device__ u32 crossing(u64 *below, Key key_at, Weight weight_of, Real real, double line, int V) {
    u64 *bins = shared_bins();
    const int per = BINS / CHOOSE_THREADS, first = threadIdx.x * per;
    u32 prefix = 0, mask = 0;
    u64 total = 0;
    for (int level = 0; level < 3; level++) {
        const int shift = level == 0 ? 21 : level == 1 ? 10 : 0;
        const u32 bits = level == 2 ? 1023 : 2047;
        __syncthreads();
        for (int i = threadIdx.x; i < BINS; i += CHOOSE_THREADS) bins[i] = 0;
        __syncthreads();
        for (int v = threadIdx.x; v < V; v += CHOOSE_THREADS) {
            const u32 key = key_at(v);
            const u64 w = weight_of(v);
            if ((key & mask) == prefix && w) atomicAdd(&bins[key >> shift & bits], w);
        }
        __syncthreads();
        u64 mine = 0, found = BINS, last = 0;
        for (int i = 0; i < per; i++) mine += bins[first + i];
        u64 upto = total + block_scan(mine);
        for (int i = 0; i < per; i++) {
            upto += bins[first + i];
            if (bins[first + i]) last = first + i;
            if (found == BINS && (double)(float)real(upto) > line) found = first + i;
        }
        found = block_min(found), last = block_max(last);
        const u64 k = found < last ? found : last;
        u64 before = 0;
        for (int i = 0; i < per; i++) before += (u64)(first + i) < k ? bins[first + i] : 0;
        total += block_reduce(before, [](u64 a, u64 b) { return a + b; });
        prefix |= (u32)k << shift;
        mask |= bits << shift;
    }
    *below = total;
    return prefix;
}

// search_filter and search_pick. x (V) processed logits, overwritten; p (V) scratch -> the token, in every thread.
static __device__ int sample(float *x, float *p, const Choice *how, float u, int V) {
    const int per = (V + CHOOSE_THREADS - 1) / CHOOSE_THREADS;      // in order of ids: a piece for each thread
    const int start = min((int)threadIdx.x * per, V), end = min(start + per, V);
    const float temp = (float)how->temp;
    float max = -INFINITY;
    for (int v = threadIdx.x; v < V; v += CHOOSE_THREADS) {
        const float y = x[v] / temp + 0.0f;
        x[v] = y < 3.402823466e38f ? y : 3.402823466e38f;
        max = x[v] > max ? x[v] : max;
    }
    max = block_max(max);                    // the largest one is in every top-k
    u64 below;
    u32 least = 0;
    if (how->top_k > 0 && how->top_k < V)
        least = crossing(&below, [=](int v) { return sort_key(x[v]); }, [](int) { return (u64)1; },
                         [](u64 n) { return (double)n; }, V - how->top_k, V);
    if (max == -INFINITY) return 0;
    for (int v = threadIdx.x; v < V; v += CHOOSE_THREADS)
        p[v] = exp_minus(sort_key(x[v]) < least ? -INFINITY : x[v], max);
    __syncthreads();
    const float all = (float)row_sum([=](int v) { return p[v]; }, V);
    for (int v = threadIdx.x; v < V; v += CHOOSE_THREADS) p[v] /= all;
    __syncthreads();
    if (how->top_p < 1.0) {
        const double line = (double)(float)(1.0 - how->top_p);
        const u32 key = crossing(&below, [=](int v) { return sort_key(x[v]); }, [=](int v) { return fixed(p[v]); },
                                 [](u64 n) { return unfixed(n); }, line, V);
        u64 ties = 0;
        for (int v = start; v < end; v++) ties += sort_key(x[v]) == key;
        u64 rank = block_scan(ties);
        const u64 n = block_reduce(ties, [](u64 a, u64 b) { return a + b; });
        for (int v = start; v < end; v++) {  // equal logits go in order of their ids, the last one stays
            const u32 k = sort_key(x[v]);
            if (k < key) p[v] = 0;
            if (k != key) continue;
            if (++rank < n && !((double)(float)unfixed(below + rank * fixed(p[v])) > line)) p[v] = 0;
        }
        __syncthreads();
        const float kept = (float)row_sum([=](int v) { return p[v]; }, V);
        for (int v = threadIdx.x; v < V; v += CHOOSE_THREADS) p[v] /= kept;
        __syncthreads();
    }
    u64 mine = 0, last = 0, pick = V;
    for (int v = start; v < end; v++) {
        mine += fixed(p[v]);
        if (p[v] > 0) last = v;
    }
    u64 upto = block_scan(mine);
    for (int v = start; v < end && pick == (u64)V; v++) {
        upto += fixed(p[v]);
        if (p[v] > 0 && upto > fixed(u)) pick = v;
    }
    pick = block_min(pick), last = block_max(last);
    return (int)(pick < (u64)V ? pick : last);
}

#endif
