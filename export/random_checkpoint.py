"""Writes a Hugging Face folder with a BLIP-2 of random weights, so that everything can be run without the hub.

    python3 export/random_checkpoint.py FOLDER --type pretrain_opt2.7b --tokenizer TOKENIZER_FOLDER
    python3 export/random_checkpoint.py FOLDER --type tiny_t5 --tokenizer TOKENIZER_FOLDER --set vision.hidden_size=88

In order: the command line, config.json, the scale of each tensor, writing, main. Needs numpy alone (torch for --bin).

The weights are scaled so that the answers mean something as a test: they depend on the image and on the prompt, vary
from token to token, and end mid-sentence now and then. Freshly initialised transformers do none of this: they give one
answer to every image and repeat one token.
"""

import argparse
import json
import math
import re
import shutil
import sys
import zlib
from pathlib import Path

import hf            # first, since container.py says what to do when there is no numpy
import numpy as np
from container import ExportError, to_bf16
from source import CHUNK, count
from tensors import OPT, TYPES, layout, sizes_of
from tokenizer import TokenizerError, read_tokenizer

TINY_VISION = {"hidden_size": 176, "num_attention_heads": 2, "intermediate_size": 200, "num_hidden_layers": 3,
               "image_size": 56, "patch_size": 14}
TINY_QFORMER = {"hidden_size": 128, "num_attention_heads": 2, "intermediate_size": 152, "num_hidden_layers": 4}
TINY_OPT = {"hidden_size": 96, "num_attention_heads": 4, "ffn_dim": 136, "num_hidden_layers": 3,
            "max_position_embeddings": 256}
TINY_T5 = {"d_model": 88, "num_heads": 3, "d_kv": 20, "d_ff": 120, "num_layers": 3, "num_decoder_layers": 2}
TOKENIZER_FILES = ("tokenizer.json", "vocab.json", "merges.txt", "spiece.model", "tokenizer_config.json",
                   "special_tokens_map.json", "added_tokens.json")
DTYPES = {"f32": ("F32", 4, "float32"), "bf16": ("BF16", 2, "bfloat16"), "f16": ("F16", 2, "float16")}


def usage():
    """The command line."""
    p = argparse.ArgumentParser(prog="random_checkpoint.py", description=__doc__.split("\n")[0])
    p.add_argument("folder", type=Path, help="folder to write; must not exist or be empty")
    p.add_argument("--type", required=True, choices=[*TYPES, "tiny_opt", "tiny_t5"], metavar="TYPE",
                   help=f"{', '.join(TYPES)}, tiny_opt or tiny_t5")
    p.add_argument("--tokenizer", required=True, type=Path, metavar="FOLDER", help="tokenizer files to copy")
    p.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", dest="overrides",
                   help="a value of config.json: vision.KEY, qformer.KEY, text.KEY or KEY; VALUE is JSON")
    p.add_argument("--seed", type=int, default=1)
    p.add_argument("--dtype", choices=DTYPES, default="f32", help="dtype of the files")
    p.add_argument("--shard-mb", type=float, default=5000, help="size of a file at most, as far as tensors allow")
    p.add_argument("--tied", action="store_true", help="T5 with tied embeddings, as transformers 5 saves a fresh one")
    p.add_argument("--store-head", action="store_true", help="store OPT's tied lm_head too, as old hub files do")
    p.add_argument("--no-image-token", action="store_true", help="leave image_token_index out, as old hub files do")
    p.add_argument("--bin", action="store_true", help="pytorch_model.bin instead of safetensors; needs torch")
    p.add_argument("--end-rate", type=float, default=0.05, help="about how likely each token is to be the last")
    return p.parse_args()


# ---------------------------------------------------------------------------------------------------------------------
# config.json


def text_config(args, ids):
    """text_config as the hub's files have it, for the tokenizer's ids."""
    if args.type.endswith("opt") or "_opt" in args.type:
        text = dict(TINY_OPT)
        if args.type in TYPES:
            s = sizes_of(args.type)
            text = {"hidden_size": s["DL"], "num_attention_heads": s["HL"], "ffn_dim": s["FL"],
                    "num_hidden_layers": s["LD"], "max_position_embeddings": 2048}
        return {"model_type": "opt", **text, "word_embed_proj_dim": text["hidden_size"], "bos_token_id": ids["bos"],
                "eos_token_id": ids["newline"], "pad_token_id": ids["pad"]}
    text = dict(TINY_T5)
    if args.type in TYPES:
        s = sizes_of(args.type)
        text = {"d_model": s["DL"], "num_heads": s["HL"], "d_kv": s["AL"], "d_ff": s["FL"], "num_layers": s["LE"],
                "num_decoder_layers": s["LD"]}
    tie = {"tie_word_embeddings": True, "scale_decoder_outputs": True} if args.tied else {"tie_word_embeddings": False}
    # generate() in transformers begins an empty prompt with bos, which is why the hub's T5 has </s> there
    return {"model_type": "t5", **text, "feed_forward_proj": "gated-gelu", "dense_act_fn": "gelu", "is_gated_act": True,
            "layer_norm_epsilon": 1e-6, "relative_attention_num_buckets": 32, "relative_attention_max_distance": 128,
            "decoder_start_token_id": ids["pad"], "bos_token_id": ids["eos"], "eos_token_id": ids["eos"],
            "pad_token_id": ids["pad"], "is_encoder_decoder": True, **tie}


