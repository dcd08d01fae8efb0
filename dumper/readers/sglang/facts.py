"""What files say of their values, without the values themselves: read for many files at a time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from msgspec import Struct
from msgspec.structs import replace

from dumper.readers.sglang import pt_files
from dumper.readers.sglang.plain_pt import StoredTensor, Told, in_halves, read_many, stamp_of
from dumper.readers.sglang.pt_files import Content, PtFileError
from dumper.readers.sglang.pt_format.archive import Stamp
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
    def location(self) -> str: ...


class FactsAhead:
    """Fills in the facts of records: where they are asked for one after the other, those of more and more at once."""

    def __init__(self, records: Sequence[RecordOfFile]) -> None:
        self._records = records
        self._next, self._at_once = 0, 1

    def fill(self, number: int) -> None:
        """Fill in those of the record of this number, at least."""
        self._at_once = min(2 * self._at_once, MOST_AT_ONCE) if number == self._next else 1
        self._next = min(number + self._at_once, len(self._records))
        several = self._records[number : self._next]
        for record, told in zip(several, _read([record.location for record in several]), strict=True):
            record.keep(facts_of_file(record.path) if told is None else _facts_of_told(told, record.filename))


def facts_of_files(places: Sequence[Place]) -> list[Facts | OSError]:
    """The facts of files, for another process (``dumper.storage.places.Workers``)."""
    paths = [Path(str(place)) for place in places]
    several = zip(paths, _read([str(path) for path in paths]), strict=True)
    return [facts_of_file(path) if told is None else _facts_of_told(told, path.name) for path, told in several]


def as_found_here(facts: Facts, path: str) -> Facts | None:
    """Facts that another process has found, possibly on another machine, where inodes have other numbers; None where
    the file is not the same here."""
    found = stamp_of(path)
    if facts.error is not None or facts.stamp is None or found is None or found[:2] != facts.stamp[:2]:
        return None
    return replace(facts, stamp=found)


def _read(paths: list[str]) -> list[Told | None]:
    return in_halves(read_many, paths)


def _facts_of_told(told: Told, name: str) -> Facts:
    try:
        content = pt_files.content_of(told.content, name)
    except PtFileError as error:
        return _unreadable(error)
    return facts_of(content, told.stamp)


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
