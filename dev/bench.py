"""Times ./blip2 beside transformers on the same weights and threads, and beside what the machine could do at most.

    python3 dev/bench.py --type pretrain_opt2.7b --tokenizer ../shared/tokenizers/opt            full size, random weights
    python3 dev/bench.py --type pretrain_opt2.7b --tokenizer ../shared/tokenizers/opt --layers 4       quick, fewer layers
    python3 dev/bench.py --folder SOME_CHECKPOINT --peers f32                                    any Hugging Face folder

--quick takes one round and fewer tokens; --ct2 int8 adds CTranslate2 for the language model (pip install ctranslate2).

In order: the command line, making what is measured, work and floors from config.json, one run of ./blip2, the peer (a
process of its own that keeps its model), rounds, the table. Every figure is the minimum and the median of the rounds;
the ceilings (dev/ceiling.c) are read in every round too. Engines take turns where all fit into memory at once, else one
after the other, and the report says which. A full-size opt-2.7b needs 16 GB of memory for transformers in f32.
Not here: single products (build/ceiling --matmul), correctness (test/parity_model.py, dev/fullsize.py).
"""

import argparse
import json
import os
import platform
import re
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
IMAGE = ROOT / "test" / "data" / "tiny_0.png"
PROMPT = "a photo of"
STAGES = ["load", "vit", "qformer", "prompt", "decode", "caption"]
BYTES = {"f32": 4, "bf16": 2, "int8": 1, "int4": 0.5625}     # int4 with its scales


def usage():
    """The command line."""
    p = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    p.add_argument("--folder", type=Path, help="a Hugging Face BLIP-2 folder")
    p.add_argument("--type", help="or random weights of this type (export/random_checkpoint.py)")
    p.add_argument("--tokenizer", type=Path, help="with --type: a folder of tokenizer files")
    p.add_argument("--layers", type=int, help="with --type: only this many layers in ViT and language model")
    p.add_argument("--work", type=Path, default=ROOT / "build" / "bench", help="folder for checkpoints and weight files")
    p.add_argument("--threads", type=int, default=2)
    p.add_argument("--rounds", type=int, default=3)
    p.add_argument("--tokens", type=int, default=17, help="new tokens of every answer")
    p.add_argument("--dtypes", default="bf16", help="of ./blip2: f32, bf16, int8, int4, several with commas")
    p.add_argument("--peers", default="f32", help="of transformers: f32, bf16, both with a comma, or none")
    p.add_argument("--ct2", default="none", help="of CTranslate2, language model only: float32, bfloat16, int8 or several")
    p.add_argument("--quick", action="store_true", help="one round, 6 tokens")
    p.add_argument("--apart", action="store_true", help="one engine after the other, even if memory would do for all")
    p.add_argument("--worker", choices=["f32", "bf16", "float32", "bfloat16", "int8"], help=argparse.SUPPRESS)
    args = p.parse_args()
    if not args.folder and not (args.type and args.tokenizer):
        p.error("either --folder, or --type and --tokenizer")
    args.dtypes = args.dtypes.split(",")
    args.peers = [] if args.peers == "none" else args.peers.split(",")
    args.ct2 = [] if args.ct2 == "none" else args.ct2.split(",")
    if not {*args.dtypes} <= {*BYTES} or not {*args.peers} <= {"f32", "bf16"}:
        p.error(f"--dtypes are of {', '.join(BYTES)}; --peers f32, bf16 or both")
    if not {*args.ct2} <= {"float32", "bfloat16", "int8"}:
        p.error("--ct2 is float32, bfloat16, int8 or none")
    if args.quick:
        args.rounds, args.tokens = 1, min(args.tokens, 6)
    return args


def say(text):
    print(text, file=sys.stderr, flush=True)


# ---------------------------------------------------------------------------------------------------------
# What is measured.

