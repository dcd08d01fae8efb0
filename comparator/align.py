"""Plan, from metadata alone, how both sides of a pair become two arrays of one shape; then do it.

A plan goes per side and step from the ranks' arrays to parts (``comparator.unshard``), from parts to the rows
that both sides have (``comparator.tokens``), and from there to common dimensions (``comparator.axes``).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from comparator.arrays import count_rows, merge_rows, take_rows
from comparator.axes import AxesPlan, align_axes, plan_axes
from comparator.dims import TOKEN, Dimension, Dims, parse_dims
from comparator.errors import DimsError, PairError
from comparator.experts import Companions, in_token_order
from comparator.load import load_array
from comparator.match import Bundle
from comparator.runs import RecordView, RunView, parallel_layout
from comparator.tokens.interface import RowsClass, Side, TokenAligner, TokenPart, TokenPlan
from comparator.unshard import Part, ReplicaDifference, Shard, UnshardPlan, plan_unshard, unshard
from comparator.unshard.plan import Coordinates

Array = npt.NDArray[Any]
_UNKNOWN_ROWS = RowsClass("unknown")


@dataclass(frozen=True)
class SideContext:
    """What planning needs to know about one run."""

    side: Side
    run: RunView
    world: Mapping[int, Coordinates]
    axes: frozenset[str]
    """Every axis that a rank of the run recorded."""
    companions: Companions
    classified: dict[object, Mapping[int | None, RowsClass]] = field(default_factory=dict)
    """What the rows of a name and its tags are, per step; filled as bundles are planned."""

    @classmethod
    def of(cls, side: Side, run: RunView) -> SideContext:
        world = parallel_layout(run)
        axes = frozenset(axis for coordinates in world.values() for axis in coordinates)
        return cls(side, run, world, axes, Companions(run))


@dataclass(frozen=True)
class StepPlan:
    """One step of one side: which records, what their rows are, how they are unsharded."""

    step: int | None
    records: tuple[RecordView, ...]
    """In the order of ``unshard.ranks``."""
    rows: RowsClass
    unshard: UnshardPlan


@dataclass(frozen=True)
class SidePlan:
    """All steps of one side and the parts they leave, in order."""

    side: Side
    dims: Dims | None
    dimensions: tuple[Dimension, ...] | None
    """Dimensions of the joined tensor: those of the dims, batch and sequence made one where ``merge_rows``."""
    token_dimensions: tuple[int, ...]
    merge_rows: bool
    steps: tuple[StepPlan, ...]
    parts: tuple[TokenPart, ...]


@dataclass(frozen=True)
class PairPlan:
    """Everything that happens to a pair before it is measured."""

    baseline: SidePlan
    target: SidePlan
    tokens: TokenPlan | None
    """None when a side has no token dimension: then both have one part and it is taken whole."""
    axes: AxesPlan | None
    errors: tuple[str, ...] = ()
    """Why an alignment could not be made; the pair fails, and is compared as it lies."""
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Aligned:
    """Both sides as arrays that are ready to be measured."""

    baseline: Array
    target: Array
    replicas: tuple[tuple[Side, ReplicaDifference], ...] = field(default_factory=tuple)


def plan_pair(
    baseline: Bundle,
    target: Bundle,
    dims: Mapping[Side, str | None],
    contexts: Mapping[Side, SideContext],
    aligner: TokenAligner,
    *,
    joined: bool,
) -> PairPlan:
    """Plan the comparison of two bundles of tensors.

    ``joined`` says that the steps of each side become one tensor. Raises PairError or DimsError when a side cannot
    be put together.
    """
    left = _plan_side(baseline, dims["baseline"], contexts["baseline"], aligner, joined)
    right = _plan_side(target, dims["target"], contexts["target"], aligner, joined)
    tokens: TokenPlan | None = None
    if left.token_dimensions and right.token_dimensions:
        tokens = aligner.plan(left.parts, right.parts)
        if tokens.error:
            raise PairError(tokens.error)
    for plan in (left, right):
        if tokens is None and len(plan.parts) != 1:
            raise PairError(
                f"the {plan.side} has {len(plan.parts)} parts "
                f"({', '.join(map(_describe_part, plan.parts))}) and no token dimension to join them along",
                hint="name the dimension that counts tokens t (or b and s) in the dims",
            )
    if _merges_rows(left, right, tokens):
        left, right = _with_rows(left), _with_rows(right)
    axes: AxesPlan | None = None
    errors: tuple[str, ...] = ()
    if left.dimensions is not None and right.dimensions is not None:
        try:
            axes = plan_axes(left.dimensions, right.dimensions)
        except PairError as error:
            errors = (f"{error}; {error.hint}",)
    notes = (*(tokens.notes if tokens else ()), *_unshard_notes(left), *_unshard_notes(right))
    return PairPlan(left, right, tokens, axes, errors, notes)


def _plan_side(
    bundle: Bundle, dims_text: str | None, context: SideContext, aligner: TokenAligner, joined: bool
) -> SidePlan:
    dims = None if dims_text is None else parse_dims(dims_text)
    if dims is not None:
        dims.check_axes(context.axes)
        if dims.row_order is not None:
            bundle, dims = in_token_order(bundle, dims, context.companions, context.world)
    token_dimensions = () if dims is None else dims.token_dimensions
    classes = _classify(bundle, dims, context, aligner)
    steps: list[StepPlan] = []
    parts: list[TokenPart] = []
    by_step: dict[int | None, list[RecordView]] = {}
    for record in sorted(bundle.records, key=lambda one: one.rank):
        by_step.setdefault(record.step, []).append(record)
    for step in bundle.steps:
        records = by_step[step]
        plan = _plan_step(step, records, dims, context, classes.get(step, _UNKNOWN_ROWS))
        if dims is None and not steps and (
            plan.rows.hold != "unknown" or (joined and not _has_layout(context, step, records))
        ):  # fmt: skip
            token_dimensions = (0,) if records[0].shape else ()
        steps.append(plan)
        parts.extend(
            TokenPart(step, part.coordinates, part.rank, count_rows(part.shape, token_dimensions), plan.rows.hold)
            for part in plan.unshard.parts
        )
    dimensions = None if dims is None else dims.dimensions
    return SidePlan(context.side, dims, dimensions, token_dimensions, False, tuple(steps), tuple(parts))


def _plan_step(
    step: int | None, records: list[RecordView], dims: Dims | None, context: SideContext, rows: RowsClass
) -> StepPlan:
    ranks = [record.rank for record in records]
    repeated = sorted({rank for rank in ranks if ranks.count(rank) > 1})
    if repeated:
        raise PairError(
            f"rank {repeated[0]} of the {context.side} has {ranks.count(repeated[0])} records here "
            f"(step {step}); they need a tag that tells them apart"
        )
    if dims is None and len(records) > 1:
        raise PairError(
            f"the {context.side} recorded it on ranks {', '.join(map(str, ranks))} without dims that say how they "
            "relate",
            hint="give dims in the patch config or with --override-dims 'NAME:t h[tp]' "
            "(or 't h # tp:replicated'), or compare rank by rank with --preset raw",
        )
    if rows.hold == "unknown" and dims is not None:
        records, rows = _without_empty_ranks(records, rows, dims, context)
    shards = [Shard(record.rank, _shape(record), context.world.get(record.rank, {})) for record in records]
    if dims is None:
        shape = shards[0].shape
        plan = UnshardPlan((shards[0].rank,), (), (Part((), shards[0].rank, shape),))
        return StepPlan(step, tuple(records), rows, plan)
    plan = plan_unshard(
        dims,
        shards,
        token_axes=rows.token_axes,
        scattered_over=rows.scattered_over,
        world=context.world or None,
        missing_ranks=context.run.missing_ranks,
        sequence_lengths=_sequence_lengths(context, step, records),
    )
    return StepPlan(step, tuple(records), rows, plan)


def _classify(
    bundle: Bundle, dims: Dims | None, context: SideContext, aligner: TokenAligner
) -> Mapping[int | None, RowsClass]:
    """What the rows are in every step of the bundle's history: one step alone may leave it open."""
    key = (bundle.family, dims.text if dims else None)
    found = context.classified.get(key)
    if found is not None:
        return found
    positions = (0,) if dims is None else dims.token_dimensions
    records = [record for record in bundle.history or bundle.records if record.shape is not None]
    if not positions or any(len(_shape(record)) <= max(positions) for record in records):
        found = {}
    else:
        rows: dict[int | None, tuple[tuple[int, int], ...]] = {}
        for record in sorted(records, key=lambda one: one.rank):
            entry = (record.rank, count_rows(_shape(record), positions))
            rows[record.step] = (*rows.get(record.step, ()), entry)
        split_axes = () if dims is None else _split_axes(dims, positions)
        data_parallel_axis = dims.data_parallel_axis if dims else None
        found = aligner.classify_steps(context.side, rows, split_axes, data_parallel_axis)
    context.classified[key] = found
    return found


