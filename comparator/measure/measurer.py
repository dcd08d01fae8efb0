"""Measure one pair: from a selected pair to its measurement. What goes wrong with a pair is its measurement."""

from __future__ import annotations

import functools
import traceback
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from msgspec import Struct
from msgspec.structs import replace

from comparator.align.aligned import Aligned, align
from comparator.align.load import load_array
from comparator.align.unshard import Replicas
from comparator.errors import ComparatorError, PairError
from comparator.match.bundles import BundlePair
from comparator.measure.difference import Difference, Measured, compare_arrays, measure, row_differences, same_bytes
from comparator.measure.kernel.parts import After, Before
from comparator.measure.kernel.sums import Array, RowTable
from comparator.measure.measurement import (
    ArrayNumbers,
    Failure,
    Measurement,
    ReplicaNumbers,
    Skipped,
    TensorMeasurement,
)
from comparator.measure.memory import percentiles_fit, reads_lazily
from comparator.measure.of_ranks import divided, is_of_value
from comparator.measure.quoting import quoted_first
from comparator.measure.reduced import measure_hashes, measure_statistics
from comparator.measure.statistics import PERCENTILE_LIMIT, Statistics, summarize
from comparator.measure.torch_rounding import compare_as_torch, difference_as_torch_in_bfloat16
from comparator.measure.values import measure_values
from comparator.options import Options, Side
from comparator.plan.by_rows import UnrelatedRanksError
from comparator.plan.facts import Remark
from comparator.plan.levels import reduced_level
from comparator.plan.planner import PairPlan, Planner
from comparator.plan.selection import Selected
from comparator.plan.tokens.interface import TokenPlan
from comparator.rules import Rules
from dumper.storage.places import StorageError, StorageGoneError
from tensortap.dims import DimsError

SAMPLED_FROM = 1e-3
"""``max_abs`` from which SGLang's report shows some values."""
TOKEN_THRESHOLD = 1e-3
"""``rel`` from which a token counts as the first one that differs."""

_DOWNCAST = {frozenset({"float32", "bfloat16"}): "bfloat16", frozenset({"float32", "float16"}): "float16"}

SeeAligned = Callable[[Selected, Aligned, RowTable | None], None]
"""Called with the aligned arrays of a pair of full tensors of one shape, while they are there, and with what measuring
has found of their rows and channels."""


