// dev/cuda/decode_attention.cu: attention of one new token per row over its past, from a thread per output to the
// launcher of cuda_attention.cuh.
//
//     q (R, H*A) bf16, the rows' past -> out (R, H*A) bf16 = softmax(q_h k_h^T / sqrt(A)) v_h
//
// The past of a row: n positions of its prompt, which all rows of the prompt share, then t + 1 generated tokens, each
// in the slot that `line` names, since beams swap pasts without moving them. OPT-2.7b: 32 heads of 80, 40 + 20
// positions. Must move: 4*H*A bytes per position, 0.6 MB a row, which is 0.4 % of a step: next to the weights that is
// nothing, so the aim is not bandwidth but a short way from the first load to the last store, 32 times a token.
#include "ladder.h"

#include "cuda_attention.cuh"

extern "C" {
#include "cpu.h"
}

// Where the key of position j of a row begins, for head h; its value lies H*A further.
static __device__ __forceinline__ const bf16 *key_at(const Past &p, int row, int h, int j) {
    const int b = p.prompt_of[row], n = p.n_of[b], I = p.H * p.A;
    if (j < n) return (const bf16 *)p.kv + ((size_t)p.first_of[b] + j) * 2 * I + h * p.A;
    const int slot = p.line[((size_t)(*p.t + 1) % 2 * p.R + row) * p.max_new + j - n];
    return (const bf16 *)p.kv_new + ((size_t)(j - n) * p.R + slot) * 2 * I + h * p.A;
}

static __device__ __forceinline__ float score(const Past &p, int row, int h, int j) {
    const bf16 *q = (const bf16 *)p.q + (size_t)row * p.ldq + h * p.A, *k = key_at(p, row, h, j);
    float s = 0;
    for (int a = 0; a < p.A; a++) s += bf16_to_f32(q[a]) * bf16_to_f32(k[a]);
    return s * p.scale;
}

// Version 1: a thread per output, which makes all scores of its head for itself, twice: once for their maximum. Limit:
// the work is done 2*A times over, by loads that wait for one another.
__global__ void decode1(Past p) {
    const int a = threadIdx.x, h = blockIdx.x, row = blockIdx.y;
    const int positions = p.n_of[p.prompt_of[row]] + *p.t + 1;
    float top = -INFINITY, sum = 0, out = 0;
    for (int j = 0; j < positions; j++) top = fmaxf(top, score(p, row, h, j));
    for (int j = 0; j < positions; j++) {
        const float e = expf(score(p, row, h, j) - top);
        sum += e;
        out += e * bf16_to_f32(key_at(p, row, h, j)[p.H * p.A + a]);
    }
    ((bf16 *)p.out)[((size_t)row * p.H + h) * p.A + a] = f32_to_bf16(out / sum);
}

// Version 2: a block per head of a row: a thread per position makes its score, then a thread per output adds up the
// values. Each key is read once. Limit: the lanes of a warp read keys that lie 4*H*A bytes apart, two bytes each, A
// times one after the other.
__global__ void decode2(Past p) {
    SHARED_DYNAMIC(float, s);             // (positions)
    const int h = blockIdx.x, row = blockIdx.y, positions = p.n_of[p.prompt_of[row]] + *p.t + 1;
    for (int j = threadIdx.x; j < positions; j += blockDim.x) s[j] = score(p, row, h, j);
    __syncthreads();
    float top = -INFINITY, sum = 0, out = 0;
    for (int j = 0; j < positions; j++) top = fmaxf(top, s[j]);
    const int a = threadIdx.x;
    if (a >= p.A) return;
    for (int j = 0; j < positions; j++) {
        const float e = expf(s[j] - top);
        sum += e;
        out += e * bf16_to_f32(key_at(p, row, h, j)[p.H * p.A + a]);
    }
    ((bf16 *)p.out)[((size_t)row * p.H + h) * p.A + a] = f32_to_bf16(out / sum);
}

// Version 3: a warp per head of a row, its lanes along the head: neighbours read neighbours. The soft-max runs along,
// so that key and value of a position are read together and no score is stored. Limit: positions come one after the
// other, each a load, a sum over the warp (5 shuffles) and an exponential behind the one before.
template <int C> __global__ void decode3(Past p) {
    const int h = blockIdx.x, row = blockIdx.y, lane = threadIdx.x;
    const int positions = p.n_of[p.prompt_of[row]] + *p.t + 1;
    const bf16 *q = (const bf16 *)p.q + (size_t)row * p.ldq + h * p.A;
    float qr[C];
    #pragma unroll
    for (int c = 0; c < C; c++) qr[c] = lane + 32 * c < p.A ? bf16_to_f32(q[lane + 32 * c]) : 0;
    Running<C> r;
    running_start(r);
    for (int j = 0; j < positions; j++) {
        const bf16 *k = key_at(p, row, h, j);
        running_add(r, p.scale * warp_dot(qr, k, p.A), k + p.H * p.A, p.A);
    }
    #pragma unroll
    for (int c = 0; c < C; c++)
        if (lane + 32 * c < p.A)
            ((bf16 *)p.out)[((size_t)row * p.H + h) * p.A + lane + 32 * c] = f32_to_bf16(r.acc[c] / r.l);
}