def make_config(args, tokenizer):
    """The value of config.json."""
    ids = tokenizer.ids
    text = text_config(args, ids)
    image = ids["image"] if ids["image"] >= 0 else ids["n_ids"]    # the next free id, as on the hub
    rows = max(ids["n_ids"], image + 1)
    # OPT's rows are padded to a multiple of 64 when <image> is added; T5 has spare rows from the start
    text["vocab_size"] = rows + 3 if args.type.startswith("tiny") else (rows + 63) // 64 * 64
    vision, qformer = dict(TINY_VISION), {**TINY_QFORMER, "cross_attention_frequency": 2}
    if args.type in TYPES:
        s = sizes_of(args.type)
        vision = {"hidden_size": s["DV"], "num_attention_heads": s["HV"], "intermediate_size": s["FV"],
                  "num_hidden_layers": s["LV"], "image_size": s["S"], "patch_size": s["P"]}
        qformer = {"hidden_size": s["DQ"], "num_attention_heads": s["HQ"], "intermediate_size": s["FQ"],
                   "num_hidden_layers": s["LQ"], "cross_attention_frequency": s["XQ"]}
    data = {
        "architectures": ["Blip2ForConditionalGeneration"], "model_type": "blip-2",
        "num_query_tokens": 32 if args.type in TYPES else 7, "torch_dtype": DTYPES[args.dtype][2],
        "vision_config": {"model_type": "blip_2_vision_model", "layer_norm_eps": 1e-6, "qkv_bias": True, **vision},
        "qformer_config": {"model_type": "blip_2_qformer", "layer_norm_eps": 1e-12, **qformer}, "text_config": text,
    }
    if not args.no_image_token:
        data["image_token_index"] = image
    for item in args.overrides:
        key, _, value = item.partition("=")
        section, _, name = key.rpartition(".")
        try:
            target = data[f"{section}_config"] if section else data
            target[name] = json.loads(value)
        except (KeyError, ValueError):
            raise ExportError(f"--set {item}: expected vision.KEY, qformer.KEY, text.KEY or KEY, and a JSON value"
                              ) from None
    data["qformer_config"]["encoder_hidden_size"] = data["vision_config"]["hidden_size"]
    return data


# ---------------------------------------------------------------------------------------------------------------------
# Scales

LOGIT_STD = 4.0     # of the logits over the vocabulary: the best token stands out, others are not hopeless


def sizes(c):
    """(e, b): standard deviation of a token embedding, and of what a decoder layer's branch adds to the stream.

    A tied head sees the embedding of the token just fed again, so that a token would repeat itself: its own logit is
    e*sqrt(DL)/s standard deviations up when the stream ends up with deviation s. The branches add up to a much
    greater s."""
    if not c["tied"]:
        return 1.0, 1.0
    size = LOGIT_STD / c["logit_scale"]
    return size / math.sqrt(c["DL"]), 4 * size / math.sqrt(2 * c["LD"])


def scale(name, shape, c):
    """(mean, standard deviation) of a tensor by its Hugging Face name. Matrices have gain/sqrt(columns), where a gain
    of 1 keeps the size of what goes through."""
    e, b = sizes(c)
    if name.endswith(".bias"):
        return 0.0, 0.05
    if len(shape) == 1:
        return 1.0, 0.1                     # norms
    fixed = {"query_tokens": 1.0, "vision_model.embeddings.class_embedding": 1.0,
             "vision_model.embeddings.position_embedding": 0.3, "language_model.shared.weight": e,
             "language_model.model.decoder.embed_tokens.weight": e,
             "language_model.model.decoder.embed_positions.weight": 0.7 * e}
    if name in fixed:
        return 0.0, fixed[name]
    if "relative_attention_bias" in name:
        return 0.0, 1.0
    gain = next((g for pattern, g in (
        (r".*\.(query|key|q_proj|k_proj)\.weight", 1.6),   # scores of deviation 1.6^2: attention picks few positions
        (r".*Attention\.q\.weight", 1.6 / math.sqrt(c["AL"])),   # T5 does not divide scores by the root of AL
        (r".*Attention\.k\.weight", 1.6),
        (r".*crossattention\.output\.dense\.weight", 3.0),       # the image against the queries
        (r"language_projection\.weight", 1.5 * e),
        (r"language_model\.lm_head\.weight", LOGIT_STD / c["logit_scale"]),
        (r"language_model\..*\.(layers|block)\.0\..*(out_proj|\.o)\.weight", e),   # leaves the token just fed visible
        (r"language_model\..*(\.o|out_proj)\.weight", b),
        (r"language_model\..*(\.wo|fc2)\.weight", 2.0 * b),
    ) if re.fullmatch(pattern, name)), 1.0)
    return 0.0, gain / math.sqrt(count(shape[1:]))


