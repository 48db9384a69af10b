// test/test_generate_hand.c: token choice (generate.h) on cases that can be worked out by hand.
//
// In order: one prompt with written logits, greedy search, beams, their ends, processors, broken logits, memory, the
// filters and the pick, the uniforms and what they draw. Answers of transformers are compared in test_generate.c.

#include "../generate.h"
#include "check.h"

#include <float.h>
#include <stdlib.h>

enum { MAX_V = 64, MAX_NEW = 8, MAX_ROWS = 16 };

static const Choice GREEDY = {.beams = 1, .captions = 1, .max_new = 4, .length_penalty = 1, .repeat_penalty = 1,
                              .temp = 1, .top_p = 1};

// Log-probabilities are near 1 in size: a few units in the last place of f32. Measured 1.2e-7.
static const double BOUND = 1e-6;

static bool near(double a, double b) { return fabs(a - b) < BOUND; }

// ---------------------------------------------------------------------------------------------------------
// The model is a table: logits (V) by the token before, V rows, and one more for the beginning.

typedef struct {
    int V, eos, pad;
    const float *table;                  // (V + 1, V); row V is the beginning
    const int *seen;
    int n_seen;
} World;

typedef struct { int n, tokens[MAX_NEW]; float logprobs[MAX_NEW]; double score; bool stopped, broken; } Answer;

// Returns the number of steps, answers in `out` (captions).
static int answer(Answer *out, const World *w, const Choice *how) {
    const int R = search_rows(how);
    const uint64_t bytes = search_bytes(1, R, how->max_new, w->V);
    unsigned char *memory = aligned_alloc(64, bytes + 64);
    float *logits = malloc((size_t)R * (size_t)w->V * sizeof *logits);
    if (!memory || !logits) abort();
    memset(memory + bytes, 0xA5, 64);
    Search *s = search_init(memory, 1, R, how->max_new, w->V, w->eos, w->pad);
    search_begin(s, how, &w->seen, &w->n_seen, 1);
    memcpy(logits, w->table + (size_t)w->V * w->V, (size_t)w->V * sizeof *logits);
    Step step;
    int steps = 0;
    while (search_step(s, &step, logits) && steps <= how->max_new) {
        for (int r = 0; r < R; r++) {
            const int t = step.token[r] < 0 || step.token[r] >= w->V ? 0 : step.token[r];
            memcpy(logits + (size_t)r * w->V, w->table + (size_t)t * w->V, (size_t)w->V * sizeof *logits);
        }
        steps++;
    }
    for (int i = 0; i < how->captions; i++) {
        const Hypothesis h = search_result(s, 0, i);
        out[i] = (Answer){.n = h.n, .score = h.score, .stopped = h.stopped, .broken = h.broken};
        memcpy(out[i].tokens, h.tokens, (size_t)h.n * sizeof(int));
        memcpy(out[i].logprobs, h.logprobs, (size_t)(h.n + h.stopped) * sizeof(float));
    }
    for (int i = 0; i < 64; i++)
        if (memory[bytes + (uint64_t)i] != 0xA5) steps = -1;     // wrote behind its memory
    free(logits);
    free(memory);
    return steps;
}

static bool is(const Answer *a, bool stopped, int n, const int *tokens) {
    return a->stopped == stopped && a->n == n && !memcmp(a->tokens, tokens, (size_t)n * sizeof *tokens);
}

#define IDS(...) (int)(sizeof((int[]){__VA_ARGS__}) / sizeof(int)), (int[]){__VA_ARGS__}

// ---------------------------------------------------------------------------------------------------------

enum { END, A, B, C };

// The best first word leads nowhere: .5 A (then anything), .4 B (then nearly always the end).
static const float TRAP[5 * 4] = {
    0, 0, 0, 0,                                                     // END is never continued
    0, 0, 0, 0,                                                     // A: .25 each
    2.1972246f, -1.0986123f, -1.0986123f, -1.0986123f,              // B: .9 END, .0333 each
    0, 0, 0, 0,
    -2.9957323f, -0.6931472f, -0.9162907f, -2.9957323f,             // beginning: .05 END, .5 A, .4 B, .05 C
};
static const World trap = {.V = 4, .eos = END, .pad = C, .table = TRAP};

