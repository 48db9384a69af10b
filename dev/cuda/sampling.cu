// dev/cuda/sampling.cu: drawing a token behind temperature, top-k and top-p, from a thread per row to choose() of
// cuda_choose.cuh.
//
//     logits (R,V) f32, a Search -> token (R), logprob (R)          rules: generate.h, search_filter, search_pick
//
// V = 50304. Must move: 4*V bytes a row, 0.2 MB, which is nothing; but both filters ask where, in ascending order, a
// running total crosses a line, and the pick asks the same in the order of ids. None of that needs a sort. On the
// host it costs a copy of the logits and a wait in every step. In the model the logits are still in the L2 cache.
//
// All versions add probabilities as integers (multiples of 2^-62, cuda_choose.cuh): sums of those have no order, so
// that every version draws the very token that generate.c draws.
#include "searching.h"

#include <float.h>

// What the filters leave of a row. Entries count as y = x / temp; those with keys below `least` (top-k) or `key`
// (top-p) are gone, and of those at `key` itself the ones with ids below `from`.
typedef struct {
    float temp, top;              // top: the largest y
    float all, kept;              // sums: of exp(y - top), and of the probabilities that top-p left
    u32 least, key;
    int from;
} Filter;

static __device__ __forceinline__ float y_of(const Filter &f, float x) {
    return fminf(clean(x) / f.temp + 0.0f, FLT_MAX);
}
static __device__ __forceinline__ float share(const Filter &f, float y) {
    return exp_minus(sort_key(y) < f.least ? -INFINITY : y, f.top) / f.all;
}
// The probability of id v behind both filters, but for the division by `kept`.
static __device__ __forceinline__ float left(const Filter &f, float x, int v) {
    const float y = y_of(f, x);
    const u32 k = sort_key(y);
    return k < f.key || (k == f.key && v < f.from) ? 0 : share(f, y);
}

static __device__ double count_of(u64 n) { return (double)n; }
static __device__ double part_of(u64 n) { return unfixed(n); }

// The key at which the total of weight(y), in ascending order, exceeds `line`; *below: the total of smaller keys. Bit
// by bit from the top: could this bit be set and the total below still be short of the line? 32 passes over the row.
template <int THREADS, class Weight>
static __device__ u32 cross_bits(u64 *below, const float *x, const Filter &f, int V, double line, Weight weight,
                                 double (*real)(u64), u64 *part) {
    u32 key = 0;
    *below = 0;
    for (u32 bit = 0x80000000u; bit; bit >>= 1) {
        u64 sum = 0;
        for (int v = threadIdx.x; v < V; v += THREADS) {
            const float y = y_of(f, x[v]);
            if (sort_key(y) < (key | bit)) sum += weight(y);
        }
        sum = block_add<THREADS>(sum, part);
        if ((key | bit) <= sort_key(f.top) && !((double)(float)real(sum) > line)) key |= bit, *below = sum;
    }
    return key;
}

// What the threads before this one have together. part (32)
template <int THREADS> static __device__ u64 scan(u64 mine, u64 *part) {
    u64 sum = mine;
    if constexpr (THREADS > 1) {
        const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
        for (int d = 1; d < 32; d *= 2) {
            const u64 other = __shfl_up_sync(0xFFFFFFFFu, sum, d);
            if (lane >= d) sum += other;
        }
        __syncthreads();
        if (lane == 31) part[warp] = sum;
        __syncthreads();
        for (int w = 0; w < warp; w++) sum += part[w];
    }
    return sum - mine;
}

// The same eleven bits at a time: a histogram in shared memory over the leading bits of the key says in which of 2048
// buckets the total crosses the line; two more passes within that bucket say the rest.
template <int THREADS, class Weight>
static __device__ u32 cross_buckets(u64 *below, const float *x, const Filter &f, int V, double line, Weight weight,
                                    double (*real)(u64), u64 *part) {
    SHARED(u64, bucket, [2048]);
    SHARED(u64, found, [2]);              // bucket, total before it
    constexpr int N = 2048 / THREADS;     // a thread's buckets
    u32 prefix = 0, mask = 0;
    u64 total = 0;
    for (int level = 0; level < 3; level++) {
        const int shift = level == 0 ? 21 : level == 1 ? 10 : 0;
        const u32 bits = level == 2 ? 1023 : 2047, most = sort_key(f.top) >> shift & bits;
        const bool edge = (sort_key(f.top) & mask) == prefix;      // the largest key is under this prefix
        __syncthreads();
        for (int i = threadIdx.x; i < 2048; i += THREADS) bucket[i] = 0;
        __syncthreads();
        for (int v = threadIdx.x; v < V; v += THREADS) {
            const float y = y_of(f, x[v]);
            const u64 w = weight(y);
            if ((sort_key(y) & mask) == prefix && w) atomicAdd(&bucket[sort_key(y) >> shift & bits], w);
        }
        __syncthreads();
        u64 mine = 0;
        for (int i = 0; i < N; i++) mine += bucket[N * threadIdx.x + i];
        u64 at = total + scan<THREADS>(mine, part);
        for (int i = 0; i < N; i++) {
            const u32 k = N * threadIdx.x + i;
            const u64 end = at + bucket[k];
            const bool last = edge && k == most;
            if (!((double)(float)real(at) > line) && (last || (double)(float)real(end) > line))
                found[0] = k, found[1] = at;
            at = end;
        }
        __syncthreads();
        prefix |= (u32)found[0] << shift;
        mask |= bits << shift;
        total = found[1];
    }
    *below = total;
    return prefix;
}

