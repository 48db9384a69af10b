// test/test_model.c: what model.c accepts and, above all, what it refuses.
//
// In order: valid files and what is read from them, wrong files, truncation, damage that the checksum sees, wrong
// hyperparameters and directories with a right checksum, every bit of the head flipped with a right checksum, random
// damage with a right checksum, damaged data. What opens is walked over: every number in its range, every tensor
// inside the file. The seed of the random part can be given as an argument, and a count of rounds as a second.

#include "check.h"
#include "fixture.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

static const char TOKENIZER[] = "only tokenizer.c looks inside of this";

// The scratch file that all tests open; kept open for writing, which is much faster than making it anew each time.
typedef struct { char dir[64], path[80]; int fd; } Scratch;

static void scratch_put(const Scratch *s, const uint8_t *p, size_t n) {
    CHECK(ftruncate(s->fd, (off_t)n) == 0);
    CHECK(pwrite(s->fd, p, n, 0) == (ssize_t)n);
}

static int open_bytes(Model *m, const Scratch *s, const uint8_t *p, size_t n, Err *e) {
    scratch_put(s, p, n);
    e->text[0] = 0;
    return model_open(m, s->path, e);
}

// ---------------------------------------------------------------------------------------------------------
// Whatever opens must be safe to use.

static bool inside(const Model *m, const void *p, uint64_t bytes) {
    const uintptr_t at = (uintptr_t)p, file = (uintptr_t)m->file;
    return p && at % 256 == 0 && at > file && at - file <= m->file_bytes && bytes <= m->file_bytes - (at - file);
}

static bool mat_ok(const Model *m, const Tensor *t, int64_t rows, int64_t cols) {
    const uint64_t n = (uint64_t)rows * (uint64_t)cols, groups = (uint64_t)rows * (((uint64_t)cols + 31) / 32);
    const uint64_t bytes[] = {4 * n, 2 * n, n, 16 * groups}, scale_bytes[] = {0, 0, (uint64_t)rows * 4, groups * 2};
    if (t->dtype < DT_F32 || t->dtype > DT_INT4 || t->rows != rows || t->cols != cols) return false;
    return inside(m, t->data, bytes[t->dtype]) &&
           (scale_bytes[t->dtype] ? inside(m, t->scale, scale_bytes[t->dtype]) : !t->scale);
}

// Every hyperparameter in the range of its row, every weight with the shape of its row and inside the file.
static bool model_sound(const Model *m) {
    const Config *c = &m->config;
    bool ok = m->n_tensors > 0 && memchr(c->type, 0, TYPE_BYTES) && memchr(c->prompt, 0, PROMPT_BYTES);
#define X(field, lo, hi, meaning) ok = ok && c->field >= lo && c->field <= hi;
    CONFIG_INTS(X)
    CONFIG_FLOATS(X)
#undef X
    ok = ok && c->DV % c->HV == 0 && c->DQ % c->HQ == 0 && c->S >= c->P && c->IL == c->HL * c->AL;
    ok = ok && c->N == 1 + (c->S / c->P) * (c->S / c->P) && c->NX == (c->LQ - 1) / c->XQ + 1;
    ok = ok && c->eos < c->V && c->pad < c->V && c->bos < c->V && c->start < c->V && c->image_token < c->V;
    ok = ok && (c->family == OPT ? c->positions > c->Q : c->buckets >= 4 && c->start >= 0 && c->LE >= 1);
    if (!ok) return false;
    const int64_t P = c->P, N = c->N, DV = c->DV, FV = c->FV, Q = c->Q, DQ = c->DQ, FQ = c->FQ, NX = c->NX, DL = c->DL;
    const int64_t HL = c->HL, IL = c->IL, FL = c->FL, V = c->V, positions = c->positions, buckets = c->buckets;
#define MAT(field, name, rows, cols) ok = ok && mat_ok(m, &w->field, rows, cols);
#define VEC(field, name, rows, cols) ok = ok && inside(m, w->field, (uint64_t)(rows) * (uint64_t)(cols) * 4);
#define WALK(Type, array, n, TABLE) \
    for (int i = 0; i < n; i++) { const Type *w = (array) + i; TABLE(MAT, VEC) }
    WALK(Vit, &m->vit, 1, VIT_TENSORS)
    WALK(VitBlock, m->vit_block, c->LV, VIT_BLOCK_TENSORS)
    WALK(QFormer, &m->qformer, 1, QFORMER_TENSORS)
    WALK(QFormerLayer, m->qformer_layer, c->LQ, QFORMER_LAYER_TENSORS)
    WALK(QFormerCross, m->qformer_cross, c->NX, QFORMER_CROSS_TENSORS)
    WALK(Lm, &m->lm, 1, LM_TENSORS)
    WALK(Lm, &m->lm, 1, LM_HEAD_TENSORS)
    if (c->family == OPT) {
        WALK(Opt, &m->opt, 1, OPT_TENSORS)
        WALK(OptLayer, m->opt_layer, c->LD, OPT_LAYER_TENSORS)
    } else {
        WALK(T5Stack, &m->t5, 1, T5_TENSORS)
        WALK(T5Block, m->t5_encoder, c->LE, T5_BLOCK_TENSORS)
        WALK(T5Block, m->t5_decoder, c->LD, T5_BLOCK_TENSORS)
        WALK(T5Cross, m->t5_cross, c->LD, T5_CROSS_TENSORS)
    }
#undef MAT
#undef VEC
#undef WALK
    return ok && m->tokenizer > m->file && m->tokenizer_bytes < m->file_bytes;
}

