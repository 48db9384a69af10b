// matmul_dot.h: inner loops made of dot products, written once and compiled for each instruction; a part of
// matmul_narrow.c.
//
// matmul_narrow.c includes this file several times after defining
//   NAME(f)       adds the suffix of the instruction to a function's name
//   TARGET        the attribute that switches the instruction set on for one function
//   VW            32-bit units in a vector
//   MR            rows of a tile (its width is two vectors)
//   FEW           most rows of x for rows(); 0: there is no rows()
//   AS            AS_...: what x is. A unit of four bytes holds two 16-bit elements, or with AS_BYTES four bytes
//   DOT(a,x,w)    a + the dot products of the units of x and w, lane by lane. x and w: VI, a: VI, or V for bf16; or
//   ASM, REG      an instruction that adds to %0 those of %1 and %2, and the constraint for its registers
//   PAIRS(p)      VI: 2 * VW int8 at p as 16-bit integers (AS_INT16)
//
// In order: vector types and what the instructions mean; tile(), for many rows of x; rows(), for a few.
// Not here: conversion of x, packing of w, blocking, threads.

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
#ifndef PAIRS
INLINE VI NAME(pairs)(const int8_t *p) {
    VI v = {0};
    for (int i = 0; i < VW; i++) v[i] = (int32_t)((uint32_t)(uint16_t)p[2 * i] | (uint32_t)p[2 * i + 1] << 16);
    return v;
}
#define PAIRS NAME(pairs)
#endif

// ---------------------------------------------------------------------------------------------------------
// All sums of a tile stay in registers, mr rows by two vectors by as many planes as x has.

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
        for (int k = from; k < to; k++) {
            const uint8_t *const wk = packed + (size_t)k * 8 * VW;
            const VI w0 = *(const NAME(vm) *)wk, w1 = *(const NAME(vm) *)(wk + 4 * VW);
#pragma GCC unroll 16
            for (int r = 0; r < rows; r++) {
                int32_t unit;
                memcpy(&unit, rows_of_x + (size_t)(r / PLANES * ROW_BYTES + r % PLANES * BLOCK) + 4 * (size_t)k, 4);
                const VI xr = unit - (VI){0};
                acc[r][0] = DOT(acc[r][0], xr, w0);
                acc[r][1] = DOT(acc[r][1], xr, w1);
            }
        }
    }
    float tile[MR][2 * VW], scales[2 * VW] = {0};
    for (int i = 0; !IS_BF16 && i < n; i++) scales[i] = wscale[i];
