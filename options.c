// options.c: the command line (see options.h): the table of options, finding one by name, parsing.
//
// Numbers must parse to the end and lie in their range; whatever is not in the table is an error that names the
// nearest option. Which options contradict each other is decided at the end of options_parse, except where the model
// has a say (main.c). Not here: printing the table (options_text.c), reading the files that are named.

#include "options.h"

#include <ctype.h>
#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#define FLAG(field) KIND_FLAG, offsetof(Options, field), 0, 0, NULL
#define INT(field, lo, hi) KIND_INT, offsetof(Options, field), lo, hi, "N"
#define REAL(field, lo, hi) KIND_REAL, offsetof(Options, field), lo, hi, "X"
#define STRING(field, value) KIND_STRING, offsetof(Options, field), 0, 0, value
#define TEXTS(field, room) KIND_TEXTS, offsetof(Options, field), 0, room, "TEXT"
#define ONE_OF(field, words) KIND_ONE_OF, offsetof(Options, field), 0, 0, words
#define SEED(field) KIND_SEED, offsetof(Options, field), 0, 0, "N"

const Option OPTIONS[] = {
    {IN_MODEL, 'm', "model", STRING(model, "FILE"), "weight file, written by export/export.py", "the demo model"},
    {IN_MODEL, 0, "device", ONE_OF(device, "auto|cpu|cuda[:N]"),
     "GPU number N; auto: GPU 0 when it works, else the CPU, and says why", "auto"},
    {IN_MODEL, 't', "threads", INT(threads, 1, 1024), "CPU threads", "all that this process may use"},
    {IN_MODEL, 0, "cpu-isa", STRING(cpu_isa, "NAME"), "force this version of the CPU's inner loops, e.g. plain",
     "the fastest"},
    {IN_MODEL, 0, "ctx", INT(ctx, 2, 1048576), "room for prompt and answer, in tokens", "512"},
    {IN_MODEL, 0, "verify", FLAG(verify), "check the weight file's checksums first", NULL},
    {IN_MODEL, 0, "info", FLAG(info), "say what is in the weight file and what it needs, and end", NULL},

    {IN_INPUT, 0, "images-from", STRING(images_from, "FILE|-"), "more images, one name a line; like @FILE", NULL},
    {IN_INPUT, 0, "no-exif", FLAG(no_exif), "do not turn images as their EXIF data say (as LAVIS)", NULL},

    {IN_ASKING, 'q', "question", TEXTS(questions, MAX_PROMPTS), "ask this; repeated, each question sees those before",
     NULL},
    {IN_ASKING, 'p', "prompt", TEXTS(prompts, MAX_PROMPTS), "text before the answer, raw; repeated, each is answered",
     "the model's"},
    {IN_ASKING, 0, "context", STRING(context, "FILE"), "earlier turns, a question TAB answer a line", NULL},
    {IN_ASKING, 0, "chat", STRING(chat, "IMAGE"), "talk about this image; /help inside tells more", NULL},
    {IN_ASKING, 0, "vqa", FLAG(vqa), "short answers as LAVIS's predict_answers: -n 10, length penalty 0 (T5: -1)",
     NULL},

    {IN_CHOOSING, 'b', "beams", INT(beams, 1, MAX_BEAMS), "beams; 1 is greedy", "5"},
    {IN_CHOOSING, 'n', "max-new", INT(max_new, 1, 65536), "at most N new tokens", "30"},
    {IN_CHOOSING, 0, "min-tokens", INT(min_new, 0, 65536), "at least N new tokens before the end", "0"},
    {IN_CHOOSING, 'c', "captions", INT(captions, 1, MAX_CAPTIONS), "answers per image: the N best beams, or N samples",
     "1"},
    {IN_CHOOSING, 0, "length-penalty", REAL(length_penalty, -100, 100), "beams are ranked by score / length^X", "1"},
    {IN_CHOOSING, 0, "repeat-penalty", REAL(repeat_penalty, 1e-3, 1e3), "above 1 discourages tokens already there",
     "1"},
    {IN_CHOOSING, 0, "no-repeat-ngram", INT(no_repeat_ngram, 0, 65536), "no N tokens in a row come twice; 0 is off",
     "0"},
    {IN_CHOOSING, 0, "stop", TEXTS(stops, MAX_STOPS), "end the answer before this text; may be repeated", NULL},
    {IN_CHOOSING, 0, "nucleus", FLAG(nucleus), "sample instead of searching; implies -b 1", NULL},
    {IN_CHOOSING, 0, "distinct", FLAG(distinct), "samples that differ from each other", NULL},
    {IN_CHOOSING, 0, "top-p", REAL(top_p, 1e-6, 1), "sample from the smallest set with this probability", "0.9"},
    {IN_CHOOSING, 0, "top-k", INT(top_k, 0, 4194304), "sample from the N likeliest, 0 for all", "50"},
    {IN_CHOOSING, 0, "temp", REAL(temp, 1e-3, 1e3), "temperature of sampling", "1"},
    {IN_CHOOSING, 's', "seed", SEED(seed), "seed of sampling", "random, printed"},

    {IN_OUTPUT, 0, "stream", FLAG(stream), "write words as they come; implies -b 1", NULL},
    {IN_OUTPUT, 0, "show", FLAG(show), "draw the image in the terminal", NULL},
    {IN_OUTPUT, 0, "json", FLAG(json), "one JSON object a line per image and prompt", NULL},
    {IN_OUTPUT, 0, "scores", FLAG(scores), "with log-probabilities", NULL},
    {IN_OUTPUT, 0, "dump", STRING(dump, "FILE"), "write every stage's output as safetensors", NULL},
    {IN_OUTPUT, 0, "tokenize", FLAG(tokenize), "lines of text in, JSON arrays of token ids out", NULL},
    {IN_OUTPUT, 0, "detokenize", FLAG(detokenize), "JSON arrays of token ids in, JSON strings out", NULL},
    {IN_OUTPUT, '0', "null", FLAG(nul), "--tokenize: records end with NUL instead of newline", NULL},

    {IN_TELLING, 'v', "verbose", FLAG(verbose), "say on stderr how long each stage took, how fast, how much memory",
     NULL},
    {IN_TELLING, 0, "quiet", FLAG(quiet), "only errors on stderr", NULL},
    {IN_TELLING, 'h', "help", FLAG(help), "this text", NULL},
    {IN_TELLING, 0, "version", FLAG(version), "version and what this build can do", NULL},
    {IN_TELLING, 0, "completion", ONE_OF(completion, "bash|zsh|fish"), "print the completions of that shell", NULL},
    {IN_TELLING, 0, "man", FLAG(man), "print the manual page, for man -l -", NULL},
};
const int N_OPTIONS = sizeof OPTIONS / sizeof *OPTIONS;

