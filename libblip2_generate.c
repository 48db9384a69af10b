// libblip2_generate.c: from a prompt to answers, the second half of the library, see libblip2.h.
//
// In order: defaults and checks of the options; the text of an answer as it grows, with stop texts; one pass of the
// model over a prompt and its answers; distinct samples; blip2_generate. Not here: how tokens are chosen (generate.h).

#include "libblip2_parts.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { MOST_ROUNDS = 16 };    // of `captions` samples each, to find distinct ones

// ---------------------------------------------------------------------------------------------------------
// Options.

// A default of 0.9 in the file is the f32 next to it; seven digits give the decimal number back that was meant.
static double decimal(float x) {
    char digits[32];
    snprintf(digits, sizeof digits, "%.7g", (double)x);
    return strtod(digits, NULL);
}

void blip2_defaults(const blip2 *b, blip2_options *o, size_t size) {
    const Config *c = &b->model.config;
    const blip2_options all = {
        .size = size, .beams = c->beams, .captions = 1, .max_new = b->lim.max_new,
        .min_new = c->min_new < b->lim.max_new ? c->min_new : b->lim.max_new, .top_k = c->top_k,
        .length_penalty = decimal(c->length_penalty), .repeat_penalty = decimal(c->repeat_penalty),
        .temp = decimal(c->temp), .top_p = decimal(c->top_p),
    };
    memset(o, 0, size);
    memcpy(o, &all, size < sizeof all ? size : sizeof all);
}

void blip2_vqa(const blip2 *b, blip2_options *o) {
    o->max_new = b->lim.max_new < 10 ? b->lim.max_new : 10;
    o->min_new = o->min_new < o->max_new ? o->min_new : o->max_new;
    o->length_penalty = b->model.config.family == OPT ? 0 : -1;
}

// *o <- the caller's options, of whatever version, or the defaults
static int take_options(blip2_options *o, const blip2 *b, const blip2_options *from, Err *e) {
    blip2_defaults(b, o, sizeof *o);
    if (!from) return 0;
    if (from->size < offsetof(blip2_options, stops) || from->size > 4096)
        return fail(e, "options: size is %zu; hint: blip2_defaults(b, &o, sizeof o) sets it", from->size);
    memcpy(o, from, from->size < sizeof *o ? from->size : sizeof *o);
    return 0;
}

static int check_stops(const blip2_options *o, Err *e) {
    if (o->n_stops < 0 || o->n_stops > BLIP2_MAX_STOPS || (o->n_stops && !o->stops))
        return fail(e, "--stop: %d texts, expected 0 to %d", o->n_stops, BLIP2_MAX_STOPS);
    for (int i = 0; i < o->n_stops; i++) {
        const char *text = o->stops[i];
        if (!text || !*text) return fail(e, "--stop needs a text");
        for (int len; *text; text += len)
            if (!(len = utf8_next((const uint8_t *)text, strlen(text), NULL)))
                return fail(e, "--stop %d: the text is not UTF-8", i + 1);
    }
    return 0;
}

