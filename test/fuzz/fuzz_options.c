// test/fuzz/fuzz_options.c: the command line. An input is the arguments, each ended by a NUL byte.

#include "../../options.h"
#include "fuzz.h"

enum { MAX_ARGS = 400 };

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    static Options o;
    char *argv[MAX_ARGS + 2] = {NULL}, *text[MAX_ARGS + 2];
    int argc = 0;
    text[argc] = argv[argc] = strdup("blip2");
    argc++;
    for (size_t i = 0, from = 0; i < size && argc <= MAX_ARGS; i++) {
        if (data[i] && i + 1 < size) continue;
        const size_t n = i - from + (data[i] != 0);
        char *arg = malloc(n + 1);   // exactly as long, so that reading past the end is seen
        CHECK(arg);
        memcpy(arg, data + from, n);
        arg[n] = 0;
        text[argc] = argv[argc] = arg;
        argc++;
        from = i + 1;
    }
    const int given = argc;
    argv[argc] = NULL;
    Err e = {0};
    const int rc = options_parse(&o, argc, argv, &e);
    CHECK(rc == 0 || e.text[0]);
    CHECK(rc != 0 || (o.n_images >= 0 && o.n_images < given && o.stops.n <= MAX_STOPS && o.device));
    for (int i = 0; rc == 0 && i < o.n_images; i++) CHECK(strlen(o.images[i]) < size + 1);
    for (int i = 0; i < given; i++) free(text[i]);
    return 0;
}
