// test/test_matmul.c: every inner loop of matmul.c that this processor has, against sums in double.
//
// In order: memory that ends at an unreadable page, the comparison, matmul over many shapes, gemm_nt and gemm_nn,
// scores and mix, activations, soft-max and norms, NaN and empty inputs, very long rows, tensor_row, and a control that
// shows that the bound can fail. Linked with matmul.c compiled with -DMATMUL_TWINS it is test_matmul_twins.
// `test_matmul amx avxvnni` tests only those of that name (dev/emulator/run.py).
//
// Bound, for every element: |got - want| <= (C + 3) * 2^-24 * (|bias| + sum_c |x_c w_c|). It holds for any order of
// summation in f32. Measured for C >= 64 on the shapes below: worst element 0.009 of it with few rows (each vector lane
// has its own sum), 0.035 with many (one chain of up to 256); up to 0.33 for tiny C. The program prints what it finds.
// Where x is converted (matmul_narrow.h) the bound is larger by what that may cost: for int8 and int4 weights half a
// step of the block's scale for each x, for bf16 weights 2^-8 or 2^-16 of each product.
#include "../matmul.h"
#include "check.h"

#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

enum { TMAX = 257, THREADS = 3 };
static const char *const isas[] = {"plain", "sse2", "generic", "neon", "neondot", "avx2", "avxvnni", "avx512", 
                                   "avx512vnni", "avx512bf16", "amx", "amx-bf16"};

