// dev/cuda/ladder.cu: see ladder.h.
//
// In order: what a Ladder keeps; times and ceilings; the command line; cases and their memory; comparing; the table and
// JSON. Times: the median over many runs between two events. Before each run a kernel reads a buffer several times as
// large as the L2 cache, so that weights come from device memory as they do in the model, where gigabytes pass between
// two uses; reading leaves no dirty lines that would have to be written back during the run. All runs are enqueued
// before the host waits, so that no launch is late.
// Not here: versions and shapes.
#include "ladder.h"

// Kernels of the headers that are no templates have external names, which the operation has too.
namespace {
#include "cuda_dense.cuh"
}

#include "test/check.h"

#include <algorithm>
#include <stdarg.h>
#include <string>
#include <unistd.h>

#ifndef LADDER_COMMIT
#define LADDER_COMMIT "unknown"
#endif

enum { GUARD = 256, RUNS_MOST = 101, RUNS_LEAST = 7, WORKSPACE = 32 << 20, LIBRARY = 0 };

typedef struct { uint8_t *base; int type; std::vector<float> want; double bound, rms; } Output;

// Version LIBRARY is cuBLASLt. us is negative when nothing was measured.
typedef struct { int version; bool ran, right; double error, bound, us; } Result;

typedef struct { std::string name; double bytes, flops; std::vector<Result> results; } Case;

struct LadderState {
    std::string operation;
    std::vector<const char *> versions;
    int only;                             // this version alone; 0: all
    bool check, json, list;
    double copy_gbs, multiply_tflops, empty_us;   // ceilings, and a kernel that does nothing; negative: not measured
    uint4 *flush;
    size_t flush_bytes;
    u32 *sink;
    cublasLtHandle_t blas;
    void *workspace;
    std::vector<void *> memory;           // of the case: inputs
    std::vector<std::pair<void *, size_t>> scratch;
    std::vector<Output> outputs;
    std::vector<Case> cases;
    Tally tally;
};

// ---------------------------------------------------------------------------------------------------------
// Kernels of the measurement itself.

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

static double median_us(Ladder *l, const std::function<void()> &work) {
    LadderState *st = l->state;
    cudaEvent_t from[RUNS_MOST], to[RUNS_MOST];
    for (int i = 0; i < RUNS_MOST; i++) {
        CUDA_CHECK(cudaEventCreate(&from[i]));
        CUDA_CHECK(cudaEventCreate(&to[i]));
    }
    const size_t n = st->flush_bytes / sizeof(uint4);
    float ms = 0;
    int runs = 2;                         // the first two warm up, and say how many there is time for
    std::vector<float> took;
    for (int round = 0; round < 2; round++) {
        for (int i = 0; i < runs; i++) {
            LAUNCH(flush_kernel, dim3(2 * l->sms), dim3(512), 0, l->s, st->sink, st->flush, n);
            CUDA_CHECK(cudaEventRecord(from[i], l->s));
            work();
            CUDA_CHECK(cudaEventRecord(to[i], l->s));
        }
        CUDA_CHECK(cudaStreamSynchronize(l->s));
        took.resize(runs);
        for (int i = 0; i < runs; i++) CUDA_CHECK(cudaEventElapsedTime(&took[i], from[i], to[i]));
        ms = took[runs - 1];
        runs = (int)std::min((double)RUNS_MOST, std::max((double)RUNS_LEAST, 250 / (ms + 0.1)));
    }
    for (int i = 0; i < RUNS_MOST; i++) {
        CUDA_CHECK(cudaEventDestroy(from[i]));
        CUDA_CHECK(cudaEventDestroy(to[i]));
    }
    std::sort(took.begin(), took.end());
    return took[took.size() / 2] * 1e3;
}

