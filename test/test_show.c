// test/test_show.c: pictures in the terminal, seen through a screen that decodes them again (screen.h), and a terminal
// that is asked what it can do (pty.h).
//
// In order: pictures, half blocks, graphics protocols, characters, text beside, sizes, answers of terminals, asking.

#include "../show.h"
#include "check.h"
#include "pty.h"
#include "screen.h"

static uint32_t random_state = 1;
static int random_below(int n) {
    random_state = random_state * 1664525u + 1013904223u;
    return (int)((uint64_t)random_state * (uint64_t)n >> 32);
}

enum { NOISE, SMOOTH, FLAT };

// (H,W,3) of a kind; the caller frees it
static uint8_t *paint(int W, int H, int kind) {
    uint8_t *rgb = malloc((size_t)W * H * 3);
    for (int y = 0; y < H; y++) for (int x = 0; x < W; x++) {
        uint8_t *p = rgb + ((size_t)y * W + x) * 3;
        for (int c = 0; c < 3; c++)
            p[c] = kind == NOISE ? (uint8_t)random_below(256) :
                   kind == FLAT ? (uint8_t)(255 * ((x / 5 + y / 7 + c) % 3 == 0)) :
                   (uint8_t)(127.5 + 127 * sin(x * 0.05 * (c + 1)) * cos(y * 0.04 * (3 - c)));
    }
    return rgb;
}

static int pixel(const uint8_t *rgb, int W, int x, int y) {
    const uint8_t *p = rgb + ((size_t)y * W + x) * 3;
    return p[0] << 16 | p[1] << 8 | p[2];
}

static const Terminal PLAIN = {.is = true, .columns = 80, .rows = 24};
static const Terminal CELLS = {.is = true, .columns = 100, .rows = 40, .cell_w = 8, .cell_h = 16};

static void draw(Tally *t, Screen *s, const uint8_t *rgb, int W, int H, const char *text, ShowWay way,
                 const Terminal *on, int row) {
    Text out = {0};
    Err e;
    EXPECT(t, show_picture(&out, rgb, W, H, text, strlen(text), way, on, &e) == 0, "%s", e.text);
    screen_init(s, on->rows, on->columns, row);
    screen_feed(s, out.data, out.len);
    EXPECT(t, s->unknown == 0, "%d things that the screen does not know", s->unknown);
    EXPECT(t, s->front == -1 && s->back == -1, "colours stay behind");
    EXPECT(t, s->column == 0, "the cursor ends at column %d", s->column);
    text_free(&out);
}

// ---------------------------------------------------------------------------------------------------------

static void blocks(Tally *t) {
    static Screen s;
    for (int round = 0; round < 20; round++) {
        const int W = 1 + random_below(40), H = 1 + random_below(40);
        uint8_t *rgb = paint(W, H, NOISE);
        draw(t, &s, rgb, W, H, "", SHOW_BLOCKS, &PLAIN, 0);
        int wrong = 0;
        for (int y = 0; y < H; y++) for (int x = 0; x < W; x++) {
            const Cell c = s.cell[y / 2][x];
            wrong += c.cp != 0x2580 || (y & 1 ? c.back : c.front) != pixel(rgb, W, x, y);
        }
        for (int x = 0; H % 2 && x < W; x++) wrong += s.cell[H / 2][x].back != -1;
        for (int y = 0; y < 24; y++) for (int x = 0; x < 80; x++)
            wrong += (x >= W || y >= (H + 1) / 2) && s.cell[y][x].cp != ' ';
        EXPECT(t, wrong == 0, "%d x %d: %d pixels are wrong", W, H, wrong);
        EXPECT(t, s.row == (H + 1) / 2, "the cursor ends in row %d", s.row);
        if (!round) {   // the comparison sees one changed bit
            rgb[0] ^= 1;
            EXPECT(t, s.cell[0][0].front != pixel(rgb, W, 0, 0), "a changed pixel is not seen");
        }
        free(rgb);
    }
    // Shrunk four times: each pixel is the mean of sixteen.
    uint8_t *rgb = paint(160, 120, NOISE);
    draw(t, &s, rgb, 160, 120, "", SHOW_BLOCKS, &PLAIN, 0);
    int worst = 0;
    for (int y = 0; y < 30; y++) for (int x = 0; x < 40; x++) for (int c = 0; c < 3; c++) {
        double mean = 0;
        for (int i = 0; i < 16; i++) mean += rgb[((size_t)(4 * y + i / 4) * 160 + 4 * x + i % 4) * 3 + c] / 16.0;
        const Cell cell = s.cell[y / 2][x];
        const int got = (y & 1 ? cell.back : cell.front) >> (16 - 8 * c) & 255, off = abs(got - (int)floor(mean + 0.5));
        if (off > worst) worst = off;
    }
    EXPECT(t, worst == 0, "shrinking is off by %d", worst);
    free(rgb);
}

