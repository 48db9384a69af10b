// options_text.c: the table of options (options.h) as text for people and for shells.
//
// In order: what else these texts are made of (groups, exit codes, examples), --help, the manual page, completion in
// bash, zsh and fish. test/test_examples.sh runs the examples, `make doc/blip2.1` writes the manual page to its file.

#include "options.h"

#include <string.h>

static const char *const GROUPS[N_GROUPS] = {"model", "input", "asking", "choosing words", "output", "telling"};

static const char ABOUT[] =
    "BLIP-2 looks at images and writes text about them, one line per answer on standard output.";

static const struct { int code; const char *what; } EXITS[] = {
    {0, "all right"}, {1, "some input failed, the rest was done"}, {2, "wrong usage"},
    {3, "the model or the device could not be used, or has no memory"}, {130, "interrupted"},
};
enum { N_EXITS = sizeof EXITS / sizeof *EXITS };

// --help shows the first three.
static const struct { const char *what, *command; } EXAMPLES[] = {
    {"A caption.", "blip2 -m blip2-opt-2.7b.bin photo.jpg"},
    {"Two questions; the second one is asked with the first and its answer in view.",
     "blip2 -m blip2-opt-2.7b.bin -q 'how many cats are there?' -q 'what are they doing?' photo.jpg"},
    {"Three different samples for each of several images, as JSON.",
     "blip2 -m blip2-opt-2.7b.bin --nucleus -c 3 -s 1 --json *.jpg"},
    {"The five best captions with their scores, by the demo model.", "blip2 -c 5 --scores photo.jpg"},
    {"A short answer that takes earlier turns into account.",
     "blip2 --vqa --context turns.txt -q 'and the other one?' photo.jpg"},
    {"An image from standard input.", "blip2 - <photo.jpg"},
    {"All images below a folder.", "find photos -name '*.jpg' | sort | blip2 --images-from -"},
    {"A greedy caption, word by word.", "blip2 --stream photo.jpg"},
    {"A conversation; on a terminal without \"<questions.txt\".", "blip2 --chat photo.jpg <questions.txt"},
    {"What a weight file holds and how much memory it needs.", "blip2 -m blip2-opt-2.7b.bin --info"},
    {"Is the weight file intact?", "blip2 -m blip2-opt-2.7b.bin --verify"},
};
enum { N_EXAMPLES = sizeof EXAMPLES / sizeof *EXAMPLES };

// ---------------------------------------------------------------------------------------------------------
// --help.

void options_help(FILE *f) {
    fprintf(f, "usage: blip2 [options] IMAGE...\n\n%s\n"
               "IMAGE is a file, a URL (http, https), @FILE with a list of images, or - for standard input.\n", ABOUT);
    for (int i = 0; i < N_OPTIONS; i++) {
        const Option *o = &OPTIONS[i];
        char left[64];
        if (!i || o->group != OPTIONS[i - 1].group) fprintf(f, "\n%s:\n", GROUPS[o->group]);
        snprintf(left, sizeof left, "%c%c%s --%s%s%s", o->letter ? '-' : ' ', o->letter ? o->letter : ' ',
                 o->letter ? "," : " ", o->name, o->value ? " " : "", o->value ? o->value : "");
        fprintf(f, "  %-30s %s%s%s%s\n", left, o->help, o->standard ? " [" : "", o->standard ? o->standard : "",
                o->standard ? "]" : "");
    }
    fprintf(f, "\nexit code:\n");
    for (int i = 0; i < N_EXITS; i++) fprintf(f, "  %-4d %s\n", EXITS[i].code, EXITS[i].what);
    fprintf(f, "\nexamples:\n");
    for (int i = 0; i < 3; i++) fprintf(f, "  %s\n", EXAMPLES[i].command);
}

// ---------------------------------------------------------------------------------------------------------
// The manual page, in the man(7) macros.

// Text as roff shows it unchanged: no hyphens for minus signs, no escapes, no control lines.
static void roff(FILE *f, const char *text) {
    if (*text == '.' || *text == '\'') fputs("\\&", f);
    for (; *text; text++) {
        if (*text == '-') fputs("\\-", f);
        else if (*text == '\\') fputs("\\e", f);
        else if (*text == '\'') fputs("\\(aq", f);
        else if (*text == '~') fputs("\\(ti", f);
        else if (*text == '^') fputs("\\(ha", f);
        else fputc(*text, f);
    }
}

