// test/pty.h: a terminal for tests: a pseudo-terminal that is the controlling terminal of a child process.
//
// In order: starting the child, reading until a text appears, writing, ending. Not here: what a terminal understands.
#ifndef TEST_PTY_H
#define TEST_PTY_H

#include "../common.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/wait.h>
#include <termios.h>
#include <time.h>
#include <unistd.h>

typedef struct {
    int fd;         // the terminal's side
    pid_t pid;
    Text seen;      // all that came out so far
    size_t from;    // where pty_wait goes on looking
    int status;     // of the child, once pty_end returned
} Pty;

// Forks. In the child returns 1, with the pseudo-terminal of the given size as streams 0 to 2; in the parent 0, -1 when
// there are no pseudo-terminals here. pixels: the size of a cell, or 0 for a terminal that does not tell.
static inline int pty_start(Pty *p, int rows, int columns, int cell_w, int cell_h) {
    *p = (Pty){.fd = posix_openpt(O_RDWR | O_NOCTTY | O_CLOEXEC)};
    const struct winsize size = {.ws_row = (unsigned short)rows, .ws_col = (unsigned short)columns,
                                 .ws_xpixel = (unsigned short)(columns * cell_w),
                                 .ws_ypixel = (unsigned short)(rows * cell_h)};
    if (p->fd < 0 || grantpt(p->fd) || unlockpt(p->fd) || ioctl(p->fd, TIOCSWINSZ, &size)) return -1;
    char name[128];
    snprintf(name, sizeof name, "%s", ptsname(p->fd));
    fflush(NULL);
    p->pid = fork();
    if (p->pid) return p->pid < 0 ? -1 : 0;
    setsid();
    const int fd = open(name, O_RDWR);
    if (fd < 0 || ioctl(fd, TIOCSCTTY, 0)) _exit(99);
    for (int i = 0; i < 3; i++) dup2(fd, i);
    if (fd > 2) close(fd);
    close(p->fd);
    signal(SIGINT, SIG_DFL);   // a shell's background jobs, and so their children, ignore it
    alarm(120);
    return 1;
}

// Reads what the child writes within ms milliseconds, at most until something comes. False: end of file, or nothing.
static inline bool pty_read(Pty *p, int ms) {
    struct pollfd wait = {.fd = p->fd, .events = POLLIN};
    char bytes[4096];
    if (poll(&wait, 1, ms) <= 0) return false;
    const ssize_t got = read(p->fd, bytes, sizeof bytes);
    if (got <= 0) return false;
    text_add(&p->seen, bytes, (size_t)got);
    return true;
}

// Waits up to 30 s for text behind what was waited for before.
static inline bool pty_wait(Pty *p, const char *text) {
    const int64_t deadline = now_ms() + 30000;
    for (;;) {
        const size_t left = p->seen.len - p->from;
        const char *at = left ? memmem(p->seen.data + p->from, left, text, strlen(text)) : NULL;
        if (at) {
            p->from = (size_t)(at - p->seen.data) + strlen(text);
            return true;
        }
        if (now_ms() > deadline || !pty_read(p, 1000)) {
            if (now_ms() > deadline || waitpid(p->pid, &p->status, WNOHANG)) return false;
        }
    }
}

static inline void pty_type(const Pty *p, const char *text) {
    for (size_t n = strlen(text); n;) {
        const ssize_t put = write(p->fd, text, n);
        if (put <= 0) return;
        text += put;
        n -= (size_t)put;
    }
}

// Reads to the end and reaps the child, killing it after 30 s.
static inline void pty_end(Pty *p) {
    const int64_t deadline = now_ms() + 30000;
    while (now_ms() < deadline && waitpid(p->pid, &p->status, WNOHANG) == 0) pty_read(p, 50);
    while (pty_read(p, 0)) {}
    if (now_ms() >= deadline) {
        kill(p->pid, SIGKILL);
        waitpid(p->pid, &p->status, 0);
    }
}

static inline void pty_close(Pty *p) {
    close(p->fd);
    text_free(&p->seen);
}

#endif