def _split_axes(dims: Dims, positions: tuple[int, ...]) -> tuple[str, ...]:
    return tuple(
        modifier.axis
        for position in positions
        for modifier in dims.dimensions[position].modifiers
        if not modifier.partial
    )


def _without_empty_ranks(
    records: list[RecordView], rows: RowsClass, dims: Dims, context: SideContext
) -> tuple[list[RecordView], RowsClass]:
    """Without a layout, data-parallel ranks with empty tensors hold nothing; the others become parts."""
    axis = dims.data_parallel_axis or "dp"
    named = dims.axes - ({axis} if axis == dims.data_parallel_axis else set())
    places = {record.rank: context.world.get(record.rank, {}).get(axis, (0, 1)) for record in records}
    if axis in named or all(size < 2 for _, size in places.values()):
        return records, rows
    filled = {places[record.rank][0] for record in records if 0 not in _shape(record)}
    if not filled:
        return records, rows
    kept = [record for record in records if places[record.rank][0] in filled]
    reason = f"no token layout; {axis} ranks {sorted(filled)} are not empty"
    return kept, RowsClass("unknown", (axis,) if dims.token_dimensions else (), (), reason)


def _has_layout(context: SideContext, step: int | None, records: Sequence[RecordView]) -> bool:
    return step is not None and any(context.run.layout(step, record.rank) is not None for record in records)


