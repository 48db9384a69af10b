// test/test_cuda_choose.cu: the choice of tokens on the device (cuda_choose.cuh) against generate.c, step by step.
//
// In order: a fake model; one case, both sides; the cases: ways of
// choosing, odd vocabularies, ties, -Inf, NaN, end tokens. Nothing may differ, to the last bit: sums have one order.
// Built by nvcc (make test-cuda) and for the simulator (make test-cuda-sim). Not here: a model (test_cuda.cu).
#include "../cuda_choose.cuh"
#include "cuda_guarded.h"
#include "cuda_no_gpu.h"

#include <unistd.h>

enum { MOST_R = 16, MOST_NEW = 12 };

static uint64_t mix(uint64_t z) {        // splitmix64
    z += 0x9E3779B97F4A7C15u;
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9u;
    z = (z ^ z >> 27) * 0x94D049BB133111EBu;
    return z ^ z >> 31;
}

enum { PLAIN, TIES, INFINITE, NANS, NOTHING };
typedef struct { const char *name; int V, eos, B, kind; float bias; Choice how; } Case;

// Logits of the row whose last token is `last`: ties are multiples of 1/2, INFINITE has three of four at -Inf.
static void fake_logits(float *x, const Case *c, int b, int last, int t) {
    const uint64_t key = mix(mix((uint64_t)b * 1000 + t) + (uint64_t)last);
    for (int v = 0; v < c->V; v++) {
        const uint64_t h = mix(key + v);
        x[v] = (float)(h >> 40) * 0x1p-20f - 8;
        if (c->kind == TIES) x[v] = (float)(int)(x[v] / 4) * 0.5f;
        if (c->kind == NOTHING || (c->kind == INFINITE && h % 4)) x[v] = -INFINITY;
        if (c->kind == NANS && h % 16 == 3) x[v] = h % 32 == 3 ? NAN : INFINITY;
        if (v == c->eos) x[v] += c->bias;
    }
}

static int differ(const void *a, const void *b, size_t n) { return memcmp(a, b, n) != 0; }

