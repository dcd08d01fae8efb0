"""The kernels of ``dumper/values/device_kernels`` in Triton's interpreter, which runs them on tensors of the host.

``test_device_kernels.py`` runs this file in a process of its own, since Triton has to be imported for the interpreter.
"""

from __future__ import annotations

import ctypes
import math
import os
from typing import Any

import numpy as np
import pytest
import torch

from dumper.values.device_kernels import launching, many, single
from dumper.values.device_kernels.launching import Launcher
from dumper.values.fingerprint import block_sums
from dumper.values.measures import STATISTICS, decode_statistics, device_statistics, named_statistics
from dumper.values.statistics import of_array

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")  # numpy warns of NaN and of numbers that wrap around

FLOATS = ["bfloat16", "float16", "float32", "float64", "float8_e4m3fn", "float8_e5m2"]
FLOATS += ["float8_e4m3fnuz", "float8_e5m2fnuz", "float8_e8m0fnu"]
INTEGERS = ["int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "bool"]
PACKED = ["float8_e4m3fn", "float8_e5m2", "int8", "uint8", "bool"]
"""Four elements are handled as one word."""
PROGRAMS = 3


def at(address: int, dtype: torch.dtype) -> torch.Tensor:
    """A tensor that begins there, whatever its length: a kernel looks at addresses alone."""
    if not address:
        return torch.zeros(1, dtype=dtype)
    return torch.frombuffer((ctypes.c_char * dtype.itemsize).from_address(address), dtype=dtype)


def launch_interpreted(self: Launcher, programs: int, stream: int, *arguments: int) -> None:
    """With small tiles, so that a few elements make several of them and the interpreter is done soon."""
    given = [
        argument if dtype is None else at(argument, dtype)
        for argument, dtype in zip(arguments, self.types, strict=True)
    ]
    smaller = {"ROWS": 8, "MOST_PROGRAMS": 4}
    if "INSTRUCTIONS" in self.constants:
        smaller["INSTRUCTIONS"] = 0
    self.kernel[(programs,)](*given, **(self.constants | smaller))


@pytest.fixture(autouse=True)
def interpreted(monkeypatch: pytest.MonkeyPatch) -> None:
    assert os.environ["TRITON_INTERPRET"] == "1"
    monkeypatch.setattr(Launcher, "launch", launch_interpreted)
    monkeypatch.setattr(
        Launcher, "starter", lambda self, programs: lambda *arguments: self.launch(programs, *arguments)
    )
    for module in (single, many):
        monkeypatch.setattr(module, "processors", lambda device: 2)
        monkeypatch.setattr(module, "programs_for", lambda length, block, most: PROGRAMS if length > 40 else 1)


class Scratch:
    """What launches of one stream leave each other; checked to be as before."""

    def __init__(self) -> None:
        self.memory = torch.full((launching.SCRATCH_BYTES // 8,), 0x7FF8DEAD, dtype=torch.int64)
        self.memory[-8:] = 0

    def check(self) -> None:
        assert not self.memory[-8:].any()


def aligned(value: torch.Tensor) -> torch.Tensor:
    """The same at an address that is a multiple of 16, with other bytes behind it."""
    nbytes = value.numel() * value.itemsize
    memory = torch.full((nbytes + 64,), 0xA5, dtype=torch.uint8)
    begin = -memory.data_ptr() % launching.ALIGNMENT
    room = memory[begin : begin + nbytes]
    room.copy_(value.contiguous().reshape(-1).view(torch.uint8))
    return room.view(value.dtype).view(value.shape)


def statistics(value: torch.Tensor) -> list[float]:
    scratch, out = Scratch(), torch.full((len(STATISTICS) + 1,), -7.0, dtype=torch.float64)
    value = aligned(value)
    launch = single.prepare_statistics(value.get_device(), value.dtype, value.numel())
    launch.run(value.data_ptr(), out.data_ptr(), scratch.memory.data_ptr(), 0)
    scratch.check()
    assert out[-1] == -7
    return out[:-1].tolist()


def some(dtype: str, count: int, *, finite: bool) -> torch.Tensor:
    """Any bits, or values of usual sizes."""
    kind = getattr(torch, dtype)
    generator = torch.Generator().manual_seed(count)
    if dtype == "bool":
        return torch.randint(0, 2, (count,), generator=generator).bool()
    if dtype == "float8_e8m0fnu" or (not finite and dtype != "float64"):
        bits = torch.randint(
            0, 255 if finite else 256, (count * kind.itemsize,), dtype=torch.uint8, generator=generator
        )
        return bits.view(kind)
    value = torch.randn(count, dtype=torch.float64, generator=generator) * 50
    if not finite and count > 2:
        value[0], value[count // 2], value[-1] = math.inf, math.nan, -math.inf
    return value.clamp(0, 200).to(kind) if dtype.startswith("u") else value.to(kind)


def check_statistics(found: list[float], value: torch.Tensor) -> None:
    expected = device_statistics(value).tolist()
    scale = abs(expected[3]) if math.isfinite(expected[3]) else 0.0
    assert found[:2] + found[5:] == expected[:2] + expected[5:]
    assert found[2] == pytest.approx(expected[2], rel=1e-12, abs=1e-12 * scale)
    # Of float8_e5m2 the sums of 16 magnitudes, and of 16 squares, are float32.
    error = 1e-7 if value.dtype == torch.float8_e5m2 else 1e-12
    assert found[3:5] == pytest.approx(expected[3:5], rel=error)


@pytest.mark.parametrize("dtype", FLOATS + INTEGERS)
def test_statistics_are_those_of_the_reference(dtype: str) -> None:
    for count, finite in ((1, True), (129, False)) if dtype in PACKED else ((1, True), (700, True), (129, False)):
        value = some(dtype, count, finite=finite)
        check_statistics(statistics(value), value)


@pytest.mark.parametrize("dtype", PACKED)
def test_all_values_of_a_byte(dtype: str) -> None:
    """Of full groups of tiles, a last one that is not full, and a last word with one, two or three elements. What is
    not finite is in a group of one program, and has it look at its elements once more."""
    everything = torch.arange(256, dtype=torch.uint8)
    if dtype == "bool":
        everything = everything.clamp(max=1)
    kind = getattr(torch, dtype)
    usual = everything[torch.isfinite(everything.view(kind).double())]
    bits = usual[torch.randint(0, len(usual), (3 * 512 + 403,), generator=torch.Generator().manual_seed(7))]
    bits[-3:] = usual[-1]
    if kind.is_floating_point:
        check_statistics(statistics(bits[:-2].view(kind)), bits[:-2].view(kind))
    bits[520:776] = everything
    check_statistics(statistics(bits.view(kind)), bits.view(kind))


def test_sums_of_float8_e4m3fn_are_exact() -> None:
    """Elements of all magnitudes in one sum: neither sum nor squares fit the bits of a float32."""
    least = 2.0**-9
    for numbers in (
        [448.0] * 1000 + [least],
        [448.0, least, -448.0, 1.125, -least, 0.0, 13.0, -0.75] * 150,
        [least] * 64,
    ):
        found = named_statistics(statistics(torch.tensor(numbers).to(torch.float8_e4m3fn)))
        assert found["mean"] == math.fsum(numbers) / len(numbers)
        assert found["abs_mean"] == math.fsum(map(abs, numbers)) / len(numbers)
        assert found["l2"] == math.sqrt(math.fsum(number * number for number in numbers))


def test_small_elements_of_float8_e5m2_count() -> None:
    least = 2.0**-16
    numbers = [57344.0, least, -57344.0, least] * 200
    found = named_statistics(statistics(torch.tensor(numbers).to(torch.float8_e5m2)))
    assert found["mean"] == least / 2
    assert found["abs_mean"] == pytest.approx(57344.0 / 2, rel=1e-7)


@pytest.mark.parametrize("dtype", ["bfloat16", "int32", "int8", "float8_e4m3fn"])
def test_statistics_of_nothing_are_zero(dtype: str) -> None:
    assert statistics(torch.empty(0, dtype=getattr(torch, dtype))) == [0] * 7


def test_no_finite_element() -> None:
    value = torch.tensor([math.nan, math.inf, -math.inf, math.inf] * 30)
    assert statistics(value) == [0, 0, 0, 0, 0, 30, 90]


@pytest.mark.parametrize(
    ("dtype", "numbers"),
    [
        ("int64", [2**62, -(2**62), 3, 2**53 + 1, -(2**53), 0]),
        ("uint64", [2**64 - 1, 2**64 - 1, 1, 2**53 + 1]),
        ("int32", [2**31 - 1] * 60 + [-(2**31)] * 60),
        ("int8", [-128] * 50 + [127] * 50),
        ("uint8", [255] * 100),
    ],
)
def test_sums_of_integers_are_exact(dtype: str, numbers: list[int]) -> None:
    array = np.array(numbers, dtype)
    value = torch.from_numpy(array.view(np.int64)).view(torch.uint64) if dtype == "uint64" else torch.from_numpy(array)
    found = named_statistics(statistics(value))
    assert found["mean"] == sum(numbers) / len(numbers)
    assert found == pytest.approx(decode_statistics(of_array(array)), rel=1e-12)


def test_small_numbers_beside_large_ones_count() -> None:
    """In float32 the sum would be 0."""
    value = torch.tensor([3e8, 1.0, -3e8] + [0.0] * 100)
    assert statistics(value)[2] == pytest.approx(1 / 103, rel=1e-9)


def fingerprint_of(value: torch.Tensor, out: torch.Tensor, scratch: Scratch) -> None:
    launch = single.prepare_fingerprint(value.get_device(), value.numel() * value.itemsize)
    launch.run(value.data_ptr(), out.data_ptr(), scratch.memory.data_ptr(), 0)


def sums(data: bytes) -> bytes:
    value = aligned(torch.frombuffer(bytearray(data), dtype=torch.uint8) if data else torch.empty(0, dtype=torch.uint8))
    scratch, out = Scratch(), torch.full((3,), -7, dtype=torch.int64)
    fingerprint_of(value, out, scratch)
    scratch.check()
    assert out[2] == -7
    return out[:2].numpy().tobytes()


@pytest.mark.parametrize("size", [0, 1, 7, 8, 9, 41, 1023, 1024, 1025, 3072, 4097])
def test_fingerprints_are_those_of_the_host(size: int) -> None:
    data = np.random.default_rng(size).bytes(size)
    assert sums(data) == block_sums(data)


def test_what_is_not_bytes_has_the_fingerprint_of_its_bytes() -> None:
    scratch, out = Scratch(), torch.zeros(2, dtype=torch.int64)
    values = torch.randn(9, 5).bfloat16(), torch.randn(3, dtype=torch.complex64), torch.tensor(2.5)
    for value in map(aligned, values):
        fingerprint_of(value, out, scratch)
        assert out.numpy().tobytes() == block_sums(value.reshape(-1).view(torch.uint8).numpy())


@pytest.mark.parametrize("dtype", ["bfloat16", "float8_e4m3fn", "int64"])
def test_many_at_once_are_as_each_alone(dtype: str) -> None:
    values = [aligned(some(dtype, count, finite=count != 129)) for count in (3, 300, 129)]
    values.append(torch.empty(0, dtype=getattr(torch, dtype)))
    launch = many.StatisticsOfMany(values)
    out = torch.full((len(values) + 1, 7), -7.0, dtype=torch.float64)
    assert launch.nbytes == 56 * len(values)
    for _ in range(2):
        launch.launch(out.data_ptr(), 0)
        for found, value in zip(out[:-1].tolist(), values, strict=True):
            check_statistics(found, value)
    assert out[-1].tolist() == [-7] * 7


def test_fingerprints_of_many_at_once() -> None:
    values: list[Any] = [aligned(value) for value in (torch.randn(700), torch.arange(3), torch.randn(65, 2).bfloat16())]
    launch = many.FingerprintsOfMany(values)
    out = torch.full((len(values) + 1, 2), -7, dtype=torch.int64)
    assert launch.nbytes == 16 * len(values)
    for _ in range(2):
        launch.launch(out.data_ptr(), 0)
        for found, value in zip(out, values, strict=False):
            assert found.numpy().tobytes() == block_sums(value.reshape(-1).view(torch.uint8).numpy())
        # Launches read what the buffers hold now.
        values[0].zero_()
    assert out[-1].tolist() == [-7, -7]


def test_unaligned_tensors_and_unknown_types_are_refused() -> None:
    value = aligned(torch.randn(20))
    for make in (many.StatisticsOfMany, many.FingerprintsOfMany):
        with pytest.raises(ValueError, match="multiples of 16"):
            make([value, value[1:]])
    with pytest.raises(ValueError, match="complex64"):
        many.StatisticsOfMany([torch.zeros(2, dtype=torch.complex64)])
