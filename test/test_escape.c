// test/test_escape.c: control characters become visible on a terminal, and nowhere else.
//
// In order: the notation, every code point, random bytes, files and terminals, JSON.

#include "../escape.h"
#include "check.h"
#include "pty.h"

static void becomes(Tally *t, const char *text, size_t n, const char *want) {
    Text got = {0};
    escape_add(&got, text, n);
    EXPECT(t, got.len == strlen(want) && !memcmp(got.data ? got.data : "", want, got.len), "'%s' instead of '%s'",
           got.data, want);
    text_free(&got);
}
#define BECOMES(t, literal, want) becomes(t, literal, sizeof literal - 1, want)

static void notation(Tally *t) {
    BECOMES(t, "", "");
    BECOMES(t, "photo.jpg", "photo.jpg");
    BECOMES(t, "\x1b[2J\x1b]0;title\a", "^[[2J^[]0;title^G");
    BECOMES(t, "a\0b\tc\nd\r", "a^@b^Ic^Jd^M");
    BECOMES(t, "\x7f", "^?");
    BECOMES(t, "\xC2\x9B" "31m", "<U+009B>31m");
    BECOMES(t, "\xC2\xA0", "\xC2\xA0");
    BECOMES(t, "gpj.\xE2\x80\xAE" "exe", "gpj.<U+202E>exe");
    BECOMES(t, "\xE2\x81\xA6x\xE2\x81\xA9", "<U+2066>x<U+2069>");
    BECOMES(t, "\x9B" "31m", "\\x9B31m");
    BECOMES(t, "\xE2\x80", "\\xE2\\x80");
    BECOMES(t, "\xC0\x9B", "\\xC0\\x9B");              // overlong
    BECOMES(t, "\xED\xA0\x80", "\\xED\\xA0\\x80");     // a surrogate
    BECOMES(t, "\xC3\xA4\xE6\x97\xA5\xF0\x9F\x90\xB1", "\xC3\xA4\xE6\x97\xA5\xF0\x9F\x90\xB1");
}

// Nothing in the visible form is a control character or invalid, whatever went in.
static bool harmless(const Text *s) {
    for (size_t i = 0; i < s->len;) {
        uint32_t cp;
        const int len = utf8_next((const uint8_t *)s->data + i, s->len - i, &cp);
        if (!len || terminal_obeys(cp)) return false;
        i += (size_t)len;
    }
    return true;
}

static void everything(Tally *t) {
    Text in = {0}, out = {0};
    int kept = 0;
    for (uint32_t cp = 0; cp < 0x110000; cp++) {
        char bytes[4];
        if (cp >= 0xD800 && cp < 0xE000) continue;
        in.len = out.len = 0;
        text_add(&in, bytes, (size_t)utf8_put(bytes, cp));
        escape_add(&out, in.data, in.len);
        if (!harmless(&out)) EXPECT(t, 0, "U+%04X", cp);
        kept += out.len == in.len && !memcmp(in.data, out.data, in.len);
    }
    EXPECT(t, kept == 0x110000 - 0x800 - 32 - 33 - 5 - 4, "%d code points stay as they are", kept);
    uint32_t random = 1;
    for (int round = 0; round < 2000; round++) {
        in.len = out.len = 0;
        for (int i = 0; i < 50; i++) {
            random = random * 1664525u + 1013904223u;
            text_add(&in, &(char){(char)(random >> 24)}, 1);
        }
        escape_add(&out, in.data, in.len);
        if (!harmless(&out)) EXPECT(t, 0, "random bytes, round %d", round);
    }
    Text bad = {0};
    text_add(&bad, "\x1b[m", 3);
    EXPECT(t, !harmless(&bad), "the check itself sees nothing");
    text_free(&bad);
    text_free(&in);
    text_free(&out);
}

static void where(Tally *t) {
    char bytes[32] = "";
    FILE *f = tmpfile();
    escape_write(f, "a\x1b\xFF\n", 4);
    escape_line(f, "blip2", "b\x1b");
    rewind(f);
    const size_t n = fread(bytes, 1, sizeof bytes, f);
    EXPECT(t, n == 14 && !memcmp(bytes, "a\x1b\xFF\nblip2: b\x1b\n", n), "%zu bytes into a file", n);
    fclose(f);

    Pty p;
    const int side = pty_start(&p, 24, 80, 0, 0);
    if (side < 0) {
        SKIP(t, "no pseudo-terminals here");
        return;
    }
    if (side) {
        escape_write(stdout, "a\x1b\xFF\n", 4);
        escape_line(stdout, "blip2", "b\x1b\nc");
        exit(0);
    }
    pty_end(&p);
    const char want[] = "a^[\\xFF^Jblip2: b^[^Jc\r\n";
    EXPECT(t, p.seen.len == strlen(want) && !memcmp(p.seen.data, want, p.seen.len), "on a terminal: %s", p.seen.data);
    pty_close(&p);
}

static void json(Tally *t) {
    Text s = {0};
    text_json(&s, "\x1b\xC2\x9B\xE2\x80\xAE\xE2\x81\xA6\xC2\xA0\xFF", 12);
    EXPECT(t, !strcmp(s.data, "\"\\u001b\\u009b\\u202e\\u2066\xC2\xA0\xEF\xBF\xBD\""), "%s", s.data);
    text_free(&s);
}

int main(void) {
    Tally t = {0};
    notation(&t);
    everything(&t);
    where(&t);
    json(&t);
    return tally_close(&t);
}
