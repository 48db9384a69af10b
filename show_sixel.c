// show_sixel.c: pixels as sixel graphics (see show.h).
//
// In order: a histogram, up to 256 colours by median cut (Heckbert 1982), error diffusion (Floyd and Steinberg 1976),
// the escape sequence (DEC's VT330/VT340 manual, chapter 14; xterm's ctlseqs). A sixel is a column of six pixels, of
// one colour; each band of six rows is drawn colour by colour. Colours are given in percent.

#include "show.h"

#include <stdlib.h>
#include <string.h>

enum { BITS = 5, BINS = 1 << 3 * BITS, COLOURS = 256 };

typedef struct { uint32_t count; uint64_t sum[3]; int at[3]; } Bin;   // at: the 5-bit coordinates
typedef struct { int lo, hi; } Box;                                  // bins lo..hi-1

typedef struct {
    Bin *bin;                    // (BINS), the used ones first
    uint8_t rgb[COLOURS][3];     // as the terminal will show them
    uint8_t percent[COLOURS][3];
    int n;                       // colours
    int16_t *nearest;            // (BINS), -1 where nobody asked yet
} Palette;

static int bin_of(const int rgb[3]) {
    return (rgb[0] >> (8 - BITS)) << 2 * BITS | (rgb[1] >> (8 - BITS)) << BITS | rgb[2] >> (8 - BITS);
}

// ---------------------------------------------------------------------------------------------------------
// Colours

#define COMPARE(name, axis) \
    static int name(const void *a, const void *b) { return ((const Bin *)a)->at[axis] - ((const Bin *)b)->at[axis]; }
COMPARE(by_red, 0)
COMPARE(by_green, 1)
COMPARE(by_blue, 2)

// px (n,3) -> the used bins in front; returns their number
static int count_colours(Palette *p, const uint8_t *px, size_t n) {
    memset(p->bin, 0, BINS * sizeof *p->bin);
    for (size_t i = 0; i < n; i++, px += 3) {
        Bin *b = &p->bin[bin_of((const int[]){px[0], px[1], px[2]})];
        b->count++;
        for (int c = 0; c < 3; c++) b->sum[c] += px[c];
    }
    int used = 0;
    for (int i = 0; i < BINS; i++) {
        if (!p->bin[i].count) continue;
        p->bin[used] = p->bin[i];
        for (int c = 0; c < 3; c++) p->bin[used].at[c] = i >> (2 - c) * BITS & ((1 << BITS) - 1);
        used++;
    }
    return used;
}

// The longest side of a box and, as what splitting it is worth, that side times the pixels inside.
static uint64_t worth(const Palette *p, Box box, int *axis) {
    int lo[3] = {BINS, BINS, BINS}, hi[3] = {-1, -1, -1};
    uint64_t pixels = 0;
    for (int i = box.lo; i < box.hi; i++) {
        pixels += p->bin[i].count;
        for (int c = 0; c < 3; c++) {
            if (p->bin[i].at[c] < lo[c]) lo[c] = p->bin[i].at[c];
            if (p->bin[i].at[c] > hi[c]) hi[c] = p->bin[i].at[c];
        }
    }
    *axis = 0;
    for (int c = 1; c < 3; c++) if (hi[c] - lo[c] > hi[*axis] - lo[*axis]) *axis = c;
    return (uint64_t)(hi[*axis] - lo[*axis]) * pixels;
}

// Half of the pixels on each side, at least one bin.
static void split(Palette *p, Box *box, Box *other, int axis) {
    qsort(p->bin + box->lo, (size_t)(box->hi - box->lo), sizeof *p->bin,
          axis == 0 ? by_red : axis == 1 ? by_green : by_blue);
    uint64_t pixels = 0, half = 0;
    for (int i = box->lo; i < box->hi; i++) pixels += p->bin[i].count;
    int cut = box->lo;
    while (cut < box->hi - 1 && (half + p->bin[cut].count <= pixels / 2 || cut == box->lo)) half += p->bin[cut++].count;
    *other = (Box){cut, box->hi};
    box->hi = cut;
}

static void choose_colours(Palette *p, const uint8_t *px, size_t n) {
    // px (n,3)
    Box boxes[COLOURS] = {{0, count_colours(p, px, n)}};
    uint64_t value[COLOURS];
    int axis[COLOURS];
    value[0] = worth(p, boxes[0], &axis[0]);
    for (p->n = 1; p->n < COLOURS; p->n++) {
        int best = 0;
        for (int i = 1; i < p->n; i++) if (value[i] > value[best]) best = i;
        if (!value[best]) break;
        split(p, &boxes[best], &boxes[p->n], axis[best]);
        value[best] = worth(p, boxes[best], &axis[best]);
        value[p->n] = worth(p, boxes[p->n], &axis[p->n]);
    }
    for (int i = 0; i < p->n; i++) {
        uint64_t sum[3] = {0}, count = 0;
        for (int b = boxes[i].lo; b < boxes[i].hi; b++) {
            count += p->bin[b].count;
            for (int c = 0; c < 3; c++) sum[c] += p->bin[b].sum[c];
        }
        for (int c = 0; c < 3; c++) {
            p->percent[i][c] = (uint8_t)((sum[c] * 100 + 127 * count) / (255 * count));
            p->rgb[i][c] = (uint8_t)((p->percent[i][c] * 255 + 50) / 100);
        }
    }
}

