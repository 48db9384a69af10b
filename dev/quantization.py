"""How far bf16, int8 and int4 files are from f32: stage by stage, in weights, and in what the model says.

    python3 dev/quantization.py files f32.bin int8.bin int4.bin --images FOLDER [--prompts FILE]
    python3 dev/quantization.py demo --checkpoint demo/checkpoint --drawings D --index I --markdown doc/quantization.md
    python3 dev/quantization.py loops --file demo/demo.bin --isas avx512vnni,avx512bf16 --drawings D --index I \
                                      --markdown doc/quantization.md

`files` is for a checkpoint of your own: the first file is what the others are compared with (bf16 will do where f32
does not fit), on the pictures of a folder. `demo` exports a checkpoint of the demo model in every way there is, with
the steps that lead to int4 one by one, and asks about 2,000 drawn scenes: the caption of each, and one question of
changing kind. `loops` asks about the same scenes with one file and several versions of the inner loops
(--cpu-isa): what rounding of the activations changes.

In order: the command line, weights, stages, texts, the table, the three commands. Needs numpy and Pillow; --calibrate
and `demo` need torch as well. Errors are relative, |a - b| / |a| in 2-norms. Texts agree when they are the same,
letter by letter. Not here: speed (dev/bench.py), how good the demo model is (dev/demo/evaluate.py).
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "export"), str(ROOT / "dev" / "demo")]

import numpy as np

import hf
import quantize
from container import WeightFile, write_file

PICTURES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".ppm"}
STAGES = {  # column: the stage of --dump, OPT's name and T5's
    "ViT": ("vision_model.post_layernorm",), "Q-Former": ("language_projection",),
    "language model": ("language_model.model.decoder.final_layer_norm", "language_model.decoder.final_layer_norm"),
    "logits": ("logits",)}
BEGIN, END = "<!-- {} table: written by dev/quantization.py -->", "<!-- end of the table -->"


def usage():
    """The command line."""
    p = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    sub = p.add_subparsers(dest="command", required=True)
    files, demo, loops = (sub.add_parser(name) for name in ("files", "demo", "loops"))
    files.add_argument("files", nargs="+", type=Path, metavar="WEIGHTS", help="the first is the reference")
    files.add_argument("--images", type=Path, required=True, help="folder of pictures")
    files.add_argument("--prompts", type=Path, help="one prompt a line [captions, and two questions]")
    demo.add_argument("--checkpoint", type=Path, required=True, help="Hugging Face folder of the demo model")
    loops.add_argument("--file", type=Path, default=ROOT / "demo" / "demo.bin", help="weight file of the demo model")
    loops.add_argument("--isas", required=True, help="names for --cpu-isa, with commas; the first is the reference")
    for q in demo, loops:
        q.add_argument("--drawings", nargs="+", required=True, help="as for dev/demo/evaluate.py")
        q.add_argument("--index", nargs="+", required=True)
        q.add_argument("--scenes", type=int, default=2000)
        q.add_argument("--seed", type=int, default=11)
    demo.add_argument("--calibration-scenes", type=int, default=256)
    demo.add_argument("--commit", help="commit of the checkpoint, for the text above the table [that of HEAD]")
    for q in files, demo, loops:
        q.add_argument("--program", default=str(ROOT / "blip2"))
        q.add_argument("-t", "--threads", type=int, default=1)
        q.add_argument("-b", "--beams", type=int, default=1)
        q.add_argument("--dumps", type=int, default=16, help="pictures whose stages are compared")
        q.add_argument("--work", type=Path, help="folder to keep what was made")
        q.add_argument("--markdown", type=Path, help="put the table between its marks in this file")
    return p.parse_args()


@dataclass
class Asked:
    """A text to ask for, and what each weight file answered."""
    image: str
    prompt: str
    kind: str
    right: str | None = None
    given: dict = field(default_factory=dict)


@dataclass
class Row:
    """A weight file and what was found out about it."""
    name: str
    file: Path
    isa: str = "auto"
    weights: float = 0.0
    stages: dict = field(default_factory=dict)


def say(text):
    print(text, file=sys.stderr, flush=True)


# ---------------------------------------------------------------------------------------------------------


def relative(a, b):
    """|a - b| / |a|; infinite when anything is not finite."""
    if a.shape != b.shape or not (np.isfinite(a).all() and np.isfinite(b).all()):
        return float("inf")
    return float(np.linalg.norm((a - b).astype(np.float64)) / max(np.linalg.norm(a.astype(np.float64)), 1e-30))


def weight_error(reference, file):
    """The root mean square of the matrices' relative errors, each counting the same."""
    a, b = WeightFile(reference), WeightFile(file)
    if set(a.records) != set(b.records):
        raise SystemExit(f"{file} has other tensors than {reference}: not the same model")
    matrices = [r.name for r in b.records.values() if r.dtype != "f32"]
    return float(np.sqrt(np.mean([relative(a.tensor(n), b.tensor(n)) ** 2 for n in matrices]))) if matrices else 0.0


