"""``--explain NAME``: the plan for the tensors of one name, without reading a payload."""

from __future__ import annotations

from collections.abc import Iterator

from comparator.errors import ComparatorError, DimsError, PairError
from comparator.match.pairs import BundlePair
from comparator.measure.reduced import reduced_level
from comparator.pipeline import Prepared
from comparator.plan.axes import SideAxes
from comparator.plan.pair import PairPlan, SidePlan, StepPlan, plan_pair
from comparator.plan.tokens.interface import Side, TokenPlan
from comparator.plan.unshard import Operation


def explain(prepared: Prepared, name: str) -> int:
    """Print the plans for ``name`` (a name, or a label such as ``attn_output layer_id=3``).

    Returns the exit code: 0, or 1 when a plan cannot be made. Raises ComparatorError when nothing has that name.
    """
    pairs = [pair for pair in prepared.pairs if name in (pair.name, pair.label)]
    if not pairs:
        import difflib

        names = sorted({pair.name for pair in prepared.pairs})
        near = difflib.get_close_matches(name, names, n=3) or names[:10]
        raise ComparatorError(f"--explain: no tensor is called {name!r}; there are {', '.join(near)}")
    code = 0
    for pair in pairs:
        for line in explain_pair(prepared, pair):
            print(line)
            code = 1 if line.startswith("  error: ") else code
    return code


def explain_pair(prepared: Prepared, pair: BundlePair) -> Iterator[str]:
    """The plan for one pair, line by line."""
    yield f"{pair.label}{'' if pair.step is None else f' (step {pair.step})'}"
    if pair.baseline is None or pair.target is None:
        yield f"  skipped: only the {'target' if pair.baseline is None else 'baseline'} has it"
        return
    if any(record.kind != "tensor" for record in (*pair.baseline.records, *pair.target.records)):
        yield "  no tensor: the values are compared structurally"
        return
    session = prepared.session
    dims: dict[Side, str | None] = {
        "baseline": session.dims(pair.baseline, pair.name, "baseline"),
        "target": session.dims(pair.target, pair.name, "target"),
    }
    try:
        level = reduced_level(pair.baseline, pair.target)
        if level is not None:
            yield f"  compared at level {level}"
            return
        plan = plan_pair(
            pair.baseline,
            pair.target,
            dims,
            session.contexts,
            session.aligner,
            joined=prepared.options.joins_steps,
        )
    except (PairError, DimsError) as error:
        yield f"  error: {error}"
        if isinstance(error, PairError) and error.hint:
            yield f"  hint: {error.hint}"
        return
    yield from _side_lines(plan.baseline, prepared.baseline.path)
    yield from _side_lines(plan.target, prepared.target.path)
    yield from _joint_lines(plan)


def _side_lines(plan: SidePlan, path: object) -> Iterator[str]:
    yield f"  {plan.side}: {path}, dims {plan.dims.text if plan.dims else 'none'}"
    for step in plan.steps:
        yield from _step_lines(step)
    if plan.merge_rows:
        yield "    make batch and sequence one dimension of tokens"


def _step_lines(plan: StepPlan) -> Iterator[str]:
    yield f"    step {plan.step}: rows {plan.rows.hold}{f' ({plan.rows.reason})' if plan.rows.reason else ''}"
    for record in plan.records:
        source = getattr(record, "filename", None) or getattr(record, "source", None)
        where = f" ({source})" if source else ""
        yield f"      read rank {record.rank}{where}: {list(record.shape or ())} {record.dtype}"
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
    if plan.tokens is None:
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
