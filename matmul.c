// matmul.c: products of matrices and vectors, fast on the processor at hand.
//
// In order: the shape of a product and of its blocks, the table of inner loops, those loops in plain C (the truth for
// the others; matmul_isa.h adds those for each instruction set), the blocked product, threads, and the functions of
// matmul.h. Where the processor has dot products of narrower types, weights of such types go to matmul_narrow.c; how
// products are cut into jobs stands in matmul_jobs.h.
//
//   out (T,OC) = x (T,C) w (OC,C)^T          Two ways, by the number of rows of x:
//
//   Few (decoding, beams): bound by memory. The weights are read once, straight from the
//   file's mapping, almost in order, and used for all rows of x. Vectors run along C, for x and w alike
//   (drawn in matmul_kernels.h).
//
//   Many (images, prompts): bound by arithmetic. Each thread takes a block of NC columns of out and goes through C in
//   steps of KC. The weights of a step are packed once, into panels that are K-major, so that a vector holds
//   neighbouring columns; then each tile of MR rows of x, which was copied once to rows XS apart, meets the panel,
//   while the next step's weights are asked of memory, a few cache lines at a time:
//
//       out  +--+--+--+--+-----+        x  +-----+-----+---+          w  +-----+-----+---+
//         MR |xx|  |  |  | ... |        MR |xxxxx|     |   |          NR |wwwww|     |   |
//            +--+--+--+--+     |           +-----+     |   |             +-----+     |   |
//            |NR           ... |           | KC           C|          NC |         ...   |
//            +-----NC----------+           +---------------+             +---------------+
//
//       a panel of w (KC*NR floats, stays in L1):  k=0: w[0][0] w[1][0] .. w[NR-1][0], k=1: w[0][1] w[1][1] ...
//
// Sums of one output always run in the same order, whatever the number of threads or the position of the row in x. The
// two ways add in different orders, so a row's result also depends on which way T goes, but on nothing else of T. Both
// stay within C * 2^-24 * sum_c |x_c w_c| of the true sum; test/test_matmul.c measures how far.
// Not here: anything that knows what the matrices mean.
#include "matmul.h"
#include "matmul_jobs.h"
#include "matmul_narrow.h"

#include <math.h>
#include <string.h>

enum {
    SLICE = 6,               // rows of x that meet a weight in registers, the way for few rows
    UNIT = 32,               // columns of x that are put in order there
    X_IN_L1 = 32768,         // bytes of x that stay in the level 1 cache there
    KC = 256,                // most columns of x and w in one step
    XS = KC + 16,            // floats between the rows of a copied tile: no power of two, they would share cache sets
    NC = 96,                 // columns of out in a job, a multiple of every NR; a head of 64, 80 or 88 fits
    NR_MAX = 32,
    AHEAD = 8192,            // bytes that few rows look further ahead
    BF16_FEW = 8,            // most rows of x that are not rounded for bf16 weights: memory is the limit there
    ROWS_ON_STACK = 336,     // of x in a small product, a multiple of every MR
    PANEL_FLOATS = NR_MAX * KC,
    X_BYTES = 8 << 20        // of copied x; more rows than fit are done in several passes
};

// Rows of x that meet a weight at once, where there are T.
static inline int slice_of(int T) { return ceil_div(T, ceil_div(T, SLICE)); }