class Measurer(Struct, frozen=True):
    """Measures pairs of two runs. It keeps no tensor and no measurement."""

    planner: Planner
    options: Options
    threads: int = 1
    """That measure a large pair together."""
    factor: float = 1
    """By which gradients of values of the target are divided (``of_ranks``)."""

    def measure(
        self, selected: Selected, *, detailed: bool = False, see: SeeAligned | None = None, together: int = 0
    ) -> Measurement:
        """Measure a pair; ``detailed`` adds percentiles. ``together``: bytes of all pairs whose arrays ``see`` keeps.

        ComparatorError is for what concerns more than the pair.
        """
        try:
            return self._measure(selected, detailed, see, together)
        except UnrelatedRanksError as error:
            return self._unrelated(selected, error)
        except (ComparatorError, MemoryError, StorageGoneError):
            raise
        except Exception as error:
            return failure(error)

    def align(self, selected: Selected, see: SeeAligned, together: int = 0) -> None:
        """Call ``see`` with the aligned arrays of a pair of full tensors of one shape; with no others. ``together`` as
        in ``measure``."""
        pair = selected.pair
        if selected.error is not None or not selected.kept or pair.baseline is None or pair.target is None:
            return
        if not (pair.baseline.all_tensors and pair.target.all_tensors):
            return
        try:
            if reduced_level(pair) is None:
                plan = self.planner.plan(pair, selected.rules)
                lazily = reads_lazily(plan, pair, self.options, selected.rules, together)
                lazily = lazily and not self._divides(pair)
                aligned = align(plan, pair, self.planner.contexts, selected.rules, lazily=lazily)
                aligned = self._divided(pair, aligned)
                if aligned.same_shape:
                    see(selected, aligned, None)
        except (PairError, DimsError, ValueError):
            return  # its own measurement says why

    def _measure(self, selected: Selected, detailed: bool, see: SeeAligned | None, together: int) -> Measurement:
        pair, rules = selected.pair, selected.rules
        if selected.error is not None:
            raise selected.error
        if not selected.kept:
            return self._skipped(selected)
        assert pair.baseline is not None
        assert pair.target is not None
        whole = pair.baseline.all_whole and pair.target.all_whole
        if not whole and not (pair.baseline.all_tensors and pair.target.all_tensors):
            return measure_values(pair, rules, equal_nan=self.options.equal_nan)
        level = None if whole else reduced_level(pair)
        if level == "hash":
            return measure_hashes(pair, self.planner.contexts)
        if level == "stats":
            return measure_statistics(pair, self.planner.contexts, self.options)
        plan = self.planner.plan(pair, rules, sampled=level == "sample")
        replicas: list[ReplicaNumbers] = []

        def visit(side: Side, found: Replicas) -> None:
            replicas.extend(measure_replicas(side, found, rules))

        lazily = reads_lazily(plan, pair, self.options, rules, together)
        as_it_is = not self._divides(pair)
        lazily = lazily and as_it_is
        aligned = align(plan, pair, self.planner.contexts, rules, visit, lazily=lazily, may_wait=as_it_is)
        aligned = self._divided(pair, aligned)
        detailed = detailed and percentiles_fit(aligned.baseline.size, self.options)
        seen = see is not None and aligned.same_shape and level is None
        unchecked = aligned.unchecked
        found, rows = measure_aligned(
            aligned,
            tuple(replicas),
            rules,
            self.options,
            detailed=detailed,
            by_channel=seen and not detailed,
            before=() if unchecked is None else unchecked.takes,
            after=None if unchecked is None or detailed else unchecked.let_go,
            digests=unchecked is not None and not unchecked.is_one,
            threads=self.threads,
        )
        if unchecked is not None:
            unchecked.finish(same=rows is not None and rows.alike, digests=() if rows is None else rows.digests)
        if see is not None and seen:
            see(selected, aligned, rows)
        return found

    def _divides(self, pair: BundlePair) -> bool:
        return self.factor != 1 and is_of_value(pair)

    def _divided(self, pair: BundlePair, aligned: Aligned) -> Aligned:
        if not self._divides(pair):
            return aligned
        return replace(aligned, target=divided(aligned.target, self.factor))

    def _skipped(self, selected: Selected) -> Skipped:
        pair = selected.pair
        if selected.reason == "request_ids":
            return Skipped("request-ids", selected.reason, selected.message)
        side: Side = "target" if pair.baseline is None else "baseline"
        bundle = pair.target or pair.baseline
        dims = None if bundle is None else bundle.dims(pair.name, side, self.options)
        numbers = _first_tensor(pair, side)
        return Skipped(f"only-in-{side}", selected.reason, selected.message, side, numbers, dims)

    def _unrelated(self, selected: Selected, error: UnrelatedRanksError) -> Skipped:
        available: Side = "target" if error.side == "baseline" else "baseline"
        bundle = selected.pair.baseline if available == "baseline" else selected.pair.target
        dims = None if bundle is None else bundle.dims(selected.pair.name, available, self.options)
        numbers = _first_tensor(selected.pair, available)
        return Skipped(error.name, f"{error.side}_load_failed", str(error), available, numbers, dims, error.remarks)


def measure_replicas(side: Side, found: Replicas, rules: Rules) -> Iterator[ReplicaNumbers]:
    """Measure every replica of a group against its first one."""
    first, *others = found.members
    for index, other in enumerate(others, start=1):
        if other.shape != first.shape:
            yield ReplicaNumbers(side, found.axis, found.group, index, None, False)
            continue
        as_torch = rules.rounding == "torch"
        difference = compare_as_torch(first, other).difference if as_torch else measure(first, other)
        identical = rules.identical_replicas and difference.max_abs != 0 and same_bytes(first, other)
        yield ReplicaNumbers(side, found.axis, found.group, index, difference, identical)


def failure(error: Exception) -> Failure:
    """A pair that cannot be compared: with a hint where one is known, and else (a damaged payload, a fault of ours)
    with the traceback of the exception that is being handled."""
    if isinstance(error, StorageError):
        error = PairError(str(error), name="unreadable-object")
    hint = error.hint if isinstance(error, PairError | DimsError) else ""
    name = error.name if isinstance(error, PairError | DimsError) else "unexpected-error"
    trace = hint or ("" if isinstance(error, PairError) else traceback.format_exc())
    return Failure(name, type(error).__name__, str(error), hint, trace)


