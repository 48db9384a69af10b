"""Times the CUDA backend on a card beside the card's own ceilings and beside transformers on the same weights.

    python3 dev/bench_gpu.py opt-2.7b                        under ten minutes; also opt-6.7b, flan-t5-xl, flan-t5-xxl
    python3 dev/bench_gpu.py opt-2.7b --dtypes bf16,int8,int4 --sizes 224,364 --batches 1,32
    python3 dev/bench_gpu.py opt-2.7b --dry-run              the same steps with tiny weights on the CPU, no GPU needed

Needs a C compiler, the CUDA toolkit, torch and transformers; no network, no checkpoint: weights are random, of the real
shapes (export/random_checkpoint.py with the small tokenizer of the tests), kept in --work for the next call.
Time is rationed: --seconds in all (540). What no longer fits is left out and listed at the end as skipped.

In order: the command line, weights, ceilings, this project (dev/bench_backend.c), the peer (a process of its own:
transformers eager, then compiled with a static cache), the table. Floors are dev/cuda/work.py's, at the ceilings read
here. Every time is the median of the rounds with the minimum behind it. The stages of this project are timed by events
on the device, `first` (pixels to first token) and `caption` by the wall clock; the peer's are synchronised at each end.
Last come the targets (doc/kernels.md) that this run can tell about, each met or missed: of an H100.
Not here: the CPU (dev/bench.py), single kernels (dev/cuda/, the ladder), correctness (make test-cuda).
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "dev" / "cuda"))
import work     # noqa: E402

TYPES = {"opt-2.7b": "pretrain_opt2.7b", "opt-6.7b": "pretrain_opt6.7b", "flan-t5-xl": "pretrain_flant5xl",
         "flan-t5-xxl": "pretrain_flant5xxl"}
PROMPT_TOKENS = 8
STAGES = ["vit", "qformer", "prompt", "first", "decode", "caption"]
# Of an H100: decoding, a share of the measured bandwidth by dtype; for opt-2.7b in bf16, seconds.
DECODE_SHARE = {"bf16": 0.88, "int8": 0.82, "int4": 0.72}
VIT, VIT_SHARE, FIRST, CAPTION, CAPTION_TIMES = 1.3e-3, 0.70, 4.0e-3, 43e-3, 7
START = time.monotonic()


def usage():
    """The command line."""
    p = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    p.add_argument("model", choices=[*TYPES])
    p.add_argument("--dtypes", default="bf16", help="of this project: bf16, int8, int4, several with commas [bf16]")
    p.add_argument("--sizes", default="224", help="sides of the image in pixels: 224, 364 or both [224]")
    p.add_argument("--batches", default="1,32", help="images at once [1,32]")
    p.add_argument("--beams", type=int, default=1)
    p.add_argument("--tokens", type=int, default=20, help="new tokens of every answer")
    p.add_argument("--rounds", type=int, default=10)
    p.add_argument("--peers", default="eager,compiled", help="of transformers: eager, compiled, both, or none")
    p.add_argument("--device", default="cuda:0")
    p.add_argument("--seconds", type=float, default=540, help="for everything")
    p.add_argument("--work", type=Path, default=ROOT / "build" / "bench_gpu", help="folder for weights")
    p.add_argument("--out", type=Path, help="also write all figures as JSON into this file")
    p.add_argument("--dry-run", action="store_true", help="tiny weights on the CPU: are all steps in order?")
    p.add_argument("--worker", help=argparse.SUPPRESS)
    a = p.parse_args()
    a.dtypes, a.peers = a.dtypes.split(","), [] if a.peers == "none" else a.peers.split(",")
    a.sizes, a.batches = ([int(x) for x in v.split(",")] for v in (a.sizes, a.batches))
    if not {*a.dtypes} <= {"bf16", "int8", "int4"} or not {*a.peers} <= {"eager", "compiled"}:
        p.error("--dtypes are of bf16, int8, int4; --peers of eager, compiled, or none")
    if not {*a.sizes} <= {224, 364} or min(a.batches) < 1 or a.tokens < 2 or a.rounds < 1:
        p.error("--sizes are 224, 364; batches are at least 1, tokens 2, rounds 1")
    if a.dry_run:
        a.device, a.rounds, a.tokens = "cpu", min(a.rounds, 2), min(a.tokens, 4)
        a.batches = [min(b, 2) for b in a.batches]
    return a


def say(text):
    print(f"[{time.monotonic() - START:5.0f} s] {text}", file=sys.stderr, flush=True)


# ---------------------------------------------------------------------------------------------------------
# Weights.

def checkpoint(a, side):
    """A folder with random weights of the model, made once."""
    t5 = "t5" in a.model
    folder = a.work / (f"tiny-{'t5' if t5 else 'opt'}" if a.dry_run else f"{a.model}-{side}")
    if not (folder / "config.json").exists():
        part = folder.with_suffix(".part")      # complete only under its own name
        shutil.rmtree(part, ignore_errors=True)
        part.parent.mkdir(parents=True, exist_ok=True)
        name = f"tiny_{'t5' if t5 else 'opt'}" if a.dry_run else TYPES[a.model]
        vocabulary = work.MODELS[a.model]["V"]
        real = ["--dtype=bf16", f"--set=vision.image_size={side}", f"--set=text.vocab_size={vocabulary}"]
        say(f"making random weights: {folder.name}")
        subprocess.run([sys.executable, ROOT / "export/random_checkpoint.py", part, "--type", name, "--tokenizer",
                        ROOT / "test/data/tokenizers" / ("unigram" if t5 else "bpe"), *([] if a.dry_run else real)],
                       check=True, stdout=subprocess.DEVNULL)
        part.rename(folder)
    return folder


def weight_file(a, folder, dtype):
    """That folder as a weight file."""
    path = a.work / f"{folder.name}.{dtype}.bin"
    if not path.exists():
        say(f"exporting {path.name}")
        subprocess.run([sys.executable, ROOT / "export/export.py", "-q", folder, "-o", path, "--dtype", dtype],
                       check=True, stdout=sys.stderr)
    return path


# ---------------------------------------------------------------------------------------------------------
# Ceilings of this card at this moment.

def median_of(calls, run, cuda):
    """Median seconds of `run`, after one call that does not count; on a card between two events."""
    import torch
    times = []
    for _ in range(calls + 1):
        start = time.perf_counter()
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2)) if cuda else (None, None)
        if cuda:
            begin.record()
        run()
        if cuda:
            end.record()
            end.synchronize()
        times.append(begin.elapsed_time(end) * 1e-3 if cuda else time.perf_counter() - start)
    return statistics.median(times[1:])


def ceilings(a):
    """{"copy": bytes per second read and written by a device copy, "multiply": bf16 operations per second}."""
    import torch
    cuda = a.device.startswith("cuda")
    n, side = (1 << 31, 8192) if cuda else (1 << 22, 256)
    x = torch.empty(n, dtype=torch.uint8, device=a.device)
    y = torch.empty_like(x)
    copy = median_of(10, lambda: y.copy_(x), cuda)
    p = torch.randn(side, side, device=a.device).bfloat16()
    multiply = median_of(10, lambda: p @ p, cuda)
    return {"copy": 2 * n / copy, "multiply": 2 * side ** 3 / multiply}


def describe(a):
    """What the figures are of: card, driver, versions, commit."""
    import torch
    import transformers
    git = ["git", "-C", ROOT, "rev-parse", "--short", "HEAD"]
    commit = subprocess.run(git, capture_output=True, text=True).stdout.strip()
    card = "CPU (dry run)"
    if a.device.startswith("cuda"):
        query = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
        card = subprocess.run(query, capture_output=True, text=True).stdout.strip() or torch.cuda.get_device_name()
    return {"card": card, "commit": commit or "unknown", "torch": torch.__version__,
            "transformers": transformers.__version__, "cuda": torch.version.cuda}


# ---------------------------------------------------------------------------------------------------------
# This project.

def build(a):
    """Makes the program that times a backend; returns its path."""
    made = ROOT / "build" / "bench_backend"
    targets = [str(made.relative_to(ROOT))] + ([] if a.dry_run else ["build/blip2_cuda.so"])
    subprocess.run(["make", "-C", ROOT, f"-j{os.cpu_count()}", *targets], check=True, stdout=sys.stderr)
    return made


def ours(a, program, file, batch):
    """The JSON object of dev/bench_backend.c, or a string that says why not."""
    command = [program, file, a.device, batch, a.beams, PROMPT_TOKENS, a.tokens, a.rounds]
    run = subprocess.run([str(c) for c in command], capture_output=True, text=True,
                         env={**os.environ, "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "2")})
    if run.returncode:
        return run.stderr.strip().splitlines()[-1]
    result = json.loads(run.stdout)
    if result["upload"]:
        say(f"{result['upload'] / 1e9:.3f} GB of weights uploaded in {result['upload_seconds']:.3f} s, "
            f"{result['upload'] / 1e9 / result['upload_seconds']:.2f} GB/s")
    return result


# ---------------------------------------------------------------------------------------------------------
# transformers, in a process of its own: "batch\n" in, a line of JSON out.

def peer_run(a, folder, kind, batches, left):
    """{batch: figures or why not} of transformers, eager or compiled."""
    command = [sys.executable, __file__, a.model, "--worker", f"{kind}:{folder}", "--device", a.device, "--tokens",
               a.tokens, "--rounds", a.rounds, "--beams", a.beams, "--batches", ",".join(map(str, batches))]
    out = {batch: "ran out of time" for batch in batches}
    try:
        run = subprocess.run([str(c) for c in command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                             timeout=max(1, left))
        text, error = run.stdout, run.stderr
    except subprocess.TimeoutExpired as e:
        text, error = (e.stdout or b"").decode(), ""
    for line in text.splitlines():
        if line.startswith("{"):
            figures = json.loads(line)
            out[figures.pop("batch")] = figures.get("error") or figures
    if error and not text:
        return {batch: error.strip().splitlines()[-1] for batch in batches}
    return out


def worker(a):
    """Inside the peer's process."""
    import torch
    import transformers
    transformers.logging.set_verbosity_error()
    kind, _, folder = a.worker.partition(":")
    cuda = a.device.startswith("cuda")
    synchronize = torch.cuda.synchronize if cuda else lambda: None
    dtype = torch.bfloat16 if cuda else torch.float32
    model = transformers.Blip2ForConditionalGeneration.from_pretrained(folder, dtype=dtype).eval().to(a.device)
    c = model.config
    more = {"do_sample": False, "num_beams": a.beams, "max_new_tokens": a.tokens, "min_new_tokens": a.tokens}
    if kind == "compiled":
        more["cache_implementation"] = "static"
        model.vision_model.forward = torch.compile(model.vision_model.forward, mode="reduce-overhead" if cuda else None)
        model.qformer.forward = torch.compile(model.qformer.forward)
    ends = {}

    def note(stage):
        def hook(*_):
            if stage not in ends:
                synchronize()
                ends[stage] = time.perf_counter()
        return hook
    model.vision_model.register_forward_hook(note("vit"))
    model.language_projection.register_forward_hook(note("qformer"))
    model.language_model.register_forward_hook(note("prompt"))
    side = c.vision_config.image_size
    for batch in a.batches:
        pixels = torch.rand(batch, 3, side, side, generator=torch.Generator().manual_seed(1)).to(a.device, dtype)
        ids = torch.full((batch, c.num_query_tokens + PROMPT_TOKENS), 5)
        ids[:, :c.num_query_tokens] = c.image_token_index
        ids = ids.to(a.device)
        times = {stage: [] for stage in STAGES}
        try:
            for i in range(a.rounds + (3 if kind == "compiled" else 1)):
                ends.clear()
                synchronize()
                start = time.perf_counter()
                with torch.inference_mode():
                    model.generate(pixel_values=pixels, input_ids=ids, attention_mask=torch.ones_like(ids), **more)
                synchronize()
                end = time.perf_counter()
                if i >= (3 if kind == "compiled" else 1):
                    at = [start, ends["vit"], ends["qformer"], ends.get("prompt", end)]
                    for n, stage in enumerate(("vit", "qformer", "prompt")):
                        times[stage].append(at[n + 1] - at[n])
                    times["first"].append(at[3] - start)
                    times["decode"].append((end - at[3]) / (a.tokens - 1))
                    times["caption"].append(end - start)
            print(json.dumps({"batch": batch, **times}), flush=True)
        except Exception as e:       # a peer that fails is a line of the table, not the end of it
            why = f"{type(e).__name__}: {(str(e).splitlines() or ['?'])[0][:100]}"
            print(json.dumps({"batch": batch, "error": why}), flush=True)


