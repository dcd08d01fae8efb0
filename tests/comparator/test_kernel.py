"""The compiled pass against the one in numpy, bit for bit, and both against sums that are exact."""

from __future__ import annotations

import math
import threading
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import xxhash
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from comparator.diagnosis.kernel import Matrices, channel_sums, first_look, look_of_finite
from comparator.measure import kernel
from comparator.measure.kernel import measure_sums, reference
from comparator.measure.kernel.sums import Array, PairSums, RowTable, is_narrow, working_dtype
from tests.harness.interpreter_lock import turns_beside

REAL = ["f2", "f4", "f8", "i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8", "?"]
SMALL = [ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e5m2, ml_dtypes.float8_e8m0fnu]
DTYPES = [np.dtype(name) for name in [*REAL, *SMALL]]

needs_compiler = pytest.mark.skipif(not kernel.COMPILED, reason="the kernel is not built: python setup.py build_ext -i")


def by_reference(
    left: Array, right: Array, *, accept: bool = False, by_row: bool = False
) -> tuple[PairSums, RowTable | None]:
    found = kernel._compiled
    kernel._compiled = None  # type: ignore[assignment]
    try:
        return measure_sums(left, right, equal_nonfinite=accept, by_row=by_row, by_channel=by_row)
    finally:
        kernel._compiled = found


def bits(sums: PairSums) -> list[bytes]:
    """Every number bit by bit, but for the sign of zero and of NaN."""
    flat = [*sums.baseline, *sums.target, *sums[2:]]
    return [b"nan" if math.isnan(one) else np.float64(one + 0.0).tobytes() for one in flat]


@st.composite
def pairs(draw: st.DrawFn) -> tuple[Array, Array]:
    """Two arrays of one shape, of any dtypes and strides, with all that bytes can hold or numbers of one size."""
    shape = tuple(draw(st.lists(st.sampled_from([1, 2, 3, 7, 8, 9, 31, 40]), min_size=1, max_size=3)))
    if draw(st.booleans()):
        shape = (draw(st.integers(0, 5)), draw(st.sampled_from([1, 1023, 1024, 1025, 4099, 70_001])))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    sides = []
    for _ in range(2):
        dtype = draw(st.sampled_from(DTYPES))
        size = (*shape[:-1], 2 * shape[-1])
        if draw(st.booleans()):
            side = rng.integers(0, 256, (*size, dtype.itemsize), np.uint8).view(dtype).reshape(size)
        else:
            with np.errstate(all="ignore"):
                side = rng.standard_normal(size).astype(dtype)
        side = side[..., ::2] if draw(st.booleans()) else side[..., : shape[-1]]
        sides.append(side)
    left, right = sides
    if draw(st.booleans()):
        right = left.copy()
        if right.size and draw(st.booleans()):
            right.reshape(-1)[rng.integers(right.size)] = 1
    return left, right


@needs_compiler
@settings(max_examples=60, deadline=None)
@given(pairs(), st.booleans(), st.booleans(), st.integers(0, 3))
def test_both_kernels_agree_in_every_bit(
    sides: tuple[Array, Array], accept: bool, by_row: bool, instructions: int
) -> None:
    left, right = sides
    with np.errstate(all="ignore"):
        try:
            assert kernel._compiled.limit(instructions) <= instructions
            sums, rows = measure_sums(left, right, equal_nonfinite=accept, by_row=by_row, by_channel=by_row)
        finally:
            kernel._compiled.limit(3)
        expected, expected_rows = by_reference(left, right, accept=accept, by_row=by_row)
    assert bits(sums) == bits(expected)
    if rows is not None and expected_rows is not None:
        np.testing.assert_array_equal(rows.columns, expected_rows.columns)
        np.testing.assert_array_equal(rows.rel(), expected_rows.rel())
        if rows.energy is not None and expected_rows.energy is not None and not sums.baseline.nan + sums.target.nan:
            np.testing.assert_allclose(rows.energy, expected_rows.energy, rtol=1e-6)


