// test/test_image.c: image reading and resizing against values from Pillow 11.3.0, and against everything
// hostile.
//
// In order: CRC-32 and small files, resizing, the images of test/data/images, refused files, limits, standard
// input, thousands of damaged files, the negative control, a command line for test/parity_image.py.
// Run from the repository root. Needs no Python; the images and their CRCs come from test/make_images.py.

#include "../image.h"
#include "check.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#define DATA "test/data/images/"

// Starting a process takes many times as long under the address sanitizer.
#if defined(__SANITIZE_ADDRESS__)
enum { SANITIZED = 1 };
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
enum { SANITIZED = 1 };
#else
enum { SANITIZED = 0 };
#endif
#else
enum { SANITIZED = 0 };
#endif

static uint32_t crc32_of(const uint8_t *p, size_t n) {
    uint32_t c = 0xFFFFFFFFu;
    for (size_t i = 0; i < n; i++) {
        c ^= p[i];
        for (int k = 0; k < 8; k++) c = c & 1 ? 0xEDB88320u ^ c >> 1 : c >> 1;
    }
    return ~c;
}

static uint32_t crc_of(const Image *im) { return crc32_of(im->rgb, (size_t)im->W * (size_t)im->H * 3); }

static uint8_t *load(const char *path, size_t *n) {
    FILE *f = fopen(path, "rb");
    if (!f) return NULL;
    uint8_t *p = malloc(1 << 20);
    *n = p ? fread(p, 1, 1 << 20, f) : 0;
    fclose(f);
    return p;
}

static bool ends_with(const char *s, const char *end) {
    return strlen(s) >= strlen(end) && !strcmp(s + strlen(s) - strlen(end), end);
}

// Formats whose pixels are only right, or only there, with the library that Pillow uses too.
static bool skipped(const char *name) {
    return (ends_with(name, ".jpg") && !strstr(image_formats(), "libjpeg-turbo"))
        || (ends_with(name, ".webp") && !strstr(image_formats(), "webp"));
}

// ---------------------------------------------------------------------------------------------------------
// Resizing: source pixel (x, y, c) = (7x + 13y + 29c + (xy mod 31)) & 255; CRC-32 and sum of Pillow's result.

static uint8_t *pattern(int W, int H) {
    uint8_t *rgb = malloc((size_t)W * (size_t)H * 3), *p = rgb;
    CHECK(rgb);
    for (int y = 0; y < H; y++)
        for (int x = 0; x < W; x++)
            for (int c = 0; c < 3; c++) *p++ = (uint8_t)(7 * x + 13 * y + 29 * c + x * y % 31);
    return rgb;
}

static void test_resize(Tally *t) {
    const struct { int W, H, S; uint32_t crc; unsigned long sum; } golden[] = {
        {640, 480, 224, 0x7883da37, 19196651}, {500, 375, 364, 0x63894242, 50687513},
        {100, 80, 224, 0x81609ae7, 19218702},  {224, 300, 224, 0x3df31f3d, 19189553},
        {300, 224, 224, 0x55745a40, 19181571}, {37, 1201, 364, 0x6d983e6e, 50695704},
        {224, 224, 224, 0x41d35b1e, 19185892},
    };
    Err e;
    for (size_t i = 0; i < sizeof golden / sizeof *golden; i++) {
        const int W = golden[i].W, H = golden[i].H, S = golden[i].S;
        const size_t n = (size_t)S * (size_t)S * 3;
        uint8_t *rgb = pattern(W, H), *out = malloc(n);
        EXPECT(t, out && image_resize(out, rgb, W, H, S, &e) == 0, "%dx%d: %s", W, H, e.text);
        unsigned long sum = 0;
        for (size_t k = 0; k < n; k++) sum += out[k];
        EXPECT(t, crc32_of(out, n) == golden[i].crc, "%dx%d to %d: CRC %08x", W, H, S, crc32_of(out, n));
        EXPECT(t, sum == golden[i].sum, "%dx%d to %d: sum %lu", W, H, S, sum);
        free(rgb);
        free(out);
    }
    // One colour stays that colour, whatever the shape: the weights of every sample add up.
    const int shapes[][2] = {{1, 1}, {1, 1000000}, {1000000, 1}, {3, 223}, {225, 5000}};
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++) {
        const size_t n = (size_t)shapes[i][0] * (size_t)shapes[i][1] * 3, N = 224 * 224 * 3;
        uint8_t *rgb = malloc(n), *out = malloc(N);
        CHECK(rgb && out);
        memset(rgb, 201, n);
        EXPECT(t, image_resize(out, rgb, shapes[i][0], shapes[i][1], 224, &e) == 0, "%s", e.text);
        size_t same = 0;
        for (size_t k = 0; k < N; k++) same += out[k] == 201;
        EXPECT(t, same == N, "%d x %d: %zu of %zu bytes kept", shapes[i][0], shapes[i][1], same, N);
        free(rgb);
        free(out);
    }
}

