"""Writes the committed tiny models and what PyTorch answers with them, so that `make test` needs no Python.

    python3 test/make_goldens.py

test/data/tiny_{opt,t5}.bin       weight files of random models with odd dimensions, OPT in f32 and T5 in bf16
test/data/tiny_{opt_int8,t5_int4}.bin   the same two, rounded; PyTorch gets the rounded numbers too
test/data/tiny_{0,1,2}.png        three pictures
test/data/tiny_*.stages           every stage of picture 0 with the prompt "a photo of", as --dump writes it
test/data/tiny_*.answers          answers with many settings; the form of a line is drawn in test/test_tiny.c

Run it with the environment of `make parity` when the weight format or the tiny models change.
"""

import itertools
import os
import shutil
import sys
import tempfile

import numpy as np
from PIL import Image

import parity_model
import truth

DATA = os.path.join(parity_model.HERE, "data")

MODELS = {
    # ViT heads of 88; OPT heads of 15; Q-Former heads of 20; 3 Q-Former layers, of which 0 and 2 see the image
    "opt": ("tiny_opt", "bpe", "f32", {
        "vision.image_size": 60, "vision.patch_size": 14, "vision.hidden_size": 88, "vision.num_attention_heads": 1,
        "vision.num_hidden_layers": 2, "vision.intermediate_size": 101, "num_query_tokens": 6,
        "qformer.hidden_size": 60, "qformer.num_attention_heads": 3, "qformer.intermediate_size": 90,
        "qformer.num_hidden_layers": 3, "qformer.cross_attention_frequency": 2, "text.hidden_size": 60,
        "text.word_embed_proj_dim": 60, "text.num_attention_heads": 4, "text.ffn_dim": 77,
        "text.num_hidden_layers": 3, "text.max_position_embeddings": 128}),
    # ViT heads of 13; T5 heads of 9 with 3 * 9 != 50; one decoder layer less than encoder layers
    "t5": ("tiny_t5", "unigram", "bf16", {
        "vision.image_size": 75, "vision.patch_size": 11, "vision.hidden_size": 39, "vision.num_attention_heads": 3,
        "vision.num_hidden_layers": 3, "vision.intermediate_size": 70, "num_query_tokens": 7,
        "qformer.hidden_size": 48, "qformer.num_attention_heads": 4, "qformer.intermediate_size": 65,
        "qformer.num_hidden_layers": 2, "qformer.cross_attention_frequency": 1, "text.d_model": 50,
        "text.num_heads": 3, "text.d_kv": 9, "text.d_ff": 71, "text.num_layers": 3, "text.num_decoder_layers": 2,
        "text.relative_attention_num_buckets": 10, "text.relative_attention_max_distance": 20}),
}

ROUNDED = {"opt_int8": ("opt", "int8"), "t5_int4": ("t5", "int4")}

PROMPTS = ["", "a photo of", "how many dogs are there?"]

# beams captions max_new min_new length_penalty repeat_penalty
CASES = [(1, 1, 20, 0, 1, 1), (1, 1, 30, 8, 1, 1.5), (2, 2, 16, 0, 1, 1), (3, 3, 16, 0, -1, 1), (4, 2, 20, 6, 2, 1),
         (5, 5, 24, 0, 0, 1), (7, 7, 12, 0, 1, 1.25), (5, 1, 30, 1, 1, 1)]
# Random weights of few values: among seven beams the last ones come so near to each other that compilers differ.
TOO_NEAR = (7, 7, 12, 0, 1, 1.25)


def write(name, weights, t, images):
    """The weight file, and what PyTorch makes of it."""
    shutil.copy(weights, os.path.join(DATA, f"tiny_{name}.bin"))
    pixels = np.stack([truth.pixel_values(i, t.config.vision_config.image_size) for i in images])
    truth.write_dump(os.path.join(DATA, f"tiny_{name}.stages"), t.stages(pixels[0], t.prompt_ids("a photo of")))
    with open(os.path.join(DATA, f"tiny_{name}.answers"), "w") as f:
        cases = [c for c in CASES if name not in ROUNDED or c != TOO_NEAR]
        for case, prompt in itertools.product(cases, PROMPTS):
            for i, answers in enumerate(t.answers(pixels, t.prompt_ids(prompt), *case)):
                fields = [" ".join(["stop" if stopped else "length", f"{score:.8g}", *map(str, tokens)])
                          for tokens, score, stopped in answers]
                print(i, *[" ".join(map(str, case)), prompt, *fields], sep="\t", file=f)
    print(name, os.path.getsize(weights), "bytes")


def main():
    for i, path in enumerate(parity_model.make_images(tempfile.mkdtemp())):
        image = Image.open(path)
        image.resize((image.width // (2 + i), image.height // 3)).save(os.path.join(DATA, f"tiny_{i}.png"))
    images = [os.path.join(DATA, f"tiny_{i}.png") for i in range(3)]
    parity_model.CONFIGS = MODELS
    work = tempfile.mkdtemp()
    for name, (_, _, dtype, _) in MODELS.items():
        folder, weights, _, _ = parity_model.build(name, work)
        write(name, weights, truth.Truth(folder, round_bf16=dtype == "bf16"), images)
    for name, (of, dtype) in ROUNDED.items():
        folder, weights = os.path.join(work, of), os.path.join(work, name + ".bin")
        export = os.path.join(parity_model.HERE, "..", "export", "export.py")
        parity_model.quietly([sys.executable, export, folder, "-o", weights, "--dtype", dtype])
        t = truth.Truth(folder)
        t.take_weights(folder, weights)
        write(name, weights, t, images)
    return 0


if __name__ == "__main__":
    sys.exit(main())
