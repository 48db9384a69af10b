// libblip2.h: BLIP-2 as a library: an image goes in, text about it comes out. doc/example.c uses all that matters.
//
//     blip2_open -> [blip2_start] -> for each image: blip2_encode -> for each prompt: blip2_generate -> blip2_close
//
// In order: versions and errors, opening a weight file, images, generation, what is in a weight file, tokens.
//
// The library prints nothing, never ends the process because of what it is given, and has no state outside of its
// handles: two handles can be used by two threads at once, one handle by one thread at a time. (Its one way out is
// abort(), with file and line on stderr, where its own logic proves wrong.) All texts are UTF-8. Images are decoded in
// a forked child process, so that a broken one can do no harm; a process that ignores SIGCHLD is fine.
//
// Functions that can fail return 0, or a code below and a line of text in *e (which may be NULL): what is wrong, what
// was expected, a hint. Hints name the options of the blip2 program, whose names are those of the fields here.
//
// Structs that the caller fills start with their size, so that fields can be added at their ends: programs compiled
// with an older header go on working.
#ifndef LIBBLIP2_H
#define LIBBLIP2_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#if defined(__GNUC__)
#define BLIP2_API __attribute__((visibility("default")))
#else
#define BLIP2_API
#endif

// ---------------------------------------------------------------------------------------------------------
// Versions and errors.

#define BLIP2_VERSION "0.1"
#define BLIP2_ABI 1                        // of this header; changes only when old programs would break

BLIP2_API int blip2_abi(void);             // of the library that was linked
BLIP2_API const char *blip2_version(void); // of the library that was linked
BLIP2_API const char *blip2_formats(void); // images it reads, e.g. "png gif bmp pnm jpeg(libjpeg-turbo) webp"
// The inner loops that `name` (NULL: the fastest of this processor) stands for, e.g. "avx2"; NULL when there are none.
BLIP2_API const char *blip2_cpu_isa(const char *name);

enum {
    BLIP2_OK = 0,
    BLIP2_BAD_INPUT = 1,   // an image or a prompt: others may work
    BLIP2_BAD_USAGE = 2,   // settings or options that cannot be, or calls in the wrong order
    BLIP2_BAD_MODEL = 3,   // the weight file, the device or its memory: nothing will work
    BLIP2_STOPPED = 4      // the callback said so
};

typedef struct { int code; char text[1024]; } blip2_error;

// ---------------------------------------------------------------------------------------------------------
// Opening. All zero but size is a good choice: blip2_settings s = {.size = sizeof s};

typedef struct blip2 blip2;                // an open weight file and, once started, a device with memory to run it

typedef struct {
    size_t size;             // sizeof(blip2_settings)
    const char *device;      // "auto", "cpu", "cuda" or "cuda:N"; NULL: auto
    const char *cpu_isa;     // inner loops to force; NULL: the fastest of this processor
    int threads;             // CPU threads; 0: all that this process may use
    int ctx;                 // room for a prompt and its answer, in tokens; 0: 512, or what the model has
    int rows;                // most answers grown at once: beams, or samples; 0: the model's default beams
    int max_new;             // most new tokens of an answer; 0: the model's default
    // Called with the output of each block of the first pass, x (rows,cols), under the name of the transformers module
    // that it equals; NULL for none. It must not call functions of the same handle.
    void (*probe)(void *arg, const char *name, const float *x, int rows, int cols);
    void *probe_arg;
} blip2_settings;

// Maps the file and checks all of it but the tensors' checksums. settings may be NULL. Takes no memory for activations
// yet. NULL with *e on failure.
BLIP2_API blip2 *blip2_open(const char *path, const blip2_settings *settings, blip2_error *e);
// Chooses the device and takes all memory that the settings can need. The first blip2_encode does it otherwise.
BLIP2_API int blip2_start(blip2 *b, blip2_error *e);
BLIP2_API void blip2_close(blip2 *b);      // NULL is fine

// Whether a device of that name ("cuda", "cuda:1") can be used here: 0, or BLIP2_BAD_MODEL with why not in *e. "auto"
// always can; when it stands for the CPU, *e has why, otherwise "".
BLIP2_API int blip2_device(const char *name, blip2_error *e);

// "" or one line about the last call of blip2_start or blip2_generate: it worked, but not as one would like.
BLIP2_API const char *blip2_warning(const blip2 *b);

// ---------------------------------------------------------------------------------------------------------
// Images.

typedef struct {
    int W, H;                // pixels
    uint8_t *rgb;            // (H,W,3), rows top to bottom
    char warning[256];       // "" or one line: the file is damaged, but there are pixels to look at
} blip2_image;

enum { BLIP2_NO_EXIF = 1 };  // flag: do not turn the image as its EXIF orientation says

// path "-" is standard input. After a failure *out is empty. Limits: 256 MiB, 178956970 pixels, 20 s.
BLIP2_API int blip2_image_read(blip2_image *out, const char *path, int flags, blip2_error *e);
// A file of n bytes in memory; name is for messages.
BLIP2_API int blip2_image_decode(blip2_image *out, const void *bytes, size_t n, const char *name, int flags,
                                 blip2_error *e);
BLIP2_API void blip2_image_free(blip2_image *im);

// rgb (H,W,3), any size -> kept in the handle for blip2_generate, in place of the image before.
BLIP2_API int blip2_encode(blip2 *b, const uint8_t *rgb, int W, int H, blip2_error *e);

// ---------------------------------------------------------------------------------------------------------
// Generation.

enum { BLIP2_MAX_STOPS = 64 };

