// dev/bench_backend.c: times a backend's calls on a weight file, without files of images, without text.
//
//     build/bench_backend MODEL DEVICE BATCH BEAMS PROMPT_TOKENS NEW_TOKENS ROUNDS
//
// Prints one JSON object: device, load (seconds from open to ready, the upload included), bytes_needed, upload (bytes
// of weights copied to the device) and upload_seconds, and seconds for each round: by the device's clock (blip2.h,
// Times) vit, qformer (with the projection), prompt (up to the first token) and decode (a step, the mean over
// NEW_TOKENS - 1); by the wall clock first (from the pixels to the first token, all copies and launches in it) and
// caption (to the last one). The first two rounds are for warming up (the second captures graphs) and left out.
// Not here: ceilings, peers, ratios (dev/bench_gpu.py, which builds and calls this).

#include "../blip2.h"
#include "../device.h"

#include <stdlib.h>
#include <string.h>

static int give_up(const char *text) {
    fprintf(stderr, "bench_backend: %s\n", text);
    return 3;
}

static void print_list(const char *name, const double *x, int n) {
    printf(", \"%s\": [", name);
    for (int i = 0; i < n; i++) printf("%s%.7f", i ? ", " : "", x[i]);
    printf("]");
}

enum { MOST_ROUNDS = 64, VIT = 0, QFORMER, PROMPT, FIRST, DECODE, CAPTION, STAGES };
static const char *const names[STAGES] = {"vit", "qformer", "prompt", "first", "decode", "caption"};
typedef struct { double stage[STAGES][MOST_ROUNDS]; } Rounds;

// One round. Returns the tokens chosen, which must be how->max_new.
static int round_of(Rounds *t, int i, const Backend *backend, void *run, const uint8_t *pixels, const Prompt *prompts,
                    int B, const Choice *how) {
    Step step;
    int n = 0;
    const Times was = backend->times(run);
    const double start = seconds_now();
    double first = 0;
    backend->encode(run, pixels, B);
    backend->prompt(run, prompts, B, how);
    while (backend->step(run, &step)) {
        if (n++ == 0) first = seconds_now() - start;
    }
    const double caption = seconds_now() - start;
    const Times is = backend->times(run);
    t->stage[VIT][i] = is.vit - was.vit;
    t->stage[QFORMER][i] = is.qformer - was.qformer;
    t->stage[PROMPT][i] = is.prompt - was.prompt;
    t->stage[FIRST][i] = first;
    t->stage[DECODE][i] = n > 1 ? (is.decode - was.decode) / (n - 1) : 0;
    t->stage[CAPTION][i] = caption;
    return n;
}

int main(int argc, char **argv) {
    static Model m;
    static Rounds t;
    const Backend *backend;
    int value[5], ordinal;      // B, beams, prompt tokens, new tokens, rounds
    Err e;
    if (argc != 8) return give_up("MODEL DEVICE BATCH BEAMS PROMPT_TOKENS NEW_TOKENS ROUNDS"), 2;
    for (int i = 0; i < 5; i++) {
        value[i] = atoi(argv[3 + i]);
        if (value[i] < 1 || value[i] > 4096) return give_up("numbers are 1 to 4096"), 2;
    }
    const int B = value[0], n = value[2], rounds = value[4] < MOST_ROUNDS ? value[4] : MOST_ROUNDS;
    if (model_open(&m, argv[1], &e) || device_find(&backend, &ordinal, argv[2], &e) < 0) return give_up(e.text);
    const char *threads = getenv("OMP_NUM_THREADS");
    const Limits lim = {.B = B, .R = B * value[1], .prompt = n, .max_new = value[3], .ordinal = ordinal,
                        .threads = threads ? atoi(threads) : 1};
    const double start = seconds_now();
    void *run = backend->open(&m, &lim, &e);
    if (!run) return give_up(e.text);
    const double load = seconds_now() - start;
    double upload = 0;
    const uint64_t uploaded = backend->uploaded(run, &upload);

    const size_t bytes = (size_t)B * m.config.S * m.config.S * 3;
    uint8_t *pixels = malloc(bytes);
    int *ids = malloc((size_t)n * sizeof *ids);
    Prompt *prompts = malloc((size_t)B * sizeof *prompts);
    CHECK(pixels && ids && prompts);
    uint32_t seed = 1;
    for (size_t i = 0; i < bytes; i++) pixels[i] = (uint8_t)((seed = seed * 1664525 + 1013904223) >> 24);
    for (int i = 0; i < n; i++) ids[i] = (int)((seed = seed * 1664525 + 1013904223) % (uint32_t)m.config.V);
    for (int b = 0; b < B; b++) prompts[b] = (Prompt){ids, n, b};
    const Choice how = {.beams = value[1], .captions = 1, .max_new = value[3], .min_new = value[3], .length_penalty = 1,
                        .repeat_penalty = 1, .temp = 1, .top_p = 1};
    for (int i = 0; i < 2; i++)
        if (round_of(&t, 0, backend, run, pixels, prompts, B, &how) != how.max_new)
            return give_up("the answer has another length than was asked for");
    for (int i = 0; i < rounds; i++) round_of(&t, i, backend, run, pixels, prompts, B, &how);
    printf("{\"device\": \"%s\", \"load\": %.6f, \"bytes_needed\": %llu, \"upload\": %llu, \"upload_seconds\": %.6f",
           backend->name, load, (unsigned long long)backend->bytes_needed(&m, &lim), (unsigned long long)uploaded,
           upload);
    for (int i = 0; i < STAGES; i++) print_list(names[i], t.stage[i], rounds);
    printf("}\n");
    backend->close(run);
    free(pixels), free(ids), free(prompts);
    model_close(&m);
    return 0;
}
