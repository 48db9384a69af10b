"""Draws the pictures that the demo model learns from: a few small drawings on a coloured background.

In this file, in order: the nouns and colours; Drawings (loads the drawings of a folder or tar); Scene and
sample_scene (what stands where); sample_dense (many objects, for the first training of the ViT only);
render (scene -> pixels and, for every patch, what covers it); the preview.
What is said about a scene lives in texts.py. Nothing here knows about models.

    python dev/demo/scenes.py --drawings FOLDER_OR_TAR --index TSV --preview sheet.png

Drawings: `<style>/<name>.png` with transparency; the index is a table with the columns file, vendor, noun,
plural, category (others are ignored). Several sources may be given: --drawings A B --index A.tsv B.tsv.

Every scene is a function of (seed, number): default_rng([seed, number]). Units: a picture is 1.0 wide and
high, x grows to the right, y downwards; pixels appear only in render().
"""
import argparse
import csv
import io
import math
import os
import tarfile
import zlib
from dataclasses import dataclass, field

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

# Left out on purpose: nouns without a singular (grapes, scissors), mass nouns (corn, bread, pizza), pairs
# that even people mix up in these styles (taxi and car, hamster and bear), drawings with a background.
FEW_NOUNS = """dog cat rabbit panda cow pig frog monkey elephant penguin turtle fish octopus snail ladybug bee
tree cactus mushroom sunflower banana pineapple strawberry watermelon cherry eggplant hamburger doughnut
car bus bicycle train airplane rocket house star umbrella balloon soccer_ball guitar key crown snowman
heart""".replace("_", "\0").split()
FEW_NOUNS = [n.replace("\0", " ") for n in FEW_NOUNS]

# What the demo knows: those 44 (FEW_NOUNS, for a quicker training), and all the others that every style draws.
NOUNS = """mouse koala tiger leopard wolf horse sheep goat camel squirrel chicken chick crocodile
snake dragon whale dolphin caterpillar ant spider tulip hibiscus rose palm_tree clover maple_leaf melon
orange lemon pear peach tomato chili_pepper sushi ice_cream cookie cake candy lollipop coffee wine_glass
beer_mug mountain volcano factory castle church fountain tent ferris_wheel tram truck tractor motorcycle
sailboat ship helicopter anchor traffic_light watch alarm_clock hourglass sun moon cloud rainbow
snowflake Christmas_tree jack-o-lantern gift trophy baseball basketball palette tie shirt dress handbag
backpack shoe boot hat ring bell microphone radio saxophone trumpet piano violin phone laptop printer
television camera light_bulb flashlight candle book newspaper envelope box pencil crayon lock hammer bomb
wrench microscope telescope syringe door toilet bathtub ghost skull alien""".replace("_", "\0").split()
NOUNS = FEW_NOUNS + [n.replace("\0", " ") for n in NOUNS]

HELD_OUT_STYLE = "fxemoji"
# Near copies of each other count as one style when a style is drawn at random.
STYLE_GROUP = {"fluent-3d": "fluent", "fluent-flat": "fluent",
               "mdi": "icons", "phosphor": "icons", "fontawesome": "icons"}
# How often a group is drawn, where not 1. These come from other packages (make_drawings.py) and are harder.
WEIGHT = {"openclipart": .5, "icons": .25}

# name -> hue in degrees, saturation and value in percent, each as a range. The gaps between the ranges are
# wide so that a name is never a matter of taste.
COLOURS = {
    "red": ((-8, 6), (75, 95), (70, 92)), "orange": ((26, 34), (85, 100), (94, 100)),
    "yellow": ((51, 58), (75, 100), (90, 100)), "green": ((95, 145), (50, 90), (45, 85)),
    "blue": ((208, 232), (65, 95), (60, 95)), "purple": ((266, 284), (50, 85), (45, 72)),
    "pink": ((325, 345), (28, 50), (94, 100)), "brown": ((20, 28), (60, 80), (34, 48)),
    "grey": ((0, 360), (0, 4), (45, 66)), "white": ((0, 360), (0, 3), (95, 100)),
    "black": ((0, 360), (0, 10), (2, 9)),
}


def hsv_to_rgb(h, s, v):
    """h in degrees, s and v in 0..1 -> three floats 0..255 (the usual hexagon formula)."""
    k = [(n + h / 60.0) % 6 for n in (5, 3, 1)]
    return np.array([255 * (v - v * s * max(0.0, min(q, 4 - q, 1.0))) for q in k], np.float32)


