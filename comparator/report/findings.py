"""Make the record of a finding from what was measured and decided: one builder for each kind."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypedDict

from comparator.match.bundles import Bundle, BundlePair
from comparator.match.entries import Entry
from comparator.measure.difference import Difference
from comparator.measure.measurement import (
    ArrayNumbers,
    Failure,
    HashMeasurement,
    Measurement,
    Skipped,
    StatisticsMeasurement,
    TensorMeasurement,
    ValueMeasurement,
)
from comparator.measure.statistics import Statistics
from comparator.options import Side
from comparator.plan.context import SideContext
from comparator.plan.selection import LeftOut, Selected
from comparator.report.diagnosis import tap_analysis
from comparator.report.records import (
    BundleFile,
    BundleInfo,
    BundleSide,
    Comparison,
    DiffInfo,
    ErroredComparison,
    Location,
    Note,
    ReplicatedCheck,
    SkippedComparison,
    TensorComparison,
    TensorInfo,
    TensorStats,
    TokenCounts,
    ValueComparison,
)
from comparator.verdict.judge import REPLICA_TOLERANCE, Category, Judgement, Said, Verdict

Trace = Callable[[Selected], dict[str, Any] | None]
"""The plan of a pair of tensors, in the form of SGLang's report."""


class _Common(TypedDict):
    """The fields that every finding has."""

    name: str
    tags: dict[str, str]
    location: Location
    tap: str | None
    category: Category
    errors: list[Note]
    infos: list[Note]


def build(
    selected: Selected,
    measurement: Measurement,
    verdict: Verdict,
    contexts: Mapping[Side, SideContext],
    trace: Trace = lambda _: None,
    *,
    records: bool = True,
) -> Comparison:
    """The record of one finding; ``trace`` gives the plan of a pair of tensors for the report, ``records`` lists what
    both sides were made from."""
    common = _common(selected.pair, verdict)
    failure = verdict.failure or (measurement if isinstance(measurement, Failure) else None)
    if failure is not None:
        return _errored(common, failure)
    match measurement:
        case TensorMeasurement():
            bundles = _bundle_info(selected, measurement, contexts) if records else None
            return _tensor(common, measurement, verdict, trace(selected), bundles)
        case HashMeasurement():
            return _reduced(common, "hash", measurement, (Statistics(), Statistics()), None)
        case StatisticsMeasurement():
            assert verdict.judgement is not None
            diff = diff_info(measurement.difference, verdict.judgement)
            return _reduced(common, "stats", measurement, measurement.statistics, diff)
        case ValueMeasurement():
            return _value(common, measurement)
        case Skipped():
            return _skipped(common, selected, measurement, contexts)
    raise AssertionError(measurement)


def _common(pair: BundlePair, verdict: Verdict) -> _Common:
    return {
        "name": pair.name,
        "tags": {key: str(value) for key, value in pair.tags},
        "location": Location(step=pair.step),
        "tap": pair.tap,
        "category": verdict.category,
        "errors": [note_of(one) for one in verdict.said if one.severity == "error"] if verdict.said else [],
        "infos": [note_of(one) for one in verdict.said if one.severity != "error"] if verdict.said else [],
    }


def note_of(said: Said) -> Note:
    """A message as reports hold it."""
    return Note(kind=said.severity, category=said.name, message=said.message)


def _errored(common: _Common, failure: Failure) -> ErroredComparison:
    return ErroredComparison(
        **common,
        exception_type=failure.type,
        exception_message=failure.message,
        traceback_str=failure.traceback,
        hint=failure.hint,
        reason=failure.name,
    )


def _tensor(
    common: _Common,
    measurement: TensorMeasurement,
    verdict: Verdict,
    trace: dict[str, Any] | None,
    bundles: BundleInfo | None,
) -> TensorComparison:
    samples = measurement.samples or (None, None)
    difference, judgement, downcast = measurement.difference, verdict.judgement, None
    if measurement.downcast is not None and verdict.downcast is not None:
        downcast = diff_info(measurement.downcast, verdict.downcast)
    diff = None
    if difference is not None and judgement is not None:
        diff = diff_info(difference, judgement, token=measurement.worst_token, max_token_rel=measurement.max_token_rel,
                         token_rels=measurement.token_rels)  # fmt: skip
    return TensorComparison(
        **common,
        baseline=tensor_info(measurement.baseline, samples[0]),
        target=tensor_info(measurement.target, samples[1]),
        unified_shape=list(measurement.unified_shape),
        shape_mismatch=difference is None,
        diff=diff,
        diff_downcast=downcast,
        downcast_dtype=None if downcast is None else torch_dtype_name(measurement.downcast_dtype),
        traced_plan=trace,
        replicated_checks=_replica_checks(measurement, verdict),
        raw_bundle_info=bundles,
        tokens=_token_counts(measurement),
        level="checksum" if measurement.settled else "full",
        first_bad_token=measurement.first_bad_token if judgement is not None and not judgement.passed else None,
        analysis=None if verdict.analysis is None else tap_analysis(verdict.analysis),
    )


def _reduced(
    common: _Common,
    level: str,
    measurement: HashMeasurement | StatisticsMeasurement,
    statistics: tuple[Statistics, Statistics],
    diff: DiffInfo | None,
) -> TensorComparison:
    """A finding about what holds less than the tensors."""
    left, right = measurement.shapes
    return TensorComparison(
        **common,
        baseline=_info(left, torch_dtype_name(measurement.dtypes[0]), statistics[0]),
        target=_info(right, torch_dtype_name(measurement.dtypes[1]), statistics[1]),
        unified_shape=list(left),
        shape_mismatch=left != right,
        diff=diff,
        level=level,
    )


