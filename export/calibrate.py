"""Second moments of what goes into each matrix, for rounding with the inputs known (--calibrate, quantize.py).

In order: which module of transformers holds a matrix, the sample inputs, Moments. Needs torch and transformers, and the
memory of the model in f32 beside what BUDGET allows for the moments.

The samples are the pictures of a folder, each with a caption and answers that the model itself gives, so that the
moments are those of generating, not of reading somebody's text. The pictures pass through the ViT and Q-Former once, to
find the samples; then each group of matrices whose moments fit into BUDGET together is watched while the samples pass
again.
"""

import sys
from pathlib import Path

import numpy as np

import quantize
from container import ExportError

try:
    import torch
    from PIL import Image
    from transformers import AutoTokenizer, Blip2ForConditionalGeneration
except ImportError as e:
    raise ExportError(f"--calibrate needs torch, transformers and Pillow ({e.name} is missing); hint: "
                      "pip install -r test/requirements.txt") from None

BUDGET = 2 << 30                          # bytes of moments held at a time
NEW_TOKENS = 40
PROMPTS = ("", "a photo of", "Question: what is in the picture? Answer:",
           "Question: how many people are there? Answer:", "Question: what colour is the background? Answer:")
PICTURES = {".png", ".jpg", ".jpeg", ".webp", ".bmp"}
AT_ONCE = 8                               # pictures that are answered together


def holders(entry):
    """Names of the modules whose input a matrix is multiplied by. Stacked ones share it, but for the Q-Former's
    cross-attention, whose layers all see the image, and for untied heads."""
    names = [p.name.removesuffix(".weight") for p in entry.parts]
    if entry.name == "lm.tok":
        return ["language_model.lm_head"]  # as an embedding it has no input; tied, it is the head
    return names[:1]


def rows_of(module, x):
    """The input of a module as rows (n,C): patches for the convolution."""
    if isinstance(module, torch.nn.Conv2d):
        x = torch.nn.functional.unfold(x, module.kernel_size, stride=module.stride).transpose(1, 2)
    return x.reshape(-1, x.shape[-1])


class Moments:
    """of(entry) -> (C,C) f32 second moments of the inputs of a matrix, or None where none are known. Entries must be
    asked for in the order of the file."""

    def __init__(self, folder, samples, entries, dtype, quiet=False):
        """folder: Hugging Face checkpoint; samples: folder of pictures, with prompts.txt if there are special ones."""
        self.quiet, self.found, self.language = quiet, {}, []
        images = sorted(p for p in samples.iterdir() if p.suffix.lower() in PICTURES) if samples.is_dir() else []
        if not images:
            raise ExportError(f"{samples}: no pictures to calibrate with, expected {', '.join(sorted(PICTURES))}")
        self.say(f"calibrating with {len(images)} pictures: loading the model in f32")
        self.model = Blip2ForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.waiting = [e for e in entries if e.matrix and quantize.dtype_of(e.name, dtype) in ("int8", "int4")]
        if not self.model.config.text_config.tie_word_embeddings:
            self.waiting = [e for e in self.waiting if e.name != "lm.tok"]
        prompts = samples / "prompts.txt"
        self.prompts = prompts.read_text().splitlines() if prompts.is_file() else list(PROMPTS)
        self.images = images
        self.samples = self.answer()

    def say(self, text):
        """Progress on stderr."""
        if not self.quiet:
            print(text, file=sys.stderr, flush=True)

    def pixels(self, path):
        """(1,3,S,S) as LAVIS and ./blip2 prepare a picture."""
        c = self.model.config.vision_config
        x = Image.open(path).convert("RGB").resize((c.image_size, c.image_size), Image.Resampling.BICUBIC)
        x = np.asarray(x, np.float32) / np.float32(255)
        x = (x - np.float32([0.48145466, 0.4578275, 0.40821073])) / np.float32([0.26862954, 0.26130258, 0.27577711])
        return torch.from_numpy(x.transpose(2, 0, 1).copy())[None]

    @torch.inference_mode()
    def answer(self):
        """[(picture, input_ids and the like)]: a caption and the answer to another prompt for every picture."""
        c, out = self.model.config, []
        t5, image = c.text_config.model_type == "t5", [c.image_token_index] * c.num_query_tokens
        for batch, at in enumerate(range(0, len(self.images), AT_ONCE)):
            paths = self.images[at:at + AT_ONCE]
            pixels = torch.cat([self.pixels(p) for p in paths])
            for prompt in dict.fromkeys((self.prompts[0], self.prompts[batch % len(self.prompts)])):
                ids = self.tokenizer(prompt, add_special_tokens=False)["input_ids"]
                ids = ids + [c.text_config.eos_token_id] if t5 else [c.text_config.bos_token_id] + ids
                rows = torch.tensor([image + ids] * len(paths))
                said = self.model.generate(pixel_values=pixels, input_ids=rows, attention_mask=torch.ones_like(rows),
                                           max_new_tokens=NEW_TOKENS, do_sample=False).tolist()
                for path, tokens in zip(paths, said):
                    out.append((path, self.sample(image + ids, tokens, t5)))
            self.say(f"  {at + len(paths)} of {len(self.images)} pictures answered")
        return out

    def sample(self, asked, said, t5):
        """Arguments of forward for a prompt and what generate() returned about it, without its end and padding."""
        said = said[1 if t5 else len(asked) if said[:1] == asked[:1] else 0:]
        end = self.model.language_model.generation_config.eos_token_id
        said = said[:said.index(end)] if end in said else said
        if t5:
            ids, decoder = torch.tensor([asked]), [self.model.config.text_config.decoder_start_token_id, *said]
            return {"input_ids": ids, "attention_mask": torch.ones_like(ids),
                    "decoder_input_ids": torch.tensor([decoder])}
        ids = torch.tensor([asked + said])
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}

    def passes(self, entries):
        """One function per sample that computes what feeds these matrices, and little else."""
        if all(e.name.startswith("vit.") for e in entries):
            return [lambda p=p: self.model.vision_model(self.pixels(p)) for p in self.images]
        if self.language and not any(e.name.startswith(("vit.", "qf.")) for e in entries):
            return [lambda a=a: self.model.language_model(**a) for a in self.language]
        return [lambda p=p, a=a: self.model(pixel_values=self.pixels(p), **a) for p, a in self.samples]

    @torch.inference_mode()
    def watch(self, entries):
        """Lets all samples pass and adds up the moments of these entries."""
        self.say(f"  inputs of {entries[0].name} to {entries[-1].name}")
        sums, seen = {}, []

        def keep(name):
            def hook(module, args):
                x = rows_of(module, args[0])
                sums[name] = sums.get(name, 0) + x.T @ x
            return hook
        hooks = [self.model.get_submodule(n).register_forward_pre_hook(keep(n)) for n in
                 {n for e in entries for n in holders(e)}]
        hooks.append(self.model.language_model.register_forward_pre_hook(lambda _m, _a, kw: seen.append(dict(kw)),
                                                                          with_kwargs=True))
        for run in self.passes(entries):
            run()
        for hook in hooks:
            hook.remove()
        self.language = self.language or seen
        self.found = {e.name: sums[n].numpy() for e in entries for n in holders(e) if n in sums}

    def of(self, entry):
        """See above."""
        if entry.name not in self.found and any(e.name == entry.name for e in self.waiting):
            group, room = [], BUDGET
            while self.waiting and (not group or self.waiting[0].cols ** 2 * 4 <= room):
                group.append(self.waiting.pop(0))
                room -= group[-1].cols ** 2 * 4
            self.watch(group)
        return self.found.pop(entry.name, None)
