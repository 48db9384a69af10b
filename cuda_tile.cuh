// cuda_tile.cuh: dense layers of bf16 weights where the library's tiles fit badly, above all the ViT's 257 rows.
//
// In order: tile_kernel; tile_fits, the rule; tile_dense, its launcher.
//
// Tensor-core tiles are 64 or 128 rows high, so that 257 rows of x cost as much as 320 or 384. Here the rows of w stand
// on that side and x on the other, which has steps of 8: three tiles of 88 are 264.
//
//     block:  128 rows of w (gated: 64 of either half) by 88 rows of x; steps of 64 columns
//     warp:   32 of these rows by all 88, 22 mma tiles of 16 x 8 in 88 registers
//
// Both operands come by cp.async, TILE_STAGES - 1 steps ahead, in one barrier a step. A lane fetches and reads its own
// pieces of w as in cuda_stream.cuh, since no other warp needs them; x is everybody's, its 16-byte pieces placed so
// that a read touches every bank once. Bias, activation (the exact GELU, which the library lacks), gate and residual
// are applied on the way out. Layers with few rows of w split their columns over blocks; the last to finish a tile adds
// the parts up in order.
// Bytes: w once per 88 rows of x, x once per 128 rows of w, all but the first time from the L2 cache.
// dense() of blip2.cu takes it, in front of lt_dense, where tile_fits says so.
// Not here: int8 and int4 weights (gemm_kernel), rows of odd lengths.
#ifndef CUDA_TILE_CUH
#define CUDA_TILE_CUH

#include "cuda_weights.cuh"

enum {
    TILE_M = 128, TILE_N = 88, TILE_K = 64, TILE_STAGES = 4, TILE_NT = TILE_N / 8,
    TILE_X = TILE_N * TILE_K * 2, TILE_STAGE = TILE_X + TILE_M * TILE_K * 2,   // bytes
    TILE_SUMS = 2 * TILE_NT * 4,                                               // of a thread
};

