// dev/cuda/beam_step.cu: a step of beam search, from a thread per prompt to choose() of cuda_choose.cuh.
//
//     logits (B*K,V) f32, a Search with score (B*K) -> per prompt the 2K best of score[k] + log_softmax(logits[k])[v],
//     best first: value, beam, token (B,2K); then token, parent and score (B*K) of the beams that go on
//
// Rules and reference: generate.c. Among equals the first beam and the smallest id win. K = 5, V = 50304: 1 MB a
// prompt, which any card reads in a microsecond; the rest is how 2K of 250,000 numbers are found without sorting them.
// What follows (which of the 2K are finished, which go on) is a dozen comparisons, the same function in every version
// (settle_beams, generate_parts.h). The step that is made here is the second, when all beams have logits of their own.
#include "searching.h"

typedef struct {
    Search *s;
    const float *logits;          // (B*K,V)
    Candidate *part;              // (B*K*PARTS, 2K) the best of pieces of rows
    float *sums;                  // (B*K*PARTS, 2) largest logit of a piece, and the sum of exp(logit - largest)
} Beams;

enum { THREADS = 256, PARTS = 16, MOST = 20 };    // of a block; pieces of a row (version 4); 2K at most

static __device__ __forceinline__ bool ahead(const Candidate &a, const Candidate &b) {
    return a.value != b.value ? a.value > b.value : a.k != b.k ? a.k < b.k : a.token < b.token;
}
static __device__ __forceinline__ Candidate nobody() { return Candidate{-INFINITY, 0, 0x7FFFFFFF, 0x7FFFFFFF}; }
static __device__ __forceinline__ Candidate everybody() { return Candidate{INFINITY, 0, -1, -1}; }

// Into a sorted list of n, the last one of which falls out.
static __device__ __forceinline__ void insert(Candidate *list, int n, Candidate c) {
    int at = n - 1;
    for (; at > 0 && ahead(c, list[at - 1]); at--) list[at] = list[at - 1];
    list[at] = c;
}

// Id v of a row as a continuation. As torch computes it: ((x - max) - log(sum)) + score.
static __device__ __forceinline__ Candidate candidate(const Search *s, int row, const float *x, Norm z, int v) {
    const float logprob = log_softmax(x[v], z);
    return Candidate{logprob + s->score[row], logprob, row % s->K, v};
}

// The 2K best of prompt b are there: how many of them are real, and what becomes of those. By one thread.
static __device__ void settle(Search *s, int b) {
    int n = 0;
    while (n < 2 * s->K && s->best[(size_t)b * 2 * s->K + n].value > -INFINITY) n++;
    settle_beams(s, b, n);
}

// Version 1: a thread per prompt does what generate.c does: three passes over each row, one number after the other.
// Bytes moved: three times the rows. Limit: 750,000 loads, each waiting for the one before.
__global__ void beam1(Beams p) {
    Search *s = p.s;
    const int b = blockIdx.x, n = 2 * s->K, V = s->V;
    Candidate list[MOST];
    for (int i = 0; i < n; i++) list[i] = nobody();
    for (int row = b * s->K; row < (b + 1) * s->K; row++) {
        const float *x = p.logits + (size_t)row * V;
        const Norm z = row_sums<1>(x, V, NULL);
        for (int v = 0; v < V; v++) {
            const Candidate c = candidate(s, row, x, z, v);
            if (ahead(c, list[n - 1])) insert(list, n, c);
        }
    }
    for (int i = 0; i < n; i++) s->best[(size_t)b * n + i] = list[i];
    settle(s, b);
}

static __device__ __forceinline__ Candidate warp_best(Candidate c) {
    for (int d = 16; d; d /= 2) {
        const Candidate o = {__shfl_xor_sync(0xFFFFFFFFu, c.value, d), __shfl_xor_sync(0xFFFFFFFFu, c.logprob, d),
                             __shfl_xor_sync(0xFFFFFFFFu, c.k, d), __shfl_xor_sync(0xFFFFFFFFu, c.token, d)};
        if (ahead(o, c)) c = o;
    }
    return c;
}

