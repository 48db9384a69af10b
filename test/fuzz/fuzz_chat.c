// test/fuzz/fuzz_chat.c: --chat with a script. An input is what somebody wrote into it.
//
// The tiny OPT model of the tests answers with one token. It all happens in an empty folder, and what could lead out of
// it or to the network is taken out of the input: slashes within a line and colons.

#include "../../program.h"
#include "fuzz.h"

#include <dirent.h>
#include <unistd.h>

int LLVMFuzzerInitialize(int *argc, char ***argv);

static Program program;

static void copy_file(const char *to, const char *from) {
    static uint8_t bytes[1 << 16];
    FILE *in = fopen(from, "rb"), *out = fopen(to, "wb");
    CHECK(in && out);
    const size_t n = fread(bytes, 1, sizeof bytes, in);
    CHECK(fwrite(bytes, 1, n, out) == n);
    fclose(in);
    CHECK(fclose(out) == 0);
}

static void clean(const char *folder) {
    DIR *d = opendir(folder);
    CHECK(d);
    for (struct dirent *f; (f = readdir(d));)
        if (strcmp(f->d_name, ".") && strcmp(f->d_name, "..") && strcmp(f->d_name, "photo.png")) unlink(f->d_name);
    closedir(d);
}

static void leave(void) {
    const char *folder = getenv("FUZZ_CHAT");
    if (chdir(folder)) return;
    clean(".");
    unlink("photo.png");
    rmdir(folder);
}

int LLVMFuzzerInitialize(int *argc, char ***argv) {
    (void)argc, (void)argv;
    blip2_error b;
    const blip2_settings s = {.size = sizeof s, .device = "cpu", .threads = 1, .max_new = 1, .rows = 1, .ctx = 64};
    program.model = blip2_open("test/data/tiny_opt.bin", &s, &b);
    CHECK(program.model && blip2_start(program.model, &b) == 0);
    blip2_describe(program.model, &program.info, sizeof program.info);
    blip2_defaults(program.model, &program.how, sizeof program.how);
    program.how.beams = program.how.captions = program.how.max_new = 1;
    program.how.min_new = 0;
    program.o.chat = "photo.png";
    program.o.quiet = true;
    char folder[1100];
    const char *tmp = getenv("TMPDIR");
    snprintf(folder, sizeof folder, "%.1000s/fuzz_chat.XXXXXX", tmp ? tmp : "/tmp");
    static char photo[] = "test/data/images/png-type2-8bit.png";
    char to[1200];
    CHECK(mkdtemp(folder));
    snprintf(to, sizeof to, "%s/photo.png", folder);
    copy_file(to, photo);
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
