"""Finds the source tensors of each tensor of the weight file, and reads them.

In order: Found, Lookup (collect checks that everything is there and nothing is left over; chunks reads), resolve_head
(which of the copies of the token embedding in a checkpoint are really one tensor).
"""

import re
from dataclasses import dataclass

import numpy as np

from container import ExportError
from source import CHUNK, NUMPY, count
from tensors import OPT


@dataclass(frozen=True)
class Found:
    """A source tensor and the shape that it must have; source None stands for zeros."""
    source: object
    name: str | None
    shape: tuple


class Lookup:
    """find: function from a tensors.Part to the list of Found that it consists of; ignored: {source: patterns of names
    that may be left over}."""

    def __init__(self, find, ignored):
        self.find, self.ignored = find, ignored
        self.used = {source: set() for source in ignored}
        self.pieces = {}                   # {entry name: [Found]}

    def collect(self, entries):
        """Finds the pieces of all entries. Raises ExportError for a tensor that is missing, of another shape or not of
        floating point, or that nothing uses."""
        missing = []
        for entry in entries:
            found = self.pieces[entry.name] = []
            for part in entry.parts:
                found += [Found(None, None, part.shape)] if part.name is None else self.find(part)
        for f in (f for found in self.pieces.values() for f in found if f.source):
            info = f.source.tensors.get(f.name)
            self.used[f.source].add(f.name)
            if info is None:
                missing.append(f)
            elif info.shape != f.shape:
                raise ExportError(f"{f.source.path}: tensor {f.name} has the shape {info.shape}, expected {f.shape}")
            elif info.dtype not in NUMPY:
                raise ExportError(f"{f.source.path}: tensor {f.name} is {info.dtype}, expected floating-point numbers")
        if missing:
            raise ExportError(f"{missing[0].source.path}: tensor {missing[0].name} is missing{others(missing)}")
        for source, patterns in self.ignored.items():
            left = [n for n in source.tensors if n not in self.used[source]
                    and not any(re.fullmatch(p, n) for p in patterns)]
            if left:
                raise ExportError(f"{source.path}: tensor {left[0]} is left over: nothing of this model uses it"
                                  f"{others(left)}")

    def chunks(self, entry):
        """The numbers of an entry in order, as pairs (f32 array (n), name of the source tensor)."""
        for f in self.pieces[entry.name]:
            if f.source is None:
                for at in range(0, count(f.shape), CHUNK):
                    yield np.zeros(min(CHUNK, count(f.shape) - at), np.float32), entry.name
            else:
                for x in f.source.chunks(f.name):
                    yield x, f.name

    def dtypes(self, entries):
        """The dtypes in which the source has the matrices among the entries."""
        return {f.source.tensors[f.name].dtype for e in entries if e.matrix for f in self.pieces[e.name] if f.source}


def others(names):
    """How many more there are."""
    return f" (and {len(names) - 1} more)" if len(names) > 1 else ""


def same(source, a, b):
    """Whether two tensors of a source hold the same numbers. Different bits of one number, -0 and 0, count as
    different, which only costs the space of a second matrix."""
    if source.tensors[a].shape != source.tensors[b].shape:
        return False
    return all((x.view(np.uint32) == y.view(np.uint32)).all() for x, y in zip(source.chunks(a), source.chunks(b)))


def resolve_head(lookup, settings, source, rename=lambda name: name):
    """Looks at the copies of the token embedding in a language model, as transformers 5.23 does when it loads
    (PreTrainedModel.tie_weights): names that the configuration calls tied are tied when one of them is missing or all
    are equal, and stay separate when both are there with different values. Released T5 is of the last kind although
    its configuration says tied.

    rename: from the Hugging Face name to the source's. Marks the copies as used. Returns 1 for tied, otherwise 0.
    Raises ExportError when the input embedding of T5's encoder or decoder is not the shared one, which the weight file
    cannot express."""
    opt = settings.config["family"] == OPT
    token = rename("language_model." + ("model.decoder.embed_tokens.weight" if opt else "shared.weight"))
    head = rename("language_model.lm_head.weight")
    copies = [] if opt else [rename(f"language_model.{stack}.embed_tokens.weight") for stack in ("encoder", "decoder")]
    for copy in (c for c in copies if c in source.tensors and token in source.tensors):
        if not same(source, copy, token):
            raise ExportError(f"{source.path}: tensor {copy} differs from {token}, of which it should be a copy")
        lookup.used[source].add(copy)
    if head not in source.tensors:
        if not settings.tie:
            raise ExportError(f"{source.path}: tensor {head} is missing, and the configuration says it is not tied")
        return 1
    if token in source.tensors and not same(source, head, token):
        return 0
    lookup.used[source].add(head)
    return 1
