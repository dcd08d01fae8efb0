"""Rows of arrays along the token dimension, however many dimensions it takes."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Rows = npt.NDArray[np.int64]


def count_rows(shape: tuple[int, ...], positions: tuple[int, ...]) -> int:
    """Rows of the token dimension at ``positions`` (batch and sequence count together); 1 without one."""
    rows = 1
    for position in positions:
        rows *= shape[position]
    return rows


def merge_rows(array: Array, positions: tuple[int, int]) -> Array:
    """Make batch and sequence one dimension in batch-major order, at the place of the first of them."""
    batch, sequence = positions
    at = min(positions)
    array = np.moveaxis(array, (batch, sequence), (at, at + 1))
    return array.reshape(*array.shape[:at], array.shape[at] * array.shape[at + 1], *array.shape[at + 2 :])


def take_rows(array: Array, index: Rows, axis: int) -> Array:
    """Rows ``index`` along ``axis``; a view when they are consecutive."""
    if index.size and index[-1] - index[0] == index.size - 1 and bool((np.diff(index) == 1).all()):
        where: list[slice] = [slice(None)] * array.ndim
        where[axis] = slice(int(index[0]), int(index[-1]) + 1)
        return array[tuple(where)]
    return np.take(array, index, axis=axis)
