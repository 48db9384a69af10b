// cuda_common.h: what the CUDA code needs of its compiler, each in one place: launches, shared memory, PTX, bf16.
//
// In order: headers, CUDA_CHECK and CUBLAS_CHECK, LAUNCH and LAUNCH_PDL, SHARED and SHARED_DYNAMIC, bf16 and f16 as
// bits, one inline function for each PTX instruction that is used.
//
// The same blip2.cu is compiled by nvcc for the card and, with -DCUDA_SIM, by g++ for the CPU (test/cuda_sim/). The
// latter needs that kernels are launched through LAUNCH only, that shared memory is taken through the macros only,
// and that there is no PTX outside of this file: every function of the last section has a C++ twin in cuda_sim.h.
// Vector loads may also be written as dereferences of float4, uint4 and so on: both compilers check the alignment.
//
// Not here: kernels, memory plans, anything about the model.
#ifndef CUDA_COMMON_H
#define CUDA_COMMON_H

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef uint32_t u32;
typedef uint16_t bf16;      // bits: the upper half of a float
typedef uint16_t f16;       // bits of an IEEE half

#ifdef CUDA_SIM
#include "cuda_sim.h"
#else
#include <cublasLt.h>
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>
#endif

// ---------------------------------------------------------------------------------------------------------
// Calls that fail only when the program is wrong or the device is lost stop it.

#define CUDA_CHECK(call) do { \
        cudaError_t err_ = (call); \
        if (err_ != cudaSuccess) { \
            fprintf(stderr, "%s:%d: %s: %s\n", __FILE__, __LINE__, cudaGetErrorName(err_), cudaGetErrorString(err_)); \
            exit(3); } } while (0)

#define CUBLAS_CHECK(call) do { \
        cublasStatus_t status_ = (call); \
        if (status_ != CUBLAS_STATUS_SUCCESS) { \
            fprintf(stderr, "%s:%d: cuBLAS: %s\n", __FILE__, __LINE__, cublasLtGetStatusName(status_)); \
            exit(3); } } while (0)

// ---------------------------------------------------------------------------------------------------------
// Launches. A kernel with template arguments stands in parentheses: LAUNCH((norm<float, 4>), grid, ...).
// LAUNCH_PDL lets the kernel start before the one ahead of it in the stream is done: up to pdl_wait() it may read
// only what no kernel of this chain writes (weights), and must write nothing.

#ifndef CUDA_SIM
#define LAUNCH(kernel, grid, block, smem_bytes, stream, ...) do { \
        kernel<<<grid, block, smem_bytes, stream>>>(__VA_ARGS__); \
        CUDA_CHECK(cudaGetLastError()); } while (0)

#define LAUNCH_PDL(kernel, grid, block, smem_bytes, stream, ...) \
    CUDA_CHECK(launch_pdl(kernel, grid, block, smem_bytes, stream, __VA_ARGS__))

template <class... P, class... A>
static inline cudaError_t launch_pdl(void (*kernel)(P...), dim3 grid, dim3 block, size_t smem_bytes,
                                     cudaStream_t stream, A... args) {
    cudaLaunchAttribute early = {};
    early.id = cudaLaunchAttributeProgrammaticStreamSerialization;
    early.val.programmaticStreamSerializationAllowed = 1;
    cudaLaunchConfig_t config = {};
    config.gridDim = grid;
    config.blockDim = block;
    config.dynamicSmemBytes = smem_bytes;
    config.stream = stream;
    config.attrs = &early;
    config.numAttrs = 1;
    return cudaLaunchKernelEx(&config, kernel, static_cast<P>(args)...);
}

// Shared memory: SHARED(float, tile, [64][72]); SHARED(int, last, ); SHARED_DYNAMIC(bf16, rows);
// All of it is aligned to 16 bytes. The dynamic part is one block of memory: every SHARED_DYNAMIC is its start.
#define SHARED(type, name, dims) __shared__ __align__(16) type name dims
#define SHARED_DYNAMIC(type, name) \
    extern __shared__ __align__(16) unsigned char shared_dynamic_bytes[]; \
    type *name = (type *)shared_dynamic_bytes
#endif

// ---------------------------------------------------------------------------------------------------------
// Number formats. To nearest even, as the hardware does.

