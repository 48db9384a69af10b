// test/screen.h: a terminal's screen for tests: understands what show.c writes and keeps what one would see.
//
// In order: cells and the picture, sixel, kitty's protocol, control sequences, feeding. Anything that it does not know
// is counted in `unknown`. Written from the protocols' descriptions, not from show*.c.
#ifndef TEST_SCREEN_H
#define TEST_SCREEN_H

#include "../common.h"

#include <stdlib.h>
#include <string.h>
#include <zlib.h>

enum { MOST = 256 };

typedef struct { uint32_t cp; int front, back; } Cell;   // 24-bit colours, -1 for none

typedef struct {
    int rows, columns, row, column, saved_row, saved_column, front, back, unknown, scrolled;
    Cell cell[MOST][MOST];
    // the picture of a graphics protocol
    int at_row, at_column, w, h, over_columns, over_rows, pictures;
    int *px;                      // (h,w), 24-bit colours, -1 where nothing was drawn
    Text base64;
} Screen;

static inline void screen_init(Screen *s, int rows, int columns, int row) {
    *s = (Screen){.rows = rows, .columns = columns, .row = row, .front = -1, .back = -1};
    for (int r = 0; r < MOST; r++) for (int c = 0; c < MOST; c++) s->cell[r][c] = (Cell){' ', -1, -1};
}

static inline void screen_free(Screen *s) {
    free(s->px);
    text_free(&s->base64);
}

static inline void screen_newline(Screen *s) {
    s->column = 0;
    if (s->row < s->rows - 1) {
        s->row++;
        return;
    }
    memmove(s->cell[0], s->cell[1], sizeof s->cell[0] * (size_t)(s->rows - 1));
    for (int c = 0; c < MOST; c++) s->cell[s->rows - 1][c] = (Cell){' ', -1, -1};
    s->at_row--;
    s->scrolled++;
}

static inline void screen_picture(Screen *s, int w, int h) {
    free(s->px);
    s->px = malloc((size_t)w * h * sizeof *s->px);
    memset(s->px, 0xFF, (size_t)w * h * sizeof *s->px);
    s->w = w;
    s->h = h;
    s->at_row = s->row;
    s->at_column = s->column;
    s->pictures++;
}

// p: behind ESC P; returns where the string ends
static inline const char *screen_sixel(Screen *s, const char *p, const char *end) {
    int palette[256], colour = 0, x = 0, y = 0, times = 1, n[5], used = 0, w = 0, h = 0;
    if (sscanf(p, "0;1;0q\"1;1;%d;%d%n", &w, &h, &used) != 2 || w < 1 || h < 1 || w * h > 1 << 24) {
        s->unknown++;
        return end;
    }
    screen_picture(s, w, h);
    for (p += used; p < end && *p != '\x1b';) {
        if (*p == '#' && sscanf(p, "#%d;2;%d;%d;%d%n", &n[0], &n[1], &n[2], &n[3], &used) == 4) {
            for (int i = 1; i < 4; i++) {
                if (n[i] < 0 || n[i] > 100) s->unknown++;
                n[i] = (n[i] * 255 + 50) / 100;
            }
            palette[n[0] & 255] = n[1] << 16 | n[2] << 8 | n[3];
            p += used;
        } else if (*p == '#' && sscanf(p, "#%d%n", &colour, &used) == 1) {
            if (colour > 255) s->unknown++;
            p += used;
        } else if (*p == '!' && sscanf(p, "!%d%n", &times, &used) == 1) p += used;
        else if (*p == '$') { x = 0; p++; }
        else if (*p == '-') { x = 0; y += 6; p++; }
        else if (*p >= 63 && *p < 127) {
            for (; times > 0; times--, x++)
                for (int i = 0; i < 6; i++)
                    if ((*p - 63) >> i & 1) {
                        if (x < w && y + i < h) s->px[(y + i) * w + x] = palette[colour & 255];
                        else s->unknown++;
                    }
            times = 1;
            p++;
        } else { s->unknown++; p++; }
    }
    s->row = s->rows - 1;   // terminals disagree about where the cursor is now
    return p;
}

static inline int base64_value(char c) {
    return c >= 'A' && c <= 'Z' ? c - 'A' : c >= 'a' && c <= 'z' ? c - 'a' + 26 : c >= '0' && c <= '9' ? c - '0' + 52 :
           c == '+' ? 62 : c == '/' ? 63 : -1;
}

