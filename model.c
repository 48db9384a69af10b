// model.c: the weight file: mapped into memory and checked from the first byte to the last before anything is used.
//
// In order, which is also the order of the checks:
//   1. is it a weight file at all, and all of it there: magic, version, sizes, checksum of the head
//   2. directory: each record by itself and against its neighbours
//   3. binding: every tensor that the hyperparameters ask for, found by name, with its dtype and shape
//   4. model_open, model_verify, model_close
// Between 1 and 2 come the hyperparameters (model_config.c).
//
// The layout is drawn in doc/format.md. The bytes may come from anybody: nothing is used as a length, an index or an
// offset before it was compared with what it must be, and memory is taken only in proportion to checked numbers.
// What this cannot see: another program that shortens the file while it is mapped (the system then stops us, SIGBUS).
// Not here: what is inside the tokenizer section (tokenizer.c) and what the tensors mean (blip2.c).

#include "model_parts.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>
#include <zlib.h>

_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "tensors are used in place, as little-endian numbers");
_Static_assert(sizeof(size_t) == 8, "weight files are larger than a 32-bit address space");

static const char AGAIN[] = "hint: copy or export the file again";

static uint64_t round_up(uint64_t n, uint64_t to) { return (n + to - 1) / to * to; }   // n far below 2^64

// ---------------------------------------------------------------------------------------------------------
// 1. The file as a whole.

static const char MAGIC[8] = "BLIP2C\r\n";

// What people hand over instead, by its first bytes.
static const struct { const char *bytes; int n; const char *what; } MISTAKEN[] = {
    {"BLIP2C", 6, "a weight file whose line ends were changed by a transfer in text mode; hint: copy it as binary"},
    {"PK\3\4", 4, "a zip archive, as PyTorch writes checkpoints; hint: export/export.py makes a weight file of it"},
    {"\x80\2", 2, "a Python pickle, an old PyTorch checkpoint; hint: export/export.py makes a weight file of it"},
    {"\x80\4", 2, "a Python pickle; hint: export/export.py makes weight files"},
    {"GGUF", 4, "a GGUF file of llama.cpp; hint: export/export.py makes a weight file of the original checkpoint"},
    {"version https://git-lfs", 23, "only a git-lfs pointer; hint: 'git lfs pull' fetches the file itself"},
    {"\x1f\x8b", 2, "compressed with gzip; hint: unpack it first"},
    {"\x28\xb5\x2f\xfd", 4, "compressed with zstd; hint: unpack it first"},
    {"\xfd" "7zXZ", 5, "compressed with xz; hint: unpack it first"},
    {"\xff\xd8\xff", 3, "a JPEG image; hint: -m takes the weight file, images come without an option"},
    {"\x89PNG", 4, "a PNG image; hint: -m takes the weight file, images come without an option"},
    {"GIF8", 4, "a GIF image; hint: -m takes the weight file, images come without an option"},
    {"RIFF", 4, "a WebP image or a sound; hint: -m takes the weight file, images come without an option"},
    {"<!DOCTYPE", 9, "a web page; hint: the download went wrong"},
    {"<html", 5, "a web page; hint: the download went wrong"},
};

// p (n bytes) starts a file without our magic.
static int wrong_magic(const uint8_t *p, size_t n, Err *e) {
    if (n == 0) return fail(e, "the file is empty; %s", AGAIN);
    // safetensors: the length of a JSON text, then that text
    if (n > 8 && p[8] == '{' && read_u64(p) < (uint64_t)1 << 32)
        return fail(e, "not a weight file but a safetensors file; hint: export/export.py makes a weight file of it");
    for (size_t i = 0; i < sizeof MISTAKEN / sizeof *MISTAKEN; i++)
        if (n >= (size_t)MISTAKEN[i].n && !memcmp(p, MISTAKEN[i].bytes, (size_t)MISTAKEN[i].n))
            return fail(e, "not a weight file but %s", MISTAKEN[i].what);
    if (all_zero(p, n)) return fail(e, "starts with zeros: the disk was full or a download broke off; %s", AGAIN);
    return fail(e, "not a weight file: it does not start with BLIP2C; hint: export/export.py makes one");
}

