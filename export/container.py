"""Writes and reads the weight file (doc/format.md).

In order: the hyperparameter tables, packing of the head, conversion to bf16, write_file, and WeightFile, which the
tests use. Where tensors come from is not known here: write_file is given their numbers chunk by chunk. int8 and int4
are quantize.py's.
"""

import json
import os
import struct
import sys
import zlib
from dataclasses import dataclass
from pathlib import Path

try:
    import numpy as np
except ImportError:
    sys.exit("the exporter needs numpy; hint: python3 -m pip install -r export/requirements.txt")
import quantize

# Field, smallest and largest value: CONFIG_INTS and CONFIG_FLOATS of blip2.h, in the same order. test/parity_export.py
# holds the two against each other.
INTS = (
    ("family", 1, 2), ("S", 1, 4096), ("P", 1, 1024), ("DV", 1, 65536), ("HV", 1, 1024), ("FV", 1, 262144),
    ("LV", 1, 512), ("DQ", 1, 65536), ("HQ", 1, 1024), ("FQ", 1, 262144), ("LQ", 1, 512), ("XQ", 1, 512),
    ("Q", 1, 4096), ("DL", 1, 65536), ("HL", 1, 1024), ("AL", 1, 4096), ("FL", 1, 262144), ("LE", 0, 512),
    ("LD", 1, 512), ("V", 2, 4194304), ("positions", 0, 1048576), ("act", 0, 2), ("buckets", 0, 4096),
    ("max_distance", 0, 1048576), ("tied", 0, 1), ("image_token", -1, 4194303), ("bos", -1, 4194303),
    ("eos", 0, 4194303), ("pad", 0, 4194303), ("start", -1, 4194303), ("beams", 1, 64), ("max_new", 1, 1048576),
    ("min_new", 0, 1048576), ("top_k", 0, 4194304),
)
FLOATS = (
    ("eps_vit", 0.0, 1.0), ("eps_post", 0.0, 1.0), ("eps_qformer", 0.0, 1.0), ("eps_lm", 0.0, 1.0),
    ("logit_scale", 1e-6, 1e6), ("mean_r", -10.0, 10.0), ("mean_g", -10.0, 10.0), ("mean_b", -10.0, 10.0),
    ("std_r", 1e-6, 1e6), ("std_g", 1e-6, 1e6), ("std_b", 1e-6, 1e6), ("length_penalty", -100.0, 100.0),
    ("repeat_penalty", 1e-3, 1e3), ("top_p", 1e-6, 1.0), ("temp", 1e-3, 1e3),
)
MAGIC, VERSION = b"BLIP2C\r\n", 1
HEADER = struct.Struct("<8sIIQQIIII16x")          # magic, version, head_crc, head_bytes, file_bytes, four counts
RECORD = struct.Struct("<48sIIIIQQ16x")           # name, dtype, rows, cols, crc32, offset, nbytes
TYPE_BYTES, PROMPT_BYTES, DATA_ALIGN, HEAD_ALIGN = 64, 256, 256, 4096
DTYPES = {"f32": 0, "bf16": 1, "int8": 2, "int4": 3}


class ExportError(Exception):
    """Anything that stops an export because of its input; the message is one line for the user."""


@dataclass
class Record:
    """A tensor's place in the file."""
    name: str
    dtype: str
    rows: int
    cols: int
    offset: int
    nbytes: int
    crc: int = 0
    error: float | None = None            # relative, of a tensor that was rounded to int8 or int4


def round_up(n, to):
    """The next multiple of to."""
    return (n + to - 1) // to * to


# ---------------------------------------------------------------------------------------------------------------------
# The head


def check_config(config):
    """Raises ExportError unless every field is there and within the range that the program accepts."""
    for name, lo, hi in INTS + FLOATS:
        value = config.get(name)
        if not isinstance(value, (int, float)) or not lo <= value <= hi:
            raise ExportError(f"{name} is {value}, but must be from {lo} to {hi}")
    for width, heads in (("DV", "HV"), ("DQ", "HQ")):
        if config[width] % config[heads]:
            raise ExportError(f"{config[heads]} attention heads do not divide a width of {config[width]}")


def pack_text(text, room, what):
    """NUL-padded UTF-8 with at least one NUL."""
    data = text.encode()
    if len(data) >= room or b"\0" in data:
        raise ExportError(f"the {what} takes {len(data)} bytes, at most {room - 1} fit: {text!r}")
    return data.ljust(room, b"\0")


def pack_config(config):
    """All hyperparameters and the two texts."""
    check_config(config)
    return (struct.pack(f"<{len(INTS)}i", *(int(config[n]) for n, _, _ in INTS))
            + struct.pack(f"<{len(FLOATS)}f", *(float(config[n]) for n, _, _ in FLOATS))
            + pack_text(config["type"], TYPE_BYTES, "model type")
            + pack_text(config["prompt"], PROMPT_BYTES, "default prompt"))


