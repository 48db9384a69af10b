"""Tests of what the exporter refuses: each bad checkpoint gives exit code 1 (usage: 2), one line that names the
culprit, no traceback, and leaves no file.

In order: damaged weight files, tensors that do not fit, configurations, LAVIS files, usage, full disk and interruption.

Run:  python test/parity_export_errors.py      (needs torch)
"""

import json
import os
import resource
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from export_tools import EXPORT, Tally, export, header_of, lavis_files, make, python, rewrite

t = Tally()


def refused(done, out, what, *words, code=1):
    """The export failed as it should: exit code, message with all words on one line, nothing left in the folder."""
    last = done.stderr.strip().splitlines()[-1] if done.stderr.strip() else ""
    t.expect(done.returncode == code, f"{what}: exit code {done.returncode}: {done.stderr[-500:]}")
    t.expect(all(w in last for w in words), f"{what}: expected {words} in {last!r}")
    t.expect("Traceback" not in done.stderr, f"{what}: {done.stderr[-800:]}")
    left = list(out.parent.glob(out.name + "*"))
    t.expect(not left, f"{what}: {left} was left")
    for f in left:
        f.unlink()


class Cases:
    """A good checkpoint and copies of it with one thing wrong."""

    def __init__(self, tmp, kind, *args):
        name = "_".join(("good", kind, *args))
        self.tmp, self.good, self.n = tmp, make(tmp / name, kind, *args), 0
        self.out = tmp / "bad.b2c"

    def copy(self):
        """A new copy of the good folder."""
        self.n += 1
        folder = self.tmp / f"copy_{self.good.name}_{self.n}"
        shutil.copytree(self.good, folder)
        return folder

    def tensors(self, what, change, *words, args=()):
        """change(tensors) edits the safetensors file."""
        folder = self.copy()
        rewrite(folder / "model.safetensors", change)
        refused(export(folder, self.out, *args), self.out, what, *words)
        shutil.rmtree(folder)

    def json(self, what, change, *words, file="config.json"):
        """change(value) edits a JSON file."""
        folder = self.copy()
        value = json.loads((folder / file).read_text())
        change(value)
        (folder / file).write_text(json.dumps(value))
        refused(export(folder, self.out), self.out, what, *words)
        shutil.rmtree(folder)

    def file(self, what, change, *words, file="model.safetensors"):
        """change(path) does something to a file of the folder."""
        folder = self.copy()
        change(folder / file)
        refused(export(folder, self.out), self.out, what, *words)
        shutil.rmtree(folder)


# ---------------------------------------------------------------------------------------------------------------------


def with_header(path, change):
    """Replaces the header of a safetensors file by change(header), a dictionary or bytes."""
    header, at = header_of(path)
    data = path.read_bytes()[at:]
    text = change(header)
    text = text if isinstance(text, bytes) else json.dumps(text).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)


def entry(header, **values):
    """The header with other values in the entry of one tensor."""
    name = "language_projection.bias"
    header[name] |= values
    return header


