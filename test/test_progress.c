// test/test_progress.c: the text of the progress bar: fits every width, grows, says rate and time; and that it is off
// where it must be. The bar on a terminal is in test_telling.sh. Also: the
// bandwidth test gives a rate, or 0; the line about speed.

#include "../bandwidth.h"
#include "../progress.h"
#include "../timing.h"
#include "check.h"

int main(void) {
    Tally t = {0};
    char text[128];
    Progress p = {.on = true, .done = 3, .total = 10, .start = 100};
    progress_text(text, sizeof text, &p, 102, 80);
    EXPECT(&t, !strcmp(text, "[#########.....................] 3/10  1.5 images/s  0:05 left"), "%s", text);
    p.done = 0;
    progress_text(text, sizeof text, &p, 102, 80);
    EXPECT(&t, !strcmp(text, "[..............................] 0/10"), "%s", text);
    p = (Progress){.done = 2, .total = 2000, .start = 0};
    progress_text(text, sizeof text, &p, 25, 80);
    EXPECT(&t, !strcmp(text, "[#.............................] 2/2000  12.5 s/image  6:56:15 left"), "%s", text);
    p.total = 0;
    progress_text(text, sizeof text, &p, 25, 80);
    EXPECT(&t, !strcmp(text, "2 done  12.5 s/image"), "%s", text);
    p = (Progress){.done = 10, .total = 10, .start = 0};
    progress_text(text, sizeof text, &p, 5, 80);
    EXPECT(&t, !strcmp(text, "[##############################] 10/10  2.0 images/s  0:00 left"), "%s", text);
    for (int width = 1; width < 200; width++) {
        p = (Progress){.done = 123456789, .total = 2000000000, .start = 0};
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

    char line[256];
    const Timing timing = {.passes = 50, .decode_seconds = 10};
    timing_speed(line, sizeof line, &timing, 5000000000, 4e10);
    EXPECT(&t, !strcmp(line, "speed: 5.00 tokens/s, decoding read 25.00 GB/s of weights, 62 % of the 40.00 GB/s that "
                             "memory gave in a quick test"), "%s", line);
    timing_speed(line, sizeof line, &timing, 2000000, 0);
    EXPECT(&t, !strcmp(line, "speed: 5.00 tokens/s, decoding read 0.01 GB/s of weights (2.00 MB, which caches hold)"),
           "%s", line);
    timing_speed(line, 20, &timing, 2000000, 0);
    EXPECT(&t, strlen(line) == 19, "cut: %s", line);
    return tally_close(&t);
}
