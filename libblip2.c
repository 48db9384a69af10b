// libblip2.c: the library's front, without generation (libblip2_generate.c), see libblip2.h.
//
// In order: errors and versions; settings and what they come to; opening, starting and closing; images; what is in a
// weight file; tokens. Whatever comes from outside is checked here; behind it only checked values go on.

#include "libblip2_parts.h"

#include "device.h"
#include "image.h"
#include "matmul.h"

#include <errno.h>
#include <math.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>

int failed(blip2_error *out, int code, const Err *e) {
    if (!out) return code;
    out->code = code;
    memcpy(out->text, e->text, sizeof out->text < sizeof e->text ? sizeof out->text : sizeof e->text);
    out->text[sizeof out->text - 1] = 0;
    return code;
}

int blip2_abi(void) { return BLIP2_ABI; }
const char *blip2_version(void) { return BLIP2_VERSION; }
const char *blip2_formats(void) { return image_formats(); }

const char *blip2_cpu_isa(const char *name) {
    const MatmulKernels *k = matmul_kernels(name);
    return k ? matmul_isa(k) : NULL;
}

// ---------------------------------------------------------------------------------------------------------
// Settings.

// The processors that this process may run on, less if its control group has a smaller share.
static int default_threads(void) {
    cpu_set_t set;
    int n = sched_getaffinity(0, sizeof set, &set) == 0 ? CPU_COUNT(&set) : 1;
    FILE *f = fopen("/sys/fs/cgroup/cpu.max", "re");
    double quota, period;
    if (f) {
        if (fscanf(f, "%lf %lf", &quota, &period) == 2 && period > 0 && ceil(quota / period) < n)
            n = (int)ceil(quota / period);
        fclose(f);
    }
    return n < 1 ? 1 : n;
}

// Says whether there is none of that name, or not for this processor, and what there is.
static int no_such_isa(const char *name, Err *e) {
    char names[200] = "";
    bool known = false;
    for (int i = 0; matmul_isa_names(i); i++) {
        const size_t used = strlen(names);
        known |= !strcmp(name, matmul_isa_names(i));
        if (matmul_kernels(matmul_isa_names(i)))
            snprintf(names + used, sizeof names - used, "%s%s", used ? ", " : "", matmul_isa_names(i));
    }
    return fail(e, "--cpu-isa %s: %s; here it can be %s", name,
                known ? "this processor has no such instructions" : "no inner loops of that name", names);
}

// settings -> lim, ctx, max_ctx
static int settle(blip2 *b, Err *e) {
    const blip2_settings *s = &b->settings;
    const Config *c = &b->model.config;
    if (s->threads < 0 || s->threads > 1024 || s->ctx < 0 || s->ctx == 1 || s->rows < 0 || s->rows > 4096 ||
        s->max_new < 0)
        return fail(e, "settings: %d threads (at most 1024), ctx %d, %d rows (at most 4096) or max_new %d cannot be; 0 "
                       "stands for the default", s->threads, s->ctx, s->rows, s->max_new);
    const int max_new = s->max_new ? s->max_new : c->max_new;
    b->max_ctx = c->family == OPT ? c->positions - c->Q : 1048576;
    b->ctx = s->ctx ? s->ctx : b->max_ctx < 512 ? b->max_ctx : 512;
    if (b->ctx > b->max_ctx)
        return fail(e, "--ctx %d: this model has %d positions, of which the image takes %d; at most %d", b->ctx,
                    c->positions, c->Q, b->max_ctx);
    if (max_new >= b->ctx)
        return fail(e, "-n %d leaves no room for a prompt in %d tokens; hint: lower -n%s", max_new, b->ctx,
                    b->ctx < b->max_ctx ? " or raise --ctx" : "");
    if (s->cpu_isa && !matmul_kernels(s->cpu_isa)) return no_such_isa(s->cpu_isa, e);
    b->lim = (Limits){.B = 1, .R = s->rows ? s->rows : c->beams, .prompt = b->ctx - 1, .max_new = max_new,
                      .threads = s->threads ? s->threads : default_threads(), .isa = s->cpu_isa, .probe = s->probe,
                      .probe_arg = s->probe_arg};
    return 0;
}

