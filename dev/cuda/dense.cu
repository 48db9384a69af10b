// dev/cuda/dense.cu: a dense layer for the 257 tokens of an image, from a thread per output to tensor cores.
//
//     x (T,C) bf16, w (OC,C) bf16, b (OC) f32 -> out (T,OC) bf16 = x w^T + b
//
// 97 % of the ViT's work: per block 4224 x 1408 (qkv), 1408 x 1408, 6144 x 1408 and 1408 x 6144. A weight is used 257
// times, so the numbers can be fed to the tensor cores fast enough only if each one that was fetched is used often:
// every step below is about where the second use comes from. 257 is one more than tiles like: with 64 rows a tile, the
// fifth tile is there for one row, and a fifth of the work is for nothing.
// (89,12,1032) among the small shapes: columns of so few tiles are split over blocks.
#include "ladder.h"

#include <array>

#include "cuda_dense.cuh"

extern "C" {
#include "cpu.h"
}

typedef struct { bf16 *out; const bf16 *x, *w; const float *b; int T, OC, C; } Layer;

// Version 1: a thread per output. Two loads per multiply-add, nearly all from caches: 4*T*OC*C bytes through L1. The
// lanes of a warp are at 32 rows of w, a transaction each. Limit: L1.
__global__ void dense1(Layer p) {
    // x (T,C), w (OC,C), b (OC) -> out (T,OC)
    const int o = blockIdx.x * blockDim.x + threadIdx.x, t = blockIdx.y;
    if (o >= p.OC) return;
    float sum = p.b[o];
    for (int c = 0; c < p.C; c++) sum += bf16_to_f32(p.x[(size_t)t * p.C + c]) * bf16_to_f32(p.w[(size_t)o * p.C + c]);
    p.out[(size_t)t * p.OC + o] = f32_to_bf16(sum);
}

// Version 2: tiles of 32 x 32 outputs. A block fetches 32 x 32 numbers of x and of w into shared memory, neighbours
// reading neighbours, and uses each 32 times. Limit: two loads from shared memory per multiply-add.
__global__ void dense2(Layer p) {
    SHARED(float, xs, [32][33]);          // 33: a column lies in 32 different banks
    SHARED(float, ws, [32][33]);
    const int i = threadIdx.x % 32, j = threadIdx.x / 32, o0 = blockIdx.x * 32, t0 = blockIdx.y * 32;
    float sum[4] = {};                    // rows j, j + 8, j + 16, j + 24, column i
    for (int c0 = 0; c0 < p.C; c0 += 32) {
        #pragma unroll
        for (int k = 0; k < 4; k++) {
            const int row = j + 8 * k, c = c0 + i;
            xs[row][i] = t0 + row < p.T && c < p.C ? bf16_to_f32(p.x[(size_t)(t0 + row) * p.C + c]) : 0;
            ws[row][i] = o0 + row < p.OC && c < p.C ? bf16_to_f32(p.w[(size_t)(o0 + row) * p.C + c]) : 0;
        }
        __syncthreads();
        for (int c = 0; c < 32; c++)
            #pragma unroll
            for (int k = 0; k < 4; k++) sum[k] += xs[j + 8 * k][c] * ws[i][c];
        __syncthreads();
    }
    for (int k = 0; k < 4; k++) {
        const int t = t0 + j + 8 * k, o = o0 + i;
        if (t < p.T && o < p.OC) p.out[(size_t)t * p.OC + o] = f32_to_bf16(sum[k] + p.b[o]);
    }
}

