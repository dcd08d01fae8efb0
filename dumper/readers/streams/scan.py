"""The index of a file that has none, from its frames."""

from __future__ import annotations

from array import array
from typing import Any

from dumper.format import frames
from dumper.format.checking import Scan
from dumper.format.frames import FormatError, Frame
from dumper.format.index import NO_STEP, IndexColumns, check_descriptor
from dumper.format.prefixes import DYNAMIC, prefix_of, shared
from dumper.format.walk import Damage, frames_and_damage
from dumper.reading.protocol import Problem
from dumper.storage.places import Place
from tensortap.progress import Advance

_AT_ONCE = 64 << 20
"""Bytes of a file that are scanned before somebody is told."""


def scan(path: Place, data: Any, advance: Advance = lambda done: None) -> tuple[IndexColumns, list[Problem]]:
    """Rebuild the index from the frames; the problems say what could not be read."""
    found = _Scanned(data, advance)
    problems = []
    for frame in frames_and_damage(data, advance, found.leap):
        if isinstance(frame, Damage):
            problems.append(_problem(path, frame))
            continue
        try:
            found.add(frame)
        except (FormatError, OverflowError) as error:
            problems.append(Problem("corrupted", f"{path.name}: {error}"))
    return found.columns, problems


def _problem(path: Place, damage: Damage) -> Problem:
    if damage.truncated:
        where = f"in the middle of a frame, at offset {damage.offset}"
        return Problem("truncated", f"{path.name} ends {where}; all before is intact")
    return Problem(
        "corrupted",
        f"{path.name}: {damage.message}; {damage.end - damage.offset} bytes from offset {damage.offset} cannot be read",
    )


class _Scanned:
    """The index of a file that is scanned. Records that begin as others before are not decoded, where compiled code
    can look at the bytes."""

    def __init__(self, data: Any, advance: Advance) -> None:
        self.columns = IndexColumns()
        self._advance = advance
        self._known: dict[bytes, int] = {}
        """Numbers of descriptors, by their bytes."""
        self._scan = None if Scan is None or isinstance(data, frames.ReadInPieces) else Scan(data)

    def leap(self, offset: int, last: int) -> tuple[int, int]:
        """See ``frames_and_damage``."""
        more = self._scan is not None
        while more and self._scan is not None:
            begin = offset
            offset, last, more = self._scan.leap(offset, last, _AT_ONCE)
            if offset > begin:
                rows, steps, others = self._scan.take()
                self.columns.rows.frombytes(rows)
                self.columns.steps += array("Q", steps)
                self.columns.others += array("Q", others)
                self._advance(offset - begin)
        return offset, last

    def add(self, frame: Frame) -> None:
        """Add a frame. Raises FormatError and OverflowError for a record that has no row."""
        columns = self.columns
        if frame.kind == "step":
            columns.steps.append(frame.offset)
        elif frame.kind != "record":
            if frame.kind != "index":
                columns.others.append(frame.offset)
        else:
            meta = frames.decode_meta(frame.meta)
            descriptor = {key: value for key, value in meta.items() if key not in DYNAMIC}
            key = frames.encode_meta(descriptor)
            if key not in self._known:
                check_descriptor(descriptor)
                self._known[key] = len(columns.descriptors)
                columns.descriptors.append(descriptor)
            number = self._known[key]
            step, occurrence, order = meta.get("step"), meta.get("occurrence", 0), meta.get("order", 0)
            if not all(isinstance(number, int) and number >= 0 for number in (occurrence, order)):
                raise FormatError(f"the record at offset {frame.offset} has no numbers where they should be")
            first = frame.payloads[0].offset if frame.payloads else 0
            length = sum(payload.length for payload in frame.payloads)
            columns.add(
                (frame.offset, number, step if isinstance(step, int) else NO_STEP, occurrence, order, first, length)
            )
            self._learn(frame.meta, number)

    def _learn(self, meta: bytes, number: int) -> None:
        """Records that begin as this one have the same descriptor."""
        if self._scan is not None and (prefix := prefix_of(meta)) is not None and shared(prefix) is not None:
            self._scan.know(prefix, number)