static void test_greedy(Tally *t) {
    Answer a;
    Choice how = GREEDY;
    EXPECT(t, answer(&a, &trap, &how) == 2, "A, then the first of four equal ones, which ends it");
    EXPECT(t, is(&a, true, IDS(A)) && near(a.logprobs[0], log(.5)) && near(a.logprobs[1], log(.25)) &&
              near(a.score, log(.125)), "%d tokens, score %g", a.n, a.score);
    how.max_new = 1;
    EXPECT(t, answer(&a, &trap, &how) == 1 && is(&a, false, IDS(A)) && near(a.score, log(.5)), "cut after A");
    how.max_new = 3;
    how.min_new = 2;
    EXPECT(t, answer(&a, &trap, &how) == 3 && is(&a, true, IDS(A, A)), "END not allowed for 2 tokens: A A END");
    EXPECT(t, near(a.score, log(.5) + 2 * log(.25)), "log-probabilities are those before the processors");
    how.min_new = 3;
    EXPECT(t, answer(&a, &trap, &how) == 3 && is(&a, false, IDS(A, A, A)), "END never allowed");
}

static void test_beams(Tally *t) {
    Answer a[4];
    Choice how = GREEDY;
    how.beams = how.captions = 2;
    how.max_new = 2;
    // After two tokens: B END .36; of the four at .125, A END comes first.
    EXPECT(t, answer(a, &trap, &how) == 2, "steps");
    EXPECT(t, is(&a[0], true, IDS(B)) && near(a[0].score, log(.36) / 2), "best: %d, score %g", a[0].tokens[0],
           a[0].score);
    EXPECT(t, is(&a[1], true, IDS(A)) && near(a[1].score, log(.125) / 2), "second: score %g", a[1].score);
    EXPECT(t, near(a[0].logprobs[0], log(.4)) && near(a[0].logprobs[1], log(.9)), "log-probabilities of B END");
    how.length_penalty = -1;
    answer(a, &trap, &how);
    EXPECT(t, is(&a[0], true, IDS(B)) && near(a[0].score, 2 * log(.36)), "negative penalty: score %g", a[0].score);
    how.length_penalty = 0;
    answer(a, &trap, &how);
    EXPECT(t, near(a[0].score, log(.36)), "no penalty: score %g", a[0].score);

    // With 4 beams END (.05) is finished at the first step as fourth, -3 / 1; longer answers push it out.
    how.beams = how.captions = 4;
    how.length_penalty = 1;
    answer(a, &trap, &how);
    EXPECT(t, is(&a[0], true, IDS(B)), "best of 4");
    for (int i = 1; i < 4; i++) EXPECT(t, near(a[i].score, log(.125) / 2), "answer %d: score %g", i, a[i].score);
    EXPECT(t, is(&a[1], true, IDS(A)) && is(&a[2], false, IDS(A, A)) && is(&a[3], false, IDS(A, B)), "ties by id");

    how.min_new = 2;      // -Inf in the end token's place must not be counted among the candidates
    answer(a, &trap, &how);
    EXPECT(t, is(&a[0], false, IDS(A, A)) && is(&a[1], false, IDS(A, B)) && is(&a[2], false, IDS(A, C)), "min_new");
}

// When beams end, and what remains of them.
static void test_ends(Tally *t) {
    Answer a[3];
    Choice how = GREEDY;
    how.beams = how.captions = 2;
    how.length_penalty = 0;
    // All words equally likely: END at once, A END behind it. A A is then as good as A END but not better: no reason
    // to go on, though there is room for two more tokens.
    static const float same[5 * 4] = {0};
    const World even = {.V = 4, .eos = END, .pad = C, .table = same};
    EXPECT(t, answer(a, &even, &how) == 2, "a beam as good as the worst answer goes on");
    EXPECT(t, a[0].stopped && a[0].n == 0 && is(&a[1], true, IDS(A)) && near(a[1].score, log(1 / 16.)), "two ends");
    how.length_penalty = 1;             // now A A is worth as much as END alone, and longer ones are, too
    EXPECT(t, answer(a, &even, &how) == 2 && near(a[0].score, log(.25)) && near(a[1].score, log(.25)), "per word");

    // Of three beams, one ends and one has nothing to follow it. Its row must not come back as another word's.
    const float no = -INFINITY;
    const float dead[5 * 4] = {
        0, 0, 0, 0,
        no, 0, no, no,                  // A A A ...
        0, no, no, no,                  // B END
        0, 0, 0, 0,                     // C, the padding as well
        no, 0, 0, no,
    };
    const World narrow = {.V = 4, .eos = END, .pad = C, .table = dead};
    how.beams = how.captions = 3;
    how.length_penalty = 0;
    EXPECT(t, answer(a, &narrow, &how) == 4, "steps");
    EXPECT(t, is(&a[0], true, IDS(B)) && is(&a[1], false, IDS(A, A, A, A)) && a[2].n == 0 && !a[2].stopped &&
              near(a[2].score, -1e9), "two answers: %d and %d tokens, then %d", a[0].n, a[1].n, a[2].n);

    // A larger vocabulary: the best are found where they are close to each other and last.
    enum { V = 200 };
    static float close[(V + 1) * V];
    for (int i = 0; i < (V + 1) * V; i++) close[i] = 1e-5f * (float)(i % V);
    const World many = {.V = V, .eos = 0, .pad = 0, .table = close};
    how.max_new = 1;
    answer(a, &many, &how);
    EXPECT(t, is(&a[0], false, IDS(199)) && is(&a[1], false, IDS(198)) && is(&a[2], false, IDS(197)), "best of 200");
}

