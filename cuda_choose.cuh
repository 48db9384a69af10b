// cuda_choose.cuh: the choice of the next token on the device: generate.c and generate_process.c in parallel.
//
// In order:
//   1. a row of logits, cut into slices; log-softmax; the processors
//   2. choose_scan_kernel, choose_sum_kernel, choose_list_kernel: a block a slice of a row, from logits to the token,
//      or to the 2K best continuations of a beam
//   3. choose_beams_kernel: the 2K best of a prompt's K beams, and what becomes of them
//   4. choose_end_kernel, advance_kernel: which prompts go on; whose past a row continues
//
// The Search of generate_parts.h lies on the device too, and the rules that need no logits are the very functions that
// the CPU calls. Here is what goes over the vocabulary. One block reads 200 KB through one multiprocessor, so a row is
// cut into slices of SLICE logits, and what one pass needs of the pass before crosses a kernel's end:
//
//     scan   largest logit of each slice; the processors; greedy: the best id of each slice
//     sum    of exp(logit - largest), by slices; the last block of a greedy or sampled row picks its token
//     list   beams: log-probabilities, processors, the 2K best of each slice; the last block of a row merges them
//
// A sample is drawn by one block (cuda_sample.cuh). Sums that decide something are those of generate_process.c or sums
// of integers, which have no order: the same logits give the CPU's tokens, whatever the order of threads. Of the sum of
// exponentials, the f32 sums (16 to each 512 logits) are the CPU's to the bit, hence slices of whole 512s. Its double
// adds them up one behind the other, which is why it cannot be split: here they are added by slices, always in the same
// order. The two doubles may differ by 2^-50 or so of their value, and only where that lies between two f32 logarithms,
// as good as never, a log-probability differs in its last bit.
// A row's logits are in the L2 cache when they are chosen from.
// Not here: when it is launched and what is fed (blip2.cu, section 8), text.
#ifndef CUDA_CHOOSE_CUH
#define CUDA_CHOOSE_CUH

#include "cuda_sample.cuh"

enum { SLICE = 2048 };     // logits of a block, whole 512s

// ---------------------------------------------------------------------------------------------------------
// 1. Rows and slices.

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
static __device__ __forceinline__ void process(const Row &w, const Search *s, Norm z) {
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
// 2. Rows. grid: slices, rows. A step that was queued before the search was over finds s->more false and does nothing.

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
    Slice *mine = w.slice + blockIdx.x;
    if (threadIdx.x == 0) mine->top = top;
    if (first) *w.ticket = 0;
    if (beams) return;
    process(w, s, Norm{0, 0});
    if (!s->how.sample) {                    // the largest value, and of those the smallest id
        for (int v = w.start + threadIdx.x; v < w.end; v += CHOOSE_THREADS) {
            const u64 key = (u64)sort_key(w.y[v] + 0.0f) << 32 | (u32)~v;
            best = key > best ? key : best;
        }
        best = block_max(best);
        if (threadIdx.x == 0) mine->best = best;
    }
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
// 3. A prompt. Each of up to K * 2K candidates counts those that are better: that is its place.

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
// 4. Between choosing and feeding.

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
