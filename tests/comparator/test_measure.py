"""Metrics of a pair of arrays, against straightforward formulas in float64."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from comparator.measure import units
from comparator.measure.difference import compare_arrays, measure, row_differences, same_bytes
from comparator.measure.family import FamilyRows
from comparator.measure.kernel.sums import to_working
from comparator.measure.measurement import (
    ArrayNumbers,
    Failure,
    HashMeasurement,
    ReplicaNumbers,
    Skipped,
    StatisticsMeasurement,
    TensorMeasurement,
    ValueMeasurement,
)
from comparator.measure.statistics import Statistics, summarize
from comparator.measure.units import Families, Row, Table
from comparator.options import Options
from comparator.plan.facts import Remark, TokenNumbers

FINITE = st.floats(-1e6, 1e6, width=32)
Array = npt.NDArray[Any]


@given(
    arrays.array_shapes(min_dims=1, max_dims=3, max_side=5).flatmap(
        lambda shape: st.tuples(*(arrays.arrays(np.float32, shape, elements=FINITE) for _ in range(2)))
    )
)
def test_metrics_follow_their_formulas(pair: tuple[Array, Array]) -> None:
    x, y = (one.astype(np.float64) for one in pair)
    found = measure(*pair)
    gap = np.abs((pair[1] - pair[0]).astype(np.float64))
    assert found.max_abs == gap.max()
    assert found.mean_abs == pytest.approx(gap.mean())
    assert found.differing == np.count_nonzero(gap)
    assert gap[found.coordinate] == gap.max()
    assert found.baseline_at_max == x[found.coordinate]
    assert found.target_at_max == y[found.coordinate]
    total = (x * x + y * y).sum()
    if gap.max() > 0:
        assert found.rel == pytest.approx(1 - 2 * (x * y).sum() / total, rel=1e-6, abs=1e-12)
    else:
        assert found.rel == 0


def test_a_scaled_target_shows_its_factor() -> None:
    x = np.random.default_rng(0).standard_normal((64, 64)).astype(np.float32)
    found = measure(x, x * np.float32(1.02))
    assert found.scale == pytest.approx(1.02, rel=1e-4)
    assert found.scale_explains > 0.99
    assert found.rel < 1e-3
    assert found.relative_l2 == pytest.approx(0.02, rel=1e-3)
    noise = np.random.default_rng(1).standard_normal(x.shape).astype(np.float32)
    assert measure(x, x + np.float32(0.02) * noise).scale_explains < 0.1


def test_equal_zeros_have_no_difference() -> None:
    found = measure(np.zeros((3, 2), np.float32), -np.zeros((3, 2), np.float32))
    assert (found.rel, found.max_abs, found.differing) == (0.0, 0.0, 0)


def test_empty_arrays_have_no_difference() -> None:
    found = compare_arrays(np.zeros((0, 4), np.float32), np.zeros((0, 4), np.float32), percentiles=True)
    assert found.difference.max_abs == 0
    assert found.baseline.mean == 0


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("sides", [(True, False), (False, True), (True, True)])
def test_nan_and_infinity_are_counted_and_leave_no_metric(bad: float, sides: tuple[bool, bool]) -> None:
    pair = [np.ones(70_000, np.float32) for _ in range(2)]
    for array, spoiled in zip(pair, sides, strict=True):
        if spoiled:
            array[66_000] = bad
    found = compare_arrays(*pair)
    assert not math.isfinite(found.difference.rel)
    counts = [found.baseline.nan + found.baseline.infinite, found.target.nan + found.target.infinite]
    assert counts == [int(spoiled) for spoiled in sides]
    assert found.difference.coordinate == (66_000,)
    if all(sides):
        assert found.difference.nonfinite_equal == 1


def test_equal_non_finite_values_can_be_accepted() -> None:
    pair = [np.array([1.0, math.nan, math.inf, 2.0], np.float32) for _ in range(2)]
    assert measure(*pair, equal_nonfinite=True).max_abs == 0
    masked = np.array([3.0, -math.inf, math.nan, 4.0], np.float32)
    found = measure(masked, masked * np.float32(1.5), equal_nonfinite=True)
    assert found.rel == pytest.approx(0.25 / 3.25)
    assert found.max_abs == 2
    rows = row_differences(masked[None], masked[None] * np.float32(1.5), 0, equal_nonfinite=True)
    assert rows[0] == pytest.approx(0.25 / 3.25)
    pair[1][2] = -math.inf
    assert not measure(*pair, equal_nonfinite=True).max_abs <= 1e30


@pytest.mark.parametrize(
    "dtype",
    [ml_dtypes.bfloat16, np.float16, np.float64, ml_dtypes.float8_e4m3fn, np.int8, np.int64, np.uint8, np.bool_],
)
def test_every_dtype(dtype: Any) -> None:
    x = np.array([0, 1, 1, 0, 1], dtype=dtype)
    y = x.copy()
    assert measure(x, y).max_abs == 0
    y[3] = 1
    found = measure(x, y)
    assert (found.max_abs, found.differing, found.coordinate) == (1.0, 1, (3,))


def test_complex_numbers_differ_by_their_distance() -> None:
    x = np.array([1 + 1j, 2 - 1j], np.complex64)
    found = measure(x, x + np.array([0, 3 + 4j], np.complex64))
    assert found.max_abs == pytest.approx(5)
    assert found.coordinate == (1,)


def test_large_integers_that_float64_cannot_tell_apart() -> None:
    x = np.array([2**60, 5], np.int64)
    assert measure(x, x + np.array([1, 0])).differing == 1


def test_mixed_dtypes_are_compared_as_values() -> None:
    x = np.array([1.0, 2.5, -3.0], np.float32)
    assert measure(x, x.astype(ml_dtypes.bfloat16)).max_abs == 0
    assert measure(x.astype(np.float64) + 1e-12, x).max_abs == pytest.approx(1e-12, rel=1e-3)


def test_float64_keeps_its_precision_unless_told() -> None:
    x = np.array([1.0, 2.0])
    assert measure(x, x + 1e-13).max_abs > 0
    assert compare_arrays(x, x + 1e-13, single_precision=True).difference.max_abs == 0


def test_shapes_must_agree() -> None:
    with pytest.raises(ValueError, match="shapes differ"):
        measure(np.zeros(2), np.zeros(3))


@given(arrays.arrays(np.uint16, st.integers(0, 100)))
def test_bfloat16_by_its_bits(bits: Array) -> None:
    values = bits.view(ml_dtypes.bfloat16)
    with np.errstate(invalid="ignore"):
        expected = values.astype(np.float32)
    np.testing.assert_array_equal(to_working(values, np.dtype(np.float32)), expected)


def test_a_transposed_view_is_measured_where_it_lies() -> None:
    x = np.arange(12, dtype=np.float32).reshape(3, 4)
    y = x.copy()
    y[2, 1] += 1
    assert measure(x.T, y.T).coordinate == (1, 2)


def test_statistics() -> None:
    x = np.random.default_rng(0).standard_normal((300, 400)).astype(np.float32)
    found = summarize(x, percentiles=True)
    wide = x.astype(np.float64)
    assert found.mean == pytest.approx(wide.mean())
    assert found.abs_mean == pytest.approx(np.abs(wide).mean())
    assert found.std == pytest.approx(wide.std(ddof=1))
    assert (found.minimum, found.maximum) == (wide.min(), wide.max())
    assert found.percentiles[50] == pytest.approx(np.percentile(x, 50))


def test_same_bytes() -> None:
    nan = np.array([math.nan], np.float32)
    assert same_bytes(nan, nan.copy())
    assert not same_bytes(np.zeros(1, np.float32), -np.zeros(1, np.float32))
    assert not same_bytes(np.zeros(1, np.float32), np.zeros(1, np.int32))
    assert not same_bytes(np.zeros(1, np.float32), np.zeros((1, 1), np.float32))


def test_row_differences_say_which_token() -> None:
    x = np.ones((5, 2, 3), np.float32)
    y = x.copy()
    y[3, 1, 1] = 2
    assert np.flatnonzero(row_differences(x, y, 0)).tolist() == [3]
    assert np.flatnonzero(row_differences(x, y, 1)).tolist() == [1]


def test_families_are_kept_while_there_is_room(monkeypatch: pytest.MonkeyPatch) -> None:
    def rows(name: str, count: int) -> FamilyRows:
        array = np.zeros((count, 1), np.float32)
        return FamilyRows((("name", name),), array, array, None, None, np.zeros(count, np.int64))

    monkeypatch.setattr("comparator.measure.units.KEPT_BYTES", 8 * 10)
    measurer = SimpleNamespace(options=Options())
    families = Families([], {}, lambda number: [], measurer)  # type: ignore[arg-type]
    for name, count in (("a", 4), ("b", 4), ("a", 6), ("c", 0)):
        families.keep((("name", name),), rows(name, count))
    assert [len(families.rows((("name", name),)) or ()) for name in "abc"] == [6, 4, 0]
    families.keep((("name", "d"),), rows("d", 4))
    assert families.rows((("name", "b"),)) is not None  # asked for after a
    assert families.rows((("name", "a"),)) is None
    families.keep((("name", "e"),), rows("e", 11))
    assert families.rows((("name", "d"),)) is None


@pytest.mark.parametrize("objects", [0, 3, 100])
def test_rows_of_the_table_come_back_as_they_were_in_the_order_of_the_pairs(
    monkeypatch: pytest.MonkeyPatch, objects: int
) -> None:
    """Those that are kept as objects, and those that are packed."""
    monkeypatch.setattr(units, "MOST_OBJECTS", objects)
    statistics = Statistics(1.0, 2.0, math.nan, -math.inf, math.inf, 1, 2, {50: 0.5})
    numbers = ArrayNumbers((2, 3), "bfloat16", statistics)
    difference = measure(np.zeros((2, 3)), np.full((2, 3), 0.1))
    tensor = TensorMeasurement(
        numbers,
        numbers,
        (2, 3),
        ("t h", None),
        difference,
        replicas=(ReplicaNumbers("target", "tp", 0, 1, difference, True),),
        tokens=TokenNumbers(2, {"padding": 1}, {}, 0, 0),
        max_token_rel=np.float64(0.25),  # type: ignore[arg-type]
        token_rels=(0.0, math.nan),
        samples=("[1]", "[2]"),
        remarks=(Remark("tokens-joined", "2 steps"),),
    )
    others = (
        HashMeasurement(("bfloat16", None), ((2,), (2,)), "differ"),
        StatisticsMeasurement(("bfloat16", "bfloat16"), ((2,), (2,)), (statistics, statistics), difference),
        ValueMeasurement("1", "2", ("int", "int"), False, "['a']", "1 and 2"),
        Skipped("only-in-target", "baseline_load_failed", "no", "target", numbers, "t h"),
        Failure("damaged-record", "PairError", "bytes", "hint"),
    )
    rows = [Row(number, part, one) for number, one in enumerate((tensor, *others)) for part in range(2)]
    table = Table()
    for row in reversed(rows):
        table.extend([row])
    assert len(table) == len(rows)
    found = [Row(row.pair, row.part, row.measurement) for row in table]
    assert repr(found).replace("np.float64(0.25)", "0.25") == repr(rows).replace("np.float64(0.25)", "0.25")
    assert sum(isinstance(row, Row) for row in table) == min(objects, len(rows))
