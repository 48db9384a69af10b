// test/test_progress.c: the text of the progress bar: rate, time left, every width; that it is off where it must be;
// the line about speed; the bandwidth reading gives a rate, or 0. The bar on a terminal is in test_telling.sh.

#include "../bandwidth.h"
#include "../progress.h"
#include "../timing.h"
#include "check.h"

static const struct { int done, total; double seconds; const char *want; } BARS[] = {
    {3, 10, 2, "[#########.....................] 3/10  1.5 images/s  0:05 left"},
    {0, 10, 2, "[..............................] 0/10"},
    {2, 2000, 25, "[#.............................] 2/2000  12.5 s/image  6:56:15 left"},
    {2, 0, 25, "2 done  12.5 s/image"},
    {10, 10, 5, "[##############################] 10/10  2.0 images/s  0:00 left"},
};

static const struct { uint64_t step_bytes, left_out; double memory; const char *want; } SPEEDS[] = {
    {5000000000, 0, 4e10, "speed: 5.00 tokens/s, decoding read 25.00 GB/s of weights, 62 % of the 40.00 GB/s that "
                          "memory gave in a quick test"},
    {5000000000, 50000000000, 4e10, "speed: 5.00 tokens/s, decoding read 20.00 GB/s of weights (20 % left out: zero "
                                    "neurons), 50 % of the 40.00 GB/s that memory gave in a quick test"},
    {2000000, 0, 0, "speed: 5.00 tokens/s, decoding read 0.01 GB/s of weights (2.00 MB, which caches hold)"},
};

int main(void) {
    Tally t = {0};
    char text[128], line[256];
    Progress p;
    for (size_t i = 0; i < sizeof BARS / sizeof *BARS; i++) {
        p = (Progress){.on = true, .done = BARS[i].done, .total = BARS[i].total, .start = 100};
        progress_text(text, sizeof text, &p, 100 + BARS[i].seconds, 80);
        EXPECT(&t, !strcmp(text, BARS[i].want), "'%s' instead of '%s'", text, BARS[i].want);
    }
    p = (Progress){.done = 123456789, .total = 2000000000, .start = 0};
    for (int width = 1; width < 200; width++) {
        memset(text, 'x', sizeof text);
        progress_text(text, sizeof text, &p, 1e9, width);
        EXPECT(&t, strlen(text) < (size_t)width && strlen(text) < sizeof text, "width %d: %zu", width, strlen(text));
    }
    progress_start(&p, 5, false);
    EXPECT(&t, !p.on && !p.drawn, "not wanted");
    progress_step(&p);
    progress_clear(&p);
    EXPECT(&t, p.done == 1 && !p.drawn, "counts, draws nothing");
    progress_start(&p, 1, true);
    EXPECT(&t, !p.on, "one image needs no bar");
    const double rate = read_bandwidth(1, 0.001);
    EXPECT(&t, rate == 0 || (rate > 1e6 && rate < 1e15), "%g bytes/s", rate);

    const Timing timing = {.passes = 50, .decode_seconds = 10};
    for (size_t i = 0; i < sizeof SPEEDS / sizeof *SPEEDS; i++) {
        timing_speed(line, sizeof line, &timing, SPEEDS[i].step_bytes, SPEEDS[i].left_out,
                     SPEEDS[i].memory);
        EXPECT(&t, !strcmp(line, SPEEDS[i].want), "'%s' instead of '%s'", line, SPEEDS[i].want);
    }
    timing_speed(line, 20, &timing, 2000000, 0, 0);
    EXPECT(&t, strlen(line) == 19, "cut: %s", line);
    return tally_close(&t);
}