// Version 3: tiles of 64 x 64, of which a thread has 4 x 4 in registers: 8 loads from shared memory serve 16
// multiply-adds. Limit: the FP32 units themselves, 67 TFLOP/s on an H100 by its data sheet.
__global__ void __launch_bounds__(256) dense3(Layer p) {
    SHARED(float, xs, [16][64 + 4]);      // transposed: four rows of a thread are neighbours
    SHARED(float, ws, [16][64 + 4]);
    const int o0 = blockIdx.x * 64, t0 = blockIdx.y * 64, ti = threadIdx.x / 16 * 4, oi = threadIdx.x % 16 * 4;
    float sum[4][4] = {};
    for (int c0 = 0; c0 < p.C; c0 += 16) {
        for (int i = threadIdx.x; i < 64 * 16; i += 256) {
            const int row = i / 16, c = c0 + i % 16;
            xs[i % 16][row] = t0 + row < p.T && c < p.C ? bf16_to_f32(p.x[(size_t)(t0 + row) * p.C + c]) : 0;
            ws[i % 16][row] = o0 + row < p.OC && c < p.C ? bf16_to_f32(p.w[(size_t)(o0 + row) * p.C + c]) : 0;
        }
        __syncthreads();
        #pragma unroll
        for (int c = 0; c < 16; c++) {
            float a[4], b[4];
            unpack(a, load_128(&xs[c][ti]), 0.0f);
            unpack(b, load_128(&ws[c][oi]), 0.0f);
            #pragma unroll
            for (int i = 0; i < 4; i++)
                #pragma unroll
                for (int k = 0; k < 4; k++) sum[i][k] += a[i] * b[k];
        }
        __syncthreads();
    }
    for (int i = 0; i < 4; i++)
        for (int k = 0; k < 4; k++) {
            const int t = t0 + ti + i, o = o0 + oi + k;
            if (t < p.T && o < p.OC) p.out[(size_t)t * p.OC + o] = f32_to_bf16(sum[i][k] + p.b[o]);
        }
}

// Two neighbours of a row of m (rows,C) as a tensor core wants them, zero outside.
static __device__ __forceinline__ u32 two(const bf16 *m, int row, int rows, int c, int C) {
    if (row >= rows || c >= C) return 0;
    const bf16 *p = m + (size_t)row * C + c;
    return p[0] | (u32)(c + 1 < C ? p[1] : 0) << 16;
}

// Version 4: tensor cores, fed from L1 and L2 without any shared memory. A warp has 32 x 32 outputs; for each 16
// columns it loads the fragments of x and w as mma wants them (cuda_common.h) and does 8 instructions of 4096
// multiply-adds. Limit: loads of 4 bytes, each of which the tensor cores wait for; nothing is under way meanwhile.
__global__ void dense4(Layer p) {
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, g = lane / 4, c2 = lane % 4 * 2;
    const int o0 = blockIdx.x * 64 + warp % 2 * 32, t0 = blockIdx.y * 64 + warp / 2 * 32;
    float acc[2][4][4] = {};
    for (int c = c2; c < (p.C + 15) / 16 * 16; c += 16) {
        u32 a[2][4], b[4][2];
        #pragma unroll
        for (int i = 0; i < 2; i++)
            #pragma unroll
            for (int e = 0; e < 4; e++) a[i][e] = two(p.x, t0 + 16 * i + g + e % 2 * 8, p.T, c + e / 2 * 8, p.C);
        #pragma unroll
        for (int n = 0; n < 4; n++)
            #pragma unroll
            for (int e = 0; e < 2; e++) b[n][e] = two(p.w, o0 + 8 * n + g, p.OC, c + e * 8, p.C);
        #pragma unroll
        for (int i = 0; i < 2; i++)
            #pragma unroll
            for (int n = 0; n < 4; n++) mma_m16n8k16_bf16(acc[i][n], a[i], b[n]);
    }
    #pragma unroll
    for (int i = 0; i < 2; i++)
        #pragma unroll
        for (int n = 0; n < 4; n++)
            #pragma unroll
            for (int e = 0; e < 4; e++) {
                const int t = t0 + 16 * i + g + e / 2 * 8, o = o0 + 8 * n + c2 + e % 2;
                if (t < p.T && o < p.OC) p.out[(size_t)t * p.OC + o] = f32_to_bf16(acc[i][n][e] + p.b[o]);
            }
}

// Version 5: gemm() of cuda_dense.cuh: tiles of 64 x 64 of both in shared memory, 16 bytes a load, the next tile on
// its way in registers while this one is multiplied, fragments through ldmatrix. Bytes through L2: w once per 64 rows,
// x once per 64 columns. It ships for pixels and for odd shapes that the library has no algorithm for.
// Limit: 257 rows are five tiles of 64, of which one has a single row; one step ahead is not far for L2.

// Version 6: tile_dense() of cuda_tile.cuh. Rows of w stand on the side that has steps of 16 and x on the one with
// steps of 8: three tiles of 88 are 264 rows, 3 % for nothing instead of 25 %. Both operands come by cp.async three
// steps ahead, a warp has 32 x 88 outputs in registers. Bytes through L2: w once per 88 rows, x once per 128. dense()
// of blip2.cu takes it where tile_fits says so, as for 257 rows; 677 rows go to cuBLASLt, which on an H100 has
// instructions (wgmma) that this one does not use.

