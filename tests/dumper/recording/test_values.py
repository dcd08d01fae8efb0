"""What goes in comes out, bit for bit."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dumper.values.dtypes import KNOWN
from dumper.values.plain import UnrecordableError, decode_value, encode_value
from tests.dumper.recording.conftest import Recording

DTYPES = sorted(name for name in KNOWN if hasattr(torch, name))
SHAPES = [(), (1,), (0,), (3, 0, 2), (7, 5), (2, 3, 4), (400, 300)]


def _random_bits(dtype: str, shape: tuple[int, ...], generator: np.random.Generator) -> torch.Tensor:
    """A tensor of any bit patterns: NaN with payloads, negative zero, subnormal numbers."""
    kind = getattr(torch, dtype)
    size = math.prod(shape) * kind.itemsize
    high = 2 if dtype == "bool" else 256
    data = generator.integers(0, high, size, dtype=np.uint8)
    return torch.from_numpy(data).view(kind).reshape(shape) if size else torch.empty(shape, dtype=kind)


def _bytes(value: torch.Tensor) -> bytes:
    flat = value.detach().resolve_conj().resolve_neg().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().tobytes() if flat.numel() else b""


@pytest.mark.filterwarnings("ignore:ComplexHalf")
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_dtype_and_shape_comes_back_bit_for_bit(recording: Recording, dtype: str) -> None:
    generator = np.random.default_rng(7)
    values = [_random_bits(dtype, shape, generator) for shape in SHAPES]
    recorder = recording.start()
    for number, value in enumerate(values):
        recorder.dump("x", value, number=number)
    run = recording.read()
    assert not run.problems
    for record, value in zip(run.records, values, strict=True):
        assert (record.dtype, record.shape) == (dtype, tuple(value.shape))
        assert record.tensor().dtype == value.dtype
        assert record.tensor().shape == value.shape
        assert _bytes(record.tensor()) == _bytes(value)
        assert record.array().tobytes() == _bytes(value)
        assert record.is_intact()


def test_there_is_a_test_for_every_dtype_of_the_brief() -> None:
    wanted = (
        "bfloat16 float16 float32 float64 int8 int16 int32 int64 uint8 uint16 uint32 uint64 bool complex64 complex128"
    )
    assert set(wanted.split()) | {"float8_e4m3fn", "float8_e5m2"} <= set(DTYPES)


@pytest.mark.parametrize(
    "make",
    [
        pytest.param(lambda base: base.t(), id="transposed"),
        pytest.param(lambda base: base[::2, 1:5:3], id="strided"),
        pytest.param(lambda base: base[3], id="row"),
        pytest.param(lambda base: base[:, 3], id="column"),
        pytest.param(lambda base: base[0, 0], id="scalar"),
        pytest.param(lambda base: base[:0], id="empty"),
        pytest.param(lambda base: base[:1].expand(5, -1), id="expanded"),
        pytest.param(lambda base: base.unsqueeze(1).to(memory_format=torch.contiguous_format), id="squeezed"),
        pytest.param(lambda base: torch.complex(base, -base).conj(), id="conjugated"),
        pytest.param(lambda base: torch.complex(base, -base).conj().imag, id="negated"),
        pytest.param(lambda base: base.requires_grad_(), id="leaf"),
        pytest.param(torch.nn.Parameter, id="parameter"),
        pytest.param(lambda base: base.clone().to(torch.bfloat16).t(), id="bf16-transposed"),
        pytest.param(lambda base: base.repeat(100, 40).t(), id="large-transposed"),
        pytest.param(lambda base: torch.complex(base, base).repeat(100, 40).conj(), id="large-conjugated"),
    ],
)
def test_views_are_recorded_as_they_look(
    roundtrip: Callable[[Any], Any], make: Callable[[torch.Tensor], torch.Tensor]
) -> None:
    value = make(torch.arange(48, dtype=torch.float32).reshape(6, 8) + 0.5)
    expected = value.detach().clone()
    record = roundtrip(value)
    assert record.shape == tuple(expected.shape)
    assert _bytes(record.tensor()) == _bytes(expected)


def test_values_are_recorded_as_they_were_at_the_call(recording: Recording) -> None:
    recorder = recording.start()
    small, large = torch.zeros(10), torch.zeros(500_000)
    for number in range(20):
        small.fill_(number)
        large.fill_(number)
        recorder.dump("small", small)
        recorder.dump("large", large)
    small.fill_(-1)
    large.fill_(-1)
    run = recording.read()
    for name in ("small", "large"):
        records = run.select(name=name)
        assert [record.occurrence for record in records] == list(range(20))
        for number, record in enumerate(records):
            assert (record.array() == number).all()


def test_recording_works_in_and_after_inference_mode(recording: Recording) -> None:
    recorder = recording.start()
    with torch.inference_mode():
        recorder.dump("inside", torch.ones(300_000))
        recorder.dump("inside small", torch.ones(3))
        recorder.flush()
    recorder.dump("outside", torch.full((300_000,), 2.0))
    recorder.flush()
    with torch.inference_mode():
        recorder.dump("inside again", torch.full((300_000,), 3.0))
    run = recording.read()
    assert [float(record.array()[-1]) for record in run.records] == [1.0, 1.0, 2.0, 3.0]
    assert not run.problems


@pytest.mark.parametrize("dtype", ["float64", "float32", "float16", "int8", "uint16", "uint64", "bool", "complex128"])
def test_numpy_arrays(roundtrip: Callable[[Any], Any], dtype: str) -> None:
    array = np.arange(24).reshape(4, 6).astype(dtype)[:, ::2]
    record = roundtrip(array)
    assert (record.dtype, record.shape) == (dtype, (4, 3))
    np.testing.assert_array_equal(record.array(), array)


def test_big_endian_arrays_keep_their_values(roundtrip: Callable[[Any], Any]) -> None:
    array = np.arange(5, dtype=">i4")
    np.testing.assert_array_equal(roundtrip(array).array(), array)


PLAIN = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**200), 2**200)
    | st.floats(allow_nan=False)
    | st.complex_numbers(allow_nan=False)
    | st.text(st.characters(codec=None, categories=None), max_size=10)
    | st.binary(max_size=10),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.text(max_size=5) | st.integers() | st.booleans() | st.none(), inner, max_size=4)
    ),
    max_leaves=12,
)


def _same(left: Any, right: Any) -> bool:
    """Equal, and of the same types all the way down; -0.0 is not 0.0."""
    if type(left) is not type(right):
        return False
    if isinstance(left, list):
        return len(left) == len(right) and all(map(_same, left, right))
    if isinstance(left, dict):
        return _same(list(left.keys()), list(right.keys())) and _same(list(left.values()), list(right.values()))
    return repr(left) == repr(right)


@given(PLAIN)
@settings(max_examples=80)
def test_plain_values_come_back_with_their_types(value: Any) -> None:
    assert _same(decode_value(encode_value(value)), value)


@given(st.lists(PLAIN, min_size=1, max_size=5))
@settings(max_examples=8, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_plain_values_through_a_file(tmp_path_factory: pytest.TempPathFactory, values: list[Any]) -> None:
    recording = Recording(tmp_path_factory.mktemp("plain"))
    recorder = recording.start()
    for value in values:
        recorder.dump("x", value)
    run = recording.read()
    assert all(_same(record.value, value) for record, value in zip(run.records, values, strict=True))
    assert run.losses == 0


def test_tuples_come_back_as_lists_and_nan_as_nan(roundtrip: Callable[[Any], Any]) -> None:
    value = roundtrip({"t": (1, (2.5, None)), "nan": math.nan, "numpy": np.float32(0.5)}).value
    assert value["t"] == [1, [2.5, None]]
    assert math.isnan(value["nan"])
    assert value["numpy"] == 0.5


@pytest.mark.parametrize(
    "value", [object(), {1, 2}, {(1, 2): 3}, [torch.ones(2)], print, pytest.param(10**5000, id="huge")]
)
def test_what_cannot_be_encoded_says_so(value: Any) -> None:
    with pytest.raises(UnrecordableError, match="cannot be recorded"):
        encode_value(value)


def test_a_list_that_holds_itself_is_refused() -> None:
    value: list[Any] = []
    value.append(value)
    with pytest.raises(UnrecordableError, match="nested"):
        encode_value(value)


@pytest.mark.parametrize("compression", [None, "zstd"])
def test_compression_changes_nothing_but_the_size(recording: Recording, compression: str | None) -> None:
    values = [torch.zeros(100), torch.arange(5), torch.zeros(400_000), torch.randn(400_000)]
    recorder = recording.start(compression=compression)
    for value in values:
        recorder.dump("x", value)
    recorder.dump("v", {"text": "a" * 5000})
    run = recording.read()
    for record, value in zip(run.records, values, strict=False):
        assert _bytes(record.tensor()) == _bytes(value)
    assert run.select(name="v")[0].value == {"text": "a" * 5000}
    assert (run.records[2].nbytes < 400_000) == (compression == "zstd")


def test_a_value_beyond_the_largest_payload_is_split(recording: Recording, monkeypatch: pytest.MonkeyPatch) -> None:
    # 2 GiB in the format; made smaller here, since the machine that tests may not have the memory.
    monkeypatch.setattr("dumper.format.frames.LARGEST_PAYLOAD", 100_000)
    value = torch.randn(200, 300, 7)
    recording.start().dump("x", value)
    record = recording.read().records[0]
    assert torch.equal(record.tensor(), value)
    assert record.is_intact()


def test_arrays_are_views_of_the_mapped_file(recording: Recording) -> None:
    recorder = recording.start()
    recorder.dump("a", torch.arange(1000))
    array = recording.read().records[0].array()
    assert not array.flags.owndata
    assert not array.flags.writeable
    assert array.ctypes.data % 64 == 0
