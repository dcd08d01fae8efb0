"""``traced_plan``: how a pair was put together, in the form in which SGLang's report holds it.

Per side and step the files that take part, by their place in the bundle, and the operations on them with the shapes
before and after (``aligner/entrypoint/traced_types.py`` in SGLang 0.5.23).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from comparator.match.bundles import Bundle, BundlePair
from comparator.options import TokenMode
from comparator.plan.axes import SideAxes
from comparator.plan.operations import Operation
from comparator.plan.planner import PairPlan
from comparator.plan.ranks import KNOWN_AXES
from comparator.plan.side import SidePlan, StepPlan
from comparator.plan.tokens.interface import TokenPart


def traced_plan(pair: BundlePair, plan: PairPlan, mode: TokenMode) -> dict[str, Any] | None:
    """The plan of a pair of tensors; None where it holds what SGLang's report has no word for."""
    if pair.baseline is None or pair.target is None or not _expressible(plan):
        return None
    left, right = _side(plan.baseline, pair.baseline), _side(plan.target, pair.target)
    return {
        "plan": {
            "per_step_plans": {"x": _untraced(left), "y": _untraced(right)},
            "token_aligner_mode": None if mode == "per_step" else mode,
            "token_aligner_plan": _tokens(plan) if mode == "smart" else None,
            "axis_aligner_plan": None
            if plan.axes is None or (plan.axes.baseline.identity and plan.axes.target.identity)
            else {"pattern": {"x": _pattern(plan.axes.baseline), "y": _pattern(plan.axes.target)}},
        },
        "per_side": {"x": {"step_plans": left}, "y": {"step_plans": right}},
    }


def _expressible(plan: PairPlan) -> bool:
    sides = (plan.baseline, plan.target)
    operations = [one for side in sides for step in side.steps for one in step.unshard.operations]
    named = all(side.dims is not None for side in sides) or not operations
    return named and all(operation.axis in KNOWN_AXES for operation in operations)


def _tokens(plan: PairPlan) -> dict[str, Any] | None:
    """Where the joined tokens are on both sides, by step and row of the step; None where rows are no tokens."""
    if plan.tokens is None:
        return None
    sides = {"x": (plan.baseline, plan.tokens.baseline), "y": (plan.target, plan.tokens.target)}
    return {
        "locators": {name: _locators(side.parts, rows) for name, (side, rows) in sides.items()},
        "layouts": {name: "bs" if len(side.token_dimensions) > 1 else "t" for name, (side, _) in sides.items()},
    }


def _locators(parts: Sequence[TokenPart], rows: npt.NDArray[np.int64] | None) -> dict[str, list[int]]:
    steps = np.concatenate([np.full(part.rows, part.step or 0) for part in parts] or [np.empty(0, np.int64)])
    # The parts of a step one after the other.
    begun: dict[int, int] = {}
    indices = []
    for part in parts:
        first = begun.get(part.step or 0, 0)
        indices.append(np.arange(first, first + part.rows))
        begun[part.step or 0] = first + part.rows
    places = np.concatenate(indices or [np.empty(0, np.int64)])
    chosen = slice(None) if rows is None else rows
    return {"steps": steps[chosen].tolist(), "token_index_in_step": places[chosen].tolist()}


def _side(plan: SidePlan, bundle: Bundle) -> list[dict[str, Any]]:
    return [_step(step, plan, bundle) for step in plan.steps]


def _step(step: StepPlan, plan: SidePlan, bundle: Bundle) -> dict[str, Any]:
    places = [
        index
        for index, entry in enumerate(bundle.entries)
        if entry.step == step.step and entry.rank in step.unshard.ranks
    ]
    names = [] if plan.dims is None else [dimension.label for dimension in plan.dims.dimensions]
    return {
        "step": step.step or 0,
        "input_object_indices": places,
        "sub_plans": [_operation(operation, names) for operation in step.unshard.operations],
    }


def _operation(operation: Operation, names: Sequence[str]) -> dict[str, Any]:
    name = names[operation.dimension] if names else ""
    lengths, size = list(operation.sequence_lengths), operation.axis_size
    params: dict[str, Any]
    match operation.kind:
        case "pick":
            params = {"op": "pick"}
        case "sum":
            params = {"op": "reduce_sum"}
        case "concatenate":
            params = {"op": "concat", "dim_name": name}
        case "concatenate_sequences":
            each = [length // size for length in lengths]
            params = {"op": "cp_thd_concat", "dim_name": name, "seq_lens_per_rank": each}
        case "undo_zigzag" if lengths:
            params = {"op": "zigzag_to_natural_thd", "dim_name": name, "cp_size": size, "seq_lens": lengths}
        case "undo_zigzag":
            params = {"op": "zigzag_to_natural", "dim_name": name, "cp_size": size}
    made: dict[str, Any] = {"type": "reorderer", "params": params}
    if operation.kind != "undo_zigzag":
        groups = [list(group) for group in operation.groups]
        made = {"type": "unsharder", "axis": operation.axis, "params": params, "groups": groups}
    shapes = {
        "input_shapes": [list(shape) for shape in operation.shapes_before],
        "output_shapes": [list(shape) for shape in operation.shapes_after],
    }
    return {"plan": made, "snapshot": shapes}


def _untraced(steps: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{**step, "sub_plans": [one["plan"] for one in step["sub_plans"]]} for step in steps]


def _pattern(axes: SideAxes) -> str | None:
    """What one side goes through, as einops writes it; None for nothing."""
    if axes.identity:
        return None
    atoms = [name.strip("()").replace("*", "___") for name in axes.names]
    kept = [atom for index, atom in enumerate(atoms) if index not in axes.drop]
    ordered = iter([kept[index] for index in axes.order])
    groups = [[next(ordered) for _ in range(count)] for count in axes.merge]
    left = " ".join("1" if index in axes.drop else atom for index, atom in enumerate(atoms))
    right = " ".join(group[0] if len(group) == 1 else f"({' '.join(group)})" for group in groups)
    return f"{left} -> {right}"