// Each thread has a stretch of ids. The tie at f.key that is the first to stay: ids go in ascending order while the
// total up to and with them does not exceed the line, never the last.
template <int THREADS>
static __device__ int first_tie(const float *x, const Filter &f, int V, double line, u64 below, u64 *part) {
    SHARED(int, first, [1]);
    const int n = (V + THREADS - 1) / THREADS, start = min((int)threadIdx.x * n, V), end = min(start + n, V);
    const u32 bits = f.key & 0x80000000u ? f.key & 0x7FFFFFFFu : ~f.key;
    const u64 each = fixed(share(f, __uint_as_float(bits)));
    u64 ties = 0, dropped = 0;
    for (int v = start; v < end; v++) ties += sort_key(y_of(f, x[v])) == f.key;
    u64 rank = scan<THREADS>(ties, part);
    const u64 all = block_add<THREADS>(ties, part);
    while (dropped + 1 < all && !((double)(float)unfixed(below + (dropped + 1) * each) > line)) dropped++;
    for (int v = start; v < end; v++)
        if (sort_key(y_of(f, x[v])) == f.key && rank++ == dropped) first[0] = v;
    __syncthreads();
    return first[0];
}

// The first id whose cumulative probability exceeds u; the last one that has any when rounding leaves the sum below u.
template <int THREADS>
static __device__ void pick(Search *s, int row, const float *x, const Filter &f, Norm z, u64 *part) {
    const int V = s->V, n = (V + THREADS - 1) / THREADS, start = min((int)threadIdx.x * n, V), end = min(start + n, V);
    u64 mine = 0;
    for (int v = start; v < end; v++) mine += fixed(left(f, x[v], v) / f.kept);
    u64 total = scan<THREADS>(mine, part);
    const u64 all = block_add<THREADS>(mine, part);
    const u64 u = fixed(philox_uniform(s->how.seed, s->how.first + (uint64_t)(row % s->K), (uint64_t)s->t));
    const u64 line = u < all ? u : all - 1;
    for (int v = start; v < end; v++) {
        const u64 w = fixed(left(f, x[v], v) / f.kept);
        if (total <= line && total + w > line) settle_row(s, row, v, log_softmax(x[v], z));
        total += w;
    }
}

// Version 1, THREADS = 1 and bit by bit: what generate.c does, a row per thread. Bytes moved: 70 times the row, out of
// the L1 and L2 caches. Limit: latency, three and a half million loads one behind the other. Version 2, THREADS =
// 1024: a block per row, so that 1024 loads are under way. Limit: 70 passes with barriers behind each, by one
// multiprocessor per row; each pass computes the probabilities anew. Version 3, BUCKETS: 3 passes per filter instead
// of 32. Atomic additions come in any order, which integers do not mind. Bytes moved: some 12 times the row. Limit:
// still one multiprocessor per row; additions that meet in few buckets.
template <int THREADS, bool BUCKETS> __global__ void __launch_bounds__(THREADS) sample(Search *s, const float *logits) {
    // logits (R,V)
    SHARED(double, sums, [32]);
    SHARED(u64, part, [32]);
    const int row = blockIdx.x, V = s->V;
    const float *x = logits + (size_t)row * V;
    const Norm z = row_sums<THREADS>(x, V, sums);
    Filter f = {(float)s->how.temp, 0, 1, 1, 0, 0, 0};
    f.top = y_of(f, z.max);
    const auto cross = [&](u64 *below, double line, auto weight, double (*real)(u64)) {
        if constexpr (BUCKETS) return cross_buckets<THREADS>(below, x, f, V, line, weight, real, part);
        else return cross_bits<THREADS>(below, x, f, V, line, weight, real, part);
    };
    u64 below;
    if (s->how.top_k > 0 && s->how.top_k < V)
        f.least = cross(&below, V - s->how.top_k, [](float) { return (u64)1; }, count_of);
    f.all = (float)row_total<THREADS>([=](int v) { return share(f, y_of(f, x[v])); }, V, sums);
    if (s->how.top_p < 1) {
        const double line = (double)(float)(1 - s->how.top_p);
        f.key = cross(&below, line, [=](float y) { return fixed(share(f, y)); }, part_of);
        f.from = first_tie<THREADS>(x, f, V, line, below, part);
        f.kept = (float)row_total<THREADS>([=](int v) { return left(f, x[v], v); }, V, sums);
    }
    pick<THREADS>(s, row, x, f, z, part);
}