def _value(common: _Common, measurement: ValueMeasurement) -> ValueComparison:
    return ValueComparison(
        **common,
        baseline_value=measurement.baseline,
        target_value=measurement.target,
        baseline_type=measurement.types[0],
        target_type=measurement.types[1],
        values_equal=measurement.equal,
        difference_path=measurement.path,
    )


def _skipped(
    common: _Common, selected: Selected, measurement: Skipped, contexts: Mapping[Side, SideContext]
) -> SkippedComparison:
    side, numbers = measurement.available, measurement.numbers
    bundle = None
    if side is not None and numbers is not None:
        bundle = selected.pair.baseline if side == "baseline" else selected.pair.target
    return SkippedComparison(
        **common,
        reason=measurement.reason,
        message=measurement.message,
        available_side=side if side is not None and (numbers is not None or selected.rules.whole_table) else None,
        available_tensor_info=None if numbers is None else tensor_info(numbers),
        available_bundle_info=None
        if bundle is None or side is None
        else _bundle_side(bundle, measurement.dims, contexts[side], selected.left_out),
    )


def torch_dtype_name(name: str | None) -> str:
    """A dtype as reports write it, ``torch.bfloat16``."""
    return f"torch.{name}" if name else "unknown"


def tensor_info(numbers: ArrayNumbers, sample: str | None = None) -> TensorInfo:
    """Shape, dtype and summary of one side."""
    return _info(numbers.shape, torch_dtype_name(numbers.dtype), numbers.statistics, sample)


def _info(shape: Sequence[int], dtype: str, statistics: Statistics, sample: str | None = None) -> TensorInfo:
    stats = TensorStats(
        mean=statistics.mean,
        abs_mean=statistics.abs_mean,
        std=statistics.std,
        min=statistics.minimum,
        max=statistics.maximum,
        percentiles=statistics.percentiles,
        nan_count=statistics.nan,
        inf_count=statistics.infinite,
    )
    return TensorInfo(shape=list(shape), dtype=dtype, stats=stats, sample=sample)


def diff_info(
    difference: Difference,
    judgement: Judgement,
    *,
    token: str | None = None,
    max_token_rel: float | None = None,
    token_rels: Sequence[float] | None = None,
) -> DiffInfo:
    """Metrics and verdict of one difference."""
    return DiffInfo(
        rel_diff=difference.rel,
        max_abs_diff=difference.max_abs,
        mean_abs_diff=difference.mean_abs,
        abs_diff_percentiles=difference.percentiles,
        max_diff_coord=list(difference.coordinate),
        baseline_at_max=difference.baseline_at_max,
        target_at_max=difference.target_at_max,
        predicate=judgement.predicate,
        passed=judgement.passed,
        per_token_rel_diff=None if token_rels is None else list(token_rels),
        relative_l2=difference.relative_l2,
        scale=difference.scale,
        differing=difference.differing,
        max_diff_token=token,
        max_token_rel=max_token_rel,
    )


def _replica_checks(measurement: TensorMeasurement, verdict: Verdict) -> list[ReplicatedCheck]:
    if not measurement.replicas:
        return []
    return [
        ReplicatedCheck(
            axis=found.axis,
            group_index=found.group,
            compared_index=found.index,
            passed=passed,
            atol=REPLICA_TOLERANCE,
            diff=None
            if found.difference is None
            else diff_info(found.difference, Judgement(passed, f"max_abs <= {REPLICA_TOLERANCE}")),
            side=found.side,
        )
        for found, passed in zip(measurement.replicas, verdict.replicas, strict=True)
    ]


def _token_counts(measurement: TensorMeasurement) -> TokenCounts | None:
    tokens = measurement.tokens
    if tokens is None:
        return None
    return TokenCounts(
        matched=tokens.matched,
        only_baseline=dict(tokens.only_baseline),
        only_target=dict(tokens.only_target),
        padding_baseline=tokens.dropped_baseline,
        padding_target=tokens.dropped_target,
    )


def _bundle_info(
    selected: Selected, measurement: TensorMeasurement, contexts: Mapping[Side, SideContext]
) -> BundleInfo:
    pair, (baseline, target) = selected.pair, measurement.dims
    return BundleInfo(
        x=_bundle_side(pair.baseline, baseline, contexts["baseline"], selected.left_out),
        y=_bundle_side(pair.target, target, contexts["target"], selected.left_out),
    )


def _bundle_side(
    bundle: Bundle | None, dims: str | None, context: SideContext, left_out: Sequence[LeftOut]
) -> BundleSide | None:
    """What was recorded on one side, before anything is done to it."""
    if bundle is None:
        return None
    files = [_bundle_file(like, rank, step, context) for like, rank, step, _ in bundle.alike if like.is_tensor]
    files.extend(
        BundleFile(shape=[], dtype="unknown", rank=out.rank, step=out.step, kept=False, reason=out.reason)
        for out in left_out
        if out.side == context.side
    )
    return BundleSide(num_files=len(files), files=files, dims=dims)


def _bundle_file(like: Entry, rank: int, step: int | None, context: SideContext) -> BundleFile:
    return BundleFile(
        shape=list(like.shape),
        dtype=torch_dtype_name(like.record.dtype),
        rank=rank,
        parallel_info=context.shown_coordinates.get(rank),
        filename=like.record.filename,
        step=step,
    )
