// escape.c: control characters made visible (see escape.h). Not here: what is written when, and JSON (common.c).

#include "escape.h"

#include <string.h>
#include <unistd.h>

void escape_add(Text *out, const char *text, size_t n) {
    const uint8_t *p = (const uint8_t *)text;
    for (size_t i = 0; i < n;) {
        uint32_t cp = 0;
        const int len = utf8_next(p + i, n - i, &cp);
        if (!len) text_printf(out, "\\x%02X", p[i]);
        else if (!terminal_obeys(cp)) text_add(out, text + i, (size_t)len);
        else if (cp < 0x80) text_printf(out, "^%c", (char)(cp ^ 0x40));
        else text_printf(out, "<U+%04X>", cp);
        i += len ? (size_t)len : 1;
    }
}

void escape_write(FILE *f, const char *text, size_t n) {
    if (!isatty(fileno(f))) {
        fwrite(text, 1, n, f);
        return;
    }
    Text visible = {0};
    escape_add(&visible, text, n);
    if (visible.len) fwrite(visible.data, 1, visible.len, f);
    text_free(&visible);
}

void escape_line(FILE *f, const char *before, const char *text) {
    Text line = {0};
    text_printf(&line, "%s: %s", before, text);
    escape_write(f, line.data, line.len);
    text_free(&line);
    fputc('\n', f);
}
