// timing.c: stages, speed and memory for -v (see timing.h).

#include "timing.h"

#include "bandwidth.h"

#include <stdio.h>
#include <sys/resource.h>

// Below that, weights stay in the caches of large processors, and their rate says nothing about memory.
static const uint64_t SMALL = UINT64_C(64) << 20;

void timing_start(Timing *t, const blip2_info *now) {
    t->start = seconds_now();
    t->vit = now->vit_seconds, t->qformer = now->qformer_seconds, t->prompt = now->prompt_seconds;
}

static void say(const Timing *t, const char *stage, double seconds) {
    if (t->on) fprintf(stderr, "time: %s %.4f s\n", stage, seconds);
}

void timing_encoded(const Timing *t, const blip2_info *now) {
    const double vit = now->vit_seconds - t->vit, qformer = now->qformer_seconds - t->qformer;
    say(t, "image", seconds_now() - t->start - vit - qformer);
    say(t, "vit", vit);
    say(t, "qformer", qformer);
}

void timing_answered(Timing *t, const blip2_info *now, int steps) {
    const double prompt = now->prompt_seconds - t->prompt, decode = seconds_now() - t->start - prompt;
    char stage[32];
    snprintf(stage, sizeof stage, "decode %d steps", steps);
    say(t, "prompt", prompt);
    say(t, stage, decode);
    t->decode_seconds += decode;
    t->passes += steps > 1 ? steps - 1 : 0;      // the first token comes from the prompt's pass, the last is not fed
}

void timing_speed(char *out, size_t size, const Timing *t, uint64_t step_bytes, uint64_t left_out, double memory) {
    const double all = (double)t->passes * (double)step_bytes, bytes = (all - (double)left_out) / t->decode_seconds;
    char less[48] = "";
    if (left_out) snprintf(less, sizeof less, " (%.0f %% left out: zero neurons)", 100 * (double)left_out / all);
    int n = snprintf(out, size, "speed: %.2f tokens/s, decoding read %.2f GB/s of weights%s",
                     (double)t->passes / t->decode_seconds, bytes / 1e9, less);
    if (n < 0 || (size_t)n >= size) return;
    if (memory > 0)
        snprintf(out + n, size - (size_t)n, ", %.0f %% of the %.2f GB/s that memory gave in a quick test",
                 100 * bytes / memory, memory / 1e9);
    else if (step_bytes < SMALL)
        snprintf(out + n, size - (size_t)n, " (%.2f MB, which caches hold)", (double)step_bytes / 1e6);
}

void timing_summary(const Timing *t, uint64_t step_bytes, uint64_t left_out, int threads) {
    if (!t->on) return;
    struct rusage use;
    const int failed = getrusage(RUSAGE_SELF, &use);     // before the test takes memory of its own
    if (t->passes && t->decode_seconds > 0) {
        const double memory = threads && step_bytes >= SMALL ? read_bandwidth(threads, 0.05) : 0;
        char line[256];
        timing_speed(line, sizeof line, t, step_bytes, left_out, memory);
        fprintf(stderr, "%s\n", line);
    }
    if (!failed)
        fprintf(stderr, "memory: %.1f MB at most, mapped weights included\n", (double)use.ru_maxrss * 1.024e-3);
}