def check_files(c):
    """Truncated and hostile weight files."""
    def cut(n):
        return lambda p: p.write_bytes(p.read_bytes()[:n])
    c.file("cut in the data", lambda p: cut(p.stat().st_size - 5)(p), "truncated", "model.safetensors")
    c.file("too long", lambda p: p.write_bytes(p.read_bytes() + b"x"), "too long")
    for n in (0, 3, 8, 100):
        c.file(f"cut to {n} bytes", cut(n), "model.safetensors", "truncated")
    c.file("header length", lambda p: p.write_bytes(b"\xff" * 8 + p.read_bytes()[8:]), "not a safetensors file")
    c.file("not JSON", lambda p: with_header(p, lambda h: b"{" * 100000), "not valid JSON")
    c.file("not UTF-8", lambda p: with_header(p, lambda h: b'{"\xff": 1}'), "not valid JSON")
    c.file("deep JSON", lambda p: with_header(p, lambda h: b"[" * 90000 + b"]" * 90000), "JSON")
    c.file("a list", lambda p: with_header(p, lambda h: b"[1]"), "no JSON object")
    c.file("a key twice", lambda p: with_header(p, lambda h: json.dumps(h).encode()[:-1] + b', "__metadata__": {}}'),
           "twice")
    for values, word in (({"dtype": "F99"}, "unknown dtype"), ({"dtype": []}, "unknown dtype"),
                         ({"dtype": "F16"}, "offsets"), ({"shape": [-1]}, "damaged"), ({"shape": "x"}, "damaged"),
                         ({"shape": [1 << 40, 1 << 40]}, "offsets"), ({"shape": [True]}, "damaged"),
                         ({"data_offsets": [0]}, "damaged"), ({"data_offsets": [1 << 60, 1 << 61]}, "damaged"),
                         ({"data_offsets": [0, 384]}, "overlap"), ({"shape": [1.5]}, "damaged")):
        c.file(f"header entry {values}", lambda p, v=values: with_header(p, lambda h: entry(h, **v)), word)
    c.file("an entry that is no object", lambda p: with_header(p, lambda h: h | {"language_projection.bias": 3}),
           "damaged")
    c.file("no weights", lambda p: p.unlink(), "no weights found")
    c.file("config is gone", lambda p: p.unlink(), "config.json", "no such file", file="config.json")
    c.file("config is no JSON", lambda p: p.write_text("{"), "config.json", "not valid JSON", file="config.json")
    c.file("config is a list", lambda p: p.write_text("[]"), "config.json", "JSON object", file="config.json")
    c.file("a folder instead of weights", lambda p: (p.unlink(), p.mkdir()), "no weights found")

    def no_tokenizer(p):
        for name in ("vocab.json", "merges.txt"):
            (p.parent / name).unlink()
        p.unlink()
    c.file("no tokenizer", no_tokenizer, "tokenizer", file="tokenizer.json")


def check_shards(tmp):
    """Sharded checkpoints."""
    c = Cases(tmp, "tiny_opt", "--shard-mb", "3")
    index = "model.safetensors.index.json"
    first = sorted(p.name for p in c.good.glob("model-*"))[0]
    c.file("a shard is missing", lambda p: p.unlink(), first, "missing", file=first)
    c.file("a shard is cut", lambda p: p.write_bytes(p.read_bytes()[:-100]), first, "truncated", file=first)

    def put(name):
        return lambda v: v["weight_map"].update({"query_tokens": name})
    for name in ("../evil", "/etc/passwd", "..", "", "a\\b"):
        c.json(f"a shard called {name!r}", put(name), "not a file of this folder", file=index)
    c.json("a tensor that no shard has", lambda v: v["weight_map"].update({"more": first}), "more", file=index)
    c.json("no weight_map", lambda v: v.pop("weight_map"), "weight_map", file=index)

    def double(p):
        shutil.copy(p, p.with_name("model-extra.safetensors"))
        value = json.loads((p.parent / index).read_text())
        value["weight_map"]["query_tokens"] = "model-extra.safetensors"
        (p.parent / index).write_text(json.dumps(value))
    c.file("a tensor in two shards", double, "is both in", file=first)


def check_tensors(c, t5):
    """Tensors that are missing, left over, of another shape, or hold what is no number."""
    bias, query = "language_projection.bias", "qformer.encoder.layer.1.attention.attention.query.weight"
    c.tensors("missing", lambda x: x.pop(query), query, "missing")
    c.tensors("two missing", lambda x: (x.pop(query), x.pop(bias)), "missing", "and 1 more")
    c.tensors("left over", lambda x: x.update({"language_model.spare": np.ones(3, np.float32)}),
              "language_model.spare", "left over")
    c.tensors("a layer too many", lambda x: x.update({bias.replace("bias", "extra"): x[bias]}), "left over")
    c.tensors("shape", lambda x: x.update({query: x[query][:-1]}), query, "shape", "expected")
    c.tensors("transposed", lambda x: x.update({query: x[query].reshape(1, *x[query].shape)}), query, "shape")
    for name, value in (("NaN", np.nan), ("infinity", np.inf), ("infinity", -np.inf)):
        for tensor in (bias, query):
            def poison(x, tensor=tensor, value=value):
                x[tensor].reshape(-1)[-1] = value
            c.tensors(f"{value} in {tensor}", poison, tensor, name)

    def huge(x):
        x[query][0, 0] = np.float32(3.4e38)
    c.tensors("too large for bf16", huge, query, "too large for bf16", args=["--dtype", "bf16"])
    folder = c.copy()
    rewrite(folder / "model.safetensors", huge)
    done = export(folder, c.out)
    t.expect(done.returncode == 0, f"the same in f32 is no error: {done.stderr}")
    c.out.unlink(missing_ok=True)

    copy = "language_model.encoder.embed_tokens.weight"
    t5.tensors("a copy that is none", lambda x: x.update({copy: x["language_model.shared.weight"] + 1}), copy,
               "differs")
    folder = t5.copy()
    ignored = {copy: lambda x: x["language_model.shared.weight"],
               "vision_model.embeddings.position_ids": lambda x: np.zeros(5, np.float32),
               "language_model.decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight":
                   lambda x: np.ones((32, 3), np.float32)}
    rewrite(folder / "model.safetensors", lambda x: x.update({n: f(x) for n, f in ignored.items()}))
    done = export(folder, t5.out)
    t.expect(done.returncode == 0, f"known leftovers are ignored: {done.stderr}")
    t5.out.unlink(missing_ok=True)
    c.json("an OPT head that must be there", lambda v: v["text_config"].update(tie_word_embeddings=False),
           "language_model.lm_head.weight", "missing")