static double psnr(const Screen *s, const uint8_t *rgb) {
    double sum = 0;
    for (int i = 0; i < s->w * s->h; i++) for (int c = 0; c < 3; c++) {
        const double off = (s->px[i] >> (16 - 8 * c) & 255) - rgb[3 * i + c];
        sum += s->px[i] < 0 ? INFINITY : off * off;
    }
    return 10 * log10(255.0 * 255 * s->w * s->h * 3 / sum);
}

// The mean over 8 x 8 pixels, which is what dithering keeps right.
static double worst_mean(const Screen *s, const uint8_t *rgb) {
    double worst = 0;
    for (int y = 0; y + 8 <= s->h; y += 8) for (int x = 0; x + 8 <= s->w; x += 8) for (int c = 0; c < 3; c++) {
        double off = 0;
        for (int i = 0; i < 64; i++) {
            const int at = (y + i / 8) * s->w + x + i % 8;
            off += (s->px[at] >> (16 - 8 * c) & 255) - rgb[3 * at + c];
        }
        if (fabs(off / 64) > worst) worst = fabs(off / 64);
    }
    return worst;
}

static void sixel(Tally *t) {
    static Screen s;
    // Colours that percents can say, few of them: exact, at every height within a band.
    for (int H = 1; H <= 13; H++) {
        uint8_t *rgb = paint(31, H, FLAT);
        draw(t, &s, rgb, 31, H, "", SHOW_SIXEL, &CELLS, 0);
        EXPECT(t, s.pictures == 1 && s.w == 31 && s.h == H && !not_finite((float)(s.px[0])) && isinf(psnr(&s, rgb)),
               "31 x %d: %g dB", H, psnr(&s, rgb));
        EXPECT(t, s.row == ((H + 5) / 6 * 6 + 15) / 16, "height %d: the cursor ends in row %d", H, s.row);
        free(rgb);
        screen_free(&s);
    }
    uint8_t *rgb = paint(300, 200, SMOOTH);
    draw(t, &s, rgb, 300, 200, "", SHOW_SIXEL, &CELLS, 0);
    const double noise = psnr(&s, rgb), mean = worst_mean(&s, rgb);
    // measured: 27.5 dB, 12.0 where it is brightest; Pillow's quantize(256) with the same dithering: 26.0 dB, 25.8
    EXPECT(t, noise > 27 && noise < 60, "smooth picture: %g dB", noise);
    EXPECT(t, mean < 14, "smooth picture: the mean of 8 x 8 pixels is off by %g", mean);
    for (int i = 0; i < 300 * 200 * 3; i++) rgb[i] = 255 - rgb[i];
    EXPECT(t, psnr(&s, rgb) < 20, "another picture looks the same: %g dB", psnr(&s, rgb));
    free(rgb);
    screen_free(&s);
}

static void kitty(Tally *t) {
    static Screen s;
    for (int round = 0; round < 10; round++) {
        const int W = 1 + random_below(380), H = 1 + random_below(300);
        uint8_t *rgb = paint(W, H, round % 3);
        draw(t, &s, rgb, W, H, "", SHOW_KITTY, &CELLS, 0);
        int wrong = s.w != W || s.h != H;
        for (int i = 0; !wrong && i < W * H; i++) wrong += s.px[i] != pixel(rgb, W, i % W, i / W);
        EXPECT(t, wrong == 0 && s.pictures == 1, "%d x %d: %d pixels are wrong", W, H, wrong);
        EXPECT(t, s.over_columns == (W + 7) / 8 && s.over_rows == (H + 15) / 16 && s.row == s.over_rows,
               "%d x %d in %d x %d cells", W, H, s.over_columns, s.over_rows);
        free(rgb);
        screen_free(&s);
    }
}

static void characters(Tally *t) {
    static Screen s;
    uint8_t *rgb = calloc(20 * 4, 3);
    for (int i = 0; i < 20 * 4; i++) memset(rgb + 3 * i, i % 20 * 255 / 19, 3);   // dark to bright
    draw(t, &s, rgb, 20, 4, "", SHOW_CHARACTERS, &PLAIN, 0);
    EXPECT(t, !strcmp(screen_text(&s, 0, 0), "  ..::--==++**##%%@@") && s.row == 2, "%s", screen_text(&s, 0, 0));
    free(rgb);
}

