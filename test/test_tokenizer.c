// test/test_tokenizer.c: the tokenizers against golden ids of the `tokenizers` library and hostile input.
//
//   test_tokenizer [FOLDER]          the tests, on the sections and golden files in FOLDER
//                                    (test/data/tokenizers)
//   test_tokenizer --encode BLOB V   for test/parity_tokenizer.py: records of a u32 length and that many
//                                    bytes of text on stdin, a line with a JSON array of ids or an object
//                                    with an error for each
//   test_tokenizer --decode BLOB V   records of a u32 count and that many u32 ids on stdin, a line with the
//                                    text as a JSON string for each
//
// A golden file has one case per line: "e TEXT-IN-HEX : id id ..." or "d id id ... : TEXT-IN-HEX".

#include "../tokenizer.h"
#include "check.h"

#include <stdlib.h>

static uint8_t *read_file(const char *path, size_t *n) {
    FILE *f = fopen(path, "rb");
    if (!f) return NULL;
    uint8_t *data = malloc(1 << 24);
    CHECK(data);
    *n = fread(data, 1, 1 << 24, f);
    fclose(f);
    return data;
}

// Decodes in one go and as a stream; the stream must be valid UTF-8 at every step and give the same.
static int decode_both(Text *out, const Tokenizer *t, const int *ids, int n, Err *e) {
    Text streamed = {0};
    Stream s = {0};
    int status = tokenizer_decode(out, t, ids, n, e);
    for (int i = 0; i <= n && status == 0; i++) {
        const size_t from = streamed.len;
        status = tokenizer_stream(&streamed, &s, t, i < n ? ids[i] : -1, e);
        for (size_t k = from; k < streamed.len && status == 0;) {
            const int len = utf8_next((const uint8_t *)streamed.data + k, streamed.len - k, NULL);
            if (!len) status = fail(e, "step %d of the stream is not UTF-8", i);
            k += (size_t)len;
        }
    }
    if (status == 0 && (streamed.len != out->len || memcmp(streamed.data, out->data, out->len) != 0))
        status = fail(e, "stream \"%s\" differs from text \"%s\"", streamed.data, out->data);
    text_free(&streamed);
    return status;
}

// ---------------------------------------------------------------------------------------------------------
// Modes for the parity script

static int serve(const char *mode, const char *path, int V) {
    Err e;
    size_t n;
    uint8_t *blob = read_file(path, &n);
    Tokenizer *t = blob ? tokenizer_open(blob, n, V, -1, &e) : NULL;
    if (!t) {
        fprintf(stderr, "%s: %s\n", path, blob ? e.text : "cannot read it");
        return 1;
    }
    const bool encoding = strcmp(mode, "--encode") == 0;
    uint8_t head[4];
    while (fread(head, 1, 4, stdin) == 4) {
        const size_t count = read_u32(head), bytes = encoding ? count : 4 * count;
        uint8_t *record = malloc(bytes + 1);
        CHECK(record && fread(record, 1, bytes, stdin) == bytes);
        Text line = {0}, text = {0};
        int *ids = NULL, status;
        if (encoding) {
            status = tokenizer_encode(&ids, t, (const char *)record, bytes, &e);
            text_add(&line, "[", 1);
            for (int i = 0; i < status; i++) text_printf(&line, "%s%d", i ? ", " : "", ids[i]);
            text_add(&line, "]", 1);
        } else {
            ids = malloc((count + 1) * sizeof *ids);
            CHECK(ids);
            for (size_t i = 0; i < count; i++) ids[i] = (int)read_u32(record + 4 * i);
            status = decode_both(&text, t, ids, (int)count, &e);
            if (status == 0) text_json(&line, text.data, text.len);
        }
        if (status < 0) printf("{\"error\": \"%s\"}\n", encoding ? "encode" : e.text);
        else printf("%s\n", line.data);
        text_free(&line);
        text_free(&text);
        free(ids);
        free(record);
    }
    tokenizer_close(t);
    free(blob);
    return 0;
}

// ---------------------------------------------------------------------------------------------------------
// Golden cases

static size_t from_hex(char *out, const char *hex) {
    size_t n = 0;
    for (unsigned byte; sscanf(hex + 2 * n, "%2x", &byte) == 1; n++) out[n] = (char)byte;
    return n;
}

static int read_ids(int *ids, char *text) {
    int n = 0;
    for (char *word = strtok(text, " "); word; word = strtok(NULL, " ")) ids[n++] = atoi(word);
    return n;
}

