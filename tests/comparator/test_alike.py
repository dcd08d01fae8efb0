"""Pairs that are measured in one call, against each measured by itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from unittest import mock

import ml_dtypes
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from comparator.measure import kernel, torch_sums
from comparator.measure.alike import measure_alike
from comparator.measure.kernel import SEGMENT, measure_sums
from comparator.measure.kernel.many import Places, measure_many
from comparator.measure.kernel.sums import Array, working_dtype
from comparator.measure.measurement import Failure, Measurement, TensorMeasurement, packed
from comparator.measure.units import SMALL, measure_unit, units_of
from comparator.options import Options
from comparator.prepared import Prepared, prepare
from comparator.rules import SGLANG_RULES
from dumper.reading.open import open_run
from tests.comparator.fakes import FakeRecord, FakeRun, one_request
from tests.comparator.recording import write_run

DTYPES = [np.dtype(one) for one in ("f2", "f4", "f8", "i1", "u1", "i4", "u8", "?")]
DTYPES += [np.dtype(one) for one in (ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn)]
TORCH = [torch.float32, torch.bfloat16, torch.float16, torch.float64, torch.int32, torch.int64, torch.bool]


def numbers(rng: np.random.Generator, shape: tuple[int, ...], peculiar: bool) -> Array:
    """Values of one size, some of them zeros, NaN and infinities where they are to be ``peculiar``."""
    found = rng.standard_normal(shape)
    if peculiar:
        some = rng.random(shape)
        found[some < 0.3], found[some < 0.1], found[some < 0.05] = 0, np.nan, np.inf
    return found


def lying(arrays: list[Array], rng: np.random.Generator) -> Places:
    """The arrays in one piece of memory, in any order, with gaps."""
    data, starts = bytearray(), np.zeros(len(arrays), np.int64)
    for number in rng.permutation(len(arrays)).tolist():
        data += bytes(8 * int(rng.integers(4)))
        data += bytes(-len(data) % 8)
        starts[number] = len(data)
        data += arrays[number].tobytes()
    return Places(bytes(data), starts, arrays[0].dtype)


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 2**32),
    st.sampled_from(DTYPES),
    st.sampled_from(DTYPES),
    st.lists(st.integers(1, 20), min_size=1, max_size=6),
    st.sampled_from([1, 7, 32, 1030]),
    st.booleans(),
    st.booleans(),
    st.booleans(),
)
def test_sums_of_many_are_those_of_each(
    seed: int, one: Any, other: Any, rows: list[int], length: int, by_row: bool, accept: bool, compiled: bool
) -> None:
    rng = np.random.default_rng(seed)
    with np.errstate(all="ignore"):
        sides = [
            [numbers(rng, (count, length), number % 2 == 0).astype(dtype) for number, count in enumerate(rows)]
            for dtype in (one, other)
        ]
    sizes = np.array(rows) * length
    places = [lying(side, rng) for side in sides]
    dtype = np.promote_types(working_dtype(one), working_dtype(other))
    with mock.patch.object(kernel, "_compiled", kernel._compiled if compiled else None), np.errstate(all="ignore"):
        many = measure_many(
            *places, sizes, length if by_row else SEGMENT, dtype=dtype, equal_nonfinite=accept, by_row=by_row,
            by_channel=by_row,
        )  # fmt: skip
        start = 0
        for number, (left, right) in enumerate(zip(*sides, strict=True)):
            sums, table = measure_sums(left, right, equal_nonfinite=accept, by_row=by_row, by_channel=by_row)
            expected = [*sums.baseline[:5], *sums.target[:5], *sums[2:7], sums.largest]
            np.testing.assert_array_equal(many.numbers[number], expected)
            counts = [*sums.baseline[5:], *sums.target[5:], sums.differing, sums.nonfinite_equal, sums.largest_at]
            assert many.counts[number].tolist() == counts
            if table is not None and many.rows is not None:
                np.testing.assert_array_equal(many.rows[start : start + len(left)], table.columns)
                start += len(left)
                if many.energy is not None and table.energy is not None:
                    np.testing.assert_array_equal(many.energy[number], table.energy)
                elif many.energy is not None:
                    assert np.isnan(many.energy[number, 0])


@pytest.mark.skipif(not kernel.COMPILED, reason="the kernel is not built: python setup.py build_ext -i")
def test_places_outside_the_data_are_refused() -> None:
    data, right = np.zeros(64, np.float32), np.zeros(1, np.int64)
    for start, size in ((-4, 1), (2, 1), (0, 65), (256, 1), (2**62, 1), (0, 2**62), (0, -1)):
        left = Places(data.tobytes(), np.array([start]), data.dtype)
        with pytest.raises(ValueError, match="place or alignment"):
            measure_many(left, Places(data.tobytes(), right, data.dtype), np.array([size]), 8, dtype=data.dtype)


def written(folder: Path, draw: st.DrawFn, rng: np.random.Generator) -> tuple[Path, Path]:
    """Two runs of a name in some steps, of one dtype, alike but for some steps."""
    dtype, dims = draw(st.sampled_from(TORCH)), draw(st.sampled_from(["t h", "t h", "h t", None, "t"]))
    counts = draw(st.lists(st.sampled_from([0, 1, 5, 5, 5, 5, 5, 5]), min_size=2, max_size=6))
    layouts = draw(st.booleans())
    sides = []
    for side in ("a", "b"):
        records = []
        for step, count in enumerate(counts):
            shape = {"t h": (count, 12), "h t": (12, count), None: (count, 3, 4), "t": (count,)}[dims]
            if side == "b" and draw(st.integers(0, 7)) == 0:
                shape = (*shape[:-1], shape[-1] + 1)
            values = numbers(rng, shape, draw(st.booleans()))
            if draw(st.booleans()):
                values = np.ones(shape)
            if step and draw(st.integers(0, 7)) == 0:
                records.append(FakeRecord("x", None, step=step, value="text", dims=dims))
            else:
                tensor = torch.from_numpy(np.nan_to_num(values) if not dtype.is_floating_point else values).to(dtype)
                records.append(FakeRecord("x", None, step=step, value=tensor, dims=dims))
        run = FakeRun(records, layouts=one_request(counts) if layouts else {})
        sides.append(write_run(run, folder / side))
    return sides[0], sides[1]


def dumped(folder: Path, draw: st.DrawFn, rng: np.random.Generator) -> tuple[Path, Path]:
    """The same as two dumps of SGLang's, with layers, and with files that are not read together."""
    dtype, rows = draw(st.sampled_from(TORCH)), draw(st.sampled_from([5, 5, 40_000]))
    names = [(step, layer) for step in range(2) for layer in range(draw(st.integers(1, 4)))]
    for side in ("a", "b"):
        (folder / side).mkdir()
        for number, (step, layer) in enumerate(names):
            shape: tuple[int, ...] = draw(st.sampled_from([(rows,)] + 4 * [(rows, 4), (2, 3, rows)]))
            value: Any = numbers(rng, shape, draw(st.booleans()))
            if draw(st.booleans()):
                value = np.ones(shape)
            value = torch.from_numpy(np.nan_to_num(value) if not dtype.is_floating_point else value).to(dtype)
            special = draw(st.integers(0, 11))
            if special == 0:
                value = value.swapaxes(0, -1)
            elif special == 1:
                value = "text"
            elif special == 2:
                value = torch.nn.Parameter(value) if dtype.is_floating_point else value[:0]
            parts = f"step={step}___rank=0___dump_index={number}___name=x___layer_id={layer}"
            torch.save({"value": value, "meta": {"dims": None}}, folder / side / f"{parts}.pt")
    return folder / "a", folder / "b"


