// test/cuda_no_gpu.h: what the CUDA tests do on a machine without a GPU. Not here: any test.
#ifndef TEST_CUDA_NO_GPU_H
#define TEST_CUDA_NO_GPU_H

#include "check.h"

// True when there is none: a skip, or with REQUIRE_GPU=1 a failure. Then the tally is printed and *code the exit code.
static bool no_gpu(int *code, Tally *t) {
    int n = 0;
    if (cudaGetDeviceCount(&n) == cudaSuccess && n > 0) return false;
    *code = getenv("REQUIRE_GPU") && *getenv("REQUIRE_GPU") == '1';
    if (*code) EXPECT(t, n > 0, "no GPU on this machine");
    else SKIP(t, "no GPU on this machine");
    printf("%d passed, %d failed, %d skipped\n", t->passed, t->failed, t->skipped);
    return true;
}

#endif