// The best over a block; all threads get it. shared (8)
static __device__ Candidate best_of_block(Candidate c, Candidate *shared) {
    c = warp_best(c);
    if (threadIdx.x % 32 == 0) shared[threadIdx.x / 32] = c;
    __syncthreads();
    for (int w = 0; w < THREADS / 32; w++) if (ahead(shared[w], c)) c = shared[w];
    __syncthreads();
    return c;
}

// The 2K best of `lists` lists of a prompt, by a warp: each time the best that comes behind the one found last.
__global__ void merge(Beams p, int lists) {
    // part (B,lists,2K) -> the Search's best (B,2K), and what becomes of them
    const int b = blockIdx.x, n = 2 * p.s->K;
    const Candidate *part = p.part + (size_t)b * lists * n;
    Candidate last = everybody();
    for (int i = 0; i < n; i++) {
        Candidate c = nobody();
        for (int k = threadIdx.x; k < lists * n; k += 32) if (ahead(last, part[k]) && ahead(part[k], c)) c = part[k];
        last = warp_best(c);
        if (threadIdx.x == 0) p.s->best[(size_t)b * n + i] = last;
    }
    if (threadIdx.x == 0) settle(p.s, b);
}

// Version 2: a block per row; its sums are made together, then 2K times the best that comes behind the one found last.
// Bytes moved: 2K + 2 times the rows, out of L2. Limit: that, by one multiprocessor per row.
__global__ void __launch_bounds__(THREADS) beam2(Beams p) {
    SHARED(double, sums, [32]);
    SHARED(Candidate, best, [8]);
    const int row = blockIdx.x, V = p.s->V, n = 2 * p.s->K;
    const float *x = p.logits + (size_t)row * V;
    const Norm z = row_sums<THREADS>(x, V, sums);
    Candidate last = everybody();
    for (int i = 0; i < n; i++) {
        Candidate c = nobody();
        for (int v = threadIdx.x; v < V; v += THREADS) {
            const Candidate o = candidate(p.s, row, x, z, v);
            if (ahead(last, o) && ahead(o, c)) c = o;
        }
        last = best_of_block(c, best);
        if (threadIdx.x == 0) p.part[(size_t)row * n + i] = last;
    }
}

// The 2K best of x (from..end): each thread keeps the best of what it sees in a list of its own, most numbers being
// turned away by its last entry; then 2K times the best of all heads.
static __device__ void best_of(Candidate *out, const Beams &p, int row, int from, int end, Norm z, Candidate *shared) {
    const float *x = p.logits + (size_t)row * p.s->V;
    const int n = 2 * p.s->K;
    Candidate list[MOST];
    for (int i = 0; i < n; i++) list[i] = nobody();
    for (int v = from + threadIdx.x; v < end; v += THREADS) {
        const Candidate c = candidate(p.s, row, x, z, v);
        if (ahead(c, list[n - 1])) insert(list, n, c);
    }
    int head = 0;
    for (int i = 0; i < n; i++) {
        const Candidate c = best_of_block(head < n ? list[head] : nobody(), shared);
        if (head < n && c.token == list[head].token) head++;
        if (threadIdx.x == 0) out[i] = c;
    }
}

// Version 3: one pass for the maximum, one for the sum, one for the candidates. Bytes moved: three times the rows.
// Limit: still one multiprocessor per row, 5 of 132; the lists are indexed by numbers that the compiler does not know,
// so they lie in local memory.
__global__ void __launch_bounds__(THREADS) beam3(Beams p) {
    SHARED(double, sums, [32]);
    SHARED(Candidate, best, [8]);
    const int row = blockIdx.x, V = p.s->V;
    const Norm z = row_sums<THREADS>(p.logits + (size_t)row * V, V, sums);
    best_of(p.part + (size_t)row * 2 * p.s->K, p, row, 0, V, z, best);
}

