// common.c: the few helpers that every file shares (see common.h): errors, byte order, time, growing text, UTF-8.

#include "common.h"

#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

int fail(Err *e, const char *fmt, ...) {
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(e->text, sizeof e->text, fmt, ap);
    va_end(ap);
    return -1;
}

int fail_in(Err *e, const char *fmt, ...) {
    char was[sizeof e->text];
    memcpy(was, e->text, sizeof was);
    va_list ap;
    va_start(ap, fmt);
    int n = vsnprintf(e->text, sizeof e->text, fmt, ap);
    va_end(ap);
    if (n >= 0 && (size_t)n < sizeof e->text) snprintf(e->text + n, sizeof e->text - (size_t)n, ": %s", was);
    return -1;
}

void check_failed(const char *cond, const char *file, int line) {
    fprintf(stderr, "%s:%d: this cannot happen: %s\n", file, line, cond);
    abort();
}

uint64_t available_memory(void) {
    FILE *f = fopen("/proc/meminfo", "re");
    char line[128];
    unsigned long long kb = 0;
    while (f && fgets(line, sizeof line, f)) if (sscanf(line, "MemAvailable: %llu", &kb) == 1) break;
    if (f) fclose(f);
    return kb ? (uint64_t)kb * 1024 : UINT64_MAX;
}

uint16_t read_u16(const uint8_t *p) { return (uint16_t)(p[0] | p[1] << 8); }
uint32_t read_u32(const uint8_t *p) { return read_u16(p) | (uint32_t)read_u16(p + 2) << 16; }
uint64_t read_u64(const uint8_t *p) { return read_u32(p) | (uint64_t)read_u32(p + 4) << 32; }

double seconds_now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

int64_t now_ms(void) { return (int64_t)(1e3 * seconds_now()); }

// ---------------------------------------------------------------------------------------------------------

// False: there is no memory, and the text stays as it is from now on.
static bool text_reserve(Text *t, size_t more) {
    CHECK(more < SIZE_MAX / 4 && t->len < SIZE_MAX / 4);
    if (t->failed) return false;
    if (t->len + more + 1 <= t->cap) return true;
    size_t cap = t->cap ? t->cap : 256;
    while (cap < t->len + more + 1) cap *= 2;
    char *data = realloc(t->data, cap);
    t->failed = !data;
    if (!data) return false;
    t->data = data;
    t->cap = cap;
    return true;
}

int text_check(const Text *t, Err *e) {
    return t->failed ? fail(e, "out of memory behind %zu bytes of text", t->len) : 0;
}

void text_add(Text *t, const char *bytes, size_t n) {
    if (!text_reserve(t, n)) return;
    if (n) memcpy(t->data + t->len, bytes, n);
    t->len += n;
    t->data[t->len] = 0;
}

void text_printf(Text *t, const char *fmt, ...) {
    va_list ap, again;
    va_start(ap, fmt);
    va_copy(again, ap);
    int n = vsnprintf(NULL, 0, fmt, ap);
    va_end(ap);
    CHECK(n >= 0);
    if (text_reserve(t, (size_t)n)) {
        vsnprintf(t->data + t->len, (size_t)n + 1, fmt, again);
        t->len += (size_t)n;
    }
    va_end(again);
}

void text_json(Text *t, const char *utf8, size_t n) {
    text_add(t, "\"", 1);
    for (size_t i = 0; i < n;) {
        const uint8_t c = (uint8_t)utf8[i];
        uint32_t cp = 0;
        const int len = utf8_next((const uint8_t *)utf8 + i, n - i, &cp);
        if (len == 0) text_add(t, "\xEF\xBF\xBD", 3);
        else if (c == '"' || c == '\\') text_printf(t, "\\%c", c);
        else if (c == '\n') text_add(t, "\\n", 2);
        else if (c == '\t') text_add(t, "\\t", 2);
        else if (terminal_obeys(cp)) text_printf(t, "\\u%04x", cp);
        else text_add(t, utf8 + i, (size_t)len);
        i += len ? (size_t)len : 1;
    }
    text_add(t, "\"", 1);
}

void text_free(Text *t) {
    free(t->data);
    *t = (Text){0};
}

int utf8_next(const uint8_t *p, size_t n, uint32_t *cp) {
    if (n == 0) return 0;
    uint32_t c = p[0];
    int len = c < 0x80 ? 1 : c >= 0xC2 && c < 0xE0 ? 2 : c >= 0xE0 && c < 0xF0 ? 3 : c >= 0xF0 && c < 0xF5 ? 4 : 0;
    if (len == 0 || (size_t)len > n) return 0;
    if (len > 1) c &= 0x7Fu >> len;
    for (int i = 1; i < len; i++) {
        if ((p[i] & 0xC0) != 0x80) return 0;
        c = c << 6 | (p[i] & 0x3F);
    }
    if ((len == 3 && (c < 0x800 || (c >= 0xD800 && c < 0xE000))) || (len == 4 && (c < 0x10000 || c > 0x10FFFF)))
        return 0;
    if (cp) *cp = c;
    return len;
}

int utf8_put(char *out, uint32_t cp) {
    if (cp < 0x80) { out[0] = (char)cp; return 1; }
    if (cp < 0x800) {
        out[0] = (char)(0xC0 | cp >> 6); out[1] = (char)(0x80 | (cp & 0x3F));
        return 2;
    }
    if (cp < 0x10000) {
        out[0] = (char)(0xE0 | cp >> 12); out[1] = (char)(0x80 | (cp >> 6 & 0x3F)); out[2] = (char)(0x80 | (cp & 0x3F));
        return 3;
    }
    out[0] = (char)(0xF0 | cp >> 18); out[1] = (char)(0x80 | (cp >> 12 & 0x3F));
    out[2] = (char)(0x80 | (cp >> 6 & 0x3F)); out[3] = (char)(0x80 | (cp & 0x3F));
    return 4;
}

bool terminal_obeys(uint32_t cp) {
    return cp < 0x20 || (cp >= 0x7F && cp < 0xA0) || (cp >= 0x202A && cp <= 0x202E) || (cp >= 0x2066 && cp <= 0x2069);
}
