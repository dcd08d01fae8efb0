"""What a step with taps takes longer than its taps do: turns of the interpreter lock, and the writer's work.

    python -m benchmarks.gpu.waits [--rows N] [--rounds N] [--cpu]

Each side takes turns with the model alone. Printed, not kept: what a step takes longer, shared out among the taps
(median and quartiles), how often the model's thread and the writer's gave up a processor to wait, and the writer's
processor time, for each step. One of the sides has a writer that sleeps; another filters all values out; ``x.clone()``
is one launch.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu.decoder import Decoder
from benchmarks.gpu.set_up import can_measure, decoder_and_folder
from benchmarks.gpu.sides import NOTHING, Other, Recording, Side
from benchmarks.gpu.turns import Times, block
from benchmarks.report import table
from dumper.writing import writer

STEPS = 5
"""Of a block."""
AT_REST = 3600.0
"""Seconds that a writer sleeps."""


class Rejecting(Recording):
    """Taps whose values the filter takes out."""

    def begin(self) -> None:
        super().begin()
        self.recorder.configure(filter=NOTHING)

    def end(self) -> None:
        self.recorder.close()
        self.recorder.configure(enable=False)


class Resting(Recording):
    """Taps whose writer sleeps until it is asked to write."""

    def begin(self) -> None:
        self._naps = writer.NAP, writer.LONG_NAP
        writer.NAP = writer.LONG_NAP = AT_REST
        super().begin()

    def end(self) -> None:
        writer.NAP, writer.LONG_NAP = self._naps
        super().end()


@dataclass
class Waits:
    """Of one side, a number for each block: microseconds a tap; for a step switches, and microseconds of the writer."""

    longer: list[float] = field(default_factory=list)
    model: list[float] = field(default_factory=list)
    writer: list[float] = field(default_factory=list)
    writing: list[float] = field(default_factory=list)


def of_thread(name: str) -> tuple[int, int]:
    """How often a thread has waited until now, and its processor time in nanoseconds."""
    for thread in threading.enumerate():
        if thread.name == name:
            folder = Path(f"/proc/self/task/{thread.native_id}")
            status = (folder / "status").read_text()
            switches = int(status.split("\nvoluntary_ctxt_switches:")[1].split()[0])
            return switches, int((folder / "schedstat").read_text().split()[0])
    return 0, 0


@contextmanager
def counted(waits: Waits) -> Iterator[None]:
    """Add what happens within."""
    before = [of_thread(name) for name in ("MainThread", "tensortap-writer")]
    yield
    after = [of_thread(name) for name in ("MainThread", "tensortap-writer")]
    model, writing = ([(b - a) / STEPS for a, b in zip(*pair, strict=True)] for pair in zip(before, after, strict=True))
    waits.model.append(model[0])
    waits.writer.append(writing[0])
    waits.writing.append(writing[1] / 1e3)


def measure(alone: Side, others: Sequence[Side], x: torch.Tensor, rounds: int, taps: int) -> dict[str, Waits]:
    """The first round warms up."""
    found = {side.name: Waits() for side in others}
    for number in range(rounds + 1):
        before = block(alone, x, STEPS, Times())
        for side in others:
            waits = found[side.name] if number else Waits()
            own = block(side, x, STEPS, Times(), partial(counted, waits))
            after = block(alone, x, STEPS, Times())
            if own:
                longer = statistics.median(own) - statistics.median(before + after)
                waits.longer.append(longer / taps * 1e6)
            before = after
    return found


def sides(decoder: Decoder, folder: Path) -> tuple[Side, list[Side]]:
    """The model alone, and the others."""

    def taps(kind: type[Recording], name: str, **settings: Any) -> Recording:
        return kind(name, folder, decoder.tapped, **settings)

    return Side("no taps", decoder.plain), [
        taps(Recording, "off", enable=False),
        taps(Rejecting, "rejected"),
        taps(Recording, "full"),
        taps(Resting, "full, writer at rest"),
        taps(Recording, "stats", level="stats"),
        Other("x.clone()", decoder, lambda name, value, layer: value.clone(), lambda: None),
        Other("a call", decoder, lambda name, value, layer: None, lambda: None),
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1, help="tokens of a step")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--cpu", action="store_true", help="a tiny model on the CPU")
    arguments = parser.parse_args()
    if not can_measure(arguments.cpu):
        return 2
    with decoder_and_folder(arguments.cpu) as (decoder, folder):
        alone, others = sides(decoder, folder)
        x = decoder.input(arguments.rows)
        found = measure(alone, others, x, arguments.rounds, decoder.size.taps)
    for side in others:
        if side.error:
            print(f"{side.name}: {side.error}", file=sys.stderr)
    print(table(("side", "a tap", "quartiles", "the model waits", "the writer waits", "it works"), rows_of(found)))
    return 0


def rows_of(found: dict[str, Waits]) -> list[tuple[str, ...]]:
    """Lines of the table."""
    rows = []
    for name, waits in found.items():
        if len(waits.longer) > 1:
            low, middle, high = statistics.quantiles(waits.longer, n=4)
            means = (statistics.mean(of) for of in (waits.model, waits.writer, waits.writing))
            model, writers, writing = means
            quartiles = f"{low:.1f} to {high:.1f}"
            rows.append(
                (
                    name,
                    f"{middle:.1f} µs",
                    quartiles,
                    f"{model:.1f} a step",
                    f"{writers:.1f} a step",
                    f"{writing:.0f} µs",
                )
            )
    return rows


if __name__ == "__main__":
    sys.exit(main())
