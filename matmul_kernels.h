// matmul_kernels.h: the inner loops of matmul.c, written once and compiled for each instruction set.
//
// matmul_isa.h includes this file several times after defining
//   NAME(f)   adds the suffix of the instruction set to a function's name
//   TARGET    the attribute that switches the instruction set on for one function
//   VW        floats in a vector
//   MR        rows of a tile (its width is two vectors)
//   FEW       most rows of x for which rows() is faster than packing for tile()
// and, or else it is taken from matmul_twins.h,
//   FMA(a,b,c)   a * b + c on vectors
//   WIDEN(p), WIDEN8(p), LOW4(p), HIGH4(p)   VW weights at p as f32: bf16, int8, and nibbles less 8
//   HALF(p)      the f16 at p
//   PACK         another function than pack()
//
// In order: vector types and loads; tile(), the heart of the large products; rows(), for a few rows of x against a
// stream of weights; living(), the same for weights that lie on their side and rows of x that are mostly zero; pack(),
// which turns weights for tile(); living() for int8 (matmul_living.h); matmul_math.h. matmul.c draws the
// layouts and says when each is used, and holds the same functions in plain C.
// Not here: threads, blocking, the choice of an instruction set.

typedef float NAME(v) __attribute__((vector_size(4 * VW), aligned(4), may_alias));    // aligned like a float
#define V NAME(v)
#define INLINE static inline __attribute__((always_inline)) TARGET

INLINE V NAME(load)(const float *p) { return *(const V *)p; }
INLINE V NAME(splat)(float s) { return s - (V){0}; }

#include "matmul_twins.h"

// The sum of a vector's elements, always in the same order.
INLINE float NAME(sum)(V v) {
    float a[VW];
    *(V *)a = v;
    for (int w = VW / 2; w > 0; w /= 2)
        for (int i = 0; i < w; i++) a[i] += a[i + w];
    return a[0];
}

// ---------------------------------------------------------------------------------------------------------
// x (mr,K) with rows XS apart, w (K,2*VW) packed -> out (mr,n) = base + scale * x w. All mr x 2 sums stay in
// registers; each is a chain of K multiply-adds in order, whatever mr is.

INLINE void NAME(tile_mr)(float *out, size_t ldo, const float *base, size_t ldbase, float scale,
                          const float *x, const float *w, Ahead *ahead, int mr, int n, int K) {
    V acc[MR][2];
#pragma GCC unroll 16
    for (int r = 0; r < mr; r++) acc[r][0] = acc[r][1] = NAME(splat)(0);
    for (int from = 0; from < K; from += AHEAD_STEPS) {
        ask_ahead(ahead);
        const int to = min_int(from + AHEAD_STEPS, K);
        for (int k = from; k < to; k++) {
            V w0 = NAME(load)(w + (size_t)k * 2 * VW), w1 = NAME(load)(w + (size_t)k * 2 * VW + VW);
#pragma GCC unroll 16
            for (int r = 0; r < mr; r++) {
                V xr = NAME(splat)(x[r * XS + k]);
                acc[r][0] = FMA(xr, w0, acc[r][0]);
                acc[r][1] = FMA(xr, w1, acc[r][1]);
            }
        }
    }
    if (n == 2 * VW) {
        for (int r = 0; r < mr; r++)
            for (int h = 0; h < 2; h++)
                *(V *)(out + r * ldo + h * VW) = FMA(NAME(splat)(scale), acc[r][h],
                                                     NAME(load)(base + r * ldbase + h * VW));
        return;
    }
    float tile[MR][2 * VW];
#pragma GCC unroll 16
    for (int r = 0; r < mr; r++) {
        *(V *)tile[r] = acc[r][0];
        *(V *)(tile[r] + VW) = acc[r][1];
    }
    for (int r = 0; r < mr; r++)
        for (int j = 0; j < n; j++) out[r * ldo + j] = base[r * ldbase + j] + scale * tile[r][j];
}

static TARGET void NAME(tile)(float *out, size_t ldo, const float *base, size_t ldbase, float scale,
                              const float *x, const float *w, Ahead *ahead, int mr, int n, int K) {
#define CASE(m) case m: \
    if (m <= MR) NAME(tile_mr)(out, ldo, base, ldbase, scale, x, w, ahead, m <= MR ? m : 1, n, K); \
    break;
    switch (mr) {
        CASE(1) CASE(2) CASE(3) CASE(4) CASE(5) CASE(6) CASE(7) CASE(8) CASE(9) CASE(10) CASE(11) CASE(12) CASE(13)
        CASE(14)
    }
#undef CASE
}