// The ceilings, in this run on this card: a copy from device memory to device memory, and 8192^3 in bf16.
static void measure_ceilings(Ladder *l) {
    LadderState *st = l->state;
    int l2 = 0;
    CUDA_CHECK(cudaDeviceGetAttribute(&l2, cudaDevAttrL2CacheSize, 0));
    st->flush_bytes = std::max((size_t)256 << 20, (size_t)l2 * 4);
    CUDA_CHECK(cudaMalloc((void **)&st->flush, st->flush_bytes));
    CUDA_CHECK(cudaMalloc((void **)&st->sink, sizeof *st->sink));
    CUDA_CHECK(cudaMemset(st->flush, 0, st->flush_bytes));
    st->empty_us = median_us(l, [=] { LAUNCH(empty_kernel, dim3(1), dim3(32), 0, l->s); });

    const size_t copy = (size_t)1 << 30;
    const int n = 8192;
    void *p[3];
    for (void *&x : p) CUDA_CHECK(cudaMalloc(&x, copy));
    for (void *x : p) CUDA_CHECK(cudaMemset(x, 0x11, copy));
    const double us = median_us(l, [&] {
        CUDA_CHECK(cudaMemcpyAsync(p[0], p[1], copy, cudaMemcpyDeviceToDevice, l->s));
    });
    st->copy_gbs = 2 * copy / us * 1e-3;
    // Power depends on the numbers: zeros would be faster than anything the model multiplies.
    const std::vector<bf16> one = [] {
        std::vector<bf16> v;
        for (float x : ladder_numbers((size_t)1 << 22, 77, true)) v.push_back((bf16)(__builtin_bit_cast(u32, x) >> 16));
        return v;
    }();
    for (void *x : {p[1], p[2]})
        for (size_t at = 0; at < (size_t)n * n; at += one.size())
            CUDA_CHECK(cudaMemcpy((bf16 *)x + at, one.data(), one.size() * sizeof(bf16), cudaMemcpyHostToDevice));
    Lt lt = {};
    ladder_blas(l, &lt.handle, &lt.workspace, &lt.workspace_bytes);
    Dense d = {};
    d.out = p[0], d.kind = OUT_ACT, d.x = p[1], d.w = Tensor{p[2], NULL, DT_BF16, n, n}, d.act = ACT_NONE;
    d.T = d.OC = d.C = n;
    bool found = true;
    const double multiply = median_us(l, [&] { found = lt_dense(l->s, &lt, d, NULL, false) && found; });
    if (found) st->multiply_tflops = 2.0 * n * n * n / multiply * 1e-6;
    for (int i = 0; i < lt.n; i++) lt_forget(&lt.plans[i]);
    for (void *x : p) CUDA_CHECK(cudaFree(x));
}

void ladder_blas(Ladder *l, cublasLtHandle_t *handle, void **workspace, size_t *bytes) {
    LadderState *st = l->state;
    *bytes = WORKSPACE;
    if (!st->blas) {
        CUBLAS_CHECK(cublasLtCreate(&st->blas));
        CUDA_CHECK(cudaMalloc(&st->workspace, WORKSPACE));
    }
    *handle = st->blas;
    *workspace = st->workspace;
}

// ---------------------------------------------------------------------------------------------------------
// The command line.

static void usage(FILE *f, const char *program, const LadderState *st) {
    fprintf(f, "%s: the versions of one operation, from naive to shipped, checked against the CPU and timed\n\n"
               "  %s [VERSION] [--small] [--check] [--json] [--list]\n\n"
               "  VERSION   only this one [all]\n"
               "  --small   odd small shapes, checked but not timed: for the simulator\n"
               "  --check   the model's shapes, checked but not timed\n"
               "  --json    the same as JSON on standard output\n"
               "  --list    names and shapes as JSON, without a GPU and without running anything\n\n"
               "Exit code: 1 after a mismatch, 2 after a mistake in the command line, 3 without a GPU.\n\n",
            st->operation.c_str(), program);
    for (size_t v = 0; v < st->versions.size(); v++) fprintf(f, "  %zu  %s\n", v + 1, st->versions[v]);
}

static void read_command_line(Ladder *l, int argc, char **argv) {
    LadderState *st = l->state;
    const int n = (int)st->versions.size();
    for (int i = 1; i < argc; i++) {
        const std::string a = argv[i];
        char *end = NULL;
        const long v = strtol(argv[i], &end, 10);
        if (a == "-h" || a == "--help") {
            usage(stdout, argv[0], st);
            exit(0);
        } else if (a == "--small") l->small = st->check = true;
        else if (a == "--check") st->check = true;
        else if (a == "--json") st->json = true;
        else if (a == "--list") st->list = st->json = true;
        else if (a != "" && *end == 0 && v >= 1 && v <= n && !st->only) st->only = (int)v;
        else {
            fprintf(stderr, "%s: '%s' is %s; hint: --help\n", argv[0], argv[i],
                    a == "" || *end ? "no option that it has"
                    : st->only ? "a second version, but it takes one" : "no version that it has");
            exit(2);
        }
    }
}

