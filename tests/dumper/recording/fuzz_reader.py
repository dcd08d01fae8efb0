"""Fuzzes the reader with atheris: ``python -m tests.dumper.recording.fuzz_reader [libFuzzer options]``.

Any error but FormatError, and any input that takes long or much memory, stops it and leaves the input behind.
"""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["dumper"]):
    from dumper.format import frames
    from dumper.format.index import from_columns
    from dumper.format.status import read_status
    from dumper.readers.streams.metadata import read_coverage, read_header
    from dumper.readers.streams.record import StoredRecord
    from dumper.readers.streams.repair import Report, verify_data
    from dumper.readers.streams.segments import Segment, scan


def read(data: bytes) -> None:
    """Everything that reading a file of these bytes does."""
    # Checksums that are right get the fuzzer past the first check; those that are wrong have tests of their own.
    frames.checksum = _no_checksum
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


def _no_checksum(data: object) -> int:
    return 0


def main() -> None:
    atheris.Setup(sys.argv, read)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
