// show_kitty.c: pixels as kitty's terminal graphics protocol has them (see show.h).
//
// Source: https://sw.kovidgoyal.net/kitty/graphics-protocol: transmit and display (a=T) 24-bit pixels (f=24), deflated
// (o=z), within c columns and r rows, the cursor not moved (C=1), no answer wanted (q=2); base64 in chunks of at most
// 4096 bytes, m=1 on all but the last.

#include "show.h"

#include <stdlib.h>
#include <zlib.h>

enum { CHUNK = 4096 };

// bytes (n) -> 4 * ceil(n / 3) characters appended to out (RFC 4648)
static void base64(Text *out, const uint8_t *bytes, size_t n) {
    static const char digits[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    for (size_t i = 0; i < n; i += 3) {
        const uint32_t b1 = i + 1 < n ? bytes[i + 1] : 0, b2 = i + 2 < n ? bytes[i + 2] : 0;
        const uint32_t v = (uint32_t)bytes[i] << 16 | b1 << 8 | b2;
        const char four[] = {digits[v >> 18], digits[v >> 12 & 63], i + 1 < n ? digits[v >> 6 & 63] : '=',
                             i + 2 < n ? digits[v & 63] : '='};
        text_add(out, four, 4);
    }
}

int show_kitty(Text *out, const uint8_t *px, int w, int h, int columns, int rows, Err *e) {
    // px (h,w,3)
    const uLong raw = (uLong)w * (uLong)h * 3;
    uLongf n = compressBound(raw);
    uint8_t *packed = malloc(n);
    if (!packed || compress2(packed, &n, px, raw, 6) != Z_OK) {
        free(packed);
        return fail(e, "no memory to draw the picture");
    }
    enum { BYTES = CHUNK / 4 * 3 };
    for (size_t i = 0; i < n; i += BYTES) {
        const size_t part = n - i < BYTES ? n - i : BYTES;
        const int more = i + part < n;
        if (i) text_printf(out, "\x1b_Gm=%d,q=2;", more);
        else text_printf(out, "\x1b_Ga=T,f=24,o=z,s=%d,v=%d,c=%d,r=%d,C=1,q=2,m=%d;", w, h, columns, rows, more);
        base64(out, packed + i, part);
        text_add(out, "\x1b\\", 2);
    }
    free(packed);
    return 0;
}
