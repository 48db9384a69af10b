// generate_parts.h: what the parts of token choice share: the Search, and the rules that need no logits.
//
// In order: the Search (made and stepped in generate.c); its state, which a device that chooses itself sends back;
// log-softmax and the processors (generate_process.c); what becomes of a chosen token, of a prompt's best candidates,
// and the uniforms. These last are compiled for the host and, by nvcc, for the device (cuda_choose.cuh) too: both have
// the same Search at the same offsets of a block of their own.
#ifndef GENERATE_PARTS_H
#define GENERATE_PARTS_H

#include "generate.h"

#include <math.h>
#include <string.h>

#ifdef __CUDACC__
#define BOTH static inline __host__ __device__
#else
#define BOTH static inline
#endif

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
    // The state: all that a step changes but t, more and the trellis; one piece from here to before `seen`.
    int *ended;             // (R) 0 or 1, as open: a device writes whole words
    double *sum;            // (R) greedy and sampling: log-probabilities so far
    float *score;           // (R) beams: the same; -Inf: no beam in this row
    Finished *pool;         // (B,K) beams: best first; otherwise by row
    int *in_pool;           // (B)
    int *open;              // (B) prompt has rows that go on
    int *broken;            // (B) 1: some logit was NaN or +Inf
    int *now_token, *now_parent;    // (R) the last step's line of the trellis
    float *now_logprob;     // (R)
    // What search_begin writes and no step changes, up to `token`.
    uint64_t *seen;         // (B, V bits) ids before the first new token
    const int **seen_ids;   // (B) the same in their order, the caller's
    int *n_seen;            // (B)
    float *divisor;         // (max_new) of the score of a hypothesis of so many tokens, less one: length^length_penalty
    int *token, *parent;    // (max_new,R) the trellis
    float *logprob;         // (max_new,R)
    int *past;              // (max_new) new tokens of one row
    Candidate *best;        // (B,2K) best first
    float *values;          // (V) processed logits or log-probabilities of one row
    float *probs, *scratch; // (V)
    int *out_token;         // (R,max_new) answers
    float *out_logprob;     // (R,max_new)
};

// For a device that chooses by itself. search_export: what it starts with, into `to` (search_export_bytes), to be
// copied to the start of a block of search_bytes at `base` there, where the ids in front lie at seen[b]. search_take:
// `state` (search_state_bytes), which lies search_state_at bytes into that block, behind a step there, makes s what it
// would be had search_step chosen the same.
size_t search_export_bytes(const Search *s);
void search_export(void *to, const Search *s, void *base, const int *const *seen);
size_t search_state_at(const Search *s);
size_t search_state_bytes(const Search *s);
void search_take(Search *s, Step *out, const void *state);

// Log-softmax, as torch does it in f32: (x - max) - log(sum exp(x - max)).
typedef struct { float max, logsum; } Norm;

BOTH float clean(float x) { return x < INFINITY ? x : -INFINITY; }     // false for NaN as well
BOTH float log_softmax(float logit, Norm z) { return (clean(logit) - z.max) - z.logsum; }

float search_top(const float *x, int n);      // the largest of x (n)

// Row r of prompt b: logits (V) -> s->values (V), log-probabilities for beams, processed. Returns log-softmax's sums.
Norm search_process(Search *s, const float *logits, int b, int r);

// ---------------------------------------------------------------------------------------------------------
// Rows. Each step writes line t of the trellis.

BOTH void put(Search *s, int r, int token, int parent, float logprob) {
    const size_t at = (size_t)s->t * s->max_R + r;
    s->token[at] = s->now_token[r] = token;
    s->parent[at] = s->now_parent[r] = parent;
    s->logprob[at] = s->now_logprob[r] = logprob;
}

BOTH void put_ended(Search *s, int r) {
    s->ended[r] = 1;
    put(s, r, s->pad, r, 0);
}

BOTH void put_finished(Finished *f, double score, int n, int row, int token, float logprob, bool stopped) {
    f->score = score;
    f->n = n;
    f->row = row;
    f->token = token;
    f->logprob = logprob;
    f->stopped = stopped;
}

// Greedy and sampling: a row's next token.
BOTH void settle_row(Search *s, int r, int token, float logprob) {
    put(s, r, token, r, logprob);
    s->sum[r] += (double)logprob;
    const bool stopped = token == s->eos;
    s->ended[r] = stopped || s->t + 1 == s->how.max_new;
    if (s->ended[r]) put_finished(&s->pool[r], s->sum[r], s->t + 1, r, token, logprob, stopped);
}

// _update_finished_beams for one candidate: into the K best, behind equal ones. The pool starts full of -1e9.
BOTH void finish(Search *s, int b, const Candidate *c, float divisor) {
    Finished *pool = s->pool + (size_t)b * s->K;
    const float score = c->value / divisor;
    const int n = s->in_pool[b];
    if (!((double)score > (n < s->K ? -1e9 : pool[n - 1].score))) return;
    int at = n < s->K ? s->in_pool[b]++ : n - 1;
    for (; at > 0 && pool[at - 1].score < (double)score; at--) pool[at] = pool[at - 1];
    put_finished(&pool[at], (double)score, s->t + 1, b * s->K + c->k, c->token, c->logprob, c->token == s->eos);
}

// Beams: what becomes of the n best candidates of prompt b. One is finished when it is the end token or at max_new;
// only the first K of the 2K may enter the pool. The others go on, best first: each beam has one end token, hence K of
// 2K are always left for that.
BOTH void settle_beams(Search *s, int b, int n) {
    const int K = s->K, row0 = b * K;
    const bool last = s->t + 1 == s->how.max_new;
    const float divisor = s->divisor[s->t];
    int live = 0;
    for (int i = 0; i < n; i++) {
        const Candidate *c = &s->best[(size_t)b * 2 * K + i];
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
// Orders floats as unsigned integers.
BOTH uint32_t sort_key(float x) {
    uint32_t u;
    memcpy(&u, &x, sizeof u);
    return u & 0x80000000u ? ~u : u | 0x80000000u;
}

// Philox4x32-10 (Salmon et al., "Parallel Random Numbers: As Easy as 1, 2, 3", 2011): ten rounds that mix a counter
// of four words under a key of two. Key: the seed. Counter: sequence, step. Its first word gives the uniform.
BOTH float philox_uniform(uint64_t seed, uint64_t sequence, uint64_t step) {
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
    return (float)(c[0] >> 8) * (1.0f / 16777216);
}

#endif