// ---------------------------------------------------------------------------------------------------------
// Finding an option, or the one that was meant.

static const Option *find(const char *arg, size_t len) {
    // arg "-b" or "--beams", without "=value"
    for (int i = 0; i < N_OPTIONS; i++) {
        const Option *o = &OPTIONS[i];
        if (len == 2 && arg[1] == o->letter && o->letter) return o;
        if (len > 2 && arg[1] == '-' && strlen(o->name) == len - 2 && !memcmp(arg + 2, o->name, len - 2)) return o;
    }
    return NULL;
}

// How many letters must be put in, left out, changed or swapped with their neighbour to make b of a (optimal string
// alignment). Words are below MAX_WORD bytes long.
enum { MAX_WORD = 32 };

static int distance(const char *a, int na, const char *b, int nb) {
    int d[MAX_WORD + 1][MAX_WORD + 1];
    for (int i = 0; i <= na; i++) {
        for (int j = 0; j <= nb; j++) {
            if (!i || !j) { d[i][j] = i + j; continue; }
            int best = d[i - 1][j - 1] + (a[i - 1] != b[j - 1]);
            if (d[i - 1][j] + 1 < best) best = d[i - 1][j] + 1;
            if (d[i][j - 1] + 1 < best) best = d[i][j - 1] + 1;
            if (i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] && d[i - 2][j - 2] + 1 < best)
                best = d[i - 2][j - 2] + 1;
            d[i][j] = best;
        }
    }
    return d[na][nb];
}

// What other programs call the same, too far away for distance().
static const char *const ELSEWHERE[][2] = {
    {"temperature", "temp"}, {"num-beams", "beams"}, {"beam-size", "beams"}, {"max-new-tokens", "max-new"},
    {"max-tokens", "max-new"}, {"n-predict", "max-new"}, {"max-length", "max-new"}, {"min-length", "min-tokens"},
    {"repetition-penalty", "repeat-penalty"}, {"num-captions", "captions"}, {"num-return-sequences", "captions"},
    {"no-repeat-ngram-size", "no-repeat-ngram"}, {"sample", "nucleus"}, {"do-sample", "nucleus"}, {"gpu", "device"},
    {"silent", "quiet"}, {"usage", "help"}, {"interactive", "chat"},
};

