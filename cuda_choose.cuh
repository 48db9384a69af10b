// cuda_choose.cuh: the choice of the next token on the device: generate.c and generate_process.c in parallel.
//
// In order:
//   1. reductions and scans over a block
//   2. log-softmax; the processors
//   3. radix search: where a running total crosses a line; sampling
//   4. choose_row_kernel: a block a row, from logits to the token, or to the 2K best continuations of a beam
//   5. choose_beams_kernel: the 2K best of a prompt's K beams, and what becomes of them
//   6. choose_end_kernel, advance_kernel: which prompts go on; whose past a row continues
//
// The Search of generate_parts.h lies on the device too, and the rules that need no logits are the very functions that
// the CPU calls. Here is what goes over the vocabulary. Sums that decide something have one fixed order (that of
// generate_process.c) or are sums of integers, which have none: the same logits give the CPU's tokens, whatever the
// order of threads. A row's logits (200 KB) are in the L2 cache when they are chosen from.
// Not here: when it is launched and what is fed (blip2.cu, section 8), text.
#ifndef CUDA_CHOOSE_CUH
#define CUDA_CHOOSE_CUH

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

// logits (V) -> its sums; *broken when some are NaN or +Inf.
static __device__ Norm row_norm(const float *logits, int *broken, int V) {
    float max = -INFINITY;
    u64 bad = 0;
    for (int v = threadIdx.x; v < V; v += CHOOSE_THREADS) {
        const float x = clean(logits[v]);
        bad |= !(logits[v] < INFINITY);
        max = x > max ? x : max;
    }
    if (block_max(bad) && threadIdx.x == 0) atomicOr(broken, 1);
    Norm z = {block_max(max), 0};
    if (z.max == -INFINITY) z.max = 0;                                           // nothing to choose from
    else z.logsum = (float)log(row_sum([=](int v) { return exp_minus(clean(logits[v]), z.max); }, V));
    return z;
}

