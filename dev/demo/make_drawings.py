"""Makes folders of drawings, with their index, from public packages.

    python dev/demo/make_drawings.py iconify     --package node_modules/@iconify-json/noto --style noto \
                                                 --nouns INDEX --out drawings
    python dev/demo/make_drawings.py openclipart --package openclipart --nouns INDEX --out drawings
    python dev/demo/make_drawings.py fonts       --package qtawesome   --nouns INDEX --out drawings

Each writes <out>/<style>/*.png, 128x128 with transparency, and <out>/<style>.tsv.

iconify: the SVGs in the icons.json of an npm package @iconify-json/NAME, drawn by `rsvg-convert` (Debian
    librsvg2-bin). The styles used are noto 1.2.9, noto-v1 1.2.5, fluent-emoji-flat 1.2.6, twemoji 1.2.5 and
    fxemoji 1.2.2; fluent-3d (@lobehub/fluent-emoji-3d 1.1.0) holds ready pictures that only need shrinking.
    INDEX is a table with the columns codepoint, noun, plural, category, cldr_name; an icon is found through
    the package's chars.json or through its name.
openclipart: the Debian package openclipart-png 0.18 (public domain): `apt-get download openclipart-png`, then
    `dpkg-deb -x` into a folder. Which picture shows which noun was chosen by eye: openclipart.tsv.
fonts: the Python package qtawesome 1.4.2: `pip download --no-deps qtawesome`, then unzip. It holds the fonts
    Material Design Icons (Apache-2.0), Phosphor (MIT) and Font Awesome Free 6 (icons CC-BY-4.0). Each glyph
    is drawn in a few colours: silhouettes teach that neither the colours nor the inner lines make the noun.

Tux Paint's stamps, also in Debian, are under the GPL and were left out.
"""
import argparse
import csv
import io
import json
import os
import subprocess

from PIL import Image, ImageDraw, ImageFont

SIDE = 128

# noun: names of glyphs, looked for in every font, with Phosphor's -fill and -bold and MDI's -outline besides
GLYPHS = {
    "dog": "dog dog-side", "cat": "cat", "rabbit": "rabbit rabbit-variant", "panda": "panda", "cow": "cow",
    "pig": "pig pig-variant", "frog": "frog", "elephant": "elephant", "penguin": "penguin",
    "turtle": "turtle", "fish": "fish", "snail": "snail", "ladybug": "ladybug", "bee": "bee",
    "tree": "tree pine-tree tree-evergreen", "cactus": "cactus", "mushroom": "mushroom",
    "pineapple": "fruit-pineapple", "watermelon": "fruit-watermelon", "cherry": "fruit-cherries",
    "hamburger": "hamburger", "car": "car car-side car-hatchback car-sports", "bus": "bus bus-side",
    "bicycle": "bicycle", "train": "train train-simple", "airplane": "airplane plane",
    "rocket": "rocket rocket-launch", "house": "house home home-variant", "star": "star",
    "umbrella": "umbrella", "balloon": "balloon", "soccer ball": "soccer futbol soccer-ball",
    "guitar": "guitar guitar-acoustic guitar-electric", "key": "key key-variant",
    "crown": "crown crown-simple", "snowman": "snowman", "heart": "heart",
}
FONTS = [("mdi", "materialdesignicons6-webfont", "Apache-2.0"), ("phosphor", "phosphor", "MIT"),
         ("fontawesome", "fontawesome6-solid-webfont", "CC-BY-4.0"),
         ("fontawesome", "fontawesome6-regular-webfont", "CC-BY-4.0")]
INKS = [(40, 40, 48), (245, 245, 245), (205, 45, 40), (40, 110, 210), (60, 160, 70), (230, 160, 40)]


