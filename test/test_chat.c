// test/test_chat.c: --chat by a script and on a terminal; --show on a terminal. BLIP2 names the program.
//
// In order: helpers, scripts, a person at a terminal. Not here: what the answers say, which is compared with -q's.

#include "check.h"
#include "pty.h"

#define MODEL "-m test/data/tiny_opt.bin --quiet "
#define IMAGE "test/data/tiny_0.png"

static char program[256];

// Standard output of a shell command in which $B is the program; *code is its exit code.
static const char *output(const char *command, int *code) {
    static char out[2][8192];
    static int which;
    char *to = out[which ^= 1];
    FILE *f = popen(command, "r");
    size_t n = f ? fread(to, 1, sizeof out[0] - 1, f) : 0;
    to[n] = 0;
    const int status = f ? pclose(f) : -1;
    *code = WIFEXITED(status) ? WEXITSTATUS(status) : -1;
    return to;
}

static void same(Tally *t, const char *script, const char *command, int want) {
    int got, other;
    char line[1024];
    snprintf(line, sizeof line, "printf '%s' | $B " MODEL "--chat " IMAGE " 2>/dev/null", script);
    const char *chat = output(line, &got), *asked = output(command, &other);
    EXPECT(t, !strcmp(chat, asked) && *chat && got == want, "'%s': code %d, '%s' instead of '%s'", script, got, chat,
           asked);
}

static void scripts(Tally *t) {
    const char *two = "$B " MODEL "-q 'what is it?' -q 'which?' " IMAGE;
    same(t, "what is it?\\nwhich?\\n", two, 0);
    same(t, "\\nwhat is it?\\r\\n\\nwhich?", two, 0);
    same(t, "what is it?\\n/quit\\nwhich?\\n", "$B " MODEL "-q 'what is it?' " IMAGE, 0);
    same(t, "what is it?\\n/clear\\nwhich?\\n",
         "$B " MODEL "-q 'what is it?' " IMAGE "; $B " MODEL "-q 'which?' " IMAGE, 0);
    same(t, "/image test/data/tiny_1.png\\nwhich?\\n", "$B " MODEL "-q 'which?' test/data/tiny_1.png", 0);
    same(t, "/foo\\nwhat is it?\\n/image nowhere.png\\nwhich?\\n", two, 1);
    // blanks are no question; names may be written as for a shell
    same(t, "what is it?\\n \\t \\nwhich?\\n", two, 0);
    const char *other_image = "$B " MODEL "-q 'which?' test/data/tiny_1.png";
    same(t, "/image \"test/data/tiny_1.png\"\\nwhich?\\n", other_image, 0);
    same(t, "/image  test/data/tiny\\\\_1.png \\nwhich?\\n", other_image, 0);
    setenv("HOME", "test", 1);
    same(t, "/image ~/data/tiny_1.png\\nwhich?\\n", other_image, 0);
    same(t, "what is it?\\n/image \"test/data/tiny_1.png\\nwhich?\\n", two, 1);
    char name[] = "/tmp/blip2-chat-XXXXXX", line[1024];
    const int fd = mkstemp(name);
    close(fd);
    int code, other;
    snprintf(line, sizeof line, "printf 'what is it?\\n/save %s\\n' | $B " MODEL "--chat " IMAGE " >/dev/null && "
             "$B " MODEL "--context %s -q 'which?' " IMAGE, name, name);
    const char *again = output(line, &code);
    snprintf(line, sizeof line, "%s | tail -n 1", two);
    EXPECT(t, !strcmp(again, output(line, &other)) && code == 0, "saved and read: '%s'", again);
    snprintf(line, sizeof line, "echo other >%s; echo '/save %s' | $B " MODEL "--chat " IMAGE " 2>/dev/null; cat %s",
             name, name, name);
    EXPECT(t, !strcmp(output(line, &code), "other\n"), "another file was overwritten");
    unlink(name);
}

