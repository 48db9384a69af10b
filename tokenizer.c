// tokenizer.c: opens the tokenizer section of a weight file, turns text into ids and ids into text.
//
// In order: opening (nothing in the section is trusted), cutting added tokens out of a text,
// tokenizer_encode, the clean-up of spaces as a chain of small automata, streaming decode, tokenizer_decode.
// The section's layout is in doc/format.md; normalizer, BPE and unigram are in the tokenizer_*.c files.

#include "tokenizer_parts.h"
#include "unicode_tables.h"

#include <limits.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_TEXT = 1 << 22 };   // bytes; far more than fits a model's context
enum { MAX_PIECE = 256 };      // bytes; bounds the work per character, T5's and OPT's longest have fewer
enum { MAX_ADDED = 4096, MAX_ENDS = 16 };
enum { HEADER = 64, MAGIC = 0x4B543242, VERSION = 1 };   // "B2TK"

int ids_add(Ids *ids, int id, Err *e) {
    if (ids->n == ids->cap) {
        const size_t cap = ids->cap ? 2 * ids->cap : 64;
        int *p = cap > INT_MAX ? NULL : realloc(ids->p, cap * sizeof *p);
        if (!p) return fail(e, "out of memory for %zu token ids", cap);
        ids->p = p;
        ids->cap = cap;
    }
    ids->p[ids->n++] = id;
    return 0;
}

// ---------------------------------------------------------------------------------------------------------
// Opening

// A part of the section's text, checked; what: for the message.
static int text_at(Str *out, const Tokenizer *t, uint32_t from, uint32_t n, const char *what, Err *e) {
    if (from > t->text.n || n > t->text.n - from || n > MAX_PIECE)
        return fail(e, "tokenizer section: %s at %u with %u bytes, expected within %zu bytes of text and at "
                    "most %d long", what, from, n, t->text.n, MAX_PIECE);
    *out = (Str){t->text.p + from, n};
    for (size_t i = 0; i < n;) {
        const int len = utf8_next(out->p + i, n - i, NULL);
        if (!len) return fail(e, "tokenizer section: %s at %u is not UTF-8", what, from);
        i += (size_t)len;
    }
    return 0;
}

static int read_steps(Tokenizer *t, const uint8_t *p, Err *e) {
    for (uint32_t k = 0; k < t->n_norm; k++, p += 16) {
        NormStep *s = &t->norm[k];
        s->step = (int)read_u32(p);
        s->arg = (int)read_u32(p + 4);
        if (s->step < NORM_CHARSMAP || s->step > NORM_STRIP)
            return fail(e, "tokenizer section: normalizer step %d is unknown; was it exported by a newer "
                        "version?", s->step);
        if (s->step == NORM_CHARSMAP && t->charsmap_trie.n == 0)
            return fail(e, "tokenizer section: a charsmap step without a charsmap");
        if (text_at(&s->text, t, read_u32(p + 8), read_u32(p + 12), "a normalizer's text", e)) return -1;
    }
    return 0;
}

// Added tokens and the two tries by which they are found: in the raw text, and in the normalized rest of it.
static int read_added(Tokenizer *t, const uint8_t *p, Err *e) {
    t->added = calloc(t->n_added + 1, sizeof *t->added);
    Str raw[MAX_ADDED], normalized[MAX_ADDED];
    int32_t raw_value[MAX_ADDED], normalized_value[MAX_ADDED];
    size_t n_raw = 0, n_normalized = 0;
    if (!t->added) return fail(e, "out of memory for %u added tokens", t->n_added);
    Text check = {0};
    int status = 0;
    for (uint32_t k = 0; k < t->n_added && status == 0; k++, p += 16) {
        Added *a = &t->added[k];
        const uint32_t id = read_u32(p);
        a->id = (int)id;
        a->flags = (int)read_u32(p + 4);
        if (id >= t->n_ids) {
            status = fail(e, "tokenizer section: added token %u has id %u of %u", k, id, t->n_ids);
            break;
        }
        status = text_at(&a->text, t, read_u32(p + 8), read_u32(p + 12), "an added token", e);
        if (status) break;
        if (!(a->flags & ADDED_NORMALIZED)) {
            raw_value[n_raw] = (int32_t)k;
            raw[n_raw++] = a->text;
            continue;
        }
        normalized_value[n_normalized] = (int32_t)k;
        normalized[n_normalized++] = a->text;
        // The library would look for the normalized form and decode to it; no tokenizer of ours needs that.
        status = normalize(&check, t, a->text, e);
        if (status == 0 && (check.len != a->text.n || memcmp(check.data, a->text.p, check.len) != 0))
            status = fail(e, "tokenizer section: the normalizer changes added token \"%.*s\", which is not "
                          "supported", (int)a->text.n, (const char *)a->text.p);
    }
    text_free(&check);
    if (status == 0) status = trie_build(&t->raw_added, raw, raw_value, n_raw, e);
    if (status == 0) status = trie_build(&t->normalized_added, normalized, normalized_value, n_normalized, e);
    return status;
}

