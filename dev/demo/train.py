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
      helping heads start anew).

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
import scenes as S
from optimizer import Optimizers, schedule
from texts import KINDS, Words


class VitHeads(torch.nn.Module):
    """What covers a patch (nouns and background), and whether the centre of an object lies in it."""

    def __init__(self, width, nouns):
        super().__init__()
        self.noun, self.centre = torch.nn.Linear(width, nouns + 1), torch.nn.Linear(width, 1)
        self.register_buffer("weight", torch.ones(nouns + 1), persistent=False)
        self.weight[-1] = .2                             # half of the patches are background, and easy

    def loss(self, patches, labels):
        """patches (B,P,C), labels (B,2,P) -> loss, share of the object patches named right."""
        logits, noun = self.noun(patches), labels[:, 0]
        loss = F.cross_entropy(logits.flatten(0, 1), noun.flatten(), weight=self.weight, ignore_index=-100)
        where = F.binary_cross_entropy_with_logits(self.centre(patches)[..., 0], labels[:, 1].float(),
                                                   pos_weight=torch.tensor(5.0))
        on = (noun >= 0) & (noun < len(self.weight) - 1)
        return loss + .3 * where, ((logits.argmax(-1) == noun) & on).sum().item() / max(on.sum().item(), 1)


class Source:
    """Batches of scenes from one set of drawings."""

    def __init__(self, args, keep, nouns=None):
        self.drawings = S.Drawings(args.drawings, args.index, nouns or S.NOUNS, keep)
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
        self.start, self.shown, self.sums = time.time() - self.seconds, time.time(), {}

    def batches(self, source, dense):
        """Source.batches for what is left to do, until there is nothing or until asked to stop."""
        for batch in source.batches(self.done, self.args.scenes, self.args.batch, dense):
            if not self.more():
                return
            yield batch

    def more(self):
        """True while there is something to do; saves before it says no because it was asked to stop."""
        if self.stop:
            self.save()
            print(f"stopped and saved after {self.done} scenes", flush=True)
            return False
        return self.done < self.args.scenes

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


class QueryHeads(torch.nn.Module):
    """What the first queries should find: query i the noun and place of object i from the left, 4 the colour.

    Without this the Q-Former must discover from words alone that there are objects.
    """
    OBJECTS = 4

    def __init__(self, width, nouns):
        super().__init__()
        self.noun, self.at = torch.nn.Linear(width, nouns + 1), torch.nn.Linear(width, 2)
        self.colour = torch.nn.Linear(width, len(S.COLOURS))

    def loss(self, queries, truth):
        """queries (B,Q,C), truth from truths() -> loss, share of the objects whose noun is right."""
        noun, at, colour = truth
        none = self.noun.out_features - 1
        logits, there = self.noun(queries[:, :self.OBJECTS]), noun < none
        loss = F.cross_entropy(logits.flatten(0, 1), noun.flatten())
        loss = loss + 2 * F.smooth_l1_loss(self.at(queries[:, :self.OBJECTS])[there], at[there], beta=.1)
        loss = loss + .3 * F.cross_entropy(self.colour(queries[:, self.OBJECTS]), colour)
        return loss, ((logits.argmax(-1) == noun) & there).sum().item() / there.sum().item()


def truths(scenes, noun_id):
    """-> noun (B,4) of the objects from the left, len(noun_id) for none, their places (B,4,2), colour (B)."""
    noun = torch.full((len(scenes), QueryHeads.OBJECTS), len(noun_id))
    at, colours = torch.zeros(len(scenes), QueryHeads.OBJECTS, 2), list(S.COLOURS)
    for b, s in enumerate(scenes):
        for i, t in enumerate(s.things):
            noun[b, i], at[b, i] = noun_id[t.noun], torch.tensor([t.x, t.y])
    return noun, at, torch.tensor([colours.index(s.colour) for s in scenes])


