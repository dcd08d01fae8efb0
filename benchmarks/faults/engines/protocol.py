"""What every engine offers: families of recordings, variants of each, and a way to make a recording."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

REFERENCE = "reference-float32"
"""The variant with the same weights in float32; it is no clean pair of the others."""


@dataclass(frozen=True)
class Job:
    """One recording."""

    family: str
    variant: str
    run: Path
    configs: tuple[str, ...] = ()
    """Patch configs of faults, as text, which go before those with the taps."""


class Engine(Protocol):
    """Runs of one family agree but for rounding, whatever their variants."""

    @property
    def name(self) -> str:
        """As in the names of folders: ``transformers``."""
        ...

    def families(self) -> tuple[str, ...]: ...

    def variants(self, family: str) -> tuple[str, ...]:
        """In the order in which they are recorded; ``REFERENCE`` among them where there is one."""
        ...

    def record(self, jobs: Sequence[Job]) -> dict[Path, str]:
        """Make the recordings; returns what went wrong, by run. A recording that failed is not there afterwards."""
        ...
