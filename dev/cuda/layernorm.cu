// dev/cuda/layernorm.cu: layer norm, from a thread per output to the launcher of cuda_layers.cuh.
//
//     x (T,C) f32, w (C), b (C) -> out (T,C) bf16 = (x - mean) / sqrt(var + eps) * w + b      mean, var over a row
//
// Must move: 4 bytes in and 2 out per element. The ViT does it 79 times per image on 257 x 1408 (1.4 MB in, which the
// layer before has left in the L2 cache): that takes a microsecond at any card's bandwidth, so what counts is how many
// rows are under way at once and how long the way from the first load to the last store is.
#include "ladder.h"

#include "cuda_layers.cuh"

extern "C" {
#include "cpu.h"
}

// Version 1: a thread per output. Each reads its whole row twice to normalise one number: 8*C bytes read per element.
// The threads of a warp read the same address, which is one transaction: no bandwidth is lost, but C loads one behind
// the other are. Limit: instructions, C times too many.
__global__ void layernorm1(bf16 *out, const float *x, const float *w, const float *b, float eps, int T, int C) {
    // x (T,C), w (C), b (C) -> out (T,C)
    const int i = blockIdx.x * blockDim.x + threadIdx.x, t = i / C, c = i % C;
    if (t >= T) return;
    const float *xt = x + (size_t)t * C;
    float mean = 0, var = 0;
    for (int k = 0; k < C; k++) mean += xt[k];
    mean /= C;
    for (int k = 0; k < C; k++) var += (xt[k] - mean) * (xt[k] - mean);
    out[i] = f32_to_bf16((xt[c] - mean) / sqrtf(var / C + eps) * w[c] + b[c]);
}

// Version 2: a thread per row, so that sums are made once. But 257 threads are 9 warps on a card that holds
// thousands, and the lanes of a warp read addresses a row apart: 32 transactions for 128 bytes. Limit: latency.
__global__ void layernorm2(bf16 *out, const float *x, const float *w, const float *b, float eps, int T, int C) {
    const int t = blockIdx.x * blockDim.x + threadIdx.x;
    if (t >= T) return;
    const float *xt = x + (size_t)t * C;
    float mean = 0, var = 0;
    for (int k = 0; k < C; k++) mean += xt[k];
    mean /= C;
    for (int k = 0; k < C; k++) var += (xt[k] - mean) * (xt[k] - mean);
    const float s = 1 / sqrtf(var / C + eps);
    for (int k = 0; k < C; k++) out[(size_t)t * C + k] = f32_to_bf16((xt[k] - mean) * s * w[k] + b[k]);
}

// Sum over a block of 256 by halving in shared memory. All threads get it. 9 barriers.
static __device__ float block_sum(float x, float *shared) {
    shared[threadIdx.x] = x;
    __syncthreads();
    for (int n = 128; n; n /= 2) {
        if ((int)threadIdx.x < n) shared[threadIdx.x] += shared[threadIdx.x + n];
        __syncthreads();
    }
    const float sum = shared[0];
    __syncthreads();      // shared may be used again
    return sum;
}

// Version 3: a block per row. Neighbours read neighbouring addresses, 257 blocks of 8 warps are on the way at once.
// Limit: 20 barriers a row, at each of which all 8 warps wait for the slowest.
__global__ void layernorm3(bf16 *out, const float *x, const float *w, const float *b, float eps, int C) {
    SHARED(float, shared, [256]);
    const float *xt = x + (size_t)blockIdx.x * C;
    float sum = 0, sq = 0;
    for (int k = threadIdx.x; k < C; k += 256) sum += xt[k];
    const float mean = block_sum(sum, shared) / C;
    for (int k = threadIdx.x; k < C; k += 256) sq += (xt[k] - mean) * (xt[k] - mean);
    const float s = 1 / sqrtf(block_sum(sq, shared) / C + eps);
    for (int k = threadIdx.x; k < C; k += 256)
        out[(size_t)blockIdx.x * C + k] = f32_to_bf16((xt[k] - mean) * s * w[k] + b[k]);
}

