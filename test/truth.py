"""What BLIP-2 should compute: transformers in float32, its stages by name, its answers.

In order: images as LAVIS and Pillow prepare them, a loaded checkpoint with its tokenizer, stage outputs of the first
pass, generated answers, and reading the dumps and JSON of ./blip2. The parity scripts and make_goldens.py use it.
Not here: what is compared with what, and which difference is too large.
"""

import json
import os
import subprocess
import sys

import numpy as np
import torch
from PIL import Image
from transformers import AutoTokenizer, Blip2ForConditionalGeneration

MEAN = np.array([0.48145466, 0.4578275, 0.40821073], np.float32)
STD = np.array([0.26862954, 0.26130258, 0.27577711], np.float32)


def pixel_values(path, side):
    """(3,side,side) float32 of an image file: LAVIS's blip_image_eval (Pillow's bicubic, aspect ratio not kept)."""
    image = Image.open(path).convert("RGB").resize((side, side), Image.Resampling.BICUBIC)
    x = np.asarray(image, np.float32) / np.float32(255)
    return np.ascontiguousarray(((x - MEAN) / STD).transpose(2, 0, 1))


torch.set_num_threads(1)   # faster than two for models this small


class Truth:
    """A Hugging Face BLIP-2 folder in float32 with eager attention, on `device` ("cpu", "cuda:0").

    `round_bf16` rounds what export.py --dtype bf16 rounds (all matrices, not norms, biases and position tables), so
    that a bf16 weight file can be compared on the same numbers.
    """

    def __init__(self, folder, round_bf16=False, tokenizer=True, device="cpu"):
        self.device = device
        self.model = Blip2ForConditionalGeneration.from_pretrained(
            folder, dtype=torch.float32, attn_implementation="eager").eval()
        self.config = self.model.config
        self.t5 = self.config.text_config.model_type == "t5"
        self.tokenizer = AutoTokenizer.from_pretrained(folder) if tokenizer else None
        if round_bf16:
            self.round_bf16()
        self.model.to(device)

    def round_bf16(self):
        """The matrices of blip2.h (MAT) go to bfloat16 and back; everything else stays."""
        for name, p in self.model.named_parameters():
            matrix = p.ndim == 2 and "position" not in name and "relative_attention_bias" not in name
            if matrix or name.endswith("patch_embedding.weight"):
                p.data = p.data.to(torch.bfloat16).to(torch.float32)

    def take_weights(self, folder, file):
        """The numbers of a weight file, rounded as they may be, in place of the folder's."""
        sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "export"))
        import hf
        from container import WeightFile
        from tensors import layout
        with open(os.path.join(folder, "config.json"), encoding="utf-8") as f:
            settings = hf.config_settings(json.load(f))
        weights, own = WeightFile(file), self.model.state_dict()
        for e in layout(weights.config, settings.vit_qkv_bias, settings.opt_bias):
            flat, at = torch.from_numpy(np.array(weights.tensor(e.name), np.float32)).reshape(-1), 0
            for p in e.parts:
                n = int(np.prod(p.shape))
                if p.name:
                    own[p.name].copy_(flat[at:at + n].reshape(own[p.name].shape))
                at += n

    def prompt_ids(self, prompt):
        """Token ids of a prompt with its special tokens, without image placeholders.

        </s> comes from the config: from bare vocab.json and merges.txt transformers makes up another one.
        """
        ids = self.tokenizer(prompt, add_special_tokens=False)["input_ids"]
        return ids + [1] if self.t5 else [self.config.text_config.bos_token_id] + ids

    def inputs(self, pixels, prompt_ids):
        """What Blip2Processor would hand to generate(): placeholders for the queries, then the prompt.

        pixels (B,3,S,S)
        """
        image = [self.config.image_token_index] * self.config.num_query_tokens
        ids = torch.tensor([image + list(prompt_ids)] * len(pixels), device=self.device)
        return {"pixel_values": torch.from_numpy(pixels).to(self.device), "input_ids": ids,
                "attention_mask": torch.ones_like(ids)}

    def watched(self):
        """Name -> module of every stage that --dump writes, in order of execution."""
        names = ["vision_model.embeddings"]
        names += [f"vision_model.encoder.layers.{i}" for i in range(self.config.vision_config.num_hidden_layers)]
        names += ["vision_model.post_layernorm", "qformer.layernorm"]
        names += [f"qformer.encoder.layer.{i}" for i in range(self.config.qformer_config.num_hidden_layers)]
        names += ["language_projection"]
        text = self.config.text_config
        if self.t5:
            names += [f"language_model.encoder.block.{i}" for i in range(text.num_layers)]
            names += ["language_model.encoder.final_layer_norm"]
            names += [f"language_model.decoder.block.{i}" for i in range(text.num_decoder_layers)]
            names += ["language_model.decoder.final_layer_norm"]
        else:
            names += [f"language_model.model.decoder.layers.{i}" for i in range(text.num_hidden_layers)]
            names += ["language_model.model.decoder.final_layer_norm"]
        return {name: self.model.get_submodule(name) for name in names}

    @torch.no_grad()
    def stages(self, pixels, prompt_ids):
        """Name -> float32 array of the first output of every stage, with pixel_values and logits (V)."""
        seen, hooks = {"pixel_values": pixels}, []
        for name, module in self.watched().items():
            def keep(_module, _args, out, name=name):
                out = out[0] if isinstance(out, tuple) else out
                if name not in seen:   # the vision model applies post_layernorm once more to CLS; T5 goes on decoding
                    seen[name] = out.float().cpu().numpy().reshape(-1, out.shape[-1]).copy()
            hooks.append(module.register_forward_hook(keep))
        out = self.model.generate(**self.inputs(pixels[None], prompt_ids), max_new_tokens=1, num_beams=1,
                                  do_sample=False, return_dict_in_generate=True, output_logits=True)
        for hook in hooks:
            hook.remove()
        seen["logits"] = out.logits[0][0].float().cpu().numpy()
        return seen

    @torch.no_grad()
    def answers(self, pixels, prompt_ids, beams=1, captions=1, max_new=30, min_new=0, length_penalty=1.0,
                repeat_penalty=1.0):
        """For each of pixels (B,3,S,S): [(token ids without prompt and end token, score, stopped), ...], best first.

        The score is sequences_scores for beams, the sum of the log-probabilities up to the end token otherwise.
        """
        inputs = self.inputs(pixels, prompt_ids)
        out = self.model.generate(
            **inputs, num_beams=beams, num_return_sequences=captions, max_new_tokens=max_new,
            min_new_tokens=min_new or None, do_sample=False, length_penalty=float(length_penalty),
            repetition_penalty=float(repeat_penalty), return_dict_in_generate=True, output_scores=True,
            output_logits=True)
        start = 1 if self.t5 else inputs["input_ids"].shape[1]
        eos = self.end_token()
        result = []
        for i, row in enumerate(out.sequences[:, start:].tolist()):
            stopped = eos in row
            tokens = row[:row.index(eos)] if stopped else self.without_padding(row)
            if beams > 1:
                score = float(out.sequences_scores[i])
            else:
                counted = row[:len(tokens) + stopped]
                score = sum(float(torch.log_softmax(out.logits[t][i], -1)[token]) for t, token in enumerate(counted))
            result.append((tokens, score, stopped))
        return [result[i:i + captions] for i in range(0, len(result), captions)]

    @torch.no_grad()
    def margins(self, pixels, prompt_ids, max_new):
        """Greedy tokens for pixels (3,S,S), and how far the two best candidates for each lay apart, over the root mean
        square of the logits.
        """
        out = self.model.generate(**self.inputs(pixels[None], prompt_ids), num_beams=1, do_sample=False,
                                  max_new_tokens=max_new, return_dict_in_generate=True, output_logits=True)
        best = [torch.topk(x[0].float(), 2).values for x in out.logits]
        apart = [float((b[0] - b[1]) / x[0].float().square().mean().sqrt()) for b, x in zip(best, out.logits)]
        return out.sequences[0, -len(apart):].tolist(), apart

    def without_padding(self, row):
        """generate() pads to the longest answer of the batch; an answer that was cut has no end token before that."""
        pad = self.model.language_model.generation_config.pad_token_id
        while row and row[-1] == pad:
            row = row[:-1]
        return row

    def end_token(self):
        """The id that ends an answer, as the language model's generate() has it."""
        eos = self.model.language_model.generation_config.eos_token_id
        return eos[0] if isinstance(eos, list) else eos


