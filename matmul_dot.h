// matmul_dot.h: inner loops made of dot products, written once and compiled for each instruction; a part of
// matmul_narrow.c.
//
// matmul_narrow.c includes this file several times after defining
//   NAME(f)       adds the suffix of the instruction to a function's name
//   TARGET        the attribute that switches the instruction set on for one function
//   VW            32-bit units in a vector
//   MR            rows of a tile (its width is two vectors)
//   MR4           the same for int4 weights
//   FEW           most rows of x for rows(); 0: there is no rows()
//   AS            AS_...: what x is. A unit of four bytes holds two 16-bit elements, or with AS_BYTES four bytes
//   DOT(a,x,w)    a + the dot products of the units of x and w, lane by lane. x and w: VI, a: VI, or V for bf16; or
//   ASM, REG      an instruction that adds to %0 those of %1 and %2, and the constraint for its registers
//   PAIRS(p)      VI: 2 * VW int8 at p as 16-bit integers (AS_INT16)
//   KEEP(v)       a vector of x stays in its register: or else gcc loads it again for each row of w
//
// In order: vector types and what the instructions mean; conversion of x to integers; tile(), for many rows of x;
// rows(), for a few; the same for int4 weights (matmul_int4.h, matmul_int4_blocks.h).
// Not here: conversion of x to bf16, packing of w, blocking, threads.

typedef float NAME(v) __attribute__((vector_size(4 * VW), aligned(4), may_alias));
typedef int32_t NAME(vi) __attribute__((vector_size(4 * VW)));    // in registers: less aligned, gcc 12 spills them
typedef int32_t NAME(vm) __attribute__((vector_size(4 * VW), aligned(1), may_alias));    // in memory
#define V NAME(v)
#define VI NAME(vi)
#define INLINE static inline __attribute__((always_inline)) TARGET
#define IS_BF16 (AS == AS_BF16)
#define PLANES (AS == AS_BYTES ? 2 : 1)
#define UNIT (AS == AS_BYTES ? 4 : 2)              // elements in a unit

#if AS == AS_BF16
#define SUM V
#define AS_FLOAT(s) (s)
#else
#define SUM VI
#define AS_FLOAT(s) __builtin_convertvector(s, V)
#endif

#ifdef ASM       // on the very types of the sums: casts to those of intrinsics cost gcc 12 a copy of each
INLINE SUM NAME(dot)(SUM a, VI x, VI w) {
    __asm__(ASM : "+" REG(a) : REG(x), REG(w));
    return a;
}
#define DOT NAME(dot)
#define ONE_DOT true
#elif !defined(DOT)      // the meaning of the instructions in plain C
#if AS == AS_BF16
INLINE V NAME(dot)(V a, VI x, VI w) {
    for (int i = 0; i < VW; i++) {
        const uint32_t p = (uint32_t)x[i], q = (uint32_t)w[i];
        a[i] += bits_to_float(p << 16) * bits_to_float(q << 16);
        a[i] += bits_to_float(p & 0xFFFF0000) * bits_to_float(q & 0xFFFF0000);
    }
    return a;
}
#else
INLINE VI NAME(dot)(VI a, VI x, VI w) {
    for (int i = 0; i < VW; i++)
        for (int e = 0; e < 32; e += 32 / UNIT)
            a[i] += UNIT == 4 ? (int8_t)(x[i] >> e) * (int8_t)(w[i] >> e) : (int16_t)(x[i] >> e) * (int16_t)(w[i] >> e);
    return a;
}
#endif
#define DOT NAME(dot)
#endif
#ifndef ONE_DOT
#define ONE_DOT false
#endif
#ifndef PAIRS
INLINE VI NAME(pairs)(const int8_t *p) {
    VI v = {0};
    for (int i = 0; i < VW; i++) v[i] = (int32_t)((uint32_t)(uint16_t)p[2 * i] | (uint32_t)p[2 * i + 1] << 16);
    return v;
}
#define PAIRS NAME(pairs)
#endif
#ifndef KEEP
#define KEEP(v) ((void)(v))
#endif

