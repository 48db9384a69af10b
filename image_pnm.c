// image_pnm.c: PBM, PGM and PPM, plain (P1, P2, P3) and raw (P4, P5, P6), to RGB as Pillow 11.3.0's
// convert("RGB").
//
// In order: numbers and comments in the text, one reader of samples for each form, the file.
// Samples 0..maxval become 0..255 by Pillow's rounding. Grey with maxval above 255 keeps the high byte of the
// value scaled to 16 bits (Pillow clips it, see image.h). Not here: PAM (P7) and the float maps (Pf, PF).
//
//     P and a digit | W | H | maxval, not for P1 and P4 | one space | samples
//     numbers are separated by space; # starts a comment that ends with its line

#include "image_codec.h"

#include <math.h>
#include <string.h>

typedef struct {
    const uint8_t *p, *end;
    bool cut;   // the last number was ended by the end of the file
} Reader;

static bool is_space(int c) { return c == ' ' || (c >= '\t' && c <= '\r'); }

// The next byte that is no comment, -1 at the end. A comment ends before the end of its line or takes it
// along; either way the number before it and the number after it stay apart.
static int next_char(Reader *r) {
    if (r->p == r->end) return -1;
    const int c = *r->p++;
    if (c != '#') return c;
    while (r->p < r->end && *r->p != '\n' && *r->p != '\r') r->p++;
    return r->p < r->end ? *r->p++ : -1;
}

// A decimal number and the one byte after it. -1: none; -2: something that is not a number.
static int64_t next_number(Reader *r) {
    int c = next_char(r);
    while (is_space(c)) c = next_char(r);
    if (c < 0) return -1;
    int64_t v = 0;
    for (int digits = 0; !is_space(c) && c >= 0; c = next_char(r)) {
        if (c < '0' || c > '9' || ++digits > 10) return -2;
        v = v * 10 + (c - '0');
    }
    r->cut = c < 0;
    return v;
}

// ---------------------------------------------------------------------------------------------------------

typedef struct { int kind; uint32_t W, H, maxval; } Pnm;  // kind 1..6

// One sample, 0..255. Python's round() and nearbyint() both round halves to even.
static uint8_t scale(const Pnm *f, uint32_t v) {
    if (f->maxval == 255) return (uint8_t)v;
    const bool deep_grey = f->maxval > 255 && (f->kind == 2 || f->kind == 5);
    const double most = deep_grey ? 65535 : 255;
    double scaled = nearbyint((double)v / f->maxval * most);
    if (scaled > most) scaled = most;  // raw samples above maxval, which Pillow lets pass
    return (uint8_t)(deep_grey ? (uint32_t)scaled >> 8 : (uint32_t)scaled);
}

static int cut_off(const Pnm *f, size_t i, Err *e) {
    const size_t row = (size_t)f->W * (f->kind % 3 == 0 ? 3 : 1);
    return fail(e, "cut off PNM: its pixels end in row %zu of %u", i / row, f->H);
}

static int read_plain(uint8_t *out, size_t n, const Pnm *f, Reader *r, Err *e) {
    // n samples of text -> out (n)
    for (size_t i = 0; i < n; i++) {
        int64_t v;
        if (f->kind == 1) {  // the only form whose digits need no space between them
            int c = next_char(r);
            while (is_space(c)) c = next_char(r);
            v = c < 0 ? -1 : c == '0' ? 255 : c == '1' ? 0 : -2;
        } else {
            v = next_number(r);
            if (v > f->maxval)
                return fail(e, "damaged PNM: a sample of %lld, above %u", (long long)v, f->maxval);
        }
        if (v == -1) return cut_off(f, i, e);
        if (v < 0) return fail(e, "damaged PNM: sample %zu is not a number", i);
        out[i] = f->kind == 1 ? (uint8_t)v : scale(f, (uint32_t)v);
    }
    return 0;
}

static int read_raw(uint8_t *out, size_t n, const Pnm *f, Reader *r, Err *e) {
    // n samples of 1, 8 or 16 bits -> out (n)
    const size_t have = (size_t)(r->end - r->p), size = f->maxval > 255 ? 2 : 1;
    if (f->kind == 4) {
        const size_t row = ((size_t)f->W + 7) / 8;
        if (have < row * f->H) return cut_off(f, have / row * f->W, e);
        for (size_t y = 0; y < f->H; y++)
            for (size_t x = 0; x < f->W; x++) *out++ = r->p[y * row + x / 8] << (x & 7) & 0x80 ? 0 : 255;
        return 0;
    }
    if (have / size < n) return cut_off(f, have / size, e);
    for (size_t i = 0; i < n; i++) out[i] = scale(f, size == 2 ? read_be16(r->p + 2 * i) : r->p[i]);
    return 0;
}

int image_decode_pnm(Image *im, const uint8_t *p, size_t n, uint64_t max_pixels, Err *e) {
    Reader r = {.p = p + 2, .end = p + n};
    Pnm f = {.kind = p[1] - '0', .maxval = 1};
    const int64_t W = next_number(&r), H = next_number(&r);
    const int64_t maxval = f.kind == 1 || f.kind == 4 ? 1 : next_number(&r);
    if (W == -1 || H == -1 || maxval == -1) return fail(e, "cut off PNM: no header");
    if (W < 0 || H < 0 || maxval < 1 || maxval > 65535)
        return fail(e, "damaged PNM: width, height and a maximum of 1..65535 should follow P%d", f.kind);
    if (image_take(im, (uint64_t)W, (uint64_t)H, max_pixels, e) != 0) return -1;
    f.W = (uint32_t)W;
    f.H = (uint32_t)H;
    f.maxval = (uint32_t)maxval;
    // Grey goes into the last third of the pixels and is then spread out from there, front to back.
    const size_t pixels = (size_t)f.W * f.H, samples = f.kind % 3 == 0 ? 3 * pixels : pixels;
    uint8_t *to = im->rgb + 3 * pixels - samples;
    r.cut = false;
    const int rc = f.kind <= 3 ? read_plain(to, samples, &f, &r, e) : read_raw(to, samples, &f, &r, e);
    for (size_t i = 0; rc == 0 && samples == pixels && i < pixels; i++) memset(im->rgb + 3 * i, to[i], 3);
    if (rc == 0 && r.cut) image_warn(im, "no line end after the last number: this PNM may have been cut off");
    return rc;
}
