// test/check.h: the whole test framework: count what holds and what does not, compare numbers NaN-proof.
//
// In order: the tally and its closing line, EXPECT macros, comparison of float arrays by bit pattern and error.
// A test program ends with `return tally_close(&t);` and so returns nonzero when anything failed.
#ifndef TEST_CHECK_H
#define TEST_CHECK_H

#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

typedef struct { int passed, failed, skipped; } Tally;

// Counts cond and, when it does not hold, prints where and the formatted explanation.
#define EXPECT(t, cond, ...) do { \
        if (cond) (t)->passed++; \
        else { (t)->failed++; fprintf(stderr, "FAIL %s:%d: %s: ", __FILE__, __LINE__, #cond); \
               fprintf(stderr, __VA_ARGS__); fprintf(stderr, "\n"); } } while (0)

#define SKIP(t, ...) do { (t)->skipped++; fprintf(stderr, "SKIP "); fprintf(stderr, __VA_ARGS__); \
                          fprintf(stderr, "\n"); } while (0)

static inline int tally_close(const Tally *t) {
    printf("%d passed, %d failed, %d skipped\n", t->passed, t->failed, t->skipped);
    return t->failed || t->passed == 0;
}

// By bit pattern, so that no compiler flag can optimise the question away.
static inline int not_finite(float x) {
    uint32_t u;
    memcpy(&u, &x, sizeof u);
    return (u & 0x7F800000u) == 0x7F800000u;
}

// Relative L2 error and worst element of got against want; elements that are not finite in either are counted,
// and any of them makes both errors infinite.
typedef struct { double rel_l2, max_abs; size_t worst, bad; } Diff;

static inline Diff diff_floats(const float *got, const float *want, size_t n) {
    Diff d = {0, 0, 0, 0};
    double num = 0, den = 0;
    for (size_t i = 0; i < n; i++) {
        if (not_finite(got[i]) || not_finite(want[i])) { d.bad++; continue; }
        double e = (double)got[i] - want[i];
        num += e * e;
        den += (double)want[i] * want[i];
        if (fabs(e) > d.max_abs) { d.max_abs = fabs(e); d.worst = i; }
    }
    d.rel_l2 = den > 0 ? sqrt(num / den) : num > 0 ? INFINITY : 0;
    if (d.bad) d.rel_l2 = d.max_abs = INFINITY;
    return d;
}

#endif
