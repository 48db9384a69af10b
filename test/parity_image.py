"""parity_image.py: decoded, turned and resized pixels of the C program against Pillow 11.3.0, byte for byte.

In order: running the C program, the whole catalogue of make_images.py in many sizes, JPEGs with unusual
sampling when cjpeg is installed, resizing, files that are cut off, the negative control.

    python test/parity_image.py [build/test_image]
"""
import os
import pathlib
import random
import shutil
import subprocess
import sys
import tempfile
import warnings

import numpy as np
import PIL
from PIL import Image

from make_images import cases, image, pixels, saved, truth

passed = failed = skipped = 0


def check(ok, what):
    global passed, failed
    if ok:
        passed += 1
    else:
        failed += 1
        print(f"FAIL {what}")
    return ok


def run(program, command, data, *args):
    """(H, W, 3) uint8 or the error text, and the warning text."""
    with tempfile.TemporaryDirectory() as d:
        name, out = pathlib.Path(d, "image"), pathlib.Path(d, "out.ppm")
        name.write_bytes(data)
        p = subprocess.run([program, command, name, *map(str, args), out], capture_output=True, text=True)
        if p.returncode != 0:
            return p.stderr.strip() or f"exit status {p.returncode}", ""
        head, rest = out.read_bytes().split(b"\n255\n", 1)
        W, H = map(int, head.split()[1:])
        return np.frombuffer(rest, np.uint8).reshape(H, W, 3), p.stderr.strip()


def compare(got, want, what):
    if isinstance(got, str):
        return check(False, f"{what}: {got}")
    if got.shape != want.shape:
        return check(False, f"{what}: shape {got.shape}, Pillow {want.shape}")
    d = np.abs(got.astype(int) - want)
    return check(d.max() == 0, f"{what}: {np.count_nonzero(d)} of {d.size} bytes differ, by up to {d.max()}")


def decoding(program):
    """Every kind of file in sizes around the blocks of JPEG and WebP and the passes of interlaced PNG."""
    for W, H in ((1, 1), (2, 1), (1, 3), (5, 4), (8, 8), (9, 17), (16, 16), (33, 31), (100, 67), (257, 130)):
        for name, data in cases(W, H):
            compare(run(program, "--decode", data)[0], truth(data), f"{name} {W}x{H}")
            if W == 9 or "exif" in name or "xmp" in name:
                compare(run(program, "--turn", data)[0], truth(data, True), f"{name} {W}x{H} turned")


def sampling(program):
    """4:1:1, 4:4:0 and stranger ones, which Pillow reads but cannot write."""
    global skipped
    if not shutil.which("cjpeg"):
        print("SKIP unusual JPEG sampling: cjpeg (Debian: libjpeg-turbo-progs) is not installed")
        skipped += 1
        return
    ppm = saved(image(61, 45, "RGB"), "PPM")
    for sample in ("4x1", "1x2", "1x4", "4x2", "2x1,1x2,1x1", "1x1,2x1,1x2", "3x1", "2x2,2x1,1x1"):
        for more in ([], ["-progressive"], ["-arithmetic"], ["-restart", "1"]):
            p = subprocess.run(["cjpeg", "-sample", sample, *more], input=ppm, capture_output=True)
            if check(p.returncode == 0, f"cjpeg -sample {sample}: {p.stderr}"):
                compare(run(program, "--decode", p.stdout)[0], truth(p.stdout), f"jpeg {sample} {more}")


def resizing(program):
    rng = random.Random(7)
    sizes = [(1, 1), (1, 50), (50, 1), (224, 224), (224, 364), (2, 3000), (3000, 2), (4032, 3024)]
    sizes += [(rng.randrange(1, 900), rng.randrange(1, 900)) for _ in range(40)]
    for i, (W, H) in enumerate(sizes):
        if i % 3 == 0:  # black and white noise: overshoot is clipped everywhere
            px = (np.random.default_rng(i).integers(0, 2, (H, W, 3)) * 255).astype(np.uint8)
        elif i % 3 == 1:
            px = np.random.default_rng(i).integers(0, 256, (H, W, 3)).astype(np.uint8)
        else:
            px = pixels(W, H, 3, i).astype(np.uint8)
        im = Image.fromarray(px, "RGB")
        for S in (224, 364, rng.choice([1, 7, 30, 490])):
            want = np.asarray(im.resize((S, S), Image.Resampling.BICUBIC))
            compare(run(program, "--resize", saved(im, "PPM"), S)[0], want, f"resize {W}x{H} to {S}")


def cut_off(program):
    """What Pillow refuses is refused; what both read is the same; what only we read comes with a warning."""
    rng = random.Random(3)
    refused = 0
    for name, data in cases(33, 31):
        for n in sorted(rng.randrange(len(data)) for _ in range(3)):
            part = data[:n]
            try:
                want = truth(part)
            except Exception:  # any: Pillow's plugins raise whatever they like on broken files
                want = None
            got, warning = run(program, "--decode", part)
            refused += isinstance(got, str)
            if isinstance(got, str):
                check("crashed" not in got and "without" not in got, f"{name} cut to {n}: {got}")
            elif want is not None:
                compare(got, want, f"{name} cut to {n}")
            else:
                complete = warning or np.array_equal(got, truth(data))
                check(complete, f"{name} cut to {n} passes; Pillow refuses it")
    check(refused > 100, f"only {refused} cut off files were refused")


def control(program):
    """A single wrong byte must be seen by compare()."""
    global passed, failed
    data = saved(image(33, 31, "RGB"), "PNG")
    wrong = truth(data).copy()
    wrong[30, 32, 2] ^= 1
    before = passed, failed
    print("negative control, one failure expected:", end=" ")
    seen = not compare(run(program, "--decode", data)[0], wrong, "changed byte")
    passed, failed = before
    check(seen, "a changed byte was not seen")


def main():
    global skipped
    if PIL.__version__ != "11.3.0":
        sys.exit(f"Pillow 11.3.0 is the reference, this is {PIL.__version__}")
    warnings.simplefilter("ignore")
    built = pathlib.Path(os.environ.get("BLIP2", "build/blip2")).with_name("test_image")
    program = str(pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else built).resolve())
    decoding(program)
    sampling(program)
    resizing(program)
    cut_off(program)
    control(program)
    print(f"{passed} passed, {failed} failed, {skipped} skipped")
    sys.exit(failed > 0 or passed == 0)


if __name__ == "__main__":
    main()
