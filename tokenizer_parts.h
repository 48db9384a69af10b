// tokenizer_parts.h: what the files of the tokenizer share; everybody else includes tokenizer.h only.
//
//   tokenizer.c            opens a section, cuts out added tokens, decodes
//   tokenizer_normalize.c  charsmap and the other normalizer steps
//   tokenizer_bpe.c        byte-level BPE
//   tokenizer_unigram.c    the trie, SentencePiece unigram
//
// In order: byte strings and id lists, the trie, the Tokenizer, the functions.
#ifndef TOKENIZER_PARTS_H
#define TOKENIZER_PARTS_H

#include "tokenizer.h"

#include <string.h>

enum { TOK_BPE = 1, TOK_UNIGRAM = 2 };                                        // kind
enum { TOK_CLEAN_UP = 1, TOK_STRIP_FIRST = 2 };                               // flags of the section
enum { NORM_CHARSMAP = 1, NORM_SQUEEZE = 2, NORM_STRIP = 3, NORM_MAX = 8 };   // normalizer steps
enum { PRE_PREFIX_SPACE = 1, PRE_WHITESPACE_SPLIT = 2, PRE_PREPEND = 4, PRE_SPLIT = 8 };
enum { ADDED_SPECIAL = 1, ADDED_SINGLE_WORD = 2, ADDED_LSTRIP = 4, ADDED_RSTRIP = 8, ADDED_NORMALIZED = 16 };
enum { PIECE_EXISTS = 1, PIECE_SPECIAL = 2 };

typedef struct { const uint8_t *p; size_t n; } Str;   // bytes that belong to somebody else

typedef struct { int *p; size_t n, cap; } Ids;
int ids_add(Ids *ids, int id, Err *e);

// A set of byte strings with a number each, as a tree: the children of a node stand next to each other, in
// the order of their byte, so that a step is a binary search and no input can make it slower than that.
//
//     node 0 (root) | children of the root | children of the first of those | ...
//
// first, n: the children; byte: by which the node is reached; value: -1 where no string ends.
typedef struct { uint32_t first; uint16_t n; uint8_t byte; int32_t value; } TrieNode;
typedef struct { TrieNode *node; uint32_t n; } Trie;

// Builds the trie of the n strings with their values. Empty strings are left out, repeated ones are an error.
int trie_build(Trie *trie, const Str *strings, const int32_t *values, size_t n, Err *e);
uint32_t trie_step(const Trie *trie, uint32_t node, uint8_t byte);   // the child, or 0 when there is none

typedef struct { int step, arg; Str text; } NormStep;
typedef struct { int id, flags; Str text; } Added;
typedef struct { uint32_t left, right, rank, result; } Merge;

struct Tokenizer {
    int kind, flags, pre, V, image_token;
    uint32_t n_ids, n_added, n_norm, n_prefix, n_suffix, n_merges, n_scores, unk_id;
    const uint8_t *prefix, *suffix;                // u32 each
    const uint8_t *piece_offset, *piece_flags;     // (n_ids+1) u32 into text, (n_ids) u8
    Str text, charsmap_trie, charsmap_text;
    NormStep norm[NORM_MAX];
    Added *added;
    Trie raw_added, normalized_added;              // value: index into added
    int32_t byte_id[256];                          // BPE: the piece of each byte
    Merge *merge;                                  // BPE: sorted by left, then right
    uint32_t *merge_start;                         // BPE: (n_ids+1), merges of a left piece
    double *score, unk_score;                      // unigram: (n_scores)
    Trie pieces;                                   // unigram: value is the id
};

static const char METASPACE[] = "\xE2\x96\x81";   // U+2581, SentencePiece's space

static inline bool starts_with_metaspace(const uint8_t *p, size_t n) {
    return n >= 3 && memcmp(p, METASPACE, 3) == 0;
}

static inline Str tokenizer_piece(const Tokenizer *t, uint32_t id) {
    const uint32_t from = read_u32(t->piece_offset + 4 * (size_t)id);
    return (Str){t->text.p + from, read_u32(t->piece_offset + 4 * (size_t)id + 4) - from};
}

// text, after all normalizer steps, is put in place of what *out holds.
int normalize(Text *out, const Tokenizer *t, Str text, Err *e);
// Appends the ids of text, which holds no added tokens.
int bpe_encode(Ids *ids, const Tokenizer *t, Str text, Err *e);
int unigram_encode(Ids *ids, const Tokenizer *t, Str text, Err *e);
// Parse and check the arrays of the model: at points behind the arrays before it, *at is moved behind them.
int bpe_open(Tokenizer *t, const uint8_t *arrays, Err *e);
int unigram_open(Tokenizer *t, const uint8_t *arrays, Err *e);

#endif
