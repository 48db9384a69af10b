// cuda_choose.cuh: the choice of the next token on the device: generate.c and generate_process.c in parallel.
//
// In order:
//   1. reductions and scans over a block; a row of logits, cut into slices
//   2. log-softmax; the processors
//   3. radix search: where a running total crosses a line; sampling
//   4. choose_scan_kernel, choose_sum_kernel, choose_list_kernel: a block a slice of a row, from logits to the token, or
//      to the 2K best continuations of a beam
//   5. choose_beams_kernel: the 2K best of a prompt's K beams, and what becomes of them
//   6. choose_end_kernel, advance_kernel: which prompts go on; whose past a row continues
//
// The Search of generate_parts.h lies on the device too, and the rules that need no logits are the very functions that
// the CPU calls. Here is what goes over the vocabulary. One block reads 200 KB through one multiprocessor, so a row is
// cut into slices of SLICE logits, and what one pass needs of the pass before crosses a kernel's end:
//
//     scan   largest logit of each slice; the processors; greedy: the best id of each slice
//     sum    of exp(logit - largest), by slices; the last block of a greedy or sampled row picks its token
//     list   beams: log-probabilities, processors, the 2K best of each slice; the last block of a row merges them
//
// Drawing a sample is one block's work: top-k, soft-max, top-p and the pick need each other's totals over the row,
// seven passes that would be as many kernels. Sums that decide something are those of generate_process.c or sums of
// integers, which have no order: the same logits give the CPU's tokens, whatever the order of threads. Of the sum of
// exponentials, the f32 sums (16 to each 512 logits) are the CPU's to the bit, hence slices of whole 512s; its double
// adds them up one behind the other, here they are added by slices, always in the same order. The two doubles may differ
// by 2^-50 of their value, which the f32 logarithm shows in one of about 10^7 rows, in its last bit.
// A row's logits are in the L2 cache when they are chosen from.
// Not here: when it is launched and what is fed (blip2.cu, section 8), text.
#ifndef CUDA_CHOOSE_CUH
#define CUDA_CHOOSE_CUH

#include "cuda_common.h"

extern "C" {
#include "generate_parts.h"
}

enum {
    CHOOSE_THREADS = 512, CHOOSE_WARPS = CHOOSE_THREADS / 32, BINS = 2048,
    SLICE = 2048,       // logits of a block, whole 512s
};

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

static __device__ float block_max(float x) { return block_reduce(x, [](float a, float b) { return a > b ? a : b; }); }
static __device__ double block_sum(double x) { return block_reduce(x, [](double a, double b) { return a + b; }); }
static __device__ u64 block_max(u64 x) { return block_reduce(x, [](u64 a, u64 b) { return a > b ? a : b; }); }
static __device__ u64 block_min(u64 x) { return block_reduce(x, [](u64 a, u64 b) { return a < b ? a : b; }); }

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

// What is handed from launcher to kernels.
typedef struct {
    Search *s;
    const float *logits;          // (B,V) at step 0, (R,V) later
    float *values, *scratch;      // (R,V), (R,ld)
    const int *lines;             // (2,line_R,line_len), see advance_kernel
    int line_R, line_len;
    size_t ld;
} Choosing;

// What the blocks of a row tell each other.
typedef struct {
    double sum;      // of exp(logit - the row's largest)
    u64 best;        // greedy: largest value and its id
    float top;       // largest logit
} Slice;

static __host__ __device__ inline int slices_of(int V) { return (V + SLICE - 1) / SLICE; }

// f32 words of a row's scratch memory, of R rows: V probabilities or ids, the slices, a ticket, the beam's best 2K ids.
static __host__ __device__ inline size_t choose_scratch(int V, int R) {
    const size_t words = (size_t)(V + 1) / 2 * 2 + slices_of(V) * sizeof(Slice) / 4 + 2;
    return (words + (2 * (size_t)R < (size_t)V ? 2 * (size_t)R : (size_t)V) + 1) / 2 * 2;
}