def read_dump(path):
    """Name -> float32 array of a safetensors file, in file order."""
    data = open(path, "rb").read()
    n = int.from_bytes(data[:8], "little")
    header = json.loads(data[8:8 + n])
    out = {}
    for name, t in header.items():
        if name == "__metadata__":
            continue
        a, b = t["data_offsets"]
        out[name] = np.frombuffer(data[8 + n + a:8 + n + b], np.float32).reshape(t["shape"])
    return out


def write_dump(path, tensors):
    """The reverse of read_dump, for goldens."""
    header, offset = {}, 0
    for name, x in tensors.items():
        header[name] = {"dtype": "F32", "shape": list(x.shape), "data_offsets": [offset, offset + x.size * 4]}
        offset += x.size * 4
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as f:
        f.write(len(text).to_bytes(8, "little") + text)
        for x in tensors.values():
            f.write(np.ascontiguousarray(x, np.float32).tobytes())


def blip2(program, *args):
    """Runs ./blip2 and returns the JSON objects that it printed; a nonzero exit code raises with its message."""
    run = subprocess.run([program, *map(str, args)], capture_output=True, text=True)
    if run.returncode:
        raise RuntimeError(f"{' '.join(map(str, args))}: exit code {run.returncode}: {run.stderr}")
    return [json.loads(line) for line in run.stdout.splitlines()]


def compare(got, want):
    """(relative L2 error, largest absolute error, elements that are not finite) of two arrays."""
    if got.shape != want.shape:
        return float("inf"), float("inf"), -1
    bad = int((~np.isfinite(got)).sum() + (~np.isfinite(want)).sum())
    if bad:
        return float("inf"), float("inf"), bad
    d = got.astype(np.float64) - want
    return float(np.linalg.norm(d) / max(np.linalg.norm(want.astype(np.float64)), 1e-30)), float(np.abs(d).max()), 0