// ---------------------------------------------------------------------------------------------------------
// x (n) of one block -> q (n), and the scale that is returned

#if FEW > 0
INLINE float NAME(to_int16)(int16_t *q, const float *x, int n) {
    uint32_t top = 0;      // as bits, magnitudes are in order, and NaN is above infinity
    for (int c = 0; c < n; c++) {
        const uint32_t u = float_bits(x[c]) & 0x7FFFFFFF;
        top = u > top ? u : top;
    }
    const float most = bits_to_float(top), factor = top < 0x7F800000 && most > 0x1p-100f ? X_MAX / most : 0;
    if (factor > 0)
        // adding 1.5 * 2^23 rounds to an integer, which then stands in the low bits
        for (int c = 0; c < n; c++) q[c] = (int16_t)float_bits(x[c] * factor + 12582912);
    else memset(q, 0, (size_t)n * sizeof *q);
    return top < 0x7F800000 ? (factor > 0 ? most / X_MAX : 0) : bits_to_float(0x7FC00000);
}

static TARGET void NAME(convert)(uint8_t *row, size_t low, float *scale, const float *x, int C, int as) {
    const bool bytes = as == AS_BYTES;
    const size_t rest = padded(C) - (size_t)C;
    int16_t *const q = (int16_t *)(void *)row;
    for (int b = 0; b < C; b += BLOCK) {
        const int n = min_int(BLOCK, C - b);
        int16_t v[BLOCK];
        int8_t *const h = (int8_t *)row + b, *const l = h + low;
        scale[b / BLOCK] = NAME(to_int16)(bytes ? v : q + b, x + b, n);
        for (int c = 0; bytes && c < n; c++) l[c] = (int8_t)v[c], h[c] = (int8_t)((v[c] - (int8_t)v[c]) >> 8);
    }
    if (bytes) memset(row + C, 0, rest), memset(row + low + C, 0, rest);
    else memset(q + C, 0, 2 * rest);
}
#endif

// ---------------------------------------------------------------------------------------------------------
// All sums of a tile stay in registers, mr rows by two vectors by as many planes as x has.

// One unit of x's rows, planes included, times two vectors of weights
INLINE void NAME(step)(SUM acc[][2], const uint8_t *x, const uint8_t *w, int rows) {
    const VI w0 = *(const NAME(vm) *)w, w1 = *(const NAME(vm) *)(w + 4 * VW);
#pragma GCC unroll 16
    for (int r = 0; r < rows; r++) {
        int32_t unit;
        memcpy(&unit, x + (size_t)(r / PLANES * ROW_BYTES + r % PLANES * BLOCK), 4);
        const VI xr = unit - (VI){0};
        acc[r][0] = DOT(acc[r][0], xr, w0);
        acc[r][1] = DOT(acc[r][1], xr, w1);
    }
}

// The sum of a row's planes
INLINE SUM NAME(whole)(SUM acc[][2], int r, int half) {
#if PLANES == 2
    return acc[2 * r][half] * 256 + acc[2 * r + 1][half];
#else
    return acc[r][half];
#endif
}