// The processors, in place. values (V) are what they work on, line (t) the rows whose tokens are the past of row r.
static __device__ void process(float *values, const Search *s, const float *logits, Norm z, const int *line, int b) {
    const int V = s->V, t = s->t, n_seen = s->n_seen[b], len = n_seen + t, n = s->how.no_repeat_ngram;
    const int *seen = s->seen_ids[b];
    const auto id_at = [=](int i) {
        return i < n_seen ? seen[i] : s->token[(size_t)(i - n_seen) * s->max_R + line[i - n_seen]];
    };
    if (s->how.repeat_penalty != 1.0)
        for (int i = threadIdx.x; i < len; i += CHOOSE_THREADS) {
            const int id = id_at(i);
            if (id < 0 || id >= V) continue;
            const float p = (float)s->how.repeat_penalty;
            const float x = s->how.beams > 1 ? log_softmax(logits[id], z) : clean(logits[id]);
            atomicExch(&values[id], fminf(x < 0 ? x * p : x / p, 3.402823466e38f));   // an id may come twice
        }
    __syncthreads();
    for (int i = threadIdx.x; n > 0 && i + n <= len; i += CHOOSE_THREADS) {
        bool same = true;
        for (int j = n - 2; j >= 0 && same; j--) same = id_at(i + j) == id_at(len - n + 1 + j);
        const int id = id_at(i + n - 1);
        if (same && id >= 0 && id < V) atomicExch(&values[id], -INFINITY);
    }
    __syncthreads();
    if (threadIdx.x == 0 && t < s->how.min_new && s->eos >= 0 && s->eos < V) values[s->eos] = -INFINITY;
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
// 4. A row. Beams leave the ids of their 2K best continuations, in no order, in the first words of `scratch`, -1 where
// there are fewer: among equals the smallest ids.

static __device__ void beam_ids(int *out, const float *values, float score, int most, int V) {
    SHARED(int, count, [1]);
    const int per = (V + CHOOSE_THREADS - 1) / CHOOSE_THREADS;
    const int start = min((int)threadIdx.x * per, V), end = min(start + per, V);
    const auto key_at = [=](int v) { return sort_key(values[v] + score + 0.0f); };    // no -0: it would sort below 0
    const u32 nothing = sort_key(-INFINITY);
    u64 below, ties = 0;
    const u32 key = crossing(&below, key_at, [](int) { return (u64)1; }, [](u64 n) { return (double)n; }, V - most, V);
    if (threadIdx.x == 0) count[0] = 0;
    __syncthreads();
    for (int v = start; v < end; v++) {
        const u32 k = key_at(v);
        if (k > key) out[atomicAdd(&count[0], 1)] = v;
        ties += k == key;
    }
    __syncthreads();
    const int sure = count[0];
    u64 rank = sure + block_scan(ties);
    for (int v = start; v < end && rank < (u64)most; v++)
        if (key_at(v) == key) out[rank++] = key == nothing ? -1 : v;
}

__global__ void __launch_bounds__(CHOOSE_THREADS) choose_row_kernel(Search *s, const float *logits, float *values,
                                                                    float *scratch, const int *lines, int line_R,
                                                                    int line_len) {
    // logits (B,V) at step 0, (R,V) later; values, scratch (R,V); lines (2,line_R,line_len), see advance_kernel
    const int r = blockIdx.x, K = s->K, b = r / K, V = s->V, t = s->t;
    const bool beams = s->how.beams > 1;
    if (beams ? s->score[r] == -INFINITY || !s->open[b] : s->ended[r]) {
        if (!beams && threadIdx.x == 0) put(s, r, s->pad, r, 0);
        return;
    }
    const float *x = logits + (size_t)(t > 0 ? r : b) * V;
    const int *line = lines + ((size_t)(t % 2) * line_R + r) * line_len;
    float *y = values + (size_t)r * V, *p = scratch + (size_t)r * V;
    const Norm z = row_norm(x, &s->broken[b], V);
    for (int v = threadIdx.x; v < V; v += CHOOSE_THREADS) y[v] = beams ? log_softmax(x[v], z) : clean(x[v]);
    __syncthreads();
    process(y, s, x, z, line, b);
    if (beams) {
        beam_ids((int *)p, y, s->score[r], 2 * K, V);
        return;
    }
    int token;
    if (s->how.sample) {
        const float u = philox_uniform(s->how.seed, s->how.first + (uint64_t)(r % K), (uint64_t)t);
        token = sample(y, p, &s->how, u, V);
    } else {
        u64 best = 0;       // the largest value, and of those the smallest id
        for (int v = threadIdx.x; v < V; v += CHOOSE_THREADS) {
            const u64 key = (u64)sort_key(y[v] + 0.0f) << 32 | (u32)~v;
            best = key > best ? key : best;
        }
        token = (int)~(u32)block_max(best);
    }
    if (threadIdx.x == 0) settle_row(s, r, token, log_softmax(x[token], z));
}

// ---------------------------------------------------------------------------------------------------------
// 5. A prompt. Each of up to K * 2K candidates counts those that are better: that is its place.

static __device__ __forceinline__ bool better(const Candidate &a, const Candidate &b) {
    return a.value > b.value || (a.value == b.value && (a.k < b.k || (a.k == b.k && a.token < b.token)));
}

__global__ void __launch_bounds__(CHOOSE_THREADS) choose_beams_kernel(Search *s, const float *values,
                                                                      const float *scratch) {
    const int b = blockIdx.x, K = s->K, V = s->V, row0 = b * K, all = K * 2 * K;
    if (!s->open[b]) {
        for (int k = threadIdx.x; k < K; k += CHOOSE_THREADS) put_ended(s, row0 + k);
        return;
    }
    const auto candidate = [=](Candidate *c, int i) {
        const int k = i / (2 * K), r = row0 + k;
        c->k = k;
        c->token = s->score[r] == -INFINITY ? -1 : ((const int *)scratch)[(size_t)r * V + i % (2 * K)];
        if (c->token < 0) return false;
        c->logprob = values[(size_t)r * V + c->token];
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
    for (int b = threadIdx.x; b < s->B && s->how.beams == 1; b += blockDim.x) {
        bool open = false;
        for (int k = 0; k < s->K; k++) open = open || !s->ended[b * s->K + k];
        s->open[b] = open;
    }
    __syncthreads();
    if (threadIdx.x == 0) *fed_t = s->t++;
}

// Chooses the next token of R rows of B prompts. Search s on the device; logits, lines as in choose_row_kernel.
static void choose(cudaStream_t stream, Search *s, int *fed_t, float *values, float *scratch, const float *logits,
                   const int *lines, int line_R, int line_len, bool beams, int B, int R) {
    LAUNCH(choose_row_kernel, dim3(R), dim3(CHOOSE_THREADS), 0, stream, s, logits, values, scratch, lines, line_R,
           line_len);
    if (beams) LAUNCH(choose_beams_kernel, dim3(B), dim3(CHOOSE_THREADS), 0, stream, s, values, scratch);
    LAUNCH(choose_end_kernel, dim3(1), dim3(128), 0, stream, s, fed_t);
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
