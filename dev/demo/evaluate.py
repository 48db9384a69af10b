"""How good the demo model is: runs the program ./blip2 over scenes it has never seen and prints a table.

    python dev/demo/evaluate.py --drawings D --index I --scenes 300 --json scores.json

Two sets of scenes: the styles of the training in compositions (nouns and background colour) that were held
out, and the style that was held out. Every scene gets its caption and one question of every kind it allows.
Beside the program's shares stand chance (the best constant answer) and what transformers' generate gives for
the same picture files with the same weights (unpack.py makes its folder of the weight file); the last line counts
answers in which the two differ. --no-torch leaves PyTorch out.

In this file, in order: Asked (one text to ask), make_set, ask_program, ask_torch, score, the table, main.
"""
import argparse
import collections
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, field

import numpy as np
from PIL import Image

import scenes as S
from texts import KINDS, Words

ROOT = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "..")
SIDE = 224                      # of the picture files; the program shrinks them to the model's size itself
ROWS = ["caption", "noun in caption", *KINDS[1:]]


@dataclass
class Asked:
    image: str
    kind: str
    prompt: str
    right: str
    nouns: list                 # of the scene, singular
    given: dict = field(default_factory=dict)      # "program", "torch" -> text


def make_set(args, folder, keep, compositions):
    """Renders the scenes of one set as PNG files -> list of Asked."""
    drawings = S.Drawings(args.drawings, args.index, S.nouns(args), keep)
    words, out = Words(drawings.plural, drawings.category, drawings.nouns), []
    for i in range(args.scenes):
        scene = S.sample_scene(drawings, args.seed, 2 * 10 ** 9 + i, compositions)
        path = os.path.join(folder, f"{compositions}{i:05d}.png")
        Image.fromarray(S.render(scene, SIDE)[0]).save(path)
        rng = np.random.default_rng([args.seed, i])
        for kind in KINDS:
            text = words.ask(kind, rng, scene)
            if text is not None:
                out.append(Asked(path, kind, text[1], text[2], [n for n, _ in scene.kinds()]))
    return out, words


def run_program(args, prompts, images):
    """One call of the program -> {(image, prompt): text}. Anything unexpected in its output is an error."""
    command = [args.program, "-m", args.model, "--json", "-b", "1", "-n", "40", "-t", str(args.threads)]
    for p in prompts:
        command += ["-p", p]
    done = subprocess.run(command + images, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command[:4])} ... failed: {done.stderr.strip()}")
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    got = {(a["image"], a["prompt"] or ""): a["outputs"][0]["text"].strip() for a in lines}
    wanted = {(i, p) for i in images for p in prompts or [""]}
    if set(got) != wanted:
        raise RuntimeError(f"asked {len(wanted)} texts, the program answered {len(got)}: first difference "
                           f"{next(iter(set(got) ^ wanted))}")
    return got


def ask_program(args, asked):
    by_image, start = {}, time.time()
    for a in asked:
        by_image.setdefault(a.image, []).append(a)
    images = list(by_image)
    got = {}
    for i in range(0, len(images), 100):
        got |= run_program(args, [], images[i:i + 100])             # captions: no prompt
    for n, (image, texts) in enumerate(by_image.items()):
        prompts = list(dict.fromkeys(a.prompt for a in texts if a.prompt))
        if prompts:
            got |= run_program(args, prompts, [image])
        if sys.stderr.isatty():
            print(f"\r{n + 1}/{len(images)} pictures", end="", file=sys.stderr)
    for a in asked:
        a.given["program"] = got[a.image, a.prompt]
    print(f"{len(asked)} texts about {len(images)} pictures in {time.time() - start:.0f} s", file=sys.stderr)


def ask_torch(args, settings, folder, asked):
    """The same with transformers in fp32: picture file -> Pillow's bicubic -> generate."""
    import torch

    import model as M
    import unpack
    torch.set_num_threads(args.threads)
    folder = os.path.join(folder, "hf")
    if not os.path.exists(folder):
        unpack.unpack_folder(folder, args.model, settings)
    net = M.Blip2ForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()
    tok = M.load_tokenizer(folder)
    for i in range(0, len(asked), 256):
        part = asked[i:i + 256]
        small = [np.asarray(Image.open(a.image).convert("RGB").resize((M.IMAGE, M.IMAGE), Image.BICUBIC))
                 for a in part]
        for a, text in zip(part, M.answers(net, tok, M.pixels(small), [a.prompt for a in part]), strict=True):
            a.given["torch"] = text


