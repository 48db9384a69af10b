"""The way back: a weight file of the demo -> the folder of transformers that it was exported from.

    python dev/demo/unpack.py demo/demo.bin demo/demo-hf FOLDER

demo/demo-hf holds what a weight file does not: config.json, tokenizer and preprocessor settings, a few kilobytes.
So the numbers are in the repository once, and training can go on from them (train.py --start FOLDER).
"""
import argparse
import json
import os
import shutil
import sys

import numpy as np
import torch
from safetensors.torch import save_file

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "..", "export"))
import hf as exporter
from container import WeightFile
from tensors import layout


def unpack(weights, settings):
    """weights: container.WeightFile, settings of hf.config_settings -> {Hugging Face name: tensor, bf16}"""
    out = {}
    for e in layout(weights.config, settings.vit_qkv_bias, settings.opt_bias):
        flat, at = torch.from_numpy(weights.tensor(e.name).copy()).reshape(-1), 0
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
    tensors = unpack(WeightFile(weights), known)
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