typedef struct {
    size_t size;             // sizeof(blip2_options), set by blip2_defaults
    int beams;               // 1: greedy
    int captions;            // answers: the best of the beams, or samples
    int max_new, min_new;    // tokens, the end token counted
    int top_k;               // sampling: from the likeliest so many; 0: all
    int no_repeat_ngram;     // no sequence of so many tokens twice; 0: off
    int sample;              // 1: sample, with beams 1
    int distinct;            // 1: samples whose texts differ; up to 16 * captions are drawn to find them
    double length_penalty;   // beams are ranked by score / length^length_penalty
    double repeat_penalty;   // 1: off
    double temp, top_p;      // sampling; 1: off
    uint64_t seed;
    const char *const *stops;// (n_stops) texts before which an answer ends
    int n_stops;             // at most BLIP2_MAX_STOPS
} blip2_options;

// The model's own defaults, one caption, seed 0. size: sizeof *o
BLIP2_API void blip2_defaults(const blip2 *b, blip2_options *o, size_t size);
// LAVIS's predict_answers: at most 10 new tokens, length penalty 0 for OPT, -1 for T5.
BLIP2_API void blip2_vqa(const blip2 *b, blip2_options *o);

enum { BLIP2_FINISH_END = 0, BLIP2_FINISH_LENGTH = 1, BLIP2_FINISH_STOP = 2 };   // end token, max_new, a stop text

typedef struct {
    int number;              // 0 is the best, or the first sample
    const char *text;        // (n_text) without white space around it
    size_t n_text;
    const int *tokens;       // (n_tokens) without prompt and end token; up to the one that completes a stop text
    int n_tokens;
    const float *logprobs;   // (n_tokens); beams: behind the processors, otherwise before them
    float end_logprob;       // of the end token; NaN unless finish is BLIP2_FINISH_END
    double score;            // beams: of the whole hypothesis; otherwise the sum of all log-probabilities
    int finish;
} blip2_answer;

// Valid during the call of the callback only.
typedef struct {
    int rows, step;              // step: a token was chosen for each of `rows` rows, for the step-th time from 0
    const char *text;            // step: (n_text) what the only row's answer grew by, whole characters or nothing; all
    size_t n_text;               //       pieces together are the answer's text. Empty with several rows.
    const blip2_answer *answer;  // NULL for a step; or a finished answer, best first, after all steps
} blip2_event;

// Whether blip2_generate would take these options.
BLIP2_API int blip2_check(const blip2 *b, const blip2_options *options, blip2_error *e);

// Anything but 0 ends the generation with BLIP2_STOPPED, without more answers.
typedef int blip2_callback(void *arg, const blip2_event *event);

// prompt is raw text; NULL: the model's own. options NULL: the model's defaults.
BLIP2_API int blip2_generate(blip2 *b, const char *prompt, const blip2_options *options, blip2_callback *callback,
                             void *arg, blip2_error *e);

// ---------------------------------------------------------------------------------------------------------
// What is in a weight file.

typedef struct {
    const char *type;            // e.g. "pretrain_opt2.7b"
    const char *family;          // "opt" or "t5"
    const char *prompt;          // used when none is given
    int S;                       // side of the image that the model sees
    int V;                       // rows of the token embedding
    int ctx;                     // of this handle; max_ctx: most that the model allows
    int max_ctx;
    int tensors;
    uint64_t parameters, file_bytes, tokenizer_bytes;
    uint64_t memory;             // bytes that the settings need beside the mapped file, on the CPU
    const char *device;          // "cpu" or the like, once started; otherwise NULL
    int threads;                 // CPU threads of this handle
    const char *tokenizer;       // "byte-level BPE" or "unigram"
    int ids;                     // of the tokenizer: one more than the greatest
    const char *why_cpu;         // once started with "auto" and that took the CPU: why; otherwise NULL
    uint64_t upload_bytes;       // weights that blip2_start copied to the device; 0: used where they are
    double upload_seconds;       // and how long that took
    uint64_t left_out;           // bytes of weights that steps did not read, because neurons were zero; CPU only
    // What all calls since blip2_start took, measured on the device: blip2_encode in ViT and Q-Former, blip2_generate
    // up to the first token and for the others.
    double vit_seconds, qformer_seconds, prompt_seconds, decode_seconds;
} blip2_info;
// size: sizeof *out
BLIP2_API void blip2_describe(const blip2 *b, blip2_info *out, size_t size);
// Bytes that the settings need on a GPU, weights included; 0: no CUDA backend or no driver here. Loads the backend,
// which takes a moment.
BLIP2_API uint64_t blip2_memory_cuda(const blip2 *b);

// Hyperparameter and tensor number i from 0; returns 0 behind the last one, otherwise 1.
typedef struct { const char *name, *meaning; double value; int whole; } blip2_parameter;
BLIP2_API int blip2_parameter_at(const blip2 *b, int i, blip2_parameter *out);
typedef struct { const char *name, *dtype; int rows, cols; uint64_t bytes; } blip2_tensor;
BLIP2_API int blip2_tensor_at(const blip2 *b, int i, blip2_tensor *out);

// Reads the whole file and compares the checksums.
BLIP2_API int blip2_verify(const blip2 *b, blip2_error *e);

// ---------------------------------------------------------------------------------------------------------
// Tokens. *ids and *text are to be freed with blip2_free.

// text (n bytes) -> *ids (*n_ids) with the special tokens of a prompt
BLIP2_API int blip2_tokenize(const blip2 *b, const char *text, size_t n, int **ids, int *n_ids, blip2_error *e);
// ids (n_ids) -> *text (*n bytes, a NUL behind them), special tokens left out
BLIP2_API int blip2_detokenize(const blip2 *b, const int *ids, int n_ids, char **text, size_t *n, blip2_error *e);
BLIP2_API void blip2_free(void *p);

#ifdef __cplusplus
}
#endif
#endif
