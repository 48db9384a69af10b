"""Times ./blip2 beside transformers and CTranslate2 on the same weights and threads, and beside what the machine could
do at most.

    python3 dev/bench.py prepare --type pretrain_opt2.7b --tokenizer ../shared/tokenizers/opt  weight files; slow
    python3 dev/bench.py run --minutes 8                                             one piece of the measurement
    python3 dev/bench.py table --markdown doc/performance.md --picture doc/performance.png
    python3 dev/bench.py gpu opt-2.7b                        the CUDA backend on a card: dev/bench_gpu.py, its options

`prepare` makes a checkpoint of random weights (or takes --folder, any Hugging Face BLIP-2) and exports it in every
dtype. `run` needs a machine that does nothing else. It goes through the engines in turns, for as long as --minutes, and
adds what it finds to --json; called again it goes on with what was measured least, until there are --rounds of
everything. `table` makes the report from that (bench_table.py). --quick stands for one round and 6 tokens; --layers N
with `prepare` for a model of N layers.

A unit of work is one engine at one dtype: ./blip2 at one number of threads, greedy and with beams, a process each as a
user has it, its file in the page cache as an earlier one left it; a peer at all numbers of threads (bench_peers.py),
which keeps its model. The ceilings (dev/ceiling.c) are read before and after every process of ./blip2: a shared machine
gives half of its memory bandwidth at one minute and all of it at the next, so a share of a ceiling means something only
with the ceiling of that minute. A dtype may name an instruction set, as in bf16+avx512bf16; --isa avx2 holds everything
to AVX2, peers and peak included, so that a newer processor stands in for an older one. What does not fit into memory is
left out with the reason; of transformers in f32 half of the language model's layers are tried then, and marked.

In order: the command line, preparing, ceilings, engines, the record, pieces, main. Not here: single products
(build/ceiling --matmul), correctness (test/parity_model.py, dev/fullsize.py).
"""

import argparse
import json
import os
import platform
import re
import select
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import bench_table

ROOT = Path(__file__).resolve().parent.parent
IMAGE = ROOT / "test" / "data" / "tiny_0.png"
PROMPT = "a photo of"
DTYPES = ["f32", "bf16", "int8", "int4"]
PATIENCE = 420                                   # seconds that a peer may take for one answer
SPARE = 600e6                                    # bytes that ./blip2 needs beside its file
# PyTorch's own loops, oneDNN, MKL, CTranslate2.
ONLY_AVX2 = {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2", "MKL_ENABLE_INSTRUCTIONS": "AVX2",
             "CT2_FORCE_CPU_ISA": "AVX2"}


def usage():
    """The command line."""
    p = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    p.add_argument("command", choices=["prepare", "run", "table", "gpu"], help="gpu --help for that one's options")
    p.add_argument("--folder", type=Path, help="prepare: a Hugging Face BLIP-2 folder")
    p.add_argument("--type", help="prepare: or random weights of this type (export/random_checkpoint.py)")
    p.add_argument("--tokenizer", type=Path, help="with --type: a folder of tokenizer files")
    p.add_argument("--layers", type=int, help="with --type: only this many layers in ViT and language model")
    p.add_argument("--work", type=Path, default=ROOT / "build" / "bench", help="folder of checkpoint and weight files")
    p.add_argument("--json", type=Path, help="the record of all measurements [results.json in --work]")
    p.add_argument("--minutes", type=float, default=8, help="run: begin nothing that would end later")
    p.add_argument("--rounds", type=int, default=3)
    p.add_argument("--threads", default="2,1", help="with commas")
    p.add_argument("--tokens", type=int, default=17, help="new tokens of every answer")
    p.add_argument("--beams", type=int, default=5)
    p.add_argument("--dtypes", default="bf16,int8,int4,f32", help="of ./blip2; dtype+ISA forces an instruction set")
    p.add_argument("--peers", help="or none [transformers-bf16,ctranslate2-int8,transformers-f32; AVX2: without bf16, "
                   "which takes minutes there]")
    p.add_argument("--isa", choices=["avx2"], help="run: hold all engines and the peak to these instructions")
    p.add_argument("--quick", action="store_true", help="one round, 6 tokens")
    p.add_argument("--markdown", type=Path, help="table: put it between its marks in this file")
    p.add_argument("--section", default="speed table", help="table: the name in those marks")
    p.add_argument("--picture", type=Path, help="table: and draw it (needs matplotlib)")
    args = p.parse_args()
    if args.command == "prepare" and not args.folder and not (args.type and args.tokenizer):
        p.error("prepare needs either --folder, or --type and --tokenizer")
    args.dtypes = args.dtypes.split(",")
    args.peers = args.peers or ",".join(e for e in bench_table.PEERS if not (args.isa and e.endswith("bf16")))
    args.peers = [] if args.peers == "none" else args.peers.split(",")
    args.threads = [int(t) for t in args.threads.split(",")]
    if not {d.split("+")[0] for d in args.dtypes} <= {*DTYPES} or not {*args.peers} <= {*bench_table.PEERS}:
        p.error(f"--dtypes are of {', '.join(DTYPES)}; --peers of {', '.join(bench_table.PEERS)}")
    args.json = args.json or args.work / (f"results-{args.isa}.json" if args.isa else "results.json")
    if args.quick:
        args.rounds, args.tokens = 1, min(args.tokens, 6)
    return args


