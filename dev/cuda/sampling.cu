// dev/cuda/sampling.cu: drawing a token from logits behind temperature, top-k and top-p, from a thread per row on.
//
//     logits (R,V) f32, u (R) in [0,1) -> token (R), logprob (R)          rules: generate.h, search_filter, search_pick
//
// V = 50304. Must move: 4*V bytes a row, 0.2 MB, which is nothing; but both filters ask where, in ascending order, a
// running total crosses a line, and the pick asks the same in the order of ids. None of that needs a sort. On the
// host it costs a copy of the logits and a wait in every step.
#include "ladder.h"

#include "cuda_layers.cuh"

#include <float.h>

typedef unsigned long long u64;

typedef struct {
    int *token;
    float *logprob;
    const float *logits, *u;
    int V, top_k;                  // top_k: 0 for off
    float temp;
    double top_p;                  // 1 for off
} Sampling;

static __device__ __forceinline__ float clean(float x) { return x < INFINITY ? x : -INFINITY; }   // NaN as well
static __device__ __forceinline__ float value_of(float x, float temp) { return fminf(clean(x) / temp + 0.0f, FLT_MAX); }

// Orders floats as unsigned integers.
static __device__ __forceinline__ u32 key_of(float x) {
    const u32 u = __float_as_uint(x);
    return u & 0x80000000u ? ~u : u | 0x80000000u;
}

// Sum over the threads of a block, all of which get it; in double, so that the order does not matter where it counts.
template <int THREADS> static __device__ double block_total(double x, double *shared) {
    if constexpr (THREADS == 1) return x;
    for (int d = 16; d; d /= 2) x += __shfl_xor_sync(0xFFFFFFFFu, x, d);
    if (threadIdx.x % 32 == 0) shared[threadIdx.x / 32] = x;
    __syncthreads();
    x = 0;
    for (int w = 0; w < THREADS / 32; w++) x += shared[w];
    __syncthreads();
    return x;
}
template <int THREADS> static __device__ float block_top(float x, float *shared) {
    if constexpr (THREADS == 1) return x;
    for (int d = 16; d; d /= 2) x = fmaxf(x, __shfl_xor_sync(0xFFFFFFFFu, x, d));
    if (threadIdx.x % 32 == 0) shared[threadIdx.x / 32] = x;
    __syncthreads();
    for (int w = 0; w < THREADS / 32; w++) x = fmaxf(x, shared[w]);
    __syncthreads();
    return x;
}

// What the filters left: entries above `key`, and those equal to it but for the first `dropped` of them by id. Their
// weights are exp(value - top). Then the pick, in the order of ids: every thread adds up a stretch of them.
typedef struct { u32 key; int dropped; float top; } Kept;

template <int THREADS> static __device__ void pick(const Sampling &p, int row, Kept k, double *sums, int *ties) {
    const float *x = p.logits + (size_t)row * p.V;
    const int n = (p.V + THREADS - 1) / THREADS, from = threadIdx.x * n, end = from + n < p.V ? from + n : p.V;
    int equal = 0, before = 0;
    for (int v = from; v < end; v++) equal += key_of(value_of(x[v], p.temp)) == k.key;
    ties[threadIdx.x] = equal;
    if (THREADS > 1) __syncthreads();
    for (int i = 0; i < (int)threadIdx.x; i++) before += ties[i];
    double sum = 0, all = 0, total = 0;
    for (int v = from, rank = before; v < end; v++) {
        const float y = value_of(x[v], p.temp);
        if (key_of(y) > k.key || (key_of(y) == k.key && rank++ >= k.dropped)) sum += expf(y - k.top);
    }
    sums[threadIdx.x] = sum;
    if (THREADS > 1) __syncthreads();
    for (int i = 0; i < THREADS; i++) {
        if (i == (int)threadIdx.x) total = all;
        all += sums[i];
    }
    const double line = p.u[row] * all;
    if (!(sum > 0) || total > line || !(total + sum > line)) return;
    int last = from;                      // this thread's stretch has it
    for (int v = from, rank = before; v < end; v++) {
        const float y = value_of(x[v], p.temp);
        if (!(key_of(y) > k.key || (key_of(y) == k.key && rank++ >= k.dropped))) continue;
        last = v;
        total += expf(y - k.top);
        if (total > line) break;
    }
    p.token[row] = last;
}

