// main.c: the command line program: from arguments to answers on standard output.
//
// In order: the settings that follow from options and weight file, output as text and JSON, timing, one image, the
// tokenizer modes, the start of the program. Answers go to stdout, all else to stderr.
// Not here: the options themselves (options.c), everything that BLIP-2 is (blip2.c and the rest).

#include "blip2.h"
#include "dump.h"
#include "image.h"
#include "matmul.h"
#include "options.h"
#include "tokenizer.h"

#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <sched.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <time.h>
#include <unistd.h>

enum { EXIT_OK = 0, EXIT_INPUT = 1, EXIT_USAGE = 2, EXIT_MODEL = 3, EXIT_INTERRUPTED = 130 };

#define VERSION "0.1"

typedef struct {
    Options o;
    Choice how;
    Model model;
    Tokenizer *tokenizer;
    const Backend *backend;
    void *device;
    uint8_t *pixels;       // (S,S,3)
    Dump dump;
    double load_seconds, stage_start;
} Program;

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + t.tv_nsec * 1e-9;
}

static void complain(const char *text) { fprintf(stderr, "blip2: %s\n", text); }

// ---------------------------------------------------------------------------------------------------------
// Settings: what was not given comes from the weight file.

static int given(int value, int otherwise) { return value == UNSET ? otherwise : value; }

// A default of 0.9 in the file is the f32 next to it; seven digits give the decimal number back that was meant.
static double given_real(double value, float otherwise) {
    char digits[32];
    snprintf(digits, sizeof digits, "%.7g", otherwise);
    return isnan(value) ? strtod(digits, NULL) : value;
}

// The processors that this process may run on, less if its control group has a smaller share.
static int default_threads(void) {
    cpu_set_t set;
    int n = sched_getaffinity(0, sizeof set, &set) == 0 ? CPU_COUNT(&set) : 1;
    FILE *f = fopen("/sys/fs/cgroup/cpu.max", "r");
    double quota, period;
    if (f) {
        if (fscanf(f, "%lf %lf", &quota, &period) == 2 && period > 0 && ceil(quota / period) < n)
            n = (int)ceil(quota / period);
        fclose(f);
    }
    return n < 1 ? 1 : n;
}

static int settle(Program *p, Limits *lim, Err *e) {
    const Options *o = &p->o;
    const Config *c = &p->model.config;
    p->how = (Choice){
        .beams = o->nucleus ? 1 : given(o->beams, c->beams), .captions = given(o->captions, 1),
        .max_new = given(o->max_new, c->max_new), .min_new = given(o->min_new, c->min_new),
        .length_penalty = given_real(o->length_penalty, c->length_penalty),
        .repeat_penalty = given_real(o->repeat_penalty, c->repeat_penalty), .sample = o->nucleus,
        .temp = given_real(o->temp, c->temp), .top_p = given_real(o->top_p, c->top_p),
        .top_k = given(o->top_k, c->top_k), .seed = o->seed == UNSET ? 0 : (uint64_t)o->seed,
    };
    if (!o->nucleus && p->how.captions > p->how.beams)
        return fail(e, "-c %d: %d beam%s give%s at most %d; hint: raise -b, or sample with --nucleus", p->how.captions,
                    p->how.beams, p->how.beams > 1 ? "s" : "", p->how.beams > 1 ? "" : "s", p->how.beams);
    if (p->how.beams > 1 && 2 * p->how.beams > c->V)
        return fail(e, "-b %d: a vocabulary of %d allows at most %d beams", p->how.beams, c->V, c->V / 2);
    if (p->how.min_new > p->how.max_new)
        return fail(e, "--min-tokens %d is more than -n %d", p->how.min_new, p->how.max_new);
    const int most = c->family == OPT ? c->positions - c->Q : 1048576;
    const int ctx = given(o->ctx, most < 512 ? most : 512);
    if (ctx > most)
        return fail(e, "--ctx %d: this model has %d positions, of which the image takes %d; at most %d", ctx,
                    c->positions, c->Q, most);
    if (p->how.max_new >= ctx)
        return fail(e, "-n %d leaves no room for a prompt in %d tokens; hint: lower -n%s", p->how.max_new, ctx,
                    ctx < most ? " or raise --ctx" : "");
    *lim = (Limits){.B = 1, .R = search_rows(&p->how), .prompt = ctx - 1, .max_new = p->how.max_new,
                    .threads = given(o->threads, default_threads())};
    if (o->nucleus && o->seed == UNSET) {
        uint32_t random = 0;
        if (getrandom(&random, sizeof random, 0) != sizeof random) random = (uint32_t)time(NULL);
        p->how.seed = random;
        if (!o->quiet) fprintf(stderr, "blip2: seed %llu\n", (unsigned long long)p->how.seed);
    }
    return 0;
}

