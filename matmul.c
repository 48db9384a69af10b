// matmul.c: products of matrices and vectors, fast on the processor at hand.
//
// In order: the shape of a product and of its blocks, the table of inner loops, those loops in plain C (the truth for
// the others), for SSE2 or any other processor, for AVX2 and for AVX-512 (matmul_kernels.h, compiled three times), the
// choice between them, the blocked product, threads, and the functions of matmul.h.
//
//   out (T,OC) = x (T,C) w (OC,C)^T          Two ways, by the number of rows of x:
//
//   Few (decoding, beams; with AVX-512 prompts as well): bound by memory. The weights are read once, straight from the
//   file's mapping, in order, and used for all rows of x. Vectors run along C, for x and w alike.
//
//   Many (images, prompts): bound by arithmetic. Each thread takes a block of NC columns of out and goes through C in
//   steps of about KC. The weights of a step are packed once, into panels that are K-major, so that a vector holds
//   neighbouring columns; then each tile of MR rows of x, copied to rows XS apart, meets each panel:
//
//       out  +--+--+--+--+-----+        x  +-----+-----+---+          w  +-----+-----+---+
//         MR |xx|  |  |  | ... |        MR |xxxxx|     |   |          NR |wwwww|     |   |
//            +--+--+--+--+     |           +-----+     |   |             +-----+     |   |
//            |NR           ... |           | KC           C|          NC |         ...   |
//            +-----NC----------+           +---------------+             +---------------+
//
//       packed w (NC*KC floats, stays in L2):  panel 0: k=0: w[0][0] w[1][0] .. w[NR-1][0], k=1: ..., | panel 1 | ...
//
// Sums of one output always run in the same order, whatever the number of threads or the position of the row in x. The
// two ways add in different orders, so a row's result also depends on which way T goes, but on nothing else of T. Both
// stay within C * 2^-24 * sum_c |x_c w_c| of the true sum; test/test_matmul.c measures how far.
// Not here: anything that knows what the matrices mean.
#include "matmul.h"

#include <string.h>
#ifdef _OPENMP
#include <omp.h>
#endif
#if defined(__x86_64__)
#include <immintrin.h>
#endif

enum {
    SLICE = 6,               // rows of x that meet a weight in registers, the way for few rows
    KC = 256,                // most columns of x and w in one step
    XS = KC + 16,            // floats between the rows of a copied tile: no power of two, they would share cache sets
    NC = 96,                 // columns of out in a job, a multiple of every NR; a head of 64, 80 or 88 fits
    MR_MAX = 14, NR_MAX = 32,
    CHUNK_BYTES = 1 << 20,   // weights in a job of the memory-bound way
    AHEAD = 4096,            // bytes that few rows look further ahead
    PACK_FLOATS = NC * KC + MR_MAX * XS
};

// A matrix in memory, of any dtype, in the layout of doc/format.md.
typedef struct {
    const void *data, *scale;
    size_t ld;               // elements from row to row; INT8 and INT4: the columns
    int dtype;
} Weights;

struct MatmulKernels {
    const char *name;
    int MR, NR;              // rows and columns of a tile
    int few;                 // most rows of x that rows() is for
    // x (mr,K) rows XS apart, w (K,NR) packed -> out (mr,n) = base (mr,n) + scale * x w
    void (*tile)(float *out, size_t ldo, const float *base, size_t ldbase, float scale, const float *x, const float *w,
                 int mr, int n, int K);
    // x (T,C), rows j .. j+n of w (,C) -> out (T,n) = bias + scale * x w^T
    void (*rows)(float *out, size_t ldo, const float *x, size_t ldx, const Weights *w, int j, const float *bias,
                 float scale, int T, int n, int C);
    // rows j .. j+n, columns k .. k+K of w -> out (K,NR), columns n and up zero; k is a multiple of 32 for INT4
    void (*pack)(float *out, const Weights *w, int j, int n, int k, int K);
    float (*dot)(const float *a, const float *b, int n);
    void (*axpy)(float *y, float s, const float *x, int n);
};

static inline int min_int(int a, int b) { return a < b ? a : b; }
static inline int ceil_div(int a, int b) { return (a + b - 1) / b; }

static inline float bits_to_float(uint32_t bits) {
    float f;
    memcpy(&f, &bits, sizeof f);
    return f;
}

