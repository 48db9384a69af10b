// blip2.h: the map of the project. Read this first, then blip2.c.
//
// In order:
//   1. the legend of dimensions
//   2. Config: every hyperparameter of a weight file, as a table
//   3. Tensor and the weights: every tensor with its name in the file and its shape, as tables
//   4. Model: a weight file that was mapped and checked (model.c)
//   5. Backend: what a device must do, from pixels to chosen tokens (blip2.c on the CPU)
//
//   pixels (S,S,3) --ViT--> (N,DV) --Q-Former--> (Q,DQ) --projection--> (Q,DL) --+
//                                                                               +--> language model --> tokens
//   prompt --tokenizer.c--> ids (T) --embedding--> (T,DL) ----------------------+
//
// Not here: how a matrix multiply is done (matmul.h), how a token is chosen (generate.h), images and text.
#ifndef BLIP2_H
#define BLIP2_H

#include "common.h"
#include "generate.h"

// ---------------------------------------------------------------------------------------------------------
// 1. Dimensions. Matrices are row-major, written (rows, columns); a weight (OC,C) maps C inputs to OC outputs.
//
//   B  images (or prompts) of a batch     R  rows being generated: images x beams, or images x captions
//   T  tokens of a sequence               V  entries of the vocabulary (rows of the token embedding)
//
//   image         S  side in pixels       P  side of a patch      N  image tokens, 1 + (S/P)^2
//   ViT           DV width                HV heads                FV feed-forward width     LV blocks
//   Q-Former      DQ width                HQ heads                FQ feed-forward width     LQ layers
//                 Q  learned queries      XQ layers i with i % XQ == 0 attend to the image; NX of them
//   language      DL width                HL heads                FL feed-forward width
//   model         AL size of a head, so that IL = HL*AL is the width inside attention (T5: IL may differ from DL)
//                 LE encoder blocks (T5; 0 for OPT)               LD decoder layers

// ---------------------------------------------------------------------------------------------------------
// 2. Hyperparameters. The tables give, in file order: field, smallest and largest value that is accepted, meaning.
// model.c reads and checks them from these rows; export/export.py writes the same order (doc/format.md).

enum { OPT = 1, T5 = 2 };                              // Config.family
enum { ACT_RELU = 0, ACT_GELU = 1, ACT_GELU_TANH = 2 };// Config.act; GELU is the exact one, with erf

#define CONFIG_INTS(X) \
    X(family,       1, 2,        "language model: 1 OPT (decoder only), 2 Flan-T5 (encoder-decoder)") \
    X(S,            1, 4096,     "side of the input image in pixels") \
    X(P,            1, 1024,     "side of a patch") \
    X(DV,           1, 65536,    "ViT width") \
    X(HV,           1, 1024,     "ViT heads") \
    X(FV,           1, 262144,   "ViT feed-forward width") \
    X(LV,           1, 512,      "ViT blocks") \
    X(DQ,           1, 65536,    "Q-Former width") \
    X(HQ,           1, 1024,     "Q-Former heads") \
    X(FQ,           1, 262144,   "Q-Former feed-forward width") \
    X(LQ,           1, 512,      "Q-Former layers") \
    X(XQ,           1, 512,      "every XQ-th Q-Former layer attends to the image, from layer 0") \
    X(Q,            1, 4096,     "learned queries") \
    X(DL,           1, 65536,    "language model width") \
    X(HL,           1, 1024,     "language model heads") \
    X(AL,           1, 4096,     "size of a language model head") \
    X(FL,           1, 262144,   "language model feed-forward width") \
    X(LE,           0, 512,      "T5 encoder blocks, 0 for OPT") \
    X(LD,           1, 512,      "decoder layers") \
    X(V,            2, 4194304,  "rows of the token embedding") \
    X(positions,    0, 1048576,  "OPT: longest sequence, image tokens included; 0 for T5, which has no limit") \
    X(act,          0, 2,        "language model activation: 0 ReLU, 1 erf GELU, 2 tanh GELU (T5: gated)") \
    X(buckets,      0, 4096,     "T5 relative position buckets, 0 for OPT") \
    X(max_distance, 0, 1048576,  "T5 distance from which all share the last bucket, 0 for OPT") \
    X(tied,         0, 1,        "1: the head is the token embedding, 0: lm.head.w is its own tensor") \
    X(image_token,  -1, 4194303, "id of the image placeholder, -1 when the checkpoint has none") \
    X(bos,          -1, 4194303, "id put in front of a prompt (OPT), -1 when there is none") \
    X(eos,          0, 4194303,  "id that ends an answer") \
    X(pad,          0, 4194303,  "padding id") \
    X(start,        -1, 4194303, "id that starts T5's decoder, -1 for OPT") \
    X(beams,        1, 64,       "default beams") \
    X(max_new,      1, 1048576,  "default limit of new tokens") \
    X(min_new,      0, 1048576,  "default minimum of new tokens") \
    X(top_k,        0, 4194304,  "default top-k when sampling, 0 for off")