Ladder ladder_open(int argc, char **argv, const char *operation, const std::vector<const char *> &versions) {
    Ladder l = {};
    LadderState *st = l.state = new LadderState();
    st->operation = operation;
    st->versions = versions;
    st->copy_gbs = st->multiply_tflops = st->empty_us = -1;
    read_command_line(&l, argc, argv);
    if (st->list) return l;
    int n = 0, major = 0;
    const cudaError_t status = cudaGetDeviceCount(&n);
    if (status == cudaSuccess && n > 0)
        CUDA_CHECK(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, 0));
    if (major < 8) {
        fprintf(stderr, "%s: %s; hint: make test-ladder-sim checks the versions without one\n", argv[0],
                n > 0 ? "the GPU is older than compute capability 8.0" : "no GPU that can be used here");
        exit(3);
    }
    CUDA_CHECK(cudaSetDevice(0));
    CUDA_CHECK(cudaStreamCreateWithFlags(&l.s, cudaStreamNonBlocking));
    CUDA_CHECK(cudaDeviceGetAttribute(&l.sms, cudaDevAttrMultiProcessorCount, 0));
    CUDA_CHECK(cudaDeviceGetAttribute(&l.shared_most, cudaDevAttrMaxSharedMemoryPerBlockOptin, 0));
    if (l.small && l.sms > 4) l.sms = 4;     // so that blocks which stay for several turns have some
    if (!st->check) measure_ceilings(&l);
    return l;
}

// ---------------------------------------------------------------------------------------------------------
// Cases and their memory.

uint32_t ladder_random(uint32_t *seed) {     // xorshift (Marsaglia 2003)
    *seed ^= *seed << 13, *seed ^= *seed >> 17, *seed ^= *seed << 5;
    return *seed;
}

std::vector<float> ladder_numbers(size_t n, uint32_t seed, bool as_bf16) {
    std::vector<float> x(n);
    seed = seed * 2654435761u + 1;
    for (float &v : x) {
        v = (float)(ladder_random(&seed) >> 8) / 8388608.0f - 1;
        if (as_bf16) v = __builtin_bit_cast(float, __builtin_bit_cast(u32, v) & 0xFFFF0000u);
    }
    return x;
}

LadderWeight ladder_weight(int dtype, int rows, int cols, uint32_t seed) {
    // as doc/format.md has them; numbers of about 1
    const size_t n = (size_t)rows * cols, groups = (size_t)(cols + 31) / 32;
    LadderWeight w;
    seed = seed * 2654435761u + 1;
    w.data.resize(dtype == DT_F32 ? n * 4 : dtype == DT_BF16 ? n * 2 : dtype == DT_INT8 ? n : rows * groups * 16);
    w.scale.resize(dtype == DT_INT8 ? rows * 4 : dtype == DT_INT4 ? rows * groups * 2 : 0);
    if (dtype == DT_F32 || dtype == DT_BF16)
        for (size_t i = 0; i < n; i++) {
            const u32 v = __builtin_bit_cast(u32, (float)(ladder_random(&seed) >> 8) / 8388608.0f - 1);
            if (dtype == DT_F32) ((u32 *)w.data.data())[i] = v;
            else ((bf16 *)w.data.data())[i] = (bf16)(v >> 16);
        }
    else
        for (uint8_t &v : w.data) v = (uint8_t)(ladder_random(&seed) >> 9);
    if (dtype == DT_INT4 && cols % 32)       // what lies beyond the end of a row is zero, stored as 8
        for (int r = 0; r < rows; r++)
            for (int j = cols % 32; j < 32; j++) {
                uint8_t &v = w.data[((size_t)r * groups + groups - 1) * 16 + j % 16];
                v = j < 16 ? (uint8_t)((v & 0xF0) | 8) : (uint8_t)((v & 0x0F) | 0x80);
            }
    for (int r = 0; r < rows; r++)
        if (dtype == DT_INT8) ((float *)w.scale.data())[r] = 0.01f + 0.001f * (float)(r % 7);
    for (size_t g = 0; dtype == DT_INT4 && g < rows * groups; g++)
        ((f16 *)w.scale.data())[g] = (f16)(0x3000 + g % 7 * 64);      // 0.125 * (1 + k / 16)
    w.tensor = Tensor{w.data.data(), w.scale.empty() ? NULL : w.scale.data(), dtype, rows, cols};
    return w;
}

