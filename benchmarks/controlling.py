"""What control costs the model's thread in each step: the check for changes, beside the cheapest way to look at a
file in every step (one ``os.stat``), which is what control would cost without its watcher thread.

    python -m benchmarks.controlling [--write] [--steps N]

``--write`` puts the table into docs/benchmarks.md.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.report import machine, table, write_section
from dumper.control import Control, Place

ROUNDS = 7
GOAL_MICROSECONDS = 2.0


class Target:
    def apply(self, changes: dict[str, Any]) -> None:
        raise AssertionError("nothing is changed here")

    def state(self) -> dict[str, Any]:
        return {"settings": {}}


def microseconds_a_step(call: Callable[[int], object], steps: int, first: int) -> float:
    begin = time.perf_counter()
    for step in range(first, first + steps):
        call(step)
    return (time.perf_counter() - begin) / steps * 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=200_000)
    parser.add_argument("--write", action="store_true", help="put the table into docs/benchmarks.md")
    arguments = parser.parse_args()
    steps: int = arguments.steps
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder)
        control = Control(run, Target(), lambda stepping: Place(0, 1))
        control.at_step(0)
        watched = run / "control"
        checks, stats, empty = [], [], []
        # In turns, so that whatever else the machine does meets all of them.
        for number in range(ROUNDS):
            checks.append(microseconds_a_step(control.at_step, steps, 1 + number * steps))
            stats.append(microseconds_a_step(lambda step: os.stat(watched), steps // 10, 0))
            empty.append(microseconds_a_step(lambda step: None, steps, 0))
        control.close()
    rows = [
        (name, f"{statistics.median(values):.3f}", f"{max(values):.3f}")
        for name, values in (
            ("`control.at_step`, watcher running", checks),
            ("one `os.stat` a step", stats),
            ("an empty Python call", empty),
        )
    ]
    ratio = statistics.median(stats) / statistics.median(checks)
    text = f"""## Control while running

`python -m benchmarks.controlling`, {ROUNDS} rounds of {steps:,} steps; {machine()}.

{table(("In each step", "median µs", f"worst of {ROUNDS}"), rows)}

The check costs 1/{ratio:.1f} of the `os.stat` that it replaces; the goal is under {GOAL_MICROSECONDS:g} µs a step."""
    print(text)
    if arguments.write:
        write_section("control", text)


if __name__ == "__main__":
    main()
