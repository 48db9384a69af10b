// dev/cuda/ladder.cu: see ladder.h.
//
// In order: the command line; cases and their memory; comparing; running and closing.
// Not here: versions and shapes; times (ladder_time.cu), what is printed (ladder_print.cu).
#include "ladder_parts.h"

#include <algorithm>
#include <stdarg.h>
#include <unistd.h>

enum { GUARD = 256 };

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
    for (size_t v = 0; v < st->versions.size(); v++)
        fprintf(f, "  %zu  %s\n     %s\n", v + 1, st->versions[v].name, st->versions[v].idea);
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
        // Not in the help text, for tests: a result that is made wrong, and small shapes through the timing code.
        else if (a == "--wrong" && i + 1 < argc) st->wrong = atoi(argv[++i]);
        else if (a == "--rehearse") l->small = st->rehearse = true;
        else if (a != "" && *end == 0 && v >= 1 && v <= n && !st->only) st->only = (int)v;
        else {
            fprintf(stderr, "%s: '%s' is %s; hint: --help\n", argv[0], argv[i],
                    a == "" || *end ? "no option that it has"
                    : st->only ? "a second version, but it takes one" : "no version that it has");
            exit(2);
        }
    }
}

Ladder ladder_open(int argc, char **argv, const char *operation, const std::vector<LadderVersion> &versions) {
    Ladder l = {};
    LadderState *st = l.state = new LadderState();
    st->operation = operation;
    st->versions = versions;
    st->wrong = -1;
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
    st->before = st->after = nullptr;
}

bool ladder_case(Ladder *l, double bytes, double flops, const char *fmt, ...) {
    char name[160];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(name, sizeof name, fmt, ap);
    va_end(ap);
    free_case(l);
    l->state->cases.push_back(Case{name, bytes, flops, l->state->show_next, {}});
    l->state->show_next = false;
    if (!l->state->list) return true;
    for (int v = 1; v <= (int)l->state->versions.size(); v++)
        l->state->cases.back().results.push_back(Result{v, false, true, -1, -1, -1});
    return false;
}

void ladder_show(Ladder *l) { l->state->show_next = true; }

void ladder_around(Ladder *l, const std::function<void()> &before, const std::function<void()> &after) {
    l->state->before = before;
    l->state->after = after;
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

// Makes the element in the middle NaN, or wrong by twice of what elements usually are.
static void spoil(const Output &o, std::vector<uint8_t> *host, bool nan) {
    const size_t size = o.type == LADDER_BF16 ? 2 : 4, i = o.want.size() / 2;
    const u32 nudged = __builtin_bit_cast(u32, o.want[i] + 2 * (float)(o.rms + 1e-30));
    const u32 u = o.type == LADDER_I32 ? (u32)o.want[i] + 1 : nan ? 0x7FC00000u : nudged;
    const u32 stored = o.type == LADDER_BF16 ? u >> 16 : u;
    memcpy(host->data() + GUARD + i * size, &stored, size);
}

// Launches once into poisoned memory and compares.
static Result check(Ladder *l, int version, const std::function<bool()> &launch) {
    LadderState *st = l->state;
    const Case &c = st->cases.back();
    const char *name = version_name(st, version);
    Result r = {version, false, true, 0, 0, -1};
    for (const Output &o : st->outputs) CUDA_CHECK(cudaMemsetAsync(o.base, 0xFF, bytes_of(o) + 2 * GUARD, l->s));
    for (const auto &[p, n] : st->scratch) CUDA_CHECK(cudaMemsetAsync(p, 0xFF, n, l->s));
    if (st->before) st->before();
    if (!launch()) {
        SKIP(&st->tally, "%s: %s: cannot do this shape", c.name.c_str(), name);
        return r;
    }
    if (st->after) st->after();
    CUDA_CHECK(cudaStreamSynchronize(l->s));
    r.ran = true;
    for (const Output &o : st->outputs) {
        std::vector<uint8_t> host(bytes_of(o) + 2 * GUARD);
        CUDA_CHECK(cudaMemcpy(host.data(), o.base, host.size(), cudaMemcpyDeviceToHost));
        if (version == st->wrong) spoil(o, &host, false);
        const double error = error_of(o, host);
        const bool right = error >= 0 && error <= o.bound;
        EXPECT(&st->tally, right, "%s: version %d, %s: error %.2e, bound %.0e%s", c.name.c_str(), version, name, error,
               o.bound, error < 0 ? " (memory beside the output was written)" : "");
        if (!right || r.error <= error) r.error = right || error > 0 ? error : INFINITY, r.bound = o.bound;
        r.right = r.right && right;
        if (!right) continue;
        for (const bool nan : {true, false}) {       // the comparison must see either
            std::vector<uint8_t> bad = host;
            spoil(o, &bad, nan);
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
        if (!st->check && r.ran && r.right) r.us = median_us(l, st->before, [&] { go(); });
        c.results.push_back(r);
    }
}

void ladder_close(Ladder *l) {
    LadderState *st = l->state;
    if (st->json) print_json(st);
    else print_table(st);
    if (!st->list) {
        free_case(l);
        for (void *p : {(void *)st->flush, (void *)st->sink, st->workspace, (void *)st->tickets})
            if (p) CUDA_CHECK(cudaFree(p));
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
