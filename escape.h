// escape.h: text from strangers (file names, prompts, answers, messages that quote them), written so that no terminal
// obeys it.
//
// What a terminal would obey, or what would make text look like something else, becomes visible:
//
//     C0 controls and DEL        caret notation as of cat -v: ESC is ^[, newline ^J, DEL ^?
//     C1 controls, bidirectional <U+009B>, <U+202E>: U+0080..009F, U+202A..202E, U+2066..2069
//     bytes that are not UTF-8   \xFF
//
// Everything else stays as it is. The notation is for eyes: it cannot be turned back (a file may be called "^[").
#ifndef ESCAPE_H
#define ESCAPE_H

#include "common.h"

// Appends n bytes of text to out in the visible form.
void escape_add(Text *out, const char *text, size_t n);

// Writes text to f: visible when f is a terminal, byte for byte elsewhere.
void escape_write(FILE *f, const char *text, size_t n);

// "before: text\n" to f, both in the visible form when f is a terminal: for messages.
void escape_line(FILE *f, const char *before, const char *text);

#endif