__global__ void __launch_bounds__(128, 2) tile_kernel(Dense d, Device dev, int slab) {
    // see Dense; d.x, not d.x32; slab: steps a block, of which gridDim.z make a row
    SHARED_DYNAMIC(uint8_t, smem);   // stages of x (88,64) and, for each warp, w (32,64)
    SHARED(int, ticket, );
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
    const int per = d.gated ? TILE_M / 2 : TILE_M, o0 = blockIdx.x * per + warp * per / 4, t0 = blockIdx.y * TILE_N;
    const int k0 = blockIdx.z * slab * TILE_K, all_steps = (d.C + TILE_K - 1) / TILE_K;
    const int steps = all_steps - (int)blockIdx.z * slab < slab ? all_steps - (int)blockIdx.z * slab : slab;

    // Row g of half `half` of mma tile m: its column of the result, and its row of w.
    const auto column = [&](int m, int half) { return d.gated ? o0 + m * 8 + g : o0 + m * 16 + half * 8 + g; };
    const auto fetch_w = [&](int step, uint8_t *stage) {
        uint8_t *to = stage + TILE_X + warp * 4096 + lane * 16;
        #pragma unroll
        for (int i = 0; i < 8; i++) {   // mma tile i/4, columns 32*(i/2%2).., half i%2
            const int o = column(i / 4, i % 2), k = k0 + step * TILE_K + i / 2 % 2 * 32 + t * 8;
            const bool ok = o < d.OC && k < d.C;
            const size_t row = (size_t)o + (d.gated && i % 2 ? d.OC : 0);
            cp_async_16(to + i * 512, (const bf16 *)d.w.data + (ok ? row * d.C + k : 0), ok ? 16 : 0);
        }
    };
    const auto fetch_x = [&](int step, uint8_t *stage) {
        for (int i = threadIdx.x; i < TILE_N * 8; i += 128) {
            const int row = i / 8, piece = i % 8, k = k0 + step * TILE_K + piece * 8;
            const bool ok = t0 + row < d.T && k < d.C;
            const bf16 *from = (const bf16 *)d.x + (ok ? (size_t)(t0 + row) * d.C + k : 0);
            cp_async_16(stage + row * 128 + (piece ^ row % 2 * 4) * 16, from, ok ? 16 : 0);
        }
    };

    #pragma unroll
    for (int i = 0; i < TILE_STAGES - 1; i++) if (i < steps) fetch_w(i, smem + i * TILE_STAGE);
    pdl_wait();
    pdl_launch();
    #pragma unroll
    for (int i = 0; i < TILE_STAGES - 1; i++) {
        if (i < steps) fetch_x(i, smem + i * TILE_STAGE);
        cp_async_commit();   // the first group has all of w so far, which comes first anyway
    }
    float acc[2][TILE_NT][4] = {};
    for (int step = 0; step < steps; step++) {
        cp_async_wait<TILE_STAGES - 2>();
        __syncthreads();   // everybody's copies of this step are there, and the stage of the step before is free
        const int next = step + TILE_STAGES - 1;
        uint8_t *to = smem + next % TILE_STAGES * TILE_STAGE;
        if (next < steps) fetch_w(next, to), fetch_x(next, to);
        cp_async_commit();
        const uint8_t *x = smem + step % TILE_STAGES * TILE_STAGE, *w = x + TILE_X + warp * 4096 + lane * 16;
        #pragma unroll
        for (int k = 0; k < 2; k++) {
            u32 left[2][2][4];
            #pragma unroll
            for (int m = 0; m < 2; m++) {
                const uint4 a = load_128(w + (m * 4 + k * 2) * 512), b = load_128(w + (m * 4 + k * 2 + 1) * 512);
                left[m][0][0] = a.x, left[m][0][1] = b.x, left[m][0][2] = a.y, left[m][0][3] = b.y;
                left[m][1][0] = a.z, left[m][1][1] = b.z, left[m][1][2] = a.w, left[m][1][3] = b.w;
            }
            #pragma unroll
            for (int n = 0; n < TILE_NT; n++) {
                const uint4 v = load_128(x + (n * 8 + g) * 128 + ((k * 4 + t) ^ g % 2 * 4) * 16);
                const u32 right[4] = {v.x, v.y, v.z, v.w};
                #pragma unroll
                for (int m = 0; m < 2; m++) {
                    mma_m16n8k16_bf16(acc[m][n], left[m][0], right);
                    mma_m16n8k16_bf16(acc[m][n], left[m][1], right + 2);
                }
            }
        }
    }
    cp_async_wait<0>();

    if (gridDim.z > 1) {
        const size_t tile = blockIdx.y * gridDim.x + blockIdx.x, tiles = (size_t)gridDim.x * gridDim.y;
        float *mine = dev.partial + (blockIdx.z * tiles + tile) * TILE_SUMS * 128 + threadIdx.x;
        #pragma unroll
        for (int i = 0; i < TILE_SUMS; i++) mine[i * 128] = acc[i / (4 * TILE_NT)][i / 4 % TILE_NT][i % 4];
        __threadfence();
        __syncthreads();
        if (threadIdx.x == 0) {
            ticket = atomicAdd(dev.tickets + tile, 1);
            if (ticket == (int)gridDim.z - 1) atomicExch(dev.tickets + tile, 0);
        }
        __syncthreads();
        if (ticket != (int)gridDim.z - 1) return;
        __threadfence();
        #pragma unroll
        for (int i = 0; i < TILE_SUMS; i++) {
            float sum = 0;
            for (size_t z = 0; z < gridDim.z; z++)
                sum += dev.partial[((z * tiles + tile) * TILE_SUMS + i) * 128 + threadIdx.x];
            acc[i / (4 * TILE_NT)][i / 4 % TILE_NT][i % 4] = sum;
        }
    }
    #pragma unroll
    for (int m = 0; m < 2; m++)
        #pragma unroll
        for (int n = 0; n < TILE_NT; n++)
            #pragma unroll
            for (int e = 0; e < 4; e++) {
                const int row = t0 + n * 8 + t * 2 + e % 2, o = column(m, e / 2);
                if (row >= d.T || o >= d.OC || (d.gated && e >= 2)) continue;
                finish<bf16>(d, row, o, acc[m][n][e], acc[m][n][e % 2 + 2]);
            }
}

// The rule by which this is taken instead of the library: its tiles of 88 rows compute at least a fifth less than tiles
// of 128, as for 65..88, 129..176 and 257..264 rows. By shape only, so that every run takes the same; to be revised
// when a card has measured both.
static bool tile_fits(const Dense &d) {
    const int own = ceil_div(d.T, TILE_N) * TILE_N, library = ceil_div(d.T, 128) * 128;
    return d.w.dtype == DT_BF16 && d.C % 8 == 0 && !d.x32 && 5 * own <= 4 * library;
}

// tile_fits(d), activations bf16
static void tile_dense(cudaStream_t s, const Dense &d, const Device &dev) {
    const int per = d.gated ? TILE_M / 2 : TILE_M, steps = ceil_div(d.C, TILE_K);
    const int columns = ceil_div(d.OC, per), rows = ceil_div(d.T, TILE_N), tiles = columns * rows;
    int split = 1;
    while (tiles * split * 2 <= dev.sms + dev.sms / 4 && steps >= split * 2 * TILE_STAGES &&
           (size_t)tiles * split * 2 * TILE_SUMS * 512 <= dev.partial_bytes && tiles <= STREAM_TICKETS) split *= 2;
    const int slab = ceil_div(steps, split), shared = TILE_STAGES * TILE_STAGE;
    CUDA_CHECK(cudaFuncSetAttribute((const void *)tile_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared));
    LAUNCH_PDL(tile_kernel, dim3(columns, rows, ceil_div(steps, slab)), dim3(128), shared, s, d, dev, slab);
}

#endif
