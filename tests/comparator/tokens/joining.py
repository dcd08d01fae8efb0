"""What the comparator does around the token stage, for synthetic runs: form parts, plan, take rows."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from comparator.options import Side, TokenMode
from comparator.plan.tokens import SideLayouts, TokenAligner, TokenPart, TokenPlan, build_token_aligner
from comparator.plan.tokens.interface import RowsClass
from testbed.synthetic_runs import WIDTH, Array, SyntheticRun


@dataclass(frozen=True)
class Joined:
    """The joined values of both sides, shape ``(matched, WIDTH)``, and the plan that joined them."""

    baseline: Array
    target: Array
    plan: TokenPlan
    baseline_rows: list[tuple[int, int, int]]
    """Per row of the concatenated baseline parts (step, rank, row of that rank); only for unscattered forms."""
    target_rows: list[tuple[int, int, int]]

    @property
    def unequal(self) -> npt.NDArray[np.int64]:
        """The joined rows that differ."""
        return np.flatnonzero((self.baseline != self.target).any(axis=1))

    def target_row_of(self, joined: int) -> tuple[int, int, int]:
        index = joined if self.plan.target is None else int(self.plan.target[joined])
        return self.target_rows[index]


def side_of(run: SyntheticRun, steps: tuple[int, ...] | None = None) -> SideLayouts:
    return SideLayouts(source=run, parallel=run.parallel, steps=run.steps if steps is None else steps)


def aligner_of(
    baseline: SyntheticRun, target: SyntheticRun, mode: TokenMode = "smart", steps: tuple[int, ...] | None = None
) -> TokenAligner:
    return build_token_aligner(mode, side_of(baseline, steps), side_of(target, steps))


def join(
    baseline: SyntheticRun,
    target: SyntheticRun,
    mode: TokenMode = "smart",
    *,
    baseline_form: str = "own",
    target_form: str = "own",
    split_axes: tuple[str, ...] = (),
    data_parallel_axis: str | None = None,
    steps: tuple[int, ...] | None = None,
) -> Joined:
    """Bring one tensor of both runs together as the comparator would."""
    aligner = aligner_of(baseline, target, mode, steps)
    sides: list[tuple[tuple[TokenPart, ...], Array, list[tuple[int, int, int]]]] = []
    for side, run, form in (("baseline", baseline, baseline_form), ("target", target, target_form)):
        name: Side = "baseline" if side == "baseline" else "target"
        classes = aligner.classify_steps(name, run.rows(form), split_axes, data_parallel_axis)
        sides.append(parts_of(run, form, classes, steps))
    (parts, values, rows), (other_parts, other_values, other_rows) = sides
    plan = aligner.plan(parts, other_parts)
    return Joined(
        values if plan.baseline is None else values[plan.baseline],
        other_values if plan.target is None else other_values[plan.target],
        plan,
        rows,
        other_rows,
    )


def parts_of(
    run: SyntheticRun, form: str, classes: object, steps: tuple[int, ...] | None = None
) -> tuple[tuple[TokenPart, ...], Array, list[tuple[int, int, int]]]:
    """The parts, their values back to back and where every row came from."""
    assert isinstance(classes, dict)
    parts: list[TokenPart] = []
    values: list[Array] = [np.zeros((0, WIDTH))]
    origins: list[tuple[int, int, int]] = []
    by_step: dict[int, dict[int, Array]] = {}
    for (step, rank), found in sorted(run.tensors[form].items()):
        if steps is None or step in steps:
            by_step.setdefault(step, {})[rank] = found
    for step, of_ranks in by_step.items():
        rows_class: RowsClass = classes[step]
        groups: dict[tuple[tuple[str, int], ...], list[int]] = {}
        for rank in of_ranks:
            place = tuple((axis, run.parallel[rank][axis][0]) for axis in rows_class.token_axes)
            groups.setdefault(place, []).append(rank)
        for place, ranks in sorted(groups.items()):
            whole = _unshard(run, form, step, ranks, rows_class, of_ranks)
            parts.append(TokenPart(step, place, ranks[0], len(whole), rows_class.hold))
            values.append(whole)
            origins.extend((step, ranks[0], row) for row in range(len(whole)))
    return tuple(parts), np.concatenate(values), origins


def _unshard(
    run: SyntheticRun, form: str, step: int, ranks: list[int], rows_class: RowsClass, values: dict[int, Array]
) -> Array:
    if rows_class.scattered_over:
        (axis,) = rows_class.scattered_over
        ordered = sorted(ranks, key=lambda rank: run.parallel[rank][axis][0])
        kept = {run.parallel[rank][axis][0]: values[rank] for rank in reversed(ordered)}
        return np.concatenate([kept[place] for place in sorted(kept)])
    if form == "partial":
        return np.asarray(sum(values[rank] for rank in ranks))
    return values[ranks[0]]
