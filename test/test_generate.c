// test/test_generate.c: token choice (generate.c) against answers of transformers and against hand-computed ones.
//
// In order: a fake language model, cases and how they are read and run, the driver that parity_generate.py talks to
// (test_generate --driver), goldens, batches, cases worked out by hand, broken logits, the filters and the pick,
// the uniforms. Not here: a real model.
//
// One case is a line, its prompts the lines behind it; test/data/generate.golden has the answers in between.
//     case V eos pad beams captions max_new min_new sample top_k seed length_penalty repeat_penalty temp top_p
//          scale bias no_repeat B                    (one line)
//     prompt salt id id ...                          (B of them) ids that count as seen
//     answer stopped score id id ...                 (B * captions of them) without the end token

#include "../generate.h"
#include "check.h"

#include <stdlib.h>

enum { MAX_B = 8, MAX_SEEN = 40, MAX_NEW = 64, MAX_ROWS = 64, LINE = 4096 };

// Scores are sums of up to 24 f32 log-probabilities. Measured against torch: 3.2e-7 of 1 + |score|.
static const double SCORE_BOUND = 5e-6;

typedef struct {
    int V, eos, pad, B;
    Choice how;
    float scale, bias;                   // of the fake model: spread of the logits, bonus of the end token
    uint64_t salt[MAX_B];
    int seen[MAX_B][MAX_SEEN], n_seen[MAX_B];
} Case;

typedef struct { int n, tokens[MAX_NEW]; float logprobs[MAX_NEW]; double score; bool stopped, broken; } Answer;
typedef struct { Answer a[MAX_ROWS]; bool sound; } Answers;      // (B, captions)

// ---------------------------------------------------------------------------------------------------------
// The fake model: logits are a hash of the prompt's salt, the last two tokens and the number of new ones.

static uint64_t mix(uint64_t z) {        // splitmix64
    z += 0x9E3779B97F4A7C15u;
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9u;
    z = (z ^ z >> 27) * 0x94D049BB133111EBu;
    return z ^ z >> 31;
}

static void fake_logits(float *logits, const Case *c, int b, const int *ids, int n) {
    // n new ids behind the prompt -> logits (V)
    int last[2] = {-1, -1};
    for (int i = 0; i < 2; i++) {
        const int at = n - 2 + i, in_prompt = c->n_seen[b] + at;
        last[i] = at >= 0 ? ids[at] : in_prompt >= 0 ? c->seen[b][in_prompt] : -1;
    }
    uint64_t key = mix(c->salt[b]);
    key = mix(key + (uint64_t)(last[0] + 1));
    key = mix(key + (uint64_t)(last[1] + 1));
    key = mix(key + (uint64_t)n);
    for (int v = 0; v < c->V; v++) {
        const float u = (float)(mix(key + (uint64_t)v) >> 40) * 0x1p-24f - 0.5f;
        const float x = u * c->scale;
        logits[v] = v == c->eos ? x + c->bias : x;
    }
}

// ---------------------------------------------------------------------------------------------------------
// Running a case. The rows' pasts are kept here, moved by Step.parent alone, so that a wrong parent gives wrong logits.

static Search *new_search(void **memory, int B, int R, int max_new, int V, int eos, int pad) {
    *memory = aligned_alloc(64, search_bytes(B, R, max_new, V));
    if (!*memory) abort();
    return search_init(*memory, B, R, max_new, V, eos, pad);
}

static bool step_is_sound(const Step *s, const Case *c, const bool *was_ended, int K) {
    bool ok = s->R == c->B * K, going = false;
    for (int r = 0; r < s->R; r++) {
        ok = ok && s->parent[r] / K == r / K && s->parent[r] >= 0;
        ok = ok && ((s->token[r] >= 0 && s->token[r] < c->V) || s->token[r] == c->pad);
        if (was_ended[r]) ok = ok && s->ended[r] && s->parent[r] == r && s->token[r] == c->pad && s->logprob[r] == 0;
        going = going || !s->ended[r];
    }
    return ok && going == s->more;
}

