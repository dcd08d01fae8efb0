"""The pass over many pairs in one call: a call for each takes longer than the arithmetic of a small one."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt
from msgspec import Struct

from comparator.measure import kernel
from comparator.measure.kernel.sums import COLUMNS, Array, Float, PairSums

Integers = npt.NDArray[np.int64]

NUMBERS = 16
"""Floating-point numbers of a pair: total, Σ|x|, Σx², minimum and maximum of each side, then what ``PairSums`` has from
``along`` to ``target_square``, and ``largest``."""
COUNTS = 7
"""Integers of a pair: NaN and infinities of each side, ``differing``, ``nonfinite_equal``, ``largest_at``."""


class Places(Struct, frozen=True, eq=False):
    """Where arrays of one dtype lie."""

    data: Any
    """Bytes that hold all of them, a mapped file perhaps."""
    starts: Integers
    """Of each the place of its first byte, a multiple of the bytes of an element."""
    dtype: np.dtype[Any]

    def each(self, sizes: Integers) -> list[Array]:
        """The elements of each, so many, in one dimension; nothing is copied."""
        whole, starts = self._whole, self.starts // self.dtype.itemsize
        return [whole[start:end] for start, end in zip(starts.tolist(), (starts + sizes).tolist(), strict=True)]

    def elements(self, numbers: Integers) -> Float:
        """Of each the element of this number, in float64."""
        found: Float = self._whole[self.starts // self.dtype.itemsize + numbers].astype(np.float64)
        return found

    @property
    def _whole(self) -> Array:
        return np.frombuffer(self.data, self.dtype, len(self.data) // self.dtype.itemsize)


class ManySums(Struct, frozen=True, eq=False):
    """What ``measure_sums`` gives of each pair."""

    numbers: Float
    """Shape ``(pairs, NUMBERS)``."""
    counts: Integers
    """Shape ``(pairs, COUNTS)``."""
    rows: Float | None
    """``RowTable.columns`` of all pairs, one after the other."""
    energy: Float | None
    """``RowTable.energy`` of each pair, shape ``(pairs, channels)``; the first one is NaN where they are left out."""

    @property
    def finite(self) -> npt.NDArray[np.bool_]:
        """Of each pair whether all of its elements are finite, shape ``(pairs,)``."""
        return np.asarray(~self.counts[:, :4].any(axis=1))


def measure_many(
    baseline: Places,
    target: Places,
    sizes: Integers,
    length: int,
    *,
    dtype: np.dtype[Any],
    equal_nonfinite: bool = False,
    by_row: bool = False,
    by_channel: bool = False,
) -> ManySums:
    """The sums of pairs that lie as ``baseline`` and ``target`` say, in the working dtype ``dtype``.

    ``sizes``: elements of each, more than none; ``length``: elements of a row, where it is asked for rows
    (``measure_sums`` says what rows and channels give), and else ``SEGMENT``. Raises ValueError for pairs that do not
    lie in the data.
    """
    count = len(sizes)
    numbers, counts = np.empty((count, NUMBERS)), np.empty((count, COUNTS), np.int64)
    rows = np.zeros((int((-(-sizes // length)).sum()), COLUMNS)) if by_row else None
    energy = np.zeros((count, length)) if by_row and by_channel and dtype == np.float32 else None
    found = ManySums(numbers, counts, rows, energy)
    kinds = kernel.kind_of(baseline.dtype), kernel.kind_of(target.dtype)
    if kernel._compiled is not None and dtype.kind == "f" and kinds[0] is not None and kinds[1] is not None:
        nothing = np.empty(0)
        places = (baseline.data, baseline.starts, *kinds[0], target.data, target.starts, *kinds[1])
        room = (nothing if rows is None else rows, nothing if energy is None else energy, numbers, counts)
        kernel._compiled.measure_many(*places, sizes, length, dtype.itemsize == 8, equal_nonfinite, *room)
    else:
        _one_by_one(baseline, target, sizes, length, found, dtype, equal_nonfinite)
    return found


def _one_by_one(
    baseline: Places,
    target: Places,
    sizes: Integers,
    length: int,
    found: ManySums,
    dtype: np.dtype[Any],
    equal_nonfinite: bool,
) -> None:
    start, shape = 0, (-1, length) if found.rows is not None else (-1,)
    for number, pair in enumerate(zip(baseline.each(sizes), target.each(sizes), strict=True)):
        left, right = (side.reshape(shape) for side in pair)
        sums, table = kernel.measure_sums(
            left,
            right,
            dtype=dtype,
            equal_nonfinite=equal_nonfinite,
            by_row=found.rows is not None,
            by_channel=found.energy is not None,
        )
        found.numbers[number], found.counts[number] = _flat(sums)
        if table is not None and found.rows is not None:
            found.rows[start : start + len(left)] = table.columns
            start += len(left)
            if found.energy is not None:
                found.energy[number] = math.nan if table.energy is None else table.energy


def _flat(sums: PairSums) -> tuple[list[float], list[int]]:
    left, right = sums.baseline, sums.target
    both = sums.along, sums.squared, sums.absolute, sums.baseline_square, sums.target_square, sums.largest
    counts = left.nan, left.infinite, right.nan, right.infinite, sums.differing, sums.nonfinite_equal, sums.largest_at
    return [*left[:5], *right[:5], *both], [*counts]
