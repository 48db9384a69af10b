// cuda_layers.cuh: the small kernels: what moves rows about, normalises them or works element by element.
//
// In order:
//   1. numbers: bf16 and f32 under one name, 16 bytes at a time; sums over a warp
//   2. from pixels to the rows of a matrix multiply, and from its result to tokens with positions
//   3. layer norm and RMS norm
//   4. activations, gated or not
//   5. rows of embeddings; keys and values into the cache
//
// Everything here moves few bytes and is bound by latency, so a row is one warp's and no barrier is needed. Activations
// that feed a matrix multiply have type T: bf16 on tensor cores, or float when the weight file is f32. The residual
// stream is always f32. Launchers (lower case, no suffix) take a stream first, then outputs, inputs, sizes.
// Not here: matrix multiplies (cuda_dense.cuh), attention (cuda_attention.cuh).
#ifndef CUDA_LAYERS_CUH
#define CUDA_LAYERS_CUH

#include "cuda_common.h"

// ---------------------------------------------------------------------------------------------------------
// 1. Numbers.

static __device__ __forceinline__ float f32_of(float x) { return x; }
static __device__ __forceinline__ float f32_of(bf16 x) { return bf16_to_f32(x); }
static __device__ __forceinline__ void put(float *p, float x) { *p = x; }
static __device__ __forceinline__ void put(bf16 *p, float x) { *p = f32_to_bf16(x); }

// 16 bytes as floats: four f32 or eight bf16.
static __device__ __forceinline__ void unpack(float (&f)[4], uint4 v, float) {
    f[0] = __uint_as_float(v.x), f[1] = __uint_as_float(v.y), f[2] = __uint_as_float(v.z), f[3] = __uint_as_float(v.w);
}
static __device__ __forceinline__ void unpack(float (&f)[8], uint4 v, bf16) {
    const u32 u[4] = {v.x, v.y, v.z, v.w};
    #pragma unroll
    for (int i = 0; i < 4; i++) {
        f[2 * i] = __uint_as_float(u[i] << 16);
        f[2 * i + 1] = __uint_as_float(u[i] & 0xFFFF0000u);
    }
}
static __device__ __forceinline__ uint4 pack(const float (&f)[4]) {
    return make_uint4(__float_as_uint(f[0]), __float_as_uint(f[1]), __float_as_uint(f[2]), __float_as_uint(f[3]));
}
static __device__ __forceinline__ uint4 pack(const float (&f)[8]) {
    return make_uint4(pack_bf16(f[0], f[1]), pack_bf16(f[2], f[3]), pack_bf16(f[4], f[5]), pack_bf16(f[6], f[7]));
}

static __device__ __forceinline__ float warp_sum(float x) {
    #pragma unroll
    for (int d = 16; d; d >>= 1) x += __shfl_xor_sync(0xFFFFFFFFu, x, d);
    return x;
}

static inline int ceil_div(int a, int b) { return (a + b - 1) / b; }

// Decoding is queued a step ahead of what the host has seen. When a choice of tokens was the last one, the step behind
// it is for nothing, and its kernels that have much to read end at once. They ask before pdl_wait, so that no weight
// and no chain of kernels waits for the answer, and look at it behind. That is not too early: a step begins with a
// plain launch (advance_kernel), behind which *flag is as the choice before left it. NULL: nothing to ask.
static __device__ __forceinline__ int goes_on(const bool *flag) { return flag ? *flag : 1; }

// ---------------------------------------------------------------------------------------------------------
// 2. Patches and tokens.

typedef struct { float mean[3], std[3]; } Pixels;

// Each patch becomes one row, columns in the convolution's (channel, y, x) order, pixels normalised on the way.
// Reads B*S*S*3 bytes, writes B*G*G*3*P*P elements, G = S / P. Pixels beyond the last whole patch are not looked at.
template <typename T>
__global__ void patches_kernel(T *out, const uint8_t *pixels, Pixels norm, int S, int P) {
    // pixels (B,S,S,3) -> out (B*G*G, 3*P*P)
    const int G = S / P, C = 3 * P * P;
    const int row = blockIdx.x, b = row / (G * G), gy = row / G % G, gx = row % G;
    for (int c = threadIdx.x; c < C; c += blockDim.x) {
        const int ch = c / (P * P), y = c / P % P, x = c % P;
        const size_t at = (((size_t)b * S + gy * P + y) * S + gx * P + x) * 3 + ch;
        put(out + (size_t)row * C + c, (pixels[at] / 255.0f - norm.mean[ch]) / norm.std[ch]);
    }
}