static int check_pieces(const Tokenizer *t, Err *e) {
    uint32_t from = read_u32(t->piece_offset);
    for (uint32_t i = 0; i < t->n_ids; i++) {
        const uint32_t to = read_u32(t->piece_offset + 4 * (size_t)i + 4);
        if (to < from || to > t->text.n || to - from > MAX_PIECE)
            return fail(e, "tokenizer section: piece %u goes from %u to %u, expected ascending, at most %d "
                        "long and within %zu", i, from, to, MAX_PIECE, t->text.n);
        Str piece;
        if (t->kind == TOK_UNIGRAM && text_at(&piece, t, from, to - from, "a piece", e)) return -1;
        from = to;
    }
    return 0;
}

static int check_ends(const uint8_t *p, uint32_t n, const Tokenizer *t, Err *e) {
    for (uint32_t k = 0; k < n; k++)
        if (read_u32(p + 4 * (size_t)k) >= t->n_ids)
            return fail(e, "tokenizer section: template id %u, expected below %u",
                        read_u32(p + 4 * (size_t)k), t->n_ids);
    return 0;
}

static int parse(Tokenizer *t, const uint8_t *bytes, size_t n, Err *e) {
    if (n < HEADER || read_u32(bytes) != MAGIC)
        return fail(e, "tokenizer section: %zu bytes that do not start with B2TK; export the file again", n);
    if (read_u32(bytes + 4) != VERSION)
        return fail(e, "tokenizer section: version %u, expected %d; export the file again",
                    read_u32(bytes + 4), VERSION);
    uint32_t h[16];
    for (int i = 0; i < 16; i++) h[i] = read_u32(bytes + 4 * i);
    t->kind = (int)h[2];
    t->flags = (int)h[3];
    t->n_ids = h[4];
    t->n_added = h[5];
    t->n_norm = h[6];
    t->pre = (int)h[7];
    t->n_prefix = h[8];
    t->n_suffix = h[9];
    t->n_merges = h[10];
    t->n_scores = h[11];
    t->unk_id = h[12];
    const bool bpe = t->kind == TOK_BPE;
    if (!bpe && t->kind != TOK_UNIGRAM)
        return fail(e, "tokenizer section: kind %d, expected 1 (BPE) or 2 (unigram)", t->kind);
    if (t->n_ids == 0 || t->n_ids > (uint32_t)t->V)
        return fail(e, "tokenizer section: %u ids, expected 1 to the %d rows of the embedding", t->n_ids,
                    t->V);
    const uint32_t known_pre = bpe ? PRE_PREFIX_SPACE : PRE_WHITESPACE_SPLIT | PRE_PREPEND | PRE_SPLIT;
    if (t->n_added > MAX_ADDED || t->n_norm > NORM_MAX || t->n_prefix > MAX_ENDS || t->n_suffix > MAX_ENDS ||
        h[3] & ~(uint32_t)(TOK_CLEAN_UP | TOK_STRIP_FIRST) || h[7] & ~known_pre)
        return fail(e, "tokenizer section: %u added tokens, %u normalizer steps, flags %u and %u, template "
                    "%u + %u: out of range", t->n_added, t->n_norm, h[3], h[7], t->n_prefix, t->n_suffix);
    if (bpe ? t->n_scores > 0 : t->n_merges > 0 || t->n_scores > t->n_ids || t->unk_id >= t->n_scores)
        return fail(e, "tokenizer section: %u merges, %u scores and <unk> %u for %u ids of kind %d",
                    t->n_merges, t->n_scores, t->unk_id, t->n_ids, t->kind);
    // The sizes of the parts, in their order; 32-bit counts times at most 16 cannot overflow 64 bits.
    const uint64_t ends = 4ull * (t->n_prefix + t->n_suffix), steps = 16ull * t->n_norm;
    const uint64_t added = 16ull * t->n_added, pieces = 4ull * t->n_ids + 4 + t->n_ids;
    const uint64_t model = bpe ? 1024 + 12ull * t->n_merges : 8ull * t->n_scores;
    const uint64_t want = HEADER + ends + steps + added + pieces + model + h[13] + (uint64_t)h[14];
    if (want != n)
        return fail(e, "tokenizer section: its header asks for %llu bytes, found %zu; export the file again",
                    (unsigned long long)want, n);
    const uint8_t *p = bytes + HEADER;
    t->prefix = p;
    t->suffix = p + 4 * (size_t)t->n_prefix;
    const uint8_t *at_steps = p += ends, *at_added = p += steps;
    t->piece_offset = p += added;
    t->piece_flags = p + 4 * (size_t)t->n_ids + 4;
    const uint8_t *at_model = p += pieces, *charsmap = p += model;
    t->text = (Str){charsmap + h[13], h[14]};
    if (h[13]) {
        const uint32_t units = h[13] >= 4 ? read_u32(charsmap) : 0;
        if (units < 4 || units % 4 || units > h[13] - 4)
            return fail(e, "tokenizer section: a charsmap of %u bytes with a trie of %u", h[13], units);
        t->charsmap_trie = (Str){charsmap + 4, units};
        t->charsmap_text = (Str){charsmap + 4 + units, h[13] - 4 - units};
    }
    if (check_ends(t->prefix, t->n_prefix, t, e) || check_ends(t->suffix, t->n_suffix, t, e)) return -1;
    if (check_pieces(t, e) || read_steps(t, at_steps, e) || read_added(t, at_added, e)) return -1;
    return bpe ? bpe_open(t, at_model, e) : unigram_open(t, at_model, e);
}