static int check_options(const blip2 *b, const blip2_options *o, Err *e) {
    const int V = b->model.config.V, rows = o->sample ? o->captions : o->beams;
    if (o->beams < 1 || o->captions < 1) return fail(e, "%d beams, %d captions: at least 1", o->beams, o->captions);
    if (o->sample && o->beams != 1) return fail(e, "--nucleus samples and cannot go with -b %d", o->beams);
    if (!o->sample && o->distinct) return fail(e, "--distinct is for samples; hint: add --nucleus");
    if (!o->sample && o->captions > o->beams)
        return fail(e, "-c %d: %d beam%s give%s at most %d; hint: raise -b, or sample with --nucleus", o->captions,
                    o->beams, o->beams > 1 ? "s" : "", o->beams > 1 ? "" : "s", o->beams);
    if (o->beams > 1 && 2 * (int64_t)o->beams > V)
        return fail(e, "-b %d: a vocabulary of %d allows at most %d beams", o->beams, V, V / 2);
    if (o->max_new < 1 || o->max_new > b->lim.max_new)
        return fail(e, "-n %d: expected 1 to the %d that settings.max_new stands for", o->max_new, b->lim.max_new);
    if (o->min_new < 0 || o->min_new > o->max_new)
        return fail(e, "--min-tokens %d is more than -n %d", o->min_new, o->max_new);
    if (rows > b->lim.R)
        return fail(e, "%d rows, but settings.rows stands for %d", rows, b->lim.R);
    if (o->top_k < 0 || o->no_repeat_ngram < 0 || !isfinite(o->length_penalty) || fabs(o->length_penalty) > 100 ||
        !(o->repeat_penalty >= 1e-3 && o->repeat_penalty <= 1e3) || !(o->temp >= 1e-3 && o->temp <= 1e3) ||
        !(o->top_p > 0 && o->top_p <= 1))
        return fail(e, "--top-k %d, --no-repeat-ngram %d, --length-penalty %g, --repeat-penalty %g, --temp %g or "
                       "--top-p %g is out of range", o->top_k, o->no_repeat_ngram, o->length_penalty,
                    o->repeat_penalty, o->temp, o->top_p);
    return check_stops(o, e);
}

int blip2_check(const blip2 *b, const blip2_options *options, blip2_error *out) {
    Err e;
    blip2_options o;
    return take_options(&o, b, options, &e) || check_options(b, &o, &e) ? failed(out, BLIP2_BAD_USAGE, &e) : BLIP2_OK;
}

// ---------------------------------------------------------------------------------------------------------
// The text of an answer, token by token. What may still go is held back, so that what was handed out stays true: white
// space at the end (the answer has none around it) and what may be the beginning of a stop text.

typedef struct {
    const Tokenizer *tokenizer;
    const blip2_options *o;
    Stream stream;
    Text all;            // not stripped; ends before a stop text
    size_t shown;        // bytes of it that are done with
    bool stopped;        // a stop text was found
} Growing;

// Bytes of white space at p as Python's str.strip knows it, 0 when there is none.
static size_t space_at(const char *p, size_t n) {
    uint32_t cp;
    const int len = utf8_next((const uint8_t *)p, n, &cp);
    const bool space = (cp >= 9 && cp <= 13) || (cp >= 0x1C && cp <= 0x20) || cp == 0x85 || cp == 0xA0 ||
                       cp == 0x1680 || (cp >= 0x2000 && cp <= 0x200A) || cp == 0x2028 || cp == 0x2029 ||
                       cp == 0x202F || cp == 0x205F || cp == 0x3000;
    return len && space ? (size_t)len : 0;
}

static void strip(const char **text, size_t *n) {
    for (size_t len; *n && (len = space_at(*text, *n)); *text += len, *n -= len) {}
    for (size_t len; *n; *n -= len) {
        for (len = 1; len < *n && len < 4 && ((*text)[*n - len] & 0xC0) == 0x80; len++) {}
        if (!space_at(*text + *n - len, len)) break;
    }
}

// The next token, or -1 at the end.
static int grow(Growing *g, int id, Err *e) {
    const size_t was = g->all.len;
    if (g->stopped) return 0;
    if (tokenizer_stream(&g->all, &g->stream, g->tokenizer, id, e)) return -1;
    size_t cut = g->all.len;
    for (int i = 0; i < g->o->n_stops; i++) {
        const size_t n = strlen(g->o->stops[i]), from = was > n ? was - n : 0;
        const char *found = memmem(g->all.data + from, g->all.len - from, g->o->stops[i], n);
        if (found && (size_t)(found - g->all.data) < cut) cut = (size_t)(found - g->all.data);
    }
    g->stopped = cut < g->all.len;
    g->all.len = cut;
    g->all.data[cut] = 0;
    return 0;
}

