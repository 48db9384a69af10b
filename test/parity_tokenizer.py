"""Compares the C tokenizers with `tokenizers` and `transformers` on thousands of texts and id sequences.

In order: random texts, driving the C program, the cases (tiny tokenizers in every file form, tokenizers with
unusual added tokens, a charsmap that shows grapheme boundaries, the real OPT and T5 files), ids known from
elsewhere, what the exporter must refuse.

Run:  python test/parity_tokenizer.py [--tokenizers FOLDER] [--program build/test_tokenizer] [--n 1500]
FOLDER holds opt/vocab.json, opt/merges.txt, t5/tokenizer.json and t5/spiece.model; what is missing is skipped
and counted. Prints the tally and exits 1 on any difference.
"""

import argparse
import base64
import json
import logging
import random
import shutil
import struct
import subprocess
import sys
import tempfile
from pathlib import Path

from tokenizers import Tokenizer
from transformers import GPT2Tokenizer, T5Tokenizer, TokenizersBackend

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "export"))
from tokenizer import TokenizerError, read_tokenizer  # noqa: E402

TINY = ROOT / "test" / "data" / "tokenizers"
ARGS = None
TALLY = {"passed": 0, "failed": 0, "skipped": 0}

# ---------------------------------------------------------------------------------------------------------
# Texts

WORDS = ("a photo of the cat dog two people standing next to Question: what color is this? Short answer: "
         "it's don't we'll they're I've I'd I'm IT'S 3.14 2024 hello, world! (maybe) -- def f(x): return "
         "x**2 {'k': [1, 2]} "
         "na\u00efve caf\u00e9 \u00fcber stra\u00dfe Gr\u00f6\u00dfe").split()
SPACES = [" ", "  ", "   ", "\n", "\n\n", "\t", "\r\n", "\r", "\u00a0", "\u3000", "\u2003", "\u200b",
          "\u2028", "\u0085", "\x0b", "\x0c", "\u1680", "\ufeff", "\u180e"]
SPECIALS = ["</s>", "<pad>", "<s>", "<unk>", "<extra_id_0>", "<extra_id_5>", "<extra_id_99>",
            "<extra_id_100>", "</s", "<|endoftext|>", "<mask>", "<<pad>>", "<extra_id_", "\uff1cpad\uff1e",
            "</S>", " </s> ", "\u2581"]
RANGES = {
    "cjk": [(0x4E00, 0x9FFF), (0x3040, 0x30FF), (0xAC00, 0xD7A3), (0x20, 0x20)],
    "arabic": [(0x600, 0x6FF), (0x660, 0x669), (0xFB50, 0xFDFF), (0xFE70, 0xFEFF), (0x20, 0x20)],
    "marks": [(0x300, 0x36F), (0x61, 0x7A), (0x41, 0x5A), (0x900, 0x97F), (0xE31, 0xE4E), (0x20D0, 0x20F0),
              (0x20, 0x20)],
    "emoji": [(0x1F300, 0x1FAFF), (0x2600, 0x27BF), (0x1F1E6, 0x1F1FF), (0xFE0F, 0xFE0F), (0x200D, 0x200D),
              (0x1F3FB, 0x1F3FF), (0x20, 0x20)],
    "control": [(0x0, 0x1F), (0x7F, 0x9F), (0x61, 0x66), (0x20, 0x20)],
    "compatibility": [(0xFB00, 0xFB06), (0xFF00, 0xFFEF), (0x2460, 0x24FF), (0x2070, 0x209C),
                      (0x2100, 0x218B), (0x3300, 0x33FF), (0x1D400, 0x1D7FF), (0xF900, 0xFAFF), (0x20, 0x20)],
    "jamo": [(0x1100, 0x11FF), (0xA960, 0xA97C), (0xD7B0, 0xD7FB), (0xAC00, 0xAC40), (0x300, 0x310)],
    "prepend": [(0x600, 0x605), (0x6DD, 0x6DD), (0x70F, 0x70F), (0x890, 0x891), (0x8E2, 0x8E2),
                (0x110BD, 0x110BD), (0x61, 0x64), (0x300, 0x303), (0x340, 0x345), (0x200C, 0x200D),
                (0xA9, 0xA9), (0xAE, 0xAE), (0xD, 0xD), (0xA, 0xA)],
    "latin": [(0xA0, 0x24F), (0x370, 0x3FF), (0x400, 0x4FF), (0x20, 0x20)],
    "ascii": [(0x20, 0x7E)],
    "punctuation": [(0x21, 0x2F), (0x3A, 0x40), (0x5B, 0x60), (0x7B, 0x7E), (0x2010, 0x205E), (0x20, 0x20)],
    "any": [(0x0, 0xD7FF), (0xE000, 0x10FFFF)],
}