static bool begin(Tally *t, Pty *p, const char *show, const char *beams) {
    const int side = pty_start(p, 40, 100, 0, 0);
    if (side < 0) SKIP(t, "no pseudo-terminals here");
    if (side == 1) {
        setenv("TERM", "xterm", 1);
        setenv("ASAN_OPTIONS", "detect_leaks=0", 1);   // libedit 3.1 keeps the names of functions that are added to it
        execl(program, program, "-m", "test/data/tiny_opt.bin", "-b", beams, "-n", "100", "--min-tokens", "99",
              "--chat", IMAGE, show, (char *)NULL);
        _exit(98);
    }
    return side == 0;
}

static void person(Tally *t) {
    Pty p;
    if (!begin(t, &p, NULL, "64")) return;
    EXPECT(t, pty_wait(&p, "> "), "no prompt: %s", p.seen.data);
    usleep(300000);
    pty_type(&p, "half a line\x03");             // dropped
    EXPECT(t, pty_wait(&p, "> "), "no prompt after Ctrl-C: %s", p.seen.data);
    pty_type(&p, "/fool\r");
    EXPECT(t, pty_wait(&p, "unknown command /fool") && pty_wait(&p, "> "), "%s", p.seen.data);
#ifdef HAVE_EDIT
    pty_type(&p, "\x1b[A\r");                    // key up: the same again
    EXPECT(t, pty_wait(&p, "unknown command /fool") && pty_wait(&p, "> "), "no history: %s", p.seen.data);
    pty_type(&p, "\xC3/fool\r");                 // half a character takes no others with it
    EXPECT(t, pty_wait(&p, "unknown command /fool") && pty_wait(&p, "> "), "%s", p.seen.data);
    char folder[] = "/tmp/blip2-chat-XXXXXX", path[64], image[4096];
    EXPECT(t, mkdtemp(folder) && realpath(IMAGE, image), "no folder");
    snprintf(path, sizeof path, "%s/a b.png", folder);
    EXPECT(t, symlink(image, path) == 0, "no link");
    snprintf(path, sizeof path, "/image %s/a\t", folder);
    pty_type(&p, path);                          // the name comes with a backslash
    EXPECT(t, pty_wait(&p, "b.png"), "no completion: %s", p.seen.data);
    pty_type(&p, "\r");
    EXPECT(t, pty_wait(&p, "\n") && pty_wait(&p, "> ") && !strstr(p.seen.data, "no such file"), "%s", p.seen.data);
    snprintf(path, sizeof path, "%s/a b.png", folder);
    unlink(path);
    rmdir(folder);
#endif
    pty_type(&p, "what is it?\r");
    EXPECT(t, pty_wait(&p, "what is it?") && pty_wait(&p, "\n"), "no echo: %s", p.seen.data);
    usleep(20000);
    pty_type(&p, "\x03");                        // 64 beams take their time
    EXPECT(t, pty_wait(&p, "stopped;") && pty_wait(&p, "> "), "not stopped: %s", p.seen.data);
    usleep(200000);
    pty_type(&p, "/quit\r");
    pty_end(&p);
    EXPECT(t, WIFEXITED(p.status) && WEXITSTATUS(p.status) == 0, "status %d: %s", p.status,
           p.seen.data + p.from);
    pty_close(&p);

    if (!begin(t, &p, "--show", "1")) return;
    EXPECT(t, pty_wait(&p, "\x1b[c"), "the terminal was not asked");
    pty_type(&p, "\x1b[?1;2c");
    EXPECT(t, pty_wait(&p, "\xE2\x96\x80") && pty_wait(&p, "> "), "no picture");
    usleep(300000);                              // libedit takes the terminal after its prompt is out
    pty_type(&p, "\x04");
    pty_end(&p);
    EXPECT(t, WIFEXITED(p.status) && WEXITSTATUS(p.status) == 0, "end of input: status %d", p.status);
    pty_close(&p);
}

int main(void) {
    Tally t = {0};
    snprintf(program, sizeof program, "%s", getenv("BLIP2") ? getenv("BLIP2") : "build/blip2");
    setenv("B", program, 1);
    scripts(&t);
    person(&t);
    return tally_close(&t);
}
