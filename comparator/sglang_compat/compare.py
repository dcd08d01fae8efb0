"""Compare one pair of bundles of SGLang's dumps by the rules of its own comparator."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from comparator.errors import ComparatorError, PairError
from comparator.match.pairs import Bundle, BundlePair
from comparator.measure.difference import PERCENTILE_LIMIT, Measured, summarize
from comparator.measure.values import first_difference
from comparator.pairs import compare_pair
from comparator.plan.tokens.interface import Side
from comparator.report.findings import (
    bundle_side,
    diff_info,
    errored,
    numpy_dtype_name,
    replica_check,
    tensor_info,
    torch_dtype_name,
)
from comparator.report.records import (
    BundleInfo,
    Comparison,
    DiffInfo,
    Note,
    SkippedComparison,
    TensorComparison,
    ValueComparison,
)
from comparator.session import Session, identity
from comparator.sglang_compat.joining import SEVERAL_STEPS_HINT, align_dimensions, join_steps, without_leading_ones
from comparator.sglang_compat.measures import compare_in_single, difference_in_half
from comparator.sglang_compat.sides import (
    SeveralPartsError,
    SideFiles,
    SideTensors,
    sequence_lengths_by_step,
    side_files,
    side_tensors,
    without_empty_ranks,
)
from comparator.verdict.judge import judge, predicate_for, remarks
from dumper.readers.sglang.dump import SGLangDump

Array = npt.NDArray[Any]

REQUEST_IDS = "rids"
"""The record of request ids, which differ between any two runs."""
_HALF = "bfloat16"


@dataclass(frozen=True)
class _Sides:
    baseline: SideFiles
    target: SideFiles

    @property
    def errors(self) -> list[Note]:
        messages = (*self.baseline.unreadable, *self.target.unreadable)
        return [Note(kind="error", category="load_failed", message=message) for message in messages]


def compare_sglang_pair(pair: BundlePair, session: Session) -> list[Comparison]:
    """Compare a pair. What SGLang's rules have no answer for is compared by ours."""
    if pair.name == REQUEST_IDS:
        return [_skipped(pair, None, "request_ids", "request ids differ between any two runs and are not compared")]
    if session.options.token_aligner == "smart" or _rows_are_shared(pair, session):
        return _compare_by_our_rules(pair, session)
    try:
        return [_compare_guarded(pair, session)]
    except SeveralPartsError:
        if not _leaves_steps_apart(pair, session):
            return _compare_by_our_rules(pair, session)
        message = "several steps and several data-parallel ranks make one tensor here"
        return [errored(pair, PairError(message, hint=SEVERAL_STEPS_HINT))]


def _leaves_steps_apart(pair: BundlePair, session: Session) -> bool:
    """Whether several steps were grouped together, and no token aligner joins them."""
    bundles = [bundle for bundle in (pair.baseline, pair.target) if bundle is not None]
    return session.options.token_aligner == "per_step" and any(len(bundle.steps) > 1 for bundle in bundles)


def _compare_by_our_rules(pair: BundlePair, session: Session) -> list[Comparison]:
    """Compare what can be read; a file that cannot makes the comparison fail."""
    sides = _sides(pair, session)
    if not sides.baseline.records or not sides.target.records:
        return [_one_side(pair, sides, session)]
    if not sides.errors:
        return compare_pair(pair, session)
    assert pair.baseline is not None
    assert pair.target is not None
    readable = replace(
        pair,
        baseline=_readable(pair.baseline),
        target=_readable(pair.target),
    )
    return [
        finding
        if finding.category == "errored"
        else finding.model_copy(update={"category": "failed", "errors": [*finding.errors, *sides.errors]})
        for finding in compare_pair(readable, session)
    ]


def _readable(bundle: Bundle) -> Bundle:
    def kept(records: Sequence[Any]) -> tuple[Any, ...]:
        return tuple(record for record in records if record.error is None)

    return replace(bundle, records=kept(bundle.records), history=kept(bundle.history))


def _compare_guarded(pair: BundlePair, session: Session) -> Comparison:
    """Compare a pair; whatever goes wrong with it concerns this pair alone."""
    try:
        return _compare(pair, session)
    except (ComparatorError, SeveralPartsError):
        raise
    except Exception as error:
        return errored(pair, error)


