// dev/cuda/ladder_parts.h: what the parts of the ladder's frame share (ladder.h is what operations see).
//
// In order: results, the state, what ladder_time.cu and ladder_print.cu offer to ladder.cu.
#ifndef LADDER_PARTS_H
#define LADDER_PARTS_H

#include "ladder.h"

#include "test/check.h"

#include <string>

enum { LIBRARY = 0 };                     // the number of cuBLASLt's version

typedef struct { uint8_t *base; int type; std::vector<float> want; double bound, rms; } Output;

// us is negative when nothing was measured.
typedef struct { int version; bool ran, right; double error, bound, us; } Result;

typedef struct { std::string name; double bytes, flops; bool shown; std::vector<Result> results; } Case;

struct LadderState {
    std::string operation;
    std::vector<LadderVersion> versions;
    int only;                             // this version alone; 0: all
    int wrong;                            // a version whose result is made wrong, for tests; -1: none
    bool check, json, list;
    bool rehearse;                        // small shapes through the timing code too
    double copy_gbs, multiply_tflops, empty_us;   // ceilings, and a kernel that does nothing; negative: not measured
    uint4 *flush;
    size_t flush_bytes;
    u32 *sink;
    cublasLtHandle_t blas;
    void *workspace;
    int *tickets;
    std::vector<void *> memory;           // of the case: inputs
    std::vector<std::pair<void *, size_t>> scratch;
    std::vector<Output> outputs;
    std::function<void()> before, after;
    bool show_next;                       // ladder_show
    std::vector<Case> cases;
    Tally tally;
};

// ladder_time.cu: ceilings of this card, in microseconds the median of `work`.
void measure_ceilings(Ladder *l);
double median_us(Ladder *l, const std::function<void()> &before, const std::function<void()> &work);

// ladder_print.cu
void print_table(const LadderState *st);
void print_json(const LadderState *st);
const char *version_name(const LadderState *st, int version);

#endif
