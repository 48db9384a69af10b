// tokenizer_bpe.c: byte-level BPE as transformers' GPT2Tokenizer has it (OPT).
//
// In order: the merge table, GPT-2's regular expression as a scanner, merging one word, bpe_encode().

#include "tokenizer_parts.h"
#include "unicode_tables.h"

#include <stdlib.h>
#include <string.h>

// ---------------------------------------------------------------------------------------------------------
// Merge table: sorted by (left, right), with the start of each left piece's merges, so that a pair is found
// by a binary search whose length no file can spoil (a hash table could be filled with collisions).

static int compare_merges(const void *a, const void *b) {
    const Merge *x = a, *y = b;
    if (x->left != y->left) return x->left < y->left ? -1 : 1;
    return x->right < y->right ? -1 : x->right > y->right;
}

int bpe_open(Tokenizer *t, const uint8_t *arrays, Err *e) {
    for (int b = 0; b < 256; b++) {
        const uint32_t id = read_u32(arrays + 4 * b);
        if (id >= t->n_ids)
            return fail(e, "tokenizer section: byte %d has id %u, expected below %u", b, id, t->n_ids);
        t->byte_id[b] = (int32_t)id;
    }
    const size_t M = t->n_merges;
    t->merge = malloc((M + 1) * sizeof *t->merge);
    t->merge_start = calloc((size_t)t->n_ids + 1, sizeof *t->merge_start);
    if (!t->merge || !t->merge_start) return fail(e, "out of memory for %zu merges", M);
    for (size_t rank = 0; rank < M; rank++) {
        const uint8_t *p = arrays + 1024 + 12 * rank;
        const Merge m = {read_u32(p), read_u32(p + 4), (uint32_t)rank, read_u32(p + 8)};
        if (m.left >= t->n_ids || m.right >= t->n_ids || m.result >= t->n_ids)
            return fail(e, "tokenizer section: merge %zu is %u + %u -> %u, expected ids below %u",
                        rank, m.left, m.right, m.result, t->n_ids);
        t->merge[rank] = m;
        t->merge_start[m.left + 1]++;
    }
    for (size_t i = 0; i < t->n_ids; i++) t->merge_start[i + 1] += t->merge_start[i];
    qsort(t->merge, M, sizeof *t->merge, compare_merges);
    for (size_t i = 1; i < M; i++)
        if (compare_merges(&t->merge[i - 1], &t->merge[i]) == 0)
            return fail(e, "tokenizer section: pair %u + %u is merged twice", t->merge[i].left,
                        t->merge[i].right);
    return 0;
}

static const Merge *find_merge(const Tokenizer *t, int left, int right) {
    size_t low = t->merge_start[left], high = t->merge_start[left + 1];
    while (low < high) {
        const size_t mid = (low + high) / 2;
        if (t->merge[mid].right < (uint32_t)right) low = mid + 1;
        else high = mid;
    }
    return low < t->merge_start[left + 1] && t->merge[low].right == (uint32_t)right ? &t->merge[low] : NULL;
}

// ---------------------------------------------------------------------------------------------------------
// Words, by the regular expression of OpenAI's gpt-2 (encoder.py):
//     's|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+

static int kind_at(Str s, size_t i, int *len) {
    uint32_t cp = 0;
    *len = utf8_next(s.p + i, s.n - i, &cp);
    CHECK(*len > 0);
    return unicode_class(cp) & UNI_KIND;
}

// Length of the word at the start of s (not empty).
static size_t word_length(Str s) {
    static const char *const endings[] = {"'s", "'t", "'re", "'ve", "'m", "'ll", "'d"};
    for (size_t k = 0; k < sizeof endings / sizeof *endings; k++) {
        const size_t n = strlen(endings[k]);
        if (s.n >= n && memcmp(s.p, endings[k], n) == 0) return n;
    }
    // " ?" and a run of letters, of numbers or of what is neither nor white space
    const size_t from = s.p[0] == ' ' && s.n > 1;
    int len;
    const int kind = kind_at(s, from, &len);
    if (kind != UNI_SPACE) {
        size_t i = from + (size_t)len;
        while (i < s.n && kind_at(s, i, &len) == kind) i += (size_t)len;
        return i;
    }
    // A run of white space leaves its last character to the next word, if there is one and if anything
    // remains: that is what \s+(?!\S) comes to.
    size_t i = 0, last = 0;
    while (i < s.n && kind_at(s, i, &len) == UNI_SPACE) {
        last = i;
        i += (size_t)len;
    }
    return i < s.n && last > 0 ? last : i;
}

