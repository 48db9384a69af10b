// image_resize.c: Pillow 11.3.0's bicubic Image.resize to a square, bit for bit (see image.h).
//
// In order: the filter, its fixed-point weights for one axis, one row resized in width, the whole image.
//
// Pillow resizes in two passes over bytes: first every row in width, rounded and clipped to 0..255, then
// every column in height. The result of the first pass, H x S, can be very large for a tall image, so here
// each source row is resized in width and at once added, times its weight, to the few output rows it belongs
// to:
//
//     row y of the source (W,3) --width--> bytes (S,3) --times weight[i][y]--> 32-bit sums of output rows i
//
// The sums are integers, so the order of adding changes no bit. Newer versions of Pillow (13) take the
// vertical pass first on tall narrow images and give other bytes there; the order here is always width first.

#include "image.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

// The weights must be those of plain double arithmetic: a fused multiply-add would change last bits. With
// -std=c11 gcc does not contract; clang has to be told.
#ifdef __clang__
#pragma STDC FP_CONTRACT OFF
#endif

enum { BITS = 32 - 8 - 2 };  // of the fixed-point weights (PRECISION_BITS in Pillow's Resample.c)

// Output sample i is the sum over j < n[i] of weight[start[i] + j] * source[lo[i] + j].
typedef struct { int S, *lo, *n; size_t *start; int32_t *weight; } Axis;

// Keys' cubic convolution kernel with a = -0.5, in the order of operations of Pillow's bicubic_filter.
static double bicubic(double t) {
    const double a = -0.5;
    if (t < 0) t = -t;
    if (t < 1) return ((a + 2) * t - (a + 3)) * t * t + 1;
    if (t < 2) return (((t - 5) * t + 8) * t - 4) * a;
    return 0;
}

static void axis_free(Axis *a) {
    free(a->lo);
    free(a->n);
    free(a->start);
    free(a->weight);
}

// precompute_coeffs and normalize_coeffs_8bpc of Pillow's Resample.c for `in` source and S output samples.
static int axis_make(Axis *a, int in, int S, Err *e) {
    const double scale = (double)in / S, wide = scale > 1 ? scale : 1, support = 2.0 * wide, inv = 1.0 / wide;
    const size_t most = (size_t)ceil(support) * 2 + 1;
    *a = (Axis){.S = S, .lo = malloc((size_t)S * sizeof *a->lo), .n = malloc((size_t)S * sizeof *a->n),
                .start = malloc((size_t)S * sizeof *a->start),
                .weight = malloc((size_t)S * most * sizeof *a->weight)};
    double *w = malloc(most * sizeof *w);
    if (!a->lo || !a->n || !a->start || !a->weight || !w) {
        free(w);
        return fail(e, "no memory for the weights that resize %d pixels to %d", in, S);
    }
    size_t used = 0;
    for (int i = 0; i < S; i++) {
        const double center = (i + 0.5) * scale;
        int lo = (int)(center - support + 0.5), hi = (int)(center + support + 0.5);
        if (lo < 0) lo = 0;
        if (hi > in) hi = in;
        double sum = 0;
        for (int j = 0; j < hi - lo; j++) {
            w[j] = bicubic((j + lo - center + 0.5) * inv);
            sum += w[j];
        }
        a->lo[i] = lo;
        a->n[i] = hi - lo;
        a->start[i] = used;
        for (int j = 0; j < hi - lo; j++) {
            const double k = sum != 0 ? w[j] / sum : w[j];
            a->weight[used++] = (int32_t)(k * (1 << BITS) + (k < 0 ? -0.5 : 0.5));
        }
    }
    free(w);
    return 0;
}

static inline uint8_t round_clip(int32_t sum) {
    const int32_t v = sum >> BITS;
    return (uint8_t)(v < 0 ? 0 : v > 255 ? 255 : v);
}

static void resize_row(uint8_t *restrict out, const uint8_t *restrict row, const Axis *a) {
    // row (W,3) -> out (S,3)
    for (int i = 0; i < a->S; i++) {
        const int32_t *w = a->weight + a->start[i];
        const uint8_t *p = row + (size_t)a->lo[i] * 3;
        int32_t r = 1 << (BITS - 1), g = r, b = r;
        for (int j = 0; j < a->n[i]; j++, p += 3) {
            r += p[0] * w[j];
            g += p[1] * w[j];
            b += p[2] * w[j];
        }
        out[i * 3] = round_clip(r);
        out[i * 3 + 1] = round_clip(g);
        out[i * 3 + 2] = round_clip(b);
    }
}

// The vertical pass, one source row at a time. Windows of output rows only move down, so the rows that are
// still growing are a range [first, next), and a row is finished when its window has been passed.
static void resize_rows(uint8_t *out, const uint8_t *rgb, int W, int H, const Axis *ax, const Axis *ay,
                        uint8_t *row, int32_t *sums) {
    // rgb (H,W,3), row (S,3) and sums (S,S,3) scratch -> out (S,S,3)
    const int S = ay->S;
    const size_t line = (size_t)S * 3;
    for (size_t i = 0; i < (size_t)S * line; i++) sums[i] = 1 << (BITS - 1);
    int first = 0;
    for (int y = 0; y < H; y++) {
        const uint8_t *src = rgb + (size_t)y * (size_t)W * 3, *narrow = src;
        if (W != S) {
            resize_row(row, src, ax);
            narrow = row;
        }
        for (int i = first; i < S && ay->lo[i] <= y; i++) {
            const int32_t w = ay->weight[ay->start[i] + (size_t)(y - ay->lo[i])];
            int32_t *sum = sums + (size_t)i * line;
            for (size_t x = 0; x < line; x++) sum[x] += narrow[x] * w;
        }
        for (; first < S && ay->lo[first] + ay->n[first] <= y + 1; first++)
            for (size_t x = 0; x < line; x++)
                out[(size_t)first * line + x] = round_clip(sums[(size_t)first * line + x]);
    }
}

int image_resize(uint8_t *out, const uint8_t *rgb, int W, int H, int S, Err *e) {
    // rgb (H,W,3) -> out (S,S,3)
    CHECK(W > 0 && H > 0 && S > 0 && S <= 4096);
    const size_t line = (size_t)S * 3;
    Axis ax = {0}, ay = {0};
    int rc = W == S ? 0 : axis_make(&ax, W, S, e);
    if (rc == 0 && H == S) {  // a pass is skipped where the size stays the same
        for (int y = 0; y < H; y++) {
            if (W == S) memcpy(out + (size_t)y * line, rgb + (size_t)y * line, line);
            else resize_row(out + (size_t)y * line, rgb + (size_t)y * (size_t)W * 3, &ax);
        }
    } else if (rc == 0 && (rc = axis_make(&ay, H, S, e)) == 0) {
        uint8_t *row = malloc(line);
        int32_t *sums = malloc((size_t)S * line * sizeof *sums);
        if (row && sums) resize_rows(out, rgb, W, H, &ax, &ay, row, sums);
        else rc = fail(e, "no memory for the sums that resize %d x %d pixels to %d x %d", W, H, S, S);
        free(row);
        free(sums);
    }
    axis_free(&ax);
    axis_free(&ay);
    return rc;
}
