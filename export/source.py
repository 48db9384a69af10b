"""Reads tensors out of checkpoint files, a chunk at a time.

In order: Info, Safetensors (one file), TorchFile (one .bin or .pth), and open_folder, which finds the weights of a
Hugging Face folder in whichever of the four forms they have (one or several files, safetensors or .bin).

safetensors files are read with plain reads rather than through a mapping: memory stays small, and a file that is cut
short while it is read gives an error instead of a signal. Nothing a file says is believed before it is checked.
"""

import ctypes
import json
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from container import ExportError

CHUNK = 1 << 22                           # numbers per chunk: 16 MB of f32
MAX_HEADER = 100 << 20                    # as the safetensors library has it
NUMPY = {"F32": np.dtype("<f4"), "F16": np.dtype("<f2"), "BF16": np.dtype("<u2"), "F64": np.dtype("<f8")}
OTHER_BYTES = {"BOOL": 1, "U8": 1, "I8": 1, "F8_E4M3": 1, "F8_E5M2": 1, "I16": 2, "U16": 2, "I32": 4, "U32": 4,
               "I64": 8, "U64": 8}        # may be there (position_ids), but cannot be weights


@dataclass(frozen=True)
class Info:
    """dtype as safetensors names it; shape a tuple; where: file offset, or a torch tensor."""
    dtype: str
    shape: tuple
    where: object


def count(shape):
    """Numbers in a tensor; Python integers do not overflow."""
    n = 1
    for d in shape:
        n *= d
    return n


def to_f32(x, dtype):
    """A flat array as read -> f32. bf16 is the upper half of an f32."""
    if dtype == "BF16":
        return (x.astype(np.uint32) << 16).view(np.float32)
    return x if dtype == "F32" else x.astype(np.float32)


def parse_json(data, what):
    """The value of a JSON text in which no key is given twice. Raises ExportError."""
    def unique(pairs):
        keys = dict(pairs)
        if len(keys) != len(pairs):
            raise ValueError("a key is given twice")
        return keys
    try:
        return json.loads(data, object_pairs_hook=unique)
    except (ValueError, RecursionError) as e:    # UnicodeDecodeError is a ValueError
        raise ExportError(f"{what}: not valid JSON ({e})") from None


class Safetensors:
    """One safetensors file: .tensors {name: Info}. Format: u64 length, JSON header, data."""

    def __init__(self, path):
        self.path = Path(path)
        self.file = open(path, "rb")
        size = os.fstat(self.file.fileno()).st_size
        length = int.from_bytes(self.file.read(8), "little")
        if size < 8 or length > min(size - 8, MAX_HEADER):
            raise ExportError(f"{path}: not a safetensors file, or truncated: {size} bytes, a header of {length}")
        header = parse_json(self.file.read(length), f"{path}: header")
        if not isinstance(header, dict):
            raise ExportError(f"{path}: the header is no JSON object")
        header.pop("__metadata__", None)
        self.tensors, ends = {}, []
        for name, entry in header.items():
            begin, end, info = self.check(name, entry, 8 + length)
            self.tensors[name] = info
            ends.append((begin, end, name))
        at = 0
        for begin, end, name in sorted(ends):
            if begin != at:
                raise ExportError(f"{path}: tensor {name} starts at {begin}, expected {at}: tensors overlap or leave a "
                                  "gap")
            at = end
        if 8 + length + at != size:
            raise ExportError(f"{path}: {'truncated' if size < 8 + length + at else 'too long'}: {size} bytes, but the "
                              f"header describes {8 + length + at}; hint: download it again")

    def check(self, name, entry, data_at):
        """A header entry as (begin, end, Info). Raises ExportError when it does not add up."""
        entry = entry if isinstance(entry, dict) else {}
        dtype, shape, offsets = entry.get("dtype"), entry.get("shape"), entry.get("data_offsets")
        lists = isinstance(shape, list) and isinstance(offsets, list) and len(offsets) == 2
        if not lists or any(type(n) is not int or not 0 <= n < 1 << 48 for n in [*shape, *offsets]):
            raise ExportError(f"{self.path}: tensor {name} has a damaged header entry")
        width = None
        if isinstance(dtype, str):
            width = NUMPY[dtype].itemsize if dtype in NUMPY else OTHER_BYTES.get(dtype)
        if width is None:
            raise ExportError(f"{self.path}: tensor {name} has the unknown dtype {dtype!r}")
        begin, end = offsets
        if len(shape) > 8 or end - begin != count(shape) * width:
            raise ExportError(f"{self.path}: tensor {name} {tuple(shape)} {dtype} takes {count(shape) * width} bytes, "
                              f"but has the offsets {begin} to {end}")
        return begin, end, Info(dtype, tuple(shape), data_at + begin)

    def chunks(self, name):
        """The numbers of a tensor in order, as f32 arrays of at most CHUNK."""
        info = self.tensors[name]
        dtype, n = NUMPY[info.dtype], count(info.shape)
        for at in range(0, n, CHUNK):
            self.file.seek(info.where + at * dtype.itemsize)   # another tensor may have been read in between
            x = np.fromfile(self.file, dtype, min(n - at, CHUNK))
            if x.size != min(n - at, CHUNK):
                raise ExportError(f"{self.path}: truncated while reading tensor {name}")
            yield to_f32(x, info.dtype)


