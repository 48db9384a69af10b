// chat.c: --chat: questions about one image, line by line, with the turns so far in view.
//
// In order: Ctrl-C, the image, a question, names of files, /save, the commands, the loop. The lines come from line.c;
// answers and turns are those of -q (ask.c), so that a script on standard input gets the same ones. Answers go to
// stdout, all else to stderr, and what is only for people is written only when somebody types.

#include "fetch.h"
#include "line.h"
#include "output.h"
#include "program.h"

#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

typedef struct {
    Program *p;
    Line *line;
    bool typed, quit;
    int code;
} Chat;

// ---------------------------------------------------------------------------------------------------------
// Ctrl-C, while somebody types: at the prompt it drops the line, during an answer it ends the answer. A signal handler
// can reach nothing but a global.

static volatile int stopped;
static void stop(int number) { (void)number; stopped = 1; }

static void wrong(Chat *c, const char *text) {
    complain(text);
    c->code = EXIT_INPUT;
}

// ---------------------------------------------------------------------------------------------------------

// The turns about the image before are of no use for this one.
static int look(Chat *c, const char *name, Err *e) {
    blip2_image im;
    if (load_image(&im, c->p, name, e)) return -1;
    int bad = encode_image(c->p, &im, e) ? fail_in(e, "%s", name) : 0;
    if (!bad) bad = show_image(c->p, &im, "", 0, e);
    blip2_image_free(&im);
    return bad;
}

typedef struct { Output *output; } Listener;

static int listen(void *listener, const blip2_event *event) {
    const Listener *l = listener;
    return stopped || output_event(l->output, event);
}

static void ask(Chat *c, const char *question) {
    Program *p = c->p;
    Err e;
    Output out = {.stream = p->o.stream || (c->typed && p->how.beams == 1), .scores = p->o.scores,
                  .terminal = isatty(STDOUT_FILENO) == 1, .image = p->o.chat, .question = question};
    Listener l = {&out};
    Text prompt = {0};
    int bad = ask_question(p, &prompt, question, listen, &l, &e);
    const bool cut = bad == BLIP2_STOPPED && stopped;
    if (bad == BLIP2_STOPPED) bad = fail(&e, "the answer could not be written");
    if (output_end(&out, prompt.data ? prompt.data : "", bad, &e)) {
        if (cut) remark(p, "stopped; the question is forgotten");
        else wrong(c, e.text);
    }
    text_free(&prompt);
}

// ---------------------------------------------------------------------------------------------------------

// The name that is meant. As it stands when there is such a file; otherwise as a shell reads it, because that is how
// the completion of file names and most terminals put in a name with a space: quotes, backslashes and "~/" count.
static int meant(Text *name, const char *typed, Err *e) {
    const char *home = getenv("HOME"), *s = typed;
    char quote = 0;
    const bool plain = fetch_is_url(typed) || access(typed, F_OK) == 0;
    if (!plain && !strncmp(s, "~/", 2) && home) text_add(name, home, strlen(home)), s++;
    for (; !plain && *s; s++) {
        if (*s == quote) quote = 0;
        else if (!quote && (*s == '\'' || *s == '"')) quote = *s;
        else {
            if (*s == '\\' && quote != '\'' && s[1]) s++;
            text_add(name, s, 1);
        }
    }
    if (plain || quote || !name->len) {
        name->len = 0;
        text_add(name, typed, strlen(typed));
    }
    return text_check(name, e);
}

static void put_clean(FILE *f, const char *text) {
    for (; *text; text++) fputc((unsigned char)*text < 0x20 ? ' ' : *text, f);
}

// A file that is something else than saved turns is not overwritten.
static int save(const Chat *c, const char *path, Err *e) {
    Turns old = {0};
    const bool other = access(path, F_OK) == 0 && turns_read(&old, path, e);
    turns_free(&old);
    if (other) return fail(e, "%s: is there already and holds something else; hint: another name", path);
    FILE *f = fopen(path, "we");
    if (!f) return fail(e, "%s: cannot be written: %s", path, strerror(errno));
    const Turns *t = &c->p->turns;
    for (int i = 0; i < t->n; i++) {
        put_clean(f, t->turn[i].question);
        fputc('\t', f);
        put_clean(f, t->turn[i].answer);
        fputc('\n', f);
    }
    const bool failed = ferror(f);
    if (fclose(f) || failed) return fail(e, "%s: cannot be written: %s", path, strerror(errno));
    remark(c->p, "%d turn%s saved; --context %s takes them up again", t->n, t->n == 1 ? "" : "s", path);
    return 0;
}

