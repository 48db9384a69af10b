// dev/cuda/patch_embedding.cu: from uint8 pixels to the ViT's tokens, from a thread per output to what ships.
//
//     pixels (B,S,S,3) -> x (B*N,D) f32:   x[n] = w patch_n + b + pos[n],  x[0] = cls + pos[0],  N = 1 + (S/P)^2
//
// A convolution whose stride is its size is a matrix multiply: each 14 x 14 x 3 patch, normalised, is a row of 588
// numbers, and w (1408,588) bf16 maps it. 256 rows: 0.42 GFLOP and 1.7 MB of weights, once per image; an image is
// 150 KB of pixels, and 1.4 MB of tokens come out. What is to be avoided is the traffic in between: patches written
// out and read again, and one more pass for positions.
#include "ladder.h"

#include "cuda_dense.cuh"

extern "C" {
#include "cpu.h"
}

typedef struct {
    float *x;                      // (B*N, D)
    const uint8_t *pixels;
    const bf16 *w;                 // (D, 3*P*P)
    const float *b, *cls, *pos;    // (D), (D), (N,D)
    Pixels norm;
    int B, S, P, D;
} Embed;

// Column c = (channel, y, x) of a patch, as the convolution's weights have it.
static __device__ __forceinline__ float patch_at(const Embed &p, int image, int gy, int gx, int c) {
    const int ch = c / (p.P * p.P), y = c / p.P % p.P, x = c % p.P;
    const size_t at = (((size_t)image * p.S + gy * p.P + y) * p.S + gx * p.P + x) * 3 + ch;
    return (p.pixels[at] / 255.0f - p.norm.mean[ch]) / p.norm.std[ch];
}

// Version 1: a thread per output, everything in one kernel. Limit: each pixel is looked up and normalised D times, two
// divisions and half a dozen integer operations for each multiply-add.
__global__ void embed1(Embed p) {
    // pixels (B,S,S,3) -> x (B*N,D)
    const int G = p.S / p.P, N = G * G + 1, C = 3 * p.P * p.P;
    const int o = blockIdx.x * blockDim.x + threadIdx.x, n = blockIdx.y, image = blockIdx.z;
    if (o >= p.D) return;
    float sum = n ? p.b[o] : p.cls[o];
    if (n)
        for (int c = 0; c < C; c++)
            sum += patch_at(p, image, (n - 1) / G, (n - 1) % G, c) * bf16_to_f32(p.w[(size_t)o * C + c]);
    p.x[((size_t)image * N + n) * p.D + o] = sum + p.pos[(size_t)n * p.D + o];
}

// Version 2: a block per token. Its patch is normalised once, into shared memory; then a thread per output again.
// Limit: every token reads all of w: 256 x 1.7 MB out of L2, and lanes read w at addresses 2*C bytes apart.
__global__ void embed2(Embed p) {
    SHARED_DYNAMIC(float, patch);         // (C)
    const int G = p.S / p.P, N = G * G + 1, C = 3 * p.P * p.P, n = blockIdx.x, image = blockIdx.y;
    if (n) for (int c = threadIdx.x; c < C; c += blockDim.x) patch[c] = patch_at(p, image, (n - 1) / G, (n - 1) % G, c);
    __syncthreads();
    for (int o = threadIdx.x; o < p.D; o += blockDim.x) {
        float sum = n ? p.b[o] : p.cls[o];
        if (n) for (int c = 0; c < C; c++) sum += patch[c] * bf16_to_f32(p.w[(size_t)o * C + c]);
        p.x[((size_t)image * N + n) * p.D + o] = sum + p.pos[(size_t)n * p.D + o];
    }
}

