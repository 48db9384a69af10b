// test/cuda_guarded.h: device memory of tests: GUARD bytes of canary on either side, and NaN where nothing was put.
//
// In order: the tally that they report to; a buffer with a copy of host memory or nothing in it; reading it back, which
// looks at the canaries and frees it. Not here: numbers to put into it (cuda_buffers.h).
#ifndef TEST_CUDA_GUARDED_H
#define TEST_CUDA_GUARDED_H

#include "check.h"

#include <string.h>
#include <vector>

static Tally tally;

enum { GUARD = 256 };

struct Buffer { uint8_t *base; size_t bytes; };

static Buffer buffer_of(size_t bytes, const void *from) {
    Buffer b = {NULL, bytes};
    std::vector<uint8_t> host(bytes + 2 * GUARD, 0xFF);   // NaN in f32 and bf16
    if (from) memcpy(host.data() + GUARD, from, bytes);
    CUDA_CHECK(cudaMalloc((void **)&b.base, host.size()));
    CUDA_CHECK(cudaMemcpy(b.base, host.data(), host.size(), cudaMemcpyHostToDevice));
    return b;
}
template <typename T> static T *at(const Buffer &b) { return (T *)(b.base + GUARD); }

static void fetch(void *to, Buffer b, const char *what) {
    std::vector<uint8_t> host(b.bytes + 2 * GUARD);
    CUDA_CHECK(cudaDeviceSynchronize());
    CUDA_CHECK(cudaMemcpy(host.data(), b.base, host.size(), cudaMemcpyDeviceToHost));
    int bad = 0;
    for (int i = 0; i < GUARD; i++) bad += host[i] != 0xFF || host[host.size() - 1 - i] != 0xFF;
    EXPECT(&tally, bad == 0, "%s: %d bytes beside the output were written", what, bad);
    memcpy(to, host.data() + GUARD, b.bytes);
    CUDA_CHECK(cudaFree(b.base));
}

#endif
