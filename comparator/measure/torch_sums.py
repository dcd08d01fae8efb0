"""Sums in the order of torch's on a CPU, so that they round alike without torch.

torch adds a vector in the lanes of an AVX2 register and in four streams of these, each by a cascade: runs of a power of
two are added one after the other, then their sums, and so on, three times (``ATen/native/cpu/SumKernel.cpp``). Large
vectors are first cut into a part for each thread (``ATen/native/TensorIteratorReduce.cpp``).
"""

from __future__ import annotations

import os
from typing import Any

import numpy as np

from comparator.measure.kernel.sums import Array

_STREAMS = 4
_LEVELS = 4
_REGISTER = 32
"""Bytes."""
_GRAIN = 32768
"""Elements from which torch uses several threads."""


def sum_as_torch(values: Array) -> Any:
    """The sum of a contiguous array in its own dtype, float32 or float64."""
    flat = values.reshape(-1)
    threads = _threads()
    if flat.size < _GRAIN or threads == 1:
        return _sum(flat)
    used = min(threads, -(-flat.size // _GRAIN))
    each = -(-flat.size // used)
    parts = np.zeros(threads, flat.dtype)
    found = [_sum(flat[start : start + each]) for start in range(0, flat.size, each)]
    parts[: len(found)] = found
    return _sum(parts)


def _threads() -> int:
    text = os.environ.get("OMP_NUM_THREADS", "").split(",")[0]
    if text.isdecimal() and int(text):
        return int(text)
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _sum(flat: Array) -> Any:
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