def check_configs(c, t5):
    """Settings that the program does not have, are absurd, or contradict each other, each named."""
    def put(section, **values):
        return lambda v: (v[section] if section else v).update(values)
    for key, value in (("do_layer_norm_before", False), ("_remove_final_layer_norm", True), ("word_embed_proj_dim", 48),
                       ("layer_norm_elementwise_affine", False), ("activation_function", "silu"),
                       ("hidden_size", "96"), ("num_attention_heads", 5), ("num_hidden_layers", 0),
                       ("eos_token_id", [4, 5]), ("eos_token_id", 100000), ("vocab_size", 470),
                       ("max_position_embeddings", 1 << 40), ("bos_token_id", 3), ("model_type", "llama"),
                       ("num_hidden_layers", True), ("num_hidden_layers", 2), ("hidden_size", 1e400)):
        word = {"eos_token_id": "eos", "num_hidden_layers": ""}.get(key, key)
        word = {"vocab_size": "vocabulary", "max_position_embeddings": "positions"}.get(key, word)
        c.json(f"OPT {key} {value}", put("text_config", **{key: value}), word)
    for key, value in (("feed_forward_proj", "relu"), ("dense_act_fn", "silu"), ("is_gated_act", False),
                       ("feed_forward_proj", 3), ("d_model", 0), ("layer_norm_epsilon", "x")):
        values = {key: value} if key != "feed_forward_proj" else {key: value, "is_gated_act": False}
        t5.json(f"T5 {key} {value}", put("text_config", **values),
                "DL" if key == "d_model" else "gated" if key == "is_gated_act" else key)
    for section, key, value, word in (
            ("vision_config", "hidden_act", "quick_gelu", "hidden_act"), ("vision_config", "patch_size", 0, "P is 0"),
            ("vision_config", "image_size", [56, 28], "square"), ("vision_config", "image_size", 70, "size"),
            ("vision_config", "num_attention_heads", 3, "heads"), ("vision_config", "layer_norm_eps", -1, "eps_vit"),
            ("qformer_config", "cross_attention_frequency", 0, "XQ"),
            ("qformer_config", "hidden_act", "relu", "hidden_act"),
            ("qformer_config", "use_qformer_text_input", True, "text input"),
            ("qformer_config", "cross_attention_frequency", 1, "missing"),
            (None, "num_query_tokens", 8, "query_tokens"),
            (None, "model_type", "blip", "model_type"), (None, "vision_config", 3, "vision_config"),
            (None, "architectures", ["Blip2ForImageTextRetrieval"], "architectures")):
        c.json(f"{section} {key} {value}", put(section, **{key: value}), word)
    for key, value in (("resample", 2), ("do_center_crop", True), ("do_resize", False), ("do_normalize", False),
                       ("size", {"height": 384, "width": 384}), ("size", {"shortest_edge": 56}), ("image_mean", [1, 2]),
                       ("image_std", [0, 1, 1]), ("rescale_factor", 1), ("do_rescale", False)):
        c.json(f"preprocessing {key} {value}", put(None, **{key: value}), "std_r" if key == "image_std" else key,
               file="preprocessor_config.json")


