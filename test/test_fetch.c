// test/test_fetch.c: fetch.c against a web server on the loopback interface that this program is itself.
//
// In order: the server (a child; one connection at a time, answers chosen by the path), helpers, what must arrive, what
// must be refused and in which words, addresses that never leave the machine, children left behind.
// Without the curl program only the checks that need none are run, the rest is counted as skipped.

#include "../fetch.h"
#include "check.h"

#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

// ---------------------------------------------------------------------------------------------------------
// The server

static void say(int fd, const char *text) {
    for (size_t n = strlen(text); n;) {
        const ssize_t put = write(fd, text, n);
        if (put <= 0) return;
        text += put;
        n -= (size_t)put;
    }
}

static void serve(int fd) {
    char request[4096] = "";
    for (size_t n = 0; n < sizeof request - 1 && !strstr(request, "\r\n\r\n");) {
        const ssize_t got = read(fd, request + n, sizeof request - 1 - n);
        if (got <= 0) return;
        request[n += (size_t)got] = 0;
    }
    char path[512] = "", reply[1024];
    sscanf(request, "GET %511s", path);
#define IS(p) (!strncmp(path, p, strlen(p)))
    if (IS("/ok")) say(fd, "HTTP/1.0 200 OK\r\nContent-Length: 5\r\n\r\nhello");
    else if (IS("/echo")) {   // what came in as a path goes out as a body
        snprintf(reply, sizeof reply, "HTTP/1.0 200 OK\r\n\r\n%s", path);
        say(fd, reply);
    } else if (IS("/redirect")) say(fd, "HTTP/1.0 302 Found\r\nLocation: /ok\r\n\r\n");
    else if (IS("/loop")) say(fd, "HTTP/1.0 302 Found\r\nLocation: /loop\r\n\r\n");
    else if (IS("/file")) say(fd, "HTTP/1.0 302 Found\r\nLocation: file:///etc/passwd\r\n\r\n");
    else if (IS("/ftp")) say(fd, "HTTP/1.0 302 Found\r\nLocation: ftp://127.0.0.1/x\r\n\r\n");
    else if (IS("/empty")) say(fd, "HTTP/1.0 200 OK\r\nContent-Length: 0\r\n\r\n");
    else if (IS("/huge")) say(fd, "HTTP/1.0 200 OK\r\nContent-Length: 99999999999999\r\n\r\nx");
    else if (IS("/short")) say(fd, "HTTP/1.0 200 OK\r\nContent-Length: 100\r\n\r\nnot all");
    else if (IS("/forbidden")) say(fd, "HTTP/1.0 403 Forbidden\r\n\r\nno");
    else if (IS("/silent")) return;
    else if (IS("/slow")) {
        say(fd, "HTTP/1.0 200 OK\r\n\r\n");
        for (int i = 0; i < 100; i++, usleep(100000)) if (write(fd, ".", 1) != 1) return;
    } else if (IS("/endless")) {
        say(fd, "HTTP/1.0 200 OK\r\n\r\n");
        memset(reply, 'x', sizeof reply);
        while (write(fd, reply, sizeof reply) > 0) {}
    } else say(fd, "HTTP/1.0 404 Not Found\r\n\r\n");
#undef IS
}

// Starts the server on a free port and returns the port, or 0.
static int start_server(pid_t *pid) {
    struct sockaddr_in at = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t size = sizeof at;
    const int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd < 0 || bind(fd, (struct sockaddr *)&at, sizeof at) || listen(fd, 8) ||
        getsockname(fd, (struct sockaddr *)&at, &size) || (*pid = fork()) < 0) return 0;
    if (*pid) {
        close(fd);
        return ntohs(at.sin_port);
    }
    signal(SIGPIPE, SIG_IGN);
    alarm(300);   // in case the parent is killed
    for (;;) {
        const int c = accept(fd, NULL, NULL);
        if (c < 0) continue;
        serve(c);
        shutdown(c, SHUT_WR);
        // What is left unread would reset the connection and take the answer with it.
        char rest[256];
        struct timeval wait = {.tv_sec = 1};
        setsockopt(c, SOL_SOCKET, SO_RCVTIMEO, &wait, sizeof wait);
        while (read(c, rest, sizeof rest) > 0) {}
        close(c);
    }
}

// ---------------------------------------------------------------------------------------------------------

static int port;

static const char *address(const char *path) {
    static char url[1024];
    snprintf(url, sizeof url, "http://127.0.0.1:%d%s", port, path);
    return url;
}

static void arrives(Tally *t, const char *path, const char *want) {
    uint8_t *data;
    size_t n;
    Err e = {0};
    const FetchLimits lim = {.max_bytes = 1000, .max_seconds = 20, .connect_seconds = 10, .max_redirects = 3,
                             .program = "curl"};
    const int bad = fetch_url_within(&data, &n, address(path), &lim, &e);
    EXPECT(t, bad == 0, "%s: %s", path, e.text);
    if (bad) return;
    EXPECT(t, n == strlen(want) && !memcmp(data, want, n), "%s: %zu bytes: %.*s", path, n, (int)n, (char *)data);
    free(data);
}