Tokenizer *tokenizer_open(const uint8_t *bytes, size_t n, int V, int image_token, Err *e) {
    Tokenizer *t = calloc(1, sizeof *t);
    if (!t) {
        fail(e, "out of memory for the tokenizer");
        return NULL;
    }
    t->V = V;
    t->image_token = image_token;
    if (V > 0 ? parse(t, bytes, n, e) == 0 : fail(e, "an embedding of %d rows", V) == 0) return t;
    tokenizer_close(t);
    return NULL;
}

void tokenizer_close(Tokenizer *t) {
    if (!t) return;
    free(t->added);
    free(t->raw_added.node);
    free(t->normalized_added.node);
    free(t->merge);
    free(t->merge_start);
    free(t->score);
    free(t->pieces.node);
    free(t);
}

const char *tokenizer_kind(const Tokenizer *t) { return t->kind == TOK_BPE ? "byte-level BPE" : "unigram"; }
int tokenizer_ids(const Tokenizer *t) { return (int)t->n_ids; }

// ---------------------------------------------------------------------------------------------------------
// Added tokens are cut out of the text before anything else: the leftmost, of several there the longest, as
// AddedVocabulary::find_matches of the library does it.

typedef struct { size_t start, stop, search; int index; } Match;   // search: where to look for the next one

// Class bits of the code point that ends before i or starts at i; 0 at the ends of the text.
static int class_before(Str s, size_t i, size_t *start) {
    size_t k = i;
    while (k > 0 && (s.p[--k] & 0xC0) == 0x80) {}
    uint32_t cp = 0;
    *start = k;
    return k < i && utf8_next(s.p + k, s.n - k, &cp) ? unicode_class(cp) : 0;
}

static int class_after(Str s, size_t i, size_t *end) {
    uint32_t cp = 0;
    const int len = utf8_next(s.p + i, s.n - i, &cp);
    *end = i + (size_t)len;
    return len ? unicode_class(cp) : 0;
}

// The next added token at or after m->search, false when there is none; done: where unused text begins.
static bool next_match(Match *m, const Tokenizer *t, const Trie *trie, Str s, size_t done) {
    size_t i = m->search, other;
    while (i < s.n) {
        size_t length = 0;
        uint32_t node = 0;
        for (size_t k = i; k < s.n && (node = trie_step(trie, node, s.p[k])); k++)
            if (trie->node[node].value >= 0) {
                length = k + 1 - i;
                m->index = trie->node[node].value;
            }
        if (length == 0) {
            i++;
            continue;
        }
        const int flags = t->added[m->index].flags;
        m->start = i;
        m->stop = m->search = i = i + length;
        if (flags & ADDED_SINGLE_WORD && (class_before(s, m->start, &other) & UNI_WORD ||
                                          class_after(s, m->stop, &other) & UNI_WORD)) continue;
        if (flags & ADDED_LSTRIP)
            while (m->start > done && (class_before(s, m->start, &other) & UNI_KIND) == UNI_SPACE)
                m->start = other;
        if (flags & ADDED_RSTRIP)
            while ((class_after(s, m->stop, &other) & UNI_KIND) == UNI_SPACE) m->stop = other;
        return true;
    }
    return false;
}

