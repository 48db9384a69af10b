// matmul_isa.h: the inner loops for each instruction set, and the choice between them; a part of matmul.c.
//
// In order: vectors of four floats; matmul_kernels.h compiled for SSE2 or any other processor, for NEON, for AVX2 and
// for AVX-512; the choice. Each instruction set says here what its instructions are; what it does not say is taken
// from matmul_twins.h, the same in plain C. With MATMUL_TWINS defined nothing beyond SSE2 is used: the paths of all
// x86-64 processors then run on any machine, slowly, for test_matmul_twins.
// Not here: the loops themselves.
#if defined(__x86_64__)
#include <cpuid.h>
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#ifdef __linux__
#include <sys/auxv.h>
#ifndef HWCAP_ASIMDDP
#define HWCAP_ASIMDDP (1 << 20)
#endif
#endif
#endif

#ifdef MATMUL_TWINS
#define NATIVE(t)
#pragma GCC diagnostic ignored "-Wpsabi"      // wide vectors are passed, but only to what is inlined
#else
#define NATIVE(t) __attribute__((target(t)))
#endif

// ---------------------------------------------------------------------------------------------------------
// Vectors, through the compilers' common extension for them. The products of these files are compiled with strict
// ISO rules, under which a * b + c is never fused: where the processor can fuse, FMA says so.

typedef float float4 __attribute__((vector_size(16), aligned(4), may_alias));

typedef int int4 __attribute__((vector_size(16)));
#define SHUFFLE(a, b, i, j, k, l) SHUFFLE_BY(int4, a, b, i, j, k, l)

static inline float4 widen4(const uint16_t *p) {
#if defined(__x86_64__)
    __m128i h = _mm_loadl_epi64((const __m128i *)p);
    return (float4)_mm_unpacklo_epi16(_mm_setzero_si128(), h);
#else
    return (float4){bits_to_float((uint32_t)p[0] << 16), bits_to_float((uint32_t)p[1] << 16),
                    bits_to_float((uint32_t)p[2] << 16), bits_to_float((uint32_t)p[3] << 16)};
#endif
}

// Elements (r,c) to (r,c+3) of an F32 or BF16.
static inline float4 load4(const Weights *w, size_t r, size_t c, int dtype) {
    const void *p = weight_at(w, r, c);
    return dtype == DT_F32 ? *(const float4 *)p : widen4(p);
}

// SSE2, which every x86-64 has, or what the compiler makes of four floats elsewhere.
#define NAME(f) f##_base
#define TARGET
#define VW 4
#define MR 6
#define FEW 8
#define FMA(a, b, c) ((a) * (b) + (c))
#define WIDEN(p) (v_base)widen4(p)
#include "matmul_kernels.h"

#if defined(__aarch64__)
// Four bytes as integers; to load eight would read past the end of a matrix.
static inline int16x8_t bytes_neon(const void *p, uint8_t mask, int shift) {
    uint32_t four;
    memcpy(&four, p, sizeof four);
    const uint8x8_t b = vshl_u8(vreinterpret_u8_u32(vdup_n_u32(four)), vdup_n_s8((int8_t)-shift));
    return vmovl_s8(vreinterpret_s8_u8(vand_u8(b, vdup_n_u8(mask))));
}

#define NAME(f) f##_neon
#define TARGET
#define VW 4
#define MR 12
#define FEW 8
#define FMA(a, b, c) ((v_neon)vfmaq_f32((float32x4_t)(c), (float32x4_t)(a), (float32x4_t)(b)))
#define WIDEN(p) ((v_neon)vshll_n_u16(vld1_u16(p), 16))
#define FLOATS_NEON(p, mask, shift) ((v_neon)vcvtq_f32_s32(vmovl_s16(vget_low_s16(bytes_neon(p, mask, shift)))))
#define WIDEN8(p) FLOATS_NEON(p, 255, 0)
#define LOW4(p) (FLOATS_NEON(p, 15, 0) - 8)
#define HIGH4(p) (FLOATS_NEON(p, 15, 4) - 8)
#define HALF(p) ((float)*(const __fp16 *)(const void *)(p))
#include "matmul_kernels.h"
#endif

#if defined(__x86_64__) || defined(MATMUL_TWINS)
#include "matmul_pack.h"

#define NAME(f) f##_avx2
#define TARGET NATIVE("avx2,fma,f16c")
#define VW 8
#define MR 6
#define FEW 16
#ifndef MATMUL_TWINS
#define FMA(a, b, c) _mm256_fmadd_ps(a, b, c)
#define KEEP(v) __asm__("" : "+x"(v))
#define BYTES256(p) _mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)(const void *)(p)))
#define WIDEN8(p) (v_avx2)_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)(const void *)(p))))
#define LOW4(p) ((v_avx2)_mm256_cvtepi32_ps(_mm256_and_si256(BYTES256(p), _mm256_set1_epi32(15))) - 8)
#define HIGH4(p) ((v_avx2)_mm256_cvtepi32_ps(_mm256_srli_epi32(BYTES256(p), 4)) - 8)
#define WIDEN(p) (v_avx2)_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)(p))), 16)
#define HALF(p) _cvtsh_ss(*(p))
#endif
#include "matmul_kernels.h"

