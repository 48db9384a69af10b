#!/usr/bin/env python3
"""PyTorch's way to what the ladder's programs compute, timed on the same card in the same way. For table.py.

    python3 dev/cuda/peers.py build/ladder.json >build/peers.json     # what the programs said with --json
    python3 dev/cuda/peers.py --cpu small.json                        # tries it out on the CPU; prints nothing
    python3 dev/cuda/peers.py --known list.json                       # is every shape understood? Needs no PyTorch

Shapes are read from the names of the cases. A time is the median of up to 101 runs between two events, before each of
which a buffer of several times the L2 cache is read (as ladder_time.cu); work is enqueued before the host waits. Not
here: int8 and int4, which PyTorch does not multiply with on a card without packages of its own; anything compiled.
"""

import argparse
import json
import re
import statistics
import sys


def layernorm(torch, new, T, C):
    x, w, b = new(T, C), new(C), new(C)
    return lambda: torch.nn.functional.layer_norm(x, (C,), w, b, 1e-6).bfloat16()


def patch_embedding(torch, new, B, S, P, D):
    pixels = (new(B, S, S, 3).abs() * 255).to(torch.uint8)
    mean, std = (new(3).abs() + 0.2).view(1, 3, 1, 1), (new(3).abs() + 0.2).view(1, 3, 1, 1)
    w, b = new(D, 3, P, P).bfloat16(), new(D).bfloat16()
    cls, pos = new(1, 1, D), new(1, (S // P) ** 2 + 1, D)

    def run():
        x = ((pixels.permute(0, 3, 1, 2) / 255 - mean) / std).bfloat16()
        x = torch.nn.functional.conv2d(x, w, b, stride=P).flatten(2).transpose(1, 2).float()
        return torch.cat([cls.expand(B, -1, -1), x], 1) + pos
    return run


def vit_attention(torch, new, N, H, A):
    qkv = new(1, N, 3, H, A).bfloat16()

    def run():
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        return torch.nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(N, H * A)
    return run


def dense(torch, new, T, C, OC, _):
    x, w, b = new(T, C).bfloat16(), new(OC, C).bfloat16(), new(OC).bfloat16()
    return lambda: torch.nn.functional.linear(x, w, b)


def decode_attention(torch, new, B, K, n, fresh, H, A):
    q = new(B * K, H, 1, A).bfloat16()
    k, v = new(B * K, H, n + fresh, A).bfloat16(), new(B * K, H, n + fresh, A).bfloat16()
    return lambda: torch.nn.functional.scaled_dot_product_attention(q, k, v)


def sampling(torch, new, R, V, temp, top_k, top_p):
    logits, u = new(R, V) * 5, new(R, 1).abs()

    def run():
        x = logits / temp
        if top_k:
            x = x.masked_fill(x < torch.topk(x, min(top_k, V))[0][:, -1:], float("-inf"))
        if top_p < 1:
            y, ids = torch.sort(x, descending=False)
            drop = y.softmax(-1).cumsum(-1) <= 1 - top_p
            drop[:, -1] = False
            x = x.masked_fill(drop.scatter(1, ids, drop), float("-inf"))
        token = torch.searchsorted(x.softmax(-1).cumsum(-1), u, right=True).clamp_(max=V - 1)
        return torch.log_softmax(logits, -1).gather(1, token)
    return run


def beam_step(torch, new, B, K, V):
    logits, score = new(B * K, V) * 5, new(B * K, 1)

    def run():
        value = (torch.log_softmax(logits, -1) + score).view(B, K * V)
        value, at = torch.topk(value, min(2 * K, K * V))
        return torch.stack((value, at // V, at % V))
    return run


# How PyTorch does it, what a case's name looks like, and the function that gets its numbers.
NUMBER = r"(\d+(?:\.\d+)?)"
LINEAR = r"\((\d+),(\d+)\) x \((\d+),(\d+)\)$"
PEERS = {
    "layernorm": ("F.layer_norm, bfloat16()", rf"^\({NUMBER},{NUMBER}\)$", layernorm),
    "patch_embedding": ("normalise, F.conv2d, cat, add",
                        rf"^{NUMBER} x {NUMBER} px, patches of {NUMBER}, width {NUMBER}$", patch_embedding),
    "vit_attention": ("F.scaled_dot_product_attention", rf"^{NUMBER} tokens, {NUMBER} heads of {NUMBER}$",
                      vit_attention),
    "dense": ("F.linear", LINEAR, dense),
    "matvec": ("F.linear", LINEAR, dense),
    "decode_attention": ("F.scaled_dot_product_attention over a contiguous cache",
                         rf"^{NUMBER} x {NUMBER} rows, {NUMBER} \+ {NUMBER} positions, {NUMBER} heads of {NUMBER}$",
                         decode_attention),
    "sampling": ("topk, sort, softmax, cumsum, searchsorted, log_softmax",
                 rf"^{NUMBER} rows of {NUMBER}, temperature {NUMBER}, top-k {NUMBER}, top-p {NUMBER}", sampling),
    "beam_step": ("log_softmax, topk", rf"^{NUMBER} x {NUMBER} beams, {NUMBER} tokens", beam_step),
}


def shape(operation, name):
    """The numbers of a case's name, or None where PyTorch has no way. A name not understood ends the program."""
    found = re.search(PEERS[operation][1], name) if operation in PEERS else None
    if not found:
        sys.exit(f"{operation}: a shape that is not understood: {name}; hint: PEERS in dev/cuda/peers.py")
    if operation == "matvec" and "bf16" not in name:
        return None
    return [float(x) if "." in x else int(x) for x in found.groups()]


def median_us(torch, run, flush):
    """As median_us of ladder_time.cu."""
    for _ in range(500):
        flush()
    runs = 2
    for _ in range(2):
        events = [(torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)) for _ in range(runs)]
        for start, end in events:
            flush()
            start.record()
            run()
            end.record()
        torch.cuda.synchronize()
        took = [start.elapsed_time(end) for start, end in events]
        runs = int(min(101, max(7, 250 / (took[-1] + 0.1))))
    return statistics.median(took) * 1e3


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cpu", action="store_true")
    parser.add_argument("--known", action="store_true")
    parser.add_argument("json", nargs="+")
    args = parser.parse_args()
    import table
    runs, _ = table.read(args.json)
    work = [(o, c["name"], shape(o, c["name"])) for o, run in runs.items() for c in run["cases"]]
    if args.known:
        return
    import torch
    device = "cpu" if args.cpu else "cuda"
    torch.manual_seed(1)
    peers = {o: {"peer": f"{torch.__version__}, {PEERS[o][0]}", "operation": o, "cases": [],
                 "gpu": "" if args.cpu else torch.cuda.get_device_name()} for o in runs}
    l2 = 0 if args.cpu else torch.cuda.get_device_properties(0).L2_cache_size
    buffer = torch.zeros(1 << 20 if args.cpu else max(256 << 20, 4 * l2) // 4, device=device)
    with torch.inference_mode():
        for operation, name, numbers in work:
            if numbers is None:
                continue
            run = PEERS[operation][2](torch, lambda *s: torch.rand(*s, device=device) * 2 - 1, *numbers)
            if not torch.isfinite(run().float()).all():
                sys.exit(f"{operation}, {name}: PyTorch's result is not finite")
            if not args.cpu:
                us = median_us(torch, run, lambda: torch.sum(buffer))
                peers[operation]["cases"].append({"name": name, "us": us})
    for peer in peers.values():
        if not args.cpu:
            print(json.dumps(peer))


if __name__ == "__main__":
    main()