class Oracle(torch.nn.Module):
    """Writes down what the queries would say of a picture that is understood perfectly.

    The language model learns to count, compare and answer from these, without the cost of pictures and
    without being misled by what the ViT does not see yet; the Q-Former is then drawn towards them.
    """

    def __init__(self, queries, width, nouns):
        super().__init__()
        self.slot = torch.nn.Parameter(torch.randn(queries, width) * .5)
        self.noun, self.at = torch.nn.Embedding(nouns + 1, width), torch.nn.Linear(2, width, bias=False)
        self.colour = torch.nn.Embedding(len(S.COLOURS), width)
        torch.nn.init.normal_(self.at.weight, 0, 1.5)

    def forward(self, truth):
        """-> (B,Q,C), normalised as the Q-Former's last step normalises."""
        noun, at, colour = truth
        there = (noun < self.noun.num_embeddings - 1)[..., None]
        objects = self.noun(noun) + self.at(at - .5) * there
        said = torch.cat([objects, self.colour(colour)[:, None]], 1)
        said = F.pad(said, (0, 0, 0, self.slot.shape[0] - said.shape[1]))
        return F.layer_norm(said + self.slot, (self.slot.shape[1],))


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
    tested = run.done
    states = torch.compile(M.patch_states) if args.compile else M.patch_states
    for _, x, y in run.batches(seen, .7):
        keep = None
        if run.done // args.batch % 4:                   # every fourth step sees whole pictures
            keep, y = kept(y, len(seen.id), args.keep, run.done)
        with halves(args):
            patches = states(net.vision_model, x, keep)
        loss, right = heads.loss(patches.float()[:, 1:], y)
        loss.backward()
        run.opt.step(schedule(run.done, args.scenes))
        run.done += args.batch
        run.note(loss=loss.item(), patches=right)
        if run.done - tested >= args.every or run.done >= args.scenes:
            tested = run.done
            run.save()
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
    for (b, k), ok in M.exact(net, embeds, packer.pack(rows)).items():
        right.setdefault(kinds[b][k], []).append(ok)


def spoken(args, scenes, packer, words, done):
    """The texts of one training step, packed."""
    rng = np.random.default_rng([args.seed, done, 2])
    return packer.pack([[t[1:] for t in words.texts(s, rng, args.texts)] for s in scenes])


def word_step(args, net, oracle, source, packer, words, first, count):
    """The language model learns from `count` scenes as the oracle tells them -> loss, share right."""
    scenes = [S.sample_scene(source.drawings, args.seed + 1, first + i) for i in range(count)]
    embeds = net.language_projection(oracle(truths(scenes, source.id)))
    batch = spoken(args, scenes, packer, words, first)
    return M.text_loss(M.text_logits(net, embeds, batch)[0], batch)


def train_words(args, seen, net, tok):
    words = Words(seen.drawings.plural, seen.drawings.category, seen.drawings.nouns)
    packer, cfg = M.Packer(tok), net.config
    oracle = Oracle(cfg.num_query_tokens, cfg.qformer_config.hidden_size, len(seen.id))
    parts = {"language_model": net.language_model, "language_projection": net.language_projection,
             "oracle": oracle}
    named = [(f"{'head.' if n == 'oracle' else ''}{n}.{k}", p) for n, m in parts.items()
             for k, p in m.named_parameters()]
    run = Run(args, "words", parts, Optimizers(named, lr=args.lr))
    tested = run.done
    while run.more():
        loss, tokens = word_step(args, net, oracle, seen, packer, words, run.done, args.batch)
        loss.backward()
        run.opt.step(schedule(run.done, args.scenes))
        run.done += args.batch
        run.note(text=loss.item(), tokens=tokens)
        if run.done - tested >= args.every or run.done >= args.scenes:
            tested, right = run.done, {}
            run.save()
            scenes = [S.sample_scene(seen.drawings, args.seed, 10 ** 9 + i, "new") for i in range(256)]
            with torch.no_grad():
                embeds = net.language_projection(oracle(truths(scenes, seen.id)))
                ask_each(net, embeds, scenes, packer, words, 0, right)
            run.record(**{k: float(np.mean(v)) for k, v in right.items()})