// Version 4: choose() of cuda_choose.cuh. The passes over the logits, for the largest and for the sum, are cut into
// slices of 2048 for a block each; the last block of a row draws, from values and probabilities that are computed once
// and kept in scratch memory, which the L2 cache holds. Repetition penalty, n-grams and minimum length are in the same
// kernels, each of which starts while the one ahead ends, and the Search itself lies on the device, so that no step
// waits for the host. Bytes moved: the row once from device memory, and a dozen times 4*V out of L2. Limit: the
// drawing, by one multiprocessor per row.

// Small shapes take small blocks: the simulator pays for every thread.
static bool launch(const Ladder *l, int version, const Searching &p) {
    if (version == 4) {
        searching_choose(l->s, p, p.logits);
        return true;
    }
    const int n = version == 1 ? 1 : l->small ? 64 : 1024;
    const auto kernel = version == 1 ? sample<1, false>
                      : version == 2 ? l->small ? sample<64, false> : sample<1024, false>
                                     : l->small ? sample<64, true> : sample<1024, true>;
    LAUNCH(kernel, dim3(p.R), dim3(n), 0, l->s, p.device, p.logits);
    LAUNCH(end_step, dim3(1), dim3(32), 0, l->s, p.device, p.fed_t);
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
    std::vector<float> x = logits_of(R, V, ties);
    x[V / 2] = NAN;                       // damaged weights: never chosen
    Choice how = {};
    how.beams = how.captions = 1, how.max_new = SEARCH_STEPS, how.sample = true, how.seed = 7;
    how.length_penalty = how.repeat_penalty = 1, how.temp = temp, how.top_k = top_k, how.top_p = top_p;
    Step step = {};
    const Searching p = searching_make(l, &step, how, R, V, -1, {}, x);      // R prompts of one row
    const std::vector<float> token(step.token, step.token + R), logprob(step.logprob, step.logprob + R);
    int *out_token = (int *)ladder_output(l, LADDER_I32, token, 0);
    float *out_logprob = (float *)ladder_output(l, LADDER_F32, logprob, 1e-5);      // sums in another order
    ladder_around(l, [=] { searching_restore(l->s, p); }, [=] {
        CUDA_CHECK(cudaMemcpyAsync(out_token, p.parts.now_token, R * sizeof(int), cudaMemcpyDeviceToDevice, l->s));
        CUDA_CHECK(cudaMemcpyAsync(out_logprob, p.parts.now_logprob, R * sizeof(float), cudaMemcpyDeviceToDevice,
                                   l->s));
    });
    ladder_run(l, [&](int version) { return launch(l, version, p); });
    free(p.host);
}

int main(int argc, char **argv) {
    Ladder l = ladder_open(argc, argv, "sampling",
        {{"a thread per row, bit by bit", "as generate.c; 70 passes, each load behind the one before"},
         {"a block per row, bit by bit", "1024 loads under way; still 70 passes with barriers"},
         {"a block per row, histograms", "eleven bits of the key a pass: 3 passes per filter instead of 32"},
         {"shipped: choose", "slices of a row over many blocks, probabilities computed once"}});
    const std::vector<int> rows = l.small ? std::vector<int>{2} : std::vector<int>{1, 5, 32};
    const int V = l.small ? 700 : 50304;
    for (int R : rows) {
        if (R == 1) ladder_show(&l);
        run_case(&l, R, V, 1, 0, 0.9, false);        // LAVIS's nucleus sampling
        if (l.small || R == 5) run_case(&l, R, V, 0.7, 50, 0.95, false);
        if (l.small || R == 5) run_case(&l, R, V, 1.3, 20, 1, true);
        if (l.small || R == 5) run_case(&l, R, V, 1, 0, 0.5, true);
    }
    if (l.small) run_case(&l, 2, 37, 1, 5, 0.9, false);
    ladder_close(&l);
}
