// generate_parts.h: what the two halves of token choice share: the Search, and what generate_process.c does to logits.
//
// In order: the Search (made and stepped in generate.c), log-softmax, the processors.
#ifndef GENERATE_PARTS_H
#define GENERATE_PARTS_H

#include "generate.h"

#include <math.h>

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
    const int **seen_ids;   // (B) the same in their order, the caller's
    int *n_seen;            // (B)
    int *past;              // (max_new) new tokens of one row
    Candidate *best;        // (2K) of one prompt, best first
    float *values;          // (V) processed logits or log-probabilities of one row
    float *probs, *scratch; // (V)
    int *out_token;         // (R,max_new) answers
    float *out_logprob;     // (R,max_new)
};

// Log-softmax, as torch does it in f32: (x - max) - log(sum exp(x - max)).
typedef struct { float max, logsum; } Norm;

static inline float clean(float x) { return x < INFINITY ? x : -INFINITY; }     // false for NaN as well
static inline float log_softmax(float logit, Norm z) { return (clean(logit) - z.max) - z.logsum; }

float search_top(const float *x, int n);      // the largest of x (n)

// Row r of prompt b: logits (V) -> s->values (V), log-probabilities for beams, processed. Returns log-softmax's sums.
Norm search_process(Search *s, const float *logits, int b, int r);

#endif