// n bytes that end where an unreadable page begins: reading one element too many stops the program.
static void *guarded(size_t n) {
    const size_t page = (size_t)sysconf(_SC_PAGESIZE), body = (n + page - 1) / page * page;
    char *p = mmap(NULL, body + page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (p == MAP_FAILED || mprotect(p + body, page, PROT_NONE)) { perror("mmap"); exit(1); }
    return p + body - n;
}

static void unguard(void *p, size_t n) {
    const size_t page = (size_t)sysconf(_SC_PAGESIZE), body = (n + page - 1) / page * page;
    munmap((char *)p + n - body, body + page);
}

// Uniform in [-1, 1), a function of the index alone.
static float noise(uint64_t i) {
    i = (i + 1) * 0x9E3779B97F4A7C15u;
    i ^= i >> 31;
    i *= 0xBF58476D1CE4E5B9u;
    i ^= i >> 29;
    return (float)(int32_t)(uint32_t)i * 0x1p-31f;
}

static uint16_t to_bf16(float f) {
    uint32_t u;
    memcpy(&u, &f, sizeof u);
    return (uint16_t)(u >> 16);     // cut off: any bf16 will do
}

static float from_bf16(uint16_t h) {
    uint32_t u = (uint32_t)h << 16;
    float f;
    memcpy(&f, &u, sizeof f);
    return f;
}

static float nan_bits(void) {
    uint32_t u = 0x7FC00123u;
    float f;
    memcpy(&f, &u, sizeof f);
    return f;
}

static float from_f16(uint16_t h) {
    const int e = h >> 10 & 31, m = h & 1023;
    return (float)((h & 0x8000 ? -1 : 1) * (e ? ldexp(1024 + m, e - 25) : ldexp(m, -24)));
}

// A matrix in the file's layout, data and scales each ending at a guard, and the same in f32.
typedef struct { Tensor t; size_t data_bytes, scale_bytes; float *values; } Matrix;

// i8 in -127..127, nibbles in 0..15 (8 in the columns that pad a row), scales around 2^-8, one of them subnormal.
static Matrix matrix_make(int OC, int C, int dtype) {
    const size_t G = ((size_t)C + 31) / 32, n = (size_t)OC * C;
    Matrix m = {.t = {.dtype = dtype, .rows = OC, .cols = C}};
    m.data_bytes = dtype == DT_F32 ? 4 * n : dtype == DT_BF16 ? 2 * n : dtype == DT_INT8 ? n : OC * G * 16;
    m.scale_bytes = dtype == DT_INT8 ? 4 * (size_t)OC : dtype == DT_INT4 ? OC * G * 2 : 0;
    uint8_t *data = guarded(m.data_bytes), *scale = guarded(m.scale_bytes);
    m.values = malloc(n * sizeof *m.values);
    memset(data, 0x88, m.data_bytes);
    for (size_t g = 0; dtype == DT_INT4 && g < OC * G; g++)
        ((uint16_t *)(void *)scale)[g] = (uint16_t)(g % 7 == 6 ? 0x8001 + g % 1000 : 0x1C00 + g * 37 % 0x800);
    for (int r = 0; dtype == DT_INT8 && r < OC; r++)
        ((float *)(void *)scale)[r] = 0x1p-7f * (1.5f + noise((uint64_t)r));
    for (size_t i = 0; i < n; i++) {
        const size_t r = i / (size_t)C, c = i % (size_t)C;
        const float v = noise(i);
        if (dtype == DT_F32) ((float *)(void *)data)[i] = m.values[i] = v;
        if (dtype == DT_BF16) m.values[i] = from_bf16(((uint16_t *)(void *)data)[i] = to_bf16(v));
        if (dtype == DT_INT8) {
            ((int8_t *)data)[i] = (int8_t)(v * 127.99f);
            m.values[i] = ((int8_t *)data)[i] * ((float *)(void *)scale)[r];
        }
        if (dtype == DT_INT4) {
            const int q = (int)((v + 1) * 8), at = c % 32 < 16 ? 0 : 4;
            uint8_t *byte = data + (r * G + c / 32) * 16 + c % 16;
            *byte = (uint8_t)((*byte & ~(15 << at)) | q << at);
            m.values[i] = (float)(q - 8) * from_f16(((uint16_t *)(void *)scale)[r * G + c / 32]);
        }
    }
    m.t.data = data;
    m.t.scale = m.scale_bytes ? scale : NULL;
    return m;
}

static void matrix_free(Matrix *m) {
    unguard((void *)(uintptr_t)m->t.data, m->data_bytes);
    if (m->scale_bytes) unguard((void *)(uintptr_t)m->t.scale, m->scale_bytes);
    free(m->values);
}

typedef struct { double want, size, slack; } Ref;    // the product, the sum of absolute values, what x may be off

// What conversion of x may cost: relative to the products for bf16 weights, in steps of a block's scale for integers.
static double off_bf16(const char *isa) {
    return !strcmp(isa, "avx512bf16") || !strcmp(isa, "amx-bf16") ? 0x1p-8 : !strcmp(isa, "amx") ? 0x1p-16 : 0;
}

static double off_int(const char *isa) {
    return !strcmp(isa, "neondot") || !strncmp(isa, "avx", 3) || !strncmp(isa, "amx", 3) ? 0.5 : 0;
}

// x (C), w (C) of a matrix of that dtype -> the product
static Ref ref_of(const float *x, const float *w, int C, int dtype, double bias, const char *isa) {
    enum { IN_A_BLOCK = 512, STEPS = 127 * 257 };
    Ref r = {bias, fabs(bias), 0};
    double top = 0, sum = 0;
    for (int c = 0; c < C; c++) {
        const double p = (double)x[c] * w[c];
        r.want += p;
        r.size += fabs(p);
        top = fmax(top, fabs(x[c]));
        sum += fabs(w[c]);
        if (dtype >= DT_INT8 && (c == C - 1 || (c + 1) % IN_A_BLOCK == 0)) {
            r.slack += off_int(isa) * 1.001 * top / STEPS * sum;
            top = sum = 0;
        }
    }
    if (dtype == DT_BF16) r.slack = off_bf16(isa) * r.size;
    return r;
}

static const float canary = 12345.678f;

// The largest |got - want| in units of the bound, over an (M,N) matrix; infinite when an element is not finite.
static double excess(const float *got, size_t ld, const Ref *ref, size_t ldref, int M, int N, int C) {
    double worst = 0;
    for (int m = 0; m < M; m++)
        for (int n = 0; n < N; n++) {
            const Ref *r = ref + (size_t)m * ldref + n;
            const float g = got[(size_t)m * ld + n];
            if (not_finite(g)) return INFINITY;
            const double e = fabs(g - r->want), b = (C + 3) * 0x1p-24 * r->size + r->slack;
            if (e > 0 && e / b > worst) worst = e / b;
        }
    return worst;
}

// True when everything outside of the (M,N) matrix inside out (total floats, starting at `at`) is still the canary.
static bool untouched(const float *out, size_t total, size_t at, size_t ld, int M, int N) {
    for (size_t i = 0; i < total; i++) {
        const bool inside = i >= at && (i - at) / ld < (size_t)M && (i - at) % ld < (size_t)N;
        if (!inside && memcmp(out + i, &canary, sizeof canary)) return false;
    }
    return true;
}

static void fill(float *p, size_t n, float v) { for (size_t i = 0; i < n; i++) p[i] = v; }

typedef struct { Tally t; double worst_few, worst_many, worst_tiny; float *scratch[THREADS + 1];
               Pool *pool[THREADS + 1]; } State;

// What a product finds in the scratch must not matter. The beginning is new for every call, most of it only with all:
// it is large.
static Par par_of(State *s, const MatmulKernels *k, int threads, bool all) {
    fill(s->scratch[threads], all ? 1000000 : 100000, nan_bits());
    return (Par){threads, k, s->scratch[threads], s->pool[threads]};
}

// ---------------------------------------------------------------------------------------------------------

// All T of one weight (OC,C), with and without a bias, on 1 to 3 threads.
static void check_matmul(State *s, const MatmulKernels *k, int C, int OC, int dtype, bool with_bias) {
    static const int Ts[] = {TMAX, 100, 40, 17, 14, 9, 8, 7, 6, 5, 4, 3, 2, 1};
    const size_t nx = (size_t)TMAX * C, nout = (size_t)TMAX * OC + 32;
    float *x = guarded(nx * 4), *b = guarded((size_t)OC * 4);
    Matrix w = matrix_make(OC, C, dtype);
    Ref *ref = malloc((size_t)TMAX * OC * sizeof *ref);
    float *out = malloc(nout * 4), *one = malloc((size_t)TMAX * OC * 4);
    float *same = malloc((size_t)OC * 4);
    bool crossed = false;
    for (size_t i = 0; i < nx; i++) x[i] = noise(i + 77777777);
    for (int i = 0; i < OC; i++) b[i] = noise((uint64_t)i + 5555);
    for (int t = 0; t < TMAX; t++)
        for (int o = 0; o < OC; o++)
            ref[(size_t)t * OC + o] = ref_of(x + (size_t)t * C, w.values + (size_t)o * C, C, dtype,
                                             with_bias ? b[o] : 0, matmul_isa(k));
    for (size_t i = 0; i < sizeof Ts / sizeof *Ts; i += C > 10000 ? 13 : 1) {
        const int T = Ts[i];
        float *xt = x + nx - (size_t)T * C;     // the last T rows, so that the guard is right behind them
        const Ref *want = ref + (size_t)(TMAX - T) * OC;
        for (int threads = 1; threads <= THREADS; threads++) {
            const Par par = par_of(s, k, threads, i == 0);
            fill(out, nout, canary);
            matmul(out + 16, xt, &w.t, with_bias ? b : NULL, T, &par);
            const double e = excess(out + 16, OC, want, OC, T, OC, C);
            double *worst = C < 64 ? &s->worst_tiny : T <= 6 ? &s->worst_few : &s->worst_many;
            if (e > *worst) *worst = e;
            EXPECT(&s->t, e <= 1, "%s C=%d OC=%d T=%d dtype=%d threads=%d: %.3g of the bound", matmul_isa(k), C, OC, T,
                   dtype, threads, e);
            EXPECT(&s->t, untouched(out, nout, 16, OC, T, OC), "%s C=%d OC=%d T=%d: wrote outside", matmul_isa(k), C,
                   OC, T);
            if (threads == 1) memcpy(one, out + 16, (size_t)T * OC * 4);
            EXPECT(&s->t, !memcmp(one, out + 16, (size_t)T * OC * 4), "%s C=%d OC=%d T=%d: %d threads differ from one",
                   matmul_isa(k), C, OC, T, threads);
        }
        // Many rows go one way, few another; the last row knows which way it went and nothing else of T.
        const float *last = one + (size_t)(T - 1) * OC;
        if (i == 0) memcpy(same, last, (size_t)OC * 4);
        if (!crossed && memcmp(same, last, (size_t)OC * 4)) {
            crossed = true;
            memcpy(same, last, (size_t)OC * 4);
        }
        EXPECT(&s->t, !memcmp(same, last, (size_t)OC * 4), "%s C=%d OC=%d: T=%d changes a row", matmul_isa(k), C, OC,
               T);
    }
    unguard(x, nx * 4), unguard(b, (size_t)OC * 4);
    matrix_free(&w);
    free(ref), free(out), free(one), free(same);
}

// The small products, with rows further apart than they are long.
static void check_gemm(State *s, const MatmulKernels *k, bool nt, int M, int N, int K) {
    const int lda = K + 3, ldb = (nt ? K : N) + 5, ldo = N + 2;
    const float scale = nt ? 0.125f * 1.1f : 1.0f;
    const size_t na = (size_t)(M - 1) * lda + K, nb = (size_t)((nt ? N : K) - 1) * ldb + (nt ? K : N);
    const size_t nout = (size_t)M * ldo + 40;
    float *a = guarded(na * 4), *b = guarded(nb * 4), *out = malloc(nout * 4);
    Ref *ref = malloc((size_t)M * N * sizeof *ref);
    for (size_t i = 0; i < na; i++) a[i] = noise(i);
    for (size_t i = 0; i < nb; i++) b[i] = noise(i + 999999);
    for (int m = 0; m < M; m++)
        for (int n = 0; n < N; n++) {
            Ref r = {0};
            for (int i = 0; i < K; i++) {
                const double p = (double)a[(size_t)m * lda + i] * b[nt ? (size_t)n * ldb + i : (size_t)i * ldb + n];
                r.want += scale * p;
                r.size += fabs(scale * p);
            }
            ref[(size_t)m * N + n] = r;
        }
    const Par par = {1, k, NULL, NULL};     // they take no scratch
    fill(out, nout, canary);
    if (nt) gemm_nt(out + 20, ldo, a, lda, b, ldb, scale, M, N, K, &par);
    else gemm_nn(out + 20, ldo, a, lda, b, ldb, M, N, K, &par);
    const double e = excess(out + 20, ldo, ref, N, M, N, K);
    EXPECT(&s->t, e <= 1, "%s gemm_%s M=%d N=%d K=%d: %.3g of the bound", matmul_isa(k), nt ? "nt" : "nn", M, N, K, e);
    EXPECT(&s->t, untouched(out, nout, 20, ldo, M, N), "%s gemm_%s M=%d N=%d K=%d: wrote outside", matmul_isa(k),
           nt ? "nt" : "nn", M, N, K);
    unguard(a, na * 4), unguard(b, nb * 4);
    free(out), free(ref);
}

static void check_vectors(State *s, const MatmulKernels *k) {
    const Par par = {1, k, NULL, NULL};
    for (int n = 0; n <= 100; n++) {
        float *a = guarded((size_t)n * 4 + 4), *b = guarded((size_t)n * 4 + 4);
        a++, b++;                     // n = 0 leaves nothing that may be read
        Ref r = {0};
        for (int i = 0; i < n; i++) {
            a[i] = noise((uint64_t)i), b[i] = noise((uint64_t)i + 500);
            r.want += (double)a[i] * b[i];
            r.size += fabs((double)a[i] * b[i]);
        }
        float got;
        scores(&got, a, b, 0, 1, n, &par);
        EXPECT(&s->t, excess(&got, 1, &r, 1, 1, 1, n) <= 1, "%s scores of %d", matmul_isa(k), n);
        bool same = true;
        const float s7 = 0.7f;
        mix(b, &s7, a, 0, 1, n, &par);
        for (int i = 0; i < n; i++) same &= fabs(b[i] - (noise((uint64_t)i + 500) + 0.7 * (double)a[i])) <= 0x1p-22;
        EXPECT(&s->t, same && b[-1] == 0, "%s mix of %d", matmul_isa(k), n);
        unguard(a - 1, (size_t)n * 4 + 4), unguard(b - 1, (size_t)n * 4 + 4);
    }
}

static double true_act(double x, int act) {
    return act == ACT_RELU ? (x < 0 ? 0 : x) : act == ACT_GELU ? 0.5 * x * erfc(-x * 0.70710678118654752440) :
           x / (1 + exp(-2 * 0.79788456080286535588 * (x + 0.044715 * x * x * x)));
}

// Worst errors: of an activation relative to |x|, of a soft-max relative to itself, of a norm relative to the size of
// the two terms that make it. Measured over all inner loops: 1.3e-7, 6.8e-7, 3.8e-7.
static void check_math(State *s, const MatmulKernels *k) {
    enum { N = 2000 };
    static float x[N], y[N], w[N], b[N];
    const Par par = {1, k, NULL, NULL};
    double worst[3] = {0};
    for (int act = ACT_RELU; act <= ACT_GELU_TANH; act++) {
        for (int i = 0; i < N; i++) y[i] = x[i] = (i % 2 ? 20 : 3) * noise((uint64_t)i);
        y[N - 1] = x[N - 1] = nan_bits();
        activate(y, act, N, &par);
        for (int i = 0; i < N - 1; i++)
            worst[0] = fmax(worst[0], not_finite(y[i]) ? INFINITY : fabs(y[i] - true_act(x[i], act)) / fabs(x[i]));
        EXPECT(&s->t, not_finite(y[N - 1]), "%s: activation %d of NaN", matmul_isa(k), act);
    }
    for (int n = 1; n < 100; n++) {
        double sum = 0, mean = 0, sq = 0, top = -INFINITY;
        for (int i = 0; i < n; i++) {
            y[i] = x[i] = 15 * noise((uint64_t)(i + 100 * n)) + 500;
            w[i] = noise((uint64_t)i + 7), b[i] = noise((uint64_t)i + 77);
            top = fmax(top, x[i]);
        }
        for (int i = 0; i < n; i++) sum += exp(x[i] - top), mean += (double)x[i] / n;
        softmax(y, n, &par);
        for (int i = 0; i < n; i++) worst[1] = fmax(worst[1], fabs(y[i] * sum / exp(x[i] - top) - 1));
        for (int layer = 0; layer < 2; layer++) {      // T5's norm, then layer norm; near zero mean: f32 rounds it
            for (int i = 0; i < n; i++) x[i] -= 500 * (float)!layer;
            mean = sq = 0;
            for (int i = 0; layer && i < n; i++) mean += (double)x[i] / n;
            for (int i = 0; i < n; i++) sq += (x[i] - mean) * (x[i] - mean) / n;
            norm(y, x, w, layer ? b : NULL, 1e-6f, n, &par);
            for (int i = 0; i < n; i++) {
                const double d = (x[i] - mean) / sqrt(sq + 1e-6) * w[i], bi = layer ? b[i] : 0;
                const double size = (fabs(x[i]) + fabs(mean)) / sqrt(sq + 1e-6) * fabs(w[i]) + fabs(bi);
                if (n > 1 || !layer) worst[2] = fmax(worst[2], fabs(y[i] - d - bi) / size);
            }
        }
    }
    static const double most[] = {4e-7, 2e-6, 1e-6};
    static const char *const what[] = {"activation", "soft-max", "norm"};
    for (int i = 0; i < 3; i++)
        EXPECT(&s->t, worst[i] < most[i], "%s %s: %.3g", matmul_isa(k), what[i], worst[i]);
    fprintf(stderr, "%s: worst activation %.3g, soft-max %.3g, norm %.3g\n", matmul_isa(k), worst[0], worst[1],
            worst[2]);
}

// One NaN in x makes its row NaN and no other; one in w makes its column NaN. Empty products write nothing or the bias.
static void check_edges(State *s, const MatmulKernels *k) {
    enum { T = 20, C = 70, OC = 37 };
    static float x[T * C], w[OC * C], b[OC], out[T * OC];
    for (int i = 0; i < T * C; i++) x[i] = noise((uint64_t)i);
    for (int i = 0; i < OC * C; i++) w[i] = noise((uint64_t)i);
    for (int i = 0; i < OC; i++) b[i] = (float)i;
    const Tensor tensor = {w, NULL, DT_F32, OC, C}, empty = {w, NULL, DT_F32, OC, 0}, none = {w, NULL, DT_F32, 0, C};
    const Par par = par_of(s, k, 2, true);
    for (int rows = 5; rows <= T; rows += T - 5)
        for (int c = 0; c < C; c += C - 1) {
            const float keep_x = x[3 * C + c], keep_w = w[36 * C + c];
            x[3 * C + c] = w[36 * C + c] = nan_bits();
            matmul(out, x, &tensor, NULL, rows, &par);
            int wrong = 0;
            for (int i = 0; i < rows * OC; i++) wrong += not_finite(out[i]) != (i / OC == 3 || i % OC == 36);
            EXPECT(&s->t, wrong == 0, "%s T=%d: NaN in column %d: %d elements wrong", matmul_isa(k), rows, c, wrong);
            x[3 * C + c] = keep_x, w[36 * C + c] = keep_w;
        }
    // The same for x with weights for which it may be converted; nothing but a NaN or an infinity, and zero.
    for (int dtype = DT_BF16; dtype <= DT_INT4; dtype++) {
        Matrix m = matrix_make(OC, C, dtype);
        const float odd[] = {nan_bits(), INFINITY, -INFINITY};
        for (int rows = 5; rows <= T; rows += T - 5)
            for (int i = 0; i < 3; i++) {
                const float keep = x[3 * C + 69];
                x[3 * C + 69] = odd[i];
                for (int c = 0; c < C; c++) x[4 * C + c] = 0;
                matmul(out, x, &m.t, NULL, rows, &par);
                int wrong = 0;
                for (int j = 0; j < rows * OC; j++)
                    wrong += j / OC == 3 ? !not_finite(out[j]) && m.values[j % OC * C + 69] != 0 : not_finite(out[j]);
                for (int j = 4 * OC; j < 5 * OC; j++) wrong += out[j] != 0;
                EXPECT(&s->t, wrong == 0, "%s T=%d dtype=%d, %g in x: %d elements wrong", matmul_isa(k), rows, dtype,
                       (double)odd[i], wrong);
                x[3 * C + 69] = keep;
                for (int c = 0; c < C; c++) x[4 * C + c] = noise((uint64_t)(4 * C + c));
            }
        matrix_free(&m);
    }
    for (int rows = 5; rows <= T; rows += T - 5) {
        int wrong = 0;
        matmul(out, x, &empty, b, rows, &par);
        for (int i = 0; i < rows * OC; i++) wrong += out[i] != b[i % OC];
        EXPECT(&s->t, wrong == 0, "%s T=%d C=0 is not the bias", matmul_isa(k), rows);
        fill(out, T * OC, canary);
        matmul(out, x, &none, b, rows, &par);
        matmul(out, x, &tensor, b, 0, &par);
        gemm_nt(out, OC, x, C, w, C, 1, 0, OC, C, &par), gemm_nt(out, OC, x, C, w, C, 1, rows, 0, C, &par);
        gemm_nn(out, OC, x, C, w, C, 0, OC, C, &par), gemm_nn(out, OC, x, C, w, C, rows, 0, C, &par);
        EXPECT(&s->t, untouched(out, T * OC, 0, OC, 0, 0), "%s: an empty product wrote something", matmul_isa(k));
        gemm_nn(out, OC, x, C, w, C, rows, OC, 0, &par);
        wrong = 0;
        for (int i = 0; i < rows * OC; i++) wrong += out[i] != 0;
        EXPECT(&s->t, wrong == 0, "%s M=%d K=0 is not zero", matmul_isa(k), rows);
    }
}

// More columns than a few rows of x put in order have room for.
static void check_long(State *s, const MatmulKernels *k) {
    enum { T = 2, C = 300000, OC = 3 };
    static float x[T * C], w[OC * C], out[T * OC];
    Ref ref[T * OC];
    for (int i = 0; i < T * C; i++) x[i] = noise((uint64_t)i);
    for (int i = 0; i < OC * C; i++) w[i] = noise((uint64_t)i + 55);
    for (int i = 0; i < T * OC; i++) ref[i] = ref_of(x + i / OC * C, w + i % OC * C, C, DT_F32, 0, matmul_isa(k));
    const Tensor tensor = {w, NULL, DT_F32, OC, C};
    const Par par = par_of(s, k, 2, true);
    matmul(out, x, &tensor, NULL, T, &par);
    EXPECT(&s->t, excess(out, OC, ref, OC, T, OC, C) <= 1, "%s C=%d", matmul_isa(k), C);
}

static void check_tensor_row(State *s) {
    float w[3 * 7], out[9];
    uint16_t h[3 * 7];
    for (int i = 0; i < 21; i++) w[i] = noise((uint64_t)i), h[i] = to_bf16(w[i]);
    h[8] = 0x7F80, h[9] = 0x8000, h[10] = 0x0001;      // infinity, -0, the smallest subnormal
    const Tensor f32 = {w, NULL, DT_F32, 3, 7}, bf16 = {h, NULL, DT_BF16, 3, 7};
    for (int r = 0; r < 3; r++) {
        fill(out, 9, canary);
        tensor_row(out + 1, &f32, r);
        EXPECT(&s->t, !memcmp(out + 1, w + r * 7, 7 * 4) && untouched(out, 9, 1, 7, 1, 7), "f32 row %d", r);
        fill(out, 9, canary);
        tensor_row(out + 1, &bf16, r);
        bool same = untouched(out, 9, 1, 7, 1, 7);
        for (int c = 0; c < 7; c++) {
            const float want = from_bf16(h[r * 7 + c]);
            same &= !memcmp(out + 1 + c, &want, 4);
        }
        EXPECT(&s->t, same, "bf16 row %d", r);
    }
    for (int dtype = DT_INT8; dtype <= DT_INT4; dtype++) {
        static float row[70];
        Matrix m = matrix_make(5, 70, dtype);
        for (int r = 0; r < 5; r++) {
            tensor_row(row, &m.t, r);
            EXPECT(&s->t, !memcmp(row, m.values + r * 70, sizeof row), "dtype %d row %d", dtype, r);
        }
        matrix_free(&m);
    }
}

// The bound must notice a product that leaves out the last column of w, or works on bf16-rounded x.
static void check_control(State *s, const MatmulKernels *k, int dtype) {
    enum { T = 18, C = 301, OC = 40 };
    static float x[T * C], rounded[T * C], shortened[T * C], out[T * OC];
    static Ref ref[T * OC];
    Matrix w = matrix_make(OC, C, dtype);
    for (int i = 0; i < T * C; i++) {
        x[i] = noise((uint64_t)i + 12345);
        rounded[i] = from_bf16(to_bf16(x[i]));
        shortened[i] = i % C == C - 1 ? 0 : x[i];
    }
    for (int i = 0; i < T * OC; i++)
        ref[i] = ref_of(x + i / OC * C, w.values + i % OC * C, C, dtype, 0, matmul_isa(k));
    const Par par = par_of(s, k, 2, true);
    const bool rounds = dtype == DT_BF16 && off_bf16(matmul_isa(k)) > 0x1p-10;
    for (int rows = 4; rows <= T; rows += T - 4) {
        const float *const inputs[] = {x, rounded, shortened};
        for (int i = 0; i < 3; i += rounds ? 2 : 1) {
            matmul(out, inputs[i], &w.t, NULL, rows, &par);
            EXPECT(&s->t, (excess(out, OC, ref, OC, rows, OC, C) <= 1) == (i == 0), "%s control dtype=%d T=%d input %d",
                   matmul_isa(k), dtype, rows, i);
        }
    }
    matrix_free(&w);
}

static bool known(const char *name) {
    for (size_t i = 0; i < sizeof isas / sizeof *isas; i++)
        if (!strcmp(name, isas[i])) return true;
    return false;
}

static bool asked_for(const char *isa, int argc, char **argv) {
    for (int i = 1; i < argc; i++)
        if (!strcmp(isa, argv[i])) return true;
    return argc < 2;
}

int main(int argc, char **argv) {
    static State s;
    for (int i = 1; i < argc; i++)
        if (!known(argv[i])) {
            fprintf(stderr, "test_matmul: no inner loops called '%s'; hint: a name of --cpu-isa, e.g. amx\n", argv[i]);
            return 2;
        }
    static const int shapes[][2] = {   // C, OC
        {1, 1}, {1, 3}, {7, 1}, {7, 3}, {7, 40}, {16, 16}, {88, 31}, {88, 129}, {257, 64}, {600, 3}, {1409, 1},
        {1409, 3}, {1409, 35}, {512, 301}
    };
    for (int t = 1; t <= THREADS; t++) {
        // aligned as matmul.h asks, and ending at the guard: the size is a multiple of 64
        EXPECT(&s.t, matmul_scratch_bytes(t) % 64 == 0, "scratch of %d threads", t);
        s.scratch[t] = guarded(matmul_scratch_bytes(t));
        s.pool[t] = pool_open(t);
    }
    EXPECT(&s.t, matmul_kernels("no such") == NULL, "an unknown name was taken");
    EXPECT(&s.t, matmul_kernels("auto") == matmul_kernels(NULL) && matmul_kernels(NULL), "no default");
    for (size_t i = 0; i < sizeof isas / sizeof *isas; i++) {
        if (!asked_for(isas[i], argc, argv)) continue;
        const MatmulKernels *k = matmul_kernels(isas[i]);
        if (!k) { SKIP(&s.t, "%s: not on this processor", isas[i]); continue; }
        s.worst_few = s.worst_many = s.worst_tiny = 0;
        for (size_t j = 0; j < sizeof shapes / sizeof *shapes; j++)
            for (int dtype = DT_F32; dtype <= DT_INT4; dtype++)
                check_matmul(&s, k, shapes[j][0], shapes[j][1], dtype, (j + (size_t)dtype) % 2);
        static const int sizes[] = {1, 2, 8, 9, 33, 88, 257};
        for (int m = 0; m < 7; m++)
            for (int n = 0; n < 7; n++)
                for (int q = 0; q < 7; q++)
                    for (int nt = 0; nt < 2; nt++)
                        if (sizes[m] * sizes[n] * sizes[q] < 1000000)
                            check_gemm(&s, k, nt, sizes[m], sizes[n], sizes[q]);
        check_gemm(&s, k, true, 20, 120, 300), check_gemm(&s, k, false, 20, 120, 677);
        check_vectors(&s, k);
        check_math(&s, k);
        check_edges(&s, k);
        check_long(&s, k);
        for (int dtype = DT_F32; dtype <= DT_INT4; dtype++) check_control(&s, k, dtype);
        // more converted x than there is room for at once
        for (int dtype = DT_INT8; dtype <= DT_INT4 && off_int(isas[i]) > 0; dtype++)
            check_matmul(&s, k, 20000, 3, dtype, true);
        fprintf(stderr, "%s: worst element %.3f of the bound for T <= 6, %.3f above, %.3f for C < 64\n", isas[i],
                s.worst_few, s.worst_many, s.worst_tiny);
    }
    check_tensor_row(&s);
    for (int t = 1; t <= THREADS; t++) pool_close(s.pool[t]);
    return tally_close(&s.t);
}