// Steps both sides on the same logits; true when nothing differed. shift: a negative control, the device gets others.
static bool run_case(const Case *c, bool shift) {
    const int K = search_rows(&c->how), R = c->B * K, V = c->V;
    const uint64_t bytes = search_bytes(c->B, R, MOST_NEW, V);
    void *mem[2];
    Search *s[2];
    const int ids[4][7] = {{1, 2, 1, 3, 1, 2, 0}, {2, 2, 2, 0, 5, -1, V}, {0}, {3, 1, 3, 1, 3, 1, 3}};
    const int n_ids[4] = {6, 7, 1, 7};
    const int *seen[4] = {ids[0], ids[1], ids[2], ids[3]}, *there[4];
    const size_t floats = (size_t)R * V * 4;
    std::vector<int> fixed(4 * MOST_R + 1, 0);               // t, position, slot, n_prompt, prompt_of
    for (int r = 0; r < R; r++) fixed[1 + 3 * MOST_R + r] = r / K;
    Buffer block = buffer_of(bytes, NULL), lines = buffer_of(2 * R * MOST_NEW * sizeof(int), NULL);
    Buffer ints = buffer_of(sizeof ids, ids), small = buffer_of(fixed.size() * sizeof(int), fixed.data());
    Buffer logits = buffer_of(floats, NULL), values = buffer_of(floats, NULL);
    Buffer scratch = buffer_of(R * choose_scratch(V, R) * 4, NULL);
    for (int i = 0; i < 4; i++) there[i] = at<int>(ints) + 7 * i;
    for (int side = 0; side < 2; side++) {
        mem[side] = aligned_alloc(64, bytes);
        memset(mem[side], 0, bytes);
        s[side] = search_init(mem[side], c->B, R, MOST_NEW, V, c->eos, 1);
        search_begin(s[side], &c->how, seen, n_ids, c->B);
    }
    std::vector<uint8_t> copy(search_export_bytes(s[1])), state(search_state_bytes(s[1]));
    search_export(copy.data(), s[1], at<void>(block), there);
    CUDA_CHECK(cudaMemcpy(at<void>(block), copy.data(), copy.size(), cudaMemcpyHostToDevice));
    Search *device = at<Search>(block);
    const Search parts = *(const Search *)copy.data();       // its pointers
    int *t_at = at<int>(small);

    std::vector<float> x((size_t)R * V);
    for (int b = 0; b < c->B; b++) fake_logits(x.data() + (size_t)b * V, c, b, 0, 0);
    int wrong = 0, steps = 0;
    Step step[2];
    while (search_step(s[0], &step[0], x.data()) && steps < MOST_NEW) {
        std::vector<float> y = x;
        if (shift) for (float &v : y) v = -v;
        CUDA_CHECK(cudaMemcpy(at<float>(logits), y.data(), y.size() * 4, cudaMemcpyHostToDevice));
        choose(0, device, t_at, at<float>(values), at<float>(scratch), at<float>(logits), at<int>(lines), R,
               MOST_NEW, c->how.beams > 1, c->B, R, V);
        LAUNCH(advance_kernel, dim3(R), dim3(64), 0, 0, at<int>(lines), t_at + 1, t_at + 1 + MOST_R, t_at,
               parts.now_parent, t_at + 1 + 2 * MOST_R, t_at + 1 + 3 * MOST_R, R, MOST_NEW);
        CUDA_CHECK(cudaDeviceSynchronize());
        CUDA_CHECK(cudaMemcpy(state.data(), at<uint8_t>(block) + search_state_at(s[1]), state.size(),
                              cudaMemcpyDeviceToHost));
        search_take(s[1], &step[1], state.data());
        const size_t n = R * sizeof(int);
        Search there_now;
        CUDA_CHECK(cudaMemcpy((void *)&there_now, device, sizeof there_now, cudaMemcpyDeviceToHost));
        wrong += there_now.more != step[0].more;
        wrong += differ(step[0].token, step[1].token, n) + differ(step[0].parent, step[1].parent, n) +
                 differ(step[0].logprob, step[1].logprob, n) + differ(step[0].ended, step[1].ended, n) +
                 (step[0].more != step[1].more);
        steps++;
        if (wrong || !step[0].more) break;
        for (int r = 0; r < R; r++)
            fake_logits(x.data() + (size_t)r * V, c, r / K, step[0].token[r] * 64 + step[0].parent[r], steps);
    }
    for (int i = 0; i < R && !wrong; i++) {
        const Hypothesis h = search_result(s[0], i / K, i % K), g = search_result(s[1], i / K, i % K);
        wrong += h.n != g.n || h.score != g.score || h.stopped != g.stopped || h.broken != g.broken ||
                 differ(h.tokens, g.tokens, h.n * sizeof(int)) || differ(h.logprobs, g.logprobs, (h.n + h.stopped) * 4);
        wrong += (c->kind == NANS) != h.broken;
    }
    if (!wrong && !step[0].more) {      // what is queued behind the end changes nothing
        std::vector<uint8_t> before(bytes), after(bytes);
        CUDA_CHECK(cudaMemcpy(before.data(), device, bytes, cudaMemcpyDeviceToHost));
        choose(0, device, t_at, at<float>(values), at<float>(scratch), at<float>(logits), at<int>(lines), R,
               MOST_NEW, c->how.beams > 1, c->B, R, V);
        CUDA_CHECK(cudaDeviceSynchronize());
        CUDA_CHECK(cudaMemcpy(after.data(), device, bytes, cudaMemcpyDeviceToHost));
        wrong += differ(before.data(), after.data(), bytes);
    }
    for (const Buffer *b : {&block, &ints, &lines, &small, &logits, &values, &scratch}) {
        std::vector<uint8_t> end(b->bytes);
        fetch(end.data(), *b, c->name);
    }
    for (void *m : mem) free(m);
    if (wrong && !shift) fprintf(stderr, "%s, V %d, kind %d: step %d of %d rows\n", c->name, V, c->kind, steps, R);
    return wrong == 0;
}