// Maps path; sets m->file and m->file_bytes.
static int map_file(Model *m, const char *path, Err *e) {
    // O_NONBLOCK: a pipe without a writer must not make us wait
    const int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (fd < 0)
        return fail(e, "cannot open: %s%s", strerror(errno), errno != ENOENT ? "" :
                    "; hint: check the spelling; export/export.py makes a weight file of a Hugging Face checkpoint");
    struct stat st;
    uint8_t start[HEADER_BYTES];
    ssize_t got = 0;
    int rc = -1;
    void *p = MAP_FAILED;
    if (fstat(fd, &st)) fail(e, "cannot stat: %s", strerror(errno));
    else if (S_ISDIR(st.st_mode))
        fail(e, "is a folder; hint: export/export.py makes a weight file of a Hugging Face folder");
    else if (!S_ISREG(st.st_mode)) fail(e, "is not a regular file, which a weight file must be to be mapped");
    else if ((got = pread(fd, start, sizeof start, 0)) < 0) fail(e, "cannot read: %s", strerror(errno));
    else if (got < (ssize_t)sizeof MAGIC || memcmp(start, MAGIC, sizeof MAGIC)) {
        if (got > 0 && got < (ssize_t)sizeof MAGIC && !memcmp(start, MAGIC, (size_t)got))
            fail(e, "truncated: it has only %zd bytes; %s", got, AGAIN);
        else wrong_magic(start, (size_t)got, e);
    } else if (st.st_size < DIRECTORY_AT)
        fail(e, "truncated: a weight file has more than %d bytes, this has %lld; %s", DIRECTORY_AT,
             (long long)st.st_size, AGAIN);
    else if ((p = mmap(NULL, (size_t)st.st_size, PROT_READ, MAP_SHARED, fd, 0)) == MAP_FAILED)
        fail(e, "cannot map %lld bytes: %s", (long long)st.st_size, strerror(errno));
    else {
        m->file = p;
        m->file_bytes = (size_t)st.st_size;
        // Only a wish: what is read from now on comes in pages of 2 MB, with 512 times fewer page faults.
        madvise(p, m->file_bytes, MADV_HUGEPAGE);
        rc = 0;
    }
    close(fd);
    return rc;
}

// Version, sizes and checksum: behind this, the head is as the exporter wrote it, unless someone meant harm.
static int check_header(Model *m, Err *e) {
    const uint8_t *p = m->file;
    const uint32_t version = read_u32(p + 8), crc = read_u32(p + 12), tokenizer = read_u32(p + 44);
    const uint64_t head_bytes = read_u64(p + 16), file_bytes = read_u64(p + 24);
    const uint32_t n_ints = read_u32(p + 32), n_floats = read_u32(p + 36), n_tensors = read_u32(p + 40);
    if (version != VERSION)
        return fail(e, "format version %u, but this program reads version %d; hint: export the file again with the "
                    "export.py that came with this program", version, VERSION);
    if (file_bytes > m->file_bytes)
        return fail(e, "truncated: it should have %llu bytes and has %zu; %s", (unsigned long long)file_bytes,
                    m->file_bytes, AGAIN);
    if (file_bytes < m->file_bytes)
        return fail(e, "too long: it should have %llu bytes and has %zu; %s", (unsigned long long)file_bytes,
                    m->file_bytes, AGAIN);
    if (n_ints != N_INTS || n_floats != N_FLOATS)
        return fail(e, "damaged header: %u and %u hyperparameters, expected %d and %d; %s", n_ints, n_floats, N_INTS,
                    N_FLOATS, AGAIN);
    if (n_tensors == 0 || n_tensors > MAX_TENSORS)
        return fail(e, "damaged header: %u tensors, expected 1 to %d; %s", n_tensors, MAX_TENSORS, AGAIN);
    if (tokenizer == 0 || tokenizer > MAX_TOKENIZER_BYTES)
        return fail(e, "damaged header: a tokenizer of %u bytes, expected 1 to %d; %s", tokenizer,
                    MAX_TOKENIZER_BYTES, AGAIN);
    const uint64_t used = DIRECTORY_AT + (uint64_t)n_tensors * RECORD_BYTES + tokenizer;
    if (head_bytes != round_up(used, HEAD_ALIGN) || head_bytes > file_bytes)
        return fail(e, "damaged header: a head of %llu bytes, expected %llu in a file of %llu; %s",
                    (unsigned long long)head_bytes, (unsigned long long)round_up(used, HEAD_ALIGN),
                    (unsigned long long)file_bytes, AGAIN);
    const uint32_t got = (uint32_t)crc32_z(crc32_z(0, NULL, 0), p + 16, head_bytes - 16);
    if (got != crc)
        return fail(e, "damaged: the head's crc32 should be %08x and is %08x; %s", crc, got, AGAIN);
    if (!all_zero(p + 48, 16) || !all_zero(p + CONFIG_END, DIRECTORY_AT - CONFIG_END) ||
        !all_zero(p + used, head_bytes - used))
        return fail(e, "reserved bytes of the head are not zero; hint: a newer program may have written this file");
    m->n_tensors = (int)n_tensors;
    m->tokenizer = p + DIRECTORY_AT + (size_t)n_tensors * RECORD_BYTES;
    m->tokenizer_bytes = tokenizer;
    return 0;
}

