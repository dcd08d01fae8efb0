"""Move the rows and dimensions of whole arrays: rows along the token dimension, dimensions into a common order."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from comparator.plan.axes import SideAxes
from comparator.plan.tokens.interface import consecutive
from tensortap.lazy_rows import computed, is_lazy, stacked

Array = npt.NDArray[Any]
Rows = npt.NDArray[np.int64]


def merge_rows(array: Array, positions: tuple[int, int]) -> Array:
    """Make batch and sequence one dimension in batch-major order, at the place of the first of them."""
    batch, sequence = positions
    at = min(positions)
    array = np.moveaxis(array, (batch, sequence), (at, at + 1))
    return array.reshape(*array.shape[:at], array.shape[at] * array.shape[at + 1], *array.shape[at + 2 :])


def take_rows(array: Array, index: Rows, axis: int) -> Array:
    """Rows ``index`` along ``axis``; a view when they are consecutive."""
    rows = consecutive(index)
    if is_lazy(array) and axis == 0:
        return array.take(index) if rows is None else array.rows(rows.start, rows.stop)
    if rows is None:
        return np.take(array, index, axis=axis)
    where: list[slice] = [slice(None)] * array.ndim
    where[axis] = rows
    return array[tuple(where)]


def slice_of(array: Array, dimension: int, start: int, stop: int) -> Array:
    """Part of an array along a dimension; of one that is read some rows at a time another such array."""
    index = (slice(None),) * dimension + (slice(start, stop),)
    if not is_lazy(array):
        return array[index]
    stop = min(stop, array.shape[dimension])
    if dimension == 0:
        return array.rows(start, stop)
    shape = (*array.shape[:dimension], stop - start, *array.shape[dimension + 1 :])
    return computed([cast(Array, array)], lambda rows: rows[index], shape, array.dtype)


def joined(arrays: Sequence[Array], dimension: int) -> Array:
    """Arrays side by side along a dimension; read some rows at a time where one of them is."""
    if not any(map(is_lazy, arrays)):
        return np.concatenate(arrays, axis=dimension)
    if dimension == 0:
        return stacked(arrays)
    shape = arrays[0].shape
    length = sum(array.shape[dimension] for array in arrays)
    return computed(
        arrays,
        lambda *rows: np.concatenate(rows, axis=dimension),
        (*shape[:dimension], length, *shape[dimension + 1 :]),
        arrays[0].dtype,
    )


def align_axes(array: Array, side: SideAxes) -> Array:
    """Apply one side of a plan; a view where numpy can give one."""
    if side.identity:
        return array
    if side.drop:
        array = array.squeeze(axis=side.drop)
    array = array.transpose(side.order)
    shape: list[int] = []
    at = 0
    for count in side.merge:
        shape.append(prod(array.shape[at : at + count]))
        at += count
    array = array.reshape(shape)
    return array if side.cut is None else slice_of(array, side.cut[0], 0, side.cut[1])


def without_leading_ones(array: Array, shape: tuple[int, ...]) -> Array:
    """``array`` without leading dimensions of length 1 when it then has ``shape``."""
    extra = array.ndim - len(shape)
    if extra > 0 and array.shape[extra:] == shape and all(length == 1 for length in array.shape[:extra]):
        return array.reshape(shape)
    return array
