// matmul_pack.h: weights turned on their side, sixteen rows at a time, for processors with vectors of 64 bytes.
//
// In order: vectors, loads of part of a row, the turn of 16 rows by 16 units of four bytes, what a turned unit is as
// floats, as pairs of 16-bit integers or as it stands.
// A unit holds one f32, two bf16, four int8 or eight nibbles of one row (doc/format.md); 64 bytes of a row are 16.
// Turned, a vector holds the same unit of sixteen rows, and the steps from there to numbers take no shuffles at all.
// It is plain C on vectors, so it is its own twin; used under AVX-512 only: with less it would be slow.
// Not here: processors with smaller vectors (pack() of matmul_kernels.h, pack_units() of matmul_narrow.c).
#ifndef MATMUL_PACK_H
#define MATMUL_PACK_H

#include "matmul_weights.h"

#ifdef MATMUL_TWINS
#define PACK_TARGET
#pragma GCC diagnostic ignored "-Wpsabi"      // wide vectors are passed, but only to what is inlined
#else
#define PACK_TARGET __attribute__((target("avx2,fma,f16c,avx512f,avx512vl,avx512bw,avx512dq")))
#endif
#define PACK_INLINE static inline __attribute__((always_inline)) PACK_TARGET

typedef int32_t Units __attribute__((vector_size(64)));                              // one unit of each of 16 rows
typedef int32_t UnitsAt __attribute__((vector_size(64), aligned(1), may_alias));     // 16 units of one row
typedef uint32_t UnitsBits __attribute__((vector_size(64)));
typedef int16_t UnitsShort __attribute__((vector_size(64)));
typedef uint16_t UnitsShortBits __attribute__((vector_size(64)));
typedef float UnitsFloat __attribute__((vector_size(64)));
typedef float UnitsFloatAt __attribute__((vector_size(64), aligned(4), may_alias));

#define PICK(a, b, ...) SHUFFLE_BY(Units, a, b, __VA_ARGS__)
#define LOW32(a, b) PICK(a, b, 0, 16, 1, 17, 4, 20, 5, 21, 8, 24, 9, 25, 12, 28, 13, 29)
#define HIGH32(a, b) PICK(a, b, 2, 18, 3, 19, 6, 22, 7, 23, 10, 26, 11, 27, 14, 30, 15, 31)
#define LOW64(a, b) PICK(a, b, 0, 1, 16, 17, 4, 5, 20, 21, 8, 9, 24, 25, 12, 13, 28, 29)
#define HIGH64(a, b) PICK(a, b, 2, 3, 18, 19, 6, 7, 22, 23, 10, 11, 26, 27, 14, 15, 30, 31)
#define FRONT(a, b) PICK(a, b, 0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23)
#define BACK(a, b) PICK(a, b, 8, 9, 10, 11, 12, 13, 14, 15, 24, 25, 26, 27, 28, 29, 30, 31)
#define EVEN(a, b) PICK(a, b, 0, 1, 2, 3, 8, 9, 10, 11, 16, 17, 18, 19, 24, 25, 26, 27)
#define ODD(a, b) PICK(a, b, 4, 5, 6, 7, 12, 13, 14, 15, 20, 21, 22, 23, 28, 29, 30, 31)

PACK_INLINE UnitsFloat floats_of_halves(const uint16_t h[16]) {
#ifdef MATMUL_TWINS
    UnitsFloat v = {0};
    for (int i = 0; i < 16; i++) v[i] = half_to_float(h[i]);
    return v;
#else
    return (UnitsFloat)_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)(const void *)h));
#endif
}

// Columns in 64 bytes of a row.
static inline int columns_in_64(int dtype) {
    return dtype == DT_F32 ? 16 : dtype == DT_BF16 ? 32 : dtype == DT_INT8 ? 64 : 128;
}

// 16 units of 16 rows -> unit i of each row in u[i].
PACK_INLINE void turn16(Units u[16], const Units r[16]) {
    Units c[16];
#pragma GCC unroll 4
    for (int q = 0; q < 16; q += 4) {        // 128 bits number L of c[q+i]: unit 4 L + i of rows q to q+3
        const Units a = LOW32(r[q], r[q + 1]), b = HIGH32(r[q], r[q + 1]);
        const Units d = LOW32(r[q + 2], r[q + 3]), e = HIGH32(r[q + 2], r[q + 3]);
        c[q] = LOW64(a, d), c[q + 1] = HIGH64(a, d), c[q + 2] = LOW64(b, e), c[q + 3] = HIGH64(b, e);
    }
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++) {
        const Units a = FRONT(c[i], c[4 + i]), b = BACK(c[i], c[4 + i]);
        const Units d = FRONT(c[8 + i], c[12 + i]), e = BACK(c[8 + i], c[12 + i]);
        u[i] = EVEN(a, d), u[4 + i] = ODD(a, d), u[8 + i] = EVEN(b, e), u[12 + i] = ODD(b, e);
    }
}

