"""Trains the demo model in three stages, each resumable, on one thread of a CPU (a second one draws the scenes).

    python dev/demo/train.py vit   --drawings D --index I --out DIR --scenes 150000
    python dev/demo/train.py words --drawings D --index I --out DIR --scenes 60000 --lr .01
    python dev/demo/train.py blip  --drawings D --index I --out DIR --scenes 150000 --lr .01 --batch 32

vit:  the ViT alone learns to name the noun that covers each patch and to mark the centres of objects.
      Crowded scenes give most of the 64 patches something to teach; three steps of four leave out bare
      background, which halves their cost. The two heads are dropped later.
words: the language model and the projection learn to caption and to answer from a perfect description of the
      scene in the place of the queries (Oracle). No pictures, so it is quick.
blip: all parts learn from texts, several for one image. Three helping losses stay on: the patches' nouns; the
      first queries name the objects from left to right and the background; all are drawn to the oracle's.
      Starts from DIR/vit.pt and DIR/words.pt, or with --start FOLDER from an exported model (its
      helping heads start anew) and from those of the two that are there.

A second model with a Flan-T5, which borrows the ViT and Q-Former of the finished first one and leaves them as
they are, is trained with `words` and `blip` and --first DIR-OF-THE-FIRST.

DIR gets vit.pt / blip.pt (everything needed to go on: run the same command again), log.jsonl, curves.png, the
tokenizer, and with stage blip the folder hf/ (bf16, save_pretrained). --scenes is the whole length of the
stage; the learning rate falls over its last part, so a longer stage is asked for from the beginning.
Scene number i is a function of (seed, i): a run that was interrupted sees what it would have seen.
"""
import argparse
import json
import multiprocessing
import os
import platform
import signal
import sys
import time

import numpy as np
import torch
import torch.nn.functional as F

import model as M
import model_t5 as M5
import scenes as S
from heads import Oracle, QueryHeads, VitHeads, truths
from optimizer import Optimizers, schedule
from texts import KINDS, Words


class Source:
    """Batches of scenes from one set of drawings."""

    def __init__(self, args, keep):
        self.drawings = S.Drawings(args.drawings, args.index, S.nouns(args), keep)
        self.id, self.seed = {n: i for i, n in enumerate(self.drawings.nouns)}, args.seed

    def batches(self, first, total, count, dense):
        """The batches from `first` to `total`, drawn by another process while the model learns."""
        fork = multiprocessing.get_context("fork")
        receive, send = fork.Pipe(duplex=False)

        def work():
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            receive.close()
            for i in range(first, total, count):
                scenes, pictures, labels = self.draw(i, count, dense)
                for s in scenes:                         # the drawings are large, and only render() needs them
                    for t in s.things:
                        t.drawing = []
                send.send((scenes, np.stack(pictures), np.stack(labels)))

        worker = fork.Process(target=work, daemon=True)
        worker.start()
        send.close()                                     # so that the worker's end shows as end of file
        for _ in range(first, total, count):
            scenes, pictures, labels = receive.recv()
            yield scenes, M.pixels(pictures), torch.from_numpy(labels)

    def batch(self, first, count, dense, compositions="seen"):
        """dense: share of crowded scenes -> scenes, pixels (B,3,S,S), labels (B,2,P)."""
        scenes, pictures, labels = self.draw(first, count, dense, compositions)
        return scenes, M.pixels(pictures), torch.from_numpy(np.stack(labels))

    def draw(self, first, count, dense, compositions="seen"):
        scenes, pictures, labels = [], [], []
        for i in range(first, first + count):
            crowded = (i * 0.618034) % 1 < dense
            s = S.sample_dense(self.drawings, self.seed, i) if crowded else \
                S.sample_scene(self.drawings, self.seed, i, compositions)
            p, y = S.render(s, M.IMAGE, M.PATCH, self.id)
            scenes.append(s), pictures.append(p), labels.append(y)
        return scenes, pictures, labels


def make_packer(args, tok):
    return M5.PackerT5(tok) if args.first else M.Packer(tok)


def halves(args):
    """The context in which products are done in bf16, if --bf16 asks for it."""
    return torch.autocast("cpu", torch.bfloat16, enabled=args.bf16)


def kept(labels, bare, count, seed):
    """Of every picture `count` patches, those with objects first -> keep (B,count), labels (B,2,count)."""
    rank = torch.rand(labels[:, 0].shape, generator=torch.Generator().manual_seed(seed))
    keep = (rank + (labels[:, 0] == bare)).topk(count, dim=1, largest=False).indices.sort(1).values
    return keep, labels.gather(2, keep[:, None].expand(-1, 2, -1))


