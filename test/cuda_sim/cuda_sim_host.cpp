// test/cuda_sim/cuda_sim_host.cpp: the rest of the host API: launches, copies, memory, devices, under their prototypes.
//
// In order: launches and the limits that they are held to, copies and fills, memory, devices.
// Not here: when any of it is done (cuda_sim_streams.cpp).
#include "sim_host.h"
#include "sim_shared.h"
#include <dlfcn.h>
#include <map>
#include <set>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

// ---------------------------------------------------------------------------------------------------------
// Launches, held to the limits of the device

// __constant__ variables: all lie in one section, whose ends the linker knows (absent: there are none). A module may
// have 64 KiB of them.
extern "C" char __start_sim_constant[] __attribute__((weak)), __stop_sim_constant[] __attribute__((weak));
static const size_t MOST_CONSTANT = 64 * 1024;
static size_t constant_more;
void sim_constant(size_t bytes) { constant_more = bytes; }

int sim_capability = 80;
static std::map<const void *, size_t> dynamic_limit;     // what cudaFuncSetAttribute allowed

void sim_device(int capability) { sim_capability = capability; }
size_t sim_smem_optin(int capability) { return capability >= 90 ? 227 * 1024 : 163 * 1024; }

extern "C" cudaError_t cudaFuncSetAttribute(const void *f, cudaFuncAttribute what, int value) {
    Guard guard(sim_lock);
    if (what == cudaFuncAttributePreferredSharedMemoryCarveout) return cudaSuccess;
    if (what != cudaFuncAttributeMaxDynamicSharedMemorySize) {
        return sim_refuse(cudaErrorInvalidValue, "unknown attribute");
    }
    if (value < 0 || (size_t)value > sim_smem_optin(sim_capability)) {
        return sim_refuse(cudaErrorInvalidValue, "more dynamic shared memory than a block of this device can have");
    }
    dynamic_limit[f] = (size_t)value;
    return cudaSuccess;
}

extern "C" cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int *blocks, const void *, int, size_t) {
    *blocks = 2;
    return cudaSuccess;
}

// Bytes of arguments, which lie in the constant bank: 32,764 since CUDA 12.1 on sm_70 and newer, before that 4,096.
static const size_t MOST_ARGUMENTS = CUDART_VERSION >= 12010 ? 32764 : 4096;

// $SIM_LAUNCHES: a file that gets a line for each kernel, number of threads and dynamic shared memory that was
// launched, once each: "SYMBOL THREADS BYTES" (dev/cuda/report --launches reads it). Programs need -rdynamic.
static void note_launch(const SimLaunch *l) {
    static const char *path = getenv("SIM_LAUNCHES");
    static FILE *file = path ? fopen(path, "a") : NULL;
    static std::set<std::string> seen;
    if (!path) return;
    Dl_info info;
    if (!file) sim_fail("host", "SIM_LAUNCHES: cannot write %s", path);
    if (!dladdr(l->kernel, &info) || !info.dli_sname) sim_fail("host", "SIM_LAUNCHES: no symbol of %s", l->name);
    const unsigned threads = l->block.x * l->block.y * l->block.z;
    const std::string line = info.dli_sname + (" " + std::to_string(threads)) + " " + std::to_string(l->smem_bytes);
    if (!seen.insert(line).second) return;
    fprintf(file, "%s\n", line.c_str());
    fflush(file);
}

