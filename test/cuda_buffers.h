// test/cuda_buffers.h: what the tests of the CUDA launchers share: which of them to run, numbers, weights.
//
// In order: the choice of tests; numbers; bounds; a weight of any dtype.
// Not here: any test, device memory (cuda_guarded.h). Included once, behind blip2.cu.
#ifndef TEST_CUDA_BUFFERS_H
#define TEST_CUDA_BUFFERS_H

#include "cuda_guarded.h"

#include <string>
#include <vector>

// The command line names parts of the names of tests, those that are to run; none: all. Behind a minus: those that are
// not.
static std::vector<std::string> chosen;

static bool wanted(const std::string &what) {
    bool named = false, any = false;
    for (const std::string &part : chosen) {
        if (part[0] == '-' && what.find(part.substr(1)) != std::string::npos) return false;
        if (part[0] != '-') named = true, any |= what.find(part) != std::string::npos;
    }
    return any || !named;
}

// ---------------------------------------------------------------------------------------------------------

static uint16_t round_bf16(float x) {
    uint32_t u;
    memcpy(&u, &x, sizeof u);
    return (uint16_t)((u + 0x7FFF + (u >> 16 & 1)) >> 16);
}
static float widen(uint16_t x) {
    const uint32_t u = (uint32_t)x << 16;
    float f;
    memcpy(&f, &u, sizeof f);
    return f;
}

static std::vector<float> numbers(size_t n, uint32_t seed, bool bf16_exact) {
    std::vector<float> x(n);
    for (float &v : x) {
        v = (float)(fixture_random(&seed) % 20001) / 10000 - 1;
        if (bf16_exact) v = widen(round_bf16(v));
    }
    return x;
}
static std::vector<uint16_t> narrow(const std::vector<float> &x) {
    std::vector<uint16_t> y(x.size());
    for (size_t i = 0; i < x.size(); i++) y[i] = round_bf16(x[i]);
    return y;
}

// Relative L2 against the CPU: f32 differs in the order of sums; bf16 also by the rounding of results and norms.
static const double F32_BOUND = 2e-6, BF16_BOUND = 6e-3;

// ---------------------------------------------------------------------------------------------------------
// A weight of any dtype as it lies in a file, and its values.

struct Weight { std::vector<uint8_t> bytes; size_t scale_at; std::vector<float> values; };

static Weight weight_of(int dtype, int OC, int C, uint32_t seed) {
    Weight w = {};
    w.values = numbers((size_t)OC * C, seed, dtype == DT_BF16);
    const int G = (C + 31) / 32;
    const size_t n = dtype == DT_F32 ? (size_t)OC * C * 4 : dtype == DT_BF16 ? (size_t)OC * C * 2
                   : dtype == DT_INT8 ? (size_t)OC * C : (size_t)OC * G * 16;
    w.scale_at = (n + 255) / 256 * 256;
    w.bytes.resize(w.scale_at + (size_t)OC * (dtype == DT_INT8 ? 4 : G * 2), 0);
    if (dtype == DT_INT4) memset(w.bytes.data(), 0x88, n);
    for (int o = 0; o < OC; o++)
        for (int c = 0; c < C; c++) {
            const size_t i = (size_t)o * C + c;
            float &v = w.values[i];
            if (dtype == DT_F32) memcpy(&w.bytes[i * 4], &v, 4);
            else if (dtype == DT_BF16) {
                const uint16_t h = round_bf16(v);
                memcpy(&w.bytes[i * 2], &h, 2);
            } else if (dtype == DT_INT8) {
                const float scale = 0.01f + 0.001f * (o % 5);
                const int q = (int)(v * 127);
                w.bytes[i] = (uint8_t)(int8_t)q;
                memcpy(&w.bytes[w.scale_at + (size_t)o * 4], &scale, 4);
                v = q * scale;
            } else {
                const size_t group = (size_t)o * G + c / 32;
                const uint16_t half = (uint16_t)(0x3000 + group % 7 * 64);   // 0.125 * (1 + k/16)
                const int q = (int)(v * 7), j = c % 32;
                uint8_t *byte = &w.bytes[group * 16 + j % 16];
                *byte = (uint8_t)(j < 16 ? (*byte & 0xF0) | (q + 8) : (*byte & 0x0F) | (q + 8) << 4);
                memcpy(&w.bytes[w.scale_at + group * 2], &half, 2);
                v = q * 0.125f * (1 + (group % 7) / 16.0f);
            }
        }
    return w;
}

static void expect_close(const std::vector<float> &got, const std::vector<float> &want, double bound,
                         const char *what) {
    const Diff diff = diff_floats(got.data(), want.data(), want.size());
    EXPECT(&tally, diff.rel_l2 <= bound, "%s: %.2e, bound %.0e", what, diff.rel_l2, bound);
}

// Compares (n) results with what they should be.
template <typename T>
static void expect_near(const std::vector<T> &raw, const std::vector<float> &want, const char *what) {
    std::vector<float> got(raw.size());
    for (size_t i = 0; i < raw.size(); i++) {
        if constexpr (sizeof(T) == 2) got[i] = widen(raw[i]);
        else got[i] = raw[i];
    }
    expect_close(got, want, sizeof(T) == 2 ? BF16_BOUND : F32_BOUND, what);
}

#endif
