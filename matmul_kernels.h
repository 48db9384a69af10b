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
//   KEEP(v)      a vector stays in its register: or else gcc loads it again for each use where registers are few
//   PACK         another function than pack()
//
// In order: vector types and loads; tile(), the heart of the large products; rows(), for a few rows of x against a
// stream of weights, and arrange(), which puts x in order for it; living(), the same for weights that lie on their side
// and rows of x that are mostly zero, and for int8 in matmul_living.h; pack(), which turns weights for tile();
// matmul_math.h. matmul.c draws the layouts and says when each is used, and holds the same functions in plain C.
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
// x (T,C), w (n,C) -> out (T,n) = base + x w^T, w as it lies in the file: each weight is read once from memory and used
// for all T. Columns come in units of 32, UNIT, and x is put into this order once for each product, so that one pointer
// finds all of it (zeros behind C):
//
//   x   unit 0: | VW columns of row 0 | of row 1 | ... | of row T-1 | the next VW of row 0 | ...   unit 1: ...
//
// A bf16 is the upper half of an f32, and two of them lie in 32 bits: a shift makes f32 of the even columns of a vector
// of pairs, a mask of the odd ones. So against bf16 each 2 * VW columns of x lie apart as well, here for VW = 4. Not
// with AVX-512 (SPLIT): memory is the limit there, and columns stay in the order in which f32 adds them up.
//
//   w   | c0 c1 | c2 c3 | c4 c5 | c6 c7 |      x   | c0 c2 c4 c6 | c1 c3 c5 c7 |
//
// Every sum goes over C in steps of a vector, then over the vector: the same order for any T and n, whatever follows.
// The sums of rw rows of w and T <= SLICE rows of x are in registers, so that each vector of x or w that is loaded is
// used several times. With more than two rows of x, columns are taken a panel at a time, for which x stays in the level
// 1 cache; the sums of a band of rows of w wait in memory meanwhile. More rows of x than SLICE are several slices, each
// arranged by itself, for which a panel of a band comes from the level 2 cache again.
//
//    a band of w    panel 0   panel 1    ...
//                 +---------+---------+--
//            rw   |    1    |    9    |        The order in which it is read; what comes AHEAD bytes later is asked of
//                 +---------+---------+--      memory meanwhile, line after line.
//            rw   |    2    |   10    |
//                 +---------+---------+--
//                 |   ...   |   ...   |

#define SPLIT(dtype) ((dtype) == DT_BF16 && VW < 16)

// Vector number v of a unit at p, without its row's or group's scale, in the order of x.
INLINE V NAME(load_w)(const uint8_t *p, int v, int dtype) {
    typedef uint32_t Bits __attribute__((vector_size(4 * VW), aligned(1), may_alias));
    const int c = v * VW;
    if (dtype == DT_F32) return NAME(load)((const float *)(const void *)p + c);
    if (dtype == DT_INT8) return WIDEN8((const int8_t *)p + c);
    if (dtype == DT_INT4) return c < 16 ? LOW4(p + c % 16) : HIGH4(p + c % 16);
    if (!SPLIT(dtype)) return WIDEN((const uint16_t *)(const void *)p + c);
    const Bits pairs = *(const Bits *)(p + v / 2 * 4 * VW);
    return v % 2 ? (V)(pairs & 0xFFFF0000) : (V)(pairs << 16);
}

