"""``verify``: every byte of a run against its checksums. ``repair``: indexes made anew, damaged parts set aside."""

from __future__ import annotations

import contextlib
import itertools
import math
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from dumper.format import frames
from dumper.format.frames import FormatError, Frame
from dumper.format.index import Index, from_columns
from dumper.format.regular_files import create
from dumper.format.walk import Damage, frames_and_damage
from dumper.readers.streams.segments import map_file, read_index, scan
from dumper.reading.open import open_run
from dumper.reading.protocol import RunError
from dumper.storage.places import Place, each
from tensortap.progress import Advance, Progress, silent

if TYPE_CHECKING:
    from dumper.readers.streams.segments import Data

_SUFFIX = ".damaged"
_MOST_LISTED = 1000
"""Parts that a repaired file says it has left out."""
_DAMAGE = frozenset({"unreadable", "missing_records", "mixed_runs"})
_NOTES = frozenset({"missing_rank", "lost", "left_out", "unclosed", "repaired"})


@dataclass
class Report:
    """What ``verify`` found."""

    lines: list[str] = field(default_factory=list)
    """For people; what is damaged, then a summary."""
    damaged: int = 0

    @property
    def intact(self) -> bool:
        return self.damaged == 0


def verify_run(path: Place, progress: Progress = silent) -> Report:
    """Check every frame, payload, index and count of a run.

    A file that ends early because its process was killed is whole up to there: that is said, and is no damage.
    Raises RunError when there is no run.
    """
    run = open_run(path, progress)
    report = Report()
    files: list[Place] = sorted(path.glob("rank-*.msgpack"), key=lambda file: file.name)
    if not files and run.ranks:
        raise RunError(f"{path} is not a run in tensortap's own format, and has no checksums to verify")
    records = 0
    mapped: dict[str, Data] = {}
    for file, data in each(map_file, files):
        if not isinstance(data, OSError):  # else a problem of the run
            mapped[file.name] = data
    with progress("verifying", sum(map(len, mapped.values()))) as advance:
        for name, data in mapped.items():
            records += verify_data(name, data, report, advance)
    for problem in run.problems:
        if problem.kind in _DAMAGE:
            _damage(report, problem.message)
        elif problem.kind in _NOTES:
            report.lines.append(f"note: {problem.message}")
    for step in run.steps:
        for rank in run.ranks:
            try:
                run.layout(step, rank)
            except FormatError as error:
                _damage(report, str(error))
    found = f"{report.damaged} damaged places" if report.damaged else "every checksum is right"
    report.lines.append(f"{len(files)} files, {records} records: {found}")
    return report


def verify_data(name: str, data: Data, report: Report, advance: Advance = lambda done: None) -> int:
    """Check the bytes of one file; returns the number of its records that are intact. ``advance`` takes the bytes that
    were checked."""
    records = 0
    offsets: list[int] = []
    end = 0
    for found in frames_and_damage(data, advance):
        if isinstance(found, Damage):
            if found.truncated and not _is_complete(data):
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


def _verify_end(name: str, data: Data, end: int, offsets: list[int], report: Report) -> None:
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
    elif not _agree(index, from_columns(scan(Path(name), data)[0])):
        _damage(report, f"{name}: the index says something else of records than they do themselves")


def _agree(index: Index, scanned: Index) -> bool:
    """Whether an index says what the frames say."""
    if len(index) != len(scanned) or index.steps.tolist() != scanned.steps.tolist():
        return False
    columns = (name for name in index.columns if name != "descriptor")
    if not all((index.columns[name] == scanned.columns[name]).all() for name in columns):
        return False
    pairs = set(zip(index.columns["descriptor"].tolist(), scanned.columns["descriptor"].tolist(), strict=True))
    return all(_same(index.descriptors[one], scanned.descriptors[other]) for one, other in pairs)


def _same(one: object, other: object) -> bool:
    """Whether two values of a descriptor are equal; NaN, which a tag may hold, is the same as NaN."""
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_same(value, other[key]) for key, value in one.items())
    if isinstance(one, float) and isinstance(other, float):
        return one == other or (math.isnan(one) and math.isnan(other))
    return one == other


