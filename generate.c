// generate.c: the choice of the next token, see generate.h.
//
// In order: the Search's one block of memory; greedy and sampled rows; beam search; a step; the Search of
// a device; results.
//
// What was chosen is kept as a trellis. Beams copy no text: each entry points to the row that it continues.
//
//     step    0         1         2           R rows across, one line per step:
//     row 0   a ------- man       rides         token[t][r], logprob[t][r]
//     row 1   the      \ cat ---- sits          parent[t][r] = row of step t-1
//     row 2   two ----- dogs    \ sleeps
//
// A finished hypothesis is its last token and the row of the step before; search_result walks back from there.
// Not here: what is done to logits before (generate_process.c), threads, text, the model.

#include "generate_parts.h"

#include <math.h>
#include <string.h>

// ---------------------------------------------------------------------------------------------------------
// Memory: all arrays lie behind the Search in one block, each from a 64-byte line on.

typedef struct { uint8_t *base; uint64_t used; bool fits; } Block;

static void *carve(Block *m, uint64_t count, uint64_t size) {
    uint64_t bytes, end;
    m->fits = m->fits && mul_ok(&bytes, count, size) && add_ok(&end, m->used, bytes) && add_ok(&end, end, 63);
    if (!m->fits) return NULL;
    void *p = m->base ? m->base + m->used : NULL;
    m->used = end & ~(uint64_t)63;
    return p;
}

static uint64_t lay_out(Search *s, uint8_t *base, int B, int R, int max_new, int V) {
    CHECK(B >= 1 && R >= B && max_new >= 1 && V >= 2);
    Block m = {.base = base, .fits = true};
    const uint64_t b = (uint64_t)B, r = (uint64_t)R, v = (uint64_t)V;
    const uint64_t cells = r * (uint64_t)max_new;     // below 2^62
    carve(&m, 1, sizeof *s);
    s->ended = carve(&m, r, sizeof *s->ended);
    s->sum = carve(&m, r, sizeof *s->sum);
    s->score = carve(&m, r, sizeof *s->score);
    s->pool = carve(&m, r, sizeof *s->pool);
    s->in_pool = carve(&m, b, sizeof *s->in_pool);
    s->open = carve(&m, b, sizeof *s->open);
    s->broken = carve(&m, b, sizeof *s->broken);
    s->now_token = carve(&m, r, sizeof *s->now_token);
    s->now_parent = carve(&m, r, sizeof *s->now_parent);
    s->now_logprob = carve(&m, r, sizeof *s->now_logprob);
    s->seen = carve(&m, b * ((v + 63) / 64), sizeof *s->seen);
    s->seen_ids = carve(&m, b, sizeof *s->seen_ids);
    s->n_seen = carve(&m, b, sizeof *s->n_seen);
    s->divisor = carve(&m, (uint64_t)max_new, sizeof *s->divisor);
    s->token = carve(&m, cells, sizeof *s->token);
    s->parent = carve(&m, cells, sizeof *s->parent);
    s->logprob = carve(&m, cells, sizeof *s->logprob);
    s->past = carve(&m, (uint64_t)max_new, sizeof *s->past);
    s->best = carve(&m, 2 * r, sizeof *s->best);
    s->values = carve(&m, v, sizeof *s->values);
    s->probs = carve(&m, v, sizeof *s->probs);
    s->scratch = carve(&m, v, sizeof *s->scratch);
    s->out_token = carve(&m, cells, sizeof *s->out_token);
    s->out_logprob = carve(&m, cells, sizeof *s->out_logprob);
    return m.fits ? m.used : UINT64_MAX;
}

int search_rows(const Choice *how) { return how->sample ? how->captions : how->beams; }

uint64_t search_bytes(int B, int R, int max_new, int V) {
    Search s;
    return lay_out(&s, NULL, B, R, max_new, V);
}

Search *search_init(void *mem, int B, int R, int max_new, int V, int eos, int pad) {
    CHECK(mem && (uintptr_t)mem % 64 == 0);
    Search *s = mem;
    *s = (Search){.max_B = B, .max_R = R, .max_max_new = max_new, .V = V, .eos = eos, .pad = pad};
    CHECK(lay_out(s, mem, B, R, max_new, V) != UINT64_MAX);
    return s;
}

