// blip2.cu: BLIP-2 on an NVIDIA GPU, the same contract as blip2.c (blip2.h, section 5) and the same order.
//
// In order:
//   1. Run: the memory of one model in use, planned once; weights on their way to the device
//   2. a dense layer in the form that suits its number of rows; probes; graphs
//   3. the vision transformer
//   4. the Q-Former and the projection into the language model
//   5. the KV cache, and the lists that say what the rows of a pass are
//   6. OPT: decoder layers, for prompts and for one more token
//   7. T5: encoder, decoder
//   8. choosing tokens, and the step that a graph repeats
//   9. the Backend
//
// Kernels stand in the files included below; here is what is launched in which order on which memory. Images and
// prompts of a batch go through together, their rows packed one behind the other. Everything runs on one stream. The
// type T of the functions below is that of the activations that feed matrix multiplies: bf16, or float when the weight
// file is f32 (then nothing is rounded and results can be compared with the CPU's). The residual stream is f32.
// Not here: what a layer computes and why (blip2.c), files, images, text.

#include "cuda_common.h"

extern "C" {
#include "blip2.h"
#include "threads.h"
}

#include "cuda_layers.cuh"
#include "cuda_attention.cuh"
#include "cuda_dense.cuh"
#include "cuda_choose.cuh"

#include <math.h>
#include <stdarg.h>

// ---------------------------------------------------------------------------------------------------------
// 1. Memory. Device pointers have no prefix, since nearly everything is on the device; what is on the host starts with
// host_. Buffers are shared by the stages, each as large as the largest needs it.

enum {
    MAX_BUFFERS = 64,
    IMAGES_AT_ONCE = 32,         // larger batches go through the ViT in turns of so many
    ROWS_AT_ONCE = 4096,         // and through the language model in turns of about so many rows
    RING = 4,                    // pinned pieces on their way to the device
    RING_BYTES = 16 << 20,
    WORKSPACE_BYTES = 32 << 20,  // for cuBLASLt, the size that NVIDIA recommends for sm_90; and for Device.partial
};

enum { VIT_BEGINS, QFORMER_BEGINS, QFORMER_ENDS, PROMPT_BEGINS, MARKS };   // events on the stream, see Times

typedef struct { int key, seen; cudaGraphExec_t exec; } Graph;

typedef struct { const float *b; size_t at; } Bias;   // a bias on the device, and where its bf16 copy begins

typedef struct {
    const Model *m;        // on the host
    Model d;               // the same with pointers into the device's copy of the file
    Limits lim;
    Device dev;
    cudaStream_t s;
    Lt lt;
    bool f32;              // T is float
    bool skip;             // fc2 without the neurons that ReLU set to zero: see skip_wanted
    int TP, TK;            // as in blip2.c
    int BV, TM;            // most images, and most rows of prompts, that go through at once
    // device
    uint8_t *file;
    bf16 *bias16;          // copies of the biases whose layers have bf16 results
    uint8_t *pixels;       // (BV,S,S,3)
    float *x;              // residual stream
    float *last;           // (max(B,R), DL) rows that the head looks at
    float *stage;          // patches behind the convolution; what a probe looks at
    void *h, *qkv, *att, *ff, *gate, *patches, *cross_kv;   // activations, see blip2.c
    float *image_rows;     // (B*Q, DL)
    void *kv_prompt;       // (LD, B*TK, 2*IL)
    void *kv_new;          // (LD, max_new, R, 2*IL)
    void *kv_cross;        // (LD, B*TP, 2*IL), the prompts one behind the other
    bf16 *fc2_t;           // (LD, FL, DL) when skip
    float *enc_bias, *dec_bias;
    float *logits;         // (max(B,R), V)
    int *line;             // (2,R,max_new), see Past
    int *prompt_ints;      // what prompt() says about its rows: Lists
    int *fixed_ints;       // and what never changes
    int *step_ints;        // of the token that is fed: its number t, then position (R) and slot (R)
    uint8_t *search_block; // the device's Search
    int *seen_ids;         // (B,TP) see note_seen
    float *values, *scratch;   // for choosing
    // host
    int *host_prompt;                // pinned
    uint8_t *host_export;            // pinned: what the device's Search starts with
    uint8_t *host_state[2];          // pinned: its state behind even and odd steps
    float *host_probe;
    uint8_t *host_search, *host_seen;
    Bias *bias;            // (n_bias), in the order of b
    int n_bias;
    size_t bias_elements;
    uint64_t upload_bytes;
    double upload_seconds;
    Search *search;
    Graph vit_graph[2], qformer_graph[2], step_graph;
    cudaEvent_t mark[MARKS];
    cudaEvent_t chosen[3]; // [t % 3]: step t has arrived; the one before it, it, and the one that is queued
    Times times;
    int B, R;              // of the generation under way: prompts, rows
    int t, queued;         // steps that the host has seen, steps that are under way or done
    const bool *going;     // while a step is queued: the flag of the device's Search, see goes_on
    int max_new;
    bool beams, more;
    void *owned[MAX_BUFFERS];
    int n_owned;
} Run;

// plan() goes over all buffers twice: once to add up their bytes, once to take them.
typedef struct { Run *r; uint64_t bytes; bool overflow, taking, failed; } Plan;

static void take_bytes(Plan *a, void **p, uint64_t n0, uint64_t n1, uint64_t n2, uint64_t size) {
    uint64_t bytes = size, end;
    if (!mul_ok(&bytes, bytes, n0) || !mul_ok(&bytes, bytes, n1) || !mul_ok(&bytes, bytes, n2) ||
        !add_ok(&end, a->bytes, bytes) || !add_ok(&end, end, 511)) {
        a->overflow = true;
        return;
    }
    a->bytes = end & ~(uint64_t)511;
    if (!a->taking || a->failed || bytes == 0) return;
    CHECK(a->r->n_owned < MAX_BUFFERS);
    if (cudaMalloc(p, bytes) != cudaSuccess) a->failed = true;
    else a->r->owned[a->r->n_owned++] = *p;
}
template <typename P> static void take(Plan *a, P **p, uint64_t n0, uint64_t n1, uint64_t n2, uint64_t size) {
    take_bytes(a, (void **)p, n0, n1, n2, size);
}

static uint64_t most(uint64_t a, uint64_t b) { return a > b ? a : b; }

static uint64_t file_data(const Model *m) { return read_u64(m->file + 16); }   // where the tensors begin

static uint64_t lists_ints(const Run *r) { return (uint64_t)r->lim.B * (3 * (uint64_t)r->TP + 6) + r->lim.R; }

static void plan(Run *r, Plan *a) {
    const Config *c = &r->m->config;
    const bool t5 = c->family == T5;
    const uint64_t F = sizeof(float), A = r->f32 ? F : sizeof(bf16), I = sizeof(int);
    const uint64_t N = (uint64_t)r->BV * c->N, Q = (uint64_t)r->BV * c->Q, B = r->lim.B, R = r->lim.R;
    const uint64_t TL = most(most(r->TM, R), B), fresh = r->lim.max_new;
    const uint64_t width = most(most(N * c->DV, Q * c->DQ), TL * most(c->DL, c->IL));
    take(a, &r->file,       r->m->file_bytes - file_data(r->m), 1, 1, 1);
    take(a, &r->bias16,     r->bias_elements, 1, 1, sizeof(bf16));
    take(a, (uint8_t **)&r->lt.workspace, WORKSPACE_BYTES, 1, 1, 1);
    take(a, &r->dev.tickets, STREAM_TICKETS, 1, 1, I);
    take(a, &r->pixels,     r->BV, (uint64_t)c->S * c->S, 3, 1);
    take(a, &r->x,          most(most(N * c->DV, Q * c->DQ), TL * c->DL), 1, 1, F);
    take(a, &r->last,       most(B, R), c->DL, 1, F);
    take(a, &r->stage,      r->lim.probe ? most(N * c->DV, most((uint64_t)3 * c->S * c->S, TL * c->DL))
                                         : r->f32 ? N * c->DV : 0, 1, 1, F);
    take(a, &r->h,          width, 1, 1, A);
    take(a, &r->qkv,        most(most(N * c->DV, Q * c->DQ), TL * c->IL), 3, 1, A);
    take(a, &r->att,        width, 1, 1, A);
    take(a, &r->ff,         most(most(N * c->FV, Q * c->FQ), TL * c->FL * (t5 ? 2 : 1)), 1, 1, A);
    take(a, &r->gate,       t5 ? TL : 0, c->FL, 1, A);
    take(a, &r->patches,    r->f32 ? N : 0, 3, (uint64_t)c->P * c->P, A);
    take(a, &r->cross_kv,   N, c->NX, 2 * (uint64_t)c->DQ, A);
    take(a, &r->image_rows, B * c->Q, c->DL, 1, F);
    take(a, &r->kv_prompt,  c->LD, B * r->TK, 2 * (uint64_t)c->IL, A);
    take(a, &r->kv_new,     c->LD * fresh, R, 2 * (uint64_t)c->IL, A);
    take(a, &r->kv_cross,   t5 ? c->LD : 0, B * r->TP, 2 * (uint64_t)c->IL, A);
    take(a, &r->fc2_t,      r->skip ? c->LD : 0, c->FL, c->DL, sizeof(bf16));
    take(a, &r->enc_bias,   t5 ? c->HL : 0, 2 * (uint64_t)r->TP - 1, 1, F);
    take(a, &r->dec_bias,   t5 ? c->HL : 0, fresh + 1, 1, F);
    take(a, &r->logits,     most(B, R), c->V, 1, F);
    take(a, &r->line,       2, R, fresh, I);
    take(a, &r->prompt_ints, lists_ints(r), 1, 1, I);
    take(a, &r->fixed_ints, 4, (uint64_t)r->BV + most(B, R) + 1, 1, I);
    take(a, &r->step_ints,  2, R + 1, 1, I);
    take(a, &r->search_block, search_bytes(r->lim.B, r->lim.R, r->lim.max_new, c->V), 1, 1, 1);
    take(a, &r->seen_ids,   B, r->TP, 1, I);
    take(a, &r->values,     R, c->V, 1, F);
    take(a, &r->scratch,    R, choose_scratch(c->V, r->lim.R), 1, F);
}

