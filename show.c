// show.c: a picture drawn in the terminal, with text beside it (see show.h).
//
// In order: which way, how large, shrinking, text in a column, half blocks, characters, all together.
// Not here: what the terminal is (terminal.c), the graphics protocols (show_sixel.c, show_kitty.c).

#include "show.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { MOST_ROWS = 20, GAP = 2, WIDE = 60 };

// https://no-color.org: set and not empty.
ShowWay show_way(const Terminal *t) {
    const char *no_color = getenv("NO_COLOR"), *term = getenv("TERM");
    if ((no_color && *no_color) || (term && !strcmp(term, "dumb"))) return SHOW_CHARACTERS;
    return t->kitty ? SHOW_KITTY : t->sixel ? SHOW_SIXEL : SHOW_BLOCKS;
}

// ---------------------------------------------------------------------------------------------------------
// How large

typedef struct {
    int columns, rows;     // cells
    int w, h;              // pixels that are drawn
} Fit;

static int at_least_1(double x) { return x < 1 ? 1 : (int)x; }

static Fit fit(int W, int H, ShowWay way, const Terminal *t) {
    // A cell that does not tell its size is taken to be twice as high as wide, as most are. The unit is a dot: a
    // pixel of the screen for the protocols, half a cell for blocks and characters.
    const bool dots = way == SHOW_KITTY || way == SHOW_SIXEL, known = t->cell_w && t->cell_h;
    const double cell_w = !dots ? 1 : known ? t->cell_w : 10;
    const double cell_h = !dots ? 2 : known ? t->cell_h : 20;
    const double shape = dots || !known ? 1 : (double)t->cell_h / t->cell_w / 2;   // of a dot, height to width
    const int most_columns = t->columns >= WIDE ? t->columns / 2 : t->columns > 1 ? t->columns - 1 : 1;
    const int most_rows = t->rows - 2 < 1 ? 1 : t->rows - 2 < MOST_ROWS ? t->rows - 2 : MOST_ROWS;
    const double high = H / shape;
    const double scale = fmin(1, fmin(most_columns * cell_w / W, most_rows * cell_h / high));
    Fit f = {.w = at_least_1(round(W * scale)), .h = at_least_1(round(high * scale))};
    f.columns = (int)ceil(f.w / cell_w);
    // sixels come six rows at a time, and the last ones take their room whether they are used or not
    const int bottom = way == SHOW_SIXEL ? (f.h + 5) / 6 * 6 : f.h;
    f.rows = (int)ceil(bottom / cell_h);
    if (way == SHOW_CHARACTERS) f.h = f.rows;
    return f;
}

// rgb (H,W,3) -> px (h,w,3), each the mean of the pixels that it covers
static void shrink(uint8_t *px, const uint8_t *rgb, int W, int H, int w, int h) {
    for (int y = 0; y < h; y++) {
        const int64_t y0 = (int64_t)y * H / h, y1 = (int64_t)(y + 1) * H / h;
        for (int x = 0; x < w; x++) {
            const int64_t x0 = (int64_t)x * W / w, x1 = (int64_t)(x + 1) * W / w;
            uint64_t sum[3] = {0}, count = 0;
            for (int64_t v = y0; v < y1 || v == y0; v++)
                for (int64_t u = x0; u < x1 || u == x0; u++, count++)
                    for (int c = 0; c < 3; c++) sum[c] += rgb[(v * W + u) * 3 + c];
            for (int c = 0; c < 3; c++) *px++ = (uint8_t)((sum[c] + count / 2) / count);
        }
    }
}

// ---------------------------------------------------------------------------------------------------------
// Text in a column

// Cells that a character takes: none for marks that combine, two for the scripts and symbols that are drawn wide. Whole
// blocks of Unicode are enough here: a line that is a cell too short does no harm.
static int cells(uint32_t cp) {
    static const struct { uint32_t lo, hi; int cells; } RANGES[] = {
        {0x300, 0x36F, 0}, {0x483, 0x489, 0}, {0x591, 0x5BD, 0}, {0x610, 0x61A, 0}, {0x64B, 0x65F, 0},
        {0x1100, 0x115F, 2}, {0x1AB0, 0x1AFF, 0}, {0x1DC0, 0x1DFF, 0}, {0x200B, 0x200F, 0}, {0x20D0, 0x20FF, 0},
        {0x2E80, 0x303E, 2}, {0x3041, 0xA4CF, 2}, {0xAC00, 0xD7A3, 2}, {0xF900, 0xFAFF, 2}, {0xFE00, 0xFE0F, 0},
        {0xFE20, 0xFE2F, 0}, {0xFE30, 0xFE6F, 2}, {0xFF00, 0xFF60, 2}, {0xFFE0, 0xFFE6, 2}, {0x1F300, 0x1FAFF, 2},
        {0x20000, 0x3FFFD, 2}};
    for (size_t i = 0; i < sizeof RANGES / sizeof *RANGES; i++)
        if (cp >= RANGES[i].lo && cp <= RANGES[i].hi) return RANGES[i].cells;
    return 1;
}

