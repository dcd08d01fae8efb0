"""What a conversion did, and what it had to leave out."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from dumper.format.regular_files import PRIVATE_FOLDER, make_folders


class ConversionError(Exception):
    """A conversion that cannot be begun; the message says what to do."""


@dataclass
class Outcome:
    """Counts of one conversion."""

    written: int = 0
    left_out: list[str] = field(default_factory=list)
    """One sentence per record that could not be converted."""


def prepare_destination(path: Path) -> None:
    """Make an empty directory. Raises ConversionError when it holds something or cannot be made."""
    try:
        make_folders(path, PRIVATE_FOLDER)
        occupied = next(iter(path.iterdir()), None) is not None
    except OSError as error:
        raise ConversionError(f"{path} cannot be written: {error.strerror}") from None
    if occupied:
        raise ConversionError(f"{path} is not empty; give a directory that is, or does not exist yet")


def listing(sentences: Iterable[str], limit: int = 10) -> list[str]:
    """The first sentences, and how many more there are."""
    every = list(sentences)
    more = [f"… and {len(every) - limit} more"] if len(every) > limit else []
    return every[:limit] + more