// The loops in f32.
typedef struct {
    int MR, NR;              // rows and columns of a tile
    int few;                 // most rows of x that rows() is for
    // x (mr,K) rows XS apart, w (K,NR) packed -> out (mr,n) = base (mr,n) + scale * x w
    void (*tile)(float *out, size_t ldo, const float *base, size_t ldbase, float scale, const float *x, const float *w,
                 Ahead *ahead, int mr, int n, int K);
    // x (C) -> its place as row t of T; NULL: rows() takes x (T,C) as it is
    void (*arrange)(float *out, const float *x, int t, int T, int C, int dtype);
    // x (T,C) arranged, rows j .. j+n of w (,C) -> out (T,n) = base (T,n) + x w^T; base NULL is zero
    void (*rows)(float *out, size_t ldo, const float *base, size_t ldbase, const float *x, const Weights *w, int j,
                 int T, int n);
    // rows j .. j+n, columns k .. k+K of w -> out (K,NR), columns n and up zero; k is a multiple of 32 for INT4
    void (*pack)(float *out, const Weights *w, int j, int n, int k, int K);
    // the rest of matmul.h, one row at a time
    void (*activate)(float *x, int act, int n);
    void (*softmax)(float *x, int n);
    void (*norm)(float *out, const float *x, const float *w, const float *b, float eps, int C);
    void (*scores)(float *s, const float *q, const float *k, size_t ldk, int n, int A);
    void (*mix)(float *out, const float *s, const float *v, size_t ldv, int n, int A);
    int VW;                  // floats in a vector
    // columns live (n_live) of x (T,C), w (C,) turned, its columns j .. j+n -> out (T,n) += x w; the same sums as those
    // of rows(). lanes: (T,VW,n) for them; n is a multiple of VW. NULL: there is none
    void (*living)(float *out, size_t ldo, const float *x, size_t ldx, const Weights *w, int j, const int *live,
                   int n_live, int T, int n, float *lanes);
    Living8 *living8;        // the same for int8 weights and the integers of matmul_dot.h
} Loops;

struct MatmulKernels {
    const char *name;
    const Loops *loops;
    const Narrow *int8, *bf16, *int4;      // what multiplies such weights instead, or NULL
    bool rounds;                    // x to less than 16 bits: only when asked for
};

// ---------------------------------------------------------------------------------------------------------
// Plain C: nothing but the definitions.

static void tile_plain(float *out, size_t ldo, const float *base, size_t ldbase, float scale, const float *x,
                       const float *w, Ahead *ahead, int mr, int n, int K) {
    (void)ahead;
    for (int r = 0; r < mr; r++)
        for (int j = 0; j < n; j++) {
            float s = 0;
            for (int k = 0; k < K; k++) s += x[r * XS + k] * w[k * 4 + j];
            out[r * ldo + j] = base[r * ldbase + j] + scale * s;
        }
}

static void rows_plain(float *out, size_t ldo, const float *base, size_t ldbase, const float *x, const Weights *w,
                       int j0, int T, int n) {
    for (int t = 0; t < T; t++)
        for (int j = 0; j < n; j++) {
            float s = 0;
            for (size_t c = 0; c < w->ld; c++) s += x[t * w->ld + c] * weight(w, (size_t)(j0 + j), c);
            out[t * ldo + j] = (base ? base[t * ldbase + j] : 0) + row_scale(w, (size_t)(j0 + j)) * s;
        }
}

static void pack_plain(float *out, const Weights *w, int j0, int n, int k0, int K) {
    for (int k = 0; k < K; k++)
        for (int j = 0; j < 4; j++) out[k * 4 + j] = j < n ? weight(w, j0 + j, k0 + k) * row_scale(w, j0 + j) : 0;
}

static void activate_plain(float *x, int act, int n) {
    for (int i = 0; i < n; i++)
        if (act == ACT_RELU) x[i] = x[i] < 0 ? 0 : x[i];
        else if (act == ACT_GELU) x[i] = 0.5f * x[i] * (1 + erff(x[i] * 0.70710678118654752f));
        else x[i] = 0.5f * x[i] * (1 + tanhf(0.79788456080286536f * (x[i] + 0.044715f * x[i] * x[i] * x[i])));
}

static void softmax_plain(float *x, int n) {
    float top = -INFINITY, sum = 0;
    for (int i = 0; i < n; i++) top = x[i] > top ? x[i] : top;
    for (int i = 0; i < n; i++) x[i] = expf(x[i] - top), sum += x[i];
    for (int i = 0; i < n; i++) x[i] /= sum;
}

