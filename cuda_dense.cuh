// cuda_dense.cuh: dense layers, out = act(x w^T + b).
//
// In order:
//   1. forms in files of their own: few rows, on tensor cores, bound by reading the weights (cuda_stream.cuh), or
//      without (cuda_matvec.cuh); OPT's fc2 without dead neurons (cuda_skip.cuh); more than 64 rows (cuda_tile.cuh)
//   2. gemm_kernel: many rows, own tensor-core kernel, for pixels, for rows of odd lengths (int8 and int4 weights are
//      dequantised on the way into shared memory) and for shapes that the library has no algorithm for
//   3. lt_dense: many rows, f32 or bf16 weights, through cuBLASLt with its bias epilogues
//
// Not here: which layer uses which form (dense() in blip2.cu).
#ifndef CUDA_DENSE_CUH
#define CUDA_DENSE_CUH

#include "cuda_matvec.cuh"
#include "cuda_skip.cuh"
#include "cuda_tile.cuh"

// ---------------------------------------------------------------------------------------------------------
// 2. Many rows on tensor cores: tiles of 64 rows by 64 columns, 32 deep; four warps with 32 x 32 each. The next tile is
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

// Images instead of x (see embed_patches).
typedef struct {
    const uint8_t *pixels;        // (B,S,S,3), or NULL
    Pixels norm;
    const float *cls, *pos;       // (OC), (1 + G*G, OC)
    int B, S, P, G;
} Patches;

// Eight columns of a patch's row in the convolution's (channel, y, x) order, normalised.
static __device__ __forceinline__ uint4 pixels_8(const Patches &p, int t, int k) {
    const int G = p.G, P = p.P, C = 3 * P * P, n = t % (G * G);
    if (t >= p.B * G * G || k >= C) return zero_128();
    const uint8_t *from = p.pixels + (((size_t)(t / (G * G)) * p.S + n / G * P) * p.S + n % G * P) * 3;
    int ch = k / (P * P), y = k / P % P, x = k % P;
    float f[8];
    #pragma unroll
    for (int i = 0; i < 8; i++) {
        const float mean = ch == 0 ? p.norm.mean[0] : ch == 1 ? p.norm.mean[1] : p.norm.mean[2];
        const float std = ch == 0 ? p.norm.std[0] : ch == 1 ? p.norm.std[1] : p.norm.std[2];
        f[i] = k + i < C ? (from[((size_t)y * p.S + x) * 3 + ch] / 255.0f - mean) / std : 0;
        if (++x == P) x = 0, y++;
        if (y == P) y = 0, ch = ch < 2 ? ch + 1 : 2;
    }
    return pack(f);
}

template <int W, bool IMAGES>
__global__ void __launch_bounds__(128) gemm_kernel(Dense d, Patches p) {
    // see Dense, not gated; d.x (T,C), or with IMAGES p.pixels (B,S,S,3) -> d.out (B*(1 + G*G), OC)
    SHARED(bf16, xs, [2][GEMM_M][GEMM_LD]);
    SHARED(bf16, ws, [2][GEMM_N][GEMM_LD]);
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, c2 = lane % 4 * 2;
    const int o0 = blockIdx.x * GEMM_N, t0 = blockIdx.y * GEMM_M, m0 = warp / 2 * 32, n0 = warp % 2 * 32;
    const int steps = (d.C + GEMM_K - 1) / GEMM_K;
    const int row = threadIdx.x / 4, col = threadIdx.x % 4 * 8;   // what this thread fetches, and 32 rows further
    float acc[2][4][4] = {};
    uint4 xv[2], wv[2];
    if (!goes_on(d.going)) return;
    for (int step = -1; step < steps; step++) {
        if (step + 1 < steps) {
            const int k = (step + 1) * GEMM_K + col;
            #pragma unroll
            for (int i = 0; i < 2; i++) {
                const int o = o0 + row + 32 * i;
                xv[i] = IMAGES ? pixels_8(p, t0 + row + 32 * i, k) : x_8(d, t0 + row + 32 * i, k);
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
                if (t >= d.T || o >= d.OC) continue;
                const float y = acc[i][n][e] * (W == DT_INT8 ? ((const float *)d.w.scale)[o] : 1);
                if (!IMAGES) finish<bf16>(d, t, o, y, 0);
                else {
                    const int N = p.G * p.G, at = t % N + 1;
                    float *to = (float *)d.out + ((size_t)(t / N) * (N + 1) + at) * d.OC + o;
                    *to = y + d.b[o] + p.pos[(size_t)at * d.OC + o];
                }
            }
    if (IMAGES && blockIdx.y == 0)
        for (int i = threadIdx.x; i < p.B * GEMM_N; i += blockDim.x) {
            const int o = o0 + i % GEMM_N;
            if (o < d.OC) ((float *)d.out)[(size_t)(i / GEMM_N) * (p.G * p.G + 1) * d.OC + o] = p.cls[o] + p.pos[o];
        }
}

template <bool IMAGES> static void gemm_of(cudaStream_t s, const Dense &d, const Patches &p) {
    const auto kernel = d.w.dtype == DT_BF16 ? gemm_kernel<DT_BF16, IMAGES>
                      : d.w.dtype == DT_INT8 ? gemm_kernel<DT_INT8, IMAGES>
                      : d.w.dtype == DT_INT4 ? gemm_kernel<DT_INT4, IMAGES> : gemm_kernel<DT_F32, IMAGES>;
    LAUNCH(kernel, dim3(ceil_div(d.OC, GEMM_N), ceil_div(d.T, GEMM_M)), dim3(128), 0, s, d, p);
}

static void gemm(cudaStream_t s, const Dense &d) {
    // d.x, not d.x32; not gated
    gemm_of<false>(s, d, Patches{});
}

// From pixels to tokens in one pass: the rows of x are normalised and gathered on their way into shared memory, and
// bias, position and the CLS token come in with the result. Bytes: pixels read once per 64 columns (from L2), w once
// per 64 patches, out written once; patches and their products never exist in device memory.
static void embed_patches(cudaStream_t s, float *out, const uint8_t *pixels, Pixels norm, const Tensor &w,
                          const float *b, const float *cls, const float *pos, int B, int S, int P) {
    // pixels (B,S,S,3), w (D,3*P*P), b and cls (D), pos (1 + G*G, D) -> out (B*(1 + G*G), D), G = S/P
    const int G = S / P;
    Dense d = {};
    d.out = out, d.w = w, d.b = b, d.act = ACT_NONE, d.T = B * G * G, d.OC = w.rows, d.C = w.cols;
    gemm_of<true>(s, d, Patches{pixels, norm, cls, pos, B, S, P, G});
}

// ---------------------------------------------------------------------------------------------------------
// 3. cuBLASLt. It thinks in column-major matrices: our x (T,C) is its (C,T), and
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
