// matmul_living.h: few rows of x, most of whose columns are zero, against int8 weights that lie on their side; a part
// of matmul_kernels.h.
//
// living() there does the same for f32 and bf16. Here the sums are those of rows() in matmul_dot.h: lane
// c % (unit * VW) / unit of a vector adds up column c as integers, exactly; behind each block of x its lanes become
// floats times the block's scale; behind the last one lanes are added, four apart first. A lane is a row of sums, one
// for each output.
// Not here: conversion of x, threads (matmul_narrow.c).

typedef int32_t NAME(vi8) __attribute__((vector_size(4 * VW), aligned(4), may_alias));
typedef int8_t NAME(vb8) __attribute__((vector_size(VW), aligned(1), may_alias));

static TARGET void NAME(living8)(float *out, size_t ldo, const NarrowX *x, int as, const Weights *w, int j,
                                 const int *live, int n_live, int T, int n, void *lanes) {
    // x (T,C) as integers, w (C,ld) turned, its columns j .. j+n -> out (T,n) += x w; lanes: (2,T,VW,n) numbers
    const size_t N = (size_t)n, all = (size_t)T * VW * N, unit = as == AS_BYTES ? 4 : 2;
    int32_t *const ints = lanes;
    float *const sums = (float *)lanes + all;
    memset(sums, 0, all * sizeof *sums);
    for (int i = 0; i < n_live; ) {                 // a block without living columns would add zeros
        const int block = live[i] / BLOCK;
        memset(ints, 0, all * sizeof *ints);
        for (; i < n_live && live[i] / BLOCK == block; i++) {
            const size_t c = (size_t)live[i];
            const uint8_t *const row = weight_at(w, c, (size_t)j);
            if (i + 8 < n_live)
                for (size_t o = 0; o < N; o += 64) __builtin_prefetch(weight_at(w, (size_t)live[i + 8], (size_t)j) + o);
            for (size_t t = 0; t < (size_t)T; t++) {
                const int32_t xt = narrow_x(x, as, (int)t, (int)c);
                int32_t *const lane = ints + (t * VW + c % (unit * VW) / unit) * N;
                for (size_t k = 0; xt != 0 && k < N; k += VW)
                    *(NAME(vi8) *)(lane + k) += __builtin_convertvector(*(const NAME(vb8) *)(row + k), NAME(vi8)) * xt;
            }
        }
        for (size_t t = 0; t < (size_t)T; t++) {
            const float s = x->scale[t * x->ldscale + (size_t)block];
            for (size_t k = t * VW * N; k < (t + 1) * VW * N; k += VW)
                *(V *)(sums + k) += __builtin_convertvector(*(const NAME(vi8) *)(ints + k), V) * s;
        }
    }
    for (size_t t = 0; t < (size_t)T; t++)
        for (size_t k = 0; k < N; k += VW) {
            V four[4];
            for (size_t l = 0; l < 4; l++) {
                four[l] = NAME(load)(sums + (t * VW + l) * N + k);
                for (size_t m = l + 4; m < VW; m += 4) four[l] += NAME(load)(sums + (t * VW + m) * N + k);
            }
            V *const o = (V *)(out + t * ldo + k);
            *o += ((four[0] + four[2]) + (four[1] + four[3])) * NAME(load)((const float *)w->scale + (size_t)j + k);
        }
}