static bool copy_text(const char **out, char **mine, const char *text) {
    *mine = text ? strdup(text) : NULL;
    *out = *mine;
    return !text || *mine;
}

// Returns BLIP2_OK or a code with e.
static int copy_settings(blip2 *b, const blip2_settings *s, const char *path, Err *e) {
    if (s) {
        // An older program knows fewer fields than we do, a newer one more.
        if (s->size < offsetof(blip2_settings, device) + sizeof s->device || s->size > 4096)
            return fail(e, "settings: size is %zu; hint: blip2_settings s = {.size = sizeof s}", s->size),
                   BLIP2_BAD_USAGE;
        memcpy(&b->settings, s, s->size < sizeof *s ? s->size : sizeof *s);
    }
    if (!copy_text(&b->settings.device, &b->device_name, b->settings.device ? b->settings.device : "auto") ||
        !copy_text(&b->settings.cpu_isa, &b->cpu_isa, b->settings.cpu_isa) || !(b->path = strdup(path)))
        return fail(e, "out of memory for the settings"), BLIP2_BAD_MODEL;
    return BLIP2_OK;
}

// ---------------------------------------------------------------------------------------------------------
// Opening.

blip2 *blip2_open(const char *path, const blip2_settings *settings, blip2_error *out) {
    Err e;
    blip2 *b = path ? calloc(1, sizeof *b) : NULL;
    int code = path ? BLIP2_BAD_MODEL : BLIP2_BAD_USAGE, bad = -1;
    if (!path) fail(&e, "which weight file? the path is NULL");
    else if (!b) fail(&e, "out of memory for a model");
    else bad = code = copy_settings(b, settings, path, &e);
    if (!bad) {
        code = BLIP2_BAD_MODEL;
        bad = model_open(&b->model, path, &e);
    }
    if (!bad) {
        const Config *c = &b->model.config;
        b->tokenizer = tokenizer_open(b->model.tokenizer, b->model.tokenizer_bytes, c->V, c->image_token, &e);
        if (!b->tokenizer) bad = fail_in(&e, "%s", path);
    }
    if (!bad) {
        code = BLIP2_BAD_USAGE;
        bad = settle(b, &e);
    }
    if (!bad) return b;
    blip2_close(b);
    failed(out, code, &e);
    return NULL;
}

// The weights stay in the page cache and in our mapping; a backend with memory of its own asks for it itself.
static int check_memory(blip2 *b, const Backend *backend, Err *e) {
    const uint64_t need = backend->bytes_needed(&b->model, &b->lim), have = available_memory();
    if (need > have)
        return fail(e, "not enough memory: activations and KV cache need %.1f MB beside the %.1f MB weight file, and "
                       "%.1f MB are free; hint: lower --ctx, -b or -n",
                    need / 1e6, b->model.file_bytes / 1e6, have / 1e6);
    if (b->model.file_bytes > have - need)
        snprintf(b->warning, sizeof b->warning, "the weights (%.1f MB) do not fit into the %.1f MB that are free; this "
                                                "will be slow", b->model.file_bytes / 1e6, (have - need) / 1e6);
    return 0;
}

