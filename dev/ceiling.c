// dev/ceiling.c: what this machine can do at most, and how near matmul.c comes.
//
//   ceiling [-t THREADS] [-r ROUNDS] [--isa NAME] [--matmul] [--decode]
//
// Without --matmul prints a line for each ceiling: the rate at which the threads read memory, their f32 multiply-add
// peak and, where the processor has such instructions, that of bf16 and int8 products (AVX-512 BF16, VNNI, AMX). With
// --isa avx2 the peak is that of AVX2 alone.
// With it, one line a shape: the time of one matmul at the sizes of BLIP-2, and its share of the ceiling that binds it.
// --decode: the products of eight layers of opt-2.7b one after the other, for one row of x and for five, and the rate
// at which their weights are read, beside a plain read in the same rounds.
// All figures are the best of many interleaved rounds, because a shared machine can only be slower than itself.
// Not here: whole models (dev/bench.py, which runs this program too).
#include "../matmul.h"
#include "../threads.h"

#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

typedef float v8 __attribute__((vector_size(32), aligned(4), may_alias));
typedef float v16 __attribute__((vector_size(64), aligned(4), may_alias));

// n rounds of 12 independent multiply-adds on vectors.
#define MULTIPLY(name, target, V, width, FMA) \
    static target float name(long n, float seed) { \
        V a[12], x = seed - (V){0}, y = seed * 0.5f - (V){0}; \
        for (int j = 0; j < 12; j++) a[j] = x * (float)j; \
        for (long i = 0; i < n; i++) \
            _Pragma("GCC unroll 12") for (int j = 0; j < 12; j++) a[j] = FMA(a[j], x, y); \
        for (int j = 1; j < 12; j++) a[0] += a[j]; \
        float out[width]; \
        *(V *)out = a[0]; \
        return out[0]; \
    }

#if defined(__x86_64__)
#define AVX2 __attribute__((target("avx2,fma")))
MULTIPLY(multiply8, AVX2, v8, 8, _mm256_fmadd_ps)
MULTIPLY(multiply16, __attribute__((target("avx512f"))), v16, 16, _mm512_fmadd_ps)
#define BF16(a, x, y) _mm512_dpbf16_ps(a, (__m512bh)(x), (__m512bh)(y))
#define INT8(a, x, y) (v16)_mm512_dpbusd_epi32((__m512i)(a), (__m512i)(x), (__m512i)(y))
MULTIPLY(multiply_bf16, __attribute__((target("avx512f,avx512bf16"))), v16, 16, BF16)
MULTIPLY(multiply_int8, __attribute__((target("avx512f,avx512vnni"))), v16, 16, INT8)

// n rounds of 12 products of whole tiles, 16 x 16 sums of 32 or 64 products each. The values are all zero. Executed
// in an emulator only (doc/matmul.md) and never timed: no AMX where this was written.
#define TILES(name, instruction) \
    static float name(long n, float seed) { \
        struct { uint8_t palette, start, zero[14]; uint16_t bytes[16]; uint8_t rows[16]; } shape = {.palette = 1}; \
        for (int i = 0; i < 8; i++) shape.bytes[i] = 64, shape.rows[i] = 16; \
        __asm__ volatile("ldtilecfg %0" : : "m"(shape)); \
        for (long i = 0; i < 2 * n; i++) \
            __asm__ volatile(instruction " %%tmm6, %%tmm7, %%tmm0\n" instruction " %%tmm6, %%tmm7, %%tmm1\n" \
                             instruction " %%tmm6, %%tmm7, %%tmm2\n" instruction " %%tmm6, %%tmm7, %%tmm3\n" \
                             instruction " %%tmm6, %%tmm7, %%tmm4\n" instruction " %%tmm6, %%tmm7, %%tmm5" : : ); \
        __asm__ volatile("tilerelease"); \
        return seed; \
    }
