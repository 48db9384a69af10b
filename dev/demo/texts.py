"""What is said about a scene: its caption, and questions with their answers, in the prompt format of BLIP-2.

A text is (kind, prompt, answer). A caption has the empty prompt; a question is `Question: Q Answer:`, one
that follows others is `Question: Q1 Answer: A1. Question: Q2 Answer:`. Answers carry no leading space here.

Everything follows from the scene, so it is exact; kinds of objects are always named in one order, from left
to right. A question is asked only where nobody would argue about the answer: "left of" needs a clear
distance, and nothing is asked about the colour of an object, for that differs between drawings.
"""
NUMBERS = ["none", "one", "two", "three", "four"]
KINDS = ["caption", "noun", "count", "background", "yes/no", "position", "follow-up"]
ASKED_CATEGORIES = ("animal", "fruit", "vehicle")
ASIDE, ABOVE = .12, .22         # least distance of centres for left/right and for above/below


def question(q):
    return f"Question: {q} Answer:"


def after(turns, q):
    """turns: earlier (question, answer) -> the prompt that asks q after them."""
    return "".join(f"Question: {p} Answer: {a}. " for p, a in turns) + question(q)


class Words:
    """plural, category: noun -> str; nouns: those that may be asked about."""

    def __init__(self, plural, category, nouns):
        self.plural, self.category, self.nouns = plural, category, list(nouns)

    def some(self, noun, count):
        """"a dog", "an owl", "two dogs"."""
        if count > 1:
            return f"{NUMBERS[count]} {self.plural[noun]}"
        an = noun[0] in "aeiou" and not noun.startswith("uni") or noun.startswith("hour")
        return f"{'an' if an else 'a'} {noun}"

    def things(self, scene):
        return " and ".join(self.some(n, c) for n, c in scene.kinds())

    def caption(self, scene):
        return f"{self.things(scene)} on {self.on(scene)}"

    @staticmethod
    def on(scene):
        return f"{'an' if scene.colour[0] in 'aeiou' else 'a'} {scene.colour} background"

    def absent(self, rng, scene):
        """A noun that is not in the scene; every third time of the same category as one that is."""
        there = dict(scene.kinds())
        pool = [n for n in self.nouns if n not in there]
        if rng.random() < .33:
            near = [n for n in pool if self.category[n] == self.category[scene.things[0].noun]]
            pool = near or pool
        return pool[rng.integers(len(pool))]

    def any_noun(self, rng, scene, share_present):
        kinds = scene.kinds()
        if rng.random() < share_present:
            return kinds[rng.integers(len(kinds))][0]
        return self.absent(rng, scene)

    # Each of the following gives (question, answer), or None where the scene does not allow the question.

    def ask_noun(self, rng, scene):
        kinds = scene.kinds()
        for category in ASKED_CATEGORIES:
            of = [k for k in kinds if self.category[k[0]] == category]
            if len(of) == 1 and rng.random() < .6:
                n, c = of[0]
                is_one = f"{category} is" if c == 1 else f"{category}s are"
                return f"what {is_one} in the picture?", self.some(n, c)
        return str(rng.choice(["what is in the picture?", "what is in this picture?"])), self.things(scene)

    def ask_count(self, rng, scene):
        where = str(rng.choice([" are there in the picture?", " are in the picture?", " are there?"]))
        if rng.random() < .15:
            return "how many objects" + where, NUMBERS[len(scene.things)]
        noun = self.any_noun(rng, scene, .85)
        return f"how many {self.plural[noun]}{where}", NUMBERS[dict(scene.kinds()).get(noun, 0)]

    @staticmethod
    def ask_background(rng, scene):
        return str(rng.choice(["what colour is the background?", "what color is the background?",
                               "what is the colour of the background?"])), scene.colour

    def ask_yes_no(self, rng, scene):
        r = rng.random()
        if r < .15:
            from scenes import COLOURS
            colour = scene.colour if rng.random() < .5 else list(COLOURS)[rng.integers(len(COLOURS))]
            return f"is the background {colour}?", "yes" if colour == scene.colour else "no"
        side = self.side(rng, scene)
        if r < .35 and side is not None:
            a, b, relation, opposite = side
            truth = rng.random() < .5
            return f"is the {a} {relation if truth else opposite} the {b}?", "yes" if truth else "no"
        noun = self.any_noun(rng, scene, .5)
        where = str(rng.choice([" in the picture?", "?"]))
        return f"is there {self.some(noun, 1)}{where}", "yes" if noun in dict(scene.kinds()) else "no"

    @staticmethod
    def side(rng, scene):
        """(noun, other noun, relation, opposite) that holds for two single objects of two kinds, or None."""
        if len(scene.things) != 2 or len(scene.kinds()) != 2:
            return None
        (a, b), choices = scene.things, []
        if b.x - a.x >= ASIDE:
            choices.append((a.noun, b.noun, "to the left of", "to the right of"))
        if abs(b.y - a.y) >= ABOVE:
            up, low = (a, b) if a.y < b.y else (b, a)
            choices.append((up.noun, low.noun, "above", "below"))
        if not choices:
            return None
        p, q, relation, opposite = choices[rng.integers(len(choices))]
        return (p, q, relation, opposite) if rng.random() < .5 else (q, p, opposite, relation)

    def relations(self, scene):
        """{(relation, reference noun): answer} for every single object of which the question is clear."""
        out, kinds = {}, scene.kinds()
        if len(kinds) != 2:
            return out
        for (ref, n), (other, m) in (kinds, kinds[::-1]):
            if n != 1:
                continue
            at = next(t for t in scene.things if t.noun == ref)
            for attr, least, low, high in (("x", ASIDE, "to the left of", "to the right of"),
                                           ("y", ABOVE, "above", "below")):
                d = [getattr(t, attr) - getattr(at, attr) for t in scene.things if t.noun == other]
                if max(d) <= -least:
                    out[low, ref], out[high, ref] = self.some(other, m), "nothing"
                elif min(d) >= least:
                    out[low, ref], out[high, ref] = "nothing", self.some(other, m)
        return out

    def ask_position(self, rng, scene):
        options = list(self.relations(scene).items())
        if rng.random() < .6:                                # "nothing" is right for half of them
            options = [o for o in options if o[1] != "nothing"]
        if not options:
            return None
        (relation, ref), answer = options[rng.integers(len(options))]
        return f"what is {relation} the {ref}?", answer

    def ask_after(self, rng, scene):
        """A question that only makes sense after the one before it -> ([(q1, a1)], q2, a2)."""
        kinds, way = scene.kinds(), int(rng.integers(6))
        counts = dict(kinds)
        if way == 0:
            q, a = self.ask_noun(rng, scene)
            it = "them" if len(scene.things) > 1 else "it"
            return [(q, a)], f"what {rng.choice(['colour', 'color'])} is behind {it}?", scene.colour
        if way == 1:
            noun = kinds[rng.integers(len(kinds))][0]
            return [(f"is there {self.some(noun, 1)} in the picture?", "yes")], "how many are there?", \
                NUMBERS[counts[noun]]
        if way == 2:
            first, second = (self.any_noun(rng, scene, .8) for _ in range(2))
            if first != second:
                return [(f"how many {self.plural[first]} are there?", NUMBERS[counts.get(first, 0)])], \
                    f"and how many {self.plural[second]}?", NUMBERS[counts.get(second, 0)]
        if way == 3:
            relations = self.relations(scene)
            if relations:
                relation, ref = list(relations)[rng.integers(len(relations))]
                back = {"to the left of": "to the right of", "to the right of": "to the left of",
                        "above": "below", "below": "above"}[relation]
                short = back.replace(" of", "") if "the" in back else back + " it"
                return [(f"what is {relation} the {ref}?", relations[relation, ref])], f"and {short}?", \
                    relations[back, ref]
        if way == 4:
            return [self.ask_background(rng, scene)], "what is in front of it?", self.things(scene)
        first, second = (self.any_noun(rng, scene, .5) for _ in range(2))
        while second == first:
            second = self.absent(rng, scene)
        return [(f"is there {self.some(first, 1)} in the picture?", "yes" if first in counts else "no")], \
            f"and {self.some(second, 1)}?", "yes" if second in counts else "no"

    def ask(self, kind, rng, scene):
        """-> (kind, prompt, answer) or None."""
        if kind == "caption":
            return kind, "", self.caption(scene)
        if kind == "follow-up":
            turns, q, a = self.ask_after(rng, scene)
            return kind, after(turns, q), a
        f = {"noun": self.ask_noun, "count": self.ask_count, "background": self.ask_background,
             "yes/no": self.ask_yes_no, "position": self.ask_position}[kind]
        got = f(rng, scene)
        return got and (kind, question(got[0]), got[1])

    def some_caption(self, rng, scene):
        """The caption; a quarter of the time in other words, so that sampled captions differ."""
        r = rng.random()
        if r < .75:
            return "caption", "", self.caption(scene)
        if r < .85:
            return "caption", "", f"a picture of {self.caption(scene)}"
        if r < .92:
            return "caption", "", f"{self.on(scene)} with {self.things(scene)}"
        return "caption", str(rng.choice(["a picture of", "a photo of"])), self.caption(scene)

    def texts(self, scene, rng, count):
        """A caption and count - 1 different questions, for training."""
        out, seen = [self.some_caption(rng, scene)], set()
        share = {"noun": .09, "count": .21, "background": .04, "yes/no": .22, "position": .26,
                 "follow-up": .18}
        while len(out) < count:
            got = self.ask(str(rng.choice(list(share), p=list(share.values()))), rng, scene)
            if got is None or got[1] in seen:
                continue
            seen.add(got[1])
            kind, prompt, answer = got
            if kind != "follow-up" and rng.random() < .12:       # an earlier turn that does not matter
                earlier = self.ask_count(rng, scene) if rng.random() < .5 else self.ask_yes_no(rng, scene)
                prompt = f"Question: {earlier[0]} Answer: {earlier[1]}. {prompt}"
            out.append((kind, prompt, answer))
        return out

    def corpus(self):
        """Sentences with every word of the vocabulary, for learning the byte pairs."""
        from scenes import COLOURS, Scene, Thing
        import numpy as np
        rng, out = np.random.default_rng(3), []
        for i, noun in enumerate(sorted(self.category)):
            for other in (sorted(self.category)[i * 7 % len(self.category)], self.nouns[i % len(self.nouns)]):
                things = [Thing(noun, x, y, .3, []) for x, y in ((.2, .2), (.5, .5))[:1 + i % 2]]
                things += [Thing(other, x, 1 - x, .3, []) for x in (.8, .9)[:1 + i // 2 % 2]]
                scene = Scene(list(COLOURS)[i % len(COLOURS)], things, 0)
                for _ in range(3):
                    out += [p + (" " if p else "") + a + "\n" for _, p, a in self.texts(scene, rng, 5)]
            out += [f"how many {self.plural[noun]}? {self.some(noun, 1)}\n"] * 6
        return out