// ---------------------------------------------------------------------------------------------------------
// x (T,C), w (n,C) -> out (T,n) = bias + scale * x w^T, w as it lies in the file: each weight is read once from memory
// and used for all T. Every sum goes over C in steps of a vector, then over the vector: the same order for any T and n.
//
// rw rows of w meet T <= SLICE rows of x at a time, so that loads are shared; but memory is fastest when it is read as
// one stream. So the rows come from the level 2 cache, and what is asked of memory, in order of address, is the same
// position of the next rw rows, AHEAD bytes on.

// Elements (r,c) to (r,c+VW-1) of w without their row's or group's scale; c is a multiple of VW.
INLINE V NAME(load_w)(const Weights *w, size_t r, size_t c, int dtype) {
    const uint8_t *p = weight_at(w, r, c);
    if (dtype == DT_F32) return NAME(load)((const float *)(const void *)p);
    if (dtype == DT_BF16) return WIDEN((const uint16_t *)(const void *)p);
    if (dtype == DT_INT8) return WIDEN8((const int8_t *)p);
    return c % 32 < 16 ? LOW4(p + c % 16) : HIGH4(p + c % 16);
}

// What element (r,c) is still to be multiplied with, in every lane: an INT4's scale.
INLINE V NAME(load_scale)(const Weights *w, size_t r, size_t c) {
    return NAME(splat)(HALF((const uint16_t *)w->scale + group_at(w, r, c)));
}

INLINE void NAME(rows_rw)(float *out, size_t ldo, const float *x, size_t ldx, const Weights *w, size_t j,
                          const float *base, size_t ldbase, float scale, int T, int rw, int C, int dtype) {
    V acc[4][SLICE], wv[4], sv[4];
#pragma GCC unroll 16
    for (int t = 0; t < T; t++)
#pragma GCC unroll 16
        for (int r = 0; r < rw; r++) acc[r][t] = NAME(splat)(0);
    const int unit = dtype == DT_INT4 ? 32 : VW;      // a scale is read once for its whole group
    const size_t step = (size_t)rw * (dtype == DT_INT4 ? 16 : VW * (dtype == DT_BF16 ? 2 : dtype == DT_INT8 ? 1 : 4));
    const char *ahead = (const char *)weight_at(w, j + (size_t)rw, 0) + AHEAD;
    int c = 0;
    for (; c + unit <= C; c += unit, ahead += step) {
#pragma GCC unroll 16
        for (size_t i = 0; i < step; i += 64) __builtin_prefetch(ahead + i, 0, 3);
#pragma GCC unroll 16
        for (int r = 0; dtype == DT_INT4 && r < rw; r++) sv[r] = NAME(load_scale)(w, j + (size_t)r, (size_t)c);
#pragma GCC unroll 8
        for (int i = c; i < c + unit; i += VW) {
#pragma GCC unroll 16
            for (int r = 0; r < rw; r++) {
                wv[r] = NAME(load_w)(w, j + (size_t)r, (size_t)i, dtype);
                if (dtype == DT_INT4) wv[r] *= sv[r];
            }
#pragma GCC unroll 16
            for (int t = 0; t < T; t++) {
                V xt = NAME(load)(x + t * ldx + i);
#pragma GCC unroll 16
                for (int r = 0; r < rw; r++) acc[r][t] = FMA(wv[r], xt, acc[r][t]);
            }
        }
    }
    for (int t = 0; t < T; t++)
        for (int r = 0; r < rw; r++) {
            float s = NAME(sum)(acc[r][t]);
            for (int i = c; i < C; i++) s += x[t * ldx + i] * weight(w, j + (size_t)r, (size_t)i);
            out[t * ldo + r] = (base ? base[t * ldbase + r] : 0) + scale * row_scale(w, j + (size_t)r) * s;
        }
}

