// test/fuzz/fuzz_tokenizer.c: hostile tokenizer sections, and hostile text for the three small tokenizers of
// test/data/tokenizers.
//
// An input is:   section | text | u16 length of text | u8 which
// which 0..2: a file's section, the input is all text
// In order: the mutator, which keeps the section's sizes right; what must hold of any tokenizer; the target.

#include "../../tokenizer.h"
#include "fuzz.h"

enum { HEADER = 64, TEXT_BYTES_AT = 56, FILES = 3, V = 1024 };

// Where the section ends; the text follows.
static size_t section_bytes(const uint8_t *data, size_t size) {
    if (size < 3) return 0;
    const size_t text = read_u16(data + size - 3);
    return text > size - 3 ? 0 : size - 3 - text;
}

size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t size, size_t max_size, unsigned seed) {
    const size_t section = section_bytes(data, size);
    if (size < 3 || data[size - 1] % 4 < FILES || section < HEADER)
        return LLVMFuzzerMutate(data, size, max_size);
    const size_t rest = size - section;
    uint8_t *tail = copy_of(data + section, rest);
    size_t n = section, tail_n = rest;
    if (seed % 4) n = LLVMFuzzerMutate(data, section, max_size - rest);
    else if (rest > 3) {
        tail_n = LLVMFuzzerMutate(tail, rest - 3, rest - 3) + 3;   // may shorten
        tail[tail_n - 3] = (uint8_t)(tail_n - 3), tail[tail_n - 2] = (uint8_t)((tail_n - 3) >> 8);
        tail[tail_n - 1] = FILES;
    }
    if (n >= HEADER && seed % 16) {   // the text part takes up what is not accounted for
        const bool bpe = read_u32(data + 8) == 1;
        const uint64_t part[] = {4ull * (read_u32(data + 32) + (uint64_t)read_u32(data + 36)),
                                 16ull * read_u32(data + 24), 16ull * read_u32(data + 20),
                                 5ull * read_u32(data + 16) + 4,
                                 bpe ? 1024 + 12ull * read_u32(data + 40) : 8ull * read_u32(data + 44),
                                 read_u32(data + 52)};
        uint64_t used = HEADER;
        for (size_t i = 0; i < sizeof part / sizeof *part; i++) used += part[i];
        const uint32_t left = used <= n ? (uint32_t)(n - used) : 0;
        for (int i = 0; i < 4; i++) data[TEXT_BYTES_AT + i] = (uint8_t)(left >> 8 * i);
    }
    memcpy(data + n, tail, tail_n);
    free(tail);
    return n + tail_n;
}

// Whole and streamed decoding agree and are UTF-8 at every step.
static void check_decode(const Tokenizer *t, const int *ids, int n) {
    Text whole = {0}, streamed = {0};
    Stream s = {0};
    Err e;
    CHECK(tokenizer_decode(&whole, t, ids, n, &e) == 0);
    for (int i = 0; i <= n; i++) {
        size_t k = streamed.len;
        CHECK(tokenizer_stream(&streamed, &s, t, i < n ? ids[i] : -1, &e) == 0);
        while (k < streamed.len) {
            const int len = utf8_next((const uint8_t *)streamed.data + k, streamed.len - k, NULL);
            CHECK(len > 0);
            k += (size_t)len;
        }
    }
    CHECK(whole.len == streamed.len && memcmp(whole.data, streamed.data, whole.len) == 0);
    text_free(&whole);
    text_free(&streamed);
}

static void use(const Tokenizer *t, const uint8_t *text, size_t n) {
    Err e = {0};
    int *ids;
    uint8_t *copy = copy_of(text, n);
    const int count = tokenizer_encode(&ids, t, (const char *)copy, n, &e);
    CHECK(count >= 0 || (e.text[0] && !ids));
    for (int i = 0; i < count; i++) CHECK(ids[i] >= 0 && ids[i] < V);
    if (count >= 0) check_decode(t, ids, count);
    free(ids);
    free(copy);
    int any[64], n_any = 0;   // and the text as ids
    for (size_t i = 0; i + 2 <= n && n_any < 64; i += 2) any[n_any++] = read_u16(text + i) % V;
    check_decode(t, any, n_any);
}

static Tokenizer *from_file(const char *name) {
    char path[128];
    snprintf(path, sizeof path, "test/data/tokenizers/%s.tok", name);
    FILE *f = fopen(path, "rb");
    uint8_t *bytes = malloc(1 << 16);   // stays
    CHECK(f && bytes);
    const size_t n = fread(bytes, 1, 1 << 16, f);
    fclose(f);
    Err e;
    Tokenizer *t = tokenizer_open(bytes, n, V, 5, &e);
    CHECK(t);
    return t;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    static Tokenizer *files[FILES];
    if (!files[0]) {
        files[0] = from_file("bpe");
        files[1] = from_file("unigram");
        files[2] = from_file("unigram_trim");
    }
    if (size < 3) return 0;
    if (data[size - 1] % 4 < FILES) {
        use(files[data[size - 1] % 4], data, size - 1);
        return 0;
    }
    const size_t section = section_bytes(data, size);
    uint8_t *bytes = copy_of(data, section);
    Err e = {0};
    Tokenizer *t = tokenizer_open(bytes, section, V, -1, &e);
    CHECK(t || e.text[0]);
    if (t) use(t, data + section, size - 3 - section);
    tokenizer_close(t);
    free(bytes);
    return 0;
}