static inline void screen_kitty_end(Screen *s) {
    const uLongf raw = (uLongf)s->w * (uLongf)s->h * 3;
    uLongf n = raw;
    uint8_t *rgb = malloc(raw), *packed = malloc(s->base64.len + 1);
    size_t bytes = 0;
    if (s->base64.len % 4) s->unknown++;
    for (size_t i = 0; i + 4 <= s->base64.len; i += 4) {
        uint32_t v = 0;
        int digits = 0;
        for (int k = 0; k < 4; k++) {
            const int d = base64_value(s->base64.data[i + (size_t)k]);
            v = v << 6 | (uint32_t)(d < 0 ? 0 : d);
            digits += d >= 0;
        }
        for (int k = 0; k < digits - 1; k++) packed[bytes++] = (uint8_t)(v >> (16 - 8 * k));
    }
    if (uncompress(rgb, &n, packed, bytes) != Z_OK || n != raw) s->unknown++;
    else for (uLongf i = 0; i < raw / 3; i++) s->px[i] = rgb[3 * i] << 16 | rgb[3 * i + 1] << 8 | rgb[3 * i + 2];
    free(rgb);
    free(packed);
    s->base64.len = 0;
}

// p: behind ESC _
static inline const char *screen_kitty(Screen *s, const char *p, const char *end) {
    const char *stop = memmem(p, (size_t)(end - p), "\x1b\\", 2), *data = strchr(p, ';');
    int w, h, c, r, more = -1;
    if (!stop || !data || data > stop || stop - data > 4097) {
        s->unknown++;
        return end;
    }
    if (sscanf(p, "Ga=T,f=24,o=z,s=%d,v=%d,c=%d,r=%d,C=1,q=2,m=%d;", &w, &h, &c, &r, &more) == 5 && w > 0 && h > 0) {
        screen_picture(s, w, h);
        s->over_columns = c;
        s->over_rows = r;
    } else if (sscanf(p, "Gm=%d,q=2;", &more) != 1) s->unknown++;
    text_add(&s->base64, data + 1, (size_t)(stop - data - 1));
    if (more == 0) screen_kitty_end(s);
    return stop;
}

// p: behind ESC [
static inline const char *screen_csi(Screen *s, const char *p, const char *end) {
    int n[8] = {0}, count = 0;
    for (; p < end && ((*p >= '0' && *p <= '9') || *p == ';'); p++) {
        if (*p == ';') count += count < 7;
        else n[count] = 10 * n[count] + *p - '0';
    }
    if (p >= end) s->unknown++;
    else if (*p == 'A') s->row = s->row < n[0] ? 0 : s->row - n[0];
    else if (*p == 'C') s->column = s->column + n[0] < s->columns ? s->column + n[0] : s->columns - 1;
    else if (*p == 'm' && count == 0 && n[0] == 0) s->front = s->back = -1;
    else if (*p == 'm' && count == 4 && n[0] == 38 && n[1] == 2) s->front = n[2] << 16 | n[3] << 8 | n[4];
    else if (*p == 'm' && count == 4 && n[0] == 48 && n[1] == 2) s->back = n[2] << 16 | n[3] << 8 | n[4];
    else s->unknown++;
    return p;
}

static inline void screen_feed(Screen *s, const char *p, size_t n) {
    for (const char *end = p + n; p < end; p++) {
        uint32_t cp;
        const int len = utf8_next((const uint8_t *)p, (size_t)(end - p), &cp);
        if (*p == '\n') screen_newline(s);
        else if (*p == '\r') s->column = 0;
        else if (*p == '\x1b' && end - p > 2) {
            p++;
            if (*p == '[') p = screen_csi(s, p + 1, end);
            else if (*p == 'P') { p = screen_sixel(s, p + 1, end); p++; }
            else if (*p == '_') { p = screen_kitty(s, p + 1, end); p++; }
            else if (*p == '7') { s->saved_row = s->row; s->saved_column = s->column; }
            else if (*p == '8') { s->row = s->saved_row; s->column = s->saved_column; }
            else s->unknown++;
        } else if (len == 0 || cp < 0x20) s->unknown++;
        else {
            if (s->column == s->columns) screen_newline(s);
            s->cell[s->row][s->column++] = (Cell){cp, s->front, s->back};
            p += len - 1;
        }
    }
}

// What stands in a row from a column on, without spaces at the end (ASCII).
static inline const char *screen_text(const Screen *s, int row, int column) {
    static char line[MOST + 1];
    int n = 0;
    for (int c = column; c < s->columns; c++) line[n++] = (char)s->cell[row][c].cp;
    while (n && line[n - 1] == ' ') n--;
    line[n] = 0;
    return line;
}

#endif
