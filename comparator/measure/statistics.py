"""The summary of one array.

Values are taken in float32 when their dtype holds no more than float32 does, else in float64; sums are float64.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import numpy as np
from msgspec import Struct, field
from msgspec.structs import replace

from comparator.measure.kernel import measure_sums
from comparator.measure.kernel.sums import Array, SideSums, to_working, working_dtype

PERCENTILES = (1, 5, 50, 95, 99)
PERCENTILE_LIMIT = 10_000_000
"""Percentiles are given for arrays below this number of elements (they need a sorted copy)."""


class Statistics(Struct, frozen=True, array_like=True):
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


def statistics_of(sums: SideSums, count: int) -> Statistics:
    """The summary of ``count`` elements from their sums."""
    if not count:
        return Statistics()
    mean = sums.total / count
    std = math.nan
    if count > 1:
        variance = (sums.square - sums.total * mean) / (count - 1)
        std = math.sqrt(max(variance, 0.0)) if math.isfinite(variance) else math.nan
    return Statistics(mean, sums.absolute / count, std, sums.minimum, sums.maximum, sums.nan, sums.infinite)


def summarize(array: Array, *, percentiles: bool = False) -> Statistics:
    """Summary of one array."""
    sums, _ = measure_sums(array, array)
    found = statistics_of(sums.baseline, array.size)
    if not percentiles:
        return found
    with np.errstate(all="ignore"):
        listed = percentiles_of(to_working(array.reshape(-1), working_dtype(array.dtype)))
    return replace(found, percentiles=listed)


@functools.cache
def common_dtype(left: np.dtype[Any], right: np.dtype[Any], single_precision: bool = False) -> np.dtype[Any]:
    """The dtype in which two arrays are compared; float32 for all real ones in ``single_precision``."""
    if single_precision and left.kind != "c" and right.kind != "c":
        return np.dtype(np.float32)
    return np.promote_types(working_dtype(left), working_dtype(right))


def percentiles_of(values: Array) -> dict[int, float]:
    """Percentiles of a vector; none for complex numbers, and for very many."""
    if values.size == 0 or values.size >= PERCENTILE_LIMIT or values.dtype.kind == "c":
        return {}
    found = np.percentile(values, PERCENTILES)
    return {percentile: float(value) for percentile, value in zip(PERCENTILES, found, strict=True)}
