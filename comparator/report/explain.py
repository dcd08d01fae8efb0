"""``--explain NAME``: the plan for the tensors of one name, without reading a payload."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator, Sequence

from comparator.errors import ComparatorError, PairError
from comparator.match.bundles import Bundle, BundlePair
from comparator.plan.axes import SideAxes
from comparator.plan.levels import reduced_level
from comparator.plan.operations import Operation
from comparator.plan.planner import PairPlan, Planner
from comparator.plan.selection import Selected
from comparator.plan.side import SidePlan, StepPlan
from comparator.plan.tokens.interface import TokenPlan
from dumper.storage.places import Place
from tensortap.dims import DimsError

Select = Callable[[int], list[Selected]]


def explain(pairs: Sequence[BundlePair], name: str, select: Select, planner: Planner) -> Iterator[str]:
    """The plans for ``name`` (a name, or a label such as ``attn_output layer_id=3``), line by line.

    Raises ComparatorError when nothing has that name.
    """
    found = [number for number, pair in enumerate(pairs) if name in (pair.name, pair.label)]
    if not found:
        names = sorted({pair.name for pair in pairs})
        near = difflib.get_close_matches(name, names, n=3) or names[:10]
        raise ComparatorError(f"--explain: no tensor is called {name!r}; there are {', '.join(near)}")
    for number in found:
        for selected in select(number):
            yield from explain_pair(selected, planner)


def explain_pair(selected: Selected, planner: Planner) -> Iterator[str]:
    """The plan for one pair, line by line; a line that begins with ``  error: `` says why there is none."""
    pair = selected.pair
    yield f"{pair.label}{'' if pair.step is None else f' (step {pair.step})'}"
    for out in selected.left_out:
        yield f"  {out.side}: rank {out.rank} step {out.step} is left out: {out.reason}"
    if pair.baseline is None or pair.target is None:
        yield f"  skipped: only the {'target' if pair.baseline is None else 'baseline'} has it"
        return
    if not selected.kept:
        yield f"  skipped: {selected.message}"
        return
    if not (pair.baseline.all_tensors and pair.target.all_tensors):
        yield "  no tensor: the values are compared structurally"
        return
    try:
        if selected.error is not None:
            raise selected.error
        level = reduced_level(pair)
        if level is not None:
            yield f"  compared at level {level}"
            return
        plan = planner.plan(pair, selected.rules)
    except (PairError, DimsError) as error:
        yield f"  error: {error}"
        if isinstance(error, PairError) and error.hint:
            yield f"  hint: {error.hint}"
        return
    yield from _side_lines(plan.baseline, pair.baseline, planner.contexts["baseline"].run.path)
    yield from _side_lines(plan.target, pair.target, planner.contexts["target"].run.path)
    yield from _joint_lines(plan)


def _side_lines(plan: SidePlan, bundle: Bundle, path: Place) -> Iterator[str]:
    yield f"  {plan.side}: {path}, dims {plan.dims.text if plan.dims else 'none'}"
    for step in plan.steps:
        yield from _step_lines(step, bundle)
    if plan.merge_rows:
        yield "    make batch and sequence one dimension of tokens"


def _step_lines(plan: StepPlan, bundle: Bundle) -> Iterator[str]:
    yield f"    step {plan.step}: rows {plan.rows.hold}{f' ({plan.rows.reason})' if plan.rows.reason else ''}"
    for entry in bundle.entries:
        if entry.step == plan.step and entry.rank in plan.unshard.ranks:
            source = entry.record.filename or entry.record.source
            yield f"      read rank {entry.rank} ({source}): {list(entry.shape)} {entry.record.dtype}"
    for operation in plan.unshard.operations:
        yield f"      {_operation(operation)}"
    for part in plan.unshard.parts:
        where = " ".join(f"{axis}={at}" for axis, at in part.coordinates)
        yield f"      gives {list(part.shape)}{f' for {where}' if where else ''}"


def _operation(operation: Operation) -> str:
    words = {
        "pick": f"pick one of the replicas over {operation.axis}, after checking that they agree",
        "sum": f"add the summands over {operation.axis}",
        "concatenate": f"concatenate over {operation.axis} along dimension {operation.dimension}",
        "concatenate_sequences": f"join the pieces of each sequence over {operation.axis}",
        "undo_zigzag": f"put the zigzag order over {operation.axis} right",
    }
    before = ", ".join(str(list(shape)) for shape in operation.shapes_before)
    after = ", ".join(str(list(shape)) for shape in operation.shapes_after)
    return f"{words[operation.kind]}: {before} -> {after}"


def _joint_lines(plan: PairPlan) -> Iterator[str]:
    if plan.rows is not None:
        yield f"  rows: the first {plan.rows} of both sides, as they lie"
    elif plan.tokens is None:
        yield "  tokens: no token dimension on both sides; taken as they are"
    else:
        yield from _token_lines(plan.tokens)
    if plan.axes is None:
        yield "  axes: taken as they are"
    else:
        yield f"  axes: {' '.join(plan.axes.result)}"
        yield from _axes_line("baseline", plan.axes.baseline)
        yield from _axes_line("target", plan.axes.target)
    for warning in plan.warnings:
        yield f"  {warning}"
    for error in plan.errors:
        yield f"  error: {error}"


def _token_lines(tokens: TokenPlan) -> Iterator[str]:
    yield f"  tokens: {tokens.matched} matched"
    for side, rows, dropped, only in (
        ("baseline", tokens.baseline, tokens.dropped_baseline, tokens.only_baseline),
        ("target", tokens.target, tokens.dropped_target, tokens.only_target),
    ):
        taken = "all rows in order" if rows is None else f"{len(rows)} rows picked"
        extra = "".join(f", {count} tokens only here ({reason})" for reason, count in only.items())
        yield f"    {side}: {taken}, {dropped} padding rows dropped{extra}"
    for note in tokens.notes:
        yield f"    {note}"


def _axes_line(side: str, axes: SideAxes) -> Iterator[str]:
    if not axes.identity:
        yield f"    {side}: drop {list(axes.drop)}, transpose to {list(axes.order)}, merge {list(axes.merge)}"
