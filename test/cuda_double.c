// test/cuda_double.c: a machine whose GPU will not do, for test_device.sh.
//
// Linked into the backend that runs in the simulator (test/cuda_sim/), with -Wl,--wrap for each function here: calls of
// the backend come here first, and go on to the simulator unless $CUDA_DOUBLE names this trouble. $SIM_CC makes a card
// too old, $SIM_DEVICES says how many there are.
// Not here: the simulator itself; anything that a healthy card does.

#include <cuda_runtime_api.h>

#include <stdlib.h>
#include <string.h>

cudaError_t __real_cudaDriverGetVersion(int *v);
cudaError_t __real_cudaGetDeviceCount(int *n);
cudaError_t __real_cudaSetDevice(int d);
cudaError_t __real_cudaMemGetInfo(size_t *available, size_t *all);
cudaError_t __real_cudaMalloc(void **p, size_t bytes);
cudaError_t __wrap_cudaDriverGetVersion(int *v);
cudaError_t __wrap_cudaGetDeviceCount(int *n);
cudaError_t __wrap_cudaSetDevice(int d);
cudaError_t __wrap_cudaMemGetInfo(size_t *available, size_t *all);
cudaError_t __wrap_cudaMalloc(void **p, size_t bytes);

static int trouble(const char *name) {
    const char *now = getenv("CUDA_DOUBLE");
    return now && !strcmp(now, name);
}

// As the runtime: without a driver its version is 0, and every other call ends with this error.
cudaError_t __wrap_cudaDriverGetVersion(int *v) {
    if (trouble("no-driver")) return *v = 0, cudaSuccess;
    if (trouble("old-driver")) return *v = 11040, cudaSuccess;
    return __real_cudaDriverGetVersion(v);
}

cudaError_t __wrap_cudaGetDeviceCount(int *n) {
    if (trouble("no-driver") || trouble("old-driver")) return *n = 0, cudaErrorInsufficientDriver;
    if (trouble("no-device")) return *n = 0, cudaErrorNoDevice;
    return __real_cudaGetDeviceCount(n);
}

cudaError_t __wrap_cudaSetDevice(int d) {
    if (trouble("exclusive")) return cudaErrorDevicesUnavailable;
    if (trouble("full-context")) return cudaErrorMemoryAllocation;      // not even a context fits
    return __real_cudaSetDevice(d);
}

// $CUDA_DOUBLE_MB is the card's memory, $CUDA_DOUBLE_FREE_KB what other processes leave of it.
cudaError_t __wrap_cudaMemGetInfo(size_t *available, size_t *all) {
    const char *mb = getenv("CUDA_DOUBLE_MB"), *kb = getenv("CUDA_DOUBLE_FREE_KB");
    const cudaError_t e = __real_cudaMemGetInfo(available, all);
    if (mb) *available = *all = (size_t)atol(mb) << 20;
    if (kb) *available = (size_t)atol(kb) << 10;
    return e;
}

// Another process is faster between cudaMemGetInfo and this.
cudaError_t __wrap_cudaMalloc(void **p, size_t bytes) {
    if (trouble("malloc-fails")) return cudaErrorMemoryAllocation;
    return __real_cudaMalloc(p, bytes);
}