static void test_penalty(Tally *t) {
    static const float same[5 * 4] = {1, 2, -1, 1.9f, 1, 2, -1, 1.9f, 1, 2, -1, 1.9f, 1, 2, -1, 1.9f, 1, 2, -1, 1.9f};
    static const int seen[] = {A, A, B, 99, -3};      // twice counts once; ids outside of the vocabulary do not count
    World w = {.V = 4, .eos = B, .pad = 0, .table = same, .seen = seen, .n_seen = 5};
    const double sum = exp(1) + exp(2) + exp(-1) + exp(1.9f);
    Answer a[2];
    Choice how = GREEDY;
    how.repeat_penalty = 2;
    how.max_new = 3;
    // 1, 1, -2, 1.9 -> C; then C is .95, and END and A tie at 1; then END is .5
    EXPECT(t, answer(a, &w, &how) == 3 && is(a, false, IDS(C, END, A)), "penalised: %d %d %d", a->tokens[0],
           a->tokens[1], a->tokens[2]);
    EXPECT(t, near(a->logprobs[0], (double)1.9f - log(sum)), "log-probability of the raw logit: %g",
           (double)a->logprobs[0]);
    // With beams log-probabilities are multiplied: A at 2 * -.84 falls below C at -.94, not below END at -1.84.
    how.beams = how.captions = 2;
    how.max_new = 1;
    answer(a, &w, &how);
    EXPECT(t, is(&a[0], false, IDS(C)) && is(&a[1], false, IDS(A)), "beams: %d %d", a[0].tokens[0], a[1].tokens[0]);
    EXPECT(t, near(a[1].score, 2 * (2 - log(sum))) && near(a[1].score, (double)a[1].logprobs[0]),
           "a beam's log-probabilities are behind the processors: %g", a[1].score);
}

static void test_broken(Tally *t) {
    float table[5 * 4];
    Answer a[4];
    for (int kind = 0; kind < 3; kind++) {
        const float bad = kind == 0 ? NAN : kind == 1 ? INFINITY : -INFINITY;
        for (int mode = 0; mode < 3; mode++) {
            Choice how = GREEDY;
            how.beams = mode == 1 ? 3 : 1;
            how.captions = mode > 0 ? 3 : 1;
            how.sample = mode == 2;
            how.repeat_penalty = 1.5;
            how.top_p = .9;
            World w = {.V = 4, .eos = 0, .pad = 1, .table = table};

            for (int i = 0; i < 20; i++) table[i] = TRAP[i];
            for (int r = 0; r < 5; r++) table[r * 4 + A] = bad;
            int steps = answer(a, &w, &how);
            EXPECT(t, steps >= 1 && steps <= 4, "kind %d, mode %d: %d steps", kind, mode, steps);
            for (int c = 0; c < how.captions; c++) {
                for (int i = 0; i < a[c].n; i++) EXPECT(t, a[c].tokens[i] != A, "kind %d: chose a bad logit", kind);
                EXPECT(t, !not_finite((float)a[c].score) && a[c].broken == (kind < 2), "kind %d, mode %d: score %g",
                       kind, mode, a[c].score);
            }

            for (int i = 0; i < 20; i++) table[i] = bad;
            steps = answer(a, &w, &how);
            EXPECT(t, steps >= 1 && steps <= 4 && a[0].broken == (kind < 2), "all bad: %d steps", steps);
            EXPECT(t, mode == 1 ? a[2].n == 0 && !a[2].stopped && near(a[2].score, -1e9) : a[0].score == -INFINITY,
                   "all bad, mode %d: score %g", mode, a[0].score);
        }
    }
    for (int i = 0; i < 20; i++) table[i] = i % 2 ? FLT_MAX : -FLT_MAX;
    Choice how = GREEDY;
    how.repeat_penalty = 1e-3;
    how.temp = 1e-3;
    how.sample = true;
    World w = {.V = 4, .eos = 0, .pad = 1, .table = table};
    EXPECT(t, answer(a, &w, &how) == 4 && !a[0].broken && a[0].tokens[0] % 2 == 1, "the largest floats");
    w.eos = 77;           // an end token that the vocabulary does not have
    EXPECT(t, answer(a, &w, &GREEDY) == 4 && !a[0].stopped, "no end token");
}

