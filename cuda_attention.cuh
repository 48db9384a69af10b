// cuda_attention.cuh: attention in three forms, all with a running soft-max so that scores stay in registers.
//
// In order:
//   1. what they share: the arguments, one step of the running soft-max
//   2. attention over whole sequences on tensor cores (ViT, Q-Former, prompts): attention_mma_kernel
//   3. the same one query a warp, for f32, odd head sizes and heads above 128: attention_plain_kernel
//   4. one new token per row over its past (decoding): past_kernel
//
//     out_h = softmax(scale * q_h k_h^T + bias_h) v_h        heads h = 0..H-1 side by side in the columns
//
// The running soft-max (Milakov, Gimelshein 2018; Dao et al. 2022) keeps m, the largest score so far, l, the sum of
// exp(score - m), and the sum of exp(score - m) * v; when m grows, l and the sum are scaled by exp(m_old - m).
// Not here: the projections around attention (cuda_dense.cuh).
#ifndef CUDA_ATTENTION_CUH
#define CUDA_ATTENTION_CUH

#include "cuda_layers.cuh"

// ---------------------------------------------------------------------------------------------------------
// 1. Shared.

// Several sequences in one launch: sequence b's queries are rows q_first[b] .. q_first[b+1]-1 of q, its keys start at
// row k_first[b] of k and v and are k_count[b] many (as many as queries when k_count is NULL).
typedef struct {
    void *out;                            // (rows, H*A) activations
    const void *q, *k, *v;                // rows ldq, ldkv elements apart
    const int *q_first, *k_first, *k_count;   // on the device
    const float *bias;                    // bias[h*ldb + j - i] is added for query i and key j (T5), or NULL
    int ldq, ldkv, ldb;
    float scale;
    int causal;                           // query i sees keys 0..i only
    int B, H, A, max_q;                   // sequences, heads, size of a head, most queries of a sequence
} Attention;

// One warp's running soft-max; lane has elements lane, lane + 32, ... of the head.
template <int C> struct Running { float m, l, acc[C]; };

template <int C> static __device__ __forceinline__ void running_start(Running<C> &r) {
    r.m = -INFINITY, r.l = 0;
    #pragma unroll
    for (int c = 0; c < C; c++) r.acc[c] = 0;
}

template <typename T, int C>
static __device__ __forceinline__ float warp_dot(const float (&q)[C], const T *k, int A) {
    float s = 0;
    #pragma unroll
    for (int c = 0; c < C; c++) {
        const int d = (int)threadIdx.x % 32 + 32 * c;
        if (d < A) s += q[c] * f32_of(k[d]);
    }
    return warp_sum(s);
}

template <typename T, int C>
static __device__ __forceinline__ void running_add(Running<C> &r, float score, const T *v, int A) {
    const float m = fmaxf(r.m, score), old = expf(r.m - m), p = expf(score - m);
    r.m = m;
    r.l = r.l * old + p;
    #pragma unroll
    for (int c = 0; c < C; c++) {
        const int d = (int)threadIdx.x % 32 + 32 * c;
        r.acc[c] = r.acc[c] * old + (d < A ? p * f32_of(v[d]) : 0);
    }
}

// ---------------------------------------------------------------------------------------------------------
// 2. Tensor cores. A block has 64 queries of one head, a warp 16 of them, whose fragments stay in registers. Keys and
// values come in tiles of 64 through cp.async, one tile ahead. The scores of a tile are, as they come out of one mma,
// already laid out as the left operand of the next, so that they never leave the registers:
//
//     S (16,64) = Q (16,AP) K^T      C fragment: lane has rows g, g+8 (g = lane/4), columns 8n + 2(lane%4) + {0,1}
//     O (16,AP) += P (16,64) V       A fragment: the same rows, columns 16k + 2(lane%4) + {0,1} and 8 further
//
// AP is the head size padded to a multiple of 16 (88 -> 96): padding is zero in shared memory only. Rows of K and V
// are AP + 8 elements apart there, which spreads the 8 rows that ldmatrix reads at once over all banks.
// Device memory: q, k, v read once per 64 queries (from L2 beyond the first), out written once.

enum { MMA_Q = 64, MMA_K = 64 };

template <int AP> static size_t attention_shared() { return 2 * 2 * MMA_K * (AP + 8) * sizeof(bf16); }

