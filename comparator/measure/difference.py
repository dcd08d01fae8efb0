"""How far two arrays of the same shape are apart, in one pass over both.

Values are compared in float32 when both dtypes hold no more than float32 does, else in float64. Sums are float64, of
values of few bits from blocks in float32 (``comparator.measure.kernel``). Arrays that are contiguous are not copied.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from msgspec import Struct, field
from msgspec.structs import replace

from comparator.measure.kernel import measure_sums
from comparator.measure.kernel.parts import After, Before
from comparator.measure.kernel.sums import Array, Float, PairSums, RowTable, to_working
from comparator.measure.statistics import (
    PERCENTILE_LIMIT,
    Statistics,
    common_dtype,
    percentiles_of,
    statistics_of,
)
from tensortap.lazy_rows import pieces


class Difference(Struct, frozen=True, array_like=True):
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


class Measured(Struct, frozen=True, eq=False):
    """Difference of two arrays with the summary of each."""

    difference: Difference
    baseline: Statistics
    target: Statistics
    rows: RowTable | None = None
    """The sums of each slice along the first dimension, where they were asked for."""


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
    by_row: bool = False,
    by_channel: bool = False,
    before: Sequence[Before] = (),
    after: After | None = None,
    digests: bool = False,
    threads: int = 1,
) -> Measured:
    """Measure ``target`` against ``baseline``, arrays of the same shape and of any numeric dtypes.

    ``percentiles`` adds those of the absolute difference and of both arrays, ``equal_nonfinite`` lets NaN equal
    NaN and an infinity itself, ``single_precision`` compares all dtypes in float32 (as SGLang's comparator does),
    ``by_row`` measures each slice along the first dimension too, ``by_channel`` then each element of a slice.
    ``before``, ``after``, ``digests`` and ``threads`` as in ``measure_sums``. Raises ValueError when the shapes differ.
    """
    if baseline.shape != target.shape:
        raise ValueError(f"shapes differ: {baseline.shape} and {target.shape}")
    dtype = common_dtype(baseline.dtype, target.dtype, single_precision)
    sums, rows = measure_sums(
        baseline,
        target,
        dtype=dtype,
        equal_nonfinite=equal_nonfinite,
        by_row=by_row,
        by_channel=by_channel,
        before=before,
        after=after,
        digests=digests,
        threads=threads,
    )
    found = _measured(baseline, target, dtype, sums, rows)
    if not percentiles:
        return found
    with np.errstate(all="ignore"):
        return _with_percentiles(found, baseline, target, dtype)


def _measured(baseline: Array, target: Array, dtype: np.dtype[Any], sums: PairSums, rows: RowTable | None) -> Measured:
    return Measured(
        _difference(sums, baseline, target, dtype),
        statistics_of(sums.baseline, baseline.size),
        statistics_of(sums.target, target.size),
        rows,
    )


def _with_percentiles(found: Measured, baseline: Array, target: Array, dtype: np.dtype[Any]) -> Measured:
    if not 0 < baseline.size < PERCENTILE_LIMIT:
        return found
    left, right = (
        replace(one, percentiles=percentiles_of(to_working(side[...].reshape(-1), dtype)))
        for one, side in ((found.baseline, baseline), (found.target, target))
    )
    gaps = _gap_percentiles(baseline, target, dtype)
    return Measured(replace(found.difference, percentiles=gaps), left, right, found.rows)


def _difference(sums: PairSums, baseline: Array, target: Array, dtype: np.dtype[Any]) -> Difference:
    if not baseline.size:
        return _NO_DIFFERENCE
    largest, largest_at, differing = _exact_integers(baseline, target, sums.largest, sums.largest_at, sums.differing)
    rel = relative = 0.0
    scale, explained = 1.0, 0.0
    x_square, squared = sums.baseline_square, sums.squared
    if largest != 0.0:
        total = x_square + sums.target_square
        rel = squared / total if total > 0 else math.nan
        relative = math.sqrt(squared / x_square) if x_square > 0 else math.inf
        if x_square > 0 and squared > 0:
            change = sums.along / x_square
            scale = 1.0 + change
            explained = min(max(change * (sums.along / squared), 0.0), 1.0)
    coordinate = _coordinate(largest_at, baseline.shape)
    return Difference(
        elements=baseline.size,
        rel=rel,
        max_abs=largest,
        mean_abs=sums.absolute / baseline.size,
        relative_l2=relative,
        scale=scale,
        scale_explains=explained,
        differing=differing,
        coordinate=coordinate,
        baseline_at_max=_scalar(baseline[coordinate], dtype),
        target_at_max=_scalar(target[coordinate], dtype),
        nonfinite_equal=sums.nonfinite_equal,
    )


def _coordinate(number: int, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The place of an element by its number in row-major order."""
    found: list[int] = []
    for length in reversed(shape):
        number, index = divmod(number, length)
        found.append(index)
    return tuple(reversed(found))


_NO_DIFFERENCE = Difference(0, 0.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0, (), 0.0, 0.0)


def _scalar(value: Any, dtype: np.dtype[Any]) -> float:
    return float(abs(value)) if dtype.kind == "c" else float(value)


def _exact_integers(
    baseline: Array, target: Array, largest: float, largest_at: int, differing: int
) -> tuple[float, int, int]:
    """Integers beyond 2**53 that differ although their float64 values do not still count as different."""
    if largest != 0 or baseline.dtype.kind not in "iu" or target.dtype.kind not in "iu":
        return largest, largest_at, differing
    if not baseline.ndim:
        baseline, target = baseline.reshape(1), target.reshape(1)
    count, first, row = 0, 0, baseline.size // max(1, len(baseline))
    for rows in pieces(baseline, target):
        unequal = (baseline[rows] != target[rows]).reshape(-1)
        if not count and unequal.any():
            first = rows.start * row + int(unequal.argmax())
        count += int(np.count_nonzero(unequal))
    return (1.0, first, count) if count else (largest, largest_at, differing)


def _gap_percentiles(baseline: Array, target: Array, dtype: np.dtype[Any]) -> dict[int, float]:
    if baseline.size >= PERCENTILE_LIMIT:
        return {}
    left, right = (to_working(side[...].reshape(-1), dtype) for side in (baseline, target))
    return percentiles_of(np.abs(right - left))


def same_bytes(left: Array, right: Array) -> bool:
    """True when dtype, shape and every bit agree (NaN payloads too)."""
    if left.dtype != right.dtype or left.shape != right.shape:
        return False
    if left.size == 0:
        return True
    width = np.dtype(f"u{left.dtype.itemsize}") if left.dtype.itemsize in (1, 2, 4, 8) else np.dtype(np.uint8)
    if not left.ndim:
        left, right = left.reshape(1), right.reshape(1)
    for rows in pieces(left, right):
        first, second = (np.ascontiguousarray(side[rows]).view(width) for side in (left, right))
        if not np.array_equal(first, second):
            return False
    return True


def row_differences(baseline: Array, target: Array, dimension: int, *, equal_nonfinite: bool = False) -> Float:
    """``rel`` of each slice along ``dimension``: shape ``(baseline.shape[dimension],)``, 0 where both are zero."""
    left, right = (np.moveaxis(side, dimension, 0) for side in (baseline, target))
    _, rows = measure_sums(left, right, equal_nonfinite=equal_nonfinite, by_row=True)
    assert rows is not None
    return rows.rel()
