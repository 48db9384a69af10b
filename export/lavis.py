"""Reads LAVIS checkpoints of BLIP-2: a .pth of LAVIS, EVA's ViT where that .pth has none, and the language model's
own Hugging Face folder.

In order: names (from Hugging Face's to LAVIS's), sizes (from the tensors, since a .pth has no configuration),
open_checkpoint. Sources: LAVIS's blip2_opt.py, blip2_t5.py, eva_vit.py, Qformer.py and base_task/runner saving; the
names follow transformers' convert_blip_2_original_to_pytorch.py.

    Hugging Face               LAVIS                            where
    vision_model.*             visual_encoder.*                 the .pth (COCO), or without prefix in eva_vit_g.pth
    vision_model.post_layernorm  ln_vision                      the .pth
    qformer.*, query_tokens    Qformer.bert.*, query_tokens     the .pth
    language_projection        opt_proj or t5_proj              the .pth
    language_model.*           *                                the language model's folder
"""

import math
import re
from pathlib import Path

from container import ExportError, check_config
from hf import CLIP_MEAN, CLIP_STD, GENERATION, IGNORED, Fields, text_settings, with_tokenizer
from lookup import Found, Lookup, resolve_head
from source import TorchFile, open_folder, read_json
from tensors import GELU, LANGUAGE, OPT, TYPES, VIT_G, layout, sizes_of
from tokenizer import read_tokenizer

VIT_HEAD, BERT_HEAD = 88, 64       # sizes of a head: LAVIS has num_heads = 1408//88, BERT-base 768/64
RENAMES = (                        # pattern of the Hugging Face name, replacement
    (r"vision_model\.embeddings\.class_embedding", "cls_token"),
    (r"vision_model\.embeddings\.position_embedding", "pos_embed"),
    (r"vision_model\.embeddings\.patch_embedding", "patch_embed.proj"),
    (r"vision_model\.encoder\.layers\.(\d+)\.layer_norm", r"blocks.\1.norm"),
    (r"vision_model\.encoder\.layers\.(\d+)\.self_attn\.projection", r"blocks.\1.attn.proj"),
    (r"vision_model\.encoder\.layers\.(\d+)\.self_attn", r"blocks.\1.attn"),
    (r"vision_model\.encoder\.layers", "blocks"),
    (r"qformer\.layernorm", "Qformer.bert.embeddings.LayerNorm"),
    (r"qformer\.(encoder\.layer\.\d+\.(?:cross)?attention)\.attention", r"Qformer.bert.\1.self"),
    (r"qformer", "Qformer.bert"),
)
# Left over in a LAVIS .pth by name: LAVIS drops frozen parameters when it saves, but goes through named_parameters(),
# which lists a tied one once, so that the second name of each stays.
LAVIS_IGNORED = (r"(.*\.)?position_ids", r"opt_model\.lm_head\.weight",
                 r"t5_model\.(encoder|decoder)\.embed_tokens\.weight")


