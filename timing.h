// timing.h: what -v says on stderr: the time of each stage, then how fast decoding was beside the rate at which this
// machine reads memory, and how much memory the program took.
#ifndef TIMING_H
#define TIMING_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef struct {
    bool on;               // otherwise nothing is written
    double stage_start;    // seconds
    double decode_seconds; // of all answers so far
    long passes;           // through the decoder, of all answers so far
} Timing;

double seconds_now(void);                             // of a clock that only goes forward
void timing_start(Timing *t);                         // a stage begins
void timing_stage(Timing *t, const char *stage);      // "time: STAGE X s", and the next one begins
void timing_decode(Timing *t, int steps);             // "time: decode STEPS steps X s"

// The lines at the end. step_bytes: weights that one pass through the decoder reads; left_out: bytes that all passes
// together did not read of these. Measures the memory's rate with
// so many threads, for 50 ms, unless threads is 0 (the weights are not in this machine's memory) or they fit into a
// cache.
void timing_summary(const Timing *t, uint64_t step_bytes, uint64_t left_out, int threads);

// The first of them; memory: bytes per second, 0 when not measured.
void timing_speed(char *out, size_t size, const Timing *t, uint64_t step_bytes, uint64_t left_out, double memory);

#endif
