// test/fixture.c: a second, independent writer of weight files (see fixture.h), as small as the format allows.

#include "fixture.h"

#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <zlib.h>

enum { HEADER = 64, DIRECTORY = 584, RECORD = 96, MAX_RECORDS = 1024, MAX_BYTES = 64 << 20 };

void put_u32(uint8_t *p, uint32_t v) { for (int i = 0; i < 4; i++) p[i] = (uint8_t)(v >> 8 * i); }
void put_u64(uint8_t *p, uint64_t v) { for (int i = 0; i < 8; i++) p[i] = (uint8_t)(v >> 8 * i); }

uint32_t fixture_random(uint32_t *state) {
    uint32_t x = *state;
    x ^= x << 13;
    x ^= x >> 17;
    x ^= x << 5;
    return *state = x;
}

Config fixture_config(int family) {
    Config c = {
        .family = family, .S = 13, .P = 4, .DV = 6, .HV = 2, .FV = 5, .LV = 1, .DQ = 4, .HQ = 2, .FQ = 3, .LQ = 3,
        .XQ = 2, .Q = 3, .DL = 6, .HL = 3, .AL = 2, .FL = 7, .LE = 0, .LD = 1, .V = 37, .positions = 20,
        .act = ACT_RELU, .buckets = 0, .max_distance = 0, .tied = 1, .image_token = 36, .bos = 2, .eos = 5, .pad = 1,
        .start = -1, .beams = 5, .max_new = 30, .min_new = 0, .top_k = 50, .eps_vit = 1e-6f, .eps_post = 1e-5f,
        .eps_qformer = 1e-12f, .eps_lm = 1e-5f, .logit_scale = 1, .mean_r = 0.5f, .mean_g = 0.4f, .mean_b = 0.3f,
        .std_r = 0.3f, .std_g = 0.2f, .std_b = 0.1f, .length_penalty = 1, .repeat_penalty = 1, .top_p = 0.9f, .temp = 1,
        .type = "tiny_test", .prompt = "a photo of",
    };
    if (family == T5) {
        c.LE = 2, c.AL = 3, c.positions = 0, c.act = ACT_GELU_TANH, c.buckets = 8, c.max_distance = 20, c.tied = 0;
        c.bos = -1, c.eos = 1, c.pad = 0, c.start = 0;
    }
    c.N = 1 + (c.S / c.P) * (c.S / c.P);
    c.NX = (c.LQ + c.XQ - 1) / c.XQ;
    c.IL = c.HL * c.AL;
    return c;
}

// ---------------------------------------------------------------------------------------------------------

typedef struct { char name[48]; bool mat; int rows, cols; } Want;
typedef struct { Want want[MAX_RECORDS]; int n; } List;

static void list_add(List *l, const char *prefix, int i, const char *name, bool mat, int rows, int cols) {
    CHECK(l->n < MAX_RECORDS);
    Want *w = &l->want[l->n++];
    if (i < 0) snprintf(w->name, sizeof w->name, "%s%s", prefix, name);
    else snprintf(w->name, sizeof w->name, "%s%d.%s", prefix, i, name);
    w->mat = mat, w->rows = rows, w->cols = cols;
}