template <int AP>
static __device__ __forceinline__ void load_keys(bf16 *ks, bf16 *vs, const bf16 *k, const bf16 *v,
                                                 int ldkv, int A, int j0, int Tk) {
    // rows j0 .. j0+63 of k and v -> ks, vs (64, AP+8); zero beyond Tk and beyond A
    for (int i = threadIdx.x; i < MMA_K * (AP / 8); i += 128) {
        const int j = i / (AP / 8), d = i % (AP / 8) * 8;
        const bool there = j0 + j < Tk && d < A;
        const size_t from = there ? (size_t)(j0 + j) * ldkv + d : 0;
        cp_async_16(ks + j * (AP + 8) + d, k + from, there ? 16 : 0);
        cp_async_16(vs + j * (AP + 8) + d, v + from, there ? 16 : 0);
    }
    cp_async_commit();
}

template <int AP>
__global__ void __launch_bounds__(128) attention_mma_kernel(Attention p) {
    // see Attention: q (rows,H*A), k, v -> out (rows,H*A); grid: 64 queries each, heads, sequences
    constexpr int LD = AP + 8, KS = AP / 16;
    SHARED_DYNAMIC(bf16, smem);   // K, V of tile 0, K, V of tile 1
    const int b = blockIdx.z, h = blockIdx.y, warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const int g = lane / 4, c2 = lane % 4 * 2;
    const int Tq = p.q_first[b + 1] - p.q_first[b], Tk = p.k_count ? p.k_count[b] : Tq;
    const int q0 = blockIdx.x * MMA_Q;
    if (q0 >= Tq) return;
    const bf16 *q = (const bf16 *)p.q + (size_t)p.q_first[b] * p.ldq + h * p.A;
    const bf16 *k = (const bf16 *)p.k + (size_t)p.k_first[b] * p.ldkv + h * p.A;
    const bf16 *v = (const bf16 *)p.v + (size_t)p.k_first[b] * p.ldkv + h * p.A;
    const int end = p.causal && q0 + MMA_Q < Tk ? q0 + MMA_Q : Tk, tiles = (end + MMA_K - 1) / MMA_K;
    const int i0 = q0 + warp * 16 + g;      // this lane's queries: i0 and i0 + 8

    load_keys<AP>(smem, smem + MMA_K * LD, k, v, p.ldkv, p.A, 0, Tk);
    u32 qa[KS][4];
    #pragma unroll
    for (int s = 0; s < KS; s++)
        #pragma unroll
        for (int e = 0; e < 4; e++) {
            const int i = i0 + e % 2 * 8, d = s * 16 + e / 2 * 8 + c2;
            qa[s][e] = i < Tq && d < p.A ? *(const u32 *)(q + (size_t)i * p.ldq + d) : 0;
        }
    float o[2 * KS][4], m[2] = {-INFINITY, -INFINITY}, l[2] = {0, 0};
    #pragma unroll
    for (int n = 0; n < 2 * KS; n++) o[n][0] = o[n][1] = o[n][2] = o[n][3] = 0;

    for (int t = 0; t < tiles; t++) {
        const bf16 *ks = smem + (t % 2) * 2 * MMA_K * LD, *vs = ks + MMA_K * LD;
        if (t + 1 < tiles) {
            bf16 *next = smem + ((t + 1) % 2) * 2 * MMA_K * LD;
            load_keys<AP>(next, next + MMA_K * LD, k, v, p.ldkv, p.A, (t + 1) * MMA_K, Tk);
            cp_async_wait<1>();
        } else cp_async_wait<0>();
        __syncthreads();

        float s[MMA_K / 8][4];
        #pragma unroll
        for (int n = 0; n < MMA_K / 8; n++) s[n][0] = s[n][1] = s[n][2] = s[n][3] = 0;
        #pragma unroll
        for (int step = 0; step < KS; step++)
            #pragma unroll
            for (int n = 0; n < MMA_K / 16; n++) {
                u32 kb[4];
                ldmatrix_x4(kb, ks + (n * 16 + lane / 16 * 8 + lane % 8) * LD + step * 16 + lane / 8 % 2 * 8);
                mma_m16n8k16_bf16(s[2 * n], qa[step], kb);
                mma_m16n8k16_bf16(s[2 * n + 1], qa[step], kb + 2);
            }

        float top[2] = {m[0], m[1]};
        #pragma unroll
        for (int n = 0; n < MMA_K / 8; n++)
            #pragma unroll
            for (int e = 0; e < 4; e++) {
                const int i = i0 + e / 2 * 8, j = t * MMA_K + n * 8 + c2 + e % 2;
                const bool seen = j < Tk && !(p.causal && j > i);
                s[n][e] = !seen ? -INFINITY
                                : s[n][e] * p.scale + (p.bias && i < Tq ? p.bias[(ptrdiff_t)h * p.ldb + j - i] : 0);
                top[e / 2] = fmaxf(top[e / 2], s[n][e]);
            }
        #pragma unroll
        for (int r = 0; r < 2; r++) {   // the four lanes of a row
            top[r] = fmaxf(top[r], __shfl_xor_sync(0xFFFFFFFFu, top[r], 1));
            top[r] = fmaxf(top[r], __shfl_xor_sync(0xFFFFFFFFu, top[r], 2));
            const float old = expf(m[r] - top[r]);   // key 0 is seen by all, so top is finite
            m[r] = top[r];
            l[r] *= old;
            #pragma unroll
            for (int n = 0; n < 2 * KS; n++) o[n][2 * r] *= old, o[n][2 * r + 1] *= old;
        }
        u32 pa[MMA_K / 16][4];
        #pragma unroll
        for (int n = 0; n < MMA_K / 8; n++)
            #pragma unroll
            for (int r = 0; r < 2; r++) {
                const float x = expf(s[n][2 * r] - m[r]), y = expf(s[n][2 * r + 1] - m[r]);
                l[r] += x + y;
                pa[n / 2][n % 2 * 2 + r] = pack_bf16(x, y);
            }
        #pragma unroll
        for (int step = 0; step < MMA_K / 16; step++)
            #pragma unroll
            for (int n = 0; n < KS; n++) {
                u32 vb[4];
                ldmatrix_x4_trans(vb, vs + (step * 16 + lane / 8 % 2 * 8 + lane % 8) * LD + n * 16 + lane / 16 * 8);
                mma_m16n8k16_bf16(o[2 * n], pa[step], vb);
                mma_m16n8k16_bf16(o[2 * n + 1], pa[step], vb + 2);
            }
        __syncthreads();   // before the next load overwrites what was just read
    }

    #pragma unroll
    for (int r = 0; r < 2; r++) {
        l[r] += __shfl_xor_sync(0xFFFFFFFFu, l[r], 1);
        l[r] += __shfl_xor_sync(0xFFFFFFFFu, l[r], 2);
        const int i = i0 + 8 * r;
        bf16 *out = (bf16 *)p.out + (size_t)(p.q_first[b] + i) * p.H * p.A + h * p.A;
        #pragma unroll
        for (int n = 0; n < 2 * KS; n++)
            if (i < Tq && n * 8 + c2 < p.A)
                *(u32 *)(out + n * 8 + c2) = pack_bf16(o[n][2 * r] / l[r], o[n][2 * r + 1] / l[r]);
    }
}