def held_out(noun_a, noun_b, colour):
    """True for the tenth of all (noun pair, colour) that training never shows; order does not matter."""
    a, b = sorted((noun_a, noun_b))
    return zlib.crc32(f"{a}|{b}|{colour}".encode()) % 10 == 0


class Drawings:
    """Drawings of the wanted nouns, cropped to what is visible, premultiplied, at full, half, ... size.

    by[noun][group] is a list of lists of RGBa images, largest first; group is a style or a group of styles.
    plural and category: noun -> str.
    """

    def __init__(self, sources, indexes, nouns=None, keep=lambda style: True):
        self.by, self.plural, self.category, self.count = {}, {}, {}, 0
        for source, index in zip(sources, indexes, strict=True):
            tar = None if os.path.isdir(source) else tarfile.open(source)
            with open(index, encoding="utf-8", newline="") as f:
                rows = list(csv.DictReader(f, delimiter="\t"))
            for r in rows:
                self.plural[r["noun"]], self.category[r["noun"]] = r["plural"], r["category"]
                if not keep(r["vendor"]) or (nouns is not None and r["noun"] not in nouns):
                    continue
                data = open(os.path.join(source, r["file"]), "rb").read() if tar is None \
                    else tar.extractfile(r["file"]).read()
                group = STYLE_GROUP.get(r["vendor"], r["vendor"])
                self.by.setdefault(r["noun"], {}).setdefault(group, []).append(self._pyramid(data))
                self.count += 1
        missing = [n for n in (nouns or []) if n not in self.by]
        if missing:
            raise ValueError(f"no drawings of {missing} in {sources}; check the index")
        self.nouns = list(nouns) if nouns is not None else sorted(self.by)

    @staticmethod
    def _pyramid(data):
        im = Image.open(io.BytesIO(data)).convert("RGBA")
        box = im.getchannel("A").point(lambda a: 255 * (a > 16)).getbbox()
        if box is None:
            raise ValueError("a drawing is fully transparent")
        levels = [im.crop(box).convert("RGBa")]     # premultiplied: no dark fringes when shrunk
        while max(levels[-1].size) >= 32:
            levels.append(levels[-1].reduce(2))
        return levels

    def pick(self, rng, noun):
        """One drawing of noun; a style group is as likely as its weight, however many drawings it has."""
        groups = self.by[noun]
        at = np.cumsum([WEIGHT.get(g, 1.0) for g in groups])
        g = list(groups)[int(np.searchsorted(at, rng.random() * at[-1], "right"))]
        return groups[g][rng.integers(len(groups[g]))]


@dataclass
class Thing:
    noun: str
    x: float                    # centre
    y: float
    size: float                 # the longer side of the box, before rotation
    drawing: list = field(repr=False)
    look: tuple = ()            # (angle, stretch, flip): how the drawing is put down
    seed: int = 0               # of the colour changes


@dataclass
class Scene:
    colour: str
    things: list                # left to right
    seed: int

    def kinds(self):
        """[(noun, count)] in the fixed order: by the leftmost object of each kind."""
        out = {}
        for t in self.things:
            out[t.noun] = out.get(t.noun, 0) + 1
        return list(out.items())


def extent(thing):
    """Half width and half height of the box that the turned drawing fills."""
    angle, stretch, _ = thing.look
    w, h = thing.drawing[0].size
    k = 0.5 * thing.size / max(w * stretch, h)
    w, h = w * stretch * k, h * k
    c, s = abs(math.cos(angle)), abs(math.sin(angle))
    return w * c + h * s, w * s + h * c


def place(rng, things, gap=0.015, least=.17):
    """Gives every thing a free place, shrinking things (to `least` if it must); True if it could.

    Boxes do not overlap, so nothing hides anything else.
    """
    boxes = []
    for t in sorted(things, key=lambda t: -t.size):
        for attempt in range(60):
            if attempt % 12 == 11:
                t.size = max(t.size * 0.88, least)
            w, h = extent(t)
            if w > 0.49 or h > 0.49:
                continue
            t.x, t.y = rng.uniform(w + .01, .99 - w), rng.uniform(h + .01, .99 - h)
            if all(abs(t.x - x) > w + u + gap or abs(t.y - y) > h + v + gap for x, y, u, v in boxes):
                boxes.append((t.x, t.y, w, h))
                break
        else:
            return False
    return True