def config_bytes():
    """Bytes of the config section."""
    return 4 * (len(INTS) + len(FLOATS)) + TYPE_BYTES + PROMPT_BYTES


def directory_at():
    """Where the directory starts."""
    return round_up(HEADER.size + config_bytes(), 8)


def tensor_bytes(dtype, rows, cols):
    """Bytes of a tensor, scales included."""
    if dtype in ("int8", "int4"):
        return quantize.nbytes(dtype, rows, cols)
    return rows * cols * (4 if dtype == "f32" else 2)


def place(entries, dtype, tokenizer_bytes):
    """Where each tensor goes. Returns (head_bytes, file_bytes, [Record])."""
    head_bytes = round_up(directory_at() + RECORD.size * len(entries) + tokenizer_bytes, HEAD_ALIGN)
    at, records = head_bytes, []
    for entry in entries:
        kind = quantize.dtype_of(entry.name, dtype) if entry.matrix else "f32"
        nbytes = tensor_bytes(kind, entry.rows, entry.cols)
        records.append(Record(entry.name, kind, entry.rows, entry.cols, at, nbytes))
        at = round_up(at + nbytes, DATA_ALIGN)
    return head_bytes, records[-1].offset + records[-1].nbytes, records


def pack_head(config, tokenizer, records, head_bytes, file_bytes):
    """The first head_bytes of the file, checksum included."""
    body = pack_config(config)
    body += bytes(directory_at() - HEADER.size - len(body))
    for r in records:
        body += RECORD.pack(pack_text(r.name, 48, "tensor name"), DTYPES[r.dtype], r.rows, r.cols, r.crc, r.offset,
                            r.nbytes)
    body = (body + tokenizer).ljust(head_bytes - HEADER.size, b"\0")
    counts = (len(INTS), len(FLOATS), len(records), len(tokenizer))
    head = HEADER.pack(MAGIC, VERSION, 0, head_bytes, file_bytes, *counts) + body
    return head[:12] + struct.pack("<I", zlib.crc32(head[16:])) + head[16:]


# ---------------------------------------------------------------------------------------------------------------------
# Writing


def to_bf16(x):
    """f32 array (n) -> u16 array (n) of bf16 by round-to-nearest-even, as torch's .bfloat16(). x must be finite."""
    u = x.view(np.uint32)
    return ((u + (0x7FFF + ((u >> 16) & 1))) >> 16).astype(np.uint16)


def encode(record, chunks, moments):
    """The bytes of a tensor in order, as arrays.

    record: Record; chunks: iterator of (f32 array (n), name of the source tensor); moments: for quantize.encode. Raises
    ExportError on NaN, infinity and numbers that do not fit."""
    name = record.name

    def numbers():
        nonlocal name
        for x, name in chunks:
            if not np.isfinite(x).all():
                raise ValueError(f"{'NaN' if np.isnan(x).any() else 'infinity'} among the values")
            yield x
    try:
        if record.dtype in ("int8", "int4"):
            yield from quantize.encode(record, numbers(), moments)
            return
        for x in numbers():
            y = x if record.dtype == "f32" else to_bf16(x)
            if record.dtype == "bf16" and ((y & 0x7F80) == 0x7F80).any():
                raise ValueError("a value is too large for bf16; hint: --dtype f32")
            yield y
    except ValueError as e:
        raise ExportError(f"tensor {name}: {e}") from None


def progress_line(what, done, total, state):
    """Shows how far something is on stderr: a line that changes on a terminal, otherwise a line every tenth. state is
    a dictionary that the caller keeps."""
    percent = 100 * done // max(total, 1)
    text = f"{what}: {done / 1e9:.2f} of {total / 1e9:.2f} GB, {percent} %"
    if sys.stderr.isatty() and percent != state.get("percent"):
        print(f"\r{text}", end="\n" if percent == 100 else "", file=sys.stderr, flush=True)
    elif not sys.stderr.isatty() and percent // 10 != state.get("percent", 0) // 10:
        print(text, file=sys.stderr)
    state["percent"] = percent


def write_data(f, records, entries, chunks, moments, file_bytes, quiet):
    """Streams the tensors behind the head and fills in each record's crc."""
    state = {}
    for record, entry in zip(records, entries):
        f.seek(record.offset)     # the hole in front of it reads as zeros
        written = 0
        known = moments(entry) if moments and record.dtype in ("int8", "int4") else None
        for x in encode(record, chunks(entry), known):
            data = memoryview(np.ascontiguousarray(x)).cast("B") if x.size else b""
            record.crc = zlib.crc32(data, record.crc)
            f.write(data)
            written += len(data)
            if not quiet:
                progress_line("writing", record.offset + written, file_bytes, state)
        if written != record.nbytes:
            raise AssertionError(f"{entry.name}: {written} bytes came instead of {record.nbytes}")