// ---------------------------------------------------------------------------------------------------------
// Output.

// Bytes of white space at p as Python's str.strip knows it, 0 when there is none.
static int space_at(const char *p, size_t n) {
    uint32_t cp;
    const int len = utf8_next((const uint8_t *)p, n, &cp);
    const bool space = (cp >= 9 && cp <= 13) || (cp >= 0x1C && cp <= 0x20) || cp == 0x85 || cp == 0xA0 ||
                       cp == 0x1680 || (cp >= 0x2000 && cp <= 0x200A) || cp == 0x2028 || cp == 0x2029 ||
                       cp == 0x202F || cp == 0x205F || cp == 0x3000;
    return len && space ? len : 0;
}

static void strip(const char **text, size_t *n) {
    for (int len; *n && (len = space_at(*text, *n)); *text += len, *n -= len) {}
    for (size_t len; *n; *n -= len) {
        for (len = 1; len < *n && len < 4 && ((*text)[*n - len] & 0xC0) == 0x80; len++) {}
        if (!space_at(*text + *n - len, len)) break;
    }
}

static void json_floats(Text *t, const float *x, int n) {
    for (int i = 0; i < n; i++) text_printf(t, "%s%.9g", i ? "," : "", x[i]);
}

static void json_output(Text *t, const Program *p, const Hypothesis *h, const char *text, size_t len) {
    text_printf(t, "{\"text\":");
    text_json(t, text, len);
    text_printf(t, ",\"tokens\":[");
    for (int i = 0; i < h->n; i++) text_printf(t, "%s%d", i ? "," : "", h->tokens[i]);
    text_printf(t, "],\"score\":%.9g", h->score);
    if (p->o.scores) {
        text_printf(t, ",\"logprobs\":[");
        json_floats(t, h->logprobs, h->n);
        text_printf(t, "]");
        if (h->stopped) {
            text_printf(t, ",\"end_logprob\":");
            json_floats(t, h->logprobs + h->n, 1);
        }
    }
    text_printf(t, ",\"finish\":\"%s\"}", h->stopped ? "stop" : "length");
}

// One answer as a line: what would break the line or the terminal becomes a space.
static void plain_output(Text *t, const Program *p, const Hypothesis *h, const char *image, const char *text,
                         size_t len) {
    const size_t start = t->len;
    if (p->o.n_images > 1) text_printf(t, "%s\t", image);
    const size_t from = t->len;
    text_add(t, text, len);
    for (size_t i = from; i < t->len; i++) if ((uint8_t)t->data[i] < 0x20 || t->data[i] == 0x7F) t->data[i] = ' ';
    for (size_t i = start; i + 1 < from; i++) if ((uint8_t)t->data[i] < 0x20) t->data[i] = '?';
    if (p->o.scores) text_printf(t, "\t%.6f", h->score);
    text_add(t, "\n", 1);
}

static int print_answers(const Program *p, const char *image, const char *prompt, Err *e) {
    Text t = {0};
    int bad = 0;
    if (p->o.json) {
        text_printf(&t, "{\"image\":");
        text_json(&t, image, strlen(image));
        text_printf(&t, ",\"prompt\":");
        text_json(&t, prompt, strlen(prompt));
        text_printf(&t, ",\"outputs\":[");
    }
    for (int i = 0; i < p->how.captions && !bad; i++) {
        const Hypothesis h = p->backend->result(p->device, 0, i);
        Text decoded = {0};
        bad = h.broken ? fail(e, "the model's output is not finite; hint: --verify tells whether %s is damaged",
                              p->o.model)
                       : tokenizer_decode(&decoded, p->tokenizer, h.tokens, h.n, e);
        const char *text = decoded.data ? decoded.data : "";
        size_t len = decoded.len;
        strip(&text, &len);
        if (p->o.json && i) text_add(&t, ",", 1);
        if (p->o.json) json_output(&t, p, &h, text, len);
        else plain_output(&t, p, &h, image, text, len);
        text_free(&decoded);
    }
    if (p->o.json) text_printf(&t, "],\"seed\":%llu}\n", (unsigned long long)p->how.seed);
    if (!bad) fwrite(t.data, 1, t.len, stdout);
    text_free(&t);
    return bad;
}

// ---------------------------------------------------------------------------------------------------------
// Watching the stages pass by: for --dump their values, for -v their time.

static void said_time(Program *p, const char *stage) {
    const double t = now();
    if (p->o.verbose) fprintf(stderr, "time: %s %.4f s\n", stage, t - p->stage_start);
    p->stage_start = t;
}