// Biases of the layers whose result is an activation: the library wants them in its type.
static void list_bias(Run *r, const float *b, int n) {
    r->bias[r->n_bias++] = (Bias){b, r->bias_elements};
    r->bias_elements += (size_t)n;
}

static void list_biases(Run *r) {
    const Config *c = &r->d.config;
    const Model *d = &r->d;
    for (int l = 0; l < c->LV; l++) list_bias(r, d->vit_block[l].qkv_b, 3 * c->DV);
    list_bias(r, d->qformer.cross_kv_b, c->NX * 2 * c->DQ);
    for (int l = 0; l < c->LQ; l++) list_bias(r, d->qformer_layer[l].qkv_b, 3 * c->DQ);
    for (int l = 0; l < c->NX; l++) list_bias(r, d->qformer_cross[l].q_b, c->DQ);
    for (int l = 0; l < c->LD && c->family == OPT; l++) {
        list_bias(r, d->opt_layer[l].qkv_b, 3 * c->IL);
        list_bias(r, d->opt_layer[l].fc1_b, c->FL);
    }
}

static int by_address(const void *a, const void *b) {
    const uintptr_t x = (uintptr_t)((const Bias *)a)->b, y = (uintptr_t)((const Bias *)b)->b;
    return x < y ? -1 : x > y;
}

static const void *bias16_of(const Run *r, const float *b) {
    const Bias key = {b, 0};
    const Bias *found = (const Bias *)bsearch(&key, r->bias, r->n_bias, sizeof key, by_address);
    CHECK(found);
    return r->bias16 + found->at;
}

__global__ void bias16_kernel(bf16 *out, const float *b, int n) {
    // b (n) -> out (n)
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) out[i] = f32_to_bf16(b[i]);
}

// The host's Model with every pointer moved from the mapping to the device's copy.
#define MAT(field, name, rows, cols) move(&w->field, shift);
#define VEC(field, name, rows, cols) w->field = (const float *)((const uint8_t *)w->field + shift);
#define MOVE(Type, where, TABLE) do { Type *w = where; TABLE(MAT, VEC) } while (0)
static void move(Tensor *t, ptrdiff_t shift) {
    t->data = (const uint8_t *)t->data + shift;
    if (t->scale) t->scale = (const uint8_t *)t->scale + shift;
}

template <typename L> static L *copy_layers(const L *from, int n) {
    L *to = (L *)calloc(n ? n : 1, sizeof *to);
    CHECK(to);
    if (n) memcpy(to, from, n * sizeof *to);
    return to;
}

static void device_model(Run *r) {
    const Model *m = r->m;
    const Config *c = &m->config;
    Model *d = &r->d;
    const ptrdiff_t shift = r->file - (m->file + file_data(m));
    *d = *m;
    d->vit_block = copy_layers(m->vit_block, c->LV);
    d->qformer_layer = copy_layers(m->qformer_layer, c->LQ);
    d->qformer_cross = copy_layers(m->qformer_cross, c->NX);
    const bool opt = c->family == OPT;
    d->opt_layer = copy_layers(m->opt_layer, opt ? c->LD : 0);
    d->t5_encoder = copy_layers(m->t5_encoder, opt ? 0 : c->LE);
    d->t5_decoder = copy_layers(m->t5_decoder, opt ? 0 : c->LD);
    d->t5_cross = copy_layers(m->t5_cross, opt ? 0 : c->LD);
    MOVE(Vit, &d->vit, VIT_TENSORS);
    for (int l = 0; l < c->LV; l++) MOVE(VitBlock, &d->vit_block[l], VIT_BLOCK_TENSORS);
    MOVE(QFormer, &d->qformer, QFORMER_TENSORS);
    for (int l = 0; l < c->LQ; l++) MOVE(QFormerLayer, &d->qformer_layer[l], QFORMER_LAYER_TENSORS);
    for (int l = 0; l < c->NX; l++) MOVE(QFormerCross, &d->qformer_cross[l], QFORMER_CROSS_TENSORS);
    MOVE(Lm, &d->lm, LM_TENSORS);
    if (c->tied) d->lm.head = d->lm.tok;
    else MOVE(Lm, &d->lm, LM_HEAD_TENSORS);
    if (opt) MOVE(Opt, &d->opt, OPT_TENSORS);
    for (int l = 0; opt && l < c->LD; l++) MOVE(OptLayer, &d->opt_layer[l], OPT_LAYER_TENSORS);
    if (!opt) MOVE(T5Stack, &d->t5, T5_TENSORS);
    for (int l = 0; !opt && l < c->LE; l++) MOVE(T5Block, &d->t5_encoder[l], T5_BLOCK_TENSORS);
    for (int l = 0; !opt && l < c->LD; l++) MOVE(T5Block, &d->t5_decoder[l], T5_BLOCK_TENSORS);
    for (int l = 0; !opt && l < c->LD; l++) MOVE(T5Cross, &d->t5_cross[l], T5_CROSS_TENSORS);
}
#undef MAT
#undef VEC
#undef MOVE

// The mapped file to the device: pieces go through a ring of pinned buffers, so that the copy of one piece over the bus
// runs while the next is read from the page cache (by all threads, one reads slower than the bus is).
static int upload(Run *r, Err *e) {
    const uint8_t *from = r->m->file + file_data(r->m);
    const size_t all = r->m->file_bytes - file_data(r->m);
    const size_t some = (all / (2 * RING) + 4095) & ~(size_t)4095;   // small files go round the ring too
    const size_t piece = some < 4096 ? 4096 : some < RING_BYTES ? some : (size_t)RING_BYTES;
    const double start = seconds_now();
    uint8_t *ring[RING] = {0};
    cudaEvent_t free_again[RING];
    int made = 0;
    Pool *pool = pool_open(r->lim.threads);
    for (; made < RING; made++) {
        if (cudaMallocHost((void **)&ring[made], piece) != cudaSuccess) break;
        CUDA_CHECK(cudaEventCreateWithFlags(&free_again[made], cudaEventDisableTiming));
    }
    if (made > 0)
        for (size_t at = 0, i = 0; at < all; at += piece, i++) {
            const size_t n = all - at < piece ? all - at : piece;
            uint8_t *to = ring[i % made];
            if (i >= (size_t)made) CUDA_CHECK(cudaEventSynchronize(free_again[i % made]));
            pool_copy(pool, to, from + at, n);
            CUDA_CHECK(cudaMemcpyAsync(r->file + at, to, n, cudaMemcpyHostToDevice, r->s));
            CUDA_CHECK(cudaEventRecord(free_again[i % made], r->s));
        }
    CUDA_CHECK(cudaStreamSynchronize(r->s));
    pool_close(pool);
    for (int i = 0; i < made; i++) {
        CUDA_CHECK(cudaFreeHost(ring[i]));
        CUDA_CHECK(cudaEventDestroy(free_again[i]));
    }
    if (made == 0) return fail(e, "no pinned host memory for the upload (%zu bytes)", piece);
    r->upload_bytes = all, r->upload_seconds = seconds_now() - start;
    return 0;
}

// ---------------------------------------------------------------------------------------------------------
// 2. Dense layers, probes, graphs.

