// blip2.c: BLIP-2 in plain C, every layer in the order in which an image becomes text.
//
// In order:
//   1. Run: the memory of one model in use, planned once
//   2. operations: norms, activations, soft-max, attention
//   3. the vision transformer: patch embedding, blocks
//   4. the Q-Former and the projection into the language model
//   5. the KV cache, and attention of one new token per row
//   6. OPT: decoder layers, for a prompt and for one more token
//   7. T5: encoder, decoder
//   8. the Backend that the rest of the program calls
//
// This is the reference that every other backend is tested against, so it stays plain; a matrix multiply is one call
// (matmul.c). Images and prompts of a batch go through one after the other, because the CPU is busy with one; only
// generation runs all rows together, since there each weight is read from memory once for all of them.
// Not here: files, images, text, and how a token is chosen (generate.c).

#include "blip2.h"
#include "matmul_skip.h"

#include <math.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

// ---------------------------------------------------------------------------------------------------------
// 1. The memory of one model in use. Buffers are shared by the stages, each as large as the largest needs it.

typedef struct {
    const Model *m;
    Limits lim;
    Par par;
    Skip *skip;            // OPT's fc2 without the neurons that are zero, or NULL
    int TP;                // most positions of a prompt pass: Q + lim.prompt
    int TK;                // most positions whose keys a prompt leaves in the KV cache: TP for OPT, 1 for T5 (start)
    float *pixel_values;   // (3,S,S)
    float *patches;        // (N-1, 3*P*P)
    float *x, *h;          // (T,D) residual stream, and what a norm or an output projection makes of it
    float *qkv, *att, *ff; // (T,3D), (T,D), (T,F)
    float *gate;           // (T,FL): T5's gated product
    float *scores;         // (threads, T, T) attention scores of one head
    float *cross_kv;       // (N, NX*2*DQ) Q-Former keys and values of the image
    float *image_rows;     // (B, Q, DL) what encode leaves for the language model
    float *kv_prompt;      // (LD, B, TK, 2*IL) keys and values of the prompts
    float *kv_new;         // (LD, max_new, R, 2*IL) and of generated tokens
    float *kv_cross;       // (LD, B, TP, 2*IL) T5: cross-attention to the encoder's output
    float *enc_bias;       // (HL, 2*TP-1) T5: score added at distance key - query, from -(TP-1)
    float *dec_bias;       // (HL, max_new+1) T5: score added at distance query - key
    float *logits;         // (R,V)
    int *line, *line_next; // (R, max_new): whose kv_new slot holds position t of row r's past
    int *row_prompt;       // (R) which prompt a row answers
    int *prompt_T;         // (B) positions that prompt b has in kv_prompt
    int *cross_T;          // (B) positions that prompt b has in kv_cross
    int *seen;             // (B, Q + lim.prompt) ids for the repetition penalty
    const int **seen_of;   // (B)
    int *n_seen;           // (B)
    void *search_memory;
    Search *search;
    int B, R, t;           // of the generation under way: prompts, rows, tokens fed so far
    Times times;
    void *memory;
} Run;

// Hands out aligned pieces of one block. With base NULL it only counts, so that plan() serves both purposes.
typedef struct { uint8_t *base; uint64_t used; bool overflow; } Arena;

static void *take(Arena *a, uint64_t n0, uint64_t n1, uint64_t n2, uint64_t n3, uint64_t size) {
    uint64_t bytes = size, end;
    if (!mul_ok(&bytes, bytes, n0) || !mul_ok(&bytes, bytes, n1) || !mul_ok(&bytes, bytes, n2) ||
        !mul_ok(&bytes, bytes, n3) || !add_ok(&end, a->used, bytes) || !add_ok(&end, end, 63)) {
        a->overflow = true;
        return NULL;
    }
    void *p = a->base ? a->base + a->used : NULL;
    a->used = end & ~(uint64_t)63;
    return p;
}

static uint64_t max3(uint64_t a, uint64_t b, uint64_t c) { return a > b ? (a > c ? a : c) : (b > c ? b : c); }

