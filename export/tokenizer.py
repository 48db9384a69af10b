"""Reads a Hugging Face tokenizer folder and writes the weight file's tokenizer section (doc/format.md).

In order: the result, special tokens and added tokens, the components of a tokenizer.json, the three forms in
which the hub has such tokenizers (tokenizer.json; vocab.json + merges.txt; spiece.model), the packing,
read_tokenizer.

When a folder holds several forms, tokenizer.json wins, as in transformers (TokenizersBackend; the checkpoints
of BLIP-2 are on its list of those whose tokenizer.json is used exactly as it is). A component that the C
tokenizer does not have is an error that names it.
"""

import base64
import json
import math
import struct
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

MAGIC, VERSION = 0x4B543242, 1            # "B2TK"
BPE, UNIGRAM = 1, 2
CLEAN_UP, STRIP_FIRST = 1, 2              # flags of the section
PRECOMPILED, SQUEEZE, STRIP = 1, 2, 3     # normalizer steps
PREFIX_SPACE, WHITESPACE_SPLIT, PREPEND, SPLIT = 1, 2, 4, 8   # pre-tokenizer flags
SPECIAL, SINGLE_WORD, LSTRIP, RSTRIP, NORMALIZED = 1, 2, 4, 8, 16   # flags of an added token
PIECE_EXISTS, PIECE_SPECIAL = 1, 2        # flags of a piece
MAX_PIECE = 256                           # bytes; the C side's bound on the work per character
NAMED_SPECIALS = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token",
                  "image_token")