def by_itself(prepared: Prepared) -> list[tuple[Measurement, Any]]:
    found = []
    for unit in prepared.units:
        for number in unit.pairs:
            for selected in prepared.select(number):
                tables: list[Any] = []
                measurement = prepared.measurer.measure(selected, see=lambda *seen, to=tables: to.append(seen[2]))  # type: ignore[misc]
                found.append((measurement, tables[0] if tables else None))
    return found


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data(), st.booleans())
def test_what_is_measured_together_is_what_is_measured_of_each(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject, equal_nan: bool
) -> None:
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    left, right = written(tmp_path_factory.mktemp("alike"), data.draw, rng)
    prepared = prepare(open_run(left), open_run(right), Options(equal_nan=equal_nan))
    expected = by_itself(prepared)
    selected = [one for unit in prepared.units for number in unit.pairs for one in prepared.select(number)]
    together = measure_alike(selected, prepared.measurer, by_channel=True)
    for number, found in together.items():
        measurement, table = expected[number]
        assert isinstance(measurement, TensorMeasurement)
        assert packed(found.measurement) == packed(measurement)
        assert (found.rows is None) == (table is None)
        if found.rows is not None:
            np.testing.assert_array_equal(found.rows.columns, table.columns)
            assert (found.rows.energy is None) == (table.energy is None)
            if table.energy is not None:
                np.testing.assert_array_equal(found.rows.energy, table.energy)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data(), st.booleans(), st.booleans())