static void list_tensors(List *l, const Config *c) {
    const int P = c->P, N = c->N, DV = c->DV, FV = c->FV, Q = c->Q, DQ = c->DQ, FQ = c->FQ, NX = c->NX, DL = c->DL;
    const int HL = c->HL, IL = c->IL, FL = c->FL, V = c->V, positions = c->positions, buckets = c->buckets;
    const char *prefix;
    int i = -1;
#define MAT(field, name, rows, cols) list_add(l, prefix, i, name, true, rows, cols);
#define VEC(field, name, rows, cols) list_add(l, prefix, i, name, false, rows, cols);
    prefix = "vit.";
    VIT_TENSORS(MAT, VEC)
    for (i = 0; i < c->LV; i++) { VIT_BLOCK_TENSORS(MAT, VEC) }
    prefix = "qf.", i = -1;
    QFORMER_TENSORS(MAT, VEC)
    for (i = 0; i < c->LQ; i++) {
        QFORMER_LAYER_TENSORS(MAT, VEC)
        if (i % c->XQ == 0) { QFORMER_CROSS_TENSORS(MAT, VEC) }
    }
    prefix = "lm.", i = -1;
    LM_TENSORS(MAT, VEC)
    if (!c->tied) { LM_HEAD_TENSORS(MAT, VEC) }
    if (c->family == OPT) {
        OPT_TENSORS(MAT, VEC)
        prefix = "dec.";
        for (i = 0; i < c->LD; i++) { OPT_LAYER_TENSORS(MAT, VEC) }
        return;
    }
    prefix = "";
    T5_TENSORS(MAT, VEC)
    prefix = "enc.";
    for (i = 0; i < c->LE; i++) { T5_BLOCK_TENSORS(MAT, VEC) }
    prefix = "dec.";
    for (i = 0; i < c->LD; i++) { T5_BLOCK_TENSORS(MAT, VEC) T5_CROSS_TENSORS(MAT, VEC) }
#undef MAT
#undef VEC
}

static size_t up(size_t n, size_t to) { return (n + to - 1) / to * to; }

// Bytes of a tensor as doc/format.md has them; *values is where its scales would begin.
static size_t size_of(int dtype, size_t rows, size_t cols, size_t *values) {
    const size_t groups = (cols + 31) / 32;
    *values = dtype == DT_F32 ? rows * cols * 4 : dtype == DT_BF16 ? rows * cols * 2 :
              up(dtype == DT_INT8 ? rows * cols : rows * groups * 16, 256);
    return *values + (dtype == DT_INT8 ? rows * 4 : dtype == DT_INT4 ? rows * groups * 2 : 0);
}

// Small random values, norm weights around 1; scales of int8 and int4 make the largest about as large as in f32.
static void fill(uint8_t *p, const Want *w, int dtype, size_t values, size_t nbytes, uint32_t *random) {
    const size_t n = (size_t)w->rows * (size_t)w->cols, len = strlen(w->name);
    const float centre = strstr(w->name, "ln") && !strcmp(w->name + len - 2, ".w") ? 1 : 0;
    if (dtype != DT_F32 && dtype != DT_BF16) {
        for (size_t i = 0; i < values; i++) {
            p[i] = (uint8_t)fixture_random(random);
            if (dtype == DT_INT8 && p[i] == 0x80) p[i] = 0;          // -128 does not occur
        }
        for (size_t i = values; dtype == DT_INT8 && i < nbytes; i += 4)
            put_u32(p + i, 0x3B000000 + (fixture_random(random) & 0x7FFFFF));          // f32: 2^-9 to 2^-8
        for (size_t i = values; dtype == DT_INT4 && i < nbytes; i += 2)
            p[i] = (uint8_t)fixture_random(random), p[i + 1] = 0x28 + (fixture_random(random) & 3);   // f16: from 2^-5
        return;
    }
    for (size_t i = 0; i < n; i++) {
        const float x = centre + 0.5f * ((float)(fixture_random(random) >> 8) / 16777216.0f - 0.5f);
        uint32_t bits;
        memcpy(&bits, &x, sizeof bits);
        if (dtype == DT_F32) put_u32(p + 4 * i, bits);
        else p[2 * i] = (uint8_t)(bits >> 16), p[2 * i + 1] = (uint8_t)(bits >> 24);
    }
}

// head (calloc'd) <- everything in front of the directory, with file_bytes and the checksum still missing.
static void put_head(uint8_t *p, const Config *c, int n_tensors, size_t tokenizer_bytes, size_t head_bytes) {
    memcpy(p, "BLIP2C\r\n", 8);
    put_u32(p + 8, 1);
    put_u64(p + 16, head_bytes);
    put_u32(p + 40, (uint32_t)n_tensors);
    put_u32(p + 44, (uint32_t)tokenizer_bytes);
    uint8_t *q = p + HEADER;
    uint32_t n = 0;
#define X(field, lo, hi, meaning) put_u32(q, (uint32_t)c->field), q += 4, n++;
    CONFIG_INTS(X)
#undef X
    put_u32(p + 32, n);
    n = 0;
#define X(field, lo, hi, meaning) memcpy(q, &c->field, 4), q += 4, n++;
    CONFIG_FLOATS(X)
#undef X
    put_u32(p + 36, n);
    memcpy(q, c->type, TYPE_BYTES);
    memcpy(q + TYPE_BYTES, c->prompt, PROMPT_BYTES);
}