// ---------------------------------------------------------------------------------------------------------
// 2. The directory, before it is known what the tensors are for.
//
//    record   | name 48 | dtype 4 | rows 4 | cols 4 | crc32 4 | offset 8 | nbytes 8 | zero 16 |
//    byte     0         48        52       56       60        64         72         80

enum { AT_DTYPE = 48, AT_ROWS = 52, AT_COLS = 56, AT_CRC = 60, AT_OFFSET = 64, AT_NBYTES = 72, AT_RESERVED = 80 };

const char *dtype_name(uint32_t dtype) {
    static const char *const NAMES[] = {[DT_F32] = "f32", [DT_BF16] = "bf16", [DT_INT8] = "int8", [DT_INT4] = "int4"};
    return dtype <= DT_INT4 ? NAMES[dtype] : "unknown";
}

static const uint8_t *record_at(const Model *m, int i) {
    return m->file + DIRECTORY_AT + (size_t)i * RECORD_BYTES;
}

// Bytes of a (rows,cols) tensor, and where behind its start the scales of INT8 and INT4 lie. False on overflow.
static bool tensor_bytes(uint64_t *nbytes, uint64_t *scale_at, uint32_t dtype, uint32_t rows, uint32_t cols) {
    const uint64_t groups = ((uint64_t)cols + 31) / 32;
    const uint64_t row_bytes = dtype == DT_F32 ? (uint64_t)cols * 4 : dtype == DT_BF16 ? (uint64_t)cols * 2 :
                               dtype == DT_INT8 ? cols : groups * 16;
    const uint64_t row_scales = dtype == DT_INT8 ? 4 : dtype == DT_INT4 ? groups * 2 : 0;
    uint64_t values;
    if (!mul_ok(&values, rows, row_bytes) || values >> 62) return false;
    *scale_at = row_scales ? round_up(values, TENSOR_ALIGN) : values;
    return add_ok(nbytes, *scale_at, rows * row_scales);   // rows * row_scales is no larger than values * 4
}

static int check_record(const Model *m, const uint8_t *r, uint64_t data_end, Err *e) {
    const uint32_t dtype = read_u32(r + AT_DTYPE), rows = read_u32(r + AT_ROWS), cols = read_u32(r + AT_COLS);
    const uint64_t offset = read_u64(r + AT_OFFSET), nbytes = read_u64(r + AT_NBYTES);
    uint64_t want, scale_at, end;
    if (dtype > DT_INT4) return fail(e, "dtype %u is none that this program knows", dtype);
    if (rows == 0 || cols == 0 || rows > INT_MAX || cols > INT_MAX)
        return fail(e, "a shape of (%u,%u) is not possible", rows, cols);
    if (!tensor_bytes(&want, &scale_at, dtype, rows, cols)) return fail(e, "a shape of (%u,%u) overflows", rows, cols);
    if (nbytes != want)
        return fail(e, "(%u,%u) in %s takes %llu bytes, but the directory says %llu", rows, cols, dtype_name(dtype),
                    (unsigned long long)want, (unsigned long long)nbytes);
    if (offset % TENSOR_ALIGN)
        return fail(e, "offset %llu is no multiple of %d", (unsigned long long)offset, TENSOR_ALIGN);
    if (offset < data_end)
        return fail(e, "offset %llu overlaps what comes before, which ends at %llu", (unsigned long long)offset,
                    (unsigned long long)data_end);
    if (!add_ok(&end, offset, nbytes) || end > m->file_bytes)
        return fail(e, "%llu bytes at %llu reach beyond the end of the file at %zu", (unsigned long long)nbytes,
                    (unsigned long long)offset, m->file_bytes);
    if (!all_zero(r + AT_RESERVED, RECORD_BYTES - AT_RESERVED)) return fail(e, "reserved bytes are not zero");
    return 0;
}

