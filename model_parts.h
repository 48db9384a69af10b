// model_parts.h: what the files of the weight-file reader share; everybody else includes blip2.h only.
//
//   model.c          the file: mapped, its head and directory checked, its tensors bound, checksums
//   model_config.c   the hyperparameters in its head
//
// In order: where things are in a weight file (doc/format.md), the limits, the functions.
#ifndef MODEL_PARTS_H
#define MODEL_PARTS_H

#include "blip2.h"

enum {
    VERSION = 1,
    HEADER_BYTES = 64, RECORD_BYTES = 96, NAME_BYTES = 48,
    HEAD_ALIGN = 4096, TENSOR_ALIGN = 256,
    N_INTS = 34, N_FLOATS = 15,       // rows of CONFIG_INTS and CONFIG_FLOATS
    // Where the head's parts begin; the directory starts at a multiple of 8.
    INTS_AT = HEADER_BYTES, FLOATS_AT = INTS_AT + 4 * N_INTS, TYPE_AT = FLOATS_AT + 4 * N_FLOATS,
    PROMPT_AT = TYPE_AT + TYPE_BYTES, CONFIG_END = PROMPT_AT + PROMPT_BYTES, DIRECTORY_AT = (CONFIG_END + 7) / 8 * 8,
};

enum {
    MAX_TENSORS = 32768,              // more than 512 layers of every kind have
    MAX_TOKENIZER_BYTES = 16 << 20,   // Flan-T5's is 1 MB; its tries take up to 24 bytes for each (tokenizer_unigram.c)
    MAX_N = 65536, MAX_IL = 65536,    // of what follows from several hyperparameters
};

static inline bool all_zero(const uint8_t *p, size_t n) {
    for (size_t i = 0; i < n; i++)
        if (p[i]) return false;
    return true;
}

// *c <- the hyperparameters of the file, of which at least DIRECTORY_AT bytes are there: each in its range, all of them
// possible together, with those that follow from others. Returns 0, or -1 with e.
int model_config(Config *c, const uint8_t *file, Err *e);

#endif
