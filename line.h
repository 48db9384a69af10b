// line.h: lines from standard input: with editing and history on a terminal when libedit is there, plain otherwise.
#ifndef LINE_H
#define LINE_H

#include "common.h"

typedef struct Line Line;

// True when somebody types: standard input is a terminal, and standard output or standard error shows it.
bool line_typed(void);

// NULL when there is no memory.
Line *line_open(const char *prompt);
// The next line without its end, valid until the next call, and its length; NULL at the end of input or when *stopped
// was set by a signal handler while waiting (an empty line then follows on the terminal). The prompt is shown, and the
// line becomes history, only when somebody types.
const char *line_read(Line *l, size_t *n, const volatile int *stopped);
void line_close(Line *l);

#endif