class Run:
    """What both stages share: the log, the checkpoint, the progress line."""

    def __init__(self, args, stage, parts, optimizers):
        self.args, self.stage, self.parts, self.opt = args, stage, parts, optimizers
        self.path, self.done, self.seconds = os.path.join(args.out, stage + ".pt"), 0, 0.0
        if os.path.exists(self.path):
            state = torch.load(self.path, weights_only=True)
            for name, part in parts.items():
                part.load_state_dict(state[name])
            optimizers.load(state["optimizers"])
            self.done, self.seconds = state["done"], state["seconds"]
        self.stop = False                                # kill (TERM) means: save, then end
        signal.signal(signal.SIGTERM, lambda *_: setattr(self, "stop", True))
        self.tested = self.done
        self.start, self.shown, self.sums = time.time() - self.seconds, time.time(), {}

    def batches(self, source, dense):
        """Source.batches for what is left to do, until there is nothing or until asked to stop."""
        batches = source.batches(self.done, self.args.scenes, self.args.batch, dense)
        while self.more():
            try:
                yield next(batches)
            except (EOFError, OSError):                  # the process that draws was asked to stop as well
                if not self.stop:
                    raise

    def more(self):
        """True while there is something to do; saves before it says no because it was asked to stop."""
        if self.stop:
            self.save()
            print(f"stopped and saved after {self.done} scenes", flush=True)
            return False
        return self.done < self.args.scenes

    def step(self, loss, /, **means):
        """Backward pass and one step of the optimizers; True, with everything saved, when a validation is due."""
        loss.backward()
        self.opt.step(schedule(self.done, self.args.scenes))
        self.done += self.args.batch
        self.note(**means)
        if self.done - self.tested < self.args.every and self.done < self.args.scenes:
            return False
        self.tested = self.done
        self.save()
        return True

    def save(self):
        state = {n: p.state_dict() for n, p in self.parts.items()}
        state |= {"optimizers": self.opt.state(), "done": self.done, "seconds": time.time() - self.start}
        torch.save(state, self.path + ".new")
        os.replace(self.path + ".new", self.path)        # never half a checkpoint

    def note(self, **values):
        """Adds to the running means and, every 20 s, prints them."""
        for k, v in values.items():
            self.sums.setdefault(k, []).append(v)
        if time.time() - self.shown > 20:
            self.shown = time.time()
            means = "  ".join(f"{k} {np.mean(v):.3f}" for k, v in self.sums.items())
            spent = time.time() - self.start
            print(f"{self.stage} {self.done}/{self.args.scenes}  {means}  {self.done / spent:.1f} scenes/s  "
                  f"{spent / 60:.1f} min", flush=True)
            self.sums = {}

    def record(self, **values):
        """One line of validation to log.jsonl, and the picture of all of them."""
        minutes = round((time.time() - self.start) / 60, 2)
        line = {"stage": self.stage, "scenes": self.done, "minutes": minutes,
                "machine": machine(), **{k: round(v, 4) for k, v in values.items()}}
        with open(os.path.join(self.args.out, "log.jsonl"), "a") as f:
            f.write(json.dumps(line) + "\n")
        print("validation", json.dumps(line), flush=True)
        draw_curves(self.args.out)


def machine():
    name = platform.processor() or platform.machine()
    try:
        with open("/proc/cpuinfo") as f:
            name = next(s.split(":")[1].strip() for s in f if s.startswith("model name"))
    except (OSError, StopIteration):
        pass
    return f"{name}, {torch.get_num_threads()} thread, torch {torch.__version__}"


def draw_curves(folder):
    """log.jsonl -> curves.png, one panel for each stage; without matplotlib only a remark."""
    try:
        import matplotlib
        matplotlib.use("Agg")
        import matplotlib.pyplot as plt
    except ImportError:
        print("no matplotlib: curves.png is not drawn", file=sys.stderr)
        return
    with open(os.path.join(folder, "log.jsonl")) as f:
        lines = [json.loads(s) for s in f]
    stages = list(dict.fromkeys(s["stage"] for s in lines))
    fig, axes = plt.subplots(1, len(stages), figsize=(8 * len(stages), 5), squeeze=False)
    for ax, stage in zip(axes[0], stages, strict=True):
        rows = [s for s in lines if s["stage"] == stage]
        for key in sorted({k for s in rows for k in s} - {"stage", "scenes", "minutes", "machine"}):
            at = [s for s in rows if key in s]
            ax.plot([s["scenes"] for s in at], [100 * s[key] for s in at], label=key,
                    linestyle="--" if "unseen" in key else "-")
        ax.set(title=stage, xlabel="scenes", ylabel="% right", ylim=(0, 101))
        ax.legend(fontsize=7)
        ax.grid(alpha=.3)
    fig.tight_layout()
    fig.savefig(os.path.join(folder, "curves.png"), dpi=80)
    plt.close(fig)


