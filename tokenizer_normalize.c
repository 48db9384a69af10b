// tokenizer_normalize.c: the normalizer steps of T5's tokenizers, as the `tokenizers` library applies them.
//
// In order: a walk through the charsmap's double array, grapheme cluster boundaries, the charsmap step,
// squeezing of spaces, stripping, normalize().

#include "tokenizer_parts.h"
#include "unicode_tables.h"

#include <string.h>

enum { MAX_REPLACEMENT = 256, SHORT_GRAPHEME = 6 };   // bytes
enum { MAX_NORMALIZED = 1 << 25 };                    // bytes; stops a file whose steps only make text longer

static int check_growth(const Text *out, Err *e) {
    if (out->len <= MAX_NORMALIZED) return text_check(out, e);
    return fail(e, "the text grows past %d bytes when normalized", MAX_NORMALIZED);
}

// The charsmap is a Darts double array of u32 units:
//
//     | offset, 22 bits | 1: offset times 256 | 1: has a value | label, 8 bits |     bit 31 set: no label
//
// The child of a unit for byte c is at (position ^ offset ^ c) and has c as its label; the value of a unit, a
// position in the replacement text, is at (position ^ offset). Returns 1 with the replacement of the shortest
// key that chunk starts with, 0 when there is none, -1 with e. The shortest, not the longest: the library
// takes the first result, and ours must drop the same marks (such as an accent behind a ligature).
static int charsmap_find(Str *replacement, const Tokenizer *t, Str chunk, Err *e) {
    const uint8_t *unit = t->charsmap_trie.p;
    const size_t N = t->charsmap_trie.n / 4;
    uint32_t u = read_u32(unit);
    size_t at = (size_t)(u >> 10) << ((u & 1u << 9) >> 6);
    for (size_t i = 0; i < chunk.n && chunk.p[i]; i++) {
        at ^= chunk.p[i];
        if (at >= N) return 0;
        u = read_u32(unit + 4 * at);
        if ((u & (1u << 31 | 0xFF)) != chunk.p[i]) return 0;
        at ^= (size_t)(u >> 10) << ((u & 1u << 9) >> 6);
        if (!(u >> 8 & 1)) continue;
        if (at >= N)
            return fail(e, "tokenizer section: the charsmap points outside itself; export the file again");
        const size_t from = read_u32(unit + 4 * at) & 0x7FFFFFFF;
        if (from > t->charsmap_text.n)
            return fail(e, "tokenizer section: a charsmap replacement starts at %zu of %zu bytes; export the "
                        "file again", from, t->charsmap_text.n);
        replacement->p = t->charsmap_text.p + from;
        const size_t left = t->charsmap_text.n - from;
        const size_t most = left < MAX_REPLACEMENT ? left : MAX_REPLACEMENT + 1;
        replacement->n = strnlen((const char *)replacement->p, most);
        bool valid = replacement->n <= MAX_REPLACEMENT;
        for (size_t k = 0; valid && k < replacement->n;) {
            const int len = utf8_next(replacement->p + k, replacement->n - k, NULL);
            valid = len > 0;
            k += (size_t)len;
        }
        if (!valid)
            return fail(e, "tokenizer section: a charsmap replacement is longer than %d bytes or not UTF-8; "
                        "export the file again", MAX_REPLACEMENT);
        return 1;
    }
    return 0;
}

// The grapheme break class of the code point at p, with Hangul LV told from LVT through *lv.
static int break_class(const uint8_t *p, size_t n, int *len, bool *lv) {
    uint32_t cp = 0;
    *len = utf8_next(p, n, &cp);
    CHECK(*len > 0);
    *lv = cp >= 0xAC00 && cp < 0xD7A4 && (cp - 0xAC00) % 28 == 0;
    return unicode_class(cp) >> 4;
}

