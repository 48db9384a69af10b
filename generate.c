// generate.c: the choice of the next token, see generate.h.
//
// In order: the Search and its one block of memory; log-softmax; the processors (repetition penalty, minimum length);
// sampling (temperature, top-k, top-p, the uniform, the pick); greedy and sampled rows; beam search; a step; results.
//
// What was chosen is kept as a trellis. Beams copy no text: each entry points to the row that it continues.
//
//     step    0         1         2           R rows across, one line per step:
//     row 0   a ------- man       rides         token[t][r], logprob[t][r]
//     row 1   the      \ cat ---- sits          parent[t][r] = row of step t-1
//     row 2   two ----- dogs    \ sleeps
//
// A finished hypothesis is its last token and the row of the step before; search_result walks back from there.
// Not here: threads, text, the model.

#include "generate.h"

#include <float.h>
#include <math.h>
#include <string.h>

typedef struct {
    double score;
    int n;            // tokens, the end token counted; 0 while there is none
    int row;          // whose token at step n-2 the last one continues
    int token;        // the last one
    float logprob;
    bool stopped;     // the last one is the end token
} Finished;

// A continuation of beam k by a token. value is the sum of log-probabilities with it.
typedef struct { float value, logprob; int k, token; } Candidate;

struct Search {
    int max_B, max_R, max_max_new, V, eos, pad;     // what the memory was made for
    Choice how;
    int B, K, t;            // prompts, rows per prompt, steps done
    bool more;
    int *token, *parent;    // (max_new,R) the trellis
    float *logprob;         // (max_new,R)
    bool *ended;            // (R)
    double *sum;            // (R) greedy and sampling: log-probabilities so far
    float *score;           // (R) beams: the same; -Inf: no beam in this row
    Finished *pool;         // (B,K) beams: best first; otherwise by row
    int *in_pool;           // (B)
    bool *open;             // (B) prompt has rows that go on
    bool *broken;           // (B)
    uint64_t *seen;         // (B, V bits) ids before the first new token
    Candidate *best;        // (2K) of one prompt, best first
    float *values;          // (V) processed logits or log-probabilities of one row
    float *probs, *scratch; // (V)
    int *out_token;         // (R,max_new) answers
    float *out_logprob;     // (R,max_new)
};

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
    s->token = carve(&m, cells, sizeof *s->token);
    s->parent = carve(&m, cells, sizeof *s->parent);
    s->logprob = carve(&m, cells, sizeof *s->logprob);
    s->ended = carve(&m, r, sizeof *s->ended);
    s->sum = carve(&m, r, sizeof *s->sum);
    s->score = carve(&m, r, sizeof *s->score);
    s->pool = carve(&m, r, sizeof *s->pool);
    s->in_pool = carve(&m, b, sizeof *s->in_pool);
    s->open = carve(&m, b, sizeof *s->open);
    s->broken = carve(&m, b, sizeof *s->broken);
    s->seen = carve(&m, b * ((v + 63) / 64), sizeof *s->seen);
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
    CHECK(how->repeat_penalty > 0 && how->temp > 0 && how->top_p >= 0 && how->top_k >= 0);
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
        s->open[b] = true;
        s->broken[b] = false;
        s->in_pool[b] = how->beams > 1 ? 0 : K;
    }
    for (int r = 0; r < B * K; r++) {
        s->ended[r] = false;
        s->sum[r] = 0;
        // All beams of a prompt start equal. Only the first one counts, or each answer would come K times. (In
        // transformers the others start at -1e9, and copies come up when a small vocabulary leaves nothing else.)
        s->score[r] = r % K == 0 ? 0.0f : -INFINITY;
        s->pool[r] = (Finished){.score = -1e9};
    }
}

// ---------------------------------------------------------------------------------------------------------
// Log-softmax, as torch does it in f32: (x - max) - log(sum exp(x - max)).

typedef struct { float max, logsum; } Norm;

static inline float clean(float x) { return x < INFINITY ? x : -INFINITY; }     // false for NaN as well

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