static void run_case(Answers *out, const Case *c) {
    const int K = search_rows(&c->how), R = c->B * K;
    static int past[2][MAX_ROWS][MAX_NEW];
    bool was_ended[MAX_ROWS] = {false};
    void *memory;
    Search *s = new_search(&memory, c->B, R, c->how.max_new, c->V, c->eos, c->pad);
    float *logits = malloc((size_t)R * (size_t)c->V * sizeof *logits);
    const int *seen[MAX_B];
    for (int b = 0; b < c->B; b++) seen[b] = c->seen[b];
    search_begin(s, &c->how, seen, c->n_seen, c->B);
    for (int b = 0; b < c->B; b++) fake_logits(logits + (size_t)b * c->V, c, b, NULL, 0);

    *out = (Answers){.sound = true};
    Step step;
    bool more = true;
    for (int t = 0; search_step(s, &step, logits); t++) {
        out->sound = out->sound && more && t < c->how.max_new && step_is_sound(&step, c, was_ended, K);
        for (int r = 0; r < R; r++) {
            if (t == 0) out->sound = out->sound && step.parent[r] == r;
            memcpy(past[1][r], past[0][step.parent[r]], sizeof past[0][0]);
            past[1][r][t] = step.token[r];
            was_ended[r] = step.ended[r];
        }
        memcpy(past[0], past[1], sizeof past[0]);
        for (int r = 0; r < R; r++) fake_logits(logits + (size_t)r * c->V, c, r / K, past[0][r], t + 1);
        more = step.more;
    }
    out->sound = out->sound && !more && !search_step(s, &step, logits);

    for (int i = 0; i < c->B * c->how.captions; i++) {
        const Hypothesis h = search_result(s, i / c->how.captions, i % c->how.captions);
        Answer *a = &out->a[i];
        *a = (Answer){.n = h.n, .score = h.score, .stopped = h.stopped, .broken = h.broken};
        memcpy(a->tokens, h.tokens, (size_t)h.n * sizeof(int));
        memcpy(a->logprobs, h.logprobs, (size_t)(h.n + h.stopped) * sizeof(float));
    }
    free(logits);
    free(memory);
}

static bool read_case(Case *c, const char *line) {
    int sample;
    unsigned long long seed;
    const int n = sscanf(line, "case %d %d %d %d %d %d %d %d %d %llu %lf %lf %lf %lf %f %f %d %d", &c->V, &c->eos,
                         &c->pad, &c->how.beams, &c->how.captions, &c->how.max_new, &c->how.min_new, &sample,
                         &c->how.top_k, &seed, &c->how.length_penalty, &c->how.repeat_penalty, &c->how.temp,
                         &c->how.top_p, &c->scale, &c->bias, &c->how.no_repeat_ngram, &c->B);
    if (n != 18) return false;
    c->how.sample = sample != 0;
    c->how.seed = seed;
    return c->V >= 2 && c->B >= 1 && c->B <= MAX_B && c->how.max_new < MAX_NEW &&
           c->B * search_rows(&c->how) <= MAX_ROWS;
}

static bool read_prompt(Case *c, int b, const char *line) {
    char *end;
    if (strncmp(line, "prompt ", 7)) return false;
    c->salt[b] = strtoull(line + 7, &end, 10);
    c->n_seen[b] = 0;
    for (const char *p = end; *p == ' ' && c->n_seen[b] < MAX_SEEN; p = end)
        c->seen[b][c->n_seen[b]++] = (int)strtol(p, &end, 10);
    return true;
}

static bool read_answer(Answer *a, const char *line) {
    char *end;
    if (strncmp(line, "answer ", 7)) return false;
    *a = (Answer){.stopped = line[7] == '1'};
    a->score = strtod(line + 8, &end);
    for (const char *p = end; *p == ' ' && a->n < MAX_NEW; p = end) a->tokens[a->n++] = (int)strtol(p, &end, 10);
    return true;
}

// ---------------------------------------------------------------------------------------------------------
// Driver: cases on standard input, answers on standard output; and
//     uniform seed sequence step                  -> the uniform
//     filter temp top_k top_p u logit logit ...   -> the pick, then all probabilities

static void drive_filter(const char *line) {
    enum { MOST = 60000 };
    static float logits[MOST], probs[MOST], scratch[MOST];
    Choice how = {0};
    float u;
    int at, V = 0;
    if (sscanf(line, "filter %lf %d %lf %f%n", &how.temp, &how.top_k, &how.top_p, &u, &at) != 4) exit(2);
    char *end;
    for (const char *p = line + at; *p == ' ' && V < MOST; p = end) logits[V++] = strtof(p, &end);
    search_filter(probs, scratch, logits, &how, V);
    printf("%d", search_pick(probs, u, V));
    for (int v = 0; v < V; v++) printf(" %.9g", (double)probs[v]);
    printf("\n");
}

static int drive(void) {
    static Case c;
    static Answers got;
    char *line = NULL;
    size_t size = 0;
    int prompts = 0;
    while (getline(&line, &size, stdin) > 0) {
        unsigned long long seed, sequence, step;
        if (!strncmp(line, "filter ", 7))
            drive_filter(line);
        else if (sscanf(line, "uniform %llu %llu %llu", &seed, &sequence, &step) == 3)
            printf("%.9g\n", (double)search_uniform(seed, sequence, step));
        else if (!strncmp(line, "case ", 5)) {
            if (!read_case(&c, line)) return 2;
            prompts = 0;
        } else {
            if (prompts >= c.B || !read_prompt(&c, prompts++, line)) return 2;
            if (prompts < c.B) continue;
            run_case(&got, &c);
            for (int i = 0; i < c.B * c.how.captions; i++) {
                const Answer *a = &got.a[i];
                printf("%d %d %.17g", got.sound, a->stopped, a->score);
                for (int k = 0; k < a->n; k++) printf(" %d", a->tokens[k]);
                printf(" |");
                for (int k = 0; k < a->n + a->stopped; k++) printf(" %.9g", (double)a->logprobs[k]);
                printf("\n");
            }
        }
        fflush(stdout);
    }
    free(line);
    return 0;
}