// The address must be refused in words that hold all of `words`, and name the address.
static void refused(Tally *t, const char *url, const FetchLimits *lim, const char *words) {
    uint8_t *data = (uint8_t *)1;
    size_t n = 1;
    Err e = {0};
    const int bad = fetch_url_within(&data, &n, url, lim, &e);
    EXPECT(t, bad == -1 && data == NULL && n == 0, "%s: %d", url, bad);
    EXPECT(t, strstr(e.text, words) && strstr(e.text, url) && !strchr(e.text, '\n'), "'%s' in: %s", words, e.text);
}

static void without_server(Tally *t) {
    const FetchLimits lim = fetch_limits();
    FetchLimits no_curl = lim;
    no_curl.program = "no-such-curl";
    EXPECT(t, fetch_is_url("http://x") && fetch_is_url("HTTPS://x") && fetch_is_url("ftp://x") &&
              fetch_is_url("svn+ssh://x"), "addresses");
    EXPECT(t, !fetch_is_url("photo.jpg") && !fetch_is_url("./http://x") && !fetch_is_url("") && !fetch_is_url("://") &&
              !fetch_is_url("http:/x") && !fetch_is_url("1http://x") && !fetch_is_url("-"), "not addresses");
    refused(t, "http://127.0.0.1/", &no_curl, "not installed; hint: install the package curl");
    refused(t, "file:///etc/passwd", &lim, "http://");
    refused(t, "ftp://127.0.0.1/", &lim, "http://");
    refused(t, "http:///x", &lim, "names no host");
    refused(t, "http://a b/x", &lim, "space in the name");
    refused(t, "http://127.0.0.1/\x1b[2J", &lim, "control character");
}

static void interrupted(int number) { (void)number; }

static void with_server(Tally *t) {
    const FetchLimits lim = {.max_bytes = 1000, .max_seconds = 20, .connect_seconds = 10, .max_redirects = 3,
                             .program = "curl"};
    FetchLimits brief = lim;
    brief.max_seconds = 1;
    arrives(t, "/ok", "hello");
    arrives(t, "/empty", "");
    arrives(t, "/redirect", "hello");
    // nothing in a name means anything to curl; encoded is what may not stand in a request
    arrives(t, "/echo[1-9]{a,b}", "/echo[1-9]{a,b}");
    arrives(t, "/echo a\xC3\xA4", "/echo%20a%C3%A4");
    arrives(t, "/echo?q=--output;$(x)'`%41", "/echo?q=--output;$(x)'`%41");
    refused(t, address("/none"), &lim, "HTTP 404: there is nothing");
    refused(t, address("/forbidden"), &lim, "HTTP 403");
    refused(t, address("/file"), &lim, "neither http nor https");
    refused(t, address("/ftp"), &lim, "neither http nor https");
    refused(t, address("/loop"), &lim, "more than 3 redirects");
    refused(t, address("/huge"), &lim, "more than the limit of 1000 bytes");
    refused(t, address("/endless"), &lim, "more than the limit of 1000 bytes");
    refused(t, address("/short"), &lim, "broke off in the middle");
    refused(t, address("/silent"), &lim, "without an answer");
    refused(t, address("/slow"), &brief, "timed out: not finished within 1 s");
    refused(t, "http://127.0.0.1:1/", &lim, "no connection");

    // A signal that is handled interrupts nothing. SIGALRM comes while the slow answer is waited for.
    struct sigaction was, act = {.sa_handler = interrupted};   // no SA_RESTART
    sigaction(SIGALRM, &act, &was);
    alarm(1);
    FetchLimits longer = lim;
    longer.max_seconds = 2;
    refused(t, address("/slow"), &longer, "timed out: not finished within 2 s");
    sigaction(SIGALRM, &was, NULL);

    // Where SIGCHLD is ignored nobody learns how curl ended: an error, never half a picture.
    signal(SIGCHLD, SIG_IGN);
    refused(t, address("/ok"), &lim, "cannot learn how curl ended");
    signal(SIGCHLD, SIG_DFL);
}

int main(void) {
    Tally t = {0};
    setenv("no_proxy", "*", 1);
    without_server(&t);
    pid_t server = 0;
    if (system("curl --version >/dev/null 2>&1")) SKIP(&t, "fetching: there is no curl program here");
    else if (!(port = start_server(&server))) SKIP(&t, "fetching: no server on the loopback interface");
    else with_server(&t);
    if (server > 0) {
        kill(server, SIGKILL);
        waitpid(server, NULL, 0);
    }
    EXPECT(&t, waitpid(-1, NULL, WNOHANG) == -1 && errno == ECHILD, "a child was left behind");
    return tally_close(&t);
}