// ---------------------------------------------------------------------------------------------------------
// The committed images, as they are and turned by their EXIF orientation

typedef struct { char name[64], path[96]; int W[2], H[2]; uint32_t crc[2]; } Expected;

static size_t read_expected(Expected *to, size_t most) {
    FILE *f = fopen(DATA "expected.txt", "r");
    if (!f) return 0;
    size_t n = 0;
    for (Expected x; n < most; to[n++] = x) {
        if (fscanf(f, "%63s %d %d %x %d %d %x", x.name, &x.W[0], &x.H[0], &x.crc[0], &x.W[1], &x.H[1],
                   &x.crc[1]) != 7) break;
        snprintf(x.path, sizeof x.path, DATA "%.63s", x.name);
    }
    fclose(f);
    return n;
}

static void test_images(Tally *t, const Expected *list, size_t n) {
    EXPECT(t, n > 150, "only %zu lines in " DATA "expected.txt: run from the repository root", n);
    int turned = 0;
    for (size_t i = 0; i < n; i++) {
        if (skipped(list[i].name)) {
            SKIP(t, "%s: this build reads %s", list[i].name, image_formats());
            continue;
        }
        const char *path = list[i].path;
        turned += list[i].crc[0] != list[i].crc[1];
        for (int exif = 0; exif < 2; exif++) {
            ImageOptions opt = image_defaults();
            opt.obey_exif = exif;
            Image im;
            Err e;
            const int rc = image_read(&im, path, &opt, &e);
            EXPECT(t, rc == 0, "%s", e.text);
            if (rc != 0) continue;
            EXPECT(t, im.W == list[i].W[exif] && im.H == list[i].H[exif], "%s: %d x %d", path, im.W, im.H);
            EXPECT(t, crc_of(&im) == list[i].crc[exif], "%s (exif %d): CRC %08x", path, exif, crc_of(&im));
            EXPECT(t, im.warning[0] == 0, "%s: %s", path, im.warning);
            image_free(&im);
        }
    }
    EXPECT(t, turned >= 10, "only %d images were turned by EXIF", turned);
}

// ---------------------------------------------------------------------------------------------------------
// Refused: each with one line that names the file and has the given words in it

static void refuse(Tally *t, const char *path, const ImageOptions *opt, const char *words) {
    Image im;
    Err e = {0};
    EXPECT(t, image_read(&im, path, opt, &e) == -1, "%s was read", path);
    const char *name = strcmp(path, "-") ? path : "standard input";
    EXPECT(t, !strncmp(e.text, name, strlen(name)), "%s is not named first: %s", path, e.text);
    EXPECT(t, strstr(e.text, words) != NULL, "%s: \"%s\" is not in: %s", path, words, e.text);
    EXPECT(t, strchr(e.text, '\n') == NULL, "more than one line: %s", e.text);
    EXPECT(t, im.rgb == NULL && im.W == 0 && im.H == 0, "%s: pixels were left behind", path);
}

static void put_file(const char *path, const void *data, size_t n) {
    FILE *f = fopen(path, "wb");
    CHECK(f && fwrite(data, 1, n, f) == n);
    fclose(f);
}

