// test/fuzz/fuzz_image.c: our own readers of GIF, BMP and PNM, in this process (not in the child that contains them
// in the program). FUZZ_FORMAT says which; the format's signature is put in front of the bytes, so that no case is
// lost on it. PNG has a file of its own because of its checksums.
//
// The decoders of libjpeg and libwebp are contained, not fuzzed here (image.c).

#include "../../image_codec.h"
#include "fuzz.h"

enum { MOST_PIXELS = 1 << 16 };

#define JOIN_(a, b) a##b
#define JOIN(a, b) JOIN_(a, b)
#define DECODE JOIN(image_decode_, FUZZ_FORMAT)
#define STRING_(x) #x
#define STRING(x) STRING_(x)

// data -> a file that image_decode_any would hand to this decoder; *n its length
static uint8_t *with_signature(size_t *n, const uint8_t *data, size_t size) {
    const char *format = STRING(FUZZ_FORMAT);
    const size_t need = format[0] == 'g' ? 6 : format[0] == 'b' ? 2 : 3;
    uint8_t *p = malloc(size > need ? size : need);
    CHECK(p);
    *n = size > need ? size : need;
    memset(p, 0, need);
    if (size) memcpy(p, data, size);
    if (format[0] == 'g') memcpy(p, p[4] & 1 ? "GIF89a" : "GIF87a", 6);
    else if (format[0] == 'b') memcpy(p, "BM", 2);
    else {
        p[0] = 'P';
        if (p[1] < '1' || p[1] > '6') p[1] = (uint8_t)('1' + p[1] % 6);
        if (p[2] != '#' && p[2] != ' ' && (p[2] < '\t' || p[2] > '\r')) p[2] = '\n';
    }
    return p;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    size_t n;
    uint8_t *p = with_signature(&n, data, size);
    Image im = {0};
    Err e = {0};
    const int rc = DECODE(&im, p, n, MOST_PIXELS, &e);
    CHECK(rc == 0 || e.text[0]);
    CHECK(rc != 0 || (im.rgb && im.W > 0 && im.H > 0 && (uint64_t)im.W * (uint64_t)im.H <= MOST_PIXELS));
    image_free(&im);
    free(p);
    return 0;
}