static void watch(void *program, const char *name, const float *x, int rows, int cols) {
    Program *p = program;
    if (p->o.dump) dump_add(&p->dump, name, x, rows, cols);
    if (!strcmp(name, "vision_model.post_layernorm")) said_time(p, "vit");
    if (!strcmp(name, "language_projection")) said_time(p, "qformer");
    if (!strcmp(name, "logits")) said_time(p, "prompt");
}

// ---------------------------------------------------------------------------------------------------------
// One image: read it, encode it, and answer every prompt about it.

static int answer(Program *p, const char *image, const char *prompt, Err *e) {
    const Config *c = &p->model.config;
    int *ids;
    const int n = tokenizer_encode(&ids, p->tokenizer, prompt, strlen(prompt), e);
    if (n < 0) return fail_in(e, "prompt");
    const int ctx = given(p->o.ctx, c->family == OPT && c->positions - c->Q < 512 ? c->positions - c->Q : 512);
    if (n + p->how.max_new > ctx) {
        free(ids);
        return fail(e, "the prompt has %d tokens, which with -n %d is more than the context of %d; hint: shorten it, "
                       "lower -n or raise --ctx", n, p->how.max_new, ctx);
    }
    p->stage_start = now();
    p->backend->prompt(p->device, &(Prompt){.ids = ids, .n = n, .image = 0}, 1, &p->how);
    free(ids);
    int steps = 0;
    for (Step step; p->backend->step(p->device, &step);) steps++;
    char stage[32];
    snprintf(stage, sizeof stage, "decode %d steps", steps);
    said_time(p, stage);
    return print_answers(p, image, prompt, e);
}

static int look(Program *p, const char *path, Err *e) {
    ImageOptions opt = image_defaults();
    opt.obey_exif = !p->o.no_exif;
    Image im;
    p->stage_start = now();
    if (image_read(&im, path, &opt, e)) return -1;
    if (im.warning[0] && !p->o.quiet) fprintf(stderr, "blip2: warning: %s: %s\n", path, im.warning);
    const int bad = image_resize(p->pixels, im.rgb, im.W, im.H, p->model.config.S, e);
    image_free(&im);
    if (bad) return fail_in(e, "%s", path);
    said_time(p, "image");
    p->backend->encode(p->device, p->pixels, 1);
    for (int i = 0; i < p->o.prompts.n || i == 0; i++) {
        const char *prompt = p->o.prompts.n ? p->o.prompts.text[i] : p->model.config.prompt;
        if (answer(p, path, prompt, e)) return fail_in(e, "%s", path);
    }
    return 0;
}

static int flush_answers(Err *e) {
    if (fflush(stdout) == 0 && !ferror(stdout)) return 0;
    return fail(e, "cannot write to standard output: %s", strerror(errno));
}

static int all_images(Program *p) {
    Err e;
    int code = EXIT_OK;
    for (int i = 0; i < p->o.n_images; i++) {
        if (look(p, p->o.images[i], &e)) {
            complain(e.text);
            code = EXIT_INPUT;
        }
        // Nobody reads the answers any more: there is no point in going on.
        if (flush_answers(&e)) {
            complain(e.text);
            return EXIT_INPUT;
        }
    }
    if (p->o.dump && code == EXIT_OK && dump_write(&p->dump, p->o.dump, &e)) {
        complain(e.text);
        return EXIT_INPUT;
    }
    return code;
}

// ---------------------------------------------------------------------------------------------------------
// --tokenize and --detokenize: one record in, one line out; a bad record is reported and the rest go on.

static int tokenize_record(const Program *p, const char *text, size_t n, Err *e) {
    int *ids;
    const int count = tokenizer_encode(&ids, p->tokenizer, text, n, e);
    if (count < 0) return -1;
    putchar('[');
    for (int i = 0; i < count; i++) printf("%s%d", i ? ", " : "", ids[i]);
    printf("]\n");
    free(ids);
    return 0;
}

static const char *skip_blanks(const char *s) { return s + strspn(s, " \t\r\n"); }

static int detokenize_record(const Program *p, const char *line, size_t n, Err *e) {
    // line "[1, 2, 3]"
    int *ids = malloc((n / 2 + 1) * sizeof *ids), count = 0;
    if (!ids) return fail(e, "no memory for a line of %zu bytes", n);
    const char *s = skip_blanks(line);
    bool ok = *s++ == '[';
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
    Text text = {0};
    int bad = ok ? tokenizer_decode(&text, p->tokenizer, ids, count, e)
                 : fail(e, "expected a JSON array of token ids such as [2, 102, 1345], got '%.40s'", line);
    free(ids);
    if (!bad) {
        Text json = {0};
        text_json(&json, text.data ? text.data : "", text.len);
        printf("%s\n", json.data);
        text_free(&json);
    }
    text_free(&text);
    return bad;
}