def make_thing(rng, drawings, noun, size, drawing=None):
    look = (rng.normal(0, 0.12), math.exp(rng.normal(0, 0.08)), bool(rng.integers(2)))
    return Thing(noun, 0, 0, size, drawing or drawings.pick(rng, noun), look, int(rng.integers(1 << 31)))


SIZES = {1: (.42, .88), 2: (.32, .52), 3: (.27, .42), 4: (.25, .38)}


def sample_scene(drawings, seed, number, compositions="seen"):
    """One to four objects of one or two kinds.

    compositions: "seen" draws only (pair, colour) that are not held out, "new" only those, "any" all.
    The order of the kinds is certain: their leftmost objects are at least 0.06 apart in x.
    """
    rng = np.random.default_rng([seed, number])
    while True:
        total = int(rng.choice([1, 2, 3, 4], p=[.28, .32, .22, .18]))
        a, b = rng.choice(len(drawings.nouns), 2, replace=False)
        a, b = drawings.nouns[a], drawings.nouns[b]
        first = total if rng.random() < (.5 if total > 1 else 1) else int(rng.integers(1, total))
        if first == total:
            b = a
        colour = list(COLOURS)[rng.integers(len(COLOURS))]
        if compositions != "any" and held_out(a, b, colour) != (compositions == "new"):
            continue
        one_drawing = {n: drawings.pick(rng, n) if rng.random() < .5 else None for n in (a, b)}
        things = []
        for i in range(total):
            noun = a if i < first else b
            things.append(make_thing(rng, drawings, noun, rng.uniform(*SIZES[total]), one_drawing[noun]))
        if not place(rng, things):
            continue
        things.sort(key=lambda t: t.x)
        scene = Scene(colour, things, int(rng.integers(1 << 31)))
        lefts = [min(t.x for t in things if t.noun == n) for n, _ in scene.kinds()]
        if len(lefts) == 1 or lefts[1] - lefts[0] >= .06:
            return scene


def sample_dense(drawings, seed, number):
    """As many objects of any kinds as find a place, up to eight: every patch teaches the ViT something."""
    rng = np.random.default_rng([seed, number, 1])
    things, biggest = [], rng.uniform(.28, .5)
    for _ in range(int(rng.integers(3, 9))):
        noun = drawings.nouns[rng.integers(len(drawings.nouns))]
        things.append(make_thing(rng, drawings, noun, rng.uniform(.22, biggest)))
    while not place(rng, things):
        things.pop()
    things.sort(key=lambda t: t.x)
    return Scene(list(COLOURS)[rng.integers(len(COLOURS))], things, int(rng.integers(1 << 31)))


def _texture_bank(count=48, side=256):
    """Smooth random fields (count,side,side) in about -1..1, of several grain sizes; made once."""
    rng, out = np.random.default_rng(7), np.empty((count, side, side), np.float32)
    for i in range(count):
        cells = (3, 5, 9, 17, 40, 90)[i % 6]
        small = Image.fromarray(rng.normal(0, 1, (cells, cells)).astype(np.float32))
        out[i] = np.asarray(small.resize((side, side), Image.BICUBIC)) / 2.5
    return out, rng.normal(0, 1, (16, side, side, 3)).astype(np.float32)


_TEXTURES, _NOISE = _texture_bank()


def _background(rng, colour, S):
    """Named colour, plain or gently textured -> float32 (S,S,3), 0..255."""
    hue, sat, val = COLOURS[colour]
    out = np.broadcast_to(hsv_to_rgb(rng.uniform(*hue), rng.uniform(*sat) / 100, rng.uniform(*val) / 100),
                          (S, S, 3)).copy()
    kind = rng.random()
    if kind < .65:                                       # else plain
        x = np.arange(S, dtype=np.float32)[None] / S - .5
        y = x.T
        if kind < .3:                                    # a slope of brightness
            t = rng.uniform(0, 2 * math.pi)
            field_ = x * math.cos(t) + y * math.sin(t)
        elif kind < .55:                                 # soft clouds or grain
            k = _TEXTURES[rng.integers(len(_TEXTURES))]
            field_ = np.asarray(Image.fromarray(k).resize((S, S), Image.BILINEAR))
        else:                                            # stripes
            t, f = rng.uniform(0, math.pi), rng.uniform(15, 60)
            field_ = np.sin(f * (x * math.cos(t) + y * math.sin(t)))
        dark = .35 + .65 * out.mean() / 255              # the same step shows more on a dark ground
        out += (rng.uniform(4, 16) * dark * field_)[:, :, None]
    return out