class Names:
    """Where each Hugging Face name is to be found."""

    def __init__(self, pth, vit, vit_prefix, llm, family):
        self.pth, self.vit, self.vit_prefix, self.llm, self.family = pth, vit, vit_prefix, llm, family
        # facebook/opt-2.7b and opt-6.7b come with and without "model." in front of "decoder."
        self.cut = "model." if family == OPT and "decoder.embed_tokens.weight" in llm.tensors else ""

    def language(self, name):
        """The language model's name in its own folder."""
        return name.removeprefix("language_model.").removeprefix(self.cut)

    def __call__(self, part):
        """A tensors.Part -> the list of Found that it is made of."""
        name = part.name
        if name.startswith("language_model."):
            return [Found(self.llm, self.language(name), part.shape)]
        if name.startswith("language_projection."):
            to = "opt_proj" if self.family == OPT else "t5_proj"
            return [Found(self.pth, name.replace("language_projection", to), part.shape)]
        if name.startswith("vision_model.post_layernorm."):
            return [Found(self.pth, name.replace("vision_model.post_layernorm", "ln_vision"), part.shape)]
        for pattern, to in RENAMES:
            renamed, n = re.subn("^" + pattern, to, name)
            if n:
                break
        if not name.startswith("vision_model."):
            return [Found(self.pth, renamed, part.shape)]
        renamed = self.vit_prefix + renamed
        if renamed.endswith("attn.qkv.bias"):     # LAVIS keeps Q's and V's alone; K has none
            third, stem = (part.shape[0] // 3,), renamed.removesuffix("qkv.bias")
            return [Found(self.vit, stem + "q_bias", third), Found(None, None, third),
                    Found(self.vit, stem + "v_bias", third)]
        return [Found(self.vit, renamed, part.shape)]


# ---------------------------------------------------------------------------------------------------------------------
# Sizes


def shape_of(source, name, dimensions):
    """The shape of a tensor that must be there with so many dimensions, none of them zero."""
    info = source.tensors.get(name)
    if info is None:
        raise ExportError(f"{source.path}: tensor {name} is missing")
    if len(info.shape) != dimensions or 0 in info.shape:
        raise ExportError(f"{source.path}: tensor {name} has the shape {info.shape}, expected {dimensions} dimensions")
    return info.shape


def layers_with(source, pattern):
    """The sorted layer numbers in names that match a pattern with one group."""
    found = {int(m.group(1)) for n in source.tensors if (m := re.fullmatch(pattern, n))}
    return sorted(found)


def heads_of(width, size, what):
    """How many heads of a given size make a width."""
    if width % size:
        raise ExportError(f"{what} is {width} wide, which is no multiple of its heads' {size}")
    return width // size


def vit_sizes(vit, prefix):
    """Sizes of EVA's ViT. In a file of its own there is one block too many: LAVIS takes what the 39th of 40
    gives."""
    n, width = shape_of(vit, f"{prefix}pos_embed", 3)[1:]
    patch = shape_of(vit, f"{prefix}patch_embed.proj.weight", 4)[3]
    grid = math.isqrt(n - 1)
    if grid * grid != n - 1:
        raise ExportError(f"{vit.path}: {n} positions are not a square of patches and one more")
    blocks = layers_with(vit, re.escape(prefix) + r"blocks\.(\d+)\.norm1\.weight")
    depth = len(blocks) if prefix else VIT_G["LV"] if width == VIT_G["DV"] else len(blocks) - 1
    return {"S": grid * patch, "P": patch, "DV": width, "HV": heads_of(width, VIT_HEAD, "the ViT"),
            "FV": shape_of(vit, f"{prefix}blocks.0.mlp.fc1.weight", 2)[0], "LV": depth}


def qformer_sizes(pth):
    """Sizes of the Q-Former."""
    queries, width = shape_of(pth, "query_tokens", 3)[1:]
    stem = "Qformer.bert.encoder.layer."
    layers = layers_with(pth, re.escape(stem) + r"(\d+)\.attention\.output\.dense\.weight")
    cross = layers_with(pth, re.escape(stem) + r"(\d+)\.crossattention\.output\.dense\.weight")
    every = cross[1] if len(cross) > 1 else max(len(layers), 1)
    if cross != list(range(0, len(layers), every)):
        raise ExportError(f"{pth.path}: the Q-Former attends to the image in layers {cross} of {len(layers)}, expected "
                          "every n-th from layer 0")
    return {"DQ": width, "HQ": heads_of(width, BERT_HEAD, "the Q-Former"), "LQ": len(layers), "XQ": every, "Q": queries,
            "FQ": shape_of(pth, f"{stem}0.intermediate_query.dense.weight", 2)[0]}


# ---------------------------------------------------------------------------------------------------------------------


def open_vit(kind, pth, path):
    """The file with the ViT, its prefix there, and a note or None."""
    own = any(n.startswith("visual_encoder.") for n in pth.tensors)
    if not own and kind.startswith("caption_coco"):
        raise ExportError(f"{pth.path}: holds no visual_encoder, but {kind} was trained with its own; is it another "
                          "type's file?")
    if not own and not path:
        raise ExportError(f"{pth.path}: holds no visual_encoder; add --vit with LAVIS's eva_vit_g.pth")
    vit, prefix = (pth, "visual_encoder.") if own else (TorchFile(path, "model"), "")
    if prefix + "conv1.weight" in vit.tensors:
        raise ExportError(f"{vit.path}: this is CLIP's ViT-L, only EVA's ViT-g is supported")
    return vit, prefix, f"--vit is not used: {pth.path} has its own" if own and path else None


def language_settings(kind, llm):
    """Settings of the language model: its folder's config.json, with LAVIS's own choices over it."""
    text = Fields(read_json(Path(llm) / "config.json"), f"{llm}/config.json")
    family = "opt" if LANGUAGE[TYPES[kind][1]]["family"] == OPT else "t5"
    text.only("model_type", None, family)
    s = text_settings(text)
    tokenizer = read_tokenizer(llm, family)
    if family == "t5":
        s.config["act"] = GELU               # blip2_t5.py: t5_config.dense_act_fn = "gelu"
    elif tokenizer.ids["newline"] < 0:
        raise ExportError(f"{tokenizer.source}: has no newline token, at which {kind} ends its answers")
    else:
        s.config["eos"] = tokenizer.ids["newline"]     # blip2_opt.py: tokenizer("\n").input_ids[0]
    return s, tokenizer


def open_checkpoint(kind, pth_path, vit_path, llm):
    """Reads everything of a LAVIS checkpoint but the tensors' numbers; arguments as on the command line.

    Returns (Settings, Tokenizer, [Entry], Lookup), having checked that no tensor is missing, left over or of another
    shape. Raises ExportError, TokenizerError, OSError."""
    s, tokenizer = language_settings(kind, llm)
    pth = TorchFile(pth_path, "model")
    vit, prefix, note = open_vit(kind, pth, vit_path)
    s.notes += [note] if note else []
    s.config |= {**vit_sizes(vit, prefix), **qformer_sizes(pth), **GENERATION, "image_token": -1, "type": kind,
                 "prompt": TYPES[kind][2], "eps_vit": 1e-6, "eps_post": 1e-5, "eps_qformer": 1e-12}
    for short, values in (("mean", CLIP_MEAN), ("std", CLIP_STD)):
        s.config |= {f"{short}_{channel}": v for channel, v in zip("rgb", values)}
    with_tokenizer(s, tokenizer)
    folder = open_folder(llm)
    names = Names(pth, vit, prefix, folder, s.config["family"])
    depth = s.config["LV"]
    beyond = [rf"blocks\.{i}\..*" for i in layers_with(vit, r"blocks\.(\d+)\..*") if i >= depth]
    lookup = Lookup(names, {pth: LAVIS_IGNORED, vit: LAVIS_IGNORED if prefix else [r"(norm|fc_norm|head)\..*", *beyond],
                            folder: [p.replace(r"language_model\.", "") for p in IGNORED]})
    s.config["tied"] = resolve_head(lookup, s, folder, names.language)
    check_config(s.config)                   # before sizes are multiplied
    if s.config["DV"] == VIT_G["DV"]:        # real files: a mix of types shows here, before anything is converted
        for key, want in sizes_of(kind).items():
            if s.config[key] != want:
                raise ExportError(f"{kind} has {key} = {want}, but these files make it {s.config[key]} (letters as in "
                                  "blip2.h); are they of different types?")
    entries = layout(s.config, opt_bias=s.opt_bias)
    lookup.collect(entries)
    return s, tokenizer, entries, lookup