def _rows_are_shared(pair: BundlePair, session: Session) -> bool:
    """Whether data-parallel attention ranks share the rows of a pass, so that some of them are no tokens.

    SGLang's comparator takes such rows for tokens; the token layouts tell ours which they are.
    """
    if pair.baseline is None or pair.target is None or "rank" not in session.options.grouping_skip_keys:
        return False
    if _leaves_steps_apart(pair, session):
        return False
    bundles: tuple[tuple[Side, Bundle], ...] = (("baseline", pair.baseline), ("target", pair.target))
    for side, bundle in bundles:
        run = session.contexts[side].run
        if session.dims(bundle, pair.name, side) is None:
            return False
        if any(record.kind != "tensor" for record in bundle.records):
            return False
        for record in bundle.records:
            layout = run.layout(record.step, record.rank) if record.step is not None else None
            if layout is not None and layout.data_parallel is not None and layout.data_parallel.size > 1:
                return True
    return False


def _compare(pair: BundlePair, session: Session) -> Comparison:
    options = session.options
    sides = _sides(pair, session)
    if not sides.baseline.records or not sides.target.records:
        return _one_side(pair, sides, session)
    sides = _Sides(without_empty_ranks(sides.baseline), without_empty_ranks(sides.target))
    if not sides.baseline.all_tensors or not sides.target.all_tensors:
        return _compare_values(pair, sides)
    lengths = _sequence_lengths(session)
    left = side_tensors(pair.name, sides.baseline, options, lengths["baseline"])
    right = side_tensors(pair.name, sides.target, options, lengths["target"])
    if not left.by_step or not right.by_step:
        return _unrelated_ranks(pair, sides, session, left, right)
    return _compare_tensors(pair, sides, left, right, session)


def _run(session: Session, side: Side) -> SGLangDump:
    run = session.contexts[side].run
    assert isinstance(run, SGLangDump)
    return run


def _sides(pair: BundlePair, session: Session) -> _Sides:
    return _Sides(
        side_files("baseline", pair.name, pair.baseline, _run(session, "baseline"), session.options),
        side_files("target", pair.name, pair.target, _run(session, "target"), session.options),
    )


def _sequence_lengths(session: Session) -> Mapping[Side, Mapping[int, Sequence[int]]]:
    if session.options.token_aligner == "per_step":
        return {"baseline": {}, "target": {}}
    found: dict[Side, Mapping[int, Sequence[int]]] = {}
    both: tuple[Side, ...] = ("baseline", "target")
    for side in both:
        kept = session.contexts[side].classified
        if "sequence_lengths" not in kept:
            kept["sequence_lengths"] = sequence_lengths_by_step(  # type: ignore[assignment]
                _run(session, side), session.options, filtered=side == "target"
            )
        found[side] = kept["sequence_lengths"]  # type: ignore[assignment]
    return found


def _compare_tensors(
    pair: BundlePair, sides: _Sides, left: SideTensors, right: SideTensors, session: Session
) -> Comparison:
    options = session.options
    baseline, target = join_steps(left, right, sides.baseline, concatenate=options.token_aligner == "concat_steps")
    errors = sides.errors
    if sides.baseline.dims is not None and sides.target.dims is not None:
        baseline, target, note = align_dimensions(baseline, target, sides.baseline.dims, sides.target.dims)
        errors.extend([] if note is None else [note])
    original = baseline
    baseline = without_leading_ones(baseline, target.shape)
    predicate = predicate_for(pair.name, options, integers=False)
    replicas: list[tuple[Side, Any]] = [("baseline", found) for found in left.replicas]
    replicas.extend(("target", found) for found in right.replicas)
    checks = [replica_check(side, found) for side, found in replicas]
    common: dict[str, Any] = {
        **identity(pair),
        "unified_shape": list(baseline.shape),
        "shape_mismatch": baseline.shape != target.shape,
        "replicated_checks": checks,
        "raw_bundle_info": BundleInfo(
            x=_side_info(sides.baseline, session), y=_side_info(sides.target, session)
        ),
        "errors": errors,
    }  # fmt: skip
    if baseline.shape != target.shape:
        detailed = session.take_detail()
        return TensorComparison(
            **common,
            category="failed",
            baseline=tensor_info(
                original.shape, numpy_dtype_name(original), summarize(original, percentiles=_few(original, detailed))
            ),
            target=tensor_info(
                target.shape, numpy_dtype_name(target), summarize(target, percentiles=_few(target, detailed))
            ),
        )
    measured = compare_in_single(baseline, target)
    verdict = judge(measured.difference, predicate)
    if not verdict.passed and session.take_detail():
        measured = compare_in_single(baseline, target, percentiles=True)
    passed = verdict.passed and not errors and all(check.passed for check in checks)
    downcast = _downcast(baseline, target, predicate)
    return TensorComparison(
        **common,
        category="passed" if passed else "failed",
        baseline=tensor_info(original.shape, numpy_dtype_name(original), measured.baseline),
        target=tensor_info(target.shape, numpy_dtype_name(target), measured.target),
        diff=diff_info(measured.difference, verdict),
        diff_downcast=downcast,
        downcast_dtype=None if downcast is None else torch_dtype_name(_HALF),
        infos=_remarks(measured, passed=verdict.passed),
    )