def checkpoint(args):
    """The folder to measure; made of random weights unless it was given or is there from last time."""
    if args.folder:
        return args.folder
    name = args.type + (f"_{args.layers}layers" if args.layers else "")
    folder = args.work / name
    if not (folder / "config.json").exists():
        shutil.rmtree(folder, ignore_errors=True)
        args.work.mkdir(parents=True, exist_ok=True)
        keys = ["vision.num_hidden_layers"]
        keys += ["text.num_layers", "text.num_decoder_layers"] if "t5" in args.type else ["text.num_hidden_layers"]
        sets = [f"--set={key}={args.layers}" for key in keys] if args.layers else []
        part = args.work / (name + ".part")     # a name that is complete only when the folder is
        shutil.rmtree(part, ignore_errors=True)
        subprocess.run([sys.executable, ROOT / "export/random_checkpoint.py", part, "--type", args.type, "--tokenizer",
                        args.tokenizer, "--dtype", "bf16", *sets], check=True, stdout=sys.stderr)
        part.rename(folder)
    return folder


def weight_file(args, folder, dtype):
    """The exported weight file of one dtype."""
    path = args.work / f"{folder.resolve().name}.{dtype}.bin"
    if not path.exists() or path.stat().st_mtime < (folder / "config.json").stat().st_mtime:
        args.work.mkdir(parents=True, exist_ok=True)
        subprocess.run([sys.executable, ROOT / "export/export.py", "-q", folder, "-o", path, "--dtype", dtype],
                       check=True, stdout=sys.stderr)
    return path


def build():
    """Makes ./blip2 and dev/ceiling.c; returns the path of the latter."""
    subprocess.run(["make", "-C", ROOT, "blip2"], check=True, stdout=sys.stderr)
    ceiling = ROOT / "build" / "ceiling"
    subprocess.run([os.environ.get("CC", "cc"), "-std=c11", "-D_GNU_SOURCE", "-O3", "-fopenmp-simd", "-pthread", "-o", ceiling,
                    *(ROOT / name for name in ("dev/ceiling.c", "matmul.c", "threads.c", "common.c")), "-lm"], check=True)
    return ceiling


def ceilings(program, threads):
    """{"read": bytes per second, "multiply": f32 operations per second} of this moment."""
    out = subprocess.run([program, "-t", str(threads), "-r", "20"], check=True, stdout=subprocess.PIPE,
                         text=True).stdout
    return {key: float(value) * 1e9 for key, value in re.findall(r"^(read|multiply\w*) ([0-9.]+) G", out, re.M)}


# ---------------------------------------------------------------------------------------------------------
# How much work a stage is. A product of (T,C) and (OC,C) is 2*T*C*OC operations, and reads OC*C weights.

