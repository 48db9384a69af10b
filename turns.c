// turns.c: earlier questions and answers in front of the next question (see turns.h).
//
// Not here: tokens, the model.

#include "turns.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

int turns_add(Turns *t, const char *question, const char *answer, Err *e) {
    if (t->n == t->cap) {
        const int cap = t->cap ? 2 * t->cap : 16;
        Turn *turn = cap < 1 << 24 ? realloc(t->turn, (size_t)cap * sizeof *turn) : NULL;
        if (!turn) return fail(e, "out of memory for %d turns", cap);
        t->turn = turn;
        t->cap = cap;
    }
    const Turn turn = {strdup(question), strdup(answer)};
    if (turn.question && turn.answer) {
        t->turn[t->n++] = turn;
        return 0;
    }
    free(turn.question);
    free(turn.answer);
    return fail(e, "out of memory for a turn");
}

static bool is_utf8(const char *text, size_t n) {
    for (size_t i = 0, len; i < n; i += len)
        if (!(len = (size_t)utf8_next((const uint8_t *)text + i, n - i, NULL))) return false;
    return true;
}

static int read_line(Turns *t, char *line, size_t n, Err *e) {
    while (n && (line[n - 1] == '\n' || line[n - 1] == '\r')) line[--n] = 0;
    if (n == 0) return 0;
    char *tab = memchr(line, '\t', n);
    if (strlen(line) != n || !is_utf8(line, n)) return fail(e, "the text is not UTF-8, or has a NUL byte");
    if (!tab) return fail(e, "expected a question, a tab and its answer, got '%.40s'", line);
    *tab = 0;
    return turns_add(t, line, tab + 1, e);
}

int turns_read(Turns *t, const char *path, Err *e) {
    const bool from_stdin = !strcmp(path, "-");
    FILE *f = from_stdin ? stdin : fopen(path, "re");
    if (!f) return fail(e, "%s: cannot open: %s", path, strerror(errno));
    char *line = NULL;
    size_t room = 0;
    ssize_t n;
    int bad = 0;
    for (long number = 1; !bad && (n = getline(&line, &room, f)) >= 0; number++)
        if ((bad = read_line(t, line, (size_t)n, e))) fail_in(e, "%s, line %ld", path, number);
    if (!bad && !feof(f)) bad = fail(e, "%s: cannot be read: %s", path, strerror(errno));
    free(line);
    if (!from_stdin) fclose(f);
    return bad;
}

void turns_cut(Turns *t, int n) {
    for (; t->n > n; t->n--) {
        free(t->turn[t->n - 1].question);
        free(t->turn[t->n - 1].answer);
    }
    t->first = 0;
}

void turns_free(Turns *t) {
    turns_cut(t, 0);
    free(t->turn);
    *t = (Turns){0};
}

static void write_prompt(Text *prompt, const Turns *t, int first, const char *question) {
    prompt->len = 0;
    for (int i = first; i < t->n; i++) {
        const char *answer = t->turn[i].answer;
        const size_t n = strlen(answer);
        text_printf(prompt, "Question: %s Answer: %s%s ", t->turn[i].question, answer,
                    n && answer[n - 1] == '.' ? "" : ".");
    }
    text_printf(prompt, "Question: %s Answer:", question);
}

int turns_prompt(Text *prompt, Turns *t, const char *question, int most, TokenCount *count, void *arg, Err *e) {
    // The fewest turns that must go, by halving: each step looks at one prompt, whatever the number of turns.
    int lo = t->first, hi = t->n;
    for (int first = lo; lo < hi; first = lo + (hi - lo) / 2) {
        write_prompt(prompt, t, first, question);
        if (text_check(prompt, e)) return -1;
        const int tokens = count(arg, prompt->data, prompt->len);
        if (tokens == -2) return fail(e, "out of memory for a prompt of %zu bytes", prompt->len);
        if (tokens >= 0 && tokens <= most) hi = first;
        else lo = first + 1;
    }
    write_prompt(prompt, t, lo, question);
    if (text_check(prompt, e)) return -1;
    const int dropped = lo - t->first;
    t->first = lo;
    return dropped;
}