#define NAME(f) f##_avx512
#define TARGET NATIVE("avx2,fma,f16c,avx512f,avx512vl,avx512bw,avx512dq")
#define VW 16
#define MR 14
#define FEW 8
#define PACK pack_floats
#ifndef MATMUL_TWINS
#define FMA(a, b, c) _mm512_fmadd_ps(a, b, c)
#define KEEP(v) __asm__("" : "+v"(v))
#define BYTES512(p) _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)(const void *)(p)))
#define WIDEN8(p) (v_avx512)_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32( \
    _mm_loadu_si128((const __m128i *)(const void *)(p))))
// the value of a nibble comes from a table in a register; only the lowest four bits of an index count
#define TABLE _mm512_setr_ps(-8, -7, -6, -5, -4, -3, -2, -1, 0, 1, 2, 3, 4, 5, 6, 7)
#define LOW4(p) (v_avx512)_mm512_permutexvar_ps(BYTES512(p), TABLE)
#define HIGH4(p) (v_avx512)_mm512_permutexvar_ps(_mm512_srli_epi32(BYTES512(p), 4), TABLE)
#define WIDEN(p) (v_avx512)_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)(p))), 16)
#define HALF(p) _cvtsh_ss(*(p))
#endif
#include "matmul_kernels.h"
#endif

// ---------------------------------------------------------------------------------------------------------
// The choice.

static const MatmulKernels best_first[] = {
#if defined(__x86_64__) || defined(MATMUL_TWINS)
    {"amx", &loops_avx512, &narrow_amx_int8, &narrow_amx_two, &narrow_int4_vnni512, false},
    {"amx-bf16", &loops_avx512, &narrow_amx_int8, &narrow_amx_bf16, &narrow_int4_vnni512, true},
    {"avx512vnni", &loops_avx512, &narrow_vnni512, NULL, &narrow_int4_vnni512, false},
    {"avx512bf16", &loops_avx512, &narrow_vnni512, &narrow_bf16_512, &narrow_int4_vnni512, true},
    {"avx512", &loops_avx512, &narrow_madd512, NULL, &narrow_int4_madd512, false},
    {"avxvnni", &loops_avx2, &narrow_vnni256, NULL, &narrow_int4_vnni256, false},
    {"avx2", &loops_avx2, &narrow_madd256, NULL, &narrow_int4_madd256, false},
#endif
#if defined(__aarch64__)
    {"neondot", &loops_neon, &narrow_sdot, NULL, &narrow_int4_sdot, false},
    {"neon", &loops_neon, NULL, NULL, NULL, false},
#elif defined(MATMUL_TWINS)
    {"neondot", &loops_base, &narrow_sdot, NULL, &narrow_int4_sdot, false},
#endif
#if defined(__x86_64__)
    {"sse2", &loops_base, NULL, NULL, NULL, false},
#else
    {"generic", &loops_base, NULL, NULL, NULL, false},
#endif
    {"plain", &loops_plain, NULL, NULL, NULL, false}
};
enum { KERNELS = sizeof best_first / sizeof *best_first };

#if defined(__x86_64__) && !defined(MATMUL_TWINS)
// What compilers' __builtin_cpu_supports() does not know everywhere: bits of CPUID.
static bool cpuid_has(unsigned leaf, unsigned part, char reg, int bit) {
    unsigned a = 0, b = 0, c = 0, d = 0;
    return __get_cpuid_count(leaf, part, &a, &b, &c, &d) && (reg == 'a' ? a : reg == 'c' ? c : d) >> bit & 1;
}

static bool supported(const MatmulKernels *k) {
    const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && cpuid_has(1, 0, 'c', 29);
    const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") &&
                        __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq");
    const bool vnni = avx512 && __builtin_cpu_supports("avx512vnni");
    const char *name = k->name;
    if (!strncmp(name, "amx", 3))        // tiles, bf16, int8; the system must save their registers
        return vnni && cpuid_has(7, 0, 'd', 24) && cpuid_has(7, 0, 'd', 22) && cpuid_has(7, 0, 'd', 25) &&
               narrow_amx_allowed();
    if (!strcmp(name, "avx512bf16")) return vnni && cpuid_has(7, 1, 'a', 5);
    if (!strcmp(name, "avx512vnni")) return vnni;
    if (!strcmp(name, "avxvnni")) return avx2 && cpuid_has(7, 1, 'a', 4);
    return k->loops == &loops_avx512 ? avx512 : k->loops == &loops_avx2 ? avx2 : true;
}
#elif defined(__aarch64__) && defined(__linux__)
static bool supported(const MatmulKernels *k) {
    return k->int8 != &narrow_sdot || getauxval(AT_HWCAP) & HWCAP_ASIMDDP;
}
#else
static bool supported(const MatmulKernels *k) {
    (void)k;
    return true;
}
#endif

const MatmulKernels *matmul_kernels(const char *isa) {
    const bool any = !isa || !strcmp(isa, "auto");
    for (int i = 0; i < KERNELS; i++)
        if ((any ? !best_first[i].rounds : !strcmp(isa, best_first[i].name)) && supported(&best_first[i]))
            return &best_first[i];
    return NULL;
}

const char *matmul_isa_names(int i) { return i >= 0 && i < KERNELS ? best_first[i].name : NULL; }

const char *matmul_isa(const MatmulKernels *k) { return k->name; }