template <typename T>
static void patches(cudaStream_t s, T *out, const uint8_t *pixels, Pixels norm, int B, int S, int P) {
    const int G = S / P;
    LAUNCH(patches_kernel<T>, dim3(B * G * G), dim3(128), 0, s, out, pixels, norm, S, P);
}

// The CLS token in front of an image's patches, and every token's learned position.
__global__ void tokens_kernel(float *x, const float *patch, const float *cls, const float *pos, int N, int D) {
    // patch (B*(N-1), D), cls (D), pos (N,D) -> x (B*N, D)
    const int row = blockIdx.x, b = row / N, n = row % N;
    const float *from = n ? patch + ((size_t)b * (N - 1) + n - 1) * D : cls;
    for (int i = threadIdx.x; i < D; i += blockDim.x) x[(size_t)row * D + i] = from[i] + pos[(size_t)n * D + i];
}

static void tokens(cudaStream_t s, float *x, const float *patch, const float *cls, const float *pos, int B, int N,
                   int D) {
    LAUNCH(tokens_kernel, dim3(B * N), dim3(128), 0, s, x, patch, cls, pos, N, D);
}

// ---------------------------------------------------------------------------------------------------------
// 3. Norms. A warp takes a row and goes over it three times (mean, variance, result); it is in the L1 cache after the
// first. Reads 4*T*C bytes, writes T*C activations and, where a norm stands behind the residual (Q-Former), x itself.

template <typename T>
__global__ void norm_kernel(T *out, float *out32, const float *x, const float *w, const float *b, float eps,
                            float scale, int rows, int C) {
    // x (rows,C), w (C), b (C), or NULL for RMS norm -> out (rows,C) = scale * norm(x), and out32 (may be x, or NULL)
    pdl_wait();
    pdl_launch();
    const int row = blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32, lane = threadIdx.x % 32;
    if (row >= rows) return;
    const float *xr = x + (size_t)row * C;
    float sum = 0, sq = 0;
    if (b) {
        for (int i = lane; i < C; i += 32) sum += xr[i];
        sum = warp_sum(sum);
    }
    const float mean = sum / C;
    for (int i = lane; i < C; i += 32) sq += (xr[i] - mean) * (xr[i] - mean);
    const float s = 1 / sqrtf(warp_sum(sq) / C + eps);
    for (int i = lane; i < C; i += 32) {
        const float y = ((xr[i] - mean) * s * w[i] + (b ? b[i] : 0)) * scale;
        put(out + (size_t)row * C + i, y);
        if (out32) out32[(size_t)row * C + i] = y;
    }
}

template <typename T>
static void norm(cudaStream_t s, T *out, float *out32, const float *x, const float *w, const float *b, float eps,
                 float scale, int rows, int C) {
    LAUNCH_PDL(norm_kernel<T>, dim3(ceil_div(rows, 4)), dim3(128), 0, s, out, out32, x, w, b, eps, scale, rows, C);
}

// ---------------------------------------------------------------------------------------------------------
// 4. Activations, the formulas of blip2.c. cuBLASLt's GELU epilogue is the tanh form, which is another function.

enum { ACT_NONE = -1 };

static __device__ __forceinline__ float activation(float x, int act) {
    if (act == ACT_RELU) return x > 0 ? x : 0;
    if (act == ACT_GELU) return 0.5f * x * (1 + erff(x * 0.70710678118654752f));
    if (act == ACT_GELU_TANH) return 0.5f * x * (1 + tanhf(0.79788456080286536f * (x + 0.044715f * x * x * x)));
    return x;
}

// 16 bytes a thread: out = act(in + bias), or gated: in (rows, 2*F) holds a and b of each row, out = act(a) * b.
// Reads rows*F (gated: twice that) elements and writes rows*F. Rows whose length is no multiple of 16 bytes go one
// element a thread (W = 1).
template <typename T, int W>
__global__ void activate_kernel(T *out, const T *in, const float *bias, int act, int gated, int rows, int F) {
    // in (rows,F) or (rows,2F), bias (F) or NULL -> out (rows,F), which may be in when not gated
    const size_t i = ((size_t)blockIdx.x * blockDim.x + threadIdx.x) * W;
    if (i >= (size_t)rows * F) return;
    const size_t row = i / F, f = i % F;
    const T *a = in + row * (gated ? 2 : 1) * F + f;
    if constexpr (W == 1) {
        const float y = activation(f32_of(*a) + (bias ? bias[f] : 0), act);
        put(out + i, gated ? y * f32_of(a[F]) : y);
    } else {
        float x[W], g[W];
        unpack(x, *(const uint4 *)a, T());
        if (gated) unpack(g, *(const uint4 *)(a + F), T());
        #pragma unroll
        for (int k = 0; k < W; k++) {
            x[k] = activation(x[k] + (bias ? bias[f + k] : 0), act);
            if (gated) x[k] *= g[k];
        }
        *(uint4 *)(out + i) = pack(x);
    }
}

