"""What a picture of a pair needs: some thousand numbers, however large the tensors. Tensors end here."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from comparator.align.aligned import Aligned
from comparator.measure.family import rows_by_channels
from comparator.measure.kernel.sums import Array

MOST_ELEMENTS = 1 << 22
"""Elements that are looked at; of a larger tensor some rows are."""
MOST_ROWS = 512
MOST_CHANNELS = 512
POINTS = 300
"""Of the scatter plot."""
BINS = 61
AROUND = (4, 8)
"""Rows and channels on each side of the worst element."""

Draws = Literal["nothing", "failures", "all"]
"""Which findings have pictures: none, the first failures, or all."""
NameRow = Callable[[int], str | None]
Floats = npt.NDArray[np.floating[Any]]


@dataclass(frozen=True)
class Profile:
    """Errors along one dimension; where there are more than fit, each value is the largest of ``each`` neighbours."""

    length: int
    each: int
    error: list[float]
    """Relative L2 error: of a row over the norm of the baseline's row; of a channel over the mean norm of the
    baseline's channels."""


@dataclass(frozen=True)
class Histogram:
    """Of target less baseline."""

    low: float
    high: float
    counts: list[int]
    equal: int
    """Elements that are the same; they are in no bin."""


@dataclass(frozen=True)
class Around:
    """Both sides around the worst element: ``rows x channels`` values each."""

    row: int
    channel: int
    """Of the first value."""
    worst: tuple[int, int]
    baseline: list[list[float]]
    target: list[list[float]]
    row_size: list[float]
    """Root mean square of the baseline's whole rows: a floor is relative to it."""
    tokens: list[str]
    """What the rows are; empty where they have no identity."""


@dataclass(frozen=True)
class Picture:
    """Numbers that draw one pair."""

    rows: int
    channels: int
    tokens: Profile
    channel: Profile
    histogram: Histogram
    around: Around
    scatter: tuple[list[float], list[float]]
    """Baseline and target of a sample of elements, the largest differences among them."""
    rows_drawn: int
    """Less than ``rows`` where it is drawn from a sample of rows."""


def picture(aligned: Aligned) -> Picture | None:
    """The picture of an aligned pair; None for what is empty or holds no real numbers."""
    tokens = aligned.tokens
    name = (lambda _: None) if tokens is None else tokens.describe_row
    return draw(aligned.baseline, aligned.target, aligned.plan.row_dimensions, name) if aligned.same_shape else None


def draw(baseline: Array, target: Array, row_dimensions: tuple[int, ...], name: NameRow) -> Picture | None:
    """The picture of two arrays of one shape; ``name`` says which token a row is."""
    if not baseline.size or "c" in (baseline.dtype.kind, target.dtype.kind):
        return None
    try:
        left, right = (rows_by_channels(array, row_dimensions) for array in (baseline, target))
        every = max(1, math.ceil(left.size / MOST_ELEMENTS))
        numbers = np.arange(0, len(left), every)
        with np.errstate(all="ignore"):
            return _draw(left[::every].astype(np.float32), right[::every].astype(np.float32), numbers, left.shape, name)
    except (TypeError, ValueError):  # a dtype that is no number
        return None


def _draw(
    baseline: Floats, target: Floats, numbers: npt.NDArray[np.int64], shape: tuple[int, ...], name: NameRow
) -> Picture:
    gap = target - baseline
    finite = np.where(np.isfinite(gap), gap, 0.0)
    size = np.abs(np.where(np.isnan(gap), np.inf, gap))
    size[(baseline == target) | (np.isnan(baseline) & np.isnan(target))] = 0.0
    row, channel = (int(at) for at in np.unravel_index(int(size.argmax()), size.shape))
    squares = np.where(np.isfinite(baseline), baseline, 0.0) ** 2
    row_norm = np.sqrt(squares.sum(axis=1, dtype=np.float64))
    row_error = np.sqrt((finite**2).sum(axis=1, dtype=np.float64)) / np.where(row_norm > 0, row_norm, 1.0)
    norm = math.sqrt(float(squares.sum(dtype=np.float64)) / squares.shape[1])
    channel_error = np.sqrt((finite**2).sum(axis=0, dtype=np.float64)) / (norm or 1.0)
    return Picture(
        rows=shape[0],
        channels=shape[1],
        tokens=_profile(row_error, MOST_ROWS),
        channel=_profile(channel_error, MOST_CHANNELS),
        histogram=_histogram(finite),
        around=_around(baseline, target, row, channel, numbers, row_norm / math.sqrt(shape[1]), name),
        scatter=_scatter(baseline, target, size),
        rows_drawn=len(baseline),
    )


def _profile(errors: Floats, most: int) -> Profile:
    each = max(1, math.ceil(len(errors) / most))
    padded = np.concatenate([errors, np.zeros(-len(errors) % each)])
    return Profile(len(errors), each, padded.reshape(-1, each).max(axis=1).tolist())


def _histogram(gap: Floats) -> Histogram:
    different = gap[gap != 0]
    if not different.size:
        return Histogram(0.0, 0.0, [], int(gap.size))
    reach = float(np.abs(different).max())
    counts, _ = np.histogram(different, bins=BINS, range=(-reach, reach))
    return Histogram(-reach, reach, counts.tolist(), int(gap.size - different.size))


def _around(
    baseline: Floats,
    target: Floats,
    row: int,
    channel: int,
    numbers: npt.NDArray[np.int64],
    row_size: Floats,
    name: NameRow,
) -> Around:
    rows = slice(max(0, row - AROUND[0]), row + AROUND[0] + 1)
    channels = slice(max(0, channel - AROUND[1]), channel + AROUND[1] + 1)
    shown = numbers[rows].tolist()
    said = [name(at) or "" for at in shown]
    return Around(
        row=shown[0],
        channel=channels.start,
        worst=(row - rows.start, channel - channels.start),
        baseline=baseline[rows, channels].tolist(),
        target=target[rows, channels].tolist(),
        row_size=row_size[rows].tolist(),
        tokens=said if any(said) else [],
    )


def _scatter(baseline: Floats, target: Floats, size: Floats) -> tuple[list[float], list[float]]:
    x, y = baseline.reshape(-1), target.reshape(-1)
    chosen = np.linspace(0, len(x) - 1, min(POINTS * 3 // 4, len(x))).astype(np.int64)
    worst = np.argpartition(size.reshape(-1), -min(POINTS // 4, len(x)))[-(POINTS // 4) :]
    both = np.union1d(chosen, worst)
    both = both[np.isfinite(x[both]) & np.isfinite(y[both])]
    both = both[np.argsort(x[both], kind="stable")]
    return x[both].tolist(), y[both].tolist()