typedef struct { const uint8_t *record; bool bound; } Entry;

static int by_name(const void *a, const void *b) {
    return memcmp(((const Entry *)a)->record, ((const Entry *)b)->record, NAME_BYTES);
}

// entries (n_tensors) <- the records, sorted by name.
static int check_directory(Entry *entries, const Model *m, Err *e) {
    uint64_t data_end = read_u64(m->file + 16);   // of what was seen so far; at first the head
    for (int i = 0; i < m->n_tensors; i++) {
        const uint8_t *r = record_at(m, i);
        const size_t len = strnlen((const char *)r, NAME_BYTES);
        for (size_t j = 0; j < len; j++)   // names are printed, so nothing that steers a terminal
            if (r[j] <= ' ' || r[j] > '~') return fail(e, "the name of tensor number %d is not plain text", i);
        if (len == 0 || len == NAME_BYTES || !all_zero(r + len, NAME_BYTES - len))
            return fail(e, "the name of tensor number %d is empty or does not end with NUL bytes", i);
        if (check_record(m, r, data_end, e)) return fail_in(e, "tensor %s", (const char *)r);
        data_end = read_u64(r + AT_OFFSET) + read_u64(r + AT_NBYTES);
        entries[i] = (Entry){.record = r};
    }
    qsort(entries, (size_t)m->n_tensors, sizeof *entries, by_name);
    for (int i = 1; i < m->n_tensors; i++)
        if (by_name(&entries[i - 1], &entries[i]) == 0)
            return fail(e, "tensor %s is there twice", (const char *)entries[i].record);
    return 0;
}

// ---------------------------------------------------------------------------------------------------------
// 3. Binding: every row of the tables in blip2.h finds its record.

// A row of a table: the matrix or the vector that is to be set, its name behind the prefix, its shape.
typedef struct { const char *name; Tensor *mat; const float **vec; uint64_t rows, cols; } Slot;

typedef struct { Model *m; Entry *entries; Err *e; } Binder;

static int bind_one(const Binder *b, const char *name, const Slot *s) {
    Entry key = {.record = (const uint8_t *)name};
    Entry *found = bsearch(&key, b->entries, (size_t)b->m->n_tensors, sizeof *b->entries, by_name);
    if (!found) return fail(b->e, "tensor %s (%llu,%llu) is missing", name, (unsigned long long)s->rows,
                            (unsigned long long)s->cols);
    const uint8_t *r = found->record;
    const uint32_t dtype = read_u32(r + AT_DTYPE), rows = read_u32(r + AT_ROWS), cols = read_u32(r + AT_COLS);
    if (rows != s->rows || cols != s->cols)
        return fail(b->e, "tensor %s: the shape should be (%llu,%llu) and is (%u,%u)", name,
                    (unsigned long long)s->rows, (unsigned long long)s->cols, rows, cols);
    if (s->vec && dtype != DT_F32)
        return fail(b->e, "tensor %s: the dtype should be f32 and is %s", name, dtype_name(dtype));
    uint64_t nbytes, scale_at;
    CHECK(tensor_bytes(&nbytes, &scale_at, dtype, rows, cols));
    const uint8_t *data = b->m->file + read_u64(r + AT_OFFSET);
    if (s->vec) *s->vec = (const float *)(const void *)data;
    else *s->mat = (Tensor){.data = data, .scale = nbytes > scale_at ? data + scale_at : NULL, .dtype = (int)dtype,
                            .rows = (int)rows, .cols = (int)cols};
    CHECK(!found->bound);
    found->bound = true;
    b->m->parameters += (uint64_t)rows * cols;
    return 0;
}

