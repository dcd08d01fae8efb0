"""The indexes of a run's files as the columns that comparisons group by."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

from dumper.format.index import Index
from dumper.readers.streams.record import StoredRecord
from dumper.readers.streams.segments import Segment
from dumper.reading.protocol import RecordColumns


def stream_columns(segments: Iterable[tuple[int, Segment]]) -> RecordColumns:
    """All records of (rank, segment) pairs, in order."""
    parts = list(segments)
    total = sum(len(segment.index) for _, segment in parts)
    kind, ranks = np.empty(total, np.int32), np.empty(total, np.int32)
    step, occurrence = np.empty(total, np.int64), np.empty(total, np.uint32)
    kinds: list[StoredRecord] = []
    known: dict[int, npt.NDArray[np.int32]] = {}
    at = 0
    for rank, segment in parts:
        columns, end = segment.index.columns, at + len(segment.index)
        # Descriptors that ranks share are one object.
        descriptors = segment.index.descriptors
        numbers = known.setdefault(id(descriptors), np.full(len(descriptors), -1, np.int32))
        firsts = _first_rows(segment.index)
        fresh = np.flatnonzero((firsts >= 0) & (numbers < 0))
        numbers[fresh] = np.arange(len(kinds), len(kinds) + len(fresh))
        kinds.extend(StoredRecord(segment, row, rank) for row in firsts[fresh].tolist())
        kind[at:end] = numbers[columns["descriptor"]]
        ranks[at:end] = rank
        step[at:end] = columns["step"]
        occurrence[at:end] = columns["occurrence"]
        at = end
    return RecordColumns(kinds, kind, ranks, step, occurrence)


def _first_rows(index: Index) -> npt.NDArray[np.int64]:
    """The first record of every descriptor; -1 where it has none."""
    found = np.full(len(index.descriptors), -1, np.int64)
    # Of several values for one place, the last one stays.
    found[index.columns["descriptor"][::-1]] = np.arange(len(index))[::-1]
    return found
