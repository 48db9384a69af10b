// image_png.c: PNG to RGB, all colour types, depths and the interlaced form, as Pillow 11.3.0's
// convert("RGB").
//
// In order: chunks and their checksums, the header, inflating, undoing the row filters, samples to RGB, the
// passes. Inflating itself is stb_image's zlib decoder (image_inflate in image_decode.c). The rest of stb's
// PNG reader is not used: it checks no checksum, makes up pixels where the data of a file ends early, and
// reads uninitialised memory where a pixel points beyond the palette; here these are an error, an error and
// black.
// Not here: alpha and tRNS (dropped, never composited), gamma and colour profiles (ignored), later frames of
// APNG.

#include "image_codec.h"

#include <stdlib.h>
#include <string.h>

typedef struct {
    uint32_t W, H;
    int depth, channels;       // bits of a sample; samples of a pixel
    bool palette, interlaced;
    uint8_t colors[256][3];    // black beyond the end of PLTE
    uint8_t *idat;             // the zlib stream, all IDAT chunks joined
    size_t idat_n;
} Png;

// ---------------------------------------------------------------------------------------------------------
// Chunks:  u32 length | type (4 letters) | data | u32 CRC-32 of type and data;  all numbers big-endian

static void make_crc_table(uint32_t table[256]) {
    for (uint32_t i = 0; i < 256; i++) {
        uint32_t c = i;
        for (int k = 0; k < 8; k++) c = c & 1 ? 0xEDB88320u ^ c >> 1 : c >> 1;
        table[i] = c;
    }
}

static uint32_t crc32_of(const uint32_t table[256], const uint8_t *p, size_t n) {
    uint32_t c = 0xFFFFFFFFu;
    for (size_t i = 0; i < n; i++) c = table[(c ^ p[i]) & 255] ^ c >> 8;
    return ~c;
}

static int read_header(Png *png, const uint8_t *p, size_t n, Err *e) {
    if (n != 13) return fail(e, "damaged PNG: its header has %zu bytes instead of 13", n);
    png->W = read_be32(p);
    png->H = read_be32(p + 4);
    png->depth = p[8];
    // Bit d of the mask: depth d is allowed for the colour type (PNG specification, table 11.1).
    const struct { uint32_t depths; int channels; } types[7] = {
        [0] = {1u << 1 | 1u << 2 | 1u << 4 | 1u << 8 | 1u << 16, 1},  // grey
        [2] = {1u << 8 | 1u << 16, 3},                                // RGB
        [3] = {1u << 1 | 1u << 2 | 1u << 4 | 1u << 8, 1},             // palette
        [4] = {1u << 8 | 1u << 16, 2},                                // grey, alpha
        [6] = {1u << 8 | 1u << 16, 4},                                // RGB, alpha
    };
    const int type = p[9];
    if (type > 6 || png->depth > 16 || !(types[type].depths >> png->depth & 1))
        return fail(e, "damaged PNG: colour type %d with %d bits a sample does not exist", type, png->depth);
    if (p[10] != 0 || p[11] != 0 || p[12] > 1)
        return fail(e, "damaged PNG: compression %d, filter %d, interlacing %d", p[10], p[11], p[12]);
    png->channels = types[type].channels;
    png->palette = type == 3;
    png->interlaced = p[12] == 1;
    return 0;
}

