"""Checks the parts of the demo's training that could be wrong without anybody noticing. Needs no drawings.

    python dev/demo/selftest.py        prints "N passed, N failed, N skipped"; exit status 1 on a failure
"""
import sys
import tempfile

import numpy as np
import torch
from PIL import Image, ImageDraw

import model as M
import model_t5 as M5
import scenes as S
from texts import Words

TALLY = [0, 0]


def check(name, ok, shown=""):
    TALLY[not ok] += 1
    print(f"{'ok  ' if ok else 'FAIL'} {name} {shown}")


class Toy(S.Drawings):
    """Four drawings that need no files: a filled shape for each noun."""

    def __init__(self):
        self.nouns, self.by = ["dog", "cat", "car", "owl"], {}
        self.plural, self.category = {n: n + "s" for n in self.nouns}, dict.fromkeys(self.nouns, "animal")
        for i, n in enumerate(self.nouns):
            im = Image.new("RGBA", (128, 90 + 10 * i))
            ImageDraw.Draw(im).ellipse((2, 2, 126, 88 + 10 * i), fill=(60 * i, 200, 90, 255))
            self.by[n] = {"toy": [[im.convert("RGBa"), im.convert("RGBa").reduce(2)]]}


def check_scenes(toy):
    nothing_hides, ordered, marked = True, True, True
    for i in range(200):
        s = S.sample_scene(toy, 1, i)
        boxes = [(t.x, t.y, *S.extent(t)) for t in s.things]
        for a in range(len(boxes)):
            for b in range(a):
                (x, y, w, h), (u, v, p, q) = boxes[a], boxes[b]
                nothing_hides &= abs(x - u) > w + p or abs(y - v) > h + q
        ordered &= [t.x for t in s.things] == sorted(t.x for t in s.things)
        if i < 40:
            _, labels = S.render(s, 112, 14, {n: k for k, n in enumerate(toy.nouns)})
            on = set(labels[0]) - {-100, 4}
            marked &= on == {toy.nouns.index(t.noun) for t in s.things} and labels[1].sum() <= len(s.things)
    check("no object hides another", nothing_hides)
    check("objects are in order from left to right", ordered)
    check("patch labels name exactly the objects that are there", marked)
    a, b = (S.render(S.sample_scene(toy, 1, 7), 112)[0] for _ in range(2))
    check("the same number gives the same picture", (a == b).all())
    check("another number gives another", (a != S.render(S.sample_scene(toy, 1, 8), 112)[0]).any())
    seen = [S.sample_scene(toy, 1, i) for i in range(100)]
    check("held-out compositions do not appear", not any(
        S.held_out(s.kinds()[0][0], s.kinds()[-1][0], s.colour) for s in seen))


def check_side(toy):
    """A picture with red left half: the drawing's flip, turn and place follow their numbers."""
    im = Image.new("RGBA", (128, 128), (0, 0, 255, 255))
    im.paste((255, 0, 0, 255), (0, 0, 64, 128))
    for flip in (False, True):
        t = S.Thing("dog", .3, .6, .4, [im.convert("RGBa")], (0.0, 1.0, flip), 0)
        p = S.render(S.Scene("white", [t], 0), 112, jitter=False)[0].astype(int)
        left, right = p[67, 20], p[67, 47]
        check(f"flip {flip}", (left[0] > left[2]) != flip and (right[0] > right[2]) == flip)
        red = np.argwhere((p[:, :, 0] > 200) & (p[:, :, 2] < 60)).mean(0) / 112
        check("it stands where it should", np.abs(red - [.6, .4 if flip else .2]).max() < .02, red)


def check_texts(toy):
    words = Words(toy.plural, toy.category, toy.nouns)
    d = toy.by["dog"]["toy"][0]
    s = S.Scene("green", [S.Thing("dog", .2, .5, .2, d), S.Thing("dog", .5, .5, .2, d),
                          S.Thing("owl", .8, .5, .2, d)], 0)
    check("caption", words.caption(s) == "two dogs and an owl on a green background", words.caption(s))
    r = words.relations(s)
    check("two dogs are left of the owl", r.get(("to the left of", "owl")) == "two dogs" and
          r.get(("to the right of", "owl")) == "nothing" and ("above", "owl") not in r)
    asked = {p: a for i in range(60) for _, p, a in words.texts(s, np.random.default_rng(i), 5)}
    q = "Question: how many dogs are there? Answer:"
    check("counting", asked.get(q) == "two", asked.get(q))
    return words


