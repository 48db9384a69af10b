"""What every stage must do at the released models' shapes: launches, bytes, operations; and the least time that takes.

In order: the models and cards, one launch, the stages (vit, qformer, prompt, decode), times. Used by dev/cuda/report
(its tables of predictions) and dev/bench_gpu.py (floors beside measured times).
A time here is a prediction: for each launch the larger of bytes / bandwidth and operations / peak, with the data
sheet's figures or measured ceilings. Activations count as if all of them went through device memory, although at batch
1 most stay in the L2 cache; launches, tails and waits count nothing. Nobody measured it.
Not here: machine code (report), measuring (bench_gpu.py).
"""

from collections import namedtuple

# blip2.h's letters. The vision part is the same in all of them.
VISION = {"P": 14, "DV": 1408, "HV": 16, "FV": 6144, "LV": 39,
          "DQ": 768, "HQ": 12, "FQ": 3072, "LQ": 12, "NX": 6, "Q": 32}
MODELS = {
    "opt-2.7b": {"family": "opt", "DL": 2560, "HL": 32, "AL": 80, "FL": 10240, "LE": 0, "LD": 32, "V": 50304},
    "opt-6.7b": {"family": "opt", "DL": 4096, "HL": 32, "AL": 128, "FL": 16384, "LE": 0, "LD": 32, "V": 50304},
    "flan-t5-xl": {"family": "t5", "DL": 2048, "HL": 32, "AL": 64, "FL": 5120, "LE": 24, "LD": 24, "V": 32128},
    "flan-t5-xxl": {"family": "t5", "DL": 4096, "HL": 64, "AL": 64, "FL": 10240, "LE": 24, "LD": 24, "V": 32128},
}
BYTES = {"f32": 4, "bf16": 2, "int8": 1, "int4": 0.5625}      # of a weight; int4 with its scales

# Nominal: bytes per second and dense bf16 tensor-core operations per second, from NVIDIA's data sheets (SXM, 80 GB).
Card = namedtuple("Card", "name bandwidth peak")
CARDS = {"sm_80": Card("A100", 2.0e12, 312e12), "sm_90": Card("H100", 3.35e12, 989e12)}

# count launches of one kernel; bytes and operations are of one launch.
Launch = namedtuple("Launch", "kernel what count bytes operations")


