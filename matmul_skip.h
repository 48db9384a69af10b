// matmul_skip.h: OPT's second feed-forward matrix without the neurons that ReLU set to zero.
//
// In a trained OPT nearly all of them are zero for a given token (Liu et al. 2023, "Deja Vu"; Mirzadeh et al. 2023,
// "ReLU Strikes Back"). A neuron is a column of w (DL,FL), single elements FL apart in the file, so that reading less
// takes a copy of w on its side, (FL,DL), where a neuron is a row:
//
//        w (DL,FL)                     turned (FL,DL)
//          | . | . | |                   - - - - - -
//   DL     | . | . | |             FL    . . . . . .   <- zero: not read
//          | . | . | |                   - - - - - -
//               FL                       . . . . . .   <- zero: not read
//
// The sums are to the bit those of matmul_then() (as long as all weights are finite): the same products, in the same
// lanes of a vector, in the same order; only products with zero are left out. So each product is free to skip or not.
//
// When: each matrix counts how many neurons live in its products. Where at most a quarter did, `patience` times in a
// row, it is turned, in memory that was reserved at the start and not touched before; then the mapped pages of w are
// given back, so that the process does not grow. Patience is what turning costs, in products: one caption, over before
// it could pay, is left alone, and a folder of images or a chat loses at most as much again as it would have saved.
// Matrix i waits i products longer: one a token, and no token waits for all of them. Where memory is short, none is
// turned.
// Not here: the sums themselves (matmul.c).
#ifndef MATMUL_SKIP_H
#define MATMUL_SKIP_H

#include "matmul.h"

typedef struct Skip Skip;

// For n matrices of one shape and dtype; the first is *w, each next one `stride` bytes on, as members of an array of
// structures; `mapped`: they lie in a mapped file, whose pages can be given back. Matrices of fewer than `least` bytes
// are not worth it. NULL: nothing to skip, or no address space; all functions take NULL and then skip nothing.
Skip *skip_open(const Tensor *w, size_t stride, int n, bool mapped, size_t least, int patience);
void skip_close(Skip *s);

// As matmul_then(out, x, w, b, THEN_ADD, T, par), w being matrix i.
void skip_matmul(Skip *s, int i, float *out, const float *x, const Tensor *w, const float *b, int T, const Par *par);

// What was done since the start, for reports.
typedef struct {
    int turned, matrices;
    uint64_t rows, living;       // of all products with a turned matrix: its rows, and how many of them were read
    uint64_t bytes;              // of the rows that were not
} SkipCount;
SkipCount skip_count(const Skip *s);

#endif
