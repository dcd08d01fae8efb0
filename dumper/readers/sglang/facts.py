"""What files say of their values, without the values themselves: read for many files at a time."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from msgspec import Struct
from msgspec.structs import replace

from dumper.readers.sglang import pt_files, pt_format
from dumper.readers.sglang.plain_pt import WORTH_A_THREAD, StoredTensor, Told, in_halves, stamp_of, told
from dumper.readers.sglang.pt_files import Content, PtFileError
from dumper.readers.sglang.pt_format.archive import Head, Stamp
from dumper.storage.places import Place

MOST_AT_ONCE = 2048
"""Files."""


class Facts(Struct, frozen=True):
    """What a file says of its value, kept after the value itself is let go."""

    dtype: str | None
    shape: tuple[int, ...] | None
    dims: str | None
    meta: Mapping[str, Any]
    error: str | None = None
    tensor: StoredTensor | None = None
    """Where the tensor is found again, with ``stamp``."""
    stamp: Stamp | None = None
    """Of the file as it was when this was read."""


class RecordOfFile(Protocol):
    """What the facts are filled in of."""

    def keep(self, facts: Facts) -> None: ...
    @property
    def path(self) -> Path: ...
    @property
    def filename(self) -> str: ...
    @property
    def place(self) -> bytes: ...


class _Ahead:
    """Heads of the files of some records, read by a thread of its own: that needs no interpreter."""

    def __init__(self, first: int, records: Sequence[RecordOfFile]) -> None:
        """``first``: the number of the first of the records."""
        self.first, self.stop = first, first + len(records)
        self._paths = [record.place for record in records]
        self._heads: list[Head | None] = []
        self._thread: threading.Thread | None = None
        thread = threading.Thread(target=lambda: self._heads.extend(pt_format.heads(self._paths)), daemon=True)
        with contextlib.suppress(RuntimeError):  # there may be no more threads: they are read when they are asked for
            thread.start()
            self._thread = thread

    def heads(self) -> list[Head | None]:
        """Waits for them."""
        if self._thread is not None:
            self._thread.join()
        # A thread that could not (no memory) has left nothing behind.
        return self._heads or pt_format.heads(self._paths)


class FactsAhead:
    """Fills in the facts of records: where they are asked for one after the other, those of more and more at once."""

    def __init__(self, records: Sequence[RecordOfFile]) -> None:
        self._records = records
        self._next, self._at_once = 0, 1
        self._ahead: _Ahead | None = None

    def begin(self) -> None:
        """Those of all records will be asked for in their order: reading begins."""
        if self._next == 0 and len(self._records) >= WORTH_A_THREAD:
            self._ahead = _Ahead(0, self._records[:MOST_AT_ONCE])

    def fill(self, number: int) -> None:
        """Fill in those of the record of this number, at least."""
        ahead = self._ahead
        if ahead is not None and ahead.first <= number < ahead.stop:
            first, heads = ahead.first, ahead.heads()
            more = self._records[ahead.stop : ahead.stop + MOST_AT_ONCE]
            self._ahead = _Ahead(ahead.stop, more) if more else None
        else:
            self._at_once = min(2 * self._at_once, MOST_AT_ONCE) if number == self._next else 1
            self._next = min(number + self._at_once, len(self._records))
            first, heads = number, _read([record.place for record in self._records[number : self._next]])
        for record, head in zip(self._records[first : first + len(heads)], heads, strict=True):
            found = told(head)
            record.keep(facts_of_file(record.path) if found is None else _facts_of_told(found, record.filename))


def facts_of_files(places: Sequence[Place]) -> list[Facts | OSError]:
    """The facts of files, for another process (``dumper.storage.places.Workers``)."""
    paths = [Path(str(place)) for place in places]
    several = zip(paths, map(told, _read([os.fsencode(path) for path in paths])), strict=True)
    return [facts_of_file(path) if found is None else _facts_of_told(found, path.name) for path, found in several]


def as_found_here(facts: Facts, path: Path) -> Facts | None:
    """Facts that another process has found, possibly on another machine, where inodes have other numbers; None where
    the file is not the same here."""
    found = stamp_of(path)
    if facts.error is not None or facts.stamp is None or found is None or found[:2] != facts.stamp[:2]:
        return None
    return replace(facts, stamp=found)


def _read(paths: list[bytes]) -> list[Head | None]:
    return in_halves(pt_format.heads, paths)


def _facts_of_told(found: Told, name: str) -> Facts:
    content = found.content
    meta: Any = content.get("meta") if type(content) is dict else None
    value = content.get("value") if type(meta) is dict else None
    if type(value) is StoredTensor:  # as SGLang's dumper writes it
        dims = meta.get("dims")
        place = value if value.stop else None
        return Facts(value.dtype, value.shape, dims if type(dims) is str else None, meta, None, place, found.stamp)
    try:
        return facts_of(pt_files.content_of(content, name), found.stamp)
    except PtFileError as error:
        return _unreadable(error)


def facts_of_file(path: Path) -> Facts:
    """The facts of one file, however it is read."""
    stamp = stamp_of(path)  # before it is read: what is written meanwhile has changed it
    try:
        return facts_of(pt_files.load(path), stamp)
    except PtFileError as error:
        return _unreadable(error)


def _unreadable(error: PtFileError) -> Facts:
    return Facts(None, None, None, {}, str(error))


def facts_of(content: Content, stamp: Stamp | None = None) -> Facts:
    """The facts of what was read; ``stamp`` of the file."""
    value, meta = content.value, content.meta
    dims = meta.get("dims")
    if type(dims) is not str:
        dims = None
    if stamp is not None and type(value) is StoredTensor:
        return Facts(value.dtype, value.shape, dims, meta, None, value if value.stop else None, stamp)
    is_tensor = pt_files.is_tensor(value)
    dtype, shape = (pt_files.dtype_name(value), tuple(value.shape)) if is_tensor else (None, None)
    return Facts(dtype, shape, dims, meta, stamp=stamp)