# ---------------------------------------------------------------------------------------------------------
# The table.

def floors(a, limit, side, batch, dtype):
    """Stage -> seconds at the ceilings read in this run; None in a dry run, whose weights have other shapes."""
    if a.dry_run:
        return None
    table = work.stages(a.model, side, batch, a.beams, PROMPT_TOKENS, dtype)
    at = limit["copy"], limit["multiply"]
    out = {stage: work.seconds(table[stage], *at) for stage in ("vit", "qformer", "prompt", "decode")}
    first = out["vit"] + out["qformer"] + out["prompt"]
    return {**out, "first": first, "caption": first + (a.tokens - 1) * out["decode"]}


def line(name, side, batch, figures, floor, eager):
    """One line of the table."""
    head = f"{name:<24}{side:>5}{batch:>6}"
    if isinstance(figures, str):
        return f"{head}  {figures}"
    for stage in STAGES:
        median, least = statistics.median(figures[stage]), min(figures[stage])
        head += f"{median * 1e3:>11.3f} ({least * 1e3:.3f})"
        head += f" {100 * floor[stage] / median:>3.0f} %" if floor else ""
    if isinstance(eager, dict):
        head += f"{statistics.median(eager['caption']) / statistics.median(figures['caption']):>8.2f}x"
    return head


