// test/test_options.c: the command line: what each option sets, the hint for a misspelt one, every contradiction, and
// that the table itself is sound. What the program does with it is in test_cli.sh.

#include "../options.h"
#include "check.h"

#include <stdlib.h>

static Tally t;

enum { MAX_WORDS = 600 };

// "a b 'c d'" -> words; parses them. The words stay valid until the next call.
static int parse(Options *o, const char *line, Err *e) {
    static char copy[8192];
    static char *words[MAX_WORDS];
    int n = 0;
    words[n++] = (char[]){"blip2"};
    snprintf(copy, sizeof copy, "%s", line);
    for (char *p = copy; *p;) {
        while (*p == ' ') *p++ = 0;
        if (!*p) break;
        const char end = *p == '\'' ? '\'' : ' ';
        p += *p == '\'';
        words[n++] = p;
        while (*p && *p != end) p++;
        if (*p) *p++ = 0;
    }
    return options_parse(o, n, words, e);
}

static void refuses(const char *line, const char *text) {
    Options o;
    Err e = {""};
    const int rc = parse(&o, line, &e);
    EXPECT(&t, rc == -1 && strstr(e.text, text) && !strchr(e.text, '\n'), "'%s': expected '%s', got '%s'", line, text,
           e.text);
}

static Options accepts(const char *line) {
    Options o;
    Err e = {""};
    EXPECT(&t, parse(&o, line, &e) == 0, "'%s': %s", line, e.text);
    return o;
}

static void table(void) {
    for (int i = 0; i < N_OPTIONS; i++) {
        const Option *a = &OPTIONS[i];
        EXPECT(&t, i == 0 || a->group >= OPTIONS[i - 1].group, "--%s is not with its group", a->name);
        EXPECT(&t, !a->value == (a->kind == KIND_FLAG), "--%s", a->name);
        EXPECT(&t, strlen(a->name) > 1 && strlen(a->name) < 20 && a->help[0], "--%s", a->name);
        EXPECT(&t, a->lo <= a->hi && a->field < sizeof(Options), "--%s", a->name);
        for (int j = 0; j < i; j++) {
            const Option *b = &OPTIONS[j];
            EXPECT(&t, strcmp(a->name, b->name) && (!a->letter || a->letter != b->letter) && a->field != b->field,
                   "--%s and --%s", a->name, b->name);
        }
    }
}

static void values(void) {
    Options o = accepts("a.jpg -m w.bin -q 'how many?' -q which -b 3 -n 7 --stop . --stop 'the end' -- -x.jpg");
    EXPECT(&t, o.n_images == 2 && !strcmp(o.images[0], "a.jpg") && !strcmp(o.images[1], "-x.jpg"), "images");
    EXPECT(&t, o.questions.n == 2 && !strcmp(o.questions.text[0], "how many?"), "questions");
    EXPECT(&t, o.stops.n == 2 && !strcmp(o.stops.text[1], "the end"), "stops");
    EXPECT(&t, o.beams == 3 && o.max_new == 7 && o.captions == UNSET && !strcmp(o.model, "w.bin"), "numbers");
    o = accepts("");
    EXPECT(&t, o.n_images == 0 && !o.model && !strcmp(o.device, "auto") && o.beams == UNSET && o.top_p != o.top_p &&
               o.no_repeat_ngram == UNSET && o.seed == UNSET && !o.completion && !o.images_from && !o.chat, "defaults");
    o = accepts("--stream a.jpg");
    EXPECT(&t, o.stream && o.beams == 1, "--stream implies -b 1, got %d", o.beams);
    o = accepts("--stream --nucleus a.jpg");
    EXPECT(&t, o.stream && o.nucleus, "--stream --nucleus");
    o = accepts("--images-from=- --context turns.txt -q x --no-repeat-ngram 3 --cpu-isa plain --vqa");
    EXPECT(&t, !strcmp(o.images_from, "-") && !strcmp(o.context, "turns.txt") && o.no_repeat_ngram == 3 && o.vqa &&
               !strcmp(o.cpu_isa, "plain"), "new options");
    o = accepts("--nucleus -c 3 --distinct a.jpg @list.txt https://example.org/a.jpg -");
    EXPECT(&t, o.distinct && o.n_images == 4 && !strcmp(o.images[1], "@list.txt"), "images of all kinds");
    o = accepts("-p '' -p '-' a.jpg --length-penalty -1.5");
    EXPECT(&t, o.prompts.n == 2 && o.length_penalty < -1.4, "odd prompts");
    const char *const devices[] = {"auto", "cpu", "cuda", "cuda:0", "cuda:15", "cuda:123456789"};
    for (size_t i = 0; i < sizeof devices / sizeof *devices; i++) {
        char line[64];
        snprintf(line, sizeof line, "--device %s a.jpg", devices[i]);
        EXPECT(&t, !strcmp(accepts(line).device, devices[i]), "%s", line);
    }
    EXPECT(&t, accepts("--chat a.jpg --context c.txt").chat && accepts("--info -m x --json").info, "modes");
    // whoever asks for help gets it, whatever else is there
    EXPECT(&t, accepts("--help --nucleus -b 3").help && accepts("-q a -p b --version").version, "help first");
    EXPECT(&t, !strcmp(accepts("--completion zsh").completion, "zsh") && accepts("--man").man, "texts");
    char many[8192] = "";
    for (int i = 0; i < MAX_PROMPTS; i++) strcat(many, "-q why ");
    EXPECT(&t, accepts(many).questions.n == MAX_PROMPTS, "as many questions as fit");
    strcat(many, "-q why");
    refuses(many, "at most 256 times");
}