def check_lavis(tmp):
    """LAVIS files."""
    hf, out, n = make(tmp / "lavis_hf", "tiny_opt"), tmp / "bad.b2c", 0
    t5 = make(tmp / "lavis_t5", "tiny_t5")

    def attempt(what, change, *words, kind="pretrain_opt2.7b", source=hf, edit="ckpt.pth"):
        nonlocal n
        n += 1
        folder = tmp / f"lavis_{n}"
        args = lavis_files(folder, source, kind)
        data = torch.load(folder / edit, weights_only=True)
        tensors = data.get("model", data)
        changed = change(tensors, args)
        args = changed if isinstance(changed, list) else args
        torch.save(data, folder / edit)
        refused(python("export.py", *args, "-o", out), out, what, *words)
        shutil.rmtree(folder)
    query = "Qformer.bert.encoder.layer.1.attention.self.query.weight"
    attempt("missing", lambda x, a: x.pop(query), query, "missing")
    attempt("left over", lambda x, a: x.update(spare=torch.ones(2)), "spare", "left over")
    attempt("NaN", lambda x, a: x.update({query: x[query] * torch.nan}), query, "NaN")
    attempt("shape", lambda x, a: x.update({query: x[query][1:]}), query, "shape")
    attempt("no q_bias", lambda x, a: x.pop("blocks.1.attn.q_bias"), "blocks.1.attn.q_bias", "missing",
            edit="eva.pth")
    attempt("leftover of the ViT", lambda x, a: x.update({"rope": torch.ones(2)}), "rope", "left over", edit="eva.pth")
    attempt("integers", lambda x, a: x.update({query: x[query].long()}), query, "floating-point")
    attempt("no --vit", lambda x, a: a[:-2], "--vit")
    attempt("ViT-L", lambda x, a: x.update({"conv1.weight": torch.ones(2)}), "ViT-L", edit="eva.pth")
    attempt("OPT type, T5 folder", lambda x, a: [*a[:4], t5, *a[5:]], "model_type")
    attempt("T5 type, OPT folder", lambda x, a: [a[0], "pretrain_flant5xl", *a[2:]], "model_type")
    attempt("COCO without its own ViT", lambda x, a: [a[0], "caption_coco_opt2.7b", *a[2:]], "visual_encoder")
    attempt("projection of another model", lambda x, a: x.update(
        {"opt_proj.weight": torch.ones(100, 128)}), "opt_proj.weight", "shape")
    attempt("odd cross-attention", lambda x, a: [x.pop(k) for k in list(x) if "layer.2.crossattention" in k] and None,
            "attends to the image in layers", source=make(tmp / "lavis_eight", "tiny_opt", "--set",
                                                          "qformer.num_hidden_layers=8"))
    attempt("no such .pth", lambda x, a: [*a[:2], tmp / "none.pth", *a[3:]], "none.pth")
    (tmp / "text.pth").write_text("hello, I am no checkpoint")
    attempt("a text file", lambda x, a: [*a[:2], tmp / "text.pth", *a[3:]], "text.pth", "torch cannot read it")
    torch.save({"model": 3}, tmp / "three.pth")
    attempt("no tensors in it", lambda x, a: [*a[:2], tmp / "three.pth", *a[3:]], "no dictionary of tensors")


class Runs:
    """What a pickle could do to a reader that trusts it."""

    def __reduce__(self):
        return os.system, ("touch " + str(self.mark),)


def check_pickles(tmp):
    """A .bin that runs code when it is unpickled, and one that is cut."""
    c = Cases(tmp, "tiny_opt", "--bin")
    Runs.mark = tmp / "was_run"
    c.file("a .bin that runs code", lambda p: torch.save({"x": Runs()}, p), "torch cannot read it",
           file="pytorch_model.bin")
    t.expect(not Runs.mark.exists(), "the code in a .bin was run")
    c.file("a cut .bin", lambda p: p.write_bytes(p.read_bytes()[:5000]), "pytorch_model.bin", "torch cannot read it",
           file="pytorch_model.bin")
    c.file("a .bin with more than tensors", lambda p: torch.save({"x": torch.ones(2), "y": 3}, p),
           "'y' is not a tensor", file="pytorch_model.bin")


