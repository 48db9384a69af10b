"""What the tests of the exporter share: the tally, running the two programs, small checkpoints of every kind."""

import json
import re
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch

HERE = Path(__file__).resolve().parent
EXPORT = HERE.parent / "export"
sys.path.insert(0, str(EXPORT))
TOKENIZERS = {"opt": HERE / "data/tokenizers/bpe", "t5": HERE / "data/tokenizers/unigram"}
REAL = HERE.parents[1] / "shared/tokenizers"


class Tally:
    """Counts; the final line and exit status are those of all tests."""

    def __init__(self):
        self.passed = self.failed = self.skipped = 0

    def expect(self, ok, what):
        """Counts a check; says what failed."""
        if ok:
            self.passed += 1
        else:
            self.failed += 1
            print(f"FAIL {what}", file=sys.stderr, flush=True)
        return bool(ok)

    def skip(self, what):
        """Counts and names what could not be checked."""
        self.skipped += 1
        print(f"skipped: {what}", file=sys.stderr)

    def finish(self):
        """Prints the final line; returns the exit status."""
        print(f"{self.passed} passed, {self.failed} failed, {self.skipped} skipped")
        return 1 if self.failed else 0


def python(program, *args, **more):
    """Runs a script of export/; returns the CompletedProcess with text output."""
    return subprocess.run([sys.executable, str(EXPORT / program), *map(str, args)], capture_output=True, text=True,
                          **more)


def make(folder, kind, *args, tokenizer=None):
    """A random checkpoint; kind as --type has it. Raises when that fails."""
    family = "t5" if "t5" in kind else "opt"
    done = python("random_checkpoint.py", folder, "--type", kind, "--tokenizer", tokenizer or TOKENIZERS[family], *args)
    if done.returncode:
        raise RuntimeError(done.stderr)
    return folder


def export(src, out, *args, **more):
    """Runs export.py."""
    return python("export.py", src, "-o", out, *args, **more)


def header_of(path):
    """(JSON header, position of the data) of a safetensors file."""
    data = path.read_bytes()
    size = struct.unpack("<Q", data[:8])[0]
    return json.loads(data[8:8 + size]), 8 + size


def rewrite(path, change):
    """Changes a safetensors file: change(tensors {name: numpy array}) edits it in place. f32 files only."""
    header, at = header_of(path)
    data = path.read_bytes()
    tensors = {}
    for name, entry in header.items():
        if name != "__metadata__":
            begin, end = entry["data_offsets"]
            tensors[name] = np.frombuffer(data[at + begin:at + end], "<f4").reshape(entry["shape"]).copy()
    change(tensors)
    save(path, tensors)


def save(path, tensors):
    """Writes f32 tensors as a safetensors file."""
    header, end = {}, 0
    for name, x in tensors.items():
        header[name] = {"dtype": "F32", "shape": list(x.shape), "data_offsets": [end, end := end + x.nbytes]}
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + b"".join(x.tobytes() for x in tensors.values()))


def load_tensors(folder):
    """{name: torch tensor} of a folder with one f32 safetensors file."""
    header, at = header_of(folder / "model.safetensors")
    data = (folder / "model.safetensors").read_bytes()
    return {n: torch.from_numpy(np.frombuffer(data[at + e["data_offsets"][0]:at + e["data_offsets"][1]], "<f4")
                                .reshape(e["shape"]).copy()) for n, e in header.items() if n != "__metadata__"}


