// generate_process.c: what is done to logits before a token is chosen, see generate.h.
//
// In order: log-softmax; the processors (repetition penalty, repeated n-grams, minimum length); sampling (temperature,
// top-k, top-p, the pick, the uniform). Not here: rows and beams (generate.c).

#include "generate_parts.h"

#include <float.h>
#include <math.h>
#include <string.h>

// ---------------------------------------------------------------------------------------------------------
// Log-softmax

// x (n) -> out (n) = exp(x - max) for x <= max, 0 where that is below e^-87.7. Plain arithmetic, so that compilers
// vectorise it, which they do not do with expf; gcc only when the clamp has a loop of its own.
// x = n ln 2 + r, |r| <= ln 2 / 2; exp(r) by its series, 2^n by the exponent bits.
static void exp_minus(float *out, const float *x, float max, int n) {
    for (int i = 0; i < n; i++) {
        const float y = x[i] - max;
        out[i] = y > -88.0f ? y : -88.0f;
    }
    for (int i = 0; i < n; i++) {
        const float magic = 12582912.0f;                    // 1.5 * 2^23: adding it rounds to an integer
        const float y = out[i], k = (y * 1.44269504f + magic) - magic;      // -127..0
        const float r = (y - k * 0.693359375f) + k * 2.12194440e-4f;
        float p = 1.0f / 5040;
        p = p * r + 1.0f / 720;
        p = p * r + 1.0f / 120;
        p = p * r + 1.0f / 24;
        p = p * r + 1.0f / 6;
        p = p * r + 0.5f;
        p = p * r + 1.0f;
        p = p * r + 1.0f;
        const union { int32_t i; float f; } power = {.i = ((int32_t)k + 127) * (1 << 23)};  // 2^k; 0 for k = -127
        out[i] = p * power.f;
    }
}

float search_top(const float *x, int n) {
    float lane[16];                                         // as many as compilers need to vectorise
    for (int j = 0; j < 16; j++) lane[j] = -INFINITY;
    int i = 0;
    for (; i + 16 <= n; i += 16)
        for (int j = 0; j < 16; j++) lane[j] = x[i + j] > lane[j] ? x[i + j] : lane[j];
    for (; i < n; i++) lane[0] = x[i] > lane[0] ? x[i] : lane[0];
    for (int j = 1; j < 16; j++) lane[0] = lane[j] > lane[0] ? lane[j] : lane[0];
    return lane[0];
}

// Blocks in f32, their sums in double: the error does not grow with n, and no compiler adds in an order of its own.
static double sum(const float *x, int n) {
    double total = 0;
    for (int i = 0; i < n; i += 512) {
        const int end = n - i < 512 ? n : i + 512;
        float lane[16] = {0};
        int j = i;
        for (; j + 16 <= end; j += 16)
            for (int k = 0; k < 16; k++) lane[k] += x[j + k];
        for (; j < end; j++) lane[0] += x[j];
        for (int k = 0; k < 16; k++) total += (double)lane[k];
    }
    return total;
}

// logits (V) -> values (V) without NaN and +Inf; *broken is set when there were any. scratch (V)
static Norm clean_copy(float *values, float *scratch, int *broken, const float *logits, int V) {
    int bad = 0;
    for (int v = 0; v < V; v++) {
        bad += !(logits[v] < INFINITY);
        values[v] = clean(logits[v]);
    }
    if (bad) *broken = 1;
    const float max = search_top(values, V);
    if (max == -INFINITY) return (Norm){0, 0};              // nothing to choose from; all stays -Inf
    exp_minus(scratch, values, max, V);
    return (Norm){max, (float)log(sum(scratch, V))};
}

// ---------------------------------------------------------------------------------------------------------
// Processors. Greedy and sampled rows apply them to logits, beams to log-probabilities (transformers does so too).

// RepetitionPenaltyLogitsProcessor for one id, from the unchanged logit: twice is as good as once.
static void penalise(Search *s, int id, const float *logits, const Norm *z) {
    const float p = (float)s->how.repeat_penalty;
    const float x = z ? log_softmax(logits[id], *z) : clean(logits[id]);
    const float y = x < 0 ? x * p : x / p;
    s->values[id] = y < FLT_MAX ? y : FLT_MAX;
}

// NoRepeatNGramLogitsProcessor: with size n, no token that would end an n-gram that the row has already, the ids before
// the first new token included. A row shorter than n - 1 has none yet; n = 1 forbids all that were there.
static void forbid_repeats(Search *s, int b, int r) {
    const int n = s->how.no_repeat_ngram, t = s->t, n_seen = s->n_seen[b], len = n_seen + t;
    const int *seen = s->seen_ids[b];
    for (int i = t - 1, row = r; i >= 0; i--) {
        s->past[i] = s->token[(size_t)i * s->max_R + row];
        row = s->parent[(size_t)i * s->max_R + row];
    }
    for (int i = 0; i + n <= len; i++) {
        bool same = true;
        for (int j = n - 2; j >= 0 && same; j--) {
            const int x = i + j, y = len - n + 1 + j;
            same = (x < n_seen ? seen[x] : s->past[x - n_seen]) == (y < n_seen ? seen[y] : s->past[y - n_seen]);
        }
        const int last = i + n - 1, id = last < n_seen ? seen[last] : s->past[last - n_seen];
        if (same && id >= 0 && id < s->V) s->values[id] = -INFINITY;
    }
}