// ---------------------------------------------------------------------------------------------------------

static void beside(Tally *t) {
    static Screen s;
    uint8_t *rgb = paint(80, 64, SMOOTH);
    const char *text = "two cats on a red couch\nwith two remote controls that lie between them and are not in use\n";
    // At the top of the screen and at its bottom, where it has to scroll first.
    for (int way = SHOW_CHARACTERS; way <= SHOW_KITTY; way++) for (int row = 0; row < 40; row += 39) {
        draw(t, &s, rgb, 80, 64, text, (ShowWay)way, &CELLS, row);
        // 80 x 64 pixels in cells of 8 x 16; as dots, 50 x 40 in half cells; sixels come six rows at a time
        const bool dots = way == SHOW_SIXEL || way == SHOW_KITTY;
        const int rows = !dots ? 20 : way == SHOW_SIXEL ? 5 : 4, at = (dots ? 10 : 50) + 2;
        const int top = row ? 39 - rows : 0;
        EXPECT(t, !strcmp(screen_text(&s, top, at), "two cats on a red couch"), "way %d, row %d: '%s'", way, row,
               screen_text(&s, top, at));
        EXPECT(t, !strncmp(screen_text(&s, top + 1, at), "with two remote controls that", 29), "way %d: '%s'", way,
               screen_text(&s, top + 1, at));
        if (dots) EXPECT(t, s.at_row == top && s.at_column == 0 && s.row == top + rows,
                         "way %d: picture in row %d, cursor in row %d", way, s.at_row, s.row);
        screen_free(&s);
    }
    free(rgb);

    // More lines than the picture has rows: the rest goes below. On a narrow terminal, all of it.
    rgb = paint(4, 4, FLAT);
    draw(t, &s, rgb, 4, 4, "a\nb\nc\nd", SHOW_BLOCKS, &PLAIN, 0);
    EXPECT(t, !strcmp(screen_text(&s, 1, 6), "b") && !strcmp(screen_text(&s, 2, 0), "c") &&
              !strcmp(screen_text(&s, 3, 0), "d") && s.row == 4, "the rest below: row %d", s.row);
    Terminal narrow = PLAIN;
    narrow.columns = 40;
    draw(t, &s, rgb, 4, 4, "a b\n", SHOW_BLOCKS, &narrow, 0);
    EXPECT(t, !strcmp(screen_text(&s, 2, 0), "a b") && s.row == 3, "narrow: '%s'", screen_text(&s, 2, 0));
    // Sixels on cells of unknown size could cover it.
    draw(t, &s, rgb, 4, 4, "a b\n", SHOW_SIXEL, &PLAIN, 0);
    EXPECT(t, !strcmp(screen_text(&s, s.row - 1, 0), "a b"), "unknown cells: '%s'", screen_text(&s, s.row - 1, 0));
    screen_free(&s);

    // A column of 78 - 4 - 1 cells: words longer than it, wide characters.
    Text text2 = {0};
    for (int i = 0; i < 100; i++) text_add(&text2, "x", 1);
    draw(t, &s, rgb, 4, 4, text2.data, SHOW_BLOCKS, &PLAIN, 0);
    EXPECT(t, strlen(screen_text(&s, 0, 6)) == 73 && strlen(screen_text(&s, 1, 6)) == 27, "a long word: %zu + %zu",
           strlen(screen_text(&s, 0, 6)), strlen(screen_text(&s, 1, 6)));
    text2.len = 0;
    for (int i = 0; i < 50; i++) text_add(&text2, "\xE7\x8C\xAB", 3);
    draw(t, &s, rgb, 4, 4, text2.data, SHOW_BLOCKS, &PLAIN, 0);
    int n = 0;
    for (int c = 6; c < 80; c++) n += s.cell[0][c].cp == 0x732B;
    EXPECT(t, n == 36, "%d wide characters in 73 cells", n);
    text_free(&text2);
    free(rgb);
}