#ifndef CUDA_SIM
static inline __host__ __device__ float bf16_to_f32(bf16 x) {
    u32 u = (u32)x << 16;
    float f;
    memcpy(&f, &u, sizeof f);
    return f;
}

static inline __device__ bf16 f32_to_bf16(float x) { return __bfloat16_as_ushort(__float2bfloat16_rn(x)); }
static inline __device__ float f16_to_f32(f16 x) { return __half2float(__ushort_as_half(x)); }

// Two at once: lo in the lower half of the word, which is the one at the lower address.
static inline __device__ u32 pack_bf16(float lo, float hi) {
    u32 d;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(d) : "f"(hi), "f"(lo));
    return d;
}
#endif

static inline __device__ float bf16_lo(u32 two) { return bf16_to_f32((bf16)(two & 0xFFFFu)); }
static inline __device__ float bf16_hi(u32 two) { return bf16_to_f32((bf16)(two >> 16)); }

// ---------------------------------------------------------------------------------------------------------
// PTX. Names, operands and layouts as in the PTX ISA document.

#ifndef CUDA_SIM
static inline __device__ u32 shared_address(const void *p) { return (u32)__cvta_generic_to_shared(p); }

// 16 bytes from global to shared memory, both aligned to 16, behind the back of the thread until cp_async_wait. Of
// the source only the first src_bytes are read; the rest of the destination becomes zero.
static inline __device__ void cp_async_16(void *dst_shared, const void *src_global, int src_bytes = 16) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;"
                 :: "r"(shared_address(dst_shared)), "l"(src_global), "r"(src_bytes) : "memory");
}
static inline __device__ void cp_async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
// Until at most N of the thread's own groups are under way. Other threads see the data behind a barrier only.
template <int N> static inline __device__ void cp_async_wait() {
    asm volatile("cp.async.wait_group %0;" :: "n"(N) : "memory");
}

// Four 8x8 matrices of 16-bit elements: lane 8*i + j gives the address of row j of matrix i, 16 bytes. Lane l gets
// elements 2*(l%4) and 2*(l%4) + 1 of row l/4 of matrix i in r[i]; trans: of column l/4.
static inline __device__ void ldmatrix_x4(u32 r[4], const void *shared_row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(shared_address(shared_row)) : "memory");
}
static inline __device__ void ldmatrix_x4_trans(u32 r[4], const void *shared_row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(shared_address(shared_row)) : "memory");
}

// d (16,8) += a (16,16) b (16,8). With g = lane/4 and t = lane%4: a[0..3] hold columns 2t, 2t+1 of rows g and g+8,
// then columns 2t+8, 2t+9 of rows g and g+8; b[0], b[1] hold rows 2t, 2t+1 and 2t+8, 2t+9 of column g; d[0..3] are
// (g,2t), (g,2t+1), (g+8,2t), (g+8,2t+1).
static inline __device__ void mma_m16n8k16_bf16(float d[4], const u32 a[4], const u32 b[2]) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
                 "{%0,%1,%2,%3};" : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// a * b + c of two bf16 each, rounded once.
static inline __device__ u32 fma_bf16x2(u32 a, u32 b, u32 c) {
    u32 d;
    asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(d) : "r"(a), "r"(b), "r"(c));
    return d;
}

// Weights, which are read once: past the first-level cache. Only for memory that nothing writes during the kernel.
static inline __device__ uint4 load_stream_128(const void *global) {
    uint4 v;
    asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0,%1,%2,%3}, [%4];"
                 : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "l"(global));
    return v;
}
static inline __device__ void prefetch_l2(const void *global) {
    asm volatile("prefetch.global.L2 [%0];" :: "l"(global));
}

// Global or shared memory, aligned to 16.
static inline __device__ uint4 load_128(const void *p) { return *(const uint4 *)p; }
static inline __device__ void store_128(void *p, uint4 v) { *(uint4 *)p = v; }

// Programmatic dependent launch (sm_90): pdl_wait returns when the kernels ahead in the stream are done and their
// writes visible, pdl_launch allows the next one to start. Before sm_90 launches are not early and both do nothing.
static inline __device__ void pdl_wait() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}
static inline __device__ void pdl_launch() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}
#endif

#endif
