"""Plan one side of a pair: per step from the ranks' arrays to parts, each with whole tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import NamedTuple

from msgspec import Struct
from msgspec.structs import replace

from comparator.errors import PairError
from comparator.match.bundles import Bundle, Key
from comparator.options import Options, Side
from comparator.plan.context import SideContext, SideInputs, StepInputs
from comparator.plan.experts import TokenOrder, in_token_order
from comparator.plan.operations import Part, Shape, Shard, UnshardPlan
from comparator.plan.shards import plan_unshard
from comparator.plan.shared_pieces import Sharing, apart
from comparator.plan.tokens.interface import RowsClass, TokenAligner, TokenPart
from tensortap.dims import TOKEN, Dimension, Dims, count_rows, parse_dims

UNKNOWN_ROWS = RowsClass("unknown")
NO_DIMS_HINT = (
    "give dims in the patch config or with --override-dims 'NAME:t h[tp]' ('NAME:# tp:replicated' where all ranks "
    "hold the same), or compare rank by rank with --preset raw"
)


class StepPlan(Struct, frozen=True):
    """One step of one side: which ranks, what their rows are, how they are unsharded."""

    step: int | None
    rows: RowsClass
    unshard: UnshardPlan


class SidePlan(Struct, frozen=True, dict=True):
    """All steps of one side and the parts they leave, in order."""

    side: Side
    dims: Dims | None
    dimensions: tuple[Dimension, ...] | None
    """Dimensions of the joined tensor: those of the dims, batch and sequence made one where ``merge_rows``."""
    token_dimensions: tuple[int, ...]
    merge_rows: bool
    steps: tuple[StepPlan, ...]
    parts: tuple[TokenPart, ...]
    token_order: TokenOrder | None = None
    """How the rows of every rank are brought to token order first."""

    @cached_property
    def takes_one_array(self) -> bool:
        """Whether the side is the array of one record, as it is."""
        first = self.steps[0].unshard
        return (
            len(self.steps) == 1
            and len(first.ranks) == 1
            and not first.operations
            and not self.merge_rows
            and self.token_order is None
        )

    @property
    def ranks(self) -> dict[int | None, tuple[int, ...]]:
        """Per step the ranks whose arrays take part."""
        return {step.step: step.unshard.ranks for step in self.steps}


def describe_part(part: TokenPart) -> str:
    """A part for people: ``step 3 attn_dp=1``."""
    where = "".join(f" {axis}={at}" for axis, at in part.coordinates)
    return f"step {part.step}{where}" if part.step is not None else where.strip() or f"rank {part.rank}"


def side_inputs(
    bundle: Bundle, name: str, context: SideContext, aligner: TokenAligner, options: Options, *, sampled: bool
) -> SideInputs:
    """Everything that the plan of a bundle depends on, the same object for bundles that are alike.

    Raises PairError or DimsError where its rows make no sense.
    """
    text = bundle.dims(name, context.side, options)
    dims, order = _known_dims(text, context)
    classes = context.classified.get((bundle.family, dims.text if dims else None))
    arrays: tuple[_Array, ...] | None = None
    if classes is None:
        is_all = sampled or not bundle.history or bundle.entries.are(bundle.history)
        history = _arrays(bundle if is_all else bundle.of(bundle.history), order, context, sampled=sampled)
        classes = _classify(bundle.family, history, dims, context, aligner)
        arrays = history if is_all else None
    if arrays is None:
        arrays = _arrays(bundle, order, context, sampled=sampled)
    batched = context.batched.get(bundle.family) if dims is None else None
    steps = {one.step: None for one in arrays}
    key = (text, arrays, tuple([classes.get(step, UNKNOWN_ROWS) for step in steps]), batched)
    found = context.inputs.get(key)
    if found is None:
        found = context.inputs[key] = SideInputs(text, _step_inputs(arrays, classes, context), batched)
    return found


def known_inputs(
    like: Bundle, places: Sequence[tuple[int, int | None, int]], name: str, context: SideContext, options: Options
) -> list[SideInputs | None]:
    """What ``side_inputs`` has found before for bundles of one entry each that are like ``like`` but for rank, step and
    occurrence, which ``places`` are; None for those that it was not asked for."""
    text = like.dims(name, context.side, options)
    dims, order = _known_dims(text, context)
    classes = context.classified.get((like.family, dims.text if dims else None))
    if order is not None or classes is None:
        return [None] * len(places)
    shape, is_tensor = like.like.shape, like.like.is_tensor
    batched = context.batched.get(like.family) if dims is None else None
    return [
        context.inputs.get(
            (text, (_Array(step, occurrence, rank, shape, is_tensor),), (classes.get(step, UNKNOWN_ROWS),), batched)
        )
        for rank, step, occurrence in places
    ]


class _Array(NamedTuple):
    step: int | None
    occurrence: int
    rank: int
    shape: Shape
    is_tensor: bool


def _known_dims(text: str | None, context: SideContext) -> tuple[Dims | None, TokenOrder | None]:
    """The dims that arrays have once they are in token order, and that order."""
    if text is None:
        return None, None
    found = context.dims.get(text)
    if found is None:
        dims, order = parse_dims(text), None
        dims.check_axes(context.axes)
        if dims.row_order is not None:
            order, dims = in_token_order(dims)
        if context.by_rank:
            dims = dims.of_one_rank
        found = context.dims[text] = dims, order
    return found


def _arrays(bundle: Bundle, order: TokenOrder | None, context: SideContext, *, sampled: bool) -> tuple[_Array, ...]:
    if order is None:
        known: dict[int, tuple[Shape, bool]] = {}
        found: list[_Array] = []
        for like, rank, step, occurrence in bundle.alike:
            shape = known.get(id(like))
            if shape is None:
                shape = known[id(like)] = like.kept_shape if sampled else like.shape, like.is_tensor
            found.append(_Array(step, occurrence, rank, *shape))
        return tuple(found)
    companions, name = context.companions, order.order.name
    return tuple(
        [
            _Array(
                entry.step,
                entry.record.occurrence,
                entry.rank,
                order.shape(entry, companions.of(entry, name)),
                entry.is_tensor,
            )
            for entry in bundle.entries
        ]
    )


def _step_inputs(
    arrays: Sequence[_Array], classes: Mapping[int | None, RowsClass], context: SideContext
) -> tuple[StepInputs, ...]:
    passes: dict[tuple[int | None, int], list[_Array]] = {}
    for one in sorted(arrays, key=lambda one: one.rank):
        passes.setdefault((one.step, one.occurrence), []).append(one)
    several = len({step for step, _ in passes}) < len(passes)
    return tuple(
        StepInputs(
            step,
            tuple((one.rank, one.shape) for one in passes[step, occurrence]),
            classes.get(step, UNKNOWN_ROWS),
            context.has_layout(step, [one.rank for one in passes[step, occurrence]]),
            None if several else _sequence_lengths(context, step, passes[step, occurrence][0].rank),
        )
        for step, occurrence in sorted(passes, key=lambda one: (one[0] is not None, one[0] or 0, one[1]))
    )


def plan_side(inputs: SideInputs, context: SideContext, joined: bool, sharing: Sharing) -> SidePlan:
    """Plan one side; ``joined`` says that its steps become one tensor."""
    dims = inputs.dims
    order: TokenOrder | None = None
    if dims is not None:
        if dims.row_order is not None:
            order, dims = in_token_order(dims)
        if context.by_rank:
            dims = dims.of_one_rank
    token_dimensions = () if dims is None else dims.token_dimensions
    steps: list[StepPlan] = []
    parts: list[TokenPart] = []
    for one in inputs.steps:
        plan = _plan_step(one, dims, context, sharing)
        if dims is None and not steps and (plan.rows.hold != "unknown" or (joined and not one.has_layout)):
            token_dimensions = inputs.batched or ((0,) if one.shapes[0][1] else ())
        steps.append(plan)
        parts.extend(
            TokenPart(one.step, part.coordinates, part.rank, count_rows(part.shape, token_dimensions), plan.rows.hold)
            for part in plan.unshard.parts
        )
    dimensions = None if dims is None else dims.dimensions
    return SidePlan(context.side, dims, dimensions, token_dimensions, False, tuple(steps), tuple(parts), order)


def with_rows(plan: SidePlan) -> SidePlan:
    """The plan with batch and sequence made one dimension of tokens."""
    if len(plan.token_dimensions) < 2:
        return plan
    if plan.dims is None:
        return replace(plan, merge_rows=True)
    at = min(plan.token_dimensions)
    kept = [dim for position, dim in enumerate(plan.dims.dimensions) if position not in plan.token_dimensions]
    return replace(plan, dimensions=(*kept[:at], Dimension((TOKEN,)), *kept[at:]), merge_rows=True)


def _plan_step(inputs: StepInputs, dims: Dims | None, context: SideContext, sharing: Sharing) -> StepPlan:
    ranks = inputs.ranks
    repeated = sorted({rank for rank in ranks if ranks.count(rank) > 1})
    if repeated:
        raise PairError(
            f"rank {repeated[0]} of the {context.side} has {ranks.count(repeated[0])} records here "
            f"(step {inputs.step}); they need a tag that tells them apart",
            name="records-not-told-apart",
        )
    if dims is None and len(ranks) > 1:
        raise PairError(
            f"the {context.side} recorded it on ranks {', '.join(map(str, ranks))} without dims that say how they "
            "relate",
            hint=NO_DIMS_HINT,
            name="ranks-without-dims",
        )
    shapes, rows = inputs.shapes, inputs.rows
    if rows.hold == "unknown" and dims is not None:
        shapes, rows = _without_empty_ranks(shapes, rows, dims, context)
    shards = [Shard(rank, shape, context.world.get(rank, {})) for rank, shape in shapes]
    if dims is None:
        return StepPlan(inputs.step, rows, as_it_is(shards[0]))
    world = context.world
    if sharing:
        dims, shards, world = apart(dims, shards, world, sharing)
    plan = plan_unshard(
        dims,
        shards,
        token_axes=rows.token_axes,
        scattered_over=rows.scattered_over,
        world=world or None,
        missing_ranks=context.run.missing_ranks,
        sequence_lengths=inputs.sequence_lengths,
    )
    return StepPlan(inputs.step, rows, plan)


def as_it_is(shard: Shard) -> UnshardPlan:
    """The plan for the array of one rank, taken whole."""
    return UnshardPlan((shard.rank,), (), (Part((), shard.rank, shard.shape),))


def _classify(
    family: Key, arrays: Sequence[_Array], dims: Dims | None, context: SideContext, aligner: TokenAligner
) -> Mapping[int | None, RowsClass]:
    """What the rows are in every step of a family, by all its ``arrays``: one step alone may leave it open."""
    tensors = [one for one in arrays if one.is_tensor]
    positions = dims.token_dimensions if dims is not None else (0,)
    batched = _batched(tensors, context) if dims is None and len(tensors) == len(arrays) else None
    if batched is not None:
        positions = context.batched[family] = batched
    found: Mapping[int | None, RowsClass] = {}
    if positions and all(len(one.shape) > max(positions) for one in tensors):
        counts: dict[int | None, dict[int, int]] = {}
        for one in sorted(tensors, key=lambda one: one.rank):
            of_step = counts.setdefault(one.step, {})
            of_step[one.rank] = of_step.get(one.rank, 0) + count_rows(one.shape, positions)
        rows = {step: tuple(of_step.items()) for step, of_step in counts.items()}
        split_axes = () if dims is None else _split_axes(dims, positions)
        data_parallel_axis = dims.data_parallel_axis if dims else None
        found = aligner.classify_steps(context.side, rows, split_axes, data_parallel_axis)
    context.classified[family, dims.text if dims else None] = found
    return found


def _batched(arrays: Sequence[_Array], context: SideContext) -> tuple[int, int] | None:
    """The dimensions that are batch and sequence in tensors without dims: those that have in every pass the lengths
    of its batch, the first and another (heads may stand between them). None where the first one alone may be all rows.
    """
    told = False
    places = set(range(1, min((len(one.shape) for one in arrays), default=0)))
    for one in arrays:
        layout = None if one.step is None else context.run.layout(one.step, one.rank)
        if layout is None or layout.batch_shape is None or one.shape[:1] != layout.batch_shape[:1]:
            return None
        places = {at for at in places if one.shape[at] == layout.batch_shape[1]}
        told |= one.shape[0] != layout.rows
    return (0, min(places)) if told and places else None


def _split_axes(dims: Dims, positions: tuple[int, ...]) -> tuple[str, ...]:
    return tuple(
        modifier.axis
        for position in positions
        for modifier in dims.dimensions[position].modifiers
        if not modifier.partial
    )


def _without_empty_ranks(
    shapes: tuple[tuple[int, Shape], ...], rows: RowsClass, dims: Dims, context: SideContext
) -> tuple[tuple[tuple[int, Shape], ...], RowsClass]:
    """Without a layout, data-parallel ranks with empty tensors hold nothing; the others become parts."""
    axis = dims.data_parallel_axis or "dp"
    named = dims.axes - ({axis} if axis == dims.data_parallel_axis else set())
    places = {rank: context.world.get(rank, {}).get(axis, (0, 1)) for rank, _ in shapes}
    if axis in named or all(size < 2 for _, size in places.values()):
        return shapes, rows
    filled = {places[rank][0] for rank, shape in shapes if 0 not in shape}
    if not filled:
        return shapes, rows
    kept = tuple((rank, shape) for rank, shape in shapes if places[rank][0] in filled)
    reason = f"no token layout; {axis} ranks {sorted(filled)} are not empty"
    return kept, RowsClass("unknown", (axis,) if dims.token_dimensions else (), (), reason)


def _sequence_lengths(context: SideContext, step: int | None, rank: int) -> tuple[int, ...] | None:
    """Tokens per sequence of the whole pass, where its layout is not a context-parallel rank's own part."""
    layout = None if step is None else context.run.layout(step, rank)
    if layout is None or (layout.context_parallel is not None and layout.context_parallel.local):
        return None
    return tuple(span.count for span in layout.sequences)