cudaError_t sim_enqueue(const SimLaunch *l, std::shared_ptr<const void> call, size_t call_bytes,
                        void (*run)(const void *)) {
    Guard guard(sim_lock);
    const dim3 &g = l->grid, &b = l->block;
    char why[300] = "";
    const size_t constant = (size_t)(__stop_sim_constant - __start_sim_constant) + constant_more;
    if (constant > MOST_CONSTANT) {
        sim_fail("limits", "%s: %zu bytes of __constant__ variables, %zu are allowed", l->name, constant,
                 MOST_CONSTANT);
    }
    if (!g.x || !g.y || !g.z || g.x > 0x7FFFFFFFu || g.y > 65535 || g.z > 65535) {
        snprintf(why, sizeof why, "%s: grid (%u,%u,%u)", l->name, g.x, g.y, g.z);
    } else if (!b.x || !b.y || !b.z || b.x > 1024 || b.y > 1024 || b.z > 64 || b.x * b.y * b.z > 1024) {
        snprintf(why, sizeof why, "%s: block (%u,%u,%u)", l->name, b.x, b.y, b.z);
    }
    if (*why) return sim_refuse(cudaErrorInvalidConfiguration, why);
    size_t limit = dynamic_limit.count(l->kernel) ? dynamic_limit[l->kernel] : 48 * 1024;
    if (l->smem_bytes > limit) {
        snprintf(why, sizeof why, "%s: %zu bytes of dynamic shared memory, %zu are allowed", l->name, l->smem_bytes,
                 limit);
    } else if (l->argument_bytes > MOST_ARGUMENTS) {
        snprintf(why, sizeof why, "%s: %zu bytes of arguments", l->name, l->argument_bytes);
    } else if ((uint64_t)g.x * g.y * g.z > 1u << 24) {
        sim_fail("limits", "%s: more blocks than the simulator can run", l->name);
    }
    if (*why) return sim_refuse(cudaErrorInvalidValue, why);
    note_launch(l);
    size_t both = l->smem_bytes > 48 * 1024 ? sim_smem_optin(sim_capability) : 48 * 1024;
    if (dynamic_limit.count(l->kernel)) both = sim_smem_optin(sim_capability);
    auto k = std::make_shared<Kernel>(Kernel{l->kernel, l->name, l->file, l->line, g, b, l->smem_bytes, both, call,
                                             call_bytes, run});
    return sim_enqueue_node(l->stream, Node{k, nullptr, "kernel", l->pdl, 0, {}, 0, 0});
}

extern "C" cudaError_t cudaLaunchHostFunc(cudaStream_t stream, cudaHostFn_t f, void *arg) {
    Guard guard(sim_lock);
    return sim_enqueue_work(stream, "host function", [f, arg] { f(arg); });
}

// ---------------------------------------------------------------------------------------------------------
// Copies and fills. What the host gives from ordinary memory is read at once, as the library does; from pinned memory
// it is read when the copy is made.

static bool kind_fits(void *dst, const void *src, cudaMemcpyKind kind) {
    switch (kind) {
    case cudaMemcpyHostToDevice: return sim_on_device(dst) && !sim_on_device(src);
    case cudaMemcpyDeviceToHost: return !sim_on_device(dst) && sim_on_device(src);
    case cudaMemcpyDeviceToDevice: return sim_on_device(dst) && sim_on_device(src);
    case cudaMemcpyHostToHost: return !sim_on_device(dst) && !sim_on_device(src);
    default: return kind == cudaMemcpyDefault;
    }
}

