// fetch.c: the bytes behind an http or https address, through the curl program (see fetch.h).
//
// In order: addresses, the command line of curl, its messages, reading what it writes, the API. Not here: TLS, proxies
// (curl obeys the usual environment variables), what the bytes mean (image.c).
//
//     parent                                  curl (posix_spawnp: an argument vector, no shell)
//       poll + read, limits <---- pipe ------- the body
//       first bytes kept <------- pipe ------- its one line of complaint
//       waitpid                                exit code
//
// The address comes from strangers as much as the picture does. It is the value of --url, so it is never taken for an
// option; --globoff takes the meaning from [] and {}; -q keeps .curlrc out; --proto keeps file:, ftp:, scp: and all
// else out, --proto-redir does so behind a redirect.

#include "fetch.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/wait.h>
#include <unistd.h>

extern char **environ;

FetchLimits fetch_limits(void) {
    return (FetchLimits){.max_bytes = 256u << 20, .max_seconds = 60, .connect_seconds = 15, .max_redirects = 5,
                         .program = "curl"};
}

// ---------------------------------------------------------------------------------------------------------
// Addresses

// RFC 3986: a scheme is a letter, then letters, digits, "+", "-" and ".".
bool fetch_is_url(const char *path) {
    size_t n = 0;
    for (; (path[n] | 32) >= 'a' && (path[n] | 32) <= 'z'; n++) {}
    if (n) n += strspn(path + n, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789+-.");
    return n && !strncmp(path + n, "://", 3);
}

// The address as curl wants it. Browsers encode spaces and what is not ASCII; so does this, but for the host, whose
// letters curl translates itself (IDN).
static int clean_address(Text *out, const char *url, Err *e) {
    const bool http = !strncasecmp(url, "http://", 7), https = !strncasecmp(url, "https://", 8);
    if (!http && !https)
        return fail(e, "%s: only addresses that begin with http:// or https:// can be fetched; hint: download it by "
                       "other means and name the file", url);
    const char *host = url + (https ? 8 : 7), *path = host + strcspn(host, "/?#");
    if (path == host) return fail(e, "%s: the address names no host", url);
    for (const char *p = url; *p; p++) {
        const uint8_t c = (uint8_t)*p;
        if (c < 0x20 || c == 0x7F) return fail(e, "%s: a control character in an address", url);
        if (c == ' ' && p < path) return fail(e, "%s: a space in the name of the host", url);
        if (p >= path && (c == ' ' || c >= 0x80)) text_printf(out, "%%%02X", c);
        else text_add(out, p, 1);
    }
    return text_check(out, e);
}

// ---------------------------------------------------------------------------------------------------------
// curl's end, in words

enum { COMPLAINT = 512 };   // bytes kept of what curl says

// "curl: (22) The requested URL returned error: 404" -> the part behind the number, one line.
static const char *without_prefix(char *complaint) {
    complaint[strcspn(complaint, "\r\n")] = 0;
    const char *text = !strncmp(complaint, "curl: (", 7) ? strchr(complaint, ')') : NULL;
    return text && text[1] == ' ' ? text + 2 : complaint;
}

// code: curl's exit code, from the EXIT CODES of its manual.
static int explain_code(int code, char *complaint, const FetchLimits *lim, Err *e) {
    const char *said = without_prefix(complaint);
    const char *number = strstr(said, "error: ");
    switch (code) {
    case 1: return fail(e, "the server redirects to an address that is neither http nor https: refused");
    case 3: return fail(e, "not an address that curl understands: %s", said);
    case 5: case 6: return fail(e, "this host is not known (%s); hint: check the spelling and the network", said);
    case 7: return fail(e, "no connection to the server: %s", said);
    case 18: return fail(e, "the server broke off in the middle; hint: try again");
    case 22:
        if (!number) return fail(e, "the server refuses: %s", said);
        number += strlen("error: ");
        if (!strncmp(number, "404", 3) || !strncmp(number, "410", 3))
            return fail(e, "the server answers HTTP %.3s: there is nothing at this address", number);
        if (!strncmp(number, "401", 3) || !strncmp(number, "403", 3))
            return fail(e, "the server answers HTTP %.3s: it does not give this to everybody", number);
        return fail(e, "the server answers HTTP %s", number);
    case 28: return fail(e, "timed out: not finished within %d s (%d s for the connection); hint: download it first",
                         lim->max_seconds, lim->connect_seconds);
    case 47: return fail(e, "more than %d redirects", lim->max_redirects);
    case 52: return fail(e, "the server closed the connection without an answer");
    case 63: return fail(e, "more than the limit of %llu bytes", (unsigned long long)lim->max_bytes);
    case 35: case 51: case 53: case 54: case 58: case 59: case 60: case 66: case 77: case 80: case 82: case 83: case 90:
    case 91: return fail(e, "no secure connection to the server: %s", said);
    default: return fail(e, "curl ended with code %d%s%s", code, *said ? ": " : "", said);
    }
}

// ---------------------------------------------------------------------------------------------------------
// Reading

typedef struct { uint8_t *data; size_t len, cap; } Body;

// One read into the body. 1: there may be more, 0: end, -1 with e.
static int take_body(Body *b, int fd, const FetchLimits *lim, Err *e) {
    if (b->len == b->cap) {
        const size_t cap = b->cap ? 2 * b->cap : 65536;
        uint8_t *more = realloc(b->data, cap);
        if (!more) return fail(e, "no memory for %zu bytes", cap);
        b->data = more;
        b->cap = cap;
    }
    const ssize_t got = read(fd, b->data + b->len, b->cap - b->len);
    if (got < 0) return errno == EINTR ? 1 : fail(e, "cannot read what curl writes: %s", strerror(errno));
    b->len += (size_t)got;
    if (b->len > lim->max_bytes)
        return fail(e, "more than the limit of %llu bytes", (unsigned long long)lim->max_bytes);
    return got > 0;
}

// One read of the complaint; what is over its size is read and dropped, so that curl never waits for us.
static int take_complaint(char *complaint, int fd, Err *e) {
    char bytes[256];
    const ssize_t got = read(fd, bytes, sizeof bytes);
    if (got < 0) return errno == EINTR ? 1 : fail(e, "cannot read what curl says: %s", strerror(errno));
    for (size_t i = 0, n = strlen(complaint); i < (size_t)got && n < COMPLAINT - 1; i++)
        if (bytes[i]) complaint[n++] = bytes[i];
    return got > 0;
}

// Until both pipes have ended. curl keeps the time itself; two seconds later we no longer believe that it does.
static int listen_to(Body *b, char *complaint, const int fds[2], const FetchLimits *lim, Err *e) {
    struct pollfd wait[2] = {{.fd = fds[0], .events = POLLIN}, {.fd = fds[1], .events = POLLIN}};
    const int64_t deadline = now_ms() + 1000 * ((int64_t)lim->max_seconds + 2);
    while (wait[0].fd >= 0 || wait[1].fd >= 0) {
        const int64_t left = deadline - now_ms();
        if (left <= 0) return explain_code(28, complaint, lim, e);
        const int ready = poll(wait, 2, left > 1000 ? 1000 : (int)left);
        if (ready < 0 && errno != EINTR) return fail(e, "poll: %s", strerror(errno));
        if (ready <= 0) continue;
        for (int i = 0; i < 2; i++) {
            if (wait[i].fd < 0 || !wait[i].revents) continue;
            const int more = i ? take_complaint(complaint, fds[1], e) : take_body(b, fds[0], lim, e);
            if (more < 0) return -1;
            if (!more) wait[i].fd = -1;
        }
    }
    return 0;
}

// ---------------------------------------------------------------------------------------------------------
// The child

// Pipes that exec closes, except where the child has them as its streams. The ends are moved above 2, so that a
// program started with closed standard streams does not make a pipe of them.
static int open_pipe(int ends[2]) {
    int raw[2];
    if (pipe(raw)) return -1;
    for (int i = 0; i < 2; i++) {
        ends[i] = fcntl(raw[i], F_DUPFD_CLOEXEC, 3);
        close(raw[i]);
    }
    if (ends[0] >= 0 && ends[1] >= 0) return 0;
    for (int i = 0; i < 2; i++) if (ends[i] >= 0) close(ends[i]);
    return -1;
}

// Starts curl with its output and complaints on pipes, fds[0] and fds[1]. Returns 0 or -1 with e.
static int start(pid_t *pid, int fds[2], const char *url, const FetchLimits *lim, Err *e) {
    char bytes[32], seconds[16], connect[16], redirects[16];
    snprintf(bytes, sizeof bytes, "%llu", (unsigned long long)lim->max_bytes);
    snprintf(seconds, sizeof seconds, "%d", lim->max_seconds);
    snprintf(connect, sizeof connect, "%d", lim->connect_seconds);
    snprintf(redirects, sizeof redirects, "%d", lim->max_redirects);
    const char *argv[] = {lim->program, "-q", "--silent", "--show-error", "--fail", "--globoff", "--location",
                          "--proto", "=http,https", "--proto-redir", "=http,https", "--max-redirs", redirects,
                          "--max-time", seconds, "--connect-timeout", connect, "--max-filesize", bytes,
                          "--output", "-", "--url", url, NULL};
    int out[2], err[2];
    if (open_pipe(out)) return fail(e, "no pipe to curl: %s", strerror(errno));
    if (open_pipe(err)) {
        close(out[0]);
        close(out[1]);
        return fail(e, "no pipe to curl: %s", strerror(errno));
    }
    posix_spawn_file_actions_t files;
    posix_spawnattr_t attr;
    posix_spawn_file_actions_init(&files);
    posix_spawn_file_actions_addopen(&files, 0, "/dev/null", O_RDONLY, 0);
    posix_spawn_file_actions_adddup2(&files, out[1], 1);
    posix_spawn_file_actions_adddup2(&files, err[1], 2);
    // What the caller ignores or blocks must not keep curl alive.
    sigset_t none, ours;
    sigemptyset(&none);
    sigemptyset(&ours);
    for (int i = 0; i < 4; i++) sigaddset(&ours, (const int[]){SIGPIPE, SIGINT, SIGTERM, SIGHUP}[i]);
    posix_spawnattr_init(&attr);
    posix_spawnattr_setflags(&attr, POSIX_SPAWN_SETSIGDEF | POSIX_SPAWN_SETSIGMASK);
    posix_spawnattr_setsigdefault(&attr, &ours);
    posix_spawnattr_setsigmask(&attr, &none);
    const int bad = posix_spawnp(pid, lim->program, &files, &attr, (char *const *)argv, environ);
    posix_spawn_file_actions_destroy(&files);
    posix_spawnattr_destroy(&attr);
    close(out[1]);
    close(err[1]);
    fds[0] = out[0];
    fds[1] = err[0];
    if (!bad) return 0;
    close(fds[0]);
    close(fds[1]);
    if (bad == ENOENT)
        return fail(e, "addresses are fetched by the program %s, which is not installed; hint: install the package "
                       "curl (make deps does), or download the picture first", lim->program);
    return fail(e, "%s cannot be started: %s", lim->program, strerror(bad));
}

// Ends curl if it still runs and is not wanted any more; leaves no zombie. False when the process ignores SIGCHLD, so
// that the system reaped curl itself; its number may then belong to somebody else and must not be signalled.
static bool reap(pid_t pid, bool stop, int *status) {
    pid_t done = 0;
    if (stop) done = waitpid(pid, status, WNOHANG);
    if (stop && done == 0) kill(pid, SIGKILL);
    while (done == 0 || (done < 0 && errno == EINTR)) done = waitpid(pid, status, 0);
    return done == pid;
}

int fetch_url_within(uint8_t **data, size_t *n, const char *url, const FetchLimits *lim, Err *e) {
    *data = NULL;
    *n = 0;
    Text address = {0};
    pid_t pid = 0;
    int fds[2] = {-1, -1}, status = -1;
    if (clean_address(&address, url, e)) {
        text_free(&address);
        return -1;
    }
    int bad = start(&pid, fds, address.data, lim, e);
    text_free(&address);
    if (bad) return fail_in(e, "%s", url);
    Body body = {0};
    char complaint[COMPLAINT] = "";
    bad = listen_to(&body, complaint, fds, lim, e);
    close(fds[0]);
    close(fds[1]);
    const bool known = reap(pid, bad, &status);
    if (!bad && !known) bad = fail(e, "cannot learn how curl ended: %s", strerror(errno));
    else if (!bad && WIFSIGNALED(status))
        bad = fail(e, WTERMSIG(status) == SIGINT ? "interrupted" : "curl was ended by signal %d", WTERMSIG(status));
    else if (!bad && WEXITSTATUS(status)) bad = explain_code(WEXITSTATUS(status), complaint, lim, e);
    if (!bad) {
        *data = body.data;
        *n = body.len;
        return 0;
    }
    free(body.data);
    return fail_in(e, "%s", url);
}

int fetch_url(uint8_t **data, size_t *n, const char *url, Err *e) {
    const FetchLimits lim = fetch_limits();
    return fetch_url_within(data, n, url, &lim, e);
}
