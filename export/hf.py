"""Reads the configuration of a Hugging Face BLIP-2 folder and opens its tensors.

In order: Fields (typed access to JSON), the language model's settings for OPT and T5, preprocessing, config_settings
(config.json alone), with_tokenizer, open_checkpoint (the folder).

Every default is that of the configuration classes of transformers 5.23 (Blip2VisionConfig, Blip2QFormerConfig,
OPTConfig, T5Config), since config.json leaves out what equals the default. A setting that the C program does not have
is an error that names it.
"""

import math
from dataclasses import dataclass, field
from pathlib import Path

from container import ExportError, check_config
from lookup import Found, Lookup, resolve_head
from source import open_folder, read_json
from tensors import GELU, GELU_TANH, OPT, RELU, T5, layout, type_of
from tokenizer import read_tokenizer

# LAVIS's defaults of generate() (blip2_opt.py, blip2_t5.py). Its min_length=1 changes nothing in the version it is
# pinned to, because the row starts with one dummy token there, so min_new is 0.
GENERATION = {"beams": 5, "max_new": 30, "min_new": 0, "top_k": 50, "length_penalty": 1.0, "repeat_penalty": 1.0,
              "top_p": 0.9, "temp": 1.0}
CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
ACTIVATIONS = {"relu": RELU, "gelu": GELU, "gelu_new": GELU_TANH, "gelu_pytorch_tanh": GELU_TANH}


@dataclass
class Settings:
    """What a checkpoint is: config for the weight file, and what else the tensor layout depends on."""
    config: dict
    vit_qkv_bias: bool = True
    opt_bias: bool = True
    tie: bool = True                       # a head of its own need not be there
    notes: list = field(default_factory=list)


class Fields:
    """A JSON object whose values are checked as they are read."""

    def __init__(self, data, where):
        self.data, self.where = data, where

    def error(self, key, value, wanted):
        """An ExportError that names the key."""
        return ExportError(f"{self.where}.{key} is {value!r}, {wanted}")

    def number(self, key, default=None, kind=int):
        """An int (or with kind=float any finite number); null counts as absent."""
        value = self.data.get(key)
        value = default if value is None else value
        if type(value) is int or kind is float and type(value) is float and math.isfinite(value):
            return kind(value)
        raise self.error(key, value, f"expected {'an integer' if kind is int else 'a number'}")

    def side(self, key, default):
        """A size given as a number or as [n, n]."""
        value = self.data.get(key, default)
        if isinstance(value, list) and len(value) == 2 and value[0] == value[1]:
            value = value[0]
        if type(value) is not int:
            raise self.error(key, value, "expected one number: only square images and patches are supported")
        return value

    def flag(self, key, default):
        """A boolean."""
        value = self.data.get(key, default)
        if not isinstance(value, bool):
            raise self.error(key, value, "expected true or false")
        return value

    def only(self, key, default, *allowed):
        """Raises unless the value is one of those that the program supports."""
        value = self.data.get(key, default)
        if value not in allowed:
            raise self.error(key, value, f"only {' or '.join(map(repr, allowed))} is supported")
        return value

    def activation(self, key, value):
        """The number of an activation function."""
        if value not in ACTIVATIONS:
            raise self.error(key, value, f"supported are {', '.join(ACTIVATIONS)}")
        return ACTIVATIONS[value]

    def token(self, key, default=None):
        """A token id; a list of one counts as that one."""
        value = self.data.get(key, default)
        if isinstance(value, list) and len(value) == 1:
            value = value[0]
        if type(value) is not int:
            raise self.error(key, value, "expected one token id")
        return value

    def sub(self, key):
        """A nested object; {} when it is absent."""
        value = self.data.get(key)
        if value is not None and not isinstance(value, dict):
            raise self.error(key, value, "expected an object")
        return Fields(value or {}, f"{self.where}.{key}")


# ---------------------------------------------------------------------------------------------------------------------
# Language models


def opt_settings(text):
    """OPTConfig -> Settings with the language model's part of the config."""
    width, heads = text.number("hidden_size", 768), text.number("num_attention_heads", 12)
    text.only("do_layer_norm_before", True, True)
    text.only("_remove_final_layer_norm", False, False)
    text.only("layer_norm_elementwise_affine", True, True)
    text.only("word_embed_proj_dim", width, width, None)
    if heads < 1 or width % heads:
        raise text.error("num_attention_heads", heads, f"which does not divide hidden_size {width}")
    config = {
        "family": OPT, "DL": width, "HL": heads, "AL": width // heads, "FL": text.number("ffn_dim", 3072), "LE": 0,
        "LD": text.number("num_hidden_layers", 12), "V": text.number("vocab_size", 50272),
        "positions": text.number("max_position_embeddings", 2048),
        "act": text.activation("activation_function", text.data.get("activation_function", "relu")),
        "buckets": 0, "max_distance": 0, "start": -1, "bos": text.token("bos_token_id", 2),
        "eos": text.token("eos_token_id", 2), "pad": text.token("pad_token_id", 1),
        "eps_lm": 1e-5,       # torch's LayerNorm default; OPTDecoderLayer does not set it
        "logit_scale": 1.0,
    }
    tie = text.flag("tie_word_embeddings", True)
    return Settings(config, opt_bias=text.flag("enable_bias", True), tie=tie)


