"""Sides take turns, in blocks of steps, so that what the machine does beside them meets all alike."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field

import torch

from benchmarks.gpu.decoder import Decoder
from benchmarks.gpu.sides import Side


def synchronize() -> None:
    """Wait for all streams of the device."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _wait_as_a_model_does() -> None:
    """Wait for the stream that the model computes on."""
    if torch.cuda.is_available():
        torch.cuda.current_stream().synchronize()


@dataclass
class Times:
    """Seconds a step, of one side."""

    wall: list[float] = field(default_factory=list)
    """Until the device has computed the step; transfers of what was recorded may go on."""
    host: list[float] = field(default_factory=list)
    """Until the calls return."""
    durable: list[float] = field(default_factory=list)
    """Until all is in the file; one for each block."""
    longer: list[float] = field(default_factory=list)
    """How much longer than the steps alone before and after it; one for each block."""
    spent: float = 0.0

    def milliseconds(self) -> dict[str, float]:
        """Medians."""
        named = {"wall": self.wall, "host": self.host, "durable": self.durable, "longer": self.longer}
        return {name: round(statistics.median(values) * 1e3, 4) for name, values in named.items() if values}


def take_turns(
    sides: Sequence[Side], x: torch.Tensor, *, steps: int, seconds: float, seconds_a_side: float
) -> dict[str, Times]:
    """At most ``steps`` steps of each side, within ``seconds`` altogether; the first block of each warms up.

    The first side is the model alone. A block of it comes before and after each block of the others, since the machine
    may be a third slower for a second or two: what a side takes longer is told by its neighbours.
    """
    deadline = time.monotonic() + seconds
    alone, *others = sides
    times = {side.name: Times() for side in sides}
    first = {side.name: Times() for side in sides}
    for side in sides:
        if time.monotonic() < deadline:
            block(side, x, 1, first[side.name])
    while time.monotonic() < deadline:
        waiting = [
            side
            for side in others
            if not side.error and len(times[side.name].wall) < steps and times[side.name].spent < seconds_a_side
        ]
        if not waiting:
            break
        before: tuple[int, list[float]] | None = None
        for side in waiting:
            if time.monotonic() < deadline:
                own = times[side.name]
                a_step = statistics.median(own.wall or first[side.name].wall or [0.0])
                size = 5 if a_step < seconds_a_side / 15 else 2 if a_step < seconds_a_side / 5 else 1
                if before is None or before[0] < size:
                    before = size, block(alone, x, size, times[alone.name])
                found = block(side, x, size, own)
                after = block(alone, x, size, times[alone.name])
                if found:
                    own.longer.append(statistics.median(found) - statistics.median(before[1] + after))
                before = size, after
    return {name: found for name, found in times.items() if found.wall}


def block(
    side: Side,
    x: torch.Tensor,
    steps: int,
    times: Times,
    around: Callable[[], AbstractContextManager[None]] = nullcontext,
) -> list[float]:
    """So many steps, ``around`` them a context, added to ``times``. Returns how long each took; nothing after an
    error."""
    began = time.perf_counter()
    side.begin()
    try:
        side.step(x)  # opens the file
        side.flush()
        synchronize()
        first = time.perf_counter()
        with around():
            for _ in range(steps):
                start = time.perf_counter()
                side.step(x)
                times.host.append(time.perf_counter() - start)
                _wait_as_a_model_does()
                times.wall.append(time.perf_counter() - start)
        side.flush()
        synchronize()
        times.durable.append((time.perf_counter() - first) / steps)
        side.end()
    except Exception as error:
        side.error = f"{type(error).__name__}: {error}"
    times.spent += time.perf_counter() - began
    return [] if side.error else times.wall[-steps:]


def microseconds_a_call(side: Side, x: torch.Tensor, calls: int) -> float:
    """Of the thread that calls, the best of three rounds, with nothing else running."""
    side.begin()
    best = []
    for _ in range(4):
        start = time.perf_counter()
        for _ in range(calls):
            side.call(x)
        best.append((time.perf_counter() - start) / calls)
        synchronize()
        side.flush()
    side.end()
    return round(min(best[1:]) * 1e6, 2)


def microseconds_between_kernels(
    sides: Sequence[Side], decoder: Decoder, x: torch.Tensor, steps: int, rounds: int = 3
) -> dict[str, float]:
    """Of the thread that calls, between the kernels of a model: the median of ``steps`` steps of each side. The sides
    take turns, ``rounds`` times, since the machine may be slower for a while."""
    found: dict[str, list[float]] = {side.name: [] for side in sides}
    for _ in range(rounds):
        for side in sides:
            found[side.name] += _steps_between_kernels(side, decoder, x, steps // rounds)
    return {name: round(statistics.median(times), 2) for name, times in found.items()}


def _steps_between_kernels(side: Side, decoder: Decoder, x: torch.Tensor, steps: int) -> list[float]:
    spent = 0

    def put(name: str, value: torch.Tensor, layer: int) -> None:
        nonlocal spent
        start = time.perf_counter_ns()
        side.call(value)
        spent += time.perf_counter_ns() - start

    found = []
    side.begin()
    for _ in range(steps + 2):
        spent = 0
        decoder.with_calls(x, put)
        _wait_as_a_model_does()
        found.append(spent / decoder.size.taps / 1e3)
    side.flush()
    synchronize()
    side.end()
    return found[2:]


def launched(side: Side, x: torch.Tensor) -> dict[str, int]:
    """What one step has the device do: kernels, copies, fills."""
    from torch.profiler import ProfilerActivity, profile

    side.begin()
    side.step(x)
    side.flush()
    synchronize()
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as found:
        side.step(x)
        side.flush()
        synchronize()
    side.end()
    counts: dict[str, int] = {}
    for event in found.events():
        if str(event.device_type).endswith("CUDA"):
            name = event.name.lower()
            kind = "copies" if "memcpy" in name else "fills" if "memset" in name else "kernels"
            counts[kind] = counts.get(kind, 0) + 1
    return counts


def alternating(measures: dict[str, Callable[[], float]], rounds: int) -> dict[str, float]:
    """The median of what each returns, taken in turns; the first round warms up."""
    found: dict[str, list[float]] = {name: [] for name in measures}
    for number in range(rounds + 1):
        for name, measure in measures.items():
            value = measure()
            if number:
                found[name].append(value)
    return {name: statistics.median(values) for name, values in found.items()}
