"""One file of a run, mapped, or read in ranges from object storage: its frames through the index, or through a scan
where there is none; what many of its records share is decoded once."""

from __future__ import annotations

import functools
import mmap
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from msgspec import Struct, field

from dumper.format import frames
from dumper.format.frames import FormatError, Frame, Payload
from dumper.format.index import Index, Known, decode_index
from dumper.format.regular_files import mapped
from dumper.reading.protocol import Problem
from dumper.storage.places import Place, StoredPath
from tensortap.progress import Advance

if TYPE_CHECKING:
    from dumper.storage.ranges import StoredBytes

    Data = mmap.mmap | bytes | StoredBytes


class Described(Struct, frozen=True):
    """One descriptor (``dumper/format/index.py``), with the defaults of what it does not say."""

    name: str
    tags: Mapping[str, Any]
    tap: str | None
    kind: str
    level: str
    dtype: str | None
    shape: tuple[int, ...] | None
    dims: str | None
    stream: str
    recompute: bool
    graph: Mapping[str, Any] | None
    fingerprint: str | None
    sampled_rows: range | None


def described(descriptor: Mapping[str, Any]) -> Described:
    """The descriptor, checked by ``dumper.format.index.check_descriptor``, as a value."""
    text = str(descriptor.get("level", "full"))
    level = text.partition("(")[0]
    shape = descriptor.get("shape")
    graph = descriptor.get("graph")
    dtype = descriptor.get("dtype")
    return Described(
        name=str(descriptor.get("name", "")),
        tags=descriptor.get("tags", {}),
        tap=descriptor.get("tap"),
        kind="value" if dtype is None else "tensor",
        level=level,
        dtype=dtype,
        shape=None if shape is None else tuple(shape),
        dims=descriptor.get("dims"),
        stream=str(descriptor.get("stream", "value")),
        recompute=bool(descriptor.get("recompute", False)),
        graph=graph if isinstance(graph, dict) else None,
        fingerprint=descriptor.get("fingerprint"),
        sampled_rows=_sampled_rows(text, shape[0]) if level == "sample" and shape else None,
    )


def _sampled_rows(level: str, rows: int) -> range:
    from dumper.rules.levels import Level  # few runs hold samples

    return range(rows)[Level.parse(level).row_slice]


_AROUND = 1 << 16
"""Bytes that Linux maps together (``fault_around_bytes``)."""