// log-softmax of what was picked, from the logits as they were.
template <int THREADS> static __device__ void log_probability(const Sampling &p, int row, float *tops, double *shared) {
    const float *x = p.logits + (size_t)row * p.V;
    float top = -INFINITY;
    double sum = 0;
    for (int v = threadIdx.x; v < p.V; v += THREADS) top = fmaxf(top, clean(x[v]));
    top = block_top<THREADS>(top, tops);
    for (int v = threadIdx.x; v < p.V; v += THREADS) sum += expf(clean(x[v]) - top);
    sum = block_total<THREADS>(sum, shared);
    if (threadIdx.x == 0) p.logprob[row] = (clean(x[p.token[row]]) - top) - (float)log(sum);
}

// Versions 1 (THREADS = 1) and 2 (1024). The key at which a total crosses its line is found bit by bit from the top:
// could this bit be set and the total below still be short of the line? 32 passes over the row for each filter.
// 1: limit: latency, a hundred loads' worth of it in a row. 2: a block per row; limit: 70 passes with barriers behind
// each, on one multiprocessor per row.
template <int THREADS> __global__ void __launch_bounds__(THREADS) sample12(Sampling p) {
    SHARED(double, sums, [THREADS]);
    SHARED(int, ties, [THREADS]);
    SHARED(float, tops, [32]);
    const int row = blockIdx.x, V = p.V;
    const float *x = p.logits + (size_t)row * V;
    float top = -INFINITY;
    for (int v = threadIdx.x; v < V; v += THREADS) top = fmaxf(top, value_of(x[v], p.temp));
    top = block_top<THREADS>(top, tops);

    u32 floor_key = 0;                    // top-k: the key of the k-th largest; all that equal it stay
    for (u32 bit = 0x80000000u; bit && p.top_k > 0 && p.top_k < V; bit >>= 1) {
        double n = 0;
        for (int v = threadIdx.x; v < V; v += THREADS) n += key_of(value_of(x[v], p.temp)) >= (floor_key | bit);
        if (block_total<THREADS>(n, sums) >= p.top_k) floor_key |= bit;
    }
    Kept k = {floor_key, 0, top};
    if (p.top_p < 1) {
        // the total weight below `key`, of what top-k left
        const auto below = [&](u32 key) {
            double sum = 0;
            for (int v = threadIdx.x; v < V; v += THREADS) {
                const float y = value_of(x[v], p.temp);
                if (key_of(y) >= floor_key && key_of(y) < key) sum += expf(y - top);
            }
            return block_total<THREADS>(sum, sums);
        };
        const double line = (double)(float)(1 - p.top_p) * (below(0xFFFFFFFFu));
        k.key = 0;
        for (u32 bit = 0x80000000u; bit; bit >>= 1)
            if (below(k.key | bit) <= line) k.key |= bit;
        // of those at the line itself, as many go as keep the total below it, but never the last
        double equal = 0, short_of = line - below(k.key);
        for (int v = threadIdx.x; v < V; v += THREADS) equal += key_of(value_of(x[v], p.temp)) == k.key;
        equal = block_total<THREADS>(equal, sums);
        const u32 bits = k.key & 0x80000000u ? k.key & 0x7FFFFFFFu : ~k.key;
        k.dropped = (int)fmin(equal - 1, floor(short_of / expf(__uint_as_float(bits) - top)));
    }
    pick<THREADS>(p, row, k, sums, ties);
    if (THREADS > 1) __syncthreads();
    log_probability<THREADS>(p, row, tops, sums);
}

// Version 3: eleven bits at a time. A histogram in shared memory over the leading bits of the key says in which of 2048
// buckets the total crosses the line; two more passes within that bucket say the rest. Weights are added as integers
// (units of 2^-40), because atomic additions come in any order and floats would come out differently each time.
// Passes over the row: 3 per filter instead of 32. Limit: one block per row, and atomics that meet in few buckets.
typedef struct { u32 key; u64 below, equal; } Crossing;