def say(text):
    print(text, file=sys.stderr, flush=True)


def command(*words, **more):
    """Runs a program that must succeed; its standard output goes to our standard error."""
    subprocess.run([str(w) for w in words], check=True, stdout=sys.stderr, **more)


# ---------------------------------------------------------------------------------------------------------------------
# Preparing. A folder or file has its name only once it is complete.


def prepare(args):
    """Checkpoint, weight files, the model for CTranslate2; what is there already stays."""
    args.work.mkdir(parents=True, exist_ok=True)
    link, python = args.work / "checkpoint", sys.executable
    folder = args.folder
    if not folder:
        folder = args.work / (args.type + (f"_{args.layers}layers" if args.layers else ""))
        if not folder.exists():
            keys = ["vision.num_hidden_layers"]
            keys += ["text.num_layers", "text.num_decoder_layers"] if "t5" in args.type else ["text.num_hidden_layers"]
            sets = [f"--set={key}={args.layers}" for key in keys] if args.layers else []
            part = folder.with_suffix(folder.suffix + ".part")
            shutil.rmtree(part, ignore_errors=True)
            command(python, ROOT / "export/random_checkpoint.py", part, "--type", args.type, "--tokenizer",
                    args.tokenizer, "--dtype", "bf16", *sets)
            part.rename(folder)
    link.unlink(missing_ok=True)
    link.symlink_to(folder.resolve())
    for dtype in args.dtypes:
        if not weight_file(args, dtype).exists():
            say(f"exporting {weight_file(args, dtype)}")
            command(python, ROOT / "export/export.py", "-q", folder, "-o", weight_file(args, dtype), "--dtype", dtype)
    if "ctranslate2-int8" in args.peers and not (args.work / "ct2").exists():
        say("converting for CTranslate2")
        command(python, ROOT / "dev/bench_peers.py", "convert", folder, args.work / "ct2")


def weight_file(args, dtype):
    """Where the exported weights of a dtype are."""
    return args.work / f"{dtype.split('+')[0]}.bin"


def config_of(args):
    """config.json of the checkpoint."""
    return json.loads((args.work / "checkpoint" / "config.json").read_text())


def halved(args):
    """A folder with the same tensors of which transformers uses the first half of the language model's layers."""
    out, config = args.work / "half", config_of(args)
    text = config["text_config"]
    for key in ("num_hidden_layers", "num_layers", "num_decoder_layers"):
        if key in text:
            text[key] = text[key] // 2
    out.mkdir(exist_ok=True)
    for f in (args.work / "checkpoint").iterdir():
        if f.name != "config.json" and not (out / f.name).exists():
            (out / f.name).symlink_to(f.resolve())
    (out / "config.json").write_text(json.dumps(config))
    return out


def build():
    """Makes ./blip2 and dev/ceiling.c; returns the path of the latter."""
    command("make", "-C", ROOT, "blip2")
    ceiling = ROOT / "build" / "ceiling"
    parts = [ROOT / "dev/ceiling.c", *sorted((ROOT / "build").glob("matmul*.o")), ROOT / "build/threads.o",
             ROOT / "build/common.o"]
    if not ceiling.exists() or ceiling.stat().st_mtime < max(f.stat().st_mtime for f in parts):
        command(os.environ.get("CC", "cc"), "-std=c11", "-D_GNU_SOURCE", "-O3", "-pthread", "-o", ceiling, *parts,
                "-lm")
    return ceiling


# ---------------------------------------------------------------------------------------------------------------------


def ceilings(args, program, threads):
    """{"read": bytes per second, "multiply": f32 operations per second, ...} of this moment."""
    words = [program, "-t", str(threads), "-r", "6", *(["--isa", args.isa] if args.isa else [])]
    out = subprocess.run(words, check=True, stdout=subprocess.PIPE, text=True).stdout
    return {key: float(value) * 1e9 for key, value in re.findall(r"(\w+) ([0-9.]+) G", out)}


def available():
    """Bytes of memory that could be had without swapping."""
    text = Path("/proc/meminfo").read_text() if Path("/proc/meminfo").exists() else ""
    found = re.search(r"MemAvailable:\s+(\d+) kB", text)
    return int(found[1]) * 1024 if found else 0


