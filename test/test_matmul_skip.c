// test/test_matmul_skip.c: fc2 without zero neurons against fc2 with them: not one bit may differ.
//
// In order: matrices and rows of x, products by every instruction set of this processor, when a matrix is turned, a NaN
// among the neurons, a control that shows that the comparison can fail, what is never turned, a mapped file.
#include "../matmul_skip.h"
#include "check.h"

#include <limits.h>
#include <stdlib.h>
#include <sys/mman.h>

static uint32_t noise(uint32_t *seed) { return *seed = *seed * 1664525 + 1013904223; }

// (OC,C) of a dtype, with numbers of every size, in pages of its own.
static Tensor matrix(int OC, int C, int dtype, size_t *bytes) {
    const size_t n = (size_t)OC * (size_t)C, each = dtype == DT_F32 ? 4 : dtype == DT_BF16 ? 2 : 1;
    *bytes = n * each + (dtype == DT_INT8 ? (size_t)OC * sizeof(float) : 0);
    void *p = mmap(NULL, *bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (p == MAP_FAILED) { perror("mmap"); exit(1); }
    uint32_t seed = 7;
    for (size_t i = 0; i < n; i++) {
        const float f = (float)((int32_t)noise(&seed) >> 8) * (i % 5 ? 0x1p-24f : 0x1p-30f);
        uint32_t bits;
        memcpy(&bits, &f, sizeof bits);
        if (dtype == DT_F32) ((uint32_t *)p)[i] = bits;
        else if (dtype == DT_INT8) ((int8_t *)p)[i] = (int8_t)(bits >> 16);
        else ((uint16_t *)p)[i] = (uint16_t)(bits >> 16);
    }
    float *const scale = dtype == DT_INT8 ? (float *)(void *)((char *)p + n) : NULL;
    for (int j = 0; scale && j < OC; j++) scale[j] = (float)(noise(&seed) >> 8) * 0x1p-30f;
    return (Tensor){p, scale, dtype, OC, C};
}

// x (T,C): one column in `every` is not zero, in some of the rows.
static void rows(float *x, int T, int C, int every, uint32_t seed) {
    for (int c = 0; c < C; c++)
        for (int t = 0; t < T; t++) {
            const uint32_t r = noise(&seed);
            x[t * C + c] = c % every == 0 && (t == c / every % T || r >> 30) ? (float)(r >> 8) * 0x1p-24f : 0;
        }
}

typedef struct { float *x, *got, *want, *bias; Par par; } Work;

static Work work(const MatmulKernels *k, int threads, int OC, int C) {
    const uint64_t scratch = (matmul_scratch_bytes(threads) + 63) / 64 * 64;
    Work w = {.par = {threads, k, aligned_alloc(64, scratch), pool_open(threads)}};
    w.x = malloc(8 * (size_t)C * sizeof *w.x), w.bias = malloc((size_t)OC * sizeof *w.bias);
    w.got = malloc(9 * (size_t)OC * sizeof *w.got), w.want = malloc(9 * (size_t)OC * sizeof *w.want);
    if (!w.par.scratch || !w.par.pool || !w.x || !w.bias || !w.got || !w.want) { perror("malloc"); exit(1); }
    return w;
}

static void work_free(Work *w) {
    pool_close(w->par.pool);
    free(w->par.scratch), free(w->x), free(w->got), free(w->want), free(w->bias);
}

// One product with and without skipping, a row of canaries behind each; whether all bits are equal.
static bool same(Work *w, Skip *s, int i, const Tensor *m, bool bias, int T) {
    const size_t n = (size_t)T * (size_t)m->rows, all = n + (size_t)m->rows;
    for (size_t j = 0; j < all; j++) w->got[j] = w->want[j] = (float)(j % 100) * 0.01f;
    for (int j = 0; j < m->rows; j++) w->bias[j] = (float)j * 0.001f;
    skip_matmul(s, i, w->got, w->x, m, bias ? w->bias : NULL, T, &w->par);
    matmul_then(w->want, w->x, m, bias ? w->bias : NULL, THEN_ADD, T, &w->par);
    return !memcmp(w->got, w->want, all * sizeof *w->got);
}

static void test_products(Tally *t, const char *isa) {
    const MatmulKernels *k = matmul_kernels(isa);
    if (!k) return;
    static const int shapes[][2] = {{64, 64}, {128, 192}, {320, 1024}, {576, 2560}};
    for (size_t s = 0; s < sizeof shapes / sizeof *shapes; s++)
        for (int dtype = DT_F32; dtype <= DT_INT8; dtype++) {
            size_t bytes;
            const Tensor two[2] = {matrix(shapes[s][0], shapes[s][1], dtype, &bytes), two[0]};
            for (int threads = 1; threads <= 3; threads++) {
                Skip *skip = skip_open(two, sizeof *two, 2, false, 0, 2);
                Work w = work(k, threads, two->rows, two->cols);
                for (int T = 1; T <= 8; T++)
                    for (int every = 3; every <= 90; every += 29) {
                        rows(w.x, T, two->cols, every, (uint32_t)(T * every));
                        EXPECT(t, same(&w, skip, 1, &two[1], T % 2, T), "%s, %d x %d, dtype %d, %d rows, every %d", isa,
                               two->rows, two->cols, dtype, T, every);
                    }
                const SkipCount c = skip_count(skip);
                const bool lives = matmul_lives(dtype, &w.par);
                EXPECT(t, lives || !strcmp(isa, "plain") || dtype == DT_INT8, "%s cannot skip dtype %d", isa, dtype);
                EXPECT(t, c.turned == lives, "%s, dtype %d: %d turned", isa, dtype, c.turned);
                const uint64_t each = dtype == DT_F32 ? 4 : dtype == DT_BF16 ? 2 : 1;
                EXPECT(t, c.bytes == (c.rows - c.living) * (uint64_t)two->rows * each, "%llu bytes",
                       (unsigned long long)c.bytes);
                EXPECT(t, lives ? c.rows && c.living < c.rows / 2 : !c.rows,
                       "%s: %llu of %llu rows", isa, (unsigned long long)c.living, (unsigned long long)c.rows);
                work_free(&w);
                skip_close(skip);
            }
            munmap((void *)(uintptr_t)two->data, bytes);
        }
}

// Three sparse products in a row turn a matrix; a full one in between starts the count again, and a turned matrix takes
// any x.
static void test_when(Tally *t, int dtype) {
    size_t bytes;
    const Tensor m = matrix(128, 256, dtype, &bytes);
    Work w = work(matmul_kernels(NULL), 2, 128, 256);
    if (!matmul_lives(dtype, &w.par)) return;
    Skip *s = skip_open(&m, sizeof m, 1, false, 0, 3);
    static const struct { int every, turned; } steps[] = {{8, 0}, {8, 0}, {1, 0}, {8, 0}, {8, 0}, {8, 1}, {1, 1},
                                                           {2, 1}, {300, 1}};
    for (size_t i = 0; i < sizeof steps / sizeof *steps; i++) {
        rows(w.x, 1, 256, steps[i].every, (uint32_t)i);
        EXPECT(t, same(&w, s, 0, &m, true, 1), "step %zu", i);
        EXPECT(t, skip_count(s).turned == steps[i].turned, "step %zu: %d turned", i, skip_count(s).turned);
    }
    memset(w.x, 0, 256 * sizeof *w.x);
    EXPECT(t, same(&w, s, 0, &m, true, 1), "nothing lives");

    // A NaN is no zero: it must come through as it does without skipping.
    const uint32_t nan = 0x7FC00123;
    rows(w.x, 2, 256, 16, 5);
    memcpy(&w.x[33], &nan, sizeof nan);
    same(&w, s, 0, &m, true, 2);
    int lost = 0;
    for (int i = 0; i < 128; i++) lost += !not_finite(w.got[i]) + not_finite(w.got[128 + i]);
    EXPECT(t, lost == 0, "%d outputs have lost the NaN, or have one that is not theirs", lost);

    // The control: another x must be seen.
    rows(w.x, 1, 256, 8, 6);
    same(&w, s, 0, &m, true, 1);
    w.x[8] += dtype == DT_INT8 ? 0x1p-3f : 0x1p-20f;      // as integers, x is rounded
    matmul_then(w.got, w.x, &m, NULL, THEN_NOTHING, 1, &w.par);
    EXPECT(t, memcmp(w.got, w.want, 128 * sizeof *w.got), "the comparison sees nothing");
    skip_close(s);
    work_free(&w);
    munmap((void *)(uintptr_t)m.data, bytes);
}

static void test_never(Tally *t) {
    size_t bytes;
    const Tensor m = matrix(128, 256, DT_BF16, &bytes);
    Tensor other = m;
    EXPECT(t, !skip_open(&m, sizeof m, 1, false, bytes + 1, 3), "a matrix that is too small");
    EXPECT(t, !skip_open(&m, sizeof m, 0, false, 0, 3), "no matrix");
    other.rows = 120;
    EXPECT(t, !skip_open(&other, sizeof m, 1, false, 0, 3), "rows that are no whole vectors");
    other = m, other.cols = 250;
    EXPECT(t, !skip_open(&other, sizeof m, 1, false, 0, 3), "columns that are no whole vectors");
    other = m, other.dtype = DT_INT4;
    EXPECT(t, !skip_open(&other, sizeof m, 1, false, 0, 3), "int4");
    EXPECT(t, !skip_open(&m, sizeof m, INT_MAX, false, 0, 3), "more than fits into an address space");
    Work w = work(matmul_kernels(NULL), 1, 128, 256);
    rows(w.x, 1, 256, 8, 1);
    EXPECT(t, same(&w, NULL, 0, &m, true, 1), "no Skip");
    EXPECT(t, skip_count(NULL).matrices == 0, "no Skip has counted");
    skip_close(NULL);
    work_free(&w);
    munmap((void *)(uintptr_t)m.data, bytes);
}

// A mapped file: its pages leave this process when the matrix was turned, and come back when they are read.
static void test_pages(Tally *t) {
    size_t bytes;
    Tensor m = matrix(256, 1024, DT_BF16, &bytes);
    FILE *f = tmpfile();
    if (!f || fwrite(m.data, 1, bytes, f) != bytes || fflush(f)) { perror("tmpfile"); exit(1); }
    munmap((void *)(uintptr_t)m.data, bytes);
    m.data = mmap(NULL, bytes, PROT_READ, MAP_SHARED, fileno(f), 0);
    if (m.data == MAP_FAILED) { perror("mmap"); exit(1); }
    Work w = work(matmul_kernels(NULL), 2, 256, 1024);
    Skip *s = skip_open(&m, sizeof m, 1, true, 0, 3);
    for (int i = 0; i < 5; i++) {
        rows(w.x, 1, 1024, 16, (uint32_t)i);
        EXPECT(t, same(&w, s, 0, &m, true, 1), "mapped, step %d", i);
    }
    rows(w.x, 1, 1024, 1, 9);
    EXPECT(t, same(&w, s, 0, &m, true, 1), "mapped, every neuron lives");
    skip_close(s);
    work_free(&w);
    munmap((void *)(uintptr_t)m.data, bytes);
    fclose(f);
}

int main(void) {
    Tally t = {0};
    for (int i = 0; matmul_isa_names(i); i++) test_products(&t, matmul_isa_names(i));
    test_when(&t, DT_BF16);
    test_when(&t, DT_INT8);
    test_never(&t);
    test_pages(&t);
    return tally_close(&t);
}
