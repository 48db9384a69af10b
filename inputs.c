// inputs.c: names of images from the command line and from lists (see inputs.h).
//
// Lists in files are read at the start, so that it is known how many there are; a list on standard input is followed
// line by line, as whoever writes it gets on. Not here: what a name stands for.

#include "inputs.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

// Takes name over. NULL is a failed allocation, unless it is the marker of the list on standard input.
static int add(Inputs *in, char *name, bool marker, Err *e) {
    if (in->n == in->cap && (name || marker)) {
        const int cap = in->cap ? 2 * in->cap : 64;
        char **names = cap <= 1 << 28 ? realloc(in->names, (size_t)cap * sizeof *names) : NULL;
        if (names) {
            in->names = names;
            in->cap = cap;
        }
    }
    if (in->n == in->cap || !(name || marker)) {
        free(name);
        return fail(e, "out of memory for the names of %d images", in->n + 1);
    }
    in->names[in->n++] = name;
    return 0;
}

// A line of a list -> the name in it, allocated anew; *empty when there is none
static char *name_of(char *line, size_t n, bool *empty) {
    while (n && (line[n - 1] == '\n' || line[n - 1] == '\r')) line[--n] = 0;
    *empty = *line == 0;
    return *empty ? NULL : !strcmp(line, "-") ? strdup("./-") : strdup(line);
}

static int add_list(Inputs *in, const char *path, Err *e) {
    if (!strcmp(path, "-")) {
        in->total = -1;
        return add(in, NULL, true, e);
    }
    FILE *f = *path ? fopen(path, "re") : NULL;
    if (!f) return fail(e, "%s: cannot open this list of images: %s", path, *path ? strerror(errno) : "it has no name");
    char *line = NULL;
    size_t room = 0;
    ssize_t n;
    int bad = 0;
    while (!bad && (n = getline(&line, &room, f)) >= 0) {
        bool empty;
        char *name = name_of(line, (size_t)n, &empty);
        if (!empty) bad = add(in, name, false, e);
    }
    if (!bad && !feof(f)) bad = fail(e, "%s: cannot read this list of images: %s", path, strerror(errno));
    free(line);
    fclose(f);
    return bad;
}

int inputs_open(Inputs *in, const Options *o, Err *e) {
    *in = (Inputs){0};
    int bad = 0;
    for (int i = 0; i < o->n_images && !bad; i++)
        bad = o->images[i][0] == '@' ? add_list(in, o->images[i] + 1, e) : add(in, strdup(o->images[i]), false, e);
    if (!bad && o->images_from) bad = add_list(in, o->images_from, e);
    if (in->total == 0) in->total = in->n;
    return bad;
}

const char *inputs_next(Inputs *in, Err *e) {
    e->text[0] = 0;
    for (; in->next < in->n; in->next++) {
        if (in->names[in->next]) return in->names[in->next++];
        ssize_t n;
        while ((n = getline(&in->line, &in->room, stdin)) >= 0) {
            while (n && (in->line[n - 1] == '\n' || in->line[n - 1] == '\r')) in->line[--n] = 0;
            if (*in->line) return !strcmp(in->line, "-") ? "./-" : in->line;
        }
        if (!feof(stdin)) fail(e, "cannot read the list of images on standard input: %s", strerror(errno));
    }
    return NULL;
}

void inputs_free(Inputs *in) {
    for (int i = 0; i < in->n; i++) free(in->names[i]);
    free(in->names);
    free(in->line);
    *in = (Inputs){0};
}
