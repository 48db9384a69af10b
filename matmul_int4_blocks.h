// matmul_int4_blocks.h: many rows of x against int4 weights, in integers; a part of matmul_dot.h, compiled for each of
// its instructions.
//
// As tile() of matmul_dot.h, but a group of 32 columns has a scale of its own: its integer sums, exact and at most 2^23
// in magnitude (matmul_int4.h), become floats and are added to others, times the scale. 32 registers have room for both,
// MR4 rows by two vectors. With 16 (AVX2) the floats wait in memory and are read and written once a group, which has 16
// steps: faster than half as many rows of x. doc/tried.md has the figures.
//
//   a panel, group after group: the weights of 32 columns, as units of four bytes, (16 or 8,NR); their scales, (NR) f32
//
// Packing takes nibbles apart as they lie in the file, with no shuffles of columns; so with AS_INT16 the pairs of x are
// in the order that matmul_int4.h draws: c0 c2 .. c14 | c16 c18 .. c30 | c1 c3 .. c15 | c17 c19 .. c31.
//
// In order: conversion of x, tile(), what matmul.c chooses from.
// Not here: packing (pack_groups() of matmul_narrow.c, pack_groups_turned() of matmul_pack.h).

#define SUMS_WAIT (VW == 8)          // compilers would keep them in registers, and spill integers instead

// x (C) -> a row for rows() (AS_NIBBLES), or else for tile()
static TARGET void NAME(convert_int4)(uint8_t *row, size_t low, float *scale, const float *x, int C, int as) {
    if (as == AS_NIBBLES) {
        NAME(convert4)(row, scale, x, C);
        return;
    }
    NAME(convert)(row, low, scale, x, C, as);
#if AS == AS_INT16
    for (size_t at = 0; at < 2 * padded(C); at += 64) NAME(pairs4)(row + at, 16, row + at);
#endif
}

// ---------------------------------------------------------------------------------------------------------

INLINE void NAME(tile4_mr)(float *out, size_t ldo, const float *base, size_t ldbase, const NarrowX *x, const void *w,
                           Ahead *ahead, int mr, int n, int K) {
    enum { UNITS = 32 / UNIT, GROUP = (UNITS + 1) * 8 * VW };      // in a group, and its bytes
    V sum[MR4][2] __attribute__((aligned(64)));
    const int groups = (int)groups_of((size_t)K), rows = mr * PLANES;
#pragma GCC unroll 16
    for (int r = 0; r < mr; r++) sum[r][0] = sum[r][1] = (V){0};
    for (int from = 0; from < groups; from += AHEAD_STEPS / UNITS) {
        ask_ahead(ahead);
        const int to = min_int(from + AHEAD_STEPS / UNITS, groups);
        for (int g = from; g < to; g++) {
            const uint8_t *const packed = (const uint8_t *)w + (size_t)g * GROUP;
            const uint8_t *const xg = x->data + (size_t)g * UNITS * 4;
            SUM acc[MR4 * PLANES][2];
#pragma GCC unroll 16
            for (int r = 0; r < rows; r++) acc[r][0] = acc[r][1] = (SUM){0};
#pragma GCC unroll 1
            for (size_t k = 0; k < UNITS; k++) NAME(step)(acc, xg + 4 * k, packed + k * 8 * VW, rows);
            if (SUMS_WAIT) __asm__("" : "+m"(sum));
            const V s0 = *(const V *)(packed + UNITS * 8 * VW), s1 = *(const V *)(packed + UNITS * 8 * VW + 4 * VW);
#pragma GCC unroll 16
            for (int r = 0; r < mr; r++) {
                sum[r][0] = FMA(AS_FLOAT(NAME(whole)(acc, r, 0)), s0, sum[r][0]);
                sum[r][1] = FMA(AS_FLOAT(NAME(whole)(acc, r, 1)), s1, sum[r][1]);
            }
        }
    }
    float tile[MR4][2 * VW];
#pragma GCC unroll 16
    for (int r = 0; r < mr; r++) {
        const V s = x->scale[(size_t)r * x->ldscale] - (V){0}, a = sum[r][0] * s, b = sum[r][1] * s;
        if (n == 2 * VW) {
            *(V *)(out + r * ldo) = a + *(const V *)(base + r * ldbase);
            *(V *)(out + r * ldo + VW) = b + *(const V *)(base + r * ldbase + VW);
        } else {
            *(V *)tile[r] = a;
            *(V *)(tile[r] + VW) = b;
        }
    }
    if (n < 2 * VW)
        for (int r = 0; r < mr; r++)
            for (int j = 0; j < n; j++) out[r * ldo + j] = base[r * ldbase + j] + tile[r][j];
}

static TARGET void NAME(tile4)(float *out, size_t ldo, const float *base, size_t ldbase, const NarrowX *x,
                               const void *w, const float *wscale, Ahead *ahead, int mr, int n, int K) {
    (void)wscale;
#define CASE(m) case m: \
    if (m <= MR4) NAME(tile4_mr)(out, ldo, base, ldbase, x, w, ahead, m <= MR4 ? m : 1, n, K); \
    break;
    switch (mr) {
        CASE(1) CASE(2) CASE(3) CASE(4) CASE(5) CASE(6) CASE(7)
    }
#undef CASE
}

const Narrow NAME(narrow_int4) = {
    AS, AS_NIBBLES, MR4, 2 * VW, BLOCK, true, FEW, NAME(tile4), NAME(convert_int4), NAME(rows4)
};

#undef SUMS_WAIT