// 1: opened and sound, 0: refused with a message, -1: neither, which is a bug.
static int try_bytes(const Scratch *s, const uint8_t *p, size_t n, Err *e) {
    Model m;
    if (open_bytes(&m, s, p, n, e) == 0) {
        const bool sound = model_sound(&m);
        model_close(&m);
        return sound ? 1 : -1;
    }
    return e->text[0] && !m.file ? 0 : -1;
}

// Refused, with this in the message.
static void expect_refusal(Tally *t, const Scratch *s, Fixture *f, const char *want, const char *what) {
    Err e;
    const int got = try_bytes(s, f->data, f->n, &e);
    EXPECT(t, got == 0 && strstr(e.text, want), "%s: wanted '%s', got %d '%s'", what, want, got, e.text);
}

// ---------------------------------------------------------------------------------------------------------

static void test_valid(Tally *t, const Scratch *s, int family, int dtype) {
    const Config c = fixture_config(family);
    Fixture f = fixture_make(&c, dtype, TOKENIZER, sizeof TOKENIZER, 1);
    Model m;
    Err e;
    EXPECT(t, open_bytes(&m, s, f.data, f.n, &e) == 0, "%s", e.text);
    if (!m.file) return;
    EXPECT(t, memcmp(&m.config, &c, sizeof c) == 0, "the hyperparameters read differ from those written");
    EXPECT(t, model_sound(&m), "the walk over the model found something wrong");
    EXPECT(t, m.tokenizer_bytes == sizeof TOKENIZER && !memcmp(m.tokenizer, TOKENIZER, sizeof TOKENIZER), "tokenizer");
    EXPECT(t, m.n_tensors == (int)read_u32(f.data + 40) && m.file_bytes == f.n, "counts");
    uint64_t parameters = 0;
    for (int i = 0; i < m.n_tensors; i++) {
        const uint8_t *r = fixture_record_at(&f, i);
        parameters += (uint64_t)read_u32(r + 52) * read_u32(r + 56);
    }
    EXPECT(t, m.parameters == parameters, "%llu parameters", (unsigned long long)m.parameters);
    // the bytes behind a few pointers, reached by name on one side and by field on the other
    const struct { const char *name; const void *data; } same[] = {
        {"vit.pos", m.vit.pos}, {"vit.0.fc2.w", m.vit_block[0].fc2_w.data},
        {"qf.cross_kv.w", m.qformer.cross_kv_w.data},
        {"qf.2.cross_q.w", m.qformer_cross[1].q_w.data}, {"qf.1.ln2.b", m.qformer_layer[1].ln2_b},
        {"lm.tok", m.lm.tok.data}, {c.tied ? "lm.tok" : "lm.head", m.lm.head.data},
        {family == OPT ? "lm.pos" : "dec.bias", family == OPT ? m.opt.pos : m.t5.dec_bias},
        {"dec.0.qkv.w", family == OPT ? m.opt_layer[0].qkv_w.data : m.t5_decoder[0].qkv_w.data},
        {family == OPT ? "lm.ln.b" : "enc.1.wo.w", family == OPT ? m.opt.ln_b : m.t5_encoder[1].wo_w.data},
        {family == OPT ? "dec.0.fc1.b" : "dec.0.cross_kv.w",
         family == OPT ? m.opt_layer[0].fc1_b : m.t5_cross[0].kv_w.data},
    };
    for (size_t i = 0; i < sizeof same / sizeof *same; i++) {
        const uint8_t *r = fixture_record(&f, same[i].name);
        EXPECT(t, r && same[i].data == m.file + read_u64(r + 64), "%s points elsewhere", same[i].name);
        EXPECT(t, r && !memcmp(same[i].data, f.data + read_u64(r + 64), read_u64(r + 72)), "%s: bytes", same[i].name);
    }
    EXPECT(t, model_verify(&m, &e) == 0, "%s", e.text);
    // negative controls: the walk does see a wrong number and a wrong pointer
    Model bad = m;
    bad.config.DV++;
    EXPECT(t, !model_sound(&bad), "the walk overlooks a wrong hyperparameter");
    bad = m;
    bad.qformer.query = (const float *)(const void *)(m.file + m.file_bytes);
    EXPECT(t, !model_sound(&bad), "the walk overlooks a pointer behind the file");
    model_close(&m);
    fixture_free(&f);
}

