// image_gif.c: the first frame of a GIF to RGB, as Pillow 11.3.0's convert("RGB").
//
// In order: the LZW decoder with its input of small blocks, the frame's rows, the blocks of the file.
// What Pillow does and other readers do not: transparent pixels keep their palette colour; what the frame
// leaves uncovered has the transparent colour, or colour 0 without one; a frame that sticks out enlarges the
// canvas. One deliberate difference: a frame whose own palette is a ramp of greys is grey, while Pillow gives
// it the colours of the file's palette.
//
//     GIF87a or GIF89a | u16 W, H | flags, background, aspect | palette?        all numbers little-endian
//     ! label { n, n bytes }* 0                                               extension; F9: transparency
//     , | u16 x, y, w, h | flags | palette? | code bits { n, n bytes }* 0     image

#include "image_codec.h"

#include <stdlib.h>
#include <string.h>

enum { MAX_CODES = 4096 };

typedef struct {
    const uint8_t *p, *end;   // the file from here on
    int block;                // bytes left of the current block
    uint32_t bits;            // read but not yet used, lowest first
    int held;                 // how many
} BitReader;

// The next code of `width` bits, or -1 at the end of the data.
static int next_code(BitReader *r, int width) {
    while (r->held < width) {
        if (r->block == 0) {
            if (r->p == r->end || *r->p == 0) return -1;
            r->block = *r->p++;
        }
        if (r->p == r->end) return -1;
        r->bits |= (uint32_t)*r->p++ << r->held;
        r->held += 8;
        r->block--;
    }
    const int code = (int)(r->bits & ((1u << width) - 1));
    r->bits >>= width;
    r->held -= width;
    return code;
}

typedef struct {
    uint8_t *canvas;       // (H,W) palette indices
    size_t W;
    uint32_t x, y, w, h;   // the frame on it
    bool interlaced;
} Frame;

// Canvas row of the k-th row in the data. Interlaced: rows 0, 8, 16.. then 4, 12.. then 2, 6.. then 1, 3..
static uint32_t frame_row(const Frame *f, uint32_t k) {
    if (!f->interlaced) return f->y + k;
    const uint32_t from[4] = {0, 4, 2, 1}, step[4] = {8, 8, 4, 2};
    for (int pass = 0; pass < 4; pass++) {
        const uint32_t rows = f->h > from[pass] ? (f->h - from[pass] + step[pass] - 1) / step[pass] : 0;
        if (k < rows) return f->y + from[pass] + k * step[pass];
        k -= rows;
    }
    CHECK(!"more rows than the frame has");
    return 0;
}

// Fills the frame from the LZW data. Codes below `clear` stand for themselves, `clear` restarts the table,
// the one after it ends the image; each further code is an earlier code's string plus one byte.
static int decode_lzw(Frame *f, BitReader *r, int bits, Err *e) {
    uint16_t prefix[MAX_CODES];
    uint8_t last_byte[MAX_CODES], string[MAX_CODES + 1];
    const int clear = 1 << bits;
    int next = clear + 2, width = bits + 1, previous = -1, first = 0;
    uint32_t col = 0, k = 0;
    uint8_t *row = f->canvas + (size_t)frame_row(f, 0) * f->W + f->x;
    for (;;) {
        const int code = next_code(r, width);
        if (code < 0 || code == clear + 1)
            return fail(e, "cut off GIF: its pixels end in row %u of %u", k, f->h);
        if (code == clear) {
            next = clear + 2;
            width = bits + 1;
            previous = -1;
            continue;
        }
        if (previous < 0 ? code > clear : code > next)
            return fail(e, "damaged GIF: code %d in row %u does not exist", code, k);
        int n = 0, c = code;
        if (code == next) {  // the string being defined right now: the previous one and its own first byte
            string[n++] = (uint8_t)first;
            c = previous;
        }
        for (; c >= clear; c = prefix[c]) string[n++] = last_byte[c];
        string[n++] = (uint8_t)(first = c);
        if (previous >= 0 && next < MAX_CODES) {
            prefix[next] = (uint16_t)previous;
            last_byte[next++] = (uint8_t)first;
            if (next == 1 << width && width < 12) width++;
        }
        previous = code;
        while (n > 0) {  // string is backwards
            row[col++] = string[--n];
            if (col < f->w) continue;
            col = 0;
            if (++k == f->h) return 0;
            row = f->canvas + (size_t)frame_row(f, k) * f->W + f->x;
        }
    }
}

// ---------------------------------------------------------------------------------------------------------

