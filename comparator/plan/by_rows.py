"""Plan a pair that is joined as its rows lie, by what each file says of its rank: the rules of SGLang's comparator."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence

from msgspec import Struct
from msgspec.structs import replace

from comparator.errors import PairError
from comparator.match.bundles import Bundle, BundlePair
from comparator.match.entries import Entry
from comparator.match.keys import named_file
from comparator.options import Options, Side
from comparator.plan.axes import AxesPlan, plan_axes
from comparator.plan.context import SideContext
from comparator.plan.facts import Remark
from comparator.plan.file_order import plan_in_file_order
from comparator.plan.operations import Shard, UnshardPlan
from comparator.plan.ranks import KNOWN_AXES, active_place, check_declared, place_key
from comparator.plan.side import NO_DIMS_HINT, UNKNOWN_ROWS, SidePlan, StepPlan, as_it_is
from dumper.reading.named_files import AUXILIARY_NAMES
from tensortap.dims import SEQUENCE, TOKEN, Dimension, Dims, parse_dims

SEVERAL_STEPS_HINT = "give --token-aligner, or keep the steps apart: --grouping-skip-keys rank"


KEPT_BY_ROWS = 1024
"""Plans of pairs that are alike which are kept: those of one step come one after the other."""


class UnrelatedRanksError(PairError):
    """Nothing tells how the ranks of one side relate: SGLang's rules skip the pair."""

    def __init__(
        self, side: Side, name: str, ranks: Sequence[int], dims: Dims | None, remarks: tuple[Remark, ...] = ()
    ) -> None:
        listed = ", ".join(map(str, ranks))
        if dims is not None:
            message = f"the {side} recorded it on ranks {listed}, and dims {dims.text!r} do not tell them apart"
        elif name in AUXILIARY_NAMES:
            message = f"SGLang's record of the batch on ranks {listed}, without dims; token layouts are made from it"
        else:
            message = f"the {side} recorded it on ranks {listed} without dims that say how they relate"
        of_batch = dims is None and name in AUXILIARY_NAMES
        super().__init__(
            message,
            hint="" if of_batch else NO_DIMS_HINT,
            name="record-of-batch" if of_batch else "ranks-not-related",
        )
        self.side = side
        self.remarks = remarks
        """What planning found beside: what fails a pair that is compared fails one that is skipped too."""


class RowsPlan(Struct, frozen=True):
    """Both sides, each one tensor of all its steps, and what brings them to one shape."""

    baseline: SidePlan
    target: SidePlan
    axes: AxesPlan | None
    rows: int | None
    errors: tuple[str, ...] = ()


def file_dims(bundle: Bundle, name: str, context: SideContext, options: Options) -> Dims | None:
    """The dims of a bundle's first file; raises DimsError for dims that cannot be read."""
    text = options.dims_for(name, bundle.like.dims, context.side)
    if text is None:
        return None
    dims = parse_dims(text)
    dims.check_axes(KNOWN_AXES | context.axes)
    return dims


def rows_key(pair: BundlePair) -> Hashable:
    """What the plan of a pair is made from, as far as the pair tells it: pairs of one key have one plan."""
    assert pair.baseline is not None
    assert pair.target is not None
    return pair.name, _bundle_key(pair.baseline), _bundle_key(pair.target)


def _bundle_key(bundle: Bundle) -> Hashable:
    entries = bundle.entries
    if len(entries) == 1:
        entry = entries[0]
        return entry.rank, entry.step, entry.shape, entry.dims
    return tuple([(entry.rank, entry.step, entry.shape, entry.dims, place_key(named_file(entry))) for entry in entries])


def plan_rows(pair: BundlePair, contexts: Mapping[Side, SideContext], options: Options) -> RowsPlan:
    """Plan a pair of tensors. Raises PairError, DimsError or IndexError when a side cannot be put together."""
    assert pair.baseline is not None
    assert pair.target is not None
    left = _plan_side(pair.baseline, pair.name, contexts["baseline"], options)
    right = _plan_side(pair.target, pair.name, contexts["target"], options)
    for plan, bundle in ((left, pair.baseline), (right, pair.target)):
        if not plan.steps:
            ranks = list(dict.fromkeys(entry.rank for entry in bundle.entries))
            remarks = tuple([Remark("axes-not-aligned", message) for message in _axes(left, right)[1]])
            raise UnrelatedRanksError(plan.side, pair.name, ranks, plan.dims, remarks)
    rows: int | None = None
    if options.token_aligner == "concat_steps":
        # SGLang's comparator takes the baseline's token dimension on both sides.
        axis = _token_axis(left.dims.dimensions if left.dims else ())
        left, right = (replace(plan, token_dimensions=(axis,)) for plan in (left, right))
        rows = min(_length(plan, axis) for plan in (left, right))
    elif len(left.steps) != 1 or len(right.steps) != 1:
        raise PairError(
            f"several steps make one tensor here ({len(left.steps)} in the baseline, {len(right.steps)} in the "
            "target), and nothing says how their tokens go together",
            hint=SEVERAL_STEPS_HINT,
            name="steps-not-joined",
        )
    if left.dims is not None and right.dims is not None:
        _check_fused_order((*left.dims.dimensions, *right.dims.dimensions))
    axes, errors = _axes(left, right)
    return RowsPlan(left, right, axes, rows, errors)