// Names are "prefix.name", or "prefix.i.name" for layer i >= 0.
static int bind(const Binder *b, const char *prefix, int i, const Slot *slots, size_t n) {
    for (size_t k = 0; k < n; k++) {
        char name[NAME_BYTES] = {0};   // compared in full, zeros included
        const int len = i < 0 ? snprintf(name, sizeof name, "%s%s", prefix, slots[k].name)
                              : snprintf(name, sizeof name, "%s%d.%s", prefix, i, slots[k].name);
        CHECK(len > 0 && len < NAME_BYTES);
        if (bind_one(b, name, &slots[k])) return -1;
    }
    return 0;
}

// A table of blip2.h as slots of the struct at `where`, which has the same fields; the shapes are spelled in the
// letters that bind_all declares.
#define MAT(field, name, rows, cols) {name, &w->field, NULL, rows, cols},
#define VEC(field, name, rows, cols) {name, NULL, &w->field, rows, cols},
#define BIND(Type, where, TABLE, prefix, i) do { \
        Type *w = where; \
        const Slot slots[] = { TABLE(MAT, VEC) }; \
        if (bind(b, prefix, i, slots, sizeof slots / sizeof *slots)) return -1; \
    } while (0)

static int bind_all(const Binder *b) {
    Model *m = b->m;
    const Config *c = &m->config;
    const uint64_t P = (uint64_t)c->P, N = (uint64_t)c->N, DV = (uint64_t)c->DV, FV = (uint64_t)c->FV;
    const uint64_t Q = (uint64_t)c->Q, DQ = (uint64_t)c->DQ, FQ = (uint64_t)c->FQ, NX = (uint64_t)c->NX;
    const uint64_t DL = (uint64_t)c->DL, HL = (uint64_t)c->HL, IL = (uint64_t)c->IL, FL = (uint64_t)c->FL;
    const uint64_t V = (uint64_t)c->V, positions = (uint64_t)c->positions, buckets = (uint64_t)c->buckets;

    BIND(Vit, &m->vit, VIT_TENSORS, "vit.", -1);
    for (int i = 0; i < c->LV; i++) BIND(VitBlock, &m->vit_block[i], VIT_BLOCK_TENSORS, "vit.", i);
    BIND(QFormer, &m->qformer, QFORMER_TENSORS, "qf.", -1);
    for (int i = 0; i < c->LQ; i++) BIND(QFormerLayer, &m->qformer_layer[i], QFORMER_LAYER_TENSORS, "qf.", i);
    for (int i = 0; i < c->LQ; i += c->XQ)
        BIND(QFormerCross, &m->qformer_cross[i / c->XQ], QFORMER_CROSS_TENSORS, "qf.", i);
    BIND(Lm, &m->lm, LM_TENSORS, "lm.", -1);
    if (c->tied) m->lm.head = m->lm.tok;
    else BIND(Lm, &m->lm, LM_HEAD_TENSORS, "lm.", -1);
    if (c->family == OPT) {
        BIND(Opt, &m->opt, OPT_TENSORS, "lm.", -1);
        for (int i = 0; i < c->LD; i++) BIND(OptLayer, &m->opt_layer[i], OPT_LAYER_TENSORS, "dec.", i);
        return 0;
    }
    BIND(T5Stack, &m->t5, T5_TENSORS, "", -1);
    for (int i = 0; i < c->LE; i++) BIND(T5Block, &m->t5_encoder[i], T5_BLOCK_TENSORS, "enc.", i);
    for (int i = 0; i < c->LD; i++) {
        BIND(T5Block, &m->t5_decoder[i], T5_BLOCK_TENSORS, "dec.", i);
        BIND(T5Cross, &m->t5_cross[i], T5_CROSS_TENSORS, "dec.", i);
    }
    return 0;
}
#undef MAT
#undef VEC
#undef BIND

// ---------------------------------------------------------------------------------------------------------
// 4. The public functions.