def dense_kernel(T, size):
    """Which kernel has a dense layer of T rows: the rules of dense() in blip2.cu."""
    high, low, library = -(-T // 88) * 88, -(-T // 64) * 64, -(-T // 128) * 128
    tiles = low if 10 * low <= 9 * high else high
    return ("stream_kernel" if T <= 64 else
            "tile_kernel" if size < 2 or T <= 176 or 5 * tiles <= 4 * library else "cublasLt")


def dense(kernel, what, count, T, OC, C, size, out=2, gated=False):
    """x (T,C), w (OC,C) -> (T,OC): weights once, x once, the result once (an f32 sum: read and written)."""
    rows = 2 * OC if gated else OC
    return Launch(kernel, f"{what} ({rows},{C})", count, rows * C * size + 2 * T * C + out * T * OC, 2 * T * rows * C)


def attend(what, count, B, H, A, Tq, Tk):
    """Keys and values once, queries and results once; two multiplies."""
    return Launch("attention_mma_kernel", what, count, 4 * B * H * A * (Tk + Tq), 4 * B * H * Tq * Tk * A)


def attend_past(what, count, R, I, past):
    """One query of R rows over `past` positions: keys and values once, query and result."""
    return Launch("past_kernel", what, count, 4 * R * I * (past + 1), 4 * R * past * I)


def norm(what, count, T, C, out=2):
    return Launch("norm_kernel", what, count, T * C * (4 + out), 0)


def vit(S=224, B=1, size=2):
    """Pixels to image tokens: launches of B images of S x S pixels."""
    v = VISION
    G = S // v["P"]
    N, D, F, L, C = G * G + 1, v["DV"], v["FV"], v["LV"], 3 * v["P"] ** 2
    T = B * N
    gemm = dense_kernel(T, size)
    return [
        Launch("gemm_kernel", f"pixels to tokens ({D},{C})", 1, B * S * S * 3 + D * C * size + 4 * (T + N) * D,
               2 * B * G * G * D * C),
        norm("layer norms", 2 * L + 1, T, D),
        dense(gemm, "QKV", L, T, 3 * D, D, size),
        attend(f"{N} tokens, heads of 88", L, B, v["HV"], D // v["HV"], N, N),
        dense(gemm, "projection", L, T, D, D, size, out=8),
        dense(gemm, "feed-forward 1", L, T, F, D, size),
        dense(gemm, "feed-forward 2", L, T, D, F, size, out=8),
    ]


def qformer(model, S=224, B=1, size=2):
    """Image tokens to the language model's rows."""
    v, N = VISION, (S // VISION["P"]) ** 2 + 1
    D, F, L, X, T, A = v["DQ"], v["FQ"], v["LQ"], v["NX"], B * v["Q"], v["DQ"] // v["HQ"]
    gemm = dense_kernel(T, size)
    return [
        dense(dense_kernel(B * N, size), "all cross K, V", 1, B * N, X * 2 * D, v["DV"], size),
        dense(gemm, "QKV", L, T, 3 * D, D, size),
        attend("32 queries", L, B, v["HQ"], A, v["Q"], v["Q"]),
        dense(gemm, "output", L + X, T, D, D, size, out=8),
        dense(gemm, "cross Q", X, T, D, D, size),
        attend(f"32 queries, {N} keys", X, B, v["HQ"], A, v["Q"], N),
        norm("norms behind the residual", 2 * L + X + 1, T, D, out=6),
        dense(gemm, "feed-forward 1", L, T, F, D, size),
        dense(gemm, "feed-forward 2", L, T, D, F, size, out=8),
        dense(gemm, "projection", 1, T, MODELS[model]["DL"], D, size, out=4),
    ]


def body(model, T, size, gemm, layers, cross):
    """The dense layers of `layers` decoder or encoder layers over T rows; cross: with T5's cross-attention."""
    m = MODELS[model]
    D, I, F, t5 = m["DL"], m["HL"] * m["AL"], m["FL"], m["family"] == "t5"
    out = [dense(gemm, "norm, QKV", layers, T, 3 * I, D, size),
           dense(gemm, "output", layers * (2 if cross else 1), T, D, I, size, out=8),
           dense(gemm, "norm, feed-forward 1", layers, T, F, D, size, gated=t5),
           dense(gemm, "feed-forward 2", layers, T, D, F, size, out=8)]
    return out + ([dense(gemm, "norm, cross Q", layers, T, I, D, size)] if cross else [])


def prompt(model, text=8, B=1, size=2):
    """The prompts (32 image rows and `text` tokens each) up to the first logits."""
    m = MODELS[model]
    n, I, t5 = VISION["Q"] + text, m["HL"] * m["AL"], m["family"] == "t5"
    T, layers = B * n, m["LE"] if t5 else m["LD"]
    gemm = dense_kernel(T, size)
    out = [*body(model, T, size, gemm, layers, False), norm("norms", 2 * layers, T, m["DL"]),
           attend(f"{n} tokens", layers, B, m["HL"], m["AL"], n, n)]
    if not t5:
        return [*out, dense(dense_kernel(B, size), "norm, logits", 1, B, m["V"], m["DL"], size, out=4)]
    return [*out, dense(gemm, "cross K, V", m["LD"], T, 2 * I, m["DL"], size), *decode(model, 1, B, size, n)]


def decode(model, past=50, R=1, size=2, cross=40):
    """One token of R rows over `past` earlier ones."""
    m = MODELS[model]
    I, t5 = m["HL"] * m["AL"], m["family"] == "t5"
    gemm = dense_kernel(R, size)
    out = body(model, R, size, gemm, m["LD"], t5)
    out += [attend_past(f"{past} positions", m["LD"], R, I, past)]
    out += [attend_past(f"{cross} cross positions", m["LD"], R, I, cross)] if t5 else []
    return [*out, dense(gemm, "norm, logits", 1, R, m["V"], m["DL"], size, out=4)]


def stages(model, S=224, B=1, rows=1, text=8, dtype="bf16"):
    """Stage -> launches. `decode` is one token in the middle of an answer of 20."""
    size, past = BYTES[dtype], 10 if MODELS[model]["family"] == "t5" else VISION["Q"] + text + 10
    return {"vit": vit(S, B, size), "qformer": qformer(model, S, B, size), "prompt": prompt(model, text, B, size),
            "decode": decode(model, past, B * rows, size, VISION["Q"] + text)}


def bytes_of(launches):
    return sum(x.count * x.bytes for x in launches)


def operations_of(launches):
    return sum(x.count * x.operations for x in launches)


def seconds(launches, bandwidth, peak):
    """The least time: launch for launch the larger of memory and arithmetic."""
    return sum(x.count * max(x.bytes / bandwidth, x.operations / peak) for x in launches)


def caption_seconds(table, tokens, bandwidth, peak):
    """A caption of `tokens` tokens: the first comes out of the prompt, each other one out of a decoding step."""
    first = sum(seconds(table[s], bandwidth, peak) for s in ("vit", "qformer", "prompt"))
    return first + (tokens - 1) * seconds(table["decode"], bandwidth, peak)
