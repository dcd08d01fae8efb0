"""Tell a run what will be read next, so that what lies on object storage is on its way before it is asked for."""

from __future__ import annotations

from collections.abc import Iterable

from dumper.reading.protocol import Record, Run
from dumper.storage.places import StoredPath


def is_stored(run: Run) -> bool:
    """Whether a run lies on object storage."""
    return isinstance(run.path, StoredPath)


def expect(run: Run, records: Iterable[Record]) -> None:
    """These records will be read, in about this order. Nothing happens where the run is on a disk, and then the
    records are not looked at."""
    read_ahead = getattr(run, "expect", None)
    if read_ahead is not None and is_stored(run):
        read_ahead(records)
