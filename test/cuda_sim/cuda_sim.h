// test/cuda_sim/cuda_sim.h: CUDA C++ for g++: what nvcc and the card give to device code, on the CPU (doc/cuda-sim.md).
//
// In order: the toolkit's own headers (types, host API, cublasLt), control of the simulation, launches, built-in
// variables, shared memory, barriers, warp primitives, atomics, mathematics, twins of the PTX in cuda_common.h.
//
// Every thread of a block is a fiber. The file that holds the kernels is compiled with -fsanitize=thread, not for that
// tool's run-time library but for its calls at every memory access (__tsan_read4 and so on): cuda_sim_memory.cpp
// answers them and thereby sees each load and store of a kernel, of whatever type, without any wrapper.
//
// Not here: the scheduler (cuda_sim.cpp), memory (cuda_sim_memory.cpp), the host API (cuda_sim_host.cpp), cublasLt
// (cuda_sim_blas.cpp).
#ifndef CUDA_SIM_H
#define CUDA_SIM_H

#include <cublasLt.h>
#include <cuda_runtime.h>
#include <math.h>
#include <memory>
#include <stdint.h>
#include <string.h>
#include <tuple>

#include "sim_shared.h"

#undef __launch_bounds__
#define __launch_bounds__(...)
#undef __constant__
#define __constant__ __attribute__((section("sim_constant")))   // so that launches can count their bytes
#define SIM_SITE const char *file = __builtin_FILE(), int line = __builtin_LINE()

// ---------------------------------------------------------------------------------------------------------
// Control, for tests. What a real device would not report but is wrong ends in sim_fail: a line on stderr that starts
// with "cuda_sim: KIND:", and exit code 86.