static void test_small(Tally *t) {
    // Two words, up to 7 beams: all answers of one or two tokens are END, A END and A A.
    static const float two[3 * 2] = {0, 0, 0, 1, 0, 2};
    const World w = {.V = 2, .eos = 0, .pad = 1, .table = two};
    Answer a[7];
    for (int K = 2; K <= 7; K++) {
        Choice how = GREEDY;
        how.beams = how.captions = K;
        how.max_new = 2;
        EXPECT(t, answer(a, &w, &how) == 2 && is(&a[0], false, IDS(A, A)), "%d beams: %d tokens", K, a[0].n);
        for (int i = 1; i < K; i++) EXPECT(t, a[i].score <= a[i - 1].score, "%d beams: not in order", K);
        EXPECT(t, K < 7 || (a[6].n == 0 && near(a[6].score, -1e9)), "more beams than answers");
    }
    EXPECT(t, search_bytes(1 << 20, 0x7FFFFFFF, 0x7FFFFFFF, 50304) == UINT64_MAX, "absurd limits");
    EXPECT(t, search_bytes(1, 5, 30, 50304) < 1u << 20, "%llu bytes for one image",
           (unsigned long long)search_bytes(1, 5, 30, 50304));
}

// ---------------------------------------------------------------------------------------------------------

static bool filtered(int n, const float *logits, double temp, int top_k, double top_p, const double *want) {
    float probs[MAX_V], scratch[MAX_V];
    Choice how = GREEDY;
    how.temp = temp;
    how.top_k = top_k;
    how.top_p = top_p;
    search_filter(probs, scratch, logits, &how, n);
    for (int i = 0; i < n; i++)
        if (!near((double)probs[i], want[i]) || (want[i] == 0 && probs[i] != 0)) return false;
    return true;
}

#define FILTERED(t, logits, temp, top_k, top_p, ...) \
    EXPECT(t, filtered((int)(sizeof(logits) / sizeof(float)), logits, temp, top_k, top_p, (double[]){__VA_ARGS__}), \
           "filter")

static void test_filter(Tally *t) {
    const float x[4] = {logf(.15f), logf(.5f), logf(.05f), logf(.3f)};
    FILTERED(t, x, 1, 0, 1.0, .15, .5, .05, .3);
    FILTERED(t, x, .5, 0, 1.0, .0225 / .365, .25 / .365, .0025 / .365, .09 / .365);
    FILTERED(t, x, 1, 2, 1.0, 0, .625, 0, .375);
    FILTERED(t, x, 1, 4, 1.0, .15, .5, .05, .3);
    FILTERED(t, x, 1, 9, 1.0, .15, .5, .05, .3);
    FILTERED(t, x, 1, 0, .97, .15, .5, .05, .3);         // the lowest, .05, is more than .03
    FILTERED(t, x, 1, 0, .90, .15 / .95, .5 / .95, 0, .3 / .95);
    FILTERED(t, x, 1, 0, .75, 0, .625, 0, .375);
    FILTERED(t, x, 1, 0, .10, 0, 1, 0, 0);
    FILTERED(t, x, 1, 0, 0.0, 0, 1, 0, 0);
    FILTERED(t, x, 1, 2, .60, 0, 1, 0, 0);               // top-p looks at what top-k left: .625 and .375
    const float ties[4] = {1, 1, 0, 1};
    FILTERED(t, ties, 1, 1, 1.0, 1 / 3., 1 / 3., 0, 1 / 3.);
    const float equal[4] = {0, -0.0f, 0, -0.0f};
    FILTERED(t, equal, 1, 3, .6, 0, 1 / 3., 1 / 3., 1 / 3.);     // -0 equals 0; of equal ones the first ids go
    FILTERED(t, equal, 1, 0, 1e-9, 0, 0, 0, 1);
    const float bad[4] = {NAN, 1, -INFINITY, INFINITY};
    FILTERED(t, bad, 1, 0, 1.0, 0, 1, 0, 0);
    FILTERED(t, bad, 1, 3, .9, 0, 1, 0, 0);
    EXPECT(t, !filtered(4, x, 1, 2, 1.0, (const double[]){.15, .5, .05, .3}), "control: this cannot fail");

    const float p[4] = {.25f, 0, .5f, .25f};
    EXPECT(t, search_pick(p, 0, 4) == 0 && search_pick(p, .2499f, 4) == 0, "first");
    EXPECT(t, search_pick(p, .25f, 4) == 2 && search_pick(p, .7499f, 4) == 2, "middle");
    EXPECT(t, search_pick(p, .75f, 4) == 3 && search_pick(p, 1 - 0x1p-24f, 4) == 3, "last");
    const float less[4] = {.5f, .4f, 0, 0};
    EXPECT(t, search_pick(less, .95f, 4) == 1, "probabilities that sum to less: the last one possible");
}