static void norm_plain(float *out, const float *x, const float *w, const float *b, float eps, int C) {
    float mean = 0, sq = 0;
    for (int i = 0; b && i < C; i++) mean += x[i] / (float)C;
    for (int i = 0; i < C; i++) sq += (x[i] - mean) * (x[i] - mean);
    const float s = 1 / sqrtf(sq / (float)C + eps);
    for (int i = 0; i < C; i++) out[i] = (x[i] - mean) * s * w[i] + (b ? b[i] : 0);
}

static void scores_plain(float *s, const float *q, const float *k, size_t ldk, int n, int A) {
    for (int j = 0; j < n; j++) {
        s[j] = 0;
        for (int i = 0; i < A; i++) s[j] += q[i] * k[j * ldk + i];
    }
}

static void mix_plain(float *out, const float *s, const float *v, size_t ldv, int n, int A) {
    for (int j = 0; j < n; j++)
        for (int i = 0; i < A; i++) out[i] += s[j] * v[j * ldv + i];
}

static const Loops loops_plain = {
    4, 4, 8, tile_plain, NULL, rows_plain, pack_plain, activate_plain, softmax_plain, norm_plain, scores_plain,
    mix_plain, 1, NULL, NULL
};

#include "matmul_isa.h"

// ---------------------------------------------------------------------------------------------------------
// The blocked product, in one thread.

typedef struct {
    float *out;             // (M,N), rows ldo apart
    const float *a;         // (M,K), rows lda apart
    Weights b;              // (N,K), or (K,N) and F32 when b_is_kn
    const float *bias;      // (N) or NULL
    size_t ldo, lda;
    float scale;
    int M, N, K;
    bool b_is_kn;
    const Loops *loops;
    float *x;               // a in steps of KC columns: (steps,M,XS)
    float *panels;          // PANEL_FLOATS for each thread
    int rows, cols;         // of out in a job
    int threads;
    int then;               // THEN_...
    const int *live;        // the K columns of a that are multiplied, where that is not all of them
} Product;

static const float zeros[NC];

// Columns j .. j+nr, steps k .. k+kc of b -> (kc,NR).
static void pack_panel(float *panel, const Product *p, int j, int nr, int k, int kc) {
    const int NR = p->loops->NR;
    if (!p->b_is_kn) {
        p->loops->pack(panel, &p->b, j, nr, k, kc);
        return;
    }
    const float *b = (const float *)p->b.data + (size_t)k * p->b.ld + j;
    for (size_t r = 0; r < (size_t)kc; r++) {
        memcpy(panel + r * (size_t)NR, b + r * p->b.ld, (size_t)nr * sizeof *b);
        memset(panel + r * (size_t)NR + nr, 0, (size_t)(NR - nr) * sizeof *b);
    }
}

// Step s of rows m .. m+M of a -> x, rows XS apart.
static void copy_step(float *x, const Product *p, int s, int m, int M) {
    const size_t k = (size_t)s * KC, kc = (size_t)min_int(KC, p->K - s * KC);
    for (size_t r = 0; r < (size_t)M; r++) memcpy(x + r * XS, p->a + ((size_t)m + r) * p->lda + k, kc * sizeof *x);
}

// Step s through K for rows m .. m+M, columns n .. n+N of out. x: that step of row m. What is asked of memory
// meanwhile: the same columns' next step, or behind the last one the first step from column next on.
static void multiply_step(const Product *p, const float *x, int m, int M, int n, int N, int s, int next,
                          float *panel) {
    const Loops *kern = p->loops;
    const int k = s * KC, kc = min_int(KC, p->K - k), MR = kern->MR, NR = kern->NR;
    const bool more = s > 0 || p->then == THEN_ADD, last = k + KC >= p->K;
    const int next_k = last ? 0 : k + KC, ahead = last ? next : n;
    const int calls = ceil_div(M, MR) * ceil_div(kc, AHEAD_STEPS);
    for (int i = 0; i < N; i += NR) {
        const int nr = min_int(NR, N - i);
        Ahead a = ahead_of(&p->b, ahead + i, p->b_is_kn ? 0 : min_int(nr, p->N - ahead - i), next_k,
                           min_int(KC, p->K - next_k), calls);
        pack_panel(panel, p, n + i, nr, k, kc);
        for (int t = 0; t < M; t += MR) {
            const int mr = min_int(MR, M - t);
            float *out = p->out + (size_t)(m + t) * p->ldo + n + i;
            const float *base = more ? out : p->bias ? p->bias + n + i : zeros;
            kern->tile(out, p->ldo, base, more ? p->ldo : 0, p->scale, x + (size_t)t * XS, panel, &a, mr, nr, kc);
        }
    }
}