def t5_settings(text):
    """T5Config -> Settings with the language model's part of the config."""
    projection = text.data.get("feed_forward_proj", "relu")
    if not isinstance(projection, str):
        raise text.error("feed_forward_proj", projection, "expected a string")
    # T5Config.__post_init__: the projection gives defaults that keys of their own in the file overwrite. That is how
    # BLIP-2's "gelu" (erf) wins over the gelu_new (tanh) which "gated-gelu" means.
    act = "gelu_new" if projection == "gated-gelu" else projection.split("-")[-1]
    if not text.data.get("is_gated_act", projection.startswith("gated-")):
        raise text.error("feed_forward_proj", projection, "only gated feed-forward layers are supported")
    layers = text.number("num_layers", 6)
    start = text.data.get("decoder_start_token_id")   # generate() falls back on bos
    config = {
        "family": T5, "DL": text.number("d_model", 512), "HL": text.number("num_heads", 8),
        "AL": text.number("d_kv", 64), "FL": text.number("d_ff", 2048), "LE": layers,
        "LD": text.number("num_decoder_layers", layers), "V": text.number("vocab_size", 32128), "positions": 0,
        "act": text.activation("dense_act_fn", text.data.get("dense_act_fn", act)),
        "buckets": text.number("relative_attention_num_buckets", 32),
        "max_distance": text.number("relative_attention_max_distance", 128),
        "start": text.token("bos_token_id" if start is None else "decoder_start_token_id"), "bos": -1,
        "eos": text.token("eos_token_id", 1), "pad": text.token("pad_token_id", 0),
        "eps_lm": text.number("layer_norm_epsilon", 1e-6, float),
    }
    # T5 1.0 scales the last hidden state by d_model^-0.5, T5 1.1 does not. transformers 5 always says that embeddings
    # are tied and keeps the old flag, by which it tells the two apart, under a second name.
    scaled = text.data.get("scale_decoder_outputs", text.data.get("tie_word_embeddings", None) is not False)
    config["logit_scale"] = max(config["DL"], 1) ** -0.5 if scaled else 1.0
    return Settings(config)    # transformers 5 ties whenever a head is missing


def text_settings(text):
    """The language model's Settings, by model_type."""
    kind = text.only("model_type", "opt", "opt", "t5")
    return opt_settings(text) if kind == "opt" else t5_settings(text)


# ---------------------------------------------------------------------------------------------------------------------
# The whole


def preprocessing(folder, side):
    """mean and std for the config, from preprocessor_config.json, or where transformers 5 saved it inside of
    processor_config.json; CLIP's constants without either. Raises when it is not what the program does: bicubic to
    side x side, divided by 255, normalised."""
    data, where = {}, "preprocessing"
    for name, key in (("preprocessor_config.json", None), ("processor_config.json", "image_processor")):
        if (folder / name).is_file() and not data:
            data, where = read_json(folder / name), name
            data = data.get(key, {}) if key else data
    p = Fields(data if isinstance(data, dict) else {}, where)
    for key in ("do_resize", "do_rescale", "do_normalize"):
        p.only(key, True, True, None)
    p.only("do_convert_rgb", True, True, None)
    p.only("resample", 3, 3, None)
    p.only("do_center_crop", False, False, None)
    p.only("do_pad", False, False, None)
    if abs(p.number("rescale_factor", 1 / 255, float) - 1 / 255) > 1e-9:
        raise p.error("rescale_factor", data["rescale_factor"], "only 1/255 is supported")
    size = p.data.get("size", side)
    if size not in (side, {"height": side, "width": side}):
        raise p.error("size", size, f"but the vision model has images of {side} x {side}")
    config = {}
    for key, short, default in (("image_mean", "mean", CLIP_MEAN), ("image_std", "std", CLIP_STD)):
        values = p.data.get(key) or default
        if not isinstance(values, (list, tuple)) or len(values) != 3:
            raise p.error(key, values, "expected three numbers")
        for channel, value in zip("rgb", values):
            config[f"{short}_{channel}"] = Fields({key: value}, where).number(key, kind=float)
    return config