def run(command):
    """Standard output of a program that must succeed."""
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(map(str, command[:6]))} ...: exit code {done.returncode}: {done.stderr.strip()}")
    return done.stdout


def read_dump(path):
    """Stage -> f32 array of a file written by --dump (safetensors)."""
    data = path.read_bytes()
    at = 8 + int.from_bytes(data[:8], "little")
    return {name: np.frombuffer(data[at + t["data_offsets"][0]:at + t["data_offsets"][1]], np.float32)
            for name, t in json.loads(data[8:at]).items() if name != "__metadata__"}


def dump(args, row, asked, folder):
    """All stages for one picture and prompt."""
    out = Path(folder) / "stages"
    run([args.program, "--quiet", "-m", row.file, "--cpu-isa", row.isa, "-t", args.threads, "-b", 1, "-n", 1, "-p",
         asked.prompt, "--dump", out, asked.image])
    return read_dump(out)


def stage_errors(args, rows, asked):
    """Fills in Row.stages: the mean over pictures of each stage's relative error."""
    with tempfile.TemporaryDirectory() as folder:
        for a in asked[:args.dumps]:
            want = dump(args, rows[0], a, folder)
            for r in rows[1:]:
                got = dump(args, r, a, folder)
                for column, names in STAGES.items():
                    name = next(n for n in names if n in want)
                    r.stages.setdefault(column, []).append(relative(want[name], got[name]))
    for r in rows:
        r.stages = {column: float(np.mean(e)) for column, e in r.stages.items()}


def ask(args, row, asked):
    """Fills in Asked.given[row.name]: one call of the program per picture, two at a time."""
    by_image = {}
    for a in asked:
        by_image.setdefault(a.image, []).append(a)

    def one(image):
        texts = by_image[image]
        prompts = [x for a in texts for x in ("-p", a.prompt)]
        lines = run([args.program, "--quiet", "-m", row.file, "--cpu-isa", row.isa, "--json", "-b", args.beams,
                     "-n", 40, "-t", args.threads, *prompts, image]).splitlines()
        outputs = [json.loads(line) for line in lines]
        if [o["prompt"] for o in outputs] != [a.prompt for a in texts]:
            raise SystemExit(f"{image}: asked {len(texts)} prompts, answered {[o['prompt'] for o in outputs]}")
        for a, o in zip(texts, outputs):
            a.given[row.name] = o["outputs"][0]["text"].strip()
    start = time.time()
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(one, by_image))
    say(f"{row.name}: {len(asked)} texts about {len(by_image)} pictures in {time.time() - start:.0f} s")


def table(rows, asked):
    """The report as lines of Markdown. Right answers are counted where they are known."""
    kinds = {}
    for a in asked:
        kinds.setdefault("captions" if a.kind == "caption" else "answers", []).append(a)
    known = all(a.right is not None for a in asked)
    head = ["weight file", "size", "weights", *rows[-1].stages, *(f"same {k}" for k in kinds)]
    head += [f"right {k}" for k in kinds] if known else []
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    first = rows[0].name
    for r in rows:
        cells = [r.name, f"{r.file.stat().st_size / 1e6:.1f} MB"]
        errors = (r.weights, *(r.stages or rows[-1].stages).values())
        cells += [f"{100 * e:.2f} %" if r.name != first else "" for e in errors]
        for texts in kinds.values():
            same = sum(a.given[r.name] == a.given[first] for a in texts)
            cells.append("" if r.name == first else f"{100 * same / len(texts):.2f} %")
        for texts in kinds.values() if known else []:
            cells.append(f"{100 * sum(a.given[r.name] == a.right for a in texts) / len(texts):.1f} %")
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def publish(path, name, lines):
    """Prints the lines, and puts them between the marks of that name in a file, which must have them."""
    print("\n".join(lines))
    if path:
        text, begin = path.read_text(), BEGIN.format(name)
        if begin not in text or END not in text.split(begin, 1)[1]:
            raise SystemExit(f"{path}: the marks '{begin}' and '{END}' are missing")
        before, rest = text.split(begin, 1)
        path.write_text(before + begin + "\n" + "\n".join(lines) + "\n" + END + rest.split(END, 1)[1])


def measure(args, rows, asked):
    """Everything about all files."""
    for r in rows[1:]:
        r.weights = weight_error(rows[0].file, r.file)
    stage_errors(args, rows, asked)
    for r in rows:
        ask(args, r, asked)


def asked_text(args, asked):
    """What was asked, for the line above a table."""
    images = len({a.image for a in asked})
    how = "greedy" if args.beams == 1 else f"{args.beams} beams"
    return (f"{images} pictures, {len(asked)} texts, {how}; stages: mean of {min(args.dumps, len(asked))} pictures. "
            f"Errors are relative to {{}}.")


# ---------------------------------------------------------------------------------------------------------