#pragma GCC unroll 16
    for (int r = 0; r < mr; r++) {
        SUM a = acc[r * PLANES][0], b = acc[r * PLANES][1];
        if (PLANES == 2) a = a * 256 + acc[r * PLANES + PLANES - 1][0], b = b * 256 + acc[r * PLANES + PLANES - 1][1];
        V va = AS_FLOAT(a), vb = AS_FLOAT(b);
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
INLINE void NAME(rows_rw)(float *out, size_t ldo, const float *base, size_t ldbase, const NarrowX *x, const Weights *w,
                          size_t j, int T, int rw, int C) {
    V sum[4][6];
    int tail[4][6];
    const uint8_t *const first = weight_at(w, j, 0), *const ahead = first + (size_t)rw * w->ld + 8192;
    for (int t = 0; t < T; t++)
        for (int r = 0; r < rw; r++) sum[r][t] = (V){0}, tail[r][t] = 0;
    for (int b = 0; b < C; b += BLOCK) {
        const int end = min_int(b + BLOCK, C);
        int c = b;
        VI acc[4][6 * PLANES];
#pragma GCC unroll 16
        for (int t = 0; t < T * PLANES; t++)
#pragma GCC unroll 16
            for (int r = 0; r < rw; r++) acc[r][t] = (VI){0};
        for (; c + UNIT * VW <= end; c += UNIT * VW) {
            VI wv[4];
#pragma GCC unroll 16
            for (int i = 0; i < rw * UNIT * VW; i += 64) __builtin_prefetch(ahead + (size_t)rw * (size_t)c + i, 0, 3);
#pragma GCC unroll 16
            for (int r = 0; r < rw; r++) {
                const uint8_t *p = first + (size_t)r * w->ld + c;
                wv[r] = UNIT == 4 ? (VI)*(const NAME(vm) *)p : PAIRS((const int8_t *)p);
            }
#pragma GCC unroll 16
            for (int t = 0; t < T * PLANES; t++) {
                const uint8_t *const row = x->data + (size_t)(t / PLANES) * x->ld + (size_t)(t % PLANES) * x->low;
                const VI xt = *(const NAME(vm) *)(row + (size_t)c * 4 / UNIT);
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
                sum[r][t] += __builtin_convertvector(a, V) * s;
            }
        }
        for (; c < end; c++)          // less than a vector, only behind the last block
            for (int t = 0; t < T; t++)
                for (int r = 0; r < rw; r++)
                    tail[r][t] += narrow_x(x, AS, t, c) * (int8_t)first[(size_t)r * w->ld + (size_t)c];
    }
    for (int t = 0; t < T; t++)
        for (int r = 0; r < rw; r++) {
            float lanes[VW];
            *(V *)lanes = sum[r][t];
            for (int h = VW / 2; h > 0; h /= 2)
                for (int i = 0; i < h; i++) lanes[i] += lanes[i + h];
            if (C > 0) lanes[0] += (float)tail[r][t] * x->scale[(size_t)t * x->ldscale + (size_t)((C - 1) / BLOCK)];
            out[t * ldo + r] = (base ? base[t * ldbase + r] : 0) + row_scale(w, j + (size_t)r) * lanes[0];
        }
}

INLINE void NAME(rows_t)(float *out, size_t ldo, const float *base, size_t ldbase, const NarrowX *x, const Weights *w,
                         int j0, int T, int n, int C) {
    // rw * (T + 1) * PLANES + 1 registers, of 16 or 32; for one or two rows of x a single stream is fastest
    const int rw = VW == 16 ? (T < 3 ? 1 : 4) : T == 3 || T == 4 ? 3 : 2;
    int j = 0;
    for (; j + rw <= n; j += rw)
        NAME(rows_rw)(out + j, ldo, base ? base + j : NULL, ldbase, x, w, (size_t)(j0 + j), T, rw, C);
    for (; j < n; j++) NAME(rows_rw)(out + j, ldo, base ? base + j : NULL, ldbase, x, w, (size_t)(j0 + j), T, 1, C);
}

static TARGET void NAME(rows)(float *out, size_t ldo, const float *base, size_t ldbase, const NarrowX *x,
                              const Weights *w, int j0, int T, int n, int C) {
    if (T > 6) {       // too many sums for the registers: slices of x, 16 rows of w staying in the cache for all
        const int slice = ceil_div(T, ceil_div(T, 6));
        for (int j = 0; j < n; j += 16)
            for (int t = 0; t < T; t += slice) {
                const NarrowX part = {x->data + (size_t)t * x->ld, x->ld, x->low, x->scale + (size_t)t * x->ldscale,
                                      x->ldscale};
                NAME(rows)(out + t * ldo + j, ldo, base ? base + t * ldbase + j : NULL, ldbase, &part, w, j0 + j,
                           min_int(slice, T - t), min_int(16, n - j), C);
            }
        return;
    }
#define CASE(t) case t: NAME(rows_t)(out, ldo, base, ldbase, x, w, j0, t, n, C); break;
    switch (T) { CASE(1) CASE(2) CASE(3) CASE(4) CASE(5) CASE(6) }
#undef CASE
}
#endif

const Narrow NAME(narrow) = {
    AS, AS, MR, 2 * VW, BLOCK, true, FEW, NAME(tile),
#if FEW > 0
    NAME(rows)
#else
    NULL
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
#undef ASM
#undef REG
#undef PAIRS
#undef NAME
#undef TARGET
#undef VW
#undef MR
#undef FEW
#undef AS