// ---------------------------------------------------------------------------------------------------------
// 3. A warp per query, keys one after the other. For exact comparison in f32, and for what tensor cores cannot load.

template <typename T, int C>
__global__ void __launch_bounds__(128) attention_plain_kernel(Attention p) {
    // see Attention: q (rows,H*A), k, v -> out (rows,H*A); grid: 4 queries each, heads, sequences; A <= 32*C
    const int b = blockIdx.z, h = blockIdx.y, lane = threadIdx.x % 32, i = blockIdx.x * 4 + threadIdx.x / 32;
    const int Tq = p.q_first[b + 1] - p.q_first[b], Tk = p.k_count ? p.k_count[b] : Tq;
    if (i >= Tq) return;
    const T *q = (const T *)p.q + (size_t)(p.q_first[b] + i) * p.ldq + h * p.A;
    const T *k = (const T *)p.k + (size_t)p.k_first[b] * p.ldkv + h * p.A;
    const T *v = (const T *)p.v + (size_t)p.k_first[b] * p.ldkv + h * p.A;
    float qr[C];
    #pragma unroll
    for (int c = 0; c < C; c++) qr[c] = lane + 32 * c < p.A ? f32_of(q[lane + 32 * c]) : 0;
    Running<C> r;
    running_start(r);
    const int end = p.causal && i + 1 < Tk ? i + 1 : Tk;
    for (int j = 0; j < end; j++) {
        const float s = p.scale * warp_dot(qr, k + (size_t)j * p.ldkv, p.A);
        running_add(r, s + (p.bias ? p.bias[(ptrdiff_t)h * p.ldb + j - i] : 0), v + (size_t)j * p.ldkv, p.A);
    }
    T *out = (T *)p.out + (size_t)(p.q_first[b] + i) * p.H * p.A + h * p.A;
    #pragma unroll
    for (int c = 0; c < C; c++)
        if (lane + 32 * c < p.A) put(out + lane + 32 * c, r.acc[c] / r.l);
}

