// tokenizer.h: text <-> token ids for the two tokenizers of BLIP-2's language models.
//
//   OPT      byte-level BPE, transformers' GPT2Tokenizer: </s> in front of the prompt
//   Flan-T5  SentencePiece unigram as transformers' T5TokenizerFast has it: </s> behind the prompt
//
// The tables come from the weight file's tokenizer section (doc/format.md), written by export/tokenizer.py.
#ifndef TOKENIZER_H
#define TOKENIZER_H

#include "common.h"

typedef struct Tokenizer Tokenizer;

// Parses and checks the n bytes of a tokenizer section; the bytes must stay where they are while the
// Tokenizer is in use (pieces point into them). V: rows of the token embedding, every id must lie below it;
// image_token is the id of the image placeholder or -1. NULL with e on anything wrong, whatever the bytes.
Tokenizer *tokenizer_open(const uint8_t *bytes, size_t n, int V, int image_token, Err *e);
void tokenizer_close(Tokenizer *t);

const char *tokenizer_kind(const Tokenizer *t);   // "byte-level BPE" or "unigram"
int tokenizer_ids(const Tokenizer *t);            // one more than the greatest id

// text (n bytes; invalid UTF-8 is an error) -> ids with the special tokens of a prompt, in *ids (malloc'd,
// caller frees). Returns the count, or -1 with e and *ids NULL. An image placeholder in the text and a text
// of more than 4 MiB are errors. Takes time n or n log n.
int tokenizer_encode(int **ids, const Tokenizer *t, const char *text, size_t n, Err *e);

// ids (n) -> text appended to out, special tokens skipped, always valid UTF-8 (broken sequences become U+FFFD
// as Python's errors="replace" has it), not stripped: tokenizer.decode(ids, skip_special_tokens=True) of
// transformers. Ids of embedding rows that have no token add nothing; ids outside 0..V-1 are an error (-1,
// out may have grown).
int tokenizer_decode(Text *out, const Tokenizer *t, const int *ids, int n, Err *e);

// Streaming: appends what token id lets be known of the text. Held back: a UTF-8 sequence until it is
// complete and, where the tokenizer's clean-up of spaces is on, the few bytes that it may yet change. At the
// end call with id = -1, which gives out what is held and makes s ready for another text. The concatenation
// equals tokenizer_decode's text. Start with Stream s = {0}.
typedef struct { uint8_t held[4]; int n_held; bool started; uint8_t clean[10]; } Stream;
int tokenizer_stream(Text *out, Stream *s, const Tokenizer *t, int id, Err *e);

#endif