int blip2_start(blip2 *b, blip2_error *out) {
    Err e;
    b->warning[0] = 0;
    if (b->device) return BLIP2_OK;
    const Backend *backend;
    const size_t S = (size_t)b->model.config.S;
    const int found = device_find(&backend, &b->lim.ordinal, b->settings.device, &e);
    if (found < 0) return failed(out, BLIP2_BAD_MODEL, &e);
    if (found > 0) snprintf(b->why_cpu, sizeof b->why_cpu, "%s", e.text);
    if (backend == &backend_cpu && check_memory(b, backend, &e)) return failed(out, BLIP2_BAD_MODEL, &e);
    // Not where it would push its own beginning out of memory again.
    const uint64_t bytes = b->model.file_bytes;
    if (!b->ahead && available_memory() > bytes + bytes / 8) b->ahead = read_ahead_start(b->model.file, bytes);
    if (!b->pixels) b->pixels = malloc(S * S * 3);
    if (!b->pixels) {
        fail(&e, "no memory for an image of %zu pixels a side", S);
        return failed(out, BLIP2_BAD_MODEL, &e);
    }
    void *device = backend->open(&b->model, &b->lim, &e);
    if (!device && backend != &backend_cpu && !strcmp(b->settings.device, "auto")) {    // the GPU is too small for this
        snprintf(b->why_cpu, sizeof b->why_cpu, "%s", e.text);
        if (check_memory(b, backend = &backend_cpu, &e)) return failed(out, BLIP2_BAD_MODEL, &e);
        device = backend->open(&b->model, &b->lim, &e);
    }
    if (!device) return failed(out, BLIP2_BAD_MODEL, &e);
    b->backend = backend;
    b->device = device;
    return BLIP2_OK;
}

int blip2_device(const char *name, blip2_error *out) {
    const Backend *backend;
    int ordinal;
    Err e;
    return failed(out, device_find(&backend, &ordinal, name, &e) < 0 ? BLIP2_BAD_MODEL : BLIP2_OK, &e);
}

void blip2_close(blip2 *b) {
    if (!b) return;
    if (b->device) b->backend->close(b->device);
    tokenizer_close(b->tokenizer);
    read_ahead_stop(b->ahead);
    model_close(&b->model);
    free(b->pixels);
    free(b->path);
    free(b->device_name);
    free(b->cpu_isa);
    free(b);
}

const char *blip2_warning(const blip2 *b) { return b->warning; }

// ---------------------------------------------------------------------------------------------------------
// Images.

static int hand_out(blip2_image *out, const Image *im, int bad, blip2_error *err, const Err *e) {
    *out = (blip2_image){0};
    if (bad) return failed(err, BLIP2_BAD_INPUT, e);
    out->W = im->W;
    out->H = im->H;
    out->rgb = im->rgb;
    snprintf(out->warning, sizeof out->warning, "%s", im->warning);
    return BLIP2_OK;
}

static ImageOptions image_options(int flags) {
    ImageOptions opt = image_defaults();
    opt.obey_exif = !(flags & BLIP2_NO_EXIF);
    return opt;
}

int blip2_image_read(blip2_image *out, const char *path, int flags, blip2_error *err) {
    const ImageOptions opt = image_options(flags);
    Image im;
    Err e;
    const int bad = image_read(&im, path, &opt, &e);
    return hand_out(out, &im, bad, err, &e);
}

int blip2_image_decode(blip2_image *out, const void *bytes, size_t n, const char *name, int flags, blip2_error *err) {
    const ImageOptions opt = image_options(flags);
    Image im;
    Err e;
    const int bad = image_decode(&im, bytes, n, name ? name : "image", &opt, &e);
    return hand_out(out, &im, bad, err, &e);
}

void blip2_image_free(blip2_image *im) {
    free(im->rgb);
    *im = (blip2_image){0};
}

int blip2_encode(blip2 *b, const uint8_t *rgb, int W, int H, blip2_error *out) {
    // rgb (H,W,3) -> pixels (S,S,3) -> the language model's rows, in the device
    Err e;
    if (!rgb || W < 1 || H < 1 || W > 1 << 28 || H > 1 << 28) {
        fail(&e, "an image of %d x %d pixels%s", W, H, rgb ? "" : " without pixels");
        return failed(out, BLIP2_BAD_USAGE, &e);
    }
    const int code = b->device ? BLIP2_OK : blip2_start(b, out);
    if (code) return code;
    if (image_resize(b->pixels, rgb, W, H, b->model.config.S, &e)) return failed(out, BLIP2_BAD_INPUT, &e);
    b->backend->encode(b->device, b->pixels, 1);
    b->encoded = true;
    return BLIP2_OK;
}

// ---------------------------------------------------------------------------------------------------------
// What is in a weight file.