static inline float half_to_float(uint16_t h) {
    const uint32_t sign = (uint32_t)(h & 0x8000) << 16, rest = h & 0x7FFF;
    if (rest >= 0x7C00) return bits_to_float(sign | 0x7F800000 | (rest & 0x3FF) << 13);    // infinity, NaN
    const float magnitude = bits_to_float(rest << 13) * 0x1p112f;                          // exact, subnormals too
    return sign ? -magnitude : magnitude;
}

static inline size_t groups_of(size_t columns) { return (columns + 31) / 32; }

// The group of 32 columns that column c of row r is in.
static inline size_t group_at(const Weights *w, size_t r, size_t c) { return r * groups_of(w->ld) + c / 32; }

static inline float group_scale(const Weights *w, size_t r, size_t c) {
    return half_to_float(((const uint16_t *)w->scale)[group_at(w, r, c)]);
}

// What a whole row has in common; 1 where there is no such thing.
static inline float row_scale(const Weights *w, size_t r) { return w->dtype == DT_INT8 ? ((const float *)w->scale)[r] : 1; }

// The bytes of row r from column c on. INT4: of the group that it is in.
static inline const uint8_t *weight_at(const Weights *w, size_t r, size_t c) {
    const uint8_t *p = w->data;
    return w->dtype == DT_INT4 ? p + group_at(w, r, c) * 16 :
           p + (r * w->ld + c) * (w->dtype == DT_F32 ? 4 : w->dtype == DT_BF16 ? 2 : 1);
}

// Of a row's first `columns`.
static inline size_t bytes_of(const Weights *w, size_t columns) {
    return w->dtype == DT_F32 ? 4 * columns : w->dtype == DT_BF16 ? 2 * columns : w->dtype == DT_INT8 ? columns :
           16 * groups_of(columns);
}

// Element (r,c) of w without its row's scale. A bf16 is the upper half of an f32.
static inline float weight(const Weights *w, size_t r, size_t c) {
    const uint8_t *p = weight_at(w, r, c);
    if (w->dtype == DT_F32) return *(const float *)(const void *)p;
    if (w->dtype == DT_BF16) return bits_to_float((uint32_t)*(const uint16_t *)(const void *)p << 16);
    if (w->dtype == DT_INT8) return (float)*(const int8_t *)p;
    const int nibble = p[c % 16] >> (c % 32 < 16 ? 0 : 4) & 15;
    return (float)(nibble - 8) * group_scale(w, r, c);
}

// ---------------------------------------------------------------------------------------------------------
// Plain C: nothing but the definitions.

static void tile_plain(float *out, size_t ldo, const float *base, size_t ldbase, float scale, const float *x,
                       const float *w, int mr, int n, int K) {
    for (int r = 0; r < mr; r++)
        for (int j = 0; j < n; j++) {
            float s = 0;
            for (int k = 0; k < K; k++) s += x[r * XS + k] * w[k * 4 + j];
            out[r * ldo + j] = base[r * ldbase + j] + scale * s;
        }
}

static void rows_plain(float *out, size_t ldo, const float *x, size_t ldx, const Weights *w, int j0,
                       const float *bias, float scale, int T, int n, int C) {
    for (int t = 0; t < T; t++)
        for (int j = 0; j < n; j++) {
            float s = 0;
            for (int c = 0; c < C; c++) s += x[t * ldx + c] * weight(w, j0 + j, c);
            out[t * ldo + j] = (bias ? bias[j] : 0) + scale * row_scale(w, j0 + j) * s;
        }
}

static void pack_plain(float *out, const Weights *w, int j0, int n, int k0, int K) {
    for (int k = 0; k < K; k++)
        for (int j = 0; j < 4; j++) out[k * 4 + j] = j < n ? weight(w, j0 + j, k0 + k) * row_scale(w, j0 + j) : 0;
}

static float dot_plain(const float *a, const float *b, int n) {
    float s = 0;
    for (int i = 0; i < n; i++) s += a[i] * b[i];
    return s;
}

static void axpy_plain(float *y, float s, const float *x, int n) {
    for (int i = 0; i < n; i++) y[i] += s * x[i];
}

static const MatmulKernels kernels_plain = {
    "plain", 4, 4, 8, tile_plain, rows_plain, pack_plain, dot_plain, axpy_plain
};

// ---------------------------------------------------------------------------------------------------------
// Vectors, through the compilers' common extension for them. The products of these files are compiled with strict
// ISO rules, under which a * b + c is never fused: where the processor can fuse, FMA says so.

