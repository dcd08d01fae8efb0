"""Differences and summaries of many pairs from their sums: what ``difference`` and ``statistics`` make of each, to the
last bit."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import starmap

import numpy as np
import numpy.typing as npt

from comparator.measure.difference import Difference
from comparator.measure.kernel.many import ManySums
from comparator.measure.kernel.sums import Float
from comparator.measure.statistics import Statistics

Integers = npt.NDArray[np.int64]


def statistics_of_each(sums: ManySums, side: int, sizes: Integers) -> list[Statistics]:
    """Of each pair the summary of a side (0: baseline, 1: target), as ``statistics_of`` has it; ``sizes``: elements,
    more than none."""
    numbers, counts = sums.numbers[:, 5 * side : 5 * side + 5], sums.counts[:, 2 * side : 2 * side + 2]
    total, absolute, square = numbers[:, 0], numbers[:, 1], numbers[:, 2]
    with np.errstate(all="ignore"):
        mean = total / sizes
        variance = (square - total * mean) / (sizes - 1)
        std = np.sqrt(np.where(variance < 0, 0.0, variance))
        std[(sizes < 2) | ~np.isfinite(variance)] = np.nan
        columns = mean, absolute / sizes, std, numbers[:, 3], numbers[:, 4], counts[:, 0], counts[:, 1]
    return list(starmap(Statistics, zip(*(column.tolist() for column in columns), strict=True)))


def differences_of_each(
    sums: ManySums,
    sizes: Integers,
    row_shape: Sequence[int],
    at_most: tuple[Float, Float],
    rounded: tuple[Float, Float, Float] | None = None,
) -> list[Difference]:
    """Of each pair its difference; ``row_shape``: the dimensions of the arrays but for the first, () also of single
    numbers; ``at_most``: of each pair the values of baseline and target where the difference is largest; ``rounded``:
    of each ``rel``, ``max_abs`` and ``mean_abs`` as they are to be in the place of those that the sums give."""
    along, squared, absolute, x_square, y_square, largest = sums.numbers[:, 10:].T
    differs = largest != 0
    with np.errstate(all="ignore"):
        total = x_square + y_square
        rel = np.where(total > 0, squared / total, np.nan)
        relative = np.where(x_square > 0, np.sqrt(squared / x_square), np.inf)
        change = along / x_square
        share = change * (along / squared)
        share = np.where(share < 0, 0.0, share)
        share = np.where(share > 1, 1.0, share)
        scaled = differs & (x_square > 0) & (squared > 0)
        columns = (
            *((np.where(differs, rel, 0.0), largest, absolute / sizes) if rounded is None else rounded),
            np.where(differs, relative, 0.0),
            np.where(scaled, 1.0 + change, 1.0),
            np.where(scaled, share, 0.0),
        )
    differing, equal, where = sums.counts[:, 4:].T
    numbers = zip(*(column.tolist() for column in columns), strict=True)
    coordinates = _coordinates(where, row_shape)
    beside = zip(differing.tolist(), coordinates, *(side.tolist() for side in at_most), equal.tolist(), strict=True)
    return [Difference(size, *one, *other) for size, one, other in zip(sizes.tolist(), numbers, beside, strict=True)]


def _coordinates(where: Integers, row_shape: Sequence[int]) -> list[tuple[int, ...]]:
    """The places of elements by their numbers in row-major order."""
    found = []
    for length in reversed(row_shape):
        where, index = np.divmod(where, length)
        found.append(index.tolist())
    return list(zip(where.tolist(), *reversed(found), strict=True))
