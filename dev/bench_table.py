"""The report of dev/bench.py: tables, the targets beside what was reached, and a picture.

In order: how much work a stage is, choosing from the record, the tables, targets, the picture, publishing. Every time
is the minimum of the rounds with the median behind it; a share of a ceiling is that of the fastest run, with the ceiling
read beside that run; peaks of memory are the most. Not here: measuring.
"""

import statistics

PEERS = ["transformers-bf16", "transformers-f32", "ctranslate2-int8"]
BYTES = {"f32": 4, "bf16": 2, "int8": 1, "int4": 0.5625}     # int4 with its scales
STAGES = ["load", "vit", "qformer", "prompt", "decode", "caption"]
SAY = {"vit": "ViT", "qformer": "Q-Former", "decode": "decode, a token", "caption": "caption"}
BEGIN, END = "<!-- {}: written by dev/bench.py -->", "<!-- end of the table -->"
LANGUAGE = ("prompt", "decode", "caption")     # stages that half of the language model's layers make shorter
PROMPT_TOKENS = 4                              # of "a photo of"

# ---------------------------------------------------------------------------------------------------------------------
# A product of (T,C) and (OC,C) is 2*T*C*OC operations, and reads OC*C weights.


def work_of(config):
    """config.json -> {stage: (operations, weights read)}. `decode` is one token of one row; a row more costs operations
    only."""
    v, q, t = config["vision_config"], config["qformer_config"], config["text_config"]
    n = (v["image_size"] // v["patch_size"]) ** 2 + 1
    dv, dq, queries = v["hidden_size"], q["hidden_size"], config["num_query_tokens"]
    patch, block = 3 * v["patch_size"] ** 2 * dv, dv * (4 * dv + 2 * v["intermediate_size"])
    vit = patch + v["num_hidden_layers"] * block
    vit_ops = 2 * n * vit + v["num_hidden_layers"] * 4 * n * n * dv
    layers, crossing = q["num_hidden_layers"], -(-q["num_hidden_layers"] // q["cross_attention_frequency"])
    qf_rows = layers * dq * (4 * dq + 2 * q["intermediate_size"]) + crossing * 2 * dq * dq
    qf_cross = crossing * 2 * dq * dv
    rows = queries + PROMPT_TOKENS
    if t["model_type"] == "t5":
        d, inner, ff = t["d_model"], t["num_heads"] * t["d_kv"], 3 * t["d_model"] * t["d_ff"]
        encoder, cross_kv = t["num_layers"] * (4 * d * inner + ff), t["num_decoder_layers"] * 2 * d * inner
        step = t["num_decoder_layers"] * (6 * d * inner + ff) + t["vocab_size"] * d
        prompt = 2 * rows * (encoder + cross_kv) + 2 * step, encoder + cross_kv + step
    else:
        d = t["hidden_size"]
        body, head = t["num_hidden_layers"] * d * (4 * d + 2 * t["ffn_dim"]), t["vocab_size"] * d
        step = body + head
        prompt = 2 * rows * body + 2 * head, step
    return {"vit": (vit_ops, vit), "qformer": (2 * (queries * qf_rows + n * qf_cross), qf_rows + qf_cross),
            "prompt": prompt, "decode": (2 * step, step)}


# ---------------------------------------------------------------------------------------------------------------------


def ours(engine):
    """Whether it is ./blip2."""
    return engine.startswith("blip2-")


def dtype_of(engine):
    """blip2-bf16+ISA -> bf16"""
    return engine.split("-", 1)[1].split("+")[0]


def dtype_order(engine):
    """A key to sort by: wide weights first, forced instruction sets behind the default."""
    return [*BYTES].index(dtype_of(engine)), engine


class Record:
    """A record with the questions that the report asks."""

    def __init__(self, known):
        self.known, self.head, self.work = known, known["head"], work_of(known["head"]["config"])
        self.threads = sorted({r["threads"] for r in known["runs"]}, reverse=True)
        self.beams = self.head["beams"]

    def times(self, engine, threads, beams, stage):
        """All seconds of one kind; stages before the prompt do not depend on the beams."""
        whole = stage in LANGUAGE and not self.half(engine)
        wanted = (1, self.beams) if stage in ("load", "vit", "qformer") else (beams,)
        return [r[stage] for r in self.known["runs"] if r["engine"] == engine and r["threads"] == threads and
                r["beams"] in wanted and stage in r and not (whole and r.get("half"))]

    def best(self, engine, threads, beams, stage):
        """The least of them, or None; None also where only half of the language model ran."""
        times = self.times(engine, threads, beams, stage)
        return min(times) if times and not (stage in LANGUAGE and self.half(engine)) else None

    def half(self, engine):
        """Whether this peer ran with half of the language model's layers only, never with all."""
        return all(r.get("half") for r in self.known["runs"] if r["engine"] == engine)

    def engines(self, threads):
        """Those that were measured at so many threads, ours first."""
        have = {r["engine"] for r in self.known["runs"] if r["threads"] == threads}
        return sorted((e for e in have if ours(e)), key=dtype_order) + [e for e in PEERS if e in have]

    def ceiling(self, threads, key):
        """The best reading, or 0."""
        return max((c.get(key, 0) for c in self.known["ceilings"] if c["threads"] == threads), default=0)

    def share(self, engine, threads, stage):
        """What the fastest run of a greedy stage reached of the ceiling that binds it, f32 multiply-adds or reading the
        weights -> (share, which). The ceiling is the one of that run; only decoding is another with beams."""
        ops, weights = self.work[stage]
        beams = (1,) if stage == "decode" else (1, self.beams)
        runs = [r for r in self.known["runs"] if (r["engine"], r["threads"]) == (engine, threads) and
                r["beams"] in beams and stage in r]
        if not runs:
            return 0, ""
        run = min(runs, key=lambda r: r[stage])
        floor, which = max((ops / run["multiply_ceiling"], "multiply"),
                           (weights * BYTES[dtype_of(engine)] / run["read_ceiling"], "read"))
        return floor / run[stage], which

    def peer(self, threads, beams, stage):
        """Seconds of the faster transformers, or None."""
        return min((t for e in PEERS[:2] if (t := self.best(e, threads, beams, stage))), default=None)


def table(r, threads):
    """The times at one number of threads, as lines."""
    engines = r.engines(threads)
    peaks = [r.ceiling(threads, key) / 1e9 for key in ("multiply", "multiply_bf16", "multiply_int8")]
    reads = [c["read"] / 1e9 for c in r.known["ceilings"] if c["threads"] == threads] or [0]
    narrow = f", {peaks[1]:.0f} in bf16, {peaks[2]:.0f} GOP/s in int8" if peaks[1] else ""
    lines = ["", f"{threads} thread{'s' * (threads > 1)}; ceilings: read {min(reads):.1f} to "
             f"{max(reads):.1f} GB/s, median {statistics.median(reads):.1f}; multiply-adds at best {peaks[0]:.0f} "
             f"GFLOP/s in f32{narrow}.", "",
             "| seconds | " + " | ".join(e.replace("-", " ") for e in engines) + " |",
             "|---" * (len(engines) + 1) + "|"]
    for beams in 1, r.beams:
        for stage in STAGES if beams == 1 else LANGUAGE:
            cells = []
            for e in engines:
                times = r.times(e, threads, beams, stage)
                mark = " *" if times and stage in LANGUAGE and r.half(e) else ""
                cells.append(f"{min(times):.3f} ({statistics.median(times):.3f}){mark}" if times else "")
            how = f", {r.beams} beams" if beams > 1 else ", greedy" if stage in LANGUAGE else ""
            name = SAY.get(stage, stage) + how
            lines.append(f"| {name} | {' | '.join(cells)} |")
    peaks = [max(x["peak"] for x in r.known["runs"] if x["engine"] == e) / 1e9 for e in engines]
    lines.append("| peak memory, GB | " + " | ".join(f"{p:.2f}" for p in peaks) + " |")
    for stage in "vit", "prompt", "decode":
        cells = []
        for e in engines:
            share, which = r.share(e, threads, stage) if ours(e) else (0, "")
            cells.append(f"{share:.0%} of {which}" if share else "")
        lines.append(f"| {SAY.get(stage, stage)}: share of the ceiling | {' | '.join(cells)} |")
    for beams in 1, r.beams:
        peer, cells = r.peer(threads, beams, "caption"), []
        for e in engines:
            best = r.best(e, threads, beams, "caption") if ours(e) else None
            cells.append(f"{peer / best:.2f}" if best and peer else "")
        how = "greedy" if beams == 1 else f"{beams} beams"
        lines.append(f"| caption, {how}: times as fast as the faster transformers | {' | '.join(cells)} |")
    return lines


# ---------------------------------------------------------------------------------------------------------------------


def targets(r):
    """The issue's targets at the most threads: [(what, wanted, reached, met)], only what was measured."""
    t, out = max(r.threads), []

    def add(what, wanted, value, met, form):
        if value:
            out.append((what, wanted, form.format(value), met(value)))
    for dtype, least in ("bf16", 0.88), ("int8", 0.93), ("int4", 0.86):
        add(f"decode {dtype}, share of the read bandwidth", f"{least:.0%}", r.share(f"blip2-{dtype}", t, "decode")[0],
            lambda v, least=least: v >= least, "{:.0%}")
    one, many = (r.best("blip2-bf16", t, b, "decode") for b in (1, r.beams))
    add(f"a step of {r.beams} beams over a greedy one, bf16", "at most 1.25", one and many and many / one,
        lambda v: v <= 1.25, "{:.2f}")
    for stage in "vit", "prompt":
        add(f"{SAY.get(stage, stage)} bf16, share of the f32 multiply peak", "70%", r.share("blip2-bf16", t, stage)[0],
            lambda v: v >= 0.7, "{:.0%}")
        slow, fast = (r.best(f"blip2-{d}", t, 1, stage) for d in ("bf16", "int8"))
        add(f"{SAY.get(stage, stage)} int8, times as fast as bf16", "1.5", slow and fast and slow / fast,
            lambda v: v >= 1.5, "{:.2f}")
    peer = r.peer(t, r.beams, "caption")
    for dtype, least in ("bf16", 5), ("int8", 8):
        best = r.best(f"blip2-{dtype}", t, r.beams, "caption")
        add(f"caption, {r.beams} beams, {dtype}, times as fast as the faster transformers", f"{least} (set for AVX2)",
            peer and best and peer / best, lambda v, least=least: v >= least, "{:.2f}")
    other, best = r.best(PEERS[2], t, 1, "decode"), r.best("blip2-int8", t, 1, "decode")
    add("decode int8, times as fast as CTranslate2's int8", "2", other and best and other / best, lambda v: v >= 2,
        "{:.2f}")
    runs = [x for x in r.known["runs"] if ours(x["engine"])]
    late = [x["first"] - sum(x.get(s, 0) for s in ("image", "vit", "qformer", "prompt")) for x in runs if "first" in x]
    add("start to first token above the stages' own time, s", "at most 0.3", late and min(late), lambda v: v <= 0.3,
        "{:.2f}")
    over = [x["peak"] - x["file"] for x in runs]
    add("peak memory above the file's size, MB", "at most 500", over and max(over) / 1e6, lambda v: v <= 500, "{:.0f}")
    return out


def report(r):
    """All lines."""
    h = r.head
    counts = [len([x for x in r.known["runs"] if x["engine"] == e and x["threads"] == t and x["beams"] == 1])
              for t in r.threads for e in r.engines(t)]
    rounds = f"{min(counts)}" if min(counts) == max(counts) else f"{min(counts)} to {max(counts)}"
    held = f" Everything held to the instructions of {h['isa'].upper()}." if h.get("isa") else ""
    lines = ["", f"{h['machine']}; {h['model']}, {h['tokens']} new tokens, commit {h['commit']}. Minimum (median) of "
             f"{rounds} round{'s' * (rounds != '1')}, engines in turns.{held}"]
    for t in r.threads:
        lines += table(r, t)
    if any(r.half(e) for e in r.engines(max(r.threads))):
        lines += ["", "\\* with half of the language model's layers, for lack of memory; counts in no ratio."]
    for unit, why in r.known["left_out"].items():
        lines += ["", f"Left out: {unit.replace('-', ' ', 1)}: {why}."]
    lines += ["", f"Targets, {max(r.threads)} threads:", "", "| | wanted | measured | |", "|---|---|---|---|"]
    for what, wanted, value, met in targets(r):
        lines.append(f"| {what} | {wanted} | {value} | {'met' if met else 'missed'} |")
    return lines


# ---------------------------------------------------------------------------------------------------------------------


def picture(r, path):
    """Bars of a whole caption with beams by stage, and of a decode step."""
    import matplotlib
    matplotlib.use("Agg")
    from matplotlib import pyplot
    t, beams = max(r.threads), r.beams
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(11, 3.6), layout="constrained")
    whole = [e for e in r.engines(t) if r.best(e, t, beams, "caption")][::-1]
    at = [0.0] * len(whole)
    for stage, colour in ("vit", "#4c72b0"), ("qformer", "#8172b3"), ("prompt", "#55a868"), ("decode", "#dd8452"):
        times = [r.best(e, t, beams, stage) * (r.head["tokens"] - 1 if stage == "decode" else 1) for e in whole]
        left.barh([e.replace("-", " ") for e in whole], times, left=at, color=colour,
                  label=SAY.get(stage, stage).split(",")[0])
        at = [a + b for a, b in zip(at, times)]
    for i, total in enumerate(at):
        left.text(total, i, f" {total:.1f}", va="center")
    left.set(title=f"a caption of {r.head['tokens']} tokens, {beams} beams: seconds", xlim=(0, 1.12 * max(at)))
    left.legend(loc="upper center", bbox_to_anchor=(0.5, -0.08), ncols=4, frameon=False)
    steps = [e for e in r.engines(t) if r.best(e, t, 1, "decode")][::-1]
    rates = [1 / r.best(e, t, 1, "decode") for e in steps]
    right.barh([e.replace("-", " ") for e in steps], rates, color="#dd8452")
    for i, rate in enumerate(rates):
        right.text(rate, i, f" {rate:.1f}", va="center")
    right.set(title="greedy decoding: tokens a second", xlim=(0, 1.15 * max(rates)))
    figure.suptitle(f"{r.head['model']}, {t} threads, {r.head['machine'].split(' (')[0]}, commit {r.head['commit']}",
                    fontsize=10)
    figure.savefig(path, dpi=90)


def publish(known, markdown, section, drawing):
    """Prints the report, puts it between the section's marks in a file, which must have them, and draws the picture."""
    begin = BEGIN.format(section)
    r = Record(known)
    lines = report(r)
    print("\n".join(lines))
    if markdown:
        text = markdown.read_text()
        if begin not in text or END not in text.split(begin, 1)[1]:
            raise SystemExit(f"{markdown}: the marks '{begin}' and '{END}' are missing")
        before, rest = text.split(begin, 1)
        markdown.write_text(before + begin + "\n" + "\n".join(lines) + "\n" + END + rest.split(END, 1)[1])
    if drawing:
        picture(r, drawing)
