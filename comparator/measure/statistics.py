"""The summary of one array, and the arithmetic in which arrays are measured.

Values are taken in float32 when their dtype holds no more than float32 does, else in float64; sums are float64. Work
goes in pieces that stay in the processor's cache, so that no copy of a large array is made.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

PERCENTILES = (1, 5, 50, 95, 99)
PERCENTILE_LIMIT = 10_000_000
"""Percentiles are given for arrays below this number of elements (they need a sorted copy)."""
CHUNK = 1 << 16
"""Elements of a piece."""


@dataclass(frozen=True)
class Statistics:
    """Summary of one array; NaN and infinity take part as IEEE arithmetic has it. All zero for an empty one."""

    mean: float = 0.0
    abs_mean: float = 0.0
    std: float = 0.0
    """Sample standard deviation (divided by n - 1); NaN for a single element."""
    minimum: float = 0.0
    maximum: float = 0.0
    nan: int = 0
    infinite: int = 0
    percentiles: dict[int, float] = field(default_factory=dict)


class Sums:
    """Running sums over one array."""

    def __init__(self) -> None:
        self.count = 0
        self.total = self.absolute = self.square = 0.0
        self.minimum = math.inf
        self.maximum = -math.inf
        self.nan = self.infinite = 0

    def add(self, values: Array, wide: Array) -> tuple[bool, float]:
        """Add a piece (``wide`` is the same in float64 or complex128); returns whether all of it is finite, and its
        sum of squares."""
        self.count += values.size
        if values.dtype.kind == "c":
            magnitude = np.abs(wide)
            low, high = float(magnitude.min()), float(magnitude.max())
            self.absolute += float(magnitude.sum())
            self.total += float(wide.real.sum())
            square = dot(magnitude, magnitude)
        else:
            low, high = float(values.min()), float(values.max())
            total = float(wide.sum())
            self.total += total
            self.absolute += total if low >= 0 else float(np.abs(wide).sum())
            square = dot(wide, wide)
        self.square += square
        self.minimum = _lower(self.minimum, low)
        self.maximum = _higher(self.maximum, high)
        finite = math.isfinite(low) and math.isfinite(high)
        if not finite:
            self.nan += int(np.isnan(values).sum())
            self.infinite += int(np.isinf(values).sum())
        return finite, square

    def statistics(self, percentiles: dict[int, float]) -> Statistics:
        if not self.count:
            return Statistics()
        mean = self.total / self.count
        std = math.nan
        if self.count > 1:
            variance = (self.square - self.total * mean) / (self.count - 1)
            std = math.sqrt(max(variance, 0.0)) if math.isfinite(variance) else math.nan
        return Statistics(
            mean, self.absolute / self.count, std, self.minimum, self.maximum, self.nan, self.infinite, percentiles
        )


def _lower(left: float, right: float) -> float:
    return math.nan if math.isnan(left) or math.isnan(right) else min(left, right)


def _higher(left: float, right: float) -> float:
    return math.nan if math.isnan(left) or math.isnan(right) else max(left, right)


def summarize(array: Array, *, percentiles: bool = False) -> Statistics:
    """Summary of one array."""
    sums = Sums()
    dtype = working_dtype(array.dtype)
    with np.errstate(all="ignore"):
        for piece in pieces(array):
            values = to_working(piece, dtype)
            sums.add(values, widen(values))
        found = percentiles_of(to_working(array.reshape(-1), dtype)) if percentiles else {}
    return sums.statistics(found)


def working_dtype(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """The dtype in which values of ``dtype`` are compared: float32, float64, complex64 or complex128."""
    if dtype.kind == "c":
        return np.dtype(np.complex64) if dtype.itemsize <= 8 else np.dtype(np.complex128)
    if dtype.kind in "iu":
        return np.dtype(np.float32) if dtype.itemsize <= 2 else np.dtype(np.float64)
    return np.dtype(np.float32) if dtype.itemsize <= 4 else np.dtype(np.float64)


def common_dtype(left: np.dtype[Any], right: np.dtype[Any], single_precision: bool = False) -> np.dtype[Any]:
    """The dtype in which two arrays are compared; float32 for all real ones in ``single_precision``."""
    if single_precision and left.kind != "c" and right.kind != "c":
        return np.dtype(np.float32)
    return np.promote_types(working_dtype(left), working_dtype(right))


def to_working(values: Array, dtype: np.dtype[Any]) -> Array:
    """``values`` in a working dtype; bfloat16 goes by its bits, which is many times faster than a cast."""
    if values.dtype.name == "bfloat16" and dtype == np.float32:
        wide = np.ascontiguousarray(values).view(np.uint16).astype(np.uint32)
        wide <<= 16
        return wide.view(np.float32)
    return values.astype(dtype, copy=False)


def dot(left: Array, right: Array) -> float:
    """Σxy of two vectors, the real part of Σx̄y of complex ones.

    Not by BLAS: its threads cost more than the sum where they have to wait for a busy machine.
    """
    if left.dtype.kind == "c":
        return dot(left.real, right.real) + dot(left.imag, right.imag)
    return float(np.einsum("i,i->", left, right))


def widen(values: Array) -> Array:
    """``values`` in float64 or complex128."""
    if values.dtype.kind == "c":
        return values.astype(np.complex128, copy=False)
    return values.astype(np.float64, copy=False)


def pieces(array: Array) -> Iterator[Array]:
    """The elements of an array in pieces of one dimension."""
    flat = np.ascontiguousarray(array).reshape(-1)
    for start in range(0, flat.size, CHUNK):
        yield flat[start : start + CHUNK]


def percentiles_of(values: Array) -> dict[int, float]:
    """Percentiles of a vector; none for complex numbers, and for very many."""
    if values.size == 0 or values.size >= PERCENTILE_LIMIT or values.dtype.kind == "c":
        return {}
    found = np.percentile(values, PERCENTILES)
    return {percentile: float(value) for percentile, value in zip(PERCENTILES, found, strict=True)}
