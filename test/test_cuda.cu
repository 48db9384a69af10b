// test/test_cuda.cu: the CUDA backend against the CPU path: stages, tokens, and each launcher on odd shapes.
//
// In order: dense layers of every dtype (cuda_dense_tests.h); attention over sequences; the rest (cuda_passes.h,
// cuda_layer_tests.h); whole models (tiny ones, fixtures of every dtype, the demos): stages, tokens, two runs that must
// agree to the bit; batches of more than 64 rows (cuda_batches.h). By nvcc for a card (make test-cuda) and by g++ for
// the simulator (make test-cuda-sim). blip2.cu is included, so that its launchers can be called. Arguments: parts of
// the names of the tests that are to run.
// Not here: speed (dev/cuda/), what is chosen from given logits (test_generate.c).
#include "../blip2.cu"

extern "C" {
#define norm cpu_norm   // CUDA's headers have another norm of C linkage
#include "../matmul.h"
#undef norm
#include "../image.h"
#include "fixture.h"
}
#include "cuda_buffers.h"
#include "cuda_dense_tests.h"
#include "cuda_layer_tests.h"
#include "cuda_no_gpu.h"
#include "cuda_passes.h"

#include <unistd.h>

// ---------------------------------------------------------------------------------------------------------
// Attention over whole sequences.