template <int THREADS, class F>
static __device__ Crossing crossing3(u64 *bucket, u64 *part, Crossing *found, const float *x, int V, float temp,
                                     u64 line, F weight) {
    // bucket (2048), part (32); weight(value) -> what an entry adds
    constexpr int N = 2048 / THREADS;     // a thread's buckets
    u32 prefix = 0, mask = 0;
    u64 below = 0;
    for (int level = 0; level < 3; level++) {
        const int shift = level == 0 ? 21 : level == 1 ? 10 : 0, lane = threadIdx.x % 32, warp = threadIdx.x / 32;
        const u32 bits = level == 2 ? 1023 : 2047;
        for (int i = threadIdx.x; i < 2048; i += THREADS) bucket[i] = 0;
        __syncthreads();
        for (int v = threadIdx.x; v < V; v += THREADS) {
            const float y = value_of(x[v], temp);
            const u64 w = weight(y);
            if ((key_of(y) & mask) == prefix && w) atomicAdd(&bucket[key_of(y) >> shift & bits], w);
        }
        __syncthreads();
        u64 mine = 0, sum;                // sum: up to and with this thread's buckets
        for (int i = 0; i < N; i++) mine += bucket[N * threadIdx.x + i];
        sum = mine;
        for (int d = 1; d < 32; d *= 2) {
            const u64 other = __shfl_up_sync(0xFFFFFFFFu, sum, d);
            if (lane >= d) sum += other;
        }
        if (lane == 31) part[warp] = sum;
        __syncthreads();
        for (int w = 0; w < warp; w++) sum += part[w];
        u64 at = below + sum - mine;
        for (int i = 0; i < N; i++) {
            const u64 w = bucket[N * threadIdx.x + i];
            if (at <= line && at + w > line) *found = Crossing{N * threadIdx.x + (u32)i, at, w};
            at += w;
        }
        __syncthreads();
        prefix |= found->key << shift;
        mask |= bits << shift;
        below = found->below;
    }
    const Crossing c = {prefix, below, found->equal};
    __syncthreads();
    return c;
}

static __device__ __forceinline__ u64 fixed(float weight) { return (u64)((double)weight * 1099511627776.0 + 0.5); }

template <int THREADS> __global__ void __launch_bounds__(THREADS) sample3(Sampling p) {
    SHARED(double, sums, [THREADS]);
    SHARED(int, ties, [THREADS]);
    SHARED(float, tops, [32]);
    SHARED(u64, bucket, [2048]);
    SHARED(u64, part, [32]);
    SHARED(Crossing, found, [1]);
    const int row = blockIdx.x, V = p.V;
    const float *x = p.logits + (size_t)row * V;
    float top = -INFINITY;
    for (int v = threadIdx.x; v < V; v += THREADS) top = fmaxf(top, value_of(x[v], p.temp));
    top = block_top<THREADS>(top, tops);
    u32 floor_key = 0;
    if (p.top_k > 0 && p.top_k < V)
        floor_key = crossing3<THREADS>(bucket, part, found, x, V, p.temp, (u64)(V - p.top_k),
                                       [](float) { return (u64)1; }).key;
    Kept k = {floor_key, 0, top};
    if (p.top_p < 1) {
        const auto weight = [=](float y) { return key_of(y) >= floor_key ? fixed(expf(y - top)) : 0; };
        if (threadIdx.x == 0) bucket[0] = 0;
        __syncthreads();
        u64 mine = 0;
        for (int v = threadIdx.x; v < V; v += THREADS) mine += weight(value_of(x[v], p.temp));
        atomicAdd(&bucket[0], mine);
        __syncthreads();
        const u64 line = (u64)((double)(float)(1 - p.top_p) * (double)bucket[0]);
        __syncthreads();
        const Crossing c = crossing3<THREADS>(bucket, part, found, x, V, p.temp, line, weight);
        const u32 bits = c.key & 0x80000000u ? c.key & 0x7FFFFFFFu : ~c.key;
        const u64 each = fixed(expf(__uint_as_float(bits) - top)), n = each ? c.equal / each : 1;
        const u64 drop = each ? (line - c.below) / each : 0;
        k.key = c.key;
        k.dropped = (int)(drop < n ? drop : n - 1);
    }
    pick<THREADS>(p, row, k, sums, ties);
    __syncthreads();
    log_probability<THREADS>(p, row, tops, sums);
}