def end_factor(c, rate):
    """Factor on the head's row of the end token, with which it is the best of V normal logits in about rate of the
    steps: the expected maximum of V standard normals over the quantile that one of them exceeds that often."""
    root = math.sqrt(2 * math.log(c["V"]))
    best = root - (math.log(math.log(c["V"])) + math.log(4 * math.pi)) / (2 * root)
    lo, hi = 0.0, 10.0
    for _ in range(60):
        mid = (lo + hi) / 2
        lo, hi = (mid, hi) if 0.5 * math.erfc(mid / math.sqrt(2)) > rate else (lo, mid)
    return max(1.0, best / max(lo, 0.1))


def numbers(name, shape, c, args):
    """The numbers of a tensor as f32 chunks. A function of seed and name, so that no order matters."""
    mean, std = scale(name, shape, c)
    rng = np.random.Generator(np.random.SFC64([args.seed, zlib.crc32(name.encode())]))
    head = "lm_head.weight" if not c["tied"] else "embed_tokens.weight" if c["family"] == OPT else "shared.weight"
    end, spare = (c["eos"] * shape[1], c["spare"] * shape[1]) if name.endswith(head) else (None, None)
    keys = (shape[0] // 3, 2 * shape[0] // 3) if name.endswith("self_attn.qkv.bias") else (0, 0)
    # ReLU and GELU let a positive mean through, by which fc2 would add the same vector everywhere: its rows sum to 0
    centred = re.search(r"(fc2|output_query\.dense)\.weight$", name)
    columns = shape[-1]
    step = max(CHUNK // columns, 1) * columns
    for at in range(0, count(shape), step):
        x = rng.standard_normal(min(step, count(shape) - at), np.float32)
        if centred:
            x = (x.reshape(-1, columns) - x.reshape(-1, columns).mean(axis=1, keepdims=True)).reshape(-1)
        x = x * np.float32(std) + np.float32(mean)
        if end is not None and at < end + shape[1] and end < at + x.size:
            x[max(end - at, 0):end - at + shape[1]] *= end_factor(c, args.end_rate)
        if spare is not None and at + x.size > spare:
            x[max(spare - at, 0):] *= 0.1                     # <image> and rows without a token never win
        x[max(keys[0] - at, 0):max(keys[1] - at, 0)] = 0      # the K third is zero in every released checkpoint
        yield x


# ---------------------------------------------------------------------------------------------------------------------
# Writing


def pack(x, dtype):
    """f32 -> the dtype of the files."""
    return to_bf16(x) if dtype == "bf16" else x.astype(np.float16) if dtype == "f16" else x


def make_shards(tensors, width, limit):
    """Splits [(name, shape)] into files of at most limit bytes each, or one tensor."""
    files, room = [[]], limit
    for name, shape in tensors:
        if files[-1] and count(shape) * width > room:
            files.append([])
            room = limit
        files[-1].append((name, shape))
        room -= count(shape) * width
    return files


def write_safetensors(path, tensors, c, args):
    """One safetensors file, written tensor by tensor."""
    code, width, _ = DTYPES[args.dtype]
    header, at = {"__metadata__": {"format": "pt"}}, 0
    for name, shape in tensors:
        header[name] = {"dtype": code, "shape": shape, "data_offsets": [at, at := at + count(shape) * width]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as f:
        f.write(len(text).to_bytes(8, "little") + text)
        for name, shape in tensors:
            source = "language_model.model.decoder.embed_tokens.weight" if c["tied"] and "lm_head" in name else name
            for x in numbers(source, shape, c, args):
                pack(x, args.dtype).tofile(f)


def write_bin(path, tensors, c, args):
    """One pytorch_model.bin; tied tensors share their storage as in the old files."""
    import torch
    out = {}
    for name, shape in tensors:
        if c["tied"] and "lm_head" in name:
            out[name] = out["language_model.model.decoder.embed_tokens.weight"]
            continue
        x = np.concatenate(list(numbers(name, shape, c, args))).reshape(shape)
        out[name] = torch.from_numpy(x).to(getattr(torch, DTYPES[args.dtype][2]))
    torch.save(out, path)


def write_weights(folder, tensors, c, args):
    """All files and their index."""
    width = DTYPES[args.dtype][1]
    stem, ending = ("pytorch_model", "bin") if args.bin else ("model", "safetensors")
    shards, where = make_shards(tensors, width, args.shard_mb * 1e6), {}
    for i, shard in enumerate(shards, 1):
        name = f"{stem}.{ending}" if len(shards) == 1 else f"{stem}-{i:05}-of-{len(shards):05}.{ending}"
        print(f"{folder / name}: {sum(count(s) for _, s in shard) * width / 1e6:.1f} MB", file=sys.stderr)
        (write_bin if args.bin else write_safetensors)(folder / name, shard, c, args)
        where |= {t: name for t, _ in shard}
    if len(shards) > 1:
        total = sum(count(s) for _, s in tensors) * width
        write_json(folder / f"{stem}.{ending}.index.json", {"metadata": {"total_size": total}, "weight_map": where})


def write_json(path, value):
    """A JSON file."""
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def tokenizer_config(folder, family):
    """tokenizer_config.json for a folder that comes without. T5Tokenizer of transformers 5 would rebuild a
    tokenizer.json from its pieces, with another normalizer; the plain class takes it as it is."""
    if family == "opt":
        return {"tokenizer_class": "GPT2Tokenizer", "add_bos_token": True, "add_prefix_space": False,
                "bos_token": "</s>", "eos_token": "</s>", "unk_token": "</s>", "pad_token": "<pad>"}
    plain = (folder / "tokenizer.json").is_file()
    return {"tokenizer_class": "PreTrainedTokenizerFast" if plain else "T5Tokenizer", "eos_token": "</s>",
            "unk_token": "<unk>", "pad_token": "<pad>"}


def run(args):
    """Writes the folder."""
    if args.folder.exists() and any(args.folder.iterdir()):
        raise ExportError(f"{args.folder}: exists and is not empty")
    family = "t5" if "t5" in args.type else "opt"
    tokenizer = read_tokenizer(args.tokenizer, family)
    data = make_config(args, tokenizer)
    s = hf.config_settings(data)
    ids = tokenizer.ids
    c = s.config | {"tied": 1 if family == "opt" or args.tied else 0,
                    "spare": ids["image"] if ids["image"] >= 0 else ids["n_ids"]}
    hf.with_tokenizer(s, tokenizer)
    args.folder.mkdir(parents=True, exist_ok=True)
    for name in TOKENIZER_FILES:
        if (args.tokenizer / name).is_file():
            shutil.copyfile(args.tokenizer / name, args.folder / name)
    if not (args.tokenizer / "tokenizer_config.json").is_file():   # without one transformers takes any kind for GPT-2's
        write_json(args.folder / "tokenizer_config.json", tokenizer_config(args.tokenizer, family))
    if tokenizer.ids["image"] < 0 and not args.no_image_token:
        write_json(args.folder / "added_tokens.json", {"<image>": tokenizer.ids["n_ids"]})
    write_json(args.folder / "config.json", data)
    text = data["text_config"]
    write_json(args.folder / "generation_config.json", {k: text[k] for k in (
        "bos_token_id", "decoder_start_token_id", "eos_token_id", "pad_token_id") if k in text})
    side = {"height": c["S"], "width": c["S"]}
    write_json(args.folder / "preprocessor_config.json", {
        "do_convert_rgb": True, "do_normalize": True, "do_rescale": True, "do_resize": True,
        "image_mean": hf.CLIP_MEAN, "image_processor_type": "BlipImageProcessor", "image_std": hf.CLIP_STD,
        "processor_class": "Blip2Processor", "resample": 3, "rescale_factor": 1 / 255, "size": side})
    tensors = [(p.name, p.shape) for e in layout(c, s.vit_qkv_bias, s.opt_bias) for p in e.parts if p.name]
    if family == "opt" and args.store_head:
        tensors.append(("language_model.lm_head.weight", (c["V"], c["DL"])))
    write_weights(args.folder, tensors, c, args)


def main():
    """Exit codes: 0 written, 1 failed, 2 usage."""
    args = usage()
    try:
        run(args)
    except (ExportError, TokenizerError, OSError) as e:
        print(f"random_checkpoint.py: {e}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
