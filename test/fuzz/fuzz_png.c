// test/fuzz/fuzz_png.c: the PNG reader, with stb_image's inflate below it.
//
// In order: the chunks of an input, a mutator that changes pixels behind the compression and makes checksums right
// again, the target.

#include "../../image_codec.h"
#include "fuzz.h"

#include <zlib.h>

enum { MOST_PIXELS = 1 << 16, RAW = 1 << 16 };

static void put_be32(uint8_t *p, uint32_t v) { for (int i = 0; i < 4; i++) p[i] = (uint8_t)(v >> (24 - 8 * i)); }

// Makes the checksum of every whole chunk right.
static void seal(uint8_t *p, size_t n) {
    for (size_t at = 8; at + 12 <= n;) {
        const size_t len = read_be32(p + at);
        if (len > n - at - 12) return;
        put_be32(p + at + 8 + len, (uint32_t)crc32(0, p + at + 4, (uInt)len + 4));
        at += 12 + len;
    }
}

// Undoes the compression of the first IDAT, lets libFuzzer change the rows, and compresses them again. 0 when the
// input has no such chunk or the result has no room.
static size_t change_rows(uint8_t *p, size_t n, size_t max, unsigned seed) {
    static uint8_t raw[RAW];
    for (size_t at = 8; at + 12 <= n;) {
        const size_t len = read_be32(p + at);
        if (len > n - at - 12) return 0;
        if (memcmp(p + at + 4, "IDAT", 4) != 0) {
            at += 12 + len;
            continue;
        }
        uLongf rows = RAW / 2;
        if (uncompress(raw, &rows, p + at + 8, len) != Z_OK) return 0;
        const size_t changed = LLVMFuzzerMutate(raw, rows, RAW);
        uLongf bound = compressBound(changed);
        uint8_t *z = malloc(bound);
        CHECK(z && compress2(z, &bound, raw, changed, (int)(seed % 3) * 3) == Z_OK);
        const size_t rest = n - at - 12 - len, total = at + 12 + bound + rest;
        if (total <= max) {
            memmove(p + at + 12 + bound, p + at + 12 + len, rest);
            put_be32(p + at, (uint32_t)bound);
            memcpy(p + at + 8, z, bound);
        }
        free(z);
        return total <= max ? total : 0;
    }
    return 0;
}

size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t size, size_t max_size, unsigned seed) {
    size_t n = seed % 4 ? 0 : change_rows(data, size, max_size, seed / 4);
    if (n == 0) n = LLVMFuzzerMutate(data, size, max_size);
    if (n >= 8) memcpy(data, "\x89PNG\r\n\x1A\n", 8);
    if (seed % 32) seal(data, n);
    return n;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    if (size < 8) return 0;   // image_decode_any hands on what has the whole signature
    uint8_t *p = copy_of(data, size);
    Image im = {0};
    Err e = {0};
    const int rc = image_decode_png(&im, p, size, MOST_PIXELS, &e);
    CHECK(rc == 0 || e.text[0]);
    CHECK(rc != 0 || (im.rgb && im.W > 0 && im.H > 0 && (uint64_t)im.W * (uint64_t)im.H <= MOST_PIXELS));
    image_free(&im);
    free(p);
    return 0;
}