INLINE void NAME(tile_mr)(float *out, size_t ldo, const float *base, size_t ldbase, const NarrowX *x, const void *w,
                          const float *wscale, Ahead *ahead, int mr, int n, int K) {
    SUM acc[MR * PLANES][2];
    const uint8_t *const packed = w, *const rows_of_x = x->data;
    const int units = (K + UNIT - 1) / UNIT, rows = mr * PLANES;
#pragma GCC unroll 16
    for (int r = 0; r < rows; r++) acc[r][0] = acc[r][1] = (SUM){0};
    for (int from = 0; from < units; from += AHEAD_STEPS) {
        ask_ahead(ahead);
        const int to = min_int(from + AHEAD_STEPS, units);
        for (size_t k = (size_t)from; k < (size_t)to; k++)
            NAME(step)(acc, rows_of_x + 4 * k, packed + k * 8 * VW, rows);
    }
    float tile[MR][2 * VW], scales[2 * VW] = {0};
    for (int i = 0; !IS_BF16 && i < n; i++) scales[i] = wscale[i];
#pragma GCC unroll 16
    for (int r = 0; r < mr; r++) {
        V va = AS_FLOAT(NAME(whole)(acc, r, 0)), vb = AS_FLOAT(NAME(whole)(acc, r, 1));
        if (!IS_BF16) {
            const float s = x->scale[(size_t)r * x->ldscale];
            va = va * s * *(V *)scales, vb = vb * s * *(V *)(scales + VW);
        }
        if (n == 2 * VW) {
            *(V *)(out + r * ldo) = va + *(const V *)(base + r * ldbase);
            *(V *)(out + r * ldo + VW) = vb + *(const V *)(base + r * ldbase + VW);
        } else {
            *(V *)tile[r] = va;
            *(V *)(tile[r] + VW) = vb;
        }
    }
    if (n < 2 * VW)
        for (int r = 0; r < mr; r++)
            for (int j = 0; j < n; j++) out[r * ldo + j] = base[r * ldbase + j] + tile[r][j];
}

static TARGET void NAME(tile)(float *out, size_t ldo, const float *base, size_t ldbase, const NarrowX *x, const void *w,
                              const float *wscale, Ahead *ahead, int mr, int n, int K) {
#define CASE(m) case m: \
    if (m <= MR) NAME(tile_mr)(out, ldo, base, ldbase, x, w, wscale, ahead, m <= MR ? m : 1, n, K); \
    break;
    switch (mr) {
        CASE(1) CASE(2) CASE(3) CASE(4) CASE(5) CASE(6) CASE(7) CASE(8) CASE(9) CASE(10) CASE(11) CASE(12) CASE(13)
        CASE(14)
    }
#undef CASE
}

// ---------------------------------------------------------------------------------------------------------
// A few rows of x against a stream of int8 weights, as rows() of matmul_kernels.h. Integer sums of a block of x become
// floats, lane by lane, when its scale changes.

#if FEW > 0
// The sums of the lanes of four vectors, `apart` from one to the next, added to base or zero -> out (n), n of the four;
// scale (n) or NULL
INLINE void NAME(finish4)(float *out, const float *base, const V *sum, int apart, const float *scale, int n) {
    FloatFour four[4];
#pragma GCC unroll 4
    for (int r = 0; r < 4; r++) {
        const FloatFour *const part = (const FloatFour *)(const void *)(sum + r * apart);
        four[r] = part[0];
#pragma GCC unroll 4
        for (int i = 1; i < VW / 4; i++) four[r] += part[i];
    }
    const FloatFour ab = SHUFFLE(four[0], four[1], 0, 4, 1, 5) + SHUFFLE(four[0], four[1], 2, 6, 3, 7);
    const FloatFour cd = SHUFFLE(four[2], four[3], 0, 4, 1, 5) + SHUFFLE(four[2], four[3], 2, 6, 3, 7);
    FloatFour all = SHUFFLE(ab, cd, 0, 1, 4, 5) + SHUFFLE(ab, cd, 2, 3, 6, 7);
    if (n == 4) {
        if (scale) all *= *(const FloatFour *)(const void *)scale;
        if (base) all += *(const FloatFour *)(const void *)base;
        *(FloatFour *)(void *)out = all;
    } else for (int r = 0; r < n; r++) out[r] = (base ? base[r] : 0) + (scale ? scale[r] : 1) * all[r];
}

// sum (R,T) -> out (T,R)
INLINE void NAME(finish)(float *out, size_t ldo, const float *base, size_t ldbase, const V *sum, const float *scale,
                         int T, int R) {
    for (int t = 0; t < T; t++)
        for (int r = 0; r < R; r += 4)
            NAME(finish4)(out + (size_t)t * ldo + r, base ? base + (size_t)t * ldbase + r : NULL, sum + r * T + t, T,
                          scale ? scale + r : NULL, min_int(4, R - r));
}