// What the text grew by since the last call and will stay; at the end, all of it.
static void grown(const char **text, size_t *n, Growing *g, bool end) {
    size_t safe = g->all.len;
    for (int i = 0; i < g->o->n_stops && !end && !g->stopped; i++) {
        const char *stop = g->o->stops[i];
        const size_t len = strlen(stop), most = len - 1 < g->all.len ? len - 1 : g->all.len;
        for (size_t k = most; k > 0; k--)
            if (!memcmp(g->all.data + g->all.len - k, stop, k)) {
                if (g->all.len - k < safe) safe = g->all.len - k;
                break;
            }
    }
    *text = g->all.data;
    *n = safe;
    strip(text, n);
    const size_t to = (size_t)(*text - g->all.data) + *n;
    if (g->shown > 0 || !*n) *text = g->all.data + g->shown;      // white space in front is left out once
    *n = *n && to > g->shown ? to - (size_t)(*text - g->all.data) : 0;
    if (*n) g->shown = to;
}

static void grown_free(Growing *g) { text_free(&g->all); }

// The answer that h stands for: text, tokens up to a stop text, log-probabilities, how it ended.
static int make_answer(blip2_answer *a, Growing *g, const Hypothesis *h, const blip2 *b, const blip2_options *o,
                       Err *e) {
    *g = (Growing){.tokenizer = b->tokenizer, .o = o};
    if (h->broken)
        return fail(e, "the model's output is not finite; hint: --verify tells whether %s is damaged", b->path);
    int n = 0;
    while (n < h->n && !g->stopped) if (grow(g, h->tokens[n++], e)) return -1;
    if (grow(g, -1, e)) return -1;
    *a = (blip2_answer){
        .text = g->all.data, .n_text = g->all.len, .tokens = h->tokens, .n_tokens = n, .logprobs = h->logprobs,
        .end_logprob = NAN, .score = h->score,
        .finish = g->stopped ? BLIP2_FINISH_STOP : h->stopped ? BLIP2_FINISH_END : BLIP2_FINISH_LENGTH,
    };
    strip(&a->text, &a->n_text);
    if (a->finish == BLIP2_FINISH_END) a->end_logprob = h->logprobs[h->n];
    if (a->finish == BLIP2_FINISH_STOP && o->beams == 1) {
        a->score = 0;
        for (int i = 0; i < n; i++) a->score += (double)h->logprobs[i];
    }
    return 0;
}

// ---------------------------------------------------------------------------------------------------------
// Passes. Texts of distinct samples are remembered one behind the other, each behind its length.

typedef struct {
    blip2 *b;
    const blip2_options *o;
    const int *ids;      // (n_ids) of the prompt
    int n_ids;
    blip2_callback *callback;
    void *arg;
    int answers;         // handed out so far
    Text seen;
} Job;

static bool seen_before(Job *j, const char *text, size_t n) {
    if (j->seen.failed) return false;   // the last one may be there in half; run_prompt reports it
    for (size_t at = 0, len; at < j->seen.len; at += sizeof len + len) {
        memcpy(&len, j->seen.data + at, sizeof len);
        if (len == n && !memcmp(j->seen.data + at + sizeof len, text, n)) return true;
    }
    text_add(&j->seen, (const char *)&n, sizeof n);
    text_add(&j->seen, text, n);
    return false;
}

static int tell(const Job *j, const blip2_event *event, Err *e) {
    if (!j->callback || !j->callback(j->arg, event)) return BLIP2_OK;
    fail(e, "stopped");
    return BLIP2_STOPPED;
}

// Steps until all rows have ended. An only row's text is handed out as it grows, and ends it at a stop text.
static int run_steps(Job *j, int rows, Growing *g, Err *e) {
    const int eos = j->b->model.config.eos;
    Step step;
    for (int n = 0; j->b->backend->step(j->b->device, &step); n++) {
        blip2_event event = {.rows = rows, .step = n, .text = ""};
        if (rows == 1 && j->o->beams == 1) {
            const bool ended = step.ended[0] && step.token[0] == eos;
            if (!ended && grow(g, step.token[0], e)) return BLIP2_BAD_INPUT;
            const bool last = !step.more || g->stopped;
            if (last && grow(g, -1, e)) return BLIP2_BAD_INPUT;
            grown(&event.text, &event.n_text, g, last);
        }
        const int code = tell(j, &event, e);
        if (code) return code;
        if (g->stopped) break;
    }
    return BLIP2_OK;
}

