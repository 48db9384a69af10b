// matmul_skip.c: when a matrix is turned, and the turning; matmul_skip.h says why.
//
// In order: the state, opening, turning a matrix, one product.
// Not here: the product itself (matmul_living in matmul.c).
#include "matmul_skip.h"
#include "matmul_weights.h"

#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

enum {
    MOST_ROWS = 8,          // of x; more rows of x have few neurons that are zero in all of them
    SIDE = 64               // columns of w in a job of turning: a cache line of each row in bf16
};

typedef struct {
    const Tensor *w;
    int sparse;             // products in a row with few living neurons
    bool turned;
} Matrix;

struct Skip {
    Matrix *matrix;
    int n;
    int *live;              // (FL) columns of x that are not all zero
    uint8_t *memory;        // (n, bytes)
    size_t bytes;           // of one turned matrix
    bool mapped;
    int patience;
    SkipCount count;
};

Skip *skip_open(const Tensor *w, size_t stride, int n, bool mapped, size_t least,
                int patience) {
    // Only whole vectors, so that the lanes of a sum are the same; int4 has scales that lie along rows.
    if (n < 1 || w->dtype == DT_INT4 || w->rows % SIDE || w->cols % SIDE) return NULL;
    const size_t bytes = (size_t)w->rows * columns_bytes(w->dtype, (size_t)w->cols);
    Skip *s = bytes < least || bytes > SIZE_MAX / 2 / (size_t)n ? NULL : calloc(1, sizeof *s);
    if (!s) return NULL;
    *s = (Skip){.n = n, .bytes = bytes, .mapped = mapped, .patience = patience, .count.matrices = n};
    s->memory = mmap(NULL, bytes * (size_t)n, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1,
                     0);
    if (s->memory == MAP_FAILED) s->memory = NULL;
    else s->matrix = calloc((size_t)n, sizeof *s->matrix), s->live = malloc((size_t)w->cols * sizeof *s->live);
    if (!s->matrix || !s->live) {
        skip_close(s);
        return NULL;
    }
    madvise(s->memory, bytes * (size_t)n, MADV_HUGEPAGE);      // only a wish
    for (int i = 0; i < n; i++) s->matrix[i].w = (const Tensor *)(const void *)((const char *)w + (size_t)i * stride);
    return s;
}

void skip_close(Skip *s) {
    if (!s) return;
    if (s->memory) munmap(s->memory, s->bytes * (size_t)s->n);
    free(s->matrix), free(s->live), free(s);
}

SkipCount skip_count(const Skip *s) { return s ? s->count : (SkipCount){0}; }

// ---------------------------------------------------------------------------------------------------------
// Turning: w (OC,C) -> out (C,OC), a job for SIDE columns of w. Squares of 8 x 8 are turned in registers.

typedef struct { const Tensor *w; uint8_t *out; } Turning;

typedef uint16_t eight __attribute__((vector_size(16), aligned(2), may_alias));
#define ZIP(a, b, ...) SHUFFLE_BY(eight, a, b, __VA_ARGS__)

// Neighbours in a and b, of one, two or four elements, come to lie side by side.
static inline void zip(eight *a, eight *b, int n) {
    const eight x = *a, y = *b;
    if (n == 1) *a = ZIP(x, y, 0, 8, 1, 9, 2, 10, 3, 11), *b = ZIP(x, y, 4, 12, 5, 13, 6, 14, 7, 15);
    else if (n == 2) *a = ZIP(x, y, 0, 1, 8, 9, 2, 3, 10, 11), *b = ZIP(x, y, 4, 5, 12, 13, 6, 7, 14, 15);
    else *a = ZIP(x, y, 0, 1, 2, 3, 8, 9, 10, 11), *b = ZIP(x, y, 4, 5, 6, 7, 12, 13, 14, 15);
}

static void turn_bf16(uint16_t *out, const uint16_t *w, size_t OC, size_t C) {
    // w (8,8) rows C apart -> out (8,8) rows OC apart
    eight r[8];
    for (size_t i = 0; i < 8; i++) r[i] = *(const eight *)(w + i * C);
    for (int i = 0; i < 8; i += 2) zip(&r[i], &r[i + 1], 1);            // r[i]: columns 0-3 of rows i and i + 1
    for (int i = 0; i < 8; i += 4) zip(&r[i], &r[i + 2], 2), zip(&r[i + 1], &r[i + 3], 2);
    for (int i = 0; i < 4; i++) zip(&r[i], &r[i + 4], 4);
    static const int at[8] = {0, 4, 2, 6, 1, 5, 3, 7};                  // where column i is now
    for (size_t i = 0; i < 8; i++) *(eight *)(out + i * OC) = r[at[i]];
}