static int text_records(const Program *p) {
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
    if (ferror(stdin)) {
        fail(&e, "cannot read standard input: %s", strerror(errno));
        complain(e.text);
        code = EXIT_INPUT;
    }
    free(line);
    if (flush_answers(&e)) {
        complain(e.text);
        code = EXIT_INPUT;
    }
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

static uint64_t available_memory(void) {
    FILE *f = fopen("/proc/meminfo", "r");
    char line[128];
    unsigned long long kb = 0;
    while (f && fgets(line, sizeof line, f)) if (sscanf(line, "MemAvailable: %llu", &kb) == 1) break;
    if (f) fclose(f);
    return kb ? (uint64_t)kb * 1024 : UINT64_MAX;
}

static int open_device(Program *p, const Limits *lim, Err *e) {
    p->backend = &backend_cpu;
    const uint64_t need = p->backend->bytes_needed(&p->model, lim), have = available_memory();
    if (need > have)
        return fail(e, "not enough memory: activations and KV cache need %.1f MB beside the %.1f MB weight file, and "
                       "%.1f MB are free; hint: lower --ctx, -b or -n",
                    need / 1e6, p->model.file_bytes / 1e6, have / 1e6);
    if (p->model.file_bytes > have - need && !p->o.quiet)
        fprintf(stderr, "blip2: warning: the weights (%.1f MB) do not fit into the %.1f MB that are free; "
                        "this will be slow\n",
                p->model.file_bytes / 1e6, (have - need) / 1e6);
    p->device = p->backend->open(&p->model, lim, e);
    p->pixels = malloc((size_t)p->model.config.S * p->model.config.S * 3);
    if (p->device && !p->pixels) return fail(e, "no memory for an image of %d pixels a side", p->model.config.S);
    return p->device ? 0 : -1;
}

static int load(Program *p, Err *e) {
    const double start = now();
    if (model_open(&p->model, p->o.model, e)) return -1;
    const Config *c = &p->model.config;
    if (p->o.verify && model_verify(&p->model, e)) return fail_in(e, "%s", p->o.model);
    p->tokenizer = tokenizer_open(p->model.tokenizer, p->model.tokenizer_bytes, c->V, c->image_token, e);
    if (!p->tokenizer) return fail_in(e, "%s", p->o.model);
    p->load_seconds = now() - start;
    if (p->o.verify && !p->o.quiet)
        fprintf(stderr, "blip2: %s: all %d tensors are intact\n", p->o.model, p->model.n_tensors);
    return 0;
}

static int run(Program *p) {
    Err e;
    if (load(p, &e)) {
        complain(e.text);
        return EXIT_MODEL;
    }
    if (p->o.tokenize || p->o.detokenize) return text_records(p);
    if (!p->o.n_images) return EXIT_OK;   // --verify alone
    Limits lim;
    if (settle(p, &lim, &e)) {
        complain(e.text);
        return EXIT_USAGE;
    }
    if (p->o.dump || p->o.verbose) {
        lim.probe = watch;
        lim.probe_arg = p;
        p->dump.S = p->model.config.S;
    }
    if (open_device(p, &lim, &e)) {
        complain(e.text);
        return EXIT_MODEL;
    }
    if (p->o.verbose) fprintf(stderr, "time: load %.4f s\n", p->load_seconds);
    return all_images(p);
}

int main(int argc, char **argv) {
    Program p = {0};
    Err e;
    if (check_streams()) {
        complain("standard output is closed, so there is nowhere to write answers to");
        return EXIT_INPUT;
    }
    signal(SIGPIPE, SIG_IGN);   // a write then fails and is reported
    signal(SIGINT, interrupted);
    if (options_parse(&p.o, argc, argv, &e)) {
        complain(e.text);
        return EXIT_USAGE;
    }
    if (p.o.help || p.o.version) {
        if (p.o.help) options_help(stdout);
        else printf("blip2 %s\nimages: %s\ncpu: %s\n", VERSION, image_formats(), matmul_isa(matmul_kernels(NULL)));
        if (flush_answers(&e) == 0) return EXIT_OK;
        complain(e.text);
        return EXIT_INPUT;
    }
    if (!p.o.model) fail(&e, "which model? hint: -m FILE, made with export/export.py; --help lists all options");
    else if (!p.o.n_images && !p.o.verify && !p.o.tokenize && !p.o.detokenize)
        fail(&e, "which image? hint: blip2 -m %s photo.jpg", p.o.model);
    else {
        const int code = run(&p);
        if (p.device) p.backend->close(p.device);
        tokenizer_close(p.tokenizer);
        model_close(&p.model);
        dump_free(&p.dump);
        free(p.pixels);
        return code;
    }
    complain(e.text);
    return EXIT_USAGE;
}
