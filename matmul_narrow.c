// matmul_narrow.c: products with x in a narrow type (see matmul_narrow.h).
//
// In order: conversion of a row of x to bf16, packing of weights, the inner loops for each instruction (matmul_dot.h
// and matmul_int4.h, matmul_amx.h), the two ways of a product as in matmul.c: few rows of x, and blocks; permission for
// AMX.
// Integer sums are the same on every processor and for any number of threads; what is added in f32, block after block
// of x, always comes in the same order.
// Not here: f32 products (matmul.c).
#include "matmul_narrow.h"
#include "matmul_jobs.h"

#include <string.h>
#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif
#if defined(__linux__) && defined(__x86_64__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

// ---------------------------------------------------------------------------------------------------------
// x (C) -> a row of bf16. low: bytes to the low parts. Zeros fill up to a multiple of 64 columns.

static size_t padded(int C) { return ((size_t)C + 63) / 64 * 64; }

static uint32_t float_bits(float f) {
    uint32_t u;
    memcpy(&u, &f, sizeof u);
    return u;
}

// To nearest, ties to even; NaN stays NaN.
static inline uint16_t to_bf16(uint32_t u) {
    return (uint16_t)((u & 0x7FFFFFFF) > 0x7F800000 ? u >> 16 | 0x40 : (u + 0x7FFF + (u >> 16 & 1)) >> 16);
}

static void convert_bf16(uint8_t *row, size_t low, const float *x, int C, bool two) {
    uint16_t *high = (uint16_t *)(void *)row, *rest = (uint16_t *)(void *)(row + low);
    for (int c = 0; c < C; c++) {
        high[c] = to_bf16(float_bits(x[c]));
        if (two) rest[c] = to_bf16(float_bits(x[c] - bits_to_float((uint32_t)high[c] << 16)));
    }
    memset(high + C, 0, 2 * (padded(C) - (size_t)C));
    if (two) memset(rest + C, 0, 2 * (padded(C) - (size_t)C));
}

// ---------------------------------------------------------------------------------------------------------
// w (n,K) -> out (K/unit,N) units of four bytes, zero behind n, and behind K up to a multiple of 64.

typedef int32_t Four __attribute__((vector_size(16), aligned(1), may_alias));
typedef float FloatFour __attribute__((vector_size(16), aligned(4), may_alias));
typedef int8_t Bytes __attribute__((vector_size(8), aligned(1), may_alias));
typedef int16_t Shorts __attribute__((vector_size(16)));
typedef int8_t ByteLanes __attribute__((vector_size(16)));

#define SHUFFLE(a, b, i, j, k, l) SHUFFLE_BY(Four, a, b, i, j, k, l)

// Units of four rows -> the same unit of each.
static inline void turn4(Four unit[4], const Four row[4]) {
    const Four ab = SHUFFLE(row[0], row[1], 0, 4, 1, 5), cd = SHUFFLE(row[2], row[3], 0, 4, 1, 5);
    const Four AB = SHUFFLE(row[0], row[1], 2, 6, 3, 7), CD = SHUFFLE(row[2], row[3], 2, 6, 3, 7);
    unit[0] = SHUFFLE(ab, cd, 0, 1, 4, 5), unit[1] = SHUFFLE(ab, cd, 2, 3, 6, 7);
    unit[2] = SHUFFLE(AB, CD, 0, 1, 4, 5), unit[3] = SHUFFLE(AB, CD, 2, 3, 6, 7);
}

// Four units of a row.
static inline Four load_units(const uint8_t *p, bool widen) {
    return widen ? (Four)__builtin_convertvector(*(const Bytes *)p, Shorts) : *(const Four *)p;
}

static inline int32_t one_unit(const uint8_t *p, int n, int unit, bool widen) {
    uint16_t wide[2] = {0};
    int32_t all = 0;
    if (widen) for (int i = 0; i < n; i++) wide[i] = (uint16_t)(int8_t)p[i];
    memcpy(&all, widen ? (const void *)wide : p, widen ? 4 : (size_t)(n * 4 / unit));
    return all;
}

