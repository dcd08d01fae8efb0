"""Carry out the plan of a pair: read its records and bring both sides to two arrays of one shape."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from comparator.align.load import load_array
from comparator.align.rows import merge_rows, take_rows
from comparator.align.unshard import ReplicaDifference, unshard
from comparator.errors import PairError
from comparator.plan.axes import align_axes
from comparator.plan.pair import PairPlan, SidePlan, describe_part
from comparator.plan.tokens.interface import Side

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Aligned:
    """Both sides as arrays that are ready to be measured."""

    baseline: Array
    target: Array
    replicas: tuple[tuple[Side, ReplicaDifference], ...] = field(default_factory=tuple)


def align(plan: PairPlan) -> Aligned:
    """Read the records of a plan and carry it out. Memory: the tensors of this pair."""
    tokens = plan.tokens
    left, left_replicas = _execute_side(plan.baseline, None if tokens is None else tokens.baseline)
    right, right_replicas = _execute_side(plan.target, None if tokens is None else tokens.target)
    if plan.axes is not None:
        left = align_axes(left, plan.axes.baseline)
        right = align_axes(right, plan.axes.target)
    replicas: list[tuple[Side, ReplicaDifference]] = [("baseline", found) for found in left_replicas]
    replicas.extend(("target", found) for found in right_replicas)
    return Aligned(left, right, tuple(replicas))


def _execute_side(plan: SidePlan, index: npt.NDArray[np.int64] | None) -> tuple[Array, list[ReplicaDifference]]:
    arrays: list[Array] = []
    replicas: list[ReplicaDifference] = []
    used = _rows_used(plan, index)
    for step in plan.steps:
        by_rank = {record.rank: record for record in step.records}
        result = unshard(
            step.unshard,
            [load_array(by_rank[rank]) for rank in step.unshard.ranks],
            token_dimensions=plan.token_dimensions,
            rows=[next(used) for _ in step.unshard.parts],
        )
        replicas.extend(result.replicas)
        arrays.extend(
            merge_rows(array, (plan.token_dimensions[0], plan.token_dimensions[1])) if plan.merge_rows else array
            for array in result.arrays
        )
    axis = min(plan.token_dimensions, default=0) if plan.merge_rows else (plan.token_dimensions or (0,))[-1]
    joined = arrays[0] if len(arrays) == 1 else _concatenate(arrays, axis, plan)
    return (joined if index is None else take_rows(joined, index, axis)), replicas


def _rows_used(plan: SidePlan, index: npt.NDArray[np.int64] | None) -> Iterator[npt.NDArray[np.int64] | None]:
    """Per part the rows that are compared; None for all. Padding may hold anything, on every replica."""
    start = 0
    for part in plan.parts:
        if index is None:
            yield None
        else:
            inside = (index >= start) & (index < start + part.rows)
            yield np.unique(index[inside]) - start
        start += part.rows


def _concatenate(arrays: list[Array], axis: int, plan: SidePlan) -> Array:
    shapes = {array.shape[:axis] + array.shape[axis + 1 :] for array in arrays}
    if len(shapes) > 1:
        listed = ", ".join(
            f"{describe_part(part)} {list(array.shape)}" for part, array in zip(plan.parts, arrays, strict=True)
        )
        raise PairError(f"the {plan.side}'s parts have shapes that cannot be joined: {listed}")
    return np.concatenate(arrays, axis=axis)