def work_of(config, prompt_tokens):
    """Stage -> (operations, weights read). `decode` is one token of one row; a row more costs operations only."""
    v, q, t = config["vision_config"], config["qformer_config"], config["text_config"]
    n = (v["image_size"] // v["patch_size"]) ** 2 + 1
    dv, dq, queries = v["hidden_size"], q["hidden_size"], config["num_query_tokens"]
    patch, block = 3 * v["patch_size"] ** 2 * dv, dv * (4 * dv + 2 * v["intermediate_size"])
    vit = patch + v["num_hidden_layers"] * block
    vit_ops = 2 * n * vit + v["num_hidden_layers"] * 4 * n * n * dv
    layers, crossing = q["num_hidden_layers"], -(-q["num_hidden_layers"] // q["cross_attention_frequency"])
    qf_rows = layers * dq * (4 * dq + 2 * q["intermediate_size"]) + crossing * 2 * dq * dq
    qf_cross = crossing * 2 * dq * dv
    rows = queries + prompt_tokens
    if t["model_type"] == "t5":
        d, inner, ff = t["d_model"], t["num_heads"] * t["d_kv"], 3 * t["d_model"] * t["d_ff"]
        encoder, cross_kv = t["num_layers"] * (4 * d * inner + ff), t["num_decoder_layers"] * 2 * d * inner
        step = t["num_decoder_layers"] * (6 * d * inner + ff) + t["vocab_size"] * d
        prompt = 2 * rows * (encoder + cross_kv) + 2 * step, encoder + cross_kv + step
    else:
        d = t["hidden_size"]
        body, head = t["num_hidden_layers"] * d * (4 * d + 2 * t["ffn_dim"]), t["vocab_size"] * d
        step = body + head
        prompt = 2 * rows * body + 2 * head, step
    return {"vit": (vit_ops, vit), "qformer": (2 * (queries * qf_rows + n * qf_cross), qf_rows + qf_cross),
            "prompt": prompt, "decode": (2 * step, step)}


def floor_of(work, stage, size, beams, limit):
    """Seconds that the ceilings leave for a stage: the larger of arithmetic and memory."""
    ops, weights = work[stage]
    return max(ops * (beams if stage == "decode" else 1) / limit["multiply"], weights * size / limit["read"])


# ---------------------------------------------------------------------------------------------------------
# ./blip2: one process a run, as a user has it.

class Blip2:
    def __init__(self, args, folder, dtype):
        self.name, self.dtype, self.args = f"blip2 {dtype}", dtype, args
        self.file = weight_file(args, folder, dtype)

    def memory(self):
        return self.file.stat().st_size + 1e9

    def run(self, beams):
        """Stage -> seconds (decode: per token) and "peak", bytes."""
        a = self.args
        command = [ROOT / "blip2", "-v", "-m", self.file, "-t", a.threads, "-b", beams, "-n", a.tokens, "--min-tokens",
                   a.tokens, "-p", PROMPT, IMAGE]
        start = time.perf_counter()
        p = subprocess.Popen([str(c) for c in command], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        text = p.stderr.read()
        _, status, used = os.wait4(p.pid, 0)
        p.returncode = os.waitstatus_to_exitcode(status)
        if p.returncode:
            raise SystemExit(f"./blip2 failed: {text}")
        result = {stage: float(s) for stage, s in re.findall(r"^time: (\w+) ([0-9.e-]+) s$", text, re.M)}
        steps, seconds = re.search(r"^time: decode (\d+) steps ([0-9.e-]+) s$", text, re.M).groups()
        result["caption"] = sum(result.get(s, 0) for s in ("image", "vit", "qformer", "prompt")) + float(seconds)
        result["decode"] = float(seconds) / int(steps)
        result["process"] = time.perf_counter() - start
        result["peak"] = used.ru_maxrss * 1024
        return result

    def close(self):
        pass


# ---------------------------------------------------------------------------------------------------------
# transformers: a process that loads the model once and answers "beams\n" with a line of JSON.

class Peer:
    def __init__(self, args, folder, dtype):
        self.name, self.dtype, self.args, self.folder, self.process = f"transformers {dtype}", dtype, args, folder, None
        self.parameters = sum(f.stat().st_size for f in folder.glob("*.safetensors")) / 2

    def memory(self):
        return 1.1 * self.parameters * BYTES[self.dtype] + 2e9

    def run(self, beams):
        if not self.process:
            say(f"loading {self.name}")
            a = self.args
            self.process = subprocess.Popen(
                [sys.executable, __file__, "--worker", self.dtype, "--folder", self.folder, "--threads", str(a.threads),
                 "--tokens", str(a.tokens), "--work", a.work], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
                env={**os.environ, "OMP_NUM_THREADS": str(a.threads)})
        self.process.stdin.write(f"{beams}\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"{self.name} failed; too little memory?")
        return json.loads(line)

    def close(self):
        if self.process:
            self.process.stdin.close()
            self.process.wait()
            self.process = None


def worker(args):
    """Inside the peer's process."""
    import resource
    import warnings
    start = time.perf_counter()
    import torch
    from transformers import AutoTokenizer, Blip2ForConditionalGeneration, logging
    logging.set_verbosity_error()
    warnings.filterwarnings("ignore")
    torch.set_num_threads(args.threads)
    dtype = {"f32": torch.float32, "bf16": torch.bfloat16}[args.worker]
    model = Blip2ForConditionalGeneration.from_pretrained(args.folder, dtype=dtype).eval()
    load = time.perf_counter() - start
    c = model.config
    ids = AutoTokenizer.from_pretrained(args.folder)(PROMPT)["input_ids"]
    ids = torch.tensor([[c.image_token_index] * c.num_query_tokens + ids])
    side = c.vision_config.image_size
    pixels = torch.rand(1, 3, side, side, generator=torch.Generator().manual_seed(1)).to(dtype)
    ends = {"vit": [], "qformer": [], "language": []}

    def note(stage):
        return lambda *_: ends[stage].append(time.perf_counter())
    for name, stage in ("vision_model", "vit"), ("language_projection", "qformer"), ("language_model", "language"):
        model.get_submodule(name).register_forward_hook(note(stage))
    for line in sys.stdin:
        for times in ends.values():
            times.clear()
        start = time.perf_counter()
        with torch.inference_mode():
            model.generate(pixel_values=pixels, input_ids=ids, attention_mask=torch.ones_like(ids), do_sample=False,
                           num_beams=int(line), max_new_tokens=args.tokens, min_new_tokens=args.tokens)
        end, language = time.perf_counter(), ends["language"]
        result = {"load": load, "vit": ends["vit"][0] - start, "qformer": ends["qformer"][0] - ends["vit"][0],
                  "prompt": language[0] - ends["qformer"][0], "caption": end - start,
                  "decode": (end - language[0]) / max(1, len(language) - 1),
                  "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}
        print(json.dumps(result), flush=True)


# ---------------------------------------------------------------------------------------------------------
# CTranslate2 has no BLIP-2, but OPT and T5: the language model alone, with a prompt of as many tokens. Its time for one
# new token counts as the prompt's, that of each further one as a decode step's.

class Ct2(Peer):
    def __init__(self, args, folder, dtype):
        super().__init__(args, folder, "f32")
        self.name, self.dtype = f"CTranslate2 {dtype}", dtype

    def memory(self):
        return 1.1 * self.parameters * {"float32": 4, "bfloat16": 2, "int8": 1}[self.dtype] + 2e9


def language_model(folder, out):
    """The language model of a BLIP-2 folder, converted once for CTranslate2 (in f32: it rounds while loading)."""
    import ctranslate2
    import torch
    from transformers import AutoTokenizer, Blip2ForConditionalGeneration
    if not (out / "model.bin").exists():
        lm = out.with_suffix(".hf")
        Blip2ForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).language_model.save_pretrained(lm)
        AutoTokenizer.from_pretrained(folder).save_pretrained(lm)
        ctranslate2.converters.TransformersConverter(str(lm)).convert(str(out), force=True)
        shutil.rmtree(lm)


def ct2_worker(args):
    """Inside CTranslate2's process."""
    import resource
    out = args.work / f"{args.folder.resolve().name}.ct2"
    pid = os.fork()                       # converting takes memory that must not count
    if not pid:
        language_model(args.folder, out)
        os._exit(0)
    if os.waitpid(pid, 0)[1]:
        raise SystemExit("CTranslate2 could not convert the language model")
    import ctranslate2
    config = json.loads((args.folder / "config.json").read_text())
    t5 = config["text_config"]["model_type"] == "t5"
    start = time.perf_counter()
    kind = ctranslate2.Translator if t5 else ctranslate2.Generator
    model = kind(str(out), compute_type=args.worker, intra_threads=args.threads, inter_threads=1)
    load = time.perf_counter() - start
    names = json.loads((out / "shared_vocabulary.json" if t5 else out / "vocabulary.json").read_text())
    prompt = [names[10 + i] for i in range(config["num_query_tokens"] + len(PROMPT.split()) + 1)]

    def run(beams, tokens):
        start = time.perf_counter()
        if t5:
            model.translate_batch([prompt], beam_size=beams, max_decoding_length=tokens, min_decoding_length=tokens)
        else:
            model.generate_batch([prompt], beam_size=beams, max_length=tokens, min_length=tokens,
                                 include_prompt_in_result=False)
        return time.perf_counter() - start
    run(1, 2)                             # the first call pays for starting threads
    for line in sys.stdin:
        first, whole = run(int(line), 1), run(int(line), args.tokens)
        print(json.dumps({"load": load, "prompt": first, "decode": (whole - first) / max(1, args.tokens - 1),
                          "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}), flush=True)


# ---------------------------------------------------------------------------------------------------------

def available():
    """Bytes of memory that could be had without swapping."""
    text = Path("/proc/meminfo").read_text() if Path("/proc/meminfo").exists() else ""
    found = re.search(r"MemAvailable:\s+(\d+) kB", text)
    return int(found[1]) * 1024 if found else 0


def rounds(args, engines, program):
    """(results[engine name][beams] = list of runs, list of ceilings, whether the engines took turns)."""
    results, limits = {e.name: {1: [], 5: []} for e in engines}, []
    together = not args.apart and sum(e.memory() for e in engines) < available()
    for group in [engines] if together else [[e] for e in engines]:
        for i in range(args.rounds):
            limits.append(ceilings(program, args.threads))
            for e in group:
                for beams in 1, 5:
                    say(f"round {i + 1} of {args.rounds}: {e.name}, {beams} beam{'s' * (beams > 1)}")
                    results[e.name][beams].append(e.run(beams))
        for e in group:
            e.close()
    return results, limits, together


def processor():
    """The processor's name and the instruction sets that matter here."""
    text = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    model, flags = re.search(r"model name\s*: (.*)", text), re.search(r"flags\s*: (.*)", text)
    wanted = ("avx2", "fma", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16", "amx_int8")
    have = [f for f in wanted if flags and f in flags[1].split()]
    return f"{model[1] if model else platform.processor()} ({', '.join(have) or 'none of ' + ', '.join(wanted)})"


def table(args, engines, results, limits, work):
    """The report, as Markdown."""
    limit = {key: max(l[key] for l in limits) for key in ("read", "multiply")}
    print(f"Ceilings, best of {len(limits)} times 20: read {limit['read'] / 1e9:.1f} GB/s, multiply "
          f"{limit['multiply'] / 1e9:.0f} GFLOP/s in f32.\n")
    peers = [e for e in engines if isinstance(e, Peer)]
    for beams in 1, 5:
        print(f"{'Greedy' if beams == 1 else '5 beams'}, {args.tokens} tokens; seconds, minimum (median):\n")
        print("| stage | " + " | ".join(e.name for e in engines) + " | faster than the best peer | of the ceiling |")
        print("|---" * (len(engines) + 3) + "|")
        for stage in STAGES if beams == 1 else STAGES[3:]:
            cells, best = [], {}
            for e in engines:
                times = [run[stage] for run in results[e.name][beams] if stage in run]
                if not times:
                    cells.append("")
                    continue
                best[e.name] = min(times)
                cells.append(f"{min(times):.3f} ({statistics.median(times):.3f})")
            peer = min((best[e.name] for e in peers if e.name in best), default=None)
            ours = [e for e in engines if e not in peers]
            ratio = ", ".join(f"{peer / best[e.name]:.2f}x" for e in ours) if peer else ""
            share = ""
            if stage in work:
                share = ", ".join(f"{floor_of(work, stage, BYTES[e.dtype], beams, limit) / best[e.name]:.0%}"
                                  for e in ours)
            name = "decode, a token" if stage == "decode" else stage
            print(f"| {name} | {' | '.join(cells)} | {ratio} | {share} |")
        peaks = [f"{max(run['peak'] for run in results[e.name][beams]) / 1e9:.2f} GB" for e in engines]
        print(f"| peak memory | {' | '.join(peaks)} | | |\n")


def main():
    args = usage()
    if args.worker:
        return worker(args) if args.worker in ("f32", "bf16") else ct2_worker(args)
    program = build()
    folder = checkpoint(args)
    config = json.loads((folder / "config.json").read_text())
    engines = [Blip2(args, folder, d) for d in args.dtypes] + [Peer(args, folder, d) for d in args.peers]
    engines += [Ct2(args, folder, d) for d in args.ct2]
    results, limits, together = rounds(args, engines, program)
    load = os.getloadavg()[0]
    print(f"{folder.name}, {args.threads} threads, {processor()}, load average {load:.1f}, "
          f"{args.rounds} rounds, engines {'in turn' if together else 'one after the other'}.\n")
    table(args, engines, results, limits, work_of(config, len(PROMPT.split()) + 1))


if __name__ == "__main__":
    main()