// ---------------------------------------------------------------------------------------------------------
// Threads: jobs are handed out one by one, so that a thread whose core is shared simply does fewer.

static void run_jobs(Job *run, Product *p, int jobs, const Par *par) {
    pool_run(worth_threads(p->M, p->N, p->K) ? par->pool : NULL, run, p, jobs);
}

static void copy_job(void *arg, int m, int thread) {
    const Product *p = arg;
    (void)thread;
    for (int s = 0; s * KC < p->K; s++) copy_step(p->x + ((size_t)s * (size_t)p->M + (size_t)m) * XS, p, s, m, 1);
}

static void block_job(void *arg, int job, int thread) {
    const Product *p = arg;
    const int across = ceil_div(p->N, p->cols), m = job / across * p->rows, n = job % across * p->cols;
    const int M = min_int(p->rows, p->M - m), N = min_int(p->cols, p->N - n);
    float *out = p->out + (size_t)m * p->ldo + n;
    add_bias(out, p->ldo, p->bias, n, p->then, M, N);
    for (int s = 0; s == 0 || s * KC < p->K; s++)       // the neighbour is probably what this thread does next
        multiply_step(p, p->x + ((size_t)s * (size_t)p->M + (size_t)m) * XS, m, M, n, N, s, n + p->cols,
                      p->panels + (size_t)thread * PANEL_FLOATS);
    activate_block(out, p->ldo, p->loops->activate, p->then, M, N);
}

static void arrange_job(void *arg, int m, int thread) {
    const Product *p = arg;
    (void)thread;
    p->loops->arrange(p->x, p->a + (size_t)m * p->lda, m, p->M, p->K, p->b.dtype);
}

static void rows_job(void *arg, int job, int thread) {
    const Product *p = arg;
    const int n = job * p->cols, N = min_int(p->cols, p->N - n);
    const bool more = p->then == THEN_ADD;
    float *out = p->out + n;
    (void)thread;
    add_bias(out, p->ldo, p->bias, n, p->then, p->M, N);
    p->loops->rows(out, p->ldo, more ? out : p->bias ? p->bias + n : NULL, more ? p->ldo : 0,
                   p->loops->arrange ? p->x : p->a, &p->b, n, p->M, N);
    activate_block(out, p->ldo, p->loops->activate, p->then, p->M, N);
}

// ---------------------------------------------------------------------------------------------------------
// The functions of matmul.h.

// The panels of all threads, then what one product at a time has: its copy of x, or what narrow products use.
static size_t panel_bytes(int threads) { return (size_t)threads * PANEL_FLOATS * sizeof(float); }

uint64_t matmul_scratch_bytes(int threads) {
    const uint64_t narrow = narrow_scratch_bytes(threads);
    return panel_bytes(threads) + (narrow > X_BYTES ? narrow : X_BYTES);
}

// T rows of x put in order for few rows.
static size_t x_floats(int T, int C) { return (size_t)T * (size_t)ceil_div(C, UNIT) * UNIT; }

void matmul(float *out, const float *x, const Tensor *w, const float *b, int T, const Par *par) {
    matmul_then(out, x, w, b, THEN_NOTHING, T, par);
}