static inline void pack_units(void *out, const Weights *w, int j0, int n, int k0, int K, int N, int unit, bool widen) {
    int32_t *const o = out;
    const int units = (int)padded(K) / unit, whole = K / unit / 4 * 4;
    const size_t bytes = bytes_of(w, (size_t)unit);     // of a unit in memory
    int j = 0;
    for (; j + 4 <= n; j += 4) {
        const uint8_t *p[4];
        for (int r = 0; r < 4; r++) p[r] = weight_at(w, (size_t)(j0 + j + r), (size_t)k0);
        for (int k = 0; k < whole; k += 4) {
            const size_t at = (size_t)k * bytes;
            const Four a = load_units(p[0] + at, widen), b = load_units(p[1] + at, widen);
            const Four c = load_units(p[2] + at, widen), d = load_units(p[3] + at, widen);
            Four turned[4];
            turn4(turned, (const Four[4]){a, b, c, d});
            int32_t *q = o + (size_t)k * (size_t)N + j;
            *(Four *)q = turned[0];
            *(Four *)(q + N) = turned[1];
            *(Four *)(q + 2 * N) = turned[2];
            *(Four *)(q + 3 * N) = turned[3];
        }
    }
    const int turned = j;
    for (int k = 0; k < units; k++)
        for (j = k < whole ? turned : 0; j < N; j++) {
            const int left = K - k * unit;
            o[(size_t)k * (size_t)N + (size_t)j] = j >= n || left <= 0 ? 0 :
                one_unit(weight_at(w, (size_t)(j0 + j), (size_t)(k0 + k * unit)), min_int(left, unit), unit, widen);
        }
}

// int4: w (n,K) -> out, (units and scales,N) for each group of 32 columns, as matmul_int4_blocks.h says; zero behind n.
static void pack_groups(void *out, const Weights *w, int j0, int n, int k0, int K, int N, bool bytes) {
    const int units = bytes ? 8 : 16;
    for (int j = 0; j < N; j += 4)
        for (int k = 0; k < K; k += 32) {
            int32_t *const o = (int32_t *)out + (size_t)(k / 32 * (units + 1) * N + j);
            float *const scale = (float *)(void *)(o + units * N);
            Four row[4], turned[4];
            for (int r = 0; r < 4; r++) {
                row[r] = (Four){0x88888888, 0x88888888, 0x88888888, 0x88888888}, scale[r] = 0;
                if (j + r >= n) continue;
                row[r] = *(const Four *)weight_at(w, (size_t)(j0 + j + r), (size_t)(k0 + k));
                scale[r] = group_scale(w, (size_t)(j0 + j + r), (size_t)(k0 + k));
            }
            turn4(turned, row);
            for (int u = 0; u < 4; u++) {             // less 8, a nibble is a signed number of four bits
                const Four t = turned[u] ^ (int32_t)0x88888888;
                for (int i = 0; i < (bytes ? 2 : 4); i++)
                    *(Four *)(o + (size_t)((4 * i + u) * N)) =
                        bytes ? (Four)((ByteLanes)t << (4 - 4 * i) >> 4) : (Four)((Shorts)t << (12 - 4 * i) >> 12);
            }
        }
}

#if defined(__x86_64__) || defined(MATMUL_TWINS)
#include "matmul_pack.h"
#endif

// ---------------------------------------------------------------------------------------------------------
// The inner loops. With MATMUL_TWINS all of them in plain C; inline assembly where compilers may not know the
// instruction.

#ifdef MATMUL_TWINS
#define NATIVE(t)
#pragma GCC diagnostic ignored "-Wpsabi"
#define MOST 3                   // rows of x that rows() takes at once; compilers take minutes for six in plain C
#define ROWS4(most) 3
#define FEW_ROWS CASE(1) CASE(2) CASE(3)
#else
#define NATIVE(t) __attribute__((target(t)))
#define MOST 6                   // more sums do not fit into registers
#define ROWS4(most) most
#define FEW_ROWS CASE(1) CASE(2) CASE(3) CASE(4) CASE(5) CASE(6)
#endif

