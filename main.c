// main.c: the command line program: from arguments to answers on standard output.
//
// In order: settings that follow from options and model, stages and their time, all images, loading, the start of the
// program. Answers go to stdout, all else to stderr.
// Not here: the options (options.c), how one is answered (ask.c), how answers look (output.c), everything that BLIP-2
// is (behind libblip2.h).

#include "fault.h"
#include "info.h"
#include "inputs.h"
#include "output.h"
#include "program.h"
#include "version.h"

#include <fcntl.h>
#include <math.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <time.h>
#include <unistd.h>

// ---------------------------------------------------------------------------------------------------------
// Settings: what was not given comes from the weight file.

static void give(int *field, int value) { if (value != UNSET) *field = value; }
static void give_real(double *field, double value) { if (!isnan(value)) *field = value; }

static int choose(Program *p, Err *e) {
    const Options *o = &p->o;
    blip2_options *how = &p->how;
    blip2_defaults(p->model, how, sizeof *how);
    if (o->vqa) blip2_vqa(p->model, how);
    how->sample = o->nucleus;
    how->distinct = o->distinct;
    if (o->nucleus) how->beams = 1;
    else give(&how->beams, o->beams);
    give(&how->captions, o->captions);
    give(&how->max_new, o->max_new);
    if (how->min_new > how->max_new) how->min_new = how->max_new;
    give(&how->min_new, o->min_new);
    give(&how->top_k, o->top_k);
    give(&how->no_repeat_ngram, o->no_repeat_ngram);
    give_real(&how->length_penalty, o->length_penalty);
    give_real(&how->repeat_penalty, o->repeat_penalty);
    give_real(&how->temp, o->temp);
    give_real(&how->top_p, o->top_p);
    how->stops = o->stops.text;
    how->n_stops = o->stops.n;
    if (o->seed != UNSET) how->seed = (uint64_t)o->seed;
    blip2_error b;
    if (blip2_check(p->model, how, &b)) return fail(e, "%s", b.text);
    if (o->nucleus && o->seed == UNSET) {
        uint32_t random = 0;
        if (getrandom(&random, sizeof random, 0) != sizeof random) random = (uint32_t)time(NULL);
        how->seed = random;
        remark(p, "seed %llu", (unsigned long long)how->seed);
    }
    return 0;
}

// ---------------------------------------------------------------------------------------------------------
// Watching the stages pass by, for --dump.

static void watch(void *program, const char *name, const float *x, int rows, int cols) {
    dump_add(&((Program *)program)->dump, name, x, rows, cols);
}

// ---------------------------------------------------------------------------------------------------------
// Images.

typedef struct { Program *p; Output *output; } Listener;

static int listen(void *listener, const blip2_event *event) {
    const Listener *l = listener;
    if (l->output->stream) progress_clear(&l->p->progress);
    return output_event(l->output, event);
}

// One prompt (NULL: the model's), or one question.
static int answer(Program *p, const char *image, const char *prompt, const char *question, bool named, Text *into,
                  Err *e) {
    Output out = {.json = p->o.json, .stream = p->o.stream, .scores = p->o.scores, .named = named,
                  .terminal = isatty(STDOUT_FILENO) == 1, .image = image, .question = question, .seed = p->how.seed,
                  .into = into};
    Listener l = {.p = p, .output = &out};
    Text asked = {0};
    int bad = question ? ask_question(p, &asked, question, listen, &l, e) : ask_prompt(p, prompt, listen, &l, e);
    if (bad == BLIP2_STOPPED) bad = fail(e, "the answer could not be written");
    progress_clear(&p->progress);
    bad = output_end(&out, question ? asked.data : prompt ? prompt : p->info.prompt, bad, e);
    text_free(&asked);
    return bad;
}