def config_settings(data):
    """The value of a config.json -> Settings, without what needs other files."""
    c = Fields(data, "config.json")
    c.only("model_type", "blip-2", "blip-2")
    if data.get("architectures") not in (None, ["Blip2ForConditionalGeneration"]):
        raise c.error("architectures", data["architectures"], "only Blip2ForConditionalGeneration has a language model")
    vision, bert, text = c.sub("vision_config"), c.sub("qformer_config"), c.sub("text_config")
    vision.only("hidden_act", "gelu", "gelu")
    bert.only("hidden_act", "gelu", "gelu")
    if bert.data.get("use_qformer_text_input") or bert.data.get("qformer_text_input"):
        raise bert.error("use_qformer_text_input", True, "only a Q-Former without text input is supported")
    s = text_settings(text)
    s.vit_qkv_bias = vision.flag("qkv_bias", True)
    image_token = data.get("image_token_index", data.get("image_token_id"))
    eps = vision.number("layer_norm_eps", 1e-6, float)
    s.config |= {
        "S": vision.side("image_size", 224), "P": vision.side("patch_size", 14),
        "DV": vision.number("hidden_size", 1408), "HV": vision.number("num_attention_heads", 16),
        "FV": vision.number("intermediate_size", 6144), "LV": vision.number("num_hidden_layers", 39),
        "DQ": bert.number("hidden_size", 768), "HQ": bert.number("num_attention_heads", 12),
        "FQ": bert.number("intermediate_size", 3072), "LQ": bert.number("num_hidden_layers", 12),
        "XQ": bert.number("cross_attention_frequency", 2), "Q": c.number("num_query_tokens", 32),
        "image_token": -1 if image_token is None else c.token("image_token", image_token),
        "eps_vit": eps, "eps_post": eps, "eps_qformer": bert.number("layer_norm_eps", 1e-12, float), **GENERATION,
    }
    return s


def with_tokenizer(s, tokenizer):
    """Fills in what depends on the tokenizer and checks that the two fit each other."""
    c, ids = s.config, tokenizer.ids
    if ids["n_ids"] > c["V"]:
        raise ExportError(f"{tokenizer.source}: ids up to {ids['n_ids'] - 1}, but the vocabulary of the language model "
                          f"has {c['V']} rows")
    if c["image_token"] < 0:
        c["image_token"] = ids["image"]
    if c["family"] == OPT and c["bos"] != ids["bos"]:
        raise ExportError(f"{tokenizer.source}: prompts start with {ids['bos']}, but bos_token_id is {c['bos']}")
    if c["family"] == OPT and c["eos"] != ids["newline"]:
        s.notes.append(f"answers end at token {c['eos']} as config.json says, not at the newline ({ids['newline']}) "
                       "as with the released OPT models")
    if c["family"] == T5 and c["eos"] != ids["eos"]:
        s.notes.append(f"answers end at token {c['eos']} as config.json says, not at the tokenizer's {ids['eos']}")
    for key in ("image_token", "bos", "eos", "pad", "start"):
        if c[key] >= c["V"]:
            raise ExportError(f"{key} is token {c[key]}, but the vocabulary has {c['V']} rows")


# What may be there without being used. position_ids is a buffer of old versions; the relative bias of T5's first
# cross-attention is ignored by transformers too (T5ForConditionalGeneration._keys_to_ignore_on_load_unexpected).
IGNORED = (r"(.*\.)?position_ids",
           r"language_model\.decoder\.block\.0\.layer\.1\.EncDecAttention\.relative_attention_bias\.weight")


def open_checkpoint(folder):
    """Reads everything of a Hugging Face folder but the tensors' numbers.

    Returns (Settings, Tokenizer, [Entry], Lookup), having checked that no tensor is missing, left over or of another
    shape. Raises ExportError, TokenizerError."""
    folder = Path(folder)
    s = config_settings(read_json(folder / "config.json"))
    s.config |= preprocessing(folder, s.config["S"])
    tokenizer = read_tokenizer(folder, "opt" if s.config["family"] == OPT else "t5")
    with_tokenizer(s, tokenizer)
    s.config["type"], s.config["prompt"] = type_of(s.config)
    source = open_folder(folder)
    lookup = Lookup(lambda part: [Found(source, part.name, part.shape)], {source: IGNORED})
    s.config["tied"] = resolve_head(lookup, s, source)
    check_config(s.config)                 # before sizes are multiplied
    entries = layout(s.config, s.vit_qkv_bias, s.opt_bias)
    lookup.collect(entries)
    return s, tokenizer, entries, lookup
