"""The compiled passes over a tap's matrices against those in numpy, and both against sums in whole arrays."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from msgspec.structs import fields, replace

from comparator.diagnosis import kernel, measures, strengths
from comparator.diagnosis.kernel import (
    Matrices,
    PartSums,
    channel_sums,
    channel_sums_of_parts,
    first_look,
    median,
    midpoint_and_added,
    row_sums,
    standing_out,
)
from comparator.diagnosis.limits import LIMITS
from comparator.diagnosis.measures import (
    NEVER_RELEVANT,
    Difference,
    Irrelevance,
    change_of_scale,
    normalise,
    sample_of,
    scale,
)
from comparator.diagnosis.profiling import LARGEST_Z

DTYPES = [
    np.dtype(one)
    for one in (
        "f2",
        "f4",
        ml_dtypes.bfloat16,
        ml_dtypes.float8_e4m3fn,
        ml_dtypes.float8_e5m2,
        ml_dtypes.float8_e8m0fnu,
    )
]
CLOSE = 1e-6
"""Of the sum of magnitudes: some products are added in float32 in one and not in the other."""

needs_compiler = pytest.mark.skipif(not kernel.COMPILED, reason="the kernel is not built: python setup.py build_ext -i")


@contextlib.contextmanager
def limited_to(instructions: int) -> Iterator[None]:
    """No wider instructions than that (see ``limit`` of the compiled module)."""
    assert kernel._compiled.limit(instructions) <= instructions
    try:
        yield
    finally:
        kernel._compiled.limit(2)


def by_reference(function: Any, *arguments: Any) -> Any:
    found = kernel._compiled
    kernel._compiled = None  # type: ignore[assignment]
    try:
        return function(*arguments)
    finally:
        kernel._compiled = found


@st.composite
def matrices(draw: st.DrawFn) -> Matrices:
    """Two matrices of any dtypes and strides, with all that bytes can hold or numbers of one size."""
    rows, channels = draw(st.integers(0, 9)), draw(st.sampled_from([0, 1, 7, 8, 9, 255, 256, 257, 520]))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    tiny = draw(st.booleans())
    sides = []
    for _ in range(2):
        dtype = draw(st.sampled_from(DTYPES))
        if draw(st.booleans()):
            side = rng.integers(0, 256, (2 * rows, 2 * channels, dtype.itemsize), np.uint8).view(dtype)
            side = side.reshape(2 * rows, 2 * channels)
        else:
            with np.errstate(all="ignore"):
                numbers = rng.standard_normal((2 * rows, 2 * channels)) * (1e-22 if tiny else 1)
                side = numbers.astype(np.float32).astype(dtype)
        way = draw(
            st.sampled_from(["together", "every second row", "backwards", "every second channel", "columns first"])
        )
        side = {
            "together": side[:rows, :channels].copy(),
            "every second row": side[::2, :channels],
            "backwards": side[:rows, :channels][::-1],
            "every second channel": side[:rows, ::2],
            "columns first": np.asfortranarray(side[:rows, :channels]),
        }[way]
        sides.append(side)
    if draw(st.booleans()):
        sides[1] = sides[0]
    if rows and draw(st.booleans()):
        sides[1] = sides[1].copy()
        sides[1][draw(st.integers(0, rows - 1))] = 0
    weights = rng.random(channels, np.float32) if draw(st.booleans()) else None
    return Matrices(sides[0], sides[1], weights)


def assert_close(found: Any, expected: Any, most: Any) -> None:
    for one in fields(expected):
        if one.name in ("sizes", "error", "cosine"):
            continue  # they are made of the others
        left, right = getattr(found, one.name), getattr(expected, one.name)
        assert left.shape == right.shape
        if left.dtype == np.int64:
            assert np.array_equal(left, right), one.name
        else:
            beyond = ~np.isfinite(left) & ~np.isfinite(right)  # where float32 does not reach
            assert (beyond | (np.abs(left - right) <= CLOSE * most)).all(), one.name


@needs_compiler
@settings(max_examples=60, deadline=None)
@given(matrices(), st.booleans(), st.integers(0, 2))
def test_compiled_and_numpy_agree(of: Matrices, parts: bool, instructions: int):
    with limited_to(instructions):
        assert_they_agree(of, parts)


def assert_they_agree(of: Matrices, parts: bool) -> None:
    if parts:
        middle, added = midpoint_and_added(of, slice(None))
        finite = bool(np.isfinite(middle).all() and np.isfinite(added).all())
        of = Matrices(middle, added, parts=True, finite=finite)
    with np.errstate(all="ignore"):
        look, expected_look = first_look(of), by_reference(first_look, of)
        other, energy, other_energy = expected_look.rows, look.energy, expected_look.energy
        most = (
            other.baseline + other.target + 2 * other.middle + other.added + np.sqrt(other.added) * of.shape[1] ** 0.5
        )
        assert_close(look.rows, other, most)
        assert_close(row_sums(of), by_reference(row_sums, of), most)
        assert_close(look.counts, expected_look.counts, 0)
        assert ((energy == other_energy) | (np.abs(energy - other_energy) <= CLOSE * other_energy)).all()
        rng = np.random.default_rng(of.shape[1])
        chosen = np.flatnonzero(rng.random(of.shape[0]) < 0.7)
        lengths = np.maximum(other.sizes[chosen], 1e-300)
        factors = (rng.random(len(chosen)) / lengths).astype(np.float32)
        expected = by_reference(channel_sums, of, chosen, factors)
        # Rows are of size 1 here; what float32 takes for 0 is nothing beside them.
        most = expected.middle + expected.added + np.sqrt(expected.added) * of.shape[0] ** 0.5 + 1e-24
        assert_close(channel_sums(of, chosen, factors), expected, most)


@needs_compiler
@settings(max_examples=30, deadline=None)
@given(st.integers(8, 40), st.sampled_from([16, 32, 240, 256, 272, 1040]), st.integers(0, 2**32))
def test_channels_of_bfloat16_are_summed_as_those_of_others(rows: int, channels: int, seed: int):
    rng = np.random.default_rng(seed)
    sides = [rng.standard_normal((rows, channels)).astype(ml_dtypes.bfloat16) for _ in range(2)]
    chosen = np.flatnonzero(rng.random(rows) < 0.9)
    factors = rng.random(len(chosen)).astype(np.float32)
    of = Matrices(*sides, finite=True)
    expected = by_reference(channel_sums, of, chosen, factors)
    assert_close(channel_sums(of, chosen, factors), expected, expected.middle + expected.added + 1)


@settings(max_examples=60, deadline=None)
@given(matrices())
def test_sums_are_those_of_whole_arrays(of: Matrices):
    with np.errstate(all="ignore"):
        left, right = (np.asarray(side, np.float32) for side in (of.first, of.second))
        same = (left == right) | (np.isnan(left) & np.isnan(right))
        finite = np.isfinite(left) & np.isfinite(right)
        counts = first_look(of).counts
        assert np.array_equal(counts.differing, (~same).sum(1))
        assert np.array_equal(counts.baseline_nonfinite, (~np.isfinite(left)).sum(1))
        assert np.array_equal(counts.target_nonfinite, (~np.isfinite(right)).sum(1))
        assert np.array_equal(counts.apart, (~finite & ~same).sum(1))
        weights = np.float32(1) if of.weights is None else of.weights
        left, right = (np.where(finite, side, 0) * weights for side in (left, right))
        middle, added = (left + right) * np.float32(0.5), right - left
        found = row_sums(of)
        assume(bool(np.isfinite(added).all() and np.isfinite(middle).all()))
        pairs = ((found.baseline, left), (found.target, right), (found.added, added), (found.middle, middle))
        for sums, side in pairs:
            # A midpoint and a difference are rounded to float32, what they are made from is not.
            expected = np.square(side.astype(np.float64)).sum(1)
            assert np.allclose(sums, expected, rtol=1e-6, atol=1e-6 * float(found.baseline.max(initial=0)))
        assert np.allclose(found.total, added.sum(1, dtype=np.float64), rtol=1e-6, atol=1e-6 * np.abs(added).sum())


def test_a_factor_from_sums_is_the_one_of_arrays():
    rng = np.random.default_rng(3)
    baseline = rng.standard_normal((900, 64)).astype(np.float32)
    target = (baseline * np.float32(1.01) + 0.001 * rng.standard_normal(baseline.shape)).astype(np.float32)
    of = Matrices(baseline, target)
    sums = row_sums(of)
    difference = normalise(of, sums, sums.sizes)
    exact, screened = scale(difference), scale(difference, irrelevant=NEVER_RELEVANT)
    chosen = difference.take(np.unique(np.linspace(0, 899, 768).astype(np.int64)))
    middle, added = (one.astype(np.float64) for one in chosen.arrays())
    assert exact.value == screened.value == pytest.approx((middle * added).sum() / (middle * middle).sum(), rel=1e-6)
    assert screened.error == pytest.approx(exact.error, rel=0.5)  # rows and channels are not correlated here


def test_sums_that_were_taken_already_are_used_where_rows_weigh_as_much():
    rng = np.random.default_rng(9)
    left = rng.standard_normal((90, 40)).astype(np.float32)
    of = Matrices(left, left + np.float32(0.01) * rng.standard_normal(left.shape).astype(np.float32))
    plain = rng.uniform(1, 2, 90).astype(np.float32)
    places = [np.arange(5, 40), np.arange(50, 90, 2)]

    def marked(rows: np.ndarray) -> PartSums:
        sums = channel_sums(of, rows, plain[rows])
        lanes = np.stack([sums.added, sums.middle, sums.product, sums.total]).reshape(4, -1, 8)
        taken = np.zeros(85, np.bool_)
        taken[rows - 5] = True
        return PartSums(5, taken, 1000 + lanes.transpose(1, 0, 2))

    parts = [marked(rows) for rows in places]
    every, factors = np.arange(90), plain.copy()
    expected = channel_sums(of, every, factors)
    both = channel_sums_of_parts(of, every, factors, plain, parts)
    np.testing.assert_allclose(both.added, expected.added + 2000, rtol=1e-6)
    factors[60] *= 0.5  # a row of the second part
    expected = channel_sums(of, every, factors)
    np.testing.assert_allclose(
        channel_sums_of_parts(of, every, factors, plain, parts).middle, expected.middle + 1000, rtol=1e-6
    )
    few = np.flatnonzero(every != 10)  # a row of the first
    found = channel_sums_of_parts(of, few, plain[few], plain, parts)
    np.testing.assert_allclose(found.middle, channel_sums(of, few, plain[few]).middle + 1000, rtol=1e-6)


def test_groups_with_one_factor_need_no_significance(monkeypatch: pytest.MonkeyPatch):
    rng = np.random.default_rng(4)
    baseline = rng.standard_normal((600, 64)).astype(np.float32)
    factors = np.where(np.arange(600) < 300, 1.02, 1.0202).astype(np.float32)
    target = baseline * factors[:, None] + 0.001 * rng.standard_normal(baseline.shape).astype(np.float32)
    of = Matrices(baseline, target)
    sums = row_sums(of)
    difference, first = normalise(of, sums, sums.sizes), np.arange(600) < 300
    exact = change_of_scale(difference, sample_of(first), sample_of(~first))
    assert exact.value == pytest.approx(-0.0002, rel=0.5)
    # Each of both factors is far beyond the limit, their difference is a hundredth of it.
    limit = Irrelevance(strength=0.1, size=0.01)
    monkeypatch.setattr(measures, "with_error", lambda *_: pytest.fail("the significance was taken"))
    assert change_of_scale(difference, sample_of(first), sample_of(~first), limit).value == exact.value
    with pytest.raises(pytest.fail.Exception):
        change_of_scale(difference, sample_of(first), sample_of(~first), Irrelevance(strength=0.1, size=0.0005))


def _correlated(seed: int, rows: int, channels: int, together: float) -> Difference:
    """Of rows that have a factor, and errors of which a share is common to neighbours in both directions."""
    rng = np.random.default_rng(seed)
    baseline, noise = rng.standard_normal((2, rows, channels))
    common = np.outer(rng.standard_normal(rows), rng.standard_normal(channels))
    baseline += together * common
    target = 1.02 * baseline + 1e-3 * (noise + together * common * rng.standard_normal((rows, 1)))
    of = Matrices(baseline.astype(np.float32), target.astype(np.float32))
    sums = row_sums(of)
    return normalise(of, sums, sums.sizes)


@pytest.mark.parametrize("together", [0.0, 0.3, 3.0])
@pytest.mark.parametrize("shape", [(200, 300), (300, 200), (130, 2000)])
def test_probes_estimate_the_significance_where_it_is_beyond_doubt(
    together: float, shape: tuple[int, int], monkeypatch: pytest.MonkeyPatch
):
    difference = _correlated(5, *shape, together)
    exact = scale(difference)
    monkeypatch.setattr(measures, "FEW_ROWS", 1000)
    unclear = Irrelevance(size=exact.error * measures.MANY_TIMES * 12, significance=24)
    assert scale(difference, unclear) == exact
    clear = Irrelevance(size=exact.error * measures.MANY_TIMES * 24, significance=12)
    monkeypatch.setattr(measures, "_products", lambda *_: pytest.fail("the Gram matrices were taken"))
    estimated = scale(difference, clear)
    assert estimated.value == exact.value
    assert estimated.error == pytest.approx(exact.error, rel=0.5)
    assert scale(difference, clear) == estimated


@pytest.mark.parametrize("together", [0.0, 0.3, 3.0])
def test_a_significance_that_few_rows_show_beyond_doubt_is_not_asked_of_all(
    together: float, monkeypatch: pytest.MonkeyPatch
):
    difference = _correlated(6, 1000, 300, together)
    exact = scale(difference)
    most = 16 * exact.error  # of 32 of 768 rows it is 5 times as large, more with one common error
    rows, with_error = [], measures.with_error
    monkeypatch.setattr(measures, "with_error", lambda *of: rows.append(len(of[1])) or with_error(*of))
    estimated = scale(difference, Irrelevance(size=most * measures.SAFELY * 12, significance=12))
    assert rows == [measures.FEW_ROWS]
    assert estimated.value == exact.value
    assert exact.error < estimated.error < most
    assert scale(difference, Irrelevance(size=exact.error * measures.SAFELY * 12, significance=12)) == exact
    assert rows[-1] == measures.MOST_ROWS


def test_no_test_of_a_factor_asks_for_more_significance_than_is_taken_for_the_largest():
    known = [strengths.GROUP_Z, strengths.HEAD_Z, strengths.SHARD_Z, strengths.EXPERT_Z]
    known += [limits.scale_z for limits in LIMITS.values()]
    assert strengths.critical(max(known), 10**9) < LARGEST_Z


@needs_compiler
def test_buffers_that_do_not_fit_are_refused():
    of = kernel._task(Matrices(np.zeros((2, 8), np.float32), np.zeros((2, 8), np.float32)))
    with pytest.raises(ValueError, match="length"):
        kernel._compiled.rows(of, np.zeros((1, 5)), None, None)
    with pytest.raises(IndexError):
        kernel._compiled.channels(of, np.array([2]), np.ones(1, np.float32), np.zeros((4, 8)))
    other = kernel._task(Matrices(np.zeros((2, 8), np.float32), np.zeros((3, 8), np.float32)))
    with pytest.raises(ValueError, match="shapes"):
        kernel._compiled.rows(other, np.zeros((3, 5)), None, None)


@needs_compiler
@settings(max_examples=200, deadline=None)
@given(
    st.integers(0, 3000),
    st.sampled_from(["f4", "f8"]),
    st.integers(1, 5000),
    st.integers(0, 2),
    st.integers(0, 2**32),
)
def test_both_find_the_same_median(count: int, dtype: str, distinct: int, instructions: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    values = rng.standard_normal(distinct).astype(dtype)[rng.integers(0, distinct, count)]
    if seed % 7 == 0 and count:
        values[rng.integers(0, count)] = [np.nan, np.inf, -np.inf][seed % 3]
    for ordered in (values, np.sort(values), np.sort(values)[::-1]):
        with limited_to(instructions):
            found = median(ordered)
        assert np.array_equal(found, by_reference(median, ordered), equal_nan=True)
    with np.errstate(all="ignore"):
        assert np.array_equal(median(values), np.median(values) if count else np.nan, equal_nan=True)


@needs_compiler
def test_a_median_of_something_else_is_refused() -> None:
    for values in (np.zeros((2, 2)), np.zeros(3, np.int64), np.zeros(3, np.float16)):
        with pytest.raises(ValueError, match="a vector of float32 or float64"):
            kernel._compiled.median(values)


@needs_compiler
@settings(max_examples=200, deadline=None)
@given(st.integers(1, 300), st.integers(1, 5), st.booleans(), st.integers(0, 2), st.integers(0, 2**32))
def test_both_find_the_same_of_channels(channels: int, parts: int, special: bool, instructions: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    lanes = [rng.standard_normal((-(-channels // 8), 4, 8)) for _ in range(parts)]
    found, expected = (np.zeros((4, channels)) for _ in range(2))
    kernel._compiled.add_parts(tuple(lanes), found)
    kernel.reference.add_parts(lanes, expected)
    assert np.array_equal(found, expected)

    energy, size, product = found[0] ** 2, found[1] ** 2, found[2]
    if special:
        for one in (energy, size, product):
            one[rng.integers(0, channels, 3)] = rng.choice([0.0, 1e-310, 1e300, np.inf, np.nan], 3)
    limits = (rng.integers(1, 99), *rng.choice([0.0, 1e-6, 1.0], 2), 16.0, 1e-300)
    with np.errstate(all="ignore"):
        wanted = by_reference(standing_out, energy, size, product, *limits)
    with limited_to(instructions):
        assert np.array_equal(standing_out(energy, size, product, *limits), wanted, equal_nan=True)


@needs_compiler
def test_sums_of_channels_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="another length"):
        kernel._compiled.add_parts((np.zeros((2, 4, 8)), np.zeros((1, 4, 8))), np.zeros((4, 16)))
    with pytest.raises(ValueError, match="another length"):
        kernel._compiled.standing_out(np.ones(8), np.ones(8), np.ones(7), 1.0, 0.0, 0.0, 1.0, 1.0)
    with pytest.raises(ValueError, match="no channels"):
        kernel._compiled.standing_out(*[np.ones(0)] * 3, 1.0, 0.0, 0.0, 1.0, 1.0)


@needs_compiler
@settings(max_examples=60, deadline=None)
@given(matrices(), st.booleans(), st.sampled_from([0, 1, 2]), st.integers(0, 2**32))
def test_both_make_the_same_arrays_of_rows(of: Matrices, parts: bool, instructions: int, seed: int) -> None:
    of = replace(of, parts=parts)
    rng = np.random.default_rng(seed)
    rows = np.flatnonzero(rng.random(of.shape[0]) < 0.7)
    factors = rng.standard_normal(len(rows)).astype(np.float32)
    wanted = by_reference(kernel.arrays, of, rows, factors)
    with limited_to(instructions):
        found = kernel.arrays(of, rows, factors)
    for one, other in zip(found, wanted, strict=True):
        assert np.array_equal(one, other, equal_nan=True)


@needs_compiler
@settings(max_examples=100, deadline=None)
@given(st.integers(0, 70), st.booleans(), st.integers(5, 6), st.integers(0, 2), st.integers(0, 2**32))
def test_both_make_the_same_of_sums_of_rows(rows: int, parts: bool, columns: int, instructions: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    sums = np.exp(rng.normal(0, 20, (rows, columns))) * rng.choice([0.0, 1.0, 1.0], (rows, columns))
    sums[:, 3:] *= rng.choice([-1, 1], (rows, columns - 3))
    if rows:
        sums[rng.integers(0, rows), rng.integers(0, 5)] = rng.choice([np.inf, np.nan, 1e-310, 1e300])
    with limited_to(instructions):
        found = kernel._row_sums(sums[:, :5], parts)
    wanted = by_reference(kernel._row_sums, sums[:, :5], parts)
    for field in fields(found):
        one, other = getattr(found, field.name), getattr(wanted, field.name)
        assert np.array_equal(one, other, equal_nan=True), field.name
    with pytest.raises(ValueError, match="sums of rows"):
        kernel._row_sums(sums[:, :4], parts)
