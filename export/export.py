"""Makes a weight file for ./blip2 out of a BLIP-2 checkpoint.

    python3 export/export.py SRC -o FILE [--dtype f32|bf16|int8|int4] [--calibrate IMAGES]
    python3 export/export.py --lavis TYPE CKPT.pth [--vit EVA.pth] --llm FOLDER -o FILE [--dtype f32|bf16|int8|int4]

SRC is a Hugging Face folder, or the id of a model on the hub such as Salesforce/blip2-opt-2.7b (org/name[@revision]).

In order: the command line, checking and opening the source, run, main. The work is in container.py (the file),
source.py (reading checkpoints), tensors.py and lookup.py (which tensor is which), hf.py and lavis.py (the two kinds of
checkpoints), quantize.py (int8 and int4), calibrate.py (--calibrate), tokenizer.py and hub.py.
"""

import argparse
import signal
import sys
import time
from pathlib import Path

import hf
import hub
import lavis
import quantize
from container import DTYPES, ExportError, write_file
from tensors import OPT, TYPES
from tokenizer import TokenizerError

HELP_DTYPE = """dtype of the matrices; vectors are always f32. bf16 halves the file and is what most people want; int8
halves it again and int4 once more, for a loss that doc/quantization.md measures. By default nothing is lost: bf16 when
the source is bf16, otherwise f32"""
HELP_CALIBRATE = """with int4 or int8: a folder of sample pictures (and prompts.txt, if you like, one prompt a line).
Rounds so that the outputs stay close for inputs like these. Needs torch and transformers, the memory of the model in
f32, and minutes to hours"""


def usage():
    """The command line."""
    p = argparse.ArgumentParser(prog="export.py",
                                description="Makes a weight file for ./blip2 out of a BLIP-2 checkpoint.",
                                epilog="Environment: HF_ENDPOINT, HF_TOKEN (hub), BLIP2_CACHE (folder of downloads, "
                                "~/.cache/blip2c by default).")
    p.add_argument("src", nargs="?", metavar="SRC", help="Hugging Face folder, or hub id org/name[@revision]")
    p.add_argument("-o", "--output", required=True, metavar="FILE", help="the weight file to write")
    p.add_argument("--dtype", metavar="f32|bf16|int8|int4", help=HELP_DTYPE)
    p.add_argument("--calibrate", metavar="FOLDER", help=HELP_CALIBRATE)
    p.add_argument("--lavis", nargs=2, metavar=("TYPE", "CKPT.pth"), help="a LAVIS checkpoint; TYPE is one of " +
                   ", ".join(TYPES))
    p.add_argument("--vit", metavar="EVA.pth",
                   help="with --lavis: eva_vit_g.pth, for checkpoints without their own ViT")
    p.add_argument("--llm", metavar="FOLDER", help="with --lavis: folder of facebook/opt-* or google/flan-t5-*")
    p.add_argument("-q", "--quiet", action="store_true", help="no progress on stderr")
    p.add_argument("-v", "--verbose", action="store_true", help="the error of every tensor, not only their range")
    args = p.parse_args()
    if args.dtype not in (None, *DTYPES):
        p.error(f"--dtype must be one of {', '.join(DTYPES)}, not {args.dtype!r}")
    if args.calibrate and (args.dtype not in ("int8", "int4") or args.lavis):
        p.error("--calibrate goes with --dtype int8 or int4" +
                (" and a Hugging Face folder, which transformers can run" if args.lavis else ""))
    if bool(args.src) == bool(args.lavis):
        p.error("give either SRC or --lavis TYPE CKPT.pth")
    if args.lavis and not args.llm:
        p.error("--lavis needs --llm FOLDER, since LAVIS checkpoints come without the language model")
    if args.lavis and args.lavis[0] not in TYPES:
        p.error(f"--lavis {args.lavis[0]}: no such type; there are {', '.join(TYPES)}")
    if not args.lavis and (args.vit or args.llm):
        p.error("--vit and --llm go with --lavis")
    return args


def open_source(args):
    """Reads everything but the tensors' numbers. Returns (folder, Settings, tokenizer, [Entry], Lookup)."""
    if args.lavis:
        return None, *lavis.open_checkpoint(*args.lavis, args.vit, args.llm)
    folder = Path(args.src)
    if not folder.is_dir():
        folder = hub.download(args.src, args.quiet)
    return folder, *hf.open_checkpoint(folder)


def summary(s, entries, args, dtype, file_bytes, records, seconds):
    """What was written and what to type next."""
    c = s.config
    numbers = sum(e.rows * e.cols for e in entries)
    language = f"OPT, {c['LD']} layers" if c["family"] == OPT else f"Flan-T5, {c['LE']} + {c['LD']} layers"
    print(f"wrote {args.output}: {c['type']}, {numbers / 1e6:.1f} million parameters in {len(entries)} tensors, "
          f"{dtype}, {file_bytes / 1e6:.1f} MB, {seconds:.0f} s")
    print(f"  image {c['S']} x {c['S']}, ViT {c['LV']} blocks, Q-Former {c['LQ']} layers and {c['Q']} queries, "
          f"{language}, vocabulary {c['V']}")
    for line in quantize.report(records, args.verbose):
        print(line)
    if dtype == "f32":
        print("  --dtype bf16 would make it about half as large")
    print(f"next: ./blip2 -m {args.output} photo.jpg")


def run(args):
    """The whole export. Raises ExportError, TokenizerError, OSError."""
    began = time.monotonic()
    output = Path(args.output)
    if output.is_dir():
        raise ExportError(f"{output}: is a folder; -o needs the name of a file")
    if not output.parent.is_dir():
        raise ExportError(f"{output.parent}: no such folder")
    folder, s, tokenizer, entries, lookup = open_source(args)
    for note in s.notes:
        print(f"note: {note}", file=sys.stderr)
    dtype = args.dtype or ("bf16" if lookup.dtypes(entries) == {"BF16"} else "f32")
    moments = None
    if args.calibrate:
        import calibrate     # imports torch
        moments = calibrate.Moments(folder, Path(args.calibrate), entries, dtype, args.quiet).of
    file_bytes, records = write_file(output, s.config, tokenizer.blob, entries, dtype, lookup.chunks, args.quiet,
                                     moments)
    summary(s, entries, args, dtype, file_bytes, records, time.monotonic() - began)


def stop(*_):
    """SIGTERM and SIGHUP clean up as Ctrl-C does."""
    raise KeyboardInterrupt


def main():
    """Exit codes: 0 written, 1 failed, 2 usage, 130 interrupted."""
    args = usage()
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, stop)
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)     # a file size limit becomes an OSError
    try:
        run(args)
    except (ExportError, TokenizerError) as e:
        print(f"export.py: {e}", file=sys.stderr)
        return 1
    except OSError as e:
        print(f"export.py: {e.filename or args.output}: {e.strerror or e}", file=sys.stderr)
        return 1
    except MemoryError:
        print("export.py: out of memory", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("export.py: interrupted, nothing was written", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