static void golden(Tally *tally, const Tokenizer *t, const char *path) {
    static char line[1 << 16], text[1 << 15];
    static int want[1 << 14];
    FILE *f = fopen(path, "r");
    EXPECT(tally, f, "%s", path);
    int number = 0;
    while (f && fgets(line, sizeof line, f)) {
        number++;
        line[strcspn(line, "\n")] = 0;
        char *colon = strchr(line, ':'), *left = line + 2, *right = colon + 2;
        CHECK(colon && (line[0] == 'e' || line[0] == 'd'));
        *colon = 0;
        Err e = {{0}};
        const size_t n_text = from_hex(text, line[0] == 'e' ? left : right);
        const int n_want = read_ids(want, line[0] == 'e' ? right : left);
        if (line[0] == 'e') {
            int *ids;
            const int n = tokenizer_encode(&ids, t, text, n_text, &e);
            EXPECT(tally, n == n_want && memcmp(ids, want, (size_t)n * sizeof *ids) == 0,
                   "%s:%d: %d ids, expected %d %s", path, number, n, n_want, n < 0 ? e.text : "");
            free(ids);
        } else {
            Text out = {0};
            const int status = decode_both(&out, t, want, n_want, &e);
            EXPECT(tally, status == 0 && out.len == n_text && memcmp(out.data, text, n_text) == 0,
                   "%s:%d: \"%s\" %s", path, number, status ? "" : out.data, status ? e.text : "");
            text_free(&out);
        }
    }
    if (f) fclose(f);
    EXPECT(tally, number > 100, "%s has only %d cases", path, number);
}

// ---------------------------------------------------------------------------------------------------------
// Errors

static void expect_refused(Tally *tally, const Tokenizer *t, const char *text, size_t n, const char *part) {
    Err e = {{0}};
    int *ids;
    const int count = tokenizer_encode(&ids, t, text, n, &e);
    EXPECT(tally, count == -1 && !ids && strstr(e.text, part), "%d ids, \"%s\", expected \"%s\"", count,
           e.text, part);
    free(ids);
}

static void refusals(Tally *tally, const uint8_t *blob, size_t n, int V, int image) {
    Err e;
    Tokenizer *t = tokenizer_open(blob, n, V, image, &e);
    EXPECT(tally, t, "%s", e.text);
    if (!t) return;
    if (image >= 0) expect_refused(tally, t, "a <image> b", 11, "placeholder");
    expect_refused(tally, t, "ab\xFF", 3, "position 2");                 // no lead byte
    expect_refused(tally, t, "\xC0\x80", 2, "position 0");               // overlong
    expect_refused(tally, t, "a\xED\xA0\x80", 4, "position 1");          // surrogate
    expect_refused(tally, t, "\xF4\x90\x80\x80", 4, "position 0");       // above U+10FFFF
    expect_refused(tally, t, "abc\xE2\x82", 5, "position 3");            // cut off
    Text out = {0};
    const int bad[][2] = {{V, 0}, {-1, 0}, {-2, 0}, {INT32_MAX, 0}, {5, V}};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        EXPECT(tally, tokenizer_decode(&out, t, bad[i], 2, &e) == -1 && strstr(e.text, "token id"), "%s",
               e.text);
    out.len = 0;
    const int unused[] = {V - 1, V - 1};   // rows of the embedding without a token
    EXPECT(tally, tokenizer_decode(&out, t, unused, 2, &e) == 0 && out.len == 0, "%s", e.text);
    text_free(&out);
    tokenizer_close(t);
    EXPECT(tally, !tokenizer_open(blob, n, 50, image, &e) && strstr(e.text, "rows"), "%s", e.text);
}

// ---------------------------------------------------------------------------------------------------------
// Long texts: what is quadratic in the length does not come to an end here.

static void long_texts(Tally *tally, const Tokenizer *t) {
    enum { N = 1 << 20 };
    static const char *const units[] = {
        "a", "th", " ", "\n", "<", "</s", " a", "'", "!", "9", "x \t", "e\xCC\x81", "\xCC\x81",
        "\xE6\x97\xA5", "\xE2\x96\x81", "\xF0\x9F\x87\xA9"};
    char *text = malloc(N + 8);
    CHECK(text);
    for (size_t k = 0; k < sizeof units / sizeof *units; k++) {
        const size_t u = strlen(units[k]);
        size_t n = 0;
        for (; n + u <= N; n += u) memcpy(text + n, units[k], u);
        Err e;
        int *ids;
        const int count = tokenizer_encode(&ids, t, text, n, &e);
        EXPECT(tally, count > 0, "unit %zu: %s", k, e.text);
        Text out = {0};
        EXPECT(tally, count < 0 || tokenizer_decode(&out, t, ids, count, &e) == 0, "unit %zu: %s", k, e.text);
        text_free(&out);
        free(ids);
    }
    int *ids;
    Err e;
    char *huge = calloc(1, (size_t)5 << 20);
    CHECK(huge);
    EXPECT(tally, tokenizer_encode(&ids, t, huge, (size_t)5 << 20, &e) == -1, "5 MiB of text were accepted");
    free(huge);
    free(text);
}