INLINE void NAME(rows_t)(float *out, size_t ldo, const float *base, size_t ldbase, const float *x, size_t ldx,
                         const Weights *w, int j0, float scale, int T, int n, int C, int dtype) {
    // rw * (T + 1) + 1 registers, of 16 or 32; for one or two rows of x a single stream of weights is fastest.
    const int rw = VW == 16 ? (T < 3 ? 1 : 4) : T == 3 || T == 4 ? 3 : 2;
    int j = 0;
    for (; j + rw <= n; j += rw)
        NAME(rows_rw)(out + j, ldo, x, ldx, w, (size_t)(j0 + j), base ? base + j : NULL, ldbase, scale, T, rw, C,
                      dtype);
    for (; j < n; j++)
        NAME(rows_rw)(out + j, ldo, x, ldx, w, (size_t)(j0 + j), base ? base + j : NULL, ldbase, scale, T, 1, C,
                      dtype);
}

static TARGET void NAME(rows)(float *out, size_t ldo, const float *base, size_t ldbase, const float *x, size_t ldx,
                              const Weights *w, int j0, float scale, int T, int n, int C) {
    if (T > SLICE) {     // too many sums for the registers: even slices of x, 16 rows of w staying in the cache for all
        const int slice = ceil_div(T, ceil_div(T, SLICE));
        for (int j = 0; j < n; j += 16)
            for (int t = 0; t < T; t += slice)
                NAME(rows)(out + t * ldo + j, ldo, base ? base + t * ldbase + j : NULL, ldbase, x + t * ldx, ldx, w,
                           j0 + j, scale, min_int(slice, T - t), min_int(16, n - j), C);
        return;
    }
#define CASE(t, dtype) \
    case 4 * t + dtype: NAME(rows_t)(out, ldo, base, ldbase, x, ldx, w, j0, scale, t, n, C, dtype); break;
#define CASES(t) CASE(t, DT_F32) CASE(t, DT_BF16) CASE(t, DT_INT8) CASE(t, DT_INT4)
    switch (4 * T + w->dtype) { CASES(1) CASES(2) CASES(3) CASES(4) CASES(5) CASES(6) }
#undef CASES
#undef CASE
}

// ---------------------------------------------------------------------------------------------------------
// The sums of rows() from w turned, (C,ld): column c of x meets row c of w. In rows() lane c % VW of a vector adds up
// column c; here that lane is a row of sums, one for each output, so that outputs are what vectors run along.

INLINE void NAME(living_of)(float *out, size_t ldo, const float *x, size_t ldx, const Weights *w, int j,
                            const int *live, int n_live, int T, int n, float *lanes, int dtype) {
    const size_t N = (size_t)n, row_bytes = N * (dtype == DT_BF16 ? 2 : 4);
    memset(lanes, 0, (size_t)T * VW * N * sizeof *lanes);
    for (int i = 0; i < n_live; i++) {
        const size_t c = (size_t)live[i];
        if (i + 4 < n_live) {
            const char *ahead = (const char *)weight_at(w, (size_t)live[i + 4], (size_t)j);
            for (size_t o = 0; o < row_bytes; o += 64) __builtin_prefetch(ahead + o);
        }
        for (int t = 0; t < T; t++) {
            if (x[(size_t)t * ldx + c] == 0) continue;
            const V xt = NAME(splat)(x[(size_t)t * ldx + c]);
            float *sums = lanes + ((size_t)t * VW + c % VW) * N;
            for (size_t k = 0; k < N; k += VW)
                *(V *)(sums + k) = FMA(NAME(load_w)(w, c, (size_t)j + k, dtype), xt, NAME(load)(sums + k));
        }
    }
    for (int t = 0; t < T; t++)
        for (size_t k = 0; k < N; k += VW) {
            V s[VW];
            for (size_t l = 0; l < VW; l++) s[l] = NAME(load)(lanes + ((size_t)t * VW + l) * N + k);
            for (int h = VW / 2; h > 0; h /= 2)               // as in sum()
                for (int l = 0; l < h; l++) s[l] += s[l + h];
            *(V *)(out + t * ldo + k) += s[0];
        }
}

static TARGET void NAME(living)(float *out, size_t ldo, const float *x, size_t ldx, const Weights *w, int j,
                                const int *live, int n_live, int T, int n, float *lanes) {
    if (w->dtype == DT_BF16) NAME(living_of)(out, ldo, x, ldx, w, j, live, n_live, T, n, lanes, DT_BF16);
    else NAME(living_of)(out, ldo, x, ldx, w, j, live, n_live, T, n, lanes, DT_F32);
}