// Squares of 8 x 8 bytes, a row in a word: halves of words change places with those four rows on, then quarters two
// rows on, then bytes.
static void turn_int8(uint8_t *out, const uint8_t *w, size_t OC, size_t C) {
    // w (8,8) rows C apart -> out (8,8) rows OC apart
    static const uint64_t mask[3] = {0x00000000FFFFFFFF, 0x0000FFFF0000FFFF, 0x00FF00FF00FF00FF};
    uint64_t r[8];
    for (size_t i = 0; i < 8; i++) memcpy(&r[i], w + i * C, 8);
    for (int s = 0, d = 4; s < 3; s++, d /= 2)
        for (int i = 0; i < 8; i++) {
            if (i & d) continue;
            const uint64_t other = (r[i] >> 8 * d ^ r[i + d]) & mask[s];
            r[i] ^= other << 8 * d, r[i + d] ^= other;
        }
    for (size_t i = 0; i < 8; i++) memcpy(out + i * OC, &r[i], 8);
}

static void turn_job(void *arg, int job, int thread) {
    const Turning *t = arg;
    const size_t OC = (size_t)t->w->rows, C = (size_t)t->w->cols, c0 = (size_t)job * SIDE;
    (void)thread;
    if (t->w->dtype == DT_BF16) {
        for (size_t j = 0; j < OC; j += 8)
            for (size_t c = c0; c < c0 + SIDE; c += 8)
                turn_bf16((uint16_t *)(void *)t->out + c * OC + j, (const uint16_t *)t->w->data + j * C + c, OC, C);
        return;
    }
    if (t->w->dtype == DT_INT8) {
        for (size_t j = 0; j < OC; j += 8)
            for (size_t c = c0; c < c0 + SIDE; c += 8)
                turn_int8(t->out + c * OC + j, (const uint8_t *)t->w->data + j * C + c, OC, C);
        return;
    }
    for (size_t j = 0; j < OC; j++)
        for (size_t c = c0; c < c0 + SIDE; c++)
            ((float *)(void *)t->out)[c * OC + j] = ((const float *)t->w->data)[j * C + c];
}

// Turns matrix i if there is memory for it twice over, and gives the mapped pages of w back: only from this process,
// they stay in the page cache for the next prompt.
static void turn(Skip *s, int i, const Par *par) {
    Matrix *m = &s->matrix[i];
    if (available_memory() < 2 * s->bytes + ((uint64_t)512 << 20)) {
        m->sparse = 0;              // asked again when it was sparse as often again
        return;
    }
    pool_run(par->pool, turn_job, &(Turning){m->w, s->memory + (size_t)i * s->bytes}, m->w->cols / SIDE);
    m->turned = true;
    s->count.turned++;
    const uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE), at = ((uintptr_t)m->w->data + page - 1) / page * page;
    const uintptr_t end = ((uintptr_t)m->w->data + s->bytes) / page * page;
    if (s->mapped && end > at) madvise((void *)at, end - at, MADV_DONTNEED);
}

// ---------------------------------------------------------------------------------------------------------

// Columns of x (T,C) that are not zero in all rows -> live, ascending; returns their number.
static int living(int *live, const float *x, int T, int C) {
    int n = 0;
    for (int c = 0; c < C; c++) {
        bool any = false;
        for (int t = 0; t < T; t++) any |= !(x[(size_t)t * (size_t)C + (size_t)c] == 0);      // NaN lives
        live[n] = c;
        n += any;
    }
    return n;
}

void skip_matmul(Skip *s, int i, float *out, const float *x, const Tensor *w, const float *b, int T, const Par *par) {
    // x (T,C), w (OC,C) -> out (T,OC) += b + x w^T
    if (s && T <= MOST_ROWS) {
        Matrix *m = &s->matrix[i];
        const int n = living(s->live, x, T, w->cols);
        m->sparse = n <= w->cols / 4 ? m->sparse + 1 : 0;
        if (!m->turned && m->sparse >= s->patience + i && matmul_lives(w->dtype, par)) turn(s, i, par);
        // Above a half, rows far apart cost more than a whole matrix in order.
        if (m->turned && n <= w->cols / 2 &&
            matmul_living(out, x, w, s->memory + (size_t)i * s->bytes, b, s->live, n, T, par)) {
            s->count.rows += (uint64_t)w->cols;
            s->count.living += (uint64_t)n;
            s->count.bytes += (uint64_t)(w->cols - n) * (s->bytes / (uint64_t)w->cols);
            return;
        }
    }
    matmul_then(out, x, w, b, THEN_ADD, T, par);
}