typedef float float4 __attribute__((vector_size(16), aligned(4), may_alias));

#ifdef __clang__
#define SHUFFLE(a, b, i, j, k, l) __builtin_shufflevector(a, b, i, j, k, l)
#else
typedef int int4 __attribute__((vector_size(16)));
#define SHUFFLE(a, b, i, j, k, l) __builtin_shuffle(a, b, (int4){i, j, k, l})
#endif

static inline float4 widen4(const uint16_t *p) {
#if defined(__x86_64__)
    __m128i h = _mm_loadl_epi64((const __m128i *)p);
    return (float4)_mm_unpacklo_epi16(_mm_setzero_si128(), h);
#else
    return (float4){bits_to_float((uint32_t)p[0] << 16), bits_to_float((uint32_t)p[1] << 16),
                    bits_to_float((uint32_t)p[2] << 16), bits_to_float((uint32_t)p[3] << 16)};
#endif
}

// Elements (r,c) to (r,c+3), scaled.
static inline float4 load4(const Weights *w, size_t r, size_t c, int dtype) {
    const void *p = weight_at(w, r, c);
    if (dtype == DT_F32) return *(const float4 *)p;
    if (dtype == DT_BF16) return widen4(p);
    return (float4){weight(w, r, c), weight(w, r, c + 1), weight(w, r, c + 2), weight(w, r, c + 3)} * row_scale(w, r);
}

// SSE2, which every x86-64 has, or what the compiler makes of four floats elsewhere.
#if defined(__x86_64__)
#define NAME_TEXT "sse2"
#else
#define NAME_TEXT "generic"
#endif
#define NAME(f) f##_base
#define TARGET
#define VW 4
#define MR 6
#define FEW 8
#define FMA(a, b, c) ((a) * (b) + (c))
#define WIDEN(p) (v_base)widen4(p)
#include "matmul_kernels.h"

#if defined(__x86_64__)
#define NAME_TEXT "avx2"
#define NAME(f) f##_avx2
#define TARGET __attribute__((target("avx2,fma")))
#define VW 8
#define MR 6
#define FEW 32
#define FMA(a, b, c) _mm256_fmadd_ps(a, b, c)
#define WIDEN(p) (v_avx2)_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)(p))), 16)
#include "matmul_kernels.h"

#define NAME_TEXT "avx512"
#define NAME(f) f##_avx512
#define TARGET __attribute__((target("avx2,fma,avx512f,avx512vl,avx512bw,avx512dq")))
#define VW 16
#define MR 14
#define FEW 96
#define FMA(a, b, c) _mm512_fmadd_ps(a, b, c)
#define WIDEN(p) (v_avx512)_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)(p))), 16)
#include "matmul_kernels.h"
#endif

// ---------------------------------------------------------------------------------------------------------
// The choice.

static bool supported(const MatmulKernels *k) {
#if defined(__x86_64__)
    if (k == &kernels_avx2) return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    if (k == &kernels_avx512)
        return supported(&kernels_avx2) && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") &&
               __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq");
#endif
    return k != NULL;
}

const MatmulKernels *matmul_kernels(const char *isa) {
    static const MatmulKernels *const best_first[] = {
#if defined(__x86_64__)
        &kernels_avx512, &kernels_avx2,
#endif
        &kernels_base, &kernels_plain
    };
    const bool any = !isa || !strcmp(isa, "auto");
    for (size_t i = 0; i < sizeof best_first / sizeof *best_first; i++)
        if ((any || !strcmp(isa, best_first[i]->name)) && supported(best_first[i])) return best_first[i];
    return NULL;
}

const char *matmul_isa(const MatmulKernels *k) { return k->name; }

// ---------------------------------------------------------------------------------------------------------
// The blocked product, in one thread.

typedef struct {
    float *out;             // (M,N), rows ldo apart
    const float *a;         // (M,K), rows lda apart
    Weights b;              // (N,K), or (K,N) and F32 when b_is_kn
    const float *bias;      // (N) or NULL
    size_t ldo, lda;
    float scale;
    int M, N, K;
    bool b_is_kn;
    const MatmulKernels *kernels;
    float *scratch;         // for the packed blocks of all threads
    int rows, cols;         // of out in a job
} Product;

static const float zeros[NC];

