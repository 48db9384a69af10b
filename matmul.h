// matmul.h: the one place of the CPU path where cleverness is allowed: products of matrices and vectors.
//
// matmul() multiplies by a weight of any dtype; the gemm functions are small f32 products for attention.
// Threads: matmul() uses par->threads; the others run in the calling thread.
// Not here: anything that knows what the matrices mean.
#ifndef MATMUL_H
#define MATMUL_H

#include "blip2.h"

typedef struct MatmulKernels MatmulKernels;   // inner loops for one instruction set

typedef struct {
    int threads;
    const MatmulKernels *kernels;   // matmul_kernels()
    float *scratch;                 // matmul_scratch_bytes(threads), 64-byte aligned
} Par;

// The fastest inner loops that this processor has. isa: NULL or "auto" for that, or a name to force; NULL is returned
// for a name that is unknown or that the processor lacks.
const MatmulKernels *matmul_kernels(const char *isa);
const char *matmul_isa(const MatmulKernels *k);       // e.g. "avx2"
uint64_t matmul_scratch_bytes(int threads);

// x (T,C), w (OC,C), b (OC) or NULL -> out (T,OC), contiguous rows; C is w->cols, OC is w->rows. Accumulates in f32.
void matmul(float *out, const float *x, const Tensor *w, const float *b, int T, const Par *par);

// a (M,K), b (N,K) -> out (M,N) = scale * a b^T; lda, ldb, ldo are row strides in floats.
void gemm_nt(float *out, int ldo, const float *a, int lda, const float *b, int ldb, float scale, int M, int N, int K,
             const Par *par);
// a (M,K), b (K,N) -> out (M,N)
void gemm_nn(float *out, int ldo, const float *a, int lda, const float *b, int ldb, int M, int N, int K,
             const Par *par);

float dot(const float *a, const float *b, int n, const Par *par);          // sum a_i b_i
void axpy(float *y, float s, const float *x, int n, const Par *par);       // y += s x

// Row r of w as f32, for embeddings: out (C).
void tensor_row(float *out, const Tensor *w, int r);

#endif
