// cuda_matvec.cuh: dense layers of up to eight rows without tensor cores: f32 weights, and rows of odd lengths.
//
// In order: 16 bytes of weights times rows of x; a row of w; x or its norm in shared memory; rows_kernel; rows_dense,
// which also chooses between this and stream_kernel.
// Not here: bf16, int8 and int4 weights of usual lengths (cuda_stream.cuh).
#ifndef CUDA_MATVEC_CUH
#define CUDA_MATVEC_CUH

#include "cuda_stream.cuh"

// ---------------------------------------------------------------------------------------------------------
// A few rows. Every weight is read once from device memory, 16 bytes at a time and four times ahead, past the L1
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

template <int W, typename T, int R>
__global__ void __launch_bounds__(32 * ROWS_WARPS, 1) rows_kernel(Dense d, int split) {
    // see Dense; d.T <= R
    SHARED_DYNAMIC(T, xs);
    SHARED(float, part_sum, [2][2][ROWS_WARPS][R]);
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const int slots = ROWS_WARPS / split, part = warp % split, ldx = rows_stride(d.C);
    const int first = blockIdx.x * slots + warp / split, going = goes_on(d.going);
    if (first < d.OC) {   // weights are nobody's output: start on them before the kernel ahead is done
        const size_t bytes = W == DT_INT4 ? (size_t)(ldx / 2) : (size_t)d.C * 16 / per_16<W>();
        const size_t at = ((size_t)part * 32 + lane) * 128;
        if (at < bytes) prefetch_l2((const uint8_t *)d.w.data + first * bytes + at);
    }
    pdl_wait();
    pdl_launch();
    if (!going) return;
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

// What suits the layer: tensor cores for up to STREAM_MOST rows, otherwise any number of rows, some at a time.
template <typename T> static bool rows_dense(cudaStream_t s, const Dense &d, const Device &dev) {
    if (sizeof(T) == 2 && stream_dense(s, d, dev)) return true;
    if constexpr (sizeof(T) == 4) return rows_dense_of<DT_F32, float>(s, d, dev);
    else return d.w.dtype == DT_BF16 ? rows_dense_of<DT_BF16, bf16>(s, d, dev)
              : d.w.dtype == DT_INT8 ? rows_dense_of<DT_INT8, bf16>(s, d, dev)
              : d.w.dtype == DT_INT4 ? rows_dense_of<DT_INT4, bf16>(s, d, dev)
                                     : rows_dense_of<DT_F32, bf16>(s, d, dev);
}

#endif
