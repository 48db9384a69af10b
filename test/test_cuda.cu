// test/test_cuda.cu: the CUDA backend against the CPU path: stages, tokens, and each launcher on odd shapes.
//
// In order: device buffers with canaries; dense layers of every dtype; attention over sequences and over the past;
// the tiny models and fixtures of every dtype end to end. Built by nvcc for a card (make test-cuda) and by g++ for the
// simulator (make test-cuda-sim). blip2.cu is included, so that its launchers can be called.
// Not here: speed (dev/cuda/), what is chosen from given logits (test_generate.c).
#include "../blip2.cu"

extern "C" {
#include "../matmul.h"
#include "fixture.h"
}
#include "check.h"

#include <string>
#include <unistd.h>
#include <vector>

static Tally tally;

// ---------------------------------------------------------------------------------------------------------
// Buffers: 64 bytes of canary on either side, and NaN where nothing was put.

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

static uint16_t round_bf16(float x) {
    uint32_t u;
    memcpy(&u, &x, sizeof u);
    return (uint16_t)((u + 0x7FFF + (u >> 16 & 1)) >> 16);
}
static float widen(uint16_t x) {
    const uint32_t u = (uint32_t)x << 16;
    float f;
    memcpy(&f, &u, sizeof f);
    return f;
}

static std::vector<float> numbers(size_t n, uint32_t seed, bool bf16_exact) {
    std::vector<float> x(n);
    for (float &v : x) {
        v = (float)(fixture_random(&seed) % 20001) / 10000 - 1;
        if (bf16_exact) v = widen(round_bf16(v));
    }
    return x;
}
static std::vector<uint16_t> narrow(const std::vector<float> &x) {
    std::vector<uint16_t> y(x.size());
    for (size_t i = 0; i < x.size(); i++) y[i] = round_bf16(x[i]);
    return y;
}

// Relative L2 against the CPU: f32 differs in the order of sums; bf16 also by the rounding of results and norms.
static const double F32_BOUND = 2e-6, BF16_BOUND = 6e-3;

// ---------------------------------------------------------------------------------------------------------
// Dense layers. A weight of any dtype as it lies in a file, and its values.

struct Weight { std::vector<uint8_t> bytes; size_t scale_at; std::vector<float> values; };

static Weight weight_of(int dtype, int OC, int C, uint32_t seed) {
    Weight w = {};
    w.values = numbers((size_t)OC * C, seed, dtype == DT_BF16);
    const int G = (C + 31) / 32;
    const size_t n = dtype == DT_F32 ? (size_t)OC * C * 4 : dtype == DT_BF16 ? (size_t)OC * C * 2
                   : dtype == DT_INT8 ? (size_t)OC * C : (size_t)OC * G * 16;
    w.scale_at = (n + 255) / 256 * 256;
    w.bytes.resize(w.scale_at + (size_t)OC * (dtype == DT_INT8 ? 4 : G * 2), 0);
    if (dtype == DT_INT4) memset(w.bytes.data(), 0x88, n);
    for (int o = 0; o < OC; o++)
        for (int c = 0; c < C; c++) {
            const size_t i = (size_t)o * C + c;
            float &v = w.values[i];
            if (dtype == DT_F32) memcpy(&w.bytes[i * 4], &v, 4);
            else if (dtype == DT_BF16) {
                const uint16_t h = round_bf16(v);
                memcpy(&w.bytes[i * 2], &h, 2);
            } else if (dtype == DT_INT8) {
                const float scale = 0.01f + 0.001f * (o % 5);
                const int q = (int)(v * 127);
                w.bytes[i] = (uint8_t)(int8_t)q;
                memcpy(&w.bytes[w.scale_at + (size_t)o * 4], &scale, 4);
                v = q * scale;
            } else {
                const size_t group = (size_t)o * G + c / 32;
                const uint16_t half = (uint16_t)(0x3000 + group % 7 * 64);   // 0.125 * (1 + k/16)
                const int q = (int)(v * 7), j = c % 32;
                uint8_t *byte = &w.bytes[group * 16 + j % 16];
                *byte = (uint8_t)(j < 16 ? (*byte & 0xF0) | (q + 8) : (*byte & 0x0F) | (q + 8) << 4);
                memcpy(&w.bytes[w.scale_at + group * 2], &half, 2);
                v = q * 0.125f * (1 + (group % 7) / 16.0f);
            }
        }
    return w;
}