// ---------------------------------------------------------------------------------------------------------

static void help(void) {
    fputs("a line is a question about the image; earlier questions and answers are in view\n"
          "/image PATH   another image (file or URL); starts anew\n"
          "/clear        forget the questions and answers so far\n"
          "/save FILE    write them to FILE, which --context reads\n"
          "/help         this text\n"
          "/quit         leave, as Ctrl-D does; Ctrl-C stops an answer\n", stderr);
}

static void command(Chat *c, char *line) {
    // line "/name argument"
    Err e = {0};
    Text name = {0};
    const size_t n = strcspn(line, " \t");
    char *argument = line + n + strspn(line + n, " \t");
    for (size_t end = strlen(argument); end && strchr(" \t", argument[end - 1]); ) argument[--end] = 0;
    int bad = 0;
#define IS(name) (!bad && n == strlen(name) && !memcmp(line, name, n))
    const bool wants = IS("/image") || IS("/save"), plain = IS("/clear") || IS("/help") || IS("/quit");
    if (!wants && !plain)
        bad = fail(&e, "unknown command %.*s; hint: /help lists them", (int)(n < 100 ? n : 100), line);
    else if (wants && !*argument) bad = fail(&e, "%.*s needs a name: %.*s %s", (int)n, line, (int)n, line,
                                             IS("/save") ? "FILE" : "PATH");
    else if (plain && *argument) bad = fail(&e, "%.*s stands alone, without '%.100s'", (int)n, line, argument);
    else if (wants) bad = meant(&name, argument, &e);
    if (IS("/save")) bad = save(c, name.data, &e);
    else if (IS("/clear")) turns_cut(&c->p->turns, 0);
    else if (IS("/help")) help();
    else if (IS("/quit")) c->quit = true;
    else if (IS("/image") && !strcmp(name.data, "-"))
        bad = fail(&e, "/image - : the questions come from standard input");
    else if (IS("/image") && !(bad = look(c, name.data, &e))) turns_cut(&c->p->turns, 0);
#undef IS
    if (bad) wrong(c, e.text);
    text_free(&name);
}

static void one_line(Chat *c, const char *text, size_t n) {
    Err e;
    Text line = {0};
    text_add(&line, text, n);
    if (c->typed) while (line.len && strchr(" \t", line.data[line.len - 1])) line.data[--line.len] = 0;
    if (text_check(&line, &e)) wrong(c, e.text);
    else if (line.len && strlen(line.data) != line.len) wrong(c, "a question with a NUL byte");
    else if (line.len && line.data[0] == '/') command(c, line.data);
    else if (line.len && line.data[strspn(line.data, " \t\r")]) ask(c, line.data);
    text_free(&line);
}

int chat(Program *p) {
    Chat c = {.p = p, .typed = line_typed()};
    Err e;
    if (look(&c, p->o.chat, &e)) {
        complain(e.text);
        return EXIT_INPUT;
    }
    c.line = line_open("> ");
    if (!c.line) {
        complain("no memory to read lines");
        return EXIT_INPUT;
    }
    // No SA_RESTART: waiting for a line must end.
    struct sigaction was, act = {.sa_handler = stop};
    if (c.typed) sigaction(SIGINT, &act, &was);
    if (c.typed && !p->o.quiet) fputs("ask about the image; /help lists commands, Ctrl-D ends\n", stderr);
    while (!c.quit) {
        size_t n;
        stopped = 0;
        const char *text = line_read(c.line, &n, &stopped);
        if (!text && stopped) continue;
        if (!text) break;
        one_line(&c, text, n);
        if (output_flush(&e)) {
            wrong(&c, e.text);
            break;
        }
    }
    if (!c.typed && !c.quit && !feof(stdin)) wrong(&c, "cannot read standard input, or no memory for a line");
    line_close(c.line);
    if (c.typed) sigaction(SIGINT, &was, NULL);
    return c.typed ? EXIT_OK : c.code;
}
