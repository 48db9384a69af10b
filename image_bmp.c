// image_bmp.c: Windows and OS/2 bitmaps to RGB, as Pillow 11.3.0's convert("RGB"): 1, 4, 8, 16, 24 and 32
// bits, bit fields, run-length coding of 4 and 8 bits, rows from either end.
//
// In order: the header, the palette and masks, plain rows, run-length coded rows.
// Not here: bitmaps that wrap a JPEG or PNG. Two deliberate differences from Pillow, which misreads these:
// odd literal runs of 4-bit pixels are read whole, and runs may leave pixels or rows out (they get colour 0).
//
//     "BM" | u32 size | u32 0 | u32 offset of pixels      all numbers little-endian
//     u32 size of this header: 12 (OS/2: u16 W, H, planes, bits) or 40..124:
//     i32 W | i32 H, < 0: top row first | u16 planes, bits | u32 compression | 12 bytes | u32 colours | ...
//     masks? | palette? | rows, each padded to 4 bytes

#include "image_codec.h"

#include <stdlib.h>
#include <string.h>

enum { RAW = 0, RLE8 = 1, RLE4 = 2, BITFIELDS = 3 };

typedef struct {
    uint32_t W, H, bits, compression;
    bool top_first;
    uint32_t mask[3];         // of red, green, blue in a pixel of 16 or 32 bits
    uint8_t colors[256][3];   // red, green, blue; black beyond the end of the palette
    size_t offset;            // of the pixels in the file
} Bmp;

static int read_header(Bmp *b, uint32_t *colors, const uint8_t *p, size_t n, Err *e) {
    if (n < 26) return fail(e, "cut off BMP: no header");
    const uint32_t size = read_u32(p + 14);
    b->offset = read_u32(p + 10);
    if (size == 12) {
        b->W = read_u16(p + 18);
        b->H = read_u16(p + 20);
        b->bits = read_u16(p + 24);
    } else if (size == 40 || size == 52 || size == 56 || size == 64 || size == 108 || size == 124) {
        if (n < 14 + (size_t)size) return fail(e, "cut off BMP: no header");
        b->W = read_u32(p + 18);
        b->top_first = p[25] == 0xFF;
        b->H = b->top_first ? 0 - read_u32(p + 22) : read_u32(p + 22);
        b->bits = read_u16(p + 28);
        b->compression = read_u32(p + 30);
        *colors = read_u32(p + 46);
    } else {
        return fail(e, "damaged BMP: a header of %u bytes (12, 40, 52, 56, 64, 108 and 124 exist)", size);
    }
    const bool rle = (b->compression == RLE8 && b->bits == 8) || (b->compression == RLE4 && b->bits == 4);
    const bool fields = b->compression == BITFIELDS && (b->bits == 16 || b->bits == 24 || b->bits == 32);
    const bool raw = b->compression == RAW && (b->bits == 1 || b->bits == 4 || b->bits == 8 || b->bits == 16
                                               || b->bits == 24 || b->bits == 32);
    if (!raw && !rle && !fields)
        return fail(e, "this kind of BMP is not supported (%u bits, compression %u): convert it to PNG first",
                    b->bits, b->compression);
    return 0;
}

// Masks say which bits of a pixel are which colour: 5-5-5 or 5-6-5 bits, or one byte each.
static int read_masks(Bmp *b, const uint8_t *p, size_t n, size_t *at, Err *e) {
    const uint32_t usual[3] = {b->bits == 16 ? 0x7C00 : 0xFF0000, b->bits == 16 ? 0x3E0 : 0xFF00,
                               b->bits == 16 ? 0x1F : 0xFF};
    memcpy(b->mask, usual, sizeof usual);
    if (b->compression != BITFIELDS) return 0;
    const bool after = *at == 14 + 40;  // the oldest header has no room for the masks: they come after it
    const size_t from = 14 + 40;
    if (after) *at += 12;
    if (n < from + 12) return fail(e, "cut off BMP: no masks");
    for (size_t i = 0; i < 3; i++) b->mask[i] = read_u32(p + from + 4 * i);
    const uint32_t *m = b->mask;
    bool known = m[0] == usual[0] && m[1] == usual[1] && m[2] == usual[2];
    if (b->bits == 16) known = known || (m[0] == 0xF800 && m[1] == 0x7E0 && m[2] == 0x1F);
    if (b->bits == 32) {
        if (m[0] == 0 && m[1] == 0 && m[2] == 0) memcpy(b->mask, usual, sizeof usual);
        known = true;
        for (int i = 0; i < 3; i++) {
            const uint32_t v = b->mask[i];
            known = known && (v == 0xFF || v == 0xFF00 || v == 0xFF0000 || v == 0xFF000000);
        }
    }
    if (!known)
        return fail(e, "this kind of BMP is not supported (%u bits, masks %x %x %x): convert it to PNG first",
                    b->bits, m[0], m[1], m[2]);
    return 0;
}