static void plan(Run *r, Arena *a) {
    const Config *c = &r->m->config;
    const bool t5 = c->family == T5;
    const uint64_t N = c->N, Q = c->Q, F = sizeof(float), I = sizeof(int);
    const uint64_t TP = r->TP, R = r->lim.R, B = r->lim.B, new = r->lim.max_new;
    const uint64_t TL = TP > R ? TP : R;
    r->pixel_values = take(a, 3, c->S, c->S, 1, F);
    r->patches      = take(a, N - 1, 3, c->P, c->P, F);
    r->x            = take(a, max3(N * c->DV, Q * c->DQ, TL * c->DL), 1, 1, 1, F);
    r->h            = take(a, max3(N * c->DV, Q * c->DQ, TL * c->DL), 1, 1, 1, F);
    r->qkv          = take(a, max3(N * c->DV, Q * c->DQ, TL * c->IL), 3, 1, 1, F);
    r->att          = take(a, max3(N * c->DV, Q * c->DQ, TL * c->IL), 1, 1, 1, F);
    r->ff           = take(a, max3(N * c->FV, Q * c->FQ, TL * c->FL * (t5 ? 2 : 1)), 1, 1, 1, F);
    r->gate         = take(a, t5 ? TL : 0, c->FL, 1, 1, F);
    r->scores       = take(a, max3(N * N, Q * max3(Q, N, 0), max3(TP * TP, TP + new + 1, 0)), r->lim.threads, 1, 1, F);
    r->cross_kv     = take(a, N, c->NX, 2, c->DQ, F);
    r->image_rows   = take(a, B, Q, c->DL, 1, F);
    r->kv_prompt    = take(a, c->LD, B, r->TK, 2 * (uint64_t)c->IL, F);
    r->kv_new       = take(a, c->LD, new, R, 2 * (uint64_t)c->IL, F);
    r->kv_cross     = take(a, t5 ? c->LD : 0, B, TP, 2 * (uint64_t)c->IL, F);
    r->enc_bias     = take(a, t5 ? c->HL : 0, 2 * TP - 1, 1, 1, F);
    r->dec_bias     = take(a, t5 ? c->HL : 0, new + 1, 1, 1, F);
    r->logits       = take(a, R > B ? R : B, c->V, 1, 1, F);
    r->line         = take(a, R, new, 1, 1, I);
    r->line_next    = take(a, R, new, 1, 1, I);
    r->row_prompt   = take(a, R, 1, 1, 1, I);
    r->prompt_T     = take(a, B, 1, 1, 1, I);
    r->cross_T      = take(a, B, 1, 1, 1, I);
    r->seen         = take(a, B, TP, 1, 1, I);
    r->seen_of      = take(a, B, 1, 1, 1, sizeof *r->seen_of);
    r->n_seen       = take(a, B, 1, 1, 1, I);
    r->search_memory = take(a, search_bytes(r->lim.B, r->lim.R, r->lim.max_new, c->V), 1, 1, 1, 1);
    r->par.scratch  = take(a, matmul_scratch_bytes(r->lim.threads), 1, 1, 1, 1);
}

// Shows a stage's output to whoever watches (tests and --dump), under transformers' name for it.
__attribute__((format(printf, 5, 6)))
static void probe(const Run *r, const float *x, int rows, int cols, const char *fmt, ...) {
    if (!r->lim.probe) return;
    char name[128];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(name, sizeof name, fmt, ap);
    va_end(ap);
    r->lim.probe(r->lim.probe_arg, name, x, rows, cols);
}

// ---------------------------------------------------------------------------------------------------------
// 2. Operations.

// Below so many elements, multiply-adds of attention, or elements of keys and values, which come from memory, waking
// threads costs more than they save.
enum { WORTH = 1 << 16, WORTH_ATTENTION = 1 << 19, WORTH_PAST = 1 << 16 };

enum { ROWS_A_JOB = 8, BLOCK = 4096 };

// What the operations below hand to the pool.
typedef struct {
    float *out;
    const float *x, *w, *b;
    float eps;
    int T, C, act;
    size_t n;
    const Par *par;
} Rows;

static void norm_job(void *arg, int job, int thread) {
    const Rows *a = arg;
    const int end = (job + 1) * ROWS_A_JOB < a->T ? (job + 1) * ROWS_A_JOB : a->T;
    (void)thread;
    for (int t = job * ROWS_A_JOB; t < end; t++)
        norm(a->out + (size_t)t * a->C, a->x + (size_t)t * a->C, a->w, a->b, a->eps, a->C, a->par);
}

// Layer norm of each row, or without b T5's norm (matmul.h). In place is fine.
static void layernorm(float *out, const float *x, const float *w, const float *b, float eps, int T, int C,
                      const Par *par) {
    // x (T,C), w (C), b (C) or NULL -> out (T,C)
    Rows rows = {.out = out, .x = x, .w = w, .b = b, .eps = eps, .T = T, .C = C, .par = par};
    pool_run((int64_t)T * C > WORTH ? par->pool : NULL, norm_job, &rows, (T + ROWS_A_JOB - 1) / ROWS_A_JOB);
}

static void rmsnorm(float *out, const float *x, const float *w, float eps, int T, int C, const Par *par) {
    layernorm(out, x, w, NULL, eps, T, C, par);
}

static void activate_job(void *arg, int job, int thread) {
    const Rows *a = arg;
    const size_t from = (size_t)job * BLOCK, n = a->n - from < BLOCK ? a->n - from : BLOCK;
    (void)thread;
    activate(a->out + from, a->act, (int)n, a->par);
}

static void activate_all(float *x, int act, size_t n, const Par *par) {
    // x (n), in place
    Rows rows = {.out = x, .act = act, .n = n, .par = par};
    pool_run(n > WORTH ? par->pool : NULL, activate_job, &rows, (int)((n + BLOCK - 1) / BLOCK));
}

static void add(float *x, const float *y, size_t n) {
    // x (n) += y (n)
    for (size_t i = 0; i < n; i++) x[i] += y[i];
}

// Multi-head attention (Vaswani et al. 2017) of Tq queries over Tk keys:
//
//     out_h = softmax(scale * q_h k_h^T + bias_h) v_h        heads h = 0..H-1 side by side in the columns
//
// Causal: query i sees keys 0..i only. Bias (T5): bias[h*ldb + j - i] is added for query i and key j, or NULL.
typedef struct {
    float *out;
    const float *q, *k, *v, *bias;
    int ldq, ldkv, ldb, Tq, Tk, H, A;
    float scale;
    bool causal;
    const Run *r;
} Heads;