// out (T, w.rows) by kind <- act(x w^T + b)
static Dense dense_of(void *out, int kind, const void *x, const Tensor &w, const float *b, int act, int T) {
    Dense d = {};
    d.out = out, d.kind = kind, d.x = x, d.w = w, d.b = b, d.act = act, d.T = T, d.OC = w.rows, d.C = w.cols;
    return d;
}
// The same of the norm of x; norm_b NULL for RMS norm.
static Dense dense_norm(void *out, int kind, const float *x, const float *norm_w, const float *norm_b, float eps,
                        const Tensor &w, const float *b, int act, int T) {
    Dense d = dense_of(out, kind, NULL, w, b, act, T);
    d.x32 = x, d.norm_w = norm_w, d.norm_b = norm_b, d.eps = eps, d.norm_scale = 1;
    return d;
}

// Few rows: one kernel, everything fused. Many: norm, multiply, and what the library's epilogues do not know.
template <typename T> static void dense(Run *r, Dense d) {
    d.going = r->going;
    const bool stream = sizeof(T) == 2 && d.T <= STREAM_MOST;
    if (d.T <= (stream ? (int)STREAM_NORM_MOST : (int)ROWS_MOST) && rows_dense<T>(r->s, d, r->dev)) return;
    if (d.x32) {
        norm<T>(r->s, (T *)r->h, NULL, d.x32, d.norm_w, d.norm_b, d.eps, d.norm_scale, d.T, d.C);
        d.x = r->h, d.x32 = NULL;
    }
    if (stream && (stream_dense(r->s, d, r->dev) || (d.T <= ROWS_MOST && rows_dense<T>(r->s, d, r->dev)))) return;
    if (sizeof(T) == 2 && tile_fits(d)) { tile_dense(r->s, d, r->dev); return; }
    Dense g = d;
    if (d.gated) g.OC = 2 * d.OC, g.out = r->ff, g.gated = 0;
    const bool relu = d.act == ACT_RELU && d.b && d.kind == OUT_ACT && !d.gated;
    const bool later = d.gated || (d.act != ACT_NONE && !relu);     // a kernel of its own, which adds the bias too
    const bool own_type = d.kind == OUT_ACT && !r->f32;
    const void *bias = later || !d.b ? NULL : own_type ? bias16_of(r, d.b) : d.b;
    const bool plain = d.w.dtype == (r->f32 ? DT_F32 : DT_BF16);
    if (plain && lt_dense(r->s, &r->lt, g, bias, relu)) {
        if (later) activate<T>(r->s, (T *)d.out, (const T *)g.out, d.b, d.act, d.gated, d.T, d.OC);
        if (d.kv) kv_store<T>(r->s, (T *)d.kv, (const T *)d.out, d.slot, d.T, d.kv_from);
        return;
    }
    if (r->f32) {   // eight rows at a time
        const bool fits = rows_dense<T>(r->s, d, r->dev);
        CHECK(fits);
        return;
    }
    if (d.gated) g.act = ACT_NONE;
    gemm(r->s, g);
    if (d.gated) activate<T>(r->s, (T *)d.out, (const T *)g.out, NULL, d.act, true, d.T, d.OC);
}

// Shows a stage's output to whoever watches, as blip2.c does. Only then the host waits.
__attribute__((format(printf, 5, 6)))
static void probe(Run *r, const float *x, int rows, int cols, const char *fmt, ...) {
    // x (rows,cols) on the device
    if (!r->lim.probe) return;
    char name[128];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(name, sizeof name, fmt, ap);
    va_end(ap);
    CUDA_CHECK(cudaMemcpyAsync(r->host_probe, x, (size_t)rows * cols * sizeof *x, cudaMemcpyDeviceToHost, r->s));
    CUDA_CHECK(cudaStreamSynchronize(r->s));
    r->lim.probe(r->lim.probe_arg, name, r->host_probe, rows, cols);
}

template <typename T> static void probe_act(Run *r, const T *x, int rows, int cols, const char *name) {
    if (!r->lim.probe) return;
    to_f32<T>(r->s, r->stage, x, (size_t)rows * cols);
    probe(r, r->stage, rows, cols, "%s", name);
}

// Runs `work`, the first time for a key as it is (the library loads its kernels then), later as a graph, whose launch
// costs the host a few microseconds instead of a few per kernel.
template <typename Work> static void run_graph(Run *r, Graph *g, int key, Work work) {
    if (g->key != key) {
        if (g->exec) CUDA_CHECK(cudaGraphExecDestroy(g->exec));
        *g = (Graph){key, 0, NULL};
    }
    if (g->seen++ == 0 || r->lim.probe) {
        work();
        return;
    }
    if (!g->exec) {
        cudaGraph_t graph;
        CUDA_CHECK(cudaStreamBeginCapture(r->s, cudaStreamCaptureModeThreadLocal));
        work();
        CUDA_CHECK(cudaStreamEndCapture(r->s, &graph));
        CUDA_CHECK(cudaGraphInstantiate(&g->exec, graph, 0));
        CUDA_CHECK(cudaGraphDestroy(graph));
    }
    CUDA_CHECK(cudaGraphLaunch(g->exec, r->s));
}

// ---------------------------------------------------------------------------------------------------------
// 3. The vision transformer.

// Integers that never change: where the rows of image b begin among tokens and among queries, where those of prompt b
// begin in kv_prompt, and 0, 1, 2, ...
static const int *image_first(const Run *r) { return r->fixed_ints; }
static const int *query_first(const Run *r) { return image_first(r) + r->BV + 1; }
static const int *prompt_first(const Run *r) { return query_first(r) + r->BV + 1; }
static const int *iota(const Run *r) { return prompt_first(r) + r->lim.B; }
static const int *start_ids(const Run *r) { return iota(r) + most(r->lim.B, r->lim.R); }
static const int *image_count(const Run *r) { return start_ids(r) + r->lim.B; }

static int fill_fixed(const Run *r, int *out) {
    const Config *c = &r->m->config;
    int n = 0;
    for (int b = 0; b <= r->BV; b++) out[n++] = b * c->N;
    for (int b = 0; b <= r->BV; b++) out[n++] = b * c->Q;
    for (int b = 0; b < r->lim.B; b++) out[n++] = b * r->TK;
    for (int i = 0; i < (int)most(r->lim.B, r->lim.R); i++) out[n++] = i;
    for (int b = 0; b < r->lim.B; b++) out[n++] = c->start;
    for (int b = 0; b < r->BV; b++) out[n++] = c->N;
    return n;
}

static Attention attention_of(const Run *r, const void *q, int ldq, const void *k, const void *v, int ldkv, float scale,
                              int B, int H, int A, int max_q) {
    Attention a = {};
    a.out = r->att, a.q = q, a.ldq = ldq, a.k = k, a.v = v, a.ldkv = ldkv, a.scale = scale;
    a.B = B, a.H = H, a.A = A, a.max_q = max_q;
    return a;
}

template <typename T> static void vit_embed(Run *r, int B) {
    // pixels (B,S,S,3) -> x (B*N,DV)
    const Config *c = &r->m->config;
    const Vit *w = &r->d.vit;
    const Pixels p = {{c->mean_r, c->mean_g, c->mean_b}, {c->std_r, c->std_g, c->std_b}};
    if (r->lim.probe) {   // one patch as large as the image is the image
        patches<float>(r->s, r->stage, r->pixels, p, 1, c->S, c->S);
        probe(r, r->stage, 3 * c->S, c->S, "pixel_values");
    }
    if (sizeof(T) == 2)
        embed_patches(r->s, r->x, r->pixels, p, w->patch_w, w->patch_b, w->cls, w->pos, B, c->S, c->P);
    else {
        patches<T>(r->s, (T *)r->patches, r->pixels, p, B, c->S, c->P);
        dense<T>(r, dense_of(r->stage, OUT_F32, r->patches, w->patch_w, w->patch_b, ACT_NONE, B * (c->N - 1)));
        tokens(r->s, r->x, r->stage, w->cls, w->pos, B, c->N, c->DV);
    }
    probe(r, r->x, c->N, c->DV, "vision_model.embeddings");
}

template <typename T> static void vit_block(Run *r, const VitBlock *w, int B) {
    // x (B*N,DV), in place
    const Config *c = &r->m->config;
    const int D = c->DV, rows = B * c->N, A = D / c->HV;
    const T *qkv = (const T *)r->qkv;
    dense<T>(r, dense_norm(r->qkv, OUT_ACT, r->x, w->ln1_w, w->ln1_b, c->eps_vit, w->qkv_w, w->qkv_b, ACT_NONE, rows));
    Attention a = attention_of(r, qkv, 3 * D, qkv + D, qkv + 2 * D, 3 * D, 1 / sqrtf(A), B, c->HV, A, c->N);
    a.q_first = a.k_first = image_first(r);
    attention<T>(r->s, a);
    dense<T>(r, dense_of(r->x, OUT_ADD, r->att, w->proj_w, w->proj_b, ACT_NONE, rows));
    dense<T>(r, dense_norm(r->ff, OUT_ACT, r->x, w->ln2_w, w->ln2_b, c->eps_vit, w->fc1_w, w->fc1_b, ACT_GELU, rows));
    dense<T>(r, dense_of(r->x, OUT_ADD, r->ff, w->fc2_w, w->fc2_b, ACT_NONE, rows));
}