void search_begin(Search *s, const Choice *how, const int *const *seen, const int *n_seen, int B) {
    const int K = search_rows(how);
    CHECK(B >= 1 && B <= s->max_B && K >= 1 && K <= s->max_R / B);
    CHECK(how->max_new >= 1 && how->max_new <= s->max_max_new);
    CHECK(how->sample ? how->beams == 1 : how->captions <= how->beams);
    CHECK(how->repeat_penalty > 0 && how->temp > 0 && how->top_p >= 0 && how->top_k >= 0 && how->no_repeat_ngram >= 0);
    s->how = *how;
    s->B = B;
    s->K = K;
    s->t = 0;
    s->more = true;
    const size_t words = ((size_t)s->V + 63) / 64;
    memset(s->seen, 0, (size_t)B * words * sizeof *s->seen);
    for (int b = 0; b < B; b++) {
        for (int i = 0; i < n_seen[b]; i++) {
            const int id = seen[b][i];
            if (id >= 0 && id < s->V) s->seen[(size_t)b * words + (size_t)id / 64] |= UINT64_C(1) << (id % 64);
        }
        s->seen_ids[b] = seen[b];
        s->n_seen[b] = n_seen[b];
        s->open[b] = 1;
        s->broken[b] = 0;
        s->in_pool[b] = how->beams > 1 ? 0 : K;
    }
    for (int t = 0; t < how->max_new; t++) s->divisor[t] = (float)pow((double)(t + 1), how->length_penalty);
    for (int r = 0; r < B * K; r++) {
        s->ended[r] = 0;
        s->sum[r] = 0;
        // All beams of a prompt start equal. Only the first one counts, or each answer would come K times. (In
        // transformers the others start at -1e9, and copies come up when a small vocabulary leaves nothing else.)
        s->score[r] = r % K == 0 ? 0.0f : -INFINITY;
        s->pool[r] = (Finished){.score = -1e9};
    }
}

// ---------------------------------------------------------------------------------------------------------
// Rows.

// Greedy and sampling, _sample: the K rows of prompt b go their own ways. logits (V) of the first one, `stride` floats
// from one to the next.
static void step_rows(Search *s, const float *logits, size_t stride, int b) {
    const Choice *how = &s->how;
    bool open = false;
    for (int k = 0; k < s->K; k++) {
        const int r = b * s->K + k;
        if (s->ended[r]) {
            put_ended(s, r);
            continue;
        }
        const float *x = logits + (size_t)k * stride;
        const Norm z = search_process(s, x, b, r);
        int token = 0;
        if (how->sample) {
            search_filter(s->probs, s->scratch, s->values, how, s->V);
            token = search_pick(s->probs, search_uniform(how->seed, how->first + (uint64_t)k, (uint64_t)s->t), s->V);
        } else {
            const float max = search_top(s->values, s->V);         // torch.argmax: the first of the largest
            while (s->values[token] != max) token++;
        }
        settle_row(s, r, token, log_softmax(x[token], z));
        open = open || !s->ended[r];
    }
    s->open[b] = open;
}

// ---------------------------------------------------------------------------------------------------------
// Beam search: _beam_search with early_stopping False. Scores are f32 as torch's, so that comparisons fall the same
// way; among equals the first beam and the smallest id win (torch.topk promises nothing there).

// Puts values (V) of prompt b's beam k, whose sum so far is `score`, among the best. Returns how many those are, at
// most 2K.
static int gather(Search *s, int n, int b, int k, float score) {
    const int most = 2 * s->K, skip = 64;
    Candidate *best = s->best + (size_t)b * most;
    for (int i = 0; i < s->V; i += skip) {
        const int end = s->V - i < skip ? s->V : i + skip;
        // Adding is monotonic even when it rounds, so that the largest of a block speaks for all.
        if (n == most && !(search_top(s->values + i, end - i) + score > best[n - 1].value)) continue;
        for (int v = i; v < end; v++) {
            const Candidate c = {.value = s->values[v] + score, .logprob = s->values[v], .k = k, .token = v};
            if (!(c.value > (n < most ? -INFINITY : best[n - 1].value))) continue;
            int at = n < most ? n++ : n - 1;
            for (; at > 0 && best[at - 1].value < c.value; at--) best[at] = best[at - 1];
            best[at] = c;
        }
    }
    return n;
}

static void step_beams(Search *s, const float *logits, size_t stride, int b) {
    const int K = s->K, row0 = b * K;
    int n = 0;
    for (int k = 0; k < K; k++) {
        if (s->score[row0 + k] == -INFINITY) continue;
        search_process(s, logits + (size_t)k * stride, b, row0 + k);
        n = gather(s, n, b, k, s->score[row0 + k]);
    }
    settle_beams(s, b, n);
}

