"""Compare records that hold less than the tensor: a fingerprint, or statistics.

There is nothing to unshard in them. Fingerprints compare rank by rank where both sides have the same shards, or as
one where all ranks hold the same. Statistics of pieces are combined as the dims say; those of summands cannot be.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from comparator.align.load import load_array
from comparator.errors import PairError
from comparator.match.bundles import Bundle, BundlePair
from comparator.match.entries import Entry
from comparator.measure.difference import Difference
from comparator.measure.measurement import HashMeasurement, StatisticsMeasurement
from comparator.measure.statistics import Statistics, summarize
from comparator.options import Options, Side
from comparator.plan.context import SideContext
from comparator.plan.operations import Shard
from comparator.plan.shards import plan_unshard
from tensortap.dims import parse_dims

_HINT = "record it at level full on both sides"


def measure_hashes(pair: BundlePair, contexts: Mapping[Side, SideContext]) -> HashMeasurement:
    """Compare fingerprints; raises PairError when those of shards cannot be put together."""
    baseline, target = pair.baseline, pair.target
    assert baseline is not None
    assert target is not None
    scheme = _scheme(pair)
    left, right = _by_place(baseline), _by_place(target)
    same_layout = set(left) == set(right) and all(
        contexts["baseline"].world.get(rank, {}) == contexts["target"].world.get(rank, {}) for _, rank in left
    )
    if same_layout:
        unequal = [place for place in left if _fingerprint(left[place], scheme) != _fingerprint(right[place], scheme)]
        words = f"fingerprints differ on rank {', '.join(str(rank) for _, rank in unequal)}" if unequal else ""
    else:
        words = _compare_replicated_hashes(baseline, target, scheme)
    first, other = baseline.entries[0], target.entries[0]
    return HashMeasurement((first.record.dtype, other.record.dtype), (first.shape, other.shape), words)


def _compare_replicated_hashes(baseline: Bundle, target: Bundle, scheme: str) -> str:
    shapes = {entry.shape for entry in (*baseline.entries, *target.entries)}
    prints = [{_fingerprint(entry, scheme) for entry in bundle.entries} for bundle in (baseline, target)]
    if len(shapes) > 1 or len(prints[0]) > 1 or len(prints[1]) > 1:
        raise PairError(
            "fingerprints cannot be put together from shards: the runs have other parallel layouts, and the ranks "
            "do not all hold the same",
            hint=_HINT,
        )
    return "" if prints[0] == prints[1] else "the fingerprints differ"


def _scheme(pair: BundlePair) -> str:
    """How the fingerprints of both sides were computed. Raises PairError when that was not in one way."""
    assert pair.baseline is not None
    assert pair.target is not None
    sides = {
        side: {entry.record.fingerprint_scheme for entry in bundle.entries if entry.record.level == "hash"}
        for side, bundle in (("baseline", pair.baseline), ("target", pair.target))
    }
    schemes = sorted(filter(None, set.union(*sides.values())))
    if len(schemes) != 1:
        has = " and ".join(f"the {side} has {', '.join(sorted(filter(None, found)))}" for side, found in sides.items())
        raise PairError(
            f"fingerprints of different schemes say nothing of each other: {has}",
            hint="record the run with the older scheme again, or one of them at level full",
            name="fingerprint-schemes-differ",
        )
    return schemes[0]


def _fingerprint(entry: Entry, scheme: str) -> str | None:
    """The recorded fingerprint, or that of a whole tensor. Raises PairError for a scheme that is not known here."""
    record = entry.record
    if record.level == "hash":
        return record.fingerprint
    from dumper.values.fingerprint import UnknownSchemeError, fingerprint

    array = np.ascontiguousarray(load_array(entry))
    try:
        return fingerprint(record.dtype or "", record.shape or (), array.reshape(-1).view(np.uint8).data, scheme)
    except UnknownSchemeError as error:
        raise PairError(
            f"the other side recorded a fingerprint, and {error}",
            hint="compare with the version that recorded it, or record both sides at level full",
            name="fingerprint-schemes-differ",
        ) from None


def _by_place(bundle: Bundle) -> dict[tuple[int | None, int], Entry]:
    return {(entry.step, entry.rank): entry for entry in bundle.entries}


def measure_statistics(
    pair: BundlePair, contexts: Mapping[Side, SideContext], options: Options
) -> StatisticsMeasurement:
    """Compare statistics; raises PairError when those of shards cannot be combined."""
    baseline, target = pair.baseline, pair.target
    assert baseline is not None
    assert target is not None
    left, left_shape = _combined(baseline, pair.name, options, contexts["baseline"])
    right, right_shape = _combined(target, pair.name, options, contexts["target"])
    return StatisticsMeasurement(
        (baseline.entries[0].record.dtype, target.entries[0].record.dtype),
        (left_shape, right_shape),
        (left, right),
        _difference(left, right, math.prod(left_shape)),
    )


def _difference(left: Statistics, right: Statistics, elements: int) -> Difference:
    """Bounds from summaries: ``rel`` compares L2 norms, ``max_abs`` the extremes, ``mean_abs`` the means."""
    norms = [math.hypot(one.mean, _population_std(one, elements)) for one in (left, right)]
    total = norms[0] ** 2 + norms[1] ** 2
    gap = abs(norms[0] - norms[1])
    bad = left.nan + left.infinite + right.nan + right.infinite
    return Difference(
        elements=elements,
        rel=math.nan if bad else (gap * gap / total if total else 0.0),
        max_abs=math.nan if bad else max(abs(left.minimum - right.minimum), abs(left.maximum - right.maximum)),
        mean_abs=abs(left.mean - right.mean),
        relative_l2=gap / norms[0] if norms[0] else 0.0,
        scale=1.0,
        scale_explains=0.0,
        differing=0,
        coordinate=(),
        baseline_at_max=left.maximum,
        target_at_max=right.maximum,
    )


def _population_std(statistics: Statistics, elements: int) -> float:
    if elements < 2 or math.isnan(statistics.std):
        return 0.0
    return statistics.std * math.sqrt((elements - 1) / elements)


def _combined(bundle: Bundle, name: str, options: Options, context: SideContext) -> tuple[Statistics, tuple[int, ...]]:
    """Statistics of the whole tensor from those of its shards."""
    entries = sorted(bundle.entries, key=lambda one: one.rank)
    recorded = next((entry.dims for entry in entries if entry.dims), None)
    text = options.dims_for(name, recorded, context.side)
    found = [(_statistics(entry), entry.shape) for entry in entries]
    if len(entries) == 1:
        return found[0]
    if text is None:
        raise PairError(
            f"the {context.side} recorded it on several ranks without dims that say how they relate",
            hint="give dims in the patch config or with --override-dims",
        )
    shards = [
        Shard(entry.rank, shape, context.world.get(entry.rank, {}))
        for entry, (_, shape) in zip(entries, found, strict=True)
    ]
    plan = plan_unshard(parse_dims(text), shards, world=context.world, missing_ranks=context.run.missing_ranks)
    current = [statistics for statistics, _ in found]
    shapes = [shape for _, shape in found]
    for operation in plan.operations:
        if operation.kind == "sum":
            raise PairError("statistics of summands cannot be combined", hint=_HINT)
        merged = [
            current[group[0]] if operation.kind == "pick" else _merge([(current[i], shapes[i]) for i in group])
            for group in operation.groups
        ]
        current, shapes = merged, list(operation.shapes_after)
    return current[0], shapes[0]


def _merge(members: Sequence[tuple[Statistics, tuple[int, ...]]]) -> Statistics:
    counts = [math.prod(shape) for _, shape in members]
    count = sum(counts)
    if not count:
        return Statistics()
    mean = sum(one.mean * n for (one, _), n in zip(members, counts, strict=True)) / count
    square = sum(n * (one.mean**2 + _population_std(one, n) ** 2) for (one, _), n in zip(members, counts, strict=True))
    variance = max(square / count - mean * mean, 0.0)
    return Statistics(
        mean=mean,
        abs_mean=sum(one.abs_mean * n for (one, _), n in zip(members, counts, strict=True)) / count,
        std=math.sqrt(variance * count / (count - 1)) if count > 1 else math.nan,
        minimum=min(one.minimum for one, _ in members),
        maximum=max(one.maximum for one, _ in members),
        nan=sum(one.nan for one, _ in members),
        infinite=sum(one.infinite for one, _ in members),
    )


def _statistics(entry: Entry) -> Statistics:
    record = entry.record
    if record.level == "full":
        return summarize(load_array(entry))
    kept: Mapping[str, Any] = record.statistics or {}
    elements = math.prod(entry.shape)
    mean, norm = float(kept.get("mean", 0.0)), float(kept.get("l2", 0.0))
    variance = max(norm * norm / elements - mean * mean, 0.0) if elements else 0.0
    return Statistics(
        mean=mean,
        abs_mean=float(kept.get("abs_mean", math.nan)),
        std=math.sqrt(variance * elements / (elements - 1)) if elements > 1 else math.nan,
        minimum=float(kept.get("min", 0.0)),
        maximum=float(kept.get("max", 0.0)),
        nan=int(kept.get("nan", 0)),
        infinite=int(kept.get("inf", 0)),
    )