def machine():
    """The processor's name and the instruction sets that matter here."""
    text = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    model, flags = re.search(r"model name\s*: (.*)", text), re.search(r"flags\s*: (.*)", text)
    wanted = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16", "amx_int8")
    have = [f for f in wanted if flags and f in flags[1].split()]
    family = re.search(r"cpu family\s*: (.*)\nmodel\s*: (.*)", text)
    name = model[1] if model else platform.processor()
    name += f" family {family[1]} model {family[2]}" if family else ""
    return f"{name}, {os.cpu_count()} cores ({', '.join(have) or 'none of ' + ', '.join(wanted)})"


# ---------------------------------------------------------------------------------------------------------------------
# Engines. A unit yields ((threads, beams), result); a result is stage -> seconds, "peak" in bytes, and the like.


def run_blip2(args, dtype, threads, beams):
    """One process. Greedy answers are streamed: "first" is the time from its start until the first text came."""
    words = [ROOT / "blip2", "-v", "-m", weight_file(args, dtype), "-t", threads, "-b", beams, "-n", args.tokens,
             "--min-tokens", args.tokens, "-p", PROMPT, *(["--stream"] if beams == 1 else []), IMAGE]
    isa = dtype.split("+")[1] if "+" in dtype else args.isa
    words += ["--cpu-isa", isa] if isa else []
    with tempfile.TemporaryFile("w+") as told:
        start = time.perf_counter()
        p = subprocess.Popen([str(w) for w in words], stdout=subprocess.PIPE, stderr=told)
        os.read(p.stdout.fileno(), 1)
        first = time.perf_counter() - start
        p.stdout.read()
        p.wait()
        told.seek(0)
        text = told.read()
    if p.returncode:
        raise SystemExit(f"./blip2 failed: {text}")
    result = {stage: float(s) for stage, s in re.findall(r"^time: (\w+) ([0-9.e-]+) s$", text, re.M)}
    steps, seconds = re.search(r"^time: decode (\d+) steps ([0-9.e-]+) s$", text, re.M).groups()
    result["caption"] = sum(result.get(s, 0) for s in ("image", "vit", "qformer", "prompt")) + float(seconds)
    result["decode"] = float(seconds) / max(1, int(steps) - 1)      # the first token comes from the prompt's pass
    if beams == 1:
        result["first"] = first
    peak = re.search(r"^memory: ([0-9.]+) MB", text, re.M)       # read before -v's bandwidth test, which takes 256 MB
    return {**result, "peak": float(peak[1]) * 1e6, "file": weight_file(args, dtype).stat().st_size}