class Out:
    """Collects drawings: the pictures in a folder for each style, the rows of its index."""

    def __init__(self, folder, nouns_from):
        self.folder, self.rows = folder, {}
        with open(nouns_from, encoding="utf-8", newline="") as f:
            self.about = {r["noun"]: r for r in csv.DictReader(f, delimiter="\t")}

    def add(self, image, style, name, noun, licence):
        if noun not in self.about:
            raise ValueError(f"{noun} is not in the table of nouns")
        box = image.getchannel("A").getbbox()
        if box is None:
            raise ValueError(f"{style}/{name} is empty")
        image = image.crop(box)
        image.thumbnail((SIDE, SIDE), Image.LANCZOS)
        page = Image.new("RGBA", (SIDE, SIDE))
        page.paste(image, ((SIDE - image.width) // 2, (SIDE - image.height) // 2))
        os.makedirs(os.path.join(self.folder, style), exist_ok=True)
        page.save(os.path.join(self.folder, style, name + ".png"))
        about = self.about[noun]
        self.rows.setdefault(style, []).append(
            [f"{style}/{name}.png", style, licence, noun, about["plural"], about["category"]])

    def close(self):
        for style, rows in self.rows.items():
            with open(os.path.join(self.folder, style + ".tsv"), "w", encoding="utf-8", newline="") as f:
                w = csv.writer(f, delimiter="\t", lineterminator="\n")
                w.writerow(["file", "vendor", "licence", "noun", "plural", "category"])
                w.writerows(rows)
            print(f"{style}: {len(rows)} drawings")


def squashed(name):
    return "".join(c for c in name.lower() if c.isalnum())


def from_iconify(args, out):
    with open(os.path.join(args.package, "icons.json"), encoding="utf-8") as f:
        pack = json.load(f)
    chars = os.path.join(args.package, "chars.json")      # code point -> name, if it is there
    by_code = {}
    if os.path.exists(chars):
        with open(chars, encoding="utf-8") as f:
            by_code = json.load(f)
    by_name = {squashed(n): n for n in pack["icons"]}
    with open(args.nouns, encoding="utf-8", newline="") as f:
        rows = {r["codepoint"]: r for r in csv.DictReader(f, delimiter="\t")}
    missing = []
    for code, r in rows.items():
        icon = pack["icons"].get(by_code.get(code) or by_name.get(squashed(r["cldr_name"])))
        if icon is None:
            missing.append(r["cldr_name"])
            continue
        w, h = icon.get("width", pack.get("width", 16)), icon.get("height", pack.get("height", 16))
        svg = f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" ' \
              f'viewBox="0 0 {w} {h}" width="{w}" height="{h}">{icon["body"]}</svg>'
        png = subprocess.run(["rsvg-convert", "-w", str(2 * SIDE), "-a"], input=svg.encode(), check=True,
                             capture_output=True).stdout
        out.add(Image.open(io.BytesIO(png)).convert("RGBA"), args.style, code, r["noun"], args.licence)
    if missing:
        print(f"not in {args.style}: {', '.join(missing)}")


def from_openclipart(args, out):
    root = os.path.join(args.package, "usr/share/openclipart/png")
    with open(os.path.join(os.path.dirname(os.path.abspath(__file__)), "openclipart.tsv"), newline="") as f:
        for i, r in enumerate(csv.DictReader(f, delimiter="\t")):
            image = Image.open(os.path.join(root, r["path"]))
            out.add(image.convert("RGBA"), "openclipart", f"{i:03d}", r["noun"], "public domain")


def from_fonts(args, out):
    fonts = os.path.join(args.package, "qtawesome", "fonts")
    for style, font, licence in FONTS:
        ttf = next(n for n in sorted(os.listdir(fonts)) if n.startswith(font) and n.endswith(".ttf"))
        charmap = next(n for n in sorted(os.listdir(fonts)) if n.startswith(font + "-charmap"))
        with open(os.path.join(fonts, charmap)) as f:
            codes = json.load(f)
        face = ImageFont.truetype(os.path.join(fonts, ttf), 2 * SIDE)
        for noun, names in GLYPHS.items():
            for name in [n + tail for n in names.split() for tail in ("", "-fill", "-bold", "-outline")]:
                if name not in codes:
                    continue
                glyph = Image.new("L", (4 * SIDE, 4 * SIDE))
                ImageDraw.Draw(glyph).text((SIDE, SIDE), chr(int(codes[name], 16)), font=face, fill=255)
                for i, ink in enumerate(INKS):
                    image = Image.new("RGBA", glyph.size, ink + (0,))
                    image.putalpha(glyph)
                    out.add(image, style, f"{font[-6:]}-{name}-{i}", noun, licence)


def main():
    ap = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    ap.add_argument("kind", choices=["iconify", "openclipart", "fonts"])
    ap.add_argument("--package", required=True, help="the folder of the unpacked package")
    ap.add_argument("--nouns", required=True, help="a table with noun, plural, category")
    ap.add_argument("--style", help="iconify: what to call the style")
    ap.add_argument("--licence", default="", help="iconify: as the package states it")
    ap.add_argument("--out", required=True)
    args = ap.parse_args()
    out = Out(args.out, args.nouns)
    {"iconify": from_iconify, "openclipart": from_openclipart, "fonts": from_fonts}[args.kind](args, out)
    out.close()


if __name__ == "__main__":
    main()
