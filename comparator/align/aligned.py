"""Carry out the plan of a pair: read its records and bring both sides to two arrays of one shape."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
import numpy.typing as npt
from msgspec import Struct

from comparator.align.load import (
    SEVERAL,
    PendingCheck,
    is_mapped,
    load_array,
    load_lazily,
    load_together,
    load_unchecked,
)
from comparator.align.rearrange import Array, align_axes, joined, merge_rows, slice_of, take_rows, without_leading_ones
from comparator.align.unshard import Replicas, unshard
from comparator.errors import PairError
from comparator.match.bundles import Bundle, BundlePair
from comparator.match.entries import Entry
from comparator.options import Side
from comparator.plan.context import SideContext
from comparator.plan.experts import TokenOrder, ordered_shape
from comparator.plan.planner import PairPlan
from comparator.plan.side import SidePlan, describe_part
from comparator.plan.tokens.interface import TokenPlan
from comparator.rules import Rules
from tensortap.distinct import distinct

_LISTED = 8
"""Parts that a message names."""
VisitReplicas = Callable[[Side, Replicas], None]
Load = Callable[[Entry], Array]


class Unchecked(Struct, frozen=True, eq=False):
    """Both sides are whole arrays of one entry each, whose bytes are checked while they are measured."""

    baseline: PendingCheck
    target: PendingCheck
    is_one: bool
    """The target is intact if the baseline is and both have the same bytes."""

    @property
    def takes(self) -> tuple[Callable[[int], None], ...]:
        """What takes the checksum of a side up to an element: of both sides unless one may be enough."""
        return (self.baseline.take,) if self.is_one else (self.baseline.take, self.target.take)

    def let_go(self, first: int, stop: int) -> None:
        """Give back the memory that elements of both sides take, which are read anew where they are asked for again."""
        self.baseline.let_go(first, stop)
        self.target.let_go(first, stop)

    def finish(self, *, same: bool, digests: Sequence[int] = ()) -> None:
        """Raises PairError for a side that is damaged. ``same``: both have the same bytes; ``digests``: of each side,
        where others have taken them."""
        baseline, target = digests or (None, None)
        self.baseline.finish(baseline)
        if not (same and self.is_one):
            self.target.finish(target)


class Aligned(Struct, frozen=True, eq=False):
    """Both sides as arrays that are ready to be measured: of one shape, unless the sides cannot be brought to one."""

    baseline: Array
    target: Array
    baseline_shape: tuple[int, ...]
    """The baseline's shape before leading dimensions of length 1 were dropped to fit the target's."""
    plan: PairPlan
    unchecked: Unchecked | None = None
    """The checks of both sides, where they are still to be made."""

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
    may_wait: bool = False,
) -> Aligned:
    """Read the entries of a pair and carry its plan out. Memory: the tensors of this pair; ``lazily`` both sides are
    arrays that are read and put together some rows at a time. ``may_wait``: what ``Aligned.unchecked`` then names is
    left to the caller.

    ``visit`` gets the replicas of both sides, which are let go once it returns. Raises PairError for damaged records
    and for parts that do not fit.
    """
    assert pair.baseline is not None
    assert pair.target is not None
    load: Load = load_lazily if lazily else load_array
    unchecked = _unchecked(plan, pair) if may_wait and not lazily else None
    if unchecked is not None:
        load = load_unchecked
    left, right = (
        _execute_side(plan, side, bundle, contexts[side.side], rules, visit, load)
        for side, bundle in ((plan.baseline, pair.baseline), (plan.target, pair.target))
    )
    if plan.axes is not None:
        left = align_axes(left, plan.axes.baseline)
        right = align_axes(right, plan.axes.target)
    fitted = without_leading_ones(left, right.shape)
    if unchecked is not None and (left.nbytes, right.nbytes) != (unchecked.baseline.nbytes, unchecked.target.nbytes):
        unchecked.finish(same=False)
        unchecked = None
    return Aligned(fitted, right, left.shape, plan, unchecked)


def _unchecked(plan: PairPlan, pair: BundlePair) -> Unchecked | None:
    """Where both sides are whole arrays of one record, as they lie."""
    assert pair.baseline is not None
    assert pair.target is not None
    if plan.as_it_lies is None or not len(pair.baseline.entries) == len(pair.target.entries) == 1:
        return None
    baseline, target = (PendingCheck.of(side.entries[0]) for side in (pair.baseline, pair.target))
    if baseline is None or target is None:
        return None
    return Unchecked(baseline, target, target.is_of_same(baseline))


def can_be_read_in_rows(pair_plan: PairPlan, plan: SidePlan, bundle: Bundle, rules: Rules) -> bool:
    """Whether a side can be put together some rows at a time: rows come first, on every rank and in what is compared,
    and all that is read is mapped as it was recorded."""
    if rules.rounding == "torch" or plan.token_order is not None or plan.merge_rows:
        return False
    axes = pair_plan.axes
    own = None if axes is None else axes.baseline if plan.side == "baseline" else axes.target
    if (plan.token_dimensions or (0,))[-1] != 0 or (own is not None and not own.identity):
        return False
    alike = {(like.record.dtype, len(like.kept_shape)) for like in bundle.likes}
    return len(alike) == 1 and all(map(is_mapped, bundle.entries))


def _execute_side(
    pair_plan: PairPlan,
    plan: SidePlan,
    bundle: Bundle,
    context: SideContext,
    rules: Rules,
    visit: VisitReplicas | None,
    load: Load,
) -> Array:
    tokens = pair_plan.tokens
    index = None if tokens is None else tokens.baseline if plan.side == "baseline" else tokens.target
    if plan.takes_one_array and pair_plan.rows is None and len(bundle.entries) == 1:
        array = load(bundle.entries[0])
        return array if index is None else take_rows(array, index, (plan.token_dimensions or (0,))[-1])
    alike = bundle.alike
    numbers: Sequence[int] = range(len(alike))
    if rules.grouping == "tags":
        numbers = sorted(numbers, key=lambda number: alike[number][3])
    waiting: dict[tuple[int | None, int], list[int]] = {}
    for number in numbers:
        _, rank, at_step, _ = alike[number]
        waiting.setdefault((at_step, rank), []).append(number)
    found = load_together(bundle, context) if load is load_array and len(plan.steps) >= SEVERAL else [None] * len(alike)
    # No entry is made of a record whose array is there already.
    made = plan.token_order is not None or any(array is None for array in found)
    entries = tuple(bundle.entries) if made else ()

    def load_of(number: int) -> Array:
        array = found[number]
        if array is None:
            array = load(entries[number])
        return array if plan.token_order is None else _in_order(array, entries[number], plan, context)

    arrays: list[Array] = []
    # What replicas are cut to, and nothing else is.
    picks = visit is not None and any(one.kind == "pick" for step in plan.steps for one in step.unshard.operations)
    used = _rows_used(plan, index) if picks else None
    for step in plan.steps:
        loaded = [load_of(waiting[step.step, rank].pop(0)) for rank in step.unshard.ranks]
        parts = unshard(
            step.unshard,
            loaded,
            token_dimensions=plan.token_dimensions,
            rows=[next(used) for _ in step.unshard.parts] if used is not None and plan.parts else None,
            visit=None if visit is None else lambda found: visit(plan.side, found),
            rounding=rules.rounding,
        )
        arrays.extend(
            merge_rows(array, (plan.token_dimensions[0], plan.token_dimensions[1])) if plan.merge_rows else array
            for array in parts
        )
    axis = min(plan.token_dimensions, default=0) if plan.merge_rows else (plan.token_dimensions or (0,))[-1]
    whole = arrays[0] if len(arrays) == 1 else _concatenate(arrays, axis, plan)
    if pair_plan.rows is not None:
        return slice_of(whole, axis, 0, pair_plan.rows)
    return whole if index is None else take_rows(whole, index, axis)


def _in_order(array: Array, entry: Entry, plan: SidePlan, context: SideContext) -> Array:
    order = plan.token_order
    assert order is not None
    coordinates = context.world.get(entry.rank, {})
    split = [coordinates.get(axis, (0, 1)) for axis in order.axes]
    return _by_token(array, entry, context.companions.of(entry, order.order.name), order, split)


def _by_token(array: Array, entry: Entry, companion: Entry, order: TokenOrder, split: Sequence[tuple[int, int]]) -> (
    Array
):  # fmt: skip
    """``array``, the value of ``entry``, with its rows, sorted by expert, in token order: shape
    ``(tokens, choices, ...)``; ``comparator.plan.experts`` explains both kinds of order.

    ``split`` gives ``(rank, size)`` of the entry's rank on every axis over which the experts are split. Raises
    PairError when the companion does not account for the rows.
    """
    places = load_array(companion)
    shape = ordered_shape(order.order, array.shape, places.shape)
    pairs = int(np.prod(shape[: len(shape) - array.ndim + 1]))
    flat = places.reshape(-1).astype(np.int64)
    if order.order.kind == "experts":
        source = _pairs_by_expert(flat, entry, order.order.count, split)
    else:
        source = flat
        if not np.array_equal(np.sort(source), np.arange(pairs)):
            raise PairError(f"{companion.name} is no permutation of the {pairs} rows of {entry.name}")
    if len(source) != len(array):
        raise PairError(
            f"{entry.name} has {len(array)} rows on rank {entry.rank}, but {companion.name} accounts for {len(source)}",
            hint="give the number of experts, expert_order:=NAME/EXPERTS, when each rank has its own experts",
        )
    result = np.zeros((pairs, *array.shape[1:]), dtype=array.dtype)
    result[source] = array
    return result.reshape(shape)


def _pairs_by_expert(
    experts: npt.NDArray[np.int64], entry: Entry, count: int | None, split: Sequence[tuple[int, int]]
) -> npt.NDArray[np.int64]:
    """Pairs in the order of the rows: by expert, then by pair; only of the rank's own experts."""
    first, last = 0, count if count is not None else int(experts.max(initial=-1)) + 1
    for rank, size in split:
        if count is None:
            raise PairError(
                f"the rows of {entry.name} are split by expert; how many experts there are is not said",
                hint="write expert_order:=NAME/EXPERTS",
            )
        each = (last - first) // size
        first, last = first + rank * each, first + (rank + 1) * each
    local = np.flatnonzero((experts >= first) & (experts < last))
    return local[np.argsort(experts[local], kind="stable")]