template <typename T>
static void activate(cudaStream_t s, T *out, const T *in, const float *bias, int act, bool gated, int rows, int F) {
    constexpr int W = 16 / sizeof(T);
    const size_t n = (size_t)rows * F;
    const auto kernel = F % W ? activate_kernel<T, 1> : activate_kernel<T, W>;
    const unsigned blocks = (unsigned)((n / (F % W ? 1 : W) + 255) / 256);
    LAUNCH(kernel, dim3(blocks), dim3(256), 0, s, out, in, bias, act, gated ? 1 : 0, rows, F);
}

// ---------------------------------------------------------------------------------------------------------
// 5. Embeddings, rows of a weight of any dtype as f32 (layouts: doc/format.md).

static __device__ __forceinline__ float weight_at(const Tensor &w, int r, int c) {
    const size_t i = (size_t)r * w.cols + c;
    if (w.dtype == DT_F32) return ((const float *)w.data)[i];
    if (w.dtype == DT_BF16) return bf16_to_f32(((const bf16 *)w.data)[i]);
    if (w.dtype == DT_INT8) return ((const int8_t *)w.data)[i] * ((const float *)w.scale)[r];
    const int groups = (w.cols + 31) / 32, g = c / 32, j = c % 32;
    const int byte = ((const uint8_t *)w.data)[((size_t)r * groups + g) * 16 + j % 16];
    return ((j < 16 ? byte & 15 : byte >> 4) - 8) * f16_to_f32(((const f16 *)w.scale)[(size_t)r * groups + g]);
}

// One block a row. What a row is comes from ids: a token of the vocabulary, or row -1 - id of the images' rows.
__global__ void embed_kernel(float *x, const int *ids, const int *positions, Tensor tok, const float *image_rows,
                             const float *pos, int D) {
    // ids (rows), positions (rows) and pos (positions + 2, D), or NULL; image_rows (B*Q, D) -> x (rows,D)
    pdl_wait();
    pdl_launch();
    const int row = blockIdx.x, id = ids[row];
    for (int i = threadIdx.x; i < D; i += blockDim.x) {
        float y = id < 0 ? image_rows[(size_t)(-1 - id) * D + i] : weight_at(tok, id, i);
        if (pos) y += pos[(size_t)(positions[row] + 2) * D + i];   // OPT's table has two rows in front
        x[(size_t)row * D + i] = y;
    }
}

static void embed(cudaStream_t s, float *x, const int *ids, const int *positions, const Tensor *tok,
                  const float *image_rows, const float *pos, int rows, int D) {
    LAUNCH_PDL(embed_kernel, dim3(rows), dim3(256), 0, s, x, ids, positions, *tok, image_rows, pos, D);
}

// Rows of x that are needed on their own: the last one of each prompt.
__global__ void gather_kernel(float *out, const float *x, const int *rows, int D) {
    // x (T,D), rows (n) -> out (n,D)
    for (int i = threadIdx.x; i < D; i += blockDim.x)
        out[(size_t)blockIdx.x * D + i] = x[(size_t)rows[blockIdx.x] * D + i];
}

static void gather(cudaStream_t s, float *out, const float *x, const int *rows, int n, int D) {
    LAUNCH(gather_kernel, dim3(n), dim3(256), 0, s, out, x, rows, D);
}

// The K and V thirds of qkv go to each row's slot of the cache.
template <typename T>
__global__ void kv_store_kernel(T *kv, const T *qkv, const int *slot, int I) {
    // qkv (rows, 3*I), slot (rows) -> kv (slots, 2*I)
    const int row = blockIdx.x;
    for (int i = threadIdx.x; i < 2 * I; i += blockDim.x)
        kv[(size_t)slot[row] * 2 * I + i] = qkv[((size_t)row * 3 + 1) * I + i];
}

template <typename T>
static void kv_store(cudaStream_t s, T *kv, const T *qkv, const int *slot, int rows, int I) {
    LAUNCH(kv_store_kernel<T>, dim3(rows), dim3(256), 0, s, kv, qkv, slot, I);
}

template <typename T>
__global__ void to_f32_kernel(float *out, const T *x, size_t n) {
    // x (n) -> out (n)
    const size_t i = (size_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) out[i] = f32_of(x[i]);
}

// For probes only: activations as f32.
template <typename T>
static void to_f32(cudaStream_t s, float *out, const T *x, size_t n) {
    LAUNCH(to_f32_kernel<T>, dim3((unsigned)((n + 255) / 256)), dim3(256), 0, s, out, x, n);
}

#endif
