"""Errors of parts of a tap, for the map of ranks and of experts: of what each rank holds, of each expert's rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from comparator.diagnosis import TapKey
from comparator.diagnosis.kernel import median
from comparator.match.bundles import Key
from comparator.plan.operations import Coordinates
from comparator.report.tolerance import tolerance_of
from comparator.verdict.analysis import Analysis
from tensortap.distinct import distinct

LEAST_TIMES, MOST_TIMES = 1e-3, 1e3
"""Multiples of the tolerance between which errors are told apart."""


@dataclass(frozen=True)
class Shares:
    """The errors of the parts of one tap."""

    tap: str
    """Its label: ``attn_output layer_id=3``."""
    numbers: list[int]
    """Ranks, or experts."""
    levels: list[int]
    """Of each: ten times the decimal logarithm of error over tolerance."""


def label_of(family: Key) -> str:
    """Name and tags, as the page writes them."""
    return " ".join([str(family[0][1]), *(f"{key}={value}" for key, value in family[1:])])


def tolerated(analysis: Analysis, key: TapKey) -> float | None:
    """The relative L2 error that is tolerated at a tap; None where it was not judged."""
    judgement = analysis.diagnosis.judgement(key)
    return None if judgement is None else tolerance_of(judgement.judged, judgement.floor, judgement.inherited)


def levels(times: npt.NDArray[np.float64]) -> npt.NDArray[np.int64]:
    """Multiples of the tolerance as small numbers: ten times the decimal logarithm."""
    bounded = np.clip(np.nan_to_num(times, nan=0.0), LEAST_TIMES, MOST_TIMES)
    return np.asarray(np.rint(10 * np.log10(bounded)), np.int64)


def expert_shares(analysis: Analysis) -> list[Shares]:
    """Of the taps behind a router, per expert the median error of the rows that chose it on both sides. The largest
    would not tell experts apart: a row has several of them."""
    found = []
    for family, one in analysis.profiles.items():
        profile, limit = one.profile, tolerated(analysis, one.profile.key)
        if not profile.choices or profile.operation == "router" or limit is None or limit <= 0:
            continue
        experts = profile.choices[0].experts
        chosen = distinct(experts[experts >= 0])
        errors = [median(profile.error[(experts == expert).any(axis=1)]) for expert in chosen.tolist()]
        if errors:
            found.append(Shares(label_of(family), chosen.tolist(), levels(np.array(errors) / limit).tolist()))
    return found


def rank_shares(analysis: Analysis, places: Mapping[int, Coordinates]) -> list[Shares]:
    """Of the taps whose channels the target's ranks split, the error of what each rank holds."""
    found = []
    for family, one in analysis.profiles.items():
        profile, limit = one.profile, tolerated(analysis, one.profile.key)
        if not one.split_over or limit is None or limit <= 0:
            continue
        ranks = {rank: piece_of(place, one.split_over) for rank, place in places.items()}
        count = max((count for _, count in ranks.values()), default=1)
        pieces = next((shard.errors for shard in profile.shards if len(shard.errors) == count), None)
        if profile.identical and count > 1:
            pieces = (0.0,) * count
        if pieces is None:
            continue
        held = sorted((rank, pieces[at]) for rank, (at, size) in ranks.items() if size == count)
        errors = np.array([error for _, error in held]) / limit
        found.append(Shares(label_of(family), [rank for rank, _ in held], levels(errors).tolist()))
    return found


def piece_of(place: Coordinates, axes: Sequence[str]) -> tuple[int, int]:
    """Which piece a rank holds of what is split over axes, the outermost first, and of how many."""
    at, count = 0, 1
    for axis in axes:
        rank, size = place.get(axis, (0, 1))
        at, count = at * size + rank, count * size
    return at, count