TILES(multiply_tiles_bf16, "tdpbf16ps")
TILES(multiply_tiles_int8, "tdpbssd")
#define HAVE_AMX (matmul_kernels("amx") != NULL)         // which also asks the system for the tiles
#define HAVE_BF16 __builtin_cpu_supports("avx512bf16")
#define HAVE_INT8 __builtin_cpu_supports("avx512vnni")
#define HAVE_AVX2 (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"))
#define HAVE_AVX512 __builtin_cpu_supports("avx512f")
#else
#define AVX2
#define MULTIPLY_ADD(a, b, c) ((a) * (b) + (c))
MULTIPLY(multiply8, , v8, 8, MULTIPLY_ADD)
MULTIPLY(multiply16, , v16, 16, MULTIPLY_ADD)
#define multiply_tiles_bf16 multiply16
#define multiply_tiles_int8 multiply16
#define HAVE_AMX false
#define multiply_bf16 multiply16
#define multiply_int8 multiply16
#define HAVE_BF16 false
#define HAVE_INT8 false
#define HAVE_AVX2 true
#define HAVE_AVX512 true
#endif

// Reads n bytes (a multiple of 256) once, in order.
static AVX2 float read_all(const char *p, size_t n) {
    v8 s[8] = {0};
    for (size_t i = 0; i < n; i += 256)
        for (int j = 0; j < 8; j++) s[j] += *(const v8 *)(p + i + 32 * j);
    float a[8];
    *(v8 *)a = s[0] + s[1] + s[2] + s[3] + s[4] + s[5] + s[6] + s[7];
    return a[0];
}

enum { F32, BF16_PAIRS, INT8_FOURS, PEAKS };      // kinds of multiply-add: of 1, 2 and 4 products into a 32-bit sum

typedef struct {
    char *memory;
    size_t bytes, at;           // of the block; where the next read starts, so that nothing is still in a cache
    Pool *pool;
    double read, flops[PEAKS];  // best so far, per second
    float (*multiply)(long n, float seed);
    _Atomic uint32_t sink;      // so that no compiler leaves anything out
} Machine;

enum { CHUNK = 1 << 20, CHUNKS = 128, ROUNDS = 20000, TURNS = 32 };

static void keep(Machine *m, float result) {
    uint32_t bits;
    memcpy(&bits, &result, sizeof bits);
    m->sink += bits;
}

static void read_job(void *arg, int job, int thread) {
    Machine *m = arg;
    (void)thread;
    keep(m, read_all(m->memory + m->at + (size_t)job * CHUNK, CHUNK));
}

static void measure_read(Machine *m) {
    if (m->at + (size_t)CHUNK * CHUNKS > m->bytes) m->at = 0;
    double t = seconds_now();
    pool_run(m->pool, read_job, m, CHUNKS);
    t = seconds_now() - t;
    m->at += (size_t)CHUNK * CHUNKS;
    if ((double)CHUNK * CHUNKS / t > m->read) m->read = (double)CHUNK * CHUNKS / t;
}

static void multiply_job(void *arg, int job, int thread) {
    Machine *m = arg;
    (void)job, (void)thread;
    keep(m, m->multiply(ROUNDS, 0.5f));
}

static void measure_multiply(Machine *m, float (*multiply)(long n, float seed), int products, int peak) {
    m->multiply = multiply;
    double t = seconds_now();
    pool_run(m->pool, multiply_job, m, TURNS);
    t = seconds_now() - t;
    const double flops = (double)TURNS * ROUNDS * 12 * 2 * products;
    if (flops / t > m->flops[peak]) m->flops[peak] = flops / t;
}

typedef struct { const char *what; int T, C, OC, dtype; } Shape;

static const Shape shapes[] = {
    {"ViT qkv",         257, 1408,  4224, DT_BF16}, {"ViT proj",        257, 1408,  1408, DT_BF16},
    {"ViT fc1",         257, 1408,  6144, DT_BF16}, {"ViT fc2",         257, 6144,  1408, DT_BF16},
    {"ViT fc1",         257, 1408,  6144, DT_F32},  {"ViT fc1 364 px",  677, 1408,  6144, DT_BF16},
    {"Q-Former fc1",     32,  768,  3072, DT_BF16}, {"OPT prompt qkv",   40, 2560,  7680, DT_BF16},
    {"OPT prompt fc1",   40, 2560, 10240, DT_BF16}, {"OPT prompt fc2",   40, 10240, 2560, DT_BF16},
    {"9 rows",            9, 2560, 10240, DT_BF16},
    {"OPT fc1",           1, 2560, 10240, DT_BF16}, {"OPT fc1",           2, 2560, 10240, DT_BF16},
    {"OPT fc1",           4, 2560, 10240, DT_BF16}, {"OPT fc1",           5, 2560, 10240, DT_BF16},
    {"OPT fc1",           8, 2560, 10240, DT_BF16}, {"OPT fc2",           1, 10240, 2560, DT_BF16},
    {"OPT fc2",           5, 10240, 2560, DT_BF16}, {"OPT out",           1, 2560,  2560, DT_BF16},
    {"OPT head",          1, 2560, 50272, DT_BF16}, {"OPT head",          5, 2560, 50272, DT_BF16},
    {"OPT fc1",           1, 2560, 10240, DT_F32},  {"OPT fc1",           5, 2560, 10240, DT_F32},
};
enum { SHAPES = sizeof shapes / sizeof *shapes };