// Walks the chunks, verifies them, and keeps the header, the palette and the joined pixel data. png->idat has
// room for the whole file. A damaged chunk that pixels do not depend on, or a missing end, is a warning.
static int read_chunks(Png *png, Image *im, const uint8_t *p, size_t n, Err *e) {
    uint32_t table[256];
    make_crc_table(table);
    bool header = false, colors = false, end = false;
    size_t at = 8;
    while (!end && n - at >= 12) {
        const size_t len = read_be32(p + at);
        const uint8_t *type = p + at + 4, *data = p + at + 8;
        const bool needed = !(type[0] & 0x20);  // a capital first letter: critical, pixels depend on it
        if (len > n - at - 12) break;
        for (int i = 0; i < 4; i++)
            if ((type[i] | 0x20) < 'a' || (type[i] | 0x20) > 'z')
                return fail(e, "damaged PNG: no chunk at byte %zu, where one should start", at);
        if (crc32_of(table, type, len + 4) != read_be32(data + len)) {
            if (needed) return fail(e, "damaged PNG: wrong checksum of the %.4s chunk at byte %zu", type, at);
            image_warn(im, "damaged PNG: wrong checksum of the chunk at byte %zu, left out", at);
        }
        if (!header && memcmp(type, "IHDR", 4) != 0) {
            const bool apple = !memcmp(type, "CgBI", 4);
            return fail(e, apple ? "this is Apple's own variant of PNG (CgBI): convert it first"
                                 : "damaged PNG: its first chunk is not IHDR");
        } else if (!memcmp(type, "IHDR", 4)) {
            if (header) return fail(e, "damaged PNG: two headers");
            if (read_header(png, data, len, e) != 0) return -1;
            header = true;
        } else if (!memcmp(type, "PLTE", 4)) {
            if (len % 3 || len > 768) return fail(e, "damaged PNG: a palette of %zu bytes", len);
            memcpy(png->colors, data, len);
            colors = true;
        } else if (!memcmp(type, "IDAT", 4)) {
            memcpy(png->idat + png->idat_n, data, len);
            png->idat_n += len;
        } else if (!memcmp(type, "IEND", 4)) {
            end = true;
        } else if (needed) {
            return fail(e, "this PNG needs a chunk %.4s that no standard has", type);
        }
        at += 12 + len;
    }
    if (!header || png->idat_n == 0 || (png->palette && !colors))
        return fail(e, "%s PNG: %s", end ? "damaged" : "cut off", !header ? "no header" :
                    png->idat_n ? "no palette" : "no pixels before its end");
    if (!end) image_warn(im, "PNG cut off: its end is missing; the pixels are complete");
    return 0;
}

// ---------------------------------------------------------------------------------------------------------
// Filters: each row starts with a byte that says what was subtracted from its bytes: nothing, the pixel to
// the left, the row above, the mean of the two, or whichever of left, above and upper left is nearest to left
// + above - upper left (Paeth). bpp: bytes from a sample to the same one of the pixel to the left, at least
// 1.

static uint8_t paeth(int a, int b, int c) {
    const int pa = abs(b - c), pb = abs(a - c), pc = abs(a + b - 2 * c);
    return (uint8_t)(pa <= pb && pa <= pc ? a : pb <= pc ? b : c);
}

static int unfilter(uint8_t *row, const uint8_t *above, size_t n, size_t bpp, int filter, Err *e) {
    // row (n), above (n) or NULL for the first row of a pass, which counts as zeros
    switch (filter) {
    case 0: return 0;
    case 1: for (size_t i = bpp; i < n; i++) row[i] = (uint8_t)(row[i] + row[i - bpp]); return 0;
    case 2: for (size_t i = 0; above && i < n; i++) row[i] = (uint8_t)(row[i] + above[i]); return 0;
    case 3:
        for (size_t i = 0; i < n; i++)
            row[i] = (uint8_t)(row[i] + ((i >= bpp ? row[i - bpp] : 0) + (above ? above[i] : 0)) / 2);
        return 0;
    case 4:
        for (size_t i = 0; i < n; i++)
            row[i] = (uint8_t)(row[i] + paeth(i >= bpp ? row[i - bpp] : 0, above ? above[i] : 0,
                                              above && i >= bpp ? above[i - bpp] : 0));
        return 0;
    default: return fail(e, "damaged PNG: unknown row filter %d", filter);
    }
}

// ---------------------------------------------------------------------------------------------------------
// Samples to RGB

