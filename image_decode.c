// image_decode.c: which format a file has, and the decoders that are libraries: libjpeg-turbo and libwebp.
//
// In order: pixel memory and warnings, JPEG by libjpeg, WebP by libwebp, the table of formats by signature,
// with names for files that are something else. The formats we decode ourselves are in image_png.c,
// image_gif.c, image_bmp.c and image_pnm.c; what is left to stb_image is in image_stb.c.
//
// All of this runs in the child process (image.c). Compiled with -DHAVE_JPEG for libjpeg-turbo (-ljpeg) and
// with -DHAVE_WEBP for libwebp (-lwebpdemux -lwebp).

#include "image_codec.h"

#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

int image_take(Image *im, uint64_t W, uint64_t H, uint64_t max_pixels, Err *e) {
    uint64_t pixels;
    if (W == 0 || H == 0)
        return fail(e, "an image of %llu x %llu pixels", (unsigned long long)W, (unsigned long long)H);
    // Filter weights are counted in int: 1 << 28 leaves room for them.
    if (!mul_ok(&pixels, W, H) || pixels > max_pixels || W > 1 << 28 || H > 1 << 28)
        return fail(e, "%llu x %llu pixels are more than the limit of %llu: make the image smaller first",
                    (unsigned long long)W, (unsigned long long)H, (unsigned long long)max_pixels);
    im->rgb = calloc((size_t)pixels, 3);
    if (!im->rgb)
        return fail(e, "no memory for %llu x %llu pixels", (unsigned long long)W, (unsigned long long)H);
    im->W = (int)W;
    im->H = (int)H;
    return 0;
}

void image_warn(Image *im, const char *fmt, ...) {
    if (im->warning[0]) return;
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(im->warning, sizeof im->warning, fmt, ap);
    va_end(ap);
}

// ---------------------------------------------------------------------------------------------------------
// JPEG by libjpeg-turbo with its default settings, which are Pillow's: exact integer DCT, smooth chroma
// upsampling.

#ifdef HAVE_JPEG
#include <jpeglib.h>
#include <jerror.h>
#include <setjmp.h>

#ifdef LIBJPEG_TURBO_VERSION
#define JPEG_NAME "jpeg(libjpeg-turbo)"
#else
#define JPEG_NAME "jpeg(libjpeg)"
#endif

typedef struct {   // everything that must survive a longjmp
    struct jpeg_decompress_struct j;
    struct jpeg_error_mgr errors;
    struct jpeg_source_mgr source;
    jmp_buf stop;
    Image *im;
    Err *e;
    JSAMPLE *row;
    bool complete;   // all rows have been read
} Jpeg;

static void jpeg_error(j_common_ptr j) {
    Jpeg *job = j->client_data;
    char text[JMSG_LENGTH_MAX];
    j->err->format_message(j, text);
    if (j->err->msg_code == JERR_OUT_OF_MEMORY) fail(job->e, "no memory to decode this JPEG");
    else fail(job->e, "damaged JPEG: %s", text);
    longjmp(job->stop, 1);
}

static void jpeg_message(j_common_ptr j, int level) {
    Jpeg *job = j->client_data;
    char text[JMSG_LENGTH_MAX];
    if (level >= 0) return;  // traces
    j->err->format_message(j, text);
    image_warn(job->im, "damaged JPEG, some pixels may be wrong: %s", text);
}

static void jpeg_nothing(j_decompress_ptr j) { (void)j; }

// libjpeg asks for more than the file has. Pillow, too, refuses such a file, unless all rows are there;
// libjpeg by itself would go on with grey.
static boolean jpeg_end_of_data(j_decompress_ptr j) {
    static const JOCTET end_of_image[2] = {0xFF, JPEG_EOI};
    Jpeg *job = j->client_data;
    if (job->complete) {
        j->src->next_input_byte = end_of_image;
        j->src->bytes_in_buffer = sizeof end_of_image;
        return TRUE;
    }
    if (j->output_scanline > 0)
        fail(job->e, "cut off JPEG: its data ends by row %u of %u", j->output_scanline, j->output_height);
    else fail(job->e, "cut off JPEG: its data ends before the image is complete");
    longjmp(job->stop, 1);
}