# What OPT's own special_tokens_map.json says, for folders that come without one.
OPT_SPECIALS = {"bos_token": "</s>", "eos_token": "</s>", "unk_token": "</s>", "pad_token": "<pad>"}
T5_SPECIALS = {"eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}


class TokenizerError(ValueError):
    """The folder holds no tokenizer of this family, or one that the C tokenizer cannot reproduce."""


@dataclass
class Tokenizer:
    """A tokenizer in the terms of the section. vocab: {piece: id}; merges: [(left, right)] in rank order."""
    kind: int
    source: str
    vocab: dict
    merges: list = field(default_factory=list)
    scores: list = field(default_factory=list)      # of ids 0 .. len - 1
    unk_id: int = -1
    charsmap: bytes = b""
    normalizer: list = field(default_factory=list)  # [(step, argument int, argument bytes)]
    pre: int = 0                                    # pre-tokenizer flags
    strip_first: bool = False                       # the decoder drops every U+2581 of the first token
    clean_up: bool = False
    prefix: list = field(default_factory=list)
    suffix: list = field(default_factory=list)
    added: dict = field(default_factory=dict)       # {content: (id, flags)}
    blob: bytes = b""
    ids: dict = field(default_factory=dict)         # bos, eos, pad, unk, newline, image (-1: none), n_ids

    def id_of(self, text):
        """The id of a piece or added token, or -1."""
        return self.added[text][0] if text in self.added else self.vocab.get(text, -1)

    @property
    def n_ids(self):
        """One more than the greatest id."""
        return 1 + max(max(self.vocab.values()), max((i for i, _ in self.added.values()), default=-1))


def read_json(path):
    """The parsed file; {} when it is missing."""
    if not path.is_file():
        return {}
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as e:
        raise TokenizerError(f"{path}: not valid JSON ({e})") from None


# -----------------------------------------------------------------------------------------------------------
# Added tokens


def flags_of(token, special=None):
    """The flag bits of an added token's dictionary."""
    names = (("special", SPECIAL), ("single_word", SINGLE_WORD), ("lstrip", LSTRIP), ("rstrip", RSTRIP),
             ("normalized", NORMALIZED))
    flags = sum(bit for name, bit in names if token.get(name, False))
    return flags | SPECIAL if special else flags


def add_token(tok, content, flags, declared=None):
    """Registers an added token under the id that the tokenizers library gives it: its piece's id, or the next
    free one. A file that declares another id is refused: the library would silently use a different one.
    """
    if not content:
        return
    if content in tok.added:
        tok.added[content] = (tok.added[content][0], tok.added[content][1] | flags & SPECIAL)
        return
    number = tok.vocab.get(content, tok.n_ids)
    if declared is not None and declared != number:
        raise TokenizerError(f"{tok.source}: added token {content!r} is declared with id {declared}, but its "
                             f"place in the vocabulary gives {number}")
    tok.added[content] = (number, flags)


def text_of(token):
    """The content of a special token, which the files give as a string or as a dictionary."""
    return token.get("content") if isinstance(token, dict) else token


def add_specials(tok, folder, defaults):
    """Adds what tokenizer_config.json, special_tokens_map.json and added_tokens.json register beyond
    tokenizer.json. Returns {"bos_token": text, ...}."""
    config = read_json(folder / "tokenizer_config.json")
    named_file = read_json(folder / "special_tokens_map.json")
    for number, token in sorted(config.get("added_tokens_decoder", {}).items(), key=lambda kv: int(kv[0])):
        add_token(tok, token["content"], flags_of(token), int(number))
    named = {k: text_of(v) for k, v in {**defaults, **named_file, **config}.items() if k in NAMED_SPECIALS}
    more = []
    for key in ("additional_special_tokens", "extra_special_tokens"):
        values = config.get(key) or named_file.get(key) or []
        more += list(values.values()) if isinstance(values, dict) else list(values)
    # ids given by added_tokens.json come first: they say where <image> was put when it was added
    for content, number in sorted(read_json(folder / "added_tokens.json").items(), key=lambda kv: kv[1]):
        add_token(tok, content, NORMALIZED, number)
    for token in [v for v in named.values() if v] + more:
        add_token(tok, text_of(token), flags_of(token, True) if isinstance(token, dict) else SPECIAL)
    if "<image>" in tok.added:   # Blip2Processor registers it as special, whatever the file says
        add_token(tok, "<image>", SPECIAL)
    # transformers 5 ignores the clean-up flag for BPE (TokenizersBackend._decode) unless this one insists
    insist = config.get("clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output", False)
    wanted = config.get("clean_up_tokenization_spaces", False)
    tok.clean_up = bool(wanted and (tok.kind == UNIGRAM or insist))
    return named


# -----------------------------------------------------------------------------------------------------------
# The components of a tokenizer.json. Each reader knows a few types; every other one is an error.


def parts(component, key):
    """A component as a list: none, one, or the members of a Sequence."""
    if component is None:
        return []
    if component.get("type") == "Sequence":
        return [p for member in component[key] for p in parts(member, key)]
    return [component]


def unknown(tok, what, component):
    """The error for a component that the C tokenizer does not have."""
    shown = {k: v for k, v in component.items() if k != "precompiled_charsmap"}
    text = json.dumps(shown, ensure_ascii=False)[:300]
    return TokenizerError(f"{tok.source}: {what} {text} is not supported")


def read_normalizer(tok, component):
    """Precompiled, Replace of the regex " {2,}" and Strip, in any order."""
    for c in parts(component, "normalizers"):
        kind = c.get("type")
        if kind == "Precompiled" and not tok.charsmap:
            tok.charsmap = base64.b64decode(c["precompiled_charsmap"])
            tok.normalizer.append((PRECOMPILED, 0, b""))
        elif kind == "Replace" and c.get("pattern") == {"Regex": " {2,}"}:
            tok.normalizer.append((SQUEEZE, 0, c["content"].encode()))
        elif kind == "Strip":
            tok.normalizer.append((STRIP, bool(c["strip_left"]) | bool(c["strip_right"]) << 1, b""))
        else:
            raise unknown(tok, "normalizer", c)


def prepends(tok, component):
    """Whether a Metaspace puts U+2581 in front; checks the rest of its settings. Older files say
    add_prefix_space, later ones prepend_scheme."""
    scheme = component.get("prepend_scheme", "always" if component.get("add_prefix_space", True) else "never")
    if component.get("replacement") != "\u2581" or scheme not in ("always", "never"):
        raise unknown(tok, "Metaspace", component)
    return scheme == "always"


def read_pre_tokenizer(tok, component):
    """ByteLevel for BPE; Metaspace, with or without WhitespaceSplit in front, for unigram."""
    members = parts(component, "pretokenizers")
    kinds = [c.get("type") for c in members]
    last = members[-1] if members else {"type": None}
    if tok.kind == BPE and kinds == ["ByteLevel"] and last.get("use_regex", True):
        tok.pre = PREFIX_SPACE * bool(last["add_prefix_space"])
    elif tok.kind == UNIGRAM and kinds in (["Metaspace"], ["WhitespaceSplit", "Metaspace"]):
        tok.pre = PREPEND * prepends(tok, last) | SPLIT * bool(last.get("split", True))
        tok.pre |= WHITESPACE_SPLIT * (len(kinds) == 2)
    else:
        raise unknown(tok, "pre-tokenizer", component or last)


def read_decoder(tok, component):
    """ByteLevel for BPE, Metaspace for unigram."""
    members = parts(component, "decoders")
    want = "ByteLevel" if tok.kind == BPE else "Metaspace"
    if len(members) != 1 or members[0].get("type") != want:
        raise unknown(tok, "decoder", component or {"type": None})
    if tok.kind == UNIGRAM:
        tok.strip_first = prepends(tok, members[0])


def read_template(tok, component):
    """The ids that the post-processor puts in front of and behind the text, as ([...], [...])."""
    front, behind = [], []
    for c in parts(component, "processors"):
        if c.get("type") == "ByteLevel":   # only trims offsets
            continue
        if c.get("type") != "TemplateProcessing" or front or behind:
            raise unknown(tok, "post-processor", c)
        seen = False
        for item in c["single"]:
            if "Sequence" in item:
                seen = True
            else:
                (behind if seen else front).extend(c["special_tokens"][item["SpecialToken"]["id"]]["ids"])
    return front, behind


# -----------------------------------------------------------------------------------------------------------
# The three forms


def from_tokenizer_json(path):
    """tokenizer.json of the tokenizers library. Its padding and truncation are left aside: transformers
    resets both on every call. Returns the Tokenizer and the template that the file has."""
    data = read_json(path)
    model = data.get("model") or {}
    kind = model.get("type") or ("BPE" if "merges" in model else "Unigram" if "unk_id" in model else None)
    if kind == "BPE":
        for name in ("dropout", "continuing_subword_prefix", "end_of_word_suffix", "ignore_merges",
                     "byte_fallback"):
            if model.get(name):
                raise TokenizerError(f"{path}: BPE with {name} = {model[name]!r} is not supported")
        merges = [tuple(m.split(" ")) if isinstance(m, str) else tuple(m) for m in model["merges"]]
        tok = Tokenizer(BPE, str(path), dict(model["vocab"]), merges=merges)
    elif kind == "Unigram":
        if model.get("byte_fallback"):
            raise TokenizerError(f"{path}: unigram with byte_fallback is not supported")
        if model.get("unk_id") is None:
            raise TokenizerError(f"{path}: unigram without unk_id is not supported")
        pieces = model["vocab"]
        if len({p for p, _ in pieces}) != len(pieces):
            raise TokenizerError(f"{path}: a piece stands in the vocabulary twice")
        tok = Tokenizer(UNIGRAM, str(path), {p: i for i, (p, _) in enumerate(pieces)},
                        scores=[s for _, s in pieces], unk_id=model["unk_id"])
    else:
        raise TokenizerError(f"{path}: model type {kind!r} is not supported, expected BPE or Unigram")
    read_normalizer(tok, data.get("normalizer"))
    read_pre_tokenizer(tok, data.get("pre_tokenizer"))
    read_decoder(tok, data.get("decoder"))
    for token in data.get("added_tokens", []):
        add_token(tok, token["content"], flags_of(token), token["id"])
    return tok, read_template(tok, data.get("post_processor"))


def from_vocab_merges(folder):
    """vocab.json + merges.txt, as transformers' GPT2Tokenizer builds a tokenizer from them."""
    merges = []
    for number, line in enumerate((folder / "merges.txt").read_text(encoding="utf-8").split("\n"), 1):
        line = line.rstrip("\r")
        if line.startswith("#version") or not line:   # "# #" is a pair like any other
            continue
        pair = tuple(line.split(" "))
        if len(pair) != 2:
            raise TokenizerError(f"{folder / 'merges.txt'}: line {number} is not a pair: {line!r}")
        merges.append(pair)
    path = folder / "vocab.json"
    tok = Tokenizer(BPE, f"{path} + merges.txt", read_json(path), merges=merges)
    tok.pre = PREFIX_SPACE * bool(read_json(folder / "tokenizer_config.json").get("add_prefix_space", False))
    return tok


def fields(data):
    """The (number, value) pairs of a protobuf message: int for varints, bytes for the other wire types."""
    at = 0

    def varint():
        nonlocal at
        value = shift = 0
        while True:
            byte = data[at]
            at += 1
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return value

    while at < len(data):
        key = varint()
        if key & 7 == 0:
            yield key >> 3, varint()
            continue
        if key & 7 not in (1, 2, 5):
            raise ValueError(f"wire type {key & 7}")
        size = varint() if key & 7 == 2 else 8 if key & 7 == 1 else 4
        if at + size > len(data):
            raise ValueError("a field runs past the end")
        yield key >> 3, bytes(data[at:at + size])
        at += size


def from_spiece(folder):
    """spiece.model alone, as transformers' T5Tokenizer (5.23) converts it: the charsmap as normalizer, white
    space split off, pieces of the control and user-defined types as added tokens, <extra_id_k> appended.
    The field numbers are those of sentencepiece_model.proto."""
    path = folder / "spiece.model"
    pieces, charsmap = [], b""
    spec = {3: 1, 35: 0, 40: 0}   # model_type, byte_fallback and unk_id with their defaults
    try:
        for number, value in fields(path.read_bytes()):
            if number == 1:
                piece = {1: b"", 2: bytes(4), 3: 1, **dict(fields(value))}
                pieces.append((piece[1].decode(), struct.unpack("<f", piece[2])[0], piece[3]))
            elif number == 2:
                spec.update(fields(value))
            elif number == 3:
                charsmap = dict(fields(value)).get(2, b"")
    except (IndexError, ValueError, TypeError, struct.error) as e:
        raise TokenizerError(f"{path}: not a SentencePiece model ({e})") from None
    if not pieces or spec[3] != 1 or spec[35] or spec[40] != 2:
        raise TokenizerError(f"{path}: expected a unigram model without byte fallback and <unk> = 2, found "
                             f"{len(pieces)} pieces, model type {spec[3]}, byte_fallback {spec[35]}, "
                             f"unk_id {spec[40]}")
    n_extra = read_json(folder / "tokenizer_config.json").get("extra_ids", 100)
    extra = [f"<extra_id_{k}>" for k in reversed(range(n_extra))]
    names = [p for p, _, _ in pieces] + extra
    tok = Tokenizer(UNIGRAM, str(path), {p: i for i, p in enumerate(names)}, unk_id=2, charsmap=charsmap,
                    scores=[s for _, s, _ in pieces] + [0.0] * n_extra, strip_first=True)
    tok.normalizer = [(PRECOMPILED, 0, b"")] if charsmap else []
    tok.pre = WHITESPACE_SPLIT | PREPEND | SPLIT
    for piece, _, kind in pieces:
        if kind in (3, 4):   # control, user defined
            add_token(tok, piece, SPECIAL if kind == 3 else 0)
    for name in extra:
        add_token(tok, name, SPECIAL)
    return tok


# -----------------------------------------------------------------------------------------------------------
# Packing


def byte_symbols():
    """{character: byte} of GPT-2's byte-level alphabet: printable bytes stand for themselves, U+0100.. for
    the other 68 in their order."""
    shown = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [b for b in range(256) if b not in shown]
    return {**{chr(b): b for b in shown}, **{chr(256 + i): b for i, b in enumerate(hidden)}}


def piece_bytes(tok):
    """What each id decodes to, as a list of (bytes, flags); holes are (b"", 0)."""
    symbols = byte_symbols()
    out = [(b"", 0)] * tok.n_ids
    for text, number in [*tok.vocab.items(), *((t, i) for t, (i, _) in tok.added.items())]:
        if not 0 <= number < len(out):
            raise TokenizerError(f"{tok.source}: piece {text!r} has id {number}")
        if tok.kind == BPE and all(c in symbols for c in text):
            data = bytes(symbols[c] for c in text)
        else:   # also an added token outside the alphabet: the ByteLevel decoder passes it through
            data = text.encode()
        special = text in tok.added and tok.added[text][1] & SPECIAL
        out[number] = (data, PIECE_EXISTS | (PIECE_SPECIAL if special else 0))
    return out


def model_arrays(tok):
    """The arrays of the model: byte ids and merges, or scores."""
    if tok.kind == UNIGRAM:
        if not all(math.isfinite(s) for s in tok.scores) or not 0 <= tok.unk_id < len(tok.scores):
            raise TokenizerError(f"{tok.source}: scores not finite, or unk_id {tok.unk_id} out of range")
        return np.array(tok.scores, "<f8").tobytes(), 0, len(tok.scores)
    ids = {b: tok.vocab.get(c) for c, b in byte_symbols().items()}
    missing = [b for b, i in ids.items() if i is None]
    if missing:
        raise TokenizerError(f"{tok.source}: the vocabulary lacks the symbols of bytes {missing[:8]}, so "
                             "it is not byte-level BPE")
    ranked = {}
    for pair in tok.merges:   # a pair listed twice has its later rank, as in the library
        ranked.pop(pair, None)
        ranked[pair] = None
    rows = []
    for pair in ranked:
        if len(pair) != 2 or any(p not in tok.vocab for p in (*pair, "".join(pair))):
            raise TokenizerError(f"{tok.source}: merge {pair!r} uses a piece that is not in the vocabulary")
        rows.append((tok.vocab[pair[0]], tok.vocab[pair[1]], tok.vocab["".join(pair)]))
    table = np.array([ids[b] for b in range(256)] + [i for row in rows for i in row], "<u4")
    return table.tobytes(), len(rows), 0


def pack(tok):
    """The section's bytes (doc/format.md, 'Tokenizer section')."""
    pieces = piece_bytes(tok)
    text = bytearray()

    def put(data):
        text.extend(data)
        return len(text) - len(data)

    offsets = [put(data) for data, _ in pieces] + [len(text)]
    longest = max([len(d) for d, _ in pieces] + [len(t.encode()) for t in tok.added])
    if longest > MAX_PIECE:
        raise TokenizerError(f"{tok.source}: a piece of {longest} bytes, at most {MAX_PIECE} are supported")
    steps = b"".join(struct.pack("<4I", op, arg, put(data), len(data)) for op, arg, data in tok.normalizer)
    added = b"".join(struct.pack("<4I", i, flags, put(t.encode()), len(t.encode()))
                     for t, (i, flags) in sorted(tok.added.items(), key=lambda kv: kv[1]))
    model, n_merges, n_scores = model_arrays(tok)
    flags = CLEAN_UP * tok.clean_up | STRIP_FIRST * tok.strip_first
    header = struct.pack("<16I", MAGIC, VERSION, tok.kind, flags, len(pieces), len(tok.added),
                         len(tok.normalizer), tok.pre, len(tok.prefix), len(tok.suffix), n_merges, n_scores,
                         max(tok.unk_id, 0), len(tok.charsmap), len(text), 0)
    ends = struct.pack(f"<{len(tok.prefix) + len(tok.suffix)}I", *tok.prefix, *tok.suffix)
    return (header + ends + steps + added + np.array(offsets, "<u4").tobytes()
            + bytes(f for _, f in pieces) + model + tok.charsmap + bytes(text))


def read_tokenizer(folder, family):
    """The tokenizer of a Hugging Face folder, packed.

    folder: path; family: "opt" or "t5". Returns a Tokenizer with .blob (bytes of the section), .source (what
    it came from), .ids {bos, eos, pad, unk, newline, image, n_ids}: -1 where the tokenizer has none; newline
    is the id of "\\n" as a token of its own, by which BLIP-2's OPT ends an answer. Raises TokenizerError.
    """
    folder, template = Path(folder), None
    if (folder / "tokenizer.json").is_file():
        tok, template = from_tokenizer_json(folder / "tokenizer.json")
    elif family == "opt" and (folder / "vocab.json").is_file() and (folder / "merges.txt").is_file():
        tok = from_vocab_merges(folder)
    elif family == "t5" and (folder / "spiece.model").is_file():
        tok = from_spiece(folder)
    else:
        files = "vocab.json and merges.txt" if family == "opt" else "spiece.model"
        raise TokenizerError(f"{folder}: no tokenizer found, expected tokenizer.json or {files}")
    if tok.kind != (BPE if family == "opt" else UNIGRAM):
        raise TokenizerError(f"{tok.source}: not the kind of tokenizer that {family} has")
    named = add_specials(tok, folder, OPT_SPECIALS if family == "opt" else T5_SPECIALS)
    tok.ids = {k: tok.id_of(named.get(k + "_token", "")) for k in ("bos", "eos", "pad", "unk")}
    tok.ids |= {"newline": tok.id_of("\u010a") if family == "opt" else -1, "image": tok.id_of("<image>"),
                "n_ids": tok.n_ids}
    # OPT has </s> in front even where a tokenizer.json was saved by a version that lost it: the slow
    # tokenizer, with which LAVIS runs, always puts it there.
    tok.prefix, tok.suffix = ([tok.ids["bos"]], []) if family == "opt" else ([], [tok.ids["eos"]])
    if min(tok.prefix + tok.suffix) < 0 or tok.ids["pad"] < 0:
        raise TokenizerError(f"{tok.source}: bos, eos or pad is missing from the vocabulary: {tok.ids}")
    want = (tok.prefix, tok.suffix)
    if template not in (None, want) and not (family == "opt" and template == ([], [])):
        raise TokenizerError(f"{tok.source}: the post-processor adds {template}, expected {want}")
    tok.blob = pack(tok)
    return tok
