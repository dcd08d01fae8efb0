"""Turn what was measured into the records of a report."""

from __future__ import annotations

import traceback
from typing import Any

import numpy.typing as npt

from comparator.align.unshard import REPLICA_TOLERANCE, ReplicaDifference
from comparator.errors import DimsError, PairError
from comparator.match.pairs import Bundle, BundlePair
from comparator.match.runs import RecordView
from comparator.measure.difference import Difference, Statistics
from comparator.plan.pair import PairPlan, SideContext
from comparator.plan.tokens.interface import Side
from comparator.report.records import (
    BundleFile,
    BundleInfo,
    BundleSide,
    DiffInfo,
    ErroredComparison,
    ReplicatedCheck,
    TensorInfo,
    TensorStats,
)
from comparator.session import identity
from comparator.verdict.judge import Verdict


def errored(pair: BundlePair, error: Exception) -> ErroredComparison:
    """A pair that cannot be compared, for a reason that concerns it alone: with a hint where one is known, and else (a
    damaged payload, a fault of ours) with the traceback of the exception that is being handled."""
    hint = error.hint if isinstance(error, PairError | DimsError) else ""
    return ErroredComparison(
        **identity(pair),
        category="errored",
        exception_type=type(error).__name__,
        exception_message=str(error),
        traceback_str=hint or ("" if isinstance(error, PairError) else traceback.format_exc()),
        hint=hint,
    )


def torch_dtype_name(name: str | None) -> str:
    """A dtype as reports write it, ``torch.bfloat16``."""
    return f"torch.{name}" if name else "unknown"


def numpy_dtype_name(array: npt.NDArray[Any]) -> str:
    """The dtype of an array as reports write it."""
    return torch_dtype_name(array.dtype.name)


def tensor_info(shape: tuple[int, ...], dtype: str, statistics: Statistics) -> TensorInfo:
    """Shape, dtype and summary of one side."""
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
    return TensorInfo(shape=list(shape), dtype=dtype, stats=stats)


def diff_info(
    difference: Difference, verdict: Verdict, *, token: str | None = None, max_token_rel: float | None = None
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
        predicate=verdict.predicate,
        passed=verdict.passed,
        relative_l2=difference.relative_l2,
        scale=difference.scale,
        differing=difference.differing,
        max_diff_token=token,
        max_token_rel=max_token_rel,
    )


def replica_check(side: Side, found: ReplicaDifference) -> ReplicatedCheck:
    """How one replica agreed with the one that was used."""
    verdict = Verdict(found.passed, f"max_abs <= {REPLICA_TOLERANCE}")
    return ReplicatedCheck(
        axis=found.axis,
        group_index=found.group,
        compared_index=found.index,
        passed=found.passed,
        atol=REPLICA_TOLERANCE,
        diff=None if found.difference is None else diff_info(found.difference, verdict),
        side=side,
    )


def bundle_info(pair: BundlePair, plan: PairPlan, contexts: Any) -> BundleInfo:
    """What was recorded on both sides, before anything is done to it."""
    assert pair.baseline is not None
    assert pair.target is not None
    left, right = plan.baseline, plan.target
    return BundleInfo(
        x=bundle_side(pair.baseline, left.dims.text if left.dims else None, contexts["baseline"]),
        y=bundle_side(pair.target, right.dims.text if right.dims else None, contexts["target"]),
    )


def bundle_side(bundle: Bundle, dims: str | None, context: SideContext) -> BundleSide:
    """The records of one side."""
    files = [_bundle_file(record, context) for record in bundle.records]
    return BundleSide(num_files=len(files), files=files, dims=dims)


def _bundle_file(record: RecordView, context: SideContext) -> BundleFile:
    coordinates = context.world.get(record.rank, {})
    return BundleFile(
        shape=list(record.shape or ()),
        dtype=torch_dtype_name(record.dtype),
        rank=record.rank,
        parallel_info={axis: f"{at}/{size}" for axis, (at, size) in coordinates.items()} or None,
        filename=getattr(record, "filename", None),
        step=record.step,
    )