static float top(const float *x, int n) {
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
static Norm clean_copy(float *values, float *scratch, bool *broken, const float *logits, int V) {
    int bad = 0;
    for (int v = 0; v < V; v++) {
        bad += !(logits[v] < INFINITY);
        values[v] = clean(logits[v]);
    }
    if (bad) *broken = true;
    const float max = top(values, V);
    if (max == -INFINITY) return (Norm){0, 0};              // nothing to choose from; all stays -Inf
    exp_minus(scratch, values, max, V);
    return (Norm){max, (float)log(sum(scratch, V))};
}

static inline float log_softmax(float logit, Norm z) { return (clean(logit) - z.max) - z.logsum; }

// ---------------------------------------------------------------------------------------------------------
// Processors. Greedy and sampled rows apply them to logits, beams to log-probabilities (transformers does so too).

// RepetitionPenaltyLogitsProcessor for one id, from the unchanged logit: twice is as good as once.
static void penalise(Search *s, int id, const float *logits, const Norm *z) {
    const float p = (float)s->how.repeat_penalty;
    const float x = z ? log_softmax(logits[id], *z) : clean(logits[id]);
    const float y = x < 0 ? x * p : x / p;
    s->values[id] = y < FLT_MAX ? y : FLT_MAX;
}

// Row r of prompt b: logits (V) -> s->values (V), log-probabilities for beams, processed. Returns log-softmax's sums.
static Norm process(Search *s, const float *logits, int b, int r) {
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
    if (t < s->how.min_new && s->eos >= 0 && s->eos < V) s->values[s->eos] = -INFINITY;
    return z;
}

// ---------------------------------------------------------------------------------------------------------
// Sampling

// Orders floats as unsigned integers.
static inline uint32_t sort_key(float x) {
    uint32_t u;
    memcpy(&u, &x, sizeof u);
    return u & 0x80000000u ? ~u : u | 0x80000000u;
}

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
    const float max = top(scratch, V);
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

// Philox4x32-10 (Salmon et al., "Parallel Random Numbers: As Easy as 1, 2, 3", 2011): ten rounds that mix a counter
// of four words under a key of two. Key: the seed. Counter: sequence, step. Its first word gives the uniform.
float search_uniform(uint64_t seed, uint64_t sequence, uint64_t step) {
    uint32_t c[4] = {(uint32_t)sequence, (uint32_t)(sequence >> 32), (uint32_t)step, (uint32_t)(step >> 32)};
    uint32_t k[2] = {(uint32_t)seed, (uint32_t)(seed >> 32)};
    for (int round = 0; round < 10; round++) {
        const uint64_t a = (uint64_t)0xD2511F53u * c[0], b = (uint64_t)0xCD9E8D57u * c[2];
        const uint32_t was1 = c[1], was3 = c[3];
        c[0] = (uint32_t)(b >> 32) ^ was1 ^ k[0];
        c[1] = (uint32_t)b;
        c[2] = (uint32_t)(a >> 32) ^ was3 ^ k[1];
        c[3] = (uint32_t)a;
        k[0] += 0x9E3779B9u;
        k[1] += 0xBB67AE85u;
    }
    return (float)(c[0] >> 8) * 0x1p-24f;
}

// ---------------------------------------------------------------------------------------------------------
// Rows. Each step writes line t of the trellis.

static void put(Search *s, int r, int token, int parent, float logprob) {
    const size_t at = (size_t)s->t * s->max_R + r;
    s->token[at] = token;
    s->parent[at] = parent;
    s->logprob[at] = logprob;
}

static void put_ended(Search *s, int r) {
    s->ended[r] = true;
    put(s, r, s->pad, r, 0);
}

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
        const Norm z = process(s, x, b, r);
        int token = 0;
        if (how->sample) {
            search_filter(s->probs, s->scratch, s->values, how, s->V);
            token = search_pick(s->probs, search_uniform(how->seed, (uint64_t)k, (uint64_t)s->t), s->V);
        } else {
            const float max = top(s->values, s->V);         // torch.argmax: the first of the largest
            while (s->values[token] != max) token++;
        }
        const float logprob = log_softmax(x[token], z);
        put(s, r, token, r, logprob);
        s->sum[r] += (double)logprob;
        const bool stopped = token == s->eos;
        s->ended[r] = stopped || s->t + 1 == how->max_new;
        if (s->ended[r])
            s->pool[r] = (Finished){.score = s->sum[r], .n = s->t + 1, .row = r, .token = token, .logprob = logprob,
                                    .stopped = stopped};
        open = open || !s->ended[r];
    }
    s->open[b] = open;
}