// The arrays of layers: at most 512 of each, by the tables.
static int take_layers(Model *m, Err *e) {
    const Config *c = &m->config;
    const bool opt = c->family == OPT;
    m->vit_block = calloc((size_t)c->LV, sizeof *m->vit_block);
    m->qformer_layer = calloc((size_t)c->LQ, sizeof *m->qformer_layer);
    m->qformer_cross = calloc((size_t)c->NX, sizeof *m->qformer_cross);
    if (opt) m->opt_layer = calloc((size_t)c->LD, sizeof *m->opt_layer);
    else {
        m->t5_encoder = calloc((size_t)c->LE, sizeof *m->t5_encoder);
        m->t5_decoder = calloc((size_t)c->LD, sizeof *m->t5_decoder);
        m->t5_cross = calloc((size_t)c->LD, sizeof *m->t5_cross);
    }
    if (!m->vit_block || !m->qformer_layer || !m->qformer_cross ||
        (opt ? !m->opt_layer : !m->t5_encoder || !m->t5_decoder || !m->t5_cross))
        return fail(e, "out of memory for a table of layers");
    return 0;
}

// Everything behind the mapping; entries (n_tensors) is scratch.
static int check_tensors(Model *m, Entry *entries, Err *e) {
    const Binder b = {m, entries, e};
    if (check_directory(entries, m, e) || bind_all(&b)) return -1;
    for (int i = 0; i < m->n_tensors; i++)
        if (!entries[i].bound)
            return fail(e, "tensor %s is left over: nothing of this model uses it", (const char *)entries[i].record);
    return 0;
}

int model_open(Model *m, const char *path, Err *e) {
    *m = (Model){0};
    int rc = map_file(m, path, e);
    if (!rc) rc = check_header(m, e);
    if (!rc) rc = model_config(&m->config, m->file, e);
    if (!rc) rc = take_layers(m, e);
    if (!rc) {
        Entry *entries = calloc((size_t)m->n_tensors, sizeof *entries);
        rc = entries ? check_tensors(m, entries, e) : fail(e, "out of memory for %d directory entries", m->n_tensors);
        free(entries);
    }
    if (rc) {
        model_close(m);
        return fail_in(e, "%s", path);
    }
    return 0;
}

int model_verify(const Model *m, Err *e) {
    uint64_t end = read_u64(m->file + 16);
    for (int i = 0; i <= m->n_tensors; i++) {
        // The bytes between two tensors belong to no checksum but are known: zeros, also behind the last one.
        const uint8_t *r = i < m->n_tensors ? record_at(m, i) : NULL;
        const uint64_t offset = r ? read_u64(r + AT_OFFSET) : m->file_bytes;
        if (!all_zero(m->file + end, offset - end))
            return fail(e, "damaged: bytes %llu to %llu, between tensors, are not all zero; %s",
                        (unsigned long long)end, (unsigned long long)offset, AGAIN);
        if (!r) break;
        end = offset + read_u64(r + AT_NBYTES);
        const uint32_t want = read_u32(r + AT_CRC);
        const uint32_t got = (uint32_t)crc32_z(crc32_z(0, NULL, 0), m->file + offset, end - offset);
        if (got != want)
            return fail(e, "damaged: tensor %s, bytes %llu to %llu: the crc32 should be %08x and is %08x; %s",
                        (const char *)r, (unsigned long long)offset, (unsigned long long)end, want, got, AGAIN);
    }
    return 0;
}

bool model_tensor(const Model *m, int i, const char **name, Tensor *out, uint64_t *bytes) {
    if (i < 0 || i >= m->n_tensors) return false;
    const uint8_t *r = record_at(m, i);
    *name = (const char *)r;
    *out = (Tensor){.data = m->file + read_u64(r + AT_OFFSET), .dtype = (int)read_u32(r + AT_DTYPE),
                    .rows = (int)read_u32(r + AT_ROWS), .cols = (int)read_u32(r + AT_COLS)};
    *bytes = read_u64(r + AT_NBYTES);
    return true;
}

void model_close(Model *m) {
    if (m->file) munmap((void *)(uintptr_t)m->file, m->file_bytes);
    free(m->vit_block);
    free(m->qformer_layer);
    free(m->qformer_cross);
    free(m->opt_layer);
    free(m->t5_encoder);
    free(m->t5_decoder);
    free(m->t5_cross);
    *m = (Model){0};
}