template <int AP> static void launch_mma(cudaStream_t s, const Attention &p) {
    const auto kernel = attention_mma_kernel<AP>;
    CUDA_CHECK(cudaFuncSetAttribute((const void *)kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                    (int)attention_shared<AP>()));
    LAUNCH(kernel, dim3(ceil_div(p.max_q, MMA_Q), p.H, p.B), dim3(128), attention_shared<AP>(), s, p);
}

enum { MAX_HEAD = 256 };

template <typename T> static void attention(cudaStream_t s, const Attention &p) {
    // see Attention; 1 <= A <= MAX_HEAD
    const bool fits = sizeof(T) == 2 && p.A % 8 == 0 && p.ldq % 2 == 0 && p.ldkv % 8 == 0 && p.A <= 128;
    if (fits && p.A <= 32) launch_mma<32>(s, p);
    else if (fits && p.A <= 64) launch_mma<64>(s, p);
    else if (fits && p.A <= 96) launch_mma<96>(s, p);
    else if (fits) launch_mma<128>(s, p);
    else {
        const auto kernel = p.A <= 64 ? attention_plain_kernel<T, 2> : p.A <= 128 ? attention_plain_kernel<T, 4>
                                                                                  : attention_plain_kernel<T, 8>;
        LAUNCH(kernel, dim3(ceil_div(p.max_q, 4), p.H, p.B), dim3(128), 0, s, p);
    }
}

// ---------------------------------------------------------------------------------------------------------
// 4. Decoding: one query per row over that row's own past, laid out as in blip2.c's section 5. Bytes: the row's keys
// and values, 2 * (n + new) * A elements a head; 0.4 % of a step at 60 tokens, so what counts is a short way from start
// to end: few loads behind one another. A block has one head of one row.
//
//     8 lanes:  one key and its value, in pieces of 16 bytes: lane i has pieces i, i + 8, ...
//     warp:     4 keys at a time, two times that before it uses the first: 64 keys of a block are under way at once
//
// Each 8 lanes have a running soft-max of their own; those of a warp are put together by shuffles, those of the block
// through shared memory, always in the same order.

typedef struct {
    void *out;                 // (rows, H*A) activations
    const void *q;             // rows ldq elements apart
    const void *kv;            // (slots, 2*I) shared keys and values
    const int *first_of;       // (prompts) where a prompt's begin
    const int *n_of;           // (prompts) how many it has
    const int *prompt_of;      // (rows)
    const void *kv_new;        // (max_new, R, 2*I) of generated tokens, or NULL
    const int *line;           // (2, R, max_new): the line after token t is in half (t + 1) % 2
    const int *t;              // the token being fed; tokens 0..t are attended to
    const float *bias;         // bias[h*ldb + distance] (T5), or NULL
    int ldq, R, max_new, ldb;
    float scale;
    int rows, H, A;
    const bool *going;         // see goes_on
} Past;

enum { PAST_WARPS = 8, PAST_AHEAD = 2 };

// Piece i of a row of A elements, as floats; zero beyond. Rows that are no multiple of 16 bytes go element by element.
template <typename T, int E>
static __device__ __forceinline__ void piece(float (&f)[E], const T *p, int i, int A) {
    if (A % E == 0) {
        uint4 v = make_uint4(0, 0, 0, 0);
        if (i * E < A) v = load_128(p + i * E);
        unpack(f, v, T());
    } else {
        #pragma unroll
        for (int e = 0; e < E; e++) f[e] = i * E + e < A ? f32_of(p[i * E + e]) : 0;
    }
}