def random_text(rng):
    """One random text; every kind comes up about equally often."""
    kind = rng.choice([*RANGES, "words", "words", "spaces", "specials", "bytes", "mix"])
    n = rng.choice([1, 2, 3, 5, 8, 20, 60])
    if kind == "words":
        return "".join(rng.choice(WORDS) + rng.choice([" ", " ", " ", "", "\n", "  "]) for _ in range(n))
    if kind == "spaces":
        return "".join(rng.choice(SPACES + ["a", "x1", "'s", "!"]) for _ in range(n))
    if kind == "specials":
        parts = SPECIALS + WORDS[:9] + SPACES[:4] + ["e\u0301", "\ufb01"]
        return "".join(rng.choice(parts) for _ in range(n))
    if kind == "bytes":
        return bytes(rng.randrange(256) for _ in range(n)).decode("utf-8", errors="replace")
    if kind == "mix":
        return "".join(random_text(rng) for _ in range(2))
    text = []
    for _ in range(n):
        low, high = rng.choice(RANGES[kind])
        cp = rng.randint(low, high)
        text.append(chr(cp if not 0xD800 <= cp < 0xE000 else 0x41))
    return "".join(text)


# ---------------------------------------------------------------------------------------------------------
# The C program


def run(mode, blob, V, records):
    """What the program answers to the records, parsed."""
    with tempfile.NamedTemporaryFile(suffix=".tok") as file:
        file.write(blob)
        file.flush()
        data = b"".join(struct.pack("<I", n) + body for n, body in records)
        command = [ARGS.program, mode, file.name, str(V)]
        done = subprocess.run(command, input=data, stdout=subprocess.PIPE, check=True)
    lines = done.stdout.decode().split("\n")[:-1]
    assert len(lines) == len(records), f"{len(lines)} answers to {len(records)} records"
    return [json.loads(line) for line in lines]


def compare(what, inputs, got, want):
    """Counts agreements; prints the first few differences."""
    wrong = [i for i, (g, w) in enumerate(zip(got, want, strict=True)) if g != w]
    TALLY["passed"] += len(inputs) - len(wrong)
    TALLY["failed"] += len(wrong)
    for i in wrong[:3]:
        print(f"FAIL {what}: {inputs[i]!r}\n     got  {got[i]!r}\n     want {want[i]!r}", file=sys.stderr)
    print(f"{what}: {len(inputs) - len(wrong)} of {len(inputs)} agree")


def check(cond, what):
    TALLY["passed" if cond else "failed"] += 1
    if not cond:
        print(f"FAIL {what}", file=sys.stderr)


