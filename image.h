// image.h: from a file, standard input or bytes to the S x S RGB pixels that the vision encoder takes.
//
//     bytes --decode (child process)--> RGB8 (H,W,3) --EXIF turn--> --Pillow's bicubic--> (S,S,3) uint8
//
// Pixels are those of Pillow 11.3.0's Image.open(f).convert("RGB") (then ImageOps.exif_transpose when asked
// for), with one decision of our own: 16-bit grey keeps its high byte, where Pillow clips everything above
// 255 to white. Normalisation is the first step of the model (blip2.c), not done here.
#ifndef IMAGE_H
#define IMAGE_H

#include "common.h"

typedef struct {
    int W, H;           // pixels
    uint8_t *rgb;       // (H,W,3), rows top to bottom; free with image_free
    char warning[256];  // "" or one line, e.g. that the data of a JPEG is damaged
} Image;

typedef struct {
    uint64_t max_bytes;    // of the encoded file
    uint64_t max_pixels;   // W * H, checked before any pixel memory is taken
    int max_seconds;       // CPU time of the decoder; three times as much by the clock on the wall
    bool obey_exif;        // turn the image as its EXIF orientation says; LAVIS does not
} ImageOptions;

// 256 MiB, 178956970 pixels (where Pillow refuses), 20 seconds, EXIF not obeyed (as LAVIS).
ImageOptions image_defaults(void);

// Reads and decodes path ("-" is standard input). Returns 0, or -1 with e naming the file and what is wrong
// with it. A file that is cut off is an error; damage that leaves pixels to look at is a warning. After -1,
// out is empty.
int image_read(Image *out, const char *path, const ImageOptions *opt, Err *e);

// The same from memory; name is used in messages only. Decoding happens in a forked child: see image.c.
int image_decode(Image *out, const uint8_t *bytes, size_t n, const char *name, const ImageOptions *opt,
                 Err *e);

// rgb (H,W,3) -> out (S,S,3), Pillow 11.3.0's Image.resize((S,S), BICUBIC) bit for bit: aspect ratio is not
// kept. Returns -1 when there is no memory for the filter weights.
int image_resize(uint8_t *out, const uint8_t *rgb, int W, int H, int S, Err *e);

void image_free(Image *im);

// The decoders this build has, e.g. "png gif bmp pnm jpeg(libjpeg-turbo) webp".
const char *image_formats(void);

#endif