static cudaError_t copy(void *dst, size_t dst_pitch, const void *src, size_t src_pitch, size_t width, size_t rows,
                        cudaMemcpyKind kind, cudaStream_t stream, bool wait) {
    if (!kind_fits(dst, src, kind)) {
        return sim_refuse(cudaErrorInvalidMemcpyDirection, "the pointers are of another kind");
    }
    if (!width || !rows) return cudaSuccess;
    if (dst_pitch < width || src_pitch < width) return sim_refuse(cudaErrorInvalidValue, "a pitch below the width");
    for (int i = 0; i < 2; i++) {
        const void *p = i ? src : dst;
        size_t bytes = (i ? src_pitch : dst_pitch) * (rows - 1) + width;
        if (sim_region(p) != R_OTHER && !sim_inside(p, bytes, NULL)) {
            sim_fail("out of bounds", "copy of %zu bytes %s %s", bytes, i ? "from" : "to",
                     sim_describe((uintptr_t)p).c_str());
        }
    }
    bool pageable_in = sim_region(src) == R_OTHER, pageable_out = sim_region(dst) == R_OTHER;
    if (sim_is_captured(stream) && (pageable_in || pageable_out || wait)) {
        return sim_refuse(cudaErrorStreamCaptureUnsupported, "a copy of ordinary host memory in a capture");
    }
    if (wait) if (cudaError_t e = sim_not_captured(NULL, "cudaMemcpy during a capture")) return e;
    std::shared_ptr<std::vector<uint8_t>> staged;
    if (pageable_in) {
        staged = std::make_shared<std::vector<uint8_t>>(rows * width);
        for (size_t r = 0; r < rows; r++) {
            memcpy(staged->data() + r * width, (const uint8_t *)src + r * src_pitch, width);
        }
    }
    auto work = [=] {
        for (size_t r = 0; r < rows; r++) {
            uint8_t *d = (uint8_t *)dst + r * dst_pitch;
            const uint8_t *from = staged ? staged->data() + r * width : (const uint8_t *)src + r * src_pitch;
            sim_pc = 0;
            sim_access((uintptr_t)from, width, 0);
            sim_access((uintptr_t)d, width, A_WRITE);
            memmove(d, from, width);
        }
    };
    bool late = sim_region(src) == R_PINNED;
    cudaError_t e = sim_enqueue_node(stream, Node{nullptr, work, "copy", false, 0, {}, late ? (uintptr_t)src : 0,
                                                  late ? src_pitch * (rows - 1) + width : 0});
    if (!e && (wait || pageable_out)) sim_wait_for(stream);
    return e;
}

extern "C" cudaError_t cudaMemcpyAsync(void *dst, const void *src, size_t n, cudaMemcpyKind kind, cudaStream_t s) {
    Guard guard(sim_lock);
    return copy(dst, n, src, n, n, 1, kind, s, false);
}
extern "C" cudaError_t cudaMemcpy(void *dst, const void *src, size_t n, cudaMemcpyKind kind) {
    Guard guard(sim_lock);
    return copy(dst, n, src, n, n, 1, kind, NULL, true);
}
extern "C" cudaError_t cudaMemcpy2DAsync(void *dst, size_t dpitch, const void *src, size_t spitch, size_t width,
                                         size_t rows, cudaMemcpyKind kind, cudaStream_t s) {
    Guard guard(sim_lock);
    return copy(dst, dpitch, src, spitch, width, rows, kind, s, false);
}
extern "C" cudaError_t cudaMemcpy2D(void *dst, size_t dpitch, const void *src, size_t spitch, size_t width, size_t rows,
                                    cudaMemcpyKind kind) {
    Guard guard(sim_lock);
    return copy(dst, dpitch, src, spitch, width, rows, kind, NULL, true);
}

extern "C" cudaError_t cudaMemsetAsync(void *p, int value, size_t n, cudaStream_t stream) {
    Guard guard(sim_lock);
    if (!n) return cudaSuccess;
    if (sim_region(p) == R_OTHER) return sim_refuse(cudaErrorInvalidValue, "cudaMemset of ordinary host memory");
    if (!sim_inside(p, n, NULL)) {
        sim_fail("out of bounds", "fill of %zu bytes at %s", n, sim_describe((uintptr_t)p).c_str());
    }
    return sim_enqueue_node(stream, Node{nullptr, [=] {
        sim_access((uintptr_t)p, n, A_WRITE);
        memset(p, value, n);
    }, "fill", false, 0, {}, 0, 0});
}
extern "C" cudaError_t cudaMemset(void *p, int value, size_t n) { return cudaMemsetAsync(p, value, n, NULL); }

// ---------------------------------------------------------------------------------------------------------
// Memory

static cudaError_t allocate(Region where, void **out, size_t bytes) {
    Guard guard(sim_lock);
    sim_init();
    if (cudaError_t e = sim_not_captured(NULL, "an allocation during a capture")) return e;
    *out = NULL;
    if (!bytes) return cudaSuccess;
    *out = sim_allocate(where, bytes);
    return *out ? cudaSuccess : sim_error(cudaErrorMemoryAllocation);
}

static cudaError_t release(Region where, void *p) {
    Guard guard(sim_lock);
    if (!p) return cudaSuccess;
    if (cudaError_t e = cudaDeviceSynchronize()) return e;
    return sim_release(where, p) ? cudaSuccess : sim_refuse(cudaErrorInvalidValue, "freed twice, or not a start");
}

