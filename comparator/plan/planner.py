"""Plan, from metadata alone, how both sides of a pair become two arrays of one shape.

A plan goes per side and step from the ranks' arrays to parts (``comparator.plan.side``), from parts to the rows that
both sides have (``comparator.plan.tokens``), and from there to common dimensions (``comparator.plan.axes``). Pairs
whose inputs are equal (the same tensor in every layer) share one plan.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property

import numpy as np
import numpy.typing as npt
from msgspec import Struct
from msgspec.structs import replace

from comparator.errors import PairError
from comparator.match.bundles import Bundle, BundlePair
from comparator.options import Options, Side
from comparator.plan.axes import VOCABULARY, AxesPlan, plan_axes, without_padding
from comparator.plan.by_rows import KEPT_BY_ROWS, plan_rows, rows_key
from comparator.plan.context import SideContext, SideInputs
from comparator.plan.facts import Remark, TokenNumbers
from comparator.plan.kept import SMALLEST, KeptPlans
from comparator.plan.levels import RowByRow, check_same_rows
from comparator.plan.shared_pieces import Sharing, find_sharing
from comparator.plan.side import SidePlan, describe_part, known_inputs, plan_side, side_inputs, with_rows
from comparator.plan.tokens.interface import PartedSequence, TokenAligner, TokenPlan, consecutive
from comparator.rules import Rules, joins_steps
from tensortap.dims import count_rows

Place = tuple[int, int | None, int]
"""Rank, step and occurrence of a record."""


class PairPlan(Struct, frozen=True, dict=True):
    """Everything that happens to a pair before it is measured."""

    baseline: SidePlan
    target: SidePlan
    tokens: TokenPlan | None
    """None when a side has no token dimension: then both have one part and it is taken whole."""
    axes: AxesPlan | None
    rows: int | None = None
    """Both sides are cut to this number of rows; None: nothing is cut."""
    errors: tuple[str, ...] = ()
    """Why an alignment could not be made; the pair fails, and is compared as it lies."""
    notes: tuple[str, ...] = ()
    other_tokens: tuple[str, ...] = ()
    """Where rows that are joined are not the same tokens."""
    warnings: tuple[str, ...] = ()
    """What was assumed about the pair and should be seen also when it passes."""

    @cached_property
    def token_axis(self) -> int | None:
        """The dimension of the aligned arrays whose index is the joined row."""
        side = self.target
        if self.tokens is None or not side.token_dimensions:
            return None
        if len(side.token_dimensions) > 1 and not side.merge_rows:
            return None
        if self.axes is None or side.dimensions is None:
            return min(side.token_dimensions) if side.merge_rows else side.token_dimensions[-1]
        return self.axes.result.index("s") if "s" in self.axes.result else None

    @cached_property
    def row_dimensions(self) -> tuple[int, ...]:
        """The dimensions of the aligned arrays whose elements, in row-major order, are the joined rows.

        One, or batch and sequence; empty where rows are no tokens.
        """
        if self.token_axis is not None:
            return (self.token_axis,)
        if self.tokens is None or not self.target.token_dimensions:
            return ()
        if self.axes is None:
            return self.target.token_dimensions
        names = ("b", "s")
        return tuple(map(self.axes.result.index, names)) if set(names) <= set(self.axes.result) else ()

    @cached_property
    def as_it_lies(self) -> tuple[slice, slice] | None:
        """The rows of baseline and target, where each side is the array of one record of which rows that follow on one
        another are compared as they lie; None where there is more to do."""
        axes, tokens, sides = self.axes, self.tokens, (self.baseline, self.target)
        if self.rows is not None or not all(side.takes_one_array for side in sides):
            return None
        if axes is not None and not (axes.baseline.identity and axes.target.identity):
            return None
        left, right = (None, None) if tokens is None else (tokens.baseline, tokens.target)
        found = []
        for side, index in zip(sides, (left, right), strict=True):
            rows = slice(None) if index is None else consecutive(index)
            if rows is None or (index is not None and (side.token_dimensions or (0,))[-1] != 0):
                return None
            found.append(rows)
        return found[0], found[1]

    @cached_property
    def dims(self) -> tuple[str | None, str | None]:
        """Of baseline and target, as they hold for the arrays that are aligned."""
        left, right = self.baseline.dims, self.target.dims
        return None if left is None else left.text, None if right is None else right.text

    @cached_property
    def token_numbers(self) -> TokenNumbers | None:
        """How many tokens are compared; None where rows are no tokens."""
        tokens = self.tokens
        if tokens is None:
            return None
        return TokenNumbers(
            tokens.matched,
            dict(tokens.only_baseline),
            dict(tokens.only_target),
            tokens.dropped_baseline,
            tokens.dropped_target,
            sum(part.rows for part in self.baseline.parts),
            sum(part.rows for part in self.target.parts),
        )

    @cached_property
    def remarks(self) -> tuple[Remark, ...]:
        """What was found while the pair was planned."""
        joined = [
            f"{side.side}: {len(side.steps)} records of {len(side.ranks)} steps are joined along the token dimension"
            for side in (self.baseline, self.target)
            if len(side.ranks) < len(side.steps)
        ]
        return (
            *(Remark("records-joined", message) for message in joined),
            *(Remark("axes-not-aligned", message) for message in self.errors),
            *(Remark("other-tokens", message) for message in self.other_tokens),
            *(Remark("tokens-joined", message) for message in self.notes),
            *(Remark("shared-pieces-assumed", message) for message in self.warnings),
            *(Remark("padded-vocabulary", message) for message in self._padding),
        )

    @property
    def _padding(self) -> tuple[str, ...]:
        if self.axes is None or self.axes.padded is None:
            return ()
        left, right = self.axes.padded
        return (
            f"{VOCABULARY} has {left} columns in baseline and {right} in target: the first {min(left, right)} are "
            "compared, the others are taken for padding",
        )

    @cached_property
    def row_steps(self) -> npt.NDArray[np.int64] | None:
        """Per joined row the target's step, -1 outside any, shape ``(rows,)``; None without a token dimension."""
        if self.tokens is None:
            return None
        parts = self.target.parts
        steps = np.array([-1 if part.step is None else part.step for part in parts], np.int64)
        steps = np.repeat(steps, [part.rows for part in parts])
        return steps if self.tokens.target is None else steps[self.tokens.target]