static void jpeg_skip(j_decompress_ptr j, long n) {
    if (n <= 0) return;
    if ((size_t)n > j->src->bytes_in_buffer) {
        jpeg_end_of_data(j);
        return;
    }
    j->src->next_input_byte += n;
    j->src->bytes_in_buffer -= (size_t)n;
}

// Pillow's cmyk2rgb. Like Pillow we take all four-colour JPEGs for inverted ones, as Adobe writes them.
static void cmyk_to_rgb(uint8_t *out, const uint8_t *in, size_t W) {
    for (size_t x = 0; x < W; x++, out += 3, in += 4) {
        const int nk = in[3];  // 255 - K
        for (int c = 0; c < 3; c++) {
            const int t = (255 - in[c]) * nk + 128, v = nk - ((t + (t >> 8)) >> 8);
            out[c] = (uint8_t)(v < 0 ? 0 : v);
        }
    }
}

static int jpeg_run(Jpeg *job, const uint8_t *p, size_t n, uint64_t max_pixels) {
    j_decompress_ptr j = &job->j;
    j->err = jpeg_std_error(&job->errors);
    job->errors.error_exit = jpeg_error;
    job->errors.emit_message = jpeg_message;
    j->client_data = job;
    if (setjmp(job->stop)) return -1;
    jpeg_create_decompress(j);
    job->source = (struct jpeg_source_mgr){
        .next_input_byte = p, .bytes_in_buffer = n, .init_source = jpeg_nothing, .term_source = jpeg_nothing,
        .fill_input_buffer = jpeg_end_of_data, .skip_input_data = jpeg_skip,
        .resync_to_restart = jpeg_resync_to_restart};
    j->src = &job->source;
    jpeg_read_header(j, TRUE);
    if (image_take(job->im, j->image_width, j->image_height, max_pixels, job->e) != 0) return -1;
    const int samples = j->num_components;
    if (samples != 1 && samples != 3 && samples != 4)
        return fail(job->e, "JPEG with %d colours: only 1 (grey), 3 and 4 (CMYK) have a meaning", samples);
    j->out_color_space = samples == 1 ? JCS_GRAYSCALE : samples == 3 ? JCS_RGB : JCS_CMYK;
    jpeg_start_decompress(j);
    const size_t W = (size_t)job->im->W;
    job->row = malloc(W * 4);
    if (!job->row) return fail(job->e, "no memory for a row of %zu pixels", W);
    while (j->output_scanline < j->output_height) {
        uint8_t *out = job->im->rgb + (size_t)j->output_scanline * W * 3;
        JSAMPLE *to = samples == 3 ? out : job->row;
        jpeg_read_scanlines(j, &to, 1);
        if (samples == 4) cmyk_to_rgb(out, job->row, W);
        for (size_t x = 0; samples == 1 && x < W; x++) memset(out + 3 * x, job->row[x], 3);
    }
    job->complete = true;
    jpeg_finish_decompress(j);  // an error here, such as a marker that makes no sense, tells of damage before
    return 0;
}

int image_decode_jpeg(Image *im, const uint8_t *p, size_t n, uint64_t max_pixels, Err *e) {
    Jpeg job = {.im = im, .e = e};
    const int rc = jpeg_run(&job, p, n, max_pixels);
    jpeg_destroy_decompress(&job.j);
    free(job.row);
    return rc;
}
#else
#define JPEG_NAME "jpeg(stb_image, a few steps from Pillow's pixels)"  // image_stb.c
#endif

// ---------------------------------------------------------------------------------------------------------
// WebP through the animation decoder, for stills as well, as Pillow does: the first frame on its canvas.

#ifdef HAVE_WEBP
#include <webp/decode.h>
#include <webp/demux.h>

#define WEBP_NAME " webp"