// ---------------------------------------------------------------------------------------------------------
// Beam search: _beam_search with early_stopping False. Scores are f32 as torch's, so that comparisons fall the same
// way; among equals the first beam and the smallest id win (torch.topk promises nothing there).

// Puts values (V) of beam k, whose sum so far is `score`, among the best. Returns how many those are, at most 2K.
static int gather(Search *s, int n, int k, float score) {
    const int most = 2 * s->K, skip = 64;
    for (int i = 0; i < s->V; i += skip) {
        const int end = s->V - i < skip ? s->V : i + skip;
        // Adding is monotonic even when it rounds, so that the largest of a block speaks for all.
        if (n == most && !(top(s->values + i, end - i) + score > s->best[n - 1].value)) continue;
        for (int v = i; v < end; v++) {
            const Candidate c = {.value = s->values[v] + score, .logprob = s->values[v], .k = k, .token = v};
            if (!(c.value > (n < most ? -INFINITY : s->best[n - 1].value))) continue;
            int at = n < most ? n++ : n - 1;
            for (; at > 0 && s->best[at - 1].value < c.value; at--) s->best[at] = s->best[at - 1];
            s->best[at] = c;
        }
    }
    return n;
}

// _update_finished_beams for one candidate: into the K best, behind equal ones. The pool starts full of -1e9.
static void finish(Search *s, int b, const Candidate *c, float divisor) {
    Finished *pool = s->pool + (size_t)b * s->K;
    const float score = c->value / divisor;
    const int n = s->in_pool[b];
    if (!((double)score > (n < s->K ? -1e9 : pool[n - 1].score))) return;
    int at = n < s->K ? s->in_pool[b]++ : n - 1;
    for (; at > 0 && pool[at - 1].score < (double)score; at--) pool[at] = pool[at - 1];
    pool[at] = (Finished){.score = (double)score, .n = s->t + 1, .row = b * s->K + c->k, .token = c->token,
                          .logprob = c->logprob, .stopped = c->token == s->eos};
}

static void step_beams(Search *s, const float *logits, size_t stride, int b) {
    const int K = s->K, row0 = b * K;
    int n = 0;
    for (int k = 0; k < K; k++) {
        if (s->score[row0 + k] == -INFINITY) continue;
        process(s, logits + (size_t)k * stride, b, row0 + k);
        n = gather(s, n, k, s->score[row0 + k]);
    }

    // A candidate is finished when it is the end token or at max_new; only the first K of the 2K may enter the pool.
    // The others go on, best first: each beam has one end token, hence K of 2K are always left for that.
    const int length = s->t + 1;
    const bool last = length == s->how.max_new;
    const float divisor = (float)pow((double)length, s->how.length_penalty);
    int live = 0;
    for (int i = 0; i < n; i++) {
        const Candidate *c = &s->best[i];
        if (last || c->token == s->eos) {
            if (i < K) finish(s, b, c, divisor);
        } else if (live < K) {
            const int r = row0 + live++;
            put(s, r, c->token, s->t > 0 ? row0 + c->k : r, c->logprob);
            s->score[r] = c->value;
        }
    }
    for (int k = live; k < K; k++) {
        s->score[row0 + k] = -INFINITY;
        put_ended(s, row0 + k);
    }

    // _check_early_stop_heuristic: go on while the best beam, ended here, would beat the worst of a full pool.
    const double worst = s->in_pool[b] == K ? s->pool[row0 + K - 1].score : -1e9;
    s->open[b] = !last && live > 0 && (double)(s->score[row0] / divisor) > worst;
    for (int k = 0; k < K; k++) s->ended[row0 + k] = !s->open[b] || k >= live;
}

// ---------------------------------------------------------------------------------------------------------

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
    const size_t line = (size_t)s->t * s->max_R;
    *out = (Step){.R = s->B * s->K, .token = s->token + line, .parent = s->parent + line,
                  .logprob = s->logprob + line, .ended = s->ended, .more = s->more};
    s->t++;
    return true;
}

Hypothesis search_result(const Search *s, int b, int rank) {
    CHECK(b >= 0 && b < s->B && rank >= 0 && rank < s->K);
    const size_t at = (size_t)b * s->K + rank;
    const Finished *f = &s->pool[at];
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
