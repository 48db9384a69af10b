// generate.h: how the next token is chosen: greedy, beam search, sampling, and the processors in front of them.
//
// A Search holds everything that is chosen so far for R = B*K rows, K rows for each of B prompts. Each step takes
// logits and leaves, per row, the token to feed next and the row whose past it continues (its parent):
//
//     logits (R,V) -> repetition penalty -> repeated n-grams -> minimum length ->
//                     [temperature -> top-k -> top-p] -> token, parent (R)
//
// This is the reference for every backend. The rules are transformers' (5.x GenerationMixin: _sample,
// _beam_search, logits_process.py). Not here: the model that makes the logits, text.
#ifndef GENERATE_H
#define GENERATE_H

#include "common.h"

// Doubles where transformers computes with Python's numbers, so that 1 - 0.9 is the same here and there.
typedef struct {
    int beams;              // 1 is greedy; beam search above
    int captions;           // answers asked for: best beams, or samples; at most beams unless sampling
    int max_new, min_new;   // limits on new tokens, the end token counted
    double length_penalty;  // score = sum of log-probabilities / length^length_penalty (beams only)
    double repeat_penalty;  // 1 is off
    int no_repeat_ngram;    // no sequence of so many tokens twice; 0 is off
    bool sample;            // nucleus sampling, beams == 1
    double temp, top_p;     // 1 is off
    int top_k;              // 0 is off
    uint64_t seed, first;   // samples are numbered from `first` on: a second call can go on where one ended
} Choice;

// One chosen token per row. Rows that ended before carry the pad token, log-probability 0, and are their own parent.
typedef struct {
    int R;
    const int *token;       // (R) chosen now
    const int *parent;      // (R) row whose past the token continues; the row itself unless beams moved
    const float *logprob;   // (R)
    const int *ended;       // (R) 1: row will not go on: what is fed for it from now on does not matter
    bool more;              // false: that was the last token, nothing need be fed; the next step returns false
} Step;

typedef struct {
    const int *tokens;      // (n) without prompt and end token
    const float *logprobs;  // (n) per token; n + 1 entries, the end token's last, when stopped. Beams: behind the
                            // processors, so that their sum / length^length_penalty is the score; else before them
    int n;
    double score;           // beams: transformers' sequences_scores; otherwise the sum of all log-probabilities
    bool stopped;           // true: ended with the end token; false: cut at max_new
    bool broken;            // some logit of this prompt was NaN or +Inf: damaged weights, do not trust the answer
} Hypothesis;

typedef struct Search Search;

// Rows per prompt: beams, or captions when sampling.
int search_rows(const Choice *how);

// Bytes that a Search needs (UINT64_MAX when the number does not fit), and one made in that memory (aligned to 64):
// at most B prompts, R rows, max_new tokens.
uint64_t search_bytes(int B, int R, int max_new, int V);
Search *search_init(void *mem, int B, int R, int max_new, int V, int eos, int pad);

// Starts anew. seen[b] (n_seen[b]) are the ids that transformers has in input_ids before the first new token
// (OPT: image placeholders, </s> and prompt; T5: the start token); the repetition penalty and no_repeat_ngram look at
// them. They must stay where they are until the last step; ids outside of 0..V-1 are ignored, as there.
void search_begin(Search *s, const Choice *how, const int *const *seen, const int *n_seen, int B);

// logits (rows,V): rows is B at the first step, when all rows of a prompt share its logits, and R later. Not changed.
// NaN and +Inf count as -Inf: never chosen while anything else is left. The arrays of *out stay valid and unchanged
// until the next search_begin, but for out->ended.
// Returns false when nothing is left to do (then no token was chosen), otherwise true with *out.
bool search_step(Search *s, Step *out, const float *logits);

// After the last step; greedy and sampled rows also before, when it is what they have so far. With beams, rank 0 is the
// best. Fewer finished hypotheses than asked for (a vocabulary
// of a few words, or nothing but -Inf): the ranks that are missing have n 0, not stopped, and transformers' -1e9.
Hypothesis search_result(const Search *s, int b, int rank);

// The uniform in [0,1), a multiple of 2^-24, for sample number `sequence` of an image at `step`: a function of these
// three alone, so that every backend, thread count and batch size draws the same. Philox4x32-10.
float search_uniform(uint64_t seed, uint64_t sequence, uint64_t step);

// logits (V) -> probs (V), the probabilities after temperature, top-k and top-p, zero where filtered; scratch (V).
// And the pick: the first id whose cumulative probability exceeds u.
void search_filter(float *probs, float *scratch, const float *logits, const Choice *how, int V);
int search_pick(const float *probs, float u, int V);

#endif