// The palette follows the header: blue, green, red and, except in the OS/2 form, a byte of nothing.
static int read_palette(Bmp *b, uint32_t colors, const uint8_t *p, size_t n, size_t *at, Err *e) {
    const size_t header = *at - 14;
    if (b->bits > 8) return 0;
    if (colors == 0) colors = 1u << b->bits;
    if (colors > 256) return fail(e, "damaged BMP: a palette of %u colours", colors);
    const size_t entry = header == 12 ? 3 : 4;
    // Some writers forget the palette in the offset of the pixels.
    if (b->offset == 14 + header) b->offset += 4 * (size_t)colors;
    if (n - *at < entry * colors) return fail(e, "cut off BMP: its palette is incomplete");
    for (uint32_t i = 0; i < colors; i++)
        for (size_t c = 0; c < 3; c++) b->colors[i][c] = p[*at + entry * i + 2 - c];
    *at += entry * colors;
    return 0;
}

// ---------------------------------------------------------------------------------------------------------
// Rows

// A colour of k = 5, 6 or 8 bits to 0..255, rounded down as Pillow does.
static uint8_t widen(uint32_t pixel, uint32_t mask) {
    const uint32_t most = mask >> __builtin_ctz(mask);
    return (uint8_t)((pixel & mask) >> __builtin_ctz(mask)) * 255 / most;
}

static void row_to_rgb(uint8_t *out, const uint8_t *row, const Bmp *b) {
    for (size_t x = 0; x < b->W; x++, out += 3) {
        if (b->bits <= 8) {
            const size_t bit = x * b->bits;
            memcpy(out, b->colors[row[bit >> 3] >> (8 - b->bits - (bit & 7)) & ((1u << b->bits) - 1)], 3);
        } else if (b->bits == 24) {
            for (size_t c = 0; c < 3; c++) out[c] = row[3 * x + 2 - c];
        } else {
            const uint32_t pixel = b->bits == 16 ? read_u16(row + 2 * x) : read_u32(row + 4 * x);
            for (size_t c = 0; c < 3; c++) out[c] = widen(pixel, b->mask[c]);
        }
    }
}

static int decode_raw(Image *im, const Bmp *b, const uint8_t *p, size_t n, Err *e) {
    const uint64_t row = (((uint64_t)b->W * b->bits + 31) >> 3) & ~(uint64_t)3;
    // The padding of the last row may be missing.
    const uint64_t need = row * (b->H - 1) + ((uint64_t)b->W * b->bits + 7) / 8;
    if (b->offset > n || n - b->offset < need)
        return fail(e, "cut off BMP: %zu of %llu bytes of pixels", b->offset > n ? 0 : n - b->offset,
                    (unsigned long long)need);
    for (uint32_t y = 0; y < b->H; y++) {
        uint8_t *out = im->rgb + (size_t)(b->top_first ? y : b->H - 1 - y) * b->W * 3;
        row_to_rgb(out, p + b->offset + row * y, b);
    }
    return 0;
}

// Run-length coding, in pairs of bytes: (n > 0, colour) repeats; (0, 0) ends a row, (0, 1) the image, (0, 2)
// and two more bytes skip to the right and on; (0, n >= 3) is followed by n literal pixels, padded to an even
// count of bytes.
static int decode_rle(Image *im, const Bmp *b, const uint8_t *p, size_t n, Err *e) {
    const bool four = b->compression == RLE4;
    uint32_t x = 0, y = 0;
    for (size_t i = 0; i < (size_t)b->W * b->H; i++) memcpy(im->rgb + i * 3, b->colors[0], 3);
    for (size_t at = b->offset; y < b->H;) {
        if (at > n || n - at < 2) {
            if (y + 1 == b->H && x >= b->W) return 0;
            return fail(e, "cut off BMP: its pixels end in row %u of %u", y, b->H);
        }
        const uint32_t count = p[at], value = p[at + 1];
        at += 2;
        if (count == 0 && value == 1) return 0;
        if (count == 0 && value == 0) {
            x = 0;
            y++;
        } else if (count == 0 && value == 2) {
            if (n - at < 2) continue;  // the test above reports it
            x += p[at];
            y += p[at + 1];
            at += 2;
        } else {
            const uint32_t pixels = count ? count : value;
            const size_t bytes = count ? 0 : four ? (pixels + 1) / 2 : pixels;
            if (n - at < bytes) return fail(e, "cut off BMP: its pixels end in row %u of %u", y, b->H);
            uint8_t *row = im->rgb + (size_t)(b->top_first ? y : b->H - 1 - y) * b->W * 3;
            for (uint32_t i = 0; i < pixels && x < b->W; i++, x++) {
                uint32_t v = count ? value : p[at + (four ? i / 2 : i)];
                if (four) v = i % 2 ? v & 15 : v >> 4;
                memcpy(row + (size_t)x * 3, b->colors[v], 3);
            }
            at += bytes + (bytes & 1);
        }
    }
    return 0;
}

int image_decode_bmp(Image *im, const uint8_t *p, size_t n, uint64_t max_pixels, Err *e) {
    Bmp b = {0};
    uint32_t colors = 0;
    if (read_header(&b, &colors, p, n, e) != 0) return -1;
    size_t at = 14 + (size_t)read_u32(p + 14);
    if (read_masks(&b, p, n, &at, e) != 0 || read_palette(&b, colors, p, n, &at, e) != 0) return -1;
    if (b.offset == 0) b.offset = at;
    if (image_take(im, b.W, b.H, max_pixels, e) != 0) return -1;
    const bool rle = b.compression == RLE8 || b.compression == RLE4;
    return rle ? decode_rle(im, &b, p, n, e) : decode_raw(im, &b, p, n, e);
}
