// tokenizer_unigram.c: SentencePiece unigram as the `tokenizers` library computes it (T5).
//
// In order: the trie, opening the scores, the best segmentation of a word (Viterbi), cutting text into words.

#include "tokenizer_parts.h"
#include "unicode_tables.h"

#include <stdlib.h>
#include <string.h>

// ---------------------------------------------------------------------------------------------------------
// The trie is built breadth first from the sorted strings: a node is a range of them that agree in the first
// `depth` bytes, and its children are the ranges that agree in one byte more.

typedef struct { Str text; int32_t value; } Entry;
typedef struct { uint32_t from, to, depth; } Range;

static int compare_entries(const void *a, const void *b) {
    const Str x = ((const Entry *)a)->text, y = ((const Entry *)b)->text;
    const int order = memcmp(x.p, y.p, x.n < y.n ? x.n : y.n);
    return order ? order : x.n < y.n ? -1 : x.n > y.n;
}

// Fills trie->node and range (both with room for `room` nodes) from the N sorted entries, all different.
static void grow(Trie *trie, Range *range, const Entry *entry, uint32_t N, size_t room) {
    trie->node[0] = (TrieNode){.value = -1};
    range[0] = (Range){0, N, 0};
    trie->n = 1;
    for (uint32_t at = 0; at < trie->n; at++) {
        TrieNode *node = &trie->node[at];
        Range r = range[at];
        if (r.from < r.to && entry[r.from].text.n == r.depth) node->value = entry[r.from++].value;
        node->first = trie->n;
        while (r.from < r.to) {
            const uint8_t byte = entry[r.from].text.p[r.depth];
            uint32_t to = r.from;
            while (to < r.to && entry[to].text.p[r.depth] == byte) to++;
            CHECK(trie->n < room);
            range[trie->n] = (Range){r.from, to, r.depth + 1};
            trie->node[trie->n++] = (TrieNode){.byte = byte, .value = -1};
            node->n++;
            r.from = to;
        }
    }
}

int trie_build(Trie *trie, const Str *strings, const int32_t *values, size_t n, Err *e) {
    size_t room = 1, N = 0;   // at most one node per byte, and the root
    for (size_t i = 0; i < n; i++) room += strings[i].n;
    if (room > INT32_MAX || n > INT32_MAX)
        return fail(e, "tokenizer section: %zu bytes of pieces are too many", room);
    Entry *entry = malloc((n + 1) * sizeof *entry);
    Range *range = malloc(room * sizeof *range);
    trie->node = malloc(room * sizeof *trie->node);
    int status = 0;
    if (!entry || !range || !trie->node) status = fail(e, "out of memory for %zu pieces", n);
    for (size_t i = 0; i < n && status == 0; i++)
        if (strings[i].n) entry[N++] = (Entry){strings[i], values[i]};
    if (status == 0) qsort(entry, N, sizeof *entry, compare_entries);
    for (size_t i = 1; i < N && status == 0; i++)
        if (compare_entries(&entry[i - 1], &entry[i]) == 0)
            status = fail(e, "tokenizer section: \"%.*s\" is there twice, as %d and %d", (int)entry[i].text.n,
                          (const char *)entry[i].text.p, entry[i - 1].value, entry[i].value);
    if (status == 0) grow(trie, range, entry, (uint32_t)N, room);
    free(entry);
    free(range);
    return status;
}

uint32_t trie_step(const Trie *trie, uint32_t node, uint8_t byte) {
    uint32_t low = trie->node[node].first, high = low + trie->node[node].n;
    while (low < high) {
        const uint32_t mid = (low + high) / 2;
        if (trie->node[mid].byte == byte) return mid;
        if (trie->node[mid].byte < byte) low = mid + 1;
        else high = mid;
    }
    return 0;
}

// ---------------------------------------------------------------------------------------------------------

int unigram_open(Tokenizer *t, const uint8_t *arrays, Err *e) {
    const size_t N = t->n_scores;
    t->score = malloc((N + 1) * sizeof *t->score);
    Str *piece = malloc((N + 1) * sizeof *piece);
    int32_t *value = malloc((N + 1) * sizeof *value);
    int status = 0;
    if (!t->score || !piece || !value) status = fail(e, "out of memory for %zu pieces", N);
    double least = 0;
    for (size_t i = 0; i < N && status == 0; i++) {
        const uint64_t bits = read_u64(arrays + 8 * i);
        memcpy(&t->score[i], &bits, sizeof bits);
        if ((bits >> 52 & 0x7FF) > 0x3FF + 100)   // NaN, infinite or above 2^100: sums must stay finite
            status = fail(e, "tokenizer section: the score of piece %zu is not a usable number", i);
        else if (i == 0 || t->score[i] < least) least = t->score[i];
        piece[i] = tokenizer_piece(t, (uint32_t)i);
        value[i] = (int32_t)i;
    }
    t->unk_score = least - 10;   // K_UNK_PENALTY of the library, kUnkPenalty of sentencepiece
    if (status == 0) status = trie_build(&t->pieces, piece, value, N, e);
    free(piece);
    free(value);
    return status;
}

