"""Look at one run alone, through the same stages as a comparison: the run is lined up with itself."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from comparator.align.load import load_array
from comparator.check.recomputed import SumFit, explain_partial, fit_norm, fit_sum
from comparator.diagnosis import TapKey, TapNode, floor_for
from comparator.match.bundles import Bundle, BundlePair
from comparator.measure.family import FamilyRows
from comparator.measure.kernel.sums import Array, to_working
from comparator.measure.measurement import Failure, TensorMeasurement
from comparator.options import Options
from comparator.prepared import Prepared, prepare
from comparator.verdict.judge import Said, replica_agrees, say
from comparator.verdict.profiles import is_analysed
from comparator.verdict.taps import Taps, collect_taps
from dumper.reading.protocol import Run
from tensortap.distinct import distinct

IDENTITY_FLOORS = 8.0
"""A sum or a norm holds when what it leaves of a value is within so many floors of its operation."""
NEARLY_TIED = 0.1
"""Two weights whose relative difference is below this were meant to be the same."""
_SINGLE = np.dtype(np.float32)


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong with a run by itself."""

    said: Said
    tap: str = ""
    """The tensor, for people: ``attn_output layer_id=3``."""
    step: int | None = None


def check_run(run: Run, options: Options) -> list[Finding]:
    """What one run shows to be wrong, in the order of execution within each kind.

    Replicas that disagree, values that are not finite, sums that are not the sum of their operands (a summand that
    nobody added up, or that was added twice), norms that are none, and weights that are nearly tied. Raises
    ComparatorError for options that cannot be read.
    """
    prepared = prepare(run, run, options)
    taps = collect_taps(prepared.pairs, run, run)
    prepared.expect(prepared.units)
    return [
        *_replicas_and_finiteness(prepared),
        *_sums(prepared, taps),
        *_tied_weights(prepared, taps),
    ]


def _replicas_and_finiteness(prepared: Prepared) -> Iterator[Finding]:
    nonfinite_found = False
    for number, pair in enumerate(prepared.pairs):
        for selected in prepared.select(number):
            measurement = prepared.measurer.measure(selected)
            if isinstance(measurement, Failure):
                yield _finding("not-put-together", measurement.message, selected.pair, prepared.options)
            if not isinstance(measurement, TensorMeasurement):
                continue
            apart = [one for one in measurement.replicas if one.side == "baseline" and not replica_agrees(one)]
            if apart:
                first = apart[0]
                gap = "have other shapes" if first.difference is None else f"differ by {first.difference.max_abs:.3g}"
                message = f"{len(apart)} replicas over {first.axis} are not the same: the first {gap}"
                yield _finding("replicas-disagree", message, selected.pair, prepared.options)
            statistics = measurement.baseline.statistics
            if not nonfinite_found and (statistics.nan or statistics.infinite):
                nonfinite_found = True
                where = _nonfinite_ranks(pair)
                message = (
                    f"the first {statistics.nan} NaN and {statistics.infinite} infinite elements of the run{where}"
                )
                yield _finding("non-finite", message, selected.pair, prepared.options)


def _nonfinite_ranks(pair: BundlePair) -> str:
    """The ranks that hold a value that is not finite, where not all of them do."""
    bundle = pair.baseline
    entries = [] if bundle is None else [entry for entry in bundle.entries if entry.is_tensor]
    bad = [entry.rank for entry in entries if not np.isfinite(to_working(load_array(entry), _SINGLE)).all()]
    ranks = sorted({entry.rank for entry in entries})
    if not bad or len(ranks) < 2:
        return ""
    if sorted(set(bad)) == ranks:
        return ", on all ranks at once"
    return f", on rank {', '.join(map(str, sorted(set(bad))))} alone"


@dataclass(frozen=True)
class _CheckedSum:
    node: TapNode
    fit: SumFit
    limit: float

    @property
    def holds(self) -> bool:
        return self.fit.residual <= self.limit


def _sums(prepared: Prepared, taps: Taps) -> Iterator[Finding]:
    """Sums that are off. Where no sum of the model holds and nothing explains it, they are none by design."""
    checked = [found for node in taps.graph.nodes if (found := _check_sum(prepared, taps, node)) is not None]
    some_hold = any(one.holds for one in checked)
    for one in checked:
        if one.holds:
            continue
        explained = _explain(prepared, taps, one)
        if explained is not None or some_hold:
            message = explained[1] if explained else f"{one.fit.residual:.1%} of it is not the sum of its operands"
            name = explained[0] if explained else "sum-is-off"
            yield _about(name, message, one.node.key, prepared, taps)
    if some_hold or not checked:
        yield from _norms(prepared, taps)


def _check_sum(prepared: Prepared, taps: Taps, node: TapNode) -> _CheckedSum | None:
    if node.operation != "sum" or len(node.operands) < 2:
        return None
    value, operands = _rows(prepared, taps, node.key), _operands(prepared, taps, node)
    if value is None or operands is None:
        return None
    fit = fit_sum(_single(value), [_single(one) for one in operands])
    dtype = value.baseline.dtype.name
    floor = floor_for("sum", dtype, dtype, ranks=taps.ranks).floor
    return None if fit is None else _CheckedSum(node, fit, IDENTITY_FLOORS * floor)


