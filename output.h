// output.h: answers on standard output, as lines of text, as JSON, or word by word as they come.
#ifndef OUTPUT_H
#define OUTPUT_H

#include "common.h"
#include "libblip2.h"

typedef struct {
    bool json, stream, scores, named;     // named: each line starts with the image's name
    bool terminal;                        // what it would obey is made visible (escape.h)
    const char *image, *question;         // question: NULL when there is none
    uint64_t seed;
    Text *into;                           // takes the finished lines instead of standard output; or NULL
    Text text;                            // what is to be written
    int n;                                // answers so far
    bool started;                         // stream: something of the line was written
} Output;

// A blip2_callback, whose argument is the Output of one prompt.
int output_event(void *output, const blip2_event *event);
// Writes what was gathered, when bad is 0, and makes *o ready for the next prompt. Returns bad, or -1 with e.
int output_end(Output *o, const char *prompt, int bad, Err *e);

// {"image":…, "error":…}, for an image that failed; error may start with its name.
void output_error(const char *image, const char *error);

// Whether all that was written went where it should.
int output_flush(Err *e);

#endif
