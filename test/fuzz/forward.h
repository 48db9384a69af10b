// test/fuzz/forward.h: one answer from an accepted model, for the targets that open weight files.
//
// What the program does with a model (main.c), in small: tokenizer, limits, memory, encode, prompt, steps, results.
// Models whose answer would take long are left alone.
#ifndef FORWARD_H
#define FORWARD_H

#include "../../blip2.h"
#include "../../tokenizer.h"
#include "fuzz.h"

enum { MOST_MEMORY = 64 << 20 };
static const double MOST_WORK = 4e6;   // multiplications

// A guess from above at the work of one row through all layers.
static inline double work_of(const Model *m, const Choice *how, int prompt) {
    const Config *c = &m->config;
    const double N = c->N, T = c->Q + prompt + how->max_new, R = search_rows(how);
    const double vit = c->LV * (N * N * c->DV * 2 + N * (4.0 * c->DV * c->DV + 2.0 * c->DV * c->FV));
    const double qf = c->LQ * ((double)c->Q * (c->Q + N) * c->DQ * 2 +
                               c->Q * (8.0 * c->DQ * c->DQ + 2.0 * c->DQ * c->FQ))
                      + N * c->NX * 2.0 * c->DQ * c->DV;
    const double row = 8.0 * c->IL * c->DL + 3.0 * c->DL * c->FL + 2 * T * c->IL;
    return N * 3.0 * c->P * c->P * c->DV + vit + qf + (T + R * how->max_new) * (row * (c->LD + c->LE))
           + (1 + R * how->max_new) * (double)c->V * c->DL;
}

static inline void forward(const Model *m, Bytes *b) {
    const Config *c = &m->config;
    Err e = {0};
    Tokenizer *t = tokenizer_open(m->tokenizer, m->tokenizer_bytes, c->V, c->image_token, &e);
    CHECK(t || e.text[0]);
    if (!t) return;
    int *ids;
    int n = tokenizer_encode(&ids, t, c->prompt, strlen(c->prompt), &e);
    Choice how = {.sample = take_in(b, 0, 3) == 0, .captions = take_in(b, 1, 3), .max_new = take_in(b, 1, 6),
                  .min_new = take_in(b, 0, 2), .length_penalty = take_in(b, -2, 2), .repeat_penalty = c->repeat_penalty,
                  .temp = c->temp, .top_p = c->top_p, .top_k = c->top_k, .seed = take(b, 1)};
    how.beams = how.sample ? 1 : take_in(b, how.captions, 4);
    if (how.min_new > how.max_new) how.min_new = how.max_new;
    // the limits that main.c keeps (settle)
    const int room = c->family == OPT ? c->positions - c->Q : 1 << 20;
    const bool fits = n >= 1 && n + how.max_new <= room && (how.beams == 1 || 2 * how.beams <= c->V);
    const Limits lim = {.B = 1, .R = search_rows(&how), .prompt = n, .max_new = how.max_new, .threads = 1};
    if (fits && c->S <= 256 && backend_cpu.bytes_needed(m, &lim) <= MOST_MEMORY && work_of(m, &how, n) < MOST_WORK) {
        void *run = backend_cpu.open(m, &lim, &e);
        uint8_t *pixels = malloc((size_t)c->S * (size_t)c->S * 3);
        CHECK(run && pixels);
        for (int i = 0; i < c->S * c->S * 3; i++) pixels[i] = (uint8_t)(i * 37);
        backend_cpu.encode(run, pixels, 1);
        backend_cpu.prompt(run, &(Prompt){.ids = ids, .n = n, .image = 0}, 1, &how);
        int steps = 0;
        for (Step step; backend_cpu.step(run, &step);) CHECK(++steps <= how.max_new);
        for (int i = 0; i < how.captions; i++) {
            const Hypothesis h = backend_cpu.result(run, 0, i);
            Text text = {0};
            CHECK(h.n >= 0 && h.n <= how.max_new && tokenizer_decode(&text, t, h.tokens, h.n, &e) == 0);
            text_free(&text);
        }
        backend_cpu.close(run);
        free(pixels);
    }
    if (n >= 0) free(ids);
    tokenizer_close(t);
}

#endif