typedef struct {
    int r, b, start, end;         // its number, its prompt, this block's slice
    bool on;                      // whether a token is to be chosen
    const float *x;               // (V) logits
    float *y, *p;                 // (V) processed; probabilities
    const int *line;              // (t) rows whose tokens are its past
    Slice *slice;                 // (slices_of(V))
    int *ticket, *best;           // (1), (2K)
} Row;

static __device__ __forceinline__ Row row_at(const Choosing &c, int r, int slice) {
    const Search *s = c.s;
    const int V = s->V, t = s->t;
    Row w;
    w.r = r, w.b = r / s->K;
    w.start = slice * SLICE, w.end = min(V, w.start + SLICE);
    w.on = s->how.beams > 1 ? s->score[r] != -INFINITY && s->open[w.b] : !s->ended[r];
    w.x = c.logits + (size_t)(t > 0 ? r : w.b) * V;
    w.y = c.values + (size_t)r * V, w.p = c.scratch + (size_t)r * c.ld;
    w.line = c.lines + ((size_t)(t % 2) * c.line_R + r) * c.line_len;
    w.slice = (Slice *)(w.p + (V + 1) / 2 * 2);
    w.ticket = (int *)(w.slice + slices_of(V)), w.best = w.ticket + 2;
    return w;
}

// True in the block of a row that ends last; then it sees what the others wrote.
static __device__ bool last_of_row(const Row &w) {
    SHARED(int, mine, [1]);
    __threadfence();
    __syncthreads();
    if (threadIdx.x == 0) mine[0] = atomicAdd(w.ticket, 1);
    __syncthreads();
    const bool last = mine[0] == (int)gridDim.x - 1;
    if (last) __threadfence();
    return last;
}

// ---------------------------------------------------------------------------------------------------------
// 2. Log-softmax.

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

static __device__ float row_top(const Row &w, int V) {
    float top = -INFINITY;
    for (int i = 0; i < slices_of(V); i++) top = fmaxf(top, w.slice[i].top);
    return top;
}

// Log-softmax's sums out of those of the slices.
static __device__ Norm row_norm(const Row &w, int V) {
    Norm z = {row_top(w, V), 0};
    if (z.max == -INFINITY) z.max = 0;                                           // nothing to choose from
    else {
        double sum = 0;
        for (int i = 0; i < slices_of(V); i++) sum += w.slice[i].sum;
        z.logsum = (float)log(sum);
    }
    return z;
}