@needs_compiler
@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 70),
    st.sampled_from([1, 15, 16, 31, 32, 33, 100, 1024, 1030, 4096, 5000]),
    st.sampled_from(["noise", "small noise", "all sizes", "a factor behind the same", "infinite"]),
    st.integers(0, 3),
    st.integers(0, 2**32),
)
def test_sums_of_bfloat16_agree_in_every_bit(rows: int, channels: int, kind: str, instructions: int, seed: int) -> None:
    rng, shape = np.random.default_rng(seed), (rows, channels)
    left, right = (rng.standard_normal(shape) for _ in range(2))
    if kind == "all sizes":
        left, right = (np.ldexp(side, rng.integers(-120, 30, shape)) for side in (left, right))
    elif kind != "noise":
        right = left + 1e-3 * right
    left, right = (side.astype(ml_dtypes.bfloat16) for side in (left, right))
    if kind == "a factor behind the same":
        row = rng.integers(rows)
        right[:row] = left[:row]
        right[row:] = (1.02 * right[row:].astype(np.float32)).astype(right.dtype)
    if kind == "infinite":
        left[rng.integers(rows), rng.integers(channels)] = np.inf
    try:
        assert kernel._compiled.limit(instructions) <= instructions
        sums, table = measure_sums(left, right, by_row=True, by_channel=True)
    finally:
        kernel._compiled.limit(3)
    expected, expected_table = by_reference(left, right, by_row=True)
    assert bits(sums) == bits(expected)
    assert table is not None
    assert expected_table is not None
    np.testing.assert_array_equal(table.columns, expected_table.columns)
    if table.energy is not None and expected_table.energy is not None and kind != "infinite":
        np.testing.assert_allclose(table.energy, expected_table.energy, rtol=1e-6, atol=1e-30)