static int look(Program *p, const char *image, bool named, Err *e) {
    blip2_image im;
    if (load_image(&im, p, image, e)) return -1;
    int bad = encode_image(p, &im, e);
    // Beside the picture goes what is known before it is drawn; streamed words come below.
    Text lines = {0};
    const bool beside = p->o.show && p->terminal.is && !p->o.stream;
    if (!bad && p->o.stream) bad = show_image(p, &im, "", 0, e);
    const TextList *list = p->o.questions.n ? &p->o.questions : &p->o.prompts;
    const int context = p->turns.n;
    for (int i = 0; !bad && (i < list->n || i == 0); i++) {
        const char *what = list->n ? list->text[i] : NULL;
        bad = answer(p, image, p->o.questions.n ? NULL : what, p->o.questions.n ? what : NULL, named,
                     beside ? &lines : NULL, e);
    }
    Err undrawn;
    const char *text = lines.data ? lines.data : "";
    if (beside && (text_check(&lines, &undrawn) || show_image(p, &im, text, lines.len, &undrawn)))
        bad = bad ? bad : fail(e, "%s", undrawn.text);
    blip2_image_free(&im);
    text_free(&lines);
    turns_cut(&p->turns, context);
    return bad ? fail_in(e, "%s", image) : 0;
}

static int all_images(Program *p, Inputs *in) {
    Err e;
    int code = EXIT_OK;
    progress_start(&p->progress, in->total < 0 ? 0 : in->total, !p->o.quiet && !p->o.verbose);
    for (const char *image; (image = inputs_next(in, &e)); progress_step(&p->progress)) {
        if (look(p, image, in->total != 1, &e)) {
            progress_clear(&p->progress);
            complain(e.text);
            if (p->o.json) output_error(image, e.text);
            code = EXIT_INPUT;
        }
        // Nobody reads the answers any more: there is no point in going on.
        if (output_flush(&e)) {
            complain(e.text);
            return EXIT_INPUT;
        }
    }
    progress_clear(&p->progress);
    if (e.text[0]) {
        complain(e.text);
        code = EXIT_INPUT;
    }
    if (p->o.dump && code == EXIT_OK && dump_write(&p->dump, p->o.dump, &e)) {
        complain(e.text);
        return EXIT_INPUT;
    }
    return code;
}

// ---------------------------------------------------------------------------------------------------------
// Loading.

// The turns of --context, each of which must be something that the model can read.
static int load_context(Program *p, Err *e) {
    if (turns_read(&p->turns, p->o.context, e)) return -1;
    for (int i = 0; i < p->turns.n; i++)
        for (int side = 0; side < 2; side++) {
            const char *text = side ? p->turns.turn[i].answer : p->turns.turn[i].question;
            int *ids, n;
            blip2_error b;
            if (blip2_tokenize(p->model, text, strlen(text), &ids, &n, &b))
                return fail(e, "%s, turn %d: %s", p->o.context, i + 1, b.text);
            blip2_free(ids);
        }
    return 0;
}

static int load(Program *p, Err *e) {
    const Options *o = &p->o;
    blip2_settings s = {.size = sizeof s, .device = o->device, .cpu_isa = o->cpu_isa};
    const int rows = o->nucleus ? (o->captions == UNSET ? 1 : o->captions) : o->beams;
    give(&s.threads, o->threads);
    give(&s.ctx, o->ctx);
    give(&s.rows, rows);
    give(&s.max_new, o->max_new);
    if (o->dump) {
        s.probe = watch;
        s.probe_arg = p;
    }
    const double start = seconds_now();
    blip2_error b;
    p->model = blip2_open(o->model, &s, &b);
    if (!p->model) {
        fail(e, "%s", b.text);
        return b.code;
    }
    fault_install(o->model, EXIT_MODEL);
    p->load_seconds = seconds_now() - start;
    blip2_describe(p->model, &p->info, sizeof p->info);
    p->dump.S = p->info.S;
    if (o->verify && blip2_verify(p->model, &b)) {
        fail(e, "%s", b.text);
        return b.code;
    }
    if (o->verify) remark(p, "%s: all %d tensors are intact", o->model, p->info.tensors);
    return 0;
}