void matmul_then(float *out, const float *x, const Tensor *w, const float *b, int then, int T, const Par *par) {
    // x (T,C), w (OC,C), b (OC) or NULL -> out (T,OC)
    const int OC = w->rows, C = w->cols;
    const Weights weights = {w->data, w->scale, (size_t)C, w->dtype};
    char *const shared = (char *)par->scratch + panel_bytes(par->threads);
    Product p = {.out = out, .a = x, .b = weights, .bias = b, .ldo = (size_t)OC, .lda = (size_t)C, .scale = 1, .M = T,
                 .N = OC, .K = C, .loops = par->kernels->loops, .x = (float *)(void *)shared, .panels = par->scratch,
                 .threads = par->threads, .then = then};
    if (T <= 0 || OC <= 0) return;
    const Narrow *const narrow = w->dtype == DT_INT8 ? par->kernels->int8 : w->dtype == DT_BF16 ? par->kernels->bf16 :
                                 w->dtype == DT_INT4 ? par->kernels->int4 : NULL;
    if (narrow && (narrow->few > 0 || T > BF16_FEW) &&
        narrow_matmul(narrow, out, x, &weights, b, then, T, OC, C, par->kernels->loops->activate, shared, par)) return;
    const size_t most = X_BYTES / ((size_t)ceil_div(C + 1, KC) * XS * sizeof(float));     // rows of x that are copied
    if (T <= p.loops->few || most < 1) {
        // more columns than any model has: as they are
        if (x_floats(p.loops->few, C) * sizeof(float) > X_BYTES) p.loops = &loops_plain;
        p.cols = rows_in_a_job(&weights, OC, C, par->threads);
        if (p.loops->arrange) pool_run(worth_threads_for_x(T, C) ? par->pool : NULL, arrange_job, &p, T);
        run_jobs(rows_job, &p, ceil_div(OC, p.cols), par);
        return;
    }
    p.cols = columns_in_a_job(OC, NC, p.loops->NR, par->threads);
    const int across = ceil_div(OC, p.cols), pass = (size_t)T < most ? T : (int)most;
    for (int t = 0; t < T; t += pass) {
        p.out = out + (size_t)t * (size_t)OC, p.a = x + (size_t)t * (size_t)C;
        p.M = min_int(pass, T - t);
        p.rows = rows_in_a_block(p.M, across, p.loops->MR, par->threads);
        run_jobs(copy_job, &p, p.M, par);
        run_jobs(block_job, &p, across * ceil_div(p.M, p.rows), par);
    }
}

// The same in this thread, for what attention multiplies. Some rows at a time, so that their copy lies on the stack.
static void small_product(const Product *p) {
    float x[ROWS_ON_STACK * XS] __attribute__((aligned(64))), panel[PANEL_FLOATS] __attribute__((aligned(64)));
    for (int m = 0; m < p->M; m += ROWS_ON_STACK)
        for (int s = 0; s == 0 || s * KC < p->K; s++) {
            const int M = min_int(ROWS_ON_STACK, p->M - m);
            copy_step(x, p, s, m, M);
            for (int n = 0; n < p->N; n += NC) multiply_step(p, x, m, M, n, min_int(NC, p->N - n), s, n + NC, panel);
        }
}

// Of the room for copied x, for the sums of a thread.
static size_t lane_floats(int threads) { return (size_t)min_int(1 << 15, X_BYTES / 64 / threads * 16); }

static void living_job(void *arg, int job, int thread) {
    const Product *p = arg;
    const int n = job * p->cols, N = min_int(p->cols, p->N - n);
    add_bias(p->out + n, p->ldo, p->bias, n, p->then, p->M, N);
    p->loops->living(p->out + n, p->ldo, p->a, p->lda, &p->b, n, p->live, p->K, p->M, N,
                     p->x + thread * lane_floats(p->threads));
}

bool matmul_lives(int dtype, const Par *par) {
    const MatmulKernels *k = par->kernels;
    return dtype == DT_INT8 ? k->loops->living8 && k->int8 && k->int8->few > 0 :
           dtype != DT_INT4 && k->loops->living;
}

