// cuda_weights.cuh: what all dense layers share: the argument, weights of every dtype as bf16, what becomes of a sum.
//
// In order: Dense, Device, eight weights as bf16, finish.
// Not here: the multiplies (cuda_stream.cuh, cuda_matvec.cuh, cuda_tile.cuh, cuda_skip.cuh, cuda_dense.cuh).
#ifndef CUDA_WEIGHTS_CUH
#define CUDA_WEIGHTS_CUH

#include "cuda_layers.cuh"

// What becomes of a sum: an activation (bf16 in bf16 mode), an f32, or an addition to the f32 residual stream.
enum { OUT_ACT, OUT_F32, OUT_ADD };

typedef struct {
    void *out;                   // (T,OC), by kind
    int kind;
    const void *x;               // (T,C) activations; or NULL, then
    const float *x32;            //   (T,C) of the residual stream, which the kernel norms itself:
    const float *norm_w, *norm_b;    // (C); norm_b NULL for RMS norm
    float eps, norm_scale;
    Tensor w;                    // (OC,C), gated: (2*OC,C), of which the second half gates
    const float *b;              // (OC) or NULL
    int act, gated;
    void *kv;                    // for QKV: columns from kv_from on go to row slot[t] of (slots, OC - kv_from)
    const int *slot;             // (T)
    int kv_from;
    int T, OC, C;
    const bool *going;           // see goes_on
} Dense;

typedef struct {
    int sms;                  // multiprocessors
    int shared_most;          // bytes of shared memory that a block may ask for
    float *partial;           // sums of blocks that share a column: for stream_kernel, or NULL
    size_t partial_bytes;
    int *tickets;             // (STREAM_TICKETS), zero between kernels
} Device;

enum { STREAM_TICKETS = 1 << 14 };

// Eight numbers of a weight row from column k on (a multiple of 8), as bf16; zero beyond the row's end. int8 without
// its scale, which is the row's and comes in at the end; int4 with it.
template <int W>
static __device__ __forceinline__ uint4 weights_8(const Tensor &w, int row, int k) {
    const int C = w.cols;
    float f[8];
    if constexpr (W == DT_INT4) {
        const int groups = (C + 31) / 32, g = k / 32, j = k % 32;
        const size_t group = (size_t)row * groups + g;
        const uint2 v = *(const uint2 *)((const uint8_t *)w.data + group * 16 + j % 16);
        const float scale = f16_to_f32(((const f16 *)w.scale)[group]);
        #pragma unroll
        for (int i = 0; i < 8; i++) {
            const u32 byte = (i < 4 ? v.x : v.y) >> (i % 4 * 8);
            f[i] = (float)((int)((j < 16 ? byte : byte >> 4) & 15) - 8) * scale;
        }
        return pack(f);
    } else if constexpr (W == DT_INT8) {
        const int8_t *p = (const int8_t *)w.data + (size_t)row * C + k;
        if (C % 8 == 0) {
            const uint2 v = *(const uint2 *)p;
            #pragma unroll
            for (int i = 0; i < 8; i++) f[i] = (float)(int8_t)((i < 4 ? v.x : v.y) >> (i % 4 * 8));
        } else if (C % 4 == 0) {   // as in rows of patches, 588 long
            const u32 lo = *(const u32 *)p, hi = k + 4 < C ? *(const u32 *)(p + 4) : 0;
            #pragma unroll
            for (int i = 0; i < 8; i++) f[i] = (float)(int8_t)((i < 4 ? lo : hi) >> (i % 4 * 8));
        } else {
            #pragma unroll
            for (int i = 0; i < 8; i++) f[i] = k + i < C ? p[i] : 0;
        }
        return pack(f);
    } else if constexpr (W == DT_BF16) {
        const bf16 *p = (const bf16 *)w.data + (size_t)row * C + k;
        if (C % 8 == 0) return load_stream_128(p);
        if (C % 4 == 0) {
            const uint2 lo = *(const uint2 *)p, hi = k + 4 < C ? *(const uint2 *)(p + 4) : make_uint2(0, 0);
            return make_uint4(lo.x, lo.y, hi.x, hi.y);
        }
        #pragma unroll
        for (int i = 0; i < 8; i++) f[i] = k + i < C ? bf16_to_f32(p[i]) : 0;
        return pack(f);
    } else {
        const float *p = (const float *)w.data + (size_t)row * C + k;
        #pragma unroll
        for (int i = 0; i < 8; i++) f[i] = k + i < C ? p[i] : 0;
        return pack(f);
    }
}

static __device__ __forceinline__ uint4 zero_128() { return make_uint4(0, 0, 0, 0); }

// Row t, column o of the result, its sum y.
template <typename T>
static __device__ __forceinline__ void finish(const Dense &d, int t, int o, float y, float gate) {
    // -> an element of d.out (T,OC) or of d.kv (slots, OC - kv_from)
    if (d.b) y += d.b[o];
    y = activation(y, d.act);
    if (d.gated) y *= gate;
    if (d.kv && o >= d.kv_from) {
        put((T *)d.kv + (size_t)d.slot[t] * (d.OC - d.kv_from) + o - d.kv_from, y);
        return;
    }
    const size_t at = (size_t)t * d.OC + o;
    if (d.kind == OUT_ACT) put((T *)d.out + at, y);
    else if (d.kind == OUT_F32) ((float *)d.out)[at] = y;
    else ((float *)d.out)[at] += y;
}

#endif