// ---------------------------------------------------------------------------------------------------------
// w (n,K) with rows ldw apart -> out (K,2*VW), columns n and up zero: squares of 4 x 4 are turned in registers.

#ifndef PACK
// Columns c to c+31 of row r, scaled; only the first n need to be there.
INLINE void NAME(unpack)(float *out, const Weights *w, size_t r, size_t c, int n) {
    const V scale = w->dtype == DT_INT4 ? NAME(load_scale)(w, r, c) : NAME(splat)(row_scale(w, r));
    for (int i = 0; i < 32; i += VW)
        if (w->dtype == DT_INT4) *(V *)(out + i) = NAME(load_w)(w, r, c + (size_t)i, DT_INT4) * scale;
        else if (i + VW <= n) *(V *)(out + i) = NAME(load_w)(w, r, c + (size_t)i, DT_INT8) * scale;
        else for (int k = i; k < n; k++) out[k] = weight(w, r, c + (size_t)k) * scale[0];
}

static TARGET void NAME(pack)(float *out, const Weights *w, int j0, int n, int k0, int K) {
    const int N = 2 * VW;
    const bool direct = w->dtype == DT_F32 || w->dtype == DT_BF16;
    float row[4][32] = {{0}};
    int j = 0;
    for (; j + 4 <= n; j += 4) {
        for (int i = j0 + j + 4; i < j0 + j + 8; i++)         // the next four rows, from the level 2 cache
            for (size_t o = 0; o < bytes_of(w, (size_t)K); o += 64)
                __builtin_prefetch(weight_at(w, (size_t)i, (size_t)k0) + o);
        const size_t r = (size_t)(j0 + j);
        int k = 0;
        for (; k + 4 <= K; k += 4) {
            const size_t i = (size_t)(k0 + k);
            float4 a, b, c, d;
            if (direct) {
                a = load4(w, r, i, w->dtype),     b = load4(w, r + 1, i, w->dtype);
                c = load4(w, r + 2, i, w->dtype), d = load4(w, r + 3, i, w->dtype);
            } else {
                for (size_t q = 0; k % 32 == 0 && q < 4; q++) NAME(unpack)(row[q], w, r + q, i, K - k);
                a = *(float4 *)(row[0] + k % 32), b = *(float4 *)(row[1] + k % 32);
                c = *(float4 *)(row[2] + k % 32), d = *(float4 *)(row[3] + k % 32);
            }
            float4 ab = SHUFFLE(a, b, 0, 4, 1, 5), cd = SHUFFLE(c, d, 0, 4, 1, 5);     // a0 b0 a1 b1, c0 d0 c1 d1
            float4 AB = SHUFFLE(a, b, 2, 6, 3, 7), CD = SHUFFLE(c, d, 2, 6, 3, 7);     // a2 b2 a3 b3, c2 d2 c3 d3
            float *o = out + (size_t)k * N + j;
            *(float4 *)o = SHUFFLE(ab, cd, 0, 1, 4, 5);
            *(float4 *)(o + N) = SHUFFLE(ab, cd, 2, 3, 6, 7);
            *(float4 *)(o + 2 * N) = SHUFFLE(AB, CD, 0, 1, 4, 5);
            *(float4 *)(o + 3 * N) = SHUFFLE(AB, CD, 2, 3, 6, 7);
        }
        for (; k < K; k++)
            for (size_t i = 0; i < 4; i++)
                out[(size_t)k * N + j + i] = weight(w, r + i, (size_t)(k0 + k)) * row_scale(w, r + i);
    }
    for (; j < N; j++)
        for (int k = 0; k < K; k++)
            out[(size_t)k * N + j] = j < n ? weight(w, (size_t)(j0 + j), (size_t)(k0 + k)) *
                                             row_scale(w, (size_t)(j0 + j)) : 0;
}
#define PACK NAME(pack)
#endif

#include "matmul_living.h"
#include "matmul_math.h"

static const Loops NAME(loops) = {
    MR, 2 * VW, FEW, NAME(tile), NAME(rows), PACK, NAME(activate), NAME(softmax), NAME(norm),
    NAME(scores), NAME(mix), VW, NAME(living), NAME(living8)
};

#undef PACK
#undef V
#undef INLINE
#undef NAME
#undef TARGET
#undef VW
#undef MR
#undef FEW
#undef FMA
#undef WIDEN
#undef WIDEN8
#undef LOW4
#undef HIGH4
#undef HALF
