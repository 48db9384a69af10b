// ask.c: an image in, a prompt or a question about it, its answers out; for the command line and for the chat.
//
// In order: messages, images, prompts, questions with the turns before them. What -v says of their time begins and ends
// here. Not here: how answers look (output.c).

#include "escape.h"
#include "fetch.h"
#include "program.h"
#include "show.h"

#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

void complain(const char *text) { escape_line(stderr, "blip2", text); }

void remark(Program *p, const char *fmt, ...) {
    if (p->o.quiet) return;
    Err line;
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(line.text, sizeof line.text, fmt, ap);
    va_end(ap);
    progress_clear(&p->progress);
    complain(line.text);
}

static const blip2_info *described(Program *p) {
    blip2_describe(p->model, &p->info, sizeof p->info);
    return &p->info;
}

int load_image(blip2_image *out, Program *p, const char *name, Err *e) {
    const int flags = p->o.no_exif ? BLIP2_NO_EXIF : 0;
    blip2_error b;
    uint8_t *data = NULL;
    size_t n = 0;
    int code;
    timing_start(&p->timing, described(p));
    if (fetch_is_url(name)) {
        if (fetch_url(&data, &n, name, e)) return -1;
        code = blip2_image_decode(out, data, n, name, flags, &b);
        free(data);
    } else code = blip2_image_read(out, name, flags, &b);
    if (code) return fail(e, "%s", b.text);
    if (out->warning[0]) remark(p, "warning: %s: %s", name, out->warning);
    return 0;
}

int encode_image(Program *p, const blip2_image *im, Err *e) {
    blip2_error b;
    if (blip2_encode(p->model, im->rgb, im->W, im->H, &b)) return fail(e, "%s", b.text);
    timing_encoded(&p->timing, described(p));
    return 0;
}

int show_image(Program *p, const blip2_image *im, const char *text, size_t n, Err *e) {
    if (!p->o.show || !p->terminal.is) return 0;
    Text out = {0};
    terminal_measure(&p->terminal);
    int bad = show_picture(&out, im->rgb, im->W, im->H, text, n, show_way(&p->terminal), &p->terminal, e);
    if (!bad) bad = text_check(&out, e);
    if (!bad) fwrite(out.data, 1, out.len, stdout);
    fflush(stdout);
    text_free(&out);
    return bad;
}

typedef struct { blip2_callback *callback; void *arg; int steps; } Counter;

static int count_step(void *counter, const blip2_event *event) {
    Counter *c = counter;
    if (!event->answer) c->steps++;
    return c->callback(c->arg, event);
}

int ask_prompt(Program *p, const char *prompt, blip2_callback *callback, void *arg, Err *e) {
    blip2_error b;
    Counter c = {callback, arg, 0};
    timing_start(&p->timing, described(p));
    const int code = blip2_generate(p->model, prompt, &p->how, count_step, &c, &b);
    if (code == BLIP2_STOPPED) return code;
    if (code) return fail(e, "%s", b.text);
    timing_answered(&p->timing, described(p), c.steps);
    if (*blip2_warning(p->model)) remark(p, "%s", blip2_warning(p->model));
    return 0;
}

// ---------------------------------------------------------------------------------------------------------

typedef struct { blip2_callback *callback; void *arg; Text answer; } Listener;

// Keeps the first answer, which the next question will see.
static int listen(void *listener, const blip2_event *event) {
    Listener *l = listener;
    const blip2_answer *a = event->answer;
    if (a && a->number == 0) text_add(&l->answer, a->text, a->n_text);
    return l->callback(l->arg, event);
}

static int count_tokens(void *model, const char *text, size_t n) {
    int *ids, n_ids;
    const int code = blip2_tokenize(model, text, n, &ids, &n_ids, NULL);
    blip2_free(ids);
    return code == BLIP2_BAD_MODEL ? -2 : code ? -1 : n_ids;
}

int ask_question(Program *p, Text *prompt, const char *question, blip2_callback *callback, void *arg, Err *e) {
    const int most = p->info.ctx - p->how.max_new;
    const int dropped = turns_prompt(prompt, &p->turns, question, most, count_tokens, p->model, e);
    if (dropped < 0) return -1;
    if (dropped)
        remark(p, "the oldest %s dropped: with -n %d the context of %d leaves room for %d tokens%s",
               dropped == 1 ? "turn was" : "turns were", p->how.max_new, p->info.ctx, most,
               p->info.ctx < p->info.max_ctx ? "; hint: --ctx" : "");
    Listener l = {callback, arg, {0}};
    int code = ask_prompt(p, prompt->data, listen, &l, e);
    if (!code) code = text_check(&l.answer, e);
    if (!code) code = turns_add(&p->turns, question, l.answer.data ? l.answer.data : "", e);
    text_free(&l.answer);
    return code;
}