int image_decode_webp(Image *im, const uint8_t *p, size_t n, uint64_t max_pixels, Err *e) {
    WebPBitstreamFeatures f;
    const VP8StatusCode status = WebPGetFeatures(p, n, &f);
    if (status != VP8_STATUS_OK)
        return fail(e, "%s WebP: no header", status == VP8_STATUS_NOT_ENOUGH_DATA ? "cut off" : "damaged");
    if (image_take(im, (uint64_t)f.width, (uint64_t)f.height, max_pixels, e) != 0) return -1;
    const WebPData data = {p, n};
    WebPAnimDecoder *decoder = WebPAnimDecoderNew(&data, NULL);  // RGBA, no threads
    WebPAnimInfo info = {0};
    uint8_t *rgba = NULL;
    int time, rc = 0;
    if (!decoder || !WebPAnimDecoderGetInfo(decoder, &info))
        rc = fail(e, "cut off or damaged WebP (no whole image in it), or too little memory for it");
    else if (info.canvas_width != (uint32_t)f.width || info.canvas_height != (uint32_t)f.height)
        rc = fail(e, "damaged WebP: %d x %d pixels in one header and %u x %u in another", f.width, f.height,
                  info.canvas_width, info.canvas_height);
    else if (!WebPAnimDecoderGetNext(decoder, &rgba, &time))
        rc = fail(e, "damaged WebP, or too little memory: its first image cannot be decoded");
    const size_t pixels = (size_t)f.width * (size_t)f.height;
    for (size_t i = 0; rc == 0 && i < pixels; i++) memcpy(im->rgb + 3 * i, rgba + 4 * i, 3);
    WebPAnimDecoderDelete(decoder);
    return rc;
}
#else
#define WEBP_NAME ""

int image_decode_webp(Image *im, const uint8_t *p, size_t n, uint64_t max_pixels, Err *e) {
    (void)im, (void)p, (void)n, (void)max_pixels;
    return fail(e, "a WebP image, which this build cannot read: install libwebp (Debian, Ubuntu: "
                   "libwebp-dev; Fedora: libwebp-devel; macOS: brew install webp) and run make again, or "
                   "convert the image to PNG");
}
#endif

// ---------------------------------------------------------------------------------------------------------

const char *image_formats(void) { return "png gif bmp pnm " JPEG_NAME WEBP_NAME; }

// ---------------------------------------------------------------------------------------------------------
// Formats by their signature: n bytes of magic at offset `at`.

typedef struct {
    const char *magic;
    size_t n, at;
    ImageDecoder *decode;    // or
    const char *what;        // what it is instead; perhaps with a hint of its own
} Signature;

#define VIDEO "a video; hint: take a picture out of it, e.g. ffmpeg -i video.mp4 -frames:v 1 photo.png"