#define CONFIG_FLOATS(X) \
    X(eps_vit,        0.0f, 1.0f,       "layer norm epsilon of the ViT blocks") \
    X(eps_post,       0.0f, 1.0f,       "and of the norm behind them (1e-5 in LAVIS, 1e-6 in transformers)") \
    X(eps_qformer,    0.0f, 1.0f,       "Q-Former layer norm epsilon") \
    X(eps_lm,         0.0f, 1.0f,       "language model norm epsilon") \
    X(logit_scale,    1e-6f, 1e6f,      "factor on the last hidden state before the head; 1 but for tied T5") \
    X(mean_r,         -10.0f, 10.0f,    "preprocessing: (pixel / 255 - mean) / std") \
    X(mean_g,         -10.0f, 10.0f,    "") \
    X(mean_b,         -10.0f, 10.0f,    "") \
    X(std_r,          1e-6f, 1e6f,      "") \
    X(std_g,          1e-6f, 1e6f,      "") \
    X(std_b,          1e-6f, 1e6f,      "") \
    X(length_penalty, -100.0f, 100.0f,  "default exponent on the length of a hypothesis") \
    X(repeat_penalty, 1e-3f, 1e3f,      "default repetition penalty, 1 for off") \
    X(top_p,          1e-6f, 1.0f,      "default nucleus when sampling, 1 for off") \
    X(temp,           1e-3f, 1e3f,      "default temperature when sampling")

enum { TYPE_BYTES = 64, PROMPT_BYTES = 256 };

typedef struct {
#define X(field, lo, hi, meaning) int field;
    CONFIG_INTS(X)
#undef X
#define X(field, lo, hi, meaning) float field;
    CONFIG_FLOATS(X)
#undef X
    char type[TYPE_BYTES];        // e.g. "pretrain_opt2.7b"; for people
    char prompt[PROMPT_BYTES];    // used when none is given; "a photo of" for the COCO models
    int N, NX, IL;                // derived: image tokens, Q-Former layers with cross-attention, HL*AL
} Config;

// ---------------------------------------------------------------------------------------------------------
// 3. Weights. The layouts of each dtype are drawn in doc/format.md.

enum { DT_F32 = 0, DT_BF16 = 1, DT_INT8 = 2, DT_INT4 = 3 };

typedef struct {
    const void *data;     // (rows, cols)
    const void *scale;    // INT8: (rows) f32; INT4: (rows, ceil(cols/32)) f16; otherwise NULL
    int dtype;
    int rows, cols;
} Tensor;

// One row per tensor: MAT is a matrix in the file's --dtype, VEC is always f32. Arguments: field, name in the file
// (behind a prefix such as "vit.7."), shape in the letters of section 1. Biases come right behind their matrix.

#define VIT_TENSORS(MAT, VEC) /* prefix "vit." */ \
    VEC(cls,       "cls",         1, DV)      /* put in front of the patches */ \
    VEC(pos,       "pos",         N, DV)      /* added to all N tokens, cls included */ \
    MAT(patch_w,   "patch.w",     DV, 3*P*P)  /* a stride-P convolution; columns in (channel, y, x) order */ \
    VEC(patch_b,   "patch.b",     1, DV) \
    VEC(ln_w,      "ln.w",        1, DV)      /* transformers' post_layernorm, LAVIS's ln_vision */ \
    VEC(ln_b,      "ln.b",        1, DV)

