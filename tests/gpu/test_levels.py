"""Levels below ``full``, and ``on_nan``: on a device what they are on the CPU."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from tests.gpu.recordings import DEVICE, Recordings, in_one_line

LEVELS = ("full", "hash", "stats", "sample(rows=3)", "sample(stride=4)")
EXACT = ("min", "max", "nan", "inf")


def values() -> dict[str, torch.Tensor]:
    """On the CPU, by what they are."""
    g = torch.Generator().manual_seed(3)
    found = {}
    for name in ("float64", "float32", "float16", "bfloat16"):
        x = found[name] = torch.randn(257, 129, generator=g, dtype=torch.float64).to(getattr(torch, name))
        bad = found[f"{name}, not finite"] = x.clone()
        bad[3, 5], bad[7, 2], bad[9, 9] = math.nan, math.inf, -math.inf
    found["float32, large"] = torch.full((1000,), 3e38)
    found["bfloat16, large"] = torch.full((1000,), 1e38).bfloat16()
    found["float64, large"] = torch.full((10,), 1e300, dtype=torch.float64)
    found["all NaN"] = torch.full((17,), math.nan)
    for name in ("float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz", "float8_e8m0fnu"):
        data = torch.randint(0, 256, (4096,), dtype=torch.uint8, generator=g)
        found[name] = data.view(getattr(torch, name)).reshape(64, 64)
    for name in ("int8", "uint8", "int16", "int32", "int64", "uint16", "uint32", "uint64"):
        found[name] = torch.randint(0, 100, (50, 7), generator=g).to(getattr(torch, name))
    found["int64, large"] = torch.tensor([2**62, -(2**62), 3])
    found["bool"] = torch.randint(0, 2, (50, 7), generator=g).bool()
    found["complex64"] = torch.randn(40, 5, dtype=torch.complex64, generator=g)
    found["complex128"] = torch.randn(40, 5, dtype=torch.complex128, generator=g)
    found["empty"] = torch.empty(0, 4)
    found["without dimensions"] = torch.tensor(2.5)
    found["one row"] = torch.randn(1, 9, generator=g)
    found["large"] = torch.randn(3000, 1024, generator=g).bfloat16()
    found["transposed"] = found["float32"].t()
    return found


def difference(key: str, cpu: Any, device: Any) -> str | None:
    """In what the records of a value differ."""
    if (cpu.level, cpu.dtype, cpu.shape) != (device.level, device.dtype, device.shape):
        return f"{key}: {(cpu.level, cpu.dtype, cpu.shape)} and {(device.level, device.dtype, device.shape)}"
    if cpu.level != "stats":
        return None if bytes(cpu.payload()) == bytes(device.payload()) else f"{key}: other bytes"
    for name, left in cpu.statistics.items():
        right = device.statistics[name]
        if not (left == right if name in EXACT else math.isclose(left, right, rel_tol=1e-5, abs_tol=1e-6)):
            return f"{key}.{name}: {left!r} and {right!r}"
    return None


@pytest.mark.parametrize("level", LEVELS)
def test_levels_are_those_of_the_cpu(recordings: Recordings, level: str) -> None:
    runs = []
    for device in ("cpu", DEVICE):
        recorder = recordings.start(level=level)
        for key, value in values().items():
            recorder.dump("v", value.to(device), key=key)
        runs.append({record.tags["key"]: record for record in recordings.read(recorder).records})
    cpu, found = runs
    assert cpu.keys() == found.keys() == values().keys()
    wrong = [said for key in cpu if (said := difference(key, cpu[key], found[key]))]
    assert not wrong, in_one_line(wrong)


@pytest.mark.parametrize("level", ["full", "stats", "hash", "sample(rows=2)"])
def test_on_nan_begins_at_the_same_step(recordings: Recordings, level: str) -> None:
    recorded = []
    for device in ("cpu", DEVICE):
        recorder = recordings.start(level=level, on_nan=2)
        for number in range(10):
            with recorder.step():
                x = torch.full((64, 8), float(number), device=device)
                recorder.dump("x", x)
                if number == 6:
                    x[40, 3] = math.nan  # in a row that no sample holds
                recorder.dump("y", x)
                x.zero_()
        recorded.append([(record.step, record.name) for record in recordings.read(recorder).records])
    assert recorded[1][:2] == [(4, "x"), (4, "y")]
    assert recorded[0] == recorded[1]
