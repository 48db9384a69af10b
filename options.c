// options.c: the command line (see options.h): the table of options, parsing, --help.
//
// Numbers must parse to the end and lie in their range; whatever is not in the table is an error. Which options
// contradict each other is decided at the end of options_parse, except where the model has a say (main.c).

#include "options.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { FLAG, INT, REAL, STRING, PROMPT, SEED };

typedef struct {
    char letter;             // short form, or 0
    const char *name;        // long form
    int kind;
    size_t field;            // offset in Options
    double lo, hi;           // range of a number
    const char *value;       // how --help calls the argument
    const char *help;
} Option;

#define AT(field) offsetof(Options, field)
static const Option OPTIONS[] = {
    {'m', "model", STRING, AT(model), 0, 0, "FILE", "weight file, written by export/export.py"},
    {0, "device", STRING, AT(device), 0, 0, "auto|cpu", "where to run [auto]"},
    {'p', "prompt", PROMPT, 0, 0, 0, "TEXT", "text before the answer; may be repeated, each is answered [the model's]"},
    {'b', "beams", INT, AT(beams), 1, MAX_BEAMS, "N", "beams; 1 is greedy [5]"},
    {'n', "max-new", INT, AT(max_new), 1, 65536, "N", "at most N new tokens [30]"},
    {'c', "captions", INT, AT(captions), 1, MAX_CAPTIONS, "N", "answers per image: the N best beams, or N samples [1]"},
    {0, "min-tokens", INT, AT(min_new), 0, 65536, "N", "at least N new tokens before the end [0]"},
    {0, "length-penalty", REAL, AT(length_penalty), -100, 100, "X", "beams are ranked by score / length^X [1]"},
    {0, "repeat-penalty", REAL, AT(repeat_penalty), 1e-3, 1e3, "X", "above 1 discourages tokens already there [1]"},
    {0, "nucleus", FLAG, AT(nucleus), 0, 0, NULL, "sample instead of searching; implies -b 1"},
    {0, "top-p", REAL, AT(top_p), 1e-6, 1, "X", "sample from the smallest set with this probability [0.9]"},
    {0, "top-k", INT, AT(top_k), 0, 4194304, "N", "sample from the N likeliest, 0 for all [50]"},
    {0, "temp", REAL, AT(temp), 1e-3, 1e3, "X", "temperature of sampling [1]"},
    {'s', "seed", SEED, AT(seed), 0, 0, "N", "seed of sampling [random, printed]"},
    {'t', "threads", INT, AT(threads), 1, 1024, "N", "CPU threads [all that this process may use]"},
    {0, "ctx", INT, AT(ctx), 2, 1048576, "N", "room for prompt and answer, in tokens [512]"},
    {0, "no-exif", FLAG, AT(no_exif), 0, 0, NULL, "do not turn images as their EXIF data say (as LAVIS)"},
    {0, "json", FLAG, AT(json), 0, 0, NULL, "one JSON object a line per image and prompt"},
    {0, "scores", FLAG, AT(scores), 0, 0, NULL, "with log-probabilities"},
    {0, "verify", FLAG, AT(verify), 0, 0, NULL, "check the weight file's checksums first"},
    {0, "dump", STRING, AT(dump), 0, 0, "FILE", "write every stage's output as safetensors"},
    {0, "tokenize", FLAG, AT(tokenize), 0, 0, NULL, "lines of text in, JSON arrays of token ids out"},
    {0, "detokenize", FLAG, AT(detokenize), 0, 0, NULL, "JSON arrays of token ids in, JSON strings out"},
    {'0', "null", FLAG, AT(nul), 0, 0, NULL, "--tokenize: records end with NUL instead of newline"},
    {'v', "verbose", FLAG, AT(verbose), 0, 0, NULL, "say on stderr how long each stage took"},
    {0, "quiet", FLAG, AT(quiet), 0, 0, NULL, "only errors on stderr"},
    {'h', "help", FLAG, AT(help), 0, 0, NULL, "this text"},
    {0, "version", FLAG, AT(version), 0, 0, NULL, "version and what this build can read"},
};
enum { N_OPTIONS = sizeof OPTIONS / sizeof *OPTIONS };

static const Option *find(const char *arg, size_t len) {
    // arg "-b" or "--beams", without "=value"
    for (int i = 0; i < N_OPTIONS; i++) {
        const Option *o = &OPTIONS[i];
        if (len == 2 && arg[1] == o->letter && o->letter) return o;
        if (len > 2 && arg[1] == '-' && strlen(o->name) == len - 2 && !memcmp(arg + 2, o->name, len - 2)) return o;
    }
    return NULL;
}

