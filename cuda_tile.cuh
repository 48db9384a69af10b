// cuda_tile.cuh: dense layers of more than 64 rows: int8 and int4 weights; bf16 for up to 176 rows, and where the
// library's tiles fit badly, above all the ViT's 257.
//
// In order: weights as bf16 fragments; a step's multiply; sums of blocks that share a tile, and their way out;
// tile_kernel; tile_fits, the rule; tile_dense, its launcher.
//
// Tensor-core tiles are 64 or 128 rows high, so that 257 rows of x cost as much as 320 or 384. Here the rows of w stand
// on that side and x on the other, which has steps of 8: three tiles of 88 are 264.
//
//     block:  128 rows of w (gated: 64 of either half) by 88 rows of x, or 64 of them; steps of 64 columns
//     warp:   32 of these rows by all 88, 22 mma tiles of 16 x 8 in 88 registers
//
// Both operands come by cp.async, TILE_STAGES - 1 steps ahead, in one barrier a step: x as it is, w as it lies in the
// file, in pieces of 16 bytes. Both keep their order in shared memory; the sum over k asks for none, so that a lane
// takes as its k what 16 bytes of x hold, 8 neighbouring columns, and picks the weights of those out of their bytes:
//
//               a lane (g,t) fetches            and uses, for columns 32*h.. (int8: all 64 by turns)
//     bf16      8 columns, its own              these
//     int8      16 columns, its own             bytes 8*h.., columns 16*t + 8*h..
//     int4      32 columns, a group             nibbles t/2 of 8 bytes of a group, columns 32*h + 8*t..
//
// Only int4 reads what other lanes of the warp fetched: a group of 32 has one scale, so that no mma may mix two. That
// scale is applied to the sums of a group, in f32: 4 multiplications for 2 mma, as in cuda_stream.cuh. On the weights
// it would be a fifth of that, but would round the products to bf16, so that the same prompt alone and in a batch would
// be answered with different weights; beside 4 mma (32 cycles of a sm_80 scheduler's tensor core, at best 16 on sm_90)
// there is room for its 8 multiply-adds. An int8 scale is a whole row's and comes in at the end.
// Pieces of x are placed so that a read touches every bank once. The sums go through shared memory, so that lines of
// the result are written whole, with bias, activation (the exact GELU, which the library lacks), gate and residual.
// Layers with few rows of w split their columns over blocks; the last to finish a tile adds the parts up in order.
// Bytes: w once per 88 rows of x, x once per 128 rows of w, all but the first time from the L2 cache.
// dense() of blip2.cu takes it, in front of lt_dense, where tile_fits says so.
// Not here: rows of w that are no multiple of 16 bytes, f32 weights, pixels (gemm_kernel).
#ifndef CUDA_TILE_CUH
#define CUDA_TILE_CUH

#include "cuda_weights.cuh"

enum {
    TILE_M = 128, TILE_K = 64, TILE_STAGES = 4,
    TILE_HIGH = 11, TILE_LOW = 8,      // heights, in 8 rows of x
    TILE_LD = TILE_M + 4,              // floats between rows of sums: two rows further on is eight banks further on
};

// Bytes of TILE_K columns of a row of w, of one stage of the ring, and sums of a thread.
template <int W> static __host__ __device__ constexpr int tile_row() {
    return W == DT_BF16 ? 128 : W == DT_INT8 ? 64 : 32;
}
template <int W, int NT> static __host__ __device__ constexpr int tile_stage() {
    return NT * 8 * TILE_K * 2 + TILE_M * tile_row<W>();
}
template <int NT> static __host__ __device__ constexpr int tile_sums() { return 2 * NT * 4; }

// ---------------------------------------------------------------------------------------------------------
// Four neighbouring weights as two pairs of bf16, the trick of int8_fragment and int4_fragment.

static __device__ __forceinline__ void int8_pairs(u32 *out, u32 u) {
    #pragma unroll
    for (int i = 0; i < 2; i++) {
        const u32 two = __byte_perm(u, 0, i ? 0x4342 : 0x4140);    // bytes 2i and 2i+1, each above a zero
        out[i] = fma_bf16x2((two & 0x007F007Fu) | 0x43004300u, 0x3F803F80u, (two & 0x00800080u) | 0xC300C300u);
    }
}