def _explain(prepared: Prepared, taps: Taps, checked: _CheckedSum) -> tuple[str, str] | None:
    """A name of a message and the message where a simple cause explains what is wrong with a sum."""
    value = _rows(prepared, taps, checked.node.key)
    assert value is not None
    for at, key in enumerate(checked.node.operands):
        partials = _partials(prepared, taps, key, len(value))
        others = [_rows(prepared, taps, other) for n, other in enumerate(checked.node.operands) if n != at]
        known = [_single(one) for one in others if one is not None]
        found = explain_partial(_single(value), known, partials) if len(known) == len(others) else None
        if found is not None:
            return "sum-not-taken", (
                f"it holds the partial sum of rank {found[0]} of {key.label} alone; nobody added the other ranks'"
            )
    fit = checked.fit
    if fit.factors_residual > checked.limit:
        return None
    listed = ", ".join(
        f"{factor:.3g} times {key.label}" for factor, key in zip(fit.factors, checked.node.operands, strict=True)
    )
    return "sum-is-off", f"it is {listed}, where it should be the sum of both"


def _norms(prepared: Prepared, taps: Taps) -> Iterator[Finding]:
    for node in taps.graph.nodes:
        if node.operation != "norm" or not node.operands:
            continue
        output, operands = _rows(prepared, taps, node.key), _operands(prepared, taps, node)
        if output is None or operands is None:
            continue
        inputs = np.sum([_single(one) for one in operands], axis=0)
        value = _single(output)
        # In a training the weights are other ones behind each update.
        steps, place = np.unique(output.step, return_inverse=True)
        updates = np.array([prepared.baseline.updates(step) for step in steps.tolist()], np.int64)[place]
        fits = [fit_norm(inputs[updates == count], value[updates == count]) for count in distinct(updates)]
        dtype = output.baseline.dtype.name
        limit = IDENTITY_FLOORS * floor_for("norm", dtype, dtype, ranks=taps.ranks).floor
        residual = max((fit.residual for fit in fits if fit is not None), default=0.0)
        if residual > limit:
            message = f"{residual:.1%} of it is no norm of what went in, whatever the weights"
            yield _about("norm-is-off", message, node.key, prepared, taps)


def _tied_weights(prepared: Prepared, taps: Taps) -> Iterator[Finding]:
    named = {key.name: key for key in taps.families}
    embedding = next((key for name, key in named.items() if name.endswith("embed_tokens.weight")), None)
    head = next((key for name, key in named.items() if name.endswith("lm_head.weight")), None)
    if embedding is None or head is None:
        return
    one, other = _rows(prepared, taps, embedding), _rows(prepared, taps, head)
    if one is None or other is None or one.baseline.shape != other.baseline.shape:
        return
    left, right = _single(one), _single(other)
    size = float(np.linalg.norm(left))
    apart = float(np.linalg.norm(left - right)) / size if size else 0.0
    if 0 < apart < NEARLY_TIED:
        message = f"it differs from {embedding.label} by {apart:.2%}; weights that are this near were meant to be tied"
        yield _about("weights-not-tied", message, head, prepared, taps)


def _rows(prepared: Prepared, taps: Taps, key: TapKey) -> FamilyRows | None:
    found = prepared.families.rows(taps.families[key]) if key in taps.families else None
    return found if found is not None and is_analysed(found.baseline) else None


def _operands(prepared: Prepared, taps: Taps, node: TapNode) -> list[FamilyRows] | None:
    found = [_rows(prepared, taps, key) for key in node.operands]
    kept = [one for one in found if one is not None]
    return kept if len(kept) == len(found) else None


def _partials(prepared: Prepared, taps: Taps, key: TapKey, rows: int) -> dict[int, Array]:
    """Each rank's own array of a tap over all steps, by rank; empty where they are not summands of ``rows`` rows."""
    family = taps.families[key]
    bundles = [pair.baseline for pair in prepared.pairs if pair.family == family and pair.baseline is not None]
    if not any("partial" in (bundle.recorded_dims or "") for bundle in bundles):
        return {}
    found: dict[int, list[Array]] = {}
    for bundle in bundles:
        _add_arrays(found, bundle)
    joined = {rank: np.concatenate(arrays) for rank, arrays in found.items()}
    return joined if all(len(array) == rows for array in joined.values()) else {}


def _add_arrays(found: dict[int, list[Array]], bundle: Bundle) -> None:
    for entry in bundle.entries:
        array = to_working(load_array(entry), _SINGLE)
        found.setdefault(entry.rank, []).append(array.reshape(-1, array.shape[-1]) if array.ndim else array)


def _single(rows: FamilyRows) -> Array:
    return to_working(rows.baseline, _SINGLE)


def _finding(name: str, message: str, pair: BundlePair, options: Options) -> Finding:
    return Finding(say(name, message, options), pair.label, pair.step)


def _about(name: str, message: str, key: TapKey, prepared: Prepared, taps: Taps) -> Finding:
    family = taps.families[key]
    pair = next(pair for pair in prepared.pairs if pair.family == family)
    return Finding(say(name, message, prepared.options), pair.label, None)


def worst(findings: Sequence[Finding]) -> int:
    """The exit code that findings call for: 1 when one of them is an error."""
    return 1 if any(finding.said.severity == "error" for finding in findings) else 0
