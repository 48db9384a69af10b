"""The map between the tensors of our weight file and those of a Hugging Face checkpoint.

In order: the sizes that models are known by, Part and Entry, layout(config), which lists every tensor of the file.

Our names and shapes are the tables of blip2.h; the Hugging Face names are those of Blip2ForConditionalGeneration
(unchanged from transformers 4.27 to 5.23). LAVIS names are turned into these by lavis.py, so nothing here knows them.
A tensor of ours is either one of theirs or several laid end to end: Q, K and V become one matrix by putting their
rows behind each other, and since all of them are row-major that is plain concatenation.

    self_attn.q_proj (IL,DL) | self_attn.k_proj (IL,DL) | self_attn.v_proj (IL,DL)   ->   dec.0.qkv.w (3*IL,DL)
"""

from dataclasses import dataclass

OPT, T5 = 1, 2                            # config["family"]
RELU, GELU, GELU_TANH = 0, 1, 2           # config["act"]
COCO_PROMPT = "a photo of"                # LAVIS's blip2_caption_*.yaml, no space behind it

# Sizes of the released models (LAVIS registry and the hub's config.json files), in the letters of blip2.h.
VIT_G = {"DV": 1408, "HV": 16, "FV": 6144, "LV": 39, "P": 14}
BERT_BASE = {"DQ": 768, "HQ": 12, "FQ": 3072, "LQ": 12, "XQ": 2, "Q": 32}
LANGUAGE = {
    "opt2.7b": {"family": OPT, "DL": 2560, "HL": 32, "AL": 80, "FL": 10240, "LE": 0, "LD": 32},
    "opt6.7b": {"family": OPT, "DL": 4096, "HL": 32, "AL": 128, "FL": 16384, "LE": 0, "LD": 32},
    "flant5xl": {"family": T5, "DL": 2048, "HL": 32, "AL": 64, "FL": 5120, "LE": 24, "LD": 24},
    "flant5xxl": {"family": T5, "DL": 4096, "HL": 64, "AL": 64, "FL": 10240, "LE": 24, "LD": 24},
}
TYPES = {  # name: (side of the image, key of LANGUAGE, default prompt)
    "pretrain_opt2.7b": (224, "opt2.7b", ""),
    "pretrain_opt6.7b": (224, "opt6.7b", ""),
    "caption_coco_opt2.7b": (364, "opt2.7b", COCO_PROMPT),
    "caption_coco_opt6.7b": (364, "opt6.7b", COCO_PROMPT),
    "pretrain_flant5xl": (224, "flant5xl", ""),
    "caption_coco_flant5xl": (364, "flant5xl", COCO_PROMPT),
    "pretrain_flant5xxl": (224, "flant5xxl", ""),
}


def sizes_of(name):
    """The sizes of a released model as {letter: number}."""
    side, language, _ = TYPES[name]
    return {"S": side, **VIT_G, **BERT_BASE, **LANGUAGE[language]}


def type_of(config):
    """The released model that has these sizes, as (name, default prompt); ("opt" or "t5", "") when there is none."""
    for name, (_, _, prompt) in TYPES.items():
        if all(config[k] == v for k, v in sizes_of(name).items()):
            return name, prompt
    return ("opt" if config["family"] == OPT else "t5"), ""


@dataclass(frozen=True)
class Part:
    """A source tensor by its Hugging Face name and shape; name None stands for zeros."""
    name: str | None
    shape: tuple


@dataclass(frozen=True)
class Entry:
    """A tensor of the weight file, (rows, cols) numbers. matrix: stored in the chosen dtype, otherwise always f32."""
    name: str
    matrix: bool
    rows: int
    cols: int
    parts: tuple