static void head_job(void *arg, int h, int thread) {
    const Heads *a = arg;
    const int Tq = a->Tq, Tk = a->Tk, A = a->A, at = h * A;
    float *s = a->r->scores + (size_t)Tq * Tk * thread;   // (Tq,Tk)
    gemm_nt(s, Tk, a->q + at, a->ldq, a->k + at, a->ldkv, a->scale, Tq, Tk, A, &a->r->par);
    for (int i = 0; i < Tq; i++) {
        float *si = s + (size_t)i * Tk;
        const int n = a->causal ? i + 1 : Tk;
        if (a->bias) for (int j = 0; j < n; j++) si[j] += a->bias[(ptrdiff_t)h * a->ldb + j - i];
        softmax(si, n, &a->r->par);
        memset(si + n, 0, (Tk - n) * sizeof *si);
    }
    gemm_nn(a->out + at, a->H * A, s, Tk, a->v + at, a->ldkv, Tq, A, Tk, &a->r->par);
}

static void attention(float *out, const float *q, int ldq, const float *k, const float *v, int ldkv, float scale,
                      bool causal, const float *bias, int ldb, int Tq, int Tk, int H, int A, const Run *r) {
    // q (Tq, H*A) rows ldq apart, k and v (Tk, H*A) rows ldkv apart -> out (Tq, H*A)
    Heads heads = {out, q, k, v, bias, ldq, ldkv, ldb, Tq, Tk, H, A, scale, causal, r};
    pool_run((double)H * A * Tq * Tk > WORTH_ATTENTION ? r->par.pool : NULL, head_job, &heads, H);
}

// ---------------------------------------------------------------------------------------------------------
// 3. The vision transformer, EVA-CLIP's ViT-g/14 (transformers' Blip2VisionModel, LAVIS's eva_vit.py).

// x (N,DV) from pixels: each patch is one row of a matrix multiply (a convolution whose stride is its size), the
// CLS embedding comes first, and every token gets its learned position.
static void vit_embed(Run *r, const uint8_t *pixels) {
    // pixels (S,S,3) -> x (N,DV)
    const Config *c = &r->m->config;
    const Vit *w = &r->m->vit;
    const int S = c->S, P = c->P, G = S / P;
    const float mean[3] = {c->mean_r, c->mean_g, c->mean_b}, std[3] = {c->std_r, c->std_g, c->std_b};
    for (int ch = 0; ch < 3; ch++)
        for (int i = 0; i < S * S; i++)
            r->pixel_values[ch * S * S + i] = (pixels[i * 3 + ch] / 255.0f - mean[ch]) / std[ch];
    probe(r, r->pixel_values, 3 * S, S, "pixel_values");

    float *p = r->patches;   // (G*G, 3*P*P), columns in the convolution's (channel, y, x) order
    for (int gy = 0; gy < G; gy++)
        for (int gx = 0; gx < G; gx++)
            for (int ch = 0; ch < 3; ch++)
                for (int y = 0; y < P; y++, p += P)
                    memcpy(p, r->pixel_values + ch * S * S + (gy * P + y) * S + gx * P, P * sizeof *p);
    memcpy(r->x, w->cls, c->DV * sizeof *r->x);
    matmul(r->x + c->DV, r->patches, &w->patch_w, w->patch_b, G * G, &r->par);
    add(r->x, w->pos, (size_t)c->N * c->DV);
    probe(r, r->x, c->N, c->DV, "vision_model.embeddings");
}

// One pre-norm block: x += proj(attention(norm(x))), then x += fc2(gelu(fc1(norm(x)))).
static void vit_block(Run *r, const VitBlock *w) {
    // x (N,DV), in place
    const Config *c = &r->m->config;
    const int N = c->N, D = c->DV, A = D / c->HV;
    layernorm(r->h, r->x, w->ln1_w, w->ln1_b, c->eps_vit, N, D, &r->par);
    matmul(r->qkv, r->h, &w->qkv_w, w->qkv_b, N, &r->par);
    attention(r->att, r->qkv, 3 * D, r->qkv + D, r->qkv + 2 * D, 3 * D, 1 / sqrtf(A), false, NULL, 0, N, N,
              c->HV, A, r);
    matmul_then(r->x, r->att, &w->proj_w, w->proj_b, THEN_ADD, N, &r->par);
    layernorm(r->h, r->x, w->ln2_w, w->ln2_b, c->eps_vit, N, D, &r->par);
    matmul_then(r->ff, r->h, &w->fc1_w, w->fc1_b, ACT_GELU, N, &r->par);
    matmul_then(r->x, r->ff, &w->fc2_w, w->fc2_b, THEN_ADD, N, &r->par);
}

static void vit_forward(Run *r, const uint8_t *pixels) {
    // pixels (S,S,3) -> h (N,DV), all tokens: the Q-Former attends to CLS and patches alike
    const Config *c = &r->m->config;
    vit_embed(r, pixels);
    for (int l = 0; l < c->LV; l++) {
        vit_block(r, &r->m->vit_block[l]);
        probe(r, r->x, c->N, c->DV, "vision_model.encoder.layers.%d", l);
    }
    layernorm(r->h, r->x, r->m->vit.ln_w, r->m->vit.ln_b, c->eps_post, c->N, c->DV, &r->par);
    probe(r, r->h, c->N, c->DV, "vision_model.post_layernorm");
}