#define VIT_BLOCK_TENSORS(MAT, VEC) /* prefix "vit.%d." */ \
    VEC(ln1_w,     "ln1.w",       1, DV) \
    VEC(ln1_b,     "ln1.b",       1, DV) \
    MAT(qkv_w,     "qkv.w",       3*DV, DV)   /* rows: all heads of Q, then of K, then of V */ \
    VEC(qkv_b,     "qkv.b",       1, 3*DV)    /* the K third is zero in every released checkpoint */ \
    MAT(proj_w,    "proj.w",      DV, DV) \
    VEC(proj_b,    "proj.b",      1, DV) \
    VEC(ln2_w,     "ln2.w",       1, DV) \
    VEC(ln2_b,     "ln2.b",       1, DV) \
    MAT(fc1_w,     "fc1.w",       FV, DV) \
    VEC(fc1_b,     "fc1.b",       1, FV) \
    MAT(fc2_w,     "fc2.w",       DV, FV) \
    VEC(fc2_b,     "fc2.b",       1, DV)

#define QFORMER_TENSORS(MAT, VEC) /* prefix "qf." */ \
    VEC(query,     "query",       Q, DQ)      /* the learned queries */ \
    VEC(ln_w,      "ln.w",        1, DQ) \
    VEC(ln_b,      "ln.b",        1, DQ) \
    MAT(cross_kv_w,"cross_kv.w",  NX*2*DQ, DV)/* K rows then V rows of each cross-attending layer in turn, so that */ \
    VEC(cross_kv_b,"cross_kv.b",  1, NX*2*DQ) /* one multiply makes all keys and values of an image */ \
    MAT(proj_w,    "proj.w",      DL, DQ)     /* transformers' language_projection */ \
    VEC(proj_b,    "proj.b",      1, DL)

#define QFORMER_LAYER_TENSORS(MAT, VEC) /* prefix "qf.%d." */ \
    MAT(qkv_w,     "qkv.w",       3*DQ, DQ) \
    VEC(qkv_b,     "qkv.b",       1, 3*DQ) \
    MAT(out_w,     "out.w",       DQ, DQ) \
    VEC(out_b,     "out.b",       1, DQ) \
    VEC(ln1_w,     "ln1.w",       1, DQ)      /* behind self-attention: BERT norms after the residual */ \
    VEC(ln1_b,     "ln1.b",       1, DQ) \
    MAT(fc1_w,     "fc1.w",       FQ, DQ) \
    VEC(fc1_b,     "fc1.b",       1, FQ) \
    MAT(fc2_w,     "fc2.w",       DQ, FQ) \
    VEC(fc2_b,     "fc2.b",       1, DQ) \
    VEC(ln2_w,     "ln2.w",       1, DQ) \
    VEC(ln2_b,     "ln2.b",       1, DQ)

#define QFORMER_CROSS_TENSORS(MAT, VEC) /* prefix "qf.%d.", layers i with i % XQ == 0 only */ \
    MAT(q_w,       "cross_q.w",   DQ, DQ) \
    VEC(q_b,       "cross_q.b",   1, DQ) \
    MAT(out_w,     "cross_out.w", DQ, DQ) \
    VEC(out_b,     "cross_out.b", 1, DQ) \
    VEC(ln_w,      "cross_ln.w",  1, DQ) \
    VEC(ln_b,      "cross_ln.b",  1, DQ)

#define LM_TENSORS(MAT, VEC) /* prefix "lm." */ \
    MAT(tok,       "tok",         V, DL)

#define LM_HEAD_TENSORS(MAT, VEC) /* prefix "lm.", only when not tied */ \
    MAT(head,      "head",        V, DL)

#define OPT_TENSORS(MAT, VEC) /* prefix "lm." */ \
    VEC(pos,       "pos",         positions + 2, DL)  /* position p uses row p + 2 */ \
    VEC(ln_w,      "ln.w",        1, DL) \
    VEC(ln_b,      "ln.b",        1, DL)