def warm(args, dtype, threads):
    """The file goes out of the page cache, and comes back as a run of ./blip2 leaves it there: in pages of 2 MB where
    the system has them for files (model.c, readahead.c). A plain read leaves small ones, which later runs keep. And
    where the system takes back what seems unused, a run has used it all."""
    with open(weight_file(args, dtype), "rb", 0) as f:
        os.posix_fadvise(f.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    run_blip2(args, dtype, threads, 1)


def unit_blip2(args, dtype, threads, ceiling):
    """./blip2 at one number of threads; each result with the ceilings beside it, the better of before and after."""
    file = weight_file(args, dtype)
    if not file.exists():
        raise MemoryError(f"there is no {file.name} (prepare)")
    if file.stat().st_size + SPARE > available():
        raise MemoryError(f"{file.stat().st_size / 1e9:.1f} GB of weights, {available() / 1e9:.1f} GB free")
    warm(args, dtype, threads)
    before = ceilings(args, ceiling, threads)
    for beams in 1, args.beams:
        result = run_blip2(args, dtype, threads, beams)
        after = ceilings(args, ceiling, threads)
        yield (threads, beams), {**result, "ceilings": {key: max(before[key], after[key]) for key in after}}
        before = after


def peer_folder(args, engine):
    """(folder, whether only half of the language model) for what memory there is."""
    folder = args.work / ("ct2" if engine == "ctranslate2-int8" else "checkpoint")
    if not folder.exists():
        raise MemoryError(f"there is no {folder.name} (prepare)")
    size = sum(f.stat().st_size for f in folder.glob("*.safetensors" if folder.name == "checkpoint" else "model.bin"))
    need = size * (2 if engine == "transformers-f32" else 1) * 1.05 + 1e9     # checkpoints are in bf16
    if need < available():
        return folder, False
    if engine == "transformers-f32" and need * 0.67 < available():
        return halved(args), True
    raise MemoryError(f"needs about {need / 1e9:.1f} GB, {available() / 1e9:.1f} GB free")


def ask(process, line, patience):
    """What a peer answers to a line, or to nothing at first."""
    if line:
        process.stdin.write(line + "\n")
        process.stdin.flush()
    if not select.select([process.stdout], [], [], patience)[0]:
        raise MemoryError(f"no answer within {patience} s")
    said = process.stdout.readline()
    if not said:
        raise MemoryError("ended without an answer; too little memory, or not installed?")
    return json.loads(said)


def unit_peer(args, engine):
    """A peer at all numbers of threads."""
    folder, half = peer_folder(args, engine)
    process = subprocess.Popen(
        [sys.executable, ROOT / "dev/bench_peers.py", engine, folder, str(args.tokens)], text=True, bufsize=1,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        env={**os.environ, "OMP_NUM_THREADS": str(max(args.threads)), **(ONLY_AVX2 if args.isa else {})})
    try:
        load = ask(process, None, PATIENCE)
        for threads in args.threads:
            for beams in 1, args.beams:
                yield (threads, beams), {**ask(process, f"{threads} {beams}", PATIENCE), **load, "half": half}
    finally:
        process.kill()
        process.wait()


# ---------------------------------------------------------------------------------------------------------------------
# The record: {"head": {...}, "ceilings": [...], "runs": [...], "took": {unit: [seconds]}, "left_out": {unit: why}}


def commit():
    """The last commit that touched what is measured, with a mark when it was changed since."""
    def git(*words):
        return subprocess.run(["git", "-C", ROOT, *words, "--", ":(glob)*.[ch]", "Makefile"], stdout=subprocess.PIPE,
                              text=True).stdout.strip()
    return git("log", "-1", "--format=%h", "--abbrev=10") + (" and changes" if git("status", "--porcelain") else "")


def record(args):
    """What was measured so far; must be of the same machine, model and commit."""
    config = config_of(args)
    head = {"machine": machine(), "model": (args.work / "checkpoint").resolve().name, "commit": commit(),
            "tokens": args.tokens, "beams": args.beams, "isa": args.isa, "config": config}
    known = {"head": head, "ceilings": [], "runs": [], "took": {}, "left_out": {}}
    if args.json.exists():
        known = json.loads(args.json.read_text())
        other = [key for key in head if known["head"].get(key) != head[key]]
        if other:
            raise SystemExit(f"{args.json}: was measured with another {', '.join(other)}; hint: another --json")
    return known


def save(args, known):
    """Replaces the file as a whole."""
    part = args.json.with_suffix(".part")
    part.write_text(json.dumps(known, indent=1))
    part.rename(args.json)


def units(args):
    """All units (engine, threads or None) in the order of a round."""
    ours = [(f"blip2-{dtype}", t) for dtype in args.dtypes for t in args.threads]
    peers = [(engine, None) for engine in args.peers]
    out = []
    while ours or peers:         # engines in turns; f32 files push the others out of the page cache, so they come last
        out += ours[:2] + peers[:1]
        ours, peers = ours[2:], peers[1:]
    return out


def piece(args):
    """Measures until --minutes are over or everything has its rounds."""
    end, ceiling = time.monotonic() + 60 * args.minutes, build()
    known = record(args)
    for n in range(args.rounds):
        for unit in units(args):
            name = " ".join(str(part) for part in unit if part)
            took = known["took"].setdefault(name, [])
            if len(took) > n:
                continue
            guess = max(took) * 1.1 if took else 0
            if time.monotonic() + guess > end:
                continue
            say(f"round {n + 1}, {name}")
            start = time.monotonic()
            try:
                engine, threads = unit
                if threads:
                    measure = unit_blip2(args, engine.split("-", 1)[1], threads, ceiling)
                else:
                    measure = unit_peer(args, engine)
                for (threads, beams), result in measure:
                    if found := result.pop("ceilings", None):
                        known["ceilings"].append({"threads": threads, **found})
                        result.update(read_ceiling=found["read"], multiply_ceiling=found["multiply"])
                    known["runs"].append({"engine": engine, "threads": threads, "beams": beams, **result})
                    say(f"  {threads} threads, {beams} beams: " + ", ".join(
                        f"{k} {v:.3f}" for k, v in result.items() if isinstance(v, float)))
                known["left_out"].pop(name, None)
                took.append(time.monotonic() - start)
            except MemoryError as e:
                say(f"  left out: {e}")
                known["left_out"][name] = str(e)
            save(args, known)
    say(f"{args.json}: rounds so far: " + ", ".join(f"{name} {len(took)}" for name, took in known["took"].items()))


def main():
    if sys.argv[1:2] == ["gpu"]:
        import bench_gpu
        sys.argv[:2] = [f"{sys.argv[0]} gpu"]
        sys.exit(bench_gpu.main())
    args = usage()
    if args.command == "prepare":
        prepare(args)
    elif args.command == "run":
        piece(args)
    else:
        bench_table.publish(json.loads(args.json.read_text()), args.markdown, args.section, args.picture)


if __name__ == "__main__":
    main()
