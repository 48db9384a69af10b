#!/usr/bin/env python3
"""Writes the ladder's tables into doc/kernels.md, from what the programs of dev/cuda say with --json.

    build/ladder/matvec --json >build/ladder/matvec.json        # and so on, see README.md
    python3 dev/cuda/table.py build/ladder/*.json               # figures of that run
    python3 dev/cuda/table.py --doc FILE x.json ...             # another document

A JSON of --list has no figures, and its table has empty columns. Nothing is ever filled in from elsewhere: a table
holds what one run of one program measured on one card, which its first line names. The table of operation NAME stands
behind the line `<!-- ladder:NAME -->`, up to `<!-- /ladder:NAME -->`, which is added when it is missing. An operation
without such a line in the document is an error.
"""

import argparse
import json
import re
import sys


def micro(x):
    """Microseconds with three figures."""
    return "" if x is None else f"{x:.3g}" if x < 100 else f"{x:.0f}"


def ratio(x, y):
    """x / y as "1.23x"; empty when either was not measured."""
    return "" if x is None or y is None else f"{x / y:.2f}x"


def measured_on(run):
    """One line on card, driver, commit and ceilings; or that nothing was measured."""
    if not any(v["us"] for c in run["cases"] for v in c["versions"]):
        return "Not measured yet: no card has been at hand."
    driver = f"{run['driver'] // 1000}.{run['driver'] % 1000 // 10}"
    return (f"Measured on {run['gpu']}, driver for CUDA {driver}, commit {run['commit']}. "
            f"Ceilings of the same run: device copy {run['copy_gbs']:.0f} GB/s, bf16 multiply "
            f"{run['multiply_tflops']:.0f} TFLOP/s; an empty kernel takes {run['empty_us']:.1f} µs.")


def case_table(run, case):
    """Markdown of one shape: a line per version."""
    flops = bool(case["flops"])
    unit, ceiling = ("TFLOP/s", run["multiply_tflops"]) if flops else ("GB/s", run["copy_gbs"])
    versions = [v for v in case["versions"] if v["version"] > 0]
    library = next((v for v in case["versions"] if v["version"] == 0), None)
    head = ["", "version", "µs", unit, "of the ceiling", "against the one before"]
    if library:
        head.append("against cuBLASLt")
    lines = [f"{case['name']}: {case['bytes'] * 1e-6:.3g} MB must move"
             + (f", {case['flops'] * 1e-9:.3g} GFLOP" if flops else "") + ".", ""]
    lines.append("| " + " | ".join(head) + " |")
    lines.append("|" + "---|" * len(head))
    before = None
    for v in ([library] if library else []) + versions:
        speed = v["speed"]
        cells = [str(v["version"] or ""), v["name"], micro(v["us"]), "" if speed is None else f"{speed:.3g}",
                 "" if speed is None or not ceiling else f"{100 * speed / ceiling:.0f} %",
                 "" if v is library else ratio(before, v["us"])]
        if library:
            cells.append("" if v is library else ratio(library["us"], v["us"]))
        lines.append("| " + " | ".join(cells) + " |")
        before = None if v is library else v["us"]
    return lines


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--doc", default="doc/kernels.md")
    parser.add_argument("json", nargs="+")
    args = parser.parse_args()
    with open(args.doc, encoding="utf-8") as f:
        text = f.read()
    for path in args.json:
        with open(path, encoding="utf-8") as f:
            run = json.load(f)
        name = run["operation"]
        wrong = [f"{c['name']}, version {v['version']}" for c in run["cases"] for v in c["versions"] if not v["right"]]
        if wrong:
            sys.exit(f"{path}: not written, results differ from the CPU's: {'; '.join(wrong)}")
        begin, end = f"<!-- ladder:{name} -->", f"<!-- /ladder:{name} -->"
        if begin not in text:
            sys.exit(f"{args.doc}: no line {begin}; hint: add it where the table of {path} shall stand")
        if end not in text:
            text = text.replace(begin, begin + "\n" + end, 1)
        lines = [measured_on(run)]
        for case in run["cases"]:
            lines += ["", *case_table(run, case)]
        body = "\n".join([begin, *lines, end])
        text = re.sub(re.escape(begin) + ".*?" + re.escape(end), lambda _: body, text, count=1, flags=re.S)
    with open(args.doc, "w", encoding="utf-8") as f:
        f.write(text)


if __name__ == "__main__":
    main()
