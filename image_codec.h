// image_codec.h: what the decoders share; everything declared here runs in the child process (see image.c).
//
// In order: taking pixel memory, one decoder per format, EXIF orientation. Users of images include image.h
// instead. A decoder gets the whole file and leaves RGB8 pixels, top row first; it may assume nothing about
// the bytes except that image_decode_any found the format's signature at their start.
#ifndef IMAGE_CODEC_H
#define IMAGE_CODEC_H

#include "image.h"

// Big-endian reads at any alignment (PNG, JPEG, TIFF).
static inline uint32_t read_be16(const uint8_t *p) { return (uint32_t)p[0] << 8 | p[1]; }
static inline uint32_t read_be32(const uint8_t *p) { return read_be16(p) << 16 | read_be16(p + 2); }

// Checks W x H against the limits and gives im black pixels of that size.
int image_take(Image *im, uint64_t W, uint64_t H, uint64_t max_pixels, Err *e);

// Keeps the first warning; later ones are consequences of it more often than not.
void image_warn(Image *im, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

// p (n bytes) -> im; -1 with e when the file is damaged, cut off, over the limit or of an unsupported kind.
typedef int ImageDecoder(Image *im, const uint8_t *p, size_t n, uint64_t max_pixels, Err *e);
ImageDecoder image_decode_png;   // image_png.c
ImageDecoder image_decode_gif;   // image_gif.c
ImageDecoder image_decode_bmp;   // image_bmp.c
ImageDecoder image_decode_pnm;   // image_pnm.c
ImageDecoder image_decode_jpeg;  // image_decode.c, as is image_decode_webp
ImageDecoder image_decode_webp;

// Finds the format by its signature and decodes; an unknown format gets a message that names what it seems to
// be.
ImageDecoder image_decode_any;

// Inflates the zlib stream z (n bytes) to exactly out_n bytes, Adler-32 verified. Returns false on anything
// else.
bool image_inflate(uint8_t *out, size_t out_n, const uint8_t *z, size_t n);

// The orientation 1..8 that EXIF (or else XMP) gives in a JPEG, PNG or WebP file; 1 when none is there.
int image_orientation(const uint8_t *p, size_t n);

// Turns and mirrors the pixels as orientation o (1..8) asks, like PIL.ImageOps.exif_transpose.
int image_turn(Image *im, int o, Err *e);

#endif