// Files that are something else.
static void test_other_files(Tally *t, const Scratch *s) {
    static const struct { const char *bytes; size_t n; const char *want; } OTHER[] = {
        {"", 0, "empty"},
        {"B", 1, "truncated"},
        {"BLIP2C\r\n", 8, "truncated"},
        {"BLIP2C\n\1\0\0\0", 11, "text mode"},
        {"BLIP2C\r\r\n\1\0\0\0", 12, "text mode"},
        {"\x40\0\0\0\0\0\0\0{\"__metadata__\":{}}", 26, "safetensors"},
        {"PK\3\4\0\0\0\0\0\0archive/data.pkl", 26, "PyTorch"},
        {"\x80\2}q\0X", 6, "pickle"},
        {"GGUF\3\0\0\0", 8, "GGUF"},
        {"version https://git-lfs.github.com/spec/v1\noid sha256:00\n", 57, "git lfs pull"},
        {"\x1f\x8b\x08\0\0\0\0\0", 8, "gzip"},
        {"\xff\xd8\xff\xe0\0\x10JFIF", 10, "JPEG"},
        {"<!DOCTYPE html>", 15, "web page"},
        {"\0\0\0\0\0\0\0\0\0\0\0\0", 12, "zeros"},
        {"hello, this is some text\n", 25, "not a weight file"},
    };
    for (size_t i = 0; i < sizeof OTHER / sizeof *OTHER; i++) {
        Fixture f = {(uint8_t *)(uintptr_t)OTHER[i].bytes, OTHER[i].n};
        expect_refusal(t, s, &f, OTHER[i].want, OTHER[i].want);
    }
    Model m;
    Err e;
    EXPECT(t, model_open(&m, s->dir, &e) == -1 && strstr(e.text, "folder"), "%s", e.text);
    EXPECT(t, model_open(&m, "/dev/null", &e) == -1 && strstr(e.text, "regular file"), "%s", e.text);
    EXPECT(t, model_open(&m, "", &e) == -1 && strstr(e.text, "cannot open"), "%s", e.text);
    char path[128];
    snprintf(path, sizeof path, "%s/absent", s->dir);
    EXPECT(t, model_open(&m, path, &e) == -1 && strstr(e.text, strerror(ENOENT)) && strstr(e.text, path), "%s", e.text);
    snprintf(path, sizeof path, "%s/pipe", s->dir);
    CHECK(mkfifo(path, 0600) == 0);
    EXPECT(t, model_open(&m, path, &e) == -1 && strstr(e.text, "regular file"), "%s", e.text);   // and does not hang
    CHECK(unlink(path) == 0);
}

