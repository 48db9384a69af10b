// progress.h: the bar on a terminal that says how far a list of images is, how fast it goes and how long it takes.
//
//     progress_start -> after each image: progress_step -> before anything else goes to the terminal: progress_clear
#ifndef PROGRESS_H
#define PROGRESS_H

#include <stdbool.h>
#include <stddef.h>

typedef struct {
    bool on;               // otherwise nothing is ever written
    bool drawn;            // the bar stands in the line of the cursor
    int done, total;       // total 0: nobody knows
    double start, last;    // seconds; last: when it was drawn
} Progress;

// On when stderr is a terminal that can clear a line, `wanted` holds and there is more than one image, or an unknown
// number of them (total 0).
void progress_start(Progress *p, int total, bool wanted);
// One more image is done. Draws at most ten times a second.
void progress_step(Progress *p);
// Takes the bar away, so that other text can be written; it comes back with the next progress_step. Also at the end.
void progress_clear(Progress *p);

// The bar as text, at most width - 1 characters, NUL-terminated: "[###.......] 3/10  1.2 images/s  0:06 left".
void progress_text(char *out, size_t size, const Progress *p, double now, int width);

#endif