// Packs columns j .. j+n, steps k .. k+kc of b into panels of NR columns.
static void pack_panels(float *packed, const Product *p, int j, int n, int k, int kc) {
    const int NR = p->kernels->NR;
    for (int i = 0; i < n; i += NR) {
        float *panel = packed + (size_t)i * kc;
        const int nr = min_int(NR, n - i);
        if (p->b_is_kn) {
            const float *b = (const float *)p->b.data + k * p->b.ld + j + i;
            for (int r = 0; r < kc; r++) {
                memcpy(panel + (size_t)r * NR, b + r * p->b.ld, (size_t)nr * sizeof *b);
                memset(panel + (size_t)r * NR + nr, 0, (size_t)(NR - nr) * sizeof *b);
            }
        } else p->kernels->pack(panel, &p->b, j + i, nr, k, kc);
    }
}

// Asks for rows from .. to of a matrix whose rows lie ld bytes apart, bytes of each, to be in the level 2 cache soon.
static void prefetch_rows(const char *p, size_t ld, int from, int to, size_t bytes) {
    for (int r = from; r < to; r++)
        for (size_t i = 0; i < bytes; i += 64) __builtin_prefetch(p + (size_t)r * ld + i, 0, 2);
}

// Rows m0 .. m0+M, columns n0 .. n0+n of out. packed has room for n, rounded up to NR, times KC floats and then for
// a tile of x. The steps through K are as even as possible, multiples of 32 and the same for every block.
static void block(const Product *p, int m0, int M, int n0, int n, float *packed) {
    const MatmulKernels *kern = p->kernels;
    const int steps = p->K > 0 ? ceil_div(p->K, KC) : 1, KS = ceil_div(ceil_div(p->K, steps), 32) * 32;
    float *x = packed + (size_t)ceil_div(n, kern->NR) * (size_t)kern->NR * KC;
    const size_t row_bytes = bytes_of(&p->b, p->b.ld), step_bytes = bytes_of(&p->b, (size_t)KS);
    for (int s = 0; s < steps && s * KS <= p->K; s++) {
        const int k = s * KS, kc = min_int(KS, p->K - k);
        const char *next_w = (const char *)weight_at(&p->b, (size_t)n0, (size_t)(k + KS));
        pack_panels(packed, p, n0, n, k, kc);
        for (int m = m0; m < m0 + M; m += kern->MR) {
            const int mr = min_int(kern->MR, m0 + M - m), next_mr = min_int(kern->MR, m0 + M - m - mr);
            const float *a = p->a + (size_t)m * p->lda + k;
            for (int r = 0; r < mr; r++) memcpy(x + r * XS, a + (size_t)r * p->lda, (size_t)kc * sizeof *x);
            for (int i = 0; i < n; i += kern->NR) {
                // While this tile is multiplied: a share of the next tile, and of the weights of the next step.
                const int to = min_int(i + kern->NR, n), done = n * (m - m0);
                prefetch_rows((const char *)a, p->lda * sizeof *a, mr + next_mr * i / n, mr + next_mr * to / n,
                              (size_t)kc * sizeof *a);
                if (s + 1 < steps && !p->b_is_kn)
                    prefetch_rows(next_w, row_bytes, (done + mr * i) / M, (done + mr * to) / M, step_bytes);
                float *out = p->out + (size_t)m * p->ldo + n0 + i;
                const float *base = s > 0 ? out : p->bias ? p->bias + n0 + i : zeros;
                kern->tile(out, p->ldo, base, s > 0 ? p->ldo : 0, p->scale, x, packed + (size_t)i * kc, mr,
                           min_int(kern->NR, n - i), kc);
            }
        }
    }
}

// ---------------------------------------------------------------------------------------------------------
// Threads: jobs are handed out one by one, so that a thread whose core is shared simply does fewer.

typedef void Job(const Product *p, int job, int thread);

static void run_jobs(Job *run, const Product *p, int jobs, int threads) {
#ifdef _OPENMP
    // Below some ten microseconds of work, waking threads costs more than they save, much more on busy cores.
    const bool worth = (double)p->M * p->N * p->K > 4e5;
#pragma omp parallel for schedule(dynamic, 1) num_threads(threads) if (threads > 1 && jobs > 1 && worth)
    for (int i = 0; i < jobs; i++) run(p, i, omp_get_thread_num());
#else
    (void)threads;
    for (int i = 0; i < jobs; i++) run(p, i, 0);
#endif
}