// The name of the option that "--beam", "-beams" or "--num_beams" may have meant, or NULL.
static const char *nearest(const char *arg) {
    while (*arg == '-') arg++;
    char word[MAX_WORD];
    int n = 0;
    for (; arg[n] && arg[n] != '=' && n < MAX_WORD; n++) word[n] = arg[n] == '_' ? '-' : (char)tolower((uint8_t)arg[n]);
    if (n < 3 || n == MAX_WORD) return NULL;
    for (size_t i = 0; i < sizeof ELSEWHERE / sizeof *ELSEWHERE; i++)
        if (strlen(ELSEWHERE[i][0]) == (size_t)n && !memcmp(ELSEWHERE[i][0], word, (size_t)n)) return ELSEWHERE[i][1];
    const char *best = NULL;
    int best_cost = n / 3 + 1;                       // that many changes make another word
    for (int i = 0; i < N_OPTIONS; i++) {
        const int len = (int)strlen(OPTIONS[i].name);
        int cost = distance(word, n, OPTIONS[i].name, len);
        if (cost > 1 && n < len && !memcmp(word, OPTIONS[i].name, (size_t)n)) cost = 1;     // "--quest"
        if (cost < best_cost) {
            best_cost = cost;
            best = OPTIONS[i].name;
        }
    }
    return best;
}

static int unknown(const char *arg, Err *e) {
    const char *name = nearest(arg);
    const size_t len = strcspn(arg, "=");
    if (name) return fail(e, "unknown option '%.*s'; hint: did you mean --%s?", (int)len, arg, name);
    const Option *o = arg[1] == '-' ? NULL : find(arg, 2);
    if (o && o->value && (isdigit((uint8_t)arg[2]) || arg[2] == '='))        // "-b5", "-b=5"
        return fail(e, "unknown option '%s'; hint: did you mean -%c %s?", arg, o->letter, arg + 2 + (arg[2] == '='));
    return fail(e, "unknown option '%s'; hint: --help lists them all", arg);
}

// ---------------------------------------------------------------------------------------------------------
// Values.

// Is value one of the words of "auto|cpu|cuda[:N]"? [:N] stands for nothing or a colon and a number of at most nine
// digits.
static bool one_of(const char *words, const char *value) {
    const size_t n = strcspn(value, ":");
    for (const char *w = words; *w; w += strcspn(w, "|"), w += *w == '|') {
        const size_t len = strcspn(w, "|[");
        if (n != len || memcmp(w, value, n)) continue;
        if (!value[n]) return true;
        const char *number = value + n + 1;
        const size_t digits = strspn(number, "0123456789");
        return w[len] == '[' && digits >= 1 && digits <= 9 && !number[digits];
    }
    return false;
}

