#!/usr/bin/env python3
"""Writes the ladder's tables into doc/kernels.md, from what the programs of dev/cuda say with --json or --list.

    build/ladder/matvec --json >>build/ladder.json              # and so on, see README.md; a file may hold several
    python3 dev/cuda/peers.py build/ladder.json >build/peers.json
    python3 dev/cuda/table.py build/ladder.json build/peers.json
    python3 dev/cuda/table.py --check list.json                 # has the document what the programs list?

A JSON of --list has no figures: versions, ideas, shapes and predicted floors are written, measured columns are empty.
Nothing is ever filled in from elsewhere: a table holds what one run of one program measured on one card, which its
first line names. PyTorch's times (peers.py) must be of the same card. The tables of operation NAME stand behind the
line `<!-- ladder:NAME -->`, up to `<!-- /ladder:NAME -->`, which is added when it is missing. Exit code 1, and nothing is
written: an operation without such a line, a result that differs from the CPU's, figures of the simulator. --check
compares all but figures, writes nothing, and ends with exit code 1 when the document is out of date.
"""

import argparse
import json
import re
import sys

import work

CARD = work.CARDS["sm_90"]                # whose data sheet predicts floors until something was measured
NOT_MEASURED = "Not measured yet: no card has been at hand."
EMPTY = {"right": True, "us": None, "speed": None}


def micro(x):
    """Microseconds with three figures."""
    return "" if x is None else f"{x:.3g}" if x < 100 else f"{x:.0f}"


def ratio(x, y):
    """x / y as "1.23x"; empty when either was not measured."""
    return "" if not x or not y else f"{x / y:.2f}x"


def row(cells):
    return "| " + " | ".join(cells) + " |"


def header(cells):
    return [row(cells), "|" + "---|" * len(cells)]


def measured(run):
    return any(v["us"] for c in run["cases"] for v in c["versions"])


def measured_on(run, peer):
    """One line on card, driver, commit and ceilings; or that nothing was measured."""
    if not measured(run):
        return NOT_MEASURED
    return (f"Measured on {run['gpu']}, driver {run['driver']}, commit {run['commit']}. "
            f"Ceilings of the same run: device copy {run['copy_gbs']:.0f} GB/s, bf16 multiply "
            f"{run['multiply_tflops']:.0f} TFLOP/s; an empty kernel takes {run['empty_us']:.1f} µs."
            + (f" PyTorch: {peer['peer']}." if peer else ""))


def floor(run, case):
    """The least microseconds: for bytes or operations, whichever is more, at this run's or the data sheet's ceilings."""
    copy = run["copy_gbs"] * 1e9 if run["copy_gbs"] else CARD.bandwidth
    multiply = run["multiply_tflops"] * 1e12 if run["multiply_tflops"] else CARD.peak
    return 1e6 * max(case["bytes"] / copy, case["flops"] / multiply)


def result(case, version):
    return next((v for v in case["versions"] if v["version"] == version), EMPTY)


def share(run, case, v):
    """Of the ceiling, in per cent."""
    ceiling = run["multiply_tflops"] if case["flops"] else run["copy_gbs"]
    return "" if v["speed"] is None or not ceiling else f"{100 * v['speed'] / ceiling:.0f} %"


def shown_case(run, case, torch_us):
    """Markdown of one shape: a line per version."""
    unit = "TFLOP/s" if case["flops"] else "GB/s"
    lines = [f"{case['name']}:", "", *header(["", "version", "idea, limit", "µs", unit, "of the ceiling",
                                              "against the one before", "against cuBLASLt", "against PyTorch"])]
    library, before = result(case, 0)["us"], None
    for i, version in enumerate(run["versions"], 1):
        v = result(case, i)
        lines.append(row([str(i), version["name"], version["idea"], micro(v["us"]),
                          "" if v["speed"] is None else f"{v['speed']:.3g}", share(run, case, v),
                          ratio(before, v["us"]), ratio(library, v["us"]), ratio(torch_us, v["us"])]))
        before = v["us"]
    return lines


def all_cases(run, torch_us):
    """Markdown of all shapes: a line for each, microseconds of every version."""
    n = len(run["versions"])
    lines = header(["shape", "MB", "GFLOP", "floor, µs", *(f"version {i}, µs" for i in range(1, n + 1)), "cuBLASLt, µs",
                    "PyTorch, µs", f"version {n} of the ceiling"])
    for case in run["cases"]:
        times = [micro(result(case, i)["us"]) for i in range(1, n + 1)]
        lines.append(row([case["name"], f"{case['bytes'] * 1e-6:.3g}",
                          f"{case['flops'] * 1e-9:.3g}" if case["flops"] else "", micro(floor(run, case)), *times,
                          micro(result(case, 0)["us"]), micro(torch_us.get(case["name"])),
                          share(run, case, result(case, n))]))
    return lines