template <typename T> static void vit_forward(Run *r, int B) {
    // pixels (B,S,S,3) -> h (B*N,DV)
    const Config *c = &r->m->config;
    const Vit *w = &r->d.vit;
    vit_embed<T>(r, B);
    for (int l = 0; l < c->LV; l++) {
        vit_block<T>(r, &r->d.vit_block[l], B);
        probe(r, r->x, c->N, c->DV, "vision_model.encoder.layers.%d", l);
    }
    norm<T>(r->s, (T *)r->h, NULL, r->x, w->ln_w, w->ln_b, c->eps_post, 1, B * c->N, c->DV);
    probe_act<T>(r, (const T *)r->h, c->N, c->DV, "vision_model.post_layernorm");
}

// ---------------------------------------------------------------------------------------------------------
// 4. The Q-Former. Its norms stand behind the residual, so each writes x anew and leaves a copy of type T in h.

template <typename T> static void qformer_norm(Run *r, const float *w, const float *b, int rows) {
    const Config *c = &r->m->config;
    norm<T>(r->s, (T *)r->h, r->x, r->x, w, b, c->eps_qformer, 1, rows, c->DQ);
}

template <typename T> static void qformer_layer(Run *r, int l, int B) {
    // x and h (B*Q,DQ), in place; cross_kv (B*N, NX*2*DQ)
    const Config *c = &r->m->config;
    const QFormerLayer *w = &r->d.qformer_layer[l];
    const int D = c->DQ, A = D / c->HQ, rows = B * c->Q;
    const float scale = 1 / sqrtf(A);
    const T *qkv = (const T *)r->qkv;
    dense<T>(r, dense_of(r->qkv, OUT_ACT, r->h, w->qkv_w, w->qkv_b, ACT_NONE, rows));
    Attention a = attention_of(r, qkv, 3 * D, qkv + D, qkv + 2 * D, 3 * D, scale, B, c->HQ, A, c->Q);
    a.q_first = a.k_first = query_first(r);
    attention<T>(r->s, a);
    dense<T>(r, dense_of(r->x, OUT_ADD, r->att, w->out_w, w->out_b, ACT_NONE, rows));
    qformer_norm<T>(r, w->ln1_w, w->ln1_b, rows);

    if (l % c->XQ == 0) {
        const int i = l / c->XQ, ld = c->NX * 2 * D;
        const QFormerCross *cross = &r->d.qformer_cross[i];
        const T *k = (const T *)r->cross_kv + (size_t)i * 2 * D;
        dense<T>(r, dense_of(r->qkv, OUT_ACT, r->h, cross->q_w, cross->q_b, ACT_NONE, rows));
        a = attention_of(r, r->qkv, D, k, k + D, ld, scale, B, c->HQ, A, c->Q);
        a.q_first = query_first(r), a.k_first = image_first(r), a.k_count = image_count(r);
        attention<T>(r->s, a);
        dense<T>(r, dense_of(r->x, OUT_ADD, r->att, cross->out_w, cross->out_b, ACT_NONE, rows));
        qformer_norm<T>(r, cross->ln_w, cross->ln_b, rows);
    }

    dense<T>(r, dense_of(r->ff, OUT_ACT, r->h, w->fc1_w, w->fc1_b, ACT_GELU, rows));
    dense<T>(r, dense_of(r->x, OUT_ADD, r->ff, w->fc2_w, w->fc2_b, ACT_NONE, rows));
    qformer_norm<T>(r, w->ln2_w, w->ln2_b, rows);
}

template <typename T> static void qformer_forward(Run *r, float *out, int B) {
    // h (B*N,DV) from the ViT -> out (B*Q,DL)
    const Config *c = &r->m->config;
    const QFormer *w = &r->d.qformer;
    dense<T>(r, dense_of(r->cross_kv, OUT_ACT, r->h, w->cross_kv_w, w->cross_kv_b, ACT_NONE, B * c->N));
    for (int b = 0; b < B; b++)
        CUDA_CHECK(cudaMemcpyAsync(r->x + (size_t)b * c->Q * c->DQ, w->query, (size_t)c->Q * c->DQ * sizeof(float),
                                   cudaMemcpyDeviceToDevice, r->s));
    qformer_norm<T>(r, w->ln_w, w->ln_b, B * c->Q);
    probe(r, r->x, c->Q, c->DQ, "qformer.layernorm");
    for (int l = 0; l < c->LQ; l++) {
        qformer_layer<T>(r, l, B);
        probe(r, r->x, c->Q, c->DQ, "qformer.encoder.layer.%d", l);
    }
    dense<T>(r, dense_of(out, OUT_F32, r->h, w->proj_w, w->proj_b, ACT_NONE, B * c->Q));
    probe(r, out, c->Q, c->DL, "language_projection");
}

// ---------------------------------------------------------------------------------------------------------
// 5. The KV cache, laid out as in blip2.c, and what the rows of a pass are.

template <typename T> static T *kv_prompt_at(const Run *r, int l) {
    return (T *)r->kv_prompt + (size_t)l * r->lim.B * r->TK * 2 * r->m->config.IL;
}
template <typename T> static T *kv_new_at(const Run *r, int l) {
    return (T *)r->kv_new + (size_t)l * r->lim.max_new * r->lim.R * 2 * r->m->config.IL;
}
template <typename T> static T *kv_cross_at(const Run *r, int l) {
    return (T *)r->kv_cross + (size_t)l * r->lim.B * r->TP * 2 * r->m->config.IL;
}

// prompt() writes these lists for all of its prompts; rows are all prompts' rows one behind the other.
typedef struct {
    int *ids, *position, *slot;   // (B*TP) for embed_kernel; where a row's K and V go in kv_prompt
    int *first;                   // (2*B): for each turn of n prompts n + 1 entries, counted from the turn's first row
    int *last;                    // (B) last row of a prompt, counted likewise
    int *first_of;                // (B) first row of a prompt in kv_cross
    int *n_prompt, *n_cross;      // (B) positions in kv_prompt and kv_cross
    int *prompt_of;               // (R) which prompt a row of the generation answers
} Lists;

static Lists lists(const Run *r, int *at) {
    const size_t B = r->lim.B, T = B * r->TP;
    int *b = at + 3 * T;
    return (Lists){at, at + T, at + 2 * T, b, b + 2 * B, b + 3 * B, b + 4 * B, b + 5 * B, b + 6 * B};
}

// What is fed, on the device.
typedef struct { int *t, *position, *slot; } Fed;

static Fed fed(const Run *r) {
    int *at = r->step_ints;
    return (Fed){at, at + 1, at + 1 + r->lim.R};
}

// What passes through the language model: a turn of n prompts from b on (OPT's and T5's encoder), or one token of each
// row, T5's start token (start) or token *t.
typedef struct {
    int T, n;
    bool prompt, start;
    const int *first, *cached;    // of the turn's prompts: Lists.first, and where in kv_prompt they begin
    int longest, row0;            // longest prompt of the turn; its first row among all
    const int *slot;              // (T) where K and V go
    const int *prompt_of;         // (T) whose answer a row belongs to
} Pass;

template <typename T>
static Past past_of(const Run *r, const Pass *p, int l, int ldq, bool cross, float scale, const float *bias) {
    const Config *c = &r->m->config;
    const Lists in = lists(r, r->prompt_ints);
    Past a = {};
    a.out = r->att, a.q = r->qkv, a.ldq = ldq, a.scale = scale, a.prompt_of = p->prompt_of;
    a.kv = cross ? kv_cross_at<T>(r, l) : kv_prompt_at<T>(r, l);
    a.first_of = cross ? in.first_of : prompt_first(r), a.n_of = cross ? in.n_cross : in.n_prompt;
    a.kv_new = cross || p->start ? NULL : kv_new_at<T>(r, l);
    a.line = r->line, a.t = fed(r).t, a.R = r->lim.R, a.max_new = r->lim.max_new;
    a.bias = bias, a.ldb = r->lim.max_new + 1, a.rows = p->T, a.H = c->HL, a.A = c->AL, a.going = r->going;
    return a;
}

// ---------------------------------------------------------------------------------------------------------
// 6. OPT.

