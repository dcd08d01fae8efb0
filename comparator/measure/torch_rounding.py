"""The metrics as SGLang's comparator rounds them: in float32, sums in torch's order.

``rel`` is there 1 - 2 Σxy / Σ(x² + y²), which cancels; near zero two correct programs agree on it only when they
round alike. torch is imported only for two arrays whose elements lie in different orders in memory.
"""

from __future__ import annotations

import warnings

import numpy as np
from msgspec.structs import replace

from comparator.measure.difference import Difference, Measured, compare_arrays
from comparator.measure.kernel.many import Places
from comparator.measure.kernel.sums import Array, Float, to_working
from comparator.measure.torch_sums import Integers, sums_as_torch, sums_as_torch_of_each

_SINGLE = np.dtype(np.float32)


def compare_as_torch(baseline: Array, target: Array, *, percentiles: bool = False) -> Measured:
    """Measure two arrays of one shape as SGLang's comparator does."""
    measured = compare_arrays(baseline, target, percentiles=percentiles, single_precision=True)
    if not baseline.size or baseline.dtype.kind == "c" or target.dtype.kind == "c":
        return measured
    with np.errstate(all="ignore"):
        rel, largest, mean = _rounded(baseline, target)
    return replace(measured, difference=replace(measured.difference, rel=rel, max_abs=largest, mean_abs=mean))


def _rounded(x: Array, y: Array) -> tuple[float, float, float]:
    """``rel``, the largest and the mean absolute difference."""
    lying = _as_they_lie(x, y)
    if lying is None:
        x, y = (np.asarray(to_working(side, _SINGLE)) for side in (x, y))
        lying = _without_gaps(x, y)
        if lying is None:
            return _rounded_by_torch(x, y)
    sums = sums_as_torch(*lying)
    mean = float(np.float32(sums.gap) / np.float32(x.size))
    if sums.largest == 0.0:
        return 0.0, sums.largest, mean
    return 1 - 2 * sums.cross / sums.norm, sums.largest, mean


def rounded_as_torch(x: Places, y: Places, sizes: Integers) -> tuple[Float, Float, Float]:
    """``rel``, the largest and the mean absolute difference of pairs that lie as ``x`` and ``y`` say, of so many
    elements each, more than none."""
    with np.errstate(all="ignore"):
        gap, norm, cross, largest = sums_as_torch_of_each(x, y, sizes).T
        mean = (gap.astype(np.float32) / sizes.astype(np.float32)).astype(np.float64)
        return np.where(largest == 0.0, 0.0, 1 - 2 * cross / norm), largest, mean


def _as_they_lie(x: Array, y: Array) -> tuple[Array, Array] | None:
    """Both with their dimensions in the order of memory, in which torch adds; None where there is no such order."""
    if x.flags.c_contiguous and y.flags.c_contiguous:
        return x, y
    order = sorted(range(x.ndim), key=lambda axis: -x.strides[axis])
    x, y = x.transpose(order), y.transpose(order)
    return (x, y) if x.flags.c_contiguous and y.flags.c_contiguous else None


def _without_gaps(x: Array, y: Array) -> tuple[Array, Array] | None:
    """Both with their dimensions in the order of memory and without gaps, as what torch computes of them lies; None
    where elements of one lie in another order, or share memory."""
    order = sorted(range(x.ndim), key=lambda axis: (-x.strides[axis], -y.strides[axis], axis))
    x, y = x.transpose(order), y.transpose(order)
    return (np.ascontiguousarray(x), np.ascontiguousarray(y)) if _descends(x) and _descends(y) else None


def _descends(array: Array) -> bool:
    """Whether elements lie in memory in the order of their indices, with gaps or without."""
    behind = array.itemsize
    for length, stride in zip(reversed(array.shape), reversed(array.strides), strict=True):
        if length > 1:
            if stride < behind:
                return False
            behind = stride * length
    return True


def _rounded_by_torch(x: Array, y: Array) -> tuple[float, float, float]:
    import torch

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of arrays that cannot be written to; nobody does
        left, right = (torch.from_numpy(np.asarray(to_working(side, _SINGLE))) for side in (x, y))
    gap = (right - left).abs()
    largest, mean = gap.max().item(), gap.mean().item()
    if largest == 0.0:
        return 0.0, largest, mean
    wide_x, wide_y = left.double(), right.double()
    norm = (wide_x * wide_x + wide_y * wide_y).sum()
    return (1 - 2 * (wide_x * wide_y).sum() / norm).item(), largest, mean


def difference_as_torch_in_bfloat16(baseline: Array, target: Array, *, percentiles: bool = False) -> Difference:
    """The difference with both sides rounded to bfloat16, the subtraction too."""
    import ml_dtypes

    halves = [np.ascontiguousarray(side.astype(ml_dtypes.bfloat16)) for side in (baseline, target)]
    difference = compare_as_torch(*halves, percentiles=percentiles).difference
    if not baseline.size:
        return difference
    x, y = (to_working(half, _SINGLE) for half in halves)
    with np.errstate(all="ignore"):
        gap = np.asarray(to_working(np.abs(y - x).astype(ml_dtypes.bfloat16), _SINGLE))
        # torch takes the mean of half precisions in float32, and rounds it.
        mean = np.float32(sums_as_torch(np.zeros_like(gap), gap).gap) / np.float32(gap.size)
    coordinate = tuple(int(index) for index in np.unravel_index(int(gap.argmax()), gap.shape))
    largest = float(gap.max())
    return replace(
        difference,
        rel=0.0 if largest == 0.0 else difference.rel,
        max_abs=largest,
        mean_abs=float(ml_dtypes.bfloat16(mean)),
        coordinate=coordinate,
        baseline_at_max=float(halves[0][coordinate]),
        target_at_max=float(halves[1][coordinate]),
    )
