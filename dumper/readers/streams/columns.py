"""The indexes of a run's files as the columns that comparisons group by."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

from dumper.format.index import Index
from dumper.readers.streams.record import StoredRecord
from dumper.readers.streams.segments import Segment
from dumper.reading.columns import RecordColumns


def stream_columns(segments: Iterable[tuple[int, Segment]]) -> RecordColumns:
    """All records of (rank, segment) pairs, in order."""
    parts = list(segments)
    kinds: list[StoredRecord] = []
    total = sum(len(segment.index) for _, segment in parts)
    kind, step, occurrence = (np.empty(total, np.int64) for _ in range(3))
    at = 0
    for rank, segment in parts:
        columns, end = segment.index.columns, at + len(segment.index)
        firsts = _first_rows(segment.index)
        used = firsts >= 0
        numbers = np.cumsum(used) - 1 + len(kinds)
        kind[at:end] = numbers[columns["descriptor"]]
        step[at:end] = columns["step"]
        occurrence[at:end] = columns["occurrence"]
        kinds.extend(StoredRecord(segment, row, rank) for row in firsts[used].tolist())
        at = end
    return RecordColumns(kinds, kind, step, occurrence)


def _first_rows(index: Index) -> npt.NDArray[np.int64]:
    """The first record of every descriptor; -1 where it has none."""
    found = np.full(len(index.descriptors), -1, np.int64)
    # Of several values for one place, the last one stays.
    found[index.columns["descriptor"][::-1]] = np.arange(len(index))[::-1]
    return found