def _sequence_lengths(context: SideContext, step: int | None, records: Sequence[RecordView]) -> tuple[int, ...] | None:
    """Tokens per sequence of the whole pass, where its layout is not a context-parallel rank's own part."""
    if step is None:
        return None
    layout = context.run.layout(step, records[0].rank)
    if layout is None or (layout.context_parallel is not None and layout.context_parallel.local):
        return None
    return tuple(span.count for span in layout.sequences)


def _merges_rows(left: SidePlan, right: SidePlan, tokens: TokenPlan | None) -> bool:
    """Whether batch and sequence become one dimension: where rows are picked, or only one side has both."""
    if tokens is None:
        return False
    picked = tokens.baseline is not None or tokens.target is not None
    return picked or max(len(left.parts), len(right.parts)) > 1 or (
        len(left.token_dimensions) != len(right.token_dimensions)
    )  # fmt: skip


def _with_rows(plan: SidePlan) -> SidePlan:
    if len(plan.token_dimensions) < 2 or plan.dims is None:
        return plan
    at = min(plan.token_dimensions)
    kept = [dim for position, dim in enumerate(plan.dims.dimensions) if position not in plan.token_dimensions]
    return replace(plan, dimensions=(*kept[:at], Dimension((TOKEN,)), *kept[at:]), merge_rows=True)


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
            f"{_describe_part(part)} {list(array.shape)}" for part, array in zip(plan.parts, arrays, strict=True)
        )
        raise PairError(f"the {plan.side}'s parts have shapes that cannot be joined: {listed}")
    return np.concatenate(arrays, axis=axis)


def _shape(record: RecordView) -> tuple[int, ...]:
    if record.shape is None:
        raise DimsError(f"{record.name} on rank {record.rank} is no tensor")
    return tuple(record.shape)


def _describe_part(part: TokenPart) -> str:
    where = "".join(f" {axis}={at}" for axis, at in part.coordinates)
    return f"step {part.step}{where}" if part.step is not None else where.strip() or f"rank {part.rank}"


def _unshard_notes(plan: SidePlan) -> tuple[str, ...]:
    return tuple(dict.fromkeys(note for step in plan.steps for note in step.unshard.notes))