static void misspelt(void) {
    static const char *const HINTS[][2] = {
        {"--beam 3", "did you mean --beams?"}, {"--baems", "did you mean --beams?"}, {"-beams", "--beams?"},
        {"--Beams=3", "'--Beams'; hint: did you mean --beams?"}, {"--quest", "did you mean --question?"},
        {"--qustion", "did you mean --question?"}, {"--temperature 1", "did you mean --temp?"},
        {"--num_beams", "did you mean --beams?"}, {"--max_new_tokens", "did you mean --max-new?"},
        {"--max-tokens", "did you mean --max-new?"}, {"--topp", "did you mean --top-p?"},
        {"--top_k", "did you mean --top-k?"}, {"--nuclues", "did you mean --nucleus?"},
        {"--length-penality", "did you mean --length-penalty?"}, {"--jsno", "did you mean --json?"},
        {"--vresion", "did you mean --version?"}, {"-b5", "did you mean -b 5?"}, {"-n=20", "did you mean -n 20?"},
        {"--gpu", "did you mean --device?"}, {"-help", "did you mean --help?"}, {"--no-exf", "--no-exif?"},
        {"--frobnicate", "hint: --help lists them all"}, {"-x", "--help lists"}, {"-bb", "--help lists"},
        {"---", "--help lists"}, {"--b", "--help lists"},
        {"--an-option-with-an-uncommonly-long-name-that-nobody-knows", "--help lists"},
    };
    for (size_t i = 0; i < sizeof HINTS / sizeof *HINTS; i++) refuses(HINTS[i][0], HINTS[i][1]);
    for (int i = 0; i < N_OPTIONS; i++) {       // one letter too many is always understood
        char line[64], want[64];
        snprintf(line, sizeof line, "--%sx", OPTIONS[i].name);
        snprintf(want, sizeof want, "did you mean --%s?", OPTIONS[i].name);
        refuses(line, want);
    }
}

