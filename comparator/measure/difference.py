"""How far two arrays of the same shape are apart, in one pass over both.

Values are compared in float32 when both dtypes hold no more than float32 does, else in float64; sums are float64.
Work goes in pieces that stay in the processor's cache, so that no copy of a large array is made.
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
_CHUNK = 1 << 16


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


@dataclass(frozen=True)
class Difference:
    """The difference ``target - baseline`` of two arrays of one shape.

    ``rel`` is 1 - 2 Σxy / Σ(x² + y²), computed as Σ(x - y)² / Σ(x² + y²), which is the same number without the
    cancellation: it is quadratic in the error, so a target 2% too large gives 2e-4. ``relative_l2`` is
    ‖x - y‖ / ‖x‖, linear in the error. Where NaN or infinity takes part in a difference the metrics are NaN, which
    satisfies no threshold.
    """

    elements: int
    rel: float
    max_abs: float
    mean_abs: float
    relative_l2: float
    scale: float
    """The factor c that brings c * baseline nearest to target (least squares); 1 where it is undefined."""
    scale_explains: float
    """Share (0..1) of the squared difference that this factor removes."""
    differing: int
    """Elements that are not equal (NaN equals nothing)."""
    coordinate: tuple[int, ...]
    """Where the largest difference is; a NaN difference counts as larger than any."""
    baseline_at_max: float
    target_at_max: float
    nonfinite_equal: int = 0
    """Places where both sides hold the same infinity or both hold NaN."""
    percentiles: dict[int, float] = field(default_factory=dict)
    """Of the absolute differences."""


@dataclass(frozen=True)
class Measured:
    """Difference of two arrays with the summary of each."""

    difference: Difference
    baseline: Statistics
    target: Statistics


class _Sums:
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
            square = _dot(magnitude, magnitude)
        else:
            low, high = float(values.min()), float(values.max())
            total = float(wide.sum())
            self.total += total
            self.absolute += total if low >= 0 else float(np.abs(wide).sum())
            square = _dot(wide, wide)
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


def measure(baseline: Array, target: Array, *, equal_nonfinite: bool = False) -> Difference:
    """Difference of two arrays; see ``compare_arrays``."""
    return compare_arrays(baseline, target, equal_nonfinite=equal_nonfinite).difference


def compare_arrays(
    baseline: Array,
    target: Array,
    *,
    percentiles: bool = False,
    equal_nonfinite: bool = False,
    single_precision: bool = False,
) -> Measured:
    """Measure ``target`` against ``baseline``, arrays of the same shape and of any numeric dtypes.

    ``percentiles`` adds those of the absolute difference and of both arrays, ``equal_nonfinite`` lets NaN equal
    NaN and an infinity itself, ``single_precision`` compares all dtypes in float32 (as SGLang's comparator does).
    Raises ValueError when the shapes differ.
    """
    if baseline.shape != target.shape:
        raise ValueError(f"shapes differ: {baseline.shape} and {target.shape}")
    with np.errstate(all="ignore"):
        return _compare(baseline, target, percentiles, equal_nonfinite, single_precision)


def summarize(array: Array, *, percentiles: bool = False) -> Statistics:
    """Summary of one array."""
    sums = _Sums()
    dtype = working_dtype(array.dtype)
    with np.errstate(all="ignore"):
        for piece in _pieces(array):
            values = to_working(piece, dtype)
            sums.add(values, _wide(values))
        found = _percentiles(to_working(array.reshape(-1), dtype)) if percentiles else {}
    return sums.statistics(found)


def _compare(
    baseline: Array, target: Array, percentiles: bool, equal_nonfinite: bool, single_precision: bool
) -> Measured:
    dtype = _common_dtype(baseline.dtype, target.dtype, single_precision)
    x_sums, y_sums = _Sums(), _Sums()
    cross = squared = absolute = x_square = y_square = 0.0
    differing = nonfinite_equal = 0
    largest = -1.0
    largest_at = 0
    at = 0
    for x_raw, y_raw in zip(_pieces(baseline), _pieces(target), strict=True):
        x, y = to_working(x_raw, dtype), to_working(y_raw, dtype)
        x_wide, y_wide = _wide(x), _wide(y)
        x_finite, x_squares = x_sums.add(x, x_wide)
        y_finite, y_squares = y_sums.add(y, y_wide)
        if not (x_finite and y_finite):
            same = ~np.isfinite(x) & ((x == y) | (np.isnan(x) & np.isnan(y)))
            nonfinite_equal += int(same.sum())
            if equal_nonfinite:
                x, y = np.where(same, 0, x), np.where(same, 0, y)
                x_wide, y_wide = _wide(x), _wide(y)
                x_squares, y_squares = _dot(x_wide, x_wide), _dot(y_wide, y_wide)
        gap = np.abs(y - x)
        index = int(gap.argmax())
        peak = float(gap[index])
        if peak > 0 or math.isnan(peak):
            differing += int(np.count_nonzero(gap))
            wide_gap = np.abs(y_wide - x_wide)
            squared += _dot(wide_gap, wide_gap)
            absolute += float(gap.sum(dtype=np.float64))
        if not math.isnan(largest) and (math.isnan(peak) or peak > largest):
            largest, largest_at = peak, at + index
        cross += _dot(x_wide, y_wide)
        x_square += x_squares
        y_square += y_squares
        at += x.size
    if at == 0:
        return Measured(_NO_DIFFERENCE, x_sums.statistics({}), y_sums.statistics({}))
    largest, largest_at, differing = _exact_integers(baseline, target, largest, largest_at, differing)
    difference = _difference(
        baseline, target, dtype, at, largest, largest_at, differing, squared, absolute, cross,
        x_square, y_square, nonfinite_equal,
        _gap_percentiles(baseline, target, dtype) if percentiles else {},
    )  # fmt: skip
    return Measured(
        difference,
        x_sums.statistics(_percentiles(to_working(baseline.reshape(-1), dtype)) if percentiles else {}),
        y_sums.statistics(_percentiles(to_working(target.reshape(-1), dtype)) if percentiles else {}),
    )


_NO_DIFFERENCE = Difference(0, 0.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0, (), 0.0, 0.0)


def _difference(
    baseline: Array,
    target: Array,
    dtype: np.dtype[Any],
    elements: int,
    largest: float,
    largest_at: int,
    differing: int,
    squared: float,
    absolute: float,
    cross: float,
    x_square: float,
    y_square: float,
    nonfinite_equal: int,
    percentiles: dict[int, float],
) -> Difference:
    rel = relative = 0.0
    scale, explained = 1.0, 0.0
    if largest != 0.0:
        rel = squared / (x_square + y_square) if x_square + y_square > 0 else math.nan
        relative = math.sqrt(squared / x_square) if x_square > 0 else math.inf
        if x_square > 0 and squared > 0:
            scale = cross / x_square
            explained = min(max(1.0 - (y_square - cross * scale) / squared, 0.0), 1.0)
    coordinate = tuple(int(index) for index in np.unravel_index(largest_at, baseline.shape))
    return Difference(
        elements=elements,
        rel=rel,
        max_abs=largest,
        mean_abs=absolute / elements,
        relative_l2=relative,
        scale=scale,
        scale_explains=explained,
        differing=differing,
        coordinate=coordinate,
        baseline_at_max=_scalar(baseline[coordinate], dtype),
        target_at_max=_scalar(target[coordinate], dtype),
        nonfinite_equal=nonfinite_equal,
        percentiles=percentiles,
    )


def _scalar(value: Any, dtype: np.dtype[Any]) -> float:
    return float(abs(value)) if dtype.kind == "c" else float(value)


def _exact_integers(
    baseline: Array, target: Array, largest: float, largest_at: int, differing: int
) -> tuple[float, int, int]:
    """Integers beyond 2**53 that differ although their float64 values do not still count as different."""
    if largest != 0 or baseline.dtype.kind not in "iu" or target.dtype.kind not in "iu":
        return largest, largest_at, differing
    unequal = (baseline != target).reshape(-1)
    count = int(np.count_nonzero(unequal))
    return (1.0, int(unequal.argmax()), count) if count else (largest, largest_at, differing)


def working_dtype(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """The dtype in which values of ``dtype`` are compared: float32, float64, complex64 or complex128."""
    if dtype.kind == "c":
        return np.dtype(np.complex64) if dtype.itemsize <= 8 else np.dtype(np.complex128)
    if dtype.kind in "iu":
        return np.dtype(np.float32) if dtype.itemsize <= 2 else np.dtype(np.float64)
    return np.dtype(np.float32) if dtype.itemsize <= 4 else np.dtype(np.float64)


def _common_dtype(left: np.dtype[Any], right: np.dtype[Any], single_precision: bool) -> np.dtype[Any]:
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


def _dot(left: Array, right: Array) -> float:
    """Σxy of two vectors, the real part of Σx̄y of complex ones.

    Not by BLAS: its threads cost more than the sum where they have to wait for a busy machine.
    """
    if left.dtype.kind == "c":
        return _dot(left.real, right.real) + _dot(left.imag, right.imag)
    return float(np.einsum("i,i->", left, right))


def _wide(values: Array) -> Array:
    if values.dtype.kind == "c":
        return values.astype(np.complex128, copy=False)
    return values.astype(np.float64, copy=False)


def _pieces(array: Array) -> Iterator[Array]:
    flat = np.ascontiguousarray(array).reshape(-1)
    for start in range(0, flat.size, _CHUNK):
        yield flat[start : start + _CHUNK]


def _percentiles(values: Array) -> dict[int, float]:
    if values.size == 0 or values.size >= PERCENTILE_LIMIT or values.dtype.kind == "c":
        return {}
    found = np.percentile(values, PERCENTILES)
    return {percentile: float(value) for percentile, value in zip(PERCENTILES, found, strict=True)}


def _gap_percentiles(baseline: Array, target: Array, dtype: np.dtype[Any]) -> dict[int, float]:
    if baseline.size >= PERCENTILE_LIMIT:
        return {}
    return _percentiles(np.abs(to_working(target.reshape(-1), dtype) - to_working(baseline.reshape(-1), dtype)))


def same_bytes(left: Array, right: Array) -> bool:
    """True when dtype, shape and every bit agree (NaN payloads too)."""
    if left.dtype != right.dtype or left.shape != right.shape:
        return False
    if left.size == 0:
        return True
    width = np.dtype(f"u{left.dtype.itemsize}") if left.dtype.itemsize in (1, 2, 4, 8) else np.dtype(np.uint8)
    return bool(np.array_equal(np.ascontiguousarray(left).view(width), np.ascontiguousarray(right).view(width)))


def row_differences(
    baseline: Array, target: Array, dimension: int, *, equal_nonfinite: bool = False
) -> npt.NDArray[np.float64]:
    """``rel`` of each slice along ``dimension``: shape ``(baseline.shape[dimension],)``, 0 where both are zero."""
    dtype = _common_dtype(baseline.dtype, target.dtype, False)
    rows = baseline.shape[dimension]
    found = np.zeros(rows, dtype=np.float64)
    left = np.moveaxis(baseline, dimension, 0).reshape(rows, -1)
    right = np.moveaxis(target, dimension, 0).reshape(rows, -1)
    step = max(1, _CHUNK // max(1, left.shape[1] if left.ndim > 1 else 1))
    with np.errstate(all="ignore"):
        for start in range(0, rows, step):
            x = _wide(to_working(left[start : start + step], dtype))
            y = _wide(to_working(right[start : start + step], dtype))
            if equal_nonfinite:
                same = ~np.isfinite(x) & ((x == y) | (np.isnan(x) & np.isnan(y)))
                x, y = np.where(same, 0, x), np.where(same, 0, y)
            gap = _row_squares(y - x)
            norm = _row_squares(x) + _row_squares(y)
            found[start : start + step] = np.where(gap == 0, 0.0, gap / norm)
    return found


def _row_squares(rows: Array) -> npt.NDArray[np.float64]:
    if rows.dtype.kind == "c":
        return _row_squares(rows.real) + _row_squares(rows.imag)
    squares: npt.NDArray[np.float64] = np.einsum("ij,ij->i", rows, rows)
    return squares
