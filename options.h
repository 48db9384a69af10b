// options.h: the command line as a table, parsed into one struct. --help prints the same table.
#ifndef OPTIONS_H
#define OPTIONS_H

#include "common.h"

enum { MAX_PROMPTS = 256, MAX_BEAMS = 64, MAX_CAPTIONS = 256 };

// UNSET marks what was not given, so that the weight file's default applies.
enum { UNSET = -1 };

typedef struct {
    const char *model, *device, *dump;
    const char *prompts[MAX_PROMPTS];
    int n_prompts;
    int beams, captions, max_new, min_new, top_k, threads, ctx;      // UNSET when not given
    double length_penalty, repeat_penalty, top_p, temp;              // NaN when not given
    int64_t seed;                                                    // UNSET when not given
    bool nucleus, no_exif, json, scores, verify, quiet, verbose, tokenize, detokenize, nul, help, version;
    const char **images;                                             // points into argv
    int n_images;
} Options;

// Returns 0, or -1 with one line that says which argument is wrong and what would be right.
int options_parse(Options *o, int argc, char **argv, Err *e);

void options_help(FILE *f);

#endif