def write_file(path, config, tokenizer, entries, dtype, chunks, quiet=False, moments=None):
    """Writes a weight file under a temporary name, syncs it and renames it; whatever goes wrong, nothing is left.

    path: where to; config: {field: number, "type": str, "prompt": str}; tokenizer: bytes of that section; entries:
    list of tensors.Entry; dtype: a key of DTYPES for matrices; chunks(entry): iterator of (f32 array (n), name of the
    source tensor), whose arrays together hold rows*cols numbers; moments(entry): second moments (cols,cols) of a
    matrix's inputs or None, for int8 and int4. Returns (file_bytes, [Record]). Raises ExportError, OSError."""
    head_bytes, file_bytes, records = place(entries, dtype, len(tokenizer))
    pack_head(config, tokenizer, records, head_bytes, file_bytes)   # refuses bad values before the work
    path = Path(path)
    room = os.statvfs(path.parent)
    if room.f_bavail * room.f_frsize < file_bytes:
        raise ExportError(f"{path}: {file_bytes / 1e9:.2f} GB are needed, but the disk has only "
                          f"{room.f_bavail * room.f_frsize / 1e9:.2f} GB free")
    temporary = path.with_name(f"{path.name}.tmp{os.getpid()}")
    try:
        with open(temporary, "xb") as f:
            write_data(f, records, entries, chunks, moments, file_bytes, quiet)
            f.seek(0)
            f.write(pack_head(config, tokenizer, records, head_bytes, file_bytes))
            f.flush()
            os.fsync(f.fileno())
        os.rename(temporary, path)
    except BaseException:     # Ctrl-C too
        temporary.unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)      # the new name survives a power cut
    finally:
        os.close(folder)
    return file_bytes, records


# ---------------------------------------------------------------------------------------------------------------------
# Reading back


class WeightFile:
    """A weight file for tests and tools: .config, .records {name: Record}, .tokenizer; tensor(name) reads one."""

    def __init__(self, path):
        """Raises ExportError when the head is damaged."""
        self.path = path
        with open(path, "rb") as f:
            head = f.read(HEADER.size)
            magic, version, crc, head_bytes, file_bytes, *counts = HEADER.unpack(head)
            if (magic, version, *counts[:2]) != (MAGIC, VERSION, len(INTS), len(FLOATS)):
                raise ExportError(f"{path}: not a weight file of version {VERSION}")
            head += f.read(head_bytes - HEADER.size)
        if len(head) != head_bytes or zlib.crc32(head[16:]) != crc or os.path.getsize(path) != file_bytes:
            raise ExportError(f"{path}: damaged head, or {os.path.getsize(path)} instead of {file_bytes} bytes")
        at = HEADER.size
        values = struct.unpack_from(f"<{len(INTS)}i{len(FLOATS)}f", head, at)
        self.config = dict(zip((n for n, _, _ in INTS + FLOATS), values))
        at += 4 * len(values)
        for name, room in (("type", TYPE_BYTES), ("prompt", PROMPT_BYTES)):
            self.config[name] = head[at:at + room].rstrip(b"\0").decode()
            at += room
        at = directory_at()
        codes = {code: name for name, code in DTYPES.items()}
        self.records = {}
        for name, dtype, rows, cols, crc, offset, nbytes in RECORD.iter_unpack(head[at:at + RECORD.size * counts[2]]):
            name = name.rstrip(b"\0").decode()
            self.records[name] = Record(name, codes[dtype], rows, cols, offset, nbytes, crc)
        at += RECORD.size * counts[2]
        self.tokenizer = head[at:at + counts[3]]

    def tensor(self, name):
        """The tensor as f32 (rows, cols). Raises ExportError when its checksum is wrong."""
        r = self.records[name]
        with open(self.path, "rb") as f:
            f.seek(r.offset)
            data = f.read(r.nbytes)
        if len(data) != r.nbytes or zlib.crc32(data) != r.crc:
            raise ExportError(f"{self.path}: tensor {name} is damaged")
        if r.dtype in ("int8", "int4"):
            return quantize.decode(data, r.dtype, r.rows, r.cols)
        if r.dtype == "bf16":
            return (np.frombuffer(data, "<u2").astype(np.uint32) << 16).view(np.float32).reshape(r.rows, r.cols)
        return np.frombuffer(data, "<f4").reshape(r.rows, r.cols)


if __name__ == "__main__":   # python3 export/container.py FILE shows the head
    weights = WeightFile(sys.argv[1])
    print(json.dumps(weights.config, indent=1))
    for r in weights.records.values():
        print(f"{r.name:24} {r.dtype:5} {r.rows:8} {r.cols:8} {r.offset:12} {r.crc:08x}")