// ---------------------------------------------------------------------------------------------------------
// Goldens

static bool same_tokens(const Answer *a, const Answer *b) {
    return a->n == b->n && a->stopped == b->stopped && !memcmp(a->tokens, b->tokens, (size_t)a->n * sizeof(int));
}

static double score_error(const Answer *a, const Answer *b) {
    const double e = fabs(a->score - b->score) / (1 + fabs(b->score));
    return isfinite(e) ? e : INFINITY;
}

// The score again, from the tokens' log-probabilities.
static double score_of(const Case *c, const Answer *a) {
    double sum = 0;
    for (int i = 0; i < a->n + a->stopped; i++) sum += (double)a->logprobs[i];
    return c->how.beams > 1 ? sum / pow(a->n + a->stopped, c->how.length_penalty) : sum;
}

static void check_golden(Tally *t, const Case *c, const Answer *want, int number, double *worst, int *unlike) {
    static Answers got, other;
    run_case(&got, c);
    EXPECT(t, got.sound, "case %d: a step with wrong parents, tokens or ends", number);
    for (int i = 0; i < c->B * c->how.captions; i++) {
        const Answer *a = &got.a[i];
        const double e = score_error(a, &want[i]);
        EXPECT(t, same_tokens(a, &want[i]), "case %d, answer %d: %d tokens, expected %d", number, i, a->n, want[i].n);
        EXPECT(t, e < SCORE_BOUND, "case %d, answer %d: score %.9g, expected %.9g", number, i, a->score, want[i].score);
        EXPECT(t, fabs(score_of(c, a) - a->score) < SCORE_BOUND * (1 + fabs(a->score)) && !a->broken,
               "case %d, answer %d: score %.9g, its tokens say %.9g", number, i, a->score, score_of(c, a));
        *worst = e > *worst ? e : *worst;
    }

    // Alone as in company, bit by bit.
    for (int b = 0; b < c->B && c->B > 1; b++) {
        Case one = *c;
        one.B = 1;
        one.salt[0] = c->salt[b];
        one.n_seen[0] = c->n_seen[b];
        memcpy(one.seen[0], c->seen[b], sizeof one.seen[0]);
        run_case(&other, &one);
        for (int i = 0; i < c->how.captions; i++) {
            const Answer *x = &got.a[b * c->how.captions + i], *y = &other.a[i];
            EXPECT(t, same_tokens(x, y) && !memcmp(&x->score, &y->score, sizeof x->score) &&
                      !memcmp(x->logprobs, y->logprobs, sizeof x->logprobs), "case %d: prompt %d alone", number, b);
        }
    }

    // Control: with another setting the comparison must see a difference, now and then at least.
    Case changed = *c;
    changed.how.length_penalty += 1;
    changed.how.repeat_penalty *= 2;
    changed.how.seed++;
    run_case(&other, &changed);
    *unlike += !same_tokens(&other.a[0], &want[0]);
}

static void test_goldens(Tally *t, const char *path) {
    FILE *f = fopen(path, "r");
    EXPECT(t, f != NULL, "%s cannot be read", path);
    if (!f) return;
    static char line[LINE];
    static Case c;
    static Answer want[MAX_ROWS];
    double worst = 0;
    int cases = 0, prompts = 0, answers = 0, unlike = 0, beams = 0, sampled = 0, early = 0;
    while (fgets(line, sizeof line, f)) {
        line[strcspn(line, "\n")] = 0;
        bool ok = true;
        if (line[0] == '#') continue;
        if (!strncmp(line, "case ", 5)) {
            ok = read_case(&c, line);
            prompts = answers = 0;
        } else if (!strncmp(line, "prompt ", 7)) ok = prompts < c.B && read_prompt(&c, prompts++, line);
        else ok = prompts == c.B && answers < c.B * c.how.captions && read_answer(&want[answers++], line);
        EXPECT(t, ok, "%s: %s", path, line);
        if (!ok) break;
        if (prompts < c.B || answers < c.B * c.how.captions) continue;
        check_golden(t, &c, want, ++cases, &worst, &unlike);
        beams += c.how.beams > 1;
        sampled += c.how.sample;
        early += want[0].stopped && want[0].n + 1 < c.how.max_new;
    }
    fclose(f);
    fprintf(stderr, "goldens: %d cases, %d with beams, %d sampled, %d end early, largest score error %.1e\n", cases,
            beams, sampled, early, worst);
    EXPECT(t, cases >= 60 && beams >= 30 && sampled >= 10 && early >= 20, "%d cases are too few", cases);
    EXPECT(t, unlike > cases / 4, "only %d of %d answers depend on the settings", unlike, cases);
}

int main(int argc, char **argv) {
    if (argc > 1 && !strcmp(argv[1], "--driver")) return drive();
    Tally t = {0};
    test_goldens(&t, argc > 1 ? argv[1] : "test/data/generate.golden");
    return tally_close(&t);
}