static void test_uniform(Tally *t) {
    // Known answers of Philox4x32-10 from its authors' Random123 library: first word for counter and key.
    EXPECT(t, search_uniform(0, 0, 0) == (float)(0x6627e8d5u >> 8) * 0x1p-24f, "all zeros");
    EXPECT(t, search_uniform(UINT64_MAX, UINT64_MAX, UINT64_MAX) == (float)(0x408f276du >> 8) * 0x1p-24f, "all ones");
    EXPECT(t, search_uniform(0x299f31d0a4093822u, 0x85a308d3243f6a88u, 0x0370734413198a2eu) ==
              (float)(0xd16cfe09u >> 8) * 0x1p-24f, "digits of pi");

    // Chi-square over 256 bins along each argument: 255 expected, standard deviation 22.6.
    enum { BINS = 256, DRAWS = 1 << 16 };
    for (int along = 0; along < 4; along++) {
        double chi = 0, product = 0, before = .5;
        int count[BINS] = {0};
        for (uint64_t i = 0; i < DRAWS; i++) {
            double u = (double)search_uniform(along == 0 ? i : 42, along == 1 ? i : 3, along >= 2 ? i : 5);
            if (along == 3) u = pow(u, 1.05);             // control: a little askew
            count[(int)(u * BINS)]++;
            product += (u - .5) * (before - .5);
            before = u;
        }
        for (int i = 0; i < BINS; i++) chi += pow(count[i] - DRAWS / BINS, 2) / (DRAWS / BINS);
        EXPECT(t, (chi > 140 && chi < 370) == (along < 3), "along argument %d: chi-square %g", along, chi);
        if (along < 3) EXPECT(t, fabs(product / DRAWS * 12) < .02, "neighbours correlate: %g", product / DRAWS * 12);
    }
}

// One step of many samples: how often each word comes up.
static void test_frequencies(Tally *t) {
    enum { N = 20000, V = 4 };
    const float x[V] = {logf(.15f), logf(.5f), logf(.05f), logf(.3f)};
    const double want[V] = {.15 / .95, .5 / .95, 0, .3 / .95};
    void *memory = aligned_alloc(64, search_bytes(1, N, 1, V));
    if (!memory) abort();
    Search *s = search_init(memory, 1, N, 1, V, V, 0);
    Choice how = GREEDY;
    how.sample = true;
    how.captions = N;
    how.max_new = 1;
    how.top_p = .9;
    how.seed = 1;
    const int *seen = NULL;
    Step step;
    search_begin(s, &how, &seen, (const int[]){0}, 1);
    EXPECT(t, search_step(s, &step, x) && !step.more && step.R == N, "one step");
    int count[V] = {0};
    for (int r = 0; r < N; r++) count[step.token[r]]++;
    double chi = 0;
    for (int v = 0; v < V; v++)
        if (want[v] > 0) chi += pow(count[v] - N * want[v], 2) / (N * want[v]);
    // 2 degrees of freedom: 14 is 1 in 1000.
    EXPECT(t, count[2] == 0 && chi < 14, "frequencies %d %d %d %d, chi-square %g", count[0], count[1], count[2],
           count[3], chi);
    free(memory);
}

int main(void) {
    Tally t = {0};
    test_greedy(&t);
    test_beams(&t);
    test_ends(&t);
    test_penalty(&t);
    test_broken(&t);
    test_small(&t);
    test_filter(&t);
    test_uniform(&t);
    test_frequencies(&t);
    return tally_close(&t);
}