// Length of the extended grapheme cluster at p (Unicode Standard Annex 29, rules GB3 to GB13 without GB9c:
// clusters of Indic conjuncts have 6 bytes or more anyway, and those are normalized character by character).
static size_t grapheme_length(const uint8_t *p, size_t n) {
    enum { NONE, PICTOGRAPH, PICTOGRAPH_ZWJ } emoji = NONE;
    int len, n_ri = 0;
    bool lv;
    int prev = break_class(p, n, &len, &lv);
    for (size_t i = (size_t)len;; i += (size_t)len) {
        if (i >= n) return n;
        n_ri = prev == GCB_RI ? n_ri + 1 : 0;
        if (prev == GCB_PICTOGRAPHIC) emoji = PICTOGRAPH;
        else if (prev == GCB_ZWJ && emoji == PICTOGRAPH) emoji = PICTOGRAPH_ZWJ;
        else if (prev != GCB_EXTEND || emoji == PICTOGRAPH_ZWJ) emoji = NONE;
        const bool prev_lv = lv;
        const int next = break_class(p + i, n - i, &len, &lv);
        const bool prev_v = prev == GCB_V || (prev == GCB_LVT && prev_lv);
        const bool next_h = next == GCB_L || next == GCB_V || next == GCB_LVT;
        bool joined;
        if (prev == GCB_CR && next == GCB_LF) joined = true;
        else if (prev >= GCB_CR && prev <= GCB_CONTROL) joined = false;
        else if (next >= GCB_CR && next <= GCB_CONTROL) joined = false;
        else if (next == GCB_EXTEND || next == GCB_ZWJ || next == GCB_SPACING) joined = true;
        else if (prev == GCB_PREPEND) joined = true;
        else if (prev == GCB_L && next_h) joined = true;
        else if (prev_v && (next == GCB_V || next == GCB_T)) joined = true;
        else if ((prev == GCB_LVT || prev == GCB_T) && next == GCB_T) joined = true;
        else if (emoji == PICTOGRAPH_ZWJ && next == GCB_PICTOGRAPHIC) joined = true;
        else joined = next == GCB_RI && n_ri % 2 == 1;
        if (!joined) return i;
        prev = next;
    }
}

// Appends the charsmap's replacement of chunk as a whole. Returns 1, 0 when it has none, or -1 with e.
static int charsmap_replace(Text *out, const Tokenizer *t, Str chunk, Err *e) {
    Str replacement;
    const int found = charsmap_find(&replacement, t, chunk, e);
    if (found == 1) text_add(out, (const char *)replacement.p, replacement.n);
    return found;
}

// tokenizers' Precompiled: a grapheme below 6 bytes is looked up as a whole; when that finds nothing, and for
// longer ones, each of its characters is.
static int apply_charsmap(Text *out, const Tokenizer *t, Str text, Err *e) {
    for (size_t i = 0; i < text.n;) {
        const Str grapheme = {text.p + i, grapheme_length(text.p + i, text.n - i)};
        i += grapheme.n;
        if (check_growth(out, e)) return -1;
        int found = grapheme.n < SHORT_GRAPHEME ? charsmap_replace(out, t, grapheme, e) : 0;
        if (found < 0) return -1;
        if (found) continue;
        for (size_t k = 0; k < grapheme.n;) {
            const Str one = {grapheme.p + k, (size_t)utf8_next(grapheme.p + k, grapheme.n - k, NULL)};
            found = charsmap_replace(out, t, one, e);
            if (found < 0) return -1;
            if (!found) text_add(out, (const char *)one.p, one.n);
            k += one.n;
        }
    }
    return 0;
}

// Replace(Regex(" {2,}"), with): T5's files have " " here, later conversions U+2581.
static int squeeze_spaces(Text *out, Str text, Str with, Err *e) {
    for (size_t i = 0; i < text.n;) {
        size_t spaces = 0;
        while (i + spaces < text.n && text.p[i + spaces] == ' ') spaces++;
        if (spaces >= 2) text_add(out, (const char *)with.p, with.n);
        else text_add(out, (const char *)text.p + i, 1);
        i += spaces >= 2 ? spaces : 1;
        if (check_growth(out, e)) return -1;
    }
    return 0;
}

static void strip(Text *out, Str text, bool left, bool right) {
    size_t from = 0, to = 0;   // [from, to): up to the last character that is not white space
    bool any = false;
    for (size_t i = 0; i < text.n;) {
        uint32_t cp = 0;
        const int len = utf8_next(text.p + i, text.n - i, &cp);
        CHECK(len > 0);
        if ((unicode_class(cp) & UNI_KIND) != UNI_SPACE) {
            if (!any) from = i;
            any = true;
            to = i + (size_t)len;
        }
        i += (size_t)len;
    }
    if (!any) return;
    if (!left) from = 0;
    if (!right) to = text.n;
    text_add(out, (const char *)text.p + from, to - from);
}

int normalize(Text *out, const Tokenizer *t, Str text, Err *e) {
    Text next = {0};
    out->len = 0;
    text_add(out, (const char *)text.p, text.n);
    int status = text_check(out, e);
    for (uint32_t k = 0; k < t->n_norm && status == 0; k++) {
        const NormStep *step = &t->norm[k];
        const Str now = {(const uint8_t *)out->data, out->len};
        next.len = 0;
        text_add(&next, "", 0);
        if (step->step == NORM_CHARSMAP) status = apply_charsmap(&next, t, now, e);
        else if (step->step == NORM_SQUEEZE) status = squeeze_spaces(&next, now, step->text, e);
        else strip(&next, now, step->arg & 1, step->arg & 2);
        if (status == 0) status = text_check(&next, e);
        const Text swap = *out;
        *out = next;
        next = swap;
    }
    text_free(&next);
    return status;
}
