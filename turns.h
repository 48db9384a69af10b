// turns.h: a conversation about an image, as BLIP-2's language models know it from LAVIS's examples:
//
//     Question: what is it? Answer: a cat. Question: which colour? Answer:
//     |--------- a turn ----------------|  |---- what is asked now ------|
#ifndef TURNS_H
#define TURNS_H

#include "common.h"

typedef struct { char *question, *answer; } Turn;
typedef struct { Turn *turn; int n, cap, first; } Turns;   // those before `first` were dropped. Start with {0}

int turns_add(Turns *t, const char *question, const char *answer, Err *e);
// Adds the turns of a file, "question TAB answer" a line ("-": standard input). Empty lines are skipped.
int turns_read(Turns *t, const char *path, Err *e);
void turns_cut(Turns *t, int n);     // forgets all but the first n, and takes dropped ones back
void turns_free(Turns *t);

// Tokens of a prompt, or -1 when it can be none (too long, say), or -2 when there is no memory to count.
typedef int TokenCount(void *arg, const char *text, size_t n);

// prompt <- all turns that are not dropped and the question. Drops the oldest ones while there are more than `most`
// tokens; with a question that is too long by itself, all. Returns how many were dropped now, or -1 with e.
int turns_prompt(Text *prompt, Turns *t, const char *question, int most, TokenCount *count, void *arg, Err *e);

#endif