// Of the lower nibbles.
static __device__ __forceinline__ void int4_pairs(u32 *out, u32 u) {
    #pragma unroll
    for (int i = 0; i < 2; i++) {
        const u32 two = __byte_perm(u, 0, i ? 0x4342 : 0x4140);
        out[i] = fma_bf16x2((two & 0x000F000Fu) | 0x43004300u, 0x3F803F80u, 0xC308C308u);
    }
}

// Columns 32*h.. of a step, of row g of half `half` of mma tile m, as {a0,a2} of two mma. w: the warp's pieces.
template <int W>
static __device__ __forceinline__ void tile_fragment(u32 (&a)[4], const uint8_t *w, int m, int half, int h, int lane) {
    if constexpr (W == DT_BF16) {
        const uint4 v = load_128(w + (m * 4 + h * 2 + half) * 512 + lane * 16);
        a[0] = v.x, a[1] = v.y, a[2] = v.z, a[3] = v.w;
    } else if constexpr (W == DT_INT8) {
        const uint4 v = load_128(w + (m * 2 + half) * 512 + lane * 16);   // the same for h = 0 and 1, read once
        int8_pairs(a, h ? v.z : v.x), int8_pairs(a + 2, h ? v.w : v.y);
    } else {
        const int g = lane / 4, t = lane % 4;
        const uint2 v = *(const uint2 *)(w + m * 512 + (half * 16 + g * 2 + h) * 16 + t % 2 * 8);
        int4_pairs(a, v.x >> t / 2 * 4), int4_pairs(a + 2, v.y >> t / 2 * 4);
    }
}

// Two scales of a row's groups from `at` on, which is even; zero beyond the last.
static __device__ __forceinline__ u32 scales_2(const Tensor &w, size_t row, int at) {
    const int groups = (w.cols + 31) / 32;
    const f16 *p = (const f16 *)w.scale + row * groups + at;
    if (groups % 2 == 0) return at < groups ? *(const u32 *)p : 0;
    return (at < groups ? p[0] : 0) | (u32)(at + 1 < groups ? p[1] : 0) << 16;
}

// ---------------------------------------------------------------------------------------------------------

// Where piece `piece` of row `row` of x lies in a stage: so that the pieces that the lanes of two rows take, 4*h + t or
// (int8) 2*t + h, have different banks.
template <int W> static __device__ __forceinline__ int tile_x(int row, int piece) {
    return row * 128 + (piece ^ row % 2 * (W == DT_INT8 ? 1 : 4)) * 16;
}

// acc += one step; x: the stage's, w: the warp's pieces, scale: rows g of the mma tiles' halves (int4).
template <int W, int NT>
static __device__ __forceinline__ void tile_step(float (&acc)[2][NT][4], const uint8_t *x, const uint8_t *w,
                                                 const u32 (&scale)[4], int lane) {
    const int g = lane / 4, t = lane % 4;
    #pragma unroll (W == DT_INT4 ? 1 : 2)   // int4: or the compiler runs out of registers
    for (int h = 0; h < 2; h++) {
        u32 left[2][2][4];
        float s[2][2];
        #pragma unroll
        for (int m = 0; m < 2; m++)
            #pragma unroll
            for (int half = 0; half < 2; half++) {
                u32 a[4];
                tile_fragment<W>(a, w, m, half, h, lane);
                #pragma unroll
                for (int i = 0; i < 4; i++) left[m][i / 2][i % 2 * 2 + half] = a[i];
                if (W == DT_INT4) s[m][half] = f16_to_f32((f16)(scale[m * 2 + half] >> h * 16));
            }
        #pragma unroll
        for (int n = 0; n < NT; n++) {
            const uint4 v = load_128(x + tile_x<W>(n * 8 + g, W == DT_INT8 ? t * 2 + h : h * 4 + t));
            const u32 right[4] = {v.x, v.y, v.z, v.w};
            #pragma unroll
            for (int m = 0; m < 2; m++) {
                if constexpr (W != DT_INT4) {
                    mma_m16n8k16_bf16(acc[m][n], left[m][0], right);
                    mma_m16n8k16_bf16(acc[m][n], left[m][1], right + 2);
                } else {
                    float sum[4] = {};
                    mma_m16n8k16_bf16(sum, left[m][0], right);
                    mma_m16n8k16_bf16(sum, left[m][1], right + 2);
                    #pragma unroll
                    for (int e = 0; e < 4; e++) acc[m][n][e] += sum[e] * s[m][e / 2];
                }
            }
        }
    }
}