// ---------------------------------------------------------------------------------------------------------

static void describe(Search *s, Step *out) {
    const size_t line = (size_t)s->t * s->max_R;
    *out = (Step){.R = s->B * s->K, .token = s->token + line, .parent = s->parent + line,
                  .logprob = s->logprob + line, .ended = s->ended, .more = s->more};
    s->t++;
}

bool search_step(Search *s, Step *out, const float *logits) {
    if (!s->more) return false;
    // logits (B,V) at first: no stride between the rows of a prompt; (R,V) later
    const size_t stride = s->t > 0 ? (size_t)s->V : 0;
    s->more = false;
    for (int b = 0; b < s->B; b++) {
        const float *x = logits + (size_t)b * (s->t > 0 ? (size_t)s->K : 1) * (size_t)s->V;
        if (!s->open[b])
            for (int k = 0; k < s->K; k++) put_ended(s, b * s->K + k);
        else if (s->how.beams > 1)
            step_beams(s, x, stride, b);
        else
            step_rows(s, x, stride, b);
        s->more = s->more || s->open[b];
    }
    describe(s, out);
    return true;
}

// ---------------------------------------------------------------------------------------------------------
// The same Search on a device.

size_t search_export_bytes(const Search *s) { return (size_t)((const uint8_t *)s->token - (const uint8_t *)s); }
size_t search_state_at(const Search *s) { return (size_t)((const uint8_t *)s->ended - (const uint8_t *)s); }
size_t search_state_bytes(const Search *s) { return (size_t)((const uint8_t *)s->seen - (const uint8_t *)s->ended); }

void search_export(void *to, const Search *s, void *base, const int *const *seen) {
    Search there = *s;
    CHECK(lay_out(&there, base, s->max_B, s->max_R, s->max_max_new, s->V) != UINT64_MAX);
    memcpy(to, s, search_export_bytes(s));
    memcpy(to, &there, sizeof there);
    uint8_t *ids = (uint8_t *)to + ((const uint8_t *)s->seen_ids - (const uint8_t *)s);
    memcpy(ids, seen, (size_t)s->B * sizeof *seen);
}

void search_take(Search *s, Step *out, const void *state) {
    const size_t row = (size_t)s->t * s->max_R, n = (size_t)s->B * s->K;
    CHECK(s->more && s->t < s->how.max_new);
    memcpy(s->ended, state, search_state_bytes(s));
    memcpy(s->token + row, s->now_token, n * sizeof *s->token);
    memcpy(s->parent + row, s->now_parent, n * sizeof *s->parent);
    memcpy(s->logprob + row, s->now_logprob, n * sizeof *s->logprob);
    s->more = false;
    for (int b = 0; b < s->B; b++) s->more = s->more || s->open[b];
    describe(s, out);
}

// ---------------------------------------------------------------------------------------------------------

// What a greedy or sampled row has when it is looked at before its end.
static Finished so_far(const Search *s, int r) {
    if (s->t == 0) return (Finished){.score = -1e9};
    const size_t cell = (size_t)(s->t - 1) * s->max_R + r;
    return (Finished){.score = s->sum[r], .n = s->t, .row = r, .token = s->token[cell], .logprob = s->logprob[cell]};
}

Hypothesis search_result(const Search *s, int b, int rank) {
    CHECK(b >= 0 && b < s->B && rank >= 0 && rank < s->K);
    const size_t at = (size_t)b * s->K + rank;
    const Finished part = so_far(s, (int)at), *f = s->how.beams == 1 && !s->ended[at] ? &part : &s->pool[at];
    int *token = s->out_token + at * s->max_max_new;
    float *logprob = s->out_logprob + at * s->max_max_new;
    Hypothesis h = {.tokens = token, .logprobs = logprob, .score = -1e9, .broken = s->broken[b]};
    if (f->n == 0) return h;
    token[f->n - 1] = f->token;
    logprob[f->n - 1] = f->logprob;
    for (int t = f->n - 2, r = f->row; t >= 0; t--) {
        const size_t cell = (size_t)t * s->max_R + r;
        token[t] = s->token[cell];
        logprob[t] = s->logprob[cell];
        r = s->parent[cell];
    }
    h.n = f->n - f->stopped;
    h.score = f->score;
    h.stopped = f->stopped;
    return h;
}
