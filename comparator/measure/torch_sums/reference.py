"""Sums in the order of torch's on a CPU: the definition of the compiled module.

torch adds a vector in the lanes of an AVX2 register and in four streams of these, each by a cascade: runs of a power of
two are added one after the other, then their sums, and so on, three times (``ATen/native/cpu/SumKernel.cpp``).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from comparator.measure.kernel.sums import Array, to_working

_STREAMS = 4
_LEVELS = 4
_REGISTER = 32
"""Bytes."""
_SINGLE = np.dtype(np.float32)


def measure(x: Array, y: Array, start: int, stop: int) -> tuple[float, float, float, float]:
    """Of a range of two contiguous vectors, taken in float32: Σ|y-x| in float32, Σ(x²+y²) and Σxy in float64, and the
    largest |y-x|, which is NaN where one is."""
    left, right = (np.asarray(to_working(side[start:stop], _SINGLE)) for side in (x, y))
    gap = np.abs(right - left)
    wide_x, wide_y = left.astype(np.float64), right.astype(np.float64)
    norm, cross = (float(in_order(values)) for values in (wide_x * wide_x + wide_y * wide_y, wide_x * wide_y))
    return float(in_order(gap)), norm, cross, float(gap.max())


def in_order(flat: Array) -> Any:
    """The sum of a vector in its own dtype, float32 or float64, as one of torch's threads adds it."""
    lanes = _REGISTER // flat.dtype.itemsize
    if flat.size < lanes:
        return _stream_sum(flat.reshape(-1, 1))[0]
    whole = flat.size // lanes * lanes
    total = flat.dtype.type(0)
    for value in (*flat[whole:], *_stream_sum(flat[:whole].reshape(-1, lanes))):
        total += value
    return total


def _stream_sum(rows: Array) -> Array:
    """The sum of the rows of an array of shape ``(rows, lanes)``, in streams."""
    count = len(rows) // _STREAMS
    streams = _cascade(rows[: count * _STREAMS].reshape(count, _STREAMS, rows.shape[1]))
    total = streams[0]
    for row in rows[count * _STREAMS :]:
        total = total + row
    for stream in streams[1:]:
        total = total + stream
    return np.asarray(total)


def _cascade(rows: Array) -> Array:
    """The sum over the first dimension."""
    power = max(4, (max(len(rows), 1) - 1).bit_length() // _LEVELS)
    run = 1 << power
    totals = []
    for _ in range(_LEVELS - 1):
        whole = len(rows) // run
        totals.append(_in_turn(rows[whole * run :]))
        rows = _runs(rows[: whole * run], run)
    totals.append(_in_turn(rows))
    total = totals[0]
    for one in totals[1:]:
        total = total + one
    return total


def _runs(rows: Array, run: int) -> Array:
    return np.asarray(np.add.reduce(rows.reshape(-1, run, *rows.shape[1:]), axis=1))


def _in_turn(rows: Array) -> Array:
    """Rows one after the other, beginning with 0."""
    return np.asarray(np.add.reduce(rows, axis=0)) if len(rows) else np.zeros(rows.shape[1:], rows.dtype)