def tables(run, peer):
    """Everything between the two lines of an operation."""
    torch_us = {c["name"]: c["us"] for c in peer["cases"]} if peer else {}
    lines = [measured_on(run, peer)]
    for case in run["cases"]:
        if case["shown"]:
            lines += ["", *shown_case(run, case, torch_us.get(case["name"]))]
    whose = "of this run" if measured(run) else f"of an {CARD.name}'s data sheet, predicted"
    lines += ["", "All shapes. MB: what any version must move; floor: that, or the operations, at the ceilings "
              f"{whose}.", "", *all_cases(run, torch_us)]
    return "\n".join(lines)


def without_figures(text):
    """Tables with the cells of measured columns emptied, and without the lines that say where they were measured."""
    out, columns = [], []
    for line in text.strip().split("\n"):
        if line.startswith(("Measured on", "Not measured", "All shapes.")):
            continue
        cells = line.strip().strip("|").split("|") if line.startswith("|") else None
        if cells and not columns:
            columns = [c.strip() for c in cells]
        elif not cells:
            columns = []
        elif not line.startswith("|---"):
            figures = ("µs", "GB/s", "TFLOP/s", "of the ceiling", "against")
            line = row(["" if any(f in name for f in figures) else c.strip() for name, c in zip(columns, cells)])
        out.append(line)
    return "\n".join(out)


def read(paths):
    """The runs and the peers of all files, {operation: object}; a file may hold several objects."""
    runs, peers = {}, {}
    for path in paths:
        with open(path, encoding="utf-8") as f:
            text = f.read()
        at = 0
        while text[at:].strip():
            at += len(text[at:]) - len(text[at:].lstrip())
            try:
                found, at = json.JSONDecoder().raw_decode(text, at)
                (peers if "peer" in found else runs)[found["operation"]] = found
            except (ValueError, KeyError, TypeError) as e:
                sys.exit(f"{path}: no JSON of the ladder: {e}")
    return runs, peers


def refuse(run, peer, rehearsal):
    """Ends the program when these figures must not stand in a document."""
    name = run["operation"]
    wrong = [f"{c['name']}, version {v['version']}" for c in run["cases"] for v in c["versions"] if not v["right"]]
    if wrong:
        sys.exit(f"{name}: not written, results differ from the CPU's: {'; '.join(wrong)}")
    if run["gpu"].startswith("cuda_sim") and not rehearsal:
        sys.exit(f"{name}: not written, these are figures of the simulator")
    if peer and peer["gpu"] != run["gpu"]:
        sys.exit(f"{name}: PyTorch ran on {peer['gpu']}, the ladder on {run['gpu']}; hint: run both in one go")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--doc", default="doc/kernels.md")
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--rehearsal", action="store_true", help=argparse.SUPPRESS)     # for tests
    parser.add_argument("json", nargs="+")
    args = parser.parse_args()
    with open(args.doc, encoding="utf-8") as f:
        text = f.read()
    runs, peers = read(args.json)
    stale = []
    for name, run in runs.items():
        refuse(run, peers.get(name), args.rehearsal)
        begin, end = f"<!-- ladder:{name} -->", f"<!-- /ladder:{name} -->"
        if begin not in text:
            sys.exit(f"{args.doc}: no line {begin}; hint: add it where the tables of {name} shall stand")
        if end not in text:
            text = text.replace(begin, begin + "\n" + end, 1)
        old = text[text.index(begin) + len(begin):text.index(end)]
        new = tables(run, peers.get(name))
        if without_figures(old) != without_figures(new):
            stale.append(name)
        text = re.sub(re.escape(begin) + ".*?" + re.escape(end), lambda _: f"{begin}\n{new}\n{end}", text, count=1,
                      flags=re.S)
    if args.check:
        if stale:
            sys.exit(f"{args.doc} is out of date: {', '.join(stale)}; hint: python3 dev/cuda/table.py with the JSON "
                     "that --list prints (figures go) or --json on a card")
        return
    with open(args.doc, "w", encoding="utf-8") as f:
        f.write(text)


if __name__ == "__main__":
    main()