# The names in a LAVIS .pth, written down here once more and the other way round than in export/lavis.py.
TO_LAVIS = (
    (r"^vision_model\.post_layernorm", "ln_vision"),
    (r"^vision_model\.embeddings\.class_embedding$", "visual_encoder.cls_token"),
    (r"^vision_model\.embeddings\.position_embedding$", "visual_encoder.pos_embed"),
    (r"^vision_model\.embeddings\.patch_embedding\.", "visual_encoder.patch_embed.proj."),
    (r"^vision_model\.encoder\.layers\.", "visual_encoder.blocks."),
    (r"(visual_encoder\.blocks\.\d+)\.layer_norm([12])", r"\1.norm\2"),
    (r"\.self_attn\.projection\.", ".attn.proj."),
    (r"\.self_attn\.qkv\.", ".attn.qkv."),
    (r"^qformer\.layernorm", "Qformer.bert.embeddings.LayerNorm"),
    (r"^qformer\.", "Qformer.bert."),
    (r"attention\.attention\.", "attention.self."),
)


def lavis_files(folder, hf, kind, decoder_prefix="model.", own_vit=None):
    """Writes the LAVIS layout of a random Hugging Face checkpoint hf: ckpt.pth, eva.pth unless the .pth has the ViT
    (COCO, or own_vit), llm/. Returns the arguments for export.py without -o."""
    tensors, family = load_tensors(hf), "t5" if "t5" in kind else "opt"
    own = kind.startswith("caption_coco") if own_vit is None else own_vit
    pth, language = {}, {}
    for name, x in tensors.items():
        if name.startswith("language_model."):
            language[name.removeprefix("language_model.")] = x
            continue
        name = name.replace("language_projection", f"{family}_proj")
        for pattern, to in TO_LAVIS:
            name = re.sub(pattern, to, name)
        if name.endswith("attn.qkv.bias"):
            third = len(x) // 3
            pth[name.replace("qkv.bias", "q_bias")] = x[:third].clone()
            pth[name.replace("qkv.bias", "v_bias")] = x[2 * third:].clone()
        else:
            pth[name] = x
    pth["Qformer.bert.embeddings.position_ids"] = torch.arange(512)[None]
    if family == "opt":
        pth["opt_model.lm_head.weight"] = language["model.decoder.embed_tokens.weight"]
    else:
        pth |= {f"t5_model.{s}.embed_tokens.weight": language["shared.weight"] for s in ("encoder", "decoder")}
    folder.mkdir()
    args = ["--lavis", kind, folder / "ckpt.pth", "--llm", folder / "llm"]
    if not own:
        eva = {n.removeprefix("visual_encoder."): pth.pop(n) for n in list(pth) if n.startswith("visual_encoder.")}
        last = max(int(m[1]) for n in eva if (m := re.match(r"blocks\.(\d+)\.", n)))
        eva |= {n.replace(f"blocks.{last}.", f"blocks.{last + 1}."): x + 1 for n, x in list(eva.items())
                if n.startswith(f"blocks.{last}.")}
        eva |= {n: torch.ones(3) for n in ("norm.weight", "norm.bias", "head.weight", "head.bias")}
        torch.save(eva, folder / "eva.pth")
        args += ["--vit", folder / "eva.pth"]
    torch.save({"model": pth, "optimizer": {"state": {}, "param_groups": [{"lr": 1e-5}]}, "epoch": 4,
                "config": {"model": {"arch": f"blip2_{family}"}}, "scaler": None}, folder / "ckpt.pth")
    llm = folder / "llm"
    llm.mkdir()
    for file in TOKENIZERS[family].iterdir():
        (llm / file.name).write_bytes(file.read_bytes())
    text = json.loads((hf / "config.json").read_text())["text_config"]
    if family == "opt":      # facebook/opt-*: a .bin, </s> as end, and the tied head stored
        text["eos_token_id"] = 2
        language = {n.replace("model.decoder.", decoder_prefix + "decoder."): x for n, x in language.items()}
        if decoder_prefix:
            language["lm_head.weight"] = language["model.decoder.embed_tokens.weight"]
        torch.save(language, llm / "pytorch_model.bin")
    else:                    # google/flan-t5-*: tanh GELU in its own configuration
        text["dense_act_fn"] = "gelu_new"
        save(llm / "model.safetensors", {n: x.numpy() for n, x in language.items()})
    (llm / "config.json").write_text(json.dumps(text))
    return args
