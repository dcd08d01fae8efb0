"""``--quick``: pairs whose bytes are equal by the checksums that lie beside them are not compared.

A family is settled as a whole or not at all, so that the analysis gets the same rows as without ``--quick``. It is
settled where every pair is put together in the same way on both sides (same ranks, steps, shapes, dtypes, rows,
operations) from records of equal length and equal checksum (XXH3-64 of each payload), and where the replicas of a side
have equal checksums too. NaN equals nothing, so floating-point records of the target are read once to see that all of
them is finite, unless ``--equal-nan`` or ``--bitwise`` make that unimportant. All else is measured.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import ml_dtypes  # noqa: F401  (its types become known to numpy by name)
import numpy as np

from comparator.align.aligned import Aligned
from comparator.align.load import load_array
from comparator.errors import ComparatorError, PairError
from comparator.match.bundles import Bundle
from comparator.match.entries import Entry
from comparator.measure.difference import Difference
from comparator.measure.measurement import ArrayNumbers, TensorMeasurement
from comparator.measure.measurer import Measurer
from comparator.measure.statistics import Statistics
from comparator.plan.facts import Remark
from comparator.plan.operations import UnshardPlan
from comparator.plan.planner import PairPlan
from comparator.plan.selection import Selected
from comparator.plan.side import SidePlan

Symbol = Any
"""Stands for an array whose elements were not looked at: equal symbols, equal bytes."""


def settle(found: Sequence[Selected], measurer: Measurer) -> list[tuple[TensorMeasurement, Aligned]] | None:
    """The measurements of the pairs of a family that checksums settle, and their rows without channels; None where a
    pair of it has to be read."""
    settled = []
    for selected in found:
        one = _settled(selected, measurer)
        if one is None:
            return None
        settled.append(one)
    return settled


def _settled(selected: Selected, measurer: Measurer) -> tuple[TensorMeasurement, Aligned] | None:
    pair, options = selected.pair, measurer.options
    if pair.baseline is None or pair.target is None or not _is_plain(selected) or options.per_token:
        return None
    try:
        plan = measurer.planner.plan(pair, selected.rules)
    except (ComparatorError, ValueError):
        return None  # its measurement says why
    if not (_equal_sides(plan) and _equal_rows(plan) and _equal_records(plan, pair.baseline, pair.target)):
        return None
    dtype = _dtype(pair.target.entries[0].record.dtype)
    if dtype is None:
        return None
    if not (dtype.kind in "iub" or options.equal_nan or options.bitwise or _is_finite(pair.target)):
        return None
    return _measurement(plan, pair.target, dtype, measurer)


def _is_plain(selected: Selected) -> bool:
    """Whether a pair is one of whole tensors, in files with checksums."""
    pair = selected.pair
    if selected.error is not None or not selected.kept or selected.left_out or selected.rules.grouping != "tags":
        return False
    sides = [side for side in (pair.baseline, pair.target) if side is not None]
    return all(
        entry.is_tensor and entry.record.level == "full" and entry.piece is None
        for side in sides
        for entry in side.entries
    )


def _equal_sides(plan: PairPlan) -> bool:
    """Whether equal records make equal arrays."""
    left, right, axes = plan.baseline, plan.target, plan.axes
    if any(side.merge_rows or side.token_order is not None or len(side.token_dimensions) > 1 for side in (left, right)):
        return False
    if plan.errors or not (axes is None or (axes.baseline.identity and axes.target.identity)):
        return False
    same = [(side.dims, side.token_dimensions, side.steps, side.parts) for side in (left, right)]
    return same[0] == same[1]


def _equal_rows(plan: PairPlan) -> bool:
    """Whether each row is held against the same row of the other side."""
    tokens = plan.tokens
    if tokens is None:
        return True
    if tokens.error is not None or tokens.other_tokens:
        return False
    if tokens.baseline is None or tokens.target is None:
        return tokens.baseline is tokens.target
    return np.array_equal(tokens.baseline, tokens.target)


def _equal_records(plan: PairPlan, baseline: Bundle, target: Bundle) -> bool:
    left, right = _symbols(plan.baseline, baseline), _symbols(plan.target, target)
    return left is not None and left == right


def _is_finite(bundle: Bundle) -> bool:
    """Whether no record holds NaN or infinity; they are read, and checked against their checksums, once."""
    try:
        return all(bool(np.isfinite(load_array(entry)).all()) for entry in bundle.entries)
    except (PairError, ValueError, TypeError):
        return False


def _symbols(plan: SidePlan, bundle: Bundle) -> list[Symbol] | None:
    """A symbol for each array that unsharding leaves; None where a record has no checksum, or replicas differ."""
    entries: dict[tuple[int | None, int], list[Entry]] = {}
    for entry in sorted(bundle.entries, key=lambda entry: entry.record.occurrence):
        entries.setdefault((entry.step, entry.rank), []).append(entry)
    found = []
    for step in plan.steps:
        symbols = [_symbol(entries[step.step, rank].pop(0)) for rank in step.unshard.ranks]
        joined = None if None in symbols else _unsharded(step.unshard, symbols)
        if joined is None:
            return None
        found.append(joined)
    return found


def _symbol(entry: Entry) -> Symbol | None:
    record = entry.record
    checksums = record.checksums
    return None if checksums is None else (record.dtype, entry.shape, checksums)


def _unsharded(plan: UnshardPlan, symbols: list[Symbol]) -> list[Symbol] | None:
    for operation in plan.operations:
        groups = [[symbols[at] for at in group] for group in operation.groups]
        if operation.kind != "pick":
            symbols = [tuple(group) for group in groups]
        elif all(one == group[0] for group in groups for one in group):
            symbols = [group[0] for group in groups]
        else:
            return None
    return symbols


def _dtype(name: str | None) -> np.dtype[Any] | None:
    """None for what is no type of numpy or ml_dtypes (packed types): such a pair is read."""
    try:
        return np.dtype(name) if name else None
    except TypeError:
        return None


def _measurement(
    plan: PairPlan, target: Bundle, dtype: np.dtype[Any], measurer: Measurer
) -> tuple[TensorMeasurement, Aligned]:
    dims = plan.target.dims.text if plan.target.dims else None
    shape = list(plan.target.steps[0].unshard.parts[0].shape)
    tokens = plan.tokens
    axis = plan.target.token_dimensions[-1] if plan.target.token_dimensions else None
    if tokens is not None and axis is not None:
        shape[axis] = tokens.matched if tokens.target is None else len(tokens.target)
    if plan.rows is not None:
        shape[axis or 0] = plan.rows
    numbers = ArrayNumbers(tuple(shape), dtype.name, Statistics())
    elements, files = math.prod(shape), len(target.entries)
    measurement = TensorMeasurement(
        baseline=numbers,
        target=numbers,
        unified_shape=tuple(shape),
        dims=(dims, dims),
        difference=Difference(elements, 0.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0, (), 0.0, 0.0),
        integers=dtype.kind in "iub",
        same_bits=True if measurer.options.bitwise else None,
        tokens=plan.token_numbers,
        settled=True,
        remarks=(
            *plan.remarks,
            Remark(
                "equal-by-checksum",
                f"{files} record{'s' * (files != 1)} of equal length and equal checksum (XXH3-64) on both sides, which "
                "--quick takes for equal",
            ),
        ),
    )
    rows = [length if at in plan.row_dimensions or (at == 0 and not plan.row_dimensions and len(shape) > 1) else 1
            for at, length in enumerate(shape)]  # fmt: skip
    empty = np.zeros(rows, dtype)
    return measurement, Aligned(empty, empty, tuple(rows), plan)
