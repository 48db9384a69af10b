"""The targets of dev/bench_gpu.py on made-up figures: a little better than a bound is met, a little worse missed; what
was not measured has no line. Not here: measuring (bench_gpu.py --dry-run goes through that on the CPU).
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import bench_gpu as bench     # noqa: E402

MULTIPLY = 1e15


def result_of(worse, model="opt-2.7b"):
    """Runs that are at every bound, or a thousandth better (worse = -1) or worse (1)."""
    more = 1 + 1e-3 * worse
    vit32 = bench.work.operations_of(bench.work.vit(224, 32)) / (bench.VIT_SHARE * MULTIPLY)
    one = {"vit": [bench.VIT * more], "qformer": [1.0], "prompt": [1.0], "first": [bench.FIRST * more],
           "caption": [bench.CAPTION * more]}
    runs = [{"who": "transformers eager", "px": 224, "batch": 1,
             "figures": {**one, "caption": [bench.CAPTION * bench.CAPTION_TIMES]}}]
    for dtype, share in bench.DECODE_SHARE.items():
        runs.append({"who": f"blip2 {dtype}", "px": 224, "batch": 1, "floor": {"decode": share},
                     "figures": {**one, "decode": [more]}})
        runs.append({"who": f"blip2 {dtype}", "px": 224, "batch": 32, "floor": {},
                     "figures": {"vit": [vit32 * more]}})
    return {"model": model, "ceilings": {"copy": 1e12, "multiply": MULTIPLY}, "runs": runs}


def main():
    passed = failed = 0

    def expect(ok, what):
        nonlocal passed, failed
        passed, failed = passed + bool(ok), failed + (not ok)
        if not ok:
            print(f"FAIL {what}")
    good, bad = (bench.targets(result_of(worse), 20) for worse in (-1, 1))
    expect(len(good) == len(bad) == 8, f"8 targets, not {len(good)} and {len(bad)}")
    expect(all(line.endswith(": met") for line in good), f"better than every bound: {good}")
    expect(all(line.endswith(": missed") for line in bad), f"worse than every bound: {bad}")
    other = bench.targets(result_of(-1, "flan-t5-xl"), 20)
    expect(len(other) == 5, f"milliseconds are wanted of opt-2.7b alone: {other}")
    expect(not any("caption of" in line for line in bench.targets(result_of(-1), 10)), "a caption of 10 tokens")
    some = result_of(-1)
    some["runs"] = [{**r, "figures": "ran out of time"} for r in some["runs"] if "eager" not in r["who"]]
    expect(bench.targets(some, 20) == [], "nothing was measured")
    print(f"{passed} passed, {failed} failed, 0 skipped")
    return failed > 0


if __name__ == "__main__":
    sys.exit(main())
