// model_config.c: the hyperparameters of a weight file (see model_parts.h).
//
// In order: the tables of blip2.h as rows, each value in its range, what the values must be to each other, both. Whose
// bytes they are does not matter: nothing that is refused here is used. Not here: the rest of the file (model.c).

#include "model_parts.h"

#include <string.h>

typedef struct { const char *name, *meaning; size_t field; int lo, hi; } IntRow;
typedef struct { const char *name, *meaning; size_t field; float lo, hi; } FloatRow;

#define X(field, lo, hi, meaning) {#field, meaning, offsetof(Config, field), lo, hi},
static const IntRow INTS[] = { CONFIG_INTS(X) };
static const FloatRow FLOATS[] = { CONFIG_FLOATS(X) };
#undef X
_Static_assert(N_INTS == sizeof INTS / sizeof *INTS && N_FLOATS == sizeof FLOATS / sizeof *FLOATS,
               "a change of these tables is a new version of the file format");

// ---------------------------------------------------------------------------------------------------------

// Text of at most n - 1 bytes at p: valid UTF-8, then nothing but NULs.
static int read_text(char *out, const uint8_t *p, size_t n, const char *what, Err *e) {
    const size_t len = strnlen((const char *)p, n);
    if (len == n || !all_zero(p + len, n - len)) return fail(e, "the %s does not end with NUL bytes", what);
    for (size_t i = 0; i < len;) {
        const int step = utf8_next(p + i, len - i, NULL);
        if (step == 0) return fail(e, "the %s is not valid UTF-8 at byte %zu", what, i);
        i += (size_t)step;
    }
    memcpy(out, p, n);
    return 0;
}

static int read_config(Config *c, const uint8_t *file, Err *e) {
    for (int i = 0; i < N_INTS; i++) {
        const IntRow *r = &INTS[i];
        const int v = (int)read_u32(file + INTS_AT + 4 * i);
        if (v < r->lo || v > r->hi)
            return fail(e, "hyperparameter %s is %d, expected %d to %d (%s)", r->name, v, r->lo, r->hi, r->meaning);
        *(int *)((char *)c + r->field) = v;
    }
    for (int i = 0; i < N_FLOATS; i++) {
        const FloatRow *r = &FLOATS[i];
        const uint32_t bits = read_u32(file + FLOATS_AT + 4 * i);
        float v;
        memcpy(&v, &bits, sizeof v);
        if (!(v >= r->lo && v <= r->hi))   // so that NaN fails too
            return fail(e, "hyperparameter %s is %g, expected %g to %g%s%s", r->name, (double)v, (double)r->lo,
                        (double)r->hi, *r->meaning ? ": " : "", r->meaning);
        *(float *)((char *)c + r->field) = v;
    }
    if (read_text(c->type, file + TYPE_AT, TYPE_BYTES, "model type", e)) return -1;
    for (const char *s = c->type; *s; s++)   // it is printed, and must not steer the terminal
        if ((unsigned char)*s < ' ' || *s == 0x7F) return fail(e, "the model type has a control character in it");
    return read_text(c->prompt, file + PROMPT_AT, PROMPT_BYTES, "default prompt", e);
}

// An id that must be a row of the token embedding, or -1 where the tables allow that.
static int check_id(const char *name, int id, int V, Err *e) {
    return id < V ? 0 : fail(e, "hyperparameter %s is %d, but the vocabulary V has %d rows", name, id, V);
}

// What the hyperparameters must be to each other; fills in the derived ones.
static int check_config(Config *c, Err *e) {
    if (c->DV % c->HV) return fail(e, "ViT width DV %d is no multiple of its %d heads HV", c->DV, c->HV);
    if (c->DQ % c->HQ) return fail(e, "Q-Former width DQ %d is no multiple of its %d heads HQ", c->DQ, c->HQ);
    if (c->S < c->P) return fail(e, "images of side S %d are smaller than a patch P %d", c->S, c->P);
    const int64_t side = c->S / c->P, N = 1 + side * side, IL = (int64_t)c->HL * c->AL;
    if (N > MAX_N)
        return fail(e, "S %d and P %d make %lld image tokens, more than %d", c->S, c->P, (long long)N, MAX_N);
    if (IL > MAX_IL)
        return fail(e, "HL %d heads of AL %d make a width of %lld, more than %d", c->HL, c->AL, (long long)IL, MAX_IL);
    c->N = (int)N;
    c->IL = (int)IL;
    c->NX = (c->LQ + c->XQ - 1) / c->XQ;
    if (check_id("image_token", c->image_token, c->V, e) || check_id("bos", c->bos, c->V, e) ||
        check_id("eos", c->eos, c->V, e) || check_id("pad", c->pad, c->V, e) || check_id("start", c->start, c->V, e))
        return -1;
    if (c->min_new > c->max_new)
        return fail(e, "default minimum of new tokens %d is above the default limit %d", c->min_new, c->max_new);
    if (c->family == OPT) {
        if (c->LE || c->buckets || c->max_distance || c->start != -1)
            return fail(e, "OPT has no encoder, buckets or start token, but LE is %d, buckets %d, max_distance %d, "
                        "start %d, expected 0, 0, 0, -1", c->LE, c->buckets, c->max_distance, c->start);
        if (c->positions <= c->Q)
            return fail(e, "OPT's %d positions leave no room behind %d image tokens", c->positions, c->Q);
        return 0;
    }
    if (c->LE < 1) return fail(e, "T5 needs encoder blocks, but LE is 0");
    if (c->positions) return fail(e, "T5 has no position table, but positions is %d, expected 0", c->positions);
    if (c->start < 0) return fail(e, "T5 needs a start token, but start is -1");
    // The encoder halves the buckets for the sign and both stacks halve them again for the exact distances, beyond
    // which distances are logarithmic up to max_distance (T5Attention._relative_position_bucket).
    if (c->buckets < 4 || c->buckets % 2)
        return fail(e, "T5's relative position buckets are %d, expected an even number from 4", c->buckets);
    if (c->max_distance <= c->buckets / 2)
        return fail(e, "T5's max_distance is %d, expected more than half of its %d buckets", c->max_distance,
                    c->buckets);
    return 0;
}

int model_config(Config *c, const uint8_t *file, Err *e) {
    return read_config(c, file, e) || check_config(c, e) ? -1 : 0;
}
