// dev/cuda/ladder.h: what the operations of the ladder share: inputs, checks, times with a cold L2, the table.
//
// In order: the Ladder, one case of an operation, its memory, running it, what launchers need.
//
// A program goes like this (layernorm.cu is the shortest):
//
//     ladder_open                        reads the command line, measures the ceilings of this card
//     for each shape:
//         ladder_case                    names it, says what must move; false: nothing to run (--list)
//         ladder_input, ladder_output    memory; the CPU's result and how far a version may be from it
//         ladder_run                     each version: output poisoned, launched, compared, timed
//     ladder_close                       the table or JSON; exit code 1 after any mismatch
//
// Not here: versions, shapes, what the CPU does (cpu.h).
#ifndef LADDER_H
#define LADDER_H

#include "cuda_common.h"

extern "C" {
#include "blip2.h"
}

#include <functional>
#include <vector>

typedef struct LadderState LadderState;

// name: a few words. idea: why it should be faster than the one before, and what limits it, in a line of a table.
typedef struct { const char *name, *idea; } LadderVersion;

typedef struct {
    cudaStream_t s;
    int sms, shared_most;     // multiprocessors; bytes of shared memory that a block may ask for
    bool small;               // odd small shapes instead of the model's
    LadderState *state;       // ladder.cu
} Ladder;

// versions[i] is version i + 1. Ends the program on --help, on an unknown option, and without a GPU.
Ladder ladder_open(int argc, char **argv, const char *operation, const std::vector<LadderVersion> &versions);

// Begins a case and frees what the one before had. bytes: that any version must move between device memory and the
// chip. flops: multiplications and additions; 0 for what is bound by memory, whose speed is shown in GB/s.
// Numbers in the name are the shape, which peers.py reads.
bool ladder_case(Ladder *l, double bytes, double flops, const char *fmt, ...) __attribute__((format(printf, 4, 5)));
// The next case is one whose versions doc/kernels.md shows line by line.
void ladder_show(Ladder *l);

// Device memory with that content; n elements. ladder_input_bf16 rounds, so x should hold what a bf16 can.
void *ladder_input(Ladder *l, const void *host, size_t bytes);
template <typename E> static inline E *ladder_input(Ladder *l, const std::vector<E> &x) {
    return (E *)ladder_input(l, x.data(), x.size() * sizeof(E));
}
bf16 *ladder_input_bf16(Ladder *l, const std::vector<float> &x);
// A weight as it lies in a file, on the host (for cpu_matmul) or on the device.
typedef struct { std::vector<uint8_t> data, scale; Tensor tensor; } LadderWeight;
LadderWeight ladder_weight(int dtype, int rows, int cols, uint32_t seed);
Tensor ladder_input(Ladder *l, const LadderWeight &w);
// Device memory that versions keep things in; NaN before each version.
void *ladder_scratch(Ladder *l, size_t bytes);

// Device memory for a result, one element for each of want. Errors are measured in units of want's root mean square:
// what is held against `bound` is the larger of the relative L2 error and an eighth of the worst element's. LADDER_I32:
// equality; want holds whole numbers. Before each version the memory is NaN (-1), with canaries around it.
enum { LADDER_F32, LADDER_BF16, LADDER_I32 };
void *ladder_output(Ladder *l, int type, const std::vector<float> &want, double bound);

// What is enqueued around each run of a version, outside of what is timed: `before` makes what versions change as it
// was; `after`, only where results are compared, puts what they left elsewhere into the outputs. For this case.
void ladder_around(Ladder *l, const std::function<void()> &before, const std::function<void()> &after);

// launch(v) starts version v (from 1) on l->s; false: it cannot do this shape, which counts as skipped. library, if
// any, is cuBLASLt's way to the same result.
void ladder_run(Ladder *l, const std::function<bool(int)> &launch, const std::function<bool()> &library = nullptr);

// Prints, and ends the program with exit code 0, or 1 after a mismatch.
[[noreturn]] void ladder_close(Ladder *l);

// cuBLASLt for such a library, and for launchers that use it.
void ladder_blas(Ladder *l, cublasLtHandle_t *handle, void **workspace, size_t *bytes);

// What launchers need that split columns over blocks (cuda_weights.cuh): room for partial sums, tickets that are zero.
void ladder_split(Ladder *l, float **partial, size_t *bytes, int **tickets);
template <typename Device> static inline Device ladder_device(Ladder *l) {
    Device d = {};
    d.sms = l->sms, d.shared_most = l->shared_most;
    ladder_split(l, &d.partial, &d.partial_bytes, &d.tickets);
    return d;
}

// Uniform in -1..1, the same for the same seed (not 0); as_bf16: only what a bf16 can hold.
std::vector<float> ladder_numbers(size_t n, uint32_t seed, bool as_bf16);
uint32_t ladder_random(uint32_t *seed);

#endif
