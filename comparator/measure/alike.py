"""Measure pairs that are alike in one call: small tensors of one name and its tags, step after step, each the array of
one record on both sides. What is measured is what ``Measurer.measure`` finds of each."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from math import prod

import numpy as np
import numpy.typing as npt
from msgspec import Struct

from comparator.align.aligned import Aligned
from comparator.match.bundles import Bundle, BundlePair
from comparator.measure.differences import differences_of_each, statistics_of_each
from comparator.measure.kernel import SEGMENT
from comparator.measure.kernel.many import ManySums, Places, measure_many
from comparator.measure.kernel.sums import Array, RowTable
from comparator.measure.measurement import ArrayNumbers, TensorMeasurement
from comparator.measure.measurer import TOKEN_THRESHOLD, Measurer, first_bad_token, samples_of, worst_token
from comparator.measure.memory import is_small
from comparator.measure.statistics import Statistics, common_dtype
from comparator.measure.torch_rounding import rounded_as_torch
from comparator.options import Options
from comparator.plan.planner import PairPlan, Place
from comparator.plan.selection import Selected
from comparator.rules import Rules
from dumper.reading.columns import OUTSIDE_STEPS
from dumper.reading.protocol import ArraysInFile, Run

Integers = npt.NDArray[np.int64]

LARGEST = 1 << 20
"""Bytes of a side from which a pair is measured by itself, which takes much longer than what is saved."""


class Found(Struct, frozen=True, eq=False):
    """What was found of a pair."""

    measurement: TensorMeasurement
    aligned: Aligned
    rows: RowTable | None
    """Of rows and channels, where it was asked for them and all is finite."""


def measure_alike(selected: Sequence[Selected], measurer: Measurer, *, by_channel: bool) -> Mapping[int, Found]:
    """The measurements of those pairs that can be measured together, by their number in ``selected``.

    ``by_channel``: with what is found of rows and channels, as for ``measure_aligned``.
    """
    found: dict[int, Found] = {}
    if len(selected) > 1 and _nothing_by_pair(measurer.options, selected[0].rules):
        for numbers in _by_kind(selected):
            for group in _groups(numbers, selected, measurer):
                found.update(_measure(group, measurer.options, selected[0].rules, by_channel=by_channel))
    return found


def _nothing_by_pair(options: Options, rules: Rules) -> bool:
    """Whether nothing is asked for that is done pair by pair."""
    as_torch = rules.rounding == "torch" and rules.joining == "rows"
    return not (options.per_token or options.bitwise) and (
        as_torch or (rules.joining == "tokens" and not rules.single_precision)
    )


def _by_kind(selected: Sequence[Selected]) -> Iterator[list[int]]:
    """Numbers of pairs of one tensor on each side, those together whose records are of one kind; all of them where
    every record is a kind of its own."""
    rules = selected[0].rules
    single = [
        number
        for number, one in enumerate(selected)
        if one.kept and one.error is None and one.rules is rules and _is_single(one.pair)
    ]
    if rules.joining == "rows":
        yield [number for number in single if not _is_cut(selected[number].pair)]
        return
    left = _kinds([bundle for number in single if (bundle := selected[number].pair.baseline) is not None])
    right = _kinds([bundle for number in single if (bundle := selected[number].pair.target) is not None])
    together: dict[tuple[int, int], list[int]] = {}
    for number, kinds in zip(single, zip(left, right, strict=True), strict=True):
        together.setdefault(kinds, []).append(number)
    for numbers in together.values():
        pair = selected[numbers[0]].pair
        if not _is_cut(pair) and all(side is not None and side.all_whole for side in (pair.baseline, pair.target)):
            yield numbers


def _is_single(pair: BundlePair) -> bool:
    left, right = pair.baseline, pair.target
    return left is not None and right is not None and len(left.entries) == len(right.entries) == 1


def _is_cut(pair: BundlePair) -> bool:
    """Whether a piece of what was recorded is compared."""
    left, right = pair.baseline, pair.target
    return (left is not None and left.like.piece is not None) or (right is not None and right.like.piece is not None)


def _kinds(bundles: Sequence[Bundle]) -> list[int]:
    """Of bundles of one entry each the numbers of their kinds."""
    if not bundles:
        return []
    entries, _ = bundles[0].entries.places
    found: list[int] = entries.kind[np.concatenate([bundle.entries.places[1] for bundle in bundles])].tolist()
    return found


class _Side(Struct, frozen=True, eq=False):
    """One side of pairs of one kind."""

    places: list[Place]
    files: list[ArraysInFile]
    file: Integers
    """Of each pair which of ``files`` its array is in, -1 where it is to be read by itself."""
    start: Integers
    """Its place there."""


def _side(bundles: Sequence[Bundle], run: Run) -> _Side:
    entries, _ = bundles[0].entries.places
    rows = np.concatenate([bundle.entries.places[1] for bundle in bundles])
    numbers = entries.record_numbers(rows)
    files = list(run.arrays_in_files(numbers.astype(np.int64, copy=False), LARGEST))
    file, start = np.full(len(rows), -1), np.zeros(len(rows), np.int64)
    for number, one in enumerate(files):
        file[one.at], start[one.at] = number, one.starts
    steps = [None if step == OUTSIDE_STEPS else step for step in entries.step[rows].tolist()]
    places = list(zip(entries.rank[rows].tolist(), steps, entries.occurrence[rows].tolist(), strict=True))
    return _Side(places, files, file, start)


class _Group(Struct, frozen=True, eq=False):
    """Pairs whose arrays lie in one file on each side and are compared in the same way."""

    numbers: list[int]
    """Of the pairs."""
    plans: list[PairPlan]
    baseline: Places
    target: Places
    rows: Integers
    """Of each pair the length of its first dimension."""
    row_shape: tuple[int, ...]
    """The other dimensions."""

    @property
    def axis(self) -> int | None:
        return self.plans[0].token_axis

    @property
    def has_rows_first(self) -> bool:
        """As ``Aligned`` has it."""
        return bool(self.row_shape) and self.plans[0].row_dimensions in ((), (0,))


def _groups(numbers: list[int], selected: Sequence[Selected], measurer: Measurer) -> Iterator[_Group]:
    if not numbers:
        return
    pairs, contexts, rules = [selected[number].pair for number in numbers], measurer.planner.contexts, selected[0].rules
    left = _side([pair.baseline for pair in pairs if pair.baseline is not None], contexts["baseline"].run)
    right = _side([pair.target for pair in pairs if pair.target is not None], contexts["target"].run)
    plans = measurer.planner.plan_each(pairs, list(zip(left.places, right.places, strict=True)), rules)
    together: dict[tuple[int, int, int | None, tuple[int, ...]], list[tuple[int, PairPlan]]] = {}
    for at, (plan, in_left, in_right) in enumerate(zip(plans, left.file.tolist(), right.file.tolist(), strict=True)):
        if plan is not None and plan.as_it_lies is not None and in_left >= 0 and in_right >= 0:
            together.setdefault((in_left, in_right, plan.token_axis, plan.row_dimensions), []).append((at, plan))
    for (of_left, of_right, axis, _), members in together.items():
        files = left.files[of_left], right.files[of_right]
        if _may_be_alike(*files, measurer.options, rules) and not (rules.token_metrics and axis):
            yield from _group(files, members, numbers, (left.start, right.start))


def _may_be_alike(left: ArraysInFile, right: ArraysInFile, options: Options, rules: Rules) -> bool:
    """Whether there is nothing to be done for a pair beside one pass over both sides."""
    dtype, shape = left.dtype, left.shape
    exact = 2 if rules.single_precision else 4
    if dtype != right.dtype or dtype.kind == "c" or (dtype.kind in "iu" and dtype.itemsize > exact):
        return False
    fits = bool(shape) and len(shape) == len(right.shape) and shape[1:] == right.shape[1:]
    return fits and is_small(prod(shape) + prod(right.shape), options)


def _group(
    files: tuple[ArraysInFile, ArraysInFile],
    members: Sequence[tuple[int, PairPlan]],
    numbers: Sequence[int],
    starts: tuple[Integers, Integers],
) -> Iterator[_Group]:
    """Those of the members whose rows are as many on both sides."""
    slices = [plan.as_it_lies or (slice(0), slice(0)) for _, plan in members]
    extents = np.array([[rows.indices(file.shape[0])[:2] for rows, file in zip(pair, files, strict=True)]
                        for pair in slices], np.int64)  # fmt: skip
    first, count = extents[:, :, 0], extents[:, :, 1] - extents[:, :, 0]
    kept = (count[:, 0] == count[:, 1]) & (count[:, 0] > 0)
    if kept.any():
        chosen = [one for one, fits in zip(members, kept.tolist(), strict=True) if fits]
        at, dtype, row_shape = [at for at, _ in chosen], files[0].dtype, files[0].shape[1:]
        row = dtype.itemsize * prod(row_shape)
        left, right = (Places(files[side].data, starts[side][at] + row * first[kept, side], dtype) for side in (0, 1))
        yield _Group([numbers[one] for one in at], [plan for _, plan in chosen], left, right, count[kept, 0], row_shape)


def _measure(group: _Group, options: Options, rules: Rules, *, by_channel: bool) -> Iterator[tuple[int, Found]]:
    """One call of the kernel, and what is made of it."""
    by_token, by_channel = rules.token_metrics and group.axis is not None, by_channel and group.has_rows_first
    length, dtype = prod(group.row_shape), group.baseline.dtype
    sizes = group.rows * length
    as_torch = rules.rounding == "torch"
    sums = measure_many(
        group.baseline,
        group.target,
        sizes,
        length if by_channel or by_token else SEGMENT,
        dtype=common_dtype(dtype, dtype, rules.single_precision),
        equal_nonfinite=options.equal_nan and not as_torch,
        by_row=by_channel or by_token,
        by_channel=by_channel,
    )
    largest_at = sums.counts[:, -1]
    at_most = group.baseline.elements(largest_at), group.target.elements(largest_at)
    rounded = rounded_as_torch(group.baseline, group.target, sizes) if as_torch else None
    differences = differences_of_each(sums, sizes, group.row_shape, at_most, rounded)
    (left, left_numbers), (right, right_numbers) = (
        _arrays(places, statistics_of_each(sums, side, sizes), group, sizes)
        for side, places in enumerate((group.baseline, group.target))
    )
    tables, largest = _tables(sums, group.rows) if by_channel or by_token else ([], None)
    finite, integers = sums.finite.tolist(), dtype.kind in "iub"
    for at, (number, plan) in enumerate(zip(group.numbers, group.plans, strict=True)):
        difference, shape = differences[at], left[at].shape
        rel = None if largest is None or not by_token or difference.max_abs == 0 else largest[at]
        measurement = TensorMeasurement(
            left_numbers[at],
            right_numbers[at],
            shape,
            plan.dims,
            difference,
            integers,
            tokens=plan.token_numbers,
            max_token_rel=rel,
            worst_token=worst_token(plan, difference),
            first_bad_token=None
            if rel is None or rel <= TOKEN_THRESHOLD
            else first_bad_token(tables[at].rel(), plan.tokens),
            samples=samples_of(left[at], right[at], difference, options, rules),
            remarks=plan.remarks,
        )
        table = tables[at] if by_channel and finite[at] else None
        yield number, Found(measurement, Aligned(left[at], right[at], shape, plan), table)


def _arrays(
    places: Places, statistics: Sequence[Statistics], group: _Group, sizes: Integers
) -> tuple[list[Array], list[ArrayNumbers]]:
    name, row_shape = places.dtype.name, group.row_shape
    shapes = [(rows, *row_shape) for rows in group.rows.tolist()]
    arrays = [values.reshape(shape) for values, shape in zip(places.each(sizes), shapes, strict=True)]
    return arrays, [ArrayNumbers(shape, name, found) for shape, found in zip(shapes, statistics, strict=True)]


def _tables(sums: ManySums, rows: Integers) -> tuple[list[RowTable], list[float]]:
    """Of each pair what was found of its rows and channels, and the largest ``rel`` of its rows."""
    columns, energy = sums.rows, sums.energy
    assert columns is not None
    ends = np.cumsum(rows).tolist()
    starts = [0, *ends[:-1]]
    left_out = np.ones(len(ends), np.bool_) if energy is None else np.isnan(energy[:, 0])
    energies = [None if energy is None or out else energy[at] for at, out in enumerate(left_out.tolist())]
    tables = [RowTable(columns[start:end], of_one) for start, end, of_one in zip(starts, ends, energies, strict=True)]
    return tables, np.maximum.reduceat(RowTable(columns).rel(), starts).tolist()