static void block_job(const Product *p, int job, int thread) {
    const int across = ceil_div(p->N, p->cols), m = job / across * p->rows, n = job % across * p->cols;
    block(p, m, min_int(p->rows, p->M - m), n, min_int(p->cols, p->N - n), p->scratch + (size_t)thread * PACK_FLOATS);
}

static void rows_job(const Product *p, int job, int thread) {
    const int n = job * p->cols;
    (void)thread;
    p->kernels->rows(p->out + n, p->ldo, p->a, p->lda, &p->b, n, p->bias ? p->bias + n : NULL, p->scale, p->M,
                     min_int(p->cols, p->N - n), p->K);
}

// ---------------------------------------------------------------------------------------------------------
// The functions of matmul.h.

uint64_t matmul_scratch_bytes(int threads) { return (uint64_t)threads * PACK_FLOATS * sizeof(float); }

void matmul(float *out, const float *x, const Tensor *w, const float *b, int T, const Par *par) {
    // x (T,C), w (OC,C), b (OC) or NULL -> out (T,OC)
    const int OC = w->rows, C = w->cols;
    const Weights weights = {w->data, w->scale, (size_t)C, w->dtype};
    Product p = {out, x, weights, b, (size_t)OC, (size_t)C, 1.0f, T, OC, C, false, par->kernels, par->scratch, T, NC};
    if (T <= 0 || OC <= 0) return;
    if (T <= par->kernels->few) {
        // Chunks are large enough for the hardware to read ahead, and at least four a thread where there are that many.
        const size_t row_bytes = bytes_of(&weights, (size_t)C);
        const size_t by_size = 4 + CHUNK_BYTES / (row_bytes + 1), by_threads = (size_t)OC / (4 * (size_t)par->threads);
        p.cols = (int)(by_size < by_threads ? by_size : by_threads) / 4 * 4;
        if (p.cols < 4) p.cols = 4;
        run_jobs(rows_job, &p, ceil_div(OC, p.cols), par->threads);
        return;
    }
    // Few columns and many threads: the rows are split as well, at the price of packing the weights again.
    const int across = ceil_div(OC, NC), down = ceil_div(4 * par->threads, across);
    if (down > 1) p.rows = ceil_div(ceil_div(T, down), 4 * p.kernels->MR) * 4 * p.kernels->MR;
    run_jobs(block_job, &p, across * ceil_div(T, p.rows), par->threads);
}

void gemm_nt(float *out, int ldo, const float *a, int lda, const float *b, int ldb, float scale, int M, int N, int K,
             const Par *par) {
    // a (M,K), b (N,K) -> out (M,N) = scale * a b^T
    if (M <= 0 || N <= 0) return;
    const Weights w = {b, NULL, (size_t)ldb, DT_F32};
    if (M <= SLICE) {
        par->kernels->rows(out, (size_t)ldo, a, (size_t)lda, &w, 0, NULL, scale, M, N, K);
        return;
    }
    const Product p = {out, a, w, NULL, (size_t)ldo, (size_t)lda, scale, M, N, K, false, par->kernels, NULL, 0, 0};
    float packed[PACK_FLOATS] __attribute__((aligned(64)));
    for (int n = 0; n < N; n += NC) block(&p, 0, M, n, min_int(NC, N - n), packed);
}

void gemm_nn(float *out, int ldo, const float *a, int lda, const float *b, int ldb, int M, int N, int K,
             const Par *par) {
    // a (M,K), b (K,N) -> out (M,N)
    if (M <= 0 || N <= 0) return;
    const Product p = {out, a, {b, NULL, (size_t)ldb, DT_F32}, NULL, (size_t)ldo, (size_t)lda, 1.0f, M, N, K, true,
                       par->kernels, NULL, 0, 0};
    float packed[PACK_FLOATS] __attribute__((aligned(64)));
    for (int n = 0; n < N; n += NC) block(&p, 0, M, n, min_int(NC, N - n), packed);
}

float dot(const float *a, const float *b, int n, const Par *par) { return par->kernels->dot(a, b, n); }

void axpy(float *y, float s, const float *x, int n, const Par *par) { par->kernels->axpy(y, s, x, n); }

void tensor_row(float *out, const Tensor *w, int r) {
    // w (rows,C), 0 <= r < rows -> out (C)
    const Weights weights = {w->data, w->scale, (size_t)w->cols, w->dtype};
    for (int c = 0; c < w->cols; c++) out[c] = weight(&weights, (size_t)r, (size_t)c) * row_scale(&weights, (size_t)r);
}
