// options_text.c: the table of options as text for people and shells: --help.

#include "options.h"

static const char *const GROUPS[N_GROUPS] = {"model", "input", "asking", "choosing words", "output", "telling"};

void options_help(FILE *f) {
    fprintf(f, "usage: blip2 [options] IMAGE...\n\n"
               "BLIP-2 looks at images and writes text about them, one line per answer on standard output.\n"
               "IMAGE is a file, a URL (http, https), @FILE with a list of images, or - for standard input.\n");
    for (int i = 0; i < N_OPTIONS; i++) {
        const Option *o = &OPTIONS[i];
        char left[64];
        if (!i || o->group != OPTIONS[i - 1].group) fprintf(f, "\n%s:\n", GROUPS[o->group]);
        snprintf(left, sizeof left, "%c%c%s --%s%s%s", o->letter ? '-' : ' ', o->letter ? o->letter : ' ',
                 o->letter ? "," : " ", o->name, o->value ? " " : "", o->value ? o->value : "");
        fprintf(f, "  %-30s %s%s%s%s\n", left, o->help, o->standard ? " [" : "", o->standard ? o->standard : "",
                o->standard ? "]" : "");
    }
    fprintf(f, "\nexit code: 0 all right, 1 some input failed, 2 wrong usage, 3 the model could not be loaded,\n"
               "130 interrupted\n\n"
               "examples:\n"
               "  blip2 -m blip2-opt-2.7b.bin photo.jpg\n"
               "  blip2 -m blip2-opt-2.7b.bin -q 'how many cats are there?' -q 'what are they doing?' photo.jpg\n"
               "  blip2 -m blip2-opt-2.7b.bin --nucleus -c 3 -s 1 --json *.jpg\n");
}