template <typename T> static void opt_forward(Run *r, const Pass *p) {
    // x (T,DL), in place
    const Config *c = &r->m->config;
    const int I = c->IL, A = c->AL, rows = p->T;
    for (int l = 0; l < c->LD; l++) {
        const OptLayer *w = &r->d.opt_layer[l];
        const T *kv = kv_prompt_at<T>(r, l);
        Dense d = dense_norm(r->qkv, OUT_ACT, r->x, w->ln1_w, w->ln1_b, c->eps_lm, w->qkv_w, w->qkv_b, ACT_NONE, rows);
        d.kv = p->prompt ? kv_prompt_at<T>(r, l) : kv_new_at<T>(r, l), d.slot = p->slot, d.kv_from = I;
        dense<T>(r, d);
        if (p->prompt) {
            Attention a = attention_of(r, r->qkv, 3 * I, kv, kv + I, 2 * I, 1 / sqrtf(A), p->n, c->HL, A, p->longest);
            a.q_first = p->first, a.k_first = p->cached, a.causal = 1;
            attention<T>(r->s, a);
        } else attend_past<T>(r->s, past_of<T>(r, p, l, 3 * I, false, 1 / sqrtf(A), NULL));
        dense<T>(r, dense_of(r->x, OUT_ADD, r->att, w->out_w, w->out_b, ACT_NONE, rows));
        dense<T>(r, dense_norm(r->ff, OUT_ACT, r->x, w->ln2_w, w->ln2_b, c->eps_lm, w->fc1_w, w->fc1_b, c->act, rows));
        d = dense_of(r->x, OUT_ADD, r->ff, w->fc2_w, w->fc2_b, ACT_NONE, rows);
        d.going = r->going;
        if (!r->skip || p->prompt || !skip_dense(r->s, d, r->fc2_t + (size_t)l * c->FL * c->DL, r->dev)) dense<T>(r, d);
        if (p->prompt) probe(r, r->x, rows, c->DL, "language_model.model.decoder.layers.%d", l);
    }
    if (!p->prompt || !r->lim.probe) return;
    norm<float>(r->s, r->stage, NULL, r->x, r->d.opt.ln_w, r->d.opt.ln_b, c->eps_lm, 1, rows, c->DL);
    probe(r, r->stage, rows, c->DL, "language_model.model.decoder.final_layer_norm");
}

// The last norm, and the head.
template <typename T> static void lm_head(Run *r, float *logits, const float *x, int rows) {
    // x (rows,DL) -> logits (rows,V)
    const Config *c = &r->m->config;
    const bool opt = c->family == OPT;
    Dense d = dense_norm(logits, OUT_F32, x, opt ? r->d.opt.ln_w : r->d.t5.dec_ln, opt ? r->d.opt.ln_b : NULL,
                         c->eps_lm, r->d.lm.head, NULL, ACT_NONE, rows);
    d.norm_scale = c->logit_scale;
    dense<T>(r, d);
}

template <typename T> static void opt_prompts(Run *r, const Pass *p, int b) {
    // -> kv_prompt and rows b.. of logits
    const Config *c = &r->m->config;
    const Lists in = lists(r, r->prompt_ints);
    embed(r->s, r->x, in.ids + p->row0, in.position + p->row0, &r->d.lm.tok, r->image_rows, r->d.opt.pos, p->T, c->DL);
    opt_forward<T>(r, p);
    gather(r->s, r->last, r->x, in.last + b, p->n, c->DL);
    lm_head<T>(r, r->logits + (size_t)b * c->V, r->last, p->n);
}

// ---------------------------------------------------------------------------------------------------------
// 7. T5.

// The bucket of a distance key - query, the rule of blip2.c's t5_bucket (T5Attention._relative_position_bucket).
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
    const float log_ratio = logf((float)n / exact) / (float)log((double)max_distance / exact);
    const int far = exact + (int)(log_ratio * (buckets - exact));
    return first + (far < buckets - 1 ? far : buckets - 1);
}

// One table spread out over distances from .. from + n - 1, a multiple of `step` apart, and sent to the device.
static void t5_spread(Run *r, float *out, const float *table, bool both_ways, int from, int step, int n) {
    // table (buckets,HL) on the host -> out (HL,n)
    const Config *c = &r->m->config;
    const size_t bytes = (size_t)c->HL * n * sizeof(float);
    float *host = (float *)malloc(bytes);
    CHECK(host);
    for (int i = 0; i < n; i++) {
        const int bucket = t5_bucket(from + step * i, both_ways, c->buckets, c->max_distance);
        for (int h = 0; h < c->HL; h++) host[(size_t)h * n + i] = table[bucket * c->HL + h];
    }
    CUDA_CHECK(cudaMemcpy(out, host, bytes, cudaMemcpyHostToDevice));
    free(host);
}

template <typename T> static void t5_feed_forward(Run *r, const T5Block *w, int rows) {
    // x (rows,DL), in place
    const Config *c = &r->m->config;
    Dense d = dense_norm(r->gate, OUT_ACT, r->x, w->ln2, NULL, c->eps_lm, w->wi_w, NULL, c->act, rows);
    d.gated = 1, d.OC = c->FL;
    dense<T>(r, d);
    dense<T>(r, dense_of(r->x, OUT_ADD, r->gate, w->wo_w, NULL, ACT_NONE, rows));
}

template <typename T> static void t5_encode(Run *r, const Pass *p) {
    // x (T,DL) -> h (T,DL)
    const Config *c = &r->m->config;
    const int I = c->IL, E = 2 * r->TP - 1, rows = p->T;
    const T *qkv = (const T *)r->qkv;
    for (int l = 0; l < c->LE; l++) {
        const T5Block *w = &r->d.t5_encoder[l];
        dense<T>(r, dense_norm(r->qkv, OUT_ACT, r->x, w->ln1, NULL, c->eps_lm, w->qkv_w, NULL, ACT_NONE, rows));
        Attention a = attention_of(r, qkv, 3 * I, qkv + I, qkv + 2 * I, 3 * I, 1, p->n, c->HL, c->AL, p->longest);
        a.q_first = a.k_first = p->first, a.bias = r->enc_bias + r->TP - 1, a.ldb = E;
        attention<T>(r->s, a);
        dense<T>(r, dense_of(r->x, OUT_ADD, r->att, w->out_w, NULL, ACT_NONE, rows));
        t5_feed_forward<T>(r, w, rows);
        probe(r, r->x, rows, c->DL, "language_model.encoder.block.%d", l);
    }
    norm<T>(r->s, (T *)r->h, NULL, r->x, r->d.t5.enc_ln, NULL, c->eps_lm, 1, rows, c->DL);
    probe_act<T>(r, (const T *)r->h, rows, c->DL, "language_model.encoder.final_layer_norm");
}

template <typename T> static void t5_decode(Run *r, const Pass *p) {
    // x (T,DL), in place
    const Config *c = &r->m->config;
    const int I = c->IL, rows = p->T;
    for (int l = 0; l < c->LD; l++) {
        const T5Block *w = &r->d.t5_decoder[l];
        const T5Cross *cross = &r->d.t5_cross[l];
        Dense d = dense_norm(r->qkv, OUT_ACT, r->x, w->ln1, NULL, c->eps_lm, w->qkv_w, NULL, ACT_NONE, rows);
        d.kv = p->start ? kv_prompt_at<T>(r, l) : kv_new_at<T>(r, l), d.slot = p->slot, d.kv_from = I;
        dense<T>(r, d);
        attend_past<T>(r->s, past_of<T>(r, p, l, 3 * I, false, 1, r->dec_bias));
        dense<T>(r, dense_of(r->x, OUT_ADD, r->att, w->out_w, NULL, ACT_NONE, rows));

        dense<T>(r, dense_norm(r->qkv, OUT_ACT, r->x, cross->ln, NULL, c->eps_lm, cross->q_w, NULL, ACT_NONE, rows));
        attend_past<T>(r->s, past_of<T>(r, p, l, I, true, 1, NULL));
        dense<T>(r, dense_of(r->x, OUT_ADD, r->att, cross->out_w, NULL, ACT_NONE, rows));

        t5_feed_forward<T>(r, w, rows);
        if (p->start) probe(r, r->x, rows, c->DL, "language_model.decoder.block.%d", l);
    }
    if (!p->start || !r->lim.probe) return;
    norm<float>(r->s, r->stage, NULL, r->x, r->d.t5.dec_ln, NULL, c->eps_lm, 1, rows, c->DL);
    probe(r, r->stage, rows, c->DL, "language_model.decoder.final_layer_norm");
}