// Rows j .. j+n (n <= 16), their 64 bytes from column k on, `left` columns of which are there -> u[unit], a lane for
// each row; zero where there is nothing.
PACK_INLINE void turn(Units u[16], const Weights *w, size_t j, int n, size_t k, int left) {
    const size_t bytes = bytes_of(w, (size_t)left);
    Units r[16];
    if (n == 16 && bytes >= 64) {
#pragma GCC unroll 16
        for (size_t i = 0; i < 16; i++) r[i] = (Units)*(const UnitsAt *)weight_at(w, j + i, k);
    } else {
        for (int i = 0; i < 16; i++) {
            r[i] = (Units){0};
            if (i < n) memcpy(&r[i], weight_at(w, j + (size_t)i, k), bytes < 64 ? bytes : 64);
        }
    }
    turn16(u, r);
}

// The scales of 16 rows: an INT8's, or an INT4's of the group that column k is in. 0 where there are none.
PACK_INLINE UnitsFloat scales_of(const Weights *w, size_t j, int n, size_t k) {
    uint16_t half[16] = {0};
    float s[16] = {0};
    for (int i = 0; i < n; i++)
        if (w->dtype == DT_INT4) half[i] = ((const uint16_t *)w->scale)[group_at(w, j + (size_t)i, k)];
        else s[i] = row_scale(w, j + (size_t)i);
    if (w->dtype == DT_INT4) return floats_of_halves(half);
    return *(UnitsFloatAt *)s;
}

// ---------------------------------------------------------------------------------------------------------
// w -> out (K,32) floats: as pack() of Loops (matmul.c), columns n and up zero.

PACK_INLINE void floats16(float *out, const Weights *w, size_t j, int n, int k0, int K, int dtype) {
    const int columns = columns_in_64(dtype);
    const UnitsFloat of_rows = dtype == DT_INT8 ? scales_of(w, j, n, 0) : (UnitsFloat){0};
    for (int k = 0; k < K; k += columns) {
        const int left = min_int(K - k, columns);
        float *o = out + (size_t)k * 32;
        Units u[16];
        turn(u, w, j, n, (size_t)(k0 + k), left);
#define PUT(c, v) if ((c) < left) *(UnitsFloatAt *)(o + (c) * 32) = (UnitsFloatAt)(v)
#pragma GCC unroll 16
        for (int i = 0; i < 16; i++) {
            if (dtype == DT_F32) PUT(i, u[i]);
            if (dtype == DT_BF16) {
                PUT(2 * i, (UnitsBits)u[i] << 16);
                PUT(2 * i + 1, (UnitsBits)u[i] & 0xFFFF0000);
            }
            for (int e = 0; dtype == DT_INT8 && e < 4; e++) {
                const Units q = (Units)((UnitsBits)u[i] << (24 - 8 * e)) >> 24;
                PUT(4 * i + e, __builtin_convertvector(q, UnitsFloat) * of_rows);
            }
        }
        for (int g = 0; dtype == DT_INT4 && 32 * g < left; g++) {
            const UnitsFloat s = scales_of(w, j, n, (size_t)(k0 + k + 32 * g));
#pragma GCC unroll 32
            for (int c = 0; c < 32; c++) {
                const Units q = (Units)((UnitsBits)u[4 * g + c % 16 / 4] >> (c % 4 * 8 + c / 16 * 4) & 15) - 8;
                PUT(32 * g + c, __builtin_convertvector(q, UnitsFloat) * s);
            }
        }
#undef PUT
    }
}

static inline PACK_TARGET void pack_floats(float *out, const Weights *w, int j, int n, int k, int K) {
    for (int h = 0; h < 32; h += 16) {
        const int m = n - h < 0 ? 0 : min_int(n - h, 16);
        const size_t r = (size_t)(j + h);
        if (w->dtype == DT_F32) floats16(out + h, w, r, m, k, K, DT_F32);
        else if (w->dtype == DT_BF16) floats16(out + h, w, r, m, k, K, DT_BF16);
        else if (w->dtype == DT_INT8) floats16(out + h, w, r, m, k, K, DT_INT8);
        else floats16(out + h, w, r, m, k, K, DT_INT4);
    }
}