def nouns_named(text, words):
    """Nouns, singular, that a caption names; longest names first, so that "soccer ball" is not "ball"."""
    out, rest = set(), f" {text} "
    for noun in sorted(words.nouns, key=len, reverse=True):
        for form in {noun, words.plural[noun]}:
            if f" {form} " in rest:
                out.add(noun)
                rest = rest.replace(f" {form} ", " ")
    return out


def score(asked, words, who):
    """-> {row: (share right, number)}; who is "program", "torch" or "chance"."""
    right, count = collections.Counter(), collections.Counter()
    constant = {}
    for kind in KINDS:
        answers = collections.Counter(a.right for a in asked if a.kind == kind)
        constant[kind] = answers.most_common(1)[0][0] if answers else ""
    for a in asked:
        given = constant[a.kind] if who == "chance" else a.given[who]
        right[a.kind] += given == a.right
        count[a.kind] += 1
        if a.kind == "caption":
            named = nouns_named(given, words)
            right["noun in caption"] += sum(n in named for n in a.nouns)
            count["noun in caption"] += len(a.nouns)
    return {r: (right[r] / count[r], count[r]) for r in ROWS if count[r]}


def table(results, who):
    """results {set: {who: score}} -> lines of a Markdown table."""
    sets = list(results)
    lines = ["| | " + " | ".join(f"{s}: {w}" for s in sets for w in who) + " |",
             "|---" * (1 + len(sets) * len(who)) + "|"]
    for r in ROWS:
        cells = [f"{100 * results[s][w][r][0]:.1f} %" if r in results[s][w] else ""
                 for s in sets for w in who]
        lines.append(f"| {r} | " + " | ".join(cells) + " |")
    questions = [r for r in KINDS if r != "caption"]
    cells = []
    for s in sets:
        for w in who:
            parts = [results[s][w][r] for r in questions if r in results[s][w]]
            cells.append(f"{100 * sum(p * n for p, n in parts) / max(sum(n for _, n in parts), 1):.1f} %")
    lines.append("| all questions | " + " | ".join(cells) + " |")
    return lines


def main():
    ap = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    S.add_source_options(ap)
    ap.add_argument("--program", default=os.path.join(ROOT, "blip2"))
    ap.add_argument("--model", default=os.path.join(ROOT, "demo", "demo.bin"))
    ap.add_argument("--settings", metavar="FOLDER", help="the model's config.json [demo/demo-hf of demo/demo.bin]")
    ap.add_argument("--no-torch", action="store_true", help="ask only the program")
    ap.add_argument("--scenes", type=int, default=300, help="for each of the two sets")
    ap.add_argument("--threads", type=int, default=1)
    ap.add_argument("--seed", type=int, default=11)
    ap.add_argument("--json", metavar="FILE", help="write scores and every answer here")
    args = ap.parse_args()
    settings = args.settings or os.path.splitext(args.model)[0] + "-hf"
    who = ["program"] + ["torch"] * (not args.no_torch) + ["chance"]
    results, everything, differ, texts = {}, {}, 0, 0
    with tempfile.TemporaryDirectory() as folder:
        for name, keep, which in (("seen styles, new compositions", lambda s: s != S.HELD_OUT_STYLE, "new"),
                                  ("unseen style", lambda s: s == S.HELD_OUT_STYLE, "any")):
            asked, words = make_set(args, folder, keep, which)
            ask_program(args, asked)
            if not args.no_torch:
                ask_torch(args, settings, folder, asked)
            results[name] = {w: score(asked, words, w) for w in who}
            everything[name] = [asdict(a) for a in asked]
            texts += len(asked)
            if len(who) == 3:
                differ += sum(a.given["program"] != a.given["torch"] for a in asked)
    print("\n".join(table(results, who)))
    if len(who) == 3:
        print(f"\n{differ} of {texts} answers differ between the program and PyTorch")
    if args.json:
        with open(args.json, "w") as f:
            json.dump({"scenes": args.scenes, "seed": args.seed, "scores": results, "answers": everything,
                       "differ": differ}, f, indent=1)


if __name__ == "__main__":
    main()