class TorchFile:
    """One .bin or .pth: .tensors {name: Info}. Needs torch, which reads it without running any code that is in it
    (weights_only). key: the entry that holds the tensors, when they are not the whole file."""

    def __init__(self, path, key=None):
        try:
            import torch
        except ImportError:
            raise ExportError(f"{path}: reading this needs torch; hint: pip install torch, or a folder with "
                              "safetensors") from None
        self.path, self.torch = Path(path), torch
        open(path, "rb").close()          # an OSError that names the file, when there is none
        try:
            self.mapped = True
            try:
                loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
            except RuntimeError as e:     # files from before torch 1.6 cannot be mapped
                if "mmap" not in str(e):
                    raise
                self.mapped = False
                loaded = torch.load(path, map_location="cpu", weights_only=True)
        except MemoryError:
            raise
        except Exception as e:            # torch raises whatever its unpickler or zip reader comes upon
            why = (str(e).strip() or type(e).__name__).splitlines()[0]
            raise ExportError(f"{path}: torch cannot read it: {why}; hint: it may be truncated") from None
        if key is not None and isinstance(loaded, dict):
            loaded = loaded.get(key, loaded)
        if not isinstance(loaded, dict) or not any(isinstance(v, torch.Tensor) for v in loaded.values()):
            raise ExportError(f"{path}: holds no dictionary of tensors")
        kinds = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.float64: "F64",
                 torch.int64: "I64"}
        self.tensors = {}
        for name, t in loaded.items():
            if isinstance(t, torch.Tensor):
                self.tensors[name] = Info(kinds.get(t.dtype, str(t.dtype)), tuple(t.shape), t)
            else:
                raise ExportError(f"{path}: {name!r} is not a tensor but a {type(t).__name__}")

    def chunks(self, name):
        """As Safetensors.chunks."""
        info = self.tensors[name]
        flat = info.where.detach().reshape(-1)      # copies only a tensor that is not contiguous
        for at in range(0, flat.numel(), CHUNK):
            part = flat[at:at + CHUNK]
            if info.dtype == "BF16":
                part = part.view(self.torch.int16)
            yield to_f32(part.numpy().view(np.uint16) if info.dtype == "BF16" else part.numpy(), info.dtype)
            if self.mapped and info.where.is_contiguous():
                release(part)


def release(part):
    """Gives the whole pages under a piece of a mapped file back to the system, which would otherwise count them as
    our memory until the end. They are clean, so that a second look reads them from the file again. Only for tensors
    that lie in a mapping: other memory would turn into zeros."""
    page = os.sysconf("SC_PAGE_SIZE")
    begin = (part.data_ptr() + page - 1) // page * page
    end = (part.data_ptr() + part.numel() * part.element_size()) // page * page
    if end > begin:
        ctypes.CDLL(None).madvise(ctypes.c_void_p(begin), ctypes.c_size_t(end - begin), 4)   # MADV_DONTNEED


class Many:
    """Several files that together are one checkpoint."""

    def __init__(self, path, files):
        self.path, self.home, self.tensors = path, {}, {}
        for f in files:
            for name, info in f.tensors.items():
                if name in self.home:
                    raise ExportError(f"tensor {name} is both in {self.home[name].path} and in {f.path}")
                self.home[name], self.tensors[name] = f, info

    def chunks(self, name):
        """As Safetensors.chunks."""
        return self.home[name].chunks(name)


def read_json(path):
    """The JSON object in a file. Raises ExportError."""
    try:
        value = parse_json(Path(path).read_bytes(), path)
    except FileNotFoundError:
        raise ExportError(f"{path}: no such file") from None
    if not isinstance(value, dict):
        raise ExportError(f"{path}: expected a JSON object")
    return value


def shards(index_path):
    """The file names in a sharded checkpoint's index, each in the index's own folder."""
    names = read_json(index_path).get("weight_map")
    if not isinstance(names, dict) or not names or not all(isinstance(n, str) for n in names.values()):
        raise ExportError(f"{index_path}: no weight_map from tensors to files")
    files = sorted(set(names.values()))
    for name in files:
        if name != os.path.basename(name) or name in ("", ".", "..") or "\\" in name:
            raise ExportError(f"{index_path}: {name!r} is not a file of this folder")
    return files, names


WEIGHTS = (("model.safetensors.index.json", "model.safetensors", Safetensors),
           ("pytorch_model.bin.index.json", "pytorch_model.bin", TorchFile))


def open_folder(folder):
    """The weights of a Hugging Face folder, safetensors before .bin as in transformers. Raises ExportError."""
    folder = Path(folder)
    for index, single, reader in WEIGHTS:
        if (folder / single).is_file():
            return Many(folder, [reader(folder / single)])
        if (folder / index).is_file():
            files, names = shards(folder / index)
            missing = [f for f in files if not (folder / f).is_file()]
            if missing:
                raise ExportError(f"{folder}: {', '.join(missing)} of {index} is missing; hint: download it again")
            many = Many(folder, [reader(folder / f) for f in files])
            absent = [n for n in names if n not in many.tensors]
            if absent:
                raise ExportError(f"{folder}: tensor {absent[0]} is in {index} but in none of its files")
            return many
    raise ExportError(f"{folder}: no weights found, expected one of {', '.join(n for w in WEIGHTS for n in w[:2])}")