static void man_option(FILE *f, const Option *o) {
    fputs(".TP\n", f);
    if (o->letter) fprintf(f, "\\fB\\-%c\\fR, ", o->letter);
    fputs("\\fB\\-\\-", f);
    roff(f, o->name);
    fputs("\\fR", f);
    if (o->value) {
        fputs(" \\fI", f);
        roff(f, o->value);
        fputs("\\fR", f);
    }
    fputs("\n", f);
    roff(f, o->help);
    if (o->standard) {
        fputs(" [", f);
        roff(f, o->standard);
        fputs("]", f);
    }
    fputs("\n", f);
}

static const char DESCRIPTION[] =
    ".PP\n"
    "\\fIIMAGE\\fR is a file (JPEG, PNG, WebP, BMP, GIF, PNM), a URL (http, https), \\fB@\\fIFILE\\fR with names of\n"
    "images, one a line, or \\fB\\-\\fR for standard input.\n"
    "With more than one image each line begins with the image's name and a tab.\n"
    "What cannot be read is reported on standard error, and the rest is done.\n"
    ".PP\n"
    "Without a prompt or a question the model captions the image.\n"
    "\\fB\\-q\\fR builds the prompt that the model was trained with, \"Question: ... Answer:\"; each further question\n"
    "sees the earlier turns, \"Question: ... Answer: ... .\", before its own.\n"
    "A context that outgrows the model's limit loses its oldest turns, which is said on standard error.\n"
    "\\fB\\-p\\fR gives the prompt as it is.\n";

static const char JSON[] =
    ".SH JSON\n"
    "With \\fB\\-\\-json\\fR a line is an object with \\fIimage\\fR, \\fIprompt\\fR, \\fIoutputs\\fR and\n"
    "\\fIseed\\fR.\n"
    "Each output has \\fItext\\fR, \\fItokens\\fR (without prompt and end token), \\fIscore\\fR and \\fIfinish\\fR\n"
    "(\"stop\" or \"length\"); \\fB\\-\\-scores\\fR adds \\fIlogprobs\\fR, one for each token, and\n"
    "\\fIend_logprob\\fR when the answer ended.\n"
    "An image that failed is an object with \\fIimage\\fR and \\fIerror\\fR.\n";

void options_man(FILE *f) {
    fputs(".\\\" Printed by blip2 --man from the table in options.c; do not edit.\n"
          ".TH BLIP2 1 2026-11-24 blip2.c \"User Commands\"\n"
          ".SH NAME\nblip2 \\- captions images and answers questions about them\n"
          ".SH SYNOPSIS\n.B blip2\n[\\fIoptions\\fR] \\fIIMAGE\\fR...\n"
          ".SH DESCRIPTION\n", f);
    roff(f, ABOUT);
    fprintf(f, "\n%s.SH OPTIONS\nWhat holds without an option stands in brackets.\n", DESCRIPTION);
    for (int i = 0; i < N_OPTIONS; i++) {
        if (!i || OPTIONS[i].group != OPTIONS[i - 1].group) fprintf(f, ".SS %s\n", GROUPS[OPTIONS[i].group]);
        man_option(f, &OPTIONS[i]);
    }
    fputs(JSON, f);
    fputs(".SH EXIT STATUS\n", f);
    for (int i = 0; i < N_EXITS; i++) fprintf(f, ".TP\n%d\n%s\n", EXITS[i].code, EXITS[i].what);
    fputs(".SH EXAMPLES\n", f);
    for (int i = 0; i < N_EXAMPLES; i++) {
        fputs(i ? ".PP\n" : "", f);
        roff(f, EXAMPLES[i].what);
        fputs("\n.PP\n.nf\n.RS\n", f);
        roff(f, EXAMPLES[i].command);
        fputs("\n.RE\n.fi\n", f);
    }
}

// ---------------------------------------------------------------------------------------------------------
// Completion. What an option's argument is follows from how the table calls it.

static bool takes_files(const Option *o) { return o->value && (strstr(o->value, "FILE") || strstr(o->value, "IMAGE")); }

// "auto|cpu|cuda[:N]" -> auto cpu cuda
static void put_words(FILE *f, const char *value) {
    for (const char *w = value; *w; w += strcspn(w, "|"), w += *w == '|')
        fprintf(f, "%s%.*s", w == value ? "" : " ", (int)strcspn(w, "|["), w);
}

// Text within single quotes, with what the shell wants before each character of `special` and before a quote.
static void quoted(FILE *f, const char *text, const char *special, const char *quote) {
    for (; *text; text++) {
        if (*text == '\'') fputs(quote, f);
        else fprintf(f, "%s%c", strchr(special, *text) ? "\\" : "", *text);
    }
}