void blip2_describe(const blip2 *b, blip2_info *out, size_t size) {
    const Model *m = &b->model;
    double seconds = 0;
    const uint64_t uploaded = b->device ? b->backend->uploaded(b->device, &seconds) : 0;
    const Times times = b->device ? b->backend->times(b->device) : (Times){0};
    const blip2_info info = {
        .type = m->config.type, .family = m->config.family == OPT ? "opt" : "t5", .prompt = m->config.prompt,
        .S = m->config.S, .V = m->config.V, .ctx = b->ctx, .max_ctx = b->max_ctx, .tensors = m->n_tensors,
        .parameters = m->parameters, .file_bytes = m->file_bytes, .tokenizer_bytes = m->tokenizer_bytes,
        .memory = backend_cpu.bytes_needed(m, &b->lim), .device = b->device ? b->backend->name : NULL,
        .threads = b->lim.threads, .tokenizer = tokenizer_kind(b->tokenizer), .ids = tokenizer_ids(b->tokenizer),
        .why_cpu = b->device && *b->why_cpu ? b->why_cpu : NULL, .upload_bytes = uploaded, .upload_seconds = seconds,
        .left_out = b->device ? b->backend->left_out(b->device) : 0,
        .vit_seconds = times.vit, .qformer_seconds = times.qformer, .prompt_seconds = times.prompt,
        .decode_seconds = times.decode,
    };
    memset(out, 0, size);
    memcpy(out, &info, size < sizeof info ? size : sizeof info);
}

uint64_t blip2_memory_cuda(const blip2 *b) {
    Err e;
    const Backend *cuda = device_cuda(&e);
    return cuda ? cuda->bytes_needed(&b->model, &b->lim) : 0;
}

int blip2_parameter_at(const blip2 *b, int i, blip2_parameter *out) {
    const Config *c = &b->model.config;
    const blip2_parameter all[] = {
#define X(field, lo, hi, meaning) {#field, meaning, c->field, 1},
        CONFIG_INTS(X)
#undef X
#define X(field, lo, hi, meaning) {#field, meaning, (double)c->field, 0},
        CONFIG_FLOATS(X)
#undef X
    };
    if (i < 0 || i >= (int)(sizeof all / sizeof *all)) return 0;
    *out = all[i];
    return 1;
}

int blip2_tensor_at(const blip2 *b, int i, blip2_tensor *out) {
    const char *name;
    Tensor t;
    uint64_t bytes;
    if (!model_tensor(&b->model, i, &name, &t, &bytes)) return 0;
    *out = (blip2_tensor){name, dtype_name((uint32_t)t.dtype), t.rows, t.cols, bytes};
    return 1;
}

int blip2_verify(const blip2 *b, blip2_error *out) {
    Err e;
    if (!model_verify(&b->model, &e)) return BLIP2_OK;
    fail_in(&e, "%s", b->path);
    return failed(out, BLIP2_BAD_MODEL, &e);
}

// ---------------------------------------------------------------------------------------------------------
// Tokens.

int blip2_tokenize(const blip2 *b, const char *text, size_t n, int **ids, int *n_ids, blip2_error *out) {
    Err e;
    errno = 0;   // POSIX: an allocation that fails says so there
    *n_ids = tokenizer_encode(ids, b->tokenizer, text, n, &e);
    if (*n_ids >= 0) return BLIP2_OK;
    *n_ids = 0;
    return failed(out, errno == ENOMEM ? BLIP2_BAD_MODEL : BLIP2_BAD_INPUT, &e);
}

int blip2_detokenize(const blip2 *b, const int *ids, int n_ids, char **text, size_t *n, blip2_error *out) {
    Err e;
    Text t = {0};
    *text = NULL;
    *n = 0;
    if (tokenizer_decode(&t, b->tokenizer, ids, n_ids, &e)) {
        text_free(&t);
        return failed(out, BLIP2_BAD_INPUT, &e);
    }
    *text = t.data;
    *n = t.len;
    return BLIP2_OK;
}

void blip2_free(void *p) { free(p); }