def check_model(toy, words):
    with tempfile.TemporaryDirectory() as folder:
        tok = M.make_tokenizer(words.corpus() * 3, 400, folder)
        newline = tok.encode("\n", add_special_tokens=False).ids[0]
        net = M.build(tok.get_vocab_size(), newline, tok.token_to_id("<image>"), 1).eval()
        with torch.no_grad():
            for p in net.parameters():                  # start values are too small to show a wrong mask
                p.add_(torch.randn_like(p) * .05)
        scenes = [S.sample_scene(toy, 1, i) for i in range(3)]
        x = M.pixels([S.render(s, M.IMAGE)[0] for s in scenes])
        rows = [[t[1:] for t in words.texts(s, np.random.default_rng(1), 3)] for s in scenes]
        packer = M.Packer(tok)
        with torch.no_grad():
            batch = packer.pack(rows)
            embeds = M.image_embeds(net, x)[2]
            logits, target, text = packer.logits(net, embeds, batch)
            alone = []
            for b, texts in enumerate(rows):
                for prompt, answer in texts:
                    e, head = packer.one(prompt, answer)
                    ids = torch.tensor([[net.config.image_token_index] * M.QUERIES + e])
                    out = net(pixel_values=x[b:b + 1], input_ids=ids).logits[0, M.QUERIES:]
                    alone.append(out[head - 1:-1])
            whole = M.patch_states(net.vision_model, x)
            few = M.patch_states(net.vision_model, x, torch.arange(64).expand(3, 64))
        check("keeping all patches changes nothing", torch.allclose(few, whole, atol=1e-5))
        worst = (torch.cat(alone) - logits).abs().max().item()
        check("packed texts give what the model's own forward gives", worst < 1e-4, f"to {worst:.1e}")
        batch[4][:] = torch.ones_like(batch[4]).tril()  # negative control: every text sees the ones before it
        other = packer.logits(net, embeds, batch)[0]
        wrong = (torch.cat(alone) - other).abs().max().item()
        check("and would not with a wrong mask", wrong > 1e-2, f"{wrong:.1e}")
        got = M.answers(net, tok, x, [r[1][0] for r in rows], 6)
        batch = packer.pack([[(r[1][0], g)] for r, g in zip(rows, got, strict=True)])
        exact = M.exact(*packer.logits(net, embeds, batch))
        check("exact() runs on generated answers", len(exact) == 3)
        from transformers import AutoTokenizer
        text = "Question: how many dogs are there? Answer: two\n"
        check("the tokenizer is OPT's kind", AutoTokenizer.from_pretrained(folder)(text).input_ids ==
              [2] + tok.encode(text, add_special_tokens=False).ids)


def check_t5(toy, words):
    with tempfile.TemporaryDirectory() as folder:
        tok = M5.make_tokenizer(words.corpus() * 3, 400, folder)
        net = M5.build(M.build(400, 4, 399, 1), tok.get_vocab_size(), tok.token_to_id("<image>"), 2).eval()
        scenes = [S.sample_scene(toy, 1, i) for i in range(3)]
        x = M.pixels([S.render(s, M.IMAGE)[0] for s in scenes])
        rows = [[t[1:] for t in words.texts(s, np.random.default_rng(1), 3)] for s in scenes]
        packer = M5.PackerT5(tok)
        with torch.no_grad():
            for p in net.parameters():
                p.add_(torch.randn_like(p) * .05)
            embeds = M.image_embeds(net, x)[2]
            logits, _, text = packer.logits(net, embeds, packer.pack(rows))
            alone = []
            for b, texts in enumerate(rows):
                for prompt, answer in texts:
                    ids = torch.tensor([[net.config.image_token_index] * M.QUERIES + packer.ids(prompt)])
                    said = torch.tensor([[M5.PAD, *packer.ids(answer)[:-1]]])
                    alone.append(net(pixel_values=x[b:b + 1], input_ids=ids, decoder_input_ids=said).logits[0])
        worst = (torch.cat(alone) - logits).abs().max().item()
        check("T5: texts of a batch give what the model's own forward gives", worst < 1e-4, f"to {worst:.1e}")
        wrong = (torch.cat(alone[::-1]) - logits).abs().max().item()
        check("T5: and those of other texts do not", wrong > 1e-2, f"{wrong:.1e}")
        check("T5: every text is there", len(text.unique()) == sum(map(len, rows)))
        check("T5: the exact GELU", type(net.language_model.encoder.block[0].layer[1].DenseReluDense.act)
              .__name__ == "GELUActivation")
        from transformers import AutoTokenizer
        text = "Question: how many dogs are there? Answer:"
        check("T5: the tokenizer reads back", AutoTokenizer.from_pretrained(folder)(text).input_ids ==
              tok.encode(text).ids and tok.decode(tok.encode(text).ids) == text)


def main():
    toy = Toy()
    check_scenes(toy)
    check_side(toy)
    words = check_texts(toy)
    check_model(toy, words)
    check_t5(toy, words)
    print(f"{TALLY[0]} passed, {TALLY[1]} failed, 0 skipped")
    sys.exit(TALLY[1] > 0)


if __name__ == "__main__":
    main()