// Version 4: sums by shuffles in registers, mean and variance in one pass: var = E[d^2] - E[d]^2 with d = x - x[0].
// One barrier a row. Without x[0] the difference of two large numbers would have no digits left where the mean is far
// from 0, and with it there are still rows (a first element far off) where digits go: this is why the shipped one
// takes a pass more. Limit: the one barrier, and warps that have no work at its end.
__global__ void layernorm4(bf16 *out, const float *x, const float *w, const float *b, float eps, int C) {
    SHARED(float, part, [8][2]);
    const float *xt = x + (size_t)blockIdx.x * C;
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    float sum = 0, sq = 0;
    for (int k = threadIdx.x; k < C; k += 256) {
        const float d = xt[k] - xt[0];
        sum += d, sq += d * d;
    }
    sum = warp_sum(sum), sq = warp_sum(sq);
    if (lane == 0) part[warp][0] = sum, part[warp][1] = sq;
    __syncthreads();
    sum = sq = 0;
    for (int i = 0; i < 8; i++) sum += part[i][0], sq += part[i][1];
    const float mean = sum / C, s = 1 / sqrtf(fmaxf(sq / C - mean * mean, 0) + eps);
    for (int k = threadIdx.x; k < C; k += 256)
        out[(size_t)blockIdx.x * C + k] = f32_to_bf16((xt[k] - xt[0] - mean) * s * w[k] + b[k]);
}

// Version 5: norm() of cuda_layers.cuh. A warp per row: no barrier at all, nobody waits for anybody; three passes, of
// which the second and third find the row in the L1 cache.

static void run_case(Ladder *l, int T, int C) {
    if (!ladder_case(l, (double)T * C * 6 + C * 8.0, 0, "(%d,%d)", T, C)) return;
    std::vector<float> x = ladder_numbers((size_t)T * C, 1, false), w = ladder_numbers(C, 2, false);
    std::vector<float> b = ladder_numbers(C, 3, false), want((size_t)T * C);
    for (float &v : x) v = 3 * v + 2;     // a mean that is not 0
    const float eps = 1e-6f;
    cpu_layernorm(want.data(), x.data(), w.data(), b.data(), eps, T, C);
    const float *dx = ladder_input(l, x), *dw = ladder_input(l, w), *db = ladder_input(l, b);
    bf16 *out = (bf16 *)ladder_output(l, LADDER_BF16, want, 4e-3);     // rounding to bf16: 1.7e-3 is measured
    ladder_run(l, [=](int version) {
        switch (version) {
        case 1: LAUNCH(layernorm1, dim3(ceil_div(T * C, 256)), dim3(256), 0, l->s, out, dx, dw, db, eps, T, C); break;
        case 2: LAUNCH(layernorm2, dim3(ceil_div(T, 32)), dim3(32), 0, l->s, out, dx, dw, db, eps, T, C); break;
        case 3: LAUNCH(layernorm3, dim3(T), dim3(256), 0, l->s, out, dx, dw, db, eps, C); break;
        case 4: LAUNCH(layernorm4, dim3(T), dim3(256), 0, l->s, out, dx, dw, db, eps, C); break;
        case 5: norm<bf16>(l->s, out, NULL, dx, dw, db, eps, 1, T, C); break;
        }
        return true;
    });
}

int main(int argc, char **argv) {
    Ladder l = ladder_open(argc, argv, "layernorm",
        {{"a thread per output", "reads its row twice for one number: 2C times the loads that are needed"},
         {"a thread per row", "sums made once; 9 warps for the whole card, lanes a row apart"},
         {"a block per row", "neighbours read neighbours, 257 blocks under way; 20 barriers a row"},
         {"one pass, shuffles", "mean and variance in one pass, one barrier; digits lost where x[0] is far off"},
         {"shipped: norm, a warp per row", "no barrier at all; passes two and three out of the L1 cache"}});
    ladder_show(&l);
    if (l.small) for (const auto &[T, C] : {std::pair(5, 33), {3, 130}, {9, 8}, {1, 1}, {2, 700}}) run_case(&l, T, C);
    else for (const auto &[T, C] : {std::pair(257, 1408), {677, 1408}, {32 * 257, 1408}}) run_case(&l, T, C);
    ladder_close(&l);
}