// ---------------------------------------------------------------------------------------------------------
// Merging. The symbols of a word are a doubly linked list in an array (indices are byte positions, -1 ends
// it). A heap holds the pairs that could be merged, the lowest rank first and at equal rank the leftmost, so
// that a word of n bytes takes n log n steps. An entry whose pair has changed in the meantime is skipped.

typedef struct { int id, prev, next; } Symbol;
typedef struct { Symbol *symbol; uint64_t *heap; size_t n_heap, cap; } Scratch;

static void heap_push(Scratch *s, uint64_t entry) {
    size_t i = s->n_heap++;
    for (; i > 0 && s->heap[(i - 1) / 2] > entry; i = (i - 1) / 2) s->heap[i] = s->heap[(i - 1) / 2];
    s->heap[i] = entry;
}

static uint64_t heap_pop(Scratch *s) {
    const uint64_t top = s->heap[0], moved = s->heap[--s->n_heap];
    size_t i = 0;
    for (size_t child = 1; child < s->n_heap; child = 2 * i + 1) {
        if (child + 1 < s->n_heap && s->heap[child + 1] < s->heap[child]) child++;
        if (s->heap[child] >= moved) break;
        s->heap[i] = s->heap[child];
        i = child;
    }
    s->heap[i] = moved;
    return top;
}

// Puts the pair that starts at symbol i on the heap, if there is such a merge: rank << 32 | i.
static void offer(Scratch *s, const Tokenizer *t, int i) {
    if (i < 0 || s->symbol[i].next < 0) return;
    const Merge *m = find_merge(t, s->symbol[i].id, s->symbol[s->symbol[i].next].id);
    if (m) heap_push(s, (uint64_t)m->rank << 32 | (uint32_t)i);
}

static int encode_word(Ids *ids, Scratch *s, const Tokenizer *t, Str word, Err *e) {
    const int N = (int)word.n;
    s->n_heap = 0;
    for (int i = 0; i < N; i++) s->symbol[i] = (Symbol){t->byte_id[word.p[i]], i - 1, i + 1 < N ? i + 1 : -1};
    for (int i = 0; i + 1 < N; i++) offer(s, t, i);
    while (s->n_heap > 0) {
        const uint64_t top = heap_pop(s);
        const int i = (int)(uint32_t)top;
        Symbol *a = &s->symbol[i];
        if (a->id < 0 || a->next < 0) continue;   // merged into another one, or now the last
        const Merge *m = find_merge(t, a->id, s->symbol[a->next].id);
        if (!m || m->rank != top >> 32) continue;
        Symbol *b = &s->symbol[a->next];
        a->id = (int)m->result;
        a->next = b->next;
        b->id = -1;
        if (a->next >= 0) s->symbol[a->next].prev = i;
        offer(s, t, a->prev);
        offer(s, t, i);
    }
    for (int i = 0; i >= 0; i = s->symbol[i].next)
        if (ids_add(ids, s->symbol[i].id, e)) return -1;
    return 0;
}

static int encode_words(Ids *ids, Scratch *s, const Tokenizer *t, Str text, Err *e) {
    for (size_t i = 0; i < text.n;) {
        const Str rest = {text.p + i, text.n - i}, word = {rest.p, word_length(rest)};
        if (word.n > s->cap) {
            free(s->symbol);
            free(s->heap);
            s->cap = word.n + 64 < 2 * s->cap ? 2 * s->cap : word.n + 64;
            s->symbol = malloc(s->cap * sizeof *s->symbol);
            s->heap = malloc(3 * s->cap * sizeof *s->heap);   // n - 1 pairs, at most 2 more per merge
            if (!s->symbol || !s->heap) return fail(e, "out of memory for a word of %zu bytes", word.n);
        }
        if (encode_word(ids, s, t, word, e)) return -1;
        i += word.n;
    }
    return 0;
}

int bpe_encode(Ids *ids, const Tokenizer *t, Str text, Err *e) {
    Text spaced = {0};
    if (t->pre & PRE_PREFIX_SPACE && text.p[0] != ' ') {
        text_add(&spaced, " ", 1);
        text_add(&spaced, (const char *)text.p, text.n);
        text = (Str){(const uint8_t *)spaced.data, spaced.len};
    }
    Scratch s = {0};
    const int status = text_check(&spaced, e) ? -1 : encode_words(ids, &s, t, text, e);
    free(s.symbol);
    free(s.heap);
    text_free(&spaced);
    return status;
}