def measure_aligned(
    aligned: Aligned,
    replicas: tuple[ReplicaNumbers, ...],
    rules: Rules,
    options: Options,
    *,
    detailed: bool,
    by_channel: bool = False,
    before: Sequence[Before] = (),
    after: After | None = None,
    digests: bool = False,
    threads: int = 1,
) -> tuple[TensorMeasurement, RowTable | None]:
    """The numbers of a pair of aligned arrays; ``by_channel``: with what is found of rows and channels, where rows come
    first and all is finite; ``before``, ``after``, ``digests`` and ``threads`` as in ``measure_sums``."""
    baseline, target, plan = aligned.baseline, aligned.target, aligned.plan
    if not aligned.same_shape:
        few = detailed and max(baseline.size, target.size) < PERCENTILE_LIMIT
        found = TensorMeasurement(
            baseline=_numbers(aligned.baseline_shape, baseline, summarize(baseline, percentiles=few)),
            target=_numbers(target.shape, target, summarize(target, percentiles=few)),
            unified_shape=baseline.shape,
            dims=plan.dims,
            difference=None,
            replicas=replicas,
            tokens=plan.token_numbers,
            remarks=(*plan.remarks, *_shape_remark(aligned, options)),
        )
        return found, None
    axis = plan.token_axis
    by_row = rules.token_metrics and axis is not None and bool(baseline.shape[axis])
    by_channel = by_channel and aligned.has_rows_first
    measured = _compare(
        baseline,
        target,
        rules,
        options,
        percentiles=detailed,
        by_row=by_channel or (by_row and axis == 0),
        by_channel=by_channel,
        before=before,
        after=after,
        digests=digests,
        threads=threads,
    )
    difference, rows = measured.difference, None
    if by_row and difference.max_abs != 0 and axis == 0 and measured.rows is not None:
        rows = measured.rows.rel()
    elif by_row and difference.max_abs != 0 and axis is not None:
        rows = row_differences(baseline, target, axis, equal_nonfinite=options.equal_nan)
    downcast, downcast_dtype = None, None
    if baseline.dtype != target.dtype:
        downcast, downcast_dtype = _downcast(baseline, target, rules, options, percentiles=detailed)
    largest = None if rows is None else float(np.maximum.reduce(rows))
    has_bad = largest is not None and not largest <= TOKEN_THRESHOLD
    left, right = measured.baseline, measured.target
    finite = not (left.nan or left.infinite or right.nan or right.infinite)
    found = TensorMeasurement(
        baseline=_numbers(aligned.baseline_shape, baseline, measured.baseline),
        target=_numbers(target.shape, target, measured.target),
        unified_shape=baseline.shape,
        dims=plan.dims,
        difference=difference,
        integers=baseline.dtype.kind in "iub" and target.dtype.kind in "iub",
        same_bits=same_bytes(baseline, target) if options.bitwise else None,
        replicas=replicas,
        downcast=downcast,
        downcast_dtype=downcast_dtype,
        tokens=plan.token_numbers,
        max_token_rel=largest,
        worst_token=worst_token(plan, difference),
        first_bad_token=first_bad_token(rows, plan.tokens) if rows is not None and has_bad else None,
        token_rels=_token_rels(aligned, options) if options.per_token else None,
        samples=samples_of(baseline, target, difference, options, rules),
        remarks=plan.remarks,
    )
    return found, measured.rows if by_channel and finite else None


def _compare(
    baseline: Array,
    target: Array,
    rules: Rules,
    options: Options,
    *,
    percentiles: bool,
    by_row: bool,
    by_channel: bool,
    before: Sequence[Before],
    after: After | None,
    digests: bool,
    threads: int,
) -> Measured:
    if rules.rounding == "torch":
        return compare_as_torch(baseline, target, percentiles=percentiles)
    return compare_arrays(
        baseline,
        target,
        percentiles=percentiles,
        equal_nonfinite=options.equal_nan,
        single_precision=rules.single_precision,
        by_row=by_row and not rules.single_precision,
        by_channel=by_channel,
        before=before,
        after=after,
        digests=digests,
        threads=threads,
    )


