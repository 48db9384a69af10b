// test/compare_dumps.c: shows two dumps side by side, stage by stage, and stops at the first that is out of bounds.
//
//     compare_dumps GOT WANT [BOUND]
//
// Both are safetensors files of f32 tensors as ./blip2 --dump and test/truth.py write them. BOUND is the largest
// relative L2 error allowed (1e-4 if not given). Walks WANT's tensors in file order; a tensor that GOT lacks, another
// shape, or anything that is not finite is out of bounds. Exit code: 0 all within, 1 not, 2 usage or unreadable file.
// Not here: general safetensors; only what those two writers produce is understood.

#include "check.h"

#include <errno.h>
#include <stdlib.h>

typedef struct { char *bytes; size_t n, header; } File;

static int read_file(File *f, const char *path) {
    FILE *in = fopen(path, "rb");
    long n = -1;
    if (in && fseek(in, 0, SEEK_END) == 0) n = ftell(in);
    if (!in || n < 8 || fseek(in, 0, SEEK_SET) || !(f->bytes = malloc((size_t)n + 1)) ||
        fread(f->bytes, 1, (size_t)n, in) != (size_t)n) {
        fprintf(stderr, "cannot read %s: %s\n", path, errno ? strerror(errno) : "too short");
        if (in) fclose(in);
        return -1;
    }
    fclose(in);
    f->n = (size_t)n;
    uint64_t header;
    memcpy(&header, f->bytes, 8);
    if (header > f->n - 8) {
        fprintf(stderr, "%s is not a safetensors file\n", path);
        return -1;
    }
    f->header = (size_t)header;
    f->bytes[f->n] = 0;
    return 0;
}

typedef struct { char name[128], shape[64]; size_t start, end; } Entry;

// The next entry at *s: "name":{"dtype":"F32","shape":[...],"data_offsets":[a,b]}
static int next_entry(const char **s, Entry *e) {
    int used = 0;
    const char *form = "%*[{, ]\"%127[^\"]\":{\"dtype\":\"F32\",\"shape\":[%63[^]]],\"data_offsets\":[%zu,%zu]}%n";
    if (sscanf(*s, form, e->name, e->shape, &e->start, &e->end, &used) != 4 || !used)
        return 0;
    *s += used;
    return 1;
}

static int find_entry(const File *f, const char *name, Entry *e) {
    const char *s = f->bytes + 8;
    while (next_entry(&s, e)) if (!strcmp(e->name, name)) return 1;
    return 0;
}

static const float *data_of(const File *f, const Entry *e) {
    const size_t room = f->n - 8 - f->header;
    if (e->start > e->end || e->end > room || (e->end - e->start) % 4) return NULL;
    float *copy = malloc(e->end - e->start + 4);   // data need not be aligned in the file
    if (copy) memcpy(copy, f->bytes + 8 + f->header + e->start, e->end - e->start);
    return copy;
}

// One stage of both dumps as a line of the table. Returns the exit code: 0 within the bound, 1 not, 2 unreadable.
static int compare_stage(const File *got, const char *got_path, const File *want, const Entry *w, double bound) {
    Entry g;
    if (!find_entry(got, w->name, &g)) return printf("%-52s missing in %s\n", w->name, got_path), 1;
    if (strcmp(g.shape, w->shape)) return printf("%-52s shape %s, expected %s\n", w->name, g.shape, w->shape), 1;
    const float *a = data_of(got, &g), *b = data_of(want, w);
    int code = 2;
    if (!a || !b || g.end - g.start != w->end - w->start) printf("%-52s unreadable\n", w->name);
    else {
        const Diff d = diff_floats(a, b, (w->end - w->start) / 4);
        printf("%-52s %-12s %10.2e %10.2e", w->name, w->shape, d.rel_l2, d.max_abs);
        if (d.bad) printf("  %zu not finite", d.bad);
        printf("\n");
        code = !(d.rel_l2 <= bound);
        if (code) printf("out of bounds: worst element %zu: %.9g, expected %.9g\n", d.worst, a[d.worst], b[d.worst]);
    }
    free((void *)a);
    free((void *)b);
    return code;
}

int main(int argc, char **argv) {
    File got = {0}, want = {0};
    char *end = "";
    const double bound = argc == 4 ? strtod(argv[3], &end) : 1e-4;
    if (argc < 3 || argc > 4 || *end || !(bound > 0)) {
        fprintf(stderr, "usage: compare_dumps GOT WANT [BOUND]\n");
        return 2;
    }
    int code = read_file(&got, argv[1]) || read_file(&want, argv[2]) ? 2 : 0;
    if (!code) printf("%-52s %-12s %10s %10s  (bound %g)\n", "stage", "shape", "rel. L2", "max abs", bound);
    const char *s = code ? NULL : want.bytes + 8;
    Entry w;
    int stages = 0;
    for (; !code && next_entry(&s, &w); stages++) code = compare_stage(&got, argv[1], &want, &w, bound);
    if (!code && !stages) {
        printf("%s has no stages that this tool can read\n", argv[2]);
        code = 2;
    }
    if (!code) printf("%d stages within bounds\n", stages);
    free(got.bytes);
    free(want.bytes);
    return code;
}
