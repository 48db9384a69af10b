// doc/example.c: captions of images through the library. Build and run it in the project's folder:
//     cc -I. doc/example.c -o example -Lbuild -lblip2 -Wl,-rpath,build
//     ./example test/data/tiny_t5.bin test/data/tiny_0.png
#include "libblip2.h"

#include <stdio.h>

static int print(void *arg, const blip2_event *event) {
    (void)arg;
    if (event->answer) printf("%.*s\n", (int)event->answer->n_text, event->answer->text);
    return 0;                                    // anything else would stop it
}

int main(int argc, char **argv) {
    blip2_error e;
    blip2 *b = argc < 2 ? NULL : blip2_open(argv[1], NULL, &e);
    if (!b) {
        fprintf(stderr, "%s\n", argc < 2 ? "usage: example MODEL IMAGE..." : e.text);
        return 1;
    }
    int failed = 0;
    for (int i = 2; i < argc; i++) {
        blip2_image im;
        int code = blip2_image_read(&im, argv[i], 0, &e);
        if (!code) code = blip2_encode(b, im.rgb, im.W, im.H, &e);
        if (!code) code = blip2_generate(b, NULL, NULL, print, NULL, &e);
        if (code) fprintf(stderr, "%s\n", e.text);
        failed += code != BLIP2_OK;
        blip2_image_free(&im);
    }
    blip2_close(b);
    return failed > 0;
}