static bool launch(const Ladder *l, int version, const Layer &p, const Dense &d, const Device &dev) {
    const dim3 tiles64(ceil_div(p.OC, 64), ceil_div(p.T, 64));
    switch (version) {
    case 1: LAUNCH(dense1, dim3(ceil_div(p.OC, 128), p.T), dim3(128), 0, l->s, p); break;
    case 2: LAUNCH(dense2, dim3(ceil_div(p.OC, 32), ceil_div(p.T, 32)), dim3(256), 0, l->s, p); break;
    case 3: LAUNCH(dense3, tiles64, dim3(256), 0, l->s, p); break;
    case 4: LAUNCH(dense4, tiles64, dim3(128), 0, l->s, p); break;
    case 5: gemm(l->s, d); break;
    case 6:
        if (d.C % 8) return false;
        tile_dense(l->s, d, dev);
        break;
    }
    return true;
}

static void run_case(Ladder *l, const char *what, int T, int OC, int C) {
    if (!ladder_case(l, 2.0 * T * C + 2.0 * OC * C + 2.0 * T * OC + 4.0 * OC, 2.0 * T * OC * C, "%s(%d,%d) x (%d,%d)",
                     what, T, C, OC, C)) return;
    const LadderWeight w = ladder_weight(DT_BF16, OC, C, 5);
    const std::vector<float> x = ladder_numbers((size_t)T * C, 1, true), b = ladder_numbers(OC, 2, true);
    std::vector<float> want((size_t)T * OC);
    cpu_matmul(want.data(), x.data(), &w.tensor, b.data(), T);
    Dense d = {};
    d.w = ladder_input(l, w), d.x = ladder_input_bf16(l, x), d.b = ladder_input(l, b), d.act = ACT_NONE;
    d.out = ladder_output(l, LADDER_BF16, want, 4e-3);      // rounding to bf16: 1.7e-3 is measured
    d.kind = OUT_ACT, d.T = T, d.OC = OC, d.C = C;
    const Layer p = {(bf16 *)d.out, (const bf16 *)d.x, (const bf16 *)d.w.data, d.b, T, OC, C};
    const bf16 *b16 = ladder_input_bf16(l, b);              // the library wants the bias in the result's type
    Lt lt = {};
    ladder_blas(l, &lt.handle, &lt.workspace, &lt.workspace_bytes);
    const Device dev = ladder_device<Device>(l);
    ladder_run(l, [&](int version) { return launch(l, version, p, d, dev); },
               [&] { return lt_dense(l->s, &lt, d, b16, false); });
    for (int i = 0; i < lt.n; i++) lt_forget(&lt.plans[i]);
}

int main(int argc, char **argv) {
    Ladder l = ladder_open(argc, argv, "dense",
        {{"a thread per output", "two loads per multiply-add, a transaction for each lane of w"},
         {"32 x 32 tiles in shared memory", "each number fetched serves 32 times; two shared loads per multiply-add"},
         {"64 x 64 tiles, 4 x 4 in registers", "8 shared loads serve 16 multiply-adds; limit: the FP32 units"},
         {"tensor cores, no shared memory", "4096 multiply-adds an instruction; loads of 4 bytes that nothing hides"},
         {"gemm: 64 x 64 on tensor cores", "ldmatrix, 16-byte loads, a step ahead; five tiles for 257 rows"},
         {"shipped: tile_dense", "three tiles of 88 rows, cp.async three steps ahead"}});
    if (l.small) {
        for (const auto &[T, OC, C] : {std::array{5, 7, 33}, {70, 40, 64}, {3, 130, 40}, {65, 65, 72}, {89, 12, 1032}})
            run_case(&l, "", T, OC, C);
        ladder_close(&l);
    }
    for (int T : {257, 677}) {
        if (T == 257) ladder_show(&l);
        run_case(&l, "qkv, ", T, 3 * 1408, 1408);
        run_case(&l, "proj, ", T, 1408, 1408);
        run_case(&l, "fc1, ", T, 6144, 1408);
        run_case(&l, "fc2, ", T, 1408, 6144);
    }
    ladder_close(&l);
}