// x (C) -> its place as row t of T.
static TARGET void NAME(arrange)(float *out, const float *x, int t, int T, int C, int dtype) {
    const int slice = slice_of(T), first = t / slice * slice, n = min_int(slice, T - first);
    out += (size_t)first * (size_t)(ceil_div(C, UNIT) * UNIT) + (size_t)(t - first) * VW;
    for (int u = 0; u < C; u += UNIT, out += n * UNIT) {
        float rest[UNIT] = {0};
        const float *p = x + u;
        if (u + UNIT > C) memcpy(rest, p, (size_t)(C - u) * sizeof *p), p = rest;
        if (!SPLIT(dtype)) for (int c = 0; c < UNIT; c += VW) memcpy(out + c * n, p + c, VW * sizeof *p);
        else for (int c = 0; c < UNIT; c += 8) {
            const float4 a = *(const float4 *)(p + c), b = *(const float4 *)(p + c + 4);
            float *even = out + c / (2 * VW) * (2 * VW * n) + c % (2 * VW) / 2;
            *(float4 *)even = SHUFFLE(a, b, 0, 2, 4, 6);
            *(float4 *)(even + VW * n) = SHUFFLE(a, b, 1, 3, 5, 7);
        }
    }
}

// One unit of rw rows, at p, times T rows of x: added to acc.
INLINE void NAME(unit)(V acc[4][SLICE], const float *x, const uint8_t *const p[4], const uint16_t *const scale[4],
                       int T, int rw, int dtype) {
    V sv[4];
#pragma GCC unroll 16
    for (int r = 0; dtype == DT_INT4 && r < rw; r++) sv[r] = NAME(splat)(HALF(scale[r]));
#pragma GCC unroll 16
    for (int v = 0; v < UNIT / VW; v++) {
        V wv[4];
#pragma GCC unroll 16
        for (int r = 0; r < rw; r++) {
            wv[r] = NAME(load_w)(p[r], v, dtype);
            if (dtype == DT_INT4) wv[r] *= sv[r];
        }
#pragma GCC unroll 16
        for (int t = 0; t < T; t++) {
            V xt = NAME(load)(x + (v * T + t) * VW);
            if (rw > 1) KEEP(xt);
#pragma GCC unroll 16
            for (int r = 0; r < rw; r++) acc[r][t] = FMA(wv[r], xt, acc[r][t]);
        }
    }
}

// Rows j .. j+rw of w, units from .. to of their columns, times T rows of x, are added to sum (rw,apart). Meanwhile as
// much is asked of memory that begins at `ahead`, line after line.
INLINE void NAME(rows_rw)(V *sum, size_t apart, const float *x, const Weights *w, size_t j, int T, int rw,
                          int from, int to, const uint8_t *ahead, int dtype) {
    const size_t bytes = columns_bytes(dtype, UNIT), row_bytes = bytes_of(w, w->ld);
    const uint8_t *p[4];
    const uint16_t *scale[4] = {NULL};
    V acc[4][SLICE];
#pragma GCC unroll 16
    for (int r = 0; r < rw; r++) {
        p[r] = weight_at(w, j + (size_t)r, (size_t)from * UNIT);
        if (dtype == DT_INT4) scale[r] = (const uint16_t *)w->scale + group_at(w, j + (size_t)r, (size_t)from * UNIT);
#pragma GCC unroll 16
        for (int t = 0; t < T; t++) acc[r][t] = sum[(size_t)r * apart + (size_t)t];
    }
    const int whole = dtype == DT_INT4 ? to : min_int(to, (int)(w->ld / UNIT));
    int u = from;
    for (int part = 0; part < rw; part++, ahead += row_bytes) {
        const uint8_t *line = ahead;
        for (const int end = from + (whole - from) * (part + 1) / rw; u < end; u++, line += (size_t)rw * bytes) {
            #pragma GCC unroll 16
            for (size_t i = 0; i < (size_t)rw * bytes; i += 64) __builtin_prefetch(line + i, 0, 3);
            NAME(unit)(acc, x, p, scale, T, rw, dtype);
            x += T * UNIT;
#pragma GCC unroll 16
            for (int r = 0; r < rw; r++) {
                p[r] += bytes;
                if (dtype == DT_INT4) scale[r]++;
            }
        }
    }
    if (whole < to) {               // nothing behind a row may be read
        uint8_t rest[4][4 * UNIT] = {{0}};
        for (int r = 0; r < rw; r++) {
            memcpy(rest[r], p[r], bytes_of(w, w->ld % UNIT));
            p[r] = rest[r];
        }
        NAME(unit)(acc, x, p, scale, T, rw, dtype);
    }
#pragma GCC unroll 16
    for (int r = 0; r < rw; r++)
#pragma GCC unroll 16
        for (int t = 0; t < T; t++) sum[(size_t)r * apart + (size_t)t] = acc[r][t];
}

