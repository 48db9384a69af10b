// cuda_dense.cuh: dense layers, out = act(x w^T + b), in three forms.
//
// In order:
//   1. what they share: the argument, weights of every dtype as bf16 or f32
//   2. rows_kernel: up to eight rows, a matrix-vector product in all but name, with the norm before it, the activation
//      behind it and everything else that decoding needs fused in; bound by reading the weights
//   3. gemm_kernel: many rows, own tensor-core kernel, for int8 and int4 weights (dequantised on the way into shared
//      memory) and for shapes that the library has no algorithm for
//   4. lt_dense: many rows, f32 or bf16 weights, through cuBLASLt with its bias epilogues
//
// Not here: which layer uses which form (dense() in blip2.cu).
#ifndef CUDA_DENSE_CUH
#define CUDA_DENSE_CUH

#include "cuda_layers.cuh"

// ---------------------------------------------------------------------------------------------------------
// 1. Shared.

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
} Dense;

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
        } else {
            #pragma unroll
            for (int i = 0; i < 8; i++) f[i] = k + i < C ? p[i] : 0;
        }
        return pack(f);
    } else if constexpr (W == DT_BF16) {
        const bf16 *p = (const bf16 *)w.data + (size_t)row * C + k;
        if (C % 8 == 0) return load_stream_128(p);
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

// ---------------------------------------------------------------------------------------------------------
// 2. A few rows. Every weight is read once from device memory, 16 bytes at a time and four times ahead, past the L1
// cache; the rows of x wait in shared memory, normed if need be by every block anew, which is cheaper than a kernel.
//
//     warp:  one output column (a row of w) at a time, `split` warps of a block share one
//     lane:  16 bytes of w = E weights: 4 f32, 8 bf16, 16 int8, 32 int4 (one group, one scale)
//
// Bytes: OC*C weights. Blocks stay for the whole layer (as many as fit on the device at once), so that the norm is
// done once per block. `split` is chosen so that all warps finish together (rows_split).

enum { ROWS_WARPS = 16, ROWS_MOST = 8, ROWS_AHEAD = 4 };

template <int W> static __host__ __device__ constexpr int per_16() {
    return W == DT_F32 ? 4 : W == DT_BF16 ? 8 : W == DT_INT8 ? 16 : 32;
}

// Where column c of a row of x lies in shared memory. Lanes read pieces of 16 bytes that lie 16, 32 (int8) or 64 (int4)
// bytes apart; the exclusive or spreads any eight of them over all banks.
template <typename T> static __device__ __forceinline__ int x_at(int c) {
    constexpr int N = 16 / sizeof(T);
    const int piece = c / N;
    return (piece ^ (piece >> 3 & 3)) * N + c % N;
}

// 16 bytes of a weight times columns c.. of R rows: acc (R) += . x is in shared memory, rows ldx apart.
template <int W, typename T, int R>
static __device__ __forceinline__ void multiply_16(float (&acc)[R], uint4 v, float scale, const T *x, int c, int ldx) {
    const u32 u[4] = {v.x, v.y, v.z, v.w};
    constexpr int E = per_16<W>(), N = 16 / sizeof(T);   // N: what 16 bytes of x hold
    float f[E];
    if constexpr (W == DT_F32) unpack(f, v, 0.0f);
    else if constexpr (W == DT_BF16) unpack(f, v, bf16());
    else if constexpr (W == DT_INT8) {
        #pragma unroll
        for (int i = 0; i < 16; i++) f[i] = (float)(int8_t)(u[i / 4] >> (i % 4 * 8));
    } else {
        #pragma unroll
        for (int i = 0; i < 16; i++) {
            const u32 byte = u[i / 4] >> (i % 4 * 8);
            f[i] = (float)((int)(byte & 15) - 8);
            f[i + 16] = (float)((int)(byte >> 4 & 15) - 8);
        }
    }
    #pragma unroll
    for (int r = 0; r < R; r++) {
        float sum = 0;
        if constexpr (N > E) {   // f32 weights in a file of another type
            #pragma unroll
            for (int i = 0; i < E; i++) sum += f[i] * f32_of(x[r * ldx + x_at<T>(c + i)]);
        } else {
            #pragma unroll
            for (int i = 0; i < E; i += N) {
                float y[N];
                unpack(y, load_128(x + r * ldx + x_at<T>(c + i)), T());
                #pragma unroll
                for (int k = 0; k < N; k++) sum += f[i + k] * y[k];
            }
        }
        acc[r] += W == DT_INT4 ? sum * scale : sum;
    }
}

// Sum over a row of w by the lanes of `split` warps, this being warp `part`: acc (R), to be added up over lanes.
template <int W, typename T, int R>
static __device__ __forceinline__ void row_dot(float (&acc)[R], const Tensor &w, int row, const T *x, int ldx, int C,
                                               int part, int split) {
    constexpr int E = per_16<W>();
    const int lane = threadIdx.x % 32, step = 32 * split;
    const int groups = (C + 31) / 32;
    const bool whole = W == DT_INT4 || C % E == 0;   // rows of other lengths are not aligned
    const int n = W == DT_INT4 ? groups : whole ? C / E : 0;
    const uint8_t *p = (const uint8_t *)w.data + (W == DT_INT4 ? (size_t)row * groups * 16 : (size_t)row * n * 16);
    const f16 *scales = (const f16 *)w.scale + (W == DT_INT4 ? (size_t)row * groups : 0);
    for (int i = part * 32 + lane; i < n; i += ROWS_AHEAD * step) {
        uint4 v[ROWS_AHEAD];
        float s[ROWS_AHEAD];
        #pragma unroll
        for (int k = 0; k < ROWS_AHEAD; k++) {
            const int at = i + k * step;
            if (at < n) v[k] = load_stream_128(p + (size_t)at * 16);
            s[k] = W == DT_INT4 && at < n ? f16_to_f32(scales[at]) : 1;
        }
        #pragma unroll
        for (int k = 0; k < ROWS_AHEAD; k++)
            if (i + k * step < n) multiply_16<W>(acc, v[k], s[k], x, (i + k * step) * E, ldx);
    }
    if (!whole)
        for (int c = part * 32 + lane; c < C; c += step) {
            float f;
            if constexpr (W == DT_INT8) f = ((const int8_t *)w.data)[(size_t)row * C + c];
            else f = weight_at(w, row, c);
            #pragma unroll
            for (int r = 0; r < R; r++) acc[r] += f * f32_of(x[r * ldx + x_at<T>(c)]);
        }
}

// Elements of a row of x in shared memory: int4 groups reach beyond C, and x_at needs multiples of four pieces.
static __host__ __device__ inline int rows_stride(int C) { return (C + 31) / 32 * 32; }

// The rows of d.x, or the norm of d.x32, into shared memory: xs (R, rows_stride(C)), zero where there is nothing.
template <typename T, int R>
static __device__ __forceinline__ void stage_rows(T *xs, const Dense &d) {
    const int ldx = rows_stride(d.C), C = d.C;
    if (!d.x32) {
        for (int r = 0; r < R; r++)
            for (int c = threadIdx.x; c < ldx; c += blockDim.x)
                put(xs + r * ldx + x_at<T>(c), r < d.T && c < C ? f32_of(((const T *)d.x)[(size_t)r * C + c]) : 0);
        __syncthreads();
        return;
    }
    SHARED(float, red, [2][ROWS_WARPS][R]);
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, warps = blockDim.x / 32;
    float mean[R], s[R];
    #pragma unroll
    for (int pass = 0; pass < 2; pass++) {   // the mean, then the variance about it
        if (pass == 0 && !d.norm_b) {
            #pragma unroll
            for (int r = 0; r < R; r++) mean[r] = 0;
            continue;
        }
        #pragma unroll
        for (int r = 0; r < R; r++) {
            s[r] = 0;
            if (r < d.T)
                for (int c = threadIdx.x; c < C; c += blockDim.x) {
                    const float x = d.x32[(size_t)r * C + c];
                    s[r] += pass == 0 ? x : (x - mean[r]) * (x - mean[r]);
                }
            s[r] = warp_sum(s[r]);
            if (lane == 0) red[pass][warp][r] = s[r];
        }
        __syncthreads();
        #pragma unroll
        for (int r = 0; r < R; r++) {
            float all = 0;
            for (int w = 0; w < warps; w++) all += red[pass][w][r];
            if (pass == 0) mean[r] = all / C;
            else s[r] = 1 / sqrtf(all / C + d.eps);
        }
    }
    #pragma unroll
    for (int r = 0; r < R; r++)
        for (int c = threadIdx.x; c < ldx; c += blockDim.x) {
            float y = 0;
            if (r < d.T && c < C) {
                y = (d.x32[(size_t)r * C + c] - mean[r]) * s[r] * d.norm_w[c];
                y = (y + (d.norm_b ? d.norm_b[c] : 0)) * d.norm_scale;
            }
            put(xs + r * ldx + x_at<T>(c), y);
        }
    __syncthreads();
}

// Row t, column o of the result, its sum y.
template <typename T>
static __device__ __forceinline__ void finish(const Dense &d, int t, int o, float y, float gate) {
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

template <int W, typename T, int R>
__global__ void __launch_bounds__(32 * ROWS_WARPS, 1) rows_kernel(Dense d, int split) {
    // see Dense; d.T <= R
    SHARED_DYNAMIC(T, xs);
    SHARED(float, part_sum, [2][2][ROWS_WARPS][R]);
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const int slots = ROWS_WARPS / split, part = warp % split, ldx = rows_stride(d.C);
    const int first = blockIdx.x * slots + warp / split;
    if (first < d.OC) {   // weights are nobody's output: start on them before the kernel ahead is done
        const size_t bytes = W == DT_INT4 ? (size_t)(ldx / 2) : (size_t)d.C * 16 / per_16<W>();
        const size_t at = ((size_t)part * 32 + lane) * 128;
        if (at < bytes) prefetch_l2((const uint8_t *)d.w.data + first * bytes + at);
    }
    pdl_wait();
    pdl_launch();
    stage_rows<T, R>(xs, d);
    int turn = 0;
    for (int o0 = blockIdx.x * slots; o0 < d.OC; o0 += gridDim.x * slots, turn ^= 1) {
        const int o = o0 + warp / split;
        float acc[R], gate[R];
        #pragma unroll
        for (int r = 0; r < R; r++) acc[r] = gate[r] = 0;
        if (o < d.OC) {
            row_dot<W, T, R>(acc, d.w, o, xs, ldx, d.C, part, split);
            if (d.gated) row_dot<W, T, R>(gate, d.w, o + d.OC, xs, ldx, d.C, part, split);
        }
        #pragma unroll
        for (int r = 0; r < R; r++) {
            acc[r] = warp_sum(acc[r]);
            if (d.gated) gate[r] = warp_sum(gate[r]);
            if (lane == r) part_sum[turn][0][warp][r] = acc[r], part_sum[turn][1][warp][r] = gate[r];
        }
        if (split > 1) __syncthreads();   // part_sum of the turn before may still be read: it is the other half
        else __syncwarp();
        if (part == 0 && lane < d.T && o < d.OC) {
            float y = 0, z = 0;
            for (int w = warp; w < warp + split; w++) y += part_sum[turn][0][w][lane], z += part_sum[turn][1][w][lane];
            if (W == DT_INT8) {
                y *= ((const float *)d.w.scale)[o];
                if (d.gated) z *= ((const float *)d.w.scale)[o + d.OC];
            }
            finish<T>(d, lane, o, y, z);
        }
    }
}

typedef struct {
    int sms;                  // multiprocessors
    int shared_most;          // bytes of shared memory that a block may ask for
} Device;

// The largest R that fits, R rows at a time; and how many warps share an output column: the choice that leaves the
// fewest warps idle in the last round, the smaller one among equals.
static int rows_split(int OC, int blocks) {
    int best = 1;
    double best_waste = 1e30;
    for (int split = 1; split <= ROWS_WARPS; split *= 2) {
        const double units = (double)OC * split, round = (double)blocks * (int)ROWS_WARPS;
        const double waste = ceil(units / round) * round / units;
        if (waste < best_waste * 0.97) best = split, best_waste = waste;
    }
    return best;
}

template <int W, typename T, int R>
static void launch_rows(cudaStream_t s, const Dense &d, const Device &dev) {
    const size_t shared = (size_t)R * rows_stride(d.C) * sizeof(T);
    const auto kernel = rows_kernel<W, T, R>;
    CUDA_CHECK(cudaFuncSetAttribute((const void *)kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)shared));
    const int per_sm = shared * 2 + 8192 <= (size_t)dev.shared_most ? 2 : 1;
    const int split = rows_split(d.OC, dev.sms * per_sm), need = ceil_div(d.OC, ROWS_WARPS / split);
    const int grid = need < dev.sms * per_sm ? need : dev.sms * per_sm;
    LAUNCH_PDL(kernel, dim3(grid), dim3(32 * ROWS_WARPS), shared, s, d, split);
}

// Any number of rows, as many at a time as fit into shared memory. False: not even one does.
template <int W, typename T>
static bool rows_dense_of(cudaStream_t s, Dense d, const Device &dev) {
    const size_t row = rows_stride(d.C) * sizeof(T), room = (size_t)dev.shared_most - 4096;
    const size_t out_size = d.kind == OUT_ACT ? sizeof(T) : sizeof(float);
    if (row > room) return false;
    for (int left = d.T; left > 0;) {
        int R = left >= 5 ? 8 : left >= 3 ? 4 : left;
        while (R * row > room) R /= 2;
        d.T = left < R ? left : R;
        if (R == 1) launch_rows<W, T, 1>(s, d, dev);
        else if (R == 2) launch_rows<W, T, 2>(s, d, dev);
        else if (R == 4) launch_rows<W, T, 4>(s, d, dev);
        else launch_rows<W, T, 8>(s, d, dev);
        left -= d.T;
        d.out = (uint8_t *)d.out + (size_t)d.T * d.OC * out_size;
        if (d.x32) d.x32 += (size_t)d.T * d.C;
        else d.x = (const T *)d.x + (size_t)d.T * d.C;
        if (d.slot) d.slot += d.T;
    }
    return true;
}

template <typename T> static bool rows_dense(cudaStream_t s, const Dense &d, const Device &dev) {
    if constexpr (sizeof(T) == 4) return rows_dense_of<DT_F32, float>(s, d, dev);
    else return d.w.dtype == DT_BF16 ? rows_dense_of<DT_BF16, bf16>(s, d, dev)
              : d.w.dtype == DT_INT8 ? rows_dense_of<DT_INT8, bf16>(s, d, dev)
              : d.w.dtype == DT_INT4 ? rows_dense_of<DT_INT4, bf16>(s, d, dev)
                                     : rows_dense_of<DT_F32, bf16>(s, d, dev);
}

// ---------------------------------------------------------------------------------------------------------
// 3. Many rows on tensor cores: tiles of 64 rows by 64 columns, 32 deep; four warps with 32 x 32 each. The next tile is
// fetched into registers (weights become bf16 there) while this one is multiplied out of shared memory, two buffers,
// one barrier a step. Any shape: edges are zero in shared memory, not in device memory.
// Bytes: w read once per 64 rows, x once per 64 columns, mostly from L2.

enum { GEMM_M = 64, GEMM_N = 64, GEMM_K = 32, GEMM_LD = GEMM_K + 8 };

static __device__ __forceinline__ uint4 x_8(const Dense &d, int t, int k) {
    if (t >= d.T || k >= d.C) return zero_128();
    const bf16 *p = (const bf16 *)d.x + (size_t)t * d.C + k;
    if (d.C % 8 == 0) return load_128(p);
    u32 u[4];
    #pragma unroll
    for (int i = 0; i < 4; i++)
        u[i] = (k + 2 * i < d.C ? p[2 * i] : 0) | (u32)(k + 2 * i + 1 < d.C ? p[2 * i + 1] : 0) << 16;
    return make_uint4(u[0], u[1], u[2], u[3]);
}

template <int W>
__global__ void __launch_bounds__(128) gemm_kernel(Dense d) {
    SHARED(bf16, xs, [2][GEMM_M][GEMM_LD]);
    SHARED(bf16, ws, [2][GEMM_N][GEMM_LD]);
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, c2 = lane % 4 * 2;
    const int o0 = blockIdx.x * GEMM_N, t0 = blockIdx.y * GEMM_M, m0 = warp / 2 * 32, n0 = warp % 2 * 32;
    const int steps = (d.C + GEMM_K - 1) / GEMM_K;
    const int row = threadIdx.x / 4, col = threadIdx.x % 4 * 8;   // what this thread fetches, and 32 rows further
    float acc[2][4][4] = {};
    uint4 xv[2], wv[2];
    for (int step = -1; step < steps; step++) {
        if (step + 1 < steps) {
            const int k = (step + 1) * GEMM_K + col;
            #pragma unroll
            for (int i = 0; i < 2; i++) {
                const int o = o0 + row + 32 * i;
                xv[i] = x_8(d, t0 + row + 32 * i, k);
                wv[i] = o < d.OC && k < d.C ? weights_8<W>(d.w, o, k) : zero_128();
            }
        }
        if (step >= 0) {
            #pragma unroll
            for (int k = 0; k < GEMM_K; k += 16) {
                u32 a[2][4], b[2][4];
                #pragma unroll
                for (int i = 0; i < 2; i++) {
                    ldmatrix_x4(a[i], &xs[step & 1][m0 + i * 16 + lane % 16][k + lane / 16 * 8]);
                    ldmatrix_x4(b[i], &ws[step & 1][n0 + i * 16 + lane / 16 * 8 + lane % 8][k + lane / 8 % 2 * 8]);
                }
                #pragma unroll
                for (int i = 0; i < 2; i++)
                    #pragma unroll
                    for (int n = 0; n < 4; n++) mma_m16n8k16_bf16(acc[i][n], a[i], b[n / 2] + n % 2 * 2);
            }
        }
        if (step + 1 < steps)
            #pragma unroll
            for (int i = 0; i < 2; i++) {
                store_128(&xs[(step + 1) & 1][row + 32 * i][col], xv[i]);
                store_128(&ws[(step + 1) & 1][row + 32 * i][col], wv[i]);
            }
        __syncthreads();
    }
    #pragma unroll
    for (int i = 0; i < 2; i++)
        #pragma unroll
        for (int n = 0; n < 4; n++)
            #pragma unroll
            for (int e = 0; e < 4; e++) {
                const int t = t0 + m0 + i * 16 + g + e / 2 * 8, o = o0 + n0 + n * 8 + c2 + e % 2;
                if (t < d.T && o < d.OC)
                    finish<bf16>(d, t, o, acc[i][n][e] * (W == DT_INT8 ? ((const float *)d.w.scale)[o] : 1), 0);
            }
}

static void gemm(cudaStream_t s, const Dense &d) {
    // d.x, not d.x32; not gated
    const auto kernel = d.w.dtype == DT_BF16 ? gemm_kernel<DT_BF16> : d.w.dtype == DT_INT8 ? gemm_kernel<DT_INT8>
                      : d.w.dtype == DT_INT4 ? gemm_kernel<DT_INT4> : gemm_kernel<DT_F32>;
    LAUNCH(kernel, dim3(ceil_div(d.OC, GEMM_N), ceil_div(d.T, GEMM_M)), dim3(128), 0, s, d);
}

// ---------------------------------------------------------------------------------------------------------
// 4. cuBLASLt. It thinks in column-major matrices: our x (T,C) is its (C,T), and
//
//     out (T,OC) = x w^T    is for it    out (OC,T) = op(w) x    with op = transpose, w (C,OC), x (C,T)
//
// The bias, one per row of its result, has the type of the result: f32 biases for f32 results, bf16 copies for bf16.
// Adding to the residual stream is beta = 1 in place. Descriptions and algorithms are kept per shape.

typedef struct {
    int T, OC, C, dtype, kind, epilogue;      // the key
    cublasLtMatmulDesc_t op;
    cublasLtMatrixLayout_t w, x, out;
    cublasLtMatmulAlgo_t algo;
    bool none;                                // the library has no algorithm for this shape
} LtPlan;

enum { LT_PLANS = 128 };

typedef struct {
    cublasLtHandle_t handle;
    void *workspace;
    size_t workspace_bytes;
    LtPlan plans[LT_PLANS];
    int n, next;
} Lt;

static void lt_forget(LtPlan *p) {
    cublasLtMatmulDescDestroy(p->op);
    cublasLtMatrixLayoutDestroy(p->w);
    cublasLtMatrixLayoutDestroy(p->x);
    cublasLtMatrixLayoutDestroy(p->out);
}

static void lt_close(Lt *lt) {
    for (int i = 0; i < lt->n; i++) lt_forget(&lt->plans[i]);
    if (lt->handle) cublasLtDestroy(lt->handle);
}

static LtPlan lt_make(Lt *lt, LtPlan p) {
    const cudaDataType_t in = p.dtype == DT_F32 ? CUDA_R_32F : CUDA_R_16BF;
    const cudaDataType_t out = p.kind == OUT_ACT ? in : CUDA_R_32F;
    const cublasOperation_t transpose = CUBLAS_OP_T;
    const cublasLtEpilogue_t epilogue = (cublasLtEpilogue_t)p.epilogue;
    CUBLAS_CHECK(cublasLtMatmulDescCreate(&p.op, CUBLAS_COMPUTE_32F, CUDA_R_32F));
    CUBLAS_CHECK(cublasLtMatmulDescSetAttribute(p.op, CUBLASLT_MATMUL_DESC_TRANSA, &transpose, sizeof transpose));
    CUBLAS_CHECK(cublasLtMatmulDescSetAttribute(p.op, CUBLASLT_MATMUL_DESC_EPILOGUE, &epilogue, sizeof epilogue));
    if (p.epilogue != CUBLASLT_EPILOGUE_DEFAULT)
        CUBLAS_CHECK(cublasLtMatmulDescSetAttribute(p.op, CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE, &out, sizeof out));
    CUBLAS_CHECK(cublasLtMatrixLayoutCreate(&p.w, in, (uint64_t)p.C, (uint64_t)p.OC, p.C));
    CUBLAS_CHECK(cublasLtMatrixLayoutCreate(&p.x, in, (uint64_t)p.C, (uint64_t)p.T, p.C));
    CUBLAS_CHECK(cublasLtMatrixLayoutCreate(&p.out, out, (uint64_t)p.OC, (uint64_t)p.T, p.OC));
    cublasLtMatmulPreference_t wish;
    cublasLtMatmulHeuristicResult_t found;
    int n = 0;
    CUBLAS_CHECK(cublasLtMatmulPreferenceCreate(&wish));
    CUBLAS_CHECK(cublasLtMatmulPreferenceSetAttribute(wish, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES,
                                                      &lt->workspace_bytes, sizeof lt->workspace_bytes));
    // What the pointers are aligned to at least: a row further on in a buffer is not at 256 bytes any more.
    const uint32_t aligned = 16, odd = (uint32_t)(p.dtype == DT_F32 ? 4 : 2);
    const uint32_t a = (p.C * (p.dtype == DT_F32 ? 4 : 2)) % 16 ? odd : aligned, o = p.OC % 8 ? odd : aligned;
    CUBLAS_CHECK(cublasLtMatmulPreferenceSetAttribute(wish, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, &a, sizeof a));
    CUBLAS_CHECK(cublasLtMatmulPreferenceSetAttribute(wish, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, &o, sizeof o));
    CUBLAS_CHECK(cublasLtMatmulPreferenceSetAttribute(wish, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, &o, sizeof o));
    const cublasStatus_t status = cublasLtMatmulAlgoGetHeuristic(lt->handle, p.op, p.w, p.x, p.out, p.out, wish, 1,
                                                                 &found, &n);
    cublasLtMatmulPreferenceDestroy(wish);
    if (status != CUBLAS_STATUS_NOT_SUPPORTED) CUBLAS_CHECK(status);
    p.none = status == CUBLAS_STATUS_NOT_SUPPORTED || n == 0;
    if (!p.none) p.algo = found.algo;
    return p;
}

// bias: f32 for kinds OUT_F32 and OUT_ADD and in f32 mode, bf16 for OUT_ACT in bf16 mode; NULL for none. relu: behind
// the bias. False when the library cannot do it.
static bool lt_dense(cudaStream_t s, Lt *lt, const Dense &d, const void *bias, bool relu) {
    const int epilogue = !bias ? CUBLASLT_EPILOGUE_DEFAULT
                       : relu ? CUBLASLT_EPILOGUE_RELU_BIAS : CUBLASLT_EPILOGUE_BIAS;
    LtPlan *p = NULL;
    for (int i = 0; i < lt->n && !p; i++) {
        LtPlan *q = &lt->plans[i];
        if (q->T == d.T && q->OC == d.OC && q->C == d.C && q->dtype == d.w.dtype && q->kind == d.kind &&
            q->epilogue == epilogue) p = q;
    }
    if (!p) {
        p = &lt->plans[lt->n < LT_PLANS ? lt->n++ : lt->next++ % LT_PLANS];
        if (p->op) lt_forget(p);
        LtPlan key = {};
        key.T = d.T, key.OC = d.OC, key.C = d.C, key.dtype = d.w.dtype, key.kind = d.kind, key.epilogue = epilogue;
        *p = lt_make(lt, key);
    }
    if (p->none) return false;
    if (bias)
        CUBLAS_CHECK(cublasLtMatmulDescSetAttribute(p->op, CUBLASLT_MATMUL_DESC_BIAS_POINTER, &bias, sizeof bias));
    const float one = 1, beta = d.kind == OUT_ADD ? 1 : 0;
    CUBLAS_CHECK(cublasLtMatmul(lt->handle, p->op, &one, d.w.data, p->w, d.x, p->x, &beta, d.out, p->out, d.out, p->out,
                                &p->algo, lt->workspace, lt->workspace_bytes, s));
    return true;
}

#endif
