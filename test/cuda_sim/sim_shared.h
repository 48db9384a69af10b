// test/cuda_sim/sim_shared.h: what code under test (through cuda_sim.h) and the simulator itself both need.
//
// In order: a launch, bf16 as the hardware converts it. Not here: anything that only one of them needs.
#ifndef SIM_SHARED_H
#define SIM_SHARED_H

#include <cuda_runtime.h>
#include <stdint.h>

struct SimLaunch {
    const void *kernel;
    const char *name, *file;
    int line;
    bool pdl;
    dim3 grid, block;
    size_t smem_bytes, argument_bytes;
    cudaStream_t stream;
};

float f16_to_f32(uint16_t x);
static inline float bf16_to_f32(uint16_t x) {
    const uint32_t u = (uint32_t)x << 16;
    float f;
    __builtin_memcpy(&f, &u, 4);
    return f;
}
// To nearest even; a NaN becomes 0x7FFF as in cvt.rn.bf16.f32.
static inline uint16_t f32_to_bf16(float x) {
    uint32_t u;
    __builtin_memcpy(&u, &x, 4);
    if ((u & 0x7FFFFFFFu) > 0x7F800000u) return 0x7FFFu;
    return (uint16_t)((u + 0x7FFFu + (u >> 16 & 1u)) >> 16);
}

#endif