#define OPT_LAYER_TENSORS(MAT, VEC) /* prefix "dec.%d." */ \
    VEC(ln1_w,     "ln1.w",       1, DL) \
    VEC(ln1_b,     "ln1.b",       1, DL) \
    MAT(qkv_w,     "qkv.w",       3*IL, DL) \
    VEC(qkv_b,     "qkv.b",       1, 3*IL) \
    MAT(out_w,     "out.w",       DL, IL) \
    VEC(out_b,     "out.b",       1, DL) \
    VEC(ln2_w,     "ln2.w",       1, DL) \
    VEC(ln2_b,     "ln2.b",       1, DL) \
    MAT(fc1_w,     "fc1.w",       FL, DL) \
    VEC(fc1_b,     "fc1.b",       1, FL) \
    MAT(fc2_w,     "fc2.w",       DL, FL) \
    VEC(fc2_b,     "fc2.b",       1, DL)

#define T5_TENSORS(MAT, VEC) /* no prefix */ \
    VEC(enc_bias,  "enc.bias",    buckets, HL)  /* relative position bias, shared by all blocks of the stack */ \
    VEC(enc_ln,    "enc.ln.w",    1, DL) \
    VEC(dec_bias,  "dec.bias",    buckets, HL) \
    VEC(dec_ln,    "dec.ln.w",    1, DL)

#define T5_BLOCK_TENSORS(MAT, VEC) /* prefix "enc.%d." and "dec.%d."; T5 has no biases */ \
    VEC(ln1,       "ln1.w",       1, DL) \
    MAT(qkv_w,     "qkv.w",       3*IL, DL) \
    MAT(out_w,     "out.w",       DL, IL) \
    VEC(ln2,       "ln2.w",       1, DL) \
    MAT(wi_w,      "wi.w",        2*FL, DL)     /* rows: wi_0, which the activation sees, then wi_1, which gates */ \
    MAT(wo_w,      "wo.w",        DL, FL)

#define T5_CROSS_TENSORS(MAT, VEC) /* prefix "dec.%d." */ \
    VEC(ln,        "cross_ln.w",  1, DL) \
    MAT(q_w,       "cross_q.w",   IL, DL) \
    MAT(kv_w,      "cross_kv.w",  2*IL, DL)     /* K rows, then V rows; read once per prompt */ \
    MAT(out_w,     "cross_out.w", DL, IL)

#define MAT(field, name, rows, cols) Tensor field;
#define VEC(field, name, rows, cols) const float *field;
typedef struct { VIT_TENSORS(MAT, VEC) } Vit;
typedef struct { VIT_BLOCK_TENSORS(MAT, VEC) } VitBlock;
typedef struct { QFORMER_TENSORS(MAT, VEC) } QFormer;
typedef struct { QFORMER_LAYER_TENSORS(MAT, VEC) } QFormerLayer;
typedef struct { QFORMER_CROSS_TENSORS(MAT, VEC) } QFormerCross;
typedef struct { LM_TENSORS(MAT, VEC) LM_HEAD_TENSORS(MAT, VEC) } Lm;   // head equals tok when tied
typedef struct { OPT_TENSORS(MAT, VEC) } Opt;
typedef struct { OPT_LAYER_TENSORS(MAT, VEC) } OptLayer;
typedef struct { T5_TENSORS(MAT, VEC) } T5Stack;
typedef struct { T5_BLOCK_TENSORS(MAT, VEC) } T5Block;
typedef struct { T5_CROSS_TENSORS(MAT, VEC) } T5Cross;
#undef MAT
#undef VEC

// ---------------------------------------------------------------------------------------------------------
// 4. A model: the mapped file and pointers into it. Nothing here is written to after model_open.

typedef struct {
    Config config;
    Vit vit;
    VitBlock *vit_block;             // (LV)
    QFormer qformer;
    QFormerLayer *qformer_layer;     // (LQ)
    QFormerCross *qformer_cross;     // (NX), of layers 0, XQ, 2*XQ, ...
    Lm lm;
    Opt opt;
    OptLayer *opt_layer;             // (LD) when family is OPT
    T5Stack t5;
    T5Block *t5_encoder;             // (LE)
    T5Block *t5_decoder;             // (LD) when family is T5
    T5Cross *t5_cross;               // (LD)
    const uint8_t *tokenizer;        // the tokenizer section, for tokenizer_open
    size_t tokenizer_bytes;
    const uint8_t *file;             // the mapping
    size_t file_bytes;
    int n_tensors;
    uint64_t parameters;             // elements of all tensors
} Model;