// Takes the memory, once it is clear that there is something to do with it.
static int start(Program *p, Err *e) {
    blip2_error b;
    if (blip2_start(p->model, &b)) {
        fail(e, "%s", b.text);
        return b.code;
    }
    if (*blip2_warning(p->model)) remark(p, "warning: %s", blip2_warning(p->model));
    blip2_describe(p->model, &p->info, sizeof p->info);
    const char *why = p->info.why_cpu;
    if (!p->o.verbose) {
        if (why) remark(p, "using the CPU: %s (--device cpu or --quiet: without this line)", why);
        return 0;
    }
    fprintf(stderr, "device: %s%s%s%s\n", p->info.device, why ? " (" : "", why ? why : "", why ? ")" : "");
    if (p->info.device && !strcmp(p->info.device, "cpu")) fprintf(stderr, "cpu: %s\n", blip2_cpu_isa(p->o.cpu_isa));
    fprintf(stderr, "time: load %.4f s\n", p->load_seconds);
    if (p->info.upload_bytes)
        fprintf(stderr, "time: upload %.4f s, %.3f GB of weights, %.2f GB/s\n", p->info.upload_seconds,
                (double)p->info.upload_bytes / 1e9, (double)p->info.upload_bytes / 1e9 / p->info.upload_seconds);
    return 0;
}

static int tell_model(Program *p) {
    Text t = {0};
    Err e;
    info_add(&t, p->model, p->o.model, p->o.device, p->o.json);
    int bad = text_check(&t, &e);
    if (!bad) fwrite(t.data, 1, t.len, stdout);
    if (!bad) bad = output_flush(&e);
    text_free(&t);
    if (bad) complain(e.text);
    return bad ? EXIT_INPUT : EXIT_OK;
}

static int run(Program *p) {
    Err e;
    Inputs in = {0};
    if (p->o.show) terminal_ask(&p->terminal, TERMINAL_WAIT_MS);   // before there are threads
    int code = load(p, &e);
    if (!code && (p->o.tokenize || p->o.detokenize)) return text_records(p);
    if (!code && p->o.info) return tell_model(p);
    if (!code && !p->o.n_images && !p->o.images_from && !p->o.chat) return EXIT_OK;   // --verify alone
    if (!code && choose(p, &e)) code = EXIT_USAGE;
    if (!code && p->o.context && load_context(p, &e)) code = EXIT_INPUT;
    if (!code && inputs_open(&in, &p->o, &e)) code = EXIT_INPUT;
    if (!code) code = start(p, &e);
    if (code) complain(e.text);
    else {
        code = p->o.chat ? chat(p) : all_images(p, &in);
        blip2_describe(p->model, &p->info, sizeof p->info);
        timing_summary(&p->timing, info_step_bytes(p->model), p->info.left_out,
                       strcmp(p->info.device, "cpu") ? 0 : p->info.threads);
    }
    inputs_free(&in);
    return code;
}

// ---------------------------------------------------------------------------------------------------------
// The start of the program.

// Only what is safe in a signal handler: answers were flushed image by image, a dump lies under its temporary name.
static void interrupted(int number) {
    (void)number;
    _exit(EXIT_INTERRUPTED);
}

// A standard stream that is closed would lend its number to the next file opened, and answers could end up in it.
static int check_streams(void) {
    for (int fd = 0; fd <= 2; fd++) {
        if (fcntl(fd, F_GETFD) >= 0) continue;
        if (fd == 1) return -1;
        if (open("/dev/null", O_RDWR) != fd) return -1;
    }
    return 0;
}