// One row of w pixels to every step-th pixel of out. 16-bit samples keep their high byte, alpha is dropped.
static void row_to_rgb(uint8_t *out, size_t step, const uint8_t *row, uint32_t w, const Png *png) {
    if (png->depth < 8) {  // grey or palette, several pixels to a byte, the first in the highest bits
        const int depth = png->depth, most = (1 << depth) - 1;
        for (size_t x = 0; x < w; x++, out += 3 * step) {
            const size_t bit = x * (size_t)depth;
            const int v = row[bit >> 3] >> (8 - depth - (int)(bit & 7)) & most;
            if (png->palette) memcpy(out, png->colors[v], 3);
            else memset(out, v * 255 / most, 3);
        }
        return;
    }
    const size_t sample = (size_t)png->depth / 8, pixel = sample * (size_t)png->channels;
    for (size_t x = 0; x < w; x++, out += 3 * step, row += pixel) {
        if (png->palette) memcpy(out, png->colors[row[0]], 3);
        else if (png->channels <= 2) memset(out, row[0], 3);
        else {
            out[0] = row[0];
            out[1] = row[sample];
            out[2] = row[2 * sample];
        }
    }
}

// ---------------------------------------------------------------------------------------------------------
// Passes: an interlaced PNG (Adam7) is seven small images, each with every dx-th pixel of every dy-th row
// from (x, y).

typedef struct { uint32_t x, y, dx, dy; } Pass;
static const Pass ADAM7[7] = {{0, 0, 8, 8}, {4, 0, 8, 8}, {0, 4, 4, 8}, {2, 0, 4, 4},
                              {0, 2, 2, 4}, {1, 0, 2, 2}, {0, 1, 1, 2}};
static const Pass WHOLE[1] = {{0, 0, 1, 1}};

static uint32_t pass_size(uint32_t size, uint32_t from, uint32_t step) {
    return size > from ? (size - from + step - 1) / step : 0;
}

static size_t row_bytes(const Png *png, uint32_t w) {
    return ((size_t)w * (size_t)png->channels * (size_t)png->depth + 7) / 8;
}

static int decode_passes(Image *im, Png *png, Err *e) {
    const Pass *pass = png->interlaced ? ADAM7 : WHOLE;
    const int passes = png->interlaced ? 7 : 1;
    size_t total = 0;
    for (int i = 0; i < passes; i++) {
        const uint32_t w = pass_size(png->W, pass[i].x, pass[i].dx);
        const uint32_t h = pass_size(png->H, pass[i].y, pass[i].dy);
        if (w && h) total += (row_bytes(png, w) + 1) * h;
    }
    uint8_t *raw = malloc(total), *row = raw;
    if (!raw) return fail(e, "no memory for %zu bytes of PNG rows", total);
    int rc = 0;
    if (!image_inflate(raw, total, png->idat, png->idat_n))
        rc = fail(e, "damaged PNG: its pixel data does not inflate to %u x %u pixels", png->W, png->H);
    const size_t bits = (size_t)png->channels * (size_t)png->depth, bpp = bits < 8 ? 1 : bits / 8;
    for (int i = 0; rc == 0 && i < passes; i++) {
        const uint32_t w = pass_size(png->W, pass[i].x, pass[i].dx);
        const uint32_t h = pass_size(png->H, pass[i].y, pass[i].dy);
        const size_t n = row_bytes(png, w);
        if (w == 0) continue;
        for (uint32_t y = 0; rc == 0 && y < h; y++, row += n + 1) {
            rc = unfilter(row + 1, y ? row - n : NULL, n, bpp, row[0], e);
            const size_t to = (size_t)(pass[i].y + y * pass[i].dy) * png->W + pass[i].x;
            if (rc == 0) row_to_rgb(im->rgb + to * 3, pass[i].dx, row + 1, w, png);
        }
    }
    free(raw);
    return rc;
}

int image_decode_png(Image *im, const uint8_t *p, size_t n, uint64_t max_pixels, Err *e) {
    Png png = {.idat = malloc(n)};
    if (!png.idat) return fail(e, "no memory for %zu bytes of PNG data", n);
    int rc = read_chunks(&png, im, p, n, e);
    if (rc == 0) rc = image_take(im, png.W, png.H, max_pixels, e);
    if (rc == 0) rc = decode_passes(im, &png, e);
    free(png.idat);
    return rc;
}
