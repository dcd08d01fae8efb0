"""The token stage as the rest of the comparator sees it: classification and plans, cached."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from msgspec.structs import replace

from comparator.options import Side, TokenMode
from comparator.plan.kept import SMALLEST, KeptPlans
from comparator.plan.tokens.classify import RowClassifier
from comparator.plan.tokens.interface import (
    PartedSequence,
    RowsClass,
    RowsQuery,
    SideLayouts,
    TokenAligner,
    TokenPart,
    TokenPlan,
)
from comparator.plan.tokens.ordered import plan_ordered
from comparator.plan.tokens.part_tokens import PartTokens, tokens_of_parts
from comparator.plan.tokens.pass_rows import NOT_ENCODED, PassRows
from comparator.plan.tokens.places import Places

if TYPE_CHECKING:
    from comparator.plan.tokens.sequences import SequenceTable
    from comparator.plan.tokens.smart import SharedSpace

_MOST_PROBLEMS = 5
"""Layouts that contradict themselves and are named."""

_NO_STEP = -1
"""Stands for the step of records that were made outside a step; no layout has this number."""


class _SideTokens:
    def __init__(self, side: SideLayouts) -> None:
        self._side = side
        self.places = Places(side)
        self.rows = PassRows(self.places)
        self.classifier = RowClassifier(self.places, self.rows)

    def parts(self, parts: tuple[TokenPart, ...]) -> list[PartTokens]:
        return tokens_of_parts(self.places, self.rows, parts)

    def requests(self, parts: list[PartTokens], plan: TokenPlan) -> npt.NDArray[np.int64] | None:
        """Per joined row the number of its sequence in the run; None where a row has none."""
        if plan.sequence is None:
            return None
        numbers = np.full(sum(found.part.rows for found in parts), -1, np.int64)
        for found in parts:
            if found.tokens is not None and found.part.step is not None:
                numbers[found.indices] = self.sequences.number_rows(found.part.step, found.tokens)
        joined = numbers[: plan.matched] if plan.baseline is None else numbers[plan.baseline]
        return joined if (joined >= 0).all() else None

    @cached_property
    def sequences(self) -> SequenceTable:
        from comparator.plan.tokens.sequences import build_sequences

        return build_sequences(self.places, self.rows, self._side.source.steps, self._side.steps)


class RunTokenAligner:
    """Implements ``interface.TokenAligner`` for every mode."""

    def __init__(self, mode: TokenMode, baseline: SideLayouts, target: SideLayouts) -> None:
        self._mode = mode
        self._sides: dict[Side, _SideTokens] = {"baseline": _SideTokens(baseline), "target": _SideTokens(target)}
        self._classes: dict[object, dict[int | None, RowsClass]] = {}
        self._plans: KeptPlans[TokenPlan] = KeptPlans(lambda plan: SMALLEST + plan.matched)

    def classify(self, query: RowsQuery) -> RowsClass:
        """Raises PairError when the rows can be read in several ways that name different tokens."""
        classes = self.classify_steps(query.side, {query.step: query.rows}, query.split_axes, query.data_parallel_axis)
        return classes[query.step]

    def classify_steps(
        self,
        side: Side,
        rows: Mapping[int | None, tuple[tuple[int, int], ...]],
        split_axes: tuple[str, ...] = (),
        data_parallel_axis: str | None = None,
    ) -> Mapping[int | None, RowsClass]:
        key = (side, tuple(rows.items()), split_axes, data_parallel_axis)
        if key not in self._classes:
            counts = {_NO_STEP if step is None else step: found for step, found in rows.items()}
            found = self._sides[side].classifier.classify(counts, split_axes, data_parallel_axis)
            self._classes[key] = {step: found[_NO_STEP if step is None else step] for step in rows}
        return self._classes[key]

    def plan(self, baseline: tuple[TokenPart, ...], target: tuple[TokenPart, ...]) -> TokenPlan:
        key = (baseline, target)
        plan = self._plans.get(key)
        return plan or self._plans.keep(key, self._make_plan(baseline, target))

    def _make_plan(self, baseline: tuple[TokenPart, ...], target: tuple[TokenPart, ...]) -> TokenPlan:
        one, other = self._sides["baseline"].parts(baseline), self._sides["target"].parts(target)
        if self._mode == "smart":
            from comparator.plan.tokens.smart import plan_smart

            plan = plan_smart(self._space, one, other)
        else:
            plan = plan_ordered(one, other, one_step=self._mode == "per_step")
            plan = replace(plan, request=self._sides["baseline"].requests(one, plan))
        problems = tuple(
            f"{name}: {problem}"
            for name, side in self._sides.items()
            for problem in side.places.problems[:_MOST_PROBLEMS]
        )
        return replace(plan, notes=(*plan.notes, *problems)) if problems else plan

    def parted(self) -> tuple[PartedSequence, ...]:
        from comparator.plan.tokens.pairing import outputs_that_part

        space = self._space
        return outputs_that_part(space.baseline, space.target, space.pairs.pairs)

    def encoded(self) -> Mapping[int, npt.NDArray[np.bool_]]:
        one, other = self._sides["baseline"].sequences, self._sides["target"].sequences
        found = {
            number: one.encoded_of(number) != NOT_ENCODED
            for number in (range(len(one)) if one.encoded.any() else ())
            if one.encoded_of(number).any()
        }
        if self._mode == "smart" and other.encoded.any():
            for pair in self._space.pairs.pairs:
                theirs = other.encoded_of(pair.target) != NOT_ENCODED
                if theirs.any():
                    mine = found.get(pair.baseline, np.zeros(0, np.bool_))
                    both = np.zeros(max(len(mine), len(theirs)), np.bool_)
                    both[: len(mine)] |= mine
                    both[: len(theirs)] |= theirs
                    found[pair.baseline] = both
        return found

    def token_ids(self) -> Sequence[npt.NDArray[np.int64]]:
        table = self._sides["baseline"].sequences
        return [table.tokens_of(number) for number in range(len(table))]

    @cached_property
    def _space(self) -> SharedSpace:
        from comparator.plan.tokens.pairing import pair_sequences
        from comparator.plan.tokens.smart import SharedSpace

        baseline, target = self._sides["baseline"].sequences, self._sides["target"].sequences
        return SharedSpace.of(baseline, target, pair_sequences(baseline, target))


def build_token_aligner(mode: TokenMode, baseline: SideLayouts, target: SideLayouts) -> TokenAligner:
    """The aligner for a pair of runs."""
    return RunTokenAligner(mode, baseline, target)