static int set(Options *opts, const Option *o, const char *name, const char *value, Err *e) {
    void *field = (char *)opts + o->field;
    char *end;
    errno = 0;
    switch (o->kind) {
    case FLAG:
        *(bool *)field = true;
        return 0;
    case STRING:
        *(const char **)field = value;
        return 0;
    case PROMPT:
        if (opts->n_prompts == MAX_PROMPTS) return fail(e, "%s: at most %d prompts", name, MAX_PROMPTS);
        opts->prompts[opts->n_prompts++] = value;
        return 0;
    case SEED: {
        const long long n = strtoll(value, &end, 10);
        if (end == value || *end || errno || n < 0)
            return fail(e, "%s takes a whole number from 0 to 9223372036854775807, not '%s'", name, value);
        *(int64_t *)field = n;
        return 0;
    }
    case INT: {
        const long n = strtol(value, &end, 10);
        if (end == value || *end || errno || n < o->lo || n > o->hi)
            return fail(e, "%s takes a whole number from %.0f to %.0f, not '%s'", name, o->lo, o->hi, value);
        *(int *)field = (int)n;
        return 0;
    }
    default: {
        const double x = strtod(value, &end);
        if (end == value || *end || errno || !(x >= o->lo && x <= o->hi))
            return fail(e, "%s takes a number from %g to %g, not '%s'", name, o->lo, o->hi, value);
        *(double *)field = x;
        return 0;
    }
    }
}

// What cannot be meant together, as far as the command line alone tells.
static int contradictions(const Options *o, Err *e) {
    if (o->tokenize && o->detokenize) return fail(e, "--tokenize and --detokenize: one at a time");
    if ((o->tokenize || o->detokenize) && o->n_images)
        return fail(e, "--tokenize and --detokenize read standard input, not '%s'", o->images[0]);
    if (o->nul && !o->tokenize) return fail(e, "-0 goes with --tokenize");
    if (o->nucleus && o->beams > 1) return fail(e, "--nucleus samples and cannot go with -b %d", o->beams);
    if (!o->nucleus && (!isnan(o->top_p) || !isnan(o->temp) || o->top_k != UNSET))
        return fail(e, "--top-p, --top-k and --temp change sampling; hint: add --nucleus");
    if (o->dump && (o->n_images != 1 || o->n_prompts > 1))
        return fail(e, "--dump takes exactly one image and one prompt");
    if (o->device && strcmp(o->device, "auto") && strcmp(o->device, "cpu"))
        return fail(e, "--device is auto or cpu, not '%s'", o->device);
    return 0;
}

int options_parse(Options *o, int argc, char **argv, Err *e) {
    *o = (Options){.beams = UNSET, .captions = UNSET, .max_new = UNSET, .min_new = UNSET, .top_k = UNSET,
                   .threads = UNSET, .ctx = UNSET, .seed = UNSET, .length_penalty = NAN, .repeat_penalty = NAN,
                   .top_p = NAN, .temp = NAN};
    // Images are gathered at the front of argv, in order.
    int n = 0;
    bool only_images = false;
    for (int i = 1; i < argc; i++) {
        const char *arg = argv[i];
        if (only_images || arg[0] != '-' || !arg[1]) {
            argv[n++] = argv[i];
            continue;
        }
        if (!strcmp(arg, "--")) { only_images = true; continue; }
        const char *equals = arg[1] == '-' ? strchr(arg, '=') : NULL;
        const Option *found = find(arg, equals ? (size_t)(equals - arg) : strlen(arg));
        if (!found) return fail(e, "unknown option '%s'; hint: --help lists them all", arg);
        const char *value = NULL;
        if (found->kind == FLAG) {
            if (equals) return fail(e, "--%s takes no value", found->name);
        } else if (equals) value = equals + 1;
        else if (i + 1 < argc) value = argv[++i];
        else return fail(e, "%s needs a value: %s", arg, found->value);
        if (set(o, found, arg, value, e)) return -1;
    }
    o->images = (const char **)argv;
    o->n_images = n;
    return contradictions(o, e);
}

void options_help(FILE *f) {
    fprintf(f, "usage: blip2 -m FILE [options] IMAGE...\n\n"
               "BLIP-2 looks at images and writes text about them, one line per answer on standard output.\n"
               "IMAGE is a file, or - for standard input.\n\n");
    for (int i = 0; i < N_OPTIONS; i++) {
        const Option *o = &OPTIONS[i];
        char left[64];
        snprintf(left, sizeof left, "%c%c%s --%s%s%s", o->letter ? '-' : ' ', o->letter ? o->letter : ' ',
                 o->letter ? "," : " ", o->name, o->value ? " " : "", o->value ? o->value : "");
        fprintf(f, "  %-26s %s\n", left, o->help);
    }
    fprintf(f, "\nexit code: 0 all right, 1 some input failed, 2 wrong usage, 3 the model could not be loaded,\n"
               "130 interrupted\n\n"
               "examples:\n"
               "  blip2 -m blip2-opt-2.7b.bin photo.jpg\n"
               "  blip2 -m blip2-opt-2.7b.bin -p 'Question: how many cats are there? Answer:' photo.jpg\n"
               "  blip2 -m blip2-opt-2.7b.bin --nucleus -c 3 -s 1 --json *.jpg\n");
}
