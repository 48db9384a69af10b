// dump.h: gathers named stage outputs and writes them as one safetensors file, for comparison with PyTorch.
//
//     | u64 length of the header | header: JSON, names -> dtype, shape, offsets | f32 data, one after the other |
#ifndef DUMP_H
#define DUMP_H

#include "common.h"

typedef struct {
    Text header, data;
    int S;              // image side: pixel_values is written as (3,S,S)
} Dump;

// Fits Limits.probe with a Dump as its argument. x (rows,cols)
void dump_add(void *dump, const char *name, const float *x, int rows, int cols);

// Writes to a temporary name and renames. Returns 0, or -1 with e; no file is left then.
int dump_write(const Dump *d, const char *path, Err *e);

void dump_free(Dump *d);

#endif