// Every length of the head, and lengths across the data; one byte too many.
static void test_truncated(Tally *t, const Scratch *s, const Fixture *f) {
    const size_t head_bytes = read_u64(f->data + 16);
    size_t wrong = 0, tried = 0;
    Err e;
    for (size_t n = f->n - 1;; n = n > head_bytes + 300 ? n - 257 : n - 1) {
        tried++;
        if (try_bytes(s, f->data, n, &e) != 0 || !strstr(e.text, n ? "truncated" : "empty")) wrong++;
        if (n == 0) break;
    }
    EXPECT(t, wrong == 0 && tried > head_bytes, "%zu of %zu truncations are not refused as such", wrong, tried);
    uint8_t *longer = calloc(1, f->n + 1);
    CHECK(longer);
    memcpy(longer, f->data, f->n);
    EXPECT(t, try_bytes(s, longer, f->n + 1, &e) == 0 && strstr(e.text, "too long"), "%s", e.text);
    free(longer);
}

// Every bit of the head: refused as it is; with a right checksum refused or sound. Counts both, so that it is seen
// that the second half tried something.
static void test_bits(Tally *t, const Scratch *s, const Fixture *original) {
    Fixture f = fixture_copy(original);
    const size_t head_bytes = read_u64(f.data + 16);
    int unseen = 0, bugs = 0, opened = 0, refused = 0;
    Err e = {0};
    scratch_put(s, f.data, f.n);
    for (size_t bit = 0; bit < head_bytes * 8; bit++) {
        const uint8_t was = f.data[bit / 8];
        f.data[bit / 8] = (uint8_t)(was ^ 1 << bit % 8);
        CHECK(pwrite(s->fd, f.data + bit / 8, 1, (off_t)(bit / 8)) == 1);
        Model m;
        if (model_open(&m, s->path, &e) == 0) unseen++, model_close(&m);
        if (bit / 8 >= 16) {
            fixture_seal(&f);
            CHECK(pwrite(s->fd, f.data + 12, 4, 12) == 4);
            const int rc = model_open(&m, s->path, &e);
            if (rc == 0 && !model_sound(&m)) bugs++;
            if (rc == 0) opened++, model_close(&m);
            else refused++;
            memcpy(f.data + 12, original->data + 12, 4);
            CHECK(pwrite(s->fd, f.data + 12, 4, 12) == 4);
        }
        f.data[bit / 8] = was;
        CHECK(pwrite(s->fd, &was, 1, (off_t)(bit / 8)) == 1);
    }
    EXPECT(t, unseen == 0, "%d flipped bits go unseen by the checksum", unseen);
    EXPECT(t, bugs == 0, "%d flipped bits give a model that is not sound", bugs);
    EXPECT(t, opened > 1000 && refused > 10000, "opened %d, refused %d: the test shows nothing", opened, refused);
    fixture_free(&f);
}