def _few(array: Array, detailed: bool) -> bool:
    return detailed and array.size < PERCENTILE_LIMIT


def _remarks(measured: Measured, *, passed: bool) -> list[Note]:
    return [Note(kind="warning", category=category, message=text) for category, text in remarks(measured, passed)]


def _downcast(baseline: Array, target: Array, predicate: str) -> DiffInfo | None:
    """The difference once more with both sides in bfloat16, where one of them is and the other is float32."""
    if {baseline.dtype.name, target.dtype.name} != {"float32", _HALF}:
        return None
    with np.errstate(all="ignore"):
        found = difference_in_half(baseline, target)
    return diff_info(found, judge(found, predicate))


def _compare_values(pair: BundlePair, sides: _Sides) -> ValueComparison:
    left, right = (files.records[0].raw_value() for files in (sides.baseline, sides.target))
    try:
        equal = bool(left == right)
    except Exception:  # tensors of several elements are neither equal nor not; other types may not compare at all
        equal = False
    found = None if equal else first_difference(left, right)
    note = [] if found is None else [Note(kind="info", category="value", message=f"{found[0] or 'value'}: {found[1]}")]
    return ValueComparison(
        **identity(pair),
        category="passed" if equal and not sides.errors else "failed",
        baseline_value=repr(left),
        target_value=repr(right),
        baseline_type=type(left).__name__,
        target_type=type(right).__name__,
        values_equal=equal,
        difference_path=None if found is None else found[0],
        errors=sides.errors,
        infos=note,
    )


def _one_side(pair: BundlePair, sides: _Sides, session: Session) -> SkippedComparison:
    missing: Side = "target" if sides.baseline.records else "baseline"
    files = sides.baseline if sides.baseline.records else sides.target
    message = "no file of it can be read" if sides.errors else f"only the {files.side} has it"
    return _skipped(pair, files, f"{missing}_load_failed", message, session=session, errors=sides.errors)


def _unrelated_ranks(
    pair: BundlePair, sides: _Sides, session: Session, left: SideTensors, right: SideTensors
) -> SkippedComparison:
    failed, files = ("baseline", sides.target) if not left.by_step else ("target", sides.baseline)
    ranks = ", ".join(map(str, left.unrelated or right.unrelated))
    message = f"SGLang's own record of the batch on ranks {ranks}, without dims; token layouts are made from it"
    return _skipped(pair, files, f"{failed}_load_failed", message, session=session, errors=sides.errors)


def _skipped(
    pair: BundlePair,
    files: SideFiles | None,
    reason: str,
    message: str,
    *,
    session: Session | None = None,
    errors: Sequence[Note] = (),
) -> SkippedComparison:
    tensors = [record for record in files.records if record.kind == "tensor"] if files else []
    described: dict[str, Any] = {}
    if tensors and files and session:
        array = tensors[0].array()
        described = {
            "available_side": files.side,
            "available_tensor_info": tensor_info(array.shape, numpy_dtype_name(array), summarize(array)),
            "available_bundle_info": _side_info(replace(files, records=tuple(tensors)), session),
        }
    return SkippedComparison(
        **identity(pair),
        category="failed" if errors else "skipped",
        reason=reason,
        message=message,
        errors=list(errors),
        **described,
    )


def _side_info(files: SideFiles, session: Session) -> Any:
    return bundle_side(Bundle(files.records, 0), files.dims_text, session.contexts[files.side])