// ---------------------------------------------------------------------------------------------------------
// 4. The Q-Former (Li et al. 2023): Q learned queries through a BERT whose every XQ-th layer also attends to the image.

// Post-norm, as in BERT: x = norm(x + f(x)) for self-attention, cross-attention and feed-forward in turn.
static void qformer_layer(Run *r, int l) {
    // x (Q,DQ), in place; cross_kv (N, NX*2*DQ)
    const Config *c = &r->m->config;
    const QFormerLayer *w = &r->m->qformer_layer[l];
    const int Q = c->Q, D = c->DQ, A = D / c->HQ;
    const size_t n = (size_t)Q * D;
    matmul(r->qkv, r->x, &w->qkv_w, w->qkv_b, Q, &r->par);
    attention(r->att, r->qkv, 3 * D, r->qkv + D, r->qkv + 2 * D, 3 * D, 1 / sqrtf(A), false, NULL, 0, Q, Q,
              c->HQ, A, r);
    matmul(r->h, r->att, &w->out_w, w->out_b, Q, &r->par);
    add(r->h, r->x, n);
    layernorm(r->x, r->h, w->ln1_w, w->ln1_b, c->eps_qformer, Q, D, &r->par);

    if (l % c->XQ == 0) {
        const int i = l / c->XQ, ld = c->NX * 2 * D;
        const QFormerCross *cross = &r->m->qformer_cross[i];
        const float *k = r->cross_kv + (size_t)i * 2 * D, *v = k + D;
        matmul(r->qkv, r->x, &cross->q_w, cross->q_b, Q, &r->par);
        attention(r->att, r->qkv, D, k, v, ld, 1 / sqrtf(A), false, NULL, 0, Q, c->N, c->HQ, A, r);
        matmul(r->h, r->att, &cross->out_w, cross->out_b, Q, &r->par);
        add(r->h, r->x, n);
        layernorm(r->x, r->h, cross->ln_w, cross->ln_b, c->eps_qformer, Q, D, &r->par);
    }

    matmul_then(r->ff, r->x, &w->fc1_w, w->fc1_b, ACT_GELU, Q, &r->par);
    matmul(r->h, r->ff, &w->fc2_w, w->fc2_b, Q, &r->par);
    add(r->h, r->x, n);
    layernorm(r->x, r->h, w->ln2_w, w->ln2_b, c->eps_qformer, Q, D, &r->par);
}

static void qformer_forward(Run *r, float *out) {
    // h (N,DV) from the ViT -> out (Q,DL), rows that the language model reads as if they were embedded tokens
    const Config *c = &r->m->config;
    const QFormer *w = &r->m->qformer;
    matmul(r->cross_kv, r->h, &w->cross_kv_w, w->cross_kv_b, c->N, &r->par);
    layernorm(r->x, w->query, w->ln_w, w->ln_b, c->eps_qformer, c->Q, c->DQ, &r->par);
    probe(r, r->x, c->Q, c->DQ, "qformer.layernorm");
    for (int l = 0; l < c->LQ; l++) {
        qformer_layer(r, l);
        probe(r, r->x, c->Q, c->DQ, "qformer.encoder.layer.%d", l);
    }
    matmul(out, r->x, &w->proj_w, w->proj_b, c->Q, &r->par);
    probe(r, out, c->Q, c->DL, "language_projection");
}

// ---------------------------------------------------------------------------------------------------------
// 5. The KV cache. All rows of a prompt share its keys and values; each generated token has a slot of its own, and
// `line` says in which row's slot the past of a row lies, so that moving beams moves no keys:
//
//     kv_prompt (LD, B, TK, 2*IL)    [layer][prompt][position][ K: IL | V: IL ]
//     kv_new    (LD, max_new, R, 2*IL) [layer][token t][slot]  [ K: IL | V: IL ]
//
//     row 0's past:  prompt ... | kv_new[0][line[0][0]] | kv_new[1][line[0][1]] | ... up to token t

static float *kv_prompt_at(const Run *r, int l, int b) {
    return r->kv_prompt + ((size_t)l * r->lim.B + b) * r->TK * 2 * r->m->config.IL;
}
static float *kv_new_at(const Run *r, int l, int t) {
    return r->kv_new + ((size_t)l * r->lim.max_new + t) * r->lim.R * 2 * r->m->config.IL;
}
static float *kv_cross_at(const Run *r, int l, int b) {
    return r->kv_cross + ((size_t)l * r->lim.B + b) * r->TP * 2 * r->m->config.IL;
}

// What passes through the language model: the prompt with index b from its first position (t < 0), or token t of
// every row.
typedef struct { int T, b, t; } Pass;

static int prompt_of(const Run *r, const Pass *p, int row) { return p->t < 0 ? p->b : r->row_prompt[row]; }

static void store_job(void *arg, int i, int thread) {
    const Rows *a = arg;
    const size_t I = (size_t)a->C;
    (void)thread;
    memcpy(a->out + (size_t)i * 2 * I, a->x + (size_t)i * 3 * I + I, 2 * I * sizeof *a->x);
}

