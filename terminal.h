// terminal.h: what the terminal behind standard output is and can draw: asked, not guessed.
#ifndef TERMINAL_H
#define TERMINAL_H

#include "common.h"

typedef struct {
    bool is;               // standard output is a terminal; all else below is false or 0 when not
    bool kitty, sixel;     // it said that it knows this graphics protocol
    int columns, rows;     // 80 and 24 when it does not tell
    int cell_w, cell_h;    // pixels of a character cell, 0 when it does not tell
} Terminal;

enum { TERMINAL_WAIT_MS = 1000 };

// Finds out all of it. A terminal that is ours to ask (the controlling terminal, with this program in the foreground;
// TERM neither empty, "dumb" nor "linux") gets the questions and up to wait_ms milliseconds for its answers: they are
// read from /dev/tty with echo off, and what was typed meanwhile is lost. Signals that could end the program are held
// back until the terminal is as it was; so call it before threads are started, which could take them.
void terminal_ask(Terminal *t, int wait_ms);

// Only columns, rows and the cell, which change when the window does; t->cell_* stay when the terminal does not tell.
void terminal_measure(Terminal *t);

// What the n bytes of answers say; true when they are complete. For terminal_ask and its test.
bool terminal_understand(Terminal *t, const char *bytes, size_t n);

#endif
