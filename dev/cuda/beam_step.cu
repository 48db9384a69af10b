// dev/cuda/beam_step.cu: the best continuations of a prompt's beams, from a thread per prompt on.
//
//     logits (B*K,V) f32, score (B*K) -> per prompt the 2K best of score[k] + log_softmax(logits[k])[v], best first:
//     value, beam and token (B,2K)                  rules and reference: gather() of generate.c
//
// Among equals the first beam and the smallest id win. K = 5, V = 50304: 1 MB a prompt, which any card reads in a
// microsecond; the rest is how 2K of 250,000 numbers are found without sorting them. What follows (which of the 2K
// are finished, which go on) is a dozen comparisons.
#include "ladder.h"

#include "cuda_layers.cuh"

extern "C" {
#include "cpu.h"
}

typedef struct { float value; int beam, token; } Best;

typedef struct {
    float *value;                  // (B,2K)
    int *beam, *token;             // (B,2K)
    const float *logits, *score;   // (B*K,V), (B*K)
    Best *part;                    // (B*K*PARTS, 2K) the best of pieces of rows
    float *sums;                   // (B*K*PARTS, 2) largest logit of a piece, and the sum of exp(logit - largest)
    int B, K, V;
} Beams;

enum { PARTS = 16, MOST = 20 };    // pieces of a row (version 4); 2K at most

static __device__ __forceinline__ bool before(const Best &a, const Best &b) {
    return a.value != b.value ? a.value > b.value : a.beam != b.beam ? a.beam < b.beam : a.token < b.token;
}
static __device__ __forceinline__ Best nobody() { return Best{-INFINITY, 0x7FFFFFFF, 0x7FFFFFFF}; }

// Into a sorted list of n, the last one of which falls out.
static __device__ __forceinline__ void insert(Best *list, int n, Best c) {
    int at = n - 1;
    for (; at > 0 && before(c, list[at - 1]); at--) list[at] = list[at - 1];
    list[at] = c;
}

static __device__ void put_result(const Beams &p, int b, int i, const Best &c) {
    p.value[b * 2 * p.K + i] = c.value;
    p.beam[b * 2 * p.K + i] = c.beam;
    p.token[b * 2 * p.K + i] = c.token;
}

// As torch computes it: (x - top) - log(sum).
static __device__ __forceinline__ float value_at(float x, float top, float logsum, float score) {
    return ((x - top) - logsum) + score;
}

// Version 1: a thread per prompt does what generate.c does: three passes over each row, one number after the other.
// Limit: 750,000 loads, each waiting for the one before.
__global__ void beam1(Beams p) {
    const int b = blockIdx.x, n = 2 * p.K;
    Best list[MOST];
    for (int i = 0; i < n; i++) list[i] = nobody();
    for (int k = 0; k < p.K; k++) {
        const float *x = p.logits + (size_t)(b * p.K + k) * p.V;
        float top = -INFINITY, sum = 0;
        for (int v = 0; v < p.V; v++) top = fmaxf(top, x[v]);
        for (int v = 0; v < p.V; v++) sum += expf(x[v] - top);
        const float logsum = logf(sum);
        for (int v = 0; v < p.V; v++) {
            const Best c = {value_at(x[v], top, logsum, p.score[b * p.K + k]), k, v};
            if (before(c, list[n - 1])) insert(list, n, c);
        }
    }
    for (int i = 0; i < n; i++) put_result(p, b, i, list[i]);
}

// The best over a block of 256; all threads get it.
static __device__ Best block_best(Best c, Best *shared) {
    for (int d = 16; d; d /= 2) {
        const Best o = {__shfl_xor_sync(0xFFFFFFFFu, c.value, d), __shfl_xor_sync(0xFFFFFFFFu, c.beam, d),
                        __shfl_xor_sync(0xFFFFFFFFu, c.token, d)};
        if (before(o, c)) c = o;
    }
    if (threadIdx.x % 32 == 0) shared[threadIdx.x / 32] = c;
    __syncthreads();
    for (int w = 0; w < 8; w++) if (before(shared[w], c)) c = shared[w];
    __syncthreads();
    return c;
}