// Copies the K and V thirds of qkv into the cache; by all threads, because memory costs when it is used first.
static void kv_store(Run *r, int l, const Pass *p) {
    // qkv (T, 3*IL)
    const int I = r->m->config.IL;
    Rows rows = {.out = p->t < 0 ? kv_prompt_at(r, l, p->b) : kv_new_at(r, l, p->t), .x = r->qkv, .C = I};
    pool_run((int64_t)p->T * 2 * I > WORTH ? r->par.pool : NULL, store_job, &rows, p->T);
}

// Attention of one query per row over that row's own past: n shared positions kv (n, 2*IL) of its prompt (from the
// decoder's own cache, or from T5's encoder), then tokens 0..t of its line. Bias (T5): bias[h*ldb + distance].
typedef struct {
    float *out;
    const float *q, *bias;
    int ldq, l, ldb;
    float scale;
    bool cross;
    const Pass *p;
    const Run *r;
} Past;

static void past_job(void *arg, int ih, int thread) {
    const Past *a = arg;
    const Run *r = a->r;
    const Config *c = &r->m->config;
    const int A = c->AL, I = c->IL, new = a->cross || a->p->t < 0 ? 0 : a->p->t + 1;
    const int i = ih / c->HL, h = ih % c->HL, b = prompt_of(r, a->p, i);
    const int n = a->cross ? r->cross_T[b] : r->prompt_T[b], last = n + new - 1;
    const float *kv = (a->cross ? kv_cross_at(r, a->l, b) : kv_prompt_at(r, a->l, b)) + h * A;
    const float *q = a->q + (size_t)i * a->ldq + h * A;
    const int *line = r->line + (size_t)i * r->lim.max_new;
    float *s = r->scores + (size_t)(r->TP + r->lim.max_new + 1) * thread;   // (n + new)
    float *o = a->out + (size_t)i * I + h * A;
    scores(s, q, kv, 2 * I, n, A, &r->par);
    for (int j = 0; j < new; j++)
        scores(s + n + j, q, kv_new_at(r, a->l, j) + (size_t)line[j] * 2 * I + h * A, 2 * I, 1, A, &r->par);
    for (int j = 0; j <= last; j++) s[j] = a->scale * s[j] + (a->bias ? a->bias[h * a->ldb + last - j] : 0);
    softmax(s, last + 1, &r->par);
    memset(o, 0, A * sizeof *o);
    mix(o, s, kv + I, 2 * I, n, A, &r->par);
    for (int j = 0; j < new; j++)
        mix(o, s + n + j, kv_new_at(r, a->l, j) + (size_t)line[j] * 2 * I + I + h * A, 2 * I, 1, A, &r->par);
}

static void attend_past(float *out, const float *q, int ldq, int l, float scale, bool cross, const float *bias,
                        int ldb, const Pass *p, const Run *r) {
    // q (T, IL) rows ldq apart -> out (T, IL)
    Past past = {out, q, bias, ldq, l, ldb, scale, cross, p, r};
    const Config *c = &r->m->config;
    const int b = prompt_of(r, p, 0), n = cross ? r->cross_T[b] : r->prompt_T[b] + p->t + 1;
    pool_run((int64_t)p->T * n * 2 * c->IL > WORTH_PAST ? r->par.pool : NULL, past_job, &past, p->T * c->HL);
}

// ---------------------------------------------------------------------------------------------------------
// 6. OPT (Zhang et al. 2022; transformers' OPTDecoder).

// Pre-norm layers: x += out(attention(norm(x))), then x += fc2(relu(fc1(norm(x)))); then the last norm.
static void opt_forward(Run *r, const Pass *p) {
    // x (T,DL) -> h (T,DL)
    const Config *c = &r->m->config;
    const int T = p->T, D = c->DL, I = c->IL, A = c->AL;
    for (int l = 0; l < c->LD; l++) {
        const OptLayer *w = &r->m->opt_layer[l];
        layernorm(r->h, r->x, w->ln1_w, w->ln1_b, c->eps_lm, T, D, &r->par);
        matmul(r->qkv, r->h, &w->qkv_w, w->qkv_b, T, &r->par);
        kv_store(r, l, p);
        if (p->t < 0)
            attention(r->att, r->qkv, 3 * I, r->qkv + I, r->qkv + 2 * I, 3 * I, 1 / sqrtf(A), true, NULL, 0, T, T,
                      c->HL, A, r);
        else
            attend_past(r->att, r->qkv, 3 * I, l, 1 / sqrtf(A), false, NULL, 0, p, r);
        matmul_then(r->x, r->att, &w->out_w, w->out_b, THEN_ADD, T, &r->par);
        layernorm(r->h, r->x, w->ln2_w, w->ln2_b, c->eps_lm, T, D, &r->par);
        matmul_then(r->ff, r->h, &w->fc1_w, w->fc1_b, c->act, T, &r->par);
        skip_matmul(r->skip, l, r->x, r->ff, &w->fc2_w, w->fc2_b, T, &r->par);
        if (p->t < 0) probe(r, r->x, T, D, "language_model.model.decoder.layers.%d", l);
    }
    layernorm(r->h, r->x, r->m->opt.ln_w, r->m->opt.ln_b, c->eps_lm, T, D, &r->par);
    if (p->t < 0) probe(r, r->h, T, D, "language_model.model.decoder.final_layer_norm");
}

