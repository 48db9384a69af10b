// dev/cuda/vit_attention.cu: the ViT's attention, from scores in device memory to tensor cores.
//
//     qkv (N, 3*D) bf16 -> out (N, D) bf16, D = H*A:  out_h = softmax(q_h k_h^T / sqrt(A)) v_h      heads h = 0..H-1
//
// N = 257 tokens (364 px: 677), 16 heads of 88. Must move: 8*N*D bytes. Work: 4*N*N*D, which is 3 % of the ViT's (7 %
// at 364 px). What it costs is decided by where the H*N*N scores live: written to device memory and read again they
// are more bytes than q, k and v together.
#include "ladder.h"

#include "cuda_attention.cuh"

extern "C" {
#include "cpu.h"
}

typedef struct { bf16 *out; const bf16 *qkv; float *s; int N, H, A; float scale; } Image;

static __device__ __forceinline__ float at(const Image &p, int part, int n, int h, int a) {
    return bf16_to_f32(p.qkv[((size_t)n * 3 + part) * p.H * p.A + h * p.A + a]);
}

// Version 1: three kernels, a thread per score, per row of scores, per output. Scores: H*N*N floats, written once and
// read three times. Limit: device memory (or L2, where they fit) for the scores; the soft-max has H*N threads only.
__global__ void attention1_scores(Image p) {
    // qkv (N,3,H,A) -> s (H,N,N)
    const int j = blockIdx.x * blockDim.x + threadIdx.x, i = blockIdx.y, h = blockIdx.z;
    if (j >= p.N) return;
    float sum = 0;
    for (int a = 0; a < p.A; a++) sum += at(p, 0, i, h, a) * at(p, 1, j, h, a);
    p.s[((size_t)h * p.N + i) * p.N + j] = sum * p.scale;
}

__global__ void attention1_softmax(Image p) {
    // s (H,N,N), in place
    const int row = blockIdx.x * blockDim.x + threadIdx.x;
    if (row >= p.H * p.N) return;
    float *s = p.s + (size_t)row * p.N, top = -INFINITY, sum = 0;
    for (int j = 0; j < p.N; j++) top = fmaxf(top, s[j]);
    for (int j = 0; j < p.N; j++) sum += s[j] = expf(s[j] - top);
    for (int j = 0; j < p.N; j++) s[j] /= sum;
}

__global__ void attention1_mix(Image p) {
    // s (H,N,N), qkv -> out (N,H,A)
    const int a = threadIdx.x, i = blockIdx.x, h = blockIdx.y;
    float sum = 0;
    for (int j = 0; j < p.N; j++) sum += p.s[((size_t)h * p.N + i) * p.N + j] * at(p, 2, j, h, a);
    p.out[((size_t)i * p.H + h) * p.A + a] = f32_to_bf16(sum);
}

// Version 2: a block per query and head, scores in shared memory. Device memory sees q, k, v and out only. Limit: every
// query reads all keys and values anew, 4*A*N bytes for 4*A*N operations: L2 at 1 operation a byte.
__global__ void attention2(Image p) {
    SHARED_DYNAMIC(float, s);             // (N)
    SHARED(float, red, [2][4]);
    const int i = blockIdx.x, h = blockIdx.y, warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    float top = -INFINITY, sum = 0;
    for (int j = threadIdx.x; j < p.N; j += 128) {
        float x = 0;
        for (int a = 0; a < p.A; a++) x += at(p, 0, i, h, a) * at(p, 1, j, h, a);
        s[j] = x * p.scale;
        top = fmaxf(top, s[j]);
    }
    for (int d = 16; d; d /= 2) top = fmaxf(top, __shfl_xor_sync(0xFFFFFFFFu, top, d));
    if (lane == 0) red[0][warp] = top;
    __syncthreads();
    for (int w = 0; w < 4; w++) top = fmaxf(top, red[0][w]);
    for (int j = threadIdx.x; j < p.N; j += 128) sum += s[j] = expf(s[j] - top);
    sum = warp_sum(sum);
    if (lane == 0) red[1][warp] = sum;
    __syncthreads();
    sum = red[1][0] + red[1][1] + red[1][2] + red[1][3];
    for (int a = threadIdx.x; a < p.A; a += 128) {
        float x = 0;
        for (int j = 0; j < p.N; j++) x += s[j] * at(p, 2, j, h, a);
        p.out[((size_t)i * p.H + h) * p.A + a] = f32_to_bf16(x / sum);
    }
}