static int set(Options *opts, const Option *o, const char *name, const char *value, Err *e) {
    void *field = (char *)opts + o->field;
    char *end;
    errno = 0;
    switch (o->kind) {
    case KIND_FLAG:
        *(bool *)field = true;
        return 0;
    case KIND_ONE_OF:
        if (!one_of(o->value, value)) return fail(e, "%s is one of %s, not '%s'", name, o->value, value);
        *(const char **)field = value;
        return 0;
    case KIND_STRING:
        if (!*value) return fail(e, "%s needs a value: %s", name, o->value);
        *(const char **)field = value;
        return 0;
    case KIND_TEXTS: {
        TextList *list = field;
        if (list->n == (int)o->hi) return fail(e, "%s: at most %d times", name, list->n);
        list->text[list->n++] = value;
        return 0;
    }
    case KIND_SEED: {
        const long long n = strtoll(value, &end, 10);
        if (end == value || *end || errno || n < 0)
            return fail(e, "%s takes a whole number from 0 to 9223372036854775807, not '%s'", name, value);
        *(int64_t *)field = n;
        return 0;
    }
    case KIND_INT: {
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

// ---------------------------------------------------------------------------------------------------------
// What cannot be meant together, as far as the command line alone tells.

// Modes that do something else than to answer about images: at most one, and nothing of what they do not use.
static int modes(const Options *o, Err *e) {
    const char *mode = o->tokenize ? "--tokenize" : o->detokenize ? "--detokenize" : o->info ? "--info" :
                       o->chat ? "--chat" : NULL;
    if (!mode) return 0;
    if (o->tokenize + o->detokenize + o->info + !!o->chat > 1)
        return fail(e, "%s and %s: one at a time", mode,
                    o->chat ? "--chat" : o->info ? "--info" : "--detokenize");
    const char *image = o->n_images ? o->images[0] : o->images_from;
    if (image && (o->tokenize || o->detokenize))
        return fail(e, "--tokenize and --detokenize read standard input, not '%s'", image);
    if (image && o->info) return fail(e, "--info looks at the weight file alone, not at '%s'", image);
    if (image) return fail(e, "--chat %s is about one image; hint: '%s' can follow with /image", o->chat, image);
    if (o->chat && !strcmp(o->chat, "-"))
        return fail(e, "--chat - : the questions come from standard input, so the image cannot");
    if (o->prompts.n) return fail(e, "%s and -p do not go together", mode);
    if (o->questions.n)
        return fail(e, "%s and -q do not go together%s", mode,
                    o->chat ? "; hint: --context FILE gives earlier turns" : "");
    if (o->dump) return fail(e, "%s and --dump do not go together", mode);
    if (o->json && o->chat) return fail(e, "--chat is for people and --json for programs; hint: -q with --json");
    if (o->captions > 1 && o->chat) return fail(e, "--chat gives one answer to a question, not -c %d", o->captions);
    return 0;
}

static int contradictions(const Options *o, Err *e) {
    if (o->questions.n && o->prompts.n)
        return fail(e, "-q makes the prompt that -p gives raw; hint: use one of them");
    for (int i = 0; i < o->questions.n; i++)
        if (!o->questions.text[i][strspn(o->questions.text[i], " \t\r\n")]) return fail(e, "-q needs a question");
    for (int i = 0; i < o->stops.n; i++) if (!*o->stops.text[i]) return fail(e, "--stop needs a text");
    if (modes(o, e)) return -1;
    if (o->context && !o->questions.n && !o->chat)
        return fail(e, "--context gives turns that come before a question; hint: add -q or --chat");
    if (o->nul && !o->tokenize) return fail(e, "-0 goes with --tokenize");
    if (o->nucleus && o->beams > 1) return fail(e, "--nucleus samples and cannot go with -b %d", o->beams);
    if (!o->nucleus && (!isnan(o->top_p) || !isnan(o->temp) || o->top_k != UNSET || o->distinct))
        return fail(e, "--top-p, --top-k, --temp and --distinct change sampling; hint: add --nucleus");
    if (o->stream && o->beams > 1)
        return fail(e, "--stream cannot go with -b %d: beams change their mind until the end; hint: -b 1", o->beams);
    if (o->stream && o->captions > 1)
        return fail(e, "--stream cannot go with -c %d: several answers grow at once; hint: -c 1", o->captions);
    if (o->stream && o->json) return fail(e, "--stream writes words and --json whole lines; hint: use one of them");
    if (o->show && o->json) return fail(e, "--show is for people and --json for programs; hint: use one of them");
    if (o->verbose && o->quiet) return fail(e, "-v and --quiet contradict each other");
    if (o->dump && (o->n_images != 1 || o->images_from || o->images[0][0] == '@' || o->prompts.n > 1 ||
                    o->questions.n > 1))
        return fail(e, "--dump takes exactly one image and one prompt");
    if (o->cpu_isa && !strncmp(o->device, "cuda", 4))
        return fail(e, "--cpu-isa and --device %s do not go together", o->device);
    int from_stdin = o->images_from && !strcmp(o->images_from, "-");
    for (int i = 0; i < o->n_images; i++) from_stdin += !strcmp(o->images[i], "-") || !strcmp(o->images[i], "@-");
    if (o->context && !strcmp(o->context, "-")) from_stdin += 1 + !!o->chat;
    if (from_stdin > 1) return fail(e, "standard input (-) can be read only once");
    return 0;
}

int options_parse(Options *o, int argc, char **argv, Err *e) {
    *o = (Options){.device = "auto", .beams = UNSET, .captions = UNSET, .max_new = UNSET, .min_new = UNSET,
                   .top_k = UNSET, .no_repeat_ngram = UNSET, .threads = UNSET, .ctx = UNSET, .seed = UNSET,
                   .length_penalty = NAN, .repeat_penalty = NAN, .top_p = NAN, .temp = NAN};
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
        if (!found) return unknown(arg, e);
        const char *value = NULL;
        if (found->kind == KIND_FLAG) {
            if (equals) return fail(e, "--%s takes no value", found->name);
        } else if (equals) value = equals + 1;
        else if (i + 1 == argc) return fail(e, "%s needs a value: %s", arg, found->value);
        else {
            value = argv[++i];
            const bool text = found->kind == KIND_STRING || found->kind == KIND_TEXTS;
            if (text && value[0] == '-' && value[1] && find(value, strcspn(value, "=")))
                return fail(e, "%s needs a value: %s, and '%s' is an option; hint: --%s=%s if it is the value", arg,
                            found->value, value, found->name, value);
        }
        char name[MAX_WORD];
        snprintf(name, sizeof name, "%.*s", equals ? (int)(equals - arg) : MAX_WORD, arg);
        if (set(o, found, name, value, e)) return -1;
    }
    o->images = (const char **)argv;
    o->n_images = n;
    if (o->help || o->version || o->man || o->completion) return 0;
    if (contradictions(o, e)) return -1;
    if (o->stream && o->beams == UNSET) o->beams = 1;
    return 0;
}