// The learned position embedding of position pos; its table has two rows in front that are never used here.
static void opt_add_position(Run *r, int i, int pos) {
    // x (T,DL), row i
    const int D = r->m->config.DL;
    add(r->x + (size_t)i * D, r->m->opt.pos + (size_t)(pos + 2) * D, D);
}

// x from the Q image rows and the embedded prompt behind them.
static int lm_embed_prompt(Run *r, const Prompt *prompt) {
    // -> x (T,DL), returns T
    const Config *c = &r->m->config;
    const size_t D = c->DL;
    memcpy(r->x, r->image_rows + prompt->image * c->Q * D, c->Q * D * sizeof *r->x);
    for (int i = 0; i < prompt->n; i++) tensor_row(r->x + (c->Q + i) * D, &r->m->lm.tok, prompt->ids[i]);
    return c->Q + prompt->n;
}

static void lm_head(Run *r, float *logits, float *h, int rows) {
    // h (rows,DL) -> logits (rows,V)
    const Config *c = &r->m->config;
    if (c->logit_scale != 1) for (size_t i = 0; i < (size_t)rows * c->DL; i++) h[i] *= c->logit_scale;
    matmul(logits, h, &r->m->lm.head, NULL, rows, &r->par);
}

static void opt_prompt(Run *r, const Prompt *prompt, int b) {
    // -> kv_prompt of b, row b of logits
    const Config *c = &r->m->config;
    const Pass p = {.T = lm_embed_prompt(r, prompt), .b = b, .t = -1};
    r->prompt_T[b] = p.T;
    for (int i = 0; i < p.T; i++) opt_add_position(r, i, i);
    opt_forward(r, &p);
    lm_head(r, r->logits + (size_t)b * c->V, r->h + (size_t)(p.T - 1) * c->DL, 1);
}

// ---------------------------------------------------------------------------------------------------------
// 7. T5 (Raffel et al. 2020; transformers' T5Stack). No biases, no scaling of scores, no absolute positions: instead
// each head learns a score per bucket of relative distance.

// The bucket of a distance key - query (transformers' T5Attention._relative_position_bucket): exact up to half of
// the buckets, then logarithmic up to max_distance. Both ways in the encoder, where the past and the future have half
// of the buckets each; in the decoder there is only the past.
static int t5_bucket(int distance, bool both_ways, int buckets, int max_distance) {
    int first = 0, n = -distance;
    if (both_ways) {
        buckets /= 2;
        if (distance > 0) first = buckets;
        n = abs(distance);
    }
    const int exact = buckets / 2;
    if (n < 0) n = 0;
    if (n < exact) return first + n;
    // In f32 as PyTorch has it; the cast cuts off.
    const float log_ratio = logf((float)n / exact) / (float)log((double)max_distance / exact);
    const int far = exact + (int)(log_ratio * (buckets - exact));
    return first + (far < buckets - 1 ? far : buckets - 1);
}

// The tables by bucket, spread out by distance once.
static void t5_spread_bias(Run *r) {
    // -> enc_bias (HL, 2*TP-1), dec_bias (HL, max_new+1)
    const Config *c = &r->m->config;
    const int E = 2 * r->TP - 1, N = r->lim.max_new + 1;
    for (int h = 0; h < c->HL; h++) {
        for (int i = 0; i < E; i++)
            r->enc_bias[(size_t)h * E + i] =
                r->m->t5.enc_bias[t5_bucket(i - (r->TP - 1), true, c->buckets, c->max_distance) * c->HL + h];
        for (int i = 0; i < N; i++)
            r->dec_bias[(size_t)h * N + i] =
                r->m->t5.dec_bias[t5_bucket(-i, false, c->buckets, c->max_distance) * c->HL + h];
    }
}

// x += wo(act(wi_0 n) * (wi_1 n)), n = norm(x).
static void t5_feed_forward(Run *r, const T5Block *w, int T) {
    // x (T,DL), in place
    const Config *c = &r->m->config;
    const size_t F = c->FL;
    rmsnorm(r->h, r->x, w->ln2, c->eps_lm, T, c->DL, &r->par);
    matmul(r->ff, r->h, &w->wi_w, NULL, T, &r->par);
    for (int t = 0; t < T; t++) memcpy(r->gate + t * F, r->ff + t * 2 * F, F * sizeof *r->gate);
    activate_all(r->gate, c->act, T * F, &r->par);
    for (int t = 0; t < T; t++)
        for (size_t f = 0; f < F; f++) r->gate[t * F + f] *= r->ff[t * 2 * F + F + f];
    matmul_then(r->x, r->gate, &w->wo_w, NULL, THEN_ADD, T, &r->par);
}

static void t5_encode(Run *r, int T) {
    // x (T,DL) -> h (T,DL)
    const Config *c = &r->m->config;
    const int D = c->DL, I = c->IL, E = 2 * r->TP - 1;
    for (int l = 0; l < c->LE; l++) {
        const T5Block *w = &r->m->t5_encoder[l];
        rmsnorm(r->h, r->x, w->ln1, c->eps_lm, T, D, &r->par);
        matmul(r->qkv, r->h, &w->qkv_w, NULL, T, &r->par);
        attention(r->att, r->qkv, 3 * I, r->qkv + I, r->qkv + 2 * I, 3 * I, 1, false, r->enc_bias + r->TP - 1, E, T, T,
                  c->HL, c->AL, r);
        matmul_then(r->x, r->att, &w->out_w, NULL, THEN_ADD, T, &r->par);
        t5_feed_forward(r, w, T);
        probe(r, r->x, T, D, "language_model.encoder.block.%d", l);
    }
    rmsnorm(r->h, r->x, r->m->t5.enc_ln, c->eps_lm, T, D, &r->par);
    probe(r, r->h, T, D, "language_model.encoder.final_layer_norm");
}