_LISTED = 8
"""Parts that a message names."""
_NO_ROWS = (
    ": without dims, its first dimension would have to be the rows of each pass, or that and another batch and length"
)

_Planned = tuple[SideInputs, SideInputs, PairPlan]


def _rows_of(planned: _Planned) -> int:
    tokens = planned[2].tokens
    return SMALLEST + (0 if tokens is None else tokens.matched)


class Planner:
    """Plans pairs of two runs, and remembers the plans of pairs that are alike."""

    def __init__(
        self, contexts: Mapping[Side, SideContext], aligner: TokenAligner, options: Options, rules: Rules
    ) -> None:
        self.contexts = contexts
        self._aligner = aligner
        self._options = options
        self._joined = joins_steps(options, rules)
        self._by_rows: KeptPlans[PairPlan] = KeptPlans(lambda _: 1, KEPT_BY_ROWS)
        self._plans: KeptPlans[_Planned] = KeptPlans(_rows_of)
        """By the identities of the inputs, which are the same for pairs that are alike."""

    @cached_property
    def parted(self) -> tuple[PartedSequence, ...]:
        """Sequences of which both sides sampled other tokens."""
        return self._aligner.parted()

    def encoded(self) -> Mapping[int, npt.NDArray[np.bool_]]:
        """Of sequences of the baseline the positions whose rows come out of an encoder of images or sound."""
        return self._aligner.encoded()

    def token_ids(self) -> Sequence[npt.NDArray[np.int64]]:
        """Token ids of the baseline's sequences by position, negative where unknown."""
        return self._aligner.token_ids()

    def plan(self, pair: BundlePair, rules: Rules, *, sampled: bool = False) -> PairPlan:
        """The plan of a pair of tensors that both sides have.

        ``sampled`` says that records hold only some rows. Raises PairError or DimsError when a side cannot be put
        together.
        """
        baseline, target = pair.baseline, pair.target
        assert baseline is not None
        assert target is not None
        if rules.joining == "rows":
            return self._plan_rows(pair)
        if sampled:
            check_same_rows(baseline, target)
        aligner: TokenAligner = RowByRow() if sampled else self._aligner
        left = side_inputs(baseline, pair.name, self.contexts["baseline"], aligner, self._options, sampled=sampled)
        right = side_inputs(target, pair.name, self.contexts["target"], aligner, self._options, sampled=sampled)
        key = (sampled, id(left), id(right))
        found = self._plans.get(key)
        if found is None:
            found = self._plans.keep(key, (left, right, self._plan(left, right, aligner)))
        return found[2]

    def plan_each(
        self, pairs: Sequence[BundlePair], places: Sequence[tuple[Place, Place]], rules: Rules
    ) -> list[PairPlan | None]:
        """The plans of pairs of one record on each side that are alike but for the places of these; None where one
        cannot be made, for a reason that ``plan`` gives."""
        first = pairs[0]
        if rules.joining == "rows" or self._or_none(first, rules) is None:
            return [self._or_none(pair, rules) for pair in pairs]
        assert first.baseline is not None
        assert first.target is not None
        sides: tuple[tuple[Side, Bundle], ...] = (("baseline", first.baseline), ("target", first.target))
        inputs = [
            known_inputs(bundle, [place[at] for place in places], first.name, self.contexts[side], self._options)
            for at, (side, bundle) in enumerate(sides)
        ]
        known = [self._plans.get((False, id(left), id(right))) for left, right in zip(*inputs, strict=True)]
        return [
            self._or_none(pair, rules) if found is None else found[2] for pair, found in zip(pairs, known, strict=True)
        ]

    def _or_none(self, pair: BundlePair, rules: Rules) -> PairPlan | None:
        try:
            return self.plan(pair, rules)
        except Exception:  # that one pair; to plan it by itself says why
            return None

    def _plan_rows(self, pair: BundlePair) -> PairPlan:
        key = rows_key(pair)
        found = self._by_rows.get(key)
        if found is None:
            rows = plan_rows(pair, self.contexts, self._options)
            plan = PairPlan(rows.baseline, rows.target, None, rows.axes, rows.rows, rows.errors)
            found = self._by_rows.keep(key, plan)
        return found

    def _plan(self, left: SideInputs, right: SideInputs, aligner: TokenAligner) -> PairPlan:
        def plan_with(shared: Sharing, other_shared: Sharing) -> PairPlan:
            return _join(
                plan_side(left, self.contexts["baseline"], self._joined, shared),
                plan_side(right, self.contexts["target"], self._joined, other_shared),
                aligner,
            )

        plan = plan_with({}, {})
        sharing = self._sharing(plan)
        if not any(sharing):
            return plan
        warnings = tuple(
            f"{side}: {factor} neighbouring {axis} ranks are taken to hold the same piece"
            for side, shared in zip(("baseline", "target"), sharing, strict=True)
            for axis, factor in shared.items()
        )
        return replace(plan_with(*sharing), warnings=warnings)

    def _sharing(self, plan: PairPlan) -> tuple[Sharing, Sharing]:
        """Pieces that neighbouring ranks seem to share, per side."""
        left, right = plan.baseline, plan.target
        if plan.axes is None or left.dims is None or right.dims is None:
            return {}, {}
        return find_sharing(
            (_shape_of(left), _shape_of(right)),
            (plan.axes.baseline, plan.axes.target),
            (left.dims, right.dims),
            (self.contexts["baseline"].sizes, self.contexts["target"].sizes),
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
            raise PairError(tokens.error, name="no-common-token")
    for plan in (left, right):
        if tokens is None and len(plan.parts) != 1:
            listed = ", ".join(map(describe_part, plan.parts[:_LISTED]))
            more = "" if len(plan.parts) <= _LISTED else f" and {len(plan.parts) - _LISTED} more"
            raise PairError(
                f"the {plan.side} has {len(plan.parts)} parts ({listed}{more}) and no token dimension to join them "
                f"along{'' if plan.dims is not None else _NO_ROWS}",
                hint="name the dimension that counts tokens t (or b and s) in the dims",
                name="no-token-dimension",
            )
    if _merges_rows(left, right, tokens):
        left, right = with_rows(left), with_rows(right)
    axes: AxesPlan | None = None
    errors: tuple[str, ...] = ()
    if left.dimensions is not None and right.dimensions is not None:
        try:
            axes = without_padding(plan_axes(left.dimensions, right.dimensions), _shape_of(left), _shape_of(right))
        except PairError as error:
            errors = (f"{error}; {error.hint}",)
    return PairPlan(
        left, right, tokens, axes, None, errors, tokens.notes if tokens else (), tokens.other_tokens if tokens else ()
    )


def _merges_rows(left: SidePlan, right: SidePlan, tokens: TokenPlan | None) -> bool:
    """Whether batch and sequence become one dimension: where rows are picked, or only one side has both."""
    if tokens is None:
        return False
    picked = tokens.baseline is not None or tokens.target is not None
    return picked or max(len(left.parts), len(right.parts)) > 1 or (
        len(left.token_dimensions) != len(right.token_dimensions)
    )  # fmt: skip
