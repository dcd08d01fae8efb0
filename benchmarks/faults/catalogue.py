"""The faults that are planted: one file each in the folder ``catalogue``, by engine."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

FOLDER = Path(__file__).with_name("catalogue")


@dataclass(frozen=True)
class Place:
    """Where an error came in."""

    tap: str
    layer: int | None = None

    def __str__(self) -> str:
        return self.tap if self.layer is None else f"{self.tap} layer {self.layer}"


@dataclass(frozen=True)
class Fault:
    """One file of the catalogue. Its patch config goes before those with the taps, so that taps see what it does."""

    engine: str
    """The folder: ``tensor_parallel``, ``transformers``, ``sglang``."""
    name: str
    about: str
    kind: str
    families: tuple[str, ...]
    """Models that it is planted in."""
    config: str
    """A patch config, as text. ``FAMILY`` and ``CLASS`` stand for the module and the prefix of a Transformers model."""
    place: Place | None = None
    """Where it has to be found. None for what is no fault."""
    is_fault: bool = True
    variants: tuple[str, ...] = ()
    """Variants in which it does something, the one that it is recorded under first. Empty: any."""
    source: str | None = None
    """Of a bug that somebody reported: where."""


def load(engine: str | None = None) -> tuple[Fault, ...]:
    """All faults of the catalogue, of one engine where it is given. Raises ValueError with the file for a bad entry."""
    return tuple(read(path) for path in sorted(FOLDER.glob(f"{engine or '*'}/*.yaml")))


def read(path: Path) -> Fault:
    """One file. Raises ValueError with its path when something is missing or unknown."""
    entry: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    try:
        place = entry.pop("place", None)
        fault = Fault(
            engine=path.parent.name,
            name=path.stem,
            about=entry.pop("about"),
            kind=entry.pop("kind"),
            families=tuple(entry.pop("families")),
            config=yaml.safe_dump(entry.pop("config"), sort_keys=False, width=1000),
            place=None if place is None else Place(**place),
            is_fault=entry.pop("fault", True),
            variants=tuple(entry.pop("variants", ())),
            source=entry.pop("source", None),
        )
    except (KeyError, TypeError) as error:
        raise ValueError(f"{path}: {error}") from None
    if entry:
        raise ValueError(f"{path}: unknown keys: {', '.join(entry)}")
    if (fault.place is None) == fault.is_fault:
        raise ValueError(f"{path}: a fault has a place, and what is no fault has none")
    return fault
