"""Three sides: a target whose error against a run in higher precision is larger than the baseline's is wrong.

One factor on medians decides (vLLM Neuron's accuracy debugger uses 1.5 as well). The distribution of errors over rows
and the whole battery of tests against the reference stand beside it, on both sides, so that neither a single row nor a
shift of a part of them hides.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal

import numpy as np
from msgspec import Struct

from comparator.diagnosis.inheritance import Inheritance
from comparator.diagnosis.kernel import median
from comparator.diagnosis.limits import LIMITS
from comparator.diagnosis.strengths import largest_of
from comparator.diagnosis.tap_graph import TapGraph
from comparator.diagnosis.tap_profile import TapProfile
from comparator.diagnosis.tap_rows import Float, Mask, RowLabels, TapKey, join_rows
from comparator.diagnosis.verdict import Diagnosis, Options, diagnose

Worse = Literal["baseline", "target", "both", "neither"]
UPPER_QUARTER = 1.5
"""How many times the factor on medians the upper quartile of the rows' ratios may be: right kernels reached 1.1."""
SINGLE_ROW = 2.0
"""How many times the limit of single rows the ratio of one may be: right kernels reached 1.25."""
FEWEST_ROWS = 6


class Excess(Struct, frozen=True):
    """How far one side's errors are beyond the other's, by one measure."""

    strength: float
    """From 1 on the side is wrong."""
    words: str


NONE = Excess(0.0, "")


class ReferenceTap(Struct, frozen=True):
    """Median errors of one tap against the reference, and how the rows' errors compare, over the rows of both."""

    key: TapKey
    baseline: float
    target: float
    floor: float
    baseline_excess: Excess = NONE
    """What is most wrong about the baseline's errors, beside the target's."""
    target_excess: Excess = NONE

    @property
    def ratio(self) -> float:
        """The target's error over the baseline's; both count as the floor at least."""
        return max(self.target, self.floor) / max(self.baseline, self.floor, 1e-300)


class ReferenceDiagnosis(Struct, frozen=True):
    """What a reference says of both sides."""

    worse: Worse
    """The side that disagrees with the reference more than rounding explains, or than the other side does."""
    place: TapKey | None
    """The earliest tap at which the worse side does."""
    baseline: Diagnosis
    """The reference against the baseline."""
    target: Diagnosis
    """The reference against the target."""
    taps: tuple[ReferenceTap, ...]
    reason: str = ""
    """Why, in words, where errors of rows decided and not a test of one side alone."""


def diagnose_reference(
    baseline: Sequence[TapProfile], target: Sequence[TapProfile], graph: TapGraph, options: Options | None = None
) -> ReferenceDiagnosis:
    """Judge both sides against a reference.

    ``baseline`` and ``target`` are profiles with the reference as their baseline side and the run as their target.
    """
    options = options or Options()
    left, right = diagnose(baseline, graph, options), diagnose(target, graph, options)
    taps = tuple(_compare_all(baseline, target, graph, options))
    beyond: dict[str, tuple[TapKey, str] | None] = {}
    for side, alone in (("baseline", left), ("target", right)):
        excesses = ((tap.key, tap.baseline_excess if side == "baseline" else tap.target_excess) for tap in taps)
        found = next(((key, excess.words) for key, excess in excesses if excess.strength >= 1), None)
        beyond[side] = found if alone.place is None else (alone.place, "")
    wrong = [side for side, place in beyond.items() if place is not None]
    worse: Worse = "neither"
    if len(wrong) == 2:
        worse = "both"
    elif wrong:
        worse = "baseline" if wrong[0] == "baseline" else "target"
    order = {node.key: at for at, node in enumerate(graph.nodes)}
    places = sorted((place for place in beyond.values() if place is not None), key=lambda one: order.get(one[0], 0))
    place, reason = places[0] if places else (None, "")
    return ReferenceDiagnosis(worse, place, left, right, taps, reason)


class _Rows(Struct, frozen=True, eq=False):
    """Errors of one side's tap against the reference, and which rows are no ties and behind none."""

    labels: RowLabels
    error: Float
    floor: Float
    kept: Mask


def _rows(profiles: Sequence[TapProfile], graph: TapGraph, options: Options) -> dict[TapKey, _Rows]:
    known = {profile.key: profile for profile in profiles}
    inheritance = Inheritance(known, graph, options.calibration, other_engine=options.other_engine)
    found = {}
    for node in graph.nodes:
        profile = known.get(node.key)
        if profile is not None and profile.rows and profile.channel_count:
            context = inheritance.view(profile).context
            found[node.key] = _Rows(profile.labels, profile.error, context.floor, context.compared & context.steady)
    return found


def _compare_all(
    baseline: Sequence[TapProfile], target: Sequence[TapProfile], graph: TapGraph, options: Options
) -> Iterator[ReferenceTap]:
    left, right = (_rows(profiles, graph, options) for profiles in (baseline, target))
    for node in graph.nodes:
        first, second = left.get(node.key), right.get(node.key)
        if first is None or second is None or node.key.name in options.ignored:
            continue
        floor = median(second.floor)
        mine, theirs = median(first.error), median(second.error)
        limit = LIMITS[node.operation].row
        yield ReferenceTap(
            node.key,
            mine,
            theirs,
            floor,
            _excess(second, first, (theirs, mine), floor, limit, options.reference_factor),
            _excess(first, second, (mine, theirs), floor, limit, options.reference_factor),
        )


def _excess(
    other: _Rows, own: _Rows, medians: tuple[float, float], floor: float, row_limit: float, factor: float
) -> Excess:
    """How far ``own`` errors are beyond those of the ``other`` side; ``medians`` of other and own, in this order."""
    ratio = max(medians[1], floor) / max(medians[0], floor, 1e-300)
    found = [Excess(ratio / factor, f"median error {ratio:.3g} times")]
    here, there = join_rows(other.labels, own.labels)
    kept = other.kept[here] & own.kept[there]
    if kept.sum() >= FEWEST_ROWS:
        least = np.maximum(np.maximum(other.floor[here], own.floor[there])[kept], 1e-300)
        ratios = np.maximum(own.error[there][kept], least) / np.maximum(other.error[here][kept], least)
        upper, at = float(np.quantile(ratios, 0.75)), int(np.argmax(ratios))
        largest, row = float(ratios[at]), there[np.flatnonzero(kept)[at]]
        found.append(Excess(upper / (factor * UPPER_QUARTER), f"error in a quarter of its rows {upper:.3g} times"))
        where = own.labels.describe(int(row))
        limit = SINGLE_ROW * largest_of(row_limit, int(kept.sum()))
        found.append(Excess(largest / limit, f"error at {where} {largest:.3g} times"))
    return max(found, key=lambda one: one.strength)