// form: 0 rows kernel, 1 the same with a norm in front, 2 own tensor-core kernel, 3 the library
template <typename T> static void test_dense(int dtype, int form, int rows, int OC, int C, int act, bool gated) {
    char what[128];
    snprintf(what, sizeof what, "dense dtype %d, %zu-byte activations, form %d, (%d,%d) x (%d,%d)%s", dtype, sizeof(T), form,
             rows, C, OC, C, gated ? ", gated" : "");
    const bool small = sizeof(T) == 2;
    const Weight w = weight_of(dtype, OC * (gated ? 2 : 1), C, 7 + OC);
    std::vector<float> x = numbers((size_t)rows * C, 3, small && form != 1), b = numbers(OC, 5, small);
    std::vector<float> nw = numbers(C, 11, false), nb = numbers(C, 13, false), normed = x, want((size_t)rows * OC);
    if (form == 1)
        for (int t = 0; t < rows; t++) {
            double mean = 0, var = 0;
            for (int c = 0; c < C; c++) mean += x[t * C + c] / C;
            for (int c = 0; c < C; c++) var += (x[t * C + c] - mean) * (x[t * C + c] - mean) / C;
            for (int c = 0; c < C; c++) normed[t * C + c] = (x[t * C + c] - mean) / sqrt(var + 1e-5) * nw[c] + nb[c];
        }
    for (int t = 0; t < rows; t++)
        for (int o = 0; o < OC; o++) {
            double y = b[o], g = 0;
            for (int c = 0; c < C; c++) {
                y += (double)normed[t * C + c] * w.values[(size_t)o * C + c];
                if (gated) g += (double)normed[t * C + c] * w.values[(size_t)(o + OC) * C + c];
            }
            if (act == ACT_GELU) y = 0.5 * y * (1 + erf(y * sqrt(0.5)));
            if (act == ACT_RELU && y < 0) y = 0;
            want[t * OC + o] = gated ? y * g : y;
        }
    const std::vector<uint16_t> x16 = narrow(x);
    Buffer dw = buffer_of(w.bytes.size(), w.bytes.data()), dx32 = buffer_of(x.size() * 4, x.data());
    Buffer dx = buffer_of(x.size() * sizeof(T), small ? (const void *)x16.data() : x.data());
    Buffer db = buffer_of(b.size() * 4, b.data()), dnw = buffer_of(nw.size() * 4, nw.data());
    Buffer dnb = buffer_of(nb.size() * 4, nb.data()), out = buffer_of(want.size() * 4, NULL);
    const Tensor tensor = {at<void>(dw), at<uint8_t>(dw) + w.scale_at, dtype, OC * (gated ? 2 : 1), C};
    Dense d = form == 1 ? dense_norm(at<void>(out), OUT_F32, at<float>(dx32), at<float>(dnw), at<float>(dnb), 1e-5f,
                                     tensor, at<float>(db), act, rows)
                        : dense_of(at<void>(out), OUT_F32, at<void>(dx), tensor, at<float>(db), act, rows);
    d.OC = OC, d.gated = gated, d.norm_scale = 1;
    Device dev = {};
    CUDA_CHECK(cudaDeviceGetAttribute(&dev.sms, cudaDevAttrMultiProcessorCount, 0));
    CUDA_CHECK(cudaDeviceGetAttribute(&dev.shared_most, cudaDevAttrMaxSharedMemoryPerBlockOptin, 0));
    dev.sms = dev.sms > 4 ? 4 : dev.sms;   // so that blocks take several turns
    if (form < 2) EXPECT(&tally, rows_dense<T>(0, d, dev), "%s: does not fit", what);
    else gemm(0, d);
    std::vector<float> got(want.size());
    fetch(got.data(), out, what);
    const Diff diff = diff_floats(got.data(), want.data(), want.size());
    const double bound = small ? BF16_BOUND : F32_BOUND;
    EXPECT(&tally, diff.rel_l2 <= bound, "%s: %.2e, bound %.0e", what, diff.rel_l2, bound);
    for (Buffer *u : {&dw, &dx32, &dx, &db, &dnw, &dnb}) CUDA_CHECK(cudaFree(u->base));
}