def targets(result, tokens):
    """Lines: what is wanted, what was reached in these runs, met or missed; only what was measured."""
    runs = {(r["who"], r["px"], r["batch"]): r for r in result["runs"] if isinstance(r["figures"], dict)}

    def of(who, batch, stage):
        run = runs.get((who, 224, batch))
        return statistics.median(run["figures"][stage]) if run else None
    out = []

    def add(what, wanted, value, met, form):
        if value is not None:
            out.append(f"{what}: {wanted}; measured {form.format(value)}: {'met' if met(value) else 'missed'}")
    for dtype, least in DECODE_SHARE.items():
        floor = runs.get((f"blip2 {dtype}", 224, 1), {}).get("floor")
        add(f"decode {dtype}, share of the measured bandwidth", f"{least:.0%}",
            floor and floor["decode"] / of(f"blip2 {dtype}", 1, "decode"), lambda v, least=least: v >= least, "{:.1%}")
    ms = "{:.3f} ms"
    for what, stage, most in (("ViT, 224 px", "vit", VIT), ("image to first token", "first", FIRST),
                              ("caption of 20 tokens", "caption", CAPTION)):
        value = of("blip2 bf16", 1, stage)
        if result["model"] == "opt-2.7b" and (stage != "caption" or tokens == 20):
            add(what, f"at most {most * 1e3:g} ms", value and value * 1e3, lambda v, most=most: v <= most * 1e3, ms)
    many = of("blip2 bf16", 32, "vit")
    add("ViT, 224 px, batch 32, share of the measured multiply peak", f"{VIT_SHARE:.0%}",
        many and work.operations_of(work.vit(224, 32)) / many / result["ceilings"]["multiply"],
        lambda v: v >= VIT_SHARE, "{:.1%}")
    eager, own = of("transformers eager", 1, "caption"), of("blip2 bf16", 1, "caption")
    add("caption, times as fast as transformers eager", f"{CAPTION_TIMES}", eager and own and eager / own,
        lambda v: v >= CAPTION_TIMES, "{:.2f}")
    return out


