// output.c: answers as text and JSON (see output.h).
//
// In order: one answer in each form, the callback, the end of a prompt, failed images. Not here: messages for people
// (stderr), which everybody writes for himself.

#include "output.h"

#include "escape.h"

#include <errno.h>
#include <string.h>

static void json_floats(Text *t, const float *x, int n) {
    for (int i = 0; i < n; i++) text_printf(t, "%s%.9g", i ? "," : "", (double)x[i]);
}

static void json_answer(Output *o, const blip2_answer *a) {
    Text *t = &o->text;
    text_printf(t, "%s{\"text\":", o->n ? "," : "");
    text_json(t, a->text, a->n_text);
    text_printf(t, ",\"tokens\":[");
    for (int i = 0; i < a->n_tokens; i++) text_printf(t, "%s%d", i ? "," : "", a->tokens[i]);
    text_printf(t, "],\"score\":%.9g", a->score);
    if (o->scores) {
        text_printf(t, ",\"logprobs\":[");
        json_floats(t, a->logprobs, a->n_tokens);
        text_printf(t, "]");
        if (a->finish == BLIP2_FINISH_END) {
            text_printf(t, ",\"end_logprob\":");
            json_floats(t, &a->end_logprob, 1);
        }
    }
    text_printf(t, ",\"finish\":\"%s\"}", a->finish == BLIP2_FINISH_LENGTH ? "length" : "stop");
}

// Control characters would break the line: they become spaces, question marks in names.
static void add_plain(Output *o, const char *text, size_t n, char instead) {
    Text line = {0};
    Text *t = o->terminal ? &line : &o->text;
    const size_t from = t->len;
    text_add(t, text, n);
    for (size_t i = from; i < t->len; i++) if ((uint8_t)t->data[i] < 0x20 || t->data[i] == 0x7F) t->data[i] = instead;
    if (o->terminal) escape_add(&o->text, line.data, line.len);
    o->text.failed = o->text.failed || line.failed;
    text_free(&line);
}

static void add_name(Output *o) {
    if (!o->named) return;
    add_plain(o, o->image, strlen(o->image), '?');
    text_add(&o->text, "\t", 1);
}

// Nonzero: nobody reads the answer any more, or there is no memory for it.
static int write_text(Output *o) {
    fwrite(o->text.data, 1, o->text.len, stdout);
    fflush(stdout);
    o->started = o->started || o->text.len;
    o->text.len = 0;
    return o->text.failed || ferror(stdout);
}

int output_event(void *output, const blip2_event *event) {
    Output *o = output;
    const blip2_answer *a = event->answer;
    if (o->stream && !o->started && !o->text.len) add_name(o);
    if (o->stream) {
        add_plain(o, event->text, event->n_text, ' ');
        if (!a) return o->text.len ? write_text(o) : 0;
    }
    if (!a) return 0;
    if (o->json) json_answer(o, a);
    else {
        if (!o->stream) {
            add_name(o);
            add_plain(o, a->text, a->n_text, ' ');
        }
        if (o->scores) text_printf(&o->text, "\t%.6f", a->score);
        text_add(&o->text, "\n", 1);
    }
    o->n++;
    return 0;
}

int output_end(Output *o, const char *prompt, int bad, Err *e) {
    Text line = {0};
    if (o->json && !bad) {
        text_printf(&line, "{\"image\":");
        text_json(&line, o->image, strlen(o->image));
        if (o->question) {
            text_printf(&line, ",\"question\":");
            text_json(&line, o->question, strlen(o->question));
        }
        text_printf(&line, ",\"prompt\":");
        text_json(&line, prompt, strlen(prompt));
        text_printf(&line, ",\"outputs\":[");
        text_add(&line, o->text.data, o->text.len);
        text_printf(&line, "],\"seed\":%llu}\n", (unsigned long long)o->seed);
    } else if (!bad) text_add(&line, o->text.data, o->text.len);
    if (!bad) bad = text_check(&o->text, e) || text_check(&line, e) ? -1 : 0;
    if (bad && o->started) fputc('\n', stdout);      // what was streamed stays a line
    else if (!bad && line.len && o->into) text_add(o->into, line.data, line.len);
    else if (!bad && line.len) fwrite(line.data, 1, line.len, stdout);
    text_free(&line);
    text_free(&o->text);
    o->n = 0;
    o->started = false;
    return bad;
}

void output_error(const char *image, const char *error) {
    const size_t n = strlen(image);
    if (!strncmp(error, image, n) && !strncmp(error + n, ": ", 2)) error += n + 2;
    Text t = {0};
    text_printf(&t, "{\"image\":");
    text_json(&t, image, n);
    text_printf(&t, ",\"error\":");
    text_json(&t, error, strlen(error));
    text_printf(&t, "}\n");
    if (!t.failed) fwrite(t.data, 1, t.len, stdout);
    text_free(&t);
}

int output_flush(Err *e) {
    if (fflush(stdout) == 0 && !ferror(stdout)) return 0;
    return fail(e, "cannot write to standard output: %s", strerror(errno));
}
