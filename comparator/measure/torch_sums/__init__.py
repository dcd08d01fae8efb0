"""The sums of a difference in the order of torch's on a CPU, so that they round alike without torch.

One pass over both arrays, compiled where the package was installed with a C compiler (``_compiled.c``), else numpy
(``reference``, which says what the order is).
"""

from __future__ import annotations

import functools
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from comparator.measure.kernel.many import Places
from comparator.measure.kernel.sums import Array, Float, to_working
from comparator.measure.torch_sums import reference
from tensortap.compiled import load

if TYPE_CHECKING:
    from comparator.measure.torch_sums import _compiled
else:
    _compiled = load(f"{__name__}._compiled")

Integers = npt.NDArray[np.int64]

_GRAIN = 32768
"""Elements from which torch uses several threads (``ATen/native/TensorIteratorReduce.cpp``)."""
_KINDS = {"bfloat16": 0, "float16": 1, "float32": 2}
"""What the compiled module reads as it lies; all else goes through float32."""


class TorchSums(NamedTuple):
    """Of two arrays in float32."""

    gap: float
    """Σ|y - x|, added in float32."""
    norm: float
    """Σ(x² + y²)"""
    cross: float
    """Σxy"""
    largest: float
    """The largest |y - x|; NaN where one is."""


def sums_as_torch(x: Array, y: Array) -> TorchSums:
    """The sums of two contiguous arrays of one shape, with one element at least, of any real dtypes.

    torch cuts large arrays into a part for each of its threads, whose sums it adds as it adds a vector.
    """
    left, right = x.reshape(-1), y.reshape(-1)
    if left.size < _GRAIN:
        return TorchSums(*_part(left, right, 0, left.size))
    parts = [_part(left, right, start, stop) for start, stop in _parts(left.size)]
    if len(parts) == 1:
        return TorchSums(*parts[0])
    gaps, norms, crosses, largest = zip(*parts, strict=True)
    return TorchSums(
        _added(gaps, np.float32), _added(norms, np.float64), _added(crosses, np.float64), float(np.max(largest))
    )


def sums_as_torch_of_each(x: Places, y: Places, sizes: Integers) -> Float:
    """Of pairs that lie as ``x`` and ``y`` say, with one element at least, what ``sums_as_torch`` gives of each: shape
    ``(pairs, 4)``."""
    found = np.empty((len(sizes), 4))
    kinds = _kind(x.dtype), _kind(y.dtype)
    if _compiled is not None and kinds[0] is not None and kinds[1] is not None and int(sizes.max()) < _GRAIN:
        _compiled.measure_many(x.data, x.starts, kinds[0], y.data, y.starts, kinds[1], sizes, found)
    else:
        for number, (left, right) in enumerate(zip(x.each(sizes), y.each(sizes), strict=True)):
            found[number] = sums_as_torch(left, right)
    return found


def _added(parts: Sequence[float], dtype: type) -> float:
    whole: Array = np.zeros(_threads(), dtype)
    whole[: len(parts)] = parts
    return float(reference.in_order(whole))


def _part(x: Array, y: Array, start: int, stop: int) -> tuple[float, float, float, float]:
    if _compiled is None:
        return reference.measure(x, y, start, stop)
    (left, kind_x), (right, kind_y) = _source(x), _source(y)
    return _compiled.measure(left, kind_x, right, kind_y, start, stop)


def _source(array: Array) -> tuple[Array, int]:
    kind = _kind(array.dtype)
    if kind is not None and array.flags.aligned:
        return array.view(np.uint8), kind
    return np.require(to_working(array, np.dtype(np.float32)), requirements=["C", "A"]).view(np.uint8), _KINDS[
        "float32"
    ]


@functools.cache
def _kind(dtype: np.dtype[Any]) -> int | None:
    return _KINDS.get(dtype.name) if dtype.isnative else None


def _parts(size: int) -> list[tuple[int, int]]:
    threads = _threads()
    if threads == 1:
        return [(0, size)]
    each = -(-size // min(threads, -(-size // _GRAIN)))
    return [(start, min(start + each, size)) for start in range(0, size, each)]


def _threads() -> int:
    text = os.environ.get("OMP_NUM_THREADS", "").split(",")[0]
    if text.isdecimal() and int(text):
        return int(text)
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
