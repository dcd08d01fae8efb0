"""How far two arrays of the same shape are apart, in one pass over both.

Values are compared in float32 when both dtypes hold no more than float32 does, else in float64; sums are float64.
Work goes in pieces that stay in the processor's cache, so that no copy of a large array is made.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from comparator.measure.statistics import (
    PERCENTILE_LIMIT,
    Array,
    Statistics,
    Sums,
    common_dtype,
    dot,
    percentiles_of,
    pieces,
    to_working,
    widen,
)


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


@dataclass
class _Running:
    """Running sums over two arrays, piece by piece."""

    equal_nonfinite: bool
    baseline: Sums = field(default_factory=Sums)
    target: Sums = field(default_factory=Sums)
    cross: float = 0.0
    squared: float = 0.0
    absolute: float = 0.0
    baseline_square: float = 0.0
    target_square: float = 0.0
    differing: int = 0
    nonfinite_equal: int = 0
    largest: float = -1.0
    largest_at: int = 0
    elements: int = 0
    held: tuple[Array, ...] = ()
    """The arrays of the last piece. Were they let go before the next ones are made, the allocator would give their
    memory back to the system and fault it in again, piece by piece, which takes several times as long as the sums."""

    def add(self, x: Array, y: Array) -> None:
        """Add a piece of both, in the working dtype."""
        x_wide, y_wide = widen(x), widen(y)
        x_finite, x_squares = self.baseline.add(x, x_wide)
        y_finite, y_squares = self.target.add(y, y_wide)
        if not (x_finite and y_finite):
            same = ~np.isfinite(x) & ((x == y) | (np.isnan(x) & np.isnan(y)))
            self.nonfinite_equal += int(same.sum())
            if self.equal_nonfinite:
                x, y = np.where(same, 0, x), np.where(same, 0, y)
                x_wide, y_wide = widen(x), widen(y)
                x_squares, y_squares = dot(x_wide, x_wide), dot(y_wide, y_wide)
        gap = np.abs(y - x)
        index = int(gap.argmax())
        peak = float(gap[index])
        if peak > 0 or math.isnan(peak):
            self.differing += int(np.count_nonzero(gap))
            wide_gap = np.abs(y_wide - x_wide)
            self.squared += dot(wide_gap, wide_gap)
            self.absolute += float(gap.sum(dtype=np.float64))
        if not math.isnan(self.largest) and (math.isnan(peak) or peak > self.largest):
            self.largest, self.largest_at = peak, self.elements + index
        self.cross += dot(x_wide, y_wide)
        self.baseline_square += x_squares
        self.target_square += y_squares
        self.elements += x.size
        self.held = (x, y, x_wide, y_wide, gap)

    def difference(self, baseline: Array, target: Array, dtype: np.dtype[Any], percentiles: bool) -> Difference:
        """The difference of the arrays that were added."""
        if not self.elements:
            return _NO_DIFFERENCE
        largest, largest_at, differing = _exact_integers(
            baseline, target, self.largest, self.largest_at, self.differing
        )
        rel = relative = 0.0
        scale, explained = 1.0, 0.0
        x_square, squared = self.baseline_square, self.squared
        if largest != 0.0:
            total = x_square + self.target_square
            rel = squared / total if total > 0 else math.nan
            relative = math.sqrt(squared / x_square) if x_square > 0 else math.inf
            if x_square > 0 and squared > 0:
                scale = self.cross / x_square
                explained = min(max(1.0 - (self.target_square - self.cross * scale) / squared, 0.0), 1.0)
        coordinate = tuple(int(index) for index in np.unravel_index(largest_at, baseline.shape))
        return Difference(
            elements=self.elements,
            rel=rel,
            max_abs=largest,
            mean_abs=self.absolute / self.elements,
            relative_l2=relative,
            scale=scale,
            scale_explains=explained,
            differing=differing,
            coordinate=coordinate,
            baseline_at_max=_scalar(baseline[coordinate], dtype),
            target_at_max=_scalar(target[coordinate], dtype),
            nonfinite_equal=self.nonfinite_equal,
            percentiles=_gap_percentiles(baseline, target, dtype) if percentiles else {},
        )


def _compare(
    baseline: Array, target: Array, percentiles: bool, equal_nonfinite: bool, single_precision: bool
) -> Measured:
    dtype = common_dtype(baseline.dtype, target.dtype, single_precision)
    running = _Running(equal_nonfinite)
    for x, y in zip(pieces(baseline), pieces(target), strict=True):
        running.add(to_working(x, dtype), to_working(y, dtype))

    def listed(side: Array) -> dict[int, float]:
        return percentiles_of(to_working(side.reshape(-1), dtype)) if percentiles and side.size else {}

    return Measured(
        running.difference(baseline, target, dtype, percentiles),
        running.baseline.statistics(listed(baseline)),
        running.target.statistics(listed(target)),
    )


_NO_DIFFERENCE = Difference(0, 0.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0, (), 0.0, 0.0)


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


def _gap_percentiles(baseline: Array, target: Array, dtype: np.dtype[Any]) -> dict[int, float]:
    if baseline.size >= PERCENTILE_LIMIT:
        return {}
    return percentiles_of(np.abs(to_working(target.reshape(-1), dtype) - to_working(baseline.reshape(-1), dtype)))


def same_bytes(left: Array, right: Array) -> bool:
    """True when dtype, shape and every bit agree (NaN payloads too)."""
    if left.dtype != right.dtype or left.shape != right.shape:
        return False
    if left.size == 0:
        return True
    width = np.dtype(f"u{left.dtype.itemsize}") if left.dtype.itemsize in (1, 2, 4, 8) else np.dtype(np.uint8)
    return bool(np.array_equal(np.ascontiguousarray(left).view(width), np.ascontiguousarray(right).view(width)))