def _rows_used(plan: SidePlan, index: npt.NDArray[np.int64] | None) -> Iterator[npt.NDArray[np.int64] | None]:
    """Per part the rows that are compared; None for all. Padding may hold anything, on every replica."""
    if index is None:
        yield from [None] * len(plan.parts)
        return
    taken = distinct(index)
    start = first = 0
    for part, last in zip(
        plan.parts, np.searchsorted(taken, np.cumsum([part.rows for part in plan.parts])), strict=True
    ):
        yield taken[first:last] - start
        start, first = start + part.rows, last


def _why_apart(shapes: Sequence[tuple[int, ...]], axis: int) -> str:
    """What may be the reason that arrays of one tensor cannot be joined along an axis; empty where nothing is known."""
    if len({len(shape) for shape in shapes}) > 1:
        return ""
    others = [at for at in range(len(shapes[0])) if at != axis and len({shape[at] for shape in shapes}) > 1]
    if len(others) != 1 or len(shapes) < 3:
        return ""
    return (
        f". Dimension {others[0]} has another length in each pass, as where a tensor is made of all that is cached: "
        "record the rows of the pass alone, value[..., -length:, :], or leave the tap out"
    )


def _concatenate(arrays: list[Array], axis: int, plan: SidePlan) -> Array:
    shapes = {array.shape[:axis] + array.shape[axis + 1 :] for array in arrays}
    if len(shapes) > 1:
        names = [describe_part(part) for part in plan.parts] or [f"step {step.step}" for step in plan.steps]
        listed = [f"{name} {list(array.shape)}" for name, array in zip(names, arrays, strict=True)]
        more = "" if len(listed) <= _LISTED else f" and {len(listed) - _LISTED} more"
        raise PairError(
            f"the {plan.side}'s parts have shapes that cannot be joined: {', '.join(listed[:_LISTED])}{more}"
            f"{_why_apart([array.shape for array in arrays], axis)}",
            name="shapes-differ",
        )
    return joined(arrays, axis)