def _named(frame: Frame) -> str:
    """Which record it is, if it can be told."""
    try:
        meta = frames.decode_meta(frame.meta)
    except FormatError:
        return ""
    found = meta.get("tags")
    # The frame is damaged: it may hold anything.
    tags = "".join(f" {key}={value}" for key, value in found.items()) if isinstance(found, dict) else ""
    return f" ({meta['name']}{tags}, step {meta.get('step')})" if "name" in meta else ""


def _damage(report: Report, line: str) -> None:
    report.damaged += 1
    report.lines.append(f"damaged: {line}")


def repair_run(path: Path, progress: Progress = silent) -> Iterator[str]:
    """Make every file complete: its intact frames in a new file with an index, the old one kept as ``….damaged``.

    Files that are complete and intact are left alone. A file that was made says for good that it was repaired and what
    was left out (frame ``repaired``). Nothing is deleted. Yields what was done, for people. Raises RunError when there
    is no run, and OSError when it cannot be written.
    """
    open_run(path, progress)
    for file in sorted(path.glob("rank-*.msgpack")):
        check = Report()
        try:
            data = map_file(file)
        except OSError as error:
            yield f"{file.name}: left alone, it {error.strerror}"
            continue
        with progress(f"verifying {file.name}", len(data)) as advance:
            verify_data(file.name, data, check, advance)
        if check.intact and _is_complete(data):
            yield f"{file.name}: complete and intact"
            continue
        yield _rewrite(file, data)


def _is_complete(data: Data) -> bool:
    return frames.decode_footer(data, len(data) - frames.FOOTER_BYTES) is not None


def _rewrite(path: Path, data: Data) -> str:
    """Copy the intact frames into a complete file that takes the place of this one."""
    fresh = path.with_name(path.name + ".repaired")
    with contextlib.suppress(FileNotFoundError):
        fresh.unlink()  # of a repair that was interrupted: a copy of what is here
    with open(create(fresh, stat.S_IMODE(path.stat().st_mode)), "wb") as file:
        left_out = _copy_intact(data, file)
        aside = _free_name(path) if left_out else None
        position = file.tell()
        meta = {"left_out": left_out[:_MOST_LISTED], "aside": None if aside is None else aside.name}
        file.write(frames.encode_frame("repaired", meta, position))
        file.flush()
        position = file.tell()
        columns, _ = scan(fresh, map_file(fresh))
        file.write(frames.encode_frame("index", columns.meta(), position, (columns.encode(),)))
        file.write(frames.encode_footer(position))
        file.flush()
        os.fsync(file.fileno())
    if aside is not None:
        path.rename(aside)
    fresh.replace(path)
    lost = "" if aside is None else f"; {len(left_out)} damaged parts left out, the file as it was is {aside.name}"
    return f"{path.name}: {len(columns)} records kept, index written{lost}"


def _free_name(path: Path) -> Path:
    """``….damaged``, with a number where a repair before has left one."""
    names = (path.with_name(path.name + _SUFFIX + (f".{number}" if number else "")) for number in itertools.count())
    return next(name for name in names if not os.path.lexists(name))


def _copy_intact(data: Data, file: BinaryIO) -> list[str]:
    """Copy frames, their payloads aligned anew; returns what was left out, in words."""
    left_out = []
    for found in frames_and_damage(data):
        if isinstance(found, Damage):
            what = "the unfinished end" if found.truncated else "bytes that are no frame"
            left_out.append(f"{what}: {found.end - found.offset} bytes from offset {found.offset}")
        elif not all(frames.payload_is_intact(data, payload) for payload in found.payloads):
            left_out.append(f"a damaged {found.kind}{_named(found)}")
        elif found.kind != "index":
            file.write(frames.encode_head(found.kind.encode("ascii"), found.meta, len(found.payloads)))
            for payload in found.payloads:
                file.write(frames.encode_padding(file.tell(), payload.length))
                file.write(frames.payload_view(data, payload))
                file.write(frames.encode_checksum(payload.checksum))
    return left_out
