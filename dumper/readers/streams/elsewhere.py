"""Files of a run that others look at: what they find comes back in a form that can be sent, and stands for the file.

What is in the index, and what the frames say that are no records, is read there and not here.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import Any

from msgspec import Struct

from dumper.format.frames import FormatError
from dumper.format.index import Known, decode_index
from dumper.readers.streams.segments import (
    Found,
    Segment,
    StoredSegment,
    find_frames,
    map_file,
    open_segment,
    segment_of,
    written_at,
)
from dumper.reading.protocol import Problem
from dumper.storage.places import Place, StoredPath

_AT_ONCE = 256
"""Frames that are read ahead of an object."""


class Seen(Struct, frozen=True):
    """One file, as somebody else found it."""

    size: int
    tag: str | None
    """Of an object: what tells its content from others."""
    index: bytes
    at: int | None
    """Where the index is in the file; None where it has none."""
    problems: list[Problem]
    told: dict[int, tuple[str, bytes]]
    """Kind and metadata, by offset, of the frames that are no records."""


def look(path: Place) -> Seen:
    """What is in a file, for another process. Raises OSError when it cannot be read."""
    data = map_file(path)
    found = find_frames(path, data)
    segment = segment_of(path, data, found, None)
    tag = segment.stored.seen[1] if isinstance(segment, StoredSegment) else None
    return Seen(len(data), tag, found.encoded, found.at, found.problems, dict(_told(segment)))


def _told(segment: Segment) -> Iterator[tuple[int, tuple[str, bytes]]]:
    offsets = iter(sorted([*segment.index.others.tolist(), *segment.index.steps.tolist()]))
    while some := list(islice(offsets, _AT_ONCE)):
        if isinstance(segment, StoredSegment):
            segment.stored.ahead(map(segment.extent, some))
        for offset in some:
            try:
                yield offset, segment.kind_and_meta(offset)
            except (FormatError, OSError):
                continue  # who needs the frame is told why it cannot be read


def as_seen(path: Place, seen: Seen, known: Known) -> Segment:
    """The file that somebody else has looked at; looked at here where it is not the same any more. Raises OSError."""
    if isinstance(path, StoredPath):
        from dumper.storage.ranges import StoredBytes

        data: Any = StoredBytes(path, (seen.size, seen.tag))
    else:
        data = map_file(path)
        if len(data) != seen.size:
            return open_segment(path, known=known)
    found = Found(seen.index, decode_index(seen.index, known), seen.at, seen.problems)
    segment = segment_of(path, data, found, written_at(path))
    segment.told.update(seen.told)
    return segment
