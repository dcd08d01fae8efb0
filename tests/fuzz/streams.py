"""Everything that reading the file of a rank does, for bytes that may be anything."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

from dumper.format import frames
from dumper.format.index import from_columns
from dumper.format.status import read_status
from dumper.readers.streams.metadata import read_coverage, read_header
from dumper.readers.streams.record import StoredRecord
from dumper.readers.streams.scan import scan
from dumper.readers.streams.segments import Segment
from dumper.readers.streams.verify import Report, verify_data
from dumper.reading.contents import as_plain, as_text
from dumper.reading.indexing import Index


def read_stream(data: bytes) -> None:
    """Scan, verify and read all records; raises what none of it should."""
    read_status(data)
    verify_data("fuzz", data, Report())
    columns, _ = scan(Path("fuzz"), data)
    segment = Segment(Path("fuzz"), data, from_columns(columns), complete=False)
    metas = []
    for offset in [*segment.index.others.tolist(), *segment.index.steps.tolist()]:
        with contextlib.suppress(frames.FormatError):
            metas.append(segment.meta(offset))
    read_header(0, metas, metas)
    read_coverage(0, metas, metas, {}, 0)
    for row in range(len(segment.index)):
        record = StoredRecord(segment, row, 0)
        with contextlib.suppress(frames.FormatError, ValueError):
            _ = (record.step, record.tags, record.statistics, record.fingerprint)
            _ = record.array() if record.kind == "tensor" else record.value
        as_text(record, 8, Index("[0]", (0,)))
        as_plain(record, 8)
        assert repr(record).isprintable()


@contextlib.contextmanager
def without_checksums() -> Iterator[None]:
    """Checksums that are right get a fuzzer past the first check; those that are wrong have tests of their own."""
    with mock.patch.object(frames, "checksum", return_value=0):
        yield


def examples() -> tuple[bytes, ...]:
    """Streams that are whole, for a fuzzer that knows no checksums."""
    import struct

    data, found = b"", []
    with without_checksums():
        for kind, meta, payloads in (
            (
                "header",
                {"format": "tensortap", "version": 1, "rank": 0, "world_size": 2, "parallel": {"tp": [0, 2]}},
                (),
            ),
            ("taps", {"taps": [{"id": "a", "name": "b", "line": 3}]}, ()),
            ("step", {"step": 0, "layout": {"rows": 2, "sequences": [["r", 0, 2]], "forward_mode": "extend"}}, ()),
            ("record", {"name": "x", "dtype": "float32", "shape": [2], "step": 0, "tags": {"l": 1}}, (bytes(8),)),
            ("record", {"name": "p", "dtype": "uint4", "shape": [2], "step": 0}, (bytes(2),)),
            ("record", {"name": "y", "step": None}, (b"\x93\x01\x02\x03",)),
            (
                "record",
                {"name": "s", "dtype": "int8", "shape": [9], "level": "stats"},
                (struct.pack("<7d", *range(7)),),
            ),
            ("record", {"name": "h", "dtype": "int8", "shape": [9], "level": "hash"}, (bytes(16),)),
        ):
            data += frames.encode_frame(kind, meta, len(data), payloads)
            found.append(data)
    return tuple(found)