void sim_seed(uint64_t seed);            // of every random order from now on; at the start it is $SIM_SEED or 1
void sim_device(int capability);         // 80 or 90: the limits that launches are held to; at the start $SIM_CC or 80
void sim_memory(size_t bytes);           // how much device memory there is
void sim_constant(size_t bytes);         // as if there were so many bytes of __constant__ variables more
size_t sim_unfreed();                    // device and pinned allocations that were not freed
[[noreturn]] void sim_fail(const char *kind, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

// ---------------------------------------------------------------------------------------------------------
// Launches

// The kernel with its arguments, which are read from there: the constant bank of a launch.
template <class... P> struct SimCall {
    void (*kernel)(P...);
    std::tuple<P...> arguments;
    static void run(const void *self) {
        std::apply(((const SimCall *)self)->kernel, ((const SimCall *)self)->arguments);
    }
};

cudaError_t sim_enqueue(const SimLaunch *launch, std::shared_ptr<const void> call, size_t call_bytes,
                        void (*run)(const void *));

template <class T> constexpr size_t sim_place(size_t at) {
    return (at + alignof(T) - 1) / alignof(T) * alignof(T) + sizeof(T);
}

template <class... P, class... A>
static inline cudaError_t sim_launch(const char *name, const char *file, int line, bool pdl, dim3 grid, dim3 block,
                                     size_t smem_bytes, cudaStream_t stream, void (*kernel)(P...), A... args) {
    SimLaunch l = {(const void *)kernel, name, file, line, pdl, grid, block, smem_bytes, 0, stream};
    ((l.argument_bytes = sim_place<P>(l.argument_bytes)), ...);
    auto call = std::make_shared<SimCall<P...>>(SimCall<P...>{kernel, {static_cast<P>(args)...}});
    return sim_enqueue(&l, call, sizeof *call, &SimCall<P...>::run);
}

#define LAUNCH(kernel, grid, block, smem_bytes, stream, ...) \
    CUDA_CHECK(sim_launch(#kernel, __FILE__, __LINE__, false, grid, block, smem_bytes, stream, kernel, ##__VA_ARGS__))
#define LAUNCH_PDL(kernel, grid, block, smem_bytes, stream, ...) \
    CUDA_CHECK(sim_launch(#kernel, __FILE__, __LINE__, true, grid, block, smem_bytes, stream, kernel, ##__VA_ARGS__))

// ---------------------------------------------------------------------------------------------------------
// Built-in variables. A fiber keeps its thread for a whole kernel, hence const.

uint3 sim_thread_idx() __attribute__((const));
uint3 sim_block_idx() __attribute__((const));
dim3 sim_block_dim() __attribute__((const));
dim3 sim_grid_dim() __attribute__((const));
#define threadIdx sim_thread_idx()
#define blockIdx sim_block_idx()
#define blockDim sim_block_dim()
#define gridDim sim_grid_dim()
#define warpSize 32

// ---------------------------------------------------------------------------------------------------------
// Shared memory: one piece per place in the text, the same for all threads of a block, surrounded by what must not be
// touched. At the start of a block it holds NaN.

void *sim_shared_static(const void *site, size_t bytes, const char *name);
void *sim_shared_dynamic();
#define SHARED(type, name, dims) \
    typedef type sim_type_##name dims; \
    static const char sim_site_##name = 0; \
    sim_type_##name &name = *(sim_type_##name *)sim_shared_static(&sim_site_##name, sizeof(sim_type_##name), #name)
#define SHARED_DYNAMIC(type, name) type *name = (type *)sim_shared_dynamic()

// ---------------------------------------------------------------------------------------------------------
// Barriers and warp primitives. All threads that are named must arrive, at the same line. Only __syncthreads and
// __syncwarp order memory.

enum SimBarrier { SIM_SYNC, SIM_OR, SIM_AND, SIM_COUNT };
int sim_syncthreads(SimBarrier kind, int predicate, const char *file, int line);
static inline void __syncthreads(SIM_SITE) { sim_syncthreads(SIM_SYNC, 0, file, line); }
static inline int __syncthreads_or(int p, SIM_SITE) { return sim_syncthreads(SIM_OR, p, file, line); }
static inline int __syncthreads_and(int p, SIM_SITE) { return sim_syncthreads(SIM_AND, p, file, line); }
static inline int __syncthreads_count(int p, SIM_SITE) { return sim_syncthreads(SIM_COUNT, p, file, line); }

enum SimWarp { SIM_SYNCWARP, SIM_SHFL, SIM_XOR, SIM_DOWN, SIM_UP, SIM_BALLOT, SIM_LDMATRIX, SIM_LDMATRIX_T, SIM_MMA };
uint64_t sim_warp(SimWarp kind, unsigned mask, uint64_t bits, int arg, int width, const char *file, int line);

template <class T> static inline T sim_shuffle(SimWarp kind, unsigned mask, T x, int arg, int width, const char *file,
                                               int line) {
    static_assert(sizeof(T) == 4 || sizeof(T) == 8, "the hardware shuffles 32-bit words");
    uint64_t bits = 0;
    __builtin_memcpy(&bits, &x, sizeof x);
    bits = sim_warp(kind, mask, bits, arg, width, file, line);
    __builtin_memcpy(&x, &bits, sizeof x);
    return x;
}
template <class T> static inline T __shfl_sync(unsigned mask, T x, int lane, int width = 32, SIM_SITE) {
    return sim_shuffle(SIM_SHFL, mask, x, lane, width, file, line);
}
template <class T> static inline T __shfl_xor_sync(unsigned mask, T x, int lanes, int width = 32, SIM_SITE) {
    return sim_shuffle(SIM_XOR, mask, x, lanes, width, file, line);
}
template <class T> static inline T __shfl_down_sync(unsigned mask, T x, unsigned n, int width = 32, SIM_SITE) {
    return sim_shuffle(SIM_DOWN, mask, x, (int)n, width, file, line);
}
template <class T> static inline T __shfl_up_sync(unsigned mask, T x, unsigned n, int width = 32, SIM_SITE) {
    return sim_shuffle(SIM_UP, mask, x, (int)n, width, file, line);
}
static inline void __syncwarp(unsigned mask = 0xFFFFFFFFu, SIM_SITE) {
    sim_warp(SIM_SYNCWARP, mask, 0, 0, 32, file, line);
}
static inline unsigned __ballot_sync(unsigned mask, int p, SIM_SITE) {
    return (unsigned)sim_warp(SIM_BALLOT, mask, p != 0, 0, 32, file, line);
}
static inline int __any_sync(unsigned mask, int p, SIM_SITE) {
    return sim_warp(SIM_BALLOT, mask, p != 0, 0, 32, file, line) != 0;
}
static inline int __all_sync(unsigned mask, int p, SIM_SITE) {
    return sim_warp(SIM_BALLOT, mask, p != 0, 0, 32, file, line) == mask;
}

// ---------------------------------------------------------------------------------------------------------
// Atomics and fences. Atomics race with plain accesses, not with each other.

void sim_atomic(const void *p, unsigned bytes);      // checks and orders; a fiber is not interrupted behind it
void __threadfence();
void __threadfence_block();
void __threadfence_system();

#define SIM_ATOMIC(name, T, expression) \
    static inline __attribute__((no_sanitize("thread"), noinline)) T name(T *p, T x) { \
        sim_atomic(p, sizeof(T)); T old = *p; *p = expression; return old; }
#define SIM_ATOMICS(T) \
    SIM_ATOMIC(atomicMax, T, old > x ? old : x) SIM_ATOMIC(atomicMin, T, old < x ? old : x) \
    SIM_ATOMIC(atomicExch, T, x) SIM_ATOMIC(atomicAdd, T, (T)((unsigned long long)old + (unsigned long long)x)) \
    SIM_ATOMIC(atomicOr, T, old | x) SIM_ATOMIC(atomicAnd, T, old & x) \
    static inline __attribute__((no_sanitize("thread"), noinline)) T atomicCAS(T *p, T expected, T x) { \
        sim_atomic(p, sizeof(T)); T old = *p; if (old == expected) *p = x; return old; }
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wunused-function"
SIM_ATOMICS(int)
SIM_ATOMICS(unsigned)
SIM_ATOMICS(unsigned long long)
SIM_ATOMIC(atomicAdd, float, old + x)
SIM_ATOMIC(atomicExch, float, x)
#pragma GCC diagnostic pop

// ---------------------------------------------------------------------------------------------------------
// Mathematics and bits

static inline float rsqrtf(float x) { return 1.0f / sqrtf(x); }
static inline float __fmaf_rn(float a, float b, float c) { return fmaf(a, b, c); }
static inline float __fmul_rn(float a, float b) { return a * b; }
static inline float __fadd_rn(float a, float b) { return a + b; }
static inline float __fsub_rn(float a, float b) { return a - b; }
static inline float __fdividef(float a, float b) { return a / b; }
static inline int min(int a, int b) { return a < b ? a : b; }
static inline int max(int a, int b) { return a > b ? a : b; }
static inline unsigned min(unsigned a, unsigned b) { return a < b ? a : b; }
static inline unsigned max(unsigned a, unsigned b) { return a > b ? a : b; }
static inline size_t min(size_t a, size_t b) { return a < b ? a : b; }
static inline size_t max(size_t a, size_t b) { return a > b ? a : b; }
static inline float min(float a, float b) { return fminf(a, b); }
static inline float max(float a, float b) { return fmaxf(a, b); }
static inline int __popc(unsigned x) { return __builtin_popcount(x); }
static inline int __clz(int x) { return x ? __builtin_clz((unsigned)x) : 32; }
static inline int __ffs(int x) { return __builtin_ffs(x); }
static inline unsigned __byte_perm(unsigned x, unsigned y, unsigned s) {   // selectors without the sign bit
    const uint64_t both = (uint64_t)y << 32 | x;
    unsigned r = 0;
    for (int i = 0; i < 4; i++) r |= (unsigned)(both >> (s >> i * 4 & 7) * 8 & 0xFF) << i * 8;
    return r;
}
static inline unsigned __float_as_uint(float x) { unsigned u; __builtin_memcpy(&u, &x, 4); return u; }
static inline int __float_as_int(float x) { int u; __builtin_memcpy(&u, &x, 4); return u; }
static inline float __uint_as_float(unsigned u) { float x; __builtin_memcpy(&x, &u, 4); return x; }
static inline float __int_as_float(int u) { float x; __builtin_memcpy(&x, &u, 4); return x; }
template <class T> static inline T __ldg(const T *p) { return *p; }

// Large copies by name go past the compiler's instrumentation: checked as a whole.
void *sim_memcpy(void *dst, const void *src, size_t n);
void *sim_memset(void *dst, int value, size_t n);
#define memcpy(d, s, n) \
    (__builtin_constant_p(n) && (n) <= 16 ? __builtin_memcpy(d, s, n) : sim_memcpy(d, s, n))
#define memset(d, v, n) sim_memset(d, v, n)

static inline unsigned pack_bf16(float lo, float hi) { return f32_to_bf16(lo) | (unsigned)f32_to_bf16(hi) << 16; }

// ---------------------------------------------------------------------------------------------------------
// Twins of the PTX in cuda_common.h

enum SimAsync { SIM_COPY, SIM_COMMIT, SIM_WAIT };
void sim_cp_async(SimAsync what, void *dst_shared, const void *src_global, int src_bytes_or_groups);
static inline void cp_async_16(void *dst_shared, const void *src_global, int src_bytes = 16) {
    sim_cp_async(SIM_COPY, dst_shared, src_global, src_bytes);
}
static inline void cp_async_commit() { sim_cp_async(SIM_COMMIT, NULL, NULL, 0); }
template <int N> static inline void cp_async_wait() { sim_cp_async(SIM_WAIT, NULL, NULL, N); }

struct SimMma { float *d; const uint32_t *a, *b; };
struct SimRow { uint32_t *r; const void *row; };
static inline void ldmatrix_x4(uint32_t r[4], const void *shared_row, SIM_SITE) {
    SimRow x = {r, shared_row};
    sim_warp(SIM_LDMATRIX, 0xFFFFFFFFu, (uint64_t)(uintptr_t)&x, 0, 32, file, line);
}
static inline void ldmatrix_x4_trans(uint32_t r[4], const void *shared_row, SIM_SITE) {
    SimRow x = {r, shared_row};
    sim_warp(SIM_LDMATRIX_T, 0xFFFFFFFFu, (uint64_t)(uintptr_t)&x, 0, 32, file, line);
}
static inline void mma_m16n8k16_bf16(float d[4], const uint32_t a[4], const uint32_t b[2], SIM_SITE) {
    SimMma x = {d, a, b};
    sim_warp(SIM_MMA, 0xFFFFFFFFu, (uint64_t)(uintptr_t)&x, 0, 32, file, line);
}

static inline unsigned fma_bf16x2(unsigned a, unsigned b, unsigned c) {   // rounds twice where a float cannot hold it
    const auto one = [=](int at) {
        return fmaf(bf16_to_f32((uint16_t)(a >> at)), bf16_to_f32((uint16_t)(b >> at)),
                    bf16_to_f32((uint16_t)(c >> at)));
    };
    return pack_bf16(one(0), one(16));
}

// 128-bit accesses of one thread: checked as such, whatever the compiler makes of the copy.
void sim_vector(const void *p, bool write, bool global_only);
static inline __attribute__((no_sanitize("thread", "undefined"), noinline)) uint4 load_128(const void *p) {
    sim_vector(p, false, false);
    return *(const uint4 *)p;
}
static inline __attribute__((no_sanitize("thread", "undefined"), noinline)) uint4 load_stream_128(const void *global) {
    sim_vector(global, false, true);
    return *(const uint4 *)global;
}
static inline __attribute__((no_sanitize("thread", "undefined"), noinline)) void store_128(void *p, uint4 v) {
    sim_vector(p, true, false);
    *(uint4 *)p = v;
}
void prefetch_l2(const void *global);
void pdl_wait();
void pdl_launch();

#endif
