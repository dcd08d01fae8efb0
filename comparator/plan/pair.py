"""Plan, from metadata alone, how both sides of a pair become two arrays of one shape.

A plan goes per side and step from the ranks' arrays to parts (``comparator.plan.unshard``), from parts to the rows
that both sides have (``comparator.plan.tokens``), and from there to common dimensions (``comparator.plan.axes``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from comparator.align.rows import count_rows
from comparator.dims import TOKEN, Dimension, Dims, parse_dims
from comparator.errors import DimsError, PairError
from comparator.match.pairs import Bundle
from comparator.match.runs import RecordView, RunView, parallel_layout
from comparator.plan.axes import AxesPlan, plan_axes
from comparator.plan.experts import Companions, in_token_order
from comparator.plan.shared_pieces import Sharing, apart, find_sharing
from comparator.plan.tokens.interface import RowsClass, Side, TokenAligner, TokenPart, TokenPlan
from comparator.plan.unshard import Coordinates, Part, Shard, UnshardPlan, plan_unshard

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
    by_rank: bool = False
    """Every bundle is of one rank: arrays are compared as the rank has them."""
    classified: dict[object, Mapping[int | None, RowsClass]] = field(default_factory=dict)
    """What the rows of a name and its tags are, per step; filled as bundles are planned."""

    @property
    def sizes(self) -> dict[str, int]:
        """Size of every recorded axis."""
        return {axis: size for coordinates in self.world.values() for axis, (_, size) in coordinates.items()}

    @classmethod
    def of(cls, side: Side, run: RunView, *, by_rank: bool = False) -> SideContext:
        """What planning needs to know about ``run``."""
        world = parallel_layout(run)
        axes = frozenset(axis for coordinates in world.values() for axis in coordinates)
        return cls(side, run, world, axes, Companions(run), by_rank)


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
    warnings: tuple[str, ...] = ()
    """What was assumed about the pair and should be seen also when it passes."""


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

    def plan_with(left: Sharing, right: Sharing) -> PairPlan:
        return _join(
            _plan_side(baseline, dims["baseline"], contexts["baseline"], aligner, joined, left),
            _plan_side(target, dims["target"], contexts["target"], aligner, joined, right),
            aligner,
        )

    plan = plan_with({}, {})
    sharing = _sharing(plan, contexts)
    if not any(sharing):
        return plan
    warnings = tuple(
        f"{side}: {factor} neighbouring {axis} ranks are taken to hold the same piece"
        for side, shared in zip(("baseline", "target"), sharing, strict=True)
        for axis, factor in shared.items()
    )
    plan = plan_with(*sharing)
    return replace(plan, warnings=warnings)


def _sharing(plan: PairPlan, contexts: Mapping[Side, SideContext]) -> tuple[Sharing, Sharing]:
    """Pieces that neighbouring ranks seem to share, per side."""
    left, right = plan.baseline, plan.target
    if plan.axes is None or left.dims is None or right.dims is None:
        return {}, {}
    return find_sharing(
        (_shape_of(left), _shape_of(right)),
        (plan.axes.baseline, plan.axes.target),
        (left.dims, right.dims),
        (contexts["baseline"].sizes, contexts["target"].sizes),
        plan.axes.result,
    )


def _shape_of(plan: SidePlan) -> tuple[int, ...]:
    """The shape of a part, batch and sequence made one where the plan says so."""
    shape = plan.steps[0].unshard.parts[0].shape
    if not plan.merge_rows:
        return shape
    at = min(plan.token_dimensions)
    kept = [length for position, length in enumerate(shape) if position not in plan.token_dimensions]
    return (*kept[:at], count_rows(shape, plan.token_dimensions), *kept[at:])


def _join(left: SidePlan, right: SidePlan, aligner: TokenAligner) -> PairPlan:
    tokens: TokenPlan | None = None
    if left.token_dimensions and right.token_dimensions:
        tokens = aligner.plan(left.parts, right.parts)
        if tokens.error:
            raise PairError(tokens.error)
    for plan in (left, right):
        if tokens is None and len(plan.parts) != 1:
            raise PairError(
                f"the {plan.side} has {len(plan.parts)} parts "
                f"({', '.join(map(describe_part, plan.parts))}) and no token dimension to join them along",
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
    bundle: Bundle,
    dims_text: str | None,
    context: SideContext,
    aligner: TokenAligner,
    joined: bool,
    sharing: Sharing,
) -> SidePlan:
    dims = None if dims_text is None else parse_dims(dims_text)
    if dims is not None:
        dims.check_axes(context.axes)
        if dims.row_order is not None:
            bundle, dims = in_token_order(bundle, dims, context.companions, context.world)
        if context.by_rank:
            dims = dims.of_one_rank
    token_dimensions = () if dims is None else dims.token_dimensions
    classes = _classify(bundle, dims, context, aligner)
    steps: list[StepPlan] = []
    parts: list[TokenPart] = []
    by_step: dict[int | None, list[RecordView]] = {}
    for record in sorted(bundle.records, key=lambda one: one.rank):
        by_step.setdefault(record.step, []).append(record)
    for step in bundle.steps:
        records = by_step[step]
        plan = _plan_step(step, records, dims, context, classes.get(step, _UNKNOWN_ROWS), sharing)
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
    step: int | None,
    records: list[RecordView],
    dims: Dims | None,
    context: SideContext,
    rows: RowsClass,
    sharing: Sharing,
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


def _shape(record: RecordView) -> tuple[int, ...]:
    if record.shape is None:
        raise DimsError(f"{record.name} on rank {record.rank} is no tensor")
    return tuple(record.shape)


def describe_part(part: TokenPart) -> str:
    where = "".join(f" {axis}={at}" for axis, at in part.coordinates)
    return f"step {part.step}{where}" if part.step is not None else where.strip() or f"rank {part.rank}"


def _unshard_notes(plan: SidePlan) -> tuple[str, ...]:
    return tuple(dict.fromkeys(note for step in plan.steps for note in step.unshard.notes))
