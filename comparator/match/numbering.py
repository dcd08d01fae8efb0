"""Numbers for what is alike, and stable orders of long columns in which neighbours are mostly alike."""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

Integers = npt.NDArray[np.integer[Any]]
H = TypeVar("H", bound=Hashable)
_DENSE = 4
"""Times as many codes as numbers: up to here a table of all codes is faster than sorting the numbers."""


def numbered(found: Iterable[H]) -> tuple[Integers, list[H]]:
    """Of each its number among those that differ, and these, in the order in which they first come."""
    numbers: dict[H, int] = {}
    return np.array([numbers.setdefault(one, len(numbers)) for one in found], np.int64), list(numbers)


def combined(first: Integers, second: Integers) -> tuple[Integers, Integers, Integers]:
    """Of each pair of numbers, its number among the pairs that differ; and of these the two numbers, ascending.

    The numbers of ``first`` are small and not negative.
    """
    if not len(first):
        return first, first, first
    least, most = int(second.min()), int(second.max())
    width = most - least + 1
    code = first.astype(np.int64)
    if width > 1:
        code *= width
        code += second
        code -= least
    codes, number = _distinct(code)
    return number, codes // width, codes % width + least


def _distinct(code: Integers) -> tuple[Integers, Integers]:
    """The codes that there are, ascending, and of each its number among them."""
    most = int(code.max())
    if most <= _DENSE * len(code):
        there = np.zeros(most + 1, np.bool_)
        there[code] = True
        return np.flatnonzero(there), (np.cumsum(there) - 1)[code]
    codes, number = np.unique(code, return_inverse=True)
    return codes, number.reshape(-1)


def stable_order(*keys: Integers) -> Integers:
    """The order by the first key, then by the second one, and so on; what is equal stays in order."""
    count = len(keys[0])
    if not count:
        return np.empty(0, np.int64)
    changes = np.zeros(count - 1, np.bool_)
    for key in keys:
        changes |= key[1:] != key[:-1]
    starts = np.append(0, np.flatnonzero(changes) + 1)
    runs = np.lexsort([key[starts] for key in reversed(keys)])
    return ranges(starts[runs], np.diff(np.append(starts, count))[runs])


def ranges(starts: Integers, counts: Integers) -> Integers:
    """The numbers from each start on, as many as its count says, one after the other."""
    before = np.cumsum(counts) - counts
    return np.repeat(starts - before, counts) + np.arange(int(counts.sum()))