// The demo model beside the program (as built) or where `make install` puts it; NULL when there is none.
static char *demo_model(void) {
    static const char *const PLACES[] = {"demo/demo.bin", "../share/blip2/demo.bin"};
    char here[4096];
    const ssize_t n = readlink("/proc/self/exe", here, sizeof here);
    if (n <= 0 || n == sizeof here) return NULL;
    size_t folder = (size_t)n;
    while (folder && here[folder - 1] != '/') folder--;
    for (size_t i = 0; i < sizeof PLACES / sizeof *PLACES; i++) {
        Text path = {0};
        text_add(&path, here, folder);
        text_add(&path, PLACES[i], strlen(PLACES[i]));
        if (!path.failed && access(path.data, R_OK) == 0) return path.data;
        text_free(&path);
    }
    return NULL;
}

// A word among the images that no file has as its name, nor looks like one: part of a question without quotes.
static const char *lost_word(const Options *o) {
    for (int i = 0; i < o->n_images; i++)
        if (*o->images[i] != '@' && !strpbrk(o->images[i], "./-") && access(o->images[i], F_OK)) return o->images[i];
    return NULL;
}

// Mistakes that show in what the images are called.
static int check_names(const Options *o, Err *e) {
    const TextList *list = o->questions.n ? &o->questions : &o->prompts;
    const char *word = lost_word(o), *last = list->n ? list->text[list->n - 1] : NULL;
    if (word && list->n)
        return fail(e, "there is no image '%s'; hint: put the whole question in quotes: %s '%s ...'", word,
                    o->questions.n ? "-q" : "-p", last);
    if (word && o->n_images > 1)
        return fail(e, "there is no image '%s'; hint: a question goes in quotes behind -q: -q 'what is this?'", word);
    if (last && !o->n_images && !o->images_from && access(last, F_OK) == 0)
        return fail(e, "which image? '%s' was taken for the question; hint: %s 'what is this?' %s", last,
                    o->questions.n ? "-q" : "-p", last);
    return 0;
}

// Which model and images there are to be, before anything is loaded.
static int check_task(Program *p, char **demo, Err *e) {
    Options *o = &p->o;
    const bool images = o->n_images || o->images_from || o->chat;
    if (!o->model) o->model = *demo = demo_model();
    if (!o->model) return fail(e, "which model? hint: -m FILE, made with export/export.py; --help lists all options");
    if (check_names(o, e)) return -1;
    if (!images && !o->verify && !o->info && !o->tokenize && !o->detokenize)
        return fail(e, "which image? hint: blip2 %s%s%sphoto.jpg", *demo ? "" : "-m ", *demo ? "" : o->model,
                    *demo ? "" : " ");
    if (*demo)
        remark(p, "this is the demo model, which knows only drawings; hint: README.md says how to get a real one (-m)");
    return 0;
}

int main(int argc, char **argv) {
    Program p = {0};
    Err e;
    if (check_streams()) {
        complain("standard output is closed, so there is nowhere to write answers to");
        return EXIT_INPUT;
    }
    signal(SIGPIPE, SIG_IGN);   // a write then fails and is reported
    signal(SIGXFSZ, SIG_IGN);   // so does one beyond a limit on file sizes
    signal(SIGINT, interrupted);
    if (options_parse(&p.o, argc, argv, &e)) {
        complain(e.text);
        return EXIT_USAGE;
    }
    if (p.o.help || p.o.version || p.o.man || p.o.completion) {
        if (p.o.help) options_help(stdout);
        else if (p.o.man) options_man(stdout);
        else if (p.o.completion) options_completion(stdout, p.o.completion);
        else version_print(stdout);
        if (output_flush(&e) == 0) return EXIT_OK;
        complain(e.text);
        return EXIT_INPUT;
    }
    p.timing.on = p.o.verbose;
    char *demo = NULL;
    int code = EXIT_USAGE;
    if (check_task(&p, &demo, &e)) complain(e.text);
    else code = run(&p);
    blip2_close(p.model);
    dump_free(&p.dump);
    turns_free(&p.turns);
    free(demo);
    return code;
}
