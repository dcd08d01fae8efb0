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
from comparator.dims import parse_dims
from comparator.errors import PairError
from comparator.match.pairs import Bundle, BundlePair
from comparator.match.runs import RecordView
from comparator.measure.difference import Difference, Statistics, summarize
from comparator.options import Options
from comparator.plan.pair import SideContext
from comparator.plan.tokens.interface import Side
from comparator.plan.unshard import Shard, plan_unshard
from comparator.report.findings import diff_info, tensor_info, torch_dtype_name
from comparator.report.records import Location, Note, TensorComparison
from comparator.verdict.judge import Verdict, judge, predicate_for

_HINT = "record it at level full on both sides"


def reduced_level(baseline: Bundle, target: Bundle) -> str | None:
    """The level at which a pair is compared when it is not ``full`` (or ``sample``) on both sides."""
    levels = {record.level for record in (*baseline.records, *target.records)}
    if levels <= {"full"}:
        return None
    if levels == {"sample"}:
        return "sample"
    if "hash" in levels and levels <= {"hash", "full"}:
        return "hash"
    if levels <= {"stats", "full"}:
        return "stats"
    raise PairError(f"it is recorded at levels that cannot be compared: {', '.join(sorted(levels))}", hint=_HINT)


def compare_reduced(
    level: str,
    pair: BundlePair,
    baseline: Bundle,
    target: Bundle,
    options: Options,
    contexts: Mapping[Side, SideContext],
) -> TensorComparison:
    """Compare a pair at level ``hash`` or ``stats``; raises PairError when the records do not allow it."""
    if level == "hash":
        return _compare_hashes(pair, baseline, target, contexts)
    return _compare_statistics(pair, baseline, target, options, contexts)


def _compare_hashes(
    pair: BundlePair, baseline: Bundle, target: Bundle, contexts: Mapping[Side, SideContext]
) -> TensorComparison:
    left, right = _by_place(baseline), _by_place(target)
    same_layout = set(left) == set(right) and all(
        contexts["baseline"].world.get(rank, {}) == contexts["target"].world.get(rank, {}) for _, rank in left
    )
    if same_layout:
        unequal = [place for place in left if _fingerprint(left[place]) != _fingerprint(right[place])]
        note = f"fingerprints differ on rank {', '.join(str(rank) for _, rank in unequal)}" if unequal else ""
    else:
        note = _compare_replicated_hashes(baseline, target)
    first, other = baseline.records[0], target.records[0]
    return _finding(
        pair,
        "hash",
        first,
        other,
        passed=not note,
        notes=[Note(kind="info", category="hash", message=note)] if note else [],
    )


def _compare_replicated_hashes(baseline: Bundle, target: Bundle) -> str:
    shapes = {record.shape for record in (*baseline.records, *target.records)}
    prints = [{_fingerprint(record) for record in bundle.records} for bundle in (baseline, target)]
    if len(shapes) > 1 or len(prints[0]) > 1 or len(prints[1]) > 1:
        raise PairError(
            "fingerprints cannot be put together from shards: the runs have other parallel layouts, and the ranks "
            "do not all hold the same",
            hint=_HINT,
        )
    return "" if prints[0] == prints[1] else "the fingerprints differ"


def _fingerprint(record: RecordView) -> str | None:
    """The recorded fingerprint, or that of a whole tensor."""
    if record.level == "hash":
        return record.fingerprint
    from dumper.values.measures import fingerprint

    array = np.ascontiguousarray(load_array(record))
    return fingerprint(record.dtype or "", array.shape, array.reshape(-1).view(np.uint8).data)


def _by_place(bundle: Bundle) -> dict[tuple[int | None, int], RecordView]:
    return {(record.step, record.rank): record for record in bundle.records}


def _compare_statistics(
    pair: BundlePair, baseline: Bundle, target: Bundle, options: Options, contexts: Mapping[Side, SideContext]
) -> TensorComparison:
    left, left_shape = _combined(baseline, pair.name, "baseline", options, contexts["baseline"])
    right, right_shape = _combined(target, pair.name, "target", options, contexts["target"])
    elements = math.prod(left_shape)
    predicate = predicate_for(pair.name, options, integers=False)
    difference = _difference(left, right, elements)
    verdict = judge(difference, predicate)
    mismatch = math.prod(left_shape) != math.prod(right_shape)
    note = "compared by their statistics: min, max, mean and L2 norm; equal ones do not prove equal tensors"
    return _finding(
        pair,
        "stats",
        baseline.records[0],
        target.records[0],
        passed=verdict.passed and not mismatch,
        notes=[Note(kind="info", category="stats", message=note)],
        difference=difference,
        verdict=verdict,
        statistics=(left, right),
        shapes=(left_shape, right_shape),
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


def _combined(
    bundle: Bundle, name: str, side: Side, options: Options, context: SideContext
) -> tuple[Statistics, tuple[int, ...]]:
    """Statistics of the whole tensor from those of its shards."""
    records = sorted(bundle.records, key=lambda one: one.rank)
    recorded = next((record.dims for record in records if record.dims), None)
    text = options.dims_for(name, recorded, side)
    found = [(_statistics(record), tuple(record.shape or ())) for record in records]
    if len(records) == 1:
        return found[0]
    if text is None:
        raise PairError(
            f"the {side} recorded it on several ranks without dims that say how they relate",
            hint="give dims in the patch config or with --override-dims",
        )
    shards = [
        Shard(record.rank, shape, context.world.get(record.rank, {}))
        for record, (_, shape) in zip(records, found, strict=True)
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


def _statistics(record: RecordView) -> Statistics:
    if record.level == "full":
        return summarize(load_array(record))
    kept: Mapping[str, Any] = record.statistics or {}
    elements = math.prod(record.shape or ())
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


def _finding(
    pair: BundlePair,
    level: str,
    first: RecordView,
    other: RecordView,
    *,
    passed: bool,
    notes: list[Note],
    difference: Difference | None = None,
    verdict: Verdict | None = None,
    statistics: tuple[Statistics, Statistics] = (Statistics(), Statistics()),
    shapes: tuple[tuple[int, ...], tuple[int, ...]] | None = None,
) -> TensorComparison:
    left_shape, right_shape = shapes or (tuple(first.shape or ()), tuple(other.shape or ()))
    return TensorComparison(
        name=pair.name,
        tags={key: str(value) for key, value in pair.tags},
        location=Location(step=pair.step),
        tap=getattr(other, "tap", None),
        category="passed" if passed else "failed",
        baseline=tensor_info(left_shape, torch_dtype_name(first.dtype), statistics[0]),
        target=tensor_info(right_shape, torch_dtype_name(other.dtype), statistics[1]),
        unified_shape=list(left_shape),
        shape_mismatch=left_shape != right_shape,
        diff=None if difference is None or verdict is None else diff_info(difference, verdict),
        level=level,
        infos=notes,
    )
