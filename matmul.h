// matmul.h: the one place of the CPU path where cleverness is allowed: products of matrices and vectors.
//
// matmul() multiplies by a weight of any dtype; the gemm functions are small f32 products for attention.
// Threads: matmul() uses par->pool; the others run in the calling thread.
// Not here: anything that knows what the matrices mean.
#ifndef MATMUL_H
#define MATMUL_H

#include "blip2.h"
#include "threads.h"

typedef struct MatmulKernels MatmulKernels;   // inner loops for one instruction set

typedef struct {
    int threads;
    const MatmulKernels *kernels;   // matmul_kernels()
    float *scratch;                 // matmul_scratch_bytes(threads), 64-byte aligned
    Pool *pool;                     // of as many threads; NULL: the calling thread does everything
} Par;

// The fastest inner loops that this processor has. isa: NULL or "auto" for that, or a name to force; NULL is returned
// for a name that is unknown or that the processor lacks.
const MatmulKernels *matmul_kernels(const char *isa);
const char *matmul_isa(const MatmulKernels *k);       // e.g. "avx2"
// Name number i = 0, 1, ... of those that this program was built with, fastest first; NULL behind the last.
const char *matmul_isa_names(int i);
uint64_t matmul_scratch_bytes(int threads);

// x (T,C), w (OC,C), b (OC) or NULL -> out (T,OC), contiguous rows; C is w->cols, OC is w->rows. Accumulates in f32.
void matmul(float *out, const float *x, const Tensor *w, const float *b, int T, const Par *par);

// The same, then what comes next while the result is in the cache: an activation (ACT_... of blip2.h), nothing, or the
// sum with what out held before, the residual.
enum { THEN_NOTHING = ACT_GELU_TANH + 1, THEN_ADD };
void matmul_then(float *out, const float *x, const Tensor *w, const float *b, int then, int T, const Par *par);

// x (T,C), of which only columns live (n), ascending, are not all zero, w (OC,C), turned: w as (C,OC), b (OC) or NULL
// -> out (T,OC) += b + x w^T, to the bit as matmul_then(THEN_ADD) has it. OC and C multiples of 32. False: these inner
// loops, or so many rows, have no such sums; nothing done.
bool matmul_living(float *out, const float *x, const Tensor *w, const void *turned, const float *b, const int *live,
                   int n, int T, const Par *par);
// Whether these inner loops have them for weights of that dtype.
bool matmul_lives(int dtype, const Par *par);

// a (M,K), b (N,K) -> out (M,N) = scale * a b^T; lda, ldb, ldo are row strides in floats.
void gemm_nt(float *out, int ldo, const float *a, int lda, const float *b, int ldb, float scale, int M, int N, int K,
             const Par *par);
// a (M,K), b (K,N) -> out (M,N)
void gemm_nn(float *out, int ldo, const float *a, int lda, const float *b, int ldb, int M, int N, int K,
             const Par *par);

// What else a pass does with rows, in the calling thread. act is ACT_...; x (n) in place.
void activate(float *x, int act, int n, const Par *par);
void softmax(float *x, int n, const Par *par);
// x (C), w (C) -> out (C), in place is fine. With b (C) layer norm (Ba, Kiros, Hinton 2016), (x - mean) / sqrt(var +
// eps) * w + b; b NULL: T5's norm (Zhang, Sennrich 2019), which subtracts no mean and adds nothing.
void norm(float *out, const float *x, const float *w, const float *b, float eps, int C, const Par *par);
// One query's attention: q (A), k (n,A) rows ldk apart -> s (n) = k q; and v (n,A) rows ldv apart -> out (A) += s v.
void scores(float *s, const float *q, const float *k, size_t ldk, int n, int A, const Par *par);
void mix(float *out, const float *s, const float *v, size_t ldv, int n, int A, const Par *par);

// Row r of w as f32, for embeddings: out (C).
void tensor_row(float *out, const Tensor *w, int r);

#endif
