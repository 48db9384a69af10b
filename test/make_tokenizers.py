"""Makes the two tiny tokenizers of the tests, in the file form of the Hugging Face hub.

  test/data/tokenizers/bpe      byte-level BPE laid out like OPT's: <s> 0, <pad> 1, </s> 2, <unk> 3, the 256
                                byte symbols, merges; <image> is an added special token behind the vocabulary
  test/data/tokenizers/unigram  SentencePiece unigram laid out like Flan-T5's: <pad> 0, </s> 1, <unk> 2,
                                pieces, <extra_id_9> .. <extra_id_0>, <image>; with a small charsmap

Both folders hold every form in which the hub has such tokenizers, so that readers of each form can be tested:
tokenizer.json and vocab.json + merges.txt (+ added_tokens.json), tokenizer.json and spiece.model.
Next to them are their tokenizer sections (*.tok, doc/format.md) and golden files for test/test_tokenizer.c:
what transformers makes of a few hundred texts and ids.

Run:  python test/make_tokenizers.py           (needs transformers, tokenizers and sentencepiece)
The result is committed; nothing else in the project needs to run this.
"""

import io
import json
import math
import random
import shutil
import sys
import tempfile
from collections import Counter
from pathlib import Path

import sentencepiece
from sentencepiece import sentencepiece_model_pb2
from tokenizers import (AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers,
                        processors, trainers)
from transformers import T5Tokenizer, TokenizersBackend

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "export"))
from tokenizer import read_tokenizer  # noqa: E402

HERE = Path(__file__).resolve().parent / "data" / "tokenizers"
N_EXTRA = 10          # T5 has 100 <extra_id_k>
N_BPE = 480           # ids of the BPE vocabulary, without <image>
N_UNIGRAM = 400       # pieces, without the <extra_id_k> and <image>


def corpus():
    """2000 caption-like and question-like lines, always the same."""
    rng = random.Random(7)
    who = ["a man", "a woman", "two cats", "a dog", "three people", "a small boy", "the girl", "a bird",
           "some horses", "an old bus", "a red car", "a group of children"]
    does = ["standing on", "sitting next to", "looking at", "running across", "sleeping in", "walking along",
            "holding", "playing with", "jumping over", "driving down"]
    what = ["the beach", "a wooden table", "a green field", "the street", "a laptop computer", "an umbrella",
            "a kite", "the kitchen floor", "a snowy mountain", "a couch", "a plate of food",
            "the water at sunset"]
    ask = ["Question: what color is the {}? Answer:", "Question: how many {}s are there? Answer:",
           "Question: is there a {} in the photo? Short answer:", "Question: where is the {}? Answer:"]
    noun = ["cat", "dog", "car", "house", "tree", "ball", "shirt", "hat"]
    lines = []
    for i in range(2000):
        if i % 4 == 3:
            question = rng.choice(ask).format(rng.choice(noun))
            lines.append(question + rng.choice([" yes", " no", " blue", " 2", " 13"]))
        else:
            head = rng.choice(["", "a photo of ", "there is ", "A picture of "])
            scene = f"{head}{rng.choice(who)} {rng.choice(does)} {rng.choice(what)}"
            lines.append(scene + rng.choice(["", ".", "\n"]))
    lines += ["it's not what we'll see, they're sure I've said you'd go; I'm here, don't"] * 20
    lines += ["été naïve café über 日本語 0 1 2 3 4 5 6 7 8 9 ! ? , ; - ( )"] * 5
    return lines