static void test_dense_layers(void) {
    const int shapes[][2] = {{40, 64}, {7, 33}, {130, 160}, {65, 588}};
    for (const auto &s : shapes) {
        for (int rows : {1, 2, 3, 8, 11}) {
            test_dense<float>(DT_F32, rows % 2, rows, s[0], s[1], ACT_NONE, rows == 3);
            for (int dtype : {DT_F32, DT_BF16, DT_INT8, DT_INT4})
                test_dense<bf16>(dtype, rows % 2, rows, s[0], s[1], ACT_GELU, rows == 2);
        }
        for (int dtype : {DT_F32, DT_BF16, DT_INT8, DT_INT4}) test_dense<bf16>(dtype, 2, 70, s[0], s[1], ACT_RELU, false);
    }
}

// ---------------------------------------------------------------------------------------------------------
// Attention over whole sequences.

template <typename T> static void test_attention(int A, int H, bool causal, bool biased) {
    const int Tq[3] = {5, 70, 1}, B = 3, D = H * A, ld = 3 * D, rows = 76, ldb = 2 * 70 - 1;
    char what[96];
    snprintf(what, sizeof what, "attention, %zu bytes, heads of %d%s%s", sizeof(T), A, causal ? ", causal" : "",
             biased ? ", biased" : "");
    const bool small = sizeof(T) == 2;
    std::vector<float> qkv = numbers((size_t)rows * ld, 17, small), bias = numbers((size_t)H * ldb, 19, false);
    std::vector<float> want((size_t)rows * D), got(want.size());
    int first[4] = {0};
    for (int b = 0; b < B; b++) first[b + 1] = first[b] + Tq[b];
    for (int b = 0; b < B; b++)
        for (int h = 0; h < H; h++)
            for (int i = 0; i < Tq[b]; i++) {
                double s[70], sum = 0, top = -1e30;
                const int n = causal ? i + 1 : Tq[b];
                for (int j = 0; j < n; j++) {
                    s[j] = 0;
                    for (int k = 0; k < A; k++)
                        s[j] += (double)qkv[(size_t)(first[b] + i) * ld + h * A + k] *
                                qkv[(size_t)(first[b] + j) * ld + D + h * A + k];
                    s[j] = s[j] * 0.3f + (biased ? bias[h * ldb + 69 + j - i] : 0);
                    top = fmax(top, s[j]);
                }
                for (int j = 0; j < n; j++) sum += s[j] = exp(s[j] - top);
                for (int k = 0; k < A; k++) {
                    double y = 0;
                    for (int j = 0; j < n; j++) y += s[j] / sum * qkv[(size_t)(first[b] + j) * ld + 2 * D + h * A + k];
                    want[(size_t)(first[b] + i) * D + h * A + k] = y;
                }
            }
    const std::vector<uint16_t> qkv16 = narrow(qkv);
    Buffer in = buffer_of(qkv.size() * sizeof(T), small ? (const void *)qkv16.data() : qkv.data());
    Buffer list = buffer_of(sizeof first, first), table = buffer_of(bias.size() * 4, bias.data());
    Buffer out = buffer_of(want.size() * sizeof(T), NULL);
    Attention a = {};
    a.out = at<void>(out), a.q = at<T>(in), a.k = at<T>(in) + D, a.v = at<T>(in) + 2 * D, a.ldq = a.ldkv = ld;
    a.q_first = a.k_first = at<int>(list), a.bias = biased ? at<float>(table) + 69 : NULL, a.ldb = ldb;
    a.scale = 0.3f, a.causal = causal, a.B = B, a.H = H, a.A = A, a.max_q = 70;
    attention<T>(0, a);
    std::vector<T> raw(want.size());
    fetch(raw.data(), out, what);
    for (size_t i = 0; i < raw.size(); i++) {
        if constexpr (sizeof(T) == 2) got[i] = widen(raw[i]);
        else got[i] = raw[i];
    }
    const Diff diff = diff_floats(got.data(), want.data(), want.size());
    const double bound = small ? BF16_BOUND : F32_BOUND;
    EXPECT(&tally, diff.rel_l2 <= bound, "%s: %.2e, bound %.0e", what, diff.rel_l2, bound);
    for (Buffer *u : {&in, &list, &table}) CUDA_CHECK(cudaFree(u->base));
}