def command_files(args):
    """A user's own files and pictures."""
    images = sorted(str(p) for p in args.images.iterdir() if p.suffix.lower() in PICTURES)
    if not images:
        raise SystemExit(f"{args.images}: no pictures")
    prompts = ["", "Question: what is in the picture? Answer:", "Question: how many people are there? Answer:"]
    if args.prompts:
        prompts = args.prompts.read_text().splitlines() or [""]
    asked = [Asked(i, p, "answer" if "uestion" in p else "caption") for i in images for p in prompts]
    rows = [Row(f.name, f) for f in args.files]
    measure(args, rows, asked)
    c = WeightFile(args.files[0]).config
    publish(args.markdown, "files", ["", f"{c['type']}: " + asked_text(args, asked).format(rows[0].name), "",
                                     *table(rows, asked)])
    for a in asked[:0 if args.markdown else 12]:
        print(f"\n{a.image} {a.prompt!r}")
        for r in rows:
            print(f"    {r.name:24} {a.given[r.name]}")


def scenes(args, folder, count, compositions, kinds, first):
    """Draws scenes as PNG files -> [Asked]: of each the caption and a question of changing kind."""
    import scenes as S
    from PIL import Image
    from texts import KINDS, Words
    drawings = S.Drawings(args.drawings, args.index, S.NOUNS, lambda style: style != S.HELD_OUT_STYLE)
    words, out = Words(drawings.plural, drawings.category, drawings.nouns), []
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(count):
        scene = S.sample_scene(drawings, args.seed, first + i, compositions)
        path = folder / f"{i:05d}.png"
        if not path.exists():
            Image.fromarray(S.render(scene, 224)[0]).save(path)
        rng = np.random.default_rng([args.seed, first + i])
        for kind in ["caption", KINDS[1 + i % (len(KINDS) - 1)]][:kinds]:
            text = words.ask(kind, rng, scene) or words.ask("yes/no", rng, scene)   # not every scene has a position
            out.append(Asked(str(path), text[1], kind, text[2]))
    return out


def nearest_rows(x, weight=None):
    """int4 as one would first write it: the largest magnitude of a group becomes level 7, nothing is fitted."""
    rows, x = len(x), quantize.padded(x).reshape(-1, quantize.GROUP)
    half = (np.abs(x).max(1) / 7).astype(np.float16)
    return (quantize.to_levels(x, quantize.inverse(half.astype(np.float32)), -8, 7).reshape(rows, -1),
            half.reshape(rows, -1))


def variants(args, work, calibration):
    """Exports the checkpoint in every dtype, and to int4 step by step -> [Row]."""
    import calibrate
    import re
    kept, rounding, rows = quantize.KEPT_IN_INT8, quantize.int4_rows, []
    s, tokenizer, entries, lookup = hf.open_checkpoint(args.checkpoint)

    def write(name, dtype, moments=None):
        path = work / (name.replace(" ", "_").replace(",", "").replace("+", "and") + ".bin")
        write_file(path, s.config, tokenizer.blob, entries, dtype, lookup.chunks, True, moments)
        rows.append(Row(name, path))
    for dtype in "f32", "bf16", "int8":
        write(dtype, dtype)
    quantize.KEPT_IN_INT8, quantize.int4_rows = re.compile("none"), nearest_rows
    write("int4 to nearest everywhere", "int4")
    quantize.int4_rows = rounding
    write("int4 with fitted scales everywhere", "int4")
    quantize.KEPT_IN_INT8 = kept
    write("int4", "int4")
    for dtype in "int8", "int4":
        known = calibrate.Moments(args.checkpoint, calibration, entries, dtype, True)
        write(f"{dtype} calibrated", dtype, known.of)
    return rows


def command_demo(args):
    """The demo model."""
    with tempfile.TemporaryDirectory() as temporary:
        work = args.work or Path(temporary)
        asked = scenes(args, work / "scenes", args.scenes, "new", 2, 2 * 10 ** 9)
        learnt = scenes(args, work / "calibration", args.calibration_scenes, "seen", 2, 10 ** 9)
        prompts = ["", *(a.prompt for a in learnt if a.prompt)]
        (work / "calibration" / "prompts.txt").write_text("".join(f"{p}\n" for p in prompts))
        rows = variants(args, work, work / "calibration")
        measure(args, rows, asked)
        commit = args.commit or run(["git", "-C", ROOT, "rev-parse", "--short", "HEAD"]).strip()
        publish(args.markdown, "demo", ["", f"Demo model of commit {commit}: " + asked_text(args, asked).format("f32"),
                                        "", *table(rows, asked)])


def command_loops(args):
    """The demo model under several versions of the inner loops."""
    with tempfile.TemporaryDirectory() as temporary:
        asked = scenes(args, (args.work or Path(temporary)) / "scenes", args.scenes, "new", 2, 2 * 10 ** 9)
        rows = [Row(f"{args.file.name}, {isa}", args.file, isa) for isa in args.isas.split(",")]
        measure(args, rows, asked)
        publish(args.markdown, "loops", ["", asked_text(args, asked).format(rows[0].name), "", *table(rows, asked)])


if __name__ == "__main__":
    arguments = usage()
    {"files": command_files, "demo": command_demo, "loops": command_loops}[arguments.command](arguments)
