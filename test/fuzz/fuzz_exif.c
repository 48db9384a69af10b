// test/fuzz/fuzz_exif.c: the orientation in JPEG, PNG and WebP files, turning and resizing.
//
// The first byte chooses: a file as it is, a bare EXIF or XMP block put into one of the three containers, or pixels
// that are turned and resized.

#include "../../image_codec.h"
#include "fuzz.h"

static void check_orientation(const uint8_t *p, size_t n) {
    uint8_t *q = copy_of(p, n);
    const int o = image_orientation(q, n);
    CHECK(o >= 1 && o <= 8);
    free(q);
}

// The block s (n bytes) where each container has it: kind 0 JPEG, 1 PNG, 2 WebP, odd multiples of 3 XMP.
static void in_container(int kind, const uint8_t *s, size_t n) {
    static const char XMP_JPEG[] = "http://ns.adobe.com/xap/1.0/", XMP_PNG[] = "XML:com.adobe.xmp\0\0\0\0";
    const bool xmp = kind / 3 % 2;
    Text t = {0};
    const uint8_t hi = (uint8_t)(n >> 8), lo = (uint8_t)n;
    if (kind % 3 == 0) {
        const size_t len = n + 2 + (xmp ? sizeof XMP_JPEG : 6);
        const char head[6] = {'\xFF', '\xD8', '\xFF', '\xE1', (char)(len >> 8), (char)len};
        text_add(&t, head, sizeof head);
        if (xmp) text_add(&t, XMP_JPEG, sizeof XMP_JPEG);
        else text_add(&t, "Exif\0\0", 6);
        text_add(&t, (const char *)s, n);
        text_add(&t, "\xFF\xDA\0\0", 4);
    } else if (kind % 3 == 1) {
        const size_t len = n + (xmp ? 22 : 0);
        const char head[4] = {0, 0, (char)(len >> 8), (char)len};
        text_add(&t, "\x89PNG\r\n\x1A\n", 8);
        text_add(&t, head, 4);
        text_add(&t, xmp ? "iTXt" : "eXIf", 4);
        if (xmp) text_add(&t, XMP_PNG, 22);
        text_add(&t, (const char *)s, n);
        text_add(&t, "crc.", 4);
    } else {
        const char head[4] = {(char)lo, (char)hi, 0, 0};
        text_add(&t, "RIFF....WEBPVP8X\x0A\0\0\0\x0C\0\0\0\0\0\0\0\0\0", 30);
        text_add(&t, xmp ? "XMP " : "EXIF", 4);
        text_add(&t, head, 4);
        text_add(&t, (const char *)s, n);
    }
    check_orientation((const uint8_t *)t.data, t.len);
    text_free(&t);
}

static void turn_and_resize(Bytes b) {
    const int W = take_in(&b, 1, 80), H = take_in(&b, 1, 80), S = take_in(&b, 1, 48), o = take_in(&b, 1, 8);
    Image im = {.W = W, .H = H, .rgb = malloc((size_t)W * (size_t)H * 3)};
    uint8_t *out = malloc((size_t)S * (size_t)S * 3);
    CHECK(im.rgb && out);
    for (size_t i = 0; i < (size_t)W * (size_t)H * 3; i++) im.rgb[i] = b.n ? b.p[i % b.n] : 255;
    Err e;
    CHECK(image_turn(&im, o, &e) == 0);
    CHECK(im.W == (o < 5 ? W : H) && im.H == (o < 5 ? H : W));
    CHECK(image_resize(out, im.rgb, im.W, im.H, S, &e) == 0);
    image_free(&im);
    free(out);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    if (size < 1 || size > 60000) return 0;
    const int kind = data[0] % 16;
    if (kind < 6) in_container(kind, data + 1, size - 1);
    else if (kind < 8) turn_and_resize((Bytes){data + 1, size - 1});
    else check_orientation(data + 1, size - 1);
    return 0;
}