static void test_refused(Tally *t, const char *dir) {
    const struct { const char *name, *bytes; size_t n; const char *words; } files[] = {
        {"empty.png", "", 0, "empty"},
        {"text.jpg", "just some text\n", 15, "text"},
        {"zeros.jpg", "\0\0\0\0\0\0\0\0", 8, "zeros"},
        {"page.jpg", "\n<!DOCTYPE html><html>404</html>", 32, "web page"},
        {"phone.heic", "\0\0\0\x18" "ftypheic\0\0\0\0", 16, "HEIC"},
        {"new.avif", "\0\0\0\x18" "ftypavif\0\0\0\0", 16, "AVIF"},
        {"video.mp4", "\0\0\0\x18" "ftypisom\0\0\0\0", 16, "video"},
        {"video.mkv", "\x1A\x45\xDF\xA3\0\0\0\0", 8, "video"},
        {"scan.tiff", "II*\0\x08\0\0\0\0\0", 10, "TIFF"},
        {"paper.pdf", "%PDF-1.7\n", 9, "PDF"},
        {"drawing.svg", "<?xml version=\"1.0\"?><svg/>", 27, "SVG"},
        {"lfs.png", "version https://git-lfs.github.com/spec/v1\n", 43, "git lfs pull"},
        {"odd.bin", "\x01\xFE\x80\x07", 4, "none of the known"},
        {"float.pfm", "PF\n1 1\n-1\n", 10, "PFM"},
        {"P", "P", 1, "text"},
        {"zero.ppm", "P6\n0 5\n255\n", 11, "0 x 5"},
        {"wide.ppm", "P6\n99999999 99999999\n255\n", 25, "limit"},
        {"header.ppm", "P6\n3", 4, "cut off"},
        {"words.ppm", "P3 1 1 255 red green blue", 25, "not a number"},
        {"above.ppm", "P3 1 1 255 1 256 1", 18, "256"},
        {"half.ppm", "P6 2 2 255 abcdefgh", 19, "row 1 of 2"},
        {"half.gif", "GIF89a\2\0\2\0\0\0\0,\0\0\0\0\2\0\2\0\0\2", 24, "cut off"},
        {"none.gif", "GIF89a\2\0\2\0\0\0\0;", 14, "no image"},
        {"half.bmp", "BM\0\0\0\0", 6, "cut off"},
        {"half.png", "\x89PNG\r\n\x1A\n", 8, "cut off"},
        {"apple.png", "\x89PNG\r\n\x1A\n\0\0\0\0CgBI\x43\x65\x81\x31", 20, "checksum"},
        {"half.jpg", "\xFF\xD8\xFF\xE0", 4, "JPEG"},
        {"half.webp", "RIFF\x20\0\0\0WEBPVP8 ", 16, "WebP"},
    };
    const ImageOptions opt = image_defaults();
    char path[256];
    for (size_t i = 0; i < sizeof files / sizeof *files; i++) {
        snprintf(path, sizeof path, "%s/%s", dir, files[i].name);
        put_file(path, files[i].bytes, files[i].n);
        refuse(t, path, &opt, files[i].words);
        if (!strcmp(files[i].name, "text.jpg")) {
            if (geteuid() == 0) SKIP(t, "a file without permission: root may read it");
            else {
                chmod(path, 0);
                refuse(t, path, &opt, "permission");
            }
        }
        unlink(path);
    }
    refuse(t, "no/such/file.jpg", &opt, "no such file");
    refuse(t, "https://example.com/photo.jpg", &opt, "download");
    refuse(t, "test", &opt, "directory");
    refuse(t, "/dev/null", &opt, "device");
    snprintf(path, sizeof path, "%s/fifo", dir);
    CHECK(mkfifo(path, 0600) == 0);
    refuse(t, path, &opt, "FIFO");
    unlink(path);
}

// ---------------------------------------------------------------------------------------------------------
// Limits and standard input

