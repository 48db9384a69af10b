// program.h: what the parts of the program share, all of it on top of the library: options, model, how to answer.
//
// In order: the state, messages, looking at an image, asking, the modes that are no captions.
#ifndef PROGRAM_H
#define PROGRAM_H

#include "dump.h"
#include "libblip2.h"
#include "options.h"
#include "progress.h"
#include "terminal.h"
#include "timing.h"
#include "turns.h"

enum { EXIT_OK = 0, EXIT_INPUT = 1, EXIT_USAGE = 2, EXIT_MODEL = 3, EXIT_INTERRUPTED = 130 };

typedef struct {
    Options o;
    blip2 *model;
    blip2_info info;
    blip2_options how;
    Turns turns;                    // those of --context, and during an image those about it
    Dump dump;
    Timing timing;
    Progress progress;
    Terminal terminal;              // for --show
    double load_seconds;
} Program;

void complain(const char *text);    // a line on stderr
// A line on stderr that --quiet leaves out; takes the progress bar away.
void remark(Program *p, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

// ask.c: name is a file or a URL, or "-" for standard input. Warnings go to stderr; *out is to be freed with
// blip2_image_free.
int load_image(blip2_image *out, Program *p, const char *name, Err *e);
// The image into the device's memory, in place of the one before; what -v says of its time.
int encode_image(Program *p, const blip2_image *im, Err *e);
// A raw prompt, or NULL for the model's own. Returns 0, BLIP2_STOPPED, or -1 with e.
int ask_prompt(Program *p, const char *prompt, blip2_callback *callback, void *arg, Err *e);
// A question behind all turns so far; its first answer becomes a turn. *prompt is what it came to.
int ask_question(Program *p, Text *prompt, const char *question, blip2_callback *callback, void *arg, Err *e);

// --show: draws the image on a terminal with the lines of text (n bytes, as output.c writes them) beside it.
int show_image(Program *p, const blip2_image *im, const char *text, size_t n, Err *e);

// chat.c: --chat; returns the exit code.
int chat(Program *p);

// records.c: --tokenize and --detokenize; returns the exit code.
int text_records(const Program *p);

#endif