// Bytes of the first line when text (n bytes) goes into a column of `width` cells: up to the last space that fits,
// through the middle of a word only if it is longer than the column. *next is where the line after it starts.
static size_t first_line(size_t *next, const char *text, size_t n, int width) {
    size_t space = 0;
    int used = 0;
    for (size_t i = 0; i < n;) {
        uint32_t cp = 0xFFFD;
        int len = utf8_next((const uint8_t *)text + i, n - i, &cp);
        if (!len) len = 1;
        if (cp == '\n') {
            *next = i + 1;
            return i;
        }
        used += cells(cp);
        if (cp == ' ' && i) space = i;
        if (used > width && i) {
            *next = space ? space + 1 : i;
            return space ? space : i;
        }
        i += (size_t)len;
    }
    *next = n;
    return n;
}

typedef struct { const char *text; size_t n; int width; } Column;

static void put_line(Text *out, Column *c) {
    size_t next;
    text_add(out, c->text, first_line(&next, c->text, c->n, c->width));
    c->text += next;
    c->n -= next;
}

// ---------------------------------------------------------------------------------------------------------
// Half blocks and characters

static void colour(Text *out, int layer, const uint8_t *px, const uint8_t **last) {
    if (*last && !memcmp(*last, px, 3)) return;
    text_printf(out, "\x1b[%d;2;%d;%d;%dm", layer, px[0], px[1], px[2]);
    *last = px;
}

// px (h,w,3): rows 2*row and 2*row+1 as upper half blocks, the upper pixel in front of the lower one
static void block_row(Text *out, const uint8_t *px, int w, int h, int row) {
    const uint8_t *front = NULL, *back = NULL, *upper = px + (size_t)row * 2 * w * 3;
    for (int x = 0; x < w; x++, upper += 3) {
        colour(out, 38, upper, &front);
        if (2 * row + 1 < h) colour(out, 48, upper + (size_t)w * 3, &back);
        text_add(out, "\xE2\x96\x80", 3);
    }
    text_add(out, "\x1b[0m", 4);
}

// px (h,w,3): one row as characters that cover the more of their cell the brighter the pixel is (Rec. 709 weights)
static void character_row(Text *out, const uint8_t *px, int w, int row) {
    static const char ramp[] = " .:-=+*#%@";
    for (const uint8_t *p = px + (size_t)row * w * 3, *end = p + (size_t)w * 3; p < end; p += 3) {
        const double grey = 0.2126 * p[0] + 0.7152 * p[1] + 0.0722 * p[2];
        text_add(out, &ramp[(int)(grey / 255.001 * (sizeof ramp - 1))], 1);
    }
}

// ---------------------------------------------------------------------------------------------------------

// The room is made first, so that the picture does not scroll away from under its text; then the picture is drawn from
// its upper left corner, the cursor put back there, and the text written line by line to its right.
static int draw(Text *out, const uint8_t *px, const Fit *f, Column *beside, ShowWay way, Err *e) {
    const bool dots = way == SHOW_KITTY || way == SHOW_SIXEL;
    if (dots) {
        for (int i = 0; i < f->rows; i++) text_add(out, "\n", 1);
        text_printf(out, "\x1b[%dA\x1b" "7", f->rows);
        if (way == SHOW_KITTY ? show_kitty(out, px, f->w, f->h, f->columns, f->rows, e)
                              : show_sixel(out, px, f->w, f->h, e)) return -1;
        text_add(out, "\x1b" "8", 2);
    }
    for (int row = 0; row < f->rows; row++) {
        if (way == SHOW_BLOCKS) block_row(out, px, f->w, f->h, row);
        if (way == SHOW_CHARACTERS) character_row(out, px, f->w, row);
        if (beside->n) {
            if (dots) text_printf(out, "\x1b[%dC", f->columns + GAP);
            else text_printf(out, "%*s", GAP, "");
            put_line(out, beside);
        }
        text_add(out, "\n", 1);
    }
    return 0;
}

int show_picture(Text *out, const uint8_t *rgb, int W, int H, const char *text, size_t n, ShowWay way,
                 const Terminal *t, Err *e) {
    // rgb (H,W,3)
    const Fit f = fit(W, H, way, t);
    uint8_t *px = malloc((size_t)f.w * f.h * 3);
    if (!px) return fail(e, "no memory to draw the picture");
    shrink(px, rgb, W, H, f.w, f.h);
    Column column = {.text = text, .n = n, .width = t->columns - f.columns - GAP - 1};
    // A protocol that draws over cells whose size is unknown could cover the text.
    const bool sure = way == SHOW_BLOCKS || way == SHOW_CHARACTERS || way == SHOW_KITTY || t->cell_w;
    Column none = {.width = 1};
    const bool beside = t->columns >= WIDE && sure;
    const int bad = draw(out, px, &f, beside ? &column : &none, way, e);
    free(px);
    if (bad) return -1;
    if (column.n) {
        text_add(out, column.text, column.n);
        if (column.text[column.n - 1] != '\n') text_add(out, "\n", 1);
    }
    return 0;
}
