// matmul_int4.h: a few rows of x against a stream of int4 weights, in integers; a part of matmul_dot.h, compiled for
// each of its instructions.
//
// Nibbles are 0..15 as they lie in the file; with AS_INT16 the two low and the two high ones of every 16 bits meet x in
// 16 bits, with AS_BYTES the low and the high ones of every byte meet both bytes of x:
//
//   a group     byte    0    1    2    3       ...    15       16 bytes, four lanes of 32 bits
//               low     c0   c1   c2   c3      ...    c15
//               high    c16  c17  c18  c19     ...    c31
//   x, INT16    c0 c2 .. c14 | c16 c18 .. c30 | c1 c3 .. c15 | c17 c19 .. c31      of VW / 4 groups each: a part, which
//   x, BYTES    h0 .. h15    | h16 .. h31     | l0 .. l15    | l16 .. l31          is a vector
//
// A lane of a group thus sums columns 4k..4k+3 and 16+4k..16+4k+3. Since a weight is its nibble less 8, the sum starts
// at -8 times the sum of x there; or, for more rows of x, 8 is taken from the nibbles themselves, which gives the same
// integer. At most 8 * 32639 * 32 = 2^23 in magnitude, sums of a group are exact in f32; there they are multiplied by
// the group's scale, added up for a block of x, and multiplied by the block's.
// What each instruction set does with instructions of its own, or else the plain C here:
//   FMA(a,b,c)    a * b + c on vectors of floats
//   HALVES(p)     V: VW f16 at p
//   SPREAD(v,q)   element i is v[q * VW / 4 + i / 4]; q is 0..3
//
// In order: these in plain C, conversion of x, sums over some columns of some rows, rows().
// Not here: many rows of x (matmul_int4_blocks.h).

#ifndef FMA
#define FMA(a, b, c) ((a) * (b) + (c))
#endif
#ifndef HALVES
INLINE V NAME(halves)(const uint16_t *p) {
    V v = {0};
    for (int i = 0; i < VW; i++) v[i] = half_to_float(p[i]);
    return v;
}
#define HALVES NAME(halves)
#endif
#ifndef SPREAD
INLINE V NAME(spread)(V v, int q) {
    V s = {0};
    for (int i = 0; i < VW; i++) s[i] = v[q * VW / 4 + i / 4];
    return s;
}
#define SPREAD NAME(spread)
#endif

// Columns are taken in units of VW groups, four vectors of weights. Of x a vector has four parts and the start of the
// sums, in 32 bits.
enum { NAME(unit_columns) = 32 * VW, NAME(unit_x) = 4 * 5 * 4 * VW };

// ---------------------------------------------------------------------------------------------------------

#if AS == AS_INT16
// A group of x in the order drawn above, its four parts so many bytes apart. in may be out.
INLINE void NAME(pairs4)(uint8_t *out, size_t apart, const uint8_t *in) {
    typedef int32_t Int8s __attribute__((vector_size(32), aligned(2), may_alias));
    typedef int16_t Short8s __attribute__((vector_size(16), aligned(1), may_alias));
    const Int8s first = *(const Int8s *)(const void *)in, second = *(const Int8s *)(const void *)(in + 32);
    *(Short8s *)(void *)out = __builtin_convertvector(first, Short8s);
    *(Short8s *)(void *)(out + apart) = __builtin_convertvector(second, Short8s);
    *(Short8s *)(void *)(out + 2 * apart) = __builtin_convertvector(first >> 16, Short8s);
    *(Short8s *)(void *)(out + 3 * apart) = __builtin_convertvector(second >> 16, Short8s);
}
#endif

// x (C) -> a row as drawn above, zeros behind C up to the next multiple of BLOCK; scale (C/BLOCK)
static TARGET void NAME(convert4)(uint8_t *row, float *scale, const float *x, int C) {
    typedef int32_t Int8s __attribute__((vector_size(32), aligned(2), may_alias));
    typedef uint64_t Long4s __attribute__((vector_size(32)));
#if AS == AS_BYTES
    typedef int16_t Short16s __attribute__((vector_size(32)));
    typedef int8_t Byte16s __attribute__((vector_size(16), aligned(1), may_alias));
#endif
    for (int b = 0; b < C; b += BLOCK) {
        const int n = min_int(BLOCK, C - b);
        int16_t q[BLOCK];
        scale[b / BLOCK] = NAME(to_int16)(q, x + b, n);
        memset(q + n, 0, (size_t)(BLOCK - n) * sizeof *q);
        for (int i = 0; i < BLOCK / 32; i++) {
            const size_t g = (size_t)(b / 32 + i);
            uint8_t *const to = row + g / (VW / 4) * (20 * VW) + g % (VW / 4) * 16;
            const Int8s first = *(const Int8s *)(const void *)(q + 32 * i);          // in pairs
            const Int8s second = *(const Int8s *)(const void *)(q + 32 * i + 16);
            const Int8s pairs = (first << 16 >> 16) + (first >> 16) + (second << 16 >> 16) + (second >> 16);
            const Long4s fours = (Long4s)pairs + ((Long4s)pairs >> 32);               // in their lower halves
            *(Four *)(void *)(to + 16 * VW) = __builtin_convertvector(fours, Four) * -8;
#if AS == AS_BYTES
            const Short16s one = (Short16s)first, two = (Short16s)second;
            *(Byte16s *)(void *)to = __builtin_convertvector((one - (one << 8 >> 8)) >> 8, Byte16s);
            *(Byte16s *)(void *)(to + 4 * VW) = __builtin_convertvector((two - (two << 8 >> 8)) >> 8, Byte16s);
            *(Byte16s *)(void *)(to + 8 * VW) = __builtin_convertvector(one, Byte16s);
            *(Byte16s *)(void *)(to + 12 * VW) = __builtin_convertvector(two, Byte16s);
#else
            NAME(pairs4)(to, 4 * VW, (const uint8_t *)(q + 32 * i));
#endif
        }
    }
}

