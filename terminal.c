// terminal.c: what the terminal behind standard output is and can draw (see terminal.h).
//
// In order: the questions and how answers are understood, measures, asking. Not here: drawing (show.c).
//
// The questions: can kitty's graphics protocol take a pixel (its documentation, "Querying support"), how large is a
// cell in pixels (xterm's XTWINOPS 16), and last the primary device attributes (DA1), which practically every terminal
// answers, with 4 among them for sixel graphics. Answers come in the order of the questions: DA1's ends the waiting.

#include "terminal.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <termios.h>
#include <unistd.h>

static const char QUESTIONS[] = "\x1b_Gi=31,s=1,v=1,a=q,t=d,f=24;AAAA\x1b\\" "\x1b[16t" "\x1b[c";
enum { ANSWERS = 4096 };   // more than that is no answer

// ---------------------------------------------------------------------------------------------------------
// Answers

// The parameters of a control sequence that ends at final: "?62;4;22" + 'c', "6;20;10" + 't'.
static bool take_csi(Terminal *t, const char *params, size_t n, char final) {
    int value[3] = {0}, count = 0;
    if (final == 'c' && n && params[0] == '?') {
        // the first number is the family of terminals, the rest what it can do
        for (size_t i = 1; i < n; i++)
            if (params[i] == ';' && i + 1 < n && params[i + 1] == '4' && (i + 2 == n || params[i + 2] == ';'))
                t->sixel = true;
        return true;
    }
    if (final != 't') return false;
    for (size_t i = 0; i < n && count < 3; i++) {
        if (params[i] == ';') count++;
        else if (params[i] < '0' || params[i] > '9' || value[count] > 9999) return false;
        else value[count] = 10 * value[count] + params[i] - '0';
    }
    if (count == 2 && value[0] == 6 && value[1] > 0 && value[2] > 0 && value[1] < 1000 && value[2] < 1000) {
        t->cell_h = value[1];
        t->cell_w = value[2];
    }
    return false;
}

bool terminal_understand(Terminal *t, const char *bytes, size_t n) {
    for (size_t i = 0; i + 1 < n; i++) {
        if (bytes[i] != '\x1b') continue;
        if (bytes[i + 1] == '[') {
            const size_t from = i + 2;
            for (i = from; i < n && bytes[i] >= 0x20 && bytes[i] < 0x40; i++) {}
            if (i < n && take_csi(t, bytes + from, i - from, bytes[i])) return true;
        } else if (bytes[i + 1] == '_') {
            static const char ok[] = "\x1b_Gi=31;OK\x1b\\";
            if (n - i >= strlen(ok) && !memcmp(bytes + i, ok, strlen(ok))) t->kitty = true;
        }
    }
    return false;
}

// ---------------------------------------------------------------------------------------------------------
// Measures

void terminal_measure(Terminal *t) {
    struct winsize size = {0};
    t->columns = 80;
    t->rows = 24;
    if (ioctl(STDOUT_FILENO, TIOCGWINSZ, &size) || !size.ws_col || !size.ws_row) return;
    t->columns = size.ws_col;
    t->rows = size.ws_row;
    if (size.ws_xpixel >= size.ws_col && size.ws_ypixel >= size.ws_row) {
        t->cell_w = size.ws_xpixel / size.ws_col;
        t->cell_h = size.ws_ypixel / size.ws_row;
    }
}

// ---------------------------------------------------------------------------------------------------------
// Asking

static bool one_waits(const sigset_t *held) {
    sigset_t pending;
    if (sigpending(&pending)) return false;
    for (int s = 1; s < NSIG; s++) if (sigismember(held, s) == 1 && sigismember(&pending, s) == 1) return true;
    return false;
}

// Writes the questions and reads answers until they are complete, time is up or a signal waits for us.
static void talk(Terminal *t, int fd, const sigset_t *held, int wait_ms) {
    char answers[ANSWERS];
    size_t n = 0, put = 0;
    const int64_t deadline = now_ms() + wait_ms;
    while (n < sizeof answers && !one_waits(held)) {
        const int64_t left = deadline - now_ms();
        if (left <= 0) return;
        struct pollfd wait = {.fd = fd, .events = POLLIN};
        if (put < strlen(QUESTIONS)) wait.events |= POLLOUT;
        if (poll(&wait, 1, left > 50 ? 50 : (int)left) < 0 && errno != EINTR) return;
        if (wait.revents & POLLOUT) {
            const ssize_t done = write(fd, QUESTIONS + put, strlen(QUESTIONS) - put);
            if (done < 0 && errno != EINTR && errno != EAGAIN) return;
            if (done > 0) put += (size_t)done;
        }
        if (wait.revents & POLLIN) {
            const ssize_t got = read(fd, answers + n, sizeof answers - n);
            if (got == 0 || (got < 0 && errno != EINTR && errno != EAGAIN)) return;
            if (got > 0) n += (size_t)got;
            if (terminal_understand(t, answers, n)) return;
        } else if (wait.revents & (POLLHUP | POLLERR | POLLNVAL)) return;
    }
}

// The terminal behind standard output is the one that /dev/tty opens, and we are in its foreground.
static bool ours_to_ask(int fd) {
    const char *name = getenv("TERM");
    return name && *name && strcmp(name, "dumb") && strcmp(name, "linux") &&
           tcgetsid(STDOUT_FILENO) == getsid(0) && tcgetpgrp(fd) == getpgrp();
}

void terminal_ask(Terminal *t, int wait_ms) {
    *t = (Terminal){.is = isatty(STDOUT_FILENO)};
    if (!t->is) return;
    terminal_measure(t);
    const int fd = open("/dev/tty", O_RDWR | O_NOCTTY | O_CLOEXEC | O_NONBLOCK);
    if (fd < 0) return;
    sigset_t held, was;
    sigemptyset(&held);
    const int ends[] = {SIGINT, SIGTERM, SIGHUP, SIGQUIT, SIGTSTP, SIGTTIN, SIGTTOU, SIGALRM, SIGUSR1, SIGUSR2};
    for (size_t i = 0; i < sizeof ends / sizeof *ends; i++) sigaddset(&held, ends[i]);
    sigprocmask(SIG_BLOCK, &held, &was);
    struct termios before, quiet;
    if (ours_to_ask(fd) && tcgetattr(fd, &before) == 0) {
        quiet = before;
        quiet.c_lflag &= ~(tcflag_t)(ICANON | ECHO);   // ISIG stays: Ctrl-C is still a signal, held back
        quiet.c_cc[VMIN] = 0;
        quiet.c_cc[VTIME] = 0;
        if (tcsetattr(fd, TCSANOW, &quiet) == 0) {
            talk(t, fd, &held, wait_ms);
            // FLUSH: a late answer is not for the program or the shell that reads next
            while (tcsetattr(fd, TCSAFLUSH, &before) < 0 && errno == EINTR) {}
        }
    }
    sigprocmask(SIG_SETMASK, &was, NULL);
    close(fd);
}
