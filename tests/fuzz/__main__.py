"""``python -m tests.fuzz [--inputs N] [TARGET …]``: so many inputs for each parser, and a table of what came of them.

Exit code 1 where a parser raised what it should not; the smallest such input is printed.
"""

from __future__ import annotations

import argparse
import sys
import time
import traceback
from dataclasses import dataclass, field
from typing import Any

from hypothesis import HealthCheck, Phase, given, seed, settings

from tests.fuzz.targets import TARGETS, Target


@dataclass
class Outcome:
    """What came of the inputs of one target."""

    inputs: int = 0
    accepted: int = 0
    slowest: float = 0.0
    """Seconds."""
    fault: str = ""
    smallest: Any = field(default=None, repr=False)


def fuzz(target: Target, inputs: int, number: int) -> Outcome:
    """Give a target so many inputs; ``number`` chooses which."""
    outcome = Outcome()

    @seed(number)
    @settings(
        max_examples=inputs,
        deadline=None,
        database=None,
        report_multiple_bugs=False,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.generate, Phase.shrink],
    )
    @given(target.inputs)
    def meet(value: Any) -> None:
        outcome.inputs += 1
        start = time.perf_counter()
        try:
            outcome.accepted += target.run(value)
        except Exception:
            outcome.smallest = value
            raise
        finally:
            outcome.slowest = max(outcome.slowest, time.perf_counter() - start)

    try:
        meet()
    except Exception:
        outcome.fault = traceback.format_exc(limit=-4)
    return outcome


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description="Fuzz the parsers.")
    parser.add_argument("names", nargs="*", metavar="TARGET", help="those whose name holds this text (default: all)")
    parser.add_argument("--inputs", type=int, default=2000, help="for each parser (default 2000)")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    faults = []
    print("| parser | inputs | accepted | slowest | faults |\n|---|---|---|---|---|")
    for target in TARGETS:
        if arguments.names and not any(name in target.name for name in arguments.names):
            continue
        found = fuzz(target, arguments.inputs, arguments.seed)
        milliseconds = f"{1000 * found.slowest:.0f} ms"
        print(f"| {target.name} | {found.inputs} | {found.accepted} | {milliseconds} | {int(bool(found.fault))} |")
        sys.stdout.flush()
        if found.fault:
            faults.append(f"{target.name}: {found.smallest!r}\n{found.fault}")
    print("\n".join(faults), file=sys.stderr)
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