# ---------------------------------------------------------------------------------------------------------------------


def check_usage(c):
    """The command line."""
    out, src = c.out, c.good
    for what, args, word in (
            ("no arguments", [], "required"), ("no output", [src], "required"), ("no source", ["-o", out], "SRC"),
            ("f64", [src, "-o", out, "--dtype", "f64"], "must be one of f32, bf16, int8, int4"),
            ("both", [src, "-o", out, "--lavis", "x", "y"], "either"),
            ("no llm", ["-o", out, "--lavis", "pretrain_opt2.7b", "y"], "--llm"),
            ("no such type", ["-o", out, "--lavis", "vitL", "y", "--llm", "z"], "pretrain_flant5xxl"),
            ("vit alone", [src, "-o", out, "--vit", "y"], "go with --lavis")):
        refused(python("export.py", *args), out, what, word, code=2)
    refused(export(c.tmp / "no_such", out), out, "no such folder", "no such folder")
    refused(export("nonsense", out), out, "neither folder nor id", "nonsense", "not a hub id")
    refused(export(src, c.tmp / "deep/er/x.b2c"), c.tmp / "deep/er/x.b2c", "folder of -o", "no such folder")
    done = export(src, c.tmp)
    t.expect(done.returncode == 1 and "is a folder" in done.stderr, f"-o is a folder: {done.stderr}")


def check_disk(c):
    """A full disk in the middle, an interrupted export, and the file that was there before."""
    c.out.write_bytes(b"before")

    def limit():
        resource.setrlimit(resource.RLIMIT_FSIZE, (3 << 20, 3 << 20))
    done = export(c.good, c.out, preexec_fn=limit)
    t.expect(done.returncode == 1 and "too large" in done.stderr.lower(), f"file size limit: {done.stderr}")
    t.expect(c.out.read_bytes() == b"before", "a failed export leaves the old file alone")
    c.out.unlink()
    refused(export(c.good, c.out, preexec_fn=limit), c.out, "file size limit", "bad.b2c")
    refused(export(c.good, Path("/dev/full/x")), Path("/dev/full/x"), "in a device", "no such folder")
    mount = c.tmp / "small"
    mount.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "none", mount], capture_output=True)
    if mounted.returncode:
        t.skip("disk full on a real file system: mounting a tmpfs is not permitted")
    else:
        refused(export(c.good, mount / "x.b2c"), mount / "x.b2c", "disk full", "GB free")
        subprocess.run(["umount", mount], check=True)
    for number in (signal.SIGINT, signal.SIGTERM):
        # a pipe in place of a tokenizer file holds the program at a known point only before it writes; to be caught
        # while it writes it is stopped as soon as its temporary file shows up
        process = subprocess.Popen([sys.executable, str(EXPORT / "export.py"), str(c.good), "-o", str(c.out), "-q"],
                                   stderr=subprocess.PIPE, text=True)
        while process.poll() is None and not list(c.tmp.glob(c.out.name + ".tmp*")):
            time.sleep(0.0005)
        process.send_signal(number)
        error = process.communicate()[1]
        if process.returncode == 0:
            t.skip(f"{number.name} came after the end")
            c.out.unlink()
            continue
        t.expect(process.returncode == 130 and "interrupted" in error, f"{number.name}: {process.returncode} {error}")
        t.expect(not list(c.tmp.glob(c.out.name + "*")), f"{number.name}: a file was left")


def main():
    """Runs all; the exit status says whether all passed."""
    with tempfile.TemporaryDirectory() as name:
        tmp = Path(name)
        c, t5 = Cases(tmp, "tiny_opt"), Cases(tmp, "tiny_t5")
        done = export(c.good, c.out)
        t.expect(done.returncode == 0 and c.out.exists(), f"control: the good one is accepted: {done.stderr}")
        c.out.unlink()
        check_files(c)
        check_shards(tmp)
        check_tensors(c, t5)
        check_configs(c, t5)
        check_lavis(tmp)
        check_pickles(tmp)
        check_usage(c)
        check_disk(c)
    return t.finish()


if __name__ == "__main__":
    sys.exit(main())
