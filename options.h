// options.h: the command line as a table, parsed into one struct. --help, the man page and the completions of the
// shells are printed from the same table (options_text.c), so that they cannot drift from it.
//
// In order: the struct that options_parse fills, the table, what prints it.
#ifndef OPTIONS_H
#define OPTIONS_H

#include "common.h"

enum { MAX_PROMPTS = 256, MAX_STOPS = 64, MAX_BEAMS = 64, MAX_CAPTIONS = 256 };

// UNSET marks what was not given, so that the weight file's default applies.
enum { UNSET = -1 };

typedef struct { const char *text[MAX_PROMPTS]; int n; } TextList;

typedef struct {
    // model
    const char *model;                         // NULL: not given
    const char *device;                        // "auto", "cpu", "cuda" or "cuda:N"; never NULL
    const char *cpu_isa;                       // NULL: the fastest that this processor has
    int threads, ctx;                          // UNSET when not given
    bool verify, info;
    // input
    const char **images;                       // points into argv: paths, "-", "@list.txt", URLs
    int n_images;
    const char *images_from;                   // file with names one a line, "-" for standard input, or NULL
    bool no_exif;
    // asking: at most one of prompts and questions is not empty
    TextList prompts, questions;
    const char *context, *chat;                // file of earlier turns; image to talk about; or NULL
    bool vqa;
    // choosing words
    int beams, captions, max_new, min_new, top_k, no_repeat_ngram;   // UNSET when not given
    double length_penalty, repeat_penalty, top_p, temp;              // NaN when not given
    int64_t seed;                                                    // UNSET when not given
    bool nucleus, distinct;
    TextList stops;                            // at most MAX_STOPS
    // output
    bool stream, show, json, scores, tokenize, detokenize, nul;
    const char *dump;                          // file or NULL
    // telling
    bool verbose, quiet, help, version, man;
    const char *completion;                    // "bash", "zsh", "fish" or NULL
} Options;

// Returns 0, or -1 with one line that says which argument is wrong and what would be right. Whatever contradicts
// itself by the command line alone is refused here. --stream without -b sets beams to 1.
int options_parse(Options *o, int argc, char **argv, Err *e);

// ---------------------------------------------------------------------------------------------------------
// The table.

enum { IN_MODEL, IN_INPUT, IN_ASKING, IN_CHOOSING, IN_OUTPUT, IN_TELLING, N_GROUPS };
enum { KIND_FLAG, KIND_INT, KIND_REAL, KIND_STRING, KIND_TEXTS, KIND_SEED, KIND_ONE_OF };

typedef struct {
    int group;
    char letter;             // short form, or 0
    const char *name;        // long form
    int kind;
    size_t field;            // offset in Options
    double lo, hi;           // range of a number; hi is the room of a list of texts
    const char *value;       // what the argument is called, NULL for flags: FILE and IMAGE are file names, a|b words
    const char *help;
    const char *standard;    // what happens without it, or NULL
} Option;

extern const Option OPTIONS[];
extern const int N_OPTIONS;

// The table as text (options_text.c). shell is "bash", "zsh" or "fish".
void options_help(FILE *f);
void options_man(FILE *f);
void options_completion(FILE *f, const char *shell);

#endif
