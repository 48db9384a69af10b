// matmul_narrow.h: products in which x too is in a narrow type, because the processor has dot products of such types.
//
//   weights   x                        instructions
//   int8      16-bit integers          VPMADDWD, VPDPWSSD
//   int8      two bytes, high and low  SDOT, AMX TDPBSSD: exactly the same sums
//   int4      16-bit integers, or two bytes: the same; at most `few` rows of x
//   bf16      bf16                     VDPBF16PS, AMX TDPBF16PS
//   bf16      two bf16, high and low   AMX TDPBF16PS twice
//
// A row of x is converted once for each product. As 16-bit integers, a block of BLOCK columns has the scale
// max|x| / X_MAX, and each x is off by at most half of it: 1.5e-5 of the largest x of its block. Integer sums are
// exact: BLOCK * X_MAX * 128 is below 2^31. As one bf16 each x is off by at most 2^-8 of itself, as two by 2^-16.
// A block of x with a NaN or an infinity in it gives NaN.
// Not here: the choice of an instruction set (matmul_isa.h).
#ifndef MATMUL_NARROW_H
#define MATMUL_NARROW_H

#include "matmul.h"
#include "matmul_weights.h"

enum {
    BLOCK = 512,                 // columns of x with a scale in common
    X_MAX = 127 * 256 + 127,     // so that the high byte of X_MAX + 128 is still a signed byte
    NARROW_COLUMNS = 96,         // of out in a job, a multiple of every NR
    ROW_BYTES = 2 * BLOCK + 64,      // between rows of a tile of x that is copied; an odd number of cache lines
    NARROW_PACKED = 32 * 1024 * 2,   // bytes of a panel of packed weights, per thread
    NARROW_X = 8 << 20           // bytes of converted x; more rows than fit are done in several passes
};

// How x is stored; of two parts a row has first the high ones, then the low ones. Macros, for #if.
#define AS_INT16 0
#define AS_BYTES 1
#define AS_BF16 2
#define AS_TWO_BF16 3
#define AS_NIBBLES 4             // as matmul_int4.h says

// Converted rows of x: those of a tile, or all.
typedef struct {
    const uint8_t *data;         // rows ld bytes apart, zero behind C up to the next multiple of 64 columns
    size_t ld, low;              // low: bytes from an element's high part to its low part
    const float *scale;          // of the first block, rows ldscale apart; AS_..BF16: not read
    size_t ldscale;
} NarrowX;

// Element (t,c) of x as an integer.
static inline int narrow_x(const NarrowX *x, int as, int t, int c) {
    const uint8_t *row = x->data + (size_t)t * x->ld;
    return as == AS_BYTES ? (int8_t)row[c] * 256 + (int8_t)row[x->low + (size_t)c] :
           ((const int16_t *)(const void *)row)[c];
}

// x (T,C), rows j .. j+n of w (,C) -> out (T,n) = base (T,n) + x w^T; base NULL is zero.
typedef void Rows(float *out, size_t ldo, const float *base, size_t ldbase, const NarrowX *x, const Weights *w, int j,
                  int T, int n, int C);

typedef struct {
    int as, few_as;              // x for tile() and for rows()
    int MR, NR, KC;              // rows and columns of a tile, columns in a step
    bool copied;                 // tile() wants rows of x ROW_BYTES apart, low parts BLOCK bytes behind the high ones,
                                 // zero behind C up to the next multiple of 64 columns
    int few;                     // most rows of x that rows() is for
    // x (mr,K) and w, packed: units of four bytes, (K/2 or K/4,NR), zero behind n and from K to the next multiple of
    // 64 -> out (mr,n) = base (mr,n) + x w^T; wscale (n) of int8
    void (*tile)(float *out, size_t ldo, const float *base, size_t ldbase, const NarrowX *x, const void *w,
                 const float *wscale, Ahead *ahead, int mr, int n, int K);
    // x (C) -> a row as integers and the scale of each block; low: bytes to the low parts of AS_BYTES
    void (*convert)(uint8_t *row, size_t low, float *scale, const float *x, int C, int as);
    Rows *rows;                  // NULL where few is 0
} Narrow;

// Whether the processor has what they need is for the caller to know. The first two rows: x86-64, the last: aarch64.
extern const Narrow narrow_madd256, narrow_madd512, narrow_vnni256, narrow_vnni512, narrow_bf16_512,
                    narrow_amx_int8, narrow_amx_bf16, narrow_amx_two,
                    narrow_sdot;
// For int4 weights; few rows of x only.
extern const Narrow narrow_int4_madd256, narrow_int4_madd512, narrow_int4_vnni256, narrow_int4_vnni512,
                    narrow_int4_sdot;

// x (T,C), stored as `as`; w (C,ld), int8 weights turned, with the scales (ld) of its columns, of which j .. j+n; live
// (n_live): its rows that are not multiplied by zeros only -> out (T,n) += x w, the sums of rows() for w as it was; n a
// multiple of 32; lanes: NARROW_PACKED bytes. In matmul_living.h, because it needs nothing but vectors.
typedef void Living8(float *out, size_t ldo, const NarrowX *x, int as, const Weights *w, int j, const int *live,
                     int n_live, int T, int n, void *lanes);

// x (T,C), turned (C,OC) with scales (OC) -> out (T,OC) += b + x turned, by all threads. False: too many rows of x for
// rows(); nothing done.
bool narrow_living(const Narrow *n, Living8 *living, float *out, const float *x, const Weights *turned, const float *b,
                   const int *live, int n_live, int T, int OC, int C, void *scratch, const Par *par);

// Asks the system for the tile registers. False: no, or not Linux.
bool narrow_amx_allowed(void);

// As matmul_then(), for weights of the dtype that n is for; act is for `then`. False: C is too large or zero, nothing
// done.
bool narrow_matmul(const Narrow *n, float *out, const float *x, const Weights *w, const float *b, int then, int T,
                   int OC, int C, void (*act)(float *x, int act, int n), void *scratch, const Par *par);
uint64_t narrow_scratch_bytes(int threads);

#endif
