// show.h: a picture drawn in the terminal, with text beside it.
//
//     rgb (H,W,3) --box filter--> the size that fits --> kitty's protocol | sixel | half blocks | grey characters
//
// The first one that the terminal knows is taken; half blocks (two pixels of 24-bit colour in a cell) need no knowing,
// and characters by their brightness are for those who set NO_COLOR or have TERM=dumb.
#ifndef SHOW_H
#define SHOW_H

#include "common.h"
#include "terminal.h"

typedef enum { SHOW_CHARACTERS, SHOW_BLOCKS, SHOW_SIXEL, SHOW_KITTY } ShowWay;

ShowWay show_way(const Terminal *t);

// Appends to out what draws rgb (H,W,3) and, beside it where there is room or else below, the lines of text (n bytes,
// without control characters other than newline; "" for none). The picture takes at most 20 rows, half of the columns
// of a terminal that is at least 60 wide, and is not enlarged; its aspect ratio is kept. The cursor ends at the start
// of a line below both. Returns 0, or -1 with e when there is no memory.
int show_picture(Text *out, const uint8_t *rgb, int W, int H, const char *text, size_t n, ShowWay way,
                 const Terminal *t, Err *e);

// The encoders: px (h,w,3) -> escape sequences appended to out. Sixel: at most 256 colours, chosen for this picture,
// with error diffusion (show_sixel.c). Kitty: shown in columns x rows cells at the cursor, which stays (show_kitty.c).
int show_sixel(Text *out, const uint8_t *px, int w, int h, Err *e);
int show_kitty(Text *out, const uint8_t *px, int w, int h, int columns, int rows, Err *e);

#endif
