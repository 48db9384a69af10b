"""Compares token choice (generate.c) with the generate() of transformers on a fake language model.

In order: the fake model in C's words and as a transformers model (decoder only and encoder-decoder), random cases,
transformers' answers to them, the C program's, what is compared; the prompt lengths that real BLIP-2 classes hand to
the search; filters, picks and uniforms; the goldens of test_generate.c.

Run:  python test/parity_generate.py [--program build/test_generate] [--n 900] [--write-goldens FILE]
Prints the tally and exits 1 on any difference. Not here: real weights (parity_model.py).
"""

import argparse
import random
import subprocess
import sys
from unittest import mock

import numpy as np
import torch
from transformers import (Blip2Config, Blip2ForConditionalGeneration, GenerationMixin, PreTrainedConfig,
                          PreTrainedModel, logging)
from transformers.generation import logits_process
from transformers.modeling_outputs import BaseModelOutput, CausalLMOutputWithPast, Seq2SeqLMOutput

# Measured at most: scores 2.4e-7 of 1 + |score|, log-probabilities 3.2e-7, probabilities 2.3e-6 of the value.
SCORE_BOUND, LOGPROB_BOUND, PROB_BOUND = 5e-6, 5e-6, 1e-5
NEAR = 3e-7     # two f32 sums of probabilities this close may order differently


class Tally:
    def __init__(self):
        self.passed = self.failed = self.skipped = 0

    def expect(self, ok, what):
        if ok:
            self.passed += 1
        else:
            self.failed += 1
            print("FAIL", what, file=sys.stderr)


# ---------------------------------------------------------------------------------------------------------
# The fake model: test_generate.c's fake_logits

def mix(z):
    """splitmix64 of an array of uint64."""
    z = z + np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ z >> np.uint64(30)) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ z >> np.uint64(27)) * np.uint64(0x94D049BB133111EB)
    return z ^ z >> np.uint64(31)


def fake_logits(case, salt, ids, prompt_length):
    """ids: prompt and new tokens -> (V) float32."""
    key = mix(np.array([salt], np.uint64))
    for past in (ids[-2] if len(ids) > 1 else -1, ids[-1]):
        key = mix(key + np.uint64(past + 1))
    key = mix(key + np.uint64(len(ids) - prompt_length))
    u = (mix(key + np.arange(case["V"], dtype=np.uint64)) >> np.uint64(40)).astype(np.float32) * np.float32(2**-24)
    x = (u - np.float32(0.5)) * np.float32(case["scale"])
    if case["eos"] < case["V"]:
        x[case["eos"]] += np.float32(case["bias"])
    return x


class FakeConfig(PreTrainedConfig):
    model_type = "fake"


