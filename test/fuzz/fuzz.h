// test/fuzz/fuzz.h: what the fuzz targets share: libFuzzer's hooks and a reader that turns its bytes into choices.
//
// Each fuzz_NAME.c is one program. libFuzzer calls LLVMFuzzerTestOneInput with bytes that it varies so as to reach
// code it has not seen; a target with LLVMFuzzerCustomMutator does part of the varying itself, where a checksum or a
// length would stop nearly everything at the door. A bug is what the sanitizers see, CHECK(), a leak, an endless
// loop, or memory beyond the limits of run.sh.
#ifndef FUZZ_H
#define FUZZ_H

#include "../../common.h"

#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t size, size_t max_size, unsigned seed);
size_t LLVMFuzzerMutate(uint8_t *data, size_t size, size_t max_size);   // libFuzzer's own

// The input as a stream of numbers; zeros behind its end.
typedef struct { const uint8_t *p; size_t n; } Bytes;

static inline uint32_t take(Bytes *b, int bytes) {
    uint32_t v = 0;
    for (int i = 0; i < bytes; i++) {
        v = v << 8 | (b->n ? b->p[0] : 0);
        if (b->n) b->p++, b->n--;
    }
    return v;
}

// lo..hi, by one or two bytes
static inline int take_in(Bytes *b, int lo, int hi) {
    const uint32_t span = (uint32_t)(hi - lo) + 1;
    return lo + (int)(take(b, span > 256 ? 2 : 1) % span);
}

// A copy whose end the address sanitizer watches, as the input itself may be followed by libFuzzer's own bytes.
static inline uint8_t *copy_of(const uint8_t *p, size_t n) {
    uint8_t *q = malloc(n ? n : 1);
    CHECK(q);
    if (n) memcpy(q, p, n);
    return q;
}

#endif