// The colour nearest to the middle of the bin that rgb falls into.
static int nearest(Palette *p, const int rgb[3]) {
    const int bin = bin_of(rgb);
    if (p->nearest[bin] >= 0) return p->nearest[bin];
    int best = 0, least = INT32_MAX;
    for (int i = 0; i < p->n; i++) {
        int d = 0;
        for (int c = 0; c < 3; c++) {
            const int middle = (rgb[c] & ~7) + 4, off = middle - p->rgb[i][c];
            d += off * off;
        }
        if (d < least) {
            least = d;
            best = i;
        }
    }
    return p->nearest[bin] = (int16_t)best;
}

// ---------------------------------------------------------------------------------------------------------
// Pixels to colours

static int clamp(int x) { return x < 0 ? 0 : x > 255 ? 255 : x; }

// px (h,w,3) -> index (h,w). carry (2,w+2,3) holds sixteenths of the errors handed on to this row and the next.
static void diffuse(uint8_t *index, Palette *p, int *carry, const uint8_t *px, int w, int h) {
    const size_t row = ((size_t)w + 2) * 3;
    memset(carry, 0, 2 * row * sizeof *carry);
    for (int y = 0; y < h; y++) {
        int *here = carry + (y & 1) * row + 3, *below = carry + (~y & 1) * row + 3;
        memset(below - 3, 0, row * sizeof *below);
        for (int x = 0; x < w; x++, px += 3, here += 3, below += 3) {
            int want[3];
            for (int c = 0; c < 3; c++) want[c] = clamp(px[c] + (here[c] + (here[c] < 0 ? -8 : 8)) / 16);
            const int i = *index++ = (uint8_t)nearest(p, want);
            for (int c = 0; c < 3; c++) {
                const int off = want[c] - p->rgb[i][c];
                here[c + 3] += 7 * off;
                below[c - 3] += 3 * off;
                below[c] += 5 * off;
                below[c + 3] += off;
            }
        }
    }
}

// ---------------------------------------------------------------------------------------------------------
// The escape sequence

static void repeat(Text *out, char sixel, int n) {
    if (n > 3) text_printf(out, "!%d%c", n, sixel);
    else for (int i = 0; i < n; i++) text_add(out, &sixel, 1);
}

// One band: index (rows,w), at most six rows, colour by colour from its left end
static void band(Text *out, const uint8_t *index, int w, int rows) {
    bool used[COLOURS] = {false};
    for (int i = 0; i < rows * w; i++) used[index[i]] = true;
    const char *before = "";
    for (int colour = 0; colour < COLOURS; colour++) {
        if (!used[colour]) continue;
        text_printf(out, "%s#%d", before, colour);
        int run = 0;
        char last = 0;
        for (int x = 0; x < w; x++) {
            int bits = 0;
            for (int y = 0; y < rows; y++) bits |= (index[y * w + x] == colour) << y;
            const char sixel = (char)(63 + bits);
            if (sixel != last) {
                repeat(out, last, run);
                run = 0;
            }
            last = sixel;
            run++;
        }
        if (last != '?') repeat(out, last, run);   // nothing need be drawn up to the end
        before = "$";
    }
}

int show_sixel(Text *out, const uint8_t *px, int w, int h, Err *e) {
    // px (h,w,3)
    Palette p = {.bin = malloc(BINS * sizeof *p.bin), .nearest = malloc(BINS * sizeof *p.nearest)};
    uint8_t *index = malloc((size_t)w * h);
    int *carry = malloc(2 * ((size_t)w + 2) * 3 * sizeof *carry);
    const bool room = p.bin && p.nearest && index && carry;
    if (room) {
        memset(p.nearest, 0xFF, BINS * sizeof *p.nearest);
        choose_colours(&p, px, (size_t)w * h);
        diffuse(index, &p, carry, px, w, h);
        // pixels are square, the picture is w x h; what is not drawn stays as it is
        text_printf(out, "\x1bP0;1;0q\"1;1;%d;%d", w, h);
        for (int i = 0; i < p.n; i++)
            text_printf(out, "#%d;2;%d;%d;%d", i, p.percent[i][0], p.percent[i][1], p.percent[i][2]);
        for (int y = 0; y < h; y += 6) {
            if (y) text_add(out, "-", 1);
            band(out, index + (size_t)y * w, w, h - y < 6 ? h - y : 6);
        }
        text_add(out, "\x1b\\", 2);
    }
    free(p.bin);
    free(p.nearest);
    free(index);
    free(carry);
    return room ? 0 : fail(e, "no memory to draw the picture");
}
