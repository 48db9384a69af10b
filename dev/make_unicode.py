"""Writes unicode_tables.c: the Unicode classes that tokenization depends on, as `tokenizers` has them.

Not taken from a Unicode data file: what counts is which version the installed library was built with, so each
class is found by asking the library about every code point.

  letter, number, space   ByteLevel's regex keeps "a" + c (or "1" + c, "!" + c) in one piece or not
  word                    an added token with single_word is found in front of c or not (Rust's \\w)
  grapheme break class    Precompiled replaces a grapheme below 6 bytes as a whole, so with a charsmap that
                          turns every first byte into X, the number of X is the number of graphemes. Those of
                          6 bytes or more cannot be seen this way; their classes (Hangul jamo, regional
                          indicators, pictographs, 4-byte controls) come from the `regex` module.

Run:  python dev/make_unicode.py       (needs tokenizers and regex; ten seconds)
"""

import struct
from pathlib import Path

import regex
import tokenizers
from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers

OUT = Path(__file__).resolve().parent.parent / "unicode_tables.c"
LETTER, NUMBER, SPACE = 1, 2, 3
WORD = 4
GCB = {"CR": 1, "LF": 2, "Control": 3, "Extend": 4, "ZWJ": 5, "Prepend": 6, "SpacingMark": 7, "L": 8, "V": 9,
       "T": 10, "LVT": 11, "Regional_Indicator": 12, "Pictographic": 13}


def code_points():
    return (cp for cp in range(1, 0x110000) if not 0xD800 <= cp < 0xE000)


def letter_number_space():
    """{code point: LETTER, NUMBER or SPACE} by the regex of ByteLevel; the others are left out."""
    pre = pre_tokenizers.ByteLevel(add_prefix_space=False)
    joined = lambda s: len(pre.pre_tokenize_str(s)) == 1
    found = {}
    for cp in code_points():
        c = chr(cp)
        if joined("!" + c):
            continue
        found[cp] = LETTER if joined("a" + c) else NUMBER if joined("1" + c) else SPACE
    return found


def words():
    """The code points that end the search for a single_word token."""
    tok = Tokenizer(models.WordLevel({"?": 0}, unk_token="?"))
    tok.add_tokens([AddedToken("Q", single_word=True)])
    q = tok.token_to_id("Q")
    return {cp for cp in code_points() if tok.encode("Q" + chr(cp)).ids[0] != q}


def one_grapheme():
    """A function that says whether a text below 6 bytes is a single grapheme cluster to the library."""
    unit = [0] * 1024
    unit[0] = 256 << 10                                # double array: children of the root at 256 ^ byte
    for b in range(1, 256):
        unit[256 + b] = 512 << 10 | 1 << 8 | b         # each with a leaf, at 512 ^ (256 + byte), value 0
        unit[768 + b] = 1 << 31
    x = normalizers.Precompiled(struct.pack("<I1024I", 4096, *unit) + b"X\0")
    return lambda s: x.normalize_str(s) == "X"


def grapheme_classes():
    """{code point: value of GCB}; those of class Other are left out."""
    one = one_grapheme()
    names = ("SpacingMark", "Control", "L", "V", "T", "LV", "LVT", "Regional_Indicator")
    named = {k: regex.compile(rf"\p{{GCB={k}}}") for k in names}
    pictographic = regex.compile(r"\p{Extended_Pictographic}")
    found = {}
    for cp in code_points():
        c = chr(cp)
        if c in "\r\n\u200d":
            name = {"\r": "CR", "\n": "LF", "\u200d": "ZWJ"}[c]
        elif one("a" + c):
            name = "SpacingMark" if named["SpacingMark"].match(c) else "Extend"
        elif one(c + "a"):
            name = "Prepend"
        elif (not one("\u0600" + c)) if cp < 0x10000 else named["Control"].match(c):
            name = "Control"
        else:
            name = next((k for k in ("L", "V", "T", "LVT", "Regional_Indicator") if named[k].match(c)), None)
            name = "LVT" if named["LV"].match(c) else name
            name = "Pictographic" if not name and pictographic.match(c) else name
        if name:
            found[cp] = GCB[name]
    return found


def main():
    kinds, word, grapheme = letter_number_space(), words(), grapheme_classes()
    entries, last = [], None
    for cp in range(0x110000):
        value = kinds.get(cp, 0) | (WORD if cp in word else 0) | grapheme.get(cp, 0) << 4
        if value != last:
            entries.append(cp << 8 | value)
            last = value
    lines = [", ".join(f"0x{e:08X}" for e in entries[i:i + 8]) for i in range(0, len(entries), 8)]
    OUT.write_text(
        "// unicode_tables.c: the Unicode classes that tokenization depends on. Written by\n"
        f"// dev/make_unicode.py with tokenizers {tokenizers.__version__}; do not edit. Each entry starts a\n"
        "// range that lasts until the next: code point << 8 | grapheme break class << 4 | word << 2 |\n"
        "// (letter 1, number 2, white space 3).\n\n"
        '#include "unicode_tables.h"\n\n'
        f"const int UNICODE_RANGES = {len(entries)};\n"
        f"const uint32_t unicode_range[{len(entries)}] = {{\n    " + ",\n    ".join(lines) + ",\n};\n\n"
        "int unicode_class(uint32_t cp) {\n"
        "    int low = 0, high = UNICODE_RANGES;   // range low starts at or before cp, range high after it\n"
        "    while (high - low > 1) {\n"
        "        const int mid = (low + high) / 2;\n"
        "        if (unicode_range[mid] >> 8 <= cp) low = mid;\n"
        "        else high = mid;\n"
        "    }\n"
        "    return (int)(unicode_range[low] & 0xFF);\n"
        "}\n", encoding="utf-8", newline="\n")
    count = lambda v: sum(1 for k in kinds.values() if k == v)
    print(f"{count(LETTER)} letters, {count(NUMBER)} numbers, {count(SPACE)} spaces, {len(word)} word "
          f"characters, {len(grapheme)} with a grapheme class, {len(entries)} ranges")


if __name__ == "__main__":
    main()