// Maps the file and checks every field before it is used: magic, version, checksum of header and directory, ranges,
// overlaps, names, dtypes and shapes; every expected tensor present, none left over; no tensor data. Returns 0, or -1
// with e.
int model_open(Model *m, const char *path, Err *e);
// Reads all tensor data once and compares its zlib crc32 with the directory. The first damaged tensor is named in e.
int model_verify(const Model *m, Err *e);
// Record i of the directory as a tensor with its name; false behind the last one. *bytes: data and scales.
bool model_tensor(const Model *m, int i, const char **name, Tensor *out, uint64_t *bytes);
const char *dtype_name(uint32_t dtype);   // "f32", ...
void model_close(Model *m);

// ---------------------------------------------------------------------------------------------------------
// 5. What a device does. All state hangs off the pointer that open() returns; a process may hold several. The order
// of calls is open, then for each batch of images encode, then for each batch of prompts about them prompt and
// step until it returns false, then result; close at the end. No call after open allocates or fails on input:
// open takes all memory that the limits can need.

typedef struct {
    int B;            // most images encoded together, and most prompts answered together
    int R;            // most rows generated together
    int prompt;       // most tokens of a prompt (image tokens not counted)
    int max_new;      // most tokens of an answer
    int threads;      // CPU threads
    int ordinal;      // number of the GPU, for backends that have several
    const char *isa;  // inner loops to force on the CPU ("plain", "avx2", ...), NULL for the fastest there are
    // Called with the output of each block of the first pass, x (rows,cols) f32, under the name of the transformers
    // module that it equals, image by image and prompt by prompt. NULL outside of tests.
    void (*probe)(void *arg, const char *name, const float *x, int rows, int cols);
    void *probe_arg;
} Limits;

typedef struct {
    const int *ids;   // with special tokens, without image placeholders
    int n;            // at least 1
    int image;        // which of the encoded images it is about
} Prompt;

// Seconds that the device spent since open: encode in the ViT and in the Q-Former with its projection, and from the
// begin of prompt to the first token, from there to the last one. prompt and decode grow as step returns tokens.
typedef struct { double vit, qformer, prompt, decode; } Times;

typedef struct {
    const char *name;
    // Bytes that open() will take beside the mapped weights; UINT64_MAX when the number does not fit.
    uint64_t (*bytes_needed)(const Model *m, const Limits *lim);
    void *(*open)(const Model *m, const Limits *lim, Err *e);     // NULL with e when there is not that much memory
    // pixels (B,S,S,3) uint8 RGB -> the Q language model rows of each image, kept on the device.
    void (*encode)(void *self, const uint8_t *pixels, int B);
    // Runs B prompts through the language model up to the first logits and starts a search over
    // R = B * search_rows(how) rows.
    void (*prompt)(void *self, const Prompt *prompts, int B, const Choice *how);
    // Chooses the next token of every row (generate.h) and feeds it. False once all rows have ended; the step that
    // returned true is described by *out, whose arrays stay valid until the next call. A device may be ahead of what
    // it tells (blip2.cu, section 8): nothing of that shows in *out or in result.
    bool (*step)(void *self, Step *out);
    // The answer of given rank (0 is the best, or the first sample) to prompt b.
    Hypothesis (*result)(void *self, int b, int rank);
    // Bytes of weights that open() copied to the device, and the seconds it took; 0 where they are used in place.
    uint64_t (*uploaded)(const void *self, double *seconds);
    // Bytes of weights that decoding has left out since open(), because they would have been multiplied by zero; 0
    // where that is not counted.
    uint64_t (*left_out)(const void *self);
    Times (*times)(const void *self);
    void (*close)(void *self);
} Backend;

extern const Backend backend_cpu;

#endif