#if defined(__x86_64__) || defined(MATMUL_TWINS)
#define NAME(f) f##_madd256
#define TARGET NATIVE("avx2,fma,f16c")
#define AS AS_INT16
#define VW 8
#define MR 6
#define MR4 ROWS4(6)
#define FEW 32
#ifndef MATMUL_TWINS
#define DOT(a, x, w) ((a) + (VI)_mm256_madd_epi16((__m256i)(x), (__m256i)(w)))
#define PAIRS(p) (VI)_mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i *)(const void *)(p)))
#define FMA(a, b, c) _mm256_fmadd_ps(a, b, c)
#define KEEP(v) __asm__("" : "+x"(v))
#define HALVES(p) (V)_mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(const void *)(p)))
#define SPREAD(v, q) (V)_mm256_permutevar8x32_ps((__m256)(v), _mm256_add_epi32(_mm256_set1_epi32(2 * (q)), \
    _mm256_setr_epi32(0, 0, 0, 0, 1, 1, 1, 1)))
#endif
#include "matmul_dot.h"

#define NAME(f) f##_vnni256
#define TARGET NATIVE("avx2,fma,f16c")
#define AS AS_INT16
#define VW 8
#define MR 6
#define MR4 ROWS4(6)
#define FEW 32
#ifndef MATMUL_TWINS
#define ASM "%{vex%} vpdpwssd %2, %1, %0"
#define REG "x"
#define PAIRS(p) (VI)_mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i *)(const void *)(p)))
#define FMA(a, b, c) _mm256_fmadd_ps(a, b, c)
#define KEEP(v) __asm__("" : "+x"(v))
#define HALVES(p) (V)_mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(const void *)(p)))
#define SPREAD(v, q) (V)_mm256_permutevar8x32_ps((__m256)(v), _mm256_add_epi32(_mm256_set1_epi32(2 * (q)), \
    _mm256_setr_epi32(0, 0, 0, 0, 1, 1, 1, 1)))
#endif
#include "matmul_dot.h"

#define AVX512 NATIVE("avx2,fma,f16c,avx512f,avx512vl,avx512bw,avx512dq")
#define NAME(f) f##_madd512
#define TARGET AVX512
#define AS AS_INT16
#define VW 16
#define MR 12
#define MR4 ROWS4(7)
#define FEW 8
#ifndef MATMUL_TWINS
#define PAIRS512(p) _mm512_cvtepi8_epi16(_mm256_loadu_si256((const __m256i *)(const void *)(p)))
#define DOT(a, x, w) ((a) + (VI)_mm512_madd_epi16((__m512i)(x), (__m512i)(w)))
#define PAIRS(p) (VI)PAIRS512(p)
#define FMA(a, b, c) _mm512_fmadd_ps(a, b, c)
#define HALVES(p) (V)_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)(const void *)(p)))
#define SPREAD(v, q) (V)_mm512_permutexvar_ps(_mm512_add_epi32(_mm512_set1_epi32(4 * (q)), \
    _mm512_setr_epi32(0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3)), (__m512)(v))
#endif
#include "matmul_dot.h"

#define NAME(f) f##_vnni512
#define TARGET AVX512
#define AS AS_INT16
#define VW 16
#define MR 14
#define MR4 ROWS4(7)
#define FEW 8
#ifndef MATMUL_TWINS
#define ASM "vpdpwssd %2, %1, %0"
#define REG "v"
#define PAIRS(p) (VI)PAIRS512(p)
#define FMA(a, b, c) _mm512_fmadd_ps(a, b, c)
#define HALVES(p) (V)_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)(const void *)(p)))
#define SPREAD(v, q) (V)_mm512_permutexvar_ps(_mm512_add_epi32(_mm512_set1_epi32(4 * (q)), \
    _mm512_setr_epi32(0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3)), (__m512)(v))
#endif
#include "matmul_dot.h"

#define NAME(f) f##_bf16_512
#define TARGET AVX512
#define AS AS_BF16
#define VW 16
#define MR 14
#define FEW 0
#ifndef MATMUL_TWINS
#define ASM "vdpbf16ps %2, %1, %0"
#define REG "v"
#endif
#include "matmul_dot.h"

#include "matmul_amx.h"

// Few rows against int8 weights go as without AMX.
const Narrow narrow_amx_int8 = {AS_BYTES, AS_INT16, 16, 32, BLOCK, false, 32, tile_amx_int8, convert_vnni512,
                                rows_vnni512};