static void free_case(Ladder *l) {
    LadderState *st = l->state;
    for (void *p : st->memory) CUDA_CHECK(cudaFree(p));
    st->memory.clear();
    st->scratch.clear();
    st->outputs.clear();
}

bool ladder_case(Ladder *l, double bytes, double flops, const char *fmt, ...) {
    char name[160];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(name, sizeof name, fmt, ap);
    va_end(ap);
    free_case(l);
    l->state->cases.push_back(Case{name, bytes, flops, {}});
    if (!l->state->list) return true;
    for (int v = 1; v <= (int)l->state->versions.size(); v++)
        l->state->cases.back().results.push_back(Result{v, false, true, -1, -1, -1});
    return false;
}

void *ladder_input(Ladder *l, const void *host, size_t bytes) {
    void *p = NULL;
    CUDA_CHECK(cudaMalloc(&p, bytes ? bytes : 1));
    l->state->memory.push_back(p);
    CUDA_CHECK(cudaMemcpy(p, host, bytes, cudaMemcpyHostToDevice));
    return p;
}

bf16 *ladder_input_bf16(Ladder *l, const std::vector<float> &x) {
    std::vector<bf16> y(x.size());
    for (size_t i = 0; i < x.size(); i++) {
        const u32 u = __builtin_bit_cast(u32, x[i]);
        y[i] = (bf16)((u + 0x7FFF + (u >> 16 & 1)) >> 16);
    }
    return ladder_input(l, y);
}

Tensor ladder_input(Ladder *l, const LadderWeight &w) {
    Tensor t = w.tensor;
    t.data = ladder_input(l, w.data);
    if (t.scale) t.scale = ladder_input(l, w.scale);
    return t;
}

void *ladder_scratch(Ladder *l, size_t bytes) {
    void *p = NULL;
    CUDA_CHECK(cudaMalloc(&p, bytes));
    l->state->memory.push_back(p);
    l->state->scratch.push_back({p, bytes});
    return p;
}

static size_t bytes_of(const Output &o) { return o.want.size() * (o.type == LADDER_BF16 ? 2 : 4); }

void *ladder_output(Ladder *l, int type, const std::vector<float> &want, double bound) {
    Output o = {NULL, type, want, bound, 0};
    for (float x : want) o.rms += (double)x * x / (double)want.size();
    o.rms = sqrt(o.rms);
    CUDA_CHECK(cudaMalloc((void **)&o.base, bytes_of(o) + 2 * GUARD));
    l->state->memory.push_back(o.base);
    l->state->outputs.push_back(o);
    return o.base + GUARD;
}

// ---------------------------------------------------------------------------------------------------------
// Comparing.

// host: the output between its guards. Negative when canaries are gone.
static double error_of(const Output &o, const std::vector<uint8_t> &host) {
    const size_t n = o.want.size();
    for (size_t i = 0; i < GUARD; i++) if (host[i] != 0xFF || host[host.size() - 1 - i] != 0xFF) return -1;
    std::vector<float> got(n);
    for (size_t i = 0; i < n; i++) {
        const uint8_t *p = host.data() + GUARD + i * (o.type == LADDER_BF16 ? 2 : 4);
        u32 u = 0;
        memcpy(&u, p, o.type == LADDER_BF16 ? 2 : 4);
        if (o.type == LADDER_I32) got[i] = (float)(int)u;
        else got[i] = __builtin_bit_cast(float, o.type == LADDER_BF16 ? u << 16 : u);
    }
    const Diff d = diff_floats(got.data(), o.want.data(), n);
    if (o.type == LADDER_I32) return d.max_abs;
    return std::max(d.rel_l2, o.rms > 0 ? d.max_abs / (8 * o.rms) : d.max_abs);
}