// The sums of all blocks that share a tile, in the one that ends last; false in the others.
template <int NT> static __device__ __forceinline__ bool add_parts(float (&acc)[2][NT][4], const Device &dev) {
    SHARED(int, ticket, );
    constexpr int SUMS = tile_sums<NT>();
    const size_t tile = blockIdx.y * gridDim.x + blockIdx.x, tiles = (size_t)gridDim.x * gridDim.y;
    float *mine = dev.partial + (blockIdx.z * tiles + tile) * SUMS * 128 + threadIdx.x;
    #pragma unroll
    for (int i = 0; i < SUMS; i++) mine[i * 128] = acc[i / (4 * NT)][i / 4 % NT][i % 4];
    __threadfence();
    __syncthreads();
    if (threadIdx.x == 0) {
        ticket = atomicAdd(dev.tickets + tile, 1);
        if (ticket == (int)gridDim.z - 1) atomicExch(dev.tickets + tile, 0);
    }
    __syncthreads();
    if (ticket != (int)gridDim.z - 1) return false;
    __threadfence();
    #pragma unroll
    for (int i = 0; i < SUMS; i++) acc[i / (4 * NT)][i / 4 % NT][i % 4] = 0;
    for (size_t z = 0; z < gridDim.z; z++) {
        const float *part = dev.partial + (z * tiles + tile) * SUMS * 128 + threadIdx.x;
        #pragma unroll
        for (int i = 0; i < SUMS; i++) acc[i / (4 * NT)][i / 4 % NT][i % 4] += part[i * 128];
    }
    return true;
}

// The block's sums to `out` (8*NT, TILE_LD), from where a line of the result is written by neighbouring threads.
template <int NT> static __device__ __forceinline__ void tile_write(const float (&acc)[2][NT][4], float *out) {
    const int warp = threadIdx.x / 32, g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
    #pragma unroll
    for (int i = 0; i < tile_sums<NT>(); i++) {
        const int m = i / (4 * NT), n = i / 4 % NT, e = i % 4;
        out[(n * 8 + t * 2 + e % 2) * TILE_LD + warp * 32 + m * 16 + e / 2 * 8 + g] = acc[m][n][e];
    }
}