class Fake(PreTrainedModel, GenerationMixin):
    """Decoder only, called as Blip2ForConditionalGeneration calls OPT: with input_ids and inputs_embeds."""
    config_class = FakeConfig
    main_input_name = "input_ids"
    _supports_cache_class = False

    def __init__(self, config):
        super().__init__(config)
        self.one = torch.nn.Parameter(torch.zeros(1))
        self.case, self.salts, self.prompt_length = None, None, 0

    @classmethod
    def _supports_default_dynamic_cache(cls):
        return False

    def logits_of(self, ids):
        rows = len(ids) // len(self.salts)
        out = [fake_logits(self.case, self.salts[r // rows], row, self.prompt_length)
               for r, row in enumerate(ids.tolist())]
        return torch.from_numpy(np.stack(out))[:, None, :]

    def forward(self, input_ids=None, inputs_embeds=None, attention_mask=None, **kwargs):
        return CausalLMOutputWithPast(logits=self.logits_of(input_ids))

    def prepare_inputs_for_generation(self, input_ids, inputs_embeds=None, **kwargs):
        return {"input_ids": input_ids, "inputs_embeds": inputs_embeds}


class FakeEncoder(torch.nn.Module):
    main_input_name = "inputs_embeds"

    def forward(self, inputs_embeds=None, attention_mask=None, **kwargs):
        return BaseModelOutput(last_hidden_state=inputs_embeds)


class FakeSeq2Seq(Fake):
    """Called as BLIP-2 calls T5: the decoder starts from one token of its own."""
    def __init__(self, config):
        super().__init__(config)
        self.encoder = FakeEncoder()

    def get_encoder(self, **kwargs):
        return self.encoder

    def forward(self, decoder_input_ids=None, encoder_outputs=None, inputs_embeds=None, attention_mask=None, **kwargs):
        return Seq2SeqLMOutput(logits=self.logits_of(decoder_input_ids))

    def prepare_inputs_for_generation(self, input_ids, encoder_outputs=None, **kwargs):
        return {"decoder_input_ids": input_ids, "encoder_outputs": encoder_outputs}


# ---------------------------------------------------------------------------------------------------------
# Cases

def random_case(rng, sample, no_repeats=(0, 0, 1, 2, 2, 3, 4)):
    """A dict with the fields of a `case` line of test_generate.c, prompts as (salt, ids), and "t5"."""
    no_repeat = rng.choice(no_repeats)
    # Few words make repetitions likely; but with 1, each word comes only once.
    V = rng.choice([16, 17] if no_repeat > 1 else [16, 17, 31, 50, 64, 65, 130, 257][4 * no_repeat:])
    t5 = rng.random() < 0.4
    eos, pad = rng.sample(range(V), 2)
    max_new = rng.choice([10, 16, 24] if no_repeat else [1, 2, 3, 6, 10, 16, 24])
    beams = 1 if sample else rng.choice([1, 2, 3, 4, 5, 6, 7])
    captions = rng.choice([1, 2, 3, 5]) if sample else rng.randint(1, beams)
    scale = rng.choice([2.0, 5.0, 9.0, 14.0])
    case = dict(V=V, eos=eos, pad=pad, beams=beams, captions=captions, max_new=max_new,
                min_new=rng.choice([0, 0, 0, 1, 2, 5, 8]), sample=int(sample),
                top_k=rng.choice([0, 1, 4, 10, 50]) if sample else 0, seed=rng.getrandbits(64) if sample else 0,
                length_penalty=rng.choice([-1.0, 0.0, 0.0, 0.7, 1.0, 1.0, 1.0, 2.0]),
                repeat_penalty=rng.choice([1.0, 1.0, 1.0, 1.2, 1.5, 3.0, 0.7]),
                temp=rng.choice([1.0, 0.7, 1.6]) if sample else 1.0,
                top_p=rng.choice([1.0, 0.9, 0.9, 0.5, 0.05]) if sample else 1.0,
                scale=scale, bias=round(rng.uniform(0.0, 0.45), 2) * scale * (no_repeat < 2), t5=t5,
                no_repeat=no_repeat)
    case["min_new"] = min(case["min_new"], max_new)
    case["prompts"] = []
    length = rng.randint(1, 6)
    for _ in range(rng.choice([1, 1, 2, 3])):
        length = length if rng.random() < 0.7 else rng.randint(1, 6)
        ids = [0] if t5 else [V - 1] * 7 + [2 % V] + [rng.randrange(V) for _ in range(length - 1)]
        case["prompts"].append((rng.getrandbits(63), ids))
    return case


def lines_of(case):
    fields = ("V eos pad beams captions max_new min_new sample top_k seed length_penalty repeat_penalty temp top_p "
              "scale bias no_repeat").split()
    text = ["case " + " ".join(repr(case[f]) for f in fields) + f" {len(case['prompts'])}"]
    return text + ["prompt " + " ".join(map(str, [salt, *ids])) for salt, ids in case["prompts"]]


# ---------------------------------------------------------------------------------------------------------
# transformers

def philox(seed, sequence, step):
    """First word of Philox4x32-10, written from the paper: the uniform of generate.c."""
    c = [sequence & 0xFFFFFFFF, sequence >> 32, step & 0xFFFFFFFF, step >> 32]
    k0, k1 = seed & 0xFFFFFFFF, seed >> 32
    for i in range(10):
        a, b = 0xD2511F53 * c[0], 0xCD9E8D57 * c[2]
        c = [(b >> 32) ^ c[1] ^ (k0 + i * 0x9E3779B9 & 0xFFFFFFFF), b & 0xFFFFFFFF,
             (a >> 32) ^ c[3] ^ (k1 + i * 0xBB67AE85 & 0xFFFFFFFF), a & 0xFFFFFFFF]
    return (c[0] >> 8) * 2.0**-24


class Multinomial:
    """Stands in for torch.multinomial: row r of a prompt at its n-th call draws with the uniform (seed, r, n)."""
    def __init__(self, seed, rows):
        self.seed, self.rows, self.step, self.nearest = seed, rows, 0, 1.0

    def __call__(self, probs, num_samples):
        total = probs.double().cumsum(-1)
        picks = []
        for r, row in enumerate(total):
            u = philox(self.seed, r % self.rows, self.step)
            self.nearest = min(self.nearest, (row - u).abs().min().item())
            last = int(probs[r].nonzero().max())
            picks.append(min(int((row <= u).sum()), last))
        self.step += 1
        return torch.tensor(picks)[:, None]


def settings(case):
    """generate()'s arguments"""
    s = dict(max_new_tokens=case["max_new"], num_beams=case["beams"], num_return_sequences=case["captions"],
             do_sample=bool(case["sample"]), eos_token_id=case["eos"], pad_token_id=case["pad"], bos_token_id=None,
             length_penalty=case["length_penalty"], repetition_penalty=case["repeat_penalty"], early_stopping=False,
             return_dict_in_generate=True, output_scores=True, output_logits=True)
    if case["no_repeat"]:
        s["no_repeat_ngram_size"] = case["no_repeat"]
    if case["min_new"]:
        s["min_new_tokens"] = case["min_new"]
    if case["sample"]:
        s.update(temperature=case["temp"], top_k=case["top_k"], top_p=case["top_p"])
    return s


def answers_of(case, prompts, models):
    """prompts of one length, in one batch -> for each answer (stopped, score, tokens, log-probabilities)"""
    model = models[case["t5"]]
    model.config.vocab_size = case["V"]
    model.case, model.salts, model.prompt_length = case, [p[0] for p in prompts], len(prompts[0][1])
    if case["t5"]:
        args = dict(inputs_embeds=torch.zeros(len(prompts), 9, 4), attention_mask=torch.ones(len(prompts), 9).long(),
                    decoder_start_token_id=0)
    else:
        ids = torch.tensor([p[1] for p in prompts])
        args = dict(input_ids=ids, inputs_embeds=torch.zeros(*ids.shape, 4), attention_mask=torch.ones_like(ids))
    draw = Multinomial(case["seed"], case["captions"])
    with torch.no_grad(), mock.patch("torch.multinomial", draw):
        out = model.generate(**args, **settings(case))
    new = out.sequences[:, model.prompt_length:]
    if case["beams"] > 1:
        steps = model.compute_transition_scores(out.sequences, out.scores, out.beam_indices, normalize_logits=False)
    else:
        logp = torch.stack(out.logits, 1).log_softmax(-1)       # (R, steps, V)
        steps = logp.gather(-1, new[..., None])[..., 0]
    answers = []
    for r, row in enumerate(new.tolist()):
        stopped = case["eos"] in row
        n = row.index(case["eos"]) if stopped else len(row)
        logprobs = steps[r, :n + stopped].tolist()
        score = out.sequences_scores[r].item() if case["beams"] > 1 else sum(logprobs)
        answers.append((stopped, score, row[:n], logprobs))
    return answers, draw.nearest


def truth(case, models):
    """All answers to a case; prompts of equal length go through transformers as one batch."""
    prompts = case["prompts"]
    if len({len(p[1]) for p in prompts}) == 1:
        return answers_of(case, prompts, models)
    answers, nearest = [], 1.0
    for p in prompts:
        a, d = answers_of(case, [p], models)
        answers += a
        nearest = min(nearest, d)
    return answers, nearest


# ---------------------------------------------------------------------------------------------------------
# The C program

class Program:
    def __init__(self, path):
        self.p = subprocess.Popen([path, "--driver"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def ask(self, lines, n):
        """n lines of answers"""
        self.p.stdin.write("\n".join(lines) + "\n")
        self.p.stdin.flush()
        out = [self.p.stdout.readline() for _ in range(n)]
        if not all(out):
            raise SystemExit(f"FAIL the program stopped at {lines}")
        return out

    def answers(self, case):
        got = []
        for line in self.ask(lines_of(case), len(case["prompts"]) * case["captions"]):
            left, right = line.split("|")
            sound, stopped, score, *tokens = left.split()
            got.append((sound == "1", stopped == "1", float(score), list(map(int, tokens)),
                        list(map(float, right.split()))))
        return got


def compare(t, case, want, got, worst):
    """Counts token ids that differ as failures; `worst` collects the largest errors."""
    for i, (w, g) in enumerate(zip(want, got)):
        t.expect(g[0] and (g[1], g[3]) == (w[0], w[2]), f"answer {i} of {lines_of(case)}: {g[1:4]}, expected {w[:3]}")
        e = abs(g[2] - w[1]) / (1 + abs(w[1]))
        t.expect(e < SCORE_BOUND, f"answer {i} of {lines_of(case)}: score {g[2]}, expected {w[1]}")
        worst["score"] = max(worst["score"], e)
        worst["equal"] += g[2] == w[1]
        worst["answers"] += 1
        if len(g[4]) == len(w[3]):
            e = max(abs(a - b) / (1 + abs(b)) for a, b in zip(g[4], w[3]))
            worst["logprob"] = max(worst["logprob"], e)
            t.expect(e < LOGPROB_BOUND, f"answer {i} of {lines_of(case)}: log-probabilities {g[4]}, expected {w[3]}")
        else:
            t.expect(False, f"answer {i} of {lines_of(case)}: {len(g[4])} log-probabilities")


def check_cases(t, n, program, models):
    """n cases of beams and greedy, n / 2 of sampling. Returns them with their answers."""
    rng = random.Random(5)
    worst = dict(score=0.0, logprob=0.0, equal=0, answers=0)
    seen = dict(cases=0, beams=0, middle=0, unlike_greedy=0, cut=0, several=0, near=0, no_repeat=0, repeats=0)
    done = []
    for i in range(n + n // 2):
        case = random_case(rng, i >= n)
        want, nearest = truth(case, models)
        if nearest < NEAR:
            seen["near"] += 1
            t.skipped += 1
            continue
        compare(t, case, want, program.answers(case), worst)
        done.append((case, want))
        seen["cases"] += 1
        seen["middle"] += any(w[0] and 1 < len(w[2]) < case["max_new"] - 1 for w in want)
        seen["cut"] += any(not w[0] for w in want)
        if case["no_repeat"]:
            seen["no_repeat"] += 1
            seen["repeats"] += truth(dict(case, no_repeat=0), models)[0][0][2] != want[0][2]
        if case["beams"] > 1:
            seen["beams"] += 1
            seen["several"] += len({tuple(w[2]) for w in want[:case["captions"]]}) > 1
            greedy, _ = truth(dict(case, beams=1, captions=1), models)
            seen["unlike_greedy"] += greedy[0][2] != want[0][2]
    print(f"answers: {worst['answers']}, of these {worst['equal']} with the very same score; largest error: "
          f"score {worst['score']:.1e}, log-probability {worst['logprob']:.1e}; {seen}")
    for name, share in (("middle", 4), ("cut", 5), ("unlike_greedy", 6), ("several", 4), ("repeats", 10)):
        t.expect(seen[name] * share > seen["cases"], f"too few cases show something: {name}, {seen}")
    # Control: answers to another case must not pass.
    bad = Tally()
    bad.expect = lambda ok, what: setattr(bad, "passed" if ok else "failed", 1)
    compare(bad, done[0][0], done[0][1], program.answers(done[1][0]), dict(worst))
    t.expect(bad.failed, "the comparison cannot fail")
    return done


def check_tiny_vocabularies(t, program, models):
    """2K >= V: fewer answers than beams. Transformers fills up with copies, whose scores start at -1e9; here nothing
    is found in their place."""
    rng = random.Random(6)
    checked = left = 0
    for _ in range(150):
        case = random_case(rng, False, [0])
        case.update(V=rng.randint(2, 9), beams=rng.randint(2, 7))
        case.update(eos=rng.randrange(case["V"]), pad=rng.randrange(case["V"]), captions=case["beams"])
        case["prompts"] = [(salt, [i % case["V"] for i in ids]) for salt, ids in case["prompts"]]
        if case["length_penalty"] < 0:
            case["length_penalty"] = 0.0
        want, _ = truth(case, models)
        got = program.answers(case)
        for w, g in zip(want, got):
            if w[1] < -1e5:
                left += 1
                t.expect(g[2] <= -1e9 and g[3] == [] and not g[1], f"{lines_of(case)}: {g} instead of nothing")
                continue
            checked += 1
            t.expect((g[1], g[3]) == (w[0], w[2]) and abs(g[2] - w[1]) < SCORE_BOUND * (1 + abs(w[1])),
                     f"tiny vocabulary: {g}, expected {w} of {lines_of(case)}")
    print(f"vocabularies of 3 to 9 words: {checked} answers, {left} placeholders")
    t.expect(checked > 300 and left > 20, "too few answers")


# ---------------------------------------------------------------------------------------------------------
# What the real classes hand to the search

class Stop(Exception):
    pass


def check_prompt_lengths(t):
    """The OPT search starts with placeholders, BOS and prompt in input_ids; the T5 search with the start token."""
    tower = dict(hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2)
    text = {
        "opt": dict(model_type="opt", vocab_size=60, hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
                    ffn_dim=32, word_embed_proj_dim=16, max_position_embeddings=64, bos_token_id=2, eos_token_id=5,
                    pad_token_id=1),
        "t5": dict(model_type="t5", vocab_size=60, d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2,
                   decoder_start_token_id=0, eos_token_id=1, pad_token_id=0, bos_token_id=1)}
    for kind, config in text.items():
        for beams in (1, 3):
            model = Blip2ForConditionalGeneration(Blip2Config(
                vision_config=dict(tower, image_size=28, patch_size=14), text_config=config, num_query_tokens=4,
                qformer_config=dict(tower, vocab_size=30, encoder_hidden_size=16), image_token_index=59)).eval()
            seen = {}

            def spy(_, input_ids, logits_processor, stopping_criteria, generation_config, **kwargs):
                seen.update(ids=input_ids.tolist(), config=generation_config,
                            processors=[type(p).__name__ for p in logits_processor])
                raise Stop

            lm = type(model.language_model)
            ids = [59] * 4 + [2, 7, 8]
            with mock.patch.object(lm, "_sample", spy), mock.patch.object(lm, "_beam_search", spy):
                try:
                    model.generate(pixel_values=torch.zeros(1, 3, 28, 28), input_ids=torch.tensor([ids]),
                                   attention_mask=torch.ones(1, len(ids)).long(), num_beams=beams, max_new_tokens=9,
                                   min_new_tokens=2, repetition_penalty=1.5, no_repeat_ngram_size=2)
                except Stop:
                    pass
            start = ids if kind == "opt" else [0]
            t.expect(seen.get("ids") == [start] * beams, f"{kind}: the search starts with {seen.get('ids')}")
            t.expect(seen["config"].max_length == len(start) + 9, f"{kind}: max_length {seen['config'].max_length}")
            t.expect(seen["processors"] == ["RepetitionPenaltyLogitsProcessor", "NoRepeatNGramLogitsProcessor",
                                            "MinLengthLogitsProcessor", "MinNewTokensLengthLogitsProcessor"],
                     f"{kind}: {seen['processors']}")
            t.expect(seen["config"].min_length == len(start) + 2, f"{kind}: min_length {seen['config'].min_length}")


# ---------------------------------------------------------------------------------------------------------
# Sampling's parts

def warped(logits, temp, top_k, top_p):
    """(V) float32 -> probabilities after transformers' warpers, and how close a token came to the edge of top-p"""
    x, edge = logits[None], 1.0
    if temp != 1:
        x = logits_process.TemperatureLogitsWarper(temp)(None, x)
    if top_k:
        x = logits_process.TopKLogitsWarper(top_k)(None, x)
    if top_p < 1:
        total = x.sort(descending=False)[0].softmax(-1).cumsum(-1)
        edge = (total[total > 0] - (1 - top_p)).abs().min().item()
        x = logits_process.TopPLogitsWarper(top_p)(None, x)
    return x.softmax(-1)[0], edge


def check_filters(t, n, program):
    rng = random.Random(7)
    worst, near, kept_less, ties, picks = 0.0, 0, 0, 0, 0
    for i in range(n):
        V = rng.choice([2, 5, 33, 200, 1000]) if i % 20 else 50304
        gen = torch.Generator().manual_seed(rng.getrandbits(40))
        logits = torch.randn(V, generator=gen) * rng.choice([0.1, 1.0, 3.0, 8.0]) + rng.choice([0.0, -20.0, 30.0])
        kind = rng.randrange(4)
        if kind == 1:                                   # many equal ones, 0 and -0 among them
            logits = (logits.round() * 0.5)
            logits[::3] *= -0.0
        if kind == 2:
            logits[torch.rand(V, generator=gen) < 0.5] = -float("inf")
            logits[rng.randrange(V)] = 1.0
        temp = rng.choice([1.0, 1.0, 0.7, 1.3, 0.1, 5.0])
        top_k = rng.choice([0, 0, 1, 3, 50, 500, V, V + 1])
        top_p = rng.choice([1.0, 0.9, 0.9, 0.5, 0.95, 0.05, 0.001, 0.9999])
        u = philox(11, i, 0)
        want, edge = warped(logits, temp, top_k, top_p)
        [line] = program.ask([f"filter {temp!r} {top_k} {top_p!r} {u!r} " + " ".join(
            np.format_float_scientific(x, unique=True) for x in logits.numpy())], 1)
        pick, *probs = line.split()
        got = torch.tensor(list(map(float, probs)))
        # torch.sort says nothing about which of several equal logits top-p drops; here it is the smallest ids.
        drawn = torch.equal(got > 1e-30, want > 1e-30)
        if kind == 1 and not drawn:
            got, want = got.sort()[0], want.sort()[0]
        # Probabilities below 1e-30 may be 0 here: exp ends at e^-87.7.
        same = torch.equal(got > 1e-30, want > 1e-30)
        if not same and edge < NEAR:
            near += 1
            t.skipped += 1
            continue
        label = f"filter {i}: V {V}, temp {temp}, top-k {top_k}, top-p {top_p}, edge {edge:.1e}"
        t.expect(same, f"{label}: keeps {int((got > 1e-30).sum())}, expected {int((want > 1e-30).sum())}")
        big = want > 1e-30
        e = ((got - want)[big] / want[big]).abs().max().item() if same else 0
        worst = max(worst, e)
        t.expect(e < PROB_BOUND, f"{label}: probabilities are off by {e}")
        if drawn:
            total = want.double().cumsum(-1)
            first = min(int((total <= u).sum()), int(want.nonzero().max()))
            ok = int(pick) == first or (total - u).abs().min().item() < NEAR * 10
            t.expect(ok, f"{label}: picks {pick}, expected {first}")
            picks += 1
        kept_less += int(big.sum()) < V
        ties += kind == 1
    print(f"filters: {n} cases, {kept_less} that remove something, {ties} with ties, {picks} picks, "
          f"{near} too near the edge; largest relative error {worst:.1e}")
    t.expect(near < n / 50 and kept_less > n / 2 and picks > n / 2, "too few filter cases show something")
    for i in range(300):
        at = (rng.getrandbits(64), rng.getrandbits(rng.choice([3, 40, 64])), rng.getrandbits(rng.choice([4, 64])))
        got = float(np.float32(program.ask(["uniform %d %d %d" % at], 1)[0]))
        t.expect(got == philox(*at), f"uniform {at}: {got}, expected {philox(*at)}")


# ---------------------------------------------------------------------------------------------------------

def write_goldens(path, cases):
    """Some of the cases with their answers, for test_generate.c."""
    text = ["# Answers of transformers to the fake model of test_generate.c; python test/parity_generate.py"
            " --write-goldens"]
    beams = [c for c in cases if not c[0]["sample"]][:75]
    sampled = [c for c in cases if c[0]["sample"]][:25]
    for case, want in beams + sampled:
        text += lines_of(case)
        for stopped, score, tokens, _ in want:
            text.append(" ".join(["answer", str(int(stopped)), f"{score:.9g}", *map(str, tokens)]))
    with open(path, "w", encoding="ascii") as f:
        f.write("\n".join(text) + "\n")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--program", default="build/test_generate")
    parser.add_argument("--n", type=int, default=900)
    parser.add_argument("--write-goldens", metavar="FILE")
    args = parser.parse_args()
    np.seterr(over="ignore")
    torch.set_num_threads(1)
    logging.set_verbosity_error()       # "length_penalty may be ignored" by greedy search
    program, t = Program(args.program), Tally()
    models = {}
    for t5, kind in ((False, Fake), (True, FakeSeq2Seq)):
        models[t5] = kind(FakeConfig(is_encoder_decoder=t5, num_hidden_layers=1)).eval()
    cases = check_cases(t, args.n, program, models)
    check_tiny_vocabularies(t, program, models)
    check_prompt_lengths(t)
    check_filters(t, 600, program)
    if args.write_goldens:
        write_goldens(args.write_goldens, cases)
    print(f"{t.passed} passed, {t.failed} failed, {t.skipped} skipped")
    return 1 if t.failed else 0


if __name__ == "__main__":
    sys.exit(main())