def _axes(left: SidePlan, right: SidePlan) -> tuple[AxesPlan | None, tuple[str, ...]]:
    """What brings the dimensions of both sides together, or why nothing does; neither where a side has no dims."""
    if left.dims is None or right.dims is None:
        return None, ()
    try:
        return plan_axes(left.dims.dimensions, right.dims.dimensions), ()
    except PairError as error:
        return None, (f"{error}; {error.hint}",)


def _length(plan: SidePlan, axis: int) -> int:
    return sum(part.shape[axis] for step in plan.steps for part in step.unshard.parts)


def _plan_side(bundle: Bundle, name: str, context: SideContext, options: Options) -> SidePlan:
    dims = file_dims(bundle, name, context, options)
    for entry in bundle.entries:
        if dims is not None and len(entry.shape) != len(dims.dimensions):
            dims.check_shape(entry.shape)
    steps: list[StepPlan] = []
    unrelated: list[tuple[int | None, list[Entry]]] = []
    for step in bundle.steps:
        entries = [entry for entry in bundle.entries if entry.step == step]
        plan = _plan_step(name, entries, context, options)
        if plan is not None:
            steps.append(StepPlan(step, UNKNOWN_ROWS, plan))
        elif name not in AUXILIARY_NAMES or dims is not None:
            unrelated.append((step, entries))
    if steps and unrelated:
        step, entries = unrelated[0]
        ranks = ", ".join(str(entry.rank) for entry in entries)
        raise PairError(
            f"in step {step} the {context.side} recorded it on ranks {ranks}, and nothing says how they relate",
            hint=NO_DIMS_HINT,
            name="ranks-without-dims",
        )
    return SidePlan(context.side, dims, None if dims is None else dims.dimensions, (), False, tuple(steps), ())


def _check_orders(dims: Dims) -> None:
    """Raise PairError where ranks that nothing tells apart are to be put into an order."""
    for dimension in dims.dimensions:
        for modifier in dimension.modifiers:
            if modifier.ordering == "zigzag":
                raise PairError(
                    f"dims {dims.text!r} have a zigzag order over {modifier.axis}, which has one rank only",
                    hint=f"leave out the modifier {modifier.axis}:zigzag on this side",
                )


def _plan_step(name: str, entries: Sequence[Entry], context: SideContext, options: Options) -> UnshardPlan | None:
    """The plan of one step; None when nothing tells its ranks apart."""
    if len(entries) == 1:
        return as_it_is(Shard(entries[0].rank, entries[0].shape, {}))
    text = options.dims_for(name, entries[0].dims, context.side)
    if text is None:
        return None
    dims = parse_dims(text)
    places = [active_place(named_file(entry), dims.axes - KNOWN_AXES) for entry in entries]
    replicated, split = check_declared(dims, places, dims.data_parallel_axis or "dp")
    if not replicated and not split:
        _check_orders(dims)
        return None
    named = {*replicated, *split}
    shards = [
        Shard(entry.rank, entry.shape, {axis: place[axis] for axis in named})
        for entry, place in zip(entries, places, strict=True)
    ]
    step = entries[0].step
    lengths = None if step is None else context.sequence_lengths.get(step)
    return plan_in_file_order(dims, shards, replicated, lengths)


def _token_axis(dimensions: Sequence[Dimension]) -> int:
    names = [dimension.names for dimension in dimensions]
    for name in (TOKEN, SEQUENCE):
        if (name,) in names:
            return names.index((name,))
    return 0


def _check_fused_order(dimensions: Sequence[Dimension]) -> None:
    fused = [dimension.names for dimension in dimensions if dimension.fused]
    for names in fused:
        for other in fused:
            if names != other and set(names) == set(other):
                raise PairError(
                    f"({'*'.join(names)}) and ({'*'.join(other)}) fuse the same dimensions in another order",
                    hint="write the fused dimension in the same order on both sides, as it lies in memory",
                    name="dimensions-differ",
                )
