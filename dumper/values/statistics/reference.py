"""What statistics are, in numpy: which elements are added in which order."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

LANES = 16
"""Element ``i`` is added to the sum of lane ``i % LANES``, in float64; the sums of lanes are added in their order."""
_PIECE = 1 << 20
"""Elements that are looked at together; a multiple of LANES."""


def statistics(array: npt.NDArray[Any]) -> bytes:
    """The numbers that ``STATISTICS`` names, as seven little-endian float64, of an array of real numbers."""
    flat = array.reshape(-1)
    lanes, low, high, integers = np.zeros((3, LANES)), np.inf, -np.inf, 0
    nan = infinite = 0
    with np.errstate(over="ignore"):
        for begin in range(0, flat.size, _PIECE):
            piece = flat[begin : begin + _PIECE]
            wide = piece.astype(np.float64)
            finite = np.isfinite(wide)
            nan += int(np.isnan(wide).sum())
            infinite += int(np.isinf(wide).sum())
            low = min(low, wide.min(where=finite, initial=np.inf))
            high = max(high, wide.max(where=finite, initial=-np.inf))
            kept = np.zeros(-(-piece.size // LANES) * LANES)
            kept[: piece.size] = np.where(finite, wide, 0)
            for lane, values in zip(lanes, (kept, np.abs(kept), kept * kept), strict=True):
                lane[:] = np.add.reduce(np.concatenate((lane, values)).reshape(-1, LANES), axis=0)
            if _is_wide_integer(piece.dtype):
                integers += _sum_of(piece)
        total, absolute, square = (np.add.accumulate(lane)[-1] for lane in lanes)
    if _is_wide_integer(flat.dtype):
        total = float(integers >> 32) * 2.0**32 + float(integers & 0xFFFFFFFF)
    count = flat.size - nan - infinite
    extremes = (low, high) if count else (0.0, 0.0)
    elements = max(count, 1)
    return np.array([*extremes, total / elements, absolute / elements, np.sqrt(square), nan, infinite], "<f8").tobytes()


def _is_wide_integer(dtype: np.dtype[Any]) -> bool:
    return dtype.kind in "iu" and dtype.itemsize >= 4


def _sum_of(array: npt.NDArray[Any]) -> int:
    """The sum of integers, exact."""
    if array.dtype.itemsize < 8:
        return int(array.sum(dtype=np.int64))
    mask = array.dtype.type(0xFFFFFFFF)
    upper, lower = array >> array.dtype.type(32), array & mask
    return (int(upper.sum(dtype=array.dtype)) << 32) + int(lower.sum(dtype=np.uint64))