// ---------------------------------------------------------------------------------------------------------
// Damaged sections: whatever the bytes, an error or a tokenizer that works. (What is wrong shows under
// -fsanitize=address,undefined.) Returns 1 when the section was accepted.

static int try_section(const uint8_t *bytes, size_t n, int V) {
    static const char probe[] = "Question: is it \xEF\xAC\x81ne?\n  e\xCC\x81\t</s>\xE6\x97\xA5<extra_id_3> "
                                "don't \xF0\x9F\x98\x80";
    Err e = {{0}};
    uint8_t *exact = malloc(n ? n : 1);   // so that a read past the end is seen
    CHECK(exact);
    memcpy(exact, bytes, n);
    Tokenizer *t = tokenizer_open(exact, n, V, 480, &e);
    if (t) {
        int *ids;
        Text out = {0};
        const int count = tokenizer_encode(&ids, t, probe, sizeof probe - 1, &e);
        if (count > 0) decode_both(&out, t, ids, count, &e);
        for (int id = 0; id < V; id++) tokenizer_decode(&out, t, &id, 1, &e);
        free(ids);
        text_free(&out);
        tokenizer_close(t);
    } else CHECK(e.text[0]);
    free(exact);
    return t != NULL;
}

static void damage(Tally *tally, const uint8_t *blob, size_t n, int V, const char *name) {
    uint8_t *copy = malloc(n + 64);
    CHECK(copy);
    int refused = 0, accepted = 0;
    for (size_t cut = 0; cut < n; cut += cut < 512 ? 1 : 97) refused += !try_section(blob, cut, V);
    EXPECT(tally, refused > 500 && accepted == 0, "%s: %d truncated sections were refused", name, refused);
    uint64_t state = 88172645463325252u;   // xorshift64
    for (int round = 0; round < 6000; round++) {
        memcpy(copy, blob, n);
        for (int k = 0; k < 1 + round % 4; k++) {
            state ^= state << 13; state ^= state >> 7; state ^= state << 17;
            // half of the damage to the header and the small tables behind it
            const size_t at = (size_t)(state >> 16) % (round % 2 ? n : 256);
            const uint8_t flipped = (uint8_t)(copy[at] ^ 1u << (state & 7));
            const uint8_t values[] = {0, 0xFF, 0x80, 0x7F, (uint8_t)(state >> 8), flipped};
            copy[at] = values[state % 6];
        }
        accepted += try_section(copy, n, V);
    }
    EXPECT(tally, accepted > 100 && accepted < 6000, "%s: %d damaged sections were accepted", name, accepted);
    memcpy(copy, blob, n);
    memset(copy + n, 0, 64);
    EXPECT(tally, !try_section(copy, n + 64, V), "%s: bytes behind the end were accepted", name);
    EXPECT(tally, try_section(blob, n, V), "%s: the section itself was refused", name);
    free(copy);
}

int main(int argc, char **argv) {
    if (argc == 4 && argv[1][0] == '-') return serve(argv[1], argv[2], atoi(argv[3]));
    const char *folder = argc > 1 ? argv[1] : "test/data/tokenizers";
    static const struct { const char *name; int V, image; } cases[] = {
        {"bpe", 512, 480}, {"unigram", 448, 410}, {"unigram_trim", 448, -1}};
    Tally tally = {0};
    for (size_t k = 0; k < sizeof cases / sizeof *cases; k++) {
        char path[4096];
        snprintf(path, sizeof path, "%s/%s.tok", folder, cases[k].name);
        size_t n = 0;
        Err e;
        uint8_t *blob = read_file(path, &n);
        EXPECT(&tally, blob, "%s", path);
        Tokenizer *t = blob ? tokenizer_open(blob, n, cases[k].V, -1, &e) : NULL;
        EXPECT(&tally, t, "%s", blob ? e.text : "no file");
        if (t) {
            snprintf(path, sizeof path, "%s/%s.golden", folder, cases[k].name);
            golden(&tally, t, path);
            long_texts(&tally, t);
            refusals(&tally, blob, n, cases[k].V, cases[k].image);
            damage(&tally, blob, n, cases[k].V, cases[k].name);
        }
        tokenizer_close(t);
        free(blob);
    }
    return tally_close(&tally);
}
