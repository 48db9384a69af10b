// image_exif.c: which way up a photo is: the orientation from EXIF or XMP, and turning the pixels
// accordingly.
//
// In order: the TIFF directory inside an EXIF block, the XMP text, where JPEG, PNG and WebP files keep the
// two, turning. The rules are those of Pillow 11.3.0's Image.getexif and ImageOps.exif_transpose: the tag in
// the first directory counts, XMP only when the tag is missing, anything but 2..8 means leave it alone.
// Not here: compressed XMP and the "Raw profile type exif" text of old ImageMagick PNGs.
//
// All of it is untrusted: a block that is damaged counts as absent, nothing is read beyond its end.

#include "image_codec.h"

#include <stdlib.h>
#include <string.h>

typedef struct { const uint8_t *p; size_t n; } Span;
typedef struct { Span exif, xmp; } Metadata;

static bool starts_with(Span s, const char *prefix, size_t n) {
    return s.n >= n && memcmp(s.p, prefix, n) == 0;
}

static Span after(Span s, size_t n) { return (Span){s.p + n, s.n - n}; }

// ---------------------------------------------------------------------------------------------------------
// The blocks

typedef struct { Span s; bool big; } Tiff;

static uint32_t tiff16(const Tiff *t, size_t at) {
    return t->big ? read_be16(t->s.p + at) : read_u16(t->s.p + at);
}

static uint32_t tiff32(const Tiff *t, size_t at) {
    return t->big ? read_be32(t->s.p + at) : read_u32(t->s.p + at);
}

// The value of tag 0x0112 (Orientation) in the first directory, -1 when there is none.
//
//     TIFF:  "II*\0" or "MM\0*"  u32 offset of directory
//     directory:  u16 count, then count entries of 12 bytes:  u16 tag, type | u32 count, value or offset
static int64_t exif_value(Span s) {
    while (starts_with(s, "Exif\0\0", 6)) s = after(s, 6);
    Tiff t = {s, starts_with(s, "MM", 2)};
    // The last two have their version number in the wrong byte order; such cameras exist, and Pillow reads
    // them.
    if (!starts_with(s, "II*\0", 4) && !starts_with(s, "MM\0*", 4) && !starts_with(s, "II\0*", 4)
        && !starts_with(s, "MM*\0", 4)) return -1;
    if (s.n < 8) return -1;
    const uint64_t dir = tiff32(&t, 4);
    if (dir + 2 > s.n) return -1;
    const uint32_t entries = tiff16(&t, dir);
    int64_t found = -1;
    for (uint32_t i = 0; i < entries && dir + 2 + 12 * (uint64_t)(i + 1) <= s.n; i++) {
        const size_t at = dir + 2 + 12 * (size_t)i;
        if (tiff16(&t, at) != 0x0112) continue;
        const uint32_t type = tiff16(&t, at + 2);
        const uint64_t size = type == 3 || type == 8 ? 2 : type == 4 || type == 9 ? 4 : 0;  // short, long
        if (size == 0) found = 1;  // of a type it should not have: it counts, but turns nothing
        const uint64_t total = size * tiff32(&t, at + 4), value = total <= 4 ? at + 8 : tiff32(&t, at + 8);
        if (total == 0 || value + total > s.n) continue;
        found = size == 2 ? tiff16(&t, value) : tiff32(&t, value);
    }
    return found;
}

// Finds tiff:Orientation="6" or <tiff:Orientation>6 in XMP, which is XML text.
static int xmp_value(Span s) {
    const size_t n = sizeof "tiff:Orientation" - 1;
    for (; s.n >= n + 2; s = after(s, 1)) {
        if (s.p[0] != 't' || !starts_with(s, "tiff:Orientation", n)) continue;
        size_t at = s.p[n] == '>' ? n + 1 : s.p[n] == '=' && s.p[n + 1] == '"' ? n + 2 : 0;
        if (at && at < s.n && s.p[at] >= '0' && s.p[at] <= '9') return s.p[at] - '0';
    }
    return 1;
}

// ---------------------------------------------------------------------------------------------------------
// Where the files keep them

// JPEG: segments FF marker, u16 length (counting itself), data; EXIF and XMP are both in APP1 segments,
// before the first scan. EXIF blocks over 64 KiB go on in further segments, but the directory is at the start
// of the first.
static Metadata find_jpeg(const uint8_t *p, size_t n) {
    Metadata m = {0};
    size_t at = 2;
    while (at + 4 <= n) {
        const uint8_t marker = p[at + 1];
        if (p[at] != 0xFF || marker == 0xFF || marker == 0) { at++; continue; }
        if (marker == 0xDA) break;
        if (marker >= 0xD0 && marker <= 0xD9) { at += 2; continue; }
        const size_t len = read_be16(p + at + 2);
        if (len < 2 || at + 2 + len > n) break;
        const Span s = {p + at + 4, len - 2};
        if (marker == 0xE1 && !m.exif.p && starts_with(s, "Exif\0\0", 6)) m.exif = s;
        if (marker == 0xE1 && starts_with(s, "http://ns.adobe.com/xap/1.0/", 29)) m.xmp = after(s, 29);
        at += 2 + len;
    }
    return m;
}

