#!/usr/bin/env python3
"""Tests table.py and peers.py on a list of the ladder's programs, and that doc/kernels.md has what they list, and every
kernel of the backend and no other, and that its predictions are those of report and work.py.

    python3 dev/cuda/test_table.py LIST.json [REHEARSAL.json]     # what they print with --list, and one with --rehearse

Figures are made up here and written into temporary files only.
"""

import copy
import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
DOC = ROOT / "doc" / "kernels.md"
passed = failed = 0


def expect(ok, what):
    global passed, failed
    if ok:
        passed += 1
    else:
        failed += 1
        print(f"FAIL test_table.py: {what}", file=sys.stderr)


def run(program, *args):
    """(exit code, both outputs)"""
    p = subprocess.run([sys.executable, HERE / program, *map(str, args)], capture_output=True, text=True)
    return p.returncode, p.stdout + p.stderr


def objects(path):
    sys.path.insert(0, str(HERE))
    import table
    return table.read([path])[0]


def invent(listed):
    """A run that measured: version v of any case takes 100 / v microseconds, the library 40."""
    made = copy.deepcopy(listed)
    made.update(gpu="Invented GPU", driver="1.2.3", commit="abc", copy_gbs=2000, multiply_tflops=500, empty_us=2.5)
    for case in made["cases"]:
        for v in case["versions"]:
            v["us"] = 100 / v["version"]
            v["speed"] = case["flops"] / v["us"] * 1e-6 if case["flops"] else case["bytes"] / v["us"] * 1e-3
        case["versions"].insert(0, {"version": 0, "right": True, "us": 40, "speed": 1})
    return made


def check_predictions(doc):
    """The tables of predicted times in the text of doc/kernels.md."""
    code, said = run("report", "--predict", "--markdown")
    lines = [line for line in said.splitlines() if line.startswith("| ") and "PREDICTED" not in line]
    expect(code == 0 and len(lines) == 26, f"report --predict: exit code {code}, {len(lines)} lines")
    stale = [line for line in lines if f"\n{line}\n" not in doc]
    expect(not stale, f"doc/kernels.md has other predictions (dev/cuda/report --predict --markdown): {stale}")

    import work
    card = work.CARDS["sm_90"]

    def ms(launches):
        return 1e3 * work.seconds(launches, card.bandwidth, card.peak)
    opt = work.stages("opt-2.7b")
    floors = {f"decode, OPT-2.7b {dtype}, a token": ms(work.stages("opt-2.7b", dtype=dtype)["decode"])
              for dtype in ("bf16", "int8", "int4")}
    floors |= {f"decode, {model} bf16, a token": ms(work.stages(model)["decode"])
               for model in ("opt-6.7b", "flan-t5-xl", "flan-t5-xxl")}
    floors |= {f"ViT, {side} px, batch {batch}": ms(work.vit(side, batch))
               for side, batch in ((224, 1), (224, 32), (364, 1))}
    floors["Q-Former, 224 px, batch 1"] = ms(opt["qformer"])
    floors["image to first token, OPT-2.7b, 224 px"] = ms(opt["vit"]) + ms(opt["qformer"]) + ms(opt["prompt"])
    floors["caption of 20 tokens, OPT-2.7b bf16"] = 1e3 * work.caption_seconds(opt, 20, card.bandwidth, card.peak)
    rows = {name.strip(): cells for name, cells in re.findall(r"(?m)^\| ([^|]+) \| [^|]*\| ([\d.]+ ms \|.*\|)$", doc)}
    expect(rows.keys() == floors.keys(), f"targets in doc/kernels.md: {rows.keys() ^ floors.keys()}")
    for name, floor in floors.items():
        said = rows.get(name, "nothing")
        expect(said.startswith(f"{floor:.2f} ms |"), f"{name}: {said}, expected {floor:.2f} ms")


