"""Every stage and every answer of ./blip2 against transformers in float32, on random tiny models.

    python3 test/parity_model.py [--blip2 ./blip2] [--work build/parity] [--only NAME]

For each configuration below: export/random_checkpoint.py makes a Hugging Face folder, export/export.py a weight file
(f32, and bf16 for some), and then
  1. pixel_values are equal bit for bit, every stage of --dump within STAGE_BOUND (relative L2), for two prompts;
  2. greedy and beams 1 to 7 with several returned captions, length penalties, minimum lengths, repetition penalties,
     prompts and images give equal token ids, and scores within SCORE_BOUND;
  3. the answers show something: they differ between images and between prompts, vary within themselves, and end
     with the end token in some cases and at the limit in others.
Measured errors stand in doc/parity.md. Not here: the tokenizers, resizing and exporting on their own (other
parity_*.py), real sizes (dev/fullsize.py).
"""

import argparse
import itertools
import json
import os
import subprocess
import sys
import time

import numpy as np
from PIL import Image

import truth

HERE = os.path.dirname(os.path.abspath(__file__))
REAL = os.path.join(HERE, "..", "..", "shared", "tokenizers")
TINY = os.path.join(HERE, "data", "tokenizers")

STAGE_BOUND = 2e-5   # relative L2 of a stage
SCORE_BOUND = 1e-4   # relative to max(1, |score|); measured 1.0e-5

# name -> (type, tokenizer, file dtype, settings of random_checkpoint.py)
CONFIGS = {
    "opt_257": ("tiny_opt", "opt", "f32", {"vision.image_size": 224, "vision.patch_size": 14, "vision.hidden_size": 176,
                "vision.num_attention_heads": 2, "num_query_tokens": 32, "qformer.cross_attention_frequency": 2}),
    "opt_677": ("tiny_opt", "opt", "bf16", {"vision.image_size": 364, "vision.patch_size": 14, "vision.hidden_size": 88,
                "vision.num_attention_heads": 1, "num_query_tokens": 8, "qformer.cross_attention_frequency": 3}),
    "opt_odd": ("tiny_opt", "bpe", "f32", {"vision.image_size": 75, "vision.patch_size": 11, "vision.hidden_size": 39,
                "vision.num_attention_heads": 3, "num_query_tokens": 5, "qformer.cross_attention_frequency": 1,
                "text.hidden_size": 60, "text.word_embed_proj_dim": 60, "text.num_attention_heads": 4,
                "text.ffn_dim": 77}),
    "opt_eps": ("tiny_opt", "bpe", "f32", {"vision.layer_norm_eps": 1e-5, "num_query_tokens": 17,
                "qformer.num_hidden_layers": 5, "qformer.cross_attention_frequency": 2}),
    "t5_257": ("tiny_t5", "t5", "f32", {"vision.image_size": 224, "vision.patch_size": 14, "num_query_tokens": 32,
               "text.d_kv": 12, "text.num_layers": 4, "text.num_decoder_layers": 2}),
    "t5_677": ("tiny_t5", "t5", "bf16", {"vision.image_size": 364, "vision.patch_size": 14, "num_query_tokens": 16,
               "qformer.cross_attention_frequency": 3}),
    "t5_odd": ("tiny_t5", "unigram", "f32", {"vision.image_size": 66, "vision.patch_size": 13, "num_query_tokens": 7,
               "qformer.cross_attention_frequency": 1, "text.d_model": 50, "text.num_heads": 3, "text.d_kv": 9,
               "text.d_ff": 71, "text.num_layers": 3, "text.num_decoder_layers": 2,
               "text.relative_attention_num_buckets": 10, "text.relative_attention_max_distance": 20}),
    "t5_tanh": ("tiny_t5", "unigram", "f32", {"text.dense_act_fn": "gelu_new"}),
    "t5_tied": ("tiny_t5", "unigram", "f32", {"tied": True}),
}

PROMPTS = ["", "a photo of", "Question: how many dogs are there? Answer:"]


def settings():
    """(beams, captions, max_new, min_new, length_penalty, repeat_penalty) of the generation cases."""
    yield 1, 1, 20, 0, 1, 1
    yield 1, 1, 12, 6, 1, 1
    yield 1, 1, 20, 0, 1, 1.5
    yield 1, 1, 20, 9, 1, 0.8
    for beams, penalty in itertools.product((2, 3, 5, 7), (-1, 0, 1, 2)):
        yield beams, beams, 16, 0, penalty, 1
    yield 4, 2, 10, 5, 1, 1
    yield 6, 6, 24, 8, 1, 1.3
    yield 5, 3, 30, 1, -1, 1.2
    yield 2, 1, 1, 0, 1, 1
    yield 3, 3, 2, 0, 0, 1


