"""What single calls take between the kernels of a model, by what is done in them.

    python -m benchmarks.gpu.calls [--rounds N] [--cpu]

Printed, not kept: of each level how many calls of a step take the shortcut, begin another slab of the device on it, or
go the long way, and what they take of the thread that calls (median, nine tenths of them, and processor time).
``x.clone()`` is one launch.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch

from benchmarks.gpu.decoder import Decoder
from benchmarks.gpu.set_up import can_measure, decoder_and_folder
from benchmarks.gpu.sides import Other, Recording, Side
from benchmarks.gpu.turns import synchronize
from benchmarks.report import table
from dumper.memory.device_slabs import Lane
from dumper.recording.recorder import Recorder

STEPS, WARM = 12, 3
"""Of a round; the first of them are not counted."""
SHORTCUT, ANOTHER_SLAB, LONG_WAY = "the shortcut", "another slab", "the long way"


class Call(NamedTuple):
    """One of them, in microseconds."""

    passed: float
    processor: float
    way: str


@contextmanager
def noted(ways: list[str]) -> Iterator[None]:
    """Within, what is no plain shortcut is added to ``ways``."""
    submit, make_room = Recorder._submit_any, Lane.make_room

    def by_long_way(self: Recorder, *arguments: Any) -> None:
        ways.append(LONG_WAY)
        submit(self, *arguments)

    def with_another_slab(self: Lane, nbytes: int) -> None:
        ways.append(ANOTHER_SLAB)
        make_room(self, nbytes)

    setattr(Recorder, "_submit_any", by_long_way)  # noqa: B010
    setattr(Lane, "make_room", with_another_slab)  # noqa: B010
    try:
        yield
    finally:
        setattr(Recorder, "_submit_any", submit)  # noqa: B010
        setattr(Lane, "make_room", make_room)  # noqa: B010


def calls_of(side: Side, decoder: Decoder, x: torch.Tensor, rounds: int) -> list[Call]:
    """All calls of the steps that count."""
    found: list[Call] = []
    ways: list[str] = []

    def put(name: str, value: torch.Tensor, layer: int) -> None:
        ways.clear()
        processor, start = time.thread_time_ns(), time.perf_counter_ns()
        side.call(value)
        passed = time.perf_counter_ns() - start
        way = LONG_WAY if LONG_WAY in ways else ANOTHER_SLAB if ways else SHORTCUT
        found.append(Call(passed / 1e3, (time.thread_time_ns() - processor) / 1e3, way))

    with noted(ways):
        for _ in range(rounds):
            side.begin()
            for number in range(STEPS):
                before = len(found)
                if isinstance(side, Recording):
                    side.recorder.step()
                decoder.with_calls(x, put)
                synchronize()
                if number < WARM:
                    del found[before:]
            side.flush()
            synchronize()
            side.end()
    return found


def rows_of(tokens: int, side: Side, calls: Sequence[Call], steps: int) -> Iterator[tuple[str, ...]]:
    """Lines of the table: all calls, and those of each way."""
    by_way = {way: [one for one in calls if one.way == way] for way in (SHORTCUT, ANOTHER_SLAB, LONG_WAY)}
    for way, some in {"all": list(calls), **by_way}.items():
        if some and (way == "all" or len(some) < len(calls)):
            passed = sorted(one.passed for one in some)
            yield (
                str(tokens),
                side.name,
                way,
                f"{len(some) / steps:.1f} a step",
                f"{statistics.mean(passed):.1f} µs",
                f"{statistics.median(passed):.1f} µs",
                f"{passed[len(passed) * 9 // 10]:.1f} µs",
                f"{statistics.mean(one.processor for one in some):.1f} µs",
            )


def sides(decoder: Decoder, folder: Path) -> list[Side]:
    levels = {"full": "full", "sample": "sample(rows=8)", "stats": "stats", "hash": "hash"}
    return [
        *(Recording(name, folder, decoder.tapped, level=level) for name, level in levels.items()),
        Other("x.clone()", decoder, lambda name, value, layer: value.clone(), lambda: None),
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--cpu", action="store_true", help="a tiny model on the CPU")
    arguments = parser.parse_args()
    if not can_measure(arguments.cpu):
        return 2
    rows: list[tuple[str, ...]] = []
    with decoder_and_folder(arguments.cpu) as (decoder, folder):
        for tokens in decoder.size.tokens[:2]:
            for side in sides(decoder, folder):
                calls = calls_of(side, decoder, decoder.input(tokens), arguments.rounds)
                rows += rows_of(tokens, side, calls, arguments.rounds * (STEPS - WARM))
    print(table(("tokens", "side", "by", "calls", "mean", "median", "nine tenths", "of the processor"), rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
