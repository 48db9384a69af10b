#!/usr/bin/env python3
"""Compares the simulator's mma.sync and ldmatrix, element by element, with the layout tables in CUTLASS's headers.

    [TEST_SIM=build/cuda_sim/test_sim] python3 test/cuda_sim/fragments.py

The tables are the Layout types of cute/atom/mma_traits_sm80.hpp and copy_traits_sm75.hpp, read out of the header files:
Layout<Shape, Stride> maps (thread, value) to a place in a column-major tile (mma) or to a bit (ldmatrix). The headers
come from PyPI's nvidia-cutlass (test/requirements-cuda.txt), looked for in build/cutlass and where Python looks; the
test is skipped without them. The simulator's side is what `test_sim --fragments` prints.

Not here: what the simulator computes with the fragments (test_sim.cpp).
"""

import os
import re
import subprocess
import sys

MMA, LDSM, LDSM_T = "SM80_16x8x16_F32BF16BF16F32_TN", "SM75_U32x4_LDSM_N", "SM75_U16x8_LDSM_T"


def header(name):
    """Text of a header of CUTLASS without comments, or None."""
    for folder in ["build/cutlass"] + sys.path:
        path = os.path.join(folder, "cutlass_library/source/include/cute/atom", name)
        if os.path.exists(path):
            return re.sub(r"//[^\n]*|/\*.*?\*/", "", open(path).read(), flags=re.S)
    return None


def tree(text):
    """'Shape<Shape<_4,_8>,_2>' -> ((4, 8), 2)"""
    text = re.sub(r"\b(?:Shape|Stride|Layout)\s*<", "(", text).replace(">", ",)")
    if not re.fullmatch(r"[\s(),_\d]*", text):
        raise ValueError(f"not a layout of numbers: {text}")
    return eval(re.sub(r"_(\d+)", r"\1", text))     # digits, commas and parentheses only


def traits(text, kind, name, field):
    """The Layout that `using field = ...` of kind<name> stands for: its own, an alias, or that of what it inherits."""
    found = re.search(rf"struct {kind}<{name}>\s*(?::\s*{kind}<(\w+)>)?\s*\{{(.*?)\n\}};", text, re.S)
    own = found and re.search(rf"using {field}\s*=\s*(.*?);", found[2], re.S)
    if not own:
        if not found or not found[1]:
            raise ValueError(f"no {field} in {kind}<{name}>")
        return traits(text, kind, found[1], field)
    value = own[1]
    if not value.startswith("Layout"):
        alias = re.search(rf"using {value}\s*=\s*(Layout.*?);", text, re.S)
        return tree(alias[1]) if alias else traits(text, kind, name, value)
    return tree(value)


def place(shape, stride, index):
    """Where an index of a nested shape lies; the first mode changes fastest."""
    if isinstance(shape, int):
        return index % shape * stride
    total = 0
    for s, d in zip(shape, stride):
        size = count(s)
        total += place(s, d, index % size)
        index //= size
    return total


def count(shape):
    """Elements of a nested shape."""
    if isinstance(shape, int):
        return shape
    size = 1
    for s in shape:
        size *= count(s)
    return size


def at(layout, thread, value):
    """Place of a thread's value."""
    (threads, values), (thread_stride, value_stride) = layout
    return place(threads, thread_stride, thread) + place(values, value_stride, value)


def expected():
    """{(operand, lane, value): (row, column)} of all fragments, or None without the headers."""
    mma, copy = header("mma_traits_sm80.hpp"), header("copy_traits_sm75.hpp")
    if mma is None or copy is None:
        return None
    out = {}
    for name, rows, values in ("A", 16, 8), ("B", 8, 4), ("C", 16, 4):      # A (M,K), B (N,K), C (M,N)
        layout = traits(mma, "MMA_Traits", MMA, name + "Layout")
        assert count(layout[0][0]) == 32 and count(layout[0][1]) == values, layout
        for lane in range(32):
            for v in range(values):
                p = at(layout, lane, v)
                out[name, lane, v] = (p % rows, p // rows)
    for name, kind in ("L", LDSM), ("T", LDSM_T):       # places are bits; a source row has 8 elements of 16 bits
        source, layout = traits(copy, "Copy_Traits", kind, "SrcLayout"), traits(copy, "Copy_Traits", kind, "DstLayout")
        owner = {at(source, lane, bit): (lane, bit // 16) for lane in range(32) for bit in range(0, 128, 16)}
        for lane in range(32):
            for v in range(8):
                out[name, lane, v] = owner[at(layout, lane, 16 * v)]
    return out


def main():
    program = os.environ.get("TEST_SIM", "build/cuda_sim/test_sim")
    want = expected()
    if want is None:
        print("SKIP CUTLASS's headers are not here: see test/requirements-cuda.txt", file=sys.stderr)
        print("0 passed, 0 failed, 1 skipped")
        return 0
    got = {}
    printed = subprocess.run([program, "--fragments"], stdout=subprocess.PIPE, text=True, check=True).stdout
    for line in printed.split("\n"):
        if line:
            name, *numbers = line.split()
            lane, value, row, column = map(int, numbers)
            got[name, lane, value] = (row, column)
    failed = 0
    for key in sorted(set(want) | set(got)):
        if want.get(key) != got.get(key):
            failed += 1
            print(f"FAIL {key}: {got.get(key)}, CUTLASS has {want.get(key)}", file=sys.stderr)
    swapped = {k: want[k[0], k[1], k[2] ^ 2] for k in want}     # the control: registers 0 and 1 swapped
    differ = sum(swapped[k] != got.get(k) for k in want)
    if differ != len(want):
        failed += 1
        print(f"FAIL of {len(want)} swapped elements only {differ} were noticed", file=sys.stderr)
    print(f"{len(want) + 1 - failed} passed, {failed} failed, 0 skipped")
    return failed > 0


if __name__ == "__main__":
    sys.exit(main())
