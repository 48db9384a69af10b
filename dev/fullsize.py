"""A full-size model of random weights, end to end, against transformers on the same bf16-rounded weights.

    python3 dev/fullsize.py --type pretrain_opt2.7b [--tokenizer ../shared/tokenizers/opt] [--work build/fullsize]
                            [--device cuda:0] [--dtype f32]

Makes the checkpoint (7.5 GB in bf16), exports it, runs ./blip2 with --dump and ten greedy tokens, then loads the same
folder in transformers in float32 (16 GB of memory) and compares every stage and the ten tokens. Exit code 1 when a
stage is off by more than its bound (relative L2) or a token differs. Needs 24 GiB of memory and 16 GB of disk. Without
--tokenizer the tests' small one is used, and the vocabulary has as many rows as the real one.

With --device cuda:N both run on that card, one after the other, transformers in float32 without TF32. Against a bf16
file, whose activations are bf16 on the card, the bound is BOUND_BF16, and a token may differ where transformers' two
best candidates lie closer than TOKEN_BOUND, the rule of test/test_cuda.cu; --dtype f32 (16 GB) compares exactly.
Not here: timing (dev/bench.py), small models (test/parity_model.py).
"""

import argparse
import os
import resource
import subprocess
import sys
import time

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(HERE)
sys.path.insert(0, os.path.join(ROOT, "test"))

BOUND = 1e-4        # relative L2 of a stage in f32; measured values in doc/parity.md
BOUND_BF16 = 3e-2   # with bf16 activations, as in test/test_cuda.cu
VOCABULARY = {"bpe": 50304, "unigram": 32128}     # rows of the released OPT and Flan-T5 variants
TOKEN_BOUND = 0.2   # distance of the two best logits over the root mean square of all: twice what one may be off


def run(*args):
    """Runs a command, shows its wall-clock time, returns its standard output."""
    start = time.time()
    out = subprocess.run([str(a) for a in args], check=True, stdout=subprocess.PIPE, text=True).stdout
    print(f"{time.time() - start:6.1f} s  {' '.join(map(str, args))}", flush=True)
    return out


def main():
    args = argparse.ArgumentParser()
    args.add_argument("--type", required=True)
    args.add_argument("--tokenizer", help="a folder of tokenizer files")
    args.add_argument("--work", default=os.path.join(ROOT, "build", "fullsize"))
    args.add_argument("--image", default=os.path.join(ROOT, "test", "data", "tiny_0.png"))
    args.add_argument("--prompt", default="a photo of")
    args.add_argument("--device", default="cpu", help="cpu, or cuda:N for ./blip2 and transformers alike")
    args.add_argument("--dtype", default="bf16", choices=["bf16", "f32"], help="of the weight file")
    args.add_argument("--keep", action="store_true", help="leave checkpoint and weight file")
    args = args.parse_args()
    os.makedirs(args.work, exist_ok=True)
    folder, weights = os.path.join(args.work, args.type), os.path.join(args.work, f"{args.type}.{args.dtype}.bin")
    gpu = args.device != "cpu"
    if gpu and not args.device.startswith("cuda:"):
        sys.exit(f"--device {args.device}: expected cpu or cuda:N")
    bound = BOUND_BF16 if gpu and args.dtype == "bf16" else BOUND
    dump = weights + ".dump"
    if not os.path.exists(weights):
        small = "unigram" if "t5" in args.type else "bpe"
        rows = [] if args.tokenizer else [f"--set=text.vocab_size={VOCABULARY[small]}"]
        tokenizer = args.tokenizer or os.path.join(ROOT, "test", "data", "tokenizers", small)
        run(sys.executable, os.path.join(ROOT, "export", "random_checkpoint.py"), folder, "--type", args.type,
            "--tokenizer", tokenizer, "--dtype", "bf16", "--seed", 1, *rows)
        run(sys.executable, os.path.join(ROOT, "export", "export.py"), folder, "-o", weights, "--dtype", args.dtype)
    import truth   # after the export, so that its memory is not counted twice
    common = ["-m", weights, "--json", "-b", 1, "-n", 10, "-p", args.prompt, "--scores", "--device", args.device]
    got = truth.blip2(os.path.join(ROOT, "blip2"), *common, "--dump", dump, args.image)[0]["outputs"][0]
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1e6
    print(f"blip2: {got['tokens']} {got['text']!r}, largest child {peak:.1f} GB")

    t = truth.Truth(folder, round_bf16=True, device=args.device)
    pixels = truth.pixel_values(args.image, t.config.vision_config.image_size)
    want, ids = t.stages(pixels, t.prompt_ids(args.prompt)), t.prompt_ids(args.prompt)
    dumped, worst, bad = truth.read_dump(dump), {}, 0
    for stage, w in want.items():
        rel, top, broken = truth.compare(dumped[stage], w)
        kind = stage.rstrip("0123456789").rstrip(".")
        worst[kind] = max(worst.get(kind, 0), rel)
        if not rel <= bound:
            bad += 1
            print(f"FAIL {stage}: rel. L2 {rel:.2e}, worst element {top:.2e}, {broken} not finite")
    for kind, rel in worst.items():
        print(f"  {kind:48s} {rel:.1e}  (bound {bound:g})")
    tokens, score, _ = t.answers(pixels[None], ids, max_new=10)[0][0]
    print(f"transformers: {tokens}, score {score:.5f}; blip2: score {got['score']:.5f}")
    apart = t.margins(pixels, ids, 10)[1] if tokens != got["tokens"] and bound == BOUND_BF16 else []
    first = next((i for i, (a, b) in enumerate(zip(tokens, got["tokens"])) if a != b),
                 min(len(tokens), len(got["tokens"])))
    if apart and apart[first] <= TOKEN_BOUND:
        print(f"token {first} is another one: the two best lay {apart[first]:.3g} apart (bound {TOKEN_BOUND:g})")
    elif tokens != got["tokens"]:
        bad += 1
        print(f"FAIL tokens: {got['tokens']}, expected {tokens}")
    if not args.keep:
        subprocess.run(["rm", "-rf", folder, weights, dump], check=True)
    print(f"{len(want) + 1 - bad} passed, {bad} failed, 0 skipped")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