// Version 3: 32 tokens a block, their patches as bf16 in shared memory (38 KB), multiplied on tensor cores: each of 8
// warps takes 8 columns of w at a time. w is read once per 32 tokens, bias and position are added on the way out.
// Limit: fragments of w are loads of 4 bytes straight from global memory, and nothing is under way meanwhile; 9 blocks
// for an image leave most of the card idle.
__global__ void __launch_bounds__(256) embed3(Embed p, int ld) {
    SHARED_DYNAMIC(bf16, rows);           // (32, ld), ld: C up to a multiple of 16, and 8 more against bank conflicts
    const int G = p.S / p.P, N = G * G + 1, C = 3 * p.P * p.P, n0 = blockIdx.x * 32, image = blockIdx.y;
    const int lane = threadIdx.x % 32, g = lane / 4, c2 = lane % 4 * 2;
    for (int i = threadIdx.x; i < 32 * ld; i += 256) {
        const int n = n0 + i / ld, c = i % ld;
        rows[i] = n > 0 && n < N && c < C ? f32_to_bf16(patch_at(p, image, (n - 1) / G, (n - 1) % G, c)) : 0;
    }
    __syncthreads();
    for (int o0 = threadIdx.x / 32 * 8; o0 < p.D; o0 += 64) {
        float acc[2][4] = {};
        const bf16 *w = p.w + (size_t)(o0 + g < p.D ? o0 + g : 0) * C;
        for (int k = 0; k < C; k += 16) {
            u32 a[4], b[2];
            for (int e = 0; e < 2; e++) {
                const int c = k + 8 * e + c2;
                b[e] = (c < C ? w[c] : 0) | (u32)(c + 1 < C ? w[c + 1] : 0) << 16;
            }
            #pragma unroll
            for (int i = 0; i < 2; i++) {
                ldmatrix_x4(a, rows + (16 * i + lane % 16) * ld + k + lane / 16 * 8);
                mma_m16n8k16_bf16(acc[i], a, b);
            }
        }
        for (int i = 0; i < 8; i++) {
            const int n = n0 + i / 4 * 16 + g + i % 4 / 2 * 8, o = o0 + c2 + i % 2;
            if (n < N && o < p.D)
                p.x[((size_t)image * N + n) * p.D + o] =
                    (n ? acc[i / 4][i % 4] + p.b[o] : p.cls[o]) + p.pos[(size_t)n * p.D + o];
        }
    }
}

// Version 4: three kernels, as blip2.cu has them for f32: patches() writes the rows, 2*B*256*588 bytes, cuBLASLt (or
// gemm(), when it has no algorithm) multiplies and adds the bias, tokens() adds CLS and positions, for which the result
// is written and read once more. The multiply is as good as the library; limit: three launches, and 3.2 MB an image
// written and read in between.
static void embed4(const Ladder *l, Lt *lt, const Embed &p, bf16 *rows, float *stage) {
    const int G = p.S / p.P;
    Dense d = {};
    d.out = stage, d.kind = OUT_F32, d.x = rows, d.b = p.b, d.act = ACT_NONE;
    d.T = p.B * G * G, d.OC = p.D, d.C = 3 * p.P * p.P;
    d.w = Tensor{p.w, NULL, DT_BF16, d.OC, d.C};
    patches<bf16>(l->s, rows, p.pixels, p.norm, p.B, p.S, p.P);
    if (!lt_dense(l->s, lt, d, p.b, false)) gemm(l->s, d);
    tokens(l->s, p.x, stage, p.cls, p.pos, p.B, G * G + 1, p.D);
}

// Version 5: embed_patches() of cuda_dense.cuh, one kernel again: tiles of 64 patches x 64 columns, so that an image
// has 88 blocks, the next tile of pixels and weights on its way in registers while this one is multiplied; pixels are
// normalised and gathered on the way into shared memory, bias, position and CLS come in with the result. Bytes moved:
// pixels once per 64 columns (from L2), w once per 64 patches, the result once. Limit: the gathering, byte by byte.

static bool launch(const Ladder *l, int version, const Embed &p, Lt *lt, bf16 *rows, float *stage) {
    const int G = p.S / p.P, N = G * G + 1, C = 3 * p.P * p.P, ld = ceil_div(C, 16) * 16 + 8;
    switch (version) {
    case 1: LAUNCH(embed1, dim3(ceil_div(p.D, 128), N, p.B), dim3(128), 0, l->s, p); break;
    case 2: LAUNCH(embed2, dim3(N, p.B), dim3(256), C * sizeof(float), l->s, p); break;
    case 3: LAUNCH(embed3, dim3(ceil_div(N, 32), p.B), dim3(256), 32 * ld * sizeof(bf16), l->s, p, ld); break;
    case 4: embed4(l, lt, p, rows, stage); break;
    case 5:
        embed_patches(l->s, p.x, p.pixels, p.norm, Tensor{p.w, NULL, DT_BF16, p.D, C}, p.b, p.cls, p.pos, p.B, p.S,
                      p.P);
        break;
    }
    return true;
}