template <int W, int NT>
__global__ void __launch_bounds__(128, 2) tile_kernel(Dense d, Device dev, int slab) {
    // see Dense; d.x, not d.x32; slab: steps a block, of which gridDim.z make a row
    SHARED_DYNAMIC(uint8_t, smem);   // stages of x (8*NT,64) and, for each warp, w (32,64)
    constexpr int N = NT * 8, X = N * TILE_K * 2, STAGE = tile_stage<W, NT>(), PIECES = tile_row<W>() / 16;
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
    const int per = d.gated ? TILE_M / 2 : TILE_M, o0 = blockIdx.x * per + warp * per / 4, t0 = blockIdx.y * N;
    const int k0 = blockIdx.z * slab * TILE_K, all_steps = (d.C + TILE_K - 1) / TILE_K;
    const int steps = all_steps - (int)blockIdx.z * slab < slab ? all_steps - (int)blockIdx.z * slab : slab;

    // Row r of half `half` of mma tile m: its column of the result, and its row of w.
    const auto column = [&](int m, int half, int r) { return d.gated ? o0 + m * 8 + r : o0 + m * 16 + half * 8 + r; };
    const auto row_of = [&](int o, int half) { return (size_t)o + (d.gated && half ? d.OC : 0); };
    const auto fetch_w = [&](int step, uint8_t *stage) {
        uint8_t *to = stage + X + warp * 32 * tile_row<W>() + lane * 16;
        #pragma unroll
        for (int i = 0; i < PIECES; i++) {
            const int half = W == DT_INT4 ? lane / 16 : i % 2, r = W == DT_INT4 ? lane / 2 % 8 : g;
            const int in = W == DT_BF16 ? i / 2 % 2 * 32 + t * 8 : W == DT_INT8 ? t * 16 : lane % 2 * 32;
            const int o = column(i * 2 / PIECES, half, r), k = k0 + step * TILE_K + in;
            const bool ok = o < d.OC && k < d.C;
            const size_t row = ok ? row_of(o, half) : 0;
            const size_t at = W == DT_BF16 ? (row * d.C + k) * 2 : W == DT_INT8 ? row * d.C + k
                                                                 : (row * ((d.C + 31) / 32) + k / 32) * 16;
            cp_async_16(to + i * 512, (const uint8_t *)d.w.data + (ok ? at : 0), ok ? 16 : 0);
        }
    };
    u32 scale[4] = {}, next_scale[4] = {};   // int4: of this step and the next
    const auto fetch_scales = [&](int step) {
        #pragma unroll
        for (int i = 0; i < 4; i++) {
            const int o = column(i / 2, i % 2, g);
            const bool ok = o < d.OC && step < steps;
            next_scale[i] = ok ? scales_2(d.w, row_of(o, i % 2), k0 / 32 + step * 2) : 0;
        }
    };
    const auto fetch_x = [&](int step, uint8_t *stage) {
        for (int i = threadIdx.x; i < N * 8; i += 128) {
            const int row = i / 8, piece = i % 8, k = k0 + step * TILE_K + piece * 8;
            const bool ok = t0 + row < d.T && k < d.C;
            const bf16 *from = (const bf16 *)d.x + (ok ? (size_t)(t0 + row) * d.C + k : 0);
            cp_async_16(stage + tile_x<W>(row, piece), from, ok ? 16 : 0);
        }
    };

    const int going = goes_on(d.going);
    #pragma unroll
    for (int i = 0; i < TILE_STAGES - 1; i++) if (i < steps) fetch_w(i, smem + i * STAGE);
    if (W == DT_INT4) fetch_scales(0);
    pdl_wait();
    pdl_launch();
    if (!going) {
        cp_async_commit();   // a wait sees committed copies only
        cp_async_wait<0>();
        return;
    }
    #pragma unroll
    for (int i = 0; i < TILE_STAGES - 1; i++) {
        if (i < steps) fetch_x(i, smem + i * STAGE);
        cp_async_commit();   // the first group has all of w so far, which comes first anyway
    }
    float acc[2][NT][4] = {};
    for (int step = 0; step < steps; step++) {
        cp_async_wait<TILE_STAGES - 2>();
        __syncthreads();   // everybody's copies of this step are there, and the stage of the step before is free
        const int next = step + TILE_STAGES - 1;
        uint8_t *to = smem + next % TILE_STAGES * STAGE;
        if (next < steps) fetch_w(next, to), fetch_x(next, to);
        cp_async_commit();
        if (W == DT_INT4) {
            #pragma unroll
            for (int i = 0; i < 4; i++) scale[i] = next_scale[i];
            fetch_scales(step + 1);
        }
        const uint8_t *x = smem + step % TILE_STAGES * STAGE, *w = x + X + warp * 32 * tile_row<W>();
        tile_step<W, NT>(acc, x, w, scale, lane);
    }
    cp_async_wait<0>();

    if (gridDim.z > 1 && !add_parts(acc, dev)) return;
    __syncthreads();   // nobody reads the ring any more
    tile_write(acc, (float *)smem);
    __syncthreads();
    for (int c = threadIdx.x % per, row = threadIdx.x / per; row < N && t0 + row < d.T; row += 128 / per) {
        const int o = blockIdx.x * per + c, at = row * TILE_LD + (d.gated ? c / 8 * 16 + c % 8 : c);
        if (o >= d.OC) break;
        float y = ((const float *)smem)[at], gate = d.gated ? ((const float *)smem)[at + 8] : 0;
        if (W == DT_INT8) {
            y *= ((const float *)d.w.scale)[o];
            if (d.gated) gate *= ((const float *)d.w.scale)[o + d.OC];
        }
        finish<bf16>(d, t0 + row, o, y, gate);
    }
}