// The prompt once, with the samples from number `first` on.
static int run_pass(Job *j, uint64_t first, Err *e) {
    const blip2_options *o = j->o;
    const Choice how = {
        .beams = o->beams, .captions = o->captions, .max_new = o->max_new, .min_new = o->min_new,
        .length_penalty = o->length_penalty, .repeat_penalty = o->repeat_penalty,
        .no_repeat_ngram = o->no_repeat_ngram, .sample = o->sample != 0, .temp = o->temp, .top_p = o->top_p,
        .top_k = o->top_k, .seed = o->seed, .first = first,
    };
    const Backend *backend = j->b->backend;
    backend->prompt(j->b->device, &(Prompt){.ids = j->ids, .n = j->n_ids, .image = 0}, 1, &how);
    Growing g = {.tokenizer = j->b->tokenizer, .o = o};
    int code = run_steps(j, search_rows(&how), &g, e);
    grown_free(&g);
    for (int i = 0; i < o->captions && j->answers < o->captions && !code; i++) {
        const Hypothesis h = backend->result(j->b->device, 0, i);
        blip2_answer a;
        if (make_answer(&a, &g, &h, j->b, o, e)) code = BLIP2_BAD_INPUT;
        else if (!o->distinct || !seen_before(j, a.text, a.n_text)) {
            a.number = j->answers++;
            code = tell(j, &(blip2_event){.rows = search_rows(&how), .text = "", .answer = &a}, e);
        }
        grown_free(&g);
    }
    return code;
}

static int run_prompt(Job *j, Err *e) {
    const blip2_options *o = j->o;
    int code = BLIP2_OK, round = 0;
    do code = run_pass(j, (uint64_t)round++ * (uint64_t)o->captions, e);
    while (!code && o->distinct && j->answers < o->captions && round < MOST_ROUNDS);
    if (!code && text_check(&j->seen, e)) code = BLIP2_BAD_MODEL;
    if (!code && j->answers < o->captions)
        snprintf(j->b->warning, sizeof j->b->warning, "only %d of %d samples are distinct after %d tries; hint: raise "
                 "--temp or --top-p", j->answers, o->captions, round * o->captions);
    text_free(&j->seen);
    return code;
}

int blip2_generate(blip2 *b, const char *prompt, const blip2_options *options, blip2_callback *callback, void *arg,
                   blip2_error *out) {
    Err e;
    blip2_options o;
    b->warning[0] = 0;
    if (take_options(&o, b, options, &e) || check_options(b, &o, &e)) return failed(out, BLIP2_BAD_USAGE, &e);
    if (!b->encoded) {
        fail(&e, "there is no image yet; hint: blip2_encode comes first");
        return failed(out, BLIP2_BAD_USAGE, &e);
    }
    if (!prompt) prompt = b->model.config.prompt;
    int *ids, code = BLIP2_BAD_INPUT;
    const int n = tokenizer_encode(&ids, b->tokenizer, prompt, strlen(prompt), &e);
    if (n < 0) fail_in(&e, "prompt");
    else if (n < 1) fail(&e, "the prompt has no tokens");
    else if (n > b->ctx - o.max_new)
        fail(&e, "the prompt has %d tokens, which with -n %d is more than the context of %d; hint: shorten it, "
                 "lower -n or raise --ctx", n, o.max_new, b->ctx);
    else {
        Job job = {.b = b, .o = &o, .ids = ids, .n_ids = n, .callback = callback, .arg = arg};
        code = run_prompt(&job, &e);
    }
    free(ids);
    return code ? failed(out, code, &e) : BLIP2_OK;
}