static int add_matched(Ids *ids, const Tokenizer *t, const Match *m, Err *e) {
    const Added *a = &t->added[m->index];
    if (a->id == t->image_token)
        return fail(e, "the text contains the image placeholder %.*s; leave it out, the image is put "
                    "in front of the text without it", (int)a->text.n, (const char *)a->text.p);
    return ids_add(ids, a->id, e);
}

static int encode_plain(Ids *ids, const Tokenizer *t, Str text, Err *e) {
    if (text.n == 0) return 0;
    return t->kind == TOK_BPE ? bpe_encode(ids, t, text, e) : unigram_encode(ids, t, text, e);
}

// Text without raw added tokens: normalizes it, cuts out those that are looked for in normalized text.
static int encode_span(Ids *ids, Text *scratch, const Tokenizer *t, Str s, Err *e) {
    if (t->n_norm) {
        if (normalize(scratch, t, s, e)) return -1;
        s = (Str){(const uint8_t *)scratch->data, scratch->len};
    }
    size_t done = 0;
    Match m = {0};
    while (next_match(&m, t, &t->normalized_added, s, done)) {
        if (done < m.start && encode_plain(ids, t, (Str){s.p + done, m.start - done}, e)) return -1;
        if (add_matched(ids, t, &m, e)) return -1;
        done = m.stop;
    }
    return done < s.n ? encode_plain(ids, t, (Str){s.p + done, s.n - done}, e) : 0;
}

static int encode(Ids *ids, Text *scratch, const Tokenizer *t, Str s, Err *e) {
    for (uint32_t k = 0; k < t->n_prefix; k++)
        if (ids_add(ids, (int)read_u32(t->prefix + 4 * (size_t)k), e)) return -1;
    size_t done = 0;
    Match m = {0};
    while (next_match(&m, t, &t->raw_added, s, done)) {
        if (done < m.start && encode_span(ids, scratch, t, (Str){s.p + done, m.start - done}, e)) return -1;
        if (add_matched(ids, t, &m, e)) return -1;
        done = m.stop;
    }
    if (done < s.n && encode_span(ids, scratch, t, (Str){s.p + done, s.n - done}, e)) return -1;
    for (uint32_t k = 0; k < t->n_suffix; k++)
        if (ids_add(ids, (int)read_u32(t->suffix + 4 * (size_t)k), e)) return -1;
    return 0;
}

int tokenizer_encode(int **ids, const Tokenizer *t, const char *text, size_t n, Err *e) {
    const Str s = {(const uint8_t *)text, n};
    *ids = NULL;
    if (n > MAX_TEXT) return fail(e, "a text of %zu bytes, expected at most %d", n, MAX_TEXT);
    for (size_t i = 0; i < n;) {
        const int len = utf8_next(s.p + i, n - i, NULL);
        if (!len)
            return fail(e, "the text is not UTF-8: byte 0x%02X at position %zu; convert it first", s.p[i], i);
        i += (size_t)len;
    }
    Ids found = {0};
    Text scratch = {0};
    const int status = encode(&found, &scratch, t, s, e);
    text_free(&scratch);
    if (status) {
        free(found.p);
        return -1;
    }
    *ids = found.p;
    return (int)found.n;
}

// ---------------------------------------------------------------------------------------------------------
// Decoding: bytes -> valid UTF-8 -> clean-up, each holding back a few bytes at most.
//
// Clean-up (transformers' clean_up_tokenization) is ten literal replacements, one after the other over the
// whole text. Each is a small automaton here that has matched the first `clean[k]` bytes of its pattern, and
// hands on what it lets pass to the next. What a pattern starts with, a space, is not in the rest of any of
// its proper prefixes, so after a mismatch it starts afresh at the byte that did not fit.

enum { N_CLEAN = 10 };
static const struct { const char *from, *to; } CLEAN[N_CLEAN] = {
    {" .", "."}, {" ?", "?"}, {" !", "!"}, {" ,", ","}, {" ' ", "'"},
    {" n't", "n't"}, {" 'm", "'m"}, {" 's", "'s"}, {" 've", "'ve"}, {" 're", "'re"},
};

