"""How near recording comes to what the machine can do: the bus, the disk, and the interpreter lock."""

from __future__ import annotations

import os
import statistics
import time
from pathlib import Path

import torch

from benchmarks.gpu.turns import alternating, synchronize
from dumper.recording.recorder import Recorder

LARGE = 64 << 20
COUNT = 16
PYTHON_WORK = 4_000_000
"""Turns of a loop: some 0.2 s, as long as the writer is busy."""


def _recorder(folder: Path, name: str, budget: str) -> Recorder:
    recorder = Recorder()
    recorder.configure(enable=True, dir=str(folder), run=name, control=False, memory_budget=budget)
    return recorder


def gigabytes_a_second(folder: Path, device: str, rounds: int) -> dict[str, float]:
    """Of 16 values of 64 MiB: pinned copies and plain writes alone, and recording, until the device is done and until
    all is in the file."""
    count, size = (COUNT, LARGE) if device == "cuda" else (4, 1 << 20)
    values = [torch.randint(0, 255, (size,), device=device, dtype=torch.uint8) for _ in range(4)]
    pinned = [torch.empty(size, dtype=torch.uint8, pin_memory=device == "cuda") for _ in range(count)]
    recorder = _recorder(folder, "bandwidth", "4GiB")
    last = {"recorded": 0.0}

    def copied() -> float:
        synchronize()
        start = time.perf_counter()
        for number, buffer in enumerate(pinned):
            buffer.copy_(values[number % 4], non_blocking=True)
        synchronize()
        return size * count / (time.perf_counter() - start) / 1e9

    def written() -> float:
        path = folder / "plain"
        start = time.perf_counter()
        file = os.open(path, os.O_CREAT | os.O_WRONLY | os.O_TRUNC)
        for number, buffer in enumerate(pinned):
            os.pwrite(file, memoryview(buffer.numpy()), number * size)
        os.close(file)
        took = time.perf_counter() - start
        path.unlink()
        return size * count / took / 1e9

    def recorded() -> float:
        start = time.perf_counter()
        for number in range(count):
            recorder.dump("x", values[number % 4], i=number)
        synchronize()
        on_host = time.perf_counter() - start
        recorder.flush()
        last["recorded"] = size * count / (time.perf_counter() - start) / 1e9
        return size * count / on_host / 1e9

    found = alternating(
        {
            "pinned copies": copied,
            "recording, until the device is done": recorded,
            "recording, until in the file": lambda: last["recorded"],
            "plain pwrite of pinned memory": written,
        },
        rounds,
    )
    recorder.close()
    return {name: round(value, 2) for name, value in found.items()}


def python_beside_a_busy_writer(folder: Path, device: str, rounds: int) -> dict[str, float]:
    """Milliseconds of a loop of plain Python, alone and while the writer writes values that were dumped before: the
    median of what it takes longer than right before and after, since the machine may be slower for a while."""
    size, count, work = (LARGE, 24, PYTHON_WORK) if device == "cuda" else (1 << 20, 4, PYTHON_WORK // 20)
    value = torch.randint(0, 255, (size,), device=device, dtype=torch.uint8)
    recorder = _recorder(folder, "busy", "4GiB")

    def loop() -> float:
        start = time.perf_counter()
        total = 0
        for number in range(work):
            total += number & 3
        return (time.perf_counter() - start) * 1e3

    def beside() -> float:
        for number in range(count):
            recorder.dump("x", value, i=number)
        took = loop()
        recorder.flush()
        return took

    alone, longer = [loop()], []
    for _ in range(rounds + 1):
        took = beside()
        alone.append(loop())
        longer.append(took / statistics.mean(alone[-2:]) - 1)
    recorder.close()
    least = statistics.median(alone[1:])
    found = {"alone": least, "beside a busy writer": least * (1 + statistics.median(longer[1:]))}
    return {name: round(milliseconds, 3) for name, milliseconds in found.items()}