@torch.no_grad()
def check_vit(vit, heads, source, compositions, count=256):
    got = []
    for i in range(0, count, 64):
        _, x, y = source.batch(10 ** 9 + i, 64, 0, compositions)
        got.append(heads.loss(vit(x).last_hidden_state[:, 1:], y)[1])
    return float(np.mean(got))


def train_vit(args, seen, test, unseen, net):
    heads = VitHeads(net.config.vision_config.hidden_size, len(seen.id))
    parts = {"vit": net.vision_model, "heads": heads}
    named = [(f"{n}.{k}", p) for n, m in parts.items() for k, p in m.named_parameters()]
    run = Run(args, "vit", parts, Optimizers(named, lr=args.lr))
    states = torch.compile(M.patch_states) if args.compile else M.patch_states
    for _, x, y in run.batches(seen, .7):
        keep = None
        if run.done // args.batch % 4:                   # every fourth step sees whole pictures
            keep, y = kept(y, len(seen.id), args.keep, run.done)
        with halves(args):
            patches = states(net.vision_model, x, keep)
        loss, right = heads.loss(patches.float()[:, 1:], y)
        if run.step(loss, loss=loss.item(), patches=right):
            run.record(patches_seen=check_vit(net.vision_model, heads, test, "new"),
                       patches_unseen_style=check_vit(net.vision_model, heads, unseen, "any"))


@torch.no_grad()
def check_blip(net, heads, source, packer, words, compositions, count=256):
    """Share of exact greedy answers for each kind of text, and of objects named by the queries' head."""
    right, named, end = {}, [], 64
    for i in range(0, count, end):
        scenes, x, _ = source.batch(10 ** 9 + i, end, 0, compositions)
        _, queries, embeds = M.image_embeds(net, x)
        named.append(heads["queries"].loss(queries, truths(scenes, source.id))[1])
        ask_each(net, embeds, scenes, packer, words, i, right)
    return {"objects": float(np.mean(named)), **{k: float(np.mean(v)) for k, v in right.items()}}


def ask_each(net, embeds, scenes, packer, words, first, right):
    """Adds to right {kind: [was it exact]} one text of every kind for every scene."""
    kinds, rows = [], []
    for k, s in enumerate(scenes):
        rng = np.random.default_rng([5, first + k])
        asked = [t for kind in KINDS if (t := words.ask(kind, rng, s))]
        kinds.append([t[0] for t in asked]), rows.append([t[1:] for t in asked])
    for (b, k), ok in M.exact(*packer.logits(net, embeds, packer.pack(rows))).items():
        right.setdefault(kinds[b][k], []).append(ok)


def spoken(args, scenes, packer, words, done):
    """The texts of one training step, packed."""
    rng = np.random.default_rng([args.seed, done, 2])
    return packer.pack([[t[1:] for t in words.texts(s, rng, args.texts)] for s in scenes])


def word_step(args, net, oracle, source, packer, words, first, count):
    """The language model learns from `count` scenes as the oracle tells them -> loss, share right."""
    scenes = [S.sample_scene(source.drawings, args.seed + 1, first + i) for i in range(count)]
    batch = spoken(args, scenes, packer, words, first)
    with halves(args):
        embeds = net.language_projection(oracle(truths(scenes, source.id)))
        return M.text_loss(*packer.logits(net, embeds, batch))


def make_oracle(args, net, nouns):
    """The oracle of this run, or, for a second language model, the finished one of the first model's run."""
    oracle = Oracle(net.config.num_query_tokens, net.config.qformer_config.hidden_size, nouns)
    if args.first:
        state = torch.load(os.path.join(args.first, "blip.pt"), weights_only=True)["heads"]
        oracle.load_state_dict({k[7:]: v for k, v in state.items() if k.startswith("oracle.")})
        oracle.requires_grad_(False)
    return oracle


