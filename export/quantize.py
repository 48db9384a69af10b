"""int8 and int4 matrices of the weight file (doc/format.md): their layout, how they are rounded, how they are read.

In order: the layout, which matrix gets which dtype, rounding of int8 rows and int4 groups, rounding with the inputs
known (GPTQ), the stream of a whole tensor, reading back, and the report of errors. numpy only. Where the second moments
of the inputs come from is calibrate.py's business; what it all buys is measured in doc/quantization.md.

The error that is reported is relative and of the whole tensor: |W - W'| / |W|, 2-norms over all numbers.
"""

import os
import re
from collections import deque
from concurrent.futures import ThreadPoolExecutor

import numpy as np

GROUP = 32                                # columns that share an int4 scale
PAD = 256                                 # the scales start at a multiple of this
BLOCK = 1 << 18                           # numbers rounded at a time by a thread: 1 MB of f32, so that it stays in cache
GPTQ_BLOCK = 1 << 25                      # with known inputs: as many rows as make 128 MB, columns are the slow loop
GPTQ_COLUMNS = 4 * GROUP                  # columns between two updates of everything behind them
DAMPING = 0.01                            # of the mean second moment, as in the GPTQ paper

# What stays in int8 in an int4 file: the first and the last matrix, through which everything goes, and the Q-Former with
# its projection. Measured in doc/quantization.md.
KEPT_IN_INT8 = re.compile(r"vit\.patch\.w|qf\..*|lm\.(tok|head)")

# int4: by which level (before the refit) the number of largest magnitude in a group is divided to get the scales that
# are tried. Negative ones put it at -8, a level that has no positive twin; beyond 8 it is clipped.
LEVELS = (-8.0, 7.0, -7.4, -6.8, -6.2, -8.6, -9.2, -9.9)
# int8: the same for rows; only rows with outliers profit from clipping.
CLIPS = (127.0, 150.0, 180.0, 220.0)


# ---------------------------------------------------------------------------------------------------------------------
# Layout