_YIQ = np.array([[.299, .587, .114], [.596, -.274, -.322], [.211, -.523, .312]], np.float32)
_RGB = np.linalg.inv(_YIQ).astype(np.float32)


def _recolour(rng, patch):
    """Changes hue, colourfulness, contrast of a premultiplied patch (h,w,4), so that style matters less."""
    r = rng.random()
    turn = rng.uniform(-math.pi, math.pi) if r < .05 else rng.normal(0, .14)
    colourful = 0.0 if r > .95 else math.exp(rng.normal(0, .25))
    c, s = colourful * math.cos(turn), colourful * math.sin(turn)
    m = _RGB @ np.array([[1, 0, 0], [0, c, -s], [0, s, c]], np.float32) @ _YIQ
    gain = math.exp(rng.normal(0, .13))
    alpha = patch[:, :, 3:]
    rgb = patch[:, :, :3] @ (gain * m.T) + alpha * np.float32(rng.normal(0, 12) + 110 * (1 - gain) / 255)
    if .05 < r < .1:                                    # few flat colours
        step = 255 / rng.integers(2, 6)
        rgb = np.round(rgb / step) * step
    return np.clip(rgb, 0, 255 * alpha), alpha


def _stamp(thing, S, jitter):
    """The drawing as it will be seen -> (x0, y0, rgb (h,w,3) premultiplied 0..255, alpha (h,w,1) 0..1)."""
    angle, stretch, flip = thing.look
    w, h = extent(thing)
    x0, y0 = math.floor((thing.x - w) * S), math.floor((thing.y - h) * S)
    W, H = math.ceil((thing.x + w) * S) - x0, math.ceil((thing.y + h) * S) - y0
    full = thing.drawing[0].size
    k = max(full[0] * stretch, full[1]) / (thing.size * S)          # drawing pixels per picture pixel
    level = min(max(int(math.floor(math.log2(max(k, 1)) + .4)), 0), len(thing.drawing) - 1)
    src = thing.drawing[level]
    c, s = math.cos(angle), math.sin(angle)
    fx, fy = src.size[0] / full[0] * k / stretch * (-1 if flip else 1), src.size[1] / full[1] * k
    ox, oy = x0 - thing.x * S, y0 - thing.y * S          # picture offset of the patch from the centre
    a, b, d, e = fx * c, fx * s, -fy * s, fy * c
    im = src.transform((W, H), Image.AFFINE,
                       (a, b, a * ox + b * oy + src.size[0] / 2, d, e, d * ox + e * oy + src.size[1] / 2),
                       Image.BILINEAR)
    patch = np.frombuffer(im.tobytes(), np.uint8).reshape(H, W, 4).astype(np.float32)
    patch[:, :, 3] /= 255
    if not jitter:
        return x0, y0, patch[:, :, :3], patch[:, :, 3:]
    rng = np.random.default_rng(thing.seed)
    rgb, alpha = _recolour(rng, patch)
    if rng.random() < .12:                               # a dark or light line around it
        wide = im.getchannel("a").filter(ImageFilter.MaxFilter(3 if S < 160 else 5))
        wide = np.asarray(wide, np.float32)[:, :, None] / 255
        rgb = rgb + (wide - alpha) * np.float32(rng.choice([0, 30, 255]))
        alpha = wide
    return x0, y0, rgb, alpha


def _wear(rng, pixels):
    """Light blur, noise and JPEG artefacts on a float picture (S,S,3) -> uint8."""
    S = pixels.shape[0]
    if rng.random() < .3:
        pixels = (pixels - 128) * math.exp(rng.normal(0, .07)) + 128 + rng.normal(0, 6)
    if rng.random() < .35:
        n = _NOISE[rng.integers(len(_NOISE))]
        if S <= n.shape[0]:
            y, x = rng.integers(0, n.shape[0] - S + 1, 2)
            pixels = pixels + n[y:y + S, x:x + S] * np.float32(rng.uniform(1, 9))
    out = np.clip(pixels + .5, 0, 255).astype(np.uint8)
    if rng.random() < .3:
        out = np.asarray(Image.fromarray(out).filter(ImageFilter.GaussianBlur(rng.uniform(.3, .9) * S / 112)))
    if rng.random() < .25:
        f = io.BytesIO()
        Image.fromarray(out).save(f, "JPEG", quality=int(rng.integers(35, 92)))
        out = np.asarray(Image.open(f))
    return out


