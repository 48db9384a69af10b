// records.c: --tokenize and --detokenize: one record in, one line out; a bad record is reported and the rest go on.

#include "output.h"
#include "program.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

static int tokenize_record(const Program *p, const char *text, size_t n, Err *e) {
    int *ids, count;
    blip2_error b;
    if (blip2_tokenize(p->model, text, n, &ids, &count, &b)) return fail(e, "%s", b.text);
    putchar('[');
    for (int i = 0; i < count; i++) printf("%s%d", i ? ", " : "", ids[i]);
    printf("]\n");
    blip2_free(ids);
    return 0;
}

static const char *skip_blanks(const char *s) { return s + strspn(s, " \t\r\n"); }

static int detokenize_record(const Program *p, const char *line, size_t n, Err *e) {
    // line "[1, 2, 3]"
    int *ids = malloc((n / 2 + 1) * sizeof *ids), count = 0;
    if (!ids) return fail(e, "no memory for a line of %zu bytes", n);
    const char *s = skip_blanks(line);
    bool ok = *s == '[';
    s += ok;
    for (s = skip_blanks(s); ok && *s != ']'; s = skip_blanks(s)) {
        char *end;
        errno = 0;
        const long id = strtol(s, &end, 10);
        ok = end != s && !errno && id >= 0 && id <= INT32_MAX && (*s != '+' && *s != '-');
        ids[count++] = (int)id;
        s = skip_blanks(end);
        if (*s == ',') ok = ok && *skip_blanks(++s) != ']';
        else ok = ok && *s == ']';
    }
    ok = ok && *s == ']' && *skip_blanks(s + 1) == 0 && strlen(line) == n;
    char *text = NULL;
    size_t len = 0;
    blip2_error b;
    int bad = 0;
    if (!ok) bad = fail(e, "expected a JSON array of token ids such as [2, 102, 1345], got '%.40s'", line);
    else if (blip2_detokenize(p->model, ids, count, &text, &len, &b)) bad = fail(e, "%s", b.text);
    free(ids);
    Text json = {0};
    if (!bad) text_json(&json, text, len);
    if (!bad) bad = text_check(&json, e);
    if (!bad) printf("%s\n", json.data);
    text_free(&json);
    blip2_free(text);
    return bad;
}

int text_records(const Program *p) {
    char *line = NULL;
    size_t room = 0;
    ssize_t n;
    int code = EXIT_OK;
    Err e;
    const int end = p->o.nul ? 0 : '\n';
    for (long number = 1; (n = getdelim(&line, &room, end, stdin)) >= 0; number++) {
        if (n && line[n - 1] == end) line[--n] = 0;
        if (p->o.tokenize ? tokenize_record(p, line, (size_t)n, &e) : detokenize_record(p, line, (size_t)n, &e)) {
            fail_in(&e, "standard input, record %ld", number);
            complain(e.text);
            code = EXIT_INPUT;
        }
    }
    if (!feof(stdin)) {   // an error of the stream, or no memory for the line
        fail(&e, "cannot read standard input: %s", strerror(errno));
        complain(e.text);
        code = EXIT_INPUT;
    }
    free(line);
    if (output_flush(&e)) {
        complain(e.text);
        code = EXIT_INPUT;
    }
    return code;
}