bool matmul_living(float *out, const float *x, const Tensor *w, const void *turned, const float *b, const int *live,
                   int n, int T, const Par *par) {
    // x (T,C), turned (C,OC), b (OC) or NULL -> out (T,OC) += b + x w^T
    const Loops *loops = par->kernels->loops;
    const int OC = w->rows, C = w->cols, room = (int)lane_floats(par->threads) / (T * loops->VW) / 32 * 32;
    char *const shared = (char *)par->scratch + panel_bytes(par->threads);
    if (!matmul_lives(w->dtype, par) || T > loops->few || OC % 32 || C % 32) return false;
    if (w->dtype == DT_INT8)
        return narrow_living(par->kernels->int8, loops->living8, out, x,
                             &(Weights){turned, w->scale, (size_t)OC, DT_INT8}, b, live, n, T, OC, C, shared, par);
    if (room < 32) return false;
    Product p = {.out = out, .a = x, .b = {turned, NULL, (size_t)OC, w->dtype}, .bias = b, .ldo = (size_t)OC,
                 .lda = (size_t)C, .scale = 1, .M = T, .N = OC, .K = n, .loops = loops, .x = (float *)(void *)shared,
                 .threads = par->threads, .then = THEN_ADD, .live = live};
    // Wide enough for whole pages of a row, narrow enough for the level 1 cache and for four jobs a thread.
    p.cols = min_int(min_int(room, 256), ceil_div(OC, 4 * par->threads * 32) * 32);
    run_jobs(living_job, &p, ceil_div(OC, p.cols), par);
    return true;
}

void gemm_nt(float *out, int ldo, const float *a, int lda, const float *b, int ldb, float scale, int M, int N, int K,
             const Par *par) {
    // a (M,K), b (N,K) -> out (M,N) = scale * a b^T
    if (M <= 0 || N <= 0) return;
    const Weights w = {b, NULL, (size_t)ldb, DT_F32};
    small_product(&(Product){.out = out, .a = a, .b = w, .ldo = (size_t)ldo, .lda = (size_t)lda, .scale = scale, .M = M,
                             .N = N, .K = K, .loops = par->kernels->loops, .then = THEN_NOTHING});
}

void gemm_nn(float *out, int ldo, const float *a, int lda, const float *b, int ldb, int M, int N, int K,
             const Par *par) {
    // a (M,K), b (K,N) -> out (M,N)
    if (M <= 0 || N <= 0) return;
    small_product(&(Product){.out = out, .a = a, .b = {b, NULL, (size_t)ldb, DT_F32}, .b_is_kn = true, .scale = 1,
                             .ldo = (size_t)ldo, .lda = (size_t)lda, .M = M, .N = N, .K = K,
                             .loops = par->kernels->loops, .then = THEN_NOTHING});
}

void activate(float *x, int act, int n, const Par *par) { par->kernels->loops->activate(x, act, n); }

void softmax(float *x, int n, const Par *par) { par->kernels->loops->softmax(x, n); }

void norm(float *out, const float *x, const float *w, const float *b, float eps, int C, const Par *par) {
    par->kernels->loops->norm(out, x, w, b, eps, C);
}

void scores(float *s, const float *q, const float *k, size_t ldk, int n, int A, const Par *par) {
    par->kernels->loops->scores(s, q, k, ldk, n, A);
}

void mix(float *out, const float *s, const float *v, size_t ldv, int n, int A, const Par *par) {
    par->kernels->loops->mix(out, s, v, ldv, n, A);
}

void tensor_row(float *out, const Tensor *w, int r) {
    // w (rows,C), 0 <= r < rows -> out (C)
    const Weights weights = {w->data, w->scale, (size_t)w->cols, w->dtype};
    for (int c = 0; c < w->cols; c++) out[c] = weight(&weights, (size_t)r, (size_t)c) * row_scale(&weights, (size_t)r);
}