template <typename T> static void t5_prompts(Run *r, const Pass *p, int b) {
    // -> kv_cross, kv_prompt and rows b.. of logits
    const Config *c = &r->m->config;
    const Lists in = lists(r, r->prompt_ints);
    embed(r->s, r->x, in.ids + p->row0, NULL, &r->d.lm.tok, r->image_rows, NULL, p->T, c->DL);
    t5_encode<T>(r, p);
    for (int l = 0; l < c->LD; l++)
        dense<T>(r, dense_of(kv_cross_at<T>(r, l) + (size_t)p->row0 * 2 * c->IL, OUT_ACT, r->h, r->d.t5_cross[l].kv_w,
                             NULL, ACT_NONE, p->T));
    Pass start = {};
    start.T = p->n, start.start = true, start.slot = iota(r) + b, start.prompt_of = iota(r) + b;
    embed(r->s, r->x, start_ids(r), NULL, &r->d.lm.tok, NULL, NULL, p->n, c->DL);
    t5_decode<T>(r, &start);
    lm_head<T>(r, r->logits + (size_t)b * c->V, r->x, p->n);
}

// ---------------------------------------------------------------------------------------------------------
// 8. Choosing tokens, on the device alone. The host keeps a Search of its own up to date with what arrives behind each
// step, so that a step looks as on the CPU and a result can be had at any time; it never waits for anything else.
//
//     device   prompt, choose 0 | feed 0, choose 1 | feed 1, choose 2 | ...        | : the graph of one step
//     host                 sees token 0 ^  (step 1 is queued)    sees token 1 ^  (step 2 is queued)
//
// While the host looks at token t, the device makes t + 1. When t ended all rows, the device knows it first: the choice
// clears `more` in its Search, and the step that is queued behind it costs its launches and the weights that were asked
// for ahead (goes_on), but reads, computes and changes nothing else. The library's multiplies do not know of it: with
// more than 176 rows, or in f32, that step costs what another one would, and its results go nowhere. When the caller
// stops, that step was for nothing: what it changes is never taken over.

static void choose_next(Run *r) {
    // logits -> the device's Search, one step further
    choose(r->s, (Search *)r->search_block, fed(r).t, r->values, r->scratch, r->logits, r->line, r->lim.R,
           r->lim.max_new, r->beams, r->B, r->R, r->m->config.V);
}

// One token of every row through the language model, and the choice of the next one: the work of the graph.
template <typename T> static void feed(Run *r) {
    const Config *c = &r->m->config;
    const Fed f = fed(r);
    const Lists in = lists(r, r->prompt_ints);
    const Search *on_device = (const Search *)r->host_export;    // its pointers
    Pass p = {};
    p.T = r->R, p.slot = f.slot, p.prompt_of = in.prompt_of;
    r->going = &((const Search *)r->search_block)->more;
    LAUNCH(advance_kernel, dim3(r->R), dim3(128), 0, r->s, r->line, f.position, f.slot, f.t, on_device->now_parent,
           in.n_prompt, in.prompt_of, r->lim.R, r->lim.max_new);
    embed(r->s, r->x, on_device->now_token, f.position, &r->d.lm.tok, NULL, c->family == OPT ? r->d.opt.pos : NULL,
          r->R, c->DL);
    if (c->family == T5) t5_decode<T>(r, &p);
    else opt_forward<T>(r, &p);
    lm_head<T>(r, r->logits, r->x, r->R);
    r->going = NULL;
    choose_next(r);
}

// Behind a choice: its state on the way to the host. Two steps may be under way, hence two places.
static void send_state(Run *r) {
    const int i = r->queued++;
    CUDA_CHECK(cudaMemcpyAsync(r->host_state[i % 2], r->search_block + search_state_at(r->search),
                               search_state_bytes(r->search), cudaMemcpyDeviceToHost, r->s));
    CUDA_CHECK(cudaEventRecord(r->chosen[i % 3], r->s));
}

// ---------------------------------------------------------------------------------------------------------
// 9. The backend.

// fc2 by neuron (cuda_skip.cuh), for up to SKIP_MOST rows of OPT in bf16: off until it has been measured on a card, on
// with BLIP2_CUDA_SKIP=1 in the environment. It takes a second copy of fc2's weights.
static bool skip_wanted(const Model *m, const Limits *lim) {
    const char *wish = getenv("BLIP2_CUDA_SKIP");
    const Config *c = &m->config;
    if (!wish || strcmp(wish, "1") || c->family != OPT || c->act != ACT_RELU || lim->R > SKIP_MOST) return false;
    for (int l = 0; l < c->LD; l++) if (m->opt_layer[l].fc2_w.dtype != DT_BF16) return false;
    return c->DL % 8 == 0;
}

static Run run_for(const Model *m, const Limits *lim) {
    const Config *c = &m->config;
    const int TP = c->Q + lim->prompt;
    Run r = {};
    r.m = m, r.lim = *lim, r.TP = TP, r.TK = c->family == T5 ? 1 : TP;
    r.f32 = m->vit.patch_w.dtype == DT_F32 && m->lm.tok.dtype == DT_F32;
    r.skip = !r.f32 && skip_wanted(m, lim);
    r.BV = lim->B < IMAGES_AT_ONCE ? lim->B : IMAGES_AT_ONCE;
    const int64_t rows = (int64_t)lim->B * TP;
    r.TM = rows < ROWS_AT_ONCE ? (int)rows : TP > ROWS_AT_ONCE ? TP : ROWS_AT_ONCE;
    r.bias_elements = (size_t)c->LV * 3 * c->DV + (size_t)c->NX * 3 * c->DQ + (size_t)c->LQ * 3 * c->DQ;
    if (c->family == OPT) r.bias_elements += (size_t)c->LD * (3 * (size_t)c->IL + c->FL);
    return r;
}

static uint64_t cuda_bytes_needed(const Model *m, const Limits *lim) {
    Run r = run_for(m, lim);
    Plan count = {&r, 0, false, false, false};
    plan(&r, &count);
    return count.overflow ? UINT64_MAX : count.bytes;
}

// What the kernels cannot do.
static int check_model(const Model *m, const Limits *lim, Err *e) {
    const Config *c = &m->config;
    const int head = (int)most(most(c->DV / c->HV, c->DQ / c->HQ), c->AL);
    if (head > MAX_HEAD)
        return fail(e, "attention heads of size %d, but the CUDA backend does at most %d; hint: --device cpu", head,
                    MAX_HEAD);
    if (lim->R > 65535) return fail(e, "%d rows at once, but the CUDA backend does at most 65535", lim->R);
    return 0;
}

// Takes all memory, or says what is missing.
static int take_memory(Run *r, Err *e) {
    const uint64_t need = cuda_bytes_needed(r->m, &r->lim), weights = r->m->file_bytes - file_data(r->m);
    size_t free_bytes = 0, all = 0;
    CUDA_CHECK(cudaMemGetInfo(&free_bytes, &all));
    Plan a = {r, 0, false, true, false};
    if (need == UINT64_MAX) return fail(e, "more memory is needed than a number can say; hint: lower --ctx or -b");
    if (need <= free_bytes) plan(r, &a);
    if (need <= free_bytes && !a.failed) return 0;
    const double gb = 1e-9, rest = (need - weights) * gb;
    const double int4 = r->m->parameters * 4.5 / 8 * gb;
    return fail(e, "not enough memory on GPU %d: %.2f GB of weights and %.2f GB beside them are %.2f GB, but %.2f of "
                   "its %.2f GB are free%s; hint: %s", r->lim.ordinal, weights * gb, rest, need * gb, free_bytes * gb,
                all * gb, free_bytes < all * 0.9 ? " (other processes hold the rest)" : "",
                weights * gb < free_bytes * gb * 0.95 ? "lower --ctx, -b or -n"
                : int4 + rest < free_bytes * gb ? "export with --dtype int8 or int4, which take a half or a third"
                                                : "take a larger GPU, a smaller model or --device cpu");
}

static void cuda_close(void *self) {
    Run *r = (Run *)self;
    if (r->s) CUDA_CHECK(cudaStreamSynchronize(r->s));
    for (Graph *g : {&r->vit_graph[0], &r->vit_graph[1], &r->qformer_graph[0], &r->qformer_graph[1], &r->step_graph})
        if (g->exec) CUDA_CHECK(cudaGraphExecDestroy(g->exec));
    lt_close(&r->lt);
    for (int i = 0; i < r->n_owned; i++) CUDA_CHECK(cudaFree(r->owned[i]));
    for (void *p : {(void *)r->host_prompt, (void *)r->host_export, (void *)r->host_state[0], (void *)r->host_state[1]})
        if (p) CUDA_CHECK(cudaFreeHost(p));
    for (cudaEvent_t event : r->mark) if (event) CUDA_CHECK(cudaEventDestroy(event));
    for (cudaEvent_t event : r->chosen) if (event) CUDA_CHECK(cudaEventDestroy(event));
    if (r->s) CUDA_CHECK(cudaStreamDestroy(r->s));
    for (void *p : {(void *)r->d.vit_block, (void *)r->d.qformer_layer, (void *)r->d.qformer_cross,
                    (void *)r->d.opt_layer, (void *)r->d.t5_encoder, (void *)r->d.t5_decoder, (void *)r->d.t5_cross,
                    (void *)r->host_probe, (void *)r->host_search, (void *)r->host_seen, (void *)r->bias, (void *)r})
        free(p);
}

