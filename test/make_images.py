"""make_images.py: images of every kind that image.c reads, from scratch, with the pixels Pillow gives them.

In order: pixels, writers for what Pillow cannot write (PNG with any depth, filter and interlacing; GIF; BMP),
the catalogue of cases, the truth by Pillow, the committed test images. Pillow 11.3.0 is the reference.

    python test/make_images.py        writes test/data/images/ anew (parity_image.py runs the whole catalogue)

expected.txt there has a line per file: name, W, H, CRC-32 of the RGB bytes, then the same after EXIF turning.
"""
import io
import pathlib
import random
import struct
import sys
import zlib

import numpy as np
import PIL
from PIL import Image, ImageOps

HERE = pathlib.Path(__file__).parent / "data" / "images"


def pixels(W, H, C, seed=0, most=255):
    """(H, W, C) ints 0..most: gradients with some noise, so that every filter and coder has work to do."""
    rng = np.random.default_rng(seed)
    y, x, c = np.mgrid[0:H, 0:W, 0:C]
    v = (np.sin(x / 5 + c) + np.cos(y / 7 - c) + 2) / 4 * most
    v += rng.integers(-most // 8 - 1, most // 8 + 2, (H, W, C))
    return np.clip(v, 0, most).astype(np.int64)


# ---------------------------------------------------------------------------------------------------------
# PNG

def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def pack_bits(row, depth):
    """Samples of one row to bytes, most significant bits first."""
    if depth == 16:
        return b"".join(struct.pack(">H", v) for v in row)
    bits = "".join(format(v, f"0{depth}b") for v in row)
    bits += "0" * (-len(bits) % 8)
    return int(bits, 2).to_bytes(len(bits) // 8, "big") if bits else b""


def filter_row(kind, row, above, bpp):
    out = bytearray()
    for i, v in enumerate(row):
        a, b = (row[i - bpp] if i >= bpp else 0), above[i]
        c = above[i - bpp] if i >= bpp else 0
        p = a + b - c
        paeth = min((abs(p - a), 0, a), (abs(p - b), 1, b), (abs(p - c), 2, c))[2]
        out.append((v - (0, a, b, (a + b) // 2, paeth)[kind]) & 255)
    return bytes(out)


def png_rows(px, depth, rng):
    """(h, w, C) samples to filtered rows, each with a filter drawn at random."""
    h, w, C = px.shape
    bpp, out, above = max(1, C * depth // 8), b"", None
    for y in range(h):
        row = pack_bits(px[y].reshape(-1).tolist(), depth)
        kind = rng.randrange(5)
        out += bytes([kind]) + filter_row(kind, row, above or bytes(len(row)), bpp)
        above = row
    return out


ADAM7 = [(0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2)]


def make_png(px, depth, ctype, interlace=False, palette=None, before=b"", after=b"", pieces=1):
    """A PNG of px (H, W, C); palette (n, 3); before and after: chunks around the pixel data."""
    H, W, _ = px.shape
    rng = random.Random(W * 31 + H)
    if interlace:
        passes = [px[y::dy, x::dx] for x, y, dx, dy in ADAM7]
        raw = b"".join(png_rows(p, depth, rng) for p in passes if p.size)
    else:
        raw = png_rows(px, depth, rng)
    z = zlib.compress(raw, 9)
    cut = max(1, -(-len(z) // pieces))
    out = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", W, H, depth, ctype, 0, 0, interlace))
    if palette is not None:
        out += chunk(b"PLTE", bytes(np.asarray(palette, np.uint8).reshape(-1).tolist()))
    out += before + b"".join(chunk(b"IDAT", z[i:i + cut]) for i in range(0, len(z), cut)) + after
    return out + chunk(b"IEND", b"")


# ---------------------------------------------------------------------------------------------------------
# GIF

def lzw(indices, bits):
    """GIF's LZW, in sub-blocks."""
    clear, out, held, nheld = 1 << bits, bytearray(), 0, 0

    def put(code, width):
        nonlocal held, nheld
        held |= code << nheld
        nheld += width
        while nheld >= 8:
            out.append(held & 255)
            held >>= 8
            nheld -= 8

    table, width, cur = {(i,): i for i in range(clear)}, bits + 1, ()
    nxt = clear + 2
    put(clear, width)
    for v in indices:
        if cur + (v,) in table:
            cur += (v,)
            continue
        put(table[cur], width)
        if nxt < 4096:
            table[cur + (v,)] = nxt
            if nxt == 1 << width:
                width += 1
            nxt += 1
        elif len(indices) % 2:  # every other image goes on with a full table instead of clearing it
            put(clear, width)
            table, width, nxt = {(i,): i for i in range(clear)}, bits + 1, clear + 2
        cur = (v,)
    put(table[cur], width)
    put(clear + 1, width)
    if nheld:
        out.append(held & 255)
    return b"".join(bytes([len(out[i:i + 255])]) + out[i:i + 255] for i in range(0, len(out), 255)) + b"\0"


def make_gif(canvas, frame, px, bits, global_pal=None, local_pal=None, transparent=None, interlace=False,
             extra=b""):
    """canvas (W, H), frame (x, y), px (h, w) indices below 1 << bits; palettes of 1 << bits colours."""
    h, w = px.shape
    pal = lambda p: bytes(np.asarray(p, np.uint8).reshape(-1).tolist()) if p is not None else b""
    out = b"GIF89a" + struct.pack("<HHBBB", *canvas, (0x80 | bits - 1) if global_pal is not None else 0, 0, 0)
    out += pal(global_pal) + extra
    if transparent is not None:
        out += b"!\xf9\x04" + struct.pack("<BHB", 1, 0, transparent) + b"\0"
    flags = (0x80 | bits - 1 if local_pal is not None else 0) | (0x40 if interlace else 0)
    out += b"," + struct.pack("<HHHHB", *frame, w, h, flags) + pal(local_pal)
    rows = [y for a, b in ((0, 8), (4, 8), (2, 4), (1, 2)) for y in range(a, h, b)] if interlace else range(h)
    order = [int(v) for y in rows for v in px[y]]
    return out + bytes([max(2, bits)]) + lzw(order, max(2, bits)) + b";"


# ---------------------------------------------------------------------------------------------------------
# BMP

def make_bmp(W, H, bits, rows, header=40, compression=0, palette=None, masks=(), top_first=False,
             forget_palette=False):
    """rows: bytes after padding, in file order. palette (n, 3) RGB."""
    palette = None if palette is None else np.asarray(palette).reshape(-1, 3)
    if header == 12:
        head = struct.pack("<IHHHH", 12, W, H, 1, bits)
    else:
        colors = 0 if palette is None else len(palette)
        head = struct.pack("<IiiHHIIiiII", 40, W, -H if top_first else H, 1, bits, compression, len(rows), 0,
                           0, colors, 0)
        head = struct.pack("<I", header) + head[4:]
        masks = struct.pack(f"<{len(masks)}I", *masks)
        head = head + masks if header == 40 else (head + masks + bytes(header))[:header]
    pal = b""
    if palette is not None:
        pal = b"".join(bytes([b, g, r] + ([0] if header != 12 else [])) for r, g, b in palette.tolist())
    at = 14 + len(head) + (0 if forget_palette else len(pal))
    return b"BM" + struct.pack("<III", 14 + len(head) + len(pal) + len(rows), 0, at) + head + pal + rows


def bmp_rows(px, bits):
    """(H, W) pixel values, rows as they come, to padded bytes."""
    out = b""
    for row in px.tolist():
        r = pack_bits(row, bits) if bits <= 8 else b"".join(v.to_bytes(bits // 8, "little") for v in row)
        out += r + bytes(-len(r) % 4)
    return out


def bmp_rle(px, four, rng):
    """Runs, even literal runs and ends of rows; (H, W) indices, rows as they come."""
    out = bytearray()
    for row in px.tolist():
        x = 0
        while x < len(row):
            n = 1
            while x + n < len(row) and row[x + n] == row[x] and n < 255:
                n += 1
            literal = min(len(row) - x, 2 * rng.randrange(2, 5))
            if n < 3 and literal >= 4 and literal % 2 == 0:
                vs = row[x:x + literal]
                data = bytes(a << 4 | b for a, b in zip(vs[::2], vs[1::2])) if four else bytes(vs)
                out += bytes([0, literal]) + data + bytes(len(data) & 1)
                x += literal
            else:
                out += bytes([n, row[x] * 17 if four else row[x]])
                x += n
        out += b"\0\0"
    return bytes(out) + b"\0\1"


# ---------------------------------------------------------------------------------------------------------
# The catalogue: cases(W, H) yields (name, bytes)

def saved(im, fmt, **kw):
    f = io.BytesIO()
    im.save(f, fmt, **kw)
    return f.getvalue()


def image(W, H, mode, seed=0):
    bands = {"1": 1, "L": 1, "LA": 2, "P": 1, "RGB": 3, "RGBA": 4, "CMYK": 4}[mode]
    px = pixels(W, H, bands, seed).astype(np.uint8)
    if mode == "P":
        im = Image.fromarray(px[:, :, 0] // 3, "L").convert("P")
        im.putpalette(pixels(256, 1, 3, seed + 1).astype(np.uint8).tobytes())
        return im
    if mode == "1":
        return Image.fromarray(px[:, :, 0], "L").convert("1")
    return Image.merge(mode, [Image.fromarray(np.ascontiguousarray(px[:, :, c]), "L") for c in range(bands)])


def png_cases(W, H):
    kinds = (0, 1, (1, 2, 4, 8, 16)), (2, 3, (8, 16)), (3, 1, (1, 2, 4, 8)), (4, 2, (8, 16)), (6, 4, (8, 16))
    for ctype, channels, depths in kinds:
        for depth in depths:
            px = pixels(W, H, channels, depth, (1 << depth) - 1)
            pal = pixels(1 << depth, 1, 3, 5) if ctype == 3 else None
            for inter in (False, True):
                name = f"png-type{ctype}-{depth}bit{'-adam7' * inter}.png"
                yield name, make_png(px, depth, ctype, inter, pal)
    px = pixels(W, H, 3, 9)
    gray, index = px[:, :, :1], px[:, :, :1]
    gamma = chunk(b"gAMA", struct.pack(">I", 22000))
    yield "png-gamma-pieces.png", make_png(px, 8, 2, before=gamma, pieces=7)
    r, g, b = (chunk(b"tRNS", struct.pack(">H", v)) for v in px[0, 0].tolist())
    yield "png-trns-grey.png", make_png(gray, 8, 0, before=r)
    rgb, alphas = chunk(b"tRNS", r[8:10] + g[8:10] + b[8:10]), chunk(b"tRNS", bytes(range(99)))
    yield "png-trns-rgb.png", make_png(px, 8, 2, before=rgb)
    yield "png-trns-palette.png", make_png(index, 8, 3, palette=pixels(256, 1, 3), before=alphas)
    yield "png-short-palette.png", make_png(index, 8, 3, palette=pixels(60, 1, 3))
    for mode in ("1", "L", "LA", "P", "RGB", "RGBA"):
        yield f"png-pillow-{mode}.png", saved(image(W, H, mode), "PNG")


def jpeg_cases(W, H):
    rgb = image(W, H, "RGB")
    for sub in (0, 1, 2):
        for progressive in (False, True):
            yield (f"jpeg-sub{sub}{'-progressive' * progressive}.jpg",
                   saved(rgb, "JPEG", quality=85, subsampling=sub, progressive=progressive))
    for q in (1, 30, 100):
        yield f"jpeg-q{q}.jpg", saved(rgb, "JPEG", quality=q, optimize=True)
    yield "jpeg-restart.jpg", saved(rgb, "JPEG", restart_marker_blocks=2)
    yield "jpeg-keep-rgb.jpg", saved(rgb, "JPEG", keep_rgb=True)
    for progressive in (False, True):
        tail = "-progressive" * progressive
        yield f"jpeg-grey{tail}.jpg", saved(image(W, H, "L"), "JPEG", progressive=progressive)
        cmyk = saved(image(W, H, "CMYK"), "JPEG", progressive=progressive)
        at = cmyk.index(b"Adobe")
        yield f"jpeg-cmyk{tail}.jpg", cmyk
        yield f"jpeg-ycck{tail}.jpg", cmyk[:at + 11] + b"\2" + cmyk[at + 12:]


def webp_cases(W, H):
    for mode in ("RGB", "RGBA"):
        im = image(W, H, mode)
        yield f"webp-{mode}.webp", saved(im, "WEBP", quality=60)
        yield f"webp-{mode}-q100.webp", saved(im, "WEBP", quality=100, method=6)
        yield f"webp-{mode}-lossless.webp", saved(im, "WEBP", lossless=True)
        yield f"webp-{mode}-exact.webp", saved(im, "WEBP", lossless=True, exact=True)
        more = [image(W, H, mode, seed) for seed in (1, 2)]
        yield (f"webp-{mode}-animated.webp",
               saved(im, "WEBP", save_all=True, append_images=more, lossless=True))
    yield "webp-grey.webp", saved(image(W, H, "L"), "WEBP")


def gif_cases(W, H):
    for bits in (1, 2, 4, 7, 8):
        px = pixels(W, H, 1, bits, (1 << bits) - 1)[:, :, 0]
        pal = pixels(1 << bits, 1, 3, 3)
        for inter in (False, True):
            name = f"gif-{bits}bit{'-interlaced' * inter}.gif"
            yield name, make_gif((W, H), (0, 0), px, bits, pal, interlace=inter)
    px, pal, other = pixels(W, H, 1, 4, 15)[:, :, 0], pixels(16, 1, 3, 3), pixels(16, 1, 3, 4)
    ramp = np.repeat(np.arange(16), 3)
    comment = b"!\xfe\x05hello\0!\xff\x0bNETSCAPE2.0\x03\1\0\0\0"
    yield "gif-local.gif", make_gif((W, H), (0, 0), px, 4, pal, other, extra=comment)
    yield "gif-no-palette.gif", make_gif((W, H), (0, 0), px, 4)
    yield "gif-ramp.gif", make_gif((W, H), (0, 0), px, 4, ramp)
    yield "gif-local-ramp.gif", make_gif((W, H), (0, 0), px, 4, None, ramp)
    yield "gif-transparent.gif", make_gif((W, H), (0, 0), px, 4, pal, transparent=5)
    yield "gif-inside.gif", make_gif((W + 9, H + 4), (3, 2), px, 4, pal)
    yield ("gif-inside-transparent.gif",
           make_gif((W + 9, H + 4), (5, 1), px, 4, pal, transparent=7, interlace=True))
    yield "gif-sticks-out.gif", make_gif((max(1, W // 2), H), (2, 3), px, 4, pal)
    high = pixels(W, H, 1, 4, 200)[:, :, 0]
    short = make_gif((W, H), (0, 0), high, 8, pixels(256, 1, 3, 3))  # then cut its palette to 16 colours
    head, rest = short[:10] + bytes([0x83]) + short[11:13], short[13 + 768:]
    yield "gif-short-palette.gif", head + short[13:13 + 48] + rest
    yield "gif-short-ramp.gif", head + bytes(ramp.tolist()) + rest
    yield "gif-pillow.gif", saved(image(W, H, "P"), "GIF")
    yield "gif-pillow-animated.gif", saved(image(W, H, "RGB"), "GIF", save_all=True,
                                          append_images=[image(W, H, "RGB", s) for s in (1, 2)])


def bmp_cases(W, H):
    rng = random.Random(W + H)
    for bits in (1, 4, 8):
        px, pal = pixels(W, H, 1, bits, (1 << bits) - 1)[:, :, 0], pixels(1 << bits, 1, 3, 3)
        for header in (12, 40, 64, 108, 124):
            data = make_bmp(W, H, bits, bmp_rows(px, bits), header, palette=pal)
            yield f"bmp-{bits}bit-h{header}.bmp", data
        yield f"bmp-{bits}bit-top.bmp", make_bmp(W, H, bits, bmp_rows(px, bits), palette=pal, top_first=True)
    px = pixels(W, H, 1, 7, 9)[:, :, 0]
    yield "bmp-10-colours.bmp", make_bmp(W, H, 8, bmp_rows(px, 8), palette=pixels(10, 1, 3))
    yield "bmp-beyond-palette.bmp", make_bmp(W, H, 8, bmp_rows(px, 8), palette=pixels(6, 1, 3))
    yield ("bmp-forgotten-palette.bmp",
           make_bmp(W, H, 8, bmp_rows(px, 8), palette=pixels(10, 1, 3), forget_palette=True))
    ramp = np.repeat(np.arange(256), 3).reshape(256, 3)
    yield "bmp-grey.bmp", make_bmp(W, H, 8, bmp_rows(pixels(W, H, 1)[:, :, 0], 8), palette=ramp)
    wide = pixels(W, H, 1, 3, (1 << 31) - 1)[:, :, 0]
    for bits, masks in ((16, ()), (24, ()), (32, ()),
                        (16, (0xF800, 0x7E0, 0x1F)), (16, (0x7C00, 0x3E0, 0x1F)),
                        (32, (0xFF0000, 0xFF00, 0xFF)), (32, (0xFF000000, 0xFF0000, 0xFF00)),
                        (32, (0xFF000000, 0xFF00, 0xFF))):
        rows = bmp_rows(wide & ((1 << bits) - 1), bits)
        for header in (40, 56, 124):
            name = "-".join(f"{m:x}" for m in masks) or "raw"
            alpha = (0,) if header > 40 and masks else ()
            yield (f"bmp-{bits}bit-{name}-h{header}.bmp",
                   make_bmp(W, H, bits, rows, header, 3 if masks else 0, masks=masks + alpha))
    rgba = (0xFF, 0xFF00, 0xFF0000, 0xFF000000)
    yield "bmp-32bit-rgba.bmp", make_bmp(W, H, 32, bmp_rows(wide, 32), 124, 3, masks=rgba)
    for four in (False, True):
        bits = 4 if four else 8
        px = np.repeat(pixels(W, H, 1, 3, (1 << bits) - 1)[:, ::3, 0], 3, 1)[:, :W]
        px[:, W // 2:] = pixels(W, H, 1, 8, (1 << bits) - 1)[:, W // 2:, 0]
        pal = pixels(1 << bits, 1, 3, 3)
        data = make_bmp(W, H, bits, bmp_rle(px, four, rng), compression=2 if four else 1, palette=pal)
        yield f"bmp-rle{bits}.bmp", data
    for mode in ("1", "L", "P", "RGB", "RGBA"):
        yield f"bmp-pillow-{mode}.bmp", saved(image(W, H, mode), "BMP")


def pnm_cases(W, H):
    bit = pixels(W, H, 1, 1, 1)[:, :, 0]
    text = "\n".join(" ".join(map(str, r)) for r in bit.tolist())
    yield "pnm-p1.pbm", f"P1\n# a comment\n{W} {H}\n{text}\n".encode()
    yield "pnm-p1-dense.pbm", f"P1 {W} {H} {text.replace(' ', '')}#end".encode()
    yield "pnm-p4.pbm", f"P4\n{W} {H}\n".encode() + b"".join(pack_bits(r, 1) for r in bit.tolist())
    for maxval in (1, 15, 100, 255, 1000, 65535):
        for kind, C in ((5, 1), (6, 3)):
            px = pixels(W, H, C, 3, maxval).reshape(H, -1)
            head = f"P{kind}\n#c\n{W} {H}\n{maxval}\n".encode()
            size = "B" if maxval < 256 else "H"
            data = struct.pack(f">{px.size}{size}", *px.reshape(-1).tolist())
            yield f"pnm-p{kind}-{maxval}.pnm", head + data
            rows = "# c\n".join(" ".join(map(str, r)) + " " for r in px.tolist())
            yield f"pnm-p{kind - 3}-{maxval}.pnm", f"P{kind - 3} {W}\t{H} #c\n{maxval}\n{rows}\n".encode()


def exif_cases(W, H):
    rgb = image(W, H, "RGB")
    xmp = b'<x:xmpmeta><rdf:Description tiff:Orientation="%d"/></x:xmpmeta>'
    for o in range(0, 10):
        exif = Image.Exif()
        exif[0x010F] = "a camera with a name longer than four letters"
        exif[0x0112] = o
        block = exif.tobytes()
        big = b"Exif\0\0MM\0*" + struct.pack(">IHHHIHH", 8, 1, 0x0112, 3, 1, o, 0) + bytes(4)
        long = b"Exif\0\0II*\0" + struct.pack("<IHHHII", 8, 1, 0x0112, 4, 1, o) + bytes(4)
        yield f"exif-{o}.jpg", saved(rgb, "JPEG", exif=block, subsampling=0)
        yield f"exif-{o}.png", saved(rgb, "PNG", exif=block)
        yield f"exif-{o}.webp", saved(rgb, "WEBP", exif=block, lossless=True)
        yield f"exif-{o}-big.jpg", saved(rgb, "JPEG", exif=big)
        yield f"exif-{o}-long.jpg", saved(rgb, "JPEG", exif=long)
        yield f"exif-{o}-after.png", make_png(pixels(W, H, 3), 8, 2, after=chunk(b"eXIf", big[6:]))
        if o in (1, 3, 6, 8):
            yield f"xmp-{o}.jpg", saved(rgb, "JPEG", xmp=xmp % o)
            yield f"xmp-{o}.webp", saved(rgb, "WEBP", xmp=xmp % o, lossless=True)
            text = b"XML:com.adobe.xmp\0\0\0\0\0" + b"<tiff:Orientation>%d</tiff:Orientation>" % o
            yield f"xmp-{o}.png", make_png(pixels(W, H, 3), 8, 2, before=chunk(b"iTXt", text))
            yield f"exif-1-xmp-{o}.jpg", saved(rgb, "JPEG", xmp=xmp % o, exif=big[:24] + b"\0\1" + big[26:])


def cases(W, H):
    for family in (png_cases, jpeg_cases, webp_cases, gif_cases, bmp_cases, pnm_cases, exif_cases):
        yield from family(W, H)


# ---------------------------------------------------------------------------------------------------------
# The truth: bytes -> (H, W, 3) uint8

def truth(data, turn=False):
    """Pillow's pixels; 16-bit grey by its high byte, which is this project's decision (Pillow clips)."""
    im = Image.open(io.BytesIO(data))
    im.load()
    if turn:
        im = ImageOps.exif_transpose(im)
    if im.mode.startswith("I"):
        return np.repeat((np.asarray(im).astype(np.int64) >> 8).astype(np.uint8)[:, :, None], 3, 2)
    return np.ascontiguousarray(np.asarray(im.convert("RGB")))


def main():
    if PIL.__version__ != "11.3.0":
        sys.exit(f"Pillow 11.3.0 is the reference, this is {PIL.__version__}")
    HERE.mkdir(parents=True, exist_ok=True)
    for old in HERE.iterdir():
        old.unlink()
    skip = ("-h52", "-h56", "-h64", "-h108", "-q100", "-q30", "xmp-1.", "xmp-8.", "-100.", "-long", "pillow")
    lines = []
    for name, data in cases(13, 9):
        if any(s in name for s in skip):
            continue
        (HERE / name).write_bytes(data)
        plain, turned = truth(data), truth(data, True)
        lines.append(f"{name} {plain.shape[1]} {plain.shape[0]} {zlib.crc32(plain.tobytes()):08x} "
                     f"{turned.shape[1]} {turned.shape[0]} {zlib.crc32(turned.tobytes()):08x}\n")
    (HERE / "expected.txt").write_text("".join(lines))
    print(f"{len(lines)} images, {sum(f.stat().st_size for f in HERE.iterdir())} bytes")


if __name__ == "__main__":
    main()