def main():
    listing = Path(sys.argv[1])
    listed = objects(listing)
    code, said = run("table.py", "--check", listing, "--doc", DOC)
    expect(code == 0, said)
    code, said = run("peers.py", "--known", listing)
    expect(code == 0, said)

    with tempfile.TemporaryDirectory() as folder:
        doc, data = Path(folder) / "doc.md", Path(folder) / "data.json"

        def write(*parts):
            data.write_text("\n".join(json.dumps(p) for p in parts))

        def table(*args):
            code, said = run("table.py", "--doc", doc, data, *args)
            return code, said, doc.read_text(encoding="utf-8")

        blank = "".join(f"# {name}\n<!-- ladder:{name} -->\n\n" for name in listed)
        doc.write_text(blank + "the end\n", encoding="utf-8")
        made = {name: invent(x) for name, x in listed.items()}
        torch = {"peer": "9.9, F.some", "gpu": "Invented GPU", "operation": "dense",
                 "cases": [{"name": listed["dense"]["cases"][0]["name"], "us": 80}]}
        write(*made.values(), torch)
        code, said, text = table()
        expect(code == 0, said)
        expect(text.count("Measured on Invented GPU, driver 1.2.3, commit abc.") == len(listed), "cards are named")
        expect(text.endswith("the end\n") and text.count("<!-- /ladder:") == len(listed), "what is around stays")
        first = listed["dense"]["cases"][0]
        speed = first["flops"] / 50 * 1e-6
        line = next(x for x in text.split("### ")[0].split("\n") if x.startswith("| 2 | 32 x 32 tiles"))
        cells = [c.strip() for c in line.strip("|").split("|")]
        expect(cells[3:] == ["50", f"{speed:.3g}", f"{speed / 5:.0f} %", "2.00x", "0.80x", "1.60x"], f"a line: {cells}")
        expect("PyTorch: 9.9, F.some." in text, "PyTorch is named")
        before = text
        expect(table() == (0, "", before), "twice is as good as once")
        expect(table("--check")[0] == 0, "it is up to date with itself")

        # The document with figures is up to date with a list, until a name or a shape changes.
        write(*listed.values())
        expect(table("--check")[0] == 0, "figures do not make a document stale")
        other = copy.deepcopy(listed)
        other["dense"]["versions"][1]["idea"] += " and more"
        write(*other.values())
        code, said, text = table("--check")
        expect(code == 1 and "out of date: dense;" in said and text == before, f"another idea: {code}, {said}")
        other = copy.deepcopy(listed)
        other["matvec"]["cases"][2]["bytes"] *= 2
        write(*other.values())
        expect(table("--check")[0] == 1, "other bytes make it stale")
        write(*listed.values())
        code, said, text = table()
        expect(code == 0 and "Invented" not in text and text.count("Not measured yet") == len(listed), "figures go")

        # What must not be written.
        before = text
        for name, spoil, said_so in (
                ("a mismatch", lambda r, p: r["cases"][1]["versions"][2].update(right=False), "differ from the CPU"),
                ("the simulator", lambda r, p: r.update(gpu="cuda_sim sm_90"), "simulator"),
                ("another card", lambda r, p: p.update(gpu="Other"), "in one go"),
                ("an unknown operation", lambda r, p: r.update(operation="nothing"), "no line <!-- ladder:nothing"),
                ("no operation", lambda r, p: r.pop("operation"), "no JSON of the ladder")):
            bad, peer = invent(listed["dense"]), dict(torch)
            spoil(bad, peer)
            write(made["matvec"], bad, peer)
            code, said, text = table()
            expect(code == 1 and said_so in said and text == before, f"{name}: exit code {code}, {said}")
        data.write_text("{")
        expect(table()[0] == 1, "half a JSON")
        data.write_text('{"operation": "dense", "cases": [{"name": "5 by 5"}], "gpu": ""}')
        code, said = run("peers.py", "--known", data)
        expect(code == 1 and "not understood: 5 by 5" in said, f"an unknown shape: {said}")

        if len(sys.argv) > 2:       # what a program prints when it times, here in the simulator
            code, said = run("table.py", "--doc", doc, "--rehearsal", sys.argv[2])
            text = doc.read_text(encoding="utf-8")
            expect(code == 0 and "Measured on cuda_sim" in text, f"a rehearsal: {said}")
            for r in objects(sys.argv[2]).values():
                numbers = [r["copy_gbs"], r["multiply_tflops"], r["empty_us"]]
                numbers += [v[k] for c in r["cases"] for v in c["versions"] for k in ("us", "speed")]
                expect(all(x and x > 0 for x in numbers), f"{r['operation']}: figures of a rehearsal")

    sources = "".join(f.read_text(encoding="utf-8") for f in (ROOT / "blip2.cu", *ROOT.glob("cuda_*.cuh")))
    shipped = set(re.findall(r"__global__[^;{]*?(\w+_kernel)\(", sources))
    described = set(re.findall(r"\w+_kernel\b", DOC.read_text(encoding="utf-8")))
    expect(len(shipped) > 20 and shipped == described, f"in doc/kernels.md or shipped, not both: {shipped ^ described}")
    check_predictions(DOC.read_text(encoding="utf-8"))
    print(f"{passed} passed, {failed} failed, 0 skipped")
    sys.exit(1 if failed or not passed else 0)


if __name__ == "__main__":
    main()