def mat(name, rows, cols, *parts):
    """A matrix made of parts: names of (r, cols) matrices with equal r, or Part objects where shapes differ."""
    shape = (rows // max(len(parts), 1), cols)
    return Entry(name, True, rows, cols, tuple(p if isinstance(p, Part) else Part(p, shape) for p in parts))


def vec(name, n, *parts):
    """A vector made of parts: names of vectors of equal length, or None for zeros."""
    return Entry(name, False, 1, n, tuple(Part(p, (n // len(parts),)) for p in parts))


def linear(name, hf, rows, cols, bias=True):
    """Weight and bias of a torch Linear, or of several stacked ones when hf is a list. Without bias: zeros."""
    hf = [hf] if isinstance(hf, str) else hf
    yield mat(f"{name}.w", rows, cols, *(f"{h}.weight" for h in hf))
    yield vec(f"{name}.b", rows, *((f"{h}.bias" if bias else None) for h in hf))


def norm(name, hf, n):
    """Weight and bias of a torch LayerNorm."""
    yield vec(f"{name}.w", n, f"{hf}.weight")
    yield vec(f"{name}.b", n, f"{hf}.bias")


def vit(c, qkv_bias):
    """Blip2VisionModel."""
    d, p, n = c["DV"], c["P"], 1 + (c["S"] // c["P"]) ** 2
    hf = "vision_model.embeddings"
    yield Entry("vit.cls", False, 1, d, (Part(f"{hf}.class_embedding", (1, 1, d)),))
    yield Entry("vit.pos", False, n, d, (Part(f"{hf}.position_embedding", (1, n, d)),))
    yield mat("vit.patch.w", d, 3 * p * p, Part(f"{hf}.patch_embedding.weight", (d, 3, p, p)))
    yield vec("vit.patch.b", d, f"{hf}.patch_embedding.bias")
    for i in range(c["LV"]):
        hf, to = f"vision_model.encoder.layers.{i}", f"vit.{i}"
        yield from norm(f"{to}.ln1", f"{hf}.layer_norm1", d)
        yield from linear(f"{to}.qkv", f"{hf}.self_attn.qkv", 3 * d, d, qkv_bias)
        yield from linear(f"{to}.proj", f"{hf}.self_attn.projection", d, d)
        yield from norm(f"{to}.ln2", f"{hf}.layer_norm2", d)
        yield from linear(f"{to}.fc1", f"{hf}.mlp.fc1", c["FV"], d)
        yield from linear(f"{to}.fc2", f"{hf}.mlp.fc2", d, c["FV"])
    yield from norm("vit.ln", "vision_model.post_layernorm", d)


def qformer(c):
    """Blip2QFormerModel without its text half, and the projection behind it."""
    d, f, dv = c["DQ"], c["FQ"], c["DV"]
    hf = "qformer.encoder.layer"
    yield Entry("qf.query", False, c["Q"], d, (Part("query_tokens", (1, c["Q"], d)),))
    yield from norm("qf.ln", "qformer.layernorm", d)
    cross = [f"{hf}.{i}.crossattention.attention.{w}" for i in range(0, c["LQ"], c["XQ"]) for w in ("key", "value")]
    yield from linear("qf.cross_kv", cross, len(cross) * d, dv)   # K0 V0 K1 V1 ...
    for i in range(c["LQ"]):
        at, to = f"{hf}.{i}", f"qf.{i}"
        yield from linear(f"{to}.qkv", [f"{at}.attention.attention.{w}" for w in ("query", "key", "value")], 3 * d, d)
        yield from linear(f"{to}.out", f"{at}.attention.output.dense", d, d)
        yield from norm(f"{to}.ln1", f"{at}.attention.output.LayerNorm", d)
        if i % c["XQ"] == 0:
            yield from linear(f"{to}.cross_q", f"{at}.crossattention.attention.query", d, d)
            yield from linear(f"{to}.cross_out", f"{at}.crossattention.output.dense", d, d)
            yield from norm(f"{to}.cross_ln", f"{at}.crossattention.output.LayerNorm", d)
        yield from linear(f"{to}.fc1", f"{at}.intermediate_query.dense", f, d)
        yield from linear(f"{to}.fc2", f"{at}.output_query.dense", d, f)
        yield from norm(f"{to}.ln2", f"{at}.output_query.LayerNorm", d)
    yield from linear("qf.proj", "language_projection", c["DL"], d)


def opt(c, bias):
    """OPTForCausalLM; the head is tied in every release."""
    d, hf = c["DL"], "language_model.model.decoder"
    yield mat("lm.tok", c["V"], d, f"{hf}.embed_tokens.weight")
    rows = c["positions"] + 2     # OPTLearnedPositionalEmbedding.offset
    yield Entry("lm.pos", False, rows, d, (Part(f"{hf}.embed_positions.weight", (rows, d)),))
    for i in range(c["LD"]):
        at, to = f"{hf}.layers.{i}", f"dec.{i}"
        yield from norm(f"{to}.ln1", f"{at}.self_attn_layer_norm", d)
        yield from linear(f"{to}.qkv", [f"{at}.self_attn.{w}_proj" for w in "qkv"], 3 * d, d, bias)
        yield from linear(f"{to}.out", f"{at}.self_attn.out_proj", d, d, bias)
        yield from norm(f"{to}.ln2", f"{at}.final_layer_norm", d)
        yield from linear(f"{to}.fc1", f"{at}.fc1", c["FL"], d, bias)
        yield from linear(f"{to}.fc2", f"{at}.fc2", d, c["FL"], bias)
    yield from norm("lm.ln", f"{hf}.final_layer_norm", d)


def t5(c):
    """T5ForConditionalGeneration of the gated kind. No biases."""
    d, f, a = c["DL"], c["FL"], c["HL"] * c["AL"]
    yield mat("lm.tok", c["V"], d, "language_model.shared.weight")
    for stack, to, layers in (("encoder", "enc", c["LE"]), ("decoder", "dec", c["LD"])):
        hf = f"language_model.{stack}"
        bias = Part(f"{hf}.block.0.layer.0.SelfAttention.relative_attention_bias.weight", (c["buckets"], c["HL"]))
        yield Entry(f"{to}.bias", False, c["buckets"], c["HL"], (bias,))
        for i in range(layers):
            at, us = f"{hf}.block.{i}.layer", f"{to}.{i}"
            yield vec(f"{us}.ln1.w", d, f"{at}.0.layer_norm.weight")
            yield mat(f"{us}.qkv.w", 3 * a, d, *(f"{at}.0.SelfAttention.{w}.weight" for w in "qkv"))
            yield mat(f"{us}.out.w", d, a, f"{at}.0.SelfAttention.o.weight")
            ff = 1
            if stack == "decoder":
                ff = 2
                yield vec(f"{us}.cross_ln.w", d, f"{at}.1.layer_norm.weight")
                yield mat(f"{us}.cross_q.w", a, d, f"{at}.1.EncDecAttention.q.weight")
                yield mat(f"{us}.cross_kv.w", 2 * a, d, *(f"{at}.1.EncDecAttention.{w}.weight" for w in "kv"))
                yield mat(f"{us}.cross_out.w", d, a, f"{at}.1.EncDecAttention.o.weight")
            yield vec(f"{us}.ln2.w", d, f"{at}.{ff}.layer_norm.weight")
            yield mat(f"{us}.wi.w", 2 * f, d, *(f"{at}.{ff}.DenseReluDense.wi_{w}.weight" for w in "01"))
            yield mat(f"{us}.wo.w", d, f, f"{at}.{ff}.DenseReluDense.wo.weight")
        yield vec(f"{to}.ln.w", d, f"{hf}.final_layer_norm.weight")


def layout(config, vit_qkv_bias=True, opt_bias=True):
    """Every tensor of a weight file, in file order.

    config: {field: number} of blip2.h's tables. The two flags are vision_config.qkv_bias and OPT's enable_bias; a
    bias that a checkpoint does not have is stored as zeros. Returns a list of Entry."""
    entries = [*vit(config, vit_qkv_bias), *qformer(config)]
    entries += opt(config, opt_bias) if config["family"] == OPT else t5(config)
    if not config["tied"]:
        entries.append(mat("lm.head", config["V"], config["DL"], "language_model.lm_head.weight"))
    return entries