// Rows j .. j+rw of w, columns from .. to, times T rows of x, are added to sum (rw,T). from is a multiple of BLOCK.
// Meanwhile as much is asked of memory that begins at `ahead`, line after line.
INLINE void NAME(rows_rw)(V *sum, const NarrowX *x, const Weights *w, size_t j, int T, int rw, int from, int to,
                          const uint8_t *ahead) {
    const uint8_t *const first = weight_at(w, j, 0), *end = ahead + (to - from);
    for (int b = from; b < to; b += BLOCK) {
        const int stop = min_int(b + BLOCK, to);
        int c = b;
        VI acc[4][MOST * PLANES];
#pragma GCC unroll 16
        for (int t = 0; t < T * PLANES; t++)
#pragma GCC unroll 16
            for (int r = 0; r < rw; r++) acc[r][t] = (VI){0};
        for (; c + UNIT * VW <= stop; c += UNIT * VW) {
            VI wv[4];
#pragma GCC unroll 16
            for (int i = 0; i < rw * UNIT * VW; i += 64) __builtin_prefetch(ahead + i, 0, 3);
            ahead += rw * UNIT * VW;
            if (T > 2 && ahead >= end) ahead += w->ld - (size_t)(to - from), end += w->ld;   // to the row behind it
#pragma GCC unroll 16
            for (int r = 0; r < rw; r++) {
                const uint8_t *p = first + (size_t)r * w->ld + c;
                wv[r] = UNIT == 4 ? (VI)*(const NAME(vm) *)p : PAIRS((const int8_t *)p);
            }
#pragma GCC unroll 16
            for (int t = 0; t < T * PLANES; t++) {
                const uint8_t *const row = x->data + (size_t)(t / PLANES) * x->ld + (size_t)(t % PLANES) * x->low;
                VI xt = *(const NAME(vm) *)(row + (size_t)c * 4 / UNIT);
                if (rw > 1) KEEP(xt);
#pragma GCC unroll 16
                for (int r = 0; r < rw; r++) acc[r][t] = DOT(acc[r][t], xt, wv[r]);
            }
        }
#pragma GCC unroll 16
        for (int t = 0; t < T; t++) {
            const float s = x->scale[(size_t)t * x->ldscale + (size_t)(b / BLOCK)];
#pragma GCC unroll 16
            for (int r = 0; r < rw; r++) {
                const VI a = PLANES == 2 ? (VI)(acc[r][t * PLANES] * 256 + acc[r][t * PLANES + PLANES - 1]) : acc[r][t];
                sum[r * T + t] += __builtin_convertvector(a, V) * s;
            }
        }
    }
    const int C = (int)w->ld, c0 = C / (UNIT * VW) * (UNIT * VW);
    if (to == C && c0 < C)           // less than a vector, only behind the last block
        for (int t = 0; t < T; t++)
            for (int r = 0; r < rw; r++) {
                int tail = 0;
                for (int c = c0; c < C; c++)
                    tail += narrow_x(x, AS, t, c) * (int8_t)first[(size_t)r * w->ld + (size_t)c];
                sum[r * T + t][0] += (float)tail * x->scale[(size_t)t * x->ldscale + (size_t)((C - 1) / BLOCK)];
            }
}

