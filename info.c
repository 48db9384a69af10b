// info.c: what --info says (see info.h), out of what the library tells about an open weight file.
//
// In order: looking things up, the sum over tensors of each dtype, what a decoding step reads, all facts, text, JSON.

#include "info.h"

#include "escape.h"

#include <math.h>
#include <string.h>

// The hyperparameter of that name in blip2.h's tables.
static double value(const blip2 *b, const char *name) {
    blip2_parameter p;
    for (int i = 0; blip2_parameter_at(b, i, &p); i++) if (!strcmp(p.name, name)) return p.value;
    return NAN;
}

static int whole(const blip2 *b, const char *name) { return (int)value(b, name); }

// "7.5 GB", "310.3 KB"; powers of 1000, as disks and the README count.
static const char *size_text(char out[32], uint64_t bytes) {
    const char *const unit[] = {"bytes", "KB", "MB", "GB", "TB"};
    double x = (double)bytes;
    int i = 0;
    for (; x >= 999.95 && i < 4; i++) x /= 1000;
    snprintf(out, 32, i ? "%.1f %s" : "%.0f %s", x, unit[i]);
    return out;
}

enum { MAX_DTYPES = 8 };
typedef struct { const char *dtype; int n; uint64_t bytes; } Sum;

// -> sums, one of each dtype in the order of appearance, returns how many; *all: bytes of all tensors
static int sum_dtypes(Sum sums[MAX_DTYPES], uint64_t *all, const blip2 *b) {
    int n = 0;
    blip2_tensor t;
    *all = 0;
    for (int i = 0; blip2_tensor_at(b, i, &t); i++) {
        int k = 0;
        while (k < n && strcmp(sums[k].dtype, t.dtype)) k++;
        CHECK(k < MAX_DTYPES);
        if (k == n) sums[n++] = (Sum){.dtype = t.dtype};
        sums[k].n++;
        sums[k].bytes += t.bytes;
        *all += t.bytes;
    }
    return n;
}

// The decoder layers and the head; not T5's cross-attention keys and values, which are made once per prompt.
uint64_t info_step_bytes(const blip2 *b) {
    const char *head = whole(b, "tied") ? "lm.tok" : "lm.head";
    uint64_t bytes = 0;
    blip2_tensor t;
    for (int i = 0; blip2_tensor_at(b, i, &t); i++) {
        const size_t n = strlen(t.name);
        const bool once = n > 10 && !strcmp(t.name + n - 10, "cross_kv.w");
        if ((!strncmp(t.name, "dec.", 4) && !once) || !strcmp(t.name, head)) bytes += t.bytes;
    }
    return bytes;
}

typedef struct {
    blip2_info info;
    blip2_options defaults;
    Sum sums[MAX_DTYPES];
    int n;                   // sums
    uint64_t weights;        // bytes of all tensors
    uint64_t gpu;            // what a GPU needs: asked of the backend, or, where there is none, about
    bool gpu_exact, opt;
    const char *path;        // of the weight file
    const char *device;      // "cpu", "cuda", "cuda:N"; NULL when the one that was asked for will not do
    blip2_error why;         // why it is the CPU or none, or ""
} Facts;

static Facts facts(const blip2 *b, const char *path, const char *device) {
    Facts f = {.path = path};
    blip2_describe(b, &f.info, sizeof f.info);
    blip2_defaults(b, &f.defaults, sizeof f.defaults);
    f.n = sum_dtypes(f.sums, &f.weights, b);
    f.opt = !strcmp(f.info.family, "opt");
    f.gpu = blip2_memory_cuda(b);
    f.gpu_exact = f.gpu != 0;
    if (!f.gpu_exact) f.gpu = f.weights + f.info.memory;
    const bool there = blip2_device(device, &f.why) == BLIP2_OK, automatic = !strcmp(device, "auto");
    f.device = !there ? NULL : !automatic ? device : *f.why.text ? "cpu" : "cuda";
    return f;
}

// ---------------------------------------------------------------------------------------------------------
// For people.

static void lines_of_sizes(Text *t, const blip2 *b, bool opt) {
    const int side = whole(b, "S"), patch = whole(b, "P"), tokens = side / patch * (side / patch) + 1;
    static const char *const ACT[] = {"ReLU", "GELU", "tanh GELU"};
    const int act = whole(b, "act");
    text_printf(t, "image           %d x %d pixels in patches of %d, %d tokens\n", side, side, patch, tokens);
    text_printf(t, "preprocessing   bicubic to that size, then (x / 255 - mean) / std with mean %.7g %.7g %.7g, "
                   "std %.7g %.7g %.7g\n", value(b, "mean_r"), value(b, "mean_g"), value(b, "mean_b"),
                value(b, "std_r"), value(b, "std_g"), value(b, "std_b"));
    text_printf(t, "vision tower    %d blocks, width %d, %d heads, feed-forward %d\n", whole(b, "LV"), whole(b, "DV"),
                whole(b, "HV"), whole(b, "FV"));
    text_printf(t, "Q-Former        %d layers, width %d, %d heads, feed-forward %d, %d queries, cross-attention in one "
                   "layer of %d\n", whole(b, "LQ"), whole(b, "DQ"), whole(b, "HQ"), whole(b, "FQ"), whole(b, "Q"),
                whole(b, "XQ"));
    text_printf(t, "language model  %s, ", opt ? "OPT" : "Flan-T5");
    if (!opt) text_printf(t, "%d encoder blocks, ", whole(b, "LE"));
    text_printf(t, "%d decoder layers, width %d, %d heads of %d, feed-forward %d, %s%s", whole(b, "LD"), whole(b, "DL"),
                whole(b, "HL"), whole(b, "AL"), whole(b, "FL"), opt ? "" : "gated ",
                act >= 0 && act < 3 ? ACT[act] : "?");
    if (opt) text_printf(t, ", %d positions", whole(b, "positions"));
    text_printf(t, "\n");
}

