// test/test_tiny.c: the committed tiny models (f32, bf16, int8, int4), end to end, against answers that PyTorch wrote.
//
// In order: reading test/data/tiny_*.answers (make_goldens.py), running one of its lines, and then what must not
// change an answer: the number of threads, the company in a batch, a second model in use, a second run.
// Stage outputs are compared by test_dump.sh. Not here: the command line (test_cli.sh).
//
// One line of an answers file, fields separated by tabs:
//     image | beams captions max_new min_new length_penalty repeat_penalty | prompt | answer | answer | ...
//     answer: "stop" or "length", score, token ids without prompt and end token

#include "../blip2.h"
#include "../image.h"
#include "../tokenizer.h"
#include "check.h"

#include <stdlib.h>

enum { MAX_B = 3, MAX_ROWS = 21, MAX_NEW = 40, MAX_PROMPT = 40, IMAGES = 3 };

// Scores are sums of up to 30 log-probabilities in f32. Relative to max(1, |score|): measured 6e-6 at most.
static const double SCORE_BOUND = 1e-4;
// int8 weights meet activations in 16 bits (doc/matmul.md): measured 4.4e-4.
static const double SCORE_BOUND_INT8 = 2e-3;

typedef struct {
    Model m;
    Tokenizer *tok;
    void *run;
    uint8_t *pixels[IMAGES];
    Limits lim;
} Tiny;

static void die(const char *what, const Err *e) {
    fprintf(stderr, "FAIL %s: %s\n", what, e->text);
    exit(1);
}

static void tiny_open(Tiny *t, const char *name, int threads) {
    Err e;
    char path[256];
    snprintf(path, sizeof path, "test/data/tiny_%s.bin", name);
    if (model_open(&t->m, path, &e) || model_verify(&t->m, &e)) die(path, &e);
    const Config *c = &t->m.config;
    t->tok = tokenizer_open(t->m.tokenizer, t->m.tokenizer_bytes, c->V, c->image_token, &e);
    if (!t->tok) die(path, &e);
    t->lim = (Limits){.B = MAX_B, .R = MAX_ROWS, .prompt = MAX_PROMPT, .max_new = MAX_NEW, .threads = threads};
    t->run = backend_cpu.open(&t->m, &t->lim, &e);
    if (!t->run) die(path, &e);
    const ImageOptions opt = image_defaults();
    for (int i = 0; i < IMAGES; i++) {
        Image im;
        snprintf(path, sizeof path, "test/data/tiny_%d.png", i);
        t->pixels[i] = malloc((size_t)c->S * c->S * 3);
        if (image_read(&im, path, &opt, &e) || image_resize(t->pixels[i], im.rgb, im.W, im.H, c->S, &e)) die(path, &e);
        image_free(&im);
    }
}

static void tiny_close(Tiny *t) {
    backend_cpu.close(t->run);
    tokenizer_close(t->tok);
    model_close(&t->m);
    for (int i = 0; i < IMAGES; i++) free(t->pixels[i]);
}

// ---------------------------------------------------------------------------------------------------------

typedef struct { int image; Choice how; char prompt[256]; char *answers; } Line;

static int parse_line(Line *l, char *text) {
    text[strcspn(text, "\n")] = 0;
    char *numbers = strchr(text, '\t'), *prompt = numbers ? strchr(numbers + 1, '\t') : NULL;
    char *answers = prompt ? strchr(prompt + 1, '\t') : NULL;
    if (!answers) return -1;
    *answers = 0;
    l->answers = answers + 1;
    snprintf(l->prompt, sizeof l->prompt, "%s", prompt + 1);
    l->image = atoi(text);
    l->how = (Choice){.temp = 1, .top_p = 1};
    return sscanf(numbers, "%d %d %d %d %lf %lf", &l->how.beams, &l->how.captions, &l->how.max_new, &l->how.min_new,
                  &l->how.length_penalty, &l->how.repeat_penalty) == 6 ? 0 : -1;
}

