"""Carry out the plan of a pair: read its records and bring both sides to two arrays of one shape."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import cast

import numpy as np
import numpy.typing as npt
from msgspec import Struct

from comparator.align.experts import order_rows
from comparator.align.load import load_array, load_lazily
from comparator.align.rows import Array, align_axes, merge_rows, take_rows, without_leading_ones
from comparator.align.unshard import Replicas, unshard
from comparator.errors import PairError
from comparator.match.bundles import Bundle, BundlePair
from comparator.match.entries import Entry
from comparator.options import Side
from comparator.plan.context import SideContext
from comparator.plan.pair import PairPlan
from comparator.plan.side import SidePlan, describe_part
from comparator.plan.tokens.interface import TokenPlan, consecutive
from comparator.rules import Rules
from tensortap.distinct import distinct
from tensortap.lazy_rows import is_lazy

VisitReplicas = Callable[[Side, Replicas], None]


class Aligned(Struct, frozen=True, eq=False):
    """Both sides as arrays that are ready to be measured: of one shape, unless the sides cannot be brought to one."""

    baseline: Array
    target: Array
    baseline_shape: tuple[int, ...]
    """The baseline's shape before leading dimensions of length 1 were dropped to fit the target's."""
    plan: PairPlan

    @property
    def token_axis(self) -> int | None:
        """The dimension whose index is the joined row; None where rows are no tokens."""
        return self.plan.token_axis

    @property
    def tokens(self) -> TokenPlan | None:
        """Which token each joined row is; None where there is no token dimension."""
        return self.plan.tokens

    @property
    def same_shape(self) -> bool:
        return self.baseline.shape == self.target.shape

    @property
    def has_rows_first(self) -> bool:
        """Whether the rows that an analysis looks at are the first of several dimensions."""
        return self.target.ndim > 1 and self.plan.row_dimensions in ((), (0,))


def align(
    plan: PairPlan,
    pair: BundlePair,
    contexts: Mapping[Side, SideContext],
    rules: Rules,
    visit: VisitReplicas | None = None,
    *,
    lazily: bool = False,
) -> Aligned:
    """Read the entries of a pair and carry its plan out. Memory: the tensors of this pair; ``lazily`` those of sides
    that can be read as they lie are arrays that are read some rows at a time.

    ``visit`` gets the replicas of both sides, which are let go once it returns. Raises PairError for damaged records
    and for parts that do not fit.
    """
    assert pair.baseline is not None
    assert pair.target is not None
    sides = []
    for side, bundle in ((plan.baseline, pair.baseline), (plan.target, pair.target)):
        as_it_lies = _as_it_lies(plan, side, bundle, rules) if lazily else None
        if as_it_lies is None:
            as_it_lies = _execute_side(plan, side, bundle, contexts[side.side], rules, visit)
        sides.append(as_it_lies)
    left, right = sides
    if plan.axes is not None:
        left = align_axes(left, plan.axes.baseline)
        right = align_axes(right, plan.axes.target)
    fitted = without_leading_ones(left, right.shape)
    return Aligned(fitted, right, left.shape, plan)


def is_as_it_lies(pair_plan: PairPlan, plan: SidePlan, bundle: Bundle, rules: Rules) -> bool:
    """Whether a side is one record whose rows are compared as they lie, all or some of them."""
    axes = pair_plan.axes
    if len(plan.steps) != 1 or len(plan.steps[0].unshard.ranks) != 1 or len(bundle.entries) != 1:
        return False
    if plan.token_order is not None or plan.merge_rows or (plan.token_dimensions or (0,))[-1] != 0:
        return False
    if axes is not None and not (axes.baseline.identity and axes.target.identity):
        return False
    return rules.rounding != "torch" and all(
        operation.kind != "undo_zigzag" and all(len(group) == 1 for group in operation.groups)
        for operation in plan.steps[0].unshard.operations
    )


def _as_it_lies(pair_plan: PairPlan, plan: SidePlan, bundle: Bundle, rules: Rules) -> Array | None:
    found = load_lazily(bundle.entries[0]) if is_as_it_lies(pair_plan, plan, bundle, rules) else None
    if found is None or not is_lazy(found):
        return None
    tokens = pair_plan.tokens
    index = None if tokens is None else tokens.baseline if plan.side == "baseline" else tokens.target
    if pair_plan.rows is not None:
        return found.rows(0, min(pair_plan.rows, len(found)))
    if index is None:
        return cast(Array, found)
    rows = consecutive(index)
    return found.take(index) if rows is None else found.rows(rows.start, rows.stop)


def _execute_side(
    pair_plan: PairPlan,
    plan: SidePlan,
    bundle: Bundle,
    context: SideContext,
    rules: Rules,
    visit: VisitReplicas | None,
) -> Array:
    tokens = pair_plan.tokens
    index = None if tokens is None else tokens.baseline if plan.side == "baseline" else tokens.target
    if plan.takes_one_array and pair_plan.rows is None and len(bundle.entries) == 1:
        array = load_array(bundle.entries[0])
        return array if index is None else take_rows(array, index, (plan.token_dimensions or (0,))[-1])
    entries: dict[tuple[int | None, int], list[Entry]] = {}
    in_order: Sequence[Entry] = bundle.entries
    if rules.grouping == "tags":
        in_order = tuple(sorted(in_order, key=lambda entry: entry.record.occurrence))
    for entry in in_order:
        entries.setdefault((entry.step, entry.rank), []).append(entry)
    arrays: list[Array] = []
    used = _rows_used(plan, index)
    for step in plan.steps:
        loaded = [_load(entries[step.step, rank].pop(0), plan, context) for rank in step.unshard.ranks]
        parts = unshard(
            step.unshard,
            loaded,
            token_dimensions=plan.token_dimensions,
            rows=[next(used) for _ in step.unshard.parts] if plan.parts else None,
            visit=None if visit is None else lambda found: visit(plan.side, found),
            rounding=rules.rounding,
        )
        arrays.extend(
            merge_rows(array, (plan.token_dimensions[0], plan.token_dimensions[1])) if plan.merge_rows else array
            for array in parts
        )
    axis = min(plan.token_dimensions, default=0) if plan.merge_rows else (plan.token_dimensions or (0,))[-1]
    joined = arrays[0] if len(arrays) == 1 else _concatenate(arrays, axis, plan)
    if pair_plan.rows is not None:
        return joined[(slice(None),) * axis + (slice(0, pair_plan.rows),)]
    return joined if index is None else take_rows(joined, index, axis)


def _load(entry: Entry, plan: SidePlan, context: SideContext) -> Array:
    array = load_array(entry)
    order = plan.token_order
    if order is None:
        return array
    coordinates = context.world.get(entry.rank, {})
    split = [coordinates.get(axis, (0, 1)) for axis in order.axes]
    return order_rows(array, entry, context.companions.of(entry, order.order.name), order, split)


def _rows_used(plan: SidePlan, index: npt.NDArray[np.int64] | None) -> Iterator[npt.NDArray[np.int64] | None]:
    """Per part the rows that are compared; None for all. Padding may hold anything, on every replica."""
    start = 0
    for part in plan.parts:
        if index is None:
            yield None
        else:
            inside = (index >= start) & (index < start + part.rows)
            yield distinct(index[inside]) - start
        start += part.rows


def _concatenate(arrays: list[Array], axis: int, plan: SidePlan) -> Array:
    shapes = {array.shape[:axis] + array.shape[axis + 1 :] for array in arrays}
    if len(shapes) > 1:
        names = [describe_part(part) for part in plan.parts] or [f"step {step.step}" for step in plan.steps]
        listed = ", ".join(f"{name} {list(array.shape)}" for name, array in zip(names, arrays, strict=True))
        raise PairError(f"the {plan.side}'s parts have shapes that cannot be joined: {listed}", name="shapes-differ")
    return np.concatenate(arrays, axis=axis)