// Launches once into poisoned memory and compares.
static Result check(Ladder *l, int version, const std::function<bool()> &launch) {
    LadderState *st = l->state;
    const Case &c = st->cases.back();
    const char *name = version == LIBRARY ? "cuBLASLt" : st->versions[version - 1];
    Result r = {version, false, true, 0, 0, -1};
    for (const Output &o : st->outputs) CUDA_CHECK(cudaMemsetAsync(o.base, 0xFF, bytes_of(o) + 2 * GUARD, l->s));
    for (const auto &[p, n] : st->scratch) CUDA_CHECK(cudaMemsetAsync(p, 0xFF, n, l->s));
    if (!launch()) {
        SKIP(&st->tally, "%s: %s: cannot do this shape", c.name.c_str(), name);
        return r;
    }
    CUDA_CHECK(cudaStreamSynchronize(l->s));
    r.ran = true;
    for (const Output &o : st->outputs) {
        std::vector<uint8_t> host(bytes_of(o) + 2 * GUARD);
        CUDA_CHECK(cudaMemcpy(host.data(), o.base, host.size(), cudaMemcpyDeviceToHost));
        const double error = error_of(o, host);
        const bool right = error >= 0 && error <= o.bound;
        EXPECT(&st->tally, right, "%s: version %d, %s: error %.2e, bound %.0e%s", c.name.c_str(), version, name, error,
               o.bound, error < 0 ? " (memory beside the output was written)" : "");
        if (!right || r.error <= error) r.error = right || error > 0 ? error : INFINITY, r.bound = o.bound;
        r.right = r.right && right;
        if (!right) continue;
        // The comparison must see one element that is NaN, and one that is off by what elements usually are.
        const size_t size = o.type == LADDER_BF16 ? 2 : 4, at = GUARD + o.want.size() / 2 * size;
        for (const int top : {0xFF, -1}) {
            std::vector<uint8_t> bad = host;
            const u32 nudged = __builtin_bit_cast(u32, o.want[o.want.size() / 2] + 2 * (float)(o.rms + 1e-30));
            const u32 u = o.type == LADDER_I32 ? (u32)o.want[o.want.size() / 2] + 1
                        : top < 0 ? nudged : 0x7FC00000u;
            const u32 stored = o.type == LADDER_BF16 ? u >> 16 : u;
            memcpy(bad.data() + at, &stored, size);
            const double e = error_of(o, bad);
            EXPECT(&st->tally, !(e <= o.bound), "%s: a planted error was not seen (%.2e)", c.name.c_str(), e);
        }
    }
    return r;
}

void ladder_run(Ladder *l, const std::function<bool(int)> &launch, const std::function<bool()> &library) {
    LadderState *st = l->state;
    Case &c = st->cases.back();
    const int n = (int)st->versions.size();
    for (int v = library ? LIBRARY : 1; v <= n; v++) {
        if (v != LIBRARY && st->only && v != st->only) continue;
        const auto go = [&] { return v == LIBRARY ? library() : launch(v); };
        Result r = check(l, v, go);
        if (!st->check && r.ran && r.right) r.us = median_us(l, [&] { go(); });
        c.results.push_back(r);
    }
}

// ---------------------------------------------------------------------------------------------------------
// The table and JSON.

static double speed(const Case &c, double us) { return c.flops > 0 ? c.flops / us * 1e-6 : c.bytes / us * 1e-3; }

