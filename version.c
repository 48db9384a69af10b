// version.c: the text of --version (see version.h). What was chosen when compiling, and what is looked up now: whether
// there is a curl program and a GPU that can be used, and which inner loops this processor gets.

#include "version.h"

#include "libblip2.h"

#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#ifdef __clang__
#define COMPILER "clang " __clang_version__
#else
#define COMPILER "gcc " __VERSION__
#endif

#ifdef HAVE_EDIT
#define EDIT "yes"
#else
#define EDIT "no"
#endif

static bool in_path(const char *program) {
    const char *path = getenv("PATH");
    for (size_t n; path && *path; path += n + (path[n] == ':')) {
        char file[4096];
        n = strcspn(path, ":");
        const int len = snprintf(file, sizeof file, "%.*s/%s", (int)n, path, program);
        if (n && len > 0 && (size_t)len < sizeof file && access(file, X_OK) == 0) return true;
    }
    return false;
}

static const char *yes_no(bool b) { return b ? "yes" : "no"; }

void version_print(FILE *f) {
    const char *formats = blip2_formats();
    blip2_error e;
    fprintf(f, "blip2 %s\ncompiler: %s\n", blip2_version(), COMPILER);
    fprintf(f, "features: jpeg library %s, webp %s, libedit %s, curl %s\n",
            yes_no(strstr(formats, "libjpeg")), yes_no(strstr(formats, "webp")), EDIT, yes_no(in_path("curl")));
    fprintf(f, "images: %s\ncpu: %s\n", formats, blip2_cpu_isa(NULL));
    fprintf(f, "cuda: %s\n", blip2_device("cuda", &e) ? e.text : "yes");
}