// Version 3: a block has 32 queries of a head, a thread one of them, with q and the sum of values in registers. Keys
// and values come in tiles of 32 through shared memory, where all threads read the same one at once. The soft-max runs
// along (cuda_attention.cuh): no score is ever stored. Bytes: keys and values once per 32 queries. Limit: FP32 units;
// and a warp is alone with its tile, so it waits for every fetch.
template <int AP> __global__ void __launch_bounds__(32) attention3(Image p) {
    SHARED(float, ks, [32][AP]);
    SHARED(float, vs, [32][AP]);
    const int i = blockIdx.x * 32 + threadIdx.x, h = blockIdx.y;
    float q[AP], acc[AP], top = -INFINITY, sum = 0;
    #pragma unroll
    for (int a = 0; a < AP; a++) q[a] = i < p.N && a < p.A ? at(p, 0, i, h, a) * p.scale : 0, acc[a] = 0;
    for (int j0 = 0; j0 < p.N; j0 += 32) {
        for (int k = threadIdx.x; k < 32 * AP; k += 32) {
            const int j = j0 + k / AP, a = k % AP;
            const bool there = j < p.N && a < p.A;
            ks[k / AP][a] = there ? at(p, 1, j, h, a) : 0;
            vs[k / AP][a] = there ? at(p, 2, j, h, a) : 0;
        }
        __syncthreads();
        for (int j = 0; j < 32 && j0 + j < p.N; j++) {
            float s = 0;
            #pragma unroll
            for (int a = 0; a < AP; a++) s += q[a] * ks[j][a];
            const float m = fmaxf(top, s), old = expf(top - m), e = expf(s - m);
            top = m;
            sum = sum * old + e;
            #pragma unroll
            for (int a = 0; a < AP; a++) acc[a] = acc[a] * old + e * vs[j][a];
        }
        __syncthreads();
    }
    #pragma unroll
    for (int a = 0; a < AP; a++)
        if (i < p.N && a < p.A) p.out[((size_t)i * p.H + h) * p.A + a] = f32_to_bf16(acc[a] / sum);
}

// Two neighbours of row n of a part, as a tensor core wants them; zero outside. A is even.
static __device__ __forceinline__ u32 two(const Image &p, int part, int n, int h, int a) {
    return n < p.N && a < p.A ? *(const u32 *)(p.qkv + ((size_t)n * 3 + part) * p.H * p.A + h * p.A + a) : 0;
}

// Version 4: tensor cores. A warp has 16 queries of a head and all their scores, 16 x N, in shared memory: multiply,
// soft-max over whole rows, multiply. Fragments are loaded straight from global memory (layouts: cuda_common.h). Limit:
// those loads: 4 bytes (values: 2) at a time, each warp all keys and values for itself; the scores pass through shared
// memory three times; at 677 keys 44 KB per warp leave few warps on a multiprocessor.
__global__ void __launch_bounds__(32) attention4(Image p, int ld) {
    SHARED_DYNAMIC(float, s);             // (16, ld), ld: N up to a multiple of 16, and 8 more against bank conflicts
    const int i0 = blockIdx.x * 16, h = blockIdx.y, lane = threadIdx.x, g = lane / 4, c2 = lane % 4 * 2;
    for (int j0 = 0; j0 < p.N; j0 += 8) {
        float d[4] = {};
        for (int a0 = c2; a0 < (p.A + 15) / 16 * 16; a0 += 16) {
            const u32 a[4] = {two(p, 0, i0 + g, h, a0), two(p, 0, i0 + g + 8, h, a0), two(p, 0, i0 + g, h, a0 + 8),
                              two(p, 0, i0 + g + 8, h, a0 + 8)};
            const u32 b[2] = {two(p, 1, j0 + g, h, a0), two(p, 1, j0 + g, h, a0 + 8)};
            mma_m16n8k16_bf16(d, a, b);
        }
        for (int e = 0; e < 4; e++) s[(g + e / 2 * 8) * ld + j0 + c2 + e % 2] = d[e] * p.scale;
    }
    __syncwarp();
    float sum[16];
    #pragma unroll
    for (int r = 0; r < 16; r++) {
        float top = -INFINITY;
        sum[r] = 0;
        for (int j = lane; j < p.N; j += 32) top = fmaxf(top, s[r * ld + j]);
        for (int d = 16; d; d /= 2) top = fmaxf(top, __shfl_xor_sync(0xFFFFFFFFu, top, d));
        for (int j = lane; j < (p.N + 15) / 16 * 16; j += 32) {
            const float e = j < p.N ? expf(s[r * ld + j] - top) : 0;
            s[r * ld + j] = e;
            sum[r] += e;
        }
        sum[r] = warp_sum(sum[r]);
    }
    __syncwarp();
    float l[2] = {};
    #pragma unroll
    for (int r = 0; r < 16; r++) if (r % 8 == g) l[r / 8] = sum[r];
    for (int a0 = 0; a0 < p.A; a0 += 8) {
        float d[4] = {};
        for (int j0 = 0; j0 < p.N; j0 += 16) {
            u32 a[4], b[2];
            for (int e = 0; e < 4; e++) {
                const float *at_row = s + (g + e % 2 * 8) * ld + j0 + c2 + e / 2 * 8;
                a[e] = pack_bf16(at_row[0], at_row[1]);
            }
            for (int e = 0; e < 2; e++) {
                const int j = j0 + c2 + 8 * e, c = a0 + g;
                b[e] = pack_bf16(j < p.N && c < p.A ? at(p, 2, j, h, c) : 0,
                                 j + 1 < p.N && c < p.A ? at(p, 2, j + 1, h, c) : 0);
            }
            mma_m16n8k16_bf16(d, a, b);
        }
        for (int e = 0; e < 4; e++) {
            const int i = i0 + g + e / 2 * 8, a = a0 + c2 + e % 2;
            if (i < p.N && a < p.A) p.out[((size_t)i * p.H + h) * p.A + a] = f32_to_bf16(d[e] / l[e / 2]);
        }
    }
}