static const Signature SIGNATURES[] = {
    {"\x89PNG\r\n\x1A\n", 8, 0, image_decode_png, NULL},
    {"\xFF\xD8\xFF", 3, 0, image_decode_jpeg, NULL},
    {"GIF87a", 6, 0, image_decode_gif, NULL},
    {"GIF89a", 6, 0, image_decode_gif, NULL},
    {"BM", 2, 0, image_decode_bmp, NULL},
    {"WEBP", 4, 8, image_decode_webp, NULL},
    {"ftypavif", 8, 4, NULL, "an AVIF image; hint: convert it, e.g. magick photo.avif photo.png"},
    {"ftypavis", 8, 4, NULL, "an AVIF image sequence"},
    {"ftyphe", 6, 4, NULL, "an HEIC image, as iPhones take them; hint: e.g. heif-convert photo.heic photo.jpg"},
    {"ftypmif1", 8, 4, NULL, "an HEIF image"},
    {"ftypmsf1", 8, 4, NULL, "an HEIF image sequence"},
    {"ftypcrx ", 8, 4, NULL, "a camera's raw file"},
    {"ftyp", 4, 4, NULL, VIDEO},
    {"\x1A\x45\xDF\xA3", 4, 0, NULL, VIDEO},
    {"AVI ", 4, 8, NULL, VIDEO},
    {"\0\0\1\xBA", 4, 0, NULL, VIDEO},
    {"FLV\1", 4, 0, NULL, VIDEO},
    {"OggS", 4, 0, NULL, "a sound or video"},
    {"II*\0", 4, 0, NULL, "a TIFF image or a camera's raw file"},
    {"MM\0*", 4, 0, NULL, "a TIFF image or a camera's raw file"},
    {"\xFF\x0A", 2, 0, NULL, "a JPEG XL image"},
    {"\0\0\0\x0CJXL ", 8, 0, NULL, "a JPEG XL image"},
    {"\0\0\0\x0CjP  ", 8, 0, NULL, "a JPEG 2000 image"},
    {"\xFF\x4F\xFF\x51", 4, 0, NULL, "a JPEG 2000 image"},
    {"BLIP2C\r\n", 8, 0, NULL, "a weight file; hint: that goes behind -m, the image without an option"},
    {"8BPS", 4, 0, NULL, "a Photoshop image"},
    {"gimp xcf", 8, 0, NULL, "a GIMP image"},
    {"qoif", 4, 0, NULL, "a QOI image"},
    {"\x76\x2F\x31\x01", 4, 0, NULL, "an OpenEXR image"},
    {"#?RADIANCE", 10, 0, NULL, "a Radiance HDR image"},
    {"\0\0\1\0", 4, 0, NULL, "a Windows icon"},
    {"DDS ", 4, 0, NULL, "a DDS texture"},
    {"P7\n", 3, 0, NULL, "a PAM image"},
    {"PF\n", 3, 0, NULL, "a PFM image"},
    {"Pf\n", 3, 0, NULL, "a PFM image"},
    {"%PDF", 4, 0, NULL, "a PDF document; hint: make pictures of its pages, e.g. pdftoppm -png file.pdf page"},
    {"%!PS", 4, 0, NULL, "a PostScript document"},
    {"PK\3\4", 4, 0, NULL, "a ZIP archive or an office document"},
    {"\x1F\x8B", 2, 0, NULL, "compressed by gzip; hint: gunzip it first"},
    {"version https://git-lfs", 23, 0, NULL, "a Git LFS pointer; hint: git lfs pull fetches the file itself"},
};

static bool contains(const uint8_t *p, size_t n, const char *text) {
    return memmem(p, n, text, strlen(text)) != NULL;
}

// For a file with no known signature: text of some kind, or a guess less.
static const char *describe(const uint8_t *p, size_t n) {
    const size_t head = n < 1024 ? n : 1024;
    if (contains(p, head, "<svg")) return "an SVG drawing";
    if (contains(p, head, "<html") || contains(p, head, "<!DOCTYPE") || contains(p, head, "<!doctype"))
        return "a web page; hint: the download brought no picture, look at it in a browser";
    bool text = true, zeros = true;
    for (size_t i = 0; i < head; i++) {
        text = text && (p[i] >= 0x20 || (p[i] >= '\t' && p[i] <= '\r')) && p[i] != 0x7F;
        zeros = zeros && p[i] == 0;
    }
    if (zeros) return "nothing but zeros; hint: an interrupted download? fetch it again";
    return text ? "text" : "a file of none of the known formats";
}

int image_decode_any(Image *im, const uint8_t *p, size_t n, uint64_t max_pixels, Err *e) {
    const char *what = NULL;
    for (size_t i = 0; i < sizeof SIGNATURES / sizeof *SIGNATURES && !what; i++) {
        const Signature *s = &SIGNATURES[i];
        if (n < s->at + s->n || memcmp(p + s->at, s->magic, s->n) != 0) continue;
        if (s->decode) return s->decode(im, p, n, max_pixels, e);
        what = s->what;
    }
    // PNM: its magic is only two letters, so the space after them must be there too.
    const bool digit = n > 2 && p[0] == 'P' && p[1] >= '1' && p[1] <= '6';
    if (digit && (p[2] == '#' || p[2] == ' ' || (p[2] >= '\t' && p[2] <= '\r')))
        return image_decode_pnm(im, p, n, max_pixels, e);
    if (!what) what = describe(p, n);
    if (strchr(what, ';')) return fail(e, "not an image this program can read but %s", what);
    return fail(e, "not an image this program can read but %s; hint: convert it to PNG or JPEG first; it reads %s",
                what, image_formats());
}