class Segment(Struct):
    """One mapped file. ``data`` is read-only."""

    path: Place
    data: Data
    index: Index
    complete: bool
    """Whether the file ends with its index and footer."""
    problems: list[Problem] = field(default_factory=list)
    _last: Frame | None = None
    """The frame that was asked for last: a record is checked, then read."""
    written: tuple[int, int] | None = None
    """Of a file of this machine: its inode, and when it was last written, in nanoseconds, as it was opened."""
    told: dict[int, tuple[str, bytes]] = field(default_factory=dict)
    """Kind and metadata of frames, by their offset, that were read where the file was looked at."""
    _described: dict[int, Described] = field(default_factory=dict)
    """By number, of the descriptors that were asked for."""

    def described(self, row: int) -> Described:
        """What record ``row`` shares with others."""
        number = int(self.index.columns["descriptor"][row])
        found = self._described.get(number)
        if found is None:
            found = self._described[number] = described(self.index.descriptors[number])
        return found

    @property
    def shortened(self) -> str | None:
        """In words that the file is shorter than when it was opened; None where it is not.

        To touch what is gone of a mapped file ends the process (SIGBUS), so this is asked for before each frame.
        """
        if not isinstance(self.data, mmap.mmap):
            return None
        now = self.data.size()
        if now >= len(self.data):
            return None
        return f"{self.path.name} was cut while it was read: it had {len(self.data)} bytes, and has {now}"

    @property
    def changed(self) -> str | None:
        """In words that the file is not what it was when it was opened; None where it is, where another file or none
        has its name by now (the one that was opened is still there), and where it only goes on being recorded."""
        if self.written is None or not isinstance(self.path, Path):
            return None
        try:
            now = os.stat(self.path)
        except OSError:
            return None
        grown = not self.complete and now.st_size > len(self.data)
        if now.st_ino != self.written[0] or now.st_mtime_ns == self.written[1] or grown:
            return None
        return self.shortened or f"{self.path.name} was written to while it was read"

    def frame(self, offset: int) -> Frame:
        """Raises FormatError."""
        shortened = self.shortened
        if shortened is not None:
            raise FormatError(shortened)
        last = self._last
        if last is None or last.offset != offset:
            self._last = last = frames.decode_frame(self.data, offset)
        return last

    def kind_and_meta(self, offset: int) -> tuple[str, bytes]:
        """Of the frame at ``offset``, the metadata as it is written. Raises as ``frame`` does."""
        told = self.told.pop(offset, None)
        if told is not None:
            return told
        frame = self.frame(offset)
        return frame.kind, frame.meta

    @property
    def is_mapped(self) -> bool:
        """Whether the bytes of the file are in its mapped memory."""
        return isinstance(self.data, mmap.mmap)

    def let_go(self, start: int, length: int) -> None:
        """Have the operating system take back the memory that part of the mapped file takes; it is read anew when it is
        asked for again."""
        if isinstance(self.data, mmap.mmap):
            # What is touched brings the pages around it along.
            first = start // _AROUND * _AROUND
            end = min(-(-(start + length) // _AROUND) * _AROUND, len(self.data))
            self.data.madvise(mmap.MADV_DONTNEED, first, end - first)

    def meta(self, offset: int) -> dict[str, Any]:
        """The metadata of the frame at ``offset``. Raises FormatError."""
        return frames.decode_meta(self.frame(offset).meta)


class StoredSegment(Segment, dict=True):
    """One file on object storage. What is asked for is read whole, frame by frame."""

    @property
    def stored(self) -> StoredBytes:
        """The file."""
        data: Any = self.data
        found: StoredBytes = data
        return found

    def frame(self, offset: int) -> Frame:
        """Raises FormatError, and StorageError when it cannot be read."""
        last = self._last
        if last is None or last.offset != offset:
            extent = self.extent(offset)
            self.stored.reads.asked_for(self.stored, offset)
            self.stored.load(*extent)
            self._last = last = self._decoded(*extent)
        return last

    def _decoded(self, offset: int, end: int) -> Frame:
        # Where a piece begins at a multiple of the alignment, padding in it is as long as in the file.
        start = offset // frames.ALIGNMENT * frames.ALIGNMENT
        try:
            found = frames.decode_frame(self.stored.view(start, end), offset - start)
        except FormatError:
            return frames.decode_frame(self.data, offset)  # longer than was thought, or an error with its right place
        payloads = (frames.Payload(one.offset + start, one.length, one.checksum) for one in found.payloads)
        return Frame(found.kind, found.meta, tuple(payloads), offset, found.end + start)

    @functools.cached_property
    def _ends(self) -> npt.NDArray[np.uint64]:
        """Where frames begin, ascending, and where the last one ends at the latest."""
        index = self.index
        size = np.array([len(self.data)], dtype=np.uint64)
        return np.sort(np.concatenate([index.columns["offset"], index.steps, index.others, size]))

    @functools.cached_property
    def _payload_ends(self) -> npt.NDArray[np.uint64]:
        columns = self.index.columns
        order = np.argsort(columns["offset"], kind="stable")
        return np.stack([columns["offset"][order], (columns["payload_offset"] + columns["payload_bytes"])[order]])

    def extent(self, offset: int) -> tuple[int, int]:
        """Where a frame begins and ends; a little more, or less of a frame without payload that is very long."""
        end = int(self._ends[np.searchsorted(self._ends, offset, side="right")])
        starts, payload_ends = self._payload_ends
        at = int(np.searchsorted(starts, offset))
        # Behind the last frame is the index, which is there already.
        most = offset + (_LAST_META if end == len(self.data) else _LARGEST_META)
        if at < len(starts) and starts[at] == offset:
            most = max(offset, int(payload_ends[at])) + _OVERHEAD
        return offset, min(end, most, len(self.data))


_LARGEST_META, _LAST_META = 1 << 20, 16 << 10
_OVERHEAD = 4096
"""Bytes between and behind the payloads of a frame, where there are not very many."""


def map_file(path: Place) -> Data:
    """A file as read-only bytes. Raises OSError when it cannot be read."""
    if isinstance(path, StoredPath):
        from dumper.storage.ranges import StoredBytes

        return StoredBytes(path)
    return mapped(path)


class Found(Struct, frozen=True):
    """What a file holds: its index, or what would be its index if it had one."""

    encoded: bytes
    """The index as it is written."""
    index: Index
    at: int | None
    """Where in the file it is; None where it was made by a scan."""
    problems: list[Problem]


def open_segment(path: Place, advance: Advance = lambda done: None, known: Known | None = None) -> Segment:
    """Map a file and find its frames; damage is a problem of the segment, not an error.

    ``advance`` takes the bytes that were walked through, where there is no index; ``known`` are descriptors of other
    files. Raises OSError when the file cannot be read.
    """
    data = map_file(path)
    written = written_at(path)
    return segment_of(path, data, find_frames(path, data, advance, known), written)


def segment_of(path: Place, data: Data, found: Found, written: tuple[int, int] | None) -> Segment:
    """What was found in a file, and its bytes."""
    kind = StoredSegment if isinstance(path, StoredPath) else Segment
    complete = found.at is not None
    segment = kind(path, data, found.index, complete=complete, problems=found.problems, written=written)
    if found.at is not None:
        segment.let_go(found.at, len(data) - found.at)
    return segment


def written_at(path: Place) -> tuple[int, int] | None:
    """Of a file of this machine its inode, and when it was last written, in nanoseconds. Raises OSError."""
    if not isinstance(path, Path):
        return None
    status = os.stat(path)
    return status.st_ino, status.st_mtime_ns


def find_frames(path: Place, data: Data, advance: Advance = lambda done: None, known: Known | None = None) -> Found:
    """What is in the index of a file, or where there is none what a walk through its frames finds. See
    ``open_segment``."""
    problems: list[Problem] = []
    at = frames.decode_footer(data, len(data) - frames.FOOTER_BYTES)
    if at is not None:
        try:
            encoded = index_bytes(data, at)
            return Found(encoded, decode_index(encoded, known), at, problems)
        except FormatError as error:
            problems.append(Problem("corrupted", f"{path.name}: {error}; the records were found by a scan"))
    from dumper.readers.streams.scan import scan  # most files have an index

    columns, damage = scan(path, data, advance)
    encoded = columns.encode()
    return Found(encoded, decode_index(encoded), None, problems + damage)


def index_view(data: Any, offset: int) -> memoryview:
    """The payload of the index frame at ``offset``, not copied. Raises FormatError."""
    return frames.payload_view(data, _index_payload(data, offset))


def index_bytes(data: Any, offset: int) -> bytes:
    """The payload of the index frame at ``offset``. Raises FormatError."""
    payload = _index_payload(data, offset)
    return bytes(data[payload.offset : payload.offset + payload.length])


def _index_payload(data: Any, offset: int) -> Payload:
    if offset >= len(data):
        raise FormatError("the footer points past the end of the file")
    if hasattr(data, "ahead"):
        data.ahead([(offset, len(data))])
    frame = frames.decode_frame(data, offset)
    if frame.kind != "index" or len(frame.payloads) != 1:
        raise FormatError("the footer points to something that is no index")
    payload = frame.payloads[0]
    if not frames.payload_is_intact(data, payload):
        raise FormatError("the index does not match its checksum")
    return payload