// Self-attention to what was generated, cross-attention to the encoder's output (without bias), feed-forward.
static void t5_decode(Run *r, const Pass *p) {
    // x (T,DL) -> h (T,DL)
    const Config *c = &r->m->config;
    const int T = p->T, D = c->DL, I = c->IL;
    for (int l = 0; l < c->LD; l++) {
        const T5Block *w = &r->m->t5_decoder[l];
        const T5Cross *cross = &r->m->t5_cross[l];
        rmsnorm(r->h, r->x, w->ln1, c->eps_lm, T, D, &r->par);
        matmul(r->qkv, r->h, &w->qkv_w, NULL, T, &r->par);
        kv_store(r, l, p);
        attend_past(r->att, r->qkv, 3 * I, l, 1, false, r->dec_bias, r->lim.max_new + 1, p, r);
        matmul_then(r->x, r->att, &w->out_w, NULL, THEN_ADD, T, &r->par);

        rmsnorm(r->h, r->x, cross->ln, c->eps_lm, T, D, &r->par);
        matmul(r->qkv, r->h, &cross->q_w, NULL, T, &r->par);
        attend_past(r->att, r->qkv, I, l, 1, true, NULL, 0, p, r);
        matmul_then(r->x, r->att, &cross->out_w, NULL, THEN_ADD, T, &r->par);

        t5_feed_forward(r, w, T);
        if (p->t < 0) probe(r, r->x, T, D, "language_model.decoder.block.%d", l);
    }
    rmsnorm(r->h, r->x, r->m->t5.dec_ln, c->eps_lm, T, D, &r->par);
    if (p->t < 0) probe(r, r->h, T, D, "language_model.decoder.final_layer_norm");
}

// Encoder, then keys and values for every decoder layer's cross-attention, then the start token alone.
static void t5_prompt(Run *r, const Prompt *prompt, int b) {
    // -> kv_cross and kv_prompt of b, row b of logits
    const Config *c = &r->m->config;
    const int T = lm_embed_prompt(r, prompt);
    t5_encode(r, T);
    for (int l = 0; l < c->LD; l++) matmul(kv_cross_at(r, l, b), r->h, &r->m->t5_cross[l].kv_w, NULL, T, &r->par);
    r->cross_T[b] = T;
    r->prompt_T[b] = 1;
    tensor_row(r->x, &r->m->lm.tok, c->start);
    t5_decode(r, &(Pass){.T = 1, .b = b, .t = -1});
    lm_head(r, r->logits + (size_t)b * c->V, r->h, 1);
}

// ---------------------------------------------------------------------------------------------------------
// 8. The backend.

// A matrix of fewer bytes is not worth a thought. To turn one costs up to some 60 times what skipping saves, in int8 90
// times: most of it is the system's, which has to find and clear the memory (doc/tried.md).
enum { SKIP_LEAST = 1 << 20, SKIP_PATIENCE = 60, SKIP_PATIENCE_INT8 = 90 };

static Run run_for(const Model *m, const Limits *lim) {
    const int TP = m->config.Q + lim->prompt;
    return (Run){.m = m, .lim = *lim, .TP = TP, .TK = m->config.family == T5 ? 1 : TP};
}

static uint64_t cpu_bytes_needed(const Model *m, const Limits *lim) {
    Run r = run_for(m, lim);
    Arena count = {0};
    plan(&r, &count);
    return count.overflow ? UINT64_MAX : count.used;
}

static void *cpu_open(const Model *m, const Limits *lim, Err *e) {
    const MatmulKernels *kernels = matmul_kernels(lim->isa);
    if (!kernels) {
        Text names = {0};
        for (int i = 0; matmul_isa_names(i); i++)
            if (matmul_kernels(matmul_isa_names(i))) text_printf(&names, " %s", matmul_isa_names(i));
        fail(e, "no inner loops called %s on this processor; there are:%s", lim->isa, names.data);
        text_free(&names);
        return NULL;
    }
    const uint64_t bytes = cpu_bytes_needed(m, lim);
    Run *r = bytes == UINT64_MAX ? NULL : malloc(sizeof *r);
    void *memory = r ? aligned_alloc(64, bytes) : NULL;
    if (!memory) {
        free(r);
        fail(e, "not enough memory: activations and KV cache need %.1f MB beside the %.1f MB weight file; "
                "hint: lower --ctx, -b or -n", bytes / 1e6, m->file_bytes / 1e6);
        return NULL;
    }
    *r = run_for(m, lim);
    r->memory = memory;
    plan(r, &(Arena){.base = memory});
    r->par.kernels = kernels;
    r->par.pool = pool_open(lim->threads);
    if (!r->par.pool) {
        free(memory);
        free(r);
        fail(e, "not enough memory for %d threads; hint: -t", lim->threads);
        return NULL;
    }
    r->par.threads = pool_threads(r->par.pool);
    r->search = search_init(r->search_memory, lim->B, lim->R, lim->max_new, m->config.V, m->config.eos, m->config.pad);
    if (m->config.family == T5) t5_spread_bias(r);
    else if (m->config.act == ACT_RELU)
        r->skip = skip_open(&m->opt_layer->fc2_w, sizeof *m->opt_layer, m->config.LD, true, SKIP_LEAST,
                            m->opt_layer->fc2_w.dtype == DT_INT8 ? SKIP_PATIENCE_INT8 : SKIP_PATIENCE);
    return r;
}

