// libblip2_parts.h: what the two halves of the library share: the handle, and how a failure is handed out.
#ifndef LIBBLIP2_PARTS_H
#define LIBBLIP2_PARTS_H

#include "blip2.h"
#include "libblip2.h"
#include "readahead.h"
#include "tokenizer.h"

struct blip2 {
    char *path;
    blip2_settings settings;     // with strings of our own
    char *device_name, *cpu_isa;
    Model model;
    ReadAhead *ahead;            // from blip2_start on, or NULL
    Tokenizer *tokenizer;
    Limits lim;                  // what the settings come to, from blip2_open on
    int ctx, max_ctx;            // tokens of prompt and answer
    const Backend *backend;      // NULL until started
    void *device;
    uint8_t *pixels;             // (S,S,3)
    bool encoded;
    char warning[sizeof ((Err *)0)->text];
    char why_cpu[sizeof ((Err *)0)->text];     // why "auto" took the CPU
};

// Copies the message to *out, unless that is NULL, and returns code.
int failed(blip2_error *out, int code, const Err *e);

#endif
