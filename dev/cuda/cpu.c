// dev/cuda/cpu.c: calls single layers of blip2.c, see cpu.h. Each call makes a Run with just what that layer looks at.

#include "../../blip2.c"

#include "cpu.h"

#include <unistd.h>

static void *need(size_t bytes) {
    void *p = aligned_alloc(64, (bytes + 64) / 64 * 64);
    CHECK(p);
    return p;
}

static Run run_with(const Model *m, size_t scores) {
    Run r = {.m = m};
    const long cores = sysconf(_SC_NPROCESSORS_ONLN);
    r.par.pool = pool_open(cores > 1 ? (int)cores : 1);
    CHECK(r.par.pool);
    r.par.threads = r.lim.threads = pool_threads(r.par.pool);
    r.par.kernels = matmul_kernels("plain");
    r.par.scratch = need(matmul_scratch_bytes(r.par.threads));
    r.scores = need(scores * (size_t)r.par.threads * sizeof(float));
    return r;
}

static void run_end(Run *r) {
    pool_close(r->par.pool);
    free(r->par.scratch);
    free(r->scores);
}

void cpu_layernorm(float *out, const float *x, const float *w, const float *b, float eps, int T, int C) {
    Run r = run_with(NULL, 0);
    layernorm(out, x, w, b, eps, T, C, &r.par);
    run_end(&r);
}

void cpu_matmul(float *out, const float *x, const Tensor *w, const float *b, int T) {
    Run r = run_with(NULL, 0);
    matmul(out, x, w, b, T, &r.par);
    run_end(&r);
}

void cpu_vit_embed(float *x, const uint8_t *pixels, const Config *c, const Vit *w) {
    const Model m = {.config = *c, .vit = *w};
    Run r = run_with(&m, 0);
    r.x = x;
    r.pixel_values = need((size_t)3 * c->S * c->S * sizeof(float));
    r.patches = need((size_t)(c->N - 1) * 3 * c->P * c->P * sizeof(float));
    vit_embed(&r, pixels);
    free(r.pixel_values);
    free(r.patches);
    run_end(&r);
}

void cpu_attention(float *out, const float *qkv, int N, int H, int A) {
    const int D = H * A;
    Run r = run_with(NULL, (size_t)N * N);
    attention(out, qkv, 3 * D, qkv + D, qkv + 2 * D, 3 * D, 1 / sqrtf((float)A), false, NULL, 0, N, N, H, A, &r);
    run_end(&r);
}

void cpu_attend_past(float *out, const CpuPast *p) {
    Model m = {.config = {.HL = p->H, .AL = p->A, .IL = p->H * p->A}};
    Run r = run_with(&m, (size_t)p->TK + p->max_new + 1);
    r.TP = r.TK = p->TK;
    r.lim.B = p->B, r.lim.R = p->R, r.lim.max_new = p->max_new;
    // attend_past only reads these
    r.kv_prompt = (float *)p->prompts, r.kv_new = (float *)p->fresh;
    r.line = (int *)p->line, r.row_prompt = (int *)p->prompt_of, r.prompt_T = (int *)p->n_of;
    const Pass pass = {.T = p->R, .t = p->t};
    attend_past(out, p->q, p->H * p->A, 0, 1 / sqrtf((float)p->A), false, NULL, 0, &pass, &r);
    run_end(&r);
}
