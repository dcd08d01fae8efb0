"""``verify``: every byte of a run against its checksums. ``repair``: indexes made anew, damaged parts set aside."""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from dumper.format import frames
from dumper.format.frames import FormatError, Frame
from dumper.format.status import read_status
from dumper.format.walk import Damage, frames_and_damage
from dumper.readers.streams.segments import map_file, read_index, scan
from dumper.reading.open import open_run
from dumper.reading.protocol import RunError

_SUFFIX = ".damaged"
_Data = mmap.mmap | bytes


@dataclass
class Report:
    """What ``verify`` found."""

    lines: list[str] = field(default_factory=list)
    """For people; what is damaged, then a summary."""
    damaged: int = 0

    @property
    def intact(self) -> bool:
        return self.damaged == 0


def verify_run(path: Path) -> Report:
    """Check every frame, payload, index and count of a run.

    A file that ends early because its process was killed is whole up to there: that is said, and is no damage.
    Raises RunError when there is no run.
    """
    run = open_run(path)
    report = Report()
    files = sorted(path.glob("rank-*.msgpack"))
    if not files and run.ranks:
        raise RunError(f"{path} is not a run in tensortap's own format, and has no checksums to verify")
    records = 0
    for file in files:
        records += verify_data(file.name, map_file(file), report)
    for file in sorted(path.glob("rank-*.status")):
        if read_status(file.read_bytes()) is None:
            _damage(report, f"{file.name}: the counts cannot be read")
    for problem in run.problems:
        if problem.kind in ("missing_rank", "lost", "unclosed", "unreadable"):
            report.lines.append(f"note: {problem.message}")
    report.damaged += sum(problem.kind == "unreadable" for problem in run.problems)
    found = f"{report.damaged} damaged places" if report.damaged else "every checksum is right"
    report.lines.append(f"{len(files)} files, {records} records: {found}")
    return report


def verify_data(name: str, data: _Data, report: Report) -> int:
    """Check the bytes of one file; returns the number of its records that are intact."""
    records = 0
    offsets: list[int] = []
    end = 0
    for found in frames_and_damage(data):
        if isinstance(found, Damage):
            if found.truncated:
                report.lines.append(
                    f"note: {name} ends in the middle of a frame, at offset {found.offset}; all before is there"
                )
            else:
                _damage(report, f"{name}: {found.message}")
            end = found.end
            continue
        end = found.end
        bad = sum(not frames.payload_is_intact(data, payload) for payload in found.payloads)
        for _ in range(bad):
            place = f"the payload of the {found.kind} at offset {found.offset}"
            _damage(report, f"{name}: {place} does not match its checksum{_named(found)}")
        if found.kind == "record":
            offsets.append(found.offset)
            records += not bad
    _verify_end(name, data, end, offsets, report)
    return records


def _verify_end(name: str, data: _Data, end: int, offsets: list[int], report: Report) -> None:
    """Check the footer, and the index against the records that there are."""
    if end == len(data):
        return
    index_offset = frames.decode_footer(data, end)
    if index_offset is None or end + frames.FOOTER_BYTES != len(data):
        _damage(report, f"{name}: what follows offset {end} is no footer")
        return
    try:
        index = read_index(data, index_offset)
    except FormatError as error:
        _damage(report, f"{name}: {error}")
        return
    if index.columns["offset"].tolist() != offsets:
        _damage(report, f"{name}: the index does not list the records that the file holds")


def _named(frame: Frame) -> str:
    """Which record it is, if it can be told."""
    try:
        meta = frames.decode_meta(frame.meta)
    except FormatError:
        return ""
    tags = "".join(f" {key}={value}" for key, value in meta.get("tags", {}).items())
    return f" ({meta['name']}{tags}, step {meta.get('step')})" if "name" in meta else ""


def _damage(report: Report, line: str) -> None:
    report.damaged += 1
    report.lines.append(f"damaged: {line}")


def repair_run(path: Path) -> Iterator[str]:
    """Make every file complete: its intact frames in a new file with an index, the old one kept as ``….damaged``.

    Files that are complete and intact are left alone. Yields what was done, for people. Raises RunError when there is
    no run, and OSError when it cannot be written.
    """
    open_run(path)
    for file in sorted(path.glob("rank-*.msgpack")):
        check = Report()
        data = map_file(file)
        verify_data(file.name, data, check)
        if check.intact and _is_complete(data):
            yield f"{file.name}: complete and intact"
            continue
        yield _rewrite(file, data)


def _is_complete(data: _Data) -> bool:
    return frames.decode_footer(data, len(data) - frames.FOOTER_BYTES) is not None


def _rewrite(path: Path, data: _Data) -> str:
    """Copy the intact frames into a complete file that takes the place of this one."""
    aside = path.with_name(path.name + _SUFFIX)
    if aside.exists():
        raise FileExistsError(f"{aside} is there already; move it away before the run is repaired again")
    fresh = path.with_name(path.name + ".repaired")
    with fresh.open("wb") as file:
        dropped = _copy_intact(data, file)
        position = file.tell()
        file.flush()
        columns, _ = scan(fresh, map_file(fresh))
        file.write(frames.encode_frame("index", columns.meta(), position, (columns.encode(),)))
        file.write(frames.encode_footer(position))
        file.flush()
        os.fsync(file.fileno())
    if dropped:
        path.rename(aside)
    fresh.replace(path)
    lost = f"; {dropped} damaged parts left out, the file as it was is {aside.name}" if dropped else ""
    return f"{path.name}: {len(columns)} records kept, index written{lost}"


def _copy_intact(data: _Data, file: BinaryIO) -> int:
    """Copy frames, their payloads aligned anew; returns the number of damaged parts that were left out."""
    dropped = 0
    view = memoryview(data)
    for found in frames_and_damage(data):
        if isinstance(found, Damage):
            dropped += not found.truncated
        elif not all(frames.payload_is_intact(data, payload) for payload in found.payloads):
            dropped += 1
        elif found.kind != "index":
            file.write(frames.encode_head(found.kind.encode("ascii"), found.meta, len(found.payloads)))
            for payload in found.payloads:
                file.write(frames.encode_padding(file.tell(), payload.length))
                file.write(view[payload.offset : payload.offset + payload.length])
                file.write(frames.encode_checksum(payload.checksum))
    return dropped