static int take_host_memory(Run *r, Err *e) {
    const Config *c = &r->m->config;
    const uint64_t search = search_bytes(r->lim.B, r->lim.R, r->lim.max_new, c->V);
    const size_t probe_floats = most(most((size_t)c->N * c->DV, (size_t)r->TP * c->DL),
                                     most((size_t)3 * c->S * c->S, most((size_t)c->Q * most(c->DQ, c->DL), c->V)));
    bool ok = search != UINT64_MAX;
    ok = ok && cudaMallocHost((void **)&r->host_prompt, lists_ints(r) * sizeof(int)) == cudaSuccess;
    ok = ok && (r->host_search = (uint8_t *)aligned_alloc(64, search));
    ok = ok && (r->host_seen = (uint8_t *)calloc(r->lim.B, (size_t)r->TP * sizeof(int) + sizeof(int *) + sizeof(int)));
    ok = ok && (!r->lim.probe || (r->host_probe = (float *)malloc(probe_floats * sizeof(float))));
    if (!ok) return fail(e, "not enough host memory beside the GPU; hint: lower --ctx, -b or -n");
    r->search = search_init(r->host_search, r->lim.B, r->lim.R, r->lim.max_new, c->V, c->eos, c->pad);
    ok = cudaMallocHost((void **)&r->host_export, search_export_bytes(r->search)) == cudaSuccess;
    for (uint8_t *&p : r->host_state)
        ok = ok && cudaMallocHost((void **)&p, search_state_bytes(r->search)) == cudaSuccess;
    if (!ok) return fail(e, "not enough pinned host memory; hint: lower --ctx, -b or -n");
    for (cudaEvent_t &event : r->mark) CUDA_CHECK(cudaEventCreate(&event));
    for (cudaEvent_t &event : r->chosen) CUDA_CHECK(cudaEventCreate(&event));
    return 0;
}

static int open_all(Run *r, Err *e) {
    const Config *c = &r->m->config;
    if (check_model(r->m, &r->lim, e)) return -1;
    CUDA_CHECK(cudaSetDevice(r->lim.ordinal));
    CUDA_CHECK(cudaDeviceGetAttribute(&r->dev.sms, cudaDevAttrMultiProcessorCount, r->lim.ordinal));
    CUDA_CHECK(cudaDeviceGetAttribute(&r->dev.shared_most, cudaDevAttrMaxSharedMemoryPerBlockOptin, r->lim.ordinal));
    if (take_memory(r, e) || take_host_memory(r, e)) return -1;
    CUDA_CHECK(cudaStreamCreateWithFlags(&r->s, cudaStreamNonBlocking));
    if (cublasLtCreate(&r->lt.handle) != CUBLAS_STATUS_SUCCESS)   // takes some memory of its own
        return fail(e, "cuBLASLt cannot start on GPU %d; hint: is there memory left? lower --ctx, -b or -n",
                    r->lim.ordinal);
    r->lt.workspace_bytes = WORKSPACE_BYTES;
    r->dev.partial = (float *)r->lt.workspace, r->dev.partial_bytes = WORKSPACE_BYTES;   // never both at a time
    CUDA_CHECK(cudaMemsetAsync(r->dev.tickets, 0, STREAM_TICKETS * sizeof(int), r->s));
    if (upload(r, e)) return -1;
    device_model(r);

    const size_t n_bias = (size_t)c->LV + 1 + c->LQ + c->NX + 2 * (size_t)c->LD;
    const size_t expected = r->bias_elements;
    r->bias_elements = 0;
    r->bias = (Bias *)calloc(n_bias, sizeof *r->bias);
    CHECK(r->bias);
    list_biases(r);
    CHECK(r->bias_elements == expected && (size_t)r->n_bias <= n_bias);
    qsort(r->bias, r->n_bias, sizeof *r->bias, by_address);
    for (int i = 0; i < r->n_bias; i++) {
        // sorted by address, which need not be the order of their copies
        const size_t at = r->bias[i].at;
        size_t end = expected;
        for (int j = 0; j < r->n_bias; j++) if (r->bias[j].at > at && r->bias[j].at < end) end = r->bias[j].at;
        const int n = (int)(end - at);
        LAUNCH(bias16_kernel, dim3(ceil_div(n, 256)), dim3(256), 0, r->s, r->bias16 + at, r->bias[i].b, n);
    }
    for (int l = 0; r->skip && l < c->LD; l++)
        transpose(r->s, r->fc2_t + (size_t)l * c->FL * c->DL, (const bf16 *)r->d.opt_layer[l].fc2_w.data, c->DL, c->FL);
    int *fixed = (int *)malloc(4 * ((size_t)r->BV + most(r->lim.B, r->lim.R) + 1) * sizeof(int));
    CHECK(fixed);
    CUDA_CHECK(cudaMemcpy(r->fixed_ints, fixed, fill_fixed(r, fixed) * sizeof(int), cudaMemcpyHostToDevice));
    free(fixed);
    if (c->family == T5) {
        t5_spread(r, r->enc_bias, r->m->t5.enc_bias, true, -(r->TP - 1), 1, 2 * r->TP - 1);
        t5_spread(r, r->dec_bias, r->m->t5.dec_bias, false, 0, -1, r->lim.max_new + 1);
    }
    CUDA_CHECK(cudaStreamSynchronize(r->s));
    return 0;
}

static void *cuda_open(const Model *m, const Limits *lim, Err *e) {
    Run *r = (Run *)calloc(1, sizeof *r);
    if (!r) {
        fail(e, "no memory");
        return NULL;
    }
    *r = run_for(m, lim);
    if (open_all(r, e) == 0) return r;
    cuda_close(r);
    return NULL;
}

// Seconds from one event to another, both of which are over.
static double between(cudaEvent_t from, cudaEvent_t to) {
    float ms = 0;
    CUDA_CHECK(cudaEventElapsedTime(&ms, from, to));
    return 1e-3 * ms;
}

// Two graphs and not one, so that each has its time: the second is launched while the first runs.
static void cuda_encode(void *self, const uint8_t *pixels, int B) {
    // pixels (B,S,S,3) on the host -> image_rows (B*Q,DL)
    Run *r = (Run *)self;
    const size_t bytes = (size_t)r->m->config.S * r->m->config.S * 3;
    const int turn = r->lim.probe ? 1 : r->BV;
    CHECK(B >= 1 && B <= r->lim.B);
    CUDA_CHECK(cudaSetDevice(r->lim.ordinal));
    for (int b = 0; b < B; b += turn) {
        const int n = B - b < turn ? B - b : turn, shorter = n < r->BV;
        float *rows = r->image_rows + (size_t)b * r->m->config.Q * r->m->config.DL;
        const auto vit = [=] { if (r->f32) vit_forward<float>(r, n); else vit_forward<bf16>(r, n); };
        const auto qformer = [=] {
            if (r->f32) qformer_forward<float>(r, rows, n);
            else qformer_forward<bf16>(r, rows, n);
        };
        CUDA_CHECK(cudaMemcpyAsync(r->pixels, pixels + b * bytes, n * bytes, cudaMemcpyHostToDevice, r->s));
        CUDA_CHECK(cudaEventRecord(r->mark[VIT_BEGINS], r->s));
        run_graph(r, &r->vit_graph[shorter], n, vit);
        CUDA_CHECK(cudaEventRecord(r->mark[QFORMER_BEGINS], r->s));
        if (b == 0) run_graph(r, &r->qformer_graph[shorter], n, qformer);   // a graph has the address of its rows
        else qformer();
        CUDA_CHECK(cudaEventRecord(r->mark[QFORMER_ENDS], r->s));
        CUDA_CHECK(cudaEventSynchronize(r->mark[QFORMER_ENDS]));   // the caller may change pixels now
        r->times.vit += between(r->mark[VIT_BEGINS], r->mark[QFORMER_BEGINS]);
        r->times.qformer += between(r->mark[QFORMER_BEGINS], r->mark[QFORMER_ENDS]);
    }
}