static void run_case(Ladder *l, int B, int S, int P, int D) {
    const int G = S / P, N = G * G + 1, C = 3 * P * P;
    if (!ladder_case(l, 3.0 * B * S * S + 2.0 * D * C + 4.0 * N * D + 4.0 * B * N * D, 2.0 * B * (N - 1) * D * C,
                     "%d x %d px, patches of %d, width %d", B, S, P, D)) return;
    const LadderWeight w = ladder_weight(DT_BF16, D, C, 5);
    const std::vector<float> b = ladder_numbers(D, 1, false), cls = ladder_numbers(D, 2, false);
    const std::vector<float> pos = ladder_numbers((size_t)N * D, 3, false);
    std::vector<uint8_t> pixels((size_t)B * S * S * 3);
    uint32_t seed = 77;
    for (uint8_t &v : pixels) v = (uint8_t)(ladder_random(&seed) >> 11);
    Config c = {};
    c.S = S, c.P = P, c.DV = D, c.N = N;
    c.mean_r = 0.48f, c.mean_g = 0.46f, c.mean_b = 0.41f, c.std_r = 0.27f, c.std_g = 0.26f, c.std_b = 0.28f;
    Vit vit = {};
    vit.cls = cls.data(), vit.pos = pos.data(), vit.patch_w = w.tensor, vit.patch_b = b.data();
    std::vector<float> want((size_t)B * N * D);
    for (int i = 0; i < B; i++)
        cpu_vit_embed(&want[(size_t)i * N * D], &pixels[(size_t)i * S * S * 3], &c, &vit);
    Embed p = {NULL, ladder_input(l, pixels), (const bf16 *)ladder_input(l, w).data, ladder_input(l, b),
               ladder_input(l, cls), ladder_input(l, pos),
               Pixels{{c.mean_r, c.mean_g, c.mean_b}, {c.std_r, c.std_g, c.std_b}}, B, S, P, D};
    p.x = (float *)ladder_output(l, LADDER_F32, want, 5e-3);     // patches rounded to bf16 (3 to 5)
    bf16 *rows = (bf16 *)ladder_scratch(l, (size_t)B * (N - 1) * C * sizeof(bf16));
    float *stage = (float *)ladder_scratch(l, (size_t)B * (N - 1) * D * sizeof(float));
    Lt lt = {};
    ladder_blas(l, &lt.handle, &lt.workspace, &lt.workspace_bytes);
    ladder_run(l, [&](int version) { return launch(l, version, p, &lt, rows, stage); });
    for (int i = 0; i < lt.n; i++) lt_forget(&lt.plans[i]);
}

int main(int argc, char **argv) {
    Ladder l = ladder_open(argc, argv, "patch_embedding",
        {{"a thread per output", "one kernel; each pixel is looked up and normalised once per column of w"},
         {"a block per token", "the patch is normalised once, into shared memory; each token reads all of w"},
         {"32 tokens on tensor cores", "w read once per 32 tokens; 9 blocks, loads of 4 bytes, none ahead"},
         {"patches, cuBLASLt, tokens", "the library's multiply; patches and products go through memory"},
         {"shipped: embed_patches", "one kernel: gathered into shared memory, the rest added to the result"}});
    if (l.small) {
        run_case(&l, 1, 8, 4, 20);
        run_case(&l, 2, 31, 5, 33);      // one pixel left over on either side
        run_case(&l, 1, 42, 6, 16);
    } else {
        ladder_show(&l);
        run_case(&l, 1, 224, 14, 1408);
        run_case(&l, 1, 364, 14, 1408);
        run_case(&l, 32, 224, 14, 1408);
    }
    ladder_close(&l);
}
