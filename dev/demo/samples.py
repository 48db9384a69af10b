"""Makes the sample pictures of demo/ and lists what they are made of.

    python dev/demo/samples.py --drawings FOLDER_OR_TAR --index TSV --out demo

A picture is one line of SAMPLES: file name, background, then `noun@style:x,y,size` for each object. The
ending of the name chooses the format. On standard output: for every picture its caption, what can be asked
about it, and the files and licences of its drawings, for NOTICE.md. The objects keep their colours.
"""
import argparse
import csv
import os

import numpy as np
from PIL import Image

import scenes as S
from texts import KINDS, Words

SIDE = 256
SAMPLES = """
dogs.png       green   dog@noto:.25,.64,.4 dog@noto:.58,.36,.36 car@noto:.8,.72,.34
cat.png        orange  cat@twemoji:.5,.5,.7
penguin.png    blue    penguin@fluent-flat:.3,.5,.5 snowman@fluent-flat:.74,.52,.46
fruit.jpg      white   strawberry@noto:.2,.35,.3 strawberry@noto:.5,.72,.3 strawberry@noto:.78,.3,.3
rocket.png     black   rocket@noto:.32,.3,.42 star@noto:.74,.7,.36
elephant.webp  yellow  elephant@twemoji:.3,.62,.44 balloon@twemoji:.72,.34,.46
music.jpg      purple  guitar@noto:.5,.5,.75
cactus.png     pink    cactus@fluent-3d:.24,.3,.34 cactus@fluent-3d:.3,.76,.34 turtle@fluent-3d:.74,.5,.42
"""


def sample(line, folders, index):
    """-> file name, Scene, [row of the index for each object]"""
    name, colour, *objects = line.split()
    things, rows = [], []
    for i, spec in enumerate(objects):
        noun, rest = spec.split("@")
        style, at = rest.split(":")
        x, y, size = map(float, at.split(","))
        noun = noun.replace("_", " ")
        drawings = S.Drawings(folders, [index], [noun], lambda s, style=style: s == style)
        with open(index, encoding="utf-8", newline="") as f:
            found = [r for r in csv.DictReader(f, delimiter="\t")
                     if (r["noun"], r["vendor"]) == (noun, style)]
        levels = next(iter(drawings.by[noun].values()))
        pick = sum(o.split(":")[0] == spec.split(":")[0] for o in objects[:i]) % len(levels)
        things.append(S.Thing(noun, x, y, size, levels[pick], (0.0, 1.0, False)))
        rows.append(found[pick])
    return name, S.Scene(colour, sorted(things, key=lambda t: t.x), 5), rows


def main():
    ap = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    ap.add_argument("--drawings", required=True)
    ap.add_argument("--index", required=True)
    ap.add_argument("--out", required=True)
    args = ap.parse_args()
    os.makedirs(args.out, exist_ok=True)
    for line in SAMPLES.strip().splitlines():
        name, scene, rows = sample(line, [args.drawings], args.index)
        picture = Image.fromarray(S.render(scene, SIDE, jitter=False)[0])
        picture.save(os.path.join(args.out, name), quality=92)
        about = S.Drawings([args.drawings], [args.index], S.NOUNS, lambda s: s == "noto")
        words, asked = Words(about.plural, about.category, S.NOUNS), {}
        for i in range(12):
            for kind in KINDS:
                text = words.ask(kind, np.random.default_rng(i), scene)
                if text:
                    asked[text[1]] = text[2]
        print(f"\n{name}: {asked.pop('')}")
        for prompt in list(asked)[:8]:
            print(f"    {prompt} {asked[prompt]}")
        for r in sorted({(r["file"], r["licence"]) for r in rows}):
            print(f"    drawing {r[0]}, {r[1]}")


if __name__ == "__main__":
    main()