// The processors, on the block's slice of w.y, in place. z: for beams.
static __device__ void process(const Row &w, const Search *s, Norm z) {
    const int t = s->t, n_seen = s->n_seen[w.b], len = n_seen + t, n = s->how.no_repeat_ngram;
    const int *seen = s->seen_ids[w.b], *line = w.line;
    float *values = w.y;
    const auto id_at = [=](int i) {
        return i < n_seen ? seen[i] : s->token[(size_t)(i - n_seen) * s->max_R + line[i - n_seen]];
    };
    __syncthreads();
    if (s->how.repeat_penalty != 1.0)
        for (int i = threadIdx.x; i < len; i += CHOOSE_THREADS) {
            const int id = id_at(i);
            if (id < w.start || id >= w.end) continue;
            const float p = (float)s->how.repeat_penalty;
            const float x = s->how.beams > 1 ? log_softmax(w.x[id], z) : clean(w.x[id]);
            atomicExch(&values[id], fminf(x < 0 ? x * p : x / p, 3.402823466e38f));   // an id may come twice
        }
    __syncthreads();
    for (int i = threadIdx.x; n > 0 && i + n <= len; i += CHOOSE_THREADS) {
        bool same = true;
        for (int j = n - 2; j >= 0 && same; j--) same = id_at(i + j) == id_at(len - n + 1 + j);
        const int id = id_at(i + n - 1);
        if (same && id >= w.start && id < w.end) atomicExch(&values[id], -INFINITY);
    }
    __syncthreads();
    if (threadIdx.x == 0 && t < s->how.min_new && s->eos >= w.start && s->eos < w.end) values[s->eos] = -INFINITY;
    __syncthreads();
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

// ---------------------------------------------------------------------------------------------------------
// 4. Rows. grid: slices, rows. A step that was queued before the search was over finds s->more false and does nothing.

__global__ void __launch_bounds__(CHOOSE_THREADS) choose_scan_kernel(Choosing c) {
    // logits -> slices' top and best; w.y for greedy and sampled rows
    pdl_wait();
    pdl_launch();
    Search *s = c.s;
    if (!s->more) return;
    const Row w = row_at(c, blockIdx.y, blockIdx.x);
    const bool beams = s->how.beams > 1, first = threadIdx.x == 0 && blockIdx.x == 0;
    if (!w.on) {
        if (!beams && first) put(s, w.r, s->pad, w.r, 0);
        return;
    }
    float top = -INFINITY;
    u64 bad = 0, best = 0;
    for (int v = w.start + threadIdx.x; v < w.end; v += CHOOSE_THREADS) {
        const float x = clean(w.x[v]);
        bad |= !(w.x[v] < INFINITY);
        top = x > top ? x : top;
        if (!beams) w.y[v] = x;
    }
    if (block_max(bad) && threadIdx.x == 0) atomicOr(&s->broken[w.b], 1);
    top = block_max(top);
    if (!beams) process(w, s, Norm{0, 0});
    if (!beams && !s->how.sample) {          // the largest value, and of those the smallest id
        for (int v = w.start + threadIdx.x; v < w.end; v += CHOOSE_THREADS) {
            const u64 key = (u64)sort_key(w.y[v] + 0.0f) << 32 | (u32)~v;
            best = key > best ? key : best;
        }
        best = block_max(best);
    }
    if (threadIdx.x == 0) w.slice[blockIdx.x].top = top, w.slice[blockIdx.x].best = best;
    if (first) *w.ticket = 0;
}

__global__ void __launch_bounds__(CHOOSE_THREADS) choose_sum_kernel(Choosing c) {
    // slices' tops -> their sums; greedy and sampled rows: the token
    SHARED(float, e, [SLICE]);
    pdl_wait();
    pdl_launch();
    Search *s = c.s;
    const Row w = row_at(c, blockIdx.y, blockIdx.x);
    if (!s->more || !w.on) return;
    const int V = s->V;
    const float top = row_top(w, V);
    for (int v = w.start + threadIdx.x; v < w.end; v += CHOOSE_THREADS) e[v - w.start] = exp_minus(clean(w.x[v]), top);
    __syncthreads();
    const double sum = row_sum([=](int v) { return e[v]; }, w.end - w.start);
    if (threadIdx.x == 0) w.slice[blockIdx.x].sum = sum;
    if (s->how.beams > 1 || !last_of_row(w)) return;
    const Norm z = row_norm(w, V);
    int token;
    if (s->how.sample) {
        const float u = philox_uniform(s->how.seed, s->how.first + (uint64_t)(w.r % s->K), (uint64_t)s->t);
        token = sample(w.y, w.p, &s->how, u, V);
    } else {
        u64 best = 0;
        for (int i = 0; i < slices_of(V); i++) best = w.slice[i].best > best ? w.slice[i].best : best;
        token = (int)~(u32)best;
    }
    if (threadIdx.x == 0) settle_row(s, w.r, token, log_softmax(w.x[token], z));
}

// Beams: the ids of the `most` largest of the block's slice of w.y, in no order, -1 for what is -Inf; among equals the
// smallest ids.
static __device__ void slice_ids(int *out, const Row &w, float score, int most) {
    SHARED(int, count, [1]);
    const int n = w.end - w.start, per = (n + CHOOSE_THREADS - 1) / CHOOSE_THREADS;
    const int start = min((int)threadIdx.x * per, n), end = min(start + per, n);
    const float *values = w.y + w.start;
    const auto key_at = [=](int v) { return sort_key(values[v] + score + 0.0f); };    // no -0: it would sort below 0
    const u32 nothing = sort_key(-INFINITY);
    u64 below, ties = 0;
    const u32 key = crossing(&below, key_at, [](int) { return (u64)1; }, [](u64 m) { return (double)m; }, n - most, n);
    if (threadIdx.x == 0) count[0] = 0;
    __syncthreads();
    for (int v = start; v < end; v++) {
        const u32 k = key_at(v);
        if (k > key) out[atomicAdd(&count[0], 1)] = w.start + v;
        ties += k == key;
    }
    __syncthreads();
    const int sure = count[0];
    u64 rank = sure + block_scan(ties);
    for (int v = start; v < end && rank < (u64)most; v++)
        if (key_at(v) == key) out[rank++] = key == nothing ? -1 : w.start + v;
}

// The slices' lists -> w.best. Each id counts those that are better: that is its place.
static __device__ void merge_ids(const Row &w, float score, int K, int V) {
    SHARED(u64, others, [CHOOSE_THREADS]);
    const int most = 2 * K, all = slices_of(V) * most;
    const int *lists = (const int *)w.p;
    const auto rank_at = [=](int i) {        // the larger the better; 0: there is none
        const int at = i / most * SLICE + i % most;
        if (i >= all || i % most >= SLICE || at >= V || lists[at] < 0) return (u64)0;
        return (u64)sort_key(w.y[lists[at]] + score + 0.0f) << 32 | (u32)~lists[at];
    };
    u64 found = 0;
    for (int i0 = 0; i0 < all; i0 += CHOOSE_THREADS) {
        const u64 me = rank_at(i0 + threadIdx.x);
        int place = 0;
        for (int j0 = 0; j0 < all; j0 += CHOOSE_THREADS) {
            __syncthreads();
            others[threadIdx.x] = rank_at(j0 + threadIdx.x);
            __syncthreads();
            for (int j = 0; j < CHOOSE_THREADS && j0 + j < all; j++) place += others[j] > me;
        }
        if (me && place < most) w.best[place] = (int)~(u32)me;
        found += me != 0;
    }
    found = block_reduce(found, [](u64 a, u64 b) { return a + b; });
    for (int i = (int)found + threadIdx.x; i < most; i += CHOOSE_THREADS) w.best[i] = -1;
}

__global__ void __launch_bounds__(CHOOSE_THREADS) choose_list_kernel(Choosing c) {
    // slices' tops and sums -> log-probabilities w.y, w.best
    pdl_wait();
    pdl_launch();
    const Search *s = c.s;
    const Row w = row_at(c, blockIdx.y, blockIdx.x);
    if (!s->more || !w.on) return;
    const int most = 2 * s->K;
    const Norm z = row_norm(w, s->V);
    const float score = s->score[w.r];
    for (int v = w.start + threadIdx.x; v < w.end; v += CHOOSE_THREADS) w.y[v] = log_softmax(w.x[v], z);
    process(w, s, z);
    slice_ids(gridDim.x == 1 ? w.best : (int *)w.p + w.start, w, score, min(most, w.end - w.start));
    if (gridDim.x > 1 && last_of_row(w)) merge_ids(w, score, s->K, s->V);
}

// ---------------------------------------------------------------------------------------------------------
// 5. A prompt. Each of up to K * 2K candidates counts those that are better: that is its place.

static __device__ __forceinline__ bool better(const Candidate &a, const Candidate &b) {
    return a.value > b.value || (a.value == b.value && (a.k < b.k || (a.k == b.k && a.token < b.token)));
}

__global__ void __launch_bounds__(CHOOSE_THREADS) choose_beams_kernel(Choosing from) {
    // w.y and w.best of a prompt's rows -> its next tokens
    pdl_wait();
    pdl_launch();
    Search *s = from.s;
    if (!s->more) return;
    const int b = blockIdx.x, K = s->K, row0 = b * K, all = K * 2 * K;
    if (!s->open[b]) {
        for (int k = threadIdx.x; k < K; k += CHOOSE_THREADS) put_ended(s, row0 + k);
        return;
    }
    const auto candidate = [=](Candidate *c, int i) {
        const int k = i / (2 * K), r = row0 + k;
        const Row w = row_at(from, r, 0);
        c->k = k;
        c->token = s->score[r] == -INFINITY ? -1 : w.best[i % (2 * K)];
        if (c->token < 0) return false;
        c->logprob = w.y[c->token];
        c->value = c->logprob + s->score[r];
        return true;
    };
    u64 valid = 0;
    for (int i = threadIdx.x; i < all; i += CHOOSE_THREADS) {
        Candidate me, other;
        if (!candidate(&me, i)) continue;
        int place = 0;
        for (int j = 0; j < all && place < 2 * K; j++) place += candidate(&other, j) && better(other, me);
        if (place < 2 * K) s->best[(size_t)b * 2 * K + place] = me;
        valid++;
    }
    valid = block_reduce(valid, [](u64 x, u64 y) { return x + y; });
    __syncthreads();
    if (threadIdx.x == 0) settle_beams(s, b, (int)(valid < (u64)(2 * K) ? valid : 2 * K));
}

// ---------------------------------------------------------------------------------------------------------
// 6. Between choosing and feeding.

__global__ void choose_end_kernel(Search *s, int *fed_t) {
    // one block; *fed_t: the number of the token that is fed next
    pdl_wait();
    pdl_launch();
    if (!s->more) return;
    int more = 0;
    for (int b = threadIdx.x; b < s->B; b += blockDim.x) {
        bool open = s->how.beams > 1 && s->open[b];
        for (int k = 0; k < s->K && s->how.beams == 1; k++) open = open || !s->ended[b * s->K + k];
        s->open[b] = open;
        more |= open;
    }
    more = __syncthreads_or(more);
    if (threadIdx.x == 0) *fed_t = s->t++, s->more = more;
}

// Chooses the next token of R rows of B prompts. Search s on the device, of which s->more says afterwards whether any
// row goes on; scratch (R, choose_scratch(V,R)), logits (B or R, V), lines as in Choosing.
static void choose(cudaStream_t stream, Search *s, int *fed_t, float *values, float *scratch, const float *logits,
                   const int *lines, int line_R, int line_len, bool beams, int B, int R, int V) {
    const Choosing c = {s, logits, values, scratch, lines, line_R, line_len, choose_scratch(V, R)};
    const dim3 grid(slices_of(V), R), block(CHOOSE_THREADS);
    LAUNCH_PDL(choose_scan_kernel, grid, block, 0, stream, c);
    LAUNCH_PDL(choose_sum_kernel, grid, block, 0, stream, c);
    if (beams) {
        LAUNCH_PDL(choose_list_kernel, grid, block, 0, stream, c);
        LAUNCH_PDL(choose_beams_kernel, dim3(B), block, 0, stream, c);
    }
    LAUNCH_PDL(choose_end_kernel, dim3(1), dim3(128), 0, stream, s, fed_t);
}

// K and V of token t lie in the row's own slot; the tokens before it where its parent had them: beams copy no keys or
// values, only these lists of rows.
__global__ void advance_kernel(int *line, int *position, int *slot, const int *t_at, const int *parent,
                               const int *n_prompt, const int *prompt_of, int R, int max_new) {
    // line (2,R,max_new): half t % 2 -> half (t + 1) % 2; position, slot (rows)
    pdl_wait();
    pdl_launch();
    const int row = blockIdx.x, t = *t_at;
    const int *from = line + ((size_t)(t % 2) * R + parent[row]) * max_new;
    int *to = line + ((size_t)((t + 1) % 2) * R + row) * max_new;
    for (int i = threadIdx.x; i < t; i += blockDim.x) to[i] = from[i];
    if (threadIdx.x == 0) {
        to[t] = row;
        position[row] = n_prompt[prompt_of[row]] + t;
        slot[row] = t * R + row;
    }
}

#endif