static void clean_bytes(Text *out, Stream *s, int k, const char *bytes, size_t n) {
    if (k == N_CLEAN) {
        text_add(out, bytes, n);
        return;
    }
    const char *from = CLEAN[k].from;
    for (size_t i = 0; i < n; i++) {
        if (from[s->clean[k]] != bytes[i] && s->clean[k]) {
            clean_bytes(out, s, k + 1, from, s->clean[k]);
            s->clean[k] = 0;
        }
        if (from[s->clean[k]] != bytes[i]) clean_bytes(out, s, k + 1, bytes + i, 1);
        else if (from[++s->clean[k]] == 0) {
            clean_bytes(out, s, k + 1, CLEAN[k].to, strlen(CLEAN[k].to));
            s->clean[k] = 0;
        }
    }
}

static void put(Text *out, Stream *s, const Tokenizer *t, const char *bytes, size_t n) {
    if (t->flags & TOK_CLEAN_UP) clean_bytes(out, s, 0, bytes, n);
    else text_add(out, bytes, n);
}

// Whether the n bytes at p, which are no complete sequence, can become one: lead byte, and a second byte in
// the range that excludes overlong forms, surrogates and what lies above U+10FFFF.
static bool utf8_may_continue(const uint8_t *p, int n) {
    const int want = p[0] < 0xC2 ? 1 : p[0] < 0xE0 ? 2 : p[0] < 0xF0 ? 3 : p[0] < 0xF5 ? 4 : 1;
    if (n >= want) return false;
    if (n == 1) return true;
    const uint8_t low = p[0] == 0xE0 ? 0xA0 : p[0] == 0xF0 ? 0x90 : 0x80;
    const uint8_t high = p[0] == 0xED ? 0x9F : p[0] == 0xF4 ? 0x8F : 0xBF;
    return p[1] >= low && p[1] <= high && (n == 2 || (p[2] & 0xC0) == 0x80);
}

// One byte in. Every maximal start of a sequence that cannot be completed becomes one U+FFFD, as in Python.
static void put_byte(Text *out, Stream *s, const Tokenizer *t, uint8_t byte) {
    s->held[s->n_held++] = byte;
    if (utf8_next(s->held, (size_t)s->n_held, NULL) == s->n_held) {
        put(out, s, t, (const char *)s->held, (size_t)s->n_held);
        s->n_held = 0;
    } else if (!utf8_may_continue(s->held, s->n_held)) {
        const bool again = s->n_held > 1;   // the byte that did not fit starts anew
        put(out, s, t, "\xEF\xBF\xBD", 3);
        s->n_held = 0;
        if (again) put_byte(out, s, t, byte);
    }
}

int tokenizer_stream(Text *out, Stream *s, const Tokenizer *t, int id, Err *e) {
    CHECK(s->n_held >= 0 && s->n_held < 4);
    text_add(out, "", 0);
    if (id == -1) {
        if (s->n_held) put(out, s, t, "\xEF\xBF\xBD", 3);
        for (int k = 0; k < N_CLEAN && t->flags & TOK_CLEAN_UP; k++) {
            const size_t n = s->clean[k];
            s->clean[k] = 0;
            clean_bytes(out, s, k + 1, CLEAN[k].from, n);
        }
        *s = (Stream){0};
        return text_check(out, e);
    }
    if (id < 0 || id >= t->V) return fail(e, "token id %d, expected 0 to %d", id, t->V - 1);
    // Rows of the embedding that have no piece, and special tokens, are nothing.
    if ((uint32_t)id >= t->n_ids) return 0;
    if ((t->piece_flags[id] & (PIECE_EXISTS | PIECE_SPECIAL)) != PIECE_EXISTS) return 0;
    const Str piece = tokenizer_piece(t, (uint32_t)id);
    for (size_t i = 0; i < piece.n;) {
        const bool space = t->kind == TOK_UNIGRAM && starts_with_metaspace(piece.p + i, piece.n - i);
        if (!space) put_byte(out, s, t, piece.p[i]);
        else if (s->started || !(t->flags & TOK_STRIP_FIRST)) put_byte(out, s, t, ' ');
        i += space ? 3 : 1;
    }
    s->started = true;
    return text_check(out, e);
}

int tokenizer_decode(Text *out, const Tokenizer *t, const int *ids, int n, Err *e) {
    Stream s = {0};
    for (int i = 0; i < n; i++) {
        if (ids[i] < 0) return fail(e, "token id %d, expected 0 to %d", ids[i], t->V - 1);
        if (tokenizer_stream(out, &s, t, ids[i], e)) return -1;
    }
    return tokenizer_stream(out, &s, t, -1, e);
}