def _numbers(shape: tuple[int, ...], array: Array, statistics: Statistics) -> ArrayNumbers:
    return ArrayNumbers(shape, _name_of(array.dtype), statistics)


@functools.cache
def _name_of(dtype: np.dtype[Any]) -> str:
    return dtype.name


def _first_tensor(pair: BundlePair, side: Side) -> ArrayNumbers | None:
    """The first tensor of the side that has one, as it was recorded."""
    bundle = pair.baseline if side == "baseline" else pair.target
    full = [entry for entry in bundle.entries if entry.is_tensor and entry.record.level == "full"] if bundle else []
    if not full:
        return None
    array = load_array(full[0])
    return ArrayNumbers(array.shape, full[0].record.dtype or array.dtype.name, summarize(array))


def _token_rels(aligned: Aligned, options: Options) -> tuple[float, ...] | None:
    axis = _sequence_axis(aligned)
    if axis is None or not aligned.baseline.size:
        return None
    rows = row_differences(aligned.baseline, aligned.target, axis, equal_nonfinite=options.equal_nan)
    return tuple(rows.tolist())


def _sequence_axis(aligned: Aligned) -> int | None:
    """The dimension of tokens by its name, also where rows are joined as they lie."""
    if aligned.token_axis is not None:
        return aligned.token_axis
    axes, dims = aligned.plan.axes, aligned.plan.target.dims
    if axes is not None:
        return axes.result.index("s") if "s" in axes.result else None
    return dims.token_dimensions[-1] if dims is not None and dims.token_dimensions else None


def samples_of(
    baseline: Array, target: Array, difference: Difference, options: Options, rules: Rules
) -> tuple[str, str] | None:
    """The first values of both sides where they differ, as SGLang's report has them: all of a small tensor, else up to
    5 along long dimensions. None where nobody asks for them."""
    if not options.samples or not difference.max_abs > SAMPLED_FROM or rules.grouping != "file_names":
        return None
    few = tuple(min(length, 5) if length > 50 and baseline.size >= 200 else length for length in baseline.shape)
    return quoted_first(baseline, few), quoted_first(target, few)


def _downcast(
    baseline: Array, target: Array, rules: Rules, options: Options, *, percentiles: bool
) -> tuple[Difference | None, str | None]:
    name = _DOWNCAST.get(frozenset({baseline.dtype.name, target.dtype.name}))
    if name is None:
        return None, None
    with np.errstate(all="ignore"):
        if rules.rounding == "torch":
            if name != "bfloat16":
                return None, None
            return difference_as_torch_in_bfloat16(baseline, target, percentiles=percentiles), name
        dtype = baseline.dtype if baseline.dtype.name == name else target.dtype
        halves = baseline.astype(dtype), target.astype(dtype)
        measured = compare_arrays(*halves, percentiles=percentiles, equal_nonfinite=options.equal_nan)
    return measured.difference, name


def worst_token(plan: PairPlan, difference: Difference) -> str | None:
    """The token with the largest difference; None where tokens cannot be told apart."""
    if plan.tokens is None or plan.token_axis is None or not difference.coordinate:
        return None
    return plan.tokens.describe_row(difference.coordinate[plan.token_axis])


def first_bad_token(rows: npt.NDArray[np.float64], tokens: TokenPlan | None) -> str | None:
    """The first token whose own ``rel``, one of ``rows``, is beyond the threshold, or NaN."""
    if tokens is None:
        return None
    bad = np.flatnonzero(~(rows <= TOKEN_THRESHOLD))
    if not bad.size:
        return None
    row = int(bad[0])
    return tokens.describe_row(row) or f"row {row}"


def _shape_remark(aligned: Aligned, options: Options) -> tuple[Remark, ...]:
    axis, baseline, target = aligned.token_axis, aligned.baseline, aligned.target
    if (
        options.token_aligner != "per_step"
        or axis is None
        or axis >= min(baseline.ndim, target.ndim)
        or baseline.shape[axis] == target.shape[axis]
    ):
        return ()
    message = (
        f"the token dimension has {baseline.shape[axis]} rows in the baseline and {target.shape[axis]} in the "
        "target; --token-aligner smart joins the runs on token identity, whatever their steps are"
    )
    return (Remark("token-counts-differ", message),)