class Tally:
    """Counts like test/check.h."""

    def __init__(self):
        self.passed = self.failed = self.skipped = 0

    def expect(self, ok, text):
        if ok:
            self.passed += 1
        else:
            self.failed += 1
            print("FAIL", text, flush=True)

    def close(self):
        print(f"{self.passed} passed, {self.failed} failed, {self.skipped} skipped")
        return 1 if self.failed or not self.passed else 0


def make_images(folder):
    """Three pictures that differ in everything: smooth colours, stripes, noise."""
    rng = np.random.default_rng(5)
    y, x = np.mgrid[0:150, 0:200]
    pictures = [
        np.stack([x * 255 // 200, y * 255 // 150, (x + y) % 256], -1),
        np.stack([(x // 9 % 2) * 220, (y // 17 % 2) * 200, 255 - (x // 30 % 2) * 255], -1),
        rng.integers(0, 256, (150, 200, 3)),
    ]
    paths = []
    for i, p in enumerate(pictures):
        paths.append(os.path.join(folder, f"picture{i}.png"))
        Image.fromarray(p.astype(np.uint8)).save(paths[-1])
    return paths


def tokenizer_folder(name):
    """The real tokenizer files when they are there, otherwise the committed tiny ones of the same kind."""
    if name in ("opt", "t5"):
        real = os.path.join(REAL, name)
        tiny = os.path.join(TINY, {"opt": "bpe", "t5": "unigram"}[name])
        return (real, False) if os.path.isdir(real) else (tiny, True)
    return os.path.join(TINY, name), False


def quietly(args):
    """Runs a command that has nothing to say unless it fails."""
    run = subprocess.run(args, capture_output=True, text=True)
    if run.returncode:
        sys.exit(f"{' '.join(args)}:\n{run.stdout}{run.stderr}")


def build(name, work):
    """The checkpoint folder and weight file of a configuration."""
    kind, tokenizer, dtype, options = CONFIGS[name]
    folder, weights = os.path.join(work, name), os.path.join(work, name + ".bin")
    tok, replaced = tokenizer_folder(tokenizer)
    subprocess.run(["rm", "-rf", folder], check=True)
    args = [sys.executable, os.path.join(HERE, "..", "export", "random_checkpoint.py"), folder, "--type", kind,
            "--tokenizer", tok, "--seed", str(len(name) * 7 + 3)]
    for key, value in options.items():
        args += ["--tied"] if key == "tied" else ["--set", f"{key}={json.dumps(value)}"]
    quietly(args)
    quietly([sys.executable, os.path.join(HERE, "..", "export", "export.py"), folder, "-o", weights, "--dtype", dtype])
    return folder, weights, dtype, replaced


def check_stages(tally, t, program, weights, image, name, worst):
    """--dump against hooks; remembers the worst relative error by kind of stage."""
    side = t.config.vision_config.image_size
    pixels = truth.pixel_values(image, side)
    for prompt in PROMPTS[1:]:
        dump = weights + ".dump"
        truth.blip2(program, "-m", weights, "--json", "--quiet", "-b", 1, "-n", 2, "-p", prompt, "--dump", dump, image)
        got, want = truth.read_dump(dump), t.stages(pixels, t.prompt_ids(prompt))
        tally.expect(list(want) == [n for n in got if n in want], f"{name}: stages are missing or out of order: "
                     f"{set(want) - set(got)}")
        tally.expect(np.array_equal(got["pixel_values"], want["pixel_values"]), f"{name}: pixel_values differ in bits")
        for stage, w in want.items():
            if stage not in got:
                continue
            rel, top, bad = truth.compare(got[stage], w)
            tally.expect(rel <= STAGE_BOUND, f"{name}: {stage}: rel. L2 {rel:.2e}, worst {top:.2e}, {bad} not finite")
            kind = stage.rstrip("0123456789").rstrip(".")
            worst[kind] = max(worst.get(kind, 0), rel)
    # Negative control: a sign, a shifted row and one NaN must be found.
    broken = want["logits"].copy()
    broken[0] = np.nan
    tally.expect(truth.compare(broken, want["logits"])[0] > STAGE_BOUND, "a NaN passed")
    tally.expect(truth.compare(np.roll(want["logits"], 1), want["logits"])[0] > STAGE_BOUND, "a shift passed")
    tally.expect(truth.compare(-want["logits"], want["logits"])[0] > STAGE_BOUND, "a sign passed")


def check_answers(tally, t, program, weights, images, name, stats):
    """Token ids and scores of all settings; one call of ./blip2 per setting, all images and prompts in it."""
    side = t.config.vision_config.image_size
    pixels = np.stack([truth.pixel_values(i, side) for i in images])
    seen = {}
    # A vocabulary of 50,000 words makes every step ten times as slow in PyTorch: every third setting will do.
    large = t.config.text_config.vocab_size > 5000
    for case in list(settings())[::3 if large else 1]:
        beams, captions, max_new, min_new, length_penalty, repeat_penalty = case
        args = ["-m", weights, "--json", "--quiet", "-b", beams, "-c", captions, "-n", max_new, "--min-tokens", min_new,
                "--length-penalty", length_penalty, "--repeat-penalty", repeat_penalty]
        prompts = PROMPTS if beams in (1, 5) else PROMPTS[1:2]
        for prompt in prompts:
            args += ["-p", prompt]
        got = truth.blip2(program, *args, *images)
        tally.expect(len(got) == len(images) * len(prompts), f"{name}: {len(got)} lines of JSON")
        want = {prompt: t.answers(pixels, t.prompt_ids(prompt), *case) for prompt in prompts}
        for line, (i, prompt) in zip(got, itertools.product(range(len(images)), prompts)):
            tally.expect(len(line["outputs"]) == captions, f"{name}: {len(line['outputs'])} answers, not {captions}")
            for rank, (o, (tokens, score, stopped)) in enumerate(zip(line["outputs"], want[prompt][i])):
                what = f"{name}: {case}, image {i}, {prompt!r}, rank {rank}"
                tally.expect(o["tokens"] == tokens, f"{what}: {o['tokens']}, expected {tokens}")
                tally.expect((o["finish"] == "stop") == stopped, f"{what}: finish {o['finish']}")
                error = abs(o["score"] - score) / max(1, abs(score))
                tally.expect(error <= SCORE_BOUND, f"{what}: score {o['score']}, expected {score}")
                stats["score"] = max(stats["score"], error if o["tokens"] == tokens else 0)
                stats["stop"] += stopped
                stats["mid"] += stopped and 2 <= len(tokens) < max_new - 1
                stats["length"] += not stopped
            if case == (1, 1, 20, 0, 1, 1):
                seen[i, prompt] = tuple(want[prompt][i][0][0])
    by_image = {tuple(seen[i, p] for p in PROMPTS) for i in range(len(images))}
    by_prompt = {tuple(seen[i, p] for i in range(len(images))) for p in PROMPTS}
    stats["varied"] = max(len(set(s)) for s in seen.values())
    tally.expect(len(by_image) == len(images), f"{name}: answers do not depend on the image: {seen}")
    tally.expect(len(by_prompt) == len(PROMPTS), f"{name}: answers do not depend on the prompt: {seen}")
    tally.expect(stats["varied"] >= 5, f"{name}: answers repeat one token: {seen}")


def main():
    args = argparse.ArgumentParser()
    args.add_argument("--blip2", default=os.path.join(HERE, "..", "blip2"))
    args.add_argument("--work", default=os.path.join(HERE, "..", "build", "parity"))
    args.add_argument("--only")
    args = args.parse_args()
    os.makedirs(args.work, exist_ok=True)
    tally, worst, all_stats = Tally(), {}, {"stop": 0, "mid": 0, "length": 0}
    images = make_images(args.work)
    for name in CONFIGS:
        if args.only and args.only != name:
            continue
        start = time.time()
        folder, weights, dtype, replaced = build(name, args.work)
        if replaced:
            tally.skipped += 1
            print(f"SKIP {name}: no real tokenizer files, the tiny ones are used")
        t = truth.Truth(folder, round_bf16=dtype == "bf16")
        if t.t5:
            tied = t.model.language_model.lm_head.weight.data_ptr() == t.model.language_model.shared.weight.data_ptr()
            tally.expect(tied == (name == "t5_tied"), f"{name}: the head is {'tied' if tied else 'untied'}")
        stats = {"stop": 0, "mid": 0, "length": 0, "score": 0.0}
        check_stages(tally, t, args.blip2, weights, images[0], name, worst)
        check_answers(tally, t, args.blip2, weights, images, name, stats)
        for key in all_stats:
            all_stats[key] += stats[key]
        print(f"{name} ({dtype}): {stats['stop']} answers ended ({stats['mid']} of them mid-sentence), "
              f"{stats['length']} were cut, worst score error {stats['score']:.1e}, {time.time() - start:.0f} s",
              flush=True)
    print("worst relative L2 error by stage:")
    for kind, rel in worst.items():
        print(f"  {kind:48s} {rel:.1e}  (bound {STAGE_BOUND:g})")
    tally.expect(args.only or all(all_stats[key] > 20 for key in all_stats),
                 f"the answers show too little: {all_stats}")
    return tally.close()


if __name__ == "__main__":
    sys.exit(main())