// PNG: chunks u32 length, type, data, u32 CRC, after a signature of 8 bytes. XMP is in an iTXt chunk:
// keyword \0 compressed? method language \0 translated keyword \0 text.
static Metadata find_png(const uint8_t *p, size_t n) {
    Metadata m = {0};
    for (size_t at = 8; at + 12 <= n;) {
        const size_t len = read_be32(p + at);
        if (len > n - at - 12) break;
        Span s = {p + at + 8, len};
        if (!memcmp(p + at + 4, "eXIf", 4)) m.exif = s;
        const bool itxt = !memcmp(p + at + 4, "iTXt", 4);
        if (itxt && starts_with(s, "XML:com.adobe.xmp\0\0", 19)) m.xmp = after(s, 19);
        at += 12 + len;
    }
    return m;
}

// WebP: RIFF chunks type, u32 length, data padded to even, after a header of 12 bytes. Only the extended form
// (VP8X) has metadata, and its flags say which.
static Metadata find_webp(const uint8_t *p, size_t n) {
    Metadata m = {0};
    if (n < 30 || memcmp(p + 12, "VP8X", 4) != 0) return m;
    const uint8_t flags = p[20];
    for (size_t at = 12; at + 8 <= n;) {
        const size_t len = read_u32(p + at + 4);
        if (len > n - at - 8) break;
        const Span s = {p + at + 8, len};
        if (!memcmp(p + at, "EXIF", 4) && (flags & 0x08) && !m.exif.p) m.exif = s;
        if (!memcmp(p + at, "XMP ", 4) && (flags & 0x04) && !m.xmp.p) m.xmp = s;
        at += 8 + len + (len & 1);
    }
    return m;
}

int image_orientation(const uint8_t *p, size_t n) {
    const Span all = {p, n};
    Metadata m = {0};
    if (starts_with(all, "\xFF\xD8\xFF", 3)) m = find_jpeg(p, n);
    else if (starts_with(all, "\x89PNG\r\n\x1A\n", 8)) m = find_png(p, n);
    else if (starts_with(all, "RIFF", 4)) m = find_webp(p, n);
    int64_t o = m.exif.p ? exif_value(m.exif) : -1;
    if (o < 0 && m.xmp.p) o = xmp_value(m.xmp);
    return o >= 1 && o <= 8 ? (int)o : 1;
}

// ---------------------------------------------------------------------------------------------------------
// Turning

// The eight orientations are the eight symmetries of a rectangle. For a pixel (x, y) of the turned image, the
// source pixel is (x, y), or (y, x) for 5..8, then mirrored in either direction:
//
//     o           1     2     3     4     5     6     7     8
//     swap x, y   .     .     .     .     x     x     x     x
//     mirror x    .     x     x     .     .     .     x     x
//     mirror y    .     .     x     x     .     x     x     .
int image_turn(Image *im, int o, Err *e) {
    // im (H,W,3) -> im (H,W,3), or (W,H,3) for o >= 5
    CHECK(o >= 1 && o <= 8);
    if (o == 1) return 0;
    const bool swap = o >= 5, mirror_x = o == 2 || o == 3 || o >= 7;
    const bool mirror_y = o == 3 || o == 4 || o == 6 || o == 7;
    const ptrdiff_t W = im->W, H = im->H, out_W = swap ? H : W, out_H = swap ? W : H;
    uint8_t *out = malloc((size_t)W * (size_t)H * 3), *to = out;
    if (!out) return fail(e, "no memory to turn %td x %td pixels", W, H);
    const ptrdiff_t right = mirror_x ? -3 : 3, down = mirror_y ? -W * 3 : W * 3;  // one source pixel further
    const uint8_t *start = im->rgb + (mirror_x ? (W - 1) * 3 : 0) + (mirror_y ? (H - 1) * W * 3 : 0);
    const ptrdiff_t step_x = swap ? down : right, step_y = swap ? right : down;
    for (ptrdiff_t y = 0; y < out_H; y++) {
        for (ptrdiff_t x = 0; x < out_W; x++, to += 3) memcpy(to, start + y * step_y + x * step_x, 3);
    }
    free(im->rgb);
    im->rgb = out;
    im->W = (int)out_W;
    im->H = (int)out_H;
    return 0;
}
