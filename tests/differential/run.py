"""Compare both comparators on many scenarios: ``python -m tests.differential.run --first 0 --count 1000``."""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from tests.differential.batches import make_batch_scenario
from tests.differential.intended import unintended
from tests.differential.peers import Peer, compare_with_ours, disagreements, installed_package, peer
from tests.differential.scenarios import Scenario, make_scenario


def check(scenario: Scenario, running: Peer, folder: Path) -> list[str]:
    """What the comparators disagree on beyond what is intended, as sentences."""
    theirs = running.compare(scenario.argv, folder / "theirs.jsonl")
    ours = compare_with_ours(scenario.argv, folder / "ours.jsonl")
    return [str(one) for one in unintended(theirs, ours, disagreements(theirs, ours), scenario.flags)]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--first", type=int, default=0, help="seed of the first scenario")
    parser.add_argument("--count", type=int, default=1000, help="number of scenarios")
    parser.add_argument("--batches", action="store_true", help="scenarios with recorded batches")
    parser.add_argument("--package", type=Path, default=installed_package(), help="directory of the sglang package")
    arguments = parser.parse_args()
    if arguments.package is None:
        parser.error("sglang is not installed; give --package")
    disagreeing = 0
    with peer(arguments.package) as running:
        for seed in range(arguments.first, arguments.first + arguments.count):
            with tempfile.TemporaryDirectory() as folder:
                make = make_batch_scenario if arguments.batches else make_scenario
                scenario = make(seed, Path(folder))
                lines = check(scenario, running, Path(folder))
            if lines:
                disagreeing += 1
                print(f"scenario {seed}: {' '.join(scenario.flags)}", *scenario.facts, sep="\n  ")
                print(*lines, sep="\n  - ", flush=True)
    print(f"{arguments.count} scenarios, {disagreeing} with differences that are not intended")
    return 1 if disagreeing else 0


if __name__ == "__main__":
    sys.exit(main())
