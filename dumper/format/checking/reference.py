"""What ``Checks`` finds, in Python and by one thread."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

from dumper.format import frames
from dumper.format.frames import FormatError, Frame
from dumper.format.index import COLUMNS, decode_index
from dumper.format.prefixes import numbers, prefix_of


class _File:
    def __init__(self, data: Any) -> None:
        self.data = data
        self.at = self.last = self.records = 0
        self.stopped = not len(data)
        self.steps: list[int] = []
        self.damaged: list[int] = []
        self.rows = _rows_of(data)
        self.prefixes: list[tuple[int, bytes]] = []
        self.of_descriptor: dict[int, list[bytes]] = defaultdict(list)
        self.agrees = self.rows is not None


class Checks:
    """Several files, given with whether they are mapped. ``work`` does some of what there is to do; False: nothing is
    left."""

    def __init__(self, files: list[tuple[Any, bool]]) -> None:
        self._files = [_File(data) for data, _ in files]
        self._stop = False
        self.done = 0
        """Bytes that were checked."""

    def work(self, most: int, waits: bool) -> bool:
        """Work until so many bytes were done. A thread with ``waits`` does not end before the others have."""
        begin = self.done
        for file in self._files:
            while not file.stopped:
                if self.done - begin >= most:
                    return not self._stop
                self._walk_over(file)
        return False

    def _walk_over(self, file: _File) -> None:
        try:
            frame = frames.decode_frame(file.data, file.at)
        except FormatError:
            file.stopped = True
            return
        if frame.kind == "record":
            file.agrees = file.agrees and _agrees(file, frame)
            file.records += 1
        elif frame.kind == "step":
            file.steps.append(file.at)
        if not all(frames.payload_is_intact(file.data, payload) for payload in frame.payloads):
            file.damaged.append(file.at)
        self.done += frame.end - file.at
        file.last, file.at = file.at, frame.end
        file.stopped = self._stop or file.at >= len(file.data)

    def place(self, number: int) -> tuple[int, int]:
        """Where a file is walked to, and where the last frame begins."""
        return self._files[number].at, self._files[number].last

    def go_on(self, number: int, at: int, last: int) -> None:
        """Walk on from another place."""
        file = self._files[number]
        file.at, file.last, file.agrees, file.stopped = at, last, False, at >= len(file.data)

    def outcome(self, number: int) -> tuple[int, list[int], list[int], list[tuple[int, bytes]] | None]:
        """See ``Outcome``."""
        file = self._files[number]
        whole = file.agrees and file.rows is not None and file.records == len(file.rows)
        return file.records, file.steps, file.damaged, file.prefixes if whole else None

    def stop(self) -> None:
        """Do no more."""
        self._stop = True


def _rows_of(data: Any) -> list[tuple[int, ...]] | None:
    """What the index says of each record, in the order of its columns."""
    at = frames.decode_footer(data, len(data) - frames.FOOTER_BYTES)
    if at is None:
        return None
    try:
        frame = frames.decode_frame(data, at)
        if frame.kind != "index" or len(frame.payloads) != 1:
            return None
        index = decode_index(bytes(frames.payload_view(data, frame.payloads[0])))
    except FormatError:
        return None
    return list(zip(*(index.columns[name].tolist() for name in COLUMNS), strict=True))


def _agrees(file: _File, frame: Frame) -> bool:
    """Whether a record is what its row says; its descriptor apart, which the prefix stands for."""
    assert file.rows is not None
    if file.records >= len(file.rows):
        return False
    offset, descriptor, step, occurrence, order, first, nbytes = file.rows[file.records]
    places = (
        frame.offset,
        frame.payloads[0].offset if frame.payloads else 0,
        sum(one.length for one in frame.payloads),
    )
    if places != (offset, first, nbytes):
        return False
    expected = step, occurrence, order
    known = file.of_descriptor[descriptor]
    if any(frame.meta.startswith(prefix) and numbers(frame.meta[len(prefix) :]) == expected for prefix in known):
        return True
    found = prefix_of(frame.meta)
    if found is None or numbers(frame.meta[len(found) :]) != expected:
        return False
    known.append(found)
    file.prefixes.append((descriptor, found))
    return True