def groups(cols):
    """Scales of an int4 row."""
    return -(-cols // GROUP)


def row_bytes(dtype, cols):
    """Bytes of a row of codes."""
    return cols if dtype == "int8" else groups(cols) * GROUP // 2


def scale_at(dtype, rows, cols):
    """Where in the tensor's bytes the scales start."""
    return -(-rows * row_bytes(dtype, cols) // PAD) * PAD


def nbytes(dtype, rows, cols):
    """Bytes of an int8 or int4 tensor."""
    return scale_at(dtype, rows, cols) + rows * (4 if dtype == "int8" else 2 * groups(cols))


def dtype_of(name, dtype):
    """The dtype of a matrix by its name in a file of the given --dtype."""
    return "int8" if dtype == "int4" and KEPT_IN_INT8.fullmatch(name) else dtype


# ---------------------------------------------------------------------------------------------------------------------
# Rounding


def inverse(scale):
    """1/scale, and 0 where a scale is 0 or too small for that."""
    with np.errstate(divide="ignore", over="ignore"):
        out = np.float32(1) / scale
    out[~np.isfinite(out)] = 0
    return out


def to_levels(x, inv, lo, hi):
    """x (n,c), inv (n) -> the nearest whole numbers of x * inv in lo..hi, as f32."""
    q = x * inv[:, None]
    np.rint(q, out=q)
    return np.clip(q, lo, hi, out=q)


def best_scales(x, weight, divisors, lo, hi):
    """x (n,c), weight (c) or (n,c) or None -> scales (n) f32 with a small sum of weight * (x - scale * q)^2, q in lo..hi.

    The largest magnitude of a row over each divisor gives a first scale and from it the q; for given q the least squares
    solution is sum(w x q) / sum(w q q), and the error falls by sum(w x q)^2 / sum(w q q): the greatest of these wins.
    """
    top = x[np.arange(len(x)), np.abs(x).argmax(1)]
    best, scale = np.full(len(x), -1, np.float32), np.zeros(len(x), np.float32)
    wx = x if weight is None else x * weight
    for divisor in divisors:
        q = to_levels(x, inverse(top / np.float32(divisor)), lo, hi)
        xq = np.einsum("ij,ij->i", wx, q)
        qq = np.einsum("ij,ij->i", q, q if weight is None else q * weight)
        with np.errstate(divide="ignore", invalid="ignore"):
            refit = xq / qq
            gain = xq * refit
        better = np.isfinite(refit) & (gain > best)
        best[better], scale[better] = gain[better], refit[better]
    return scale


def int8_rows(x, weight=None):
    """x (R,C) f32 -> codes (R,C) i8 in -127..127, scales (R) f32."""
    scale = np.abs(best_scales(x, weight, CLIPS, -127, 127))
    return to_levels(x, inverse(scale), -127, 127).astype(np.int8), scale


def to_f16(scale):
    """Scales (n) f32 -> f16. Raises ValueError when one is too large."""
    if scale.size and np.abs(scale).max() > 65504:
        raise ValueError("a value is too large for int4, whose scales are f16; hint: --dtype bf16")
    return scale.astype(np.float16)


def padded(x):
    """x (R,C) with zero columns up to whole groups."""
    short = -x.shape[1] % GROUP
    return np.pad(x, ((0, 0), (0, short))) if short else x


def int4_rows(x, weight=None):
    """x (R,C) f32, weight (C) or None: how much each column matters -> codes (R,G*GROUP) f32 in -8..7, scales (R,G) f16."""
    rows, x = len(x), padded(x).reshape(-1, GROUP)
    if weight is not None:
        weight = np.tile(padded(weight[None]).reshape(-1, GROUP), (rows, 1))
    half = to_f16(best_scales(x, weight, LEVELS, -8, 7))
    q = to_levels(x, inverse(half.astype(np.float32)), -8, 7)
    return q.reshape(rows, -1), half.reshape(rows, -1)


def pack4(q):
    """Codes (R,G*GROUP) in -8..7 -> bytes (R,G*16): byte j of a group holds its columns j (low nibble) and j + 16."""
    u = (q + 8).astype(np.uint8).reshape(len(q), -1, 2, GROUP // 2)
    return (u[:, :, 0] | u[:, :, 1] << 4).reshape(len(q), -1)


def unpack4(data):
    """The reverse: bytes (R,G*16) -> codes (R,G*GROUP) f32."""
    u = data.reshape(len(data), -1, 1, GROUP // 2)
    return (np.concatenate([u & 15, u >> 4], 2).astype(np.float32) - 8).reshape(len(data), -1)


# ---------------------------------------------------------------------------------------------------------------------
# Rounding with the inputs known. What counts is not W' but what it does to the inputs x of this matrix:
# |x W^T - x W'^T|^2 = (W - W') H (W - W')^T with H = sum of x^T x. GPTQ (Frantar et al. 2022, arXiv 2210.17323) rounds
# column by column and changes the columns not yet rounded so that they make up for the error of each, which for the
# upper Cholesky factor U of H^-1 is: error e_j = (w_j - w'_j) / U_jj, then w_k -= e_j U_jk for all k > j.


def error_spread(moments):
    """moments (C,C) -> (U (C,C) f32, order (C)): the columns in the order in which they are rounded, those that matter
    most first, since later ones cannot be made up for; U belongs to H with its rows and columns in that order."""
    order = np.argsort(-np.diag(moments), kind="stable")
    h = moments[np.ix_(order, order)].astype(np.float64)
    h[np.diag_indices_from(h)] += max(DAMPING * np.diag(h).mean(), 1e-30)
    return np.linalg.cholesky(np.linalg.inv(h)).T.astype(np.float32), order


def gptq_rows(x, scales, spread, lo, hi, group):
    """x (R,C) f32, scales (R,G) f32: column c uses scales[:, c // group] -> codes (R,C) f32 in lo..hi."""
    upper, order = spread
    w = np.ascontiguousarray(x.T[order])                       # (C,R): a column of W is a row here
    scales = np.ascontiguousarray(scales.T)
    q = np.empty_like(w)
    for begin in range(0, len(w), GPTQ_COLUMNS):
        end = min(begin + GPTQ_COLUMNS, len(w))
        errors = np.empty((end - begin, w.shape[1]), np.float32)
        for j in range(begin, end):
            s = scales[order[j] // group]
            np.clip(np.rint(w[j] * inverse(s)), lo, hi, out=q[j])
            errors[j - begin] = (w[j] - q[j] * s) / upper[j, j]
            w[j + 1:end] -= upper[j, j + 1:end, None] * errors[j - begin]
        w[end:] -= upper[begin:end, end:].T @ errors
    out = np.empty_like(q)
    out[order] = q
    return np.ascontiguousarray(out.T)


# ---------------------------------------------------------------------------------------------------------------------
# A whole tensor


def round_rows(x, dtype, moments=None, spread=None):
    """x (R,C) f32 -> (bytes of the codes, scales, sum of squared errors, sum of squares). moments (C,C) of the inputs and
    error_spread(moments), when they are known."""
    weight = None if moments is None else np.diag(moments) + np.float32(1e-6 * np.diag(moments).mean() + 1e-30)
    if dtype == "int8":
        q, scales = int8_rows(x, weight)
        if spread is not None:
            q = gptq_rows(x, scales[:, None], spread, -127, 127, x.shape[1]).astype(np.int8)
        back, data = q * scales[:, None], q
    else:
        q, scales = int4_rows(x, weight)
        wide = scales.astype(np.float32)
        if spread is not None:
            q[:, :x.shape[1]] = gptq_rows(x, wide, spread, -8, 7, GROUP)
        back, data = (q * np.repeat(wide, GROUP, 1))[:, :x.shape[1]], pack4(q)
    back -= x
    return data, scales, float(np.square(back, dtype=np.float64).sum()), float(np.square(x, dtype=np.float64).sum())


def row_blocks(chunks, cols, size):
    """Flat f32 arrays of any length -> arrays (R,cols) of about size numbers."""
    rest, most = np.empty(0, np.float32), max(size // cols, 1) * cols
    for x in chunks:
        rest = np.concatenate([rest, x]) if rest.size else x
        whole = rest.size // most * most
        for at in range(0, whole, most):
            yield rest[at:at + most].reshape(-1, cols)
        rest = rest[whole:].copy()        # a copy, or the whole chunk would stay in memory
    if rest.size:
        yield rest.reshape(-1, cols)


def threads():
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def encode(record, chunks, moments=None):
    """The bytes of an int8 or int4 tensor in order, as arrays; then sets record.error.

    record: container.Record; chunks: iterator of flat finite f32 arrays; moments (C,C) of this matrix's inputs or None.
    Raises ValueError on numbers that do not fit."""
    spread = None if moments is None else error_spread(moments)
    blocks = row_blocks(chunks, record.cols, BLOCK if spread is None else GPTQ_BLOCK)
    scales, errors, waiting = [], np.zeros(2), deque()

    def finish():
        data, s, *sums = waiting.popleft().result()
        scales.append(s)
        errors[:] += sums
        return data
    with ThreadPoolExecutor(threads() if spread is None else 1) as pool:
        for block in blocks:
            waiting.append(pool.submit(round_rows, block, record.dtype, moments, spread))
            if len(waiting) > 2 * threads() or spread is not None:
                yield finish()
        while waiting:
            yield finish()
    rows, cols = record.rows, record.cols
    yield np.zeros(scale_at(record.dtype, rows, cols) - rows * row_bytes(record.dtype, cols), np.uint8)
    yield np.concatenate(scales)
    record.error = float(np.sqrt(errors[0] / max(errors[1], 1e-300)))


def decode(data, dtype, rows, cols):
    """The bytes of an int8 or int4 tensor -> (rows,cols) f32, by the formulas of doc/format.md."""
    at = scale_at(dtype, rows, cols)
    codes = np.frombuffer(data, np.int8 if dtype == "int8" else np.uint8, rows * row_bytes(dtype, cols))
    if dtype == "int8":
        return codes.reshape(rows, cols) * np.frombuffer(data, "<f4", offset=at)[:, None]
    scales = np.frombuffer(data, "<f2", offset=at).astype(np.float32).reshape(rows, -1)
    return (unpack4(codes.reshape(rows, -1)) * np.repeat(scales, GROUP, 1))[:, :cols]


def report(records, verbose):
    """Lines about the errors of all rounded tensors: each of them, or the range over the layers."""
    rounded = [r for r in records if r.error is not None]
    if verbose:
        return [f"  {r.name:24} {r.dtype:5} relative error {r.error:.5f}" for r in rounded]
    kinds = {}
    for r in rounded:
        kinds.setdefault((re.sub(r"\.\d+\.", ".*.", r.name), r.dtype), []).append((r.error, r.name))
    lines = []
    for (kind, dtype), all_of in kinds.items():
        errors = sorted(e for e, _ in all_of)
        worst = f"{errors[0]:.5f} to {errors[-1]:.5f} ({max(all_of)[1]})" if len(all_of) > 1 else f"{errors[0]:.5f}"
        lines.append(f"  {kind:16} {dtype:5} relative error {worst}")
    return lines
