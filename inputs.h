// inputs.h: the names of all images that the command line asks for, one after the other.
#ifndef INPUTS_H
#define INPUTS_H

#include "common.h"
#include "options.h"

typedef struct {
    char **names;       // (n) in order; NULL stands for the list on standard input
    int n, cap, next;
    char *line;         // of that list
    size_t room;
    int total;          // -1: not known, since standard input is a list
} Inputs;

// Reads the lists that are files (@FILE, --images-from FILE): names one a line, empty lines skipped. A name in a list
// is a file or a URL, also when it starts with - or @.
int inputs_open(Inputs *in, const Options *o, Err *e);
// The next name, valid until the next call; NULL at the end, or with e->text not empty on a failed read.
const char *inputs_next(Inputs *in, Err *e);
void inputs_free(Inputs *in);

#endif