def case(name, folder, family, encode, decode, extra_texts=(), front=()):
    """One tokenizer: folder for our exporter, encode(texts) -> ids and decode(ids) -> text of the reference.
    front: ids that the reference does not put in front."""
    tok = read_tokenizer(folder, family)
    rng = random.Random(name)
    texts = [*extra_texts, *(random_text(rng) for _ in range(ARGS.n))]
    want = [[*front, *ids] for ids in encode(texts)]
    V = tok.n_ids + 20
    records = [(len(b), b) for b in map(str.encode, texts)]
    compare(f"{name}, encode", texts, run("--encode", tok.blob, V, records), want)
    sequences = want + [[rng.randrange(V) for _ in range(rng.randint(0, 40))] for _ in range(ARGS.n // 2)]
    records = [(len(ids), struct.pack(f"<{len(ids)}I", *ids)) for ids in sequences]
    want = [decode(ids) for ids in sequences]
    compare(f"{name}, decode", sequences, run("--decode", tok.blob, V, records), want)
    return tok


def by_transformers(tok):
    """encode and decode of a transformers tokenizer."""
    return (lambda texts: tok(texts).input_ids), (lambda ids: tok.decode(ids, skip_special_tokens=True))


def by_tokenizers(tok):
    """encode and decode of a tokenizers.Tokenizer."""
    return (lambda texts: [e.ids for e in tok.encode_batch(texts)]), tok.decode


# ---------------------------------------------------------------------------------------------------------
# Cases


def copy(folder, source, *names):
    """folder with the named files of source."""
    folder.mkdir(parents=True)
    for name in names:
        shutil.copy(source / name, folder)
    return folder


def edited(folder, source, edit):
    """folder with source's tokenizer.json after edit(dict) changed it."""
    folder.mkdir(parents=True)
    data = json.loads((source / "tokenizer.json").read_text(encoding="utf-8"))
    edit(data)
    (folder / "tokenizer.json").write_text(json.dumps(data), encoding="utf-8")
    return folder


def tiny_cases(tmp):
    """The tiny tokenizers in every form of file."""
    configs = ("tokenizer_config.json", "special_tokens_map.json")
    bpe, unigram = TINY / "bpe", TINY / "unigram"
    case("tiny bpe", bpe, "opt", *by_transformers(TokenizersBackend.from_pretrained(bpe)))
    files = copy(tmp / "vm", bpe, "vocab.json", "merges.txt", "added_tokens.json", *configs)
    # <image> is special to Blip2Processor and so to us, but not to the bare tokenizer of these files
    reference = GPT2Tokenizer.from_pretrained(files)
    reference.add_tokens(["<image>"], special_tokens=True)
    case("tiny bpe, vocab.json", files, "opt", *by_transformers(reference))

    tok = case("tiny unigram", unigram, "t5", *by_transformers(TokenizersBackend.from_pretrained(unigram)),
               clean_up_texts())
    check(tok.clean_up, "clean-up is on in the tiny unigram tokenizer")
    files = copy(tmp / "sp", unigram, "spiece.model", *configs)
    case("tiny spiece.model", files, "t5", *by_transformers(T5Tokenizer.from_pretrained(files)))
    files = copy(tmp / "sp2", unigram, "spiece.model")
    case("tiny spiece.model alone", files, "t5", *by_transformers(T5Tokenizer.from_pretrained(files)))


def clean_up_texts():
    """Texts full of what clean_up_tokenization replaces; U+2581 becomes a second space."""
    rng = random.Random(3)
    parts = [" .", " ?", " !", " ,", " ' ", " n't", " 'm", " 's", " 've", " 're", "n", "'", " ", "\u2581",
             "t", "v", "e", "r", "x", "\u00e9"]
    return ["x" + "".join(rng.choice(parts) for _ in range(rng.randint(1, 14))) for _ in range(ARGS.n)]


def odd_cases(tmp):
    """Added tokens with every flag, the later form of the normalizer, other decoder and template settings."""
    def flags(data):
        at = max(t["id"] for t in data["added_tokens"])
        off = dict(single_word=False, lstrip=False, rstrip=False, normalized=False, special=False)
        for k, (content, flag) in enumerate([("[L]", "lstrip"), ("[R]", "rstrip"), ("word", "single_word"),
                                             ("[N]", "normalized"), ("[L][R]", "special"),
                                             ("aq", "normalized"), (" sp", "special"),
                                             ("[N][N]x", "normalized")]):
            data["added_tokens"].append({"id": at + 1 + k, "content": content, **off, flag: True})

    rng = random.Random(5)
    parts = ["[L]", "[R]", "word", "[N]", "[N][N]x", "aq", " ", "  ", "\n", "\u00a0", "a", "\u00e9", "_",
             "\u0301", "!", " sp", "7", "\u65e5", "\ufb01", "\u200d", "</s>"]
    texts = ["".join(rng.choice(parts) for _ in range(rng.randint(1, 12))) for _ in range(ARGS.n)]
    for name, family in (("bpe", "opt"), ("unigram", "t5")):
        files = edited(tmp / f"flags-{name}", TINY / name, flags)
        reference = by_tokenizers(Tokenizer.from_file(str(files / "tokenizer.json")))
        case(f"tiny {name}, added tokens with flags", files, family, *reference, texts)

    def later(data):   # what transformers' SpmConverter has made since 2023
        strip = {"type": "Strip", "strip_left": False, "strip_right": True}
        squeeze = {"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": "\u2581"}
        data["normalizer"]["normalizers"][1:] = [strip, squeeze]
        data["decoder"]["prepend_scheme"] = data["pre_tokenizer"]["prepend_scheme"] = "never"
    files = edited(tmp / "later", TINY / "unigram", later)
    case("tiny unigram, Strip and never prepend", files, "t5",
         *by_tokenizers(Tokenizer.from_file(str(files / "tokenizer.json"))))

    def unsplit(data):
        data["normalizer"] = {"type": "Strip", "strip_left": True, "strip_right": True}
        data["pre_tokenizer"]["split"] = False
    files = edited(tmp / "unsplit", TINY / "unigram", unsplit)
    case("tiny unigram, not split", files, "t5",
         *by_tokenizers(Tokenizer.from_file(str(files / "tokenizer.json"))))

    def positive(data):   # two unknown characters beat the piece that they are
        raised = [[p, s + 1000] for p, s in data["model"]["vocab"][:-1]]
        data["model"]["vocab"] = raised + [["\u2603\u2603", 990.0]]
        data["added_tokens"] = [t for t in data["added_tokens"] if t["id"] < 409]
    files = edited(tmp / "positive", TINY / "unigram", positive)
    case("tiny unigram, positive scores", files, "t5",
         *by_tokenizers(Tokenizer.from_file(str(files / "tokenizer.json"))),
         ["\u2603" * n + tail for n in range(6) for tail in ("", " ", "\u2604", "x")])

    def older(data):   # merges as strings, a space in front, no token in front
        data["model"]["merges"] = [" ".join(m) for m in data["model"]["merges"]]
        data["pre_tokenizer"]["add_prefix_space"] = True
        data["post_processor"] = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": False,
                                  "use_regex": True}
    files = edited(tmp / "older", TINY / "bpe", older)
    case("tiny bpe, older file", files, "opt",
         *by_tokenizers(Tokenizer.from_file(str(files / "tokenizer.json"))), front=[2])

    def graphemes(data):   # every first byte becomes "a": the output shows the grapheme boundaries
        unit = [256 << 10] + [0] * 1023
        for b in range(1, 256):
            unit[256 + b] = 512 << 10 | 1 << 8 | b
            unit[768 + b] = 1 << 31
        charsmap = struct.pack("<I1024I", 4096, *unit) + b"a\0"
        data["normalizer"] = {"type": "Precompiled",
                              "precompiled_charsmap": base64.b64encode(charsmap).decode()}
        data["added_tokens"] = [t for t in data["added_tokens"] if len(t["content"]) < 6]
        data["model"]["vocab"] = [[p if p != "aa" else "aa-", s] for p, s in data["model"]["vocab"]]
    files = edited(tmp / "graphemes", TINY / "unigram", graphemes)
    starts = list("a\u0600\u00a9\r\n\x01\u0300\u200d\u0903\U0001f1e6\u1100\u1161\u11a8\uac00\uac01")
    case("graphemes", files, "t5", *by_tokenizers(Tokenizer.from_file(str(files / "tokenizer.json"))),
         [a + chr(b) for a in starts
          for b in [*range(1, 0x3000, 7), *range(0xA000, 0xD7FF, 31), *range(0xE000, 0x20000, 97)]]
         + ["".join(rng.choice(starts) for _ in range(rng.randint(2, 6))) for _ in range(20 * ARGS.n)])


def real_cases(tmp, folder):
    """The published files of OPT and T5; the ids are those of the papers' implementations."""
    opt, t5 = folder / "opt", folder / "t5"
    if (opt / "vocab.json").is_file() and (opt / "merges.txt").is_file():
        files = copy(tmp / "opt", opt, "vocab.json", "merges.txt")
        names = {"bos_token": "</s>", "eos_token": "</s>", "unk_token": "</s>", "pad_token": "<pad>"}
        config = {**names, "add_bos_token": True, "tokenizer_class": "GPT2Tokenizer"}
        (files / "tokenizer_config.json").write_text(json.dumps(config))
        tok = case("OPT", files, "opt", *by_transformers(GPT2Tokenizer.from_pretrained(files)))
        check(read_tokenizer(opt, "opt").blob == tok.blob, "OPT without its configuration files is the same")
        check(tok.ids["newline"] == 50118 and tok.ids["image"] == -1, f"OPT ids {tok.ids}")
        known(tok, {"A photo of a cat": [2, 250, 1345, 9, 10, 4758], "A photo of ": [2, 250, 1345, 9, 1437],
                    "": [2],
                    "the shirt is to the left of the door": [2, 627, 6399, 16, 7, 5, 314, 9, 5, 1883],
                    "Question: which city is this? Answer:": [2, 45641, 35, 61, 343, 16, 42, 116, 31652, 35],
                    "Question: how many cats are there? Answer:": [2, 45641, 35, 141, 171, 10017, 32, 89,
                                                                   116, 31652, 35],
                    "hello world": [2, 42891, 232], "a photo of": [2, 102, 1345, 9], "\n": [2, 50118],
                    " it's not a city": [2, 24, 18, 45, 10, 343]})
        (files / "added_tokens.json").write_text('{"<image>": 50265}')
        tok = read_tokenizer(files, "opt")
        check(tok.ids["image"] == 50265 and tok.ids["n_ids"] == 50266, f"OPT ids with <image>: {tok.ids}")
    else:
        TALLY["skipped"] += 1
        print(f"SKIP OPT: no {opt}/vocab.json and merges.txt", file=sys.stderr)
    if not (t5 / "tokenizer.json").is_file() or not (t5 / "spiece.model").is_file():
        TALLY["skipped"] += 1
        print(f"SKIP T5: no {t5}/tokenizer.json and spiece.model", file=sys.stderr)
        return
    case("T5", t5, "t5", *by_tokenizers(Tokenizer.from_file(str(t5 / "tokenizer.json"))))
    files = copy(tmp / "t5sp", t5, "spiece.model")
    case("T5 spiece.model", files, "t5", *by_transformers(T5Tokenizer.from_pretrained(files)))

    def flan(data):
        squeeze = {"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": " "}
        data["normalizer"] = {"type": "Sequence", "normalizers": [data["normalizer"], squeeze]}
        data["pre_tokenizer"] = data["pre_tokenizer"]["pretokenizers"][1]
        data["added_tokens"].append({**data["added_tokens"][0], "id": 32100, "content": "<image>"})
    files = edited(tmp / "flan", t5, flan)
    (files / "tokenizer_config.json").write_text('{"clean_up_tokenization_spaces": true}')
    tok = case("Flan-T5", files, "t5", *by_transformers(TokenizersBackend.from_pretrained(files)))
    check(tok.ids["image"] == 32100 and tok.ids["eos"] == 1 and tok.ids["pad"] == 0, f"Flan ids {tok.ids}")
    known(tok, {"\n": [3, 1], " ": [3, 1], "a photo of ": [3, 9, 1202, 13, 3, 1], "": [1],
                "  a  photo\tof\n\na cat ": [3, 9, 1202, 13, 3, 9, 1712, 3, 1], "</s> hi": [1, 7102, 1],
                "<image> hi": [32100, 7102, 1], "a photo of": [3, 9, 1202, 13, 1],
                "Question: which city is this? Answer:": [11860, 10, 84, 690, 19, 48, 58, 11801, 10, 1],
                "Question: how many cats are there? Answer:": [11860, 10, 149, 186, 10003, 33, 132, 58, 11801,
                                                               10, 1],
                "Question: {} Short answer:": [11860, 10, 3, 2, 7110, 1525, 10, 1],
                "\ufb01nest \u2460\uff12 \uff46\uff4f\uff4f \u00e9 na\u00efve": [6842, 586, 5575, 32, 3,
                                                                                 154, 3, 29, 9, 2, 162, 1],
                "\u65e5\u672c\u8a9e test": [3, 2, 794, 1]})


def known(tok, expected):
    """Ids that are written down elsewhere; a changed one must be noticed."""
    records = [(len(b), b) for b in map(str.encode, expected)]
    got = run("--encode", tok.blob, tok.n_ids, records)
    compare("known ids", list(expected), got, list(expected.values()))
    check(got[0] != [*expected.values()][0][:-1], "negative control")


def refusals(tmp):
    """What the exporter must not accept, and the words that its message needs."""
    bpe, unigram = TINY / "bpe", TINY / "unigram"

    def refused(name, family, source, edit, word):
        try:
            read_tokenizer(edited(tmp / f"refuse-{name}", source, edit), family)
            check(False, f"{name} was accepted")
        except TokenizerError as e:
            check(word in str(e), f"{name}: {e}")

    def put(key, value):
        return lambda data: data.update({key: value})

    refused("nfc", "t5", unigram, put("normalizer", {"type": "NFC"}), "NFC")
    replace = {"type": "Replace", "pattern": {"Regex": "x"}, "content": ""}
    refused("replace", "t5", unigram, put("normalizer", replace), "Replace")
    refused("digits", "opt", bpe, put("pre_tokenizer", {"type": "Digits"}), "Digits")
    refused("no-pre", "opt", bpe, put("pre_tokenizer", None), "pre-tokenizer")
    refused("decoder", "t5", unigram, put("decoder", {"type": "WordPiece", "prefix": "##"}), "WordPiece")
    refused("roberta", "opt", bpe, put("post_processor", {"type": "RobertaProcessing"}), "RobertaProcessing")
    refused("no-eos", "t5", unigram, put("post_processor", None), "post-processor")
    refused("family", "t5", bpe, lambda data: None, "kind")
    refused("wordpiece", "opt", bpe, put("model", {"type": "WordPiece", "vocab": {}}), "WordPiece")
    refused("dropout", "opt", bpe, lambda data: data["model"].update(dropout=0.1), "dropout")
    refused("merge", "opt", bpe, lambda data: data["model"]["merges"].append(["q", "zzz"]), "merge")
    refused("alphabet", "opt", bpe, lambda data: data["model"]["vocab"].pop("!"), "byte")
    refused("fallback", "t5", unigram, lambda data: data["model"].update(byte_fallback=True), "byte_fallback")
    refused("first", "t5", unigram, lambda data: data["pre_tokenizer"].update(prepend_scheme="first"),
            "Metaspace")
    refused("id", "t5", unigram, lambda data: data["added_tokens"][-1].update(id=444), "444")
    refused("twice", "t5", unigram, lambda data: data["model"]["vocab"].append(["a", -3.0]), "twice")
    cut = (unigram / "spiece.model").read_bytes()[:5000]
    for name, content in (("cut", cut), ("empty", b""), ("junk", b"\xff" * 99)):
        folder = tmp / f"refuse-sp-{name}"
        folder.mkdir()
        (folder / "spiece.model").write_bytes(content)
        try:
            read_tokenizer(folder, "t5")
            check(False, f"spiece.model {name} was accepted")
        except TokenizerError as e:
            check("spiece.model" in str(e), str(e))
    try:
        read_tokenizer(tmp, "opt")
        check(False, "a folder without a tokenizer was accepted")
    except TokenizerError as e:
        check("vocab.json" in str(e), str(e))


def main():
    global ARGS
    parser = argparse.ArgumentParser()
    parser.add_argument("--tokenizers", type=Path, default=ROOT / ".." / "shared" / "tokenizers")
    parser.add_argument("--program", default=str(ROOT / "build" / "test_tokenizer"))
    parser.add_argument("--n", type=int, default=1500, help="random texts per tokenizer")
    ARGS = parser.parse_args()
    logging.disable(logging.WARNING)   # transformers says that it ignores the clean-up for BPE
    with tempfile.TemporaryDirectory() as tmp:
        tiny_cases(Path(tmp) / "tiny")
        odd_cases(Path(tmp) / "odd")
        real_cases(Path(tmp) / "real", ARGS.tokenizers)
        refusals(Path(tmp))
    print(f"{TALLY['passed']} passed, {TALLY['failed']} failed, {TALLY['skipped']} skipped")
    sys.exit(TALLY["failed"] > 0 or TALLY["passed"] == 0)


if __name__ == "__main__":
    main()