static void test_limits(Tally *t, const char *dir) {
    const char *small = DATA "png-type2-8bit.png";  // 13 x 9
    ImageOptions opt = image_defaults();
    opt.max_bytes = 100;
    refuse(t, small, &opt, "limit of 100");
    opt = image_defaults();
    opt.max_pixels = 13 * 9 - 1;
    const char *all[] = {small, DATA "png-type2-8bit-adam7.png", DATA "gif-8bit.gif", DATA "bmp-8bit-h40.bmp",
                         DATA "bmp-rle8.bmp", DATA "pnm-p3-255.pnm", DATA "pnm-p6-255.pnm",
                         DATA "jpeg-sub2.jpg", DATA "webp-RGB.webp", DATA "webp-RGBA-animated.webp"};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) {
        if (ends_with(all[i], ".webp") && skipped(all[i])) SKIP(t, "%s", all[i]);
        else refuse(t, all[i], &opt, "13 x 9 pixels are more than the limit of 116");
    }
    opt.max_pixels++;
    Image im;
    Err e;
    EXPECT(t, image_read(&im, small, &opt, &e) == 0, "%s", e.text);
    image_free(&im);

    // Too little memory in the child is an error like any other. 48 MB of pixels cannot be had here.
    struct rlimit was, now;
    char path[256];
    snprintf(path, sizeof path, "%s/large.pbm", dir);
    uint8_t *large = calloc(1, 2000013);
    CHECK(large && getrlimit(RLIMIT_AS, &was) == 0);
    memcpy(large, "P4 4000 4000\n", 13);
    put_file(path, large, 2000013);
    free(large);
    FILE *statm = fopen("/proc/self/statm", "r");
    unsigned long pages = 0;
    const bool known = statm && fscanf(statm, "%lu", &pages) == 1 && pages < 1ul << 24;  // more: a sanitizer
    if (statm) fclose(statm);
    now = was;
    now.rlim_cur = pages * (rlim_t)sysconf(_SC_PAGESIZE) + (16 << 20);
    if (!known || setrlimit(RLIMIT_AS, &now) != 0) SKIP(t, "too little memory: its limit cannot be set here");
    else refuse(t, path, &opt, "limit of 117");
    opt = image_defaults();
    if (known) refuse(t, path, &opt, "no memory for 4000 x 4000 pixels");
    setrlimit(RLIMIT_AS, &was);
    EXPECT(t, image_read(&im, path, &opt, &e) == 0, "%s", e.text);
    image_free(&im);
    unlink(path);
}

static void test_stdin(Tally *t, const Expected *want) {
    const ImageOptions opt = image_defaults();
    size_t n = 0;
    uint8_t *bytes = load(want->path, &n);
    const int was = dup(STDIN_FILENO);
    int ends[2];
    CHECK(bytes && pipe(ends) == 0 && write(ends[1], bytes, n) == (ssize_t)n);
    close(ends[1]);
    dup2(ends[0], STDIN_FILENO);
    close(ends[0]);
    Image im;
    Err e;
    EXPECT(t, image_read(&im, "-", &opt, &e) == 0, "%s", e.text);
    EXPECT(t, im.rgb && crc_of(&im) == want->crc[0], "%s by standard input", want->path);
    image_free(&im);
    refuse(t, "-", &opt, "empty");  // read to its end already
    if (was >= 0) dup2(was, STDIN_FILENO);
    free(bytes);
}

// ---------------------------------------------------------------------------------------------------------
// Damage: bytes changed, files cut off. The parent survives and gets an answer; a file that lost its end is
// an error or a warning, unless all pixels are there. With our own decoders and libjpeg, libwebp no child
// crashes.

static uint32_t next_random(uint64_t *state) {
    *state = *state * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(*state >> 33);
}

static void damage_one(Tally *t, const Expected *x, const uint8_t *bytes, size_t n, uint64_t *rng, int rounds,
                       int counts[3]) {
    ImageOptions opt = image_defaults();
    opt.max_pixels = 1 << 20;
    opt.max_seconds = 5;
    opt.obey_exif = true;
    uint8_t *copy = malloc(n);
    CHECK(copy);
    for (int round = 0; round < rounds; round++) {
        const bool cut = round % 2;
        const size_t m = cut ? next_random(rng) % n : n;
        memcpy(copy, bytes, n);
        for (uint32_t k = cut ? 0 : 1 + next_random(rng) % 4; k > 0; k--)
            copy[next_random(rng) % n] = next_random(rng) % 2 ? (uint8_t)next_random(rng) : 0xFF;
        Image im;
        Err e = {0};
        const int rc = image_decode(&im, copy, m, x->name, &opt, &e);
        const bool same = rc == 0 && im.W == x->W[1] && im.H == x->H[1] && crc_of(&im) == x->crc[1];
        counts[rc < 0 ? 0 : im.warning[0] ? 1 : 2]++;
        EXPECT(t, rc == 0 || !strncmp(e.text, x->name, strlen(x->name)), "%s", e.text);
        EXPECT(t, rc < 0 || (im.rgb && (int64_t)im.W * im.H <= 1 << 20), "%s: %d x %d", x->name, im.W, im.H);
        EXPECT(t, !strstr(e.text, "crashed") && !strstr(e.text, "without"), "round %d: %s", round, e.text);
        if (cut && !skipped(x->name))
            EXPECT(t, rc < 0 || im.warning[0] || same, "%s cut to %zu of %zu bytes passed", x->name, m, n);
        if (!cut && ends_with(x->name, ".png"))
            EXPECT(t, rc < 0 || im.warning[0] || same, "%s round %d: damage passed", x->name, round);
        image_free(&im);
    }
    free(copy);
}