// Version 4: attend_past() of cuda_attention.cuh. 8 lanes share a key, 16 bytes a load, and ask for the next one before
// they use this: a block of 8 warps has 64 keys of a head under way at once, so that 60 positions are one round instead
// of 60. Every 8 lanes have a running soft-max of their own, put together by shuffles and then in one barrier. Bytes
// moved: as version 3. It also starts while the kernel ahead of it runs (programmatic dependent launch), which a timing
// of it alone does not show. Limit: the way from the first load to the last store, and H blocks a row.

static bool launch(const Ladder *l, int version, const Past &p, int positions) {
    switch (version) {
    case 1: LAUNCH(decode1, dim3(p.H, p.rows), dim3(p.A), 0, l->s, p); break;
    case 2: LAUNCH(decode2, dim3(p.H, p.rows), dim3(128), positions * sizeof(float), l->s, p); break;
    case 3: {
        const auto kernel = p.A <= 64 ? decode3<2> : p.A <= 96 ? decode3<3> : decode3<4>;
        LAUNCH(kernel, dim3(p.H, p.rows), dim3(32), 0, l->s, p);
        break;
    }
    case 4: attend_past<bf16>(l->s, p); break;
    }
    return p.A <= 128;
}

static void run_case(Ladder *l, int B, int K, int n, int t, int H, int A) {
    const int R = B * K, I = H * A, TK = n, max_new = t + 2;
    // prompts are shorter by one from one to the next
    double positions = 0;
    for (int b = 0; b < B; b++) positions += n - b + (double)K * (t + 1);
    if (!ladder_case(l, positions * 4 * I + 4.0 * R * I, 0, "%d x %d rows, %d + %d positions, %d heads of %d", B, K, n,
                     t + 1, H, A)) return;
    const std::vector<float> q = ladder_numbers((size_t)R * I, 1, true);
    const std::vector<float> prompts = ladder_numbers((size_t)B * TK * 2 * I, 2, true);
    const std::vector<float> fresh = ladder_numbers((size_t)max_new * R * 2 * I, 3, true);
    std::vector<int> prompt_of(R), n_of(B), first_of(B), line((size_t)R * max_new, 0), lines(2 * line.size(), -1);
    uint32_t seed = 9;
    for (int b = 0; b < B; b++) n_of[b] = n - b, first_of[b] = b * TK;
    for (int r = 0; r < R; r++) {
        prompt_of[r] = r / K;
        for (int j = 0; j <= t; j++) line[(size_t)r * max_new + j] = r / K * K + (int)(ladder_random(&seed) % K);
    }
    memcpy(&lines[(size_t)(t + 1) % 2 * line.size()], line.data(), line.size() * sizeof(int));
    std::vector<float> want((size_t)R * I);
    const CpuPast cpu = {q.data(), prompts.data(), fresh.data(), prompt_of.data(), n_of.data(), line.data(),
                         B, R, TK, max_new, t, H, A};
    cpu_attend_past(want.data(), &cpu);
    Past p = {};
    p.out = ladder_output(l, LADDER_BF16, want, 4e-3);     // rounding to bf16: 1.7e-3 is measured
    p.q = ladder_input_bf16(l, q), p.kv = ladder_input_bf16(l, prompts), p.kv_new = ladder_input_bf16(l, fresh);
    p.first_of = ladder_input(l, first_of), p.n_of = ladder_input(l, n_of), p.prompt_of = ladder_input(l, prompt_of);
    p.line = ladder_input(l, lines), p.t = ladder_input(l, std::vector<int>{t});
    p.ldq = I, p.R = R, p.max_new = max_new, p.scale = 1 / sqrtf((float)A), p.rows = R, p.H = H, p.A = A;
    ladder_run(l, [&](int version) { return launch(l, version, p, n + t + 1); });
}

int main(int argc, char **argv) {
    Ladder l = ladder_open(argc, argv, "decode_attention",
        {{"a thread per output", "each makes all scores of its head anew, twice: 2A times the work"},
         {"a thread per position, then per output", "each key read once; lanes read keys that lie 4HA bytes apart"},
         {"a warp per head, running soft-max", "neighbours read neighbours, no score stored; positions one by one"},
         {"shipped: attend_past", "8 lanes a key, 64 keys of a head under way at once"}});
    if (l.small) {
        run_case(&l, 1, 1, 3, 0, 2, 8);
        run_case(&l, 2, 3, 9, 4, 2, 20);
        run_case(&l, 2, 1, 12, 1, 1, 80);
    } else {
        ladder_show(&l);
        run_case(&l, 1, 1, 40, 19, 32, 80);      // OPT-2.7b, greedy
        run_case(&l, 1, 5, 40, 19, 32, 80);      // five beams
        run_case(&l, 32, 1, 40, 19, 32, 80);
        run_case(&l, 1, 1, 40, 999, 32, 80);     // a long chat
    }
    ladder_close(&l);
}