Norm search_process(Search *s, const float *logits, int b, int r) {
    const int V = s->V, t = s->t;
    const Norm z = clean_copy(s->values, s->scratch, &s->broken[b], logits, V);
    const bool beams = s->how.beams > 1;
    if (beams)
        for (int v = 0; v < V; v++) s->values[v] = (s->values[v] - z.max) - z.logsum;

    if (s->how.repeat_penalty != 1.0) {
        const size_t words = ((size_t)V + 63) / 64;
        for (size_t w = 0; w < words; w++)
            for (uint64_t bits = s->seen[(size_t)b * words + w]; bits; bits &= bits - 1)
                penalise(s, (int)(w * 64) + __builtin_ctzll(bits), logits, beams ? &z : NULL);
        for (int i = t - 1, row = r; i >= 0; i--) {
            penalise(s, s->token[(size_t)i * s->max_R + row], logits, beams ? &z : NULL);
            row = s->parent[(size_t)i * s->max_R + row];
        }
    }
    if (s->how.no_repeat_ngram > 0) forbid_repeats(s, b, r);
    if (t < s->how.min_new && s->eos >= 0 && s->eos < V) s->values[s->eos] = -INFINITY;
    return z;
}

// ---------------------------------------------------------------------------------------------------------
// Sampling

// The two filters ask where, in ascending order, a running total crosses a line. No sort is needed: total up by the
// leading 11 bits of the key, keep the bucket where the line is crossed, look at its next 11 bits, then at the last 10.
//
//     key  [ 11 bits | 11 bits | 10 bits ]
//
// x (V), weight (V) or NULL for 1 each -> key of the first entry at which the total, in f32, exceeds `line`; *below
// is the total of all entries with smaller keys. When nothing exceeds it: the largest key that has weight.
static uint32_t crossing(double *below, const float *x, const float *weight, double line, int V) {
    uint32_t prefix = 0, mask = 0;
    *below = 0;
    for (int level = 0; level < 3; level++) {
        const int shift = level == 0 ? 21 : level == 1 ? 10 : 0;
        const uint32_t bits = level == 2 ? 1023 : 2047;
        double total[2048] = {0};
        uint32_t last = 0;                    // largest bucket in use
        for (int v = 0; v < V; v++) {
            const uint32_t key = sort_key(x[v]), k = key >> shift & bits;
            if ((key & mask) != prefix || (weight && weight[v] == 0)) continue;
            total[k] += weight ? (double)weight[v] : 1.0;
            last = k > last ? k : last;
        }
        uint32_t k = 0;
        while (k < last && !((double)(float)(*below + total[k]) > line)) *below += total[k++];
        prefix |= k << shift;
        mask |= bits << shift;
    }
    return prefix;
}

// TopPLogitsWarper: drops the lowest while the probability up to and with them is at most 1 - top_p, never the last.
// x (V) logits, p (V) their probabilities, set to 0 where dropped. Equal logits go in order of their ids.
static void top_p_filter(float *p, const float *x, double top_p, int V) {
    const double line = (double)(float)(1.0 - top_p);
    double total;
    const uint32_t key = crossing(&total, x, p, line, V);
    int ties = 0;                             // that are left
    for (int v = 0; v < V; v++) ties += sort_key(x[v]) == key;
    for (int v = 0; v < V; v++) {
        const uint32_t k = sort_key(x[v]);
        bool drop = k < key;
        if (k == key) {
            total += (double)p[v];
            drop = !((double)(float)total > line) && --ties > 0;
        }
        if (drop) p[v] = 0;
    }
}

void search_filter(float *probs, float *scratch, const float *logits, const Choice *how, int V) {
    // Each step as transformers' warper of that name; all of them keep at least one token.
    const float temp = (float)how->temp;
    for (int v = 0; v < V; v++) {
        const float x = clean(logits[v]) / temp + 0.0f;     // no -0: it would sort below 0
        scratch[v] = x < FLT_MAX ? x : FLT_MAX;
    }
    if (how->top_k > 0 && how->top_k < V) {
        double below;
        const uint32_t key = crossing(&below, scratch, NULL, V - how->top_k, V);
        for (int v = 0; v < V; v++) scratch[v] = sort_key(scratch[v]) < key ? -INFINITY : scratch[v];
    }
    const float max = search_top(scratch, V);
    if (max == -INFINITY) {
        memset(probs, 0, (size_t)V * sizeof *probs);
        return;
    }
    exp_minus(probs, scratch, max, V);
    const float all = (float)sum(probs, V);
    for (int v = 0; v < V; v++) probs[v] /= all;
    if (how->top_p >= 1.0) return;
    top_p_filter(probs, scratch, how->top_p, V);
    const float kept = (float)sum(probs, V);
    for (int v = 0; v < V; v++) probs[v] /= kept;
}

int search_pick(const float *probs, float u, int V) {
    double total = 0;
    int pick = 0;
    for (int v = 0; v < V; v++) {
        if (!(probs[v] > 0)) continue;
        pick = v;                             // the last one possible, when rounding leaves the sum below u
        total += (double)probs[v];
        if (total > (double)u) break;
    }
    return pick;
}

float search_uniform(uint64_t seed, uint64_t sequence, uint64_t step) { return philox_uniform(seed, sequence, step); }
