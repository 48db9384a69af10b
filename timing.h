// timing.h: what -v says on stderr: the time of each stage, then how fast decoding was beside the rate at which this
// machine reads memory, and how much memory the program took. ViT, Q-Former and prompt are what the device says that
// they took (blip2_info); what is left of the wall clock's time are the image and the decoding.
#ifndef TIMING_H
#define TIMING_H

#include "common.h"
#include "libblip2.h"

typedef struct {
    bool on;               // otherwise nothing is written
    double start;          // of what is under way, an image or an answer: seconds
    double vit, qformer, prompt;   // what the device had spent until then
    double decode_seconds; // of all answers so far
    long passes;           // through the decoder, of all answers so far
} Timing;

void timing_start(Timing *t, const blip2_info *now);     // an image or an answer begins
// The image was read and encoded: "time: STAGE X s" for image, vit and qformer.
void timing_encoded(const Timing *t, const blip2_info *now);
// The answer is there: the same for prompt, and "time: decode STEPS steps X s".
void timing_answered(Timing *t, const blip2_info *now, int steps);

// The lines at the end. step_bytes: weights that one pass through the decoder reads; left_out: bytes that all passes
// together did not read of these. Measures the memory's rate with
// so many threads, for 50 ms, unless threads is 0 (the weights are not in this machine's memory) or they fit into a
// cache.
void timing_summary(const Timing *t, uint64_t step_bytes, uint64_t left_out, int threads);

// The first of them; memory: bytes per second, 0 when not measured.
void timing_speed(char *out, size_t size, const Timing *t, uint64_t step_bytes, uint64_t left_out, double memory);

#endif
