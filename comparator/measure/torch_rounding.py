"""The metrics as SGLang's comparator rounds them: in float32, sums in torch's order.

``rel`` is there 1 - 2 Σxy / Σ(x² + y²), which cancels; near zero two correct programs agree on it only when they
round alike. torch is at hand, since the files needed it.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt

from comparator.measure.difference import Difference, Measured, compare_arrays
from comparator.measure.kernel.sums import Array, to_working

_SINGLE = np.dtype(np.float32)


def compare_as_torch(baseline: Array, target: Array, *, percentiles: bool = False) -> Measured:
    """Measure two arrays of one shape as SGLang's comparator does."""
    measured = compare_arrays(baseline, target, percentiles=percentiles, single_precision=True)
    if not baseline.size or baseline.dtype.kind == "c" or target.dtype.kind == "c":
        return measured
    import torch

    x, y = (torch.from_numpy(np.asarray(to_working(side, _SINGLE))) for side in (baseline, target))
    gap = (y - x).abs()
    wide_x, wide_y = y.double(), x.double()
    norm = (wide_x * wide_x + wide_y * wide_y).sum()
    largest = gap.max().item()
    rel = 0.0 if largest == 0.0 else (1 - 2 * (wide_x * wide_y).sum() / norm).item()
    return replace(
        measured, difference=replace(measured.difference, rel=rel, max_abs=largest, mean_abs=gap.mean().item())
    )


def difference_as_torch_in_bfloat16(baseline: Array, target: Array) -> Difference:
    """The difference with both sides rounded to bfloat16, the subtraction too."""
    import ml_dtypes
    import torch

    halves = [side.astype(ml_dtypes.bfloat16) for side in (baseline, target)]
    difference = compare_as_torch(*halves).difference
    if not baseline.size:
        return difference
    x, y = (torch.from_numpy(_bits(half)).view(torch.bfloat16) for half in halves)
    gap = (y - x).abs()
    where = np.unravel_index(int(gap.argmax()), baseline.shape)
    coordinate = tuple(int(index) for index in where)
    largest = gap.max().item()
    return replace(
        difference,
        rel=0.0 if largest == 0.0 else difference.rel,
        max_abs=largest,
        mean_abs=gap.mean().item(),
        coordinate=coordinate,
        baseline_at_max=float(halves[0][coordinate]),
        target_at_max=float(halves[1][coordinate]),
    )


def _bits(array: Array) -> npt.NDArray[np.int16]:
    return np.ascontiguousarray(array).view(np.int16)