// Runs B lines that ask for the same Choice together.
static void run_lines(Tiny *t, const Line *lines, int B) {
    Err e;
    uint8_t *pixels = NULL;
    const size_t bytes = (size_t)t->m.config.S * t->m.config.S * 3;
    int *ids[MAX_B];
    Prompt prompts[MAX_B];
    pixels = malloc(bytes * B);
    for (int b = 0; b < B; b++) {
        memcpy(pixels + b * bytes, t->pixels[lines[b].image], bytes);
        const int n = tokenizer_encode(&ids[b], t->tok, lines[b].prompt, strlen(lines[b].prompt), &e);
        if (n < 0) die(lines[b].prompt, &e);
        prompts[b] = (Prompt){.ids = ids[b], .n = n, .image = b};
    }
    backend_cpu.encode(t->run, pixels, B);
    backend_cpu.prompt(t->run, prompts, B, &lines[0].how);
    for (Step s; backend_cpu.step(t->run, &s);) {}
    for (int b = 0; b < B; b++) free(ids[b]);
    free(pixels);
}

// Compares prompt b's answers with a line. Returns how many tokens they have in all.
static int check_answers(Tally *tally, Tiny *t, const Line *l, int b, const char *what) {
    const char *s = l->answers;
    int total = 0;
    for (int rank = 0; rank < l->how.captions; rank++) {
        const Hypothesis h = backend_cpu.result(t->run, b, rank);
        char finish[8];
        double score;
        int used = 0, n = 0, same = 1;
        if (sscanf(s, "%7s %lf%n", finish, &score, &used) != 2) {
            EXPECT(tally, 0, "%s: cannot read the golden of rank %d", what, rank);
            return total;
        }
        for (s += used; *s == ' '; n++) {
            const int id = (int)strtol(s, (char **)&s, 10);
            if (n >= h.n || h.tokens[n] != id) same = 0;
        }
        EXPECT(tally, same && n == h.n, "%s: image %d, '%s', %d beams: tokens of answer %d differ (%d, expected %d)",
               what, l->image, l->prompt, l->how.beams, rank, h.n, n);
        EXPECT(tally, h.stopped == !strcmp(finish, "stop"), "%s: answer %d ended otherwise", what, rank);
        const double bound = t->m.vit.patch_w.dtype == DT_INT8 ? SCORE_BOUND_INT8 : SCORE_BOUND;
        EXPECT(tally, fabs(h.score - score) <= bound * fmax(1, fabs(score)), "%s: score %.8g, expected %.8g",
               what, h.score, score);
        total += n;
        if (*s == '\t') s++;
    }
    return total;
}

static bool same_choice(const Choice *a, const Choice *b) {
    return a->beams == b->beams && a->captions == b->captions && a->max_new == b->max_new && a->min_new == b->min_new &&
           a->length_penalty == b->length_penalty && a->repeat_penalty == b->repeat_penalty;
}

