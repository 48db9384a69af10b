// line.c: lines from standard input (see line.h).
//
// In order: the two ways to read, the API. libedit (BSD licence) is asked for editing, history and completion of file
// names; signals stay ours. Not here: what the lines mean (chat.c).

#include "line.h"

#include <errno.h>
#include <locale.h>
#include <langinfo.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#ifdef HAVE_EDIT
#include <histedit.h>
#endif

struct Line {
    const char *prompt;
    bool typed;
    char *plain;           // of getline
    size_t room;
#ifdef HAVE_EDIT
    EditLine *edit;        // NULL when nobody types or the terminal cannot be edited on
    History *history;
    const volatile int *stopped;
    sigset_t open;         // signals that may come while waiting for a key, and only then
#endif
};

bool line_typed(void) { return isatty(STDIN_FILENO) && (isatty(STDOUT_FILENO) || isatty(STDERR_FILENO)); }

#ifdef HAVE_EDIT
static char *prompt_of(EditLine *edit) {
    Line *l = NULL;
    el_get(edit, EL_CLIENTDATA, &l);
    return (char *)l->prompt;
}

// The next character for libedit: 1, or 0 at the end of input, or -1 when a signal handler set *stopped. The signal can
// come only within ppoll, so that none slips in between a look at *stopped and the waiting.
static int next_key(EditLine *edit, wchar_t *key) {
    Line *l = NULL;
    el_get(edit, EL_CLIENTDATA, &l);
    uint8_t bytes[4];
    for (size_t n = 0; n < sizeof bytes;) {
        struct pollfd wait = {.fd = STDIN_FILENO, .events = POLLIN};
        if (*l->stopped || (ppoll(&wait, 1, NULL, &l->open) < 0 && (*l->stopped || errno != EINTR))) return -1;
        if (!wait.revents) continue;
        const ssize_t got = read(STDIN_FILENO, bytes + n, 1);
        if (got < 0 && errno == EINTR) continue;
        if (got <= 0) return (int)got;
        if (n && (bytes[n] & 0xC0) != 0x80) {   // the one before was broken off; this byte starts another
            bytes[0] = bytes[n];
            n = 0;
        }
        uint32_t cp;
        if (utf8_next(bytes, ++n, &cp)) {
            *key = (wchar_t)cp;
            return 1;
        }
        if (bytes[0] < 0xC2) n = 0;   // no character starts like this
    }
    *key = 0xFFFD;
    return 1;
}

static void open_edit(Line *l) {
    // libedit takes bytes apart by the locale; the program itself is UTF-8 wherever it runs.
    setlocale(LC_CTYPE, "");
    if (strcmp(nl_langinfo(CODESET), "UTF-8")) setlocale(LC_CTYPE, "C.UTF-8");
    l->edit = el_init("blip2", stdin, isatty(STDERR_FILENO) ? stderr : stdout, stderr);
    l->history = history_init();
    if (!l->edit || !l->history) return;
    HistEvent event;
    history(l->history, &event, H_SETSIZE, 1000);
    history(l->history, &event, H_SETUNIQUE, 1);
    el_set(l->edit, EL_CLIENTDATA, l);
    el_set(l->edit, EL_PROMPT, prompt_of);
    el_set(l->edit, EL_EDITOR, "emacs");
    el_set(l->edit, EL_SIGNAL, 0);
    el_set(l->edit, EL_GETCFN, next_key);
    el_set(l->edit, EL_HIST, history, l->history);
    el_set(l->edit, EL_ADDFN, "complete", "completes a file name", _el_fn_complete);
    el_set(l->edit, EL_BIND, "^I", "complete", NULL);
    el_source(l->edit, NULL);
}

static const char *read_edit(Line *l, size_t *n, const volatile int *stopped) {
    int count = 0;
    sigset_t held;
    sigemptyset(&held);
    sigaddset(&held, SIGINT);
    l->stopped = stopped;
    sigprocmask(SIG_BLOCK, &held, &l->open);
    const char *line = el_gets(l->edit, &count);
    sigprocmask(SIG_SETMASK, &l->open, NULL);
    if (!line || count <= 0) return NULL;
    *n = (size_t)count;
    HistEvent event;
    if (strspn(line, " \t\r\n") < *n) history(l->history, &event, H_ENTER, line);
    return line;
}
#endif

static const char *read_plain(Line *l, size_t *n, const volatile int *stopped) {
    if (l->typed) {
        fputs(l->prompt, stderr);
        fflush(stderr);
    }
    const ssize_t count = getline(&l->plain, &l->room, stdin);
    if (count < 0 && *stopped) clearerr(stdin);
    if (count < 0 || *stopped) return NULL;
    *n = (size_t)count;
    return l->plain;
}

Line *line_open(const char *prompt) {
    Line *l = calloc(1, sizeof *l);
    if (!l) return NULL;
    l->prompt = prompt;
    l->typed = line_typed();
#ifdef HAVE_EDIT
    if (l->typed) open_edit(l);
#endif
    return l;
}

const char *line_read(Line *l, size_t *n, const volatile int *stopped) {
#ifdef HAVE_EDIT
    const char *line = l->edit && l->history ? read_edit(l, n, stopped) : read_plain(l, n, stopped);
#else
    const char *line = read_plain(l, n, stopped);
#endif
    if (!line && l->typed) fputc('\n', stderr);
    if (line && *n && line[*n - 1] == '\n') --*n;
    if (line && *n && line[*n - 1] == '\r') --*n;
    return line;
}

void line_close(Line *l) {
    if (!l) return;
#ifdef HAVE_EDIT
    if (l->history) history_end(l->history);
    if (l->edit) el_end(l->edit);
#endif
    free(l->plain);
    free(l);
}