static void test_attentions(void) {
    for (int A : {8, 32, 40, 88, 128, 136}) test_attention<bf16>(A, 2, A % 3 == 0, A % 5 == 0);
    test_attention<bf16>(16, 2, true, true);
    test_attention<bf16>(6, 2, true, false);      // no multiple of 8: the plain kernel
    for (int A : {5, 88, 200}) test_attention<float>(A, 2, A == 88, A == 5);
}

// ---------------------------------------------------------------------------------------------------------
// Whole models.

typedef struct { std::vector<std::vector<float>> x; std::vector<std::string> name; } Stages;

static void keep(void *arg, const char *name, const float *x, int rows, int cols) {
    Stages *s = (Stages *)arg;
    s->x.emplace_back(x, x + (size_t)rows * cols);
    s->name.emplace_back(name);
}

static std::vector<uint8_t> pixels_of(const Config *c, int B) {
    std::vector<uint8_t> p((size_t)B * c->S * c->S * 3);
    uint32_t seed = 99;
    for (uint8_t &v : p) v = (uint8_t)fixture_random(&seed);
    return p;
}

// Stages of the first pass, one prompt. Returns the largest relative error.
static void test_stages(const Model *m, const char *what, double bound) {
    Stages cpu, gpu;
    Err e;
    const std::vector<uint8_t> pixels = pixels_of(&m->config, 1);
    const int ids[] = {3, 5, 4, 2, 6};
    for (int side = 0; side < 2; side++) {
        const Backend *b = side ? &backend_cuda : &backend_cpu;
        Limits lim = {};
        lim.B = 1, lim.R = 1, lim.prompt = 8, lim.max_new = 4, lim.threads = 1, lim.probe = keep;
        lim.probe_arg = side ? &gpu : &cpu;
        void *run = b->open(m, &lim, &e);
        EXPECT(&tally, run, "%s: %s", what, e.text);
        if (!run) return;
        Choice how = {};
        how.beams = how.captions = 1, how.max_new = 2, how.repeat_penalty = how.temp = how.top_p = 1;
        const Prompt prompt = {ids, 5, 0};
        b->encode(run, pixels.data(), 1);
        b->prompt(run, &prompt, 1, &how);
        b->close(run);
    }
    EXPECT(&tally, cpu.x.size() == gpu.x.size() && cpu.x.size() > 8, "%s: %zu stages, expected %zu", what, gpu.x.size(),
           cpu.x.size());
    double worst = 0;
    for (size_t i = 0; i < cpu.x.size() && i < gpu.x.size(); i++) {
        EXPECT(&tally, cpu.name[i] == gpu.name[i] && cpu.x[i].size() == gpu.x[i].size(), "%s: stage %zu is %s, not %s",
               what, i, gpu.name[i].c_str(), cpu.name[i].c_str());
        if (cpu.x[i].size() != gpu.x[i].size()) continue;
        const Diff d = diff_floats(gpu.x[i].data(), cpu.x[i].data(), cpu.x[i].size());
        EXPECT(&tally, d.rel_l2 <= bound, "%s: %s differs by %.2e, bound %.0e", what, cpu.name[i].c_str(), d.rel_l2, bound);
        worst = fmax(worst, d.rel_l2);
    }
    printf("%s: %zu stages, largest error %.2e (bound %.0e)\n", what, cpu.x.size(), worst, bound);
}

