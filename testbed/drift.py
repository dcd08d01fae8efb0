"""Whether the shipped patch configs still fit the newest releases of what they are for: ``python -m testbed.drift``.

Each config is checked against the newest wheel that the package index serves. Exit code 1 when an edit does not land,
or when the release is beyond those that a config says it was tried with.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

from patcher.check import check_configs
from testbed.paths import CONFIGS
from testbed.wheels import WheelError, newest_wheel

PACKAGES = {"sglang": "sglang", "transformers": "transformers", "vllm": "vllm", "megatron-core": "megatron"}
"""Which folder of configs is for a package."""


def main() -> int:
    """Print what does not fit; returns the exit code."""
    found = [line for package in PACKAGES for line in drift(package)]
    print(*found, sep="\n")
    return 1 if found else 0


def drift(package: str) -> Iterator[str]:
    """What does not fit in the configs for a package, a line each."""
    try:
        wheel = newest_wheel(package)
    except WheelError as error:
        yield str(error)
        return
    print(f"{package}: {wheel.name}", file=sys.stderr)
    folder = CONFIGS / PACKAGES[package]
    for config in sorted(folder.glob("*.yaml")):
        yield from (f"{folder.name}/{config.stem}: {line}" for line in misfits(config, wheel))


def misfits(config: Path, source: Path) -> Iterator[str]:
    """Edits of a config that do not land in a release, and whether it was never tried with it."""
    checked = check_configs([config], [source])
    yield from checked.errors
    yield from (note.message for note in checked.plan.notes if note.warning)


if __name__ == "__main__":
    sys.exit(main())