static void print_table(const LadderState *st) {
    for (const Case &c : st->cases) {
        const char *unit = c.flops > 0 ? "TFLOP/s" : "GB/s";
        const double ceiling = c.flops > 0 ? st->multiply_tflops : st->copy_gbs;
        double library = -1, before = -1;
        for (const Result &r : c.results) if (r.version == LIBRARY) library = r.us;
        printf("\n%s: %s\n", st->operation.c_str(), c.name.c_str());
        printf("  %.3f MB must move", c.bytes * 1e-6);
        if (c.flops > 0) printf(", %.3f GFLOP", c.flops * 1e-9);
        printf("\n  %-44s %8s %7s", "version", "error", "bound");
        if (!st->check) printf(" %9s %8s %8s %7s %8s", "us", unit, "ceiling", "before", "cuBLASLt");
        printf("\n");
        for (const Result &r : c.results) {
            printf("  %d %-42s", r.version, r.version == LIBRARY ? "cuBLASLt" : st->versions[r.version - 1]);
            if (r.ran) printf(" %8.1e %7.0e%s", r.error, r.bound, r.right ? "" : "  WRONG");
            else printf(" %8s", "cannot");
            if (r.us > 0) printf(" %9.1f %8.2f %6.1f %%", r.us, speed(c, r.us), 100 * speed(c, r.us) / ceiling);
            if (r.us > 0 && r.version != LIBRARY && before > 0) printf(" %6.2fx", before / r.us);
            else if (r.us > 0) printf(" %7s", "");
            if (r.us > 0 && library > 0) printf(" %7.2fx", library / r.us);
            printf("\n");
            if (r.us > 0 && r.version != LIBRARY) before = r.us;
        }
    }
    if (st->copy_gbs > 0)
        printf("\nceilings: device copy %.0f GB/s, bf16 multiply %.0f TFLOP/s; an empty kernel takes %.1f us here\n",
               st->copy_gbs, st->multiply_tflops, st->empty_us);
}

static void number(FILE *f, const char *key, double x) {
    if (x >= 0 && isfinite(x)) fprintf(f, ", \"%s\": %.6g", key, x);
    else fprintf(f, ", \"%s\": null", key);
}

static void print_json(const LadderState *st) {
    char gpu[300] = "";
    int driver = 0;
    if (!st->list) {
        cudaDeviceProp p;
        CUDA_CHECK(cudaGetDeviceProperties(&p, 0));
        CUDA_CHECK(cudaDriverGetVersion(&driver));
        snprintf(gpu, sizeof gpu, "%s", p.name);
    }
    FILE *f = stdout;
    fprintf(f, "{\"operation\": \"%s\", \"gpu\": \"%s\", \"driver\": %d, \"commit\": \"%s\"", st->operation.c_str(),
            gpu, driver, LADDER_COMMIT);
    number(f, "copy_gbs", st->copy_gbs);
    number(f, "multiply_tflops", st->multiply_tflops);
    number(f, "empty_us", st->empty_us);
    fprintf(f, ",\n \"cases\": [");
    for (size_t i = 0; i < st->cases.size(); i++) {
        const Case &c = st->cases[i];
        fprintf(f, "%s\n  {\"name\": \"%s\"", i ? "," : "", c.name.c_str());
        number(f, "bytes", c.bytes);
        number(f, "flops", c.flops);
        fprintf(f, ", \"versions\": [");
        for (size_t k = 0; k < c.results.size(); k++) {
            const Result &r = c.results[k];
            fprintf(f, "%s\n   {\"version\": %d, \"name\": \"%s\", \"right\": %s", k ? "," : "", r.version,
                    r.version == LIBRARY ? "cuBLASLt" : st->versions[r.version - 1], r.right ? "true" : "false");
            number(f, "error", r.ran ? r.error : -1);
            number(f, "bound", r.ran ? r.bound : -1);
            number(f, "us", r.us);
            number(f, "speed", r.us > 0 ? speed(c, r.us) : -1);
            fprintf(f, "}");
        }
        fprintf(f, "]}");
    }
    fprintf(f, "]}\n");
}

void ladder_close(Ladder *l) {
    LadderState *st = l->state;
    if (st->json) print_json(st);
    else print_table(st);
    if (!st->list) {
        free_case(l);
        for (void *p : {(void *)st->flush, (void *)st->sink, st->workspace}) if (p) CUDA_CHECK(cudaFree(p));
        if (st->blas) CUBLAS_CHECK(cublasLtDestroy(st->blas));
        CUDA_CHECK(cudaStreamDestroy(l->s));
#ifdef CUDA_SIM
        EXPECT(&st->tally, sim_unfreed() == 0, "%zu allocations were not freed", sim_unfreed());
#endif
        fprintf(st->json ? stderr : stdout, "%d passed, %d failed, %d skipped\n", st->tally.passed, st->tally.failed,
                st->tally.skipped);
    }
    const int code = !st->list && (st->tally.failed || st->tally.passed == 0);
    delete st;
    fflush(NULL);
    _exit(code);   // at a regular exit LeakSanitizer reports what the simulator keeps for itself
}