def test_files_that_are_measured_together_give_what_each_gives(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject, samples: bool, compiled: bool
) -> None:
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    left, right = dumped(tmp_path_factory.mktemp("alike"), data.draw, rng)
    prepared = prepare(open_run(left), open_run(right), Options(samples=samples))
    expected = by_itself(prepared)
    selected = [one for number in range(len(prepared.pairs)) for one in prepared.select(number)]
    with mock.patch.object(torch_sums, "_compiled", torch_sums._compiled if compiled else None):
        together = measure_alike(selected, prepared.measurer, by_channel=False)
    for number, found in together.items():
        assert repr(found.measurement) == repr(expected[number][0])  # all digits; NaN has a sign that nobody shows
        assert found.rows is None


@pytest.fixture(scope="module")
def dumps(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    rng, folder = np.random.default_rng(0), tmp_path_factory.mktemp("dumps")
    for name in ("a", "b"):
        (folder / name).mkdir()
        for number in range(70):
            value = torch.from_numpy(rng.standard_normal((4, 16))).to(torch.bfloat16)
            parts = f"step=0___rank=0___dump_index={number}___name=x___layer_id={number}"
            torch.save({"value": value, "meta": {"dims": "t h"}}, folder / name / f"{parts}.pt")
    return folder / "a", folder / "b"


def test_small_files_are_measured_together_and_one_that_changed_by_itself(dumps: tuple[Path, Path]) -> None:
    prepared = prepare(*map(open_run, dumps), Options())
    assert [len(unit.pairs) for unit in prepared.units] == [32, 32, 6]
    selected = [one for number in prepared.units[2].pairs for one in prepared.select(number)]
    assert list(measure_alike(selected, prepared.measurer, by_channel=False)) == list(range(6))
    torch.save({"value": torch.zeros(4, 16), "meta": {}}, next(dumps[1].glob("*layer_id=66.pt")))
    assert list(measure_alike(selected, prepared.measurer, by_channel=False)) == [0, 1, 3, 4, 5]
    next(dumps[0].glob("*layer_id=67.pt")).write_bytes(b"")
    assert list(measure_alike(selected, prepared.measurer, by_channel=False)) == [0, 1, 4, 5]
    found = [row.measurement for row in measure_unit(prepared.units[2], prepared.select, prepared.measurer).rows]
    assert [isinstance(one, Failure) for one in found] == [False, False, False, True, False, False]


def test_pairs_that_take_much_are_units_by_themselves() -> None:
    runs = [FakeRun([FakeRecord(f"x{size}", np.zeros(size, np.int8)) for size in (4, 5, SMALL, 7, 8)])] * 2
    prepared = prepare(*runs, Options())
    units = units_of(prepared.pairs, prepared.members, SGLANG_RULES)
    assert [unit.pairs for unit in units] == [(0, 1), (2,), (3, 4)]
    assert [unit.number for unit in units] == [0, 1, 2]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    rng, folder = np.random.default_rng(0), tmp_path_factory.mktemp("runs")
    values = [rng.standard_normal((4, 16)).astype(np.float32) for _ in range(6)]
    for name in ("a", "b"):
        write_run(
            FakeRun([FakeRecord("x", one, step=step, dims="t h") for step, one in enumerate(values)]), folder / name
        )
    return folder / "a", folder / "b"


def test_small_pairs_are_measured_together_and_a_damaged_one_by_itself(runs: tuple[Path, Path]) -> None:
    prepared = prepare(*map(open_run, runs), Options())
    (unit,) = prepared.units
    selected = [one for number in unit.pairs for one in prepared.select(number)]
    assert list(measure_alike(selected, prepared.measurer, by_channel=False)) == list(range(6))
    (file,) = runs[1].glob("*.msgpack")
    damaged = bytearray(file.read_bytes())
    record = open_run(runs[1]).records[2]
    damaged[int(record.source.partition("@")[2]) + 200] ^= 1
    file.write_bytes(damaged)
    prepared = prepare(*map(open_run, runs), Options())
    selected = [one for number in unit.pairs for one in prepared.select(number)]
    assert list(measure_alike(selected, prepared.measurer, by_channel=False)) == [0, 1, 3, 4, 5]
    found = [row.measurement for row in measure_unit(unit, prepared.select, prepared.measurer).rows]
    assert [isinstance(one, Failure) for one in found] == [False, False, True, False, False, False]