def train_words(args, seen, net, tok):
    words = Words(seen.drawings.plural, seen.drawings.category, seen.drawings.nouns)
    packer, oracle = make_packer(args, tok), make_oracle(args, net, len(seen.id))
    parts = {"language_model": net.language_model, "language_projection": net.language_projection}
    if not args.first:
        parts["oracle"] = oracle
    named = [(f"{'head.' if n == 'oracle' else ''}{n}.{k}", p) for n, m in parts.items()
             for k, p in m.named_parameters()]
    run = Run(args, "words", parts, Optimizers(named, lr=args.lr))
    while run.more():
        loss, tokens = word_step(args, net, oracle, seen, packer, words, run.done, args.batch)
        if run.step(loss, text=loss.item(), tokens=tokens):
            right = {}
            scenes = [S.sample_scene(seen.drawings, args.seed, 10 ** 9 + i, "new") for i in range(256)]
            with torch.no_grad():
                embeds = net.language_projection(oracle(truths(scenes, seen.id)))
                ask_each(net, embeds, scenes, packer, words, 0, right)
            run.record(**{k: float(np.mean(v)) for k, v in right.items()})


def train_mouth(args, seen, test, unseen, net, tok):
    """Stage blip for a second language model: what the first model's eyes see is taken as it is."""
    words = Words(seen.drawings.plural, seen.drawings.category, seen.drawings.nouns)
    packer, oracle = make_packer(args, tok), make_oracle(args, net, len(seen.id))
    heads = {"queries": QueryHeads(net.config.qformer_config.hidden_size, len(seen.id))}
    parts = {"language_model": net.language_model, "language_projection": net.language_projection}
    named = [(f"{n}.{k}", p) for n, m in parts.items() for k, p in m.named_parameters()]
    run = Run(args, "blip", parts, Optimizers(named, lr=args.lr))
    if not run.done:
        state = torch.load(os.path.join(args.out, "words.pt"), weights_only=True)
        for name, part in parts.items():
            part.load_state_dict(state[name])
    for scenes, x, _ in run.batches(seen, 0):
        batch = spoken(args, scenes, packer, words, run.done)
        with halves(args):
            with torch.no_grad():
                queries = M.image_embeds(net, x)[1]
            loss, tokens = M.text_loss(*packer.logits(net, net.language_projection(queries), batch))
        if run.done // args.batch % 3 == 0:
            loss = loss + word_step(args, net, oracle, seen, packer, words, run.done, args.batch)[0]
        if run.step(loss, text=loss.item(), tokens=tokens):
            check_both(args, run, net, heads, test, unseen, packer, words)


def check_both(args, run, net, heads, test, unseen, packer, words):
    """Validation on the styles seen and on the one never seen; exports what there is."""
    values = {}
    for name, source, which in (("seen", test, "new"), ("unseen style", unseen, "any")):
        got = check_blip(net, heads, source, packer, words, which)
        values |= {f"{k}, {name}": v for k, v in got.items()}
    run.record(**values)
    M.export(net, args.tokenizer, os.path.join(args.out, "hf"))


def take_over(args, net, heads):
    """What the stages before left in --out; with --start they need not be there."""
    stages = {"vit": {"vit": net.vision_model, "heads": heads["patches"]},
              "words": {"language_model": net.language_model, "language_projection": net.language_projection,
                        "oracle": heads["oracle"]}}
    for stage, parts in stages.items():
        path = os.path.join(args.out, stage + ".pt")
        if args.start and not os.path.exists(path):
            continue
        state = torch.load(path, weights_only=True)
        for name, part in parts.items():
            part.load_state_dict(state[name])


def train_blip(args, seen, test, unseen, net, tok):
    words = Words(seen.drawings.plural, seen.drawings.category, seen.drawings.nouns)
    packer, cfg = make_packer(args, tok), net.config
    heads = torch.nn.ModuleDict({"patches": VitHeads(cfg.vision_config.hidden_size, len(seen.id)),
                                 "queries": QueryHeads(cfg.qformer_config.hidden_size, len(seen.id)),
                                 "oracle": Oracle(cfg.num_query_tokens, cfg.qformer_config.hidden_size,
                                                  len(seen.id))})
    take_over(args, net, heads)
    parts = {"net": net, "heads": heads}
    named = [(f"{n}.{k}", p) for n, m in parts.items() for k, p in m.named_parameters()]
    run = Run(args, "blip", parts,
              Optimizers(named, lr=args.lr, slow=("vision_model",), slow_by=args.vit_speed))
    embed = torch.compile(M.image_embeds) if args.compile else M.image_embeds
    for scenes, x, y in run.batches(seen, 0):
        with halves(args):
            patches, queries, embeds = (t.float() for t in embed(net, x))
        batch, truth = spoken(args, scenes, packer, words, run.done), truths(scenes, seen.id)
        with halves(args):
            text, tokens = M.text_loss(*packer.logits(net, embeds, batch))
        named_loss, objects = heads["queries"].loss(queries, truth)
        patch_loss, right = heads["patches"].loss(patches[:, 1:], y)
        away = F.mse_loss(queries, heads["oracle"](truth).detach())
        loss = text + .5 * named_loss + .5 * away + .5 * patch_loss
        if run.done // args.batch % 3 == 0:              # so that it keeps what it learned from the oracle
            loss = loss + word_step(args, net, heads["oracle"], seen, packer, words, run.done, args.batch)[0]
        else:                                            # every parameter has a gradient, if only nothing
            loss = loss + 0 * sum(p.sum() for p in heads["oracle"].parameters())
        if run.step(loss, text=text.item(), tokens=tokens, objects=objects,
                 away=away.item(), patches=right):
            check_both(args, run, net, heads, test, unseen, packer, words)