// Several random changes at once, of the kinds that break loaders, under a right checksum.
static void test_random(Tally *t, const Scratch *s, const Fixture *original, uint32_t seed, int rounds) {
    static const uint64_t NASTY[] = {0, 1, 0x7F, 0x80, 0xFF, 0x100, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF,
                                     0x7FFFFFFFFFFFFFFF, 0x8000000000000000, 0xFFFFFFFFFFFFFF00, 0xFFFFFFFFFFFFFFFF,
                                     0x7FC00000, 0x3F800000, 4096, 256};
    const size_t directory = (size_t)(fixture_record_at(original, 0) - original->data);
    const uint32_t n_tensors = read_u32(original->data + 40);
    const size_t places[] = {directory, directory + (size_t)n_tensors * 96, read_u64(original->data + 16)};
    int opened = 0, refused = 0, bugs = 0;
    uint32_t x = seed ? seed : 1;
    Err e;
    for (int round = 0; round < rounds; round++) {
        Fixture f = fixture_copy(original);
        const uint32_t round_seed = x;
        const int changes = 1 + (int)(fixture_random(&x) % 4);
        for (int i = 0; i < changes; i++) {
            const size_t limit = places[fixture_random(&x) % 3];
            size_t at = 16 + fixture_random(&x) % (limit - 24);
            if (fixture_random(&x) % 2) at &= ~(size_t)3;
            switch (fixture_random(&x) % 4) {
            case 0: f.data[at] = (uint8_t)fixture_random(&x); break;
            case 1: put_u32(f.data + at, (uint32_t)NASTY[fixture_random(&x) % (sizeof NASTY / sizeof *NASTY)]); break;
            case 2: put_u64(f.data + at, NASTY[fixture_random(&x) % (sizeof NASTY / sizeof *NASTY)]); break;
            default: {   // one record over another, or a swap of two
                uint8_t *a = f.data + directory + fixture_random(&x) % n_tensors * 96;
                uint8_t *b = f.data + directory + fixture_random(&x) % n_tensors * 96, was[96];
                memcpy(was, b, 96);
                memmove(b, a, 96);
                if (fixture_random(&x) % 2) memcpy(a, was, 96);
            }
            }
        }
        fixture_seal(&f);
        const int got = try_bytes(s, f.data, f.n, &e);
        if (got < 0) {
            bugs++;
            fprintf(stderr, "random damage with seed %u: not sound, '%s'\n", round_seed, e.text);
        }
        opened += got == 1;
        refused += got == 0;
        fixture_free(&f);
    }
    EXPECT(t, bugs == 0, "%d of %d", bugs, rounds);
    EXPECT(t, opened > rounds / 200 && refused > rounds / 2, "opened %d, refused %d: shows nothing", opened, refused);
}

// ---------------------------------------------------------------------------------------------------------
// One wrong hyperparameter at a time, the checksum right.