extern "C" cudaError_t cudaMalloc(void **p, size_t bytes) { return allocate(R_DEVICE, p, bytes); }
extern "C" cudaError_t cudaFree(void *p) { return release(R_DEVICE, p); }
extern "C" cudaError_t cudaHostAlloc(void **p, size_t bytes, unsigned) { return allocate(R_PINNED, p, bytes); }
extern "C" cudaError_t cudaMallocHost(void **p, size_t bytes) { return allocate(R_PINNED, p, bytes); }
extern "C" cudaError_t cudaFreeHost(void *p) { return release(R_PINNED, p); }
extern "C" cudaError_t cudaHostGetDevicePointer(void **out, void *p, unsigned) { *out = p; return cudaSuccess; }
extern "C" cudaError_t cudaMemGetInfo(size_t *available, size_t *all) {
    *all = sim_total();
    *available = *all - sim_used();
    return cudaSuccess;
}

// ---------------------------------------------------------------------------------------------------------
// Devices: one, or as many as $SIM_DEVICES says

static int device_count() { const char *n = getenv("SIM_DEVICES"); return n ? atoi(n) : 1; }

extern "C" cudaError_t cudaGetDeviceCount(int *n) {
    *n = device_count();
    return *n > 0 ? cudaSuccess : sim_error(cudaErrorNoDevice);
}
extern "C" cudaError_t cudaSetDevice(int d) {
    sim_init();
    return d >= 0 && d < device_count() ? cudaSuccess : sim_error(cudaErrorInvalidDevice);
}
extern "C" cudaError_t cudaGetDevice(int *d) { *d = 0; return cudaSuccess; }
extern "C" cudaError_t cudaDeviceReset() { return cudaDeviceSynchronize(); }
extern "C" cudaError_t cudaSetDeviceFlags(unsigned) { return cudaSuccess; }
extern "C" cudaError_t cudaDriverGetVersion(int *v) { *v = CUDART_VERSION; return cudaSuccess; }
extern "C" cudaError_t cudaRuntimeGetVersion(int *v) { *v = CUDART_VERSION; return cudaSuccess; }

extern "C" cudaError_t cudaDeviceGetAttribute(int *value, cudaDeviceAttr what, int) {
    sim_init();
    switch (what) {
    case cudaDevAttrComputeCapabilityMajor: *value = sim_capability / 10; break;
    case cudaDevAttrComputeCapabilityMinor: *value = sim_capability % 10; break;
    case cudaDevAttrMaxSharedMemoryPerBlock: *value = 48 * 1024; break;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin: *value = (int)sim_smem_optin(sim_capability); break;
    case cudaDevAttrMultiProcessorCount: *value = 3; break;
    case cudaDevAttrMaxThreadsPerBlock: *value = 1024; break;
    case cudaDevAttrWarpSize: *value = 32; break;
    case cudaDevAttrL2CacheSize: *value = 40 << 20; break;
    case cudaDevAttrMemoryPoolsSupported: *value = 0; break;
    default: return sim_refuse(cudaErrorInvalidValue, "cudaDeviceGetAttribute: not simulated");
    }
    return cudaSuccess;
}

extern "C" cudaError_t cudaGetDeviceProperties(cudaDeviceProp *p, int d) {
    if (cudaError_t e = cudaSetDevice(d)) return e;
    memset(p, 0, sizeof *p);
    snprintf(p->name, sizeof p->name, "cuda_sim sm_%d", sim_capability);
    p->totalGlobalMem = sim_total();
    p->major = sim_capability / 10;
    p->minor = sim_capability % 10;
    p->multiProcessorCount = 3;
    p->sharedMemPerBlock = 48 * 1024;
    p->sharedMemPerBlockOptin = sim_smem_optin(sim_capability);
    p->warpSize = 32;
    p->maxThreadsPerBlock = 1024;
    p->l2CacheSize = 40 << 20;
    return cudaSuccess;
}