// Small shapes take small blocks: the simulator pays for every thread.
static bool launch(const Ladder *l, int version, const Sampling &p, int R) {
    switch (version) {
    case 1: LAUNCH(sample12<1>, dim3(R), dim3(1), 0, l->s, p); break;
    case 2:
        if (l->small) LAUNCH(sample12<64>, dim3(R), dim3(64), 0, l->s, p);
        else LAUNCH(sample12<1024>, dim3(R), dim3(1024), 0, l->s, p);
        break;
    case 3:
        if (l->small) LAUNCH(sample3<64>, dim3(R), dim3(64), 0, l->s, p);
        else LAUNCH(sample3<1024>, dim3(R), dim3(1024), 0, l->s, p);
        break;
    }
    return true;
}

// Logits as a model's: few likely, a long tail (Gumbel). ties: rounded, so that some are equal.
static std::vector<float> logits_of(int R, int V, bool ties) {
    std::vector<float> x = ladder_numbers((size_t)R * V, 5, false);
    for (float &v : x) {
        v = -1.5f * logf(-logf(0.5f * v + 0.5f + 1e-6f) + 1e-9f);
        if (ties) v = rintf(v * 4) / 4;
    }
    return x;
}

static void run_case(Ladder *l, int R, int V, double temp, int top_k, double top_p, bool ties) {
    if (!ladder_case(l, 4.0 * R * V, 0, "%d rows of %d, temperature %g, top-k %d, top-p %g%s", R, V, temp, top_k, top_p,
                     ties ? ", with ties" : "")) return;
    std::vector<float> x = logits_of(R, V, ties), u(R), token(R), logprob(R), probs(V), scratch(V);
    x[V / 2] = NAN;                       // damaged weights: never chosen
    Choice how = {};
    how.beams = how.captions = 1, how.sample = true, how.temp = temp, how.top_k = top_k, how.top_p = top_p;
    for (int r = 0; r < R; r++) {
        const float *row = &x[(size_t)r * V];
        search_filter(probs.data(), scratch.data(), row, &how, V);
        // The same token for u a little smaller and larger, so that no rounding decides.
        int pick = -1;
        for (int step = 0; step < 200 && pick < 0; step++) {
            u[r] = search_uniform(7, (uint64_t)r, (uint64_t)step);
            pick = search_pick(probs.data(), u[r], V);
            const int lower = search_pick(probs.data(), u[r] - 1e-3f, V);
            if (lower != pick || search_pick(probs.data(), u[r] + 1e-3f, V) != pick) pick = -1;
        }
        CHECK(pick >= 0);
        float top = -INFINITY;
        double sum = 0;
        for (int v = 0; v < V; v++) if (row[v] > top) top = row[v];
        for (int v = 0; v < V; v++) if (row[v] <= top) sum += exp((double)row[v] - top);
        token[r] = (float)pick;
        logprob[r] = (float)(row[pick] - top - log(sum));
    }
    Sampling p = {NULL, NULL, ladder_input(l, x), ladder_input(l, u), V, top_k, (float)temp, top_p};
    p.token = (int *)ladder_output(l, LADDER_I32, token, 0);
    p.logprob = (float *)ladder_output(l, LADDER_F32, logprob, 1e-5);      // sums in another order
    ladder_run(l, [&](int version) { return launch(l, version, p, R); });
}

int main(int argc, char **argv) {
    Ladder l = ladder_open(argc, argv, "sampling", {"a thread per row, bit by bit", "a block per row, bit by bit",
                                                    "a block per row, histograms"});
    const std::vector<int> rows = l.small ? std::vector<int>{2} : std::vector<int>{1, 5, 32};
    const int V = l.small ? 700 : 50304;
    for (int R : rows) {
        run_case(&l, R, V, 1, 0, 0.9, false);        // LAVIS's nucleus sampling
        if (l.small || R == 5) run_case(&l, R, V, 0.7, 50, 0.95, false);
        if (l.small || R == 5) run_case(&l, R, V, 1.3, 20, 1, true);
        if (l.small || R == 5) run_case(&l, R, V, 1, 0, 0.5, true);
    }
    if (l.small) run_case(&l, 2, 37, 1, 5, 0.9, false);
    ladder_close(&l);
}