const Narrow narrow_amx_bf16 = {AS_BF16, AS_BF16, 32, 32, 1024, false, 0, tile_amx_bf16, NULL, NULL};
const Narrow narrow_amx_two = {AS_TWO_BF16, AS_TWO_BF16, 32, 32, 1024, false, 0, tile_amx_two, NULL, NULL};
#endif

#if defined(__aarch64__) || defined(MATMUL_TWINS)
#define NAME(f) f##_sdot
#define TARGET
#define AS AS_BYTES
#define VW 4
#define MR 6
#define MR4 ROWS4(4)
#define FEW 16
#ifndef MATMUL_TWINS
#define ASM ".arch armv8.2-a+dotprod\n\tsdot %0.4s, %1.16b, %2.16b"
#define REG "w"
#define FMA(a, b, c) (V)vfmaq_f32((float32x4_t)(c), (float32x4_t)(a), (float32x4_t)(b))
#define HALVES(p) (V)vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(p)))
#endif
#include "matmul_dot.h"
#endif

// ---------------------------------------------------------------------------------------------------------
// A product.

typedef struct {
    const Narrow *n;
    float *out;
    const float *in;             // x before conversion
    Weights w;
    const float *bias;
    int then, T, OC, C;          // T: of this pass
    void (*act)(float *x, int act, int n);
    NarrowX x;
    float *scale;                // x.scale
    uint8_t *rows;               // x.data
    uint8_t *tiles;              // x once more, where tile() wants it copied: (blocks,T) rows of ROW_BYTES
    int as, tall, wide;          // rows and columns of a job
    int threads;
    uint8_t *packed;             // NARROW_PACKED for each thread
} Product;

static void convert_job(void *arg, int t, int thread) {
    const Product *p = arg;
    uint8_t *row = p->rows + (size_t)t * p->x.ld;
    const float *in = p->in + (size_t)t * (size_t)p->C;
    (void)thread;
    if (p->as == AS_BF16 || p->as == AS_TWO_BF16) convert_bf16(row, p->x.low, in, p->C, p->as == AS_TWO_BF16);
    else p->n->convert(row, p->x.low, p->scale + (size_t)t * p->x.ldscale, in, p->C, p->as);
    for (int b = 0; p->tiles && b < p->C; b += BLOCK) {      // every block of columns by itself
        const size_t n = (size_t)min_int(BLOCK, (int)padded(p->C) - b);
        uint8_t *to = p->tiles + ((size_t)(b / BLOCK) * (size_t)p->T + (size_t)t) * ROW_BYTES;
        memcpy(to, row + (size_t)b * (p->as == AS_BYTES ? 1 : 2), p->as == AS_BYTES ? n : 2 * n);
        if (p->as == AS_BYTES) memcpy(to + BLOCK, row + p->x.low + b, n);
    }
}

static void rows_job(void *arg, int job, int thread) {
    const Product *p = arg;
    const int n = job * p->wide, N = min_int(p->wide, p->OC - n);
    const bool more = p->then == THEN_ADD;
    float *out = p->out + n;
    (void)thread;
    add_bias(out, (size_t)p->OC, p->bias, n, p->then, p->T, N);
    p->n->rows(out, (size_t)p->OC, more ? out : p->bias ? p->bias + n : NULL, more ? (size_t)p->OC : 0,
               &p->x, &p->w, n, p->T, N, p->C);
    activate_block(out, (size_t)p->OC, p->act, p->then, p->T, N);
}

static void pack(void *panel, const Product *p, int j, int n, int k, int K) {
    const int unit = p->as == AS_BYTES ? 4 : 2;
    const bool int4 = p->w.dtype == DT_INT4;
#if defined(__x86_64__) || defined(MATMUL_TWINS)
    if (p->n->NR == 32) {                // all of AVX-512, and nothing else
        if (int4) pack_groups_turned(panel, &p->w, j, n, k, K);
        else pack_turned(panel, &p->w, j, n, k, K, p->as == AS_INT16);
        return;
    }
#endif
    if (int4) pack_groups(panel, &p->w, j, n, k, K, p->n->NR, p->as == AS_BYTES);
    else pack_units(panel, &p->w, j, n, k, K, p->n->NR, unit, p->as == AS_INT16);
}

