"""The way back: a weight file of the demo -> the folder of transformers that it was exported from.

    python dev/demo/unpack.py demo/demo.bin demo/demo-hf FOLDER

demo/demo-hf holds what a weight file does not: config.json, tokenizer and preprocessor settings, a few kilobytes.
So the numbers are in the repository once, and training can go on from them (train.py --start FOLDER). f32 and bf16
only.
"""
import argparse
import json
import os
import shutil
import struct
import sys

import numpy as np
import torch
from safetensors.torch import save_file

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "..", "export"))
import container as C
import hf as exporter
from tensors import layout


def read_weights(path):
    """-> hyperparameters {field: number}, {tensor's name: (rows, cols) f32 or bf16}"""
    data = np.memmap(path, np.uint8, "r")
    magic, version, _, _, size, _, _, count, _ = C.HEADER.unpack_from(data)
    if magic != C.MAGIC or version != C.VERSION or size != len(data):
        raise SystemExit(f"{path}: not a whole weight file of version {C.VERSION}")
    kinds = {code: (name, width) for name, (code, width) in C.DTYPES.items()}
    numbers = struct.unpack_from(f"<{len(C.INTS)}i{len(C.FLOATS)}f", data, C.HEADER.size)
    config = dict(zip([f[0] for f in C.INTS + C.FLOATS], numbers, strict=True))
    out = {}
    for i in range(count):
        name, dtype, rows, cols, _, offset, _ = C.RECORD.unpack_from(data, C.directory_at() + i * C.RECORD.size)
        name = name.rstrip(b"\0").decode()
        if kinds.get(dtype, ("",))[0] not in ("f32", "bf16"):
            raise SystemExit(f"{path}: {name} has dtype {dtype}; only f32 and bf16 can be unpacked")
        raw = torch.from_numpy(data[offset:offset + rows * cols * kinds[dtype][1]].copy())
        out[name] = raw.view(torch.float32 if kinds[dtype][0] == "f32" else torch.bfloat16).view(rows, cols)
    return config, out


def unpack(config, weights, settings):
    """What read_weights returns, settings of hf.config_settings -> {Hugging Face name: tensor, bf16}"""
    out = {}
    for e in layout(config, settings.vit_qkv_bias, settings.opt_bias):
        flat, at = weights[e.name].reshape(-1), 0
        for p in e.parts:
            n = int(np.prod(p.shape))
            if p.name:
                out[p.name] = flat[at:at + n].to(torch.bfloat16).reshape(p.shape).clone()
            at += n
    return out


def unpack_folder(folder, weights, settings):
    """Makes the folder from a weight file and the folder with config.json; returns the number of tensors."""
    os.makedirs(folder, exist_ok=True)
    for name in os.listdir(settings):
        if name.endswith((".json", ".txt")):
            shutil.copy(os.path.join(settings, name), folder)
    with open(os.path.join(settings, "config.json"), encoding="utf-8") as f:
        known = exporter.config_settings(json.load(f))
    tensors = unpack(*read_weights(weights), known)
    save_file(tensors, os.path.join(folder, "model.safetensors"), {"format": "pt"})
    return len(tensors)


def main():
    ap = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    ap.add_argument("weights", help="demo/demo.bin")
    ap.add_argument("settings", help="the folder with config.json")
    ap.add_argument("folder", help="where to write")
    args = ap.parse_args()
    print(f"{unpack_folder(args.folder, args.weights, args.settings)} tensors -> {args.folder}")


if __name__ == "__main__":
    main()
