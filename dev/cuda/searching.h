// dev/cuda/searching.h: a Search (generate_parts.h) on the device for the ladder, and generate.c's beside it.
//
// In order: Searching and how it is made; what is the same in all versions: sums over a row, the end of a step.
// sampling.cu and beam_step.cu include it. The host's Search makes the same step with generate.c, the reference.
// Not here: versions, shapes; choose() itself (cuda_choose.cuh).
#ifndef LADDER_SEARCHING_H
#define LADDER_SEARCHING_H

#include "ladder.h"

#include "cuda_choose.cuh"

// One step of R = B*K rows. choose() gets all of these; what it left is found through `parts`.
typedef struct {
    Search *host, *device;
    Search parts;                 // the device's pointers
    int *fed_t, *lines;
    float *values, *scratch;      // (R,V), (R, choose_scratch)
    float *logits;                // (R,V), of the step that is timed
    uint8_t *start;               // the block as it was before that step
    size_t bytes;
    int B, R;
    bool beams;
} Searching;

enum { SEARCH_STEPS = 4 };

static void searching_choose(cudaStream_t s, const Searching &p, const float *logits) {
    choose(s, p.device, p.fed_t, p.values, p.scratch, logits, p.lines, p.R, SEARCH_STEPS, p.beams, p.B, p.R,
           p.host->V);
}

// logits (R,V) of the step that is timed; first (B,V), if not empty: of a step before, which both sides have made. The
// host makes the timed step too and shows in *step what it chose. Free host with free().
static Searching searching_make(Ladder *l, Step *step, const Choice &how, int B, int V, int eos,
                                const std::vector<float> &first, const std::vector<float> &logits) {
    const int R = B * search_rows(&how);
    Searching p = {};
    p.B = B, p.R = R, p.beams = how.beams > 1;
    p.bytes = search_bytes(B, R, SEARCH_STEPS, V);
    void *memory = aligned_alloc(64, p.bytes);
    CHECK(memory);
    memset(memory, 0, p.bytes);
    p.host = search_init(memory, B, R, SEARCH_STEPS, V, eos, 0);
    const std::vector<const int *> seen(B, NULL);
    search_begin(p.host, &how, seen.data(), std::vector<int>(B, 0).data(), B);

    std::vector<uint8_t> copy(p.bytes, 0);
    p.device = (Search *)ladder_input(l, copy);
    search_export(copy.data(), p.host, p.device, seen.data());
    CUDA_CHECK(cudaMemcpy(p.device, copy.data(), search_export_bytes(p.host), cudaMemcpyHostToDevice));
    memcpy(&p.parts, copy.data(), sizeof p.parts);
    p.fed_t = ladder_input(l, std::vector<int>{0});
    p.lines = ladder_input(l, std::vector<int>(2 * (size_t)R * SEARCH_STEPS, 0));   // only penalties look at these
    p.values = (float *)ladder_scratch(l, (size_t)R * V * sizeof(float));
    p.scratch = (float *)ladder_scratch(l, R * choose_scratch(V, R) * sizeof(float));
    p.logits = ladder_input(l, logits);
    if (!first.empty()) {
        CHECK(search_step(p.host, step, first.data()));
        searching_choose(l->s, p, ladder_input(l, first));
        CUDA_CHECK(cudaStreamSynchronize(l->s));
    }
    p.start = ladder_input(l, copy);
    CUDA_CHECK(cudaMemcpyAsync(p.start, p.device, p.bytes, cudaMemcpyDeviceToDevice, l->s));
    CHECK(search_step(p.host, step, logits.data()));
    return p;
}

static void searching_restore(cudaStream_t s, const Searching &p) {
    CUDA_CHECK(cudaMemcpyAsync(p.device, p.start, p.bytes, cudaMemcpyDeviceToDevice, s));
}

// ---------------------------------------------------------------------------------------------------------
// The arithmetic that decides is generate.h's in every version: exp_minus, and sums of f32 along each of 16 lanes of
// each 512, those in double. Versions differ in who does it.

// Sum over a block; every thread gets it. shared (32)
template <int THREADS, typename N> static __device__ N block_add(N x, N *shared) {
    if constexpr (THREADS > 1) {
        for (int d = 16; d; d /= 2) x += __shfl_xor_sync(0xFFFFFFFFu, x, d);
        __syncthreads();                  // shared may still be read from the last call
        if (threadIdx.x % 32 == 0) shared[threadIdx.x / 32] = x;
        __syncthreads();
        x = 0;
        for (int w = 0; w < THREADS / 32; w++) x += shared[w];
    }
    return x;
}

// at(v), v < V
template <int THREADS, typename At> static __device__ double row_total(At at, int V, double *shared) {
    double total = 0;
    for (int g = threadIdx.x; g < (V + 511) / 512 * 16; g += THREADS) {
        const int lane = g % 16, start = g / 16 * 512, end = V - start < 512 ? V : start + 512;
        float x = 0;
        int v = start;
        for (; v + 16 <= end; v += 16) x += at(v + lane);
        if (lane == 0) for (; v < end; v++) x += at(v);
        total += (double)x;
    }
    return block_add<THREADS>(total, shared);
}

template <int THREADS> static __device__ float row_max(float x, double *shared) {
    if constexpr (THREADS > 1) {
        for (int d = 16; d; d /= 2) x = fmaxf(x, __shfl_xor_sync(0xFFFFFFFFu, x, d));
        __syncthreads();
        if (threadIdx.x % 32 == 0) shared[threadIdx.x / 32] = x;
        __syncthreads();
        for (int w = 0; w < THREADS / 32; w++) x = fmaxf(x, (float)shared[w]);
    }
    return x;
}

// Log-softmax's sums of x (V).
template <int THREADS> static __device__ Norm row_sums(const float *x, int V, double *shared) {
    float top = -INFINITY;
    for (int v = threadIdx.x; v < V; v += THREADS) top = fmaxf(top, clean(x[v]));
    Norm z = {row_max<THREADS>(top, shared), 0};
    z.logsum = (float)log(row_total<THREADS>([=](int v) { return exp_minus(clean(x[v]), z.max); }, V, shared));
    return z;
}

// As the end of choose(): which prompts go on, and the step is over.
__global__ void end_step(Search *s, int *fed_t) {
    for (int b = threadIdx.x; b < s->B && s->how.beams == 1; b += blockDim.x) {
        int open = 0;
        for (int k = 0; k < s->K; k++) open |= !s->ended[b * s->K + k];
        s->open[b] = open;
    }
    __syncthreads();
    if (threadIdx.x == 0) *fed_t = s->t++;
}

#endif