template <typename T> static void test_attention(int A, int H, bool causal, bool biased, int most = 70) {
    const int Tq[3] = {5, most, 1}, B = 3, D = H * A, ld = 3 * D, rows = most + 6, ldb = 2 * most - 1;
    char what[96];
    snprintf(what, sizeof what, "attention, %zu bytes, heads of %d, %d keys%s%s", sizeof(T), A, most,
             causal ? ", causal" : "", biased ? ", biased" : "");
    if (!wanted(what)) return;
    const bool small = sizeof(T) == 2;
    std::vector<float> qkv = numbers((size_t)rows * ld, 17, small), bias = numbers((size_t)H * ldb, 19, false);
    std::vector<float> want((size_t)rows * D);
    int first[4] = {0};
    for (int b = 0; b < B; b++) first[b + 1] = first[b] + Tq[b];
    for (int b = 0; b < B; b++)
        for (int h = 0; h < H; h++)
            for (int i = 0; i < Tq[b]; i++) {
                double s[160], sum = 0, top = -1e30;
                const int n = causal ? i + 1 : Tq[b];
                for (int j = 0; j < n; j++) {
                    s[j] = 0;
                    for (int k = 0; k < A; k++)
                        s[j] += (double)qkv[(size_t)(first[b] + i) * ld + h * A + k] *
                                qkv[(size_t)(first[b] + j) * ld + D + h * A + k];
                    s[j] = s[j] * 0.3f + (biased ? bias[h * ldb + most - 1 + j - i] : 0);
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
    a.q_first = a.k_first = at<int>(list), a.bias = biased ? at<float>(table) + most - 1 : NULL, a.ldb = ldb;
    a.scale = 0.3f, a.causal = causal, a.B = B, a.H = H, a.A = A, a.max_q = most;
    attention<T>(0, a);
    std::vector<T> raw(want.size());
    fetch(raw.data(), out, what);
    expect_near(raw, want, what);
    for (Buffer *u : {&in, &list, &table}) CUDA_CHECK(cudaFree(u->base));
}

static void test_attentions(void) {
    for (int A : {8, 32, 40, 88, 128, 136}) test_attention<bf16>(A, 2, A % 3 == 0, A % 5 == 0);
    test_attention<bf16>(16, 2, true, true);
    test_attention<bf16>(24, 1, false, false, 150);   // three tiles of keys: both buffers are filled anew
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

// A picture as the model wants it: on noise, rounding changes what trained models see much more than on what they know.
static std::vector<uint8_t> picture_of(const Config *c, const char *path) {
    std::vector<uint8_t> p((size_t)c->S * c->S * 3);
    const ImageOptions opt = image_defaults();
    Image im = {};
    Err e;
    if (image_read(&im, path, &opt, &e) || image_resize(p.data(), im.rgb, im.W, im.H, c->S, &e))
        EXPECT(&tally, 0, "%s", e.text);
    image_free(&im);
    return p;
}

static double logit_bound(bool f32);

// Stages of the first pass, one prompt, of noise, or of a picture for a trained model. Those have a bound of their own:
// the one row of demo-t5.bin's decoder is off by 4e-3 to 5.5e-2 in six pictures of demo/ (PyTorch in bf16: 1.3e-2 to
// 6.6e-2), all stages of demo.bin by 5e-3.
static void test_stages(const Model *m, const char *model, bool f32, const char *picture = NULL) {
    const double bound = f32 ? 1e-5 : picture ? 1e-1 : 3e-2;
    char what[96];
    snprintf(what, sizeof what, "%s: stages", model);
    if (!wanted(what)) return;
    Stages cpu, gpu;
    Err e;
    const std::vector<uint8_t> pixels = picture ? picture_of(&m->config, picture) : pixels_of(&m->config, 1);
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
    double worst = 0, off = -1;
    for (size_t i = 0; i < cpu.x.size() && i < gpu.x.size(); i++) {
        EXPECT(&tally, cpu.name[i] == gpu.name[i] && cpu.x[i].size() == gpu.x[i].size(), "%s: stage %zu is %s, not %s",
               what, i, gpu.name[i].c_str(), cpu.name[i].c_str());
        if (cpu.x[i].size() != gpu.x[i].size()) continue;
        const Diff d = diff_floats(gpu.x[i].data(), cpu.x[i].data(), cpu.x[i].size());
        EXPECT(&tally, d.rel_l2 <= bound, "%s: %s differs by %.2e, bound %.0e", what, cpu.name[i].c_str(), d.rel_l2,
               bound);
        worst = fmax(worst, d.rel_l2);
        if (cpu.name[i] != "logits") continue;
        double squares = 0;
        for (float x : cpu.x[i]) squares += (double)x * x;
        off = d.max_abs / sqrt(squares / cpu.x[i].size());
        EXPECT(&tally, off <= logit_bound(f32), "%s: a logit is off by %.2e, bound %.0e", what, off, logit_bound(f32));
    }
    EXPECT(&tally, off >= 0, "%s: no logits among the stages", what);
    printf("%s: %zu, largest error %.2e (bound %.0e), of a logit %.2e (bound %.0e)\n", what, cpu.x.size(), worst, bound,
           off, logit_bound(f32));
}

// What the CPU had to choose from, seen at the only place where logits are turned into tokens (the linker puts
// __wrap_search_step in front of generate.c's): per choice the distance of the two largest, over the root mean square.
static struct { bool on; int rows, V; std::vector<float> margin; } watched;

extern "C" bool __real_search_step(Search *s, Step *out, const float *logits);
extern "C" bool __wrap_search_step(Search *s, Step *out, const float *logits) {
    for (int row = 0; watched.on && row < watched.rows; row++) {
        const float *x = logits + (size_t)row * watched.V;
        float first = -INFINITY, second = -INFINITY;
        double squares = 0;
        for (int i = 0; i < watched.V; i++) {
            squares += (double)x[i] * x[i];
            if (x[i] > first) second = first, first = x[i];
            else if (x[i] > second) second = x[i];
        }
        watched.margin.push_back((float)((first - second) / sqrt(squares / watched.V)));
    }
    return __real_search_step(s, out, logits);
}

// The largest difference of a logit, over the root mean square of its row, that rounding may make. Candidates that lie
// further apart than twice that are in the same order on both sides.
static double logit_bound(bool f32) { return f32 ? 1e-4 : 0.1; }

// Greedy, B prompts about some images: the tokens must be equal as long as the CPU's two best candidates lie further
// apart than the bound; behind the first other token the two sides answer different questions.
static void test_greedy(const Model *m, const char *model, bool f32, int max_new, int B = 3) {
    char what[96];
    snprintf(what, sizeof what, "%s: greedy", model);
    if (!wanted(what)) return;
    Err e;
    const int a[] = {3, 5, 4, 2, 6}, b2[] = {7, 2}, c3[] = {2, 9, 8, 8, 8, 1, 4};
    const Prompt three[] = {{a, 5, 1}, {b2, 2, 0}, {c3, 7, 1}};
    const int images = B > 8 ? 8 : 2;
    std::vector<Prompt> prompts;
    for (int i = 0; i < B; i++) {
        prompts.push_back(three[i % 3]);
        prompts.back().image = (prompts.back().image + i / 3) % images;
    }
    const std::vector<uint8_t> pixels = pixels_of(&m->config, images);
    Limits lim = {};
    lim.B = B, lim.R = B, lim.prompt = 8, lim.max_new = max_new, lim.threads = 1;
    Choice how = {};
    how.beams = how.captions = 1, how.max_new = max_new, how.repeat_penalty = how.temp = how.top_p = 1;
    std::vector<int> token[2];
    std::vector<char> ended;
    watched = {true, B, m->config.V, {}};
    for (int side = 0; side < 2; side++) {
        const Backend *b = side ? &backend_cuda : &backend_cpu;
        void *run = b->open(m, &lim, &e);
        EXPECT(&tally, run, "%s: %s", what, e.text);
        if (!run) return;
        b->encode(run, pixels.data(), images);
        b->prompt(run, prompts.data(), B, &how);
        Step step;
        while (b->step(run, &step))
            for (int i = 0; i < B; i++) {
                token[side].push_back(step.token[i]);
                if (!side) ended.push_back(step.ended[i]);
            }
        watched.on = false;
        b->close(run);
    }
    const double bound = 2 * logit_bound(f32);
    int equal = 0, close = 0;
    for (int row = 0; row < B; row++)
        for (size_t i = row; i < token[0].size(); i += B) {
            const bool same = i < token[1].size() && token[0][i] == token[1][i];
            EXPECT(&tally, same || watched.margin[i] <= bound, "%s: row %d, token %zu is another one, although the two"
                   " best lie %.3g apart (bound %.3g)", what, row, i / B, watched.margin[i], bound);
            equal += same;
            close += watched.margin[i] <= bound;
            if (!same || ended[i]) break;
        }
    printf("%s: %d tokens equal, %d choices closer than %.3g\n", what, equal, close, bound);
}

static const int one_ids[] = {3, 5, 4, 2, 6};
static const Prompt one_prompt = {one_ids, 5, 0};

// Beam search for answers of exactly n tokens, no penalties.
static Choice beams_of(int beams, int captions, int n) {
    Choice how = {};
    how.beams = beams, how.captions = captions, how.max_new = how.min_new = n;
    how.repeat_penalty = how.temp = how.top_p = how.length_penalty = 1;
    return how;
}

// The backend for one image and one_prompt, or NULL and a failure.
static void *open_one(const Model *m, const Choice *how, int max_new, const char *what) {
    Err e;
    Limits lim = {};
    lim.B = 1, lim.R = search_rows(how), lim.prompt = 8, lim.max_new = max_new, lim.threads = 1;
    void *run = backend_cuda.open(m, &lim, &e);
    EXPECT(&tally, run, "%s: %s", what, e.text);
    return run;
}

// The same image and prompt twice, once as single kernels and once from the graphs: the same bits, and every stage
// has taken some time.
static void test_repeat(const Model *m, const char *model) {
    char what[96];
    snprintf(what, sizeof what, "%s: two runs", model);
    if (!wanted(what)) return;
    const std::vector<uint8_t> pixels = pixels_of(&m->config, 1);
    const Choice how = beams_of(3, 1, 5);
    void *run = open_one(m, &how, 5, what);
    if (!run) return;
    std::vector<int> tokens[3];
    std::vector<float> logprobs[3];
    double score[3];
    Times was = {};
    for (int k = 0; k < 3; k++) {
        Step step;
        backend_cuda.encode(run, pixels.data(), 1);
        backend_cuda.prompt(run, &one_prompt, 1, &how);
        while (backend_cuda.step(run, &step)) {}
        const Hypothesis h = backend_cuda.result(run, 0, 0);
        tokens[k].assign(h.tokens, h.tokens + h.n), logprobs[k].assign(h.logprobs, h.logprobs + h.n);
        score[k] = h.score;
        const Times is = backend_cuda.times(run);
        EXPECT(&tally, is.vit > was.vit && is.qformer > was.qformer && is.prompt > was.prompt && is.decode > was.decode,
               "%s: seconds behind run %d: %g, %g, %g, %g", what, k, is.vit, is.qformer, is.prompt, is.decode);
        was = is;
    }
    for (int k = 1; k < 3; k++)
        EXPECT(&tally, tokens[k] == tokens[0] && !memcmp(&score[k], &score[0], sizeof score[0]) &&
               !memcmp(logprobs[k].data(), logprobs[0].data(), logprobs[0].size() * sizeof(float)),
               "%s: run %d differs from the first: score %.9g, %.9g", what, k, score[k], score[0]);
    backend_cuda.close(run);
}

// Three prompts about two images at once, by every way of choosing. In f32 all tokens must be equal; where bf16
// decides otherwise, the CPU must have found the other token nearly as good (its score within `slack`).
static void test_tokens(const Model *m, const char *model, bool f32) {
    const double slack = f32 ? 0 : 0.05;
    char what[96];
    snprintf(what, sizeof what, "%s: tokens", model);
    if (!wanted(what)) return;
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
        how.beams = kind == 1 ? 4 : 1, how.captions = kind == 1 ? 2 : kind == 2 ? 3 : 1;
        how.max_new = 6, how.min_new = 3;
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

static void test_model(const Model *m, const char *what) {
    const bool f32 = m->vit.patch_w.dtype == DT_F32 && m->lm.tok.dtype == DT_F32;
    test_stages(m, what, f32);
    test_tokens(m, what, f32);
    test_greedy(m, what, f32, 6);
    test_repeat(m, what);
}

// Models of both families and every dtype, through a weight file: test(model, its name, dtype).
template <class Test> static void every_fixture(const char *kind, Config config(int family), uint32_t seed, Test test) {
    for (int family : {OPT, T5})
        for (int dtype : {DT_F32, DT_BF16, DT_INT8, DT_INT4}) {
            char what[64], path[64];
            snprintf(what, sizeof what, "%s of family %d, dtype %d", kind, family, dtype);
            snprintf(path, sizeof path, "build/test_cuda.%d.bin", (int)getpid());
            const Config c = config(family);
            Fixture f = fixture_make(&c, dtype, "none", 4, seed);
            Err e;
            Model m;
            fixture_write(path, f.data, f.n);
            if (model_open(&m, path, &e)) EXPECT(&tally, 0, "%s: %s", what, e.text);
            else {
                test(&m, what, dtype);
                model_close(&m);
            }
            fixture_free(&f);
            remove(path);
        }
}

static void test_models(void) {
    const char *files[] = {"test/data/tiny_opt.bin", "test/data/tiny_t5.bin"};
    const char *demos[] = {"demo/demo.bin", "demo/demo-t5.bin"};
    Err e;
    Model m;
    for (const char *path : files) {
        if (model_open(&m, path, &e)) { EXPECT(&tally, 0, "%s", e.text); continue; }
        test_model(&m, path);
        model_close(&m);
    }
    for (const char *path : demos) {
        if (model_open(&m, path, &e)) { EXPECT(&tally, 0, "%s", e.text); continue; }
        test_stages(&m, path, m.vit.patch_w.dtype == DT_F32, "demo/dogs.png");
        test_greedy(&m, path, m.vit.patch_w.dtype == DT_F32, 4);
        model_close(&m);
    }
    every_fixture("fixture", fixture_config, 12345, [](const Model *model, const char *what, int) {
        test_model(model, what);
    });
}

#include "cuda_batches.h"

int main(int argc, char **argv) {
    int code = 0;
    chosen.assign(argv + 1, argv + argc);
    if (no_gpu(&code, &tally)) return code;
    test_dense_layers();
    test_attentions();
    test_passes();
    test_layers();
    test_models();
    test_batches();
    CUDA_CHECK(cudaDeviceSynchronize());
#ifdef CUDA_SIM
    EXPECT(&tally, sim_unfreed() == 0, "%zu allocations were not freed", sim_unfreed());
#endif
    code = tally_close(&tally);
    fflush(NULL);
    _exit(code);   // at a regular exit LeakSanitizer reports what the simulator keeps for itself
}