// Largest and sum of exponentials of x (n), by a block of 256.
static __device__ void block_sums(float *top, float *sum, const float *x, int n, float (*shared)[8]) {
    float t = -INFINITY, s = 0;
    for (int v = threadIdx.x; v < n; v += 256) t = fmaxf(t, x[v]);
    for (int d = 16; d; d /= 2) t = fmaxf(t, __shfl_xor_sync(0xFFFFFFFFu, t, d));
    if (threadIdx.x % 32 == 0) shared[0][threadIdx.x / 32] = t;
    __syncthreads();
    for (int w = 0; w < 8; w++) t = fmaxf(t, shared[0][w]);
    for (int v = threadIdx.x; v < n; v += 256) s += expf(x[v] - t);
    s = warp_sum(s);
    if (threadIdx.x % 32 == 0) shared[1][threadIdx.x / 32] = s;
    __syncthreads();
    s = 0;
    for (int w = 0; w < 8; w++) s += shared[1][w];
    *top = t, *sum = s;
    __syncthreads();
}

// The 2K best of `lists` lists of a prompt, by a warp: each time the best that comes behind the one found last.
__global__ void merge(Beams p, int lists) {
    // part (B,lists,2K) -> value, beam, token (B,2K)
    const int b = blockIdx.x, n = 2 * p.K;
    const Best *part = p.part + (size_t)b * lists * n;
    Best last = {INFINITY, -1, -1};
    for (int i = 0; i < n; i++) {
        Best c = nobody();
        for (int k = threadIdx.x; k < lists * n; k += 32) if (before(last, part[k]) && before(part[k], c)) c = part[k];
        for (int d = 16; d; d /= 2) {
            const Best o = {__shfl_xor_sync(0xFFFFFFFFu, c.value, d), __shfl_xor_sync(0xFFFFFFFFu, c.beam, d),
                            __shfl_xor_sync(0xFFFFFFFFu, c.token, d)};
            if (before(o, c)) c = o;
        }
        if (threadIdx.x == 0) put_result(p, b, i, c);
        last = c;
    }
}

// Version 2: a block per row; its sums are made together, then 2K times the best that comes behind the one found last.
// Limit: 2K + 2 passes over the row, from L2, by one multiprocessor per row.
__global__ void __launch_bounds__(256) beam2(Beams p) {
    SHARED(float, sums, [2][8]);
    SHARED(Best, best, [8]);
    const int row = blockIdx.x, k = row % p.K;
    const float *x = p.logits + (size_t)row * p.V;
    float top, sum;
    block_sums(&top, &sum, x, p.V, sums);
    const float logsum = logf(sum);
    Best last = {INFINITY, -1, -1};
    for (int i = 0; i < 2 * p.K; i++) {
        Best c = nobody();
        for (int v = threadIdx.x; v < p.V; v += 256) {
            const Best o = {value_at(x[v], top, logsum, p.score[row]), k, v};
            if (before(last, o) && before(o, c)) c = o;
        }
        last = block_best(c, best);
        if (threadIdx.x == 0) p.part[(size_t)row * 2 * p.K + i] = last;
    }
}

// The 2K best of x (from..end), by a block of 256: each thread keeps the best of what it sees in a list of its own,
// most numbers being turned away by its last entry; then 2K times the best of all heads.
static __device__ void best_of(Best *out, const Beams &p, int row, int from, int end, float top, float logsum,
                               Best *shared) {
    const float *x = p.logits + (size_t)row * p.V;
    const int n = 2 * p.K;
    Best list[MOST];
    for (int i = 0; i < n; i++) list[i] = nobody();
    for (int v = from + threadIdx.x; v < end; v += 256) {
        const Best c = {value_at(x[v], top, logsum, p.score[row]), row % p.K, v};
        if (before(c, list[n - 1])) insert(list, n, c);
    }
    int head = 0;
    for (int i = 0; i < n; i++) {
        const Best c = block_best(head < n ? list[head] : nobody(), shared);
        if (head < n && c.token == list[head].token) head++;
        if (threadIdx.x == 0) out[i] = c;
    }
}

// Version 3: one pass for the sums and one for the candidates. Limit: still one multiprocessor per row, 5 of 132; the
// lists are indexed by numbers that the compiler does not know, so they lie in local memory.
__global__ void __launch_bounds__(256) beam3(Beams p) {
    SHARED(float, sums, [2][8]);
    SHARED(Best, best, [8]);
    float top, sum;
    block_sums(&top, &sum, p.logits + (size_t)blockIdx.x * p.V, p.V, sums);
    best_of(p.part + (size_t)blockIdx.x * 2 * p.K, p, blockIdx.x, 0, p.V, top, logf(sum), best);
}

