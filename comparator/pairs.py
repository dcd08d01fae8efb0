"""Compare one pair of bundles: plan, align, measure, judge, and put the finding into a record."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from comparator.align.load import load_array
from comparator.align.pair import Aligned, align
from comparator.dims import parse_dims
from comparator.errors import ComparatorError, DimsError
from comparator.match.pairs import BundlePair, split_steps
from comparator.measure.difference import Measured, compare_arrays, row_differences, summarize
from comparator.measure.reduced import compare_reduced, reduced_level
from comparator.options import Options
from comparator.plan.pair import PairPlan, plan_pair
from comparator.plan.samples import RowByRow, sampled
from comparator.plan.tokens import counts_against
from comparator.plan.tokens.interface import Side, TokenPlan
from comparator.report.findings import (
    bundle_info,
    bundle_side,
    diff_info,
    errored,
    numpy_dtype_name,
    replica_check,
    tensor_info,
    torch_dtype_name,
)
from comparator.report.records import (
    Comparison,
    Note,
    SkippedComparison,
    TensorComparison,
    TokenCounts,
)
from comparator.session import Session, identity
from comparator.value_pairs import compare_values
from comparator.verdict.judge import Verdict, judge, predicate_for, remarks

Array = npt.NDArray[Any]
TOKEN_THRESHOLD = 1e-3
"""``rel`` from which a token counts as the first one that differs."""
_DOWNCAST: Mapping[frozenset[str], str] = {
    frozenset({"float32", "bfloat16"}): "bfloat16",
    frozenset({"float32", "float16"}): "float16",
}


def compare_pair(pair: BundlePair, session: Session) -> list[Comparison]:
    """Compare a pair; several findings when it joins steps that can only be compared one by one."""
    pairs = [pair]
    if pair.step is None and not (session.options.joins_steps and _has_token_dimension(pair, session)):
        pairs = split_steps(pair)
    return [_compare_guarded(one, session) for one in pairs]


def _has_token_dimension(pair: BundlePair, session: Session) -> bool:
    for side, bundle in (("baseline", pair.baseline), ("target", pair.target)):
        if bundle is None:
            continue
        if any(record.kind != "tensor" or record.level != "full" for record in bundle.records):
            return session.options.sglang_rules
        dims = session.dims(bundle, pair.name, side)  # type: ignore[arg-type]
        try:
            if dims is not None and not parse_dims(dims).token_dimensions:
                return session.options.sglang_rules
        except DimsError:
            return True
    return True


def _compare_guarded(pair: BundlePair, session: Session) -> Comparison:
    """Compare a pair; whatever goes wrong with it becomes an errored finding and the others go on."""
    try:
        return _compare(pair, session)
    except ComparatorError:
        raise
    except Exception as error:
        return errored(pair, error)


def _compare(pair: BundlePair, session: Session) -> Comparison:
    baseline, target = pair.baseline, pair.target
    if baseline is None or target is None:
        return _skipped(pair, session)
    records = (*baseline.records, *target.records)
    if any(record.kind != "tensor" for record in records):
        return compare_values(pair, baseline, target, session)
    dims = {
        "baseline": session.dims(baseline, pair.name, "baseline"),
        "target": session.dims(target, pair.name, "target"),
    }
    level = reduced_level(baseline, target)
    aligner = session.aligner
    if level == "sample":
        baseline, target = sampled(baseline, target)
        aligner = RowByRow()
    elif level is not None:
        return compare_reduced(level, pair, baseline, target, session.options, session.contexts)
    plan = plan_pair(
        baseline,
        target,
        dims,  # type: ignore[arg-type]
        session.contexts,
        aligner,
        joined=session.options.joins_steps,
    )
    return _compare_tensors(pair, plan, align(plan), session)


def _skipped(pair: BundlePair, session: Session) -> SkippedComparison:
    bundle = pair.target or pair.baseline
    assert bundle is not None
    available: Side = "target" if pair.baseline is None else "baseline"
    missing = "baseline" if pair.baseline is None else "target"
    tensors = [record for record in bundle.records if record.kind == "tensor" and record.level == "full"]
    dims = session.dims(bundle, pair.name, available)
    info = None
    if tensors:
        array = load_array(tensors[0])
        info = tensor_info(array.shape, torch_dtype_name(tensors[0].dtype), summarize(array))
    return SkippedComparison(
        **identity(pair),
        category="skipped",
        reason=f"{missing}_load_failed",
        message=f"only the {available} has it",
        available_side=available,
        available_tensor_info=info,
        available_bundle_info=bundle_side(bundle, dims, session.contexts[available]) if tensors else None,
    )


def _compare_tensors(pair: BundlePair, plan: PairPlan, aligned: Aligned, session: Session) -> TensorComparison:
    options = session.options
    baseline = _without_leading_ones(aligned.baseline, aligned.target.shape)
    target = aligned.target
    integers = all(array.dtype.kind in "iub" for array in (baseline, target))
    predicate = predicate_for(pair.name, options, integers=integers)
    checks = [replica_check(side, found) for side, found in aligned.replicas]
    errors = [Note(kind="error", category="axis_alignment", message=message) for message in plan.errors]
    infos = [Note(kind="info", category="tokens", message=message) for message in plan.notes]
    infos.extend(Note(kind="warning", category="neighbours", message=message) for message in plan.warnings)
    errors.extend(_share_errors(plan.tokens, options))
    common: dict[str, Any] = {
        **identity(pair),
        "unified_shape": list(baseline.shape),
        "replicated_checks": checks,
        "raw_bundle_info": bundle_info(pair, plan, session.contexts),
        "tokens": _token_counts(plan.tokens),
    }
    if baseline.shape != target.shape:
        errors.extend(_shape_hint(baseline, target, plan, options))
        return TensorComparison(
            **common,
            category="failed",
            baseline=tensor_info(aligned.baseline.shape, numpy_dtype_name(baseline), summarize(baseline)),
            target=tensor_info(target.shape, numpy_dtype_name(target), summarize(target)),
            shape_mismatch=True,
            errors=errors,
            infos=infos,
        )
    measured, verdict, rows = _measure(baseline, target, predicate, _token_axis(plan), session)
    max_token_rel = None if rows is None else float(rows.max())
    passed = verdict.passed and not errors and all(check.passed for check in checks)
    infos.extend(
        Note(kind="warning", category=category, message=message)
        for category, message in remarks(measured, verdict.passed, max_token_rel)
    )
    downcast, downcast_name = _downcast(baseline, target, predicate, options)
    token_axis = _token_axis(plan)
    worst = measured.difference.coordinate
    describe = plan.tokens.describe_row if plan.tokens is not None and token_axis is not None else None
    return TensorComparison(
        **common,
        category="passed" if passed else "failed",
        baseline=tensor_info(aligned.baseline.shape, numpy_dtype_name(baseline), measured.baseline),
        target=tensor_info(target.shape, numpy_dtype_name(target), measured.target),
        shape_mismatch=False,
        diff=diff_info(
            measured.difference,
            verdict,
            token=describe(worst[token_axis]) if describe and token_axis is not None and worst else None,
            max_token_rel=max_token_rel,
        ),
        diff_downcast=downcast,
        downcast_dtype=downcast_name,
        first_bad_token=None if verdict.passed else _first_bad_token(rows, plan.tokens),
        errors=errors,
        infos=infos,
    )


def _measure(
    baseline: Array, target: Array, predicate: str, token_axis: int | None, session: Session
) -> tuple[Measured, Verdict, npt.NDArray[np.float64] | None]:
    """Metrics, verdict, and ``rel`` per token where there is a difference and tokens can be told apart."""
    options = session.options
    measured = compare_arrays(
        baseline, target, equal_nonfinite=options.equal_nan, single_precision=options.single_precision
    )
    rows = None
    if token_axis is not None and measured.difference.max_abs != 0 and baseline.shape[token_axis]:
        rows = row_differences(baseline, target, token_axis, equal_nonfinite=options.equal_nan)
    verdict = judge(measured.difference, predicate, None if rows is None else float(rows.max()))
    if not verdict.passed and session.take_detail():
        measured = compare_arrays(
            baseline,
            target,
            percentiles=True,
            equal_nonfinite=options.equal_nan,
            single_precision=options.single_precision,
        )
    return measured, verdict, rows


def _downcast(baseline: Array, target: Array, predicate: str, options: Options) -> tuple[Any, str | None]:
    """The difference once more with both sides in the smaller dtype, where the dtypes are mixed."""
    name = _DOWNCAST.get(frozenset({baseline.dtype.name, target.dtype.name}))
    if name is None or baseline.dtype == target.dtype:
        return None, None
    dtype = baseline.dtype if baseline.dtype.name == name else target.dtype
    with np.errstate(all="ignore"):
        measured = compare_arrays(baseline.astype(dtype), target.astype(dtype), equal_nonfinite=options.equal_nan)
    return diff_info(measured.difference, judge(measured.difference, predicate)), torch_dtype_name(name)


def _without_leading_ones(array: Array, shape: tuple[int, ...]) -> Array:
    """``array`` without leading dimensions of length 1 when it then has ``shape``."""
    extra = array.ndim - len(shape)
    if extra > 0 and array.shape[extra:] == shape and all(length == 1 for length in array.shape[:extra]):
        return array.reshape(shape)
    return array


def _token_axis(plan: PairPlan) -> int | None:
    """The dimension of the aligned arrays whose index is the joined row."""
    side = plan.target
    if plan.tokens is None or not side.token_dimensions:
        return None
    if len(side.token_dimensions) > 1 and not side.merge_rows:
        return None
    if plan.axes is None or side.dimensions is None:
        return min(side.token_dimensions) if side.merge_rows else side.token_dimensions[-1]
    return plan.axes.result.index("s") if "s" in plan.axes.result else None


def _first_bad_token(rows: npt.NDArray[np.float64] | None, tokens: TokenPlan | None) -> str | None:
    if rows is None or tokens is None:
        return None
    bad = np.flatnonzero(~(rows <= TOKEN_THRESHOLD))
    if not bad.size:
        return None
    row = int(bad[0])
    return tokens.describe_row(row) or f"row {row}"


def _token_counts(tokens: TokenPlan | None) -> TokenCounts | None:
    if tokens is None:
        return None
    return TokenCounts(
        matched=tokens.matched,
        only_baseline=dict(tokens.only_baseline),
        only_target=dict(tokens.only_target),
        padding_baseline=tokens.dropped_baseline,
        padding_target=tokens.dropped_target,
    )


def _share_errors(tokens: TokenPlan | None, options: Options) -> list[Note]:
    if tokens is None:
        return []
    lost = {
        f"{reason} ({side})": count
        for side, only in (("baseline", tokens.only_baseline), ("target", tokens.only_target))
        for reason, count in only.items()
        if counts_against(reason)
    }
    missing = sum(lost.values())
    if not missing or tokens.matched >= options.min_matched * (tokens.matched + missing):
        return []
    listed = ", ".join(f"{count} {reason}" for reason, count in lost.items())
    message = (
        f"only {tokens.matched} of {tokens.matched + missing} tokens computed on both sides could be compared: "
        f"{listed}; --min-matched allows a smaller share"
    )
    return [Note(kind="error", category="tokens", message=message)]


def _shape_hint(baseline: Array, target: Array, plan: PairPlan, options: Options) -> list[Note]:
    axis = _token_axis(plan)
    if (
        options.token_aligner == "per_step"
        and axis is not None
        and axis < min(baseline.ndim, target.ndim)
        and baseline.shape[axis] != target.shape[axis]
    ):
        message = (
            f"the token dimension has {baseline.shape[axis]} rows in the baseline and {target.shape[axis]} in the "
            "target; --token-aligner smart joins the runs on token identity, whatever their steps are"
        )
        return [Note(kind="error", category="shape", message=message)]
    return []