def render(scene, S, patch=0, noun_id=None, jitter=True):
    """Scene -> pixels uint8 (S,S,3) and, if patch > 0, labels int64 (2, (S/patch)^2).

    labels[0]: noun_id of what covers at least a quarter of the patch, len(noun_id) for bare background, -100
    where neither is certain; labels[1]: 1 where the centre of an object lies. Row-major.
    """
    rng = np.random.default_rng(scene.seed)
    pixels = _background(rng, scene.colour, S)
    G = S // patch if patch else 0
    cover, centre = np.zeros((len(scene.things), G, G), np.float32), np.zeros((G, G), np.int64)
    for i, t in enumerate(scene.things):
        x0, y0, rgb, alpha = _stamp(t, S, jitter)
        cx, cy = max(-x0, 0), max(-y0, 0)                # parts of the box outside the picture are empty
        rgb, alpha = rgb[cy:S - y0, cx:S - x0], alpha[cy:S - y0, cx:S - x0]
        x0, y0 = max(x0, 0), max(y0, 0)
        view = pixels[y0:y0 + rgb.shape[0], x0:x0 + rgb.shape[1]]
        view *= 1 - alpha
        view += rgb
        if patch:
            mask = np.zeros((S, S), np.float32)
            mask[y0:y0 + rgb.shape[0], x0:x0 + rgb.shape[1]] = alpha[:, :, 0]
            cover[i] = mask.reshape(G, patch, G, patch).mean((1, 3))
            centre[min(int(t.y * G), G - 1), min(int(t.x * G), G - 1)] = 1
    pixels = _wear(rng, pixels) if jitter else np.clip(pixels + .5, 0, 255).astype(np.uint8)
    if not patch:
        return pixels, None
    ids = np.array([noun_id[t.noun] for t in scene.things])
    most = cover.max(0)
    label = np.where(most >= .25, ids[cover.argmax(0)], -100)
    label[cover.sum(0) < .04] = len(noun_id)
    return pixels, np.stack([label.ravel(), centre.ravel()])


def add_source_options(ap):
    ap.add_argument("--drawings", nargs="+", required=True, help="folders or tars of <style>/<name>.png")
    ap.add_argument("--index", nargs="+", required=True, help="one table for each of --drawings")
    ap.add_argument("--nouns", choices=["few", "many"], default="many", help="44 or 161 [many]")


def nouns(args):
    """The nouns that --nouns asks for."""
    return FEW_NOUNS if args.nouns == "few" else NOUNS


def main():
    from texts import Words                              # texts.py does not need this file's drawing part
    ap = argparse.ArgumentParser(description="writes a sheet of scenes with what is said about them")
    add_source_options(ap)
    ap.add_argument("--preview", required=True, metavar="PNG")
    ap.add_argument("--style", help="only this style")
    ap.add_argument("--dense", action="store_true", help="the crowded scenes of the first ViT training")
    ap.add_argument("--seed", type=int, default=1)
    args = ap.parse_args()
    keep = (lambda s: s == args.style) if args.style else (lambda s: s != HELD_OUT_STYLE)
    drawings = Drawings(args.drawings, args.index, nouns(args), keep)
    words = Words(drawings.plural, drawings.category, drawings.nouns)
    S, cols, rows = 224, 4, 3
    sheet = Image.new("RGB", (cols * (S + 200), rows * (S + 4)), "white")
    draw = ImageDraw.Draw(sheet)
    for i in range(cols * rows):
        scene = (sample_dense if args.dense else sample_scene)(drawings, args.seed, i)
        x, y = i % cols * (S + 200), i // cols * (S + 4)
        sheet.paste(Image.fromarray(render(scene, S)[0]), (x, y))
        if args.dense:
            continue
        lines = [f"{p or '(caption)'} [{a}]" for _, p, a in words.texts(scene, np.random.default_rng(i), 5)]
        text = "\n".join("\n".join(s[k:k + 32] for k in range(0, len(s), 32)) for s in lines)
        draw.text((x + S + 4, y), text, fill="black")
    sheet.save(args.preview)
    print(f"{drawings.count} drawings of {len(drawings.nouns)} nouns; wrote {args.preview}")


if __name__ == "__main__":
    main()
