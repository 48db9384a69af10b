// progress.c: the progress bar (see progress.h). Plain ASCII; one escape sequence, which clears the rest of a line.

#include "progress.h"

#include "common.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

static int columns(void) {
    struct winsize w;
    return ioctl(STDERR_FILENO, TIOCGWINSZ, &w) == 0 && w.ws_col > 0 ? w.ws_col : 80;
}

void progress_text(char *out, size_t size, const Progress *p, double now, int width) {
    const double elapsed = now - p->start;
    const double rate = elapsed > 0 ? p->done / elapsed : 0;
    char numbers[128], speed[48] = "", left[48] = "";
    if (rate >= 1) snprintf(speed, sizeof speed, "  %.1f images/s", rate);
    else if (rate > 0) snprintf(speed, sizeof speed, "  %.1f s/image", 1 / rate);
    if (p->total && rate > 0) {
        const double rest = (p->total - p->done) / rate;
        const long s = rest < 1e8 ? (long)(rest + 0.5) : 100000000;
        if (s >= 3600) snprintf(left, sizeof left, "  %ld:%02ld:%02ld left", s / 3600, s / 60 % 60, s % 60);
        else snprintf(left, sizeof left, "  %ld:%02ld left", s / 60, s % 60);
    }
    if (p->total) snprintf(numbers, sizeof numbers, "%d/%d%s%s", p->done, p->total, speed, left);
    else snprintf(numbers, sizeof numbers, "%d done%s", p->done, speed);
    if ((size_t)width > size) width = (int)size;
    int bar = width - 1 - (int)strlen(numbers) - 3;      // what is left for "[...] "
    bar = !p->total || bar < 5 ? 0 : bar < 30 ? bar : 30;
    char drawing[32] = "";
    for (int i = 0; i < bar; i++) drawing[i] = (long long)i * p->total < (long long)p->done * bar ? '#' : '.';
    drawing[bar] = 0;
    snprintf(out, (size_t)width, "%s%s%s%s", bar ? "[" : "", drawing, bar ? "] " : "", numbers);
}

static void draw(Progress *p) {
    char text[128];
    p->last = seconds_now();
    progress_text(text, sizeof text, p, p->last, columns());
    fprintf(stderr, "\r%s\033[K", text);
    p->drawn = true;
}

void progress_start(Progress *p, int total, bool wanted) {
    const char *term = getenv("TERM");
    *p = (Progress){.on = wanted && total != 1 && isatty(STDERR_FILENO) && term && *term && strcmp(term, "dumb"),
                    .total = total, .start = seconds_now()};
    if (p->on && total) draw(p);
}

void progress_step(Progress *p) {
    p->done++;
    if (p->on && (!p->drawn || seconds_now() - p->last > 0.1 || p->done == p->total)) draw(p);
}

void progress_clear(Progress *p) {
    if (p->drawn) fputs("\r\033[K", stderr);
    p->drawn = false;
}