// ---------------------------------------------------------------------------------------------------------
// w, bf16 or int8 -> out (K/unit,32) units of four bytes, zero behind n, and behind K up to a multiple of 64: as
// pack_units() (matmul_narrow.c).

PACK_INLINE void units16(int32_t *out, const Weights *w, size_t j, int n, int k0, int K, int dtype, bool widen) {
    const int columns = columns_in_64(dtype);
    for (int k = 0; k < (K + 63) / 64 * 64; k += columns) {
        Units u[16];
        turn(u, w, j, n, (size_t)(k0 + k), k < K ? min_int(K - k, columns) : 0);
#pragma GCC unroll 16
        for (int i = 0; i < 16; i++) {
            if (!widen) {
                *(UnitsAt *)(out + i * 32) = (UnitsAt)u[i];
                continue;
            }
            // the even bytes and the odd ones as 16-bit integers; then both halves of the unit as pairs
            const Units even = (Units)((UnitsShort)((UnitsShortBits)u[i] << 8) >> 8);
            const Units odd = (Units)((UnitsShort)u[i] >> 8);
            *(UnitsAt *)(out + i * 64) = (UnitsAt)((even & 0xFFFF) | (Units)((UnitsBits)odd << 16));
            *(UnitsAt *)(out + i * 64 + 32) = (UnitsAt)((Units)((UnitsBits)even >> 16) | (odd & -0x10000));
        }
        out += widen ? 1024 : 512;
    }
}

static inline PACK_TARGET void pack_turned(void *out, const Weights *w, int j, int n, int k, int K, bool widen) {
    for (int h = 0; h < 32; h += 16) {
        const int m = n - h < 0 ? 0 : min_int(n - h, 16);
        int32_t *const o = (int32_t *)out + h;
        if (w->dtype == DT_BF16) units16(o, w, (size_t)(j + h), m, k, K, DT_BF16, false);
        else if (widen) units16(o, w, (size_t)(j + h), m, k, K, DT_INT8, true);
        else units16(o, w, (size_t)(j + h), m, k, K, DT_INT8, false);
    }
}

// int4 -> for each group of 32 columns 16 units of pairs and the scales, 32 each: as pack_groups() (matmul_narrow.c).
PACK_INLINE void groups16(int32_t *out, const Weights *w, size_t j, int n, int k0, int K) {
    const size_t groups = groups_of((size_t)K);
    Units s[16], u[16];
    for (size_t i = 0; i < 16; i++) {
        uint16_t half[16] = {0};
        const uint16_t *const scale = (const uint16_t *)w->scale + group_at(w, j + i, (size_t)k0);
        if ((int)i < n && groups == 16) memcpy(half, scale, 32);
        else if ((int)i < n) memcpy(half, scale, 2 * groups);
        s[i] = (Units)floats_of_halves(half);
    }
    turn16(s, s);
    for (size_t g = 0; g < groups; g++) *(UnitsAt *)(out + g * (17 * 32) + 16 * 32) = (UnitsAt)s[g];
    for (int k = 0; k < K; k += 128) {
        turn(u, w, j, n, (size_t)(k0 + k), min_int(K - k, 128));
#pragma GCC unroll 16
        for (int i = 0; i < 16; i++) {        // less 8, a nibble is a signed number of four bits
            const UnitsShort t = (UnitsShort)(u[i] ^ (int32_t)0x88888888);
            int32_t *const o = out + (k / 32 + i / 4) * (17 * 32) + i % 4 * 32;
            if (k + i / 4 * 32 >= K) break;
            *(UnitsAt *)o = (UnitsAt)(t << 12 >> 12);
            *(UnitsAt *)(o + 4 * 32) = (UnitsAt)(t << 8 >> 12);
            *(UnitsAt *)(o + 8 * 32) = (UnitsAt)(t << 4 >> 12);
            *(UnitsAt *)(o + 12 * 32) = (UnitsAt)(t >> 12);
        }
    }
}

static inline PACK_TARGET void pack_groups_turned(void *out, const Weights *w, int j, int n, int k, int K) {
    for (int h = 0; h < 32; h += 16)
        groups16((int32_t *)out + h, w, (size_t)(j + h), n - h < 0 ? 0 : min_int(n - h, 16), k, K);
}

#endif
