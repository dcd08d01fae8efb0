"""Bring both sides of a pair to one shape: steps one after the other, dimensions in the target's order."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from comparator.dims import SEQUENCE, TOKEN, Dimension, Dims
from comparator.errors import PairError
from comparator.plan.axes import align_axes, plan_axes
from comparator.report.records import Note
from comparator.sglang_compat.sides import SideFiles, SideTensors

Array = npt.NDArray[Any]

SEVERAL_STEPS_HINT = "give --token-aligner, or keep the steps apart: --grouping-skip-keys rank"


def join_steps(left: SideTensors, right: SideTensors, baseline: SideFiles, *, concatenate: bool) -> tuple[Array, Array]:
    """One tensor per side: all steps in order, both cut to the shorter; or the only step."""
    if not concatenate:
        if len(left.by_step) != 1 or len(right.by_step) != 1:
            raise PairError(
                f"several steps make one tensor here ({len(left.by_step)} in the baseline, {len(right.by_step)} in the "
                "target), and nothing says how their tokens go together",
                hint=SEVERAL_STEPS_HINT,
            )
        return next(iter(left.by_step.values())), next(iter(right.by_step.values()))
    axis = _token_axis(baseline.dims.dimensions if baseline.dims else ())
    joined = [
        np.concatenate([tensors.by_step[step] for step in sorted(tensors.by_step)], axis=axis)
        for tensors in (left, right)
    ]
    rows = min(array.shape[axis] for array in joined)
    where = (slice(None),) * axis + (slice(0, rows),)
    return joined[0][where], joined[1][where]


def _token_axis(dimensions: Sequence[Dimension]) -> int:
    """The dimension that counts tokens by the baseline's names; SGLang's comparator takes it on both sides."""
    names = [dimension.names for dimension in dimensions]
    for name in (TOKEN, SEQUENCE):
        if (name,) in names:
            return names.index((name,))
    return 0


def align_dimensions(baseline: Array, target: Array, left: Dims, right: Dims) -> tuple[Array, Array, Note | None]:
    """Both sides with the target's order of dimensions; as they lie, and a note, where the names do not fit."""
    _check_fused_order(left.dimensions, right.dimensions)
    try:
        plan = plan_axes(left.dimensions, right.dimensions)
    except PairError as error:
        return baseline, target, Note(kind="error", category="axis_alignment", message=f"{error}; {error.hint}")
    return align_axes(baseline, plan.baseline), align_axes(target, plan.target), None


def _check_fused_order(left: Sequence[Dimension], right: Sequence[Dimension]) -> None:
    fused = [dimension.names for dimension in (*left, *right) if dimension.fused]
    for names in fused:
        for other in fused:
            if names != other and set(names) == set(other):
                raise PairError(
                    f"({'*'.join(names)}) and ({'*'.join(other)}) fuse the same dimensions in another order",
                    hint="write the fused dimension in the same order on both sides, as it lies in memory",
                )


def without_leading_ones(array: Array, shape: tuple[int, ...]) -> Array:
    """``array`` without leading dimensions of length 1 when it then has ``shape``."""
    extra = array.ndim - len(shape)
    if extra > 0 and array.shape[extra:] == shape and all(length == 1 for length in array.shape[:extra]):
        return array.reshape(shape)
    return array
