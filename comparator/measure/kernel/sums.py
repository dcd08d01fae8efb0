"""What a pass over two arrays gives, and the dtypes in which it is taken."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from msgspec import Struct

Array = npt.NDArray[Any]
Float = npt.NDArray[np.float64]


class SideSums(NamedTuple):
    """Of one side. Complex numbers count by their magnitude, their total is that of the real parts."""

    total: float
    absolute: float
    square: float
    minimum: float
    """NaN where a NaN takes part; infinity without elements, as the maximum is minus infinity."""
    maximum: float
    nan: int
    infinite: int


class PairSums(NamedTuple):
    """Of ``target - baseline`` and both sides."""

    baseline: SideSums
    target: SideSums
    along: float
    """Σx(y - x); of complex numbers the real part of Σx̄(y - x)."""
    squared: float
    """Σ(y - x)²"""
    absolute: float
    """Σ|y - x|, each rounded to the working dtype."""
    baseline_square: float
    """Σx², with equal NaN and infinities as zeros where that was asked for."""
    target_square: float
    differing: int
    """Elements whose difference is not 0."""
    nonfinite_equal: int
    """Places where both sides hold the same infinity or both hold NaN."""
    largest: float
    """The largest difference; NaN is larger than any. -1 without elements."""
    largest_at: int
    """Number of the first element that has it."""


COLUMNS = 6
"""Of the table of rows."""


class ChannelPart(Struct, frozen=True, eq=False):
    """Sums of the channels of bfloat16 over some of the rows, each divided by its size √(Σ(x² + y²) / 2)."""

    rows: slice
    sums: Float
    """Σa², Σm², Σma and Σa with the midpoint m = (x + y) / 2 and a = y - x, shape ``(channels / 8, 4, 8)``: of 8
    channels each, then of the next; the last are filled up with zeros."""
    taken: npt.NDArray[np.bool_]
    """Which of the rows were added."""


class RowTable(Struct, frozen=True, eq=False):
    """What a pass finds of single rows, and of the channels where it was asked for them. A row is a slice along the
    first dimension, the difference y - x."""

    columns: Float
    """Shape ``(rows, 6)``: Σx², Σy², Σ(y - x)², Σ(x + y)(y - x), Σ(y - x), and the number of elements that differ."""
    energy: Float | None = None
    """Of each channel Σ(x² + y²), shape ``(channels,)``."""
    alike: bool = False
    """Both arrays are known to be the same, byte by byte; energies were then left out."""
    parts: tuple[ChannelPart, ...] = ()
    """What else was found of channels on the way, where both sides are of bfloat16."""
    digests: tuple[int, ...] = ()
    """XXH3-64 of the bytes of each side, where they were asked for and taken."""

    def rel(self) -> Float:
        """Of each row Σ(y - x)² / Σ(x² + y²), shape ``(rows,)``; 0 where nothing differs."""
        if len(self.columns) <= _FEW_ROWS:
            return np.array([_rel(left, right, squared) for left, right, squared, *_ in self.columns.tolist()])
        left, right, squared = np.ascontiguousarray(self.columns[:, :3].T)
        with np.errstate(all="ignore"):
            left += right
            found: Float = squared / left
        if not squared.all():
            found[squared == 0] = 0
        if not left.all():
            found[(left == 0) & (squared != 0)] = np.nan
        return found


_FEW_ROWS = 64
"""Up to so many numpy takes longer to begin than Python to finish."""


def _rel(left: float, right: float, squared: float) -> float:
    if squared == 0:
        return 0.0
    total = left + right
    return squared / total if total != 0 else math.nan


def is_narrow(dtype: np.dtype[Any]) -> bool:
    """Whether values of a dtype have at most 8 significant bits, so that a product of two is exact in float32."""
    if dtype.itemsize == 1:
        return dtype.names is None and dtype.kind not in "SUmM"
    return dtype.name == "bfloat16"


def working_dtype(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """The dtype in which values of ``dtype`` are compared: float32, float64, complex64 or complex128."""
    if dtype.kind == "c":
        return np.dtype(np.complex64) if dtype.itemsize <= 8 else np.dtype(np.complex128)
    if dtype.kind in "iu":
        return np.dtype(np.float32) if dtype.itemsize <= 2 else np.dtype(np.float64)
    return np.dtype(np.float32) if dtype.itemsize <= 4 else np.dtype(np.float64)


def to_working(values: Array, dtype: np.dtype[Any]) -> Array:
    """``values`` in a working dtype; bfloat16 goes by its bits, which is many times faster than a cast."""
    if values.dtype.name == "bfloat16" and dtype == np.float32:
        wide = np.ascontiguousarray(values).view(np.uint16).astype(np.uint32)
        wide <<= 16
        return wide.view(np.float32)
    return values.astype(dtype, copy=False)


def widen(values: Array) -> Array:
    """``values`` in float64 or complex128."""
    if values.dtype.kind == "c":
        return values.astype(np.complex128, copy=False)
    return values.astype(np.float64, copy=False)