// Version 5: attention() of cuda_attention.cuh. 64 queries share each tile of keys and values, which arrives by
// cp.async while the tile before is worked on and is read with ldmatrix; the running soft-max keeps scores in the
// registers in which the first multiply leaves them, which are those in which the second wants them.

static bool launch(const Ladder *l, int version, const Image &p, const Attention &whole) {
    if (version == 1) {
        LAUNCH(attention1_scores, dim3(ceil_div(p.N, 128), p.N, p.H), dim3(128), 0, l->s, p);
        LAUNCH(attention1_softmax, dim3(ceil_div(p.H * p.N, 128)), dim3(128), 0, l->s, p);
        LAUNCH(attention1_mix, dim3(p.N, p.H), dim3(p.A), 0, l->s, p);
    } else if (version == 2) {
        LAUNCH(attention2, dim3(p.N, p.H), dim3(128), p.N * sizeof(float), l->s, p);
    } else if (version == 3) {
        const auto kernel = p.A <= 32 ? attention3<32> : attention3<88>;
        if (p.A > 88) return false;
        LAUNCH(kernel, dim3(ceil_div(p.N, 32), p.H), dim3(32), 0, l->s, p);
    } else if (version == 4) {
        const int ld = ceil_div(p.N, 16) * 16 + 8, bytes = 16 * ld * (int)sizeof(float);
        if (p.A % 2 || bytes > l->shared_most) return false;
        CUDA_CHECK(cudaFuncSetAttribute((const void *)attention4, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes));
        LAUNCH(attention4, dim3(ceil_div(p.N, 16), p.H), dim3(32), bytes, l->s, p, ld);
    } else attention<bf16>(l->s, whole);
    return true;
}

static void run_case(Ladder *l, int N, int H, int A) {
    const int D = H * A;
    if (!ladder_case(l, 8.0 * N * D, 4.0 * N * N * D, "%d tokens, %d heads of %d", N, H, A)) return;
    std::vector<float> qkv = ladder_numbers((size_t)N * 3 * D, 1, true), want((size_t)N * D);
    for (size_t i = 0; i < qkv.size(); i++) if (i % (3 * D) < (size_t)D) qkv[i] *= 4;     // soft-max with some contrast
    cpu_attention(want.data(), qkv.data(), N, H, A);
    Image p = {NULL, ladder_input_bf16(l, qkv), (float *)ladder_scratch(l, (size_t)H * N * N * sizeof(float)), N, H, A,
               1 / sqrtf((float)A)};
    p.out = (bf16 *)ladder_output(l, LADDER_BF16, want, 1e-2);     // weights rounded to bf16 (4, 5)
    const int *first = ladder_input(l, std::vector<int>{0, N});
    Attention whole = {};
    whole.out = p.out, whole.q = p.qkv, whole.k = p.qkv + D, whole.v = p.qkv + 2 * D;
    whole.q_first = whole.k_first = first;
    whole.ldq = whole.ldkv = 3 * D, whole.scale = p.scale, whole.B = 1, whole.H = H, whole.A = A, whole.max_q = N;
    ladder_run(l, [&](int version) { return launch(l, version, p, whole); });
}

int main(int argc, char **argv) {
    Ladder l = ladder_open(argc, argv, "vit_attention",
        {{"scores in device memory", "three kernels; scores written once and read three times"},
         {"scores in shared memory", "a block per query; each reads all keys and values, an operation a byte"},
         {"a thread per query, running soft-max", "keys and values once per 32 queries, no score stored; limit: FP32"},
         {"tensor cores, scores in shared memory", "16 queries a warp; loads of 2 and 4 bytes, few warps fit"},
         {"shipped: attention", "64 queries a block, cp.async, ldmatrix; scores stay in registers"}});
    if (l.small) {
        run_case(&l, 5, 2, 8);
        run_case(&l, 37, 1, 24);
        run_case(&l, 70, 1, 88);
    } else {
        ladder_show(&l);
        run_case(&l, 257, 16, 88);
        run_case(&l, 677, 16, 88);
    }
    ladder_close(&l);
}