// Any size on any terminal stays within bounds, and its shape is kept as far as cells allow.
static void sizes(Tally *t) {
    static Screen s;
    const int side[] = {1, 2, 7, 100, 3000, 40000};
    for (int way = SHOW_CHARACTERS; way <= SHOW_KITTY; way++)
        for (int i = 0; i < 36; i++) {
            const int W = side[i % 6], H = side[i / 6];
            if ((int64_t)W * H > 9000000) continue;
            uint8_t *rgb = calloc((size_t)W * H, 3);
            Terminal on = i % 2 ? PLAIN : CELLS;
            draw(t, &s, rgb, W, H, "", (ShowWay)way, &on, 0);
            EXPECT(t, s.row <= 21 && s.scrolled == 0, "%d x %d, way %d: %d rows", W, H, way, s.row);
            if (s.pictures)
                EXPECT(t, s.w <= on.columns / 2 * 10 && s.h <= 400 && s.w <= W && s.h <= H, "%d x %d", s.w, s.h);
            if (s.pictures && s.w > 20 && s.h > 20)
                EXPECT(t, fabs((double)s.w / s.h / ((double)W / H) - 1) < 0.05, "%d x %d as %d x %d", W, H, s.w, s.h);
            free(rgb);
            screen_free(&s);
        }
    Terminal tiny = {.is = true, .columns = 1, .rows = 1};
    uint8_t *rgb = calloc(100 * 100, 3);
    for (int way = SHOW_CHARACTERS; way <= SHOW_KITTY; way++) {
        draw(t, &s, rgb, 100, 100, "x", (ShowWay)way, &tiny, 0);
        screen_free(&s);
    }
    free(rgb);
}

// ---------------------------------------------------------------------------------------------------------

static void answers(Tally *t) {
    static const struct { const char *bytes; bool complete, kitty, sixel; int w, h; } CASES[] = {
        {"", 0, 0, 0, 0, 0},
        {"\x1b[?62;4;22c", 1, 0, 1, 0, 0},
        {"\x1b[?62;22;4c", 1, 0, 1, 0, 0},
        {"\x1b[?62;22c", 1, 0, 0, 0, 0},
        {"\x1b[?4;6c", 1, 0, 0, 0, 0},           // a VT132, the 4 is its name
        {"\x1b[?64;44;41c", 1, 0, 0, 0, 0},
        {"\x1b[?62;4;22", 0, 0, 0, 0, 0},        // not all there yet
        {"\x1b_Gi=31;OK\x1b\\\x1b[?62c", 1, 1, 0, 0, 0},
        {"\x1b_Gi=31;ENOTSUP:no\x1b\\\x1b[?62c", 1, 0, 0, 0, 0},
        {"\x1b_Gi=31;OK\x1b", 0, 0, 0, 0, 0},
        {"\x1b_Gi=31;OK\x1b\\\x1b[6;20;10t\x1b[?62;4c", 1, 1, 1, 10, 20},
        {"\x1b[6;0;10t\x1b[?1;2c", 1, 0, 0, 0, 0},
        {"\x1b[6;99999999999999;10t\x1b[?1;2c", 1, 0, 0, 0, 0},
        {"\x1b[6;20;10;3;4;5t\x1b[?1;2c", 1, 0, 0, 0, 0},
        {"abc\x1b[A\x1b[?1;2c", 1, 0, 0, 0, 0},  // somebody types meanwhile
        {"\x1b\x1b[[\x1b_\x1b[?c", 1, 0, 0, 0, 0},
    };
    for (size_t i = 0; i < sizeof CASES / sizeof *CASES; i++) {
        Terminal on = {0};
        const bool complete = terminal_understand(&on, CASES[i].bytes, strlen(CASES[i].bytes));
        EXPECT(t, complete == CASES[i].complete && on.kitty == CASES[i].kitty && on.sixel == CASES[i].sixel &&
                  on.cell_w == CASES[i].w && on.cell_h == CASES[i].h, "case %zu: %d, kitty %d, sixel %d, %d x %d", i,
               complete, on.kitty, on.sixel, on.cell_w, on.cell_h);
    }
}

// One terminal that answers `answer` in parts of `part` bytes (nothing if NULL); the child says what it understood.
static void ask(Tally *t, const char *answer, size_t part, const char *name, int wait_ms, const char *want) {
    Pty p;
    const int side = pty_start(&p, 40, 100, 0, 0);
    if (side == 1) {
        Terminal on;
        setenv("TERM", name, 1);
        terminal_ask(&on, wait_ms);
        printf("is=%d kitty=%d sixel=%d %dx%d cell=%dx%d\n", on.is, on.kitty, on.sixel, on.columns, on.rows, on.cell_w,
               on.cell_h);
        exit(0);
    }
    struct termios after;
    const bool asked = strcmp(name, "dumb") != 0;
    if (asked) EXPECT(t, pty_wait(&p, "\x1b[c"), "no question came");
    for (size_t i = 0; answer && i < strlen(answer); i += part) {
        if (write(p.fd, answer + i, strlen(answer + i) < part ? strlen(answer + i) : part) < 0) break;
        usleep(5000);
    }
    pty_end(&p);
    EXPECT(t, memmem(p.seen.data, p.seen.len, want, strlen(want)), "'%s' is not in '%s'", want, p.seen.data);
    EXPECT(t, asked || !memchr(p.seen.data, '\x1b', p.seen.len), "it was asked: %s", p.seen.data);
    EXPECT(t, tcgetattr(p.fd, &after) == 0 && (after.c_lflag & ECHO) && (after.c_lflag & ICANON),
           "the terminal is not as it was");
    pty_close(&p);
}