// Version 4: sixteen blocks per row. One kernel makes the sums of every piece, the next puts those of its row together
// and finds the candidates of its piece, the third merges 16*K lists. Bytes moved: three times the rows, by 80
// multiprocessors. Limit: four launches for a few microseconds; local memory as before.
static __device__ __forceinline__ int piece_of(int V) { return (V + PARTS - 1) / PARTS; }

__global__ void __launch_bounds__(THREADS) beam4_sums(Beams p) {
    SHARED(double, sums, [32]);
    const int row = blockIdx.y, V = p.s->V, n = piece_of(V), from = min((int)blockIdx.x * n, V);
    const float *x = p.logits + (size_t)row * V + from;
    const int length = min(n, V - from);
    float top = -INFINITY;
    for (int v = threadIdx.x; v < length; v += THREADS) top = fmaxf(top, clean(x[v]));
    top = row_max<THREADS>(top, sums);
    const double sum = row_total<THREADS>([=](int v) { return exp_minus(clean(x[v]), top); }, length, sums);
    if (threadIdx.x == 0) {
        p.sums[((size_t)row * PARTS + blockIdx.x) * 2] = top;
        p.sums[((size_t)row * PARTS + blockIdx.x) * 2 + 1] = (float)sum;
    }
}

__global__ void __launch_bounds__(THREADS) beam4(Beams p) {
    SHARED(Candidate, best, [8]);
    const int row = blockIdx.y, V = p.s->V, n = piece_of(V), from = min((int)blockIdx.x * n, V), end = min(from + n, V);
    const float *s = p.sums + (size_t)row * PARTS * 2;
    Norm z = {-INFINITY, 0};
    double sum = 0;
    for (int i = 0; i < PARTS; i++) z.max = fmaxf(z.max, s[2 * i]);
    for (int i = 0; i < PARTS; i++) sum += (double)s[2 * i + 1] * expf(s[2 * i] - z.max);      // 0 of an empty piece
    z.logsum = (float)log(sum);
    best_of(p.part + ((size_t)row * PARTS + blockIdx.x) * 2 * p.s->K, p, row, from, end, z, best);
}

// Version 5: choose() of cuda_choose.cuh. A row is cut into slices of 2048 logits for a block each, 125 blocks at 5
// beams. No lists: a radix search over the keys of a slice (three histograms of eleven bits in shared memory) gives the
// value of its 2K-th best, one more pass collects what is above it; the last block of a row merges the slices, and each
// of the K*2K candidates of a prompt counts those that are better, which is its place. The processors are in the same
// kernels, each of which starts while the one ahead ends, and the Search lies on the device, so that no step waits for
// the host. Bytes moved: the rows once from device memory, and half a dozen times out of L2. Limit: five launches.

static bool launch(const Ladder *l, int version, const Searching &q, const Beams &p) {
    if (version == 5) {
        searching_choose(l->s, q, q.logits);
        return true;
    }
    const int lists = q.R / q.B * (version == 4 ? (int)PARTS : 1);
    switch (version) {
    case 1: LAUNCH(beam1, dim3(q.B), dim3(1), 0, l->s, p); break;
    case 2: LAUNCH(beam2, dim3(q.R), dim3(THREADS), 0, l->s, p); break;
    case 3: LAUNCH(beam3, dim3(q.R), dim3(THREADS), 0, l->s, p); break;
    case 4:
        LAUNCH(beam4_sums, dim3(PARTS, q.R), dim3(THREADS), 0, l->s, p);
        LAUNCH(beam4, dim3(PARTS, q.R), dim3(THREADS), 0, l->s, p);
        break;
    }
    if (version > 1) LAUNCH(merge, dim3(q.B), dim3(32), 0, l->s, p, lists);
    LAUNCH(end_step, dim3(1), dim3(32), 0, l->s, q.device, q.fed_t);
    return true;
}

// Candidates one by one into the outputs.
__global__ void take_apart(float *value, int *beam, int *token, const Candidate *best, int n) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) value[i] = best[i].value, beam[i] = best[i].k, token[i] = best[i].token;
}