def bpe():
    """Byte-level BPE as transformers' GPT2Tokenizer builds it, ids in OPT's order."""
    folder = HERE / "bpe"
    folder.mkdir(parents=True, exist_ok=True)
    tok = Tokenizer(models.BPE())
    tok.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(vocab_size=N_BPE, special_tokens=["<s>", "<pad>", "</s>", "<unk>"],
                                  initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
                                  show_progress=False)
    tok.train_from_iterator(corpus(), trainer)
    trained = json.loads(tok.to_str())["model"]
    vocab, merges = trained["vocab"], [tuple(m) for m in trained["merges"]]

    tok = Tokenizer(models.BPE(vocab=vocab, merges=merges))
    tok.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tok.decoder = decoders.ByteLevel()
    tok.post_processor = processors.TemplateProcessing(single="</s> $A", pair="</s> $A </s> $B",
                                                       special_tokens=[("</s>", vocab["</s>"])])
    # OPT registers </s> and <pad> only; <s> and <unk> are ordinary entries that no text can produce.
    tok.add_special_tokens([AddedToken("<pad>", normalized=True), AddedToken("</s>", normalized=True),
                            AddedToken("<image>", normalized=False)])
    tok.save(str(folder / "tokenizer.json"), pretty=False)

    write(folder / "vocab.json", json.dumps(vocab, ensure_ascii=False))
    write(folder / "merges.txt", "#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in merges))
    write(folder / "added_tokens.json", json.dumps({"<image>": N_BPE}))
    special = {"bos_token": "</s>", "eos_token": "</s>", "unk_token": "</s>", "pad_token": "<pad>"}
    write(folder / "special_tokens_map.json", json.dumps(special))
    write(folder / "tokenizer_config.json", json.dumps(
        {**special, "add_bos_token": True, "add_prefix_space": False, "errors": "replace",
         "clean_up_tokenization_spaces": True, "tokenizer_class": "GPT2Tokenizer"}, indent=1))


# A small charsmap in the spirit of nmt_nfkc: "from" code points -> "to" code points. It has what the tests
# look at: white space, deleted controls, one to many, many to one (combining marks), and a mark mapped
# by itself.
CHARSMAP = {
    "\t": " ", "\n": " ", "\r": " ", "\u00a0": " ", "\u3000": " ", "\u2003": " ", "\u200b": " ",
    "\ufeff": " ", "\x01": "", "\x1f": "", "\x7f": "", "\u2026": "...", "\ufb01": "fi", "\ufb02": "fl",
    "\u2460": "1", "\u00b2": "2", "\u00bd": "1\u20442", "\uff21": "A", "\uff41": "a", "\uff01": "!",
    "e\u0301": "\u00e9", "u\u0308": "\u00fc", "i\u0308": "\u00ef", "a\u0302\u0301": "\u1ea5",
    "a\u0302": "\u00e2", "\u0340": "\u0300", "\u0344": "\u0308\u0301", "\u1100\u1161": "\uac00",
    "\u3300": "\u30a2\u30d1\u30fc\u30c8", "\U0001d400": "A", "\u212b": "\u00c5",
}


def frequent_substrings(n):
    """The n substrings of the corpus' words that save most characters, every single character included."""
    count = Counter()
    for line in corpus():
        for word in line.replace("\n", " ").split(" "):
            word = "\u2581" + word
            for i in range(len(word)):
                count.update(word[i:j] for j in range(i + 1, min(len(word), i + 12) + 1))
    singles = [s for s in count if len(s) == 1]
    longer = sorted((s for s in count if len(s) > 1), key=lambda s: (-count[s] * (len(s) - 1), s))
    chosen = singles + longer[:n - len(singles)]
    total = sum(count[s] * len(s) for s in chosen)
    return sorted(((s, math.log(count[s] / total)) for s in chosen), key=lambda p: (-p[1], p[0]))


def unigram():
    """SentencePiece unigram, in the form of the tokenizer.json of google/flan-t5-*."""
    folder = HERE / "unigram"
    folder.mkdir(parents=True, exist_ok=True)
    rules = folder / "rules.tsv"
    hexes = lambda s: " ".join(f"{ord(c):X}" for c in s)
    write(rules, "".join(f"{hexes(a)}\t{hexes(b)}\n" for a, b in CHARSMAP.items()))
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(   # for the charsmap alone: it finds too few pieces here
        sentence_iterator=iter(corpus()), model_writer=model, model_type="unigram", vocab_size=N_UNIGRAM,
        pad_id=0, eos_id=1, unk_id=2, bos_id=-1, pad_piece="<pad>", normalization_rule_tsv=str(rules),
        num_threads=1, character_coverage=0.9999, hard_vocab_limit=False, minloglevel=2)
    rules.unlink()
    proto = sentencepiece_model_pb2.ModelProto.FromString(model.getvalue())
    kinds = {"<pad>": 3, "</s>": 3, "<unk>": 2}   # control, control, unknown; everything else is normal, 1
    pieces = [(name, 0.0) for name in kinds] + frequent_substrings(N_UNIGRAM - len(kinds))
    proto.normalizer_spec.ClearField("normalization_rule_tsv")   # a path of the machine that ran this
    del proto.pieces[:]
    for piece, score in pieces:
        proto.pieces.add(piece=piece, score=score, type=kinds.get(piece, 1))
    proto.trainer_spec.vocab_size = len(pieces)
    (folder / "spiece.model").write_bytes(proto.SerializeToString(deterministic=True))
    pieces = [(p.piece, p.score) for p in proto.pieces]   # scores as float32, as in every T5 file

    pieces += [(f"<extra_id_{k}>", 0.0) for k in reversed(range(N_EXTRA))]
    tok = Tokenizer(models.Unigram(pieces, unk_id=2, byte_fallback=False))
    charsmap = proto.normalizer_spec.precompiled_charsmap
    tok.normalizer = normalizers.Sequence([normalizers.Precompiled(charsmap),
                                           normalizers.Replace(Regex(" {2,}"), " ")])
    tok.pre_tokenizer = pre_tokenizers.Metaspace(replacement="\u2581", prepend_scheme="always", split=True)
    tok.decoder = decoders.Metaspace(replacement="\u2581", prepend_scheme="always", split=True)
    tok.post_processor = processors.TemplateProcessing(single="$A </s>", pair="$A </s> $B </s>",
                                                       special_tokens=[("</s>", 1)])
    names = ["<pad>", "</s>", "<unk>"] + [f"<extra_id_{k}>" for k in range(N_EXTRA)] + ["<image>"]
    tok.add_special_tokens([AddedToken(n, normalized=False) for n in names])
    tok.save(str(folder / "tokenizer.json"), pretty=False)

    extra = [f"<extra_id_{k}>" for k in range(N_EXTRA)]
    special = {"eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}
    write(folder / "special_tokens_map.json", json.dumps({**special, "additional_special_tokens": extra}))
    write(folder / "tokenizer_config.json", json.dumps(
        {**special, "additional_special_tokens": extra, "extra_ids": N_EXTRA,
         "clean_up_tokenization_spaces": True, "tokenizer_class": "T5Tokenizer"}, indent=1))


# What the golden files have beyond the corpus.
TEXTS = [
    "", " ", "\n", "\t", "  ", " a", "a ", "a photo of", "a photo of ", "  a  photo\tof\n\na cat ", "it's",
    "IT'S",
    "don't we'll they're I've I'd I'm 's", "'", "''s", " 's", "x\n\n  y", "x \u00a0 y", "x\u3000y", "</s> hi",
    "</s>", "<pad><pad>", "<s>hi<unk>", "a</s>  b", "<extra_id_3>", " <extra_id_0> x <extra_id_99>",
    "<<extra_id_1>>", "e\u0301", "e\u0301\u0301", "e\u0301\u0301\u0301", "e\u0301\u20d0", "a\u0302\u0301",
    "\u0340a", "a\u0340", "\ufb01nest", "\ufb01\u0301x", "\u2460\u00b2\u00bd", "\uff21\uff41\uff01",
    "\U0001d400", "na\u00efve caf\u00e9", "\u65e5\u672c\u8a9e test", "\u1100\u1161\u11a8",
    "\U0001f469\u200d\U0001f469\u200d\U0001f467 ok", "\U0001f1e9\U0001f1ea\U0001f1eb", "\r\n", "\x01\x1f\x7f",
    "a\x00b", "\u2581", "\u2581a", "a\u2581\u2581b", "x" * 300, "1234567890" * 9, "!?!?.,;" * 7, "\ufeffa",
    "\u0627\u0644\u0639\u0631\u0628\u064a\u0629 1\u0662\u06633", "\u00ad\u2026\u201cq\u201d",
    "the shirt is to the left of the door", "Question: {} Short answer:",
    # what clean_up_tokenization looks for; U+2581 makes a second space
    "a . b ? c ! d , e ' f n't g 'm h 's i 've j 're k", "a ' ' b ' c ' ' ' d", " .", "a '", " n'",
    "a\u2581 .\u2581\u2581 ' s n' n 'v 'r", "I \u2581've , \u2581n't", "' ' 've ' 're' n't n 't"]


def section(name, folder, family, reference):
    """Writes NAME.tok, and NAME.golden with what the reference, a transformers tokenizer, makes of texts and
    ids."""
    tok = read_tokenizer(folder, family)
    (HERE / f"{name}.tok").write_bytes(tok.blob)
    rng = random.Random(name)
    lines, sequences = [], []
    for text in TEXTS + corpus()[:60] + ["".join(rng.choice(TEXTS) for _ in range(3)) for _ in range(60)]:
        ids = reference(text).input_ids
        lines.append(f"e {text.encode().hex()} : {' '.join(map(str, ids))}")
        sequences.append(ids)
    for _ in range(100):
        ids = [rng.randrange(tok.n_ids) for _ in range(rng.randrange(1, 30))]
        sequences.append(ids)
    for ids in sequences:
        text = reference.decode(ids, skip_special_tokens=True)
        lines.append(f"d {' '.join(map(str, ids))} : {text.encode().hex()}")
    write(HERE / f"{name}.golden", "\n".join(lines) + "\n")


def write(path, text):
    path.write_text(text, encoding="utf-8", newline="\n")


if __name__ == "__main__":
    bpe()
    unigram()
    section("bpe", HERE / "bpe", "opt", TokenizersBackend.from_pretrained(HERE / "bpe"))
    section("unigram", HERE / "unigram", "t5", TokenizersBackend.from_pretrained(HERE / "unigram"))
    with tempfile.TemporaryDirectory() as folder:   # the trimming form, as made from spiece.model alone
        for file in ("spiece.model", "tokenizer_config.json"):
            shutil.copy(HERE / "unigram" / file, folder)
        section("unigram_trim", folder, "t5", T5Tokenizer.from_pretrained(folder))
    for path in sorted(HERE.rglob("*.*")):
        print(path.relative_to(HERE), path.stat().st_size)