@needs_compiler
@pytest.mark.parametrize("instructions", [0, 1, 2, 3])
@pytest.mark.parametrize("shape", [(300, 40), (130, 1030), (70, 4096), (33, 17), (64, 1136)])
def test_sums_of_channels_come_with_those_of_rows(
    shape: tuple[int, int], instructions: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(7)
    left = rng.standard_normal(shape) * np.exp(0.3 * rng.standard_normal((shape[0], 1)))
    right = left * (1 + 0.01 * rng.standard_normal(shape))
    right[::10] *= 1.5  # rows of which it is known only at the end how much they weigh
    left, right = (side.astype(ml_dtypes.bfloat16) for side in (left, right))
    right[:5] = left[:5]
    monkeypatch.setattr(kernel, "PIECE", 32 * 2 * 40 * 3)
    try:
        used = kernel._compiled.limit(instructions)
        _, table = measure_sums(left, right, by_row=True, by_channel=True, before=(lambda _: None,))
    finally:
        kernel._compiled.limit(3)
    assert table is not None
    sizes = np.sqrt((table.columns[:, 0] + table.columns[:, 1]) / 2)
    taken = np.zeros(shape[0], np.bool_)
    for part in table.parts:
        rows = np.arange(shape[0])[part.rows][part.taken]
        assert not taken[rows].any()
        taken[rows] = True
        expected = channel_sums(Matrices(left, right), rows, (1 / sizes[rows]).astype(np.float32))
        most = np.sqrt(expected.added * expected.middle)
        sums = part.sums.transpose(1, 0, 2).reshape(4, -1)[:, : shape[1]]
        for name, found in zip(("added", "middle", "product", "total"), sums, strict=True):
            wanted = getattr(expected, name)
            near = 1e-5 * most if name == "product" else 1e-5 * np.sqrt(expected.added) * len(rows) ** 0.5
            assert (np.abs(found - wanted) <= (near if name in ("product", "total") else 1e-5 * wanted)).all(), name
    assert not taken[10::10].any()
    assert taken.mean() > 0.7 if used else not taken.any()


@pytest.mark.parametrize("dtype", [np.dtype(ml_dtypes.bfloat16), np.dtype(np.float16)], ids=str)
@pytest.mark.parametrize("same", [0, 200, 1000])
def test_any_number_of_threads_finds_the_same(dtype: np.dtype[Any], same: int, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(8)
    left = rng.standard_normal((1000, 64)).astype(dtype)
    right = (left.astype(np.float32) + 0.01 * rng.standard_normal(left.shape)).astype(dtype)
    right[:same] = left[:same]
    monkeypatch.setattr(kernel, "PIECE", 20_000)
    found = []
    for threads in (1, 2, 3, 5):
        seen: tuple[list[tuple[int, int]], ...] = ([], [])
        before = tuple(lambda stop, one=one: one.append((threading.get_ident(), stop)) for one in seen)
        sums, table = measure_sums(left, right, by_row=True, by_channel=True, before=before, threads=threads)
        assert table is not None
        for one in seen:
            assert len({thread for thread, _ in one}) == 1
            assert [stop for _, stop in one] == sorted({stop for _, stop in one})
            assert one[-1][1] == left.size
        assert len({one[0][0] for one in seen}) == min(threads, 2)
        parts = [(part.rows, part.sums.tobytes(), part.taken.tobytes()) for part in table.parts]
        energy = None if table.energy is None else table.energy.tobytes()
        found.append((bits(sums), table.columns.tobytes(), energy, table.alike, parts))
    assert all(one == found[0] for one in found)


@needs_compiler
@pytest.mark.parametrize("shape", [(70, 1024), (33, 4096), (1, 1024), (64, 3072), (40, 1040), (600, 1024)])
@pytest.mark.parametrize("kind", ["noise", "same first", "same", "wild", "infinite"])
@pytest.mark.parametrize("dtype", [ml_dtypes.bfloat16, np.float16])
@pytest.mark.parametrize("threads", [1, 3])
def test_checksums_come_with_sums(
    shape: tuple[int, int], kind: str, dtype: Any, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(10)
    left = rng.standard_normal(shape)
    right = left + 0.01 * rng.standard_normal(shape)
    if kind == "wild":
        left[shape[0] // 2, 5] = 1e-30
        left[shape[0] // 2, 1:] = 1e-25
    if kind == "infinite":
        right[-1, -1] = np.inf
    left, right = left.astype(dtype), right.astype(dtype)
    same = {"same first": shape[0] // 2, "same": shape[0]}.get(kind, 0)
    right[:same] = left[:same]
    monkeypatch.setattr(kernel, "PIECE", 200_000)
    calls: list[int] = []
    sums, table = measure_sums(
        left, right, by_row=True, by_channel=True, before=(calls.append, calls.append), digests=True, threads=threads
    )
    expected, expected_table = measure_sums(left, right, by_row=True, by_channel=True, before=(lambda _: None,))
    assert bits(sums) == bits(expected)
    assert table is not None
    assert expected_table is not None
    assert np.array_equal(table.columns, expected_table.columns, equal_nan=True)
    digests = tuple(xxhash.xxh3_64_intdigest(side.tobytes()) for side in (left, right))
    can = dtype == ml_dtypes.bfloat16 and shape[1] % 1024 == 0 and kernel._compiled.digests() is not None
    assert table.digests == (digests if can else ())
    assert bool(calls) != can


@needs_compiler
@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("outlier", [False, True])
def test_what_is_hardly_looked_at_again_is_told(threads: int, outlier: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    left = np.random.default_rng(11).standard_normal((600, 1024)).astype(np.float32)
    left[:, 3] *= 100 if outlier else 1
    right = (1.01 * left).astype(ml_dtypes.bfloat16)
    monkeypatch.setattr(kernel, "PIECE", 200_000)
    seen: list[tuple[int, int]] = []
    measure_sums(
        left.astype(ml_dtypes.bfloat16),
        right,
        by_row=True,
        by_channel=True,
        before=(lambda _: None,),
        after=lambda first, stop: seen.append((first, stop)),
        threads=threads,
    )
    if not outlier:
        assert [first for first, _ in sorted(seen)] == [0, *(stop for _, stop in sorted(seen))][:-1]
        assert max(stop for _, stop in seen) == left.size
        assert len(seen) > 3
    elif threads == 1:  # else other parts may have been looked at before it was known of the first
        assert not seen


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_what_a_thread_raises_is_raised(threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel, "PIECE", 20_000)
    left = np.ones((1000, 64), np.float16)

    def fail(stop: int) -> None:
        if stop > 30_000:
            raise RuntimeError("damaged")

    with pytest.raises(RuntimeError, match="damaged"):
        measure_sums(left, left, before=(lambda _: None, fail), threads=threads)


@settings(max_examples=25, deadline=None)
@given(pairs())
def test_sums_are_those_of_exact_arithmetic(sides: tuple[Array, Array]) -> None:
    dtype = np.promote_types(working_dtype(sides[0].dtype), working_dtype(sides[1].dtype))
    with np.errstate(all="ignore"):
        x, y = (side.astype(dtype).reshape(-1) for side in sides)
        sums, _ = measure_sums(*sides)
        gap = np.abs(y - x)
    if not (np.isfinite(x).all() and np.isfinite(y).all()) or not x.size:
        return
    assert sums.differing == np.count_nonzero(gap)
    assert (sums.largest, sums.largest_at) == (gap.max(), gap.argmax())
    assert (sums.baseline.minimum, sums.target.maximum) == (x.min(), y.max())
    if max(float(np.abs(x).max()), float(np.abs(y).max())) < 1e150:
        exact = math.fsum(float(one) * float(one) for one in x)
        # A block of narrow values is added in float32.
        close = 128 * 2.0**-24 if is_narrow(sides[0].dtype) and is_narrow(sides[1].dtype) else 1e-12
        assert sums.baseline.square == pytest.approx(exact, rel=close, abs=1e-300)
        assert sums.absolute == pytest.approx(math.fsum(map(float, gap)), rel=close, abs=1e-300)


def test_infinities_and_nan_at_the_ends_of_rows() -> None:
    left = np.zeros((3, 1030), np.float32)
    left[0, 0], left[1, 1029], left[2, 1024] = np.inf, np.nan, -np.inf
    right = left.copy()
    for sums in (measure_sums(left, right)[0], by_reference(left, right)[0]):
        assert (sums.baseline.nan, sums.baseline.infinite, sums.nonfinite_equal, sums.differing) == (1, 2, 3, 3)
        assert math.isnan(sums.largest)
        assert sums.largest_at == 0
    for accepted in (measure_sums(left, right, equal_nonfinite=True)[0], by_reference(left, right, accept=True)[0]):
        assert (accepted.largest, accepted.differing, accepted.squared, accepted.baseline_square) == (0, 0, 0, 0)
        assert math.isnan(accepted.baseline.square)


def test_complex_numbers_go_by_their_magnitude() -> None:
    left, right = np.array([3 + 4j, 1j], np.complex64), np.array([3 + 4j, 1], np.complex64)
    sums, rows = measure_sums(left, right, by_row=True)
    assert (sums.baseline.square, sums.baseline.maximum, sums.along, sums.squared) == (26, 5, -1, 2)
    assert rows is not None
    assert rows.rel().tolist() == [0, 1]


@needs_compiler
def test_the_lock_is_let_go() -> None:
    left = np.zeros(1 << 24, np.float32)
    assert turns_beside(lambda: [measure_sums(left, left) for _ in range(3)]) > 100


@needs_compiler
def test_a_buffer_that_is_not_what_was_said_is_refused() -> None:
    numbers = np.zeros(8, np.uint8)
    none, state = np.empty(0), kernel._compiled.state()
    compiled = kernel._compiled.measure
    for arguments in (
        (numbers, 2, None, numbers, 2, None, 8, 8, False, False, none, none, True, state, none, none, none, none),
        (numbers, 99, None, numbers, 5, None, 8, 8, False, False, none, none, True, state, none, none, none, none),
        (numbers, 5, None, numbers, 13, None, 8, 8, False, False, none, none, True, state, none, none, none, none),
        (numbers, 5, None, numbers, 5, None, 8, 0, False, False, none, none, True, state, none, none, none, none),
        (
            numbers,
            5,
            None,
            numbers,
            5,
            None,
            8,
            4,
            False,
            False,
            np.empty(3),
            none,
            True,
            state,
            none,
            none,
            none,
            none,
        ),
        (
            numbers,
            5,
            None,
            numbers,
            5,
            None,
            8,
            4,
            False,
            False,
            none,
            np.empty(5),
            True,
            state,
            none,
            none,
            none,
            none,
        ),
        (
            numbers,
            5,
            None,
            numbers,
            5,
            None,
            8,
            4,
            False,
            False,
            none,
            none,
            True,
            bytearray(8),
            none,
            none,
            none,
            none,
        ),
    ):
        with pytest.raises(ValueError, match=r"was said|needs"):
            compiled(*arguments)


def test_rows_are_cut_where_the_reference_takes_pieces() -> None:
    assert reference.CHUNK % reference.LANES == 0
    left = np.random.default_rng(0).standard_normal((2, reference.CHUNK + 3))
    whole, _ = by_reference(left, left + 1, by_row=True)
    assert whole.squared == pytest.approx(left.size, rel=1e-9)


@pytest.mark.parametrize("compiled", [pytest.param(True, marks=needs_compiler), False])
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.sampled_from([np.dtype("f2"), np.dtype("f8"), *map(np.dtype, SMALL[:2])]),
    st.integers(0, 130),
    st.sampled_from([1, 9, 1024, 1030]),
    st.sampled_from([0, 1, 16, 40, 200]),
    st.sampled_from([0, 1, 20, 200]),
    st.booleans(),
    st.integers(0, 2**32),
)
def test_sums_in_pieces_are_those_at_once(
    compiled: bool, dtype: np.dtype[Any], rows: int, channels: int, same: int, again: int, by_row: bool, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    left = rng.standard_normal((rows, channels)).astype(dtype)
    right = (left.astype(np.float64) + 0.1 * rng.standard_normal(left.shape)).astype(dtype)
    right[:same] = left[:same]
    right[same + 3 :][:again] = left[same + 3 :][:again]
    if rows and seed % 4 == 0 and dtype.name != "float8_e4m3fn":
        right[seed % rows, 0] = np.nan
    seen: list[int] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kernel, "PIECE", 20_000)
        if not compiled:
            patch.setattr(kernel, "_compiled", None)
        sums, table = measure_sums(left, right, by_row=by_row, by_channel=by_row, before=(seen.append,))
        expected, expected_table = measure_sums(left, right, by_row=by_row, by_channel=by_row)
    assert bits(sums) == bits(expected)
    assert seen == sorted(set(seen))
    if table is None or expected_table is None:
        assert table is expected_table
        return
    assert np.array_equal(table.columns, expected_table.columns, equal_nan=True)
    assert table.alike == expected_table.alike
    if np.isfinite(right).all():
        assert (table.energy is None) == (expected_table.energy is None)
        # Other rows are added in float32, where some are the same.
        assert table.energy is None or np.allclose(table.energy, expected_table.energy, rtol=1e-5)


@settings(max_examples=40, deadline=None)
@given(
    st.sampled_from([np.dtype("f2"), np.dtype("f4"), *map(np.dtype, SMALL[:3])]),
    st.integers(1, 40),
    st.sampled_from([1, 7, 8, 9, 1023, 1024, 1030]),
    st.integers(-30, 30),
    st.integers(0, 40),
    st.integers(0, 2**32),
)
def test_one_pass_finds_what_the_analysis_looks_for_first(
    dtype: np.dtype[Any], rows: int, channels: int, power: int, alike: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    with np.errstate(all="ignore"):
        left = np.clip(np.ldexp(rng.standard_normal((rows, channels)), power), -200, 200).astype(dtype)
        right = np.clip(left.astype(np.float64) * (1 + 0.01 * rng.standard_normal(left.shape)), -200, 200).astype(dtype)
    right[rng.integers(rows)] = left[0]
    right[:alike] = left[:alike]
    _, table = measure_sums(left, right, by_row=True, by_channel=True)
    assert table is not None
    if table.energy is None:
        assert left.tobytes() == right.tobytes()
        return
    found = look_of_finite(table.columns[:, :5], table.columns[:, 5].astype(np.int64), table.energy)
    expected = first_look(Matrices(left, right))
    assert np.array_equal(found.counts.differing, expected.counts.differing)
    sums = expected.rows
    most = sums.baseline + sums.target + np.sqrt(sums.added) * channels**0.5
    for name in ("baseline", "target", "middle", "added", "product", "total"):
        assert (np.abs(getattr(found.rows, name) - getattr(sums, name)) <= 1e-5 * most).all(), name
    np.testing.assert_allclose(found.energy, expected.energy, rtol=1e-5)
