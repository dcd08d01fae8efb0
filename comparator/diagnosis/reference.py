"""Three sides: a target whose error against a run in higher precision is larger than the baseline's is wrong.

One factor on medians decides (vLLM Neuron's accuracy debugger uses 1.5 as well), and the whole battery of tests against
the reference stands beside it, on both sides, so that neither a single row nor a small common factor hides.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from comparator.diagnosis.rows import TapKey
from comparator.diagnosis.tap_profile import TapProfile
from comparator.diagnosis.taps import TapGraph
from comparator.diagnosis.verdict import Diagnosis, Options, diagnose

Worse = Literal["baseline", "target", "both", "neither"]


@dataclass(frozen=True)
class ReferenceTap:
    """Median errors of one tap against the reference, over the rows that all three runs have."""

    key: TapKey
    baseline: float
    target: float
    floor: float

    @property
    def ratio(self) -> float:
        """The target's error over the baseline's; both count as the floor at least."""
        return max(self.target, self.floor) / max(self.baseline, self.floor, 1e-300)


@dataclass(frozen=True)
class ReferenceDiagnosis:
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


def diagnose_reference(
    baseline: Sequence[TapProfile], target: Sequence[TapProfile], graph: TapGraph, options: Options | None = None
) -> ReferenceDiagnosis:
    """Judge both sides against a reference.

    ``baseline`` and ``target`` are profiles with the reference as their baseline side and the run as their target.
    """
    options = options or Options()
    left, right = diagnose(baseline, graph, options), diagnose(target, graph, options)
    errors = [{profile.key: profile for profile in profiles} for profiles in (baseline, target)]
    taps = []
    for node in graph.nodes:
        first, second = (found.get(node.key) for found in errors)
        judgement = right.judgement(node.key)
        if first is None or second is None or judgement is None or not min(first.rows, second.rows):
            continue
        if node.key.name not in options.ignored:
            taps.append(_compare(first, second, judgement.floor))
    factor = options.reference_factor
    beyond = {
        "baseline": left.place or next((tap.key for tap in taps if tap.ratio * factor < 1), None),
        "target": right.place or next((tap.key for tap in taps if tap.ratio > factor), None),
    }
    wrong = [side for side, place in beyond.items() if place is not None]
    worse: Worse = "neither"
    if len(wrong) == 2:
        worse = "both"
    elif wrong:
        worse = "baseline" if wrong[0] == "baseline" else "target"
    order = {node.key: at for at, node in enumerate(graph.nodes)}
    places = sorted((place for place in beyond.values() if place is not None), key=lambda key: order.get(key, 0))
    return ReferenceDiagnosis(worse, places[0] if places else None, left, right, tuple(taps))


def _compare(baseline: TapProfile, target: TapProfile, floor: float) -> ReferenceTap:
    return ReferenceTap(baseline.key, float(np.median(baseline.error)), float(np.median(target.error)), floor)