static Choice choice_of(int beams, int captions) {
    Choice how = {};
    how.beams = beams, how.captions = captions, how.max_new = 5;
    how.length_penalty = how.repeat_penalty = how.temp = how.top_p = 1, how.seed = 12345;
    return how;
}

int main(void) {
    int code = 0;
    if (no_gpu(&code, &tally)) return code;
    std::vector<Case> cases;
    const auto add = [&](const char *name, Choice how, int V, int B, int kind, float bias) {
        cases.push_back({name, V, 2, B, kind, bias, how});
    };
    for (int V : {7, 33, 513, 1531})
        for (int kind : {PLAIN, TIES, INFINITE, NANS}) {
            Choice greedy = choice_of(1, 1), beams = choice_of(3, 2), draw = choice_of(1, 3);
            greedy.repeat_penalty = kind == PLAIN ? 1.5 : 1, greedy.no_repeat_ngram = kind == TIES ? 2 : 0;
            greedy.min_new = 3;
            beams.repeat_penalty = kind == PLAIN ? 1 : 0.7, beams.no_repeat_ngram = kind == PLAIN ? 3 : 0;
            beams.length_penalty = kind == TIES ? -1 : 1.5;
            draw.sample = true, draw.top_k = kind == PLAIN ? 0 : 5, draw.top_p = kind == INFINITE ? 1 : 0.8;
            draw.temp = 1.3;
            add("greedy", greedy, V, 2, kind, 2);
            add("beams", beams, V, 2, kind, 4);
            add("samples", draw, V, 2, kind, 3);
        }
    for (int V : {2048, 2049, 4133})          // rows of several slices
        for (int kind : {TIES, INFINITE}) {
            Choice greedy = choice_of(1, 1), beams = choice_of(3, 2), draw = choice_of(1, 2);
            greedy.repeat_penalty = 1.5, greedy.min_new = beams.min_new = 2, beams.no_repeat_ngram = 2;
            draw.sample = true, draw.top_p = 0.8, draw.top_k = 50;
            greedy.max_new = draw.max_new = beams.max_new = 2;
            add("greedy, slices", greedy, V, 1, kind, 2);
            if (V != 2048) add("beams, slices", beams, V, 1, kind, 4);
            if (V == 4133) add("samples, slices", draw, V, 1, kind, 3);
        }
    Choice many = choice_of(8, 8), row8 = choice_of(1, 8), single = choice_of(1, 1);
    row8.sample = true, row8.top_p = 0.5;
    many.max_new = 9;
    add("8 beams", many, 101, 1, TIES, 3);
    add("2 beams, early end", choice_of(2, 1), 64, 4, PLAIN, 14);
    add("8 samples", row8, 257, 1, PLAIN, 5);
    add("nothing to choose", single, 40, 1, NOTHING, 0);
    add("nothing to choose, beams", choice_of(2, 2), 40, 1, NOTHING, 0);
    single.no_repeat_ngram = 1;
    add("greedy, no word twice", single, 12, 3, PLAIN, 0);
    for (const Case &c : cases)
        EXPECT(&tally, run_case(&c, false), "%s, V %d: the device chose otherwise", c.name, c.V);
    for (int i = 0; i < 3; i++) EXPECT(&tally, !run_case(&cases[i], true), "other logits went unnoticed");
#ifdef CUDA_SIM
    EXPECT(&tally, sim_unfreed() == 0, "%zu allocations were not freed", sim_unfreed());
#endif
    code = tally_close(&tally);
    fflush(NULL);
    _exit(code);
}