static void block_job(void *arg, int job, int thread) {
    static const float zeros[NARROW_COLUMNS];
    const Product *p = arg;
    const int NR = p->n->NR, MR = p->n->MR, KC = p->n->KC;
    const int across = ceil_div(p->OC, p->wide), m0 = job / across * p->tall, n0 = job % across * p->wide;
    const int M = min_int(p->tall, p->T - m0), N = min_int(p->wide, p->OC - n0);
    const size_t OC = (size_t)p->OC;
    uint8_t *const panel = p->packed + (size_t)thread * NARROW_PACKED;
    const float *wscale = p->w.dtype == DT_INT8 ? p->w.scale : NULL;
    float *const block = p->out + (size_t)m0 * OC + n0;
    add_bias(block, OC, p->bias, n0, p->then, M, N);
    for (int k = 0; k == 0 || k < p->C; k += KC) {
        const int K = min_int(KC, p->C - k);
        const int calls = ceil_div(M, MR) * ceil_div(K, (p->as == AS_BYTES ? 4 : 2) * AHEAD_STEPS);
        const bool more = k > 0 || p->then == THEN_ADD, last = k + KC >= p->C;
        // asked of memory meanwhile: the next step, or the first one of the job that is probably this thread's next
        const int next_k = last ? 0 : k + KC, next_n = last ? n0 + p->wide : n0;
        for (int i = 0; i < N; i += NR) {
            const int nr = min_int(NR, N - i);
            Ahead ahead = ahead_of(&p->w, next_n + i, min_int(nr, p->OC - next_n - i), next_k,
                                   min_int(KC, p->C - next_k), calls);
            pack(panel, p, n0 + i, nr, k, K);
            for (int m = 0; m < M; m += MR) {
                const size_t row = (size_t)(m0 + m);
                const NarrowX x = {p->tiles ? p->tiles + ((size_t)(k / BLOCK) * (size_t)p->T + row) * ROW_BYTES :
                                   p->x.data + row * p->x.ld + (size_t)k * (p->as == AS_BYTES ? 1 : 2),
                                   p->tiles ? ROW_BYTES : p->x.ld, p->tiles ? BLOCK : p->x.low,
                                   p->scale + row * p->x.ldscale + k / BLOCK, p->x.ldscale};
                float *out = p->out + row * OC + n0 + i;
                p->n->tile(out, OC, more ? out : p->bias ? p->bias + n0 + i : zeros, more ? OC : 0, &x, panel,
                           wscale ? wscale + n0 + i : NULL, &ahead, min_int(MR, M - m), nr, K);
            }
        }
    }
    activate_block(block, OC, p->act, p->then, M, N);
}

uint64_t narrow_scratch_bytes(int threads) { return (uint64_t)threads * NARROW_PACKED + NARROW_X; }

// The shapes of the jobs, and how many there are.
static int plan_rows(Product *p, const Par *par) {
    p->wide = rows_in_a_job(&p->w, p->OC, p->C, par->threads);
    return ceil_div(p->OC, p->wide);
}

static int plan_blocks(Product *p, const Par *par) {
    p->wide = columns_in_a_job(p->OC, NARROW_COLUMNS, p->n->NR, par->threads);
    const int across = ceil_div(p->OC, p->wide);
    p->tall = rows_in_a_block(p->T, across, p->n->MR, par->threads);
    return across * ceil_div(p->T, p->tall);
}

// From row to row of x: an odd number of cache lines spreads rows over all sets of a cache.
static size_t row_bytes(int as, int C) {
    return ((as == AS_NIBBLES ? (size_t)ceil_div(C, BLOCK) * (BLOCK * 5 / 2 / 64) :
             padded(C) * (as == AS_TWO_BF16 ? 4 : 2) / 64) | 1) * 64;
}

