// escape.c: control characters made visible (see escape.h). Not here: what is written when, and JSON (common.c).

#include "escape.h"

#include <string.h>
#include <unistd.h>

enum { MOST = 10 };   // bytes that one character becomes at most, and a NUL: <U+202E>

// The visible form of the character at p (n > 0 bytes) -> out. Returns how many bytes of p it is.
static size_t one(char out[MOST], const uint8_t *p, size_t n) {
    uint32_t cp = 0;
    const int len = utf8_next(p, n, &cp);
    if (!len) snprintf(out, MOST, "\\x%02X", p[0]);
    else if (!terminal_obeys(cp)) {
        memcpy(out, p, (size_t)len);
        out[len] = 0;
    } else if (cp < 0x80) snprintf(out, MOST, "^%c", (char)(cp ^ 0x40));
    else snprintf(out, MOST, "<U+%04X>", cp);
    return len ? (size_t)len : 1;
}

void escape_add(Text *out, const char *text, size_t n) {
    char visible[MOST];
    for (size_t i = 0; i < n;) {
        i += one(visible, (const uint8_t *)text + i, n - i);
        text_add(out, visible, strlen(visible));
    }
}

// Takes no memory: this is also how a message that there is none gets out.
void escape_write(FILE *f, const char *text, size_t n) {
    if (!isatty(fileno(f))) {
        fwrite(text, 1, n, f);
        return;
    }
    char part[1024];
    size_t used = 0;
    for (size_t i = 0; i < n;) {
        i += one(part + used, (const uint8_t *)text + i, n - i);
        used += strlen(part + used);
        if (i < n && used + MOST <= sizeof part) continue;
        fwrite(part, 1, used, f);
        used = 0;
    }
}

void escape_line(FILE *f, const char *before, const char *text) {
    char start[2048];   // a message and what is before it, at once; the rest of what is longer follows
    const int n = snprintf(start, sizeof start, "%s: %s", before, text);
    if (n >= 0 && (size_t)n < sizeof start) escape_write(f, start, (size_t)n);
    else {
        escape_write(f, before, strlen(before));
        escape_write(f, ": ", 2);
        escape_write(f, text, strlen(text));
    }
    fputc('\n', f);
}