// eos -1: no beam ends
static void run_case(Ladder *l, int B, int K, int V, int eos) {
    if (!ladder_case(l, 4.0 * B * K * V, 0, "%d x %d beams, %d tokens%s", B, K, V, eos < 0 ? "" : ", some end")) return;
    const int R = B * K, n = B * 2 * K;
    std::vector<float> first = ladder_numbers((size_t)B * V, 6, false), x = ladder_numbers((size_t)R * V, 5, false);
    for (std::vector<float> *y : {&first, &x})                 // few likely, a long tail (Gumbel)
        for (float &v : *y) v = -1.5f * logf(-logf(0.5f * v + 0.5f + 1e-6f) + 1e-9f);
    for (int r = 0; r < R && eos >= 0; r += 2) x[(size_t)r * V + eos] = 20;
    Choice how = {};
    how.beams = K, how.captions = 1, how.max_new = SEARCH_STEPS;
    how.length_penalty = how.repeat_penalty = how.temp = how.top_p = 1;
    Step step = {};
    const Searching q = searching_make(l, &step, how, B, V, eos, first, x);
    std::vector<float> value, beam, token;
    for (int i = 0; i < n; i++) {
        const Candidate &c = q.host->best[i];
        value.push_back(c.value), beam.push_back((float)c.k), token.push_back((float)c.token);
    }
    const std::vector<float> next(step.token, step.token + R), parent(step.parent, step.parent + R);
    const std::vector<float> score(q.host->score, q.host->score + R);
    Beams p = {q.device, q.logits, NULL, NULL};
    p.part = (Candidate *)ladder_scratch(l, (size_t)R * PARTS * 2 * K * sizeof(Candidate));
    p.sums = (float *)ladder_scratch(l, (size_t)R * PARTS * 2 * sizeof(float));
    int *out_beam = (int *)ladder_output(l, LADDER_I32, beam, 0);
    int *out_token = (int *)ladder_output(l, LADDER_I32, token, 0);
    float *out_value = (float *)ladder_output(l, LADDER_F32, value, 1e-5);      // sums in another order
    void *out[3] = {ladder_output(l, LADDER_I32, next, 0), ladder_output(l, LADDER_I32, parent, 0),
                    ladder_output(l, LADDER_F32, score, 1e-5)};
    const void *from[3] = {q.parts.now_token, q.parts.now_parent, q.parts.score};
    ladder_around(l, [=] { searching_restore(l->s, q); }, [=] {
        LAUNCH(take_apart, dim3((n + 127) / 128), dim3(128), 0, l->s, out_value, out_beam, out_token, q.parts.best, n);
        for (int i = 0; i < 3; i++)
            CUDA_CHECK(cudaMemcpyAsync(out[i], from[i], R * sizeof(int), cudaMemcpyDeviceToDevice, l->s));
    });
    ladder_run(l, [&](int version) { return launch(l, version, q, p); });
    free(q.host);
}

int main(int argc, char **argv) {
    Ladder l = ladder_open(argc, argv, "beam_step",
        {{"a thread per prompt", "as generate.c: three passes over each row, each load behind the one before"},
         {"a block per row, 2K searches", "256 loads under way; the row is read 2K + 2 times"},
         {"a block per row, a list per thread", "three passes; lists in local memory, 5 multiprocessors of 132"},
         {"sixteen blocks per row", "80 multiprocessors at 5 beams; four launches"},
         {"shipped: choose", "radix search in slices of a row over many blocks, no lists; the Search on the device"}});
    if (l.small) {
        run_case(&l, 1, 2, 5, -1);
        run_case(&l, 2, 3, 37, 4);
        run_case(&l, 1, 5, 700, -1);
    } else {
        ladder_show(&l);
        run_case(&l, 1, 5, 50304, -1);
        run_case(&l, 32, 5, 50304, -1);
        run_case(&l, 1, 5, 32128, -1);       // Flan-T5
    }
    ladder_close(&l);
}