def train_blip(args, seen, test, unseen, net, tok):
    words = Words(seen.drawings.plural, seen.drawings.category, seen.drawings.nouns)
    packer, cfg = M.Packer(tok), net.config
    heads = torch.nn.ModuleDict({"patches": VitHeads(cfg.vision_config.hidden_size, len(seen.id)),
                                 "queries": QueryHeads(cfg.qformer_config.hidden_size, len(seen.id)),
                                 "oracle": Oracle(cfg.num_query_tokens, cfg.qformer_config.hidden_size,
                                                  len(seen.id))})
    if not args.start:
        state = torch.load(os.path.join(args.out, "vit.pt"), weights_only=True)
        net.vision_model.load_state_dict(state["vit"])
        heads["patches"].load_state_dict(state["heads"])
        state = torch.load(os.path.join(args.out, "words.pt"), weights_only=True)
        net.language_model.load_state_dict(state["language_model"])
        net.language_projection.load_state_dict(state["language_projection"])
        heads["oracle"].load_state_dict(state["oracle"])
    parts = {"net": net, "heads": heads}
    named = [(f"{n}.{k}", p) for n, m in parts.items() for k, p in m.named_parameters()]
    run = Run(args, "blip", parts,
              Optimizers(named, lr=args.lr, slow=("vision_model",), slow_by=args.vit_speed))
    tested = run.done
    embed = torch.compile(M.image_embeds) if args.compile else M.image_embeds
    for scenes, x, y in run.batches(seen, 0):
        with halves(args):
            patches, queries, embeds = (t.float() for t in embed(net, x))
        batch, truth = spoken(args, scenes, packer, words, run.done), truths(scenes, seen.id)
        with halves(args):
            logits = M.text_logits(net, embeds, batch)[0]
        text, tokens = M.text_loss(logits.float(), batch)
        named_loss, objects = heads["queries"].loss(queries, truth)
        patch_loss, right = heads["patches"].loss(patches[:, 1:], y)
        away = F.mse_loss(queries, heads["oracle"](truth).detach())
        loss = text + .5 * named_loss + .5 * away + .5 * patch_loss
        if run.done // args.batch % 3 == 0:              # so that it keeps what it learned from the oracle
            loss = loss + word_step(args, net, heads["oracle"], seen, packer, words, run.done, args.batch)[0]
        else:                                            # every parameter has a gradient, if only nothing
            loss = loss + 0 * sum(p.sum() for p in heads["oracle"].parameters())
        loss.backward()
        run.opt.step(schedule(run.done, args.scenes))
        run.done += args.batch
        run.note(text=text.item(), tokens=tokens, objects=objects,
                 away=away.item(), patches=right)
        if run.done - tested >= args.every or run.done >= args.scenes:
            tested = run.done
            run.save()
            values = {}
            for name, source, which in (("seen", test, "new"), ("unseen style", unseen, "any")):
                got = check_blip(net, heads, source, packer, words, which)
                values |= {f"{k}, {name}": v for k, v in got.items()}
            run.record(**values)
            M.export(net, args.tokenizer, os.path.join(args.out, "hf"))


def main():
    ap = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    ap.add_argument("stage", choices=["vit", "words", "blip"])
    S.add_source_options(ap)
    ap.add_argument("--out", required=True)
    ap.add_argument("--scenes", type=int, required=True)
    ap.add_argument("--start", help="an exported model to go on from (stage blip)")
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
    args.tokenizer = args.start or os.path.join(args.out, "tokenizer")
    if os.path.exists(os.path.join(args.tokenizer, "tokenizer.json")):
        tok = M.load_tokenizer(args.tokenizer)
    else:
        words = Words(seen.drawings.plural, seen.drawings.category, seen.drawings.nouns)
        tok = M.make_tokenizer(words.corpus(), args.vocab, args.tokenizer)
    if args.start:
        net = M.Blip2ForConditionalGeneration.from_pretrained(args.start, dtype=torch.float32)
    else:
        net = M.build(tok.get_vocab_size(), tok.encode("\n", add_special_tokens=False).ids[0],
                      tok.token_to_id("<image>"), args.seed)
    print(f"{sum(p.numel() for p in net.parameters()) / 1e6:.3f} million parameters", flush=True)
    # transformers' default here spends more than half of a step in the backward pass of fused attention
    net.set_attn_implementation("eager")
    net.train()
    if args.stage == "vit":
        train_vit(args, seen, test, unseen, net)
    elif args.stage == "words":
        train_words(args, seen, net, tok)
    else:
        train_blip(args, seen, test, unseen, net, tok)


if __name__ == "__main__":
    main()
