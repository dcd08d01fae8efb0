"""Arrays that are larger than the memory that may be taken: read some rows at a time, and let go of again.

``LazyRows`` stands where a numpy array does, for code that takes rows of it in ``pieces`` and looks at its shape and
dtype. Whatever asks for all of it at once gets an error in place of a process that ends for want of memory.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate
from typing import Any, TypeGuard, cast

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
PIECE = 16 << 20
"""Bytes, of all sides together, that are read at a time; one row is, however long."""
_FEW = 16
"""Rows that are picked out before what was mapped for them is let go of."""


def _nothing(start: int, stop: int) -> None:
    return None


class LazyRows:
    """Rows of an array of this shape and dtype. ``read(start, stop)`` gives some of them, of shape
    ``(stop - start, *shape[1:])``; ``release(start, stop)`` lets go of what reading them has mapped."""

    def __init__(
        self,
        shape: tuple[int, ...],
        dtype: np.dtype[Any],
        read: Callable[[int, int], Array],
        release: Callable[[int, int], None] = _nothing,
        touched: int | None = None,
    ) -> None:
        """``touched``: bytes of memory that reading all of it takes, where these are not its own."""
        self.shape = shape
        self.dtype = dtype
        self.read = read
        self.release = release
        self.touched = self.nbytes if touched is None else touched

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        return self.size * self.dtype.itemsize

    def __len__(self) -> int:
        return self.shape[0]

    def __array__(self, *arguments: Any, **named: Any) -> Array:
        raise MemoryError(f"an array of {self.nbytes} bytes is asked for at once")

    def __getitem__(self, key: Any) -> Any:
        """A row by its number, an element by a tuple of numbers, rows in one piece by a slice, or chosen rows by their
        numbers or a mask: arrays of their own, or views of what is mapped."""
        if isinstance(key, tuple):
            return self[key[0]][key[1:]] if len(key) > 1 else self[key[0]]
        if key is Ellipsis:
            key = slice(None)
        if isinstance(key, slice):
            start, stop, step = key.indices(len(self))
            return self.read(start, max(start, stop))[::step]
        if isinstance(key, int | np.integer):
            return self.read(int(key), int(key) + 1)[0]
        chosen = np.asarray(key)
        chosen = np.flatnonzero(chosen) if chosen.dtype == np.bool_ else chosen
        found = np.empty((len(chosen), *self.shape[1:]), self.dtype)
        for at, row in enumerate(chosen.tolist()):
            found[at] = self.read(row, row + 1)[0]
            if at % _FEW == _FEW - 1 or at == len(chosen) - 1:
                # Around each row more is mapped than the row.
                some = chosen[at // _FEW * _FEW : at + 1]
                self.release(int(some.min()), int(some.max()) + 1)
        return found

    def astype(self, dtype: np.dtype[Any], copy: bool = True) -> Array:
        """The same, cast as it is read."""
        return computed([_as_array(self)], lambda rows: rows.astype(dtype), self.shape, dtype)

    def reshape(self, *shape: Any) -> Array:
        """The same with other dimensions behind the first."""
        wanted = tuple(shape[0]) if isinstance(shape[0], Sequence) else tuple(shape)
        if len(wanted) < 2 or wanted[0] != len(self) or math.prod(wanted) != self.size:
            raise MemoryError(f"an array of {self.nbytes} bytes is to be put into another order")
        return computed([_as_array(self)], lambda rows: rows.reshape(-1, *wanted[1:]), wanted, self.dtype)

    def rows(self, start: int, stop: int) -> Array:
        """Some of the rows, read when they are asked for."""
        return _as_array(
            LazyRows(
                (stop - start, *self.shape[1:]),
                self.dtype,
                lambda first, end: self.read(start + first, start + end),
                lambda first, end: self.release(start + first, start + end),
                self._touched_by(stop - start),
            )
        )

    def _touched_by(self, rows: int) -> int:
        return self.touched * rows // max(1, len(self))

    def take(self, chosen: npt.NDArray[np.int64]) -> Array:
        """Rows by their numbers, read when they are asked for."""
        return _as_array(
            LazyRows(
                (len(chosen), *self.shape[1:]),
                self.dtype,
                lambda first, end: self[chosen[first:end]],
                touched=self._touched_by(len(chosen)),
            )
        )


def _as_array(rows: LazyRows) -> Array:
    return cast(Array, rows)


def is_lazy(array: Any) -> TypeGuard[LazyRows]:
    """Whether an array is read some rows at a time."""
    return isinstance(array, LazyRows)


def lazy_bytes(
    parts: Sequence[memoryview],
    dtype: np.dtype[Any],
    shape: tuple[int, ...],
    release: Callable[[int, int, int], None],
) -> Array:
    """An array of rows, whose bytes lie in several parts; an element lies in one. ``release`` takes the number of a
    part, and where in it the bytes begin and end that are let go of."""
    row_bytes = math.prod(shape[1:]) * dtype.itemsize
    starts = [0, *accumulate(len(part) for part in parts)]

    def places(start: int, stop: int) -> Iterator[tuple[int, int, int]]:
        first, end = start * row_bytes, stop * row_bytes
        part = bisect_right(starts, first) - 1
        while first < end:
            until = min(end, starts[part + 1])
            yield part, first - starts[part], until - starts[part]
            first, part = until, part + 1

    def read(start: int, stop: int) -> Array:
        pieces = [parts[part][first:end] for part, first, end in places(start, stop)]
        data = pieces[0] if len(pieces) == 1 else b"".join(pieces)
        return np.frombuffer(data, dtype=dtype).reshape(stop - start, *shape[1:])

    def let_go(start: int, stop: int) -> None:
        for place in places(start, stop):
            release(*place)

    return _as_array(LazyRows(shape, dtype, read, let_go))


def stacked(arrays: Sequence[Array]) -> Array:
    """Arrays one after the other, as one that is read some rows at a time."""
    starts = [0, *accumulate(len(array) for array in arrays)]

    def places(start: int, stop: int) -> Iterator[tuple[Array, int, int]]:
        part = bisect_right(starts, start) - 1
        while start < stop:
            until = min(stop, starts[part + 1])
            if until > start:
                yield arrays[part], start - starts[part], until - starts[part]
            start, part = until, part + 1

    def read(start: int, stop: int) -> Array:
        pieces = [array[first:end] for array, first, end in places(start, stop)]
        return pieces[0] if len(pieces) == 1 else np.concatenate([arrays[0][:0], *pieces])

    def release(start: int, stop: int) -> None:
        for array, first, end in places(start, stop):
            if is_lazy(array):
                array.release(first, end)

    touched = sum(map(_touched, arrays))
    return _as_array(LazyRows((starts[-1], *arrays[0].shape[1:]), arrays[0].dtype, read, release, touched))


def computed(
    arrays: Sequence[Array],
    function: Callable[..., Array],
    shape: tuple[int, ...],
    dtype: np.dtype[Any],
) -> Array:
    """An array of this shape and dtype, whose rows ``function`` makes of the same rows of other arrays, each of which
    has as many."""

    def read(start: int, stop: int) -> Array:
        return function(*(array[start:stop] for array in arrays))

    def release(start: int, stop: int) -> None:
        for array in arrays:
            if is_lazy(array):
                array.release(start, stop)

    own = math.prod(shape) * dtype.itemsize
    return _as_array(LazyRows(shape, dtype, read, release, own + sum(map(_touched, arrays))))


def _touched(array: Array) -> int:
    return array.touched if is_lazy(array) else array.nbytes


def pieces(*arrays: Array, multiple: int = 1) -> Iterator[slice]:
    """Slices of rows that are read together, of arrays that have as many rows; what they map is let go of when the next
    one is asked for. All of it at once where no array is lazy. Each but the last is a multiple of so many rows."""
    count = len(arrays[0])
    lazy = [array for array in arrays if is_lazy(array)]
    if not lazy:
        yield slice(0, count)
        return
    row_bytes = sum(_touched(array) // max(1, count) for array in arrays)
    together = max(1, PIECE // max(1, row_bytes) // multiple) * multiple
    for start in range(0, count, together):
        rows = slice(start, min(start + together, count))
        yield rows
        for array in lazy:
            array.release(rows.start, rows.stop)