static void test_config(Tally *t, const Scratch *s, int family) {
    static const struct { int family; const char *name; int value; const char *want; } WRONG[] = {
        {0, "family", 0, "family"}, {0, "family", 3, "family"}, {0, "S", 0, " S "}, {0, "S", 3, "smaller than a patch"},
        {0, "S", 100000, " S "}, {0, "P", -4, " P "}, {0, "P", 0, " P "}, {0, "DV", 0, " DV "},
        {0, "DV", 7, "multiple"},
        {0, "DV", INT32_MAX, " DV "}, {0, "HV", 0, " HV "}, {0, "HV", 4, "multiple"}, {0, "DQ", 5, "multiple"},
        {0, "HQ", 3, "multiple"}, {0, "FV", INT32_MIN, " FV "}, {0, "LV", 513, " LV "}, {0, "LV", 512, "vit.1.ln1.w"},
        {0, "LQ", 0, " LQ "}, {0, "LQ", 2, "shape"}, {0, "XQ", 0, " XQ "}, {0, "XQ", 512, "shape"},
        {0, "XQ", 1, "shape"}, {0, "Q", 4097, " Q "}, {0, "HL", 0, " HL "}, {0, "AL", 4096, "shape"},
        {0, "FL", 8, "shape"}, {0, "LD", 0, " LD "}, {0, "LD", 2, "dec.1.ln1.w"}, {0, "V", 1, " V "},
        {0, "V", 36, "image_token is 36"}, {0, "V", 38, "lm.tok"}, {0, "act", 3, " act "}, {0, "tied", 2, " tied "},
        {0, "image_token", 37, "image_token"}, {0, "image_token", -2, "image_token"}, {0, "bos", 37, " bos "},
        {0, "eos", -1, " eos "}, {0, "eos", 37, " eos "}, {0, "pad", 4194303, " pad "}, {0, "start", 37, " start "},
        {0, "beams", 0, " beams "}, {0, "beams", 65, " beams "}, {0, "max_new", 0, " max_new "},
        {0, "min_new", 31, "minimum of new tokens"}, {0, "top_k", -1, " top_k "},
        {OPT, "LE", 1, "LE is 1"}, {OPT, "buckets", 8, "buckets 8"}, {OPT, "max_distance", 9, "max_distance 9"},
        {OPT, "start", 0, "start 0"}, {OPT, "positions", 0, "positions"}, {OPT, "positions", 3, "no room"},
        {OPT, "positions", 21, "lm.pos"}, {OPT, "tied", 0, "lm.head"},
        {T5, "LE", 0, "encoder"}, {T5, "LE", 3, "enc.2.ln1.w"}, {T5, "LE", 1, "left over"},
        {T5, "positions", 9, "positions"}, {T5, "start", -1, "start"}, {T5, "buckets", 0, "buckets"},
        {T5, "buckets", 2, "buckets"}, {T5, "buckets", 7, "buckets"}, {T5, "buckets", 10, "enc.bias"},
        {T5, "max_distance", 4, "max_distance"}, {T5, "tied", 1, "lm.head is left over"},
    };
    const Config c = fixture_config(family);
    Fixture f = fixture_make(&c, DT_F32, TOKENIZER, sizeof TOKENIZER, 2);
    for (size_t i = 0; i < sizeof WRONG / sizeof *WRONG; i++) {
        if (WRONG[i].family && WRONG[i].family != family) continue;
        uint8_t *p = fixture_config_at(&f, WRONG[i].name);
        const uint32_t was = read_u32(p);
        put_u32(p, (uint32_t)WRONG[i].value);
        fixture_seal(&f);
        expect_refusal(t, s, &f, WRONG[i].want, WRONG[i].name);
        put_u32(p, was);
    }
    // each float: NaN, both infinities, just outside of its range
#define X(field, lo, hi, meaning) { \
        const float values[] = {NAN, -NAN, INFINITY, -INFINITY, nextafterf(lo, -INFINITY), nextafterf(hi, INFINITY)}; \
        uint8_t *p = fixture_config_at(&f, #field); \
        for (int i = 0; i < 6; i++) { \
            memcpy(p, &values[i], 4); \
            fixture_seal(&f); \
            expect_refusal(t, s, &f, " " #field " is", #field); \
        } \
        memcpy(p, &c.field, 4); }
    CONFIG_FLOATS(X)
#undef X
    fixture_seal(&f);
    Err e;
    EXPECT(t, try_bytes(s, f.data, f.n, &e) == 1, "control: all put back, yet %s", e.text);

    // texts: longer than their field, not UTF-8, something behind the NUL, a control character
    uint8_t *type = fixture_config_at(&f, "temp") + 4, *prompt = type + TYPE_BYTES, was[PROMPT_BYTES];
    const struct { uint8_t *at; const char *bytes; size_t n; const char *want; } texts[] = {
        {type, "\xC3(", 2, "UTF-8"}, {type, "\x1B[2J", 4, "control"}, {type, "ab\0c", 4, "NUL"},
        {prompt, "\xED\xA0\x80", 3, "UTF-8"}, {prompt, "a\0b", 3, "NUL"},
    };
    for (size_t i = 0; i < sizeof texts / sizeof *texts; i++) {
        memcpy(was, texts[i].at, 16);
        memcpy(texts[i].at, texts[i].bytes, texts[i].n);
        fixture_seal(&f);
        expect_refusal(t, s, &f, texts[i].want, "text");
        memcpy(texts[i].at, was, 16);
    }
    memcpy(was, prompt, PROMPT_BYTES);
    memset(prompt, 'x', PROMPT_BYTES);
    fixture_seal(&f);
    expect_refusal(t, s, &f, "NUL", "prompt without end");
    memcpy(prompt, was, PROMPT_BYTES);
    fixture_free(&f);
}

// Wrong header fields and a wrong directory, the checksum right.
static void test_directory(Tally *t, const Scratch *s, int family) {
    const Config c = fixture_config(family);
    Fixture good = fixture_make(&c, DT_BF16, TOKENIZER, sizeof TOKENIZER, 3);
#define SPOIL(want, ...) do { \
        Fixture f = fixture_copy(&good); \
        uint8_t *p = f.data, *r = fixture_record(&f, "vit.0.fc1.w"), *next = r + 96; \
        (void)p; (void)r; (void)next; \
        __VA_ARGS__; \
        fixture_seal(&f); \
        expect_refusal(t, s, &f, want, #__VA_ARGS__); \
        fixture_free(&f); } while (0)
    SPOIL("version 2", put_u32(p + 8, 2));
    SPOIL("version 0", put_u32(p + 8, 0));
    SPOIL("truncated", put_u64(p + 24, UINT64_MAX));
    SPOIL("too long", put_u64(p + 24, f.n - 1));
    SPOIL("hyperparameters", put_u32(p + 32, 33));
    SPOIL("hyperparameters", put_u32(p + 36, UINT32_MAX));
    SPOIL("tensors", put_u32(p + 40, 0));
    SPOIL("tensors", put_u32(p + 40, UINT32_MAX));
    SPOIL("head", put_u32(p + 40, 32768));
    SPOIL("tokenizer", put_u32(p + 44, 0));
    SPOIL("tokenizer", put_u32(p + 44, UINT32_MAX));
    SPOIL("head", put_u64(p + 16, 0));
    SPOIL("head", put_u64(p + 16, UINT64_MAX));
    SPOIL("head", put_u64(p + 16, read_u64(p + 16) + 4096));
    SPOIL("reserved", p[63] = 1);
    SPOIL("reserved", p[read_u64(p + 16) - 1] = 1);
    SPOIL("not plain text", r[3] = 0x1B);
    SPOIL("not plain text", r[0] = 0xFF);
    SPOIL("empty", memset(r, 0, 48));
    SPOIL("NUL", memset(r, 'v', 48));
    SPOIL("NUL", r[47] = 'v');
    SPOIL("tensor vit.0.fc1.w: dtype 4", put_u32(r + 48, 4));
    SPOIL("tensor vit.0.fc1.w: dtype 4294967295", put_u32(r + 48, UINT32_MAX));
    SPOIL("vit.0.fc1.w: (5,6) in f32 takes 120 bytes", put_u32(r + 48, DT_F32));
    SPOIL("not possible", put_u32(r + 52, 0));
    SPOIL("not possible", put_u32(r + 56, UINT32_MAX));
    SPOIL("takes 8589934592 bytes", put_u32(r + 52, 65536), put_u32(r + 56, 65536));
    SPOIL("overflows", put_u32(r + 48, DT_F32), put_u32(r + 52, INT32_MAX), put_u32(r + 56, INT32_MAX));
    SPOIL("shape should be (5,6) and is (6,5)", put_u32(r + 52, 6), put_u32(r + 56, 5));
    SPOIL("offset", put_u64(r + 64, read_u64(r + 64) + 4));
    SPOIL("overlaps", put_u64(r + 64, 0));
    SPOIL("overlaps", put_u64(r + 64, read_u64(r + 64) - 256));
    SPOIL("overlaps", put_u64(next + 64, read_u64(r + 64)));
    SPOIL("beyond the end", put_u64(r + 64, UINT64_MAX - 255));
    SPOIL("beyond the end", put_u64(r + 64, (f.n + 255) / 256 * 256));
    SPOIL("directory says", put_u64(r + 72, read_u64(r + 72) - 1));
    SPOIL("directory says", put_u64(r + 72, UINT64_MAX));
    SPOIL("reserved", r[95] = 1);
    SPOIL("vit.0.fc1.w is there twice", memcpy(next, r, 48));
    SPOIL("vit.0.fc1.w (5,6) is missing", r[4] = '7');
    SPOIL("vit.0.fc1.w (5,6) is missing", memcpy(r, "something.else", 15));
    // a vector in bf16, half as many bytes
    SPOIL("vit.0.fc1.b: the dtype should be f32", put_u32(next + 48, DT_BF16), put_u64(next + 72, 10));
#undef SPOIL
    // a tensor more than the model needs: a directory one longer, which still fits into the padding of the head
    Fixture f = fixture_copy(&good);
    const uint32_t n = read_u32(f.data + 40);
    uint8_t *extra = fixture_record_at(&f, (int)n);
    uint8_t *last = fixture_record_at(&f, (int)n - 1);
    memmove(extra + 96, extra, sizeof TOKENIZER);
    memcpy(extra, last, 96);
    memset(extra, 0, 48);
    memcpy(extra, "vit.9.fc1.w", 11);
    put_u64(extra + 64, (f.n + 255) / 256 * 256);
    put_u32(f.data + 40, n + 1);
    const size_t end = (f.n + 255) / 256 * 256 + read_u64(extra + 72);
    f.data = realloc(f.data, end);
    CHECK(f.data);
    memset(f.data + f.n, 0, end - f.n);
    f.n = end;
    put_u64(f.data + 24, end);
    fixture_seal(&f);
    expect_refusal(t, s, &f, "vit.9.fc1.w is left over", "one too many");
    fixture_free(&f);
    fixture_free(&good);
}

// Damage in the data is for model_verify alone.
static void test_verify(Tally *t, const Scratch *s, const Fixture *original) {
    Fixture f = fixture_copy(original);
    const uint32_t n = read_u32(f.data + 40);
    int missed = 0, unnamed = 0;
    Model m;
    Err e;
    for (uint32_t i = 0; i < n; i++) {
        const uint8_t *r = fixture_record_at(&f, (int)i);
        const uint64_t first = read_u64(r + 64), last = first + read_u64(r + 72) - 1, at[] = {first, last, last + 1};
        for (int k = 0; k < 3; k++) {
            if (at[k] >= f.n || (k == 2 && at[k] % 256 == 0)) continue;   // no gap behind this tensor
            f.data[at[k]] ^= 0x10;
            if (open_bytes(&m, s, f.data, f.n, &e) != 0) missed++;        // only the head is checked by model_open
            else {
                if (model_verify(&m, &e) == 0) missed++;
                else if (!strstr(e.text, k < 2 ? (const char *)r : "between tensors")) unnamed++;
                model_close(&m);
            }
            f.data[at[k]] ^= 0x10;
        }
    }
    EXPECT(t, missed == 0 && unnamed == 0, "%d missed, %d not named", missed, unnamed);
    fixture_free(&f);
}

int main(int argc, char **argv) {
    const uint32_t seed = argc > 1 ? (uint32_t)strtoul(argv[1], NULL, 10) : 20240607;
    const int rounds = argc > 2 ? atoi(argv[2]) : 8000;
    Tally t = {0};
    Scratch s;
    snprintf(s.dir, sizeof s.dir, "/tmp/blip2-test-model-XXXXXX");
    CHECK(mkdtemp(s.dir));
    snprintf(s.path, sizeof s.path, "%s/weights", s.dir);
    s.fd = open(s.path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    CHECK(s.fd >= 0);

    test_other_files(&t, &s);
    for (int family = OPT; family <= T5; family++) {
        for (int dtype = DT_F32; dtype <= DT_INT4; dtype++) test_valid(&t, &s, family, dtype);
        test_config(&t, &s, family);
        test_directory(&t, &s, family);
        const Config c = fixture_config(family);
        Fixture f = fixture_make(&c, DT_BF16, TOKENIZER, sizeof TOKENIZER, 5);
        test_truncated(&t, &s, &f);
        test_verify(&t, &s, &f);
        test_bits(&t, &s, &f);
        test_random(&t, &s, &f, seed, rounds);
        fixture_free(&f);
    }
    close(s.fd);
    unlink(s.path);
    CHECK(rmdir(s.dir) == 0);
    return tally_close(&t);
}