// ---------------------------------------------------------------------------------------------------------
// best[i] is the best segmentation of the first i bytes: its score, where its last piece starts, that piece.

typedef struct { double score; int start, id; } Best;   // start -1: not reached

static void improve(Best *best, double score, int start, int id) {
    if (best->start >= 0 && !(score > best->score)) return;   // at equal scores the first one found stays
    *best = (Best){score, start, id};
}

static void segment(Best *best, const Tokenizer *t, Str word) {
    // word (n bytes) -> best (n+1)
    for (size_t i = 0; i <= word.n; i++) best[i] = (Best){0, -1, 0};
    for (size_t i = 0; i < word.n;) {
        const int one = utf8_next(word.p + i, word.n - i, NULL);
        CHECK(one > 0);
        bool single = false;   // a piece that is exactly this character
        uint32_t node = 0;
        for (size_t k = i; k < word.n && (node = trie_step(&t->pieces, node, word.p[k])); k++) {
            const int id = t->pieces.node[node].value;
            if (id < 0) continue;
            improve(&best[k + 1], best[i].score + t->score[id], (int)i, id);
            single |= k + 1 == i + (size_t)one;
        }
        if (!single) improve(&best[i + (size_t)one], best[i].score + t->unk_score, (int)i, (int)t->unk_id);
        i += (size_t)one;
    }
}

// The piece that is exactly this text, or <unk>.
static int piece_or_unk(const Tokenizer *t, Str text) {
    uint32_t node = 0;
    for (size_t i = 0; i < text.n; i++)
        if (!(node = trie_step(&t->pieces, node, text.p[i]))) return (int)t->unk_id;
    return t->pieces.node[node].value >= 0 ? t->pieces.node[node].value : (int)t->unk_id;
}

// Appends the ids of a word, neighbouring unknown characters as one <unk>; best has room for word.n + 1.
static int encode_word(Ids *ids, Best *best, const Tokenizer *t, Str word, Err *e) {
    segment(best, t, word);
    const size_t first = ids->n;
    for (int end = (int)word.n; end > 0;) {
        int start = best[end].start, id = best[end].id;
        if (id == (int)t->unk_id) {
            while (start > 0 && best[start].id == (int)t->unk_id) start = best[start].start;
            // The library looks up the joined text again, and may find that it is a piece after all.
            id = piece_or_unk(t, (Str){word.p + start, (size_t)(end - start)});
        }
        if (ids_add(ids, id, e)) return -1;
        end = start;
    }
    for (size_t a = first, b = ids->n; a + 1 < b; a++) {   // found from the end: turn round
        const int swap = ids->p[a];
        ids->p[a] = ids->p[--b];
        ids->p[b] = swap;
    }
    return 0;
}

// ---------------------------------------------------------------------------------------------------------
// Words

// Metaspace: every space becomes U+2581, one is put in front unless there is one, and a word starts at each.
static int encode_metaspace(Ids *ids, Text *spaced, const Tokenizer *t, Str text, Err *e) {
    spaced->len = 0;
    if (t->pre & PRE_PREPEND && text.p[0] != ' ' && !starts_with_metaspace(text.p, text.n))
        text_add(spaced, METASPACE, 3);
    for (size_t i = 0; i < text.n; i++) {
        if (text.p[i] == ' ') text_add(spaced, METASPACE, 3);
        else text_add(spaced, (const char *)text.p + i, 1);
    }
    if (text_check(spaced, e)) return -1;
    const uint8_t *p = (const uint8_t *)spaced->data;
    const size_t n = spaced->len;
    Best *best = malloc((n + 1) * sizeof *best);
    if (!best) return fail(e, "out of memory for a text of %zu bytes", n);
    int status = 0;
    for (size_t from = 0, to = 0; from < n && status == 0; from = to) {
        to = t->pre & PRE_SPLIT ? from + 1 : n;
        while (to < n && !starts_with_metaspace(p + to, n - to)) to++;
        status = encode_word(ids, best, t, (Str){p + from, to - from}, e);
    }
    free(best);
    return status;
}

int unigram_encode(Ids *ids, const Tokenizer *t, Str text, Err *e) {
    Text spaced = {0};
    int status = 0;
    if (!(t->pre & PRE_WHITESPACE_SPLIT)) status = encode_metaspace(ids, &spaced, t, text, e);
    else for (size_t i = 0, from = 0; i <= text.n && status == 0;) {
        uint32_t cp = ' ';
        const int len = i < text.n ? utf8_next(text.p + i, text.n - i, &cp) : 1;
        CHECK(len > 0);
        if ((unicode_class(cp) & UNI_KIND) == UNI_SPACE) {
            if (from < i) status = encode_metaspace(ids, &spaced, t, (Str){text.p + from, i - from}, e);
            from = i + (size_t)len;
        }
        i += (size_t)len;
    }
    text_free(&spaced);
    return status;
}
