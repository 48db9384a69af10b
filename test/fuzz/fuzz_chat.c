// test/fuzz/fuzz_chat.c: --chat with a script. An input is what somebody wrote into it; its length also chooses whether
// answers stream and have scores.
//
// A model of a few kilobytes (test/fixture.c) answers with up to three tokens, and has room for about two turns. The
// picture's pixels are at hand: the linker sends blip2_image_read here first (--wrap, see the Makefile), so that a case
// needs no child process. It all happens in an empty folder, and what could lead out of it or to the network is taken
// out of the input: slashes within a line and colons.

#include "../../program.h"
#include "../fixture.h"
#include "fuzz.h"

#include <dirent.h>
#include <sys/mman.h>
#include <unistd.h>

int LLVMFuzzerInitialize(int *argc, char ***argv);
int __real_blip2_image_read(blip2_image *out, const char *path, int flags, blip2_error *e);
int __wrap_blip2_image_read(blip2_image *out, const char *path, int flags, blip2_error *e);

static Program program;

int __wrap_blip2_image_read(blip2_image *out, const char *path, int flags, blip2_error *e) {
    if (strcmp(path, "photo.png")) return __real_blip2_image_read(out, path, flags, e);
    *out = (blip2_image){.W = 7, .H = 5, .rgb = malloc(7 * 5 * 3)};
    CHECK(out->rgb);
    for (int i = 0; i < 7 * 5 * 3; i++) out->rgb[i] = (uint8_t)(i * 37);
    return BLIP2_OK;
}

static void open_model(void) {
    static uint8_t tokenizer[1 << 16];
    FILE *f = fopen("test/data/tokenizers/bpe.tok", "rb");
    CHECK(f);
    const size_t n = fread(tokenizer, 1, sizeof tokenizer, f);
    fclose(f);
    Config c = fixture_config(OPT);
    c.V = 500, c.image_token = -1, c.positions = c.Q + 80;
    Fixture weights = fixture_make(&c, DT_F32, tokenizer, n, 1);
    const int fd = memfd_create("weights", MFD_CLOEXEC);
    CHECK(fd >= 0 && write(fd, weights.data, weights.n) == (ssize_t)weights.n);
    fixture_free(&weights);
    char path[64];
    snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    const blip2_settings s = {.size = sizeof s, .device = "cpu", .threads = 1, .max_new = 3, .rows = 1, .ctx = 80};
    blip2_error b;
    program.model = blip2_open(path, &s, &b);
    if (!program.model) fprintf(stderr, "%s\n", b.text);
    CHECK(program.model && blip2_start(program.model, &b) == 0);
}

static void clean(const char *folder) {
    DIR *d = opendir(folder);
    CHECK(d);
    for (struct dirent *f; (f = readdir(d));)
        if (strcmp(f->d_name, ".") && strcmp(f->d_name, "..")) unlink(f->d_name);
    closedir(d);
}

static void leave(void) {
    const char *folder = getenv("FUZZ_CHAT");
    if (chdir(folder)) return;
    clean(".");
    rmdir(folder);
}

int LLVMFuzzerInitialize(int *argc, char ***argv) {
    (void)argc, (void)argv;
    open_model();
    blip2_describe(program.model, &program.info, sizeof program.info);
    blip2_defaults(program.model, &program.how, sizeof program.how);
    program.how.beams = program.how.captions = 1;
    program.how.min_new = 0;
    program.o.chat = "photo.png";
    program.o.quiet = true;
    char folder[1100];
    const char *tmp = getenv("TMPDIR");
    snprintf(folder, sizeof folder, "%.1000s/fuzz_chat.XXXXXX", tmp ? tmp : "/tmp");
    CHECK(mkdtemp(folder));
    // libFuzzer has its paths relative to where it started, so the folder is entered for each case only.
    CHECK(setenv("FUZZ_CHAT", folder, 1) == 0 && atexit(leave) == 0);
    CHECK(freopen("/dev/null", "r", stdin) && freopen("/dev/null", "w", stdout));
    stderr = fopen("/dev/null", "w");   // libFuzzer and the sanitizers have theirs
    CHECK(stderr);
    return 0;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    static char here[4096];
    const char *folder = getenv("FUZZ_CHAT");
    CHECK(getcwd(here, sizeof here) && folder && chdir(folder) == 0);
    char *script = malloc(size + 1);
    CHECK(script);
    script[0] = '\n';
    for (size_t i = 0; i < size; i++) {
        const bool start = i == 0 || data[i - 1] == '\n';
        script[i] = data[i] == ':' || (data[i] == '/' && !start) ? '_' : (char)data[i];
    }
    program.o.stream = size & 1;
    program.o.scores = size & 2;
    FILE *was = stdin;
    stdin = fmemopen(script, size ? size : 1, "r");
    CHECK(stdin);
    const int code = chat(&program);
    CHECK(code == EXIT_OK || code == EXIT_INPUT);
    fclose(stdin);
    stdin = was;
    turns_free(&program.turns);
    free(script);
    if (size >= 5 && memmem(data, size, "/save", 5)) clean(".");
    CHECK(chdir(here) == 0);
    return 0;
}