template <typename T, int P>
__global__ void __launch_bounds__(32 * PAST_WARPS) past_kernel(Past p) {
    // see Past: q (rows,H*A), kv, kv_new -> out (rows,H*A); grid: heads, rows; P: pieces of a lane
    constexpr int E = 16 / sizeof(T);
    SHARED(float, ml, [PAST_WARPS][2]);
    SHARED(float, part, [PAST_WARPS][8 * P * E]);
    const int going = goes_on(p.going);
    pdl_wait();
    pdl_launch();
    if (!going) return;
    const int h = blockIdx.x, row = blockIdx.y, warp = threadIdx.x / 32, lane = threadIdx.x % 32, i8 = lane % 8;
    const int I = p.H * p.A, b = p.prompt_of[row], n = p.n_of[b], t = p.kv_new ? *p.t : -1, last = n + t;
    const T *kv = (const T *)p.kv + (size_t)p.first_of[b] * 2 * I + h * p.A;
    const T *fresh = (const T *)p.kv_new + h * p.A;
    const int *line = p.line + ((size_t)(t + 1) % 2 * p.R + row) * p.max_new;
    float q[P][E], acc[P][E] = {}, m = -INFINITY, l = 0;
    #pragma unroll
    for (int c = 0; c < P; c++) piece(q[c], (const T *)p.q + (size_t)row * p.ldq + h * p.A, i8 + 8 * c, p.A);
    for (int j0 = warp * 4 + lane / 8; j0 - lane / 8 <= last; j0 += PAST_AHEAD * 4 * PAST_WARPS) {
        float k[PAST_AHEAD][P][E], v[PAST_AHEAD][P][E], s[PAST_AHEAD];
        #pragma unroll
        for (int a = 0; a < PAST_AHEAD; a++) {
            const int j = j0 + a * 4 * PAST_WARPS, at = j <= last ? j : 0;   // beyond: any key, without weight
            const T *from = at < n ? kv + (size_t)at * 2 * I : fresh + ((size_t)(at - n) * p.R + line[at - n]) * 2 * I;
            #pragma unroll
            for (int c = 0; c < P; c++) {
                piece(k[a][c], from, i8 + 8 * c, p.A);
                piece(v[a][c], from + I, i8 + 8 * c, p.A);
            }
        }
        float top = m;
        #pragma unroll
        for (int a = 0; a < PAST_AHEAD; a++) {
            const int j = j0 + a * 4 * PAST_WARPS;
            float sum = 0;
            #pragma unroll
            for (int c = 0; c < P; c++)
                #pragma unroll
                for (int e = 0; e < E; e++) sum += q[c][e] * k[a][c][e];
            #pragma unroll
            for (int d = 4; d; d >>= 1) sum += __shfl_xor_sync(0xFFFFFFFFu, sum, d);
            s[a] = j > last ? -INFINITY : sum * p.scale + (p.bias ? p.bias[(size_t)h * p.ldb + last - j] : 0);
            top = fmaxf(top, s[a]);
        }
        if (top == -INFINITY) continue;   // none of these lanes' keys is there; no shuffle below
        const float old = expf(m - top);
        m = top, l *= old;
        #pragma unroll
        for (int a = 0; a < PAST_AHEAD; a++) {
            const float w = expf(s[a] - m);
            l += w;
            #pragma unroll
            for (int c = 0; c < P; c++)
                #pragma unroll
                for (int e = 0; e < E; e++) acc[c][e] = acc[c][e] * (a == 0 ? old : 1) + w * v[a][c][e];
        }
    }
    float top = m;   // of the warp; -INFINITY if it had no key
    #pragma unroll
    for (int d = 8; d < 32; d <<= 1) top = fmaxf(top, __shfl_xor_sync(0xFFFFFFFFu, top, d));
    const float factor = m == -INFINITY ? 0 : expf(m - top);
    l *= factor;
    #pragma unroll
    for (int d = 8; d < 32; d <<= 1) l += __shfl_xor_sync(0xFFFFFFFFu, l, d);
    #pragma unroll
    for (int c = 0; c < P; c++)
        #pragma unroll
        for (int e = 0; e < E; e++) {
            float x = acc[c][e] * factor;
            #pragma unroll
            for (int d = 8; d < 32; d <<= 1) x += __shfl_xor_sync(0xFFFFFFFFu, x, d);
            if (lane < 8) part[warp][(lane + 8 * c) * E + e] = x;
        }
    if (lane == 0) ml[warp][0] = top, ml[warp][1] = l;
    __syncthreads();
    float all = -INFINITY, sum_l = 0;
    for (int w = 0; w < PAST_WARPS; w++) all = fmaxf(all, ml[w][0]);
    for (int w = 0; w < PAST_WARPS; w++) sum_l += ml[w][1] * expf(ml[w][0] - all);   // 0 for a warp without keys
    for (int d = threadIdx.x; d < p.A; d += blockDim.x) {
        float sum = 0;
        for (int w = 0; w < PAST_WARPS; w++) sum += part[w][d] * expf(ml[w][0] - all);
        put((T *)p.out + (size_t)row * I + h * p.A + d, sum / sum_l);
    }
}

template <typename T> static void attend_past(cudaStream_t s, const Past &p) {
    constexpr int E = 64 / sizeof(T) * 2;   // elements that 8 lanes have in one piece each
    const auto kernel = p.A <= E ? past_kernel<T, 1> : p.A <= 2 * E ? past_kernel<T, 2>
                      : p.A <= 3 * E ? past_kernel<T, 3> : p.A <= 4 * E ? past_kernel<T, 4>
                                                                        : past_kernel<T, (int)MAX_HEAD / E>;
    LAUNCH_PDL(kernel, dim3(p.H, p.rows), dim3(32 * PAST_WARPS), 0, s, p);
}

#endif