// Rows j .. j+R of w. rw * T sums, a vector of x or of each row of w, and a mask: 16 or 32 registers.
INLINE void NAME(rows_t)(V *sum, size_t apart, const float *x, const Weights *w, size_t j, int T, int R, int from,
                         int to, int dtype) {
    const int rw = VW == 16 ? (T < 3 ? 1 : dtype == DT_F32 ? 2 : 4) : T == 3 ? 3 : 2;
    const int rows_ahead = (int)(AHEAD / bytes_of(w, (size_t)(to - from) * UNIT)) + 1;
    for (int r = 0, step; r < R; r += step) {
        const int next = r + (rows_ahead > rw ? rows_ahead : rw);
        const uint8_t *const ahead = row_later(w, j, R, next, (size_t)from * UNIT, (size_t)to * UNIT);
        V *const s = sum + (size_t)r * apart;
        step = r + rw <= R ? rw : 1;
        if (step == rw) NAME(rows_rw)(s, apart, x, w, j + (size_t)r, T, rw, from, to, ahead, dtype);
        else NAME(rows_rw)(s, apart, x, w, j + (size_t)r, T, 1, from, to, ahead, dtype);
    }
}

// A function for each, or else gcc 12 mixes them up and spills sums.
#define CASE(t, dtype) \
    static TARGET __attribute__((noinline)) void NAME(rows_##t##dtype)( \
        V *sum, size_t apart, const float *x, const Weights *w, size_t j, int R, int from, int to) { \
        NAME(rows_t)(sum, apart, x, w, j, t, R, from, to, dtype); \
    }
#define CASES(t) CASE(t, DT_F32) CASE(t, DT_BF16) CASE(t, DT_INT8) CASE(t, DT_INT4)
CASES(1) CASES(2) CASES(3) CASES(4) CASES(5) CASES(6)
#undef CASE

// sum (4,T) -> out (T,4) = base (T,4) + scale (4) * sum, or n of the 4; lanes are added in the order of sum()
INLINE void NAME(finish4)(float *out, size_t ldo, const float *base, size_t ldbase, const V *sum, const float *scale,
                          int T, int n) {
    for (size_t t = 0; t < (size_t)T; t++) {
        float4 four[4];
#pragma GCC unroll 4
        for (size_t r = 0; r < 4; r++) {
            float4 part[VW / 4];
            memcpy(part, sum + r * (size_t)T + t, sizeof part);
#pragma GCC unroll 4
            for (int h = VW / 8; h > 0; h /= 2)
#pragma GCC unroll 4
                for (int i = 0; i < h; i++) part[i] += part[i + h];
            four[r] = part[0];
        }
        const float4 ab = SHUFFLE(four[0], four[1], 0, 4, 1, 5) + SHUFFLE(four[0], four[1], 2, 6, 3, 7);
        const float4 cd = SHUFFLE(four[2], four[3], 0, 4, 1, 5) + SHUFFLE(four[2], four[3], 2, 6, 3, 7);
        float4 all = SHUFFLE(ab, cd, 0, 1, 4, 5) + SHUFFLE(ab, cd, 2, 3, 6, 7);
        for (int r = 0; scale && r < n; r++) all[r] *= scale[r];
        if (n == 4) *(float4 *)(out + t * ldo) = base ? (float4)(all + *(const float4 *)(base + t * ldbase)) : all;
        else for (size_t r = 0; r < (size_t)n; r++) out[t * ldo + r] = (base ? base[t * ldbase + r] : 0) + all[r];
    }
}

