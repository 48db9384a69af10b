// dev/cuda/cpu.h: the layers of blip2.c one by one, which is what every version of the ladder is checked against.
//
// cpu.c includes blip2.c itself: nothing is copied, and a change there is seen here. All arrays are f32 on the host;
// letters as in blip2.h.
// Not here: the choice of tokens, whose reference is generate.c (searching.h).
#ifndef LADDER_CPU_H
#define LADDER_CPU_H

#include "../../blip2.h"

// x (T,C), w (C), b (C) -> out (T,C)
void cpu_layernorm(float *out, const float *x, const float *w, const float *b, float eps, int T, int C);
// x (T,C), w (OC,C) of any dtype, b (OC) or NULL -> out (T,OC)
void cpu_matmul(float *out, const float *x, const Tensor *w, const float *b, int T);
// pixels (S,S,3) -> x (N,DV); of c only S, P, N, DV, mean and std are looked at, of w not ln_w and ln_b
void cpu_vit_embed(float *x, const uint8_t *pixels, const Config *c, const Vit *w);
// The ViT's: qkv (N, 3*H*A) -> out (N, H*A), scores scaled by 1 / sqrt(A)
void cpu_attention(float *out, const float *qkv, int N, int H, int A);

// One new token per row over its past: prompts (B,TK,2*H*A), of which prompt b has n_of[b] positions, then
// fresh (t+1,R,2*H*A) through line (R,max_new).
typedef struct {
    const float *q, *prompts, *fresh;   // q (R, H*A)
    const int *prompt_of, *n_of, *line;
    int B, R, TK, max_new, t, H, A;
} CpuPast;
void cpu_attend_past(float *out, const CpuPast *p);      // -> out (R, H*A), scores scaled by 1 / sqrt(A)

#endif