def make_model(args, words):
    """-> the model (f32) and its tokenizer: from --start, or new; with --first a second language model."""
    own = os.path.join(args.out, "tokenizer")            # of a stage words that began without --start
    args.tokenizer = args.start if args.start and not os.path.exists(own) else own
    if os.path.exists(os.path.join(args.tokenizer, "tokenizer.json")):
        tok = M.load_tokenizer(args.tokenizer)
    else:
        tok = (M5 if args.first else M).make_tokenizer(words.corpus(), args.vocab, args.tokenizer)
    load = M.Blip2ForConditionalGeneration.from_pretrained
    vocab, image_token = tok.get_vocab_size(), tok.token_to_id("<image>")
    if args.start == args.tokenizer:
        net = load(args.start, dtype=torch.float32)
    elif args.first:
        net = M5.build(load(os.path.join(args.first, "hf"), dtype=torch.float32), vocab, image_token, args.seed)
    else:
        net = M.build(vocab, tok.encode("\n", add_special_tokens=False).ids[0], image_token, args.seed)
    if args.start and args.start != args.tokenizer:      # new words: the eyes are taken over, the mouth is not
        old = load(args.start, dtype=torch.float32)
        net.vision_model.load_state_dict(old.vision_model.state_dict())
        net.qformer.load_state_dict(old.qformer.state_dict())
        net.query_tokens.data.copy_(old.query_tokens.data)
    # transformers' default here spends more than half of a step in the backward pass of fused attention
    net.set_attn_implementation("eager")
    print(f"{sum(p.numel() for p in net.parameters()) / 1e6:.3f} million parameters", flush=True)
    return net.train(), tok


def main():
    ap = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    ap.add_argument("stage", choices=["vit", "words", "blip"])
    S.add_source_options(ap)
    ap.add_argument("--out", required=True)
    ap.add_argument("--scenes", type=int, required=True)
    ap.add_argument("--start", help="an exported model to go on from (stage blip)")
    ap.add_argument("--first", metavar="DIR", help="--out of a finished run: train a Flan-T5 on what its ViT "
                                                    "and Q-Former see (stages words and blip)")
    ap.add_argument("--batch", type=int, default=64)
    ap.add_argument("--every", type=int, default=12000, help="scenes between validations")
    ap.add_argument("--keep", type=int, default=36, help="patches of a picture that most steps look at")
    ap.add_argument("--lr", type=float, default=.008, help="of Muon")
    ap.add_argument("--vit-speed", type=float, default=.6, help="learning rate of the ViT in stage blip")
    ap.add_argument("--texts", type=int, default=4, help="texts for each picture")
    ap.add_argument("--bf16", action="store_true", help="products in bf16: faster where the processor has them")
    ap.add_argument("--compile", action="store_true", help="torch.compile, which needs a C++ compiler")
    ap.add_argument("--vocab", type=int, default=680)
    ap.add_argument("--seed", type=int, default=1)
    args = ap.parse_args()
    torch.set_num_threads(1)
    os.makedirs(args.out, exist_ok=True)
    seen = Source(args, lambda s: s != S.HELD_OUT_STYLE)
    unseen = Source(args, lambda s: s == S.HELD_OUT_STYLE)
    test = Source(args, lambda s: s != S.HELD_OUT_STYLE and S.STYLE_GROUP.get(s, s) not in S.WEIGHT)
    print(f"{seen.drawings.count} drawings of {len(seen.id)} nouns to learn from; {machine()}", flush=True)
    net, tok = make_model(args, Words(seen.drawings.plural, seen.drawings.category, seen.drawings.nouns))
    if args.stage == "vit":
        train_vit(args, seen, test, unseen, net)
    elif args.stage == "words":
        train_words(args, seen, net, tok)
    elif args.first:
        train_mouth(args, seen, test, unseen, net, tok)
    else:
        train_blip(args, seen, test, unseen, net, tok)


if __name__ == "__main__":
    main()