static void test_answers(Tally *tally, const char *name, int threads) {
    Tiny t, other;
    char path[256], what[64], *text = NULL;
    size_t room = 0;
    tiny_open(&t, name, threads);
    tiny_open(&other, name, 1);   // a second model in the same process changes nothing
    snprintf(path, sizeof path, "test/data/tiny_%s.answers", name);
    FILE *f = fopen(path, "r");
    int lines = 0, tokens = 0, batched = 0;
    Line kept[MAX_B];
    char *kept_text[MAX_B] = {0};
    int n_kept = 0;
    while (f && getline(&text, &room, f) > 0) {
        Line l;
        char *copy = strdup(text);
        if (parse_line(&l, copy)) { EXPECT(tally, 0, "%s: bad line '%s'", path, text); free(copy); continue; }
        lines++;
        snprintf(what, sizeof what, "%s line %d, %d threads", name, lines, threads);
        run_lines(&t, &l, 1);
        tokens += check_answers(tally, &t, &l, 0, what);
        // Lines of one Choice that follow each other run again as a batch: the company must not matter.
        if (n_kept && !same_choice(&kept[0].how, &l.how)) {
            for (int i = 0; i < n_kept; i++) free(kept_text[i]);
            n_kept = 0;
        }
        kept[n_kept] = l;
        kept_text[n_kept++] = copy;
        if (n_kept == MAX_B && l.how.beams * MAX_B <= MAX_ROWS) {
            run_lines(&other, kept, MAX_B);
            for (int b = 0; b < MAX_B; b++) check_answers(tally, &other, &kept[b], b, "batch of three");
            batched++;
        }
        if (n_kept == MAX_B) {
            for (int i = 0; i < n_kept; i++) free(kept_text[i]);
            n_kept = 0;
        }
    }
    for (int i = 0; i < n_kept; i++) free(kept_text[i]);
    if (f) fclose(f);
    free(text);
    EXPECT(tally, lines >= 30, "%s has %d lines only", path, lines);
    EXPECT(tally, batched >= 3, "only %d batches were run", batched);
    EXPECT(tally, tokens > 5 * lines, "answers are too short to show anything: %d tokens in %d lines", tokens, lines);
    printf("%s, %d threads: %d lines, %d tokens, %d batches of three\n", name, threads, lines, tokens, batched);
    tiny_close(&t);
    tiny_close(&other);
}

// Samples depend on seed, sample number and step alone; a longer list begins with the shorter one.
static void test_samples(Tally *tally, const char *name) {
    Tiny t;
    tiny_open(&t, name, 2);
    int first[5][MAX_NEW], n_first[5], moved = 0;
    for (int round = 0; round < 3; round++) {
        Line l = {.image = 1, .how = {.beams = 1, .captions = round == 0 ? 5 : 3, .max_new = 20, .length_penalty = 1,
                                      .repeat_penalty = 1, .sample = true, .temp = 1.5f, .top_p = 0.95f, .top_k = 50,
                                      .seed = round == 2 ? 8 : 7}};
        run_lines(&t, &l, 1);
        for (int i = 0; i < l.how.captions; i++) {
            const Hypothesis h = backend_cpu.result(t.run, 0, i);
            if (round == 0) {
                memcpy(first[i], h.tokens, h.n * sizeof(int));
                n_first[i] = h.n;
            }
            const bool same = h.n == n_first[i] && !memcmp(h.tokens, first[i], h.n * sizeof(int));
            if (round == 1) EXPECT(tally, same, "%s: sample %d is another one when fewer are asked for", name, i);
            if (round == 2) moved += !same;
        }
    }
    EXPECT(tally, moved > 0, "%s: another seed gave the same samples", name);
    tiny_close(&t);
}

// The comparison itself must be able to fail.
static void test_negative(Tally *tally) {
    Tiny t;
    tiny_open(&t, "opt", 1);
    char text[] = "0\t1 1 5 0 1 1\t\tstop -1.0 3 3 3 3 3";
    Line l;
    Tally inner = {0};
    EXPECT(tally, parse_line(&l, text) == 0, "a well-formed line was not understood");
    run_lines(&t, &l, 1);
    fprintf(stderr, "(the next failures are wanted)\n");
    check_answers(&inner, &t, &l, 0, "wanted");
    EXPECT(tally, inner.failed >= 1, "a wrong golden passed");
    tiny_close(&t);
}

int main(void) {
    Tally tally = {0};
    static const char *const names[] = {"opt", "t5", "opt_int8", "t5_int4"};
    const char *slow = getenv("SAN");     // with sanitizers only three threads: what one reads they read too
    for (int i = 0; i < 4; i++) {
        if (!slow || !*slow) test_answers(&tally, names[i], 1);
        test_answers(&tally, names[i], 3);
        if (i < 2) test_samples(&tally, names[i]);
    }
    test_negative(&tally);
    return tally_close(&tally);
}
