// image_stb.c: what stb_image does for us: it inflates PNGs and, where there is no libjpeg, decodes JPEGs.
//
// Its own readers of PNG, GIF, BMP and PNM are switched off with all others: they miss damage and differ from
// Pillow (see image_png.c and its neighbours). Its JPEG pixels are a few steps off libjpeg's.
// The file has nothing else in it: stb_image draws warnings that can only be silenced to the end of a file.

#include "image_codec.h"

#include <limits.h>
#include <stdlib.h>
#include <string.h>

#define STBI_NO_STDIO
#define STBI_NO_PNG
#define STBI_NO_BMP
#define STBI_NO_GIF
#define STBI_NO_PNM
#define STBI_NO_PSD
#define STBI_NO_TGA
#define STBI_NO_HDR
#define STBI_NO_PIC
#define STBI_NO_LINEAR
#ifdef HAVE_JPEG
#define STBI_NO_JPEG
#endif
#define STBI_SUPPORT_ZLIB
#define STBIDEF static __attribute__((unused))
#define STB_IMAGE_IMPLEMENTATION
#pragma GCC diagnostic ignored "-Wunused-function"
#pragma GCC diagnostic ignored "-Wunused-parameter"
#pragma GCC diagnostic ignored "-Wsign-compare"
#pragma GCC diagnostic ignored "-Wshadow"
#ifdef __has_include
#if __has_include(<stb/stb_image.h>)
#include <stb/stb_image.h>
#else
#include <stb_image.h>
#endif
#endif

static uint32_t adler32_of(const uint8_t *p, size_t n) {
    uint32_t a = 1, b = 0;
    while (n > 0) {
        size_t k = n < 5552 ? n : 5552;  // as many as b can take before it must be reduced (RFC 1950)
        for (n -= k; k > 0; k--) {
            a += *p++;
            b += a;
        }
        a %= 65521;
        b %= 65521;
    }
    return b << 16 | a;
}

bool image_inflate(uint8_t *out, size_t out_n, const uint8_t *z, size_t n) {
    if (out_n > INT_MAX || n > INT_MAX || n < 6) return false;
    const int got = stbi_zlib_decode_buffer((char *)out, (int)out_n, (const char *)z, (int)n);
    if (got < 0 || (size_t)got != out_n) return false;
    // stb does not look at the checksum behind the compressed data, nor does it mind when that data ends
    // early. It does not say either where the data ended; that is nearly always 4 bytes before the end.
    const uint32_t sum = adler32_of(out, out_n);
    const uint8_t want[4] = {(uint8_t)(sum >> 24), (uint8_t)(sum >> 16), (uint8_t)(sum >> 8), (uint8_t)sum};
    return memcmp(z + n - 4, want, 4) == 0 || memmem(z, n, want, 4) != NULL;
}

#ifndef HAVE_JPEG
// stb's reason is not always the true one: it may name another kind of file when memory ran out.
static int undecodable(Err *e) {
    return fail(e, "damaged JPEG, one of a kind that needs libjpeg, or too little memory for it: %s",
                stbi_failure_reason());
}

int image_decode_jpeg(Image *im, const uint8_t *p, size_t n, uint64_t max_pixels, Err *e) {
    int W, H, samples;
    if (n > INT_MAX || !stbi_info_from_memory(p, (int)n, &W, &H, &samples)) return undecodable(e);
    if (image_take(im, (uint64_t)W, (uint64_t)H, max_pixels, e) != 0) return -1;
    uint8_t *rgb = stbi_load_from_memory(p, (int)n, &W, &H, &samples, 3);
    if (!rgb) return undecodable(e);
    if (W == im->W && H == im->H) memcpy(im->rgb, rgb, (size_t)W * (size_t)H * 3);
    free(rgb);
    return W == im->W && H == im->H ? 0 : fail(e, "damaged JPEG: two sizes");
}
#endif