// Weights lie one after the other in the big block, each call at another place, so that they come from memory.
static double time_shape(const Shape *s, Machine *m, float *x, float *out, const Par *par) {
    const size_t bytes = (size_t)s->OC * s->C * (s->dtype == DT_BF16 ? 2 : 4);
    if (m->at + bytes > m->bytes) m->at = 0;
    const Tensor w = {m->memory + m->at, NULL, s->dtype, s->OC, s->C};
    m->at += bytes;
    const double t = seconds_now();
    matmul(out, x, &w, NULL, s->T, par);
    return seconds_now() - t;
}

// What decoding does with the weights of a layer: C, OC of qkv, out, fc1, fc2 in opt-2.7b.
static const int layer[][2] = {{2560, 7680}, {2560, 2560}, {2560, 10240}, {10240, 2560}};
enum { LAYERS = 8, DECODES = 6 };
static const struct { const char *name; int dtype, T; } decodes[DECODES] = {
    {"bf16", DT_BF16, 1}, {"bf16", DT_BF16, 5}, {"int8", DT_INT8, 1}, {"int8", DT_INT8, 5}, {"int4", DT_INT4, 1},
    {"int4", DT_INT4, 5}
};

// The bytes of a weight in the layout of doc/format.md, scales included; *scale: where these begin.
static size_t weight_bytes(int dtype, size_t OC, size_t C, size_t *scale) {
    const size_t G = (C + 31) / 32, n = dtype == DT_BF16 ? 2 * OC * C : dtype == DT_INT8 ? OC * C : OC * G * 16;
    *scale = (n + 255) / 256 * 256;
    return *scale + (dtype == DT_INT8 ? OC * 4 : dtype == DT_INT4 ? OC * G * 2 : 0);
}

// -> seconds; *bytes: of the weights.
static double time_decode(int dtype, int T, Machine *m, float *x, float *out, const Par *par, size_t *bytes) {
    *bytes = 0;
    const double t = seconds_now();
    for (int i = 0; i < 4 * LAYERS; i++) {
        const int C = layer[i % 4][0], OC = layer[i % 4][1];
        size_t scale;
        const size_t n = weight_bytes(dtype, (size_t)OC, (size_t)C, &scale);
        if (m->at + n > m->bytes) m->at = 0;
        const Tensor w = {m->memory + m->at, m->memory + m->at + scale, dtype, OC, C};
        m->at += (n + 255) / 256 * 256;
        *bytes += n;
        matmul(out, x, &w, NULL, T, par);
    }
    return seconds_now() - t;
}

