"""Compare both comparators on many scenarios: ``python -m tests.differential.run --first 0 --count 1000``."""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from tests.differential.batches import make_batch_scenario
from tests.differential.intended import is_older, knows, unintended
from tests.differential.peers import Peer, compare_with_both, disagreements, installed_package, peer, released_package
from tests.differential.scenarios import Scenario, make_scenario

REPORTED_EVERY = 100
"""Scenarios."""


def check(scenario: Scenario, running: Peer, folder: Path, *, older: bool = False) -> list[str]:
    """What the comparators disagree on beyond what is intended, as sentences."""
    theirs, ours = compare_with_both(running, scenario.argv, folder)
    found = disagreements(theirs, ours)
    return [str(one) for one in unintended(theirs, ours, found, scenario.flags, older=older)]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--first", type=int, default=0, help="seed of the first scenario")
    parser.add_argument("--count", type=int, default=1000, help="number of scenarios")
    parser.add_argument("--batches", action="store_true", help="scenarios with recorded batches")
    theirs = parser.add_mutually_exclusive_group()
    theirs.add_argument("--package", type=Path, default=installed_package(), help="directory of the sglang package")
    theirs.add_argument("--release", help="a release of sglang whose wheel is fetched, as 0.5.13.post1")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as unpacked:
        package = released_package(arguments.release, Path(unpacked)) if arguments.release else arguments.package
        if package is None:
            parser.error("sglang is not installed; give --package or --release")
        make = make_batch_scenario if arguments.batches else make_scenario
        older = arguments.release is not None and is_older(arguments.release)
        with peer(package) as running:
            return run(make, range(arguments.first, arguments.first + arguments.count), running, older=older)


def run(make: Callable[[int, Path], Scenario], seeds: range, running: Peer, *, older: bool) -> int:
    """Prints where the comparators disagree; returns the exit code."""
    disagreeing = compared = 0
    for seed in seeds:
        with tempfile.TemporaryDirectory() as folder:
            scenario = make(seed, Path(folder))
            if not knows(scenario.flags, older=older):
                continue
            lines = check(scenario, running, Path(folder), older=older)
        compared += 1
        if lines:
            disagreeing += 1
            print(f"scenario {seed}: {' '.join(scenario.flags)}", *scenario.facts, sep="\n  ")
            print(*lines, sep="\n  - ", flush=True)
        if compared % REPORTED_EVERY == 0:
            print(f"{compared} scenarios so far, {disagreeing} with differences", file=sys.stderr, flush=True)
    print(
        f"{compared} scenarios compared, {disagreeing} with differences that are not intended; "
        f"{len(seeds) - compared} have flags that the release does not know"
    )
    return 1 if disagreeing or not compared else 0


if __name__ == "__main__":
    sys.exit(main())
