"""Tests of int8 and int4 exports.

In order: layouts spelled out byte by byte, rounding and its errors, GPTQ, exported files and what ./blip2 makes of
them, input that cannot be stored, calibration.

Run:  BLIP2=./blip2 python test/parity_export_int.py      (needs torch and transformers, test/requirements.txt)
"""

import os
import sys
import tempfile
from pathlib import Path

import numpy as np

os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
from export_tools import HERE, Tally, export, make, rewrite
import quantize
import truth
from container import WeightFile, write_file
from tensors import Entry

t = Tally()
BLIP2 = os.environ.get("BLIP2", str(HERE.parent / "blip2"))
IMAGE = HERE / "data/tiny_0.png"
STAGE_BOUND = 2e-5   # of a stage between a rounded file and an f32 file of the same numbers; measured 2.1e-6


def relative(a, b):
    """|a - b| / |a|."""
    return float(np.linalg.norm((a - b).astype(np.float64)) / np.linalg.norm(a.astype(np.float64)))


def check_layout():
    """Bytes against doc/format.md, one number at a time."""
    rng = np.random.default_rng(1)
    for rows, cols in ((1, 1), (3, 31), (2, 32), (5, 100), (7, 257)):
        x = rng.standard_normal((rows, cols)).astype(np.float32)
        for dtype in "int8", "int4":
            record = type("R", (), {"dtype": dtype, "rows": rows, "cols": cols})
            data = b"".join(a.tobytes() for a in quantize.encode(record, iter([x[:1].ravel(), x[1:].ravel()])))
            g = -(-cols // 32)
            codes = rows * cols if dtype == "int8" else rows * g * 16
            at = (codes + 255) // 256 * 256
            t.expect(len(data) == quantize.nbytes(dtype, rows, cols) == at + rows * (4 if dtype == "int8" else 2 * g),
                     f"{dtype} {rows}x{cols}: {len(data)} bytes")
            t.expect(not any(data[codes:at]), f"{dtype} {rows}x{cols}: zeros before the scales")
            want = np.zeros((rows, cols), np.float32)
            for r in range(rows):
                for c in range(cols):
                    if dtype == "int8":
                        q = int.from_bytes(data[r * cols + c:r * cols + c + 1], "little", signed=True)
                        s = np.frombuffer(data, "<f4", 1, at + 4 * r)[0]
                    else:
                        byte = data[(r * g + c // 32) * 16 + c % 16]
                        q = (byte >> 4 if c % 32 >= 16 else byte & 15) - 8
                        s = np.float32(np.frombuffer(data, "<f2", 1, at + 2 * (r * g + c // 32))[0])
                    want[r, c] = np.float32(q) * s
            got = quantize.decode(data, dtype, rows, cols)
            t.expect(np.array_equal(got, want), f"{dtype} {rows}x{cols}: decode")
            t.expect(abs(record.error - relative(x, got)) < 1e-6, f"{dtype} {rows}x{cols}: the error that is reported")
            if dtype == "int4" and cols % 32:
                last = quantize.unpack4(np.frombuffer(data, np.uint8, codes).reshape(rows, -1))[:, cols:]
                t.expect(not last.any(), f"int4 {rows}x{cols}: columns past the end are not zero")
    codes = rng.integers(-8, 8, (4, 96)).astype(np.float32)
    t.expect(np.array_equal(quantize.unpack4(quantize.pack4(codes)), codes), "pack4 and unpack4")


def check_rounding():
    """Errors on normal numbers: to nearest with max/7 gives 0.0973, the best scales there are 0.0810."""
    x = np.random.default_rng(2).standard_normal((64, 2048)).astype(np.float32)
    q, s = quantize.int4_rows(x)
    e4 = relative(x, q * np.repeat(s.astype(np.float32), 32, 1))
    t.expect(0.0800 < e4 < 0.0820, f"int4 of normal numbers has the error {e4:.4f}, measured 0.0813")
    t.expect((q == -8).any() and (q == 7).any(), "int4 uses all levels")
    q, s = quantize.int8_rows(x)
    e8 = relative(x, q * s[:, None])
    t.expect(e8 < 0.0085, f"int8 of normal numbers has the error {e8:.4f}, measured 0.0079")
    t.expect(q.min() >= -127, "int8 codes below -127")
    odd = np.zeros((4, 64), np.float32)          # a row of zeros, tiny numbers, an outlier, exact levels
    odd[1] = 1e-30
    odd[2, 5] = 1e4
    odd[3] = np.resize(np.arange(-8, 8), 64) * 0.25
    q, s = quantize.int4_rows(odd)
    back = q * np.repeat(s.astype(np.float32), 32, 1)
    t.expect(np.isfinite(back).all() and not back[:2].any() and np.array_equal(back[2:], odd[2:]), "int4 of odd rows")
    q, s = quantize.int8_rows(odd)
    t.expect(np.isfinite(s).all() and relative(odd, q * s[:, None]) < 1e-3, "int8 of odd rows")


def check_gptq():
    """On inputs that depend on each other the output error falls; on independent ones nothing is to be gained."""
    rng = np.random.default_rng(3)
    w = rng.standard_normal((48, 160)).astype(np.float32)
    inputs = (rng.standard_normal((500, 20)) @ rng.standard_normal((20, 160))).astype(np.float32)
    inputs += 0.1 * rng.standard_normal(inputs.shape).astype(np.float32)
    moments = inputs.T @ inputs
    for dtype in "int8", "int4":
        errors = []
        for known in None, moments:
            record = type("R", (), {"dtype": dtype, "rows": 48, "cols": 160})
            data = b"".join(a.tobytes() for a in quantize.encode(record, iter([w.ravel()]), known))
            errors.append(relative(inputs @ w.T, inputs @ quantize.decode(data, dtype, 48, 160).T))
        t.expect(errors[1] < 0.5 * errors[0], f"{dtype}: GPTQ's output error {errors[1]:.5f}, without {errors[0]:.5f}")
    spread = quantize.error_spread(np.eye(160, dtype=np.float32))
    scales = np.full((48, 5), 0.3, np.float32)
    got = quantize.gptq_rows(w, scales, spread, -8, 7, 32)
    t.expect(np.array_equal(got, np.clip(np.rint(w * quantize.inverse(scales[:, :1])), -8, 7)),
             "GPTQ with independent inputs is rounding to nearest")


def as_f32(file, out):
    """Writes the numbers of a weight file as an f32 file."""
    entries = [Entry(r.name, False, r.rows, r.cols, ()) for r in file.records.values()]
    write_file(out, file.config, file.tokenizer, entries, "f32",
               lambda e: iter([(np.ascontiguousarray(file.tensor(e.name)).reshape(-1), e.name)]), True)


def stages(path, tmp):
    """(answer's tokens, all stages) of ./blip2 for a weight file."""
    # the plain inner loops, for the faster ones round what meets int8 weights to 16 bits (doc/matmul.md)
    out = truth.blip2(BLIP2, "-m", path, "--cpu-isa", "plain", "--json", "--quiet", "-b", 1, "-n", 8,
                      "-p", "a photo of", "--dump", tmp / "dump", IMAGE)
    return out[0]["outputs"][0]["tokens"], truth.read_dump(tmp / "dump")


def check_files(tmp):
    """Dtypes, errors, and that ./blip2 computes with the very numbers that decode() gives."""
    for kind in "tiny_opt", "tiny_t5":
        folder = make(tmp / kind, kind)
        export(folder, tmp / "f32.bin", "--dtype", "f32")
        source, worst = WeightFile(tmp / "f32.bin"), 0
        for dtype, bound in (("int8", 0.02), ("int4", 0.11)):
            path = tmp / f"{kind}.{dtype}.bin"
            done = export(folder, path, "--dtype", dtype, "-v")
            if not t.expect(done.returncode == 0, f"{kind} {dtype}: {done.stderr}"):
                continue
            file = WeightFile(path)
            for r in file.records.values():
                matrix = r.name.endswith(".w") and r.rows > 1 or r.name in ("lm.tok", "lm.head")
                t.expect(r.dtype == (quantize.dtype_of(r.name, dtype) if matrix else "f32"),
                         f"{kind}: {r.name} is {r.dtype}")
                if r.dtype == "f32":
                    t.expect(np.array_equal(file.tensor(r.name), source.tensor(r.name)), f"{kind}: {r.name} changed")
                    continue
                e = relative(source.tensor(r.name), file.tensor(r.name))
                t.expect(e < bound, f"{kind} {dtype}: {r.name} has the error {e:.4f}")
                t.expect(f"{r.name} " in done.stdout and f"{e:.4f}"[:-1] in done.stdout,
                         f"{kind}: {r.name} in the report")
            as_f32(file, tmp / "back.bin")
            truth.blip2(BLIP2, "-m", path, "--verify", "--json", "--quiet", "-b", 1, "-n", 1, IMAGE)
            (tokens, got), (same, want) = stages(path, tmp), stages(tmp / "back.bin", tmp)
            t.expect(tokens == same, f"{kind} {dtype}: tokens {tokens}, in f32 {same}")
            for name, w in want.items():
                e = truth.compare(got[name], w)[0]
                worst = max(worst, e)
                t.expect(e <= STAGE_BOUND, f"{kind} {dtype}: {name} differs by {e:.2e}")
            e = truth.compare(got["logits"], stages(tmp / "f32.bin", tmp)[1]["logits"])[0]
            t.expect(e > STAGE_BOUND, f"{kind} {dtype}: the logits are those of the f32 file, so nothing was rounded")
        print(f"{kind}: stages of rounded files within {worst:.1e} of f32 files of the same numbers", file=sys.stderr)


def check_errors(tmp):
    """What cannot be stored stops the export and names the tensor."""
    name = "language_model.model.decoder.layers.0.fc1.weight"
    for value, dtype, wanted in ((np.nan, "int8", "NaN"), (np.inf, "int4", "infinity"), (3e6, "int4", "too large"),
                                 (3e6, "int8", None)):
        folder = make(tmp / f"bad_{value}_{dtype}", "tiny_opt")

        def change(x, value=value):
            x[name][2, 3] = value
        rewrite(folder / "model.safetensors", change)
        out = tmp / f"bad_{value}_{dtype}.bin"
        done = export(folder, out, "--dtype", dtype)
        if wanted is None:
            t.expect(done.returncode == 0, f"{value} in {dtype}: {done.stderr}")
        else:
            t.expect(done.returncode == 1 and wanted in done.stderr and name in done.stderr and not out.exists(),
                     f"{value} in {dtype}: {done.stderr}")
    folder = make(tmp / "plain", "tiny_opt")
    for args, wanted in ((["--dtype", "int3"], "must be one of"), (["--calibrate", tmp], "goes with"),
                         (["--dtype", "bf16", "--calibrate", tmp], "goes with")):
        done = export(folder, tmp / "no.bin", *args)
        t.expect(done.returncode == 2 and wanted in done.stderr, f"{args}: {done.stderr}")
    (tmp / "empty").mkdir()
    done = export(folder, tmp / "no.bin", "--dtype", "int4", "--calibrate", tmp / "empty")
    t.expect(done.returncode == 1 and "no pictures" in done.stderr, f"nothing to calibrate with: {done.stderr}")


def check_calibration(tmp):
    """On the pictures that it was calibrated with, image features are closer to f32. (Logits behind a language model of
    random weights need not be: three pictures are few.)"""
    samples = tmp / "samples"
    samples.mkdir()
    for i in range(3):
        (samples / f"{i}.png").write_bytes((HERE / f"data/tiny_{i}.png").read_bytes())
    (samples / "prompts.txt").write_text("\na photo of\n")
    for kind, *more in (("tiny_opt",), ("tiny_t5",), ("tiny_t5", "--tied")):
        folder = make(tmp / f"{kind}{len(more)}_calibrated", kind, *more)
        errors = []
        export(folder, tmp / "f32.bin", "--dtype", "f32")
        want = stages(tmp / "f32.bin", tmp)[1]
        for args in [], ["--calibrate", samples]:
            done = export(folder, tmp / "cal.bin", "--dtype", "int4", *args)
            if not t.expect(done.returncode == 0, f"{kind} {args}: {done.stderr}"):
                return
            got = stages(tmp / "cal.bin", tmp)[1]
            errors.append({n: truth.compare(got[n], want[n])[0] for n in ("vision_model.post_layernorm",
                                                                          "language_projection")})
        for name in errors[0]:
            t.expect(errors[1][name] < 0.8 * errors[0][name],
                     f"{kind} {more}: {name} {errors[1][name]:.4f} calibrated, {errors[0][name]:.4f} without")


def main():
    """Runs all; the exit status says whether all passed."""
    with tempfile.TemporaryDirectory() as name:
        tmp = Path(name)
        check_layout()
        check_rounding()
        check_gptq()
        check_files(tmp)
        check_errors(tmp)
        check_calibration(tmp)
    return t.finish()


if __name__ == "__main__":
    sys.exit(main())