def main():
    a = usage()
    if a.worker:
        worker(a)
        return 0
    left = lambda: a.seconds - (time.monotonic() - START)      # noqa: E731
    result, skipped = {"about": describe(a), "model": a.model, "runs": []}, []
    program = build(a)
    result["ceilings"] = limit = ceilings(a)
    print(f"{a.model}{' (DRY RUN: tiny weights, CPU)' if a.dry_run else ''}: {result['about']}")
    print(f"ceilings: device copy {limit['copy'] / 1e9:.1f} GB/s, bf16 multiply {limit['multiply'] / 1e12:.2f} TFLOP/s")
    print("milliseconds: median (minimum), per cent of the floor at these ceilings; last: eager's caption / this one")
    print(f"{'':<24}{'px':>5}{'batch':>6}" + "".join(f"{stage:>20}" for stage in STAGES), flush=True)
    for side in a.sizes:
        folder = checkpoint(a, side)
        eager = {}
        for kind in [k for k in ("eager", "compiled") if k in a.peers]:
            # half of what is left is for this project, which comes last because it is what the table is about
            found = peer_run(a, folder, kind, a.batches, left() / 2)
            eager = eager or found
            for batch, figures in found.items():
                print(line(f"transformers {kind}", side, batch, figures, None, eager.get(batch)), flush=True)
                result["runs"].append({"who": f"transformers {kind}", "px": side, "batch": batch, "figures": figures})
        for dtype in a.dtypes:
            if left() < 30:
                skipped.append(f"{dtype} at {side} px")
                continue
            file = weight_file(a, folder, "f32" if a.dry_run else dtype)
            for batch in a.batches:
                if left() < 10:
                    skipped.append(f"{dtype} at {side} px, batch {batch}")
                    continue
                figures, floor = ours(a, program, file, batch), floors(a, limit, side, batch, dtype)
                print(line(f"blip2 {dtype}", side, batch, figures, floor, eager.get(batch)), flush=True)
                result["runs"].append({"who": f"blip2 {dtype}", "px": side, "batch": batch, "figures": figures,
                                       "floor": floor})
    if a.out:
        a.out.write_text(json.dumps(result, indent=1))
    for text in targets(result, a.tokens):
        print(f"{'target (dry run, means nothing)' if a.dry_run else 'target'}: {text}")
    for what in skipped:
        print(f"skipped, no time left: {what}")
    say("done")
    return int(not all(isinstance(r["figures"], dict) for r in result["runs"] if r["who"].startswith("blip2")))


if __name__ == "__main__":
    sys.exit(main())