int main(int argc, char **argv) {
    Machine m = {.bytes = (size_t)1 << 30};
    int rounds = 10, threads = 2;
    bool products = false, decode = false;
    const char *isa = NULL;
    for (int i = 1; i < argc; i++) {
        if (!strcmp(argv[i], "--matmul")) products = true;
        else if (!strcmp(argv[i], "--decode")) decode = true;
        else if (!strcmp(argv[i], "-t") && i + 1 < argc) threads = atoi(argv[++i]);
        else if (!strcmp(argv[i], "-r") && i + 1 < argc) rounds = atoi(argv[++i]);
        else if (!strcmp(argv[i], "--isa") && i + 1 < argc) isa = argv[++i];
        else {
            fprintf(stderr, "usage: ceiling [-t THREADS] [-r ROUNDS] [--isa NAME] [--matmul] [--decode]\n");
            return 2;
        }
    }
    if (threads < 1 || rounds < 1) { fprintf(stderr, "ceiling: -t and -r take positive numbers\n"); return 2; }
    if (!HAVE_AVX2) { fprintf(stderr, "ceiling: needs AVX2\n"); return 1; }
    const bool wide = !isa || strcmp(isa, "avx2") != 0;
    const MatmulKernels *kernels = matmul_kernels(isa);
    if (!kernels) { fprintf(stderr, "ceiling: no inner loops called %s here\n", isa); return 2; }
    m.memory = mmap(NULL, m.bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    const size_t most = (size_t)677 * 10240;
    // aligned as in the arena of blip2.c: AVX2 loses a third on five rows that are not
    float *x = aligned_alloc(64, most * sizeof *x), *out = aligned_alloc(64, most * sizeof *out);
    const uint64_t scratch = (matmul_scratch_bytes(threads) + 63) / 64 * 64;
    m.pool = pool_open(threads);
    const Par par = {threads, kernels, aligned_alloc(64, scratch), m.pool};
    if (m.memory == MAP_FAILED || !x || !out || !par.scratch) { fprintf(stderr, "ceiling: no memory\n"); return 1; }
    madvise(m.memory, m.bytes, MADV_HUGEPAGE);     // only a wish
    for (size_t i = 0; i < m.bytes / 4; i++)       // small positive numbers, as f32 and as bf16
        ((uint32_t *)m.memory)[i] = 0x3C003C00u + (uint32_t)(i * 2654435761u >> 20 & 0xFFF);
    for (size_t i = 0; i < most; i++) x[i] = (float)(i % 1000) * 1e-3f;
    double best[SHAPES], best_decode[DECODES];
    size_t read[DECODES];
    for (int i = 0; i < DECODES; i++) best_decode[i] = 1e9;
    for (int i = 0; i < SHAPES; i++) best[i] = 1e9;
    for (int r = 0; r < rounds; r++) {
        measure_read(&m);
        measure_multiply(&m, multiply8, 8, F32);
        for (int i = 0; decode && i < DECODES; i++) {
            const double t = time_decode(decodes[i].dtype, decodes[i].T, &m, x, out, &par, &read[i]);
            if (t < best_decode[i]) best_decode[i] = t;
        }
        if (wide && HAVE_AVX512) measure_multiply(&m, multiply16, 16, F32);
        if (wide && HAVE_BF16) measure_multiply(&m, multiply_bf16, 32, BF16_PAIRS);
        if (wide && HAVE_INT8) measure_multiply(&m, multiply_int8, 64, INT8_FOURS);
        if (wide && HAVE_AMX) measure_multiply(&m, multiply_tiles_bf16, 16 * 16 * 32, BF16_PAIRS);
        if (wide && HAVE_AMX) measure_multiply(&m, multiply_tiles_int8, 16 * 16 * 64, INT8_FOURS);
        for (int i = 0; products && i < SHAPES; i++) {
            const double t = time_shape(&shapes[i], &m, x, out, &par);
            if (t < best[i]) best[i] = t;
        }
    }
    printf("read %.1f GB/s\nmultiply %.1f GFLOP/s\n", m.read * 1e-9, m.flops[F32] * 1e-9);
    if (wide && HAVE_BF16) printf("multiply_bf16 %.1f GFLOP/s\n", m.flops[BF16_PAIRS] * 1e-9);
    if (wide && HAVE_INT8) printf("multiply_int8 %.1f GOP/s\n", m.flops[INT8_FOURS] * 1e-9);
    for (int i = 0; products && i < SHAPES; i++) {
        const Shape *s = &shapes[i];
        const double bytes = (double)s->OC * s->C * (s->dtype == DT_BF16 ? 2 : 4), flop = 2.0 * s->T * s->C * s->OC;
        printf("%-16s T=%3d C=%5d OC=%5d %s %8.3f ms %6.1f GFLOP/s (%3.0f %%) %5.1f GB/s (%3.0f %%)\n", s->what, s->T,
               s->C, s->OC, s->dtype == DT_BF16 ? "bf16" : "f32 ", best[i] * 1e3, flop / best[i] * 1e-9,
               100 * flop / best[i] / m.flops[F32], bytes / best[i] * 1e-9, 100 * bytes / best[i] / m.read);
    }
    for (int i = 0; decode && i < DECODES; i++)
        printf("decode %s %d rows of x %8.3f ms %5.1f GB/s (%3.0f %%)\n", decodes[i].name, decodes[i].T,
               best_decode[i] * 1e3, (double)read[i] / best_decode[i] * 1e-9,
               100 * (double)read[i] / best_decode[i] / m.read);
    pool_close(m.pool);
    munmap(m.memory, m.bytes);
    free(x), free(out), free(par.scratch);
    return 0;
}
