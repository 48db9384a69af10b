// matmul_weights.h: a weight in memory, element by element: the plain meaning of doc/format.md's four layouts.
//
// In order: small helpers, numbers from bits, Weights, where an element lies, an element as f32, weights that will be
// needed soon.
// Not here: anything fast.
#ifndef MATMUL_WEIGHTS_H
#define MATMUL_WEIGHTS_H

#include "blip2.h"

#include <string.h>

static inline int min_int(int a, int b) { return a < b ? a : b; }
static inline int ceil_div(int a, int b) { return (a + b - 1) / b; }

// Elements of two vectors by their numbers, whichever way the compiler has for that. index: a vector of integers as
// wide as the elements.
#ifdef __clang__
#define SHUFFLE_BY(index, a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define SHUFFLE_BY(index, a, b, ...) __builtin_shuffle(a, b, (index){__VA_ARGS__})
#endif

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

// A matrix in memory, of any dtype, in the layout of doc/format.md.
typedef struct {
    const void *data, *scale;
    size_t ld;               // elements from row to row; INT8 and INT4: the columns
    int dtype;
} Weights;

static inline size_t groups_of(size_t columns) { return (columns + 31) / 32; }

// The group of 32 columns that column c of row r is in.
static inline size_t group_at(const Weights *w, size_t r, size_t c) { return r * groups_of(w->ld) + c / 32; }

static inline float group_scale(const Weights *w, size_t r, size_t c) {
    return half_to_float(((const uint16_t *)w->scale)[group_at(w, r, c)]);
}

// What a whole row has in common; 1 where there is no such thing.
static inline float row_scale(const Weights *w, size_t r) {
    return w->dtype == DT_INT8 ? ((const float *)w->scale)[r] : 1;
}

// Of the first columns of a row. Of one column: not for INT4.
static inline size_t columns_bytes(int dtype, size_t columns) {
    return dtype == DT_F32 ? 4 * columns : dtype == DT_BF16 ? 2 * columns : dtype == DT_INT8 ? columns :
           16 * groups_of(columns);
}

static inline size_t bytes_of(const Weights *w, size_t columns) { return columns_bytes(w->dtype, columns); }

// The bytes of row r from column c on. INT4: of the group that it is in.
static inline const uint8_t *weight_at(const Weights *w, size_t r, size_t c) {
    const uint8_t *p = w->data;
    return w->dtype == DT_INT4 ? p + group_at(w, r, c) * 16 :
           p + (r * w->ld + c) * columns_bytes(w->dtype, 1);
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

// Rows j .. j+R of w are read from column `from` to column `to`, then from there on, and behind them the next rows:
// where what comes `next` rows behind row j begins.
static inline const uint8_t *row_later(const Weights *w, size_t j, int R, int next, size_t from, size_t to) {
    if (next < R) return weight_at(w, j + (size_t)next, from);
    return to < w->ld ? weight_at(w, j + (size_t)(next - R), to) : weight_at(w, j + (size_t)next, 0);
}

// Weights that are asked of memory while others are multiplied: `lines` cache lines of each of `rows` rows, ld bytes
// apart, to the level 2 cache. Only `quota` lines at a time, once in AHEAD_STEPS steps of a tile: many at once keep the
// loads behind them waiting, and with 40 rows of x that took a third of the time.
typedef struct {
    const char *row;
    size_t ld;
    int rows, lines, line, quota;
} Ahead;
enum { AHEAD_STEPS = 64 };

static inline void ask_ahead(Ahead *a) {
    for (int i = 0; i < a->quota && a->rows > 0; i++) {
        __builtin_prefetch(a->row + 64 * a->line, 0, 2);
        if (++a->line == a->lines) a->line = 0, a->rows--, a->row += a->ld;
    }
}

// Rows j .. j+n, columns k .. k+K of w, in so many calls.
static inline Ahead ahead_of(const Weights *w, int j, int n, int k, int K, int calls) {
    const int lines = (int)((bytes_of(w, (size_t)K) + 63) / 64), rows = n > 0 ? n : 0;
    return (Ahead){(const char *)weight_at(w, (size_t)j, (size_t)k), bytes_of(w, w->ld), rows, lines, 0,
                   calls > 0 ? ceil_div(rows * lines, calls) : 0};
}

#endif