static TARGET void NAME(rows)(float *out, size_t ldo, const float *base, size_t ldbase, const float *x,
                              const Weights *w, int j0, int T, int n) {
    const int units = ceil_div((int)w->ld, UNIT), slice = slice_of(T);
    // one or two rows of x are quickly read from the level 2 cache, and memory is fastest when w is one stream
    const int panels = T < 3 || units == 0 ? 1 : ceil_div(units, X_IN_L1 / (slice * UNIT * 4));
    const int wide = ceil_div(units, panels);
    for (int j = 0; j < n; j += BAND) {
        V sum[BAND * FEW];
        const int R = min_int(BAND, n - j);
        for (int i = 0; i < ceil_div(R, 4) * 4 * T; i++) sum[i] = NAME(splat)(0);
        for (int from = 0; from < units; from += wide)
            for (int t = 0; t < T; t += slice) {
                const int n_t = min_int(slice, T - t), to = min_int(from + wide, units);
                const float *const xt = x + (size_t)(t * units + from * n_t) * UNIT;
#define CASE(t_, dtype) case 4 * t_ + dtype: \
    NAME(rows_##t_##dtype)(sum + t, (size_t)T, xt, w, (size_t)(j0 + j), R, from, to); break;
                switch (4 * n_t + w->dtype) {
                    CASES(1) CASES(2) CASES(3) CASES(4) CASES(5) CASES(6)
                }
#undef CASE
            }
        for (int r = 0; r < R; r += 4)
            NAME(finish4)(out + j + r, ldo, base ? base + j + r : NULL, ldbase, sum + r * T,
                          w->dtype == DT_INT8 ? (const float *)w->scale + j0 + j + r : NULL, T, min_int(4, R - r));
    }
}
#undef CASES

// ---------------------------------------------------------------------------------------------------------
// The sums of rows() from w turned, (C,ld): column c of x meets row c of w. In rows() one lane of a vector adds up
// column c, with bf16 the same for c and its neighbour; here that lane is a row of sums, one for each output, so that
// outputs are what vectors run along.

// Elements (r,c) to (r,c+VW-1) of an F32 or BF16, in order.
INLINE V NAME(load_f)(const Weights *w, size_t r, size_t c, int dtype) {
    const void *p = weight_at(w, r, c);
    return dtype == DT_F32 ? NAME(load)(p) : WIDEN((const uint16_t *)p);
}

INLINE void NAME(living_of)(float *out, size_t ldo, const float *x, size_t ldx, const Weights *w, int j,
                            const int *live, int n_live, int T, int n, float *lanes, int dtype) {
    const size_t N = (size_t)n, row_bytes = columns_bytes(dtype, N);
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
            float *sums = lanes + ((size_t)t * VW + (SPLIT(dtype) ? c % (2 * VW) / 2 : c % VW)) * N;
            for (size_t k = 0; k < N; k += VW)
                *(V *)(sums + k) = FMA(NAME(load_f)(w, c, (size_t)j + k, dtype), xt, NAME(load)(sums + k));
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
    const V scale = NAME(splat)(w->dtype == DT_INT4 ? HALF((const uint16_t *)w->scale + group_at(w, r, c)) :
                                row_scale(w, r));
    for (int i = 0; i < 32; i += VW)
        if (w->dtype == DT_INT4) *(V *)(out + i) = NAME(load_w)(weight_at(w, r, c), i / VW, DT_INT4) * scale;
        else if (i + VW <= n) *(V *)(out + i) = NAME(load_w)(weight_at(w, r, c), i / VW, DT_INT8) * scale;
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
    MR, 2 * VW, FEW, NAME(tile), NAME(arrange), NAME(rows), PACK, NAME(activate), NAME(softmax), NAME(norm),
    NAME(scores), NAME(mix), VW, NAME(living), NAME(living8)
};

#undef PACK
#undef V
#undef INLINE
#undef NAME
#undef TARGET
#undef VW
#undef KEEP
#undef SPLIT
#undef MR
#undef FEW
#undef FMA
#undef WIDEN
#undef WIDEN8
#undef LOW4
#undef HIGH4
#undef HALF