// Rows of a tile, in eights: the lower ones where they compute a tenth less, as for 89..128 rows. They share a fragment
// of w among fewer mma.
static int tile_height(int T) {
    const int high = ceil_div(T, 8 * TILE_HIGH) * 8 * TILE_HIGH, low = ceil_div(T, 8 * TILE_LOW) * 8 * TILE_LOW;
    return 10 * low <= 9 * high ? TILE_LOW : TILE_HIGH;
}

// The rule. int8 and int4: always, the library has no such multiply, and all that a layer's weights as bf16 in memory
// would save is the work of making fragments. bf16: instead of the library
//   - for up to 2 * 88 rows. That few are bound by reading w, or nearly (an operation for each byte and row, where a
//     card has 150 to 300 for each byte), and here bias, GELU, gate and the KV cache are in the same kernel, which
//     knows when an answer has ended (goes_on);
//   - where its tiles of 128 rows compute a fourth more, as for 177..192 and 257..264 rows.
// Of gated layers with more rows the library writes both halves, and a kernel of its own reads them: 8 * T * OC bytes
// beside 4 * T * OC * C operations, on a H100 600 / C of the multiply's time: less than a third for flan-t5-xl, a
// seventh for xxl, against which stands what mma.sync leaves of that card's peak: not decided here.
// By shape only, so that every run takes the same; to be revised when a card has measured both.
static bool tile_fits(const Dense &d) {
    if (d.x32 || d.C % 8 || (d.w.dtype == DT_INT8 && d.C % 16) || d.w.dtype == DT_F32) return false;
    if (d.w.dtype != DT_BF16 || d.T <= 2 * 8 * TILE_HIGH) return true;
    const int height = 8 * tile_height(d.T);
    return 5 * ceil_div(d.T, height) * height <= 4 * ceil_div(d.T, 128) * 128;
}

template <int W, int NT> static void tile_launch(cudaStream_t s, const Dense &d, const Device &dev) {
    const int per = d.gated ? TILE_M / 2 : TILE_M, steps = ceil_div(d.C, TILE_K);
    const int columns = ceil_div(d.OC, per), rows = ceil_div(d.T, NT * 8), tiles = columns * rows;
    const size_t part = (size_t)tiles * tile_sums<NT>() * 512;
    int split = 1;
    while (tiles * split * 2 <= dev.sms + dev.sms / 4 && steps >= split * 2 * TILE_STAGES &&
           part * split * 2 <= dev.partial_bytes && tiles <= STREAM_TICKETS) split *= 2;
    const int slab = ceil_div(steps, split), shared = TILE_STAGES * tile_stage<W, NT>();
    const auto kernel = tile_kernel<W, NT>;
    CUDA_CHECK(cudaFuncSetAttribute((const void *)kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared));
    LAUNCH_PDL(kernel, dim3(columns, rows, ceil_div(steps, slab)), dim3(128), shared, s, d, dev, slab);
}

template <int NT> static void tile_launch_of(cudaStream_t s, const Dense &d, const Device &dev) {
    if (d.w.dtype == DT_BF16) tile_launch<DT_BF16, NT>(s, d, dev);
    else if (d.w.dtype == DT_INT8) tile_launch<DT_INT8, NT>(s, d, dev);
    else tile_launch<DT_INT4, NT>(s, d, dev);
}

// tile_fits(d), activations bf16
static void tile_dense(cudaStream_t s, const Dense &d, const Device &dev) {
    if (tile_height(d.T) == TILE_LOW) tile_launch_of<TILE_LOW>(s, d, dev);
    else tile_launch_of<TILE_HIGH>(s, d, dev);
}

#endif