// A case pattern "-m|--model|..." of the options for which `wanted` holds.
static void bash_pattern(FILE *f, bool (*wanted)(const Option *)) {
    const char *before = "    ";
    for (int i = 0; i < N_OPTIONS; i++) {
        if (!wanted(&OPTIONS[i])) continue;
        if (OPTIONS[i].letter) fprintf(f, "%s-%c|--%s", before, OPTIONS[i].letter, OPTIONS[i].name);
        else fprintf(f, "%s--%s", before, OPTIONS[i].name);
        before = "|";
    }
    fputs(")", f);
}

static bool takes_text(const Option *o) { return o->value && o->kind != KIND_ONE_OF && !takes_files(o); }

static void bash(FILE *f) {
    fputs("# Completion of blip2 for bash, printed by: blip2 --completion bash\n"
          "_blip2() {\n"
          "    local cur=${COMP_WORDS[COMP_CWORD]} prev=${COMP_WORDS[COMP_CWORD-1]} words= prefix= line\n"
          "    if [[ $cur == = ]]; then cur=\n"
          "    elif [[ $prev == = ]]; then prev=${COMP_WORDS[COMP_CWORD-2]}; fi\n"
          "    COMPREPLY=()\n"
          "    case $prev in\n", f);
    for (int i = 0; i < N_OPTIONS; i++) {
        if (OPTIONS[i].kind != KIND_ONE_OF) continue;
        fprintf(f, "    --%s) words='", OPTIONS[i].name);
        put_words(f, OPTIONS[i].value);
        fputs("' ;;\n", f);
    }
    bash_pattern(f, takes_text);
    fputs(" return ;;\n", f);
    bash_pattern(f, takes_files);
    fputs(" ;;\n    *) [[ $cur == -* ]] && words='", f);
    for (int i = 0; i < N_OPTIONS; i++) fprintf(f, "%s--%s", i ? " " : "", OPTIONS[i].name);
    fputs("'\n       [[ $cur == @* ]] && prefix=@ ;;\n"
          "    esac\n"
          "    if [[ $words ]]; then\n"
          "        COMPREPLY=($(compgen -W \"$words\" -- \"$cur\"))\n"
          "    else\n"
          "        compopt -o filenames 2>/dev/null\n"
          "        while IFS= read -r line; do COMPREPLY+=(\"$prefix$line\"); done < "
          "<(compgen -f -- \"${cur#\"$prefix\"}\")\n"
          "    fi\n"
          "}\n"
          "complete -F _blip2 blip2\n", f);
}

static void zsh(FILE *f) {
    fputs("#compdef blip2\n# Completion of blip2 for zsh, printed by: blip2 --completion zsh\n"
          "_blip2() {\n_arguments -S \\\n", f);
    for (int i = 0; i < N_OPTIONS; i++) {
        const Option *o = &OPTIONS[i];
        const char *many = o->kind == KIND_TEXTS ? "*" : "";
        fputs("  ", f);
        if (o->letter && *many) fprintf(f, "'*'{-%c,--%s=}'[", o->letter, o->name);
        else if (o->letter) fprintf(f, "'(-%c --%s)'{-%c,--%s%s}'[", o->letter, o->name, o->letter, o->name,
                                    o->value ? "=" : "");
        else fprintf(f, "'%s--%s%s[", many, o->name, o->value ? "=" : "");
        quoted(f, o->help, "[]\\", "'\\''");
        fputs("]", f);
        if (o->kind == KIND_ONE_OF) {
            fprintf(f, ":%s:(", o->name);
            put_words(f, o->value);
            fputs(")", f);
        } else if (o->value) fprintf(f, ":%s:%s", o->value, takes_files(o) ? "_files" : " ");
        fputs("' \\\n", f);
    }
    fputs("  '*:IMAGE:_files'\n}\n"
          "if [[ $funcstack[1] == _blip2 ]]; then _blip2 \"$@\"; else compdef _blip2 blip2; fi\n", f);
}

static void fish(FILE *f) {
    fputs("# Completion of blip2 for fish, printed by: blip2 --completion fish\n", f);
    for (int i = 0; i < N_OPTIONS; i++) {
        const Option *o = &OPTIONS[i];
        fputs("complete -c blip2", f);
        if (o->letter) fprintf(f, " -s %c", o->letter);
        fprintf(f, " -l %s", o->name);
        if (o->kind == KIND_ONE_OF) {
            fputs(" -x -a '", f);
            put_words(f, o->value);
            fputs("'", f);
        } else if (o->value) fputs(takes_files(o) ? " -r -F" : " -x", f);
        fputs(" -d '", f);
        quoted(f, o->help, "\\", "\\'");
        fputs("'\n", f);
    }
}

void options_completion(FILE *f, const char *shell) {
    if (!strcmp(shell, "bash")) bash(f);
    else if (!strcmp(shell, "zsh")) zsh(f);
    else fish(f);
}