typedef struct { uint8_t colors[256][3]; } Palette;

// A palette of 2 << (flags & 7) colours at p; what lies beyond it is black. Advances p.
static bool read_palette(Palette *to, const uint8_t **p, const uint8_t *end, int flags) {
    const size_t n = (size_t)3 << ((flags & 7) + 1);
    if ((size_t)(end - *p) < n) return false;
    *to = (Palette){0};
    memcpy(to->colors, *p, n);
    *p += n;
    return true;
}

// The indices are greys when there is no palette, or when the palette only says so (Pillow drops such a
// palette, which matters for indices beyond its end).
static void grey_if_ramp(Palette *pal, int flags) {
    const int n = 2 << (flags & 7);
    bool ramp = true;
    for (int i = 0; (flags & 0x80) && i < n; i++)
        for (int c = 0; c < 3; c++) ramp = ramp && pal->colors[i][c] == i;
    for (int i = 0; ramp && i < 256; i++) memset(pal->colors[i], i, 3);
}

// Skips the sub-blocks of an extension; a graphic control extension sets *transparent.
static bool skip_extension(const uint8_t **p, const uint8_t *end, int *transparent) {
    if (*p == end) return false;
    const int label = *(*p)++;
    bool first = true;
    while (*p < end && **p != 0) {
        const size_t n = **p;
        if ((size_t)(end - *p) < n + 1) return false;
        if (label == 0xF9 && first && n >= 4 && ((*p)[1] & 1)) *transparent = (*p)[4];
        first = false;
        *p += n + 1;
    }
    if (*p == end) return false;
    (*p)++;
    return true;
}

// The image block at p (after its comma), the frame being the first: decodes it and colours the canvas.
static int decode_frame(Image *im, const uint8_t *p, const uint8_t *end, Palette *pal, int pal_flags,
                        const uint32_t size[2], int transparent, uint64_t max_pixels, Err *e) {
    if (end - p < 9) return fail(e, "cut off GIF: no pixels");
    Frame f = {.x = read_u16(p), .y = read_u16(p + 2), .w = read_u16(p + 4), .h = read_u16(p + 6),
               .interlaced = p[8] & 0x40};
    const int flags = p[8];
    p += 9;
    if (f.w == 0 || f.h == 0) return fail(e, "damaged GIF: a frame of %u x %u pixels", f.w, f.h);
    if ((flags & 0x80) && !read_palette(pal, &p, end, flags)) return fail(e, "cut off GIF: half a palette");
    grey_if_ramp(pal, flags & 0x80 ? flags : pal_flags);
    const uint32_t W = size[0] > f.x + f.w ? size[0] : f.x + f.w;
    const uint32_t H = size[1] > f.y + f.h ? size[1] : f.y + f.h;
    if (image_take(im, W, H, max_pixels, e) != 0) return -1;
    if (p == end) return fail(e, "cut off GIF: no pixels");
    const int bits = *p++;
    if (bits < 1 || bits > 8) return fail(e, "damaged GIF: codes of %d bits (1..8 exist)", bits);
    const size_t n = (size_t)W * H;
    f.W = W;
    f.canvas = malloc(n);
    if (!f.canvas) return fail(e, "no memory for %u x %u palette indices", W, H);
    memset(f.canvas, transparent < 0 ? 0 : transparent, n);
    BitReader r = {.p = p, .end = end};
    const int rc = decode_lzw(&f, &r, bits, e);
    for (size_t i = 0; rc == 0 && i < n; i++) memcpy(im->rgb + i * 3, pal->colors[f.canvas[i]], 3);
    free(f.canvas);
    return rc;
}

int image_decode_gif(Image *im, const uint8_t *p, size_t n, uint64_t max_pixels, Err *e) {
    const uint8_t *end = p + n;
    if (n < 13) return fail(e, "cut off GIF: no header");
    const uint32_t size[2] = {read_u16(p + 6), read_u16(p + 8)};
    const int flags = p[10];
    int transparent = -1;
    Palette pal = {0};
    p += 13;
    if ((flags & 0x80) && !read_palette(&pal, &p, end, flags)) return fail(e, "cut off GIF: half a palette");
    while (p < end) {
        const int kind = *p++;
        if (kind == ',') return decode_frame(im, p, end, &pal, flags, size, transparent, max_pixels, e);
        if (kind == ';') return fail(e, "this GIF has no image in it");
        if (kind == '!' && !skip_extension(&p, end, &transparent)) break;
    }
    return fail(e, "cut off GIF: no pixels");
}