// As in matmul_kernels.h: columns a panel at a time where there are several rows of x.
INLINE void NAME(rows_t)(float *out, size_t ldo, const float *base, size_t ldbase, const NarrowX *x, const Weights *w,
                         int j0, int T, int n, int C) {
    // rw * (T + 1) * PLANES + 1 registers, of 16 or 32, and one more where DOT is two instructions; for one or two rows
    // of x a single stream is fastest
    enum { IN_L1 = 32768, AHEAD = 8192 };
    const int rw = VW == 16 ? (T < 3 ? 1 : 4) : T == 3 || (T == 4 && ONE_DOT) ? 3 : 2;
    const int blocks = ceil_div(C, BLOCK), panels = T < 3 ? 1 : ceil_div(blocks, IN_L1 / (T * 2 * BLOCK));
    const int wide = ceil_div(blocks, panels) * BLOCK;
    for (int j = 0; j < n; j += BAND) {
        V sum[BAND * MOST];
        const int R = min_int(BAND, n - j);
        for (int i = 0; i < ceil_div(R, 4) * 4 * T; i++) sum[i] = (V){0};
        for (int from = 0; from < C; from += wide) {
            const int to = min_int(from + wide, C), rows_ahead = AHEAD / (to - from) + 1;
            for (int r = 0, step; r < R; r += step) {
                const int next = r + (rows_ahead > rw ? rows_ahead : rw);
                const uint8_t *const ahead = row_later(w, (size_t)(j0 + j), R, next, (size_t)from, (size_t)to);
                step = r + rw <= R ? rw : 1;
                if (step == rw) NAME(rows_rw)(sum + r * T, x, w, (size_t)(j0 + j + r), T, rw, from, to, ahead);
                else NAME(rows_rw)(sum + r * T, x, w, (size_t)(j0 + j + r), T, 1, from, to, ahead);
            }
        }
        NAME(finish)(out + j, ldo, base ? base + j : NULL, ldbase, sum, (const float *)w->scale + j0 + j, T, R);
    }
}

// Too many sums for the registers: slices of x, BAND rows of w staying in the cache for all.
INLINE void NAME(slices)(Rows *rows, float *out, size_t ldo, const float *base, size_t ldbase, const NarrowX *x,
                         const Weights *w, int j0, int T, int n, int C) {
    const int slice = ceil_div(T, ceil_div(T, MOST));
    for (int j = 0; j < n; j += BAND)
        for (int t = 0; t < T; t += slice) {
            const NarrowX part = {x->data + (size_t)t * x->ld, x->ld, x->low, x->scale + (size_t)t * x->ldscale,
                                  x->ldscale};
            rows(out + (size_t)t * ldo + j, ldo, base ? base + (size_t)t * ldbase + j : NULL, ldbase, &part, w, j0 + j,
                 min_int(slice, T - t), min_int(BAND, n - j), C);
        }
}

// A function for each, or else gcc 12 spills sums.
#define CASE(t) \
    static TARGET __attribute__((noinline)) void NAME(rows_##t)( \
        float *out, size_t ldo, const float *base, size_t ldbase, const NarrowX *x, const Weights *w, int j0, int n, \
        int C) { NAME(rows_t)(out, ldo, base, ldbase, x, w, j0, t, n, C); }
FEW_ROWS
#undef CASE

static TARGET void NAME(rows)(float *out, size_t ldo, const float *base, size_t ldbase, const NarrowX *x,
                              const Weights *w, int j0, int T, int n, int C) {
    if (T > MOST) {
        NAME(slices)(NAME(rows), out, ldo, base, ldbase, x, w, j0, T, n, C);
        return;
    }
#define CASE(t) case t: NAME(rows_##t)(out, ldo, base, ldbase, x, w, j0, n, C); break;
    switch (T) { FEW_ROWS }
#undef CASE
}

#include "matmul_int4.h"
#include "matmul_int4_blocks.h"
#endif

const Narrow NAME(narrow) = {
    AS, AS, MR, 2 * VW, BLOCK, true, FEW, NAME(tile),
#if FEW > 0
    NAME(convert), NAME(rows)
#else
    NULL, NULL
#endif
};

#undef V
#undef VI
#undef INLINE
#undef IS_BF16
#undef PLANES
#undef UNIT
#undef SUM
#undef AS_FLOAT
#undef DOT
#undef FMA
#undef HALVES
#undef SPREAD
#undef ONE_DOT
#undef ASM
#undef REG
#undef PAIRS
#undef KEEP
#undef NAME
#undef TARGET
#undef VW
#undef MR
#undef MR4
#undef FEW
#undef AS