static void contradictions(void) {
    static const char *const LINES[][2] = {
        {"-q a -p b x.jpg", "-p"}, {"-q '' x.jpg", "needs a question"}, {"-q '  ' x.jpg", "needs a question"},
        {"--stop '' x.jpg", "--stop needs"}, {"--context c.txt x.jpg", "add -q"}, {"--context c -p a x", "add -q"},
        {"--stream -b 5 x.jpg", "--stream cannot go with -b 5"}, {"--stream -c 2 x.jpg", "--stream cannot go with -c"},
        {"--stream --nucleus -c 2 x.jpg", "--stream cannot go with -c 2"}, {"--stream --json x.jpg", "--json"},
        {"--show --json x.jpg", "--show"}, {"-v --quiet x.jpg", "--quiet"}, {"--distinct x.jpg", "add --nucleus"},
        {"--chat a.jpg b.jpg", "/image"}, {"--chat -", "standard input"}, {"--chat a.jpg -q x", "--context"},
        {"--chat a.jpg -p x", "-p"}, {"--chat a.jpg --json", "--json"}, {"--chat a.jpg -c 2", "-c 2"},
        {"--chat a.jpg --images-from l", "/image"}, {"--chat a.jpg --dump d", "--dump"},
        {"--chat a.jpg --info", "one at a time"}, {"--info x.jpg", "--info"}, {"--info --tokenize", "one at a time"},
        {"--info --verify x.jpg", "--info"}, {"--tokenize --detokenize", "one at a time"}, {"-0", "-0 goes with"},
        {"--tokenize x.jpg", "standard input"}, {"--detokenize --images-from l", "standard input"},
        {"--images-from - -", "only once"}, {"- -", "only once"}, {"- --context - -q a", "only once"},
        {"@- -", "only once"}, {"--chat x.jpg --context -", "only once"},
        {"--images-from - --context - -q a", "only once"},
        {"--dump d", "exactly one"}, {"--dump d @list", "exactly one"}, {"--dump d -q a -q b x.jpg", "exactly one"},
        {"--dump d --images-from l", "exactly one"}, {"--dump d --images-from l x", "exactly one"},
        {"--device cuda --cpu-isa plain x", "--cpu-isa"}, {"--device gpu x", "auto|cpu|cuda"},
        {"--device cuda: x", "auto|cpu"}, {"--device cuda:x x", "auto|cpu"}, {"--device cuda:1234567890 x", "auto|cpu"},
        {"--device cuda:-1 x", "auto|cpu"}, {"--device cpu:0 x", "auto|cpu"}, {"--device '' x", "auto|cpu"},
        {"--device auto|cpu x", "auto|cpu"}, {"--device cud x", "auto|cpu"}, {"--device=cuda[ x", "--device is one of"},
        {"--completion csh", "bash|zsh|fish"}, {"--completion", "needs a value"}, {"--context", "needs a value"},
        {"-q", "needs a value: TEXT"}, {"-m --json x", "--model=--json if"}, {"-q -b 5 x", "needs a value"},
        {"-m ''", "needs a value"}, {"--images-from= x", "needs a value"}, {"--no-repeat-ngram -1 x", "takes a whole"},
        {"--verbose=yes x", "takes no value"}, {"--nucleus -b 2 x", "-b 2"}, {"--max-new=zero x", "--max-new takes"},
    };
    for (size_t i = 0; i < sizeof LINES / sizeof *LINES; i++) refuses(LINES[i][0], LINES[i][1]);
}

// Whatever is typed: an answer, no crash (run under the sanitizers).
static void random_lines(void) {
    static const char *const PIECES[] = {"-", "--", "=", "b", "beams", "cuda:", "5", "|", "[", "@", "q", "'", "stop",
                                         "\xff", "images-from", " ", " ", " ", "999999999999999999999", "nucleus"};
    unsigned seed = 1;
    int refused = 0;
    for (int i = 0; i < 20000; i++) {
        char line[256] = "";
        for (int j = 0; j < 10; j++) {
            seed = seed * 1103515245u + 12345u;
            strcat(line, PIECES[(seed >> 16) % (sizeof PIECES / sizeof *PIECES)]);
        }
        Options o;
        Err e = {""};
        const int rc = parse(&o, line, &e);
        if (rc == 0 ? e.text[0] != 0 : !e.text[0]) EXPECT(&t, false, "'%s': %d, '%s'", line, rc, e.text);
        refused += rc != 0;
    }
    EXPECT(&t, refused > 1000 && refused < 20000, "%d refused", refused);
}

int main(void) {
    table();
    values();
    misspelt();
    contradictions();
    random_lines();
    return tally_close(&t);
}