bool narrow_matmul(const Narrow *n, float *out, const float *x, const Weights *w, const float *b, int then, int T,
                   int OC, int C, void (*act)(float *x, int act, int n), void *scratch, const Par *par) {
    // x (T,C), w (OC,C), b (OC) or NULL -> out (T,OC)
    const bool few = T <= n->few;
    const int as = few ? n->few_as : n->as;
    const size_t blocks = (size_t)ceil_div(C, BLOCK), ld = row_bytes(as, C);
    const size_t tiles = few || !n->copied ? 0 : blocks * ROW_BYTES;
    const size_t most = NARROW_X / (ld + tiles + (blocks + 1) * sizeof(float));
    if (most < 1 || C < 1) return false;
    Product p = {.n = n, .w = *w, .bias = b, .then = then, .OC = OC, .C = C, .act = act, .as = as,
                 .packed = scratch, .rows = (uint8_t *)scratch + (size_t)par->threads * NARROW_PACKED};
    const int pass = most < (size_t)T ? (int)most : T;
    p.threads = par->threads;
    p.tiles = tiles ? p.rows + (size_t)pass * ld : NULL;
    p.scale = (float *)(void *)(p.rows + (size_t)pass * (ld + tiles));
    p.x = (NarrowX){p.rows, ld, padded(C) * (p.as == AS_TWO_BF16 ? 2 : 1), p.scale, blocks};
    for (int t = 0; t < T; t += pass) {
        p.T = min_int(pass, T - t);
        p.in = x + (size_t)t * (size_t)C;
        p.out = out + (size_t)t * (size_t)OC;
        const bool worth = worth_threads(p.T, OC, C);
        pool_run(worth_threads_for_x(p.T, C) ? par->pool : NULL, convert_job, &p, p.T);
        if (few) pool_run(worth ? par->pool : NULL, rows_job, &p, plan_rows(&p, par));
        else pool_run(worth ? par->pool : NULL, block_job, &p, plan_blocks(&p, par));
    }
    return true;
}

typedef struct { Product p; Living8 *living; const int *live; int n_live; } LivingProduct;

static void living_job(void *arg, int job, int thread) {
    const LivingProduct *l = arg;
    const Product *p = &l->p;
    const int n = job * p->wide, N = min_int(p->wide, p->OC - n);
    add_bias(p->out + n, (size_t)p->OC, p->bias, n, p->then, p->T, N);
    l->living(p->out + n, (size_t)p->OC, &p->x, p->as, &p->w, n, l->live, l->n_live, p->T, N,
              p->packed + (size_t)thread * NARROW_PACKED);
}

bool narrow_living(const Narrow *n, Living8 *living, float *out, const float *x, const Weights *turned, const float *b,
                   const int *live, int n_live, int T, int OC, int C, void *scratch, const Par *par) {
    // x (T,C), turned (C,OC), b (OC) or NULL -> out (T,OC) += b + x turned
    const size_t ld = row_bytes(n->few_as, C), blocks = (size_t)ceil_div(C, BLOCK);
    const int lanes = NARROW_PACKED / (2 * 4 * 16 * T) / 32 * 32;       // columns whose sums a thread has room for
    if (T > n->few || n->few_as == AS_NIBBLES || lanes < 32 || NARROW_X / (ld + 4 * blocks) < (size_t)T) return false;
    uint8_t *const rows = (uint8_t *)scratch + (size_t)par->threads * NARROW_PACKED;
    LivingProduct l = {{.n = n, .out = out, .in = x, .w = *turned, .bias = b, .then = THEN_ADD, .T = T, .OC = OC,
                        .C = C, .as = n->few_as, .threads = par->threads, .packed = scratch, .rows = rows,
                        .scale = (float *)(void *)(rows + (size_t)T * ld)}, living, live, n_live};
    l.p.x = (NarrowX){rows, ld, padded(C), l.p.scale, blocks};
    l.p.wide = min_int(min_int(lanes, 256), ceil_div(OC, 4 * par->threads * 32) * 32);
    pool_run(worth_threads_for_x(T, C) ? par->pool : NULL, convert_job, &l.p, T);
    pool_run(par->pool, living_job, &l, ceil_div(OC, l.p.wide));
    return true;
}

// See Linux's Documentation/arch/x86/xstate.rst: ARCH_REQ_XCOMP_PERM for XTILEDATA, for the whole process.
bool narrow_amx_allowed(void) {
#if defined(__linux__) && defined(__x86_64__) && !defined(MATMUL_TWINS)
    return syscall(SYS_arch_prctl, 0x1023, 18) == 0;
#elif defined(MATMUL_TWINS)
    return true;
#else
    return false;
#endif
}