// Version 4: sixteen blocks per row. One kernel makes the sums of every piece, the next puts those of its row together
// and finds the candidates of its piece, the third merges 16*K lists. Limit: three launches for a few microseconds.
static __device__ __forceinline__ int piece(const Beams &p) { return (p.V + PARTS - 1) / PARTS; }

__global__ void __launch_bounds__(256) beam4_sums(Beams p) {
    SHARED(float, sums, [2][8]);
    const int row = blockIdx.y, n = piece(p), from = min((int)blockIdx.x * n, p.V), end = min(from + n, p.V);
    float top, sum;
    block_sums(&top, &sum, p.logits + (size_t)row * p.V + from, end - from, sums);
    if (threadIdx.x == 0) {
        p.sums[((size_t)row * PARTS + blockIdx.x) * 2] = top;
        p.sums[((size_t)row * PARTS + blockIdx.x) * 2 + 1] = end > from ? sum : 0;
    }
}

__global__ void __launch_bounds__(256) beam4(Beams p) {
    SHARED(Best, best, [8]);
    const int row = blockIdx.y, n = piece(p), from = min((int)blockIdx.x * n, p.V), end = min(from + n, p.V);
    const float *s = p.sums + (size_t)row * PARTS * 2;
    float top = -INFINITY, sum = 0;
    for (int i = 0; i < PARTS; i++) top = fmaxf(top, s[2 * i]);
    for (int i = 0; i < PARTS; i++) sum += s[2 * i + 1] * expf(s[2 * i] - top);
    best_of(p.part + ((size_t)row * PARTS + blockIdx.x) * 2 * p.K, p, row, from, end, top, logf(sum), best);
}

static bool launch(const Ladder *l, int version, const Beams &p) {
    const int R = p.B * p.K;
    switch (version) {
    case 1: LAUNCH(beam1, dim3(p.B), dim3(1), 0, l->s, p); break;
    case 2: LAUNCH(beam2, dim3(R), dim3(256), 0, l->s, p); break;
    case 3: LAUNCH(beam3, dim3(R), dim3(256), 0, l->s, p); break;
    case 4:
        LAUNCH(beam4_sums, dim3(PARTS, R), dim3(256), 0, l->s, p);
        LAUNCH(beam4, dim3(PARTS, R), dim3(256), 0, l->s, p);
        break;
    }
    if (version > 1) LAUNCH(merge, dim3(p.B), dim3(32), 0, l->s, p, version == 4 ? p.K * PARTS : p.K);
    return true;
}

static void run_case(Ladder *l, int B, int K, int V) {
    if (!ladder_case(l, 4.0 * B * K * V, 0, "%d x %d beams, %d tokens", B, K, V)) return;
    std::vector<float> x = ladder_numbers((size_t)B * K * V, 5, false), score = ladder_numbers(B * K, 6, false);
    for (float &v : x) v = -1.5f * logf(-logf(0.5f * v + 0.5f + 1e-6f) + 1e-9f);      // few likely, a long tail
    std::vector<float> value(B * 2 * K), beam(value.size()), token(value.size());
    for (int b = 0; b < B; b++)
        cpu_beam_candidates(&value[b * 2 * K], &beam[b * 2 * K], &token[b * 2 * K], &x[(size_t)b * K * V],
                            &score[b * K], K, V);
    Beams p = {};
    p.logits = ladder_input(l, x), p.score = ladder_input(l, score), p.B = B, p.K = K, p.V = V;
    p.part = (Best *)ladder_scratch(l, (size_t)B * K * PARTS * 2 * K * sizeof(Best));
    p.sums = (float *)ladder_scratch(l, (size_t)B * K * PARTS * 2 * sizeof(float));
    p.beam = (int *)ladder_output(l, LADDER_I32, beam, 0);
    p.token = (int *)ladder_output(l, LADDER_I32, token, 0);
    p.value = (float *)ladder_output(l, LADDER_F32, value, 1e-5);      // sums in another order
    ladder_run(l, [&](int version) { return launch(l, version, p); });
}

int main(int argc, char **argv) {
    Ladder l = ladder_open(argc, argv, "beam_step", {"a thread per prompt", "a block per row, 2K searches",
                                                     "a block per row, a list per thread", "sixteen blocks per row"});
    if (l.small) {
        run_case(&l, 1, 2, 5);
        run_case(&l, 2, 3, 37);
        run_case(&l, 1, 5, 700);
    } else {
        run_case(&l, 1, 5, 50304);
        run_case(&l, 32, 5, 50304);
        run_case(&l, 1, 5, 32128);       // Flan-T5
    }
    ladder_close(&l);
}