// Three prompts about two images at once, by every way of choosing. In f32 all tokens must be equal; where bf16
// decides otherwise, the CPU must have found the other token nearly as good (its score within `slack`).
static void test_tokens(const Model *m, const char *what, double slack) {
    Err e;
    const int a[] = {3, 5, 4, 2, 6}, b2[] = {7, 2}, c3[] = {2, 9, 8, 8, 8, 1, 4};
    const Prompt prompts[] = {{a, 5, 1}, {b2, 2, 0}, {c3, 7, 1}};
    const std::vector<uint8_t> pixels = pixels_of(&m->config, 2);
    Limits lim = {};
    lim.B = 3, lim.R = 12, lim.prompt = 8, lim.max_new = 6, lim.threads = 1;
    void *cpu = backend_cpu.open(m, &lim, &e), *gpu = backend_cuda.open(m, &lim, &e);
    EXPECT(&tally, cpu && gpu, "%s: %s", what, e.text);
    if (!cpu || !gpu) return;
    int same = 0, all = 0;
    for (int kind = 0; kind < 4; kind++) {   // greedy, beams, sampling, greedy with penalties
        Choice how = {};
        how.beams = kind == 1 ? 4 : 1, how.captions = kind == 1 ? 2 : kind == 2 ? 3 : 1, how.max_new = 6, how.min_new = 3;
        how.length_penalty = 1, how.repeat_penalty = kind % 2 ? 1.5 : 1, how.sample = kind == 2, how.temp = 1.3;
        how.no_repeat_ngram = kind == 3 ? 2 : 0, how.top_p = kind == 2 ? 0.9 : 1, how.top_k = kind == 2 ? 20 : 0;
        how.seed = 5;
        for (int side = 0; side < 2; side++) {
            const Backend *b = side ? &backend_cuda : &backend_cpu;
            void *run = side ? gpu : cpu;
            Step step;
            b->encode(run, pixels.data(), 2);
            b->prompt(run, prompts, 3, &how);
            while (b->step(run, &step)) {}
        }
        for (int p = 0; p < 3; p++)
            for (int rank = 0; rank < how.captions; rank++) {
                const Hypothesis x = backend_cpu.result(cpu, p, rank), y = backend_cuda.result(gpu, p, rank);
                const bool equal = x.n == y.n && !memcmp(x.tokens, y.tokens, x.n * sizeof(int));
                all++;
                same += equal;
                if (equal || slack == 0)
                    EXPECT(&tally, equal && fabs(x.score - y.score) <= fmax(slack, 1e-4) * fmax(1, fabs(x.score)),
                           "%s, kind %d, prompt %d, rank %d: other tokens, or score %.6g, expected %.6g", what, kind, p,
                           rank, y.score, x.score);
            }
    }
    printf("%s: %d of %d answers have the same tokens\n", what, same, all);
    if (slack > 0) EXPECT(&tally, 2 * same >= all, "%s: only %d of %d answers are equal", what, same, all);
    backend_cpu.close(cpu);
    backend_cuda.close(gpu);
}

static void test_models(void) {
    const char *files[] = {"test/data/tiny_opt.bin", "test/data/tiny_t5.bin"};
    Err e;
    Model m;
    for (const char *path : files) {
        if (model_open(&m, path, &e)) { EXPECT(&tally, 0, "%s", e.text); continue; }
        const bool f32 = m.vit.patch_w.dtype == DT_F32;
        test_stages(&m, path, f32 ? 1e-5 : 3e-2);
        test_tokens(&m, path, f32 ? 0 : 0.05);
        model_close(&m);
    }
    for (int family : {OPT, T5})
        for (int dtype : {DT_F32, DT_BF16, DT_INT8, DT_INT4}) {
            const Config c = fixture_config(family);
            Fixture f = fixture_make(&c, dtype, "none", 4, 12345);
            const char *path = "build/test_cuda.bin";
            char what[64];
            snprintf(what, sizeof what, "fixture of family %d, dtype %d", family, dtype);
            fixture_write(path, f.data, f.n);
            if (model_open(&m, path, &e)) SKIP(&tally, "%s: %s", what, e.text);
            else {
                test_stages(&m, what, dtype == DT_F32 ? 1e-5 : 3e-2);
                test_tokens(&m, what, dtype == DT_F32 ? 0 : 0.05);
                model_close(&m);
            }
            fixture_free(&f);
            remove(path);
        }
}

int main(void) {
    int n = 0;
    if (cudaGetDeviceCount(&n) != cudaSuccess || n == 0) {
        const bool required = getenv("REQUIRE_GPU") && *getenv("REQUIRE_GPU") == '1';
        if (required) EXPECT(&tally, n > 0, "no GPU on this machine");
        else SKIP(&tally, "no GPU on this machine");
        printf("%d passed, %d failed, %d skipped\n", tally.passed, tally.failed, tally.skipped);
        return required;
    }
    test_dense_layers();
    test_attentions();
    test_models();
    CUDA_CHECK(cudaDeviceSynchronize());
#ifdef CUDA_SIM
    EXPECT(&tally, sim_unfreed() == 0, "%zu allocations were not freed", sim_unfreed());
#endif
    const int code = tally_close(&tally);
    fflush(NULL);
    _exit(code);   // at a regular exit LeakSanitizer reports what the simulator keeps for itself
}
