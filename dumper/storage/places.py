"""Where a run lies: a folder of this machine, or one on object storage.

A ``StoredPath`` has the few methods of ``pathlib.Path`` that readers of runs need, so that they go through both alike.
Small files are read whole here, many of them at once; what is in large ones comes from ``dumper.storage.ranges``, and
``dumper.storage.addresses`` makes both kinds of a text.
"""

from __future__ import annotations

import contextlib
import errno
import fnmatch
import functools
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Protocol, TypeVar

from msgspec import Struct

from dumper.format import regular_files

CONCURRENT = 16
"""Requests to one bucket at a time."""
T = TypeVar("T")


class StorageError(OSError):
    """Something on object storage that cannot be read, for good or after retries."""

    def __init__(self, address: str, reason: str, passing: bool = False) -> None:
        super().__init__(5, reason, address)
        self.passing = passing
        """Whether it is the storage, or the way to it, that fails, and not what was asked for."""

    def __str__(self) -> str:
        return f"{self.filename}: {self.strerror}"

    def __reduce__(self) -> tuple[type[StorageError], tuple[str, str, bool]]:
        return type(self), (str(self.filename), str(self.strerror), self.passing)


class StorageGoneError(StorageError):
    """Request after request failed; no more are made."""


_listed: dict[str, Sequence[str] | None] = {}


@contextlib.contextmanager
def listed_once(folder: Place) -> Iterator[None]:
    """Within it ``names_in`` lists a folder of this machine once: what it is, one reader after the other is asked."""
    _listed[str(folder)] = None
    try:
        yield
    finally:
        _listed.pop(str(folder), None)


def names_in(folder: Path) -> Sequence[str]:
    """The names of what lies directly in a folder of this machine, in no order. Raises OSError."""
    key = str(folder)
    found = _listed.get(key)
    if found is None:
        found = os.listdir(folder)
        if key in _listed:
            _listed[key] = found
    return found


class Listing(Struct, frozen=True):
    """What lies directly in a folder."""

    files: Mapping[str, int]
    """Name to size in bytes."""
    folders: Sequence[str]


class Part(Struct, frozen=True):
    """A piece of an object."""

    data: memoryview
    size: int
    """Of the whole object."""
    tag: str | None
    """Of the object's content: it changes when the object does. None where the storage has none."""


class Store(Protocol):
    """A bucket. Every method raises StorageError, after retries where these may help."""

    address: str
    """``s3://bucket``."""

    def list(self, key: str) -> Listing:
        """What lies directly in a folder; nothing where there is no such folder."""

    def read(self, key: str, start: int, end: int, tag: str | None) -> Part:
        """Bytes ``start`` to ``end`` of an object, all of them; of the one that has the tag, where one is given."""


_MOST_FOLDERS = 100
"""Folders that are looked into for what lies in them; each is a request."""


class _Status(Struct, frozen=True):
    st_size: int


class StoredPath:
    """A folder or an object on object storage. What was listed once is not listed again."""

    def __init__(self, store: Store, key: str, parent: StoredPath | None = None) -> None:
        self.store = store
        self.key = key.strip("/")
        self._parent = parent

    @property
    def name(self) -> str:
        """The last part; of a bucket its name."""
        return str(self).rsplit("/", 1)[-1]

    @property
    def parent(self) -> StoredPath:
        """The folder that it lies in."""
        return self._parent or StoredPath(self.store, self.key.rpartition("/")[0])

    @functools.cached_property
    def _listing(self) -> Listing:
        return self.store.list(self.key)

    def __truediv__(self, name: str) -> StoredPath:
        return StoredPath(self.store, f"{self.key}/{name}", self)

    def iterdir(self) -> Iterator[StoredPath]:
        """Everything directly in a folder."""
        for name in (*self._listing.folders, *self._listing.files):
            yield self / name

    def glob(self, pattern: str) -> Iterator[StoredPath]:
        """Files whose name fits, in this folder; with a pattern that begins with ``*/``, in the folders in it."""
        if pattern.startswith("*/"):
            for folder in self._listing.folders[:_MOST_FOLDERS]:
                yield from (self / folder).glob(pattern[2:])
            return
        for name in self._listing.files:
            if fnmatch.fnmatchcase(name, pattern):
                yield self / name

    def is_dir(self) -> bool:
        """Whether anything lies in it."""
        return bool(self._listing.files or self._listing.folders)

    def exists(self) -> bool:
        """Whether it is an object or a folder with something in it."""
        return (bool(self.key) and self.name in self.parent._listing.files) or self.is_dir()

    def stat(self) -> _Status:
        """The size of an object. Raises StorageError where there is none."""
        size = self.parent._listing.files.get(self.name)
        if size is None:
            raise StorageError(str(self), "there is no such object")
        return _Status(size)

    def __str__(self) -> str:
        return f"{self.store.address}/{self.key}" if self.key else self.store.address

    def __repr__(self) -> str:
        return f"StoredPath({str(self)!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, StoredPath) and str(self) == str(other)

    def __hash__(self) -> int:
        return hash(str(self))

    def __lt__(self, other: StoredPath) -> bool:
        return str(self) < str(other)


Place = Path | StoredPath
"""A folder or file of this machine, or one on object storage."""


class Workers(Protocol):
    """Other processes, here or on other machines, that look at files in the place of this one."""

    def __call__(
        self, function: Callable[[Sequence[Place]], Sequence[T | OSError]], places: Sequence[Place]
    ) -> Iterator[T | OSError]:
        """What the function says of each place, or why it cannot be read, in order. It takes some places at a time, and
        is a function of a module, with arguments at most (``functools.partial``)."""


def read_bytes(place: Place, limit: int) -> bytes:
    """The content of a file. Raises OSError where it cannot be read, and for more than ``limit`` bytes."""
    if not isinstance(place, StoredPath):
        return regular_files.read_bytes(place, limit)
    size = place.stat().st_size
    if size > limit:
        raise OSError(errno.EFBIG, f"is {size} bytes long; {limit} is the most", str(place))
    return bytes(place.store.read(place.key, 0, size, None).data) if size else b""


def each(
    function: Callable[[Place], T], places: Iterable[Place], workers: Workers | None = None
) -> Iterator[tuple[Place, T | OSError]]:
    """What the function says of each file, or why the file cannot be read, in order. On object storage several are
    looked at at a time; ``workers`` look in the place of this process, with a function that can be sent to them."""
    places = list(places)
    if workers is not None:
        return zip(places, workers(functools.partial(_all_of, function), places), strict=True)
    return zip(places, _each(function, places), strict=True)


def _all_of(function: Callable[[Place], T], places: Sequence[Place]) -> list[T | OSError]:
    return list(_each(function, places))


def _each(function: Callable[[Place], T], places: Sequence[Place]) -> Iterator[T | OSError]:
    def attempt(place: Place) -> T | OSError:
        try:
            return function(place)
        except OSError as error:
            return error

    if len(places) < 2 or not isinstance(places[0], StoredPath):
        return map(attempt, places)
    return _at_once(attempt, places)


def _at_once(function: Callable[[Place], T], places: Sequence[Place]) -> Iterator[T]:
    from tensortap.thread_pool import ThreadPool

    with ThreadPool(CONCURRENT, "tensortap-storage") as pool:
        yield from pool.map(function, places)