static void test_damage(Tally *t, const Expected *list, size_t n, int rounds) {
    uint64_t rng = 20230130;
    int counts[3] = {0};
    for (size_t i = 0; i < n; i++) {
        // The packaged stb_image crashes on some damaged JPEGs; what the parent makes of that is tested by
        // hand.
        if (ends_with(list[i].name, ".jpg") && !strstr(image_formats(), "libjpeg")) {
            SKIP(t, "damage to %s", list[i].name);
            continue;
        }
        size_t size = 0;
        uint8_t *bytes = load(list[i].path, &size);
        EXPECT(t, bytes && size > 0, "%s cannot be read", list[i].path);
        if (bytes) damage_one(t, &list[i], bytes, size, &rng, rounds, counts);
        free(bytes);
    }
    fprintf(stderr, "damaged files: %d refused, %d read with a warning, %d read\n", counts[0], counts[1],
            counts[2]);
    EXPECT(t, counts[0] > 500 && counts[2] > 80, "the damage does not reach the decoders");
}

// ---------------------------------------------------------------------------------------------------------

// The comparisons above can fail: one pixel changed by one step is seen, in the result and through resizing.
static void test_control(Tally *t, const Expected *x) {
    const ImageOptions opt = image_defaults();
    Image im;
    Err e;
    uint8_t a[64 * 64 * 3], b[64 * 64 * 3];
    if (image_read(&im, x->path, &opt, &e) != 0) { EXPECT(t, false, "%s", e.text); return; }
    EXPECT(t, image_resize(a, im.rgb, im.W, im.H, 64, &e) == 0, "%s", e.text);
    im.rgb[0] ^= 1;
    EXPECT(t, crc_of(&im) != x->crc[0], "a changed pixel has the same CRC");
    EXPECT(t, image_resize(b, im.rgb, im.W, im.H, 64, &e) == 0, "%s", e.text);
    EXPECT(t, memcmp(a, b, sizeof a) != 0, "a changed pixel resizes to the same pixels");
    image_free(&im);
    // and no child is left behind
    EXPECT(t, waitpid(-1, NULL, WNOHANG) == -1 && errno == ECHILD, "a zombie is left");
}

// --decode FILE OUT.ppm | --turn FILE OUT.ppm | --resize FILE S OUT.ppm: what the library makes of a file.
static int command(int argc, char **argv) {
    ImageOptions opt = image_defaults();
    opt.obey_exif = !strcmp(argv[1], "--turn");
    const bool resize = !strcmp(argv[1], "--resize");
    Image im;
    Err e;
    if (argc != 4 + resize) return fprintf(stderr, "see the end of test/test_image.c\n"), 2;
    if (image_read(&im, argv[2], &opt, &e) != 0) return fprintf(stderr, "%s\n", e.text), 1;
    if (im.warning[0]) fprintf(stderr, "warning: %s\n", im.warning);
    if (resize) {
        const int S = atoi(argv[3]);
        uint8_t *out = malloc((size_t)S * (size_t)S * 3);
        CHECK(out);
        if (image_resize(out, im.rgb, im.W, im.H, S, &e) != 0) return fprintf(stderr, "%s\n", e.text), 1;
        free(im.rgb);
        im.rgb = out;
        im.W = im.H = S;
    }
    FILE *f = fopen(argv[argc - 1], "wb");
    if (!f) return perror(argv[argc - 1]), 1;
    fprintf(f, "P6\n%d %d\n255\n", im.W, im.H);
    fwrite(im.rgb, 3, (size_t)im.W * (size_t)im.H, f);
    image_free(&im);
    return fclose(f) != 0;
}

int main(int argc, char **argv) {
    if (argc > 1) return command(argc, argv);
    static Expected list[512];
    Tally t = {0};
    const size_t n = read_expected(list, 512);
    char dir[] = "/tmp/test_image.XXXXXX";
    CHECK(mkdtemp(dir));
    fprintf(stderr, "this build reads %s\n", image_formats());
    test_resize(&t);
    test_images(&t, list, n);
    test_refused(&t, dir);
    test_limits(&t, dir);
    if (n > 0) test_stdin(&t, &list[0]);
    test_damage(&t, list, n, SANITIZED ? 6 : 16);
    if (n > 0) test_control(&t, &list[0]);
    rmdir(dir);
    return tally_close(&t);
}