// The ids that transformers has in input_ids before the first new token, as blip2.c's note_seen.
static void note_seen(const Run *r, const Prompt *prompts, int B, const int **seen_of, int *n_seen) {
    const Config *c = &r->m->config;
    int *seen = (int *)(n_seen + r->lim.B);
    for (int b = 0; b < B; b++, seen += r->TP) {
        int n = 0;
        if (c->family == T5) seen[n++] = c->start;
        else {
            if (c->image_token >= 0) for (; n < c->Q; n++) seen[n] = c->image_token;
            memcpy(seen + n, prompts[b].ids, prompts[b].n * sizeof *seen);
            n += prompts[b].n;
        }
        seen_of[b] = seen;
        n_seen[b] = n;
    }
}

static void cuda_prompt(void *self, const Prompt *prompts, int B, const Choice *how) {
    // B prompts -> logits (B,V), and a search over R = B*K rows, whose first choice is queued
    Run *r = (Run *)self;
    const Config *c = &r->m->config;
    const int K = search_rows(how), Q = c->Q;
    CHECK(B >= 1 && B <= r->lim.B && B * K <= r->lim.R && how->max_new <= r->lim.max_new);
    CUDA_CHECK(cudaSetDevice(r->lim.ordinal));
    CUDA_CHECK(cudaStreamSynchronize(r->s));   // before the pinned lists are written anew
    CUDA_CHECK(cudaEventRecord(r->mark[PROMPT_BEGINS], r->s));
    const Lists in = lists(r, r->host_prompt), on_device = lists(r, r->prompt_ints);
    int row = 0;
    for (int b = 0; b < B; b++) {
        CHECK(prompts[b].n >= 1 && prompts[b].n <= r->lim.prompt);
        in.first_of[b] = row;
        in.n_cross[b] = Q + prompts[b].n;
        in.n_prompt[b] = c->family == T5 ? 1 : Q + prompts[b].n;
        for (int i = 0; i < Q + prompts[b].n; i++, row++) {
            in.ids[row] = i < Q ? -1 - (prompts[b].image * Q + i) : prompts[b].ids[i - Q];
            in.position[row] = i;
            in.slot[row] = b * r->TK + i;
        }
    }
    for (int i = 0; i < B * K; i++) in.prompt_of[i] = i / K;
    // The turns: as many prompts as fit into TM rows. Turn number k has its list `first` at b + k.
    int n_turns = 0;
    for (int b = 0, n; b < B; b += n, n_turns++) {
        int T = in.n_cross[b];
        for (n = 1; b + n < B && T + in.n_cross[b + n] <= r->TM && !r->lim.probe; n++) T += in.n_cross[b + n];
        int *first = in.first + b + n_turns;
        first[0] = 0;
        for (int i = 0; i < n; i++) {
            first[i + 1] = first[i] + in.n_cross[b + i];
            in.last[b + i] = first[i + 1] - 1;
        }
    }
    CUDA_CHECK(cudaMemcpyAsync(r->prompt_ints, r->host_prompt, lists_ints(r) * sizeof(int), cudaMemcpyHostToDevice,
                               r->s));
    n_turns = 0;
    for (int b = 0, n; b < B; b += n, n_turns++) {
        Pass p = {};
        p.prompt = true, p.row0 = in.first_of[b], p.slot = on_device.slot + p.row0;
        p.first = on_device.first + b + n_turns, p.cached = prompt_first(r) + b;
        for (n = 0; b + n < B && (n == 0 || (p.T + in.n_cross[b + n] <= r->TM && !r->lim.probe)); n++) {
            p.T += in.n_cross[b + n];
            p.longest = (int)most(p.longest, in.n_cross[b + n]);
        }
        p.n = n;
        if (c->family == T5) r->f32 ? t5_prompts<float>(r, &p, b) : t5_prompts<bf16>(r, &p, b);
        else r->f32 ? opt_prompts<float>(r, &p, b) : opt_prompts<bf16>(r, &p, b);
        probe(r, r->logits + (size_t)b * c->V, 1, c->V, "logits");
    }
    const int **seen_of = (const int **)r->host_seen;
    int *n_seen = (int *)(seen_of + r->lim.B);
    note_seen(r, prompts, B, seen_of, n_seen);
    r->B = B;
    r->R = B * K;
    r->t = r->queued = 0;
    r->beams = how->beams > 1, r->max_new = how->max_new, r->more = true;
    search_begin(r->search, how, seen_of, n_seen, B);
    CUDA_CHECK(cudaMemcpyAsync(r->seen_ids, seen_of[0], (size_t)B * r->TP * sizeof(int), cudaMemcpyHostToDevice, r->s));
    for (int b = 0; b < B; b++) seen_of[b] = r->seen_ids + (size_t)b * r->TP;   // the host itself chooses nothing
    search_export(r->host_export, r->search, r->search_block, seen_of);
    CUDA_CHECK(cudaMemcpyAsync(r->search_block, r->host_export, search_export_bytes(r->search), cudaMemcpyHostToDevice,
                               r->s));
    choose_next(r);
    send_state(r);
}

static bool cuda_step(void *self, Step *out) {
    Run *r = (Run *)self;
    if (!r->more) return false;
    CUDA_CHECK(cudaSetDevice(r->lim.ordinal));
    if (r->queued < r->max_new) {   // one ahead
        const int key = r->R + (r->beams ? 65536 * r->B : 0);   // check_model: R is at most 65535, and B half of it
        run_graph(r, &r->step_graph, key, [=] { if (r->f32) feed<float>(r); else feed<bf16>(r); });
        send_state(r);
    }
    const int i = r->t++;
    CUDA_CHECK(cudaEventSynchronize(r->chosen[i % 3]));
    if (i == 0) r->times.prompt += between(r->mark[PROMPT_BEGINS], r->chosen[0]);
    else r->times.decode += between(r->chosen[(i - 1) % 3], r->chosen[i % 3]);
    search_take(r->search, out, r->host_state[i % 2]);
    r->more = out->more;
    return true;
}

static Hypothesis cuda_result(void *self, int b, int rank) { return search_result(((Run *)self)->search, b, rank); }

static uint64_t cuda_uploaded(const void *self, double *seconds) {
    const Run *r = (const Run *)self;
    *seconds = r->upload_seconds;
    return r->upload_bytes;
}

static uint64_t cuda_left_out(const void *self) {
    (void)self;         // a count would have to be brought from the device
    return 0;
}

static Times cuda_times(const void *self) { return ((const Run *)self)->times; }

extern "C" {

// What device.c looks up in the shared object: the backend, a number that changes with the layout of what is passed,
// and a search for a GPU.
extern const Backend backend_cuda;
extern const uint64_t backend_cuda_layout;
int backend_cuda_find(int ordinal, Err *e);

const uint64_t backend_cuda_layout = sizeof(Model) * 1000003 + sizeof(Limits) * 1009 + sizeof(Backend);

// Can GPU number `ordinal` be used? 0, or -1 with e, which says what is the matter.
int backend_cuda_find(int ordinal, Err *e) {
    int driver = 0, n = 0, major = 0, minor = 0, cannot = 0;
    cudaDriverGetVersion(&driver);
    if (driver == 0) return fail(e, "no NVIDIA driver on this machine");
    const cudaError_t status = cudaGetDeviceCount(&n);
    if (status == cudaErrorInsufficientDriver)
        return fail(e, "the NVIDIA driver is too old: it knows CUDA %d.%d, this program needs %d.%d; hint: update it",
                    driver / 1000, driver % 1000 / 10, CUDART_VERSION / 1000, CUDART_VERSION % 1000 / 10);
    if (status == cudaErrorNoDevice || (status == cudaSuccess && n == 0)) return fail(e, "no NVIDIA GPU here");
    if (status != cudaSuccess) return fail(e, "the NVIDIA driver reports: %s", cudaGetErrorString(status));
    if (ordinal < 0 || ordinal >= n)
        return fail(e, "there is no GPU %d: this machine has %d, numbered from 0", ordinal, n);
    cannot = cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, ordinal) != cudaSuccess ||
             cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, ordinal) != cudaSuccess;
    if (!cannot && major < 8)
        return fail(e, "GPU %d has compute capability %d.%d, but 8.0 (Ampere) is the least that works", ordinal, major,
                    minor);
    // The first call that needs the device itself: it may be lost, or held by a process that has it alone.
    size_t free_bytes = 0, all = 0;
    const cudaError_t use = cannot ? cudaErrorUnknown : cudaSetDevice(ordinal);
    const cudaError_t memory = use == cudaSuccess ? cudaMemGetInfo(&free_bytes, &all) : use;
    if (memory != cudaSuccess)
        return fail(e, "GPU %d cannot be used: %s; hint: does another process hold it alone or all of its memory?",
                    ordinal, cudaGetErrorString(memory));
    return 0;
}

const Backend backend_cuda = {"cuda", cuda_bytes_needed, cuda_open, cuda_encode, cuda_prompt, cuda_step, cuda_result,
                              cuda_uploaded, cuda_left_out, cuda_times, cuda_close};

}