// ---------------------------------------------------------------------------------------------------------

// One vector of weights, its nibbles apart: as they lie there, or less 8, which is what their bits mean as a number
// with a sign once the highest of the four is inverted.
INLINE void NAME(nibbles)(VI n[4], const uint8_t *p, bool less8) {
#if AS == AS_BYTES
    typedef int8_t Parts __attribute__((vector_size(4 * VW), may_alias));
#else
    typedef int16_t Parts __attribute__((vector_size(4 * VW), may_alias));
#endif
    typedef uint16_t Words __attribute__((vector_size(4 * VW), may_alias));
    typedef uint16_t Loaded __attribute__((vector_size(4 * VW), aligned(1), may_alias));
    const Words w = *(const Loaded *)p;
    if (less8) {
        const Words s = w ^ 0x8888;
#if AS == AS_BYTES
        n[0] = (VI)((Parts)(s << 4) >> 4), n[1] = (VI)((Parts)s >> 4);
#else
        n[0] = (VI)((Parts)(s << 12) >> 12), n[1] = (VI)((Parts)(s << 8) >> 12);
        n[2] = (VI)((Parts)(s << 4) >> 12), n[3] = (VI)((Parts)s >> 12);
#endif
        return;
    }
#if AS == AS_BYTES
    n[0] = (VI)(w & 0x0F0F), n[1] = (VI)(w >> 4 & 0x0F0F);
#else
    n[0] = (VI)(w & 15), n[1] = (VI)(w >> 4 & 15), n[2] = (VI)(w >> 8 & 15), n[3] = (VI)(w >> 12);
#endif
}

// Rows j .. j+rw of w, units from .. to of their columns, times T rows of x, are added to sum. Meanwhile the same of
// as many rows is fetched that begin at `ahead` and `ahead_scale`, in order of address.
INLINE void NAME(units4)(V *sum, const NarrowX *x, const Weights *w, size_t j, int T, int rw, int from, int to,
                         const uint8_t *ahead, const uint8_t *ahead_scale) {
    const size_t groups = groups_of(w->ld), panel = (size_t)(to - from) * 16 * VW;
    const bool less8 = T > 2;    // costs more once, less for each row of x; the sums are the same integers
    const uint8_t *const data = weight_at(w, j, 0);
    const uint16_t *const scales = (const uint16_t *)w->scale + j * groups;
    for (int u = from; u < to; u++) {
        uint8_t rest[2][16 * VW];
        uint16_t rest_scale[2][VW];
        V part[2][MOST], sv[2];
        const uint8_t *p[2];
        const size_t at = (size_t)u * VW;         // in groups
        for (int r = 0; r < rw; r++) {
            const uint16_t *s = scales + (size_t)r * groups + at;
            p[r] = data + ((size_t)r * groups + at) * 16;
            if (at + VW > groups) {               // the end of the row: nothing behind it may be read
                memset(rest[r], 0, sizeof rest[r]), memset(rest_scale[r], 0, sizeof rest_scale[r]);
                memcpy(rest[r], p[r], (groups - at) * 16), memcpy(rest_scale[r], s, (groups - at) * 2);
                p[r] = rest[r], s = rest_scale[r];
            }
            sv[r] = HALVES(s);
        }
        for (int r = 0; r < rw; r++) {
            const size_t o = (size_t)((u - from) * rw + r) * 16 * VW, i = o + (o < panel ? 0 : groups * 16 - panel);
#pragma GCC unroll 16
            for (int k = 0; k < 16 * VW; k += 64) __builtin_prefetch(ahead + i + k, 0, 3);
            __builtin_prefetch(ahead_scale + i / 8, 0, 3);
        }
#pragma GCC unroll 16
        for (int t = 0; t < MOST; t++) part[0][t] = part[1][t] = (V){0};
#pragma GCC unroll 4
        for (int q = 0; q < 4; q++) {
            VI n[2][4];
            V s[2];
#pragma GCC unroll 16
            for (int r = 0; r < rw; r++) {
                NAME(nibbles)(n[r], p[r] + q * 4 * VW, less8);
                s[r] = SPREAD(sv[r], q);
            }
            const uint8_t *const xq = x->data + (size_t)u * NAME(unit_x) + (size_t)q * 20 * VW;
#pragma GCC unroll 16
            for (int t = 0; t < T; t++) {
                const uint8_t *const xt = xq + (size_t)t * x->ld;
                VI a[2], h[2];
#pragma GCC unroll 16
                for (int r = 0; r < rw; r++)
                    a[r] = less8 ? (VI){0} : (VI)*(const NAME(vm) *)(xt + 16 * VW), h[r] = (VI){0};
#pragma GCC unroll 4
                for (int i = 0; i < 4; i++) {
                    VI xi = *(const NAME(vm) *)(xt + i * 4 * VW);
                    if (rw > 1) KEEP(xi);
#pragma GCC unroll 16
                    for (int r = 0; r < rw; r++)
                        if (AS == AS_BYTES && i < 2) h[r] = DOT(h[r], xi, n[r][i]);
                        else a[r] = DOT(a[r], xi, n[r][AS == AS_BYTES ? i - 2 : i]);
                }
#pragma GCC unroll 16
                for (int r = 0; r < rw; r++) {
                    if (AS == AS_BYTES) a[r] += h[r] * 256;
                    part[r][t] = FMA(__builtin_convertvector(a[r], V), s[r], part[r][t]);
                }
            }
        }
#pragma GCC unroll 16
        for (int t = 0; t < T; t++) {
            const V s = x->scale[(size_t)t * x->ldscale + (size_t)(u * NAME(unit_columns) / BLOCK)] - (V){0};
#pragma GCC unroll 16
            for (int r = 0; r < rw; r++) sum[r * T + t] = FMA(part[r][t], s, sum[r * T + t]);
        }
    }
}