static uint8_t *directory(const uint8_t *p) {
    return (uint8_t *)p + up(HEADER + 4 * (read_u32(p + 32) + read_u32(p + 36)) + TYPE_BYTES + PROMPT_BYTES, 8);
}

Fixture fixture_make(const Config *c, int dtype, const void *tokenizer, size_t tokenizer_bytes, uint32_t seed) {
    List *l = calloc(1, sizeof *l);
    CHECK(l);
    list_tensors(l, c);
    size_t values, most = up(DIRECTORY + (size_t)l->n * RECORD + tokenizer_bytes, 4096);
    const size_t head_bytes = most;
    for (int i = 0; i < l->n; i++)
        most = up(most, 256) + size_of(l->want[i].mat ? dtype : DT_F32, (size_t)l->want[i].rows,
                                       (size_t)l->want[i].cols, &values);
    uint8_t *p = calloc(1, most);
    CHECK(p && most <= MAX_BYTES);
    put_head(p, c, l->n, tokenizer_bytes, head_bytes);
    uint8_t *r = directory(p);
    memcpy(r + (size_t)l->n * RECORD, tokenizer, tokenizer_bytes);
    size_t end = head_bytes;
    for (int i = 0; i < l->n; i++, r += RECORD) {
        const Want *w = &l->want[i];
        const int dt = w->mat ? dtype : DT_F32;
        const size_t offset = up(end, 256);
        const size_t nbytes = size_of(dt, (size_t)w->rows, (size_t)w->cols, &values);
        CHECK(offset + nbytes <= most);
        fill(p + offset, w, dt, values, nbytes, &seed);
        memcpy(r, w->name, sizeof w->name);
        put_u32(r + 48, (uint32_t)dt);
        put_u32(r + 52, (uint32_t)w->rows);
        put_u32(r + 56, (uint32_t)w->cols);
        put_u32(r + 60, (uint32_t)crc32_z(0, p + offset, nbytes));
        put_u64(r + 64, offset);
        put_u64(r + 72, nbytes);
        end = offset + nbytes;
    }
    free(l);
    Fixture f = {p, end};
    put_u64(f.data + 24, end);
    fixture_seal(&f);
    return f;
}

void fixture_free(Fixture *f) {
    free(f->data);
    *f = (Fixture){0};
}

Fixture fixture_copy(const Fixture *f) {
    Fixture g = {malloc(f->n), f->n};
    CHECK(g.data);
    memcpy(g.data, f->data, f->n);
    return g;
}

// ---------------------------------------------------------------------------------------------------------

uint8_t *fixture_record_at(const Fixture *f, int i) { return directory(f->data) + (size_t)i * RECORD; }

uint8_t *fixture_record(const Fixture *f, const char *name) {
    for (uint32_t i = 0; i < read_u32(f->data + 40); i++) {
        uint8_t *r = fixture_record_at(f, (int)i);
        if (!strncmp((const char *)r, name, 48)) return r;
    }
    return NULL;
}

uint8_t *fixture_config_at(const Fixture *f, const char *name) {
    uint8_t *p = f->data + HEADER;
#define X(field, lo, hi, meaning) if (!strcmp(name, #field)) return p; else p += 4;
    CONFIG_INTS(X)
    CONFIG_FLOATS(X)
#undef X
    return NULL;
}

void fixture_seal(Fixture *f) {
    const uint64_t head_bytes = f->n >= HEADER ? read_u64(f->data + 16) : 0;
    if (head_bytes < 16 || head_bytes > f->n) return;
    put_u32(f->data + 12, (uint32_t)crc32_z(0, f->data + 16, head_bytes - 16));
}

void fixture_write(const char *path, const void *data, size_t n) {
    const int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    CHECK(fd >= 0);
    CHECK(write(fd, data, n) == (ssize_t)n);
    CHECK(close(fd) == 0);
}
