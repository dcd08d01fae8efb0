"""Statistics on the host: one definition in numpy and C, which agree in every bit, held against plain sums."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dumper.values import statistics as measured
from dumper.values.dtypes import name_of, numpy_dtype
from dumper.values.measures import STATISTICS_BYTES, decode_statistics, device_statistics, named_statistics
from dumper.values.memory_rows import MemoryRows
from dumper.values.statistics import COMPILED, of_array, of_rows, put_statistics, reference
from tests.harness.interpreter_lock import turns_beside

needs_compiler = pytest.mark.skipif(not COMPILED, reason="the module is not built: python setup.py build_ext -i")
DTYPES = measured._KINDS
LEVELS = (0, 1, 2) if COMPILED else ()
INTEGERS = tuple(name for name in DTYPES if "int" in name)


@pytest.fixture(autouse=True)
def all_instructions() -> Any:
    yield
    if COMPILED:
        measured._compiled.limit(2)


def some(dtype: str, data: bytes) -> npt.NDArray[Any]:
    """Whatever these bytes are, in a type of which any bytes are elements."""
    kind = numpy_dtype(dtype)
    if dtype == "bool":
        return np.frombuffer(data, np.uint8) > 127
    return np.frombuffer(data[: len(data) // kind.itemsize * kind.itemsize], kind)


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(DTYPES), st.integers(0, 9000), st.integers(0, 2**32 - 1), st.integers(0, 3))
def test_all_ways_to_compute_them_are_one(dtype: str, nbytes: int, seed: int, calm: int) -> None:
    data = np.random.default_rng(seed).bytes(nbytes)
    array = some(dtype, data)
    with np.errstate(invalid="ignore"):
        if calm:  # all finite
            array = array[np.isfinite(array.astype(np.float64))]
        expected = reference.statistics(array)
    for instructions in LEVELS:
        assert measured._compiled.limit(instructions) <= instructions
        assert of_array(array) == expected, instructions
    # Behind another byte, so that elements are not aligned.
    shifted = bytearray(b"1" + array.tobytes())
    if COMPILED:
        address = np.frombuffer(shifted, np.uint8).ctypes.data + 1
        kind = measured.kind_of(dtype)
        assert kind is not None
        assert of_rows(address, MemoryRows(array.nbytes, 1, 0), kind) == expected
        to = np.zeros(STATISTICS_BYTES, np.uint8)
        put_statistics(to.ctypes.data, address, array.nbytes, 1, 0, kind)
        assert to.tobytes() == expected


@needs_compiler
@settings(max_examples=60, deadline=None)
@given(st.sampled_from(DTYPES), st.integers(0, 40), st.integers(1, 700), st.integers(0, 9), st.integers(0, 2**32 - 1))
def test_rows_that_do_not_follow_on(dtype: str, height: int, width: int, between: int, seed: int) -> None:
    itemsize = numpy_dtype(dtype).itemsize
    pitch = width + between
    array = some(dtype, np.random.default_rng(seed).bytes(height * pitch * itemsize)).reshape(height, pitch)[:, :width]
    with np.errstate(invalid="ignore"):
        expected = reference.statistics(array)
    kind = measured.kind_of(dtype)
    assert kind is not None
    assert of_rows(array.ctypes.data, MemoryRows(width * itemsize, height, pitch * itemsize), kind) == expected


@pytest.mark.parametrize("dtype", [name for name in DTYPES if numpy_dtype(name).itemsize <= 2])
def test_every_element_of_small_types(dtype: str) -> None:
    itemsize = numpy_dtype(dtype).itemsize
    for element in range(256**itemsize) if itemsize == 1 else range(0, 65536, 7):
        array = some(dtype, element.to_bytes(itemsize, "little"))
        number = float(array[0])
        found = decode_statistics(of_array(array))
        finite = number if math.isfinite(number) else 0.0
        assert found == {
            **{"min": finite, "max": finite, "mean": finite, "abs_mean": abs(finite), "l2": abs(finite)},
            **{"nan": int(math.isnan(number)), "inf": int(math.isinf(number))},
        }


@pytest.mark.parametrize("dtype", ["float64", "float32", "float16", "bfloat16", "int16", "int32"])
@pytest.mark.parametrize("size", [1, 16, 511, 512, 513, 3_000_001])
def test_they_are_what_they_say(dtype: str, size: int) -> None:
    rng = np.random.default_rng(size)
    array = (rng.standard_normal(size) * 100).astype(numpy_dtype(dtype))
    wide = array.astype(np.float64)
    found = decode_statistics(of_array(array))
    assert (found["min"], found["max"]) == (wide.min(), wide.max())
    assert found["mean"] == pytest.approx(math.fsum(wide) / size, rel=1e-9, abs=1e-12)
    assert found["abs_mean"] == pytest.approx(math.fsum(np.abs(wide)) / size, rel=1e-12)
    assert found["l2"] == pytest.approx(math.sqrt(math.fsum(wide * wide)), rel=1e-12)
    assert (found["nan"], found["inf"]) == (0, 0)


@pytest.mark.parametrize("where", [0, 5, 15, 16, 511, 512, 1000, 1023])
@pytest.mark.parametrize("what", [math.nan, math.inf, -math.inf])
def test_one_element_that_is_not_finite(where: int, what: float) -> None:
    """It is counted, and the others are as if it were a zero, wherever it is."""
    for dtype in (np.float32, np.float64, np.float16):
        array = np.arange(-500, 524).astype(dtype)
        array[where] = what
        rest = np.delete(array, where).astype(np.float64)
        found = decode_statistics(of_array(array))
        assert (found["nan"], found["inf"]) == (int(math.isnan(what)), int(math.isinf(what)))
        assert (found["min"], found["max"]) == (rest.min(), rest.max())
        assert found["mean"] == rest.sum() / 1023
        assert found["l2"] == pytest.approx(math.sqrt((rest * rest).sum()), rel=1e-15)


def test_squares_that_overflow_are_infinite_and_nothing_else_is() -> None:
    found = decode_statistics(of_array(np.array([1e200, -1e200, 3.0, math.nan])))
    assert found == {
        "min": -1e200,
        "max": 1e200,
        "mean": 1.0,
        "abs_mean": 2e200 / 3,
        "l2": math.inf,
        "nan": 1,
        "inf": 0,
    }


@pytest.mark.parametrize("dtype", INTEGERS)
def test_sums_of_integers_are_exact(dtype: str) -> None:
    limits = np.iinfo(dtype)
    array = np.array([limits.max, limits.min, 1, limits.max] * 3, dtype)
    expected = sum(int(element) for element in array) / len(array)
    assert decode_statistics(of_array(array))["mean"] == expected
    assert decode_statistics(reference.statistics(array))["mean"] == expected


@pytest.mark.parametrize("dtype", DTYPES)
def test_torch_says_the_same(dtype: str) -> None:
    """Of CUDA tensors without a kernel, and of complex ones, it is torch that computes them."""
    bits = np.random.default_rng(5).bytes(8 * 1200)
    array = some(dtype, bits)
    if dtype in ("float32", "float64"):
        array = np.clip(array, -1e30, 1e30)
    value = torch.from_numpy(array.view(np.uint8 if dtype == "bool" else f"u{array.itemsize}").copy())
    value = value.view(getattr(torch, dtype))
    with np.errstate(invalid="ignore"):
        found, expected = decode_statistics(of_array(array)), named_statistics(device_statistics(value).tolist())
    assert found == pytest.approx(expected, rel=1e-5)
    assert (found["nan"], found["inf"], found["min"]) == (expected["nan"], expected["inf"], expected["min"])


def test_strides_and_complex_numbers() -> None:
    array = np.arange(24, dtype=np.float32).reshape(4, 6)
    for view in (array.T, array[::2, ::-1], array[:, 1:3], array[0, 0]):
        assert of_array(view) == of_array(np.ascontiguousarray(view))
    assert decode_statistics(of_array(np.array([3 + 4j, 0]))) == {
        **{"min": 0.0, "max": 5.0, "mean": 2.5, "abs_mean": 2.5, "l2": 5.0, "nan": 0, "inf": 0}
    }


def test_types_it_does_not_know() -> None:
    assert measured.kind_of("complex64") is None
    assert measured.kind_of("int4") is None
    if COMPILED:
        for rows_and_kind in ((-1, 1, 0, 0), (1, -1, 0, 0), (1, 1, -1, 0), (1, 1, 0, -1), (1, 1, 0, len(DTYPES))):
            with pytest.raises(ValueError, match="kind that does not exist"):
                measured._compiled.statistics(0, *rows_and_kind)


def test_without_a_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    array = np.arange(1000, dtype=np.float32)
    expected = of_array(array)
    monkeypatch.setattr(measured, "COMPILED", False)
    assert measured.kind_of(name_of(array.dtype)) is None
    assert of_array(array) == expected


@needs_compiler
def test_other_threads_run_meanwhile() -> None:
    array = np.ones(30_000_000, np.float32)
    assert turns_beside(lambda: of_array(array)) > 100