// Rows of w are taken BAND at a time, and of x so many columns at a time that they stay in the level 1 cache: panels
// of the weights, one row's after the other's. What is fetched ahead are the panels that come AHEAD later.
INLINE void NAME(rows4_t)(float *out, size_t ldo, const float *base, size_t ldbase, const NarrowX *x, const Weights *w,
                          int j0, int T, int n, int C) {
    enum { IN_L1 = 32768, AHEAD = 8192 };
    const int units = ceil_div(C, NAME(unit_columns)), wide = min_int(units, IN_L1 / (T * NAME(unit_x)));
    const int panels = ceil_div(units, wide), rw = VW == 16 && T > 2 ? 2 : 1;
    const int later = ceil_div(AHEAD, wide * 16 * VW);
    for (int j = 0; j < n; j += BAND) {
        V sum[BAND * MOST];                                    // rows of w by T
        for (int i = 0; i < BAND * T; i++) sum[i] = (V){0};
        const int R = min_int(BAND, n - j);
        for (int i = 0, step; i < panels * R; i += step) {
            const int r = i % R, from = i / R * wide, to = min_int(from + wide, units), next = i + later;
            const bool behind = next >= panels * R;          // in the strip that comes next
            const size_t row = (size_t)(j0 + j + (behind ? R + next - panels * R : next % R));
            const size_t column = behind ? 0 : (size_t)(next / R * wide * NAME(unit_columns));
            const uint8_t *const ahead = weight_at(w, row, column);
            const uint8_t *const ahead_scale = (const uint8_t *)w->scale + 2 * group_at(w, row, column);
            step = r + rw <= R ? rw : 1;
            if (step == rw) NAME(units4)(sum + r * T, x, w, (size_t)(j0 + j + r), T, rw, from, to, ahead, ahead_scale);
            else NAME(units4)(sum + r * T, x, w, (size_t)(j0 + j + r), T, 1, from, to, ahead, ahead_scale);
        }
        NAME(finish)(out + j, ldo, base ? base + j : NULL, ldbase, sum, NULL, T, R);
    }
}

#define CASE(t) \
    static TARGET __attribute__((noinline)) void NAME(rows4_##t)( \
        float *out, size_t ldo, const float *base, size_t ldbase, const NarrowX *x, const Weights *w, int j0, int n, \
        int C) { NAME(rows4_t)(out, ldo, base, ldbase, x, w, j0, t, n, C); }
FEW_ROWS
#undef CASE

static TARGET void NAME(rows4)(float *out, size_t ldo, const float *base, size_t ldbase, const NarrowX *x,
                               const Weights *w, int j0, int T, int n, int C) {
    if (T > MOST) {
        NAME(slices)(NAME(rows4), out, ldo, base, ldbase, x, w, j0, T, n, C);
        return;
    }
#define CASE(t) case t: NAME(rows4_##t)(out, ldo, base, ldbase, x, w, j0, n, C); break;
    switch (T) { FEW_ROWS }
#undef CASE
}
