// dev/cuda/ladder_time.cu: times with a cold L2 cache, and the ceilings of the card they are held against.
//
// In order: the kernels of the measurement, a median, ceilings, what launchers need of the library.
// A time is the median over many runs, each between two events. Before each run a kernel reads a buffer several times
// as large as the L2 cache, so that weights come from device memory as they do in the model, where gigabytes pass
// between two uses; reading leaves no dirty lines that would have to be written back during the run. All runs are
// enqueued before the host waits: reading the buffer takes longer than enqueuing a run does, so no launch is late.
// Not here: versions, shapes, comparing.
#include "ladder_parts.h"

// Kernels of the headers that are no templates have external names, which the operation has too.
namespace {
#include "cuda_dense.cuh"
}

#include <algorithm>

enum { RUNS_MOST = 101, WORKSPACE = 32 << 20 };

__global__ void flush_kernel(u32 *sink, const uint4 *p, size_t n) {
    // p (n), read
    u32 x = 0;
    for (size_t i = (size_t)blockIdx.x * blockDim.x + threadIdx.x; i < n; i += (size_t)gridDim.x * blockDim.x) {
        const uint4 v = load_128(p + i);
        x ^= v.x ^ v.y ^ v.z ^ v.w;
    }
    if (x == 0x12345678u) *sink = x;      // never for a buffer of zeros, but the compiler must read to know
}

__global__ void empty_kernel(void) {}

static void flush(Ladder *l) {
    LadderState *st = l->state;
    LAUNCH(flush_kernel, dim3(2 * l->sms), dim3(512), 0, l->s, st->sink, st->flush, st->flush_bytes / sizeof(uint4));
}

double median_us(Ladder *l, const std::function<void()> &before, const std::function<void()> &work) {
    // A card that was idle while the CPU made its result has slowed its clocks down: 50 ms of reading wake it up.
    const bool rehearse = l->state->rehearse;
    cudaEvent_t from[RUNS_MOST], to[RUNS_MOST];
    for (int i = 0; i < RUNS_MOST; i++) {
        CUDA_CHECK(cudaEventCreate(&from[i]));
        CUDA_CHECK(cudaEventCreate(&to[i]));
    }
    for (int i = 0; i < 500 && !rehearse; i++) flush(l);
    float ms = 0;
    int runs = 2;                         // the first two warm up, and say how many there is time for
    std::vector<float> took;
    for (int round = 0; round < 2; round++) {
        for (int i = 0; i < runs; i++) {
            if (before) before();
            flush(l);
            CUDA_CHECK(cudaEventRecord(from[i], l->s));
            work();
            CUDA_CHECK(cudaEventRecord(to[i], l->s));
        }
        CUDA_CHECK(cudaStreamSynchronize(l->s));
        took.resize(runs);
        for (int i = 0; i < runs; i++) CUDA_CHECK(cudaEventElapsedTime(&took[i], from[i], to[i]));
        ms = took[runs - 1];
        runs = rehearse ? 3 : (int)std::min((double)RUNS_MOST, std::max(ms > 50 ? 3.0 : 7.0, 250 / (ms + 0.1)));
    }
    for (int i = 0; i < RUNS_MOST; i++) {
        CUDA_CHECK(cudaEventDestroy(from[i]));
        CUDA_CHECK(cudaEventDestroy(to[i]));
    }
    std::sort(took.begin(), took.end());
    return took[took.size() / 2] * 1e3;
}

// In this run on this card: a copy of 1 GiB from device memory to device memory, and 8192^3 in bf16.
void measure_ceilings(Ladder *l) {
    LadderState *st = l->state;
    const bool rehearse = st->rehearse;
    int l2 = 0;
    CUDA_CHECK(cudaDeviceGetAttribute(&l2, cudaDevAttrL2CacheSize, 0));
    st->flush_bytes = rehearse ? 1 << 16 : std::max((size_t)256 << 20, (size_t)l2 * 4);
    CUDA_CHECK(cudaMalloc((void **)&st->flush, st->flush_bytes));
    CUDA_CHECK(cudaMalloc((void **)&st->sink, sizeof *st->sink));
    CUDA_CHECK(cudaMemsetAsync(st->flush, 0, st->flush_bytes, l->s));     // the stream waits for no other
    st->empty_us = median_us(l, nullptr, [=] { LAUNCH(empty_kernel, dim3(1), dim3(32), 0, l->s); });

    const size_t copy = (size_t)1 << (rehearse ? 16 : 30);
    const int n = rehearse ? 64 : 8192;
    void *p[3];
    for (void *&x : p) CUDA_CHECK(cudaMalloc(&x, copy));
    for (void *x : p) CUDA_CHECK(cudaMemsetAsync(x, 0x11, copy, l->s));
    const double us = median_us(l, nullptr, [&] {
        CUDA_CHECK(cudaMemcpyAsync(p[0], p[1], copy, cudaMemcpyDeviceToDevice, l->s));
    });
    st->copy_gbs = 2 * copy / us * 1e-3;
    // Power depends on the numbers: zeros would be faster than anything the model multiplies.
    std::vector<bf16> some;
    for (float x : ladder_numbers((size_t)n * n / 16, 77, true))
        some.push_back((bf16)(__builtin_bit_cast(u32, x) >> 16));
    for (void *x : {p[1], p[2]})
        for (size_t at = 0; at < (size_t)n * n; at += some.size())
            CUDA_CHECK(cudaMemcpy((bf16 *)x + at, some.data(), some.size() * sizeof(bf16), cudaMemcpyHostToDevice));
    Lt lt = {};
    ladder_blas(l, &lt.handle, &lt.workspace, &lt.workspace_bytes);
    Dense d = {};
    d.out = p[0], d.kind = OUT_ACT, d.x = p[1], d.w = Tensor{p[2], NULL, DT_BF16, n, n}, d.act = ACT_NONE;
    d.T = d.OC = d.C = n;
    bool found = true;
    const double multiply = median_us(l, nullptr, [&] { found = lt_dense(l->s, &lt, d, NULL, false) && found; });
    if (found) st->multiply_tflops = 2.0 * n * n * n / multiply * 1e-6;
    for (int i = 0; i < lt.n; i++) lt_forget(&lt.plans[i]);
    for (void *x : p) CUDA_CHECK(cudaFree(x));
}

void ladder_blas(Ladder *l, cublasLtHandle_t *handle, void **workspace, size_t *bytes) {
    LadderState *st = l->state;
    *bytes = WORKSPACE;
    if (!st->blas) CUBLAS_CHECK(cublasLtCreate(&st->blas));
    if (!st->workspace) CUDA_CHECK(cudaMalloc(&st->workspace, WORKSPACE));
    *handle = st->blas;
    *workspace = st->workspace;
}

void ladder_split(Ladder *l, float **partial, size_t *bytes, int **tickets) {
    LadderState *st = l->state;
    if (!st->workspace) CUDA_CHECK(cudaMalloc(&st->workspace, WORKSPACE));
    if (!st->tickets) {
        CUDA_CHECK(cudaMalloc((void **)&st->tickets, STREAM_TICKETS * sizeof(int)));
        CUDA_CHECK(cudaMemsetAsync(st->tickets, 0, STREAM_TICKETS * sizeof(int), l->s));
    }
    *partial = (float *)st->workspace;    // as in blip2.cu: never both at a time
    *bytes = WORKSPACE;
    *tickets = st->tickets;
}