// A signal while it waits: the program ends, the terminal is as before. The slave is held open to look at it.
static void interrupted(Tally *t) {
    Pty p;
    const int side = pty_start(&p, 40, 100, 0, 0);
    if (side == 1) {
        Terminal on;
        setenv("TERM", "xterm", 1);
        terminal_ask(&on, 20000);
        printf("survived\n");
        exit(0);
    }
    const int slave = open(ptsname(p.fd), O_RDWR | O_NOCTTY);
    EXPECT(t, pty_wait(&p, "\x1b[c"), "no question came");
    struct termios during, after;
    tcgetattr(slave, &during);
    EXPECT(t, !(during.c_lflag & ECHO), "the answer would be echoed");
    pty_type(&p, "\x03");
    pty_end(&p);
    EXPECT(t, WIFSIGNALED(p.status) && WTERMSIG(p.status) == SIGINT, "status %d", p.status);
    tcgetattr(slave, &after);
    EXPECT(t, (after.c_lflag & ECHO) && (after.c_lflag & ICANON), "the terminal was left raw");
    close(slave);
    pty_close(&p);
}

static void asking(Tally *t) {
    Pty p;
    const int side = pty_start(&p, 1, 1, 0, 0);
    if (side == 1) exit(0);
    if (side < 0) {
        SKIP(t, "no pseudo-terminals here");
        return;
    }
    pty_end(&p);
    pty_close(&p);
    const char *all = "\x1b_Gi=31;OK\x1b\\\x1b[6;20;10t\x1b[?62;4c";
    ask(t, all, 99, "xterm", 20000, "is=1 kitty=1 sixel=1 100x40 cell=10x20");
    ask(t, all, 1, "xterm", 20000, "is=1 kitty=1 sixel=1 100x40 cell=10x20");
    ask(t, "\x1b[?1;2c", 99, "xterm", 20000, "is=1 kitty=0 sixel=0 100x40 cell=0x0");
    ask(t, "\x1b[?62;4c", 99, "vt340", 20000, "sixel=1");
    ask(t, NULL, 1, "xterm", 100, "is=1 kitty=0 sixel=0 100x40 cell=0x0");
    ask(t, NULL, 1, "dumb", 100, "is=1 kitty=0 sixel=0 100x40 cell=0x0");
    Text flood = {0};
    for (int i = 0; i < 500; i++) text_add(&flood, "\x1b[Agarbage\n", 11);
    ask(t, flood.data, 500, "xterm", 3000, "is=1 kitty=0 sixel=0");
    text_free(&flood);
    interrupted(t);
}

static void ways(Tally *t) {
    Terminal on = {.is = true};
    setenv("TERM", "xterm", 1);
    unsetenv("NO_COLOR");
    EXPECT(t, show_way(&on) == SHOW_BLOCKS, "plain");
    on.sixel = true;
    EXPECT(t, show_way(&on) == SHOW_SIXEL, "sixel");
    on.kitty = true;
    EXPECT(t, show_way(&on) == SHOW_KITTY, "both");
    setenv("NO_COLOR", "", 1);
    EXPECT(t, show_way(&on) == SHOW_KITTY, "NO_COLOR set to nothing");
    setenv("NO_COLOR", "1", 1);
    EXPECT(t, show_way(&on) == SHOW_CHARACTERS, "NO_COLOR");
    unsetenv("NO_COLOR");
    setenv("TERM", "dumb", 1);
    EXPECT(t, show_way(&on) == SHOW_CHARACTERS, "dumb");
}

int main(void) {
    Tally t = {0};
    blocks(&t);
    sixel(&t);
    kitty(&t);
    characters(&t);
    beside(&t);
    sizes(&t);
    ways(&t);
    answers(&t);
    asking(&t);
    return tally_close(&t);
}