static void cpu_close(void *self) {
    Run *r = self;
    pool_close(r->par.pool);
    skip_close(r->skip);
    free(r->memory);
    free(r);
}

static void cpu_encode(void *self, const uint8_t *pixels, int B) {
    // pixels (B,S,S,3) -> image_rows (B,Q,DL)
    Run *r = self;
    const Config *c = &r->m->config;
    CHECK(B >= 1 && B <= r->lim.B);
    for (int b = 0; b < B; b++) {
        const double start = seconds_now();
        vit_forward(r, pixels + (size_t)b * c->S * c->S * 3);
        const double seen = seconds_now();
        qformer_forward(r, r->image_rows + (size_t)b * c->Q * c->DL);
        r->times.vit += seen - start;
        r->times.qformer += seconds_now() - seen;
    }
}

// The ids that transformers has in input_ids before the first new token, which the repetition penalty looks at.
static void note_seen(Run *r, const Prompt *prompt, int b) {
    // -> seen_of[b], n_seen[b]
    const Config *c = &r->m->config;
    int *seen = r->seen + (size_t)b * r->TP, n = 0;
    if (c->family == T5) seen[n++] = c->start;
    else {
        if (c->image_token >= 0) for (; n < c->Q; n++) seen[n] = c->image_token;
        memcpy(seen + n, prompt->ids, prompt->n * sizeof *seen);
        n += prompt->n;
    }
    r->seen_of[b] = seen;
    r->n_seen[b] = n;
}

static void cpu_prompt(void *self, const Prompt *prompts, int B, const Choice *how) {
    // B prompts -> logits (B,V), and a search over R rows that has not begun to choose
    Run *r = self;
    const int K = search_rows(how);
    const double start = seconds_now();
    CHECK(B >= 1 && B <= r->lim.B && B * K <= r->lim.R && how->max_new <= r->lim.max_new);
    for (int b = 0; b < B; b++) {
        CHECK(prompts[b].n >= 1 && prompts[b].n <= r->lim.prompt);
        (r->m->config.family == T5 ? t5_prompt : opt_prompt)(r, &prompts[b], b);
        probe(r, r->logits + (size_t)b * r->m->config.V, 1, r->m->config.V, "logits");
        note_seen(r, &prompts[b], b);
    }
    r->B = B;
    r->R = B * K;
    r->t = 0;
    for (int i = 0; i < r->R; i++) r->row_prompt[i] = i / K;
    search_begin(r->search, how, r->seen_of, r->n_seen, B);
    r->times.prompt += seconds_now() - start;
}

static bool cpu_step(void *self, Step *out) {
    Run *r = self;
    const Config *c = &r->m->config;
    const size_t row = r->lim.max_new;
    const double start = seconds_now();
    if (!search_step(r->search, out, r->logits)) return false;
    const double chosen = seconds_now();
    *(r->t == 0 ? &r->times.prompt : &r->times.decode) += chosen - start;
    if (!out->more) return true;

    // Token t of a row lies in its own slot; the tokens before it where its parent had them.
    for (int i = 0; i < r->R; i++) {
        memcpy(r->line_next + i * row, r->line + out->parent[i] * row, r->t * sizeof *r->line);
        r->line_next[i * row + r->t] = i;
    }
    int *line = r->line;
    r->line = r->line_next;
    r->line_next = line;

    const Pass p = {.T = r->R, .t = r->t};
    for (int i = 0; i < r->R; i++) {
        tensor_row(r->x + (size_t)i * c->DL, &r->m->lm.tok, out->token[i]);
        if (c->family == OPT) opt_add_position(r, i, r->prompt_T[r->row_prompt[i]] + r->t);
    }
    (c->family == T5 ? t5_decode : opt_forward)(r, &p);
    lm_head(r, r->logits, r->h, r->R);
    r->t++;
    r->times.decode += seconds_now() - chosen;
    return true;
}

static Hypothesis cpu_result(void *self, int b, int rank) { return search_result(((Run *)self)->search, b, rank); }

static uint64_t cpu_uploaded(const void *self, double *seconds) {
    (void)self;
    *seconds = 0;
    return 0;
}

static uint64_t cpu_left_out(const void *self) { return skip_count(((const Run *)self)->skip).bytes; }

static Times cpu_times(const void *self) { return ((const Run *)self)->times; }

const Backend backend_cpu = {
    .name = "cpu", .bytes_needed = cpu_bytes_needed, .open = cpu_open, .encode = cpu_encode, .prompt = cpu_prompt,
    .step = cpu_step, .result = cpu_result, .uploaded = cpu_uploaded, .left_out = cpu_left_out, .times = cpu_times,
    .close = cpu_close,
};
