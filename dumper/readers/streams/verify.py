"""``verify``: every byte of a run against its checksums, and its indexes against its records.

Nearly all of it is done by ``dumper.format.checking``; what that cannot walk over, or finds damaged, is looked at here.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from msgspec import Struct, field

from dumper.format import frames
from dumper.format.checking import Begun, Checking, Outcome, begin
from dumper.format.frames import FormatError, Frame, ReadInPieces
from dumper.format.index import Index, decode_index, encoded_descriptors, from_columns
from dumper.format.prefixes import is_prefix_of, shared
from dumper.format.walk import Damage, frames_and_damage
from dumper.readers.streams.scan import scan
from dumper.readers.streams.segments import index_view, map_file
from dumper.reading.open import open_run
from dumper.reading.protocol import Run, RunError
from dumper.storage.places import Place, each
from tensortap.progress import Advance, Progress, silent

if TYPE_CHECKING:
    from dumper.readers.streams.segments import Data

_DAMAGE = frozenset({"unreadable", "missing_records", "mixed_runs"})
_NOTES = frozenset({"missing_rank", "lost", "left_out", "unclosed", "repaired"})


class Report(Struct):
    """What ``verify`` found."""

    lines: list[str] = field(default_factory=list)
    """For people; what is damaged, then a summary."""
    damaged: int = 0

    @property
    def intact(self) -> bool:
        return self.damaged == 0


def verify_run(path: Place, progress: Progress = silent, begun: Begun | None = None) -> Report:
    """Check every frame, payload, index and count of a run. ``begun``: its files are being checked already.

    A file that ends early because its process was killed is whole up to there: that is said, and is no damage.
    Raises RunError when there is no run.
    """
    if begun is None and isinstance(path, Path):
        begun = begin(path)
    try:
        run = open_run(path, progress)
        report = Report()
        names, records = _verify_files(path, run, report, progress, begun)
        _verify_run(run, report)
    finally:
        if begun is not None:
            begun.checking.stop()
    found = f"{report.damaged} damaged places" if report.damaged else "every checksum is right"
    report.lines.append(f"{len(names)} files, {records} records: {found}")
    return report


def _verify_files(
    path: Place, run: Run, report: Report, progress: Progress, begun: Begun | None
) -> tuple[Sequence[str], int]:
    """The names of all files, and how many intact records they hold. What cannot be read is a problem of the run."""
    names: Sequence[str]
    if begun is not None:
        names, mapped, checking = begun.names, dict[str, Any](begun.files), begun.checking
    else:
        files: list[Place] = sorted(path.glob("rank-*.msgpack"), key=lambda file: file.name)
        names, checking = [file.name for file in files], None
        mapped = {file.name: data for file, data in each(map_file, files) if not isinstance(data, OSError)}
    if not names and run.ranks:
        raise RunError(f"{path} is not a run in tensortap's own format, and has no checksums to verify")
    records = 0
    with progress("verifying", sum(map(len, mapped.values()))) as advance:
        for number, (name, data) in enumerate(mapped.items()):
            walk = None if checking is None else _Walk(checking, number, advance)
            records += _verify_file(name, data, report, advance, walk)
    return names, records


def _verify_run(run: Run, report: Report) -> None:
    """Its problems and its layouts."""
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


class _Walk:
    """The part of a file that is checked elsewhere: all but what is around damage."""

    def __init__(self, checking: Checking, number: int, advance: Advance) -> None:
        self._checking, self._number, self._advance = checking, number, advance
        self._has_begun = False
        self.end = 0
        """Of what was walked over."""

    def leap(self, offset: int, last: int) -> tuple[int, int]:
        """See ``frames_and_damage``."""
        if self._has_begun:
            place = self._checking.go_on(self._number, offset, last, self._advance)
        else:
            self._has_begun = True
            self._checking.finish(self._advance)
            place = self._checking.place(self._number)
        self.end = place[0]
        return place

    def outcome(self) -> Outcome:
        """What was found."""
        return self._checking.outcome(self._number)


def verify_data(name: str, data: Data, report: Report, advance: Advance = lambda done: None) -> int:
    """Check the bytes of one file; returns the number of its records that are intact. ``advance`` takes the bytes that
    were checked."""
    if isinstance(data, ReadInPieces):
        return _verify_file(name, data, report, advance, None)
    checking = Checking([data])
    try:
        return _verify_file(name, data, report, advance, _Walk(checking, 0, advance))
    finally:
        checking.stop()


def _verify_file(name: str, data: Any, report: Report, advance: Advance, walk: _Walk | None) -> int:
    damaged: list[tuple[int, str]] = []
    """Where, and what."""
    seen, records, end = 0, 0, 0
    for found in frames_and_damage(data, advance) if walk is None else frames_and_damage(data, advance, walk.leap):
        end = found.end
        if isinstance(found, Damage):
            truncated = found.truncated and not is_complete(data)
            text = (
                f"note: {name} ends in the middle of a frame, at offset {found.offset}; all before is there"
                if truncated
                else f"damaged: {name}: {found.message}"
            )
            damaged.append((found.offset, text))
            continue
        bad = _damaged_payloads(name, data, found)
        damaged += bad
        if found.kind == "record":
            seen += 1
            records += not bad
    outcome = None if walk is None else walk.outcome()
    if walk is not None and outcome is not None:
        end = max(end, walk.end)
        seen += outcome.records
        records += outcome.records
        for offset in set(outcome.damaged):
            try:
                found = frames.decode_frame(data, offset)
            except FormatError as error:  # it was one a moment ago
                damaged.append((offset, f"damaged: {name}: {error}"))
                continue
            bad = _damaged_payloads(name, data, found)
            damaged += bad
            records -= found.kind == "record" and bool(bad)
    for _, text in sorted(damaged, key=lambda one: one[0]):
        report.damaged += not text.startswith("note")
        report.lines.append(text)
    _verify_end(name, data, end, seen, outcome, report)
    return records


def _damaged_payloads(name: str, data: Any, frame: Frame) -> list[tuple[int, str]]:
    """A line for each."""
    bad = sum(not frames.payload_is_intact(data, payload) for payload in frame.payloads)
    place = f"damaged: {name}: the payload of the {frame.kind} at offset {frame.offset}"
    return [(frame.offset, f"{place} does not match its checksum{named(frame)}")] * bad


def _verify_end(name: str, data: Any, end: int, records: int, outcome: Outcome | None, report: Report) -> None:
    """Check the footer, and the index against the records that there are."""
    if end == len(data):
        return
    index_offset = frames.decode_footer(data, end)
    if index_offset is None or end + frames.FOOTER_BYTES != len(data):
        _damage(report, f"{name}: what follows offset {end} is no footer")
        return
    try:
        encoded = index_view(data, index_offset)
        index = decode_index(encoded)
    except FormatError as error:
        _damage(report, f"{name}: {error}")
        return
    if outcome is not None and _says_the_same(index, encoded, outcome):
        return
    if len(index) != records or index.columns["offset"].tolist() != _offsets(data):
        _damage(report, f"{name}: the index does not list the records that the file holds")
    elif not _agree(index, from_columns(scan(Path(name), data)[0])):
        _damage(report, f"{name}: the index says something else of records than they do themselves")


def _offsets(data: Any) -> list[int]:
    """Of all frames of records."""
    found = (one for one in frames_and_damage(data) if isinstance(one, Frame))
    return [frame.offset for frame in found if frame.kind == "record"]


def _says_the_same(index: Index, encoded: memoryview, outcome: Outcome) -> bool:
    """Whether an index says what the frames say, as far as the walk over them could tell."""
    if outcome.prefixes is None or index.steps.tolist() != outcome.steps:
        return False
    descriptors = encoded_descriptors(encoded)
    for number, prefix in set(outcome.prefixes):
        if is_prefix_of(prefix, descriptors[number]):
            continue
        found = shared(prefix)
        if found is None or not _same(index.descriptors[number], found):
            return False
    return True


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


def is_complete(data: Any) -> bool:
    """Whether a file has a footer."""
    return frames.decode_footer(data, len(data) - frames.FOOTER_BYTES) is not None


def named(frame: Frame) -> str:
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