static void add_text(Text *t, const blip2 *b, const Facts *f) {
    const blip2_info *info = &f->info;
    const blip2_options *o = &f->defaults;
    char size[32], more[32];
    text_printf(t, "file            ");
    escape_add(t, f->path, strlen(f->path));
    text_printf(t, ", %s\nmodel           ", size_text(size, info->file_bytes));
    escape_add(t, info->type, strlen(info->type));
    text_printf(t, ", BLIP-2 with %s\n", f->opt ? "OPT" : "Flan-T5");
    text_printf(t, "parameters      %llu in %d tensors:", (unsigned long long)info->parameters, info->tensors);
    for (int i = 0; i < f->n; i++)
        text_printf(t, "%s %d in %s (%s)", i ? "," : "", f->sums[i].n, f->sums[i].dtype,
                    size_text(size, f->sums[i].bytes));
    text_printf(t, "\n");
    lines_of_sizes(t, b, f->opt);
    text_printf(t, "tokenizer       %s, %d ids, %d rows in the embedding, %s\n", info->tokenizer, info->ids, info->V,
                size_text(size, info->tokenizer_bytes));
    text_printf(t, "defaults        -b %d -n %d --min-tokens %d --length-penalty %.7g --repeat-penalty %.7g, sampling "
                   "with --top-p %.7g --top-k %d --temp %.7g\n", o->beams, o->max_new, o->min_new, o->length_penalty,
                o->repeat_penalty, o->top_p, o->top_k, o->temp);
    text_printf(t, "prompt          ");
    text_json(t, info->prompt, strlen(info->prompt));
    text_printf(t, "\nmemory, CPU     %s for activations and KV cache (--ctx %d) beside %s of mapped weights\n",
                size_text(size, info->memory), info->ctx, size_text(more, info->file_bytes));
    text_printf(t, "memory, GPU     %s%s, weights included\n", f->gpu_exact ? "" : "about ", size_text(size, f->gpu));
    text_printf(t, "device          %s", f->device ? f->device : "none");
    if (*f->why.text) {
        text_printf(t, ": ");
        escape_add(t, f->why.text, strlen(f->why.text));
    }
    text_printf(t, "\n");
}

// ---------------------------------------------------------------------------------------------------------
// For programs.

static void member(Text *t, const char *name, const char *text) {
    text_printf(t, "\"%s\":", name);
    text_json(t, text, strlen(text));
    text_add(t, ",", 1);
}

static void add_json(Text *t, const blip2 *b, const Facts *f) {
    const blip2_info *info = &f->info;
    const blip2_options *o = &f->defaults;
    text_add(t, "{", 1);
    member(t, "file", f->path);
    member(t, "type", info->type);
    member(t, "family", info->family);
    text_printf(t, "\"bytes\":%llu,\"tensors\":%d,\"parameters\":%llu,\"dtypes\":{",
                (unsigned long long)info->file_bytes, info->tensors, (unsigned long long)info->parameters);
    for (int i = 0; i < f->n; i++)
        text_printf(t, "%s\"%s\":{\"tensors\":%d,\"bytes\":%llu}", i ? "," : "", f->sums[i].dtype, f->sums[i].n,
                    (unsigned long long)f->sums[i].bytes);
    text_printf(t, "},\"hyperparameters\":{");
    blip2_parameter p;
    for (int i = 0; blip2_parameter_at(b, i, &p); i++)
        text_printf(t, p.whole ? "%s\"%s\":%.0f" : "%s\"%s\":%.7g", i ? "," : "", p.name, p.value);
    text_printf(t, "},\"tokenizer\":{");
    member(t, "kind", info->tokenizer);
    text_printf(t, "\"ids\":%d,\"embedding_rows\":%d,\"bytes\":%llu},\"defaults\":{", info->ids, info->V,
                (unsigned long long)info->tokenizer_bytes);
    member(t, "prompt", info->prompt);
    text_printf(t, "\"beams\":%d,\"max_new\":%d,\"min_new\":%d,\"length_penalty\":%.7g,\"repeat_penalty\":%.7g,"
                   "\"top_p\":%.7g,\"top_k\":%d,\"temp\":%.7g},", o->beams, o->max_new, o->min_new, o->length_penalty,
                o->repeat_penalty, o->top_p, o->top_k, o->temp);
    text_printf(t, "\"preprocessing\":{\"side\":%d,\"mean\":[%.7g,%.7g,%.7g],\"std\":[%.7g,%.7g,%.7g]},", info->S,
                value(b, "mean_r"), value(b, "mean_g"), value(b, "mean_b"), value(b, "std_r"), value(b, "std_g"),
                value(b, "std_b"));
    text_printf(t, "\"memory\":{\"ctx\":%d,\"weights\":%llu,\"activations\":%llu,\"gpu\":%llu,\"gpu_exact\":%s},",
                info->ctx, (unsigned long long)f->weights, (unsigned long long)info->memory,
                (unsigned long long)f->gpu, f->gpu_exact ? "true" : "false");
    member(t, "device", f->device ? f->device : "none");
    text_printf(t, "\"why_device\":");
    text_json(t, f->why.text, strlen(f->why.text));
    text_printf(t, "}\n");
}

// ---------------------------------------------------------------------------------------------------------

void info_add(Text *t, const blip2 *b, const char *path, const char *device, bool json) {
    const Facts f = facts(b, path, device);
    (json ? add_json : add_text)(t, b, &f);
}
