"""One range of an object on its way: requested when it is made, waited for when it is looked at."""

from __future__ import annotations

import mmap
import os
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Generic, Protocol, TypeVar

import numpy as np

from dumper.storage.places import StoredPath

if TYPE_CHECKING:
    from concurrent.futures import Future

    from tensortap.thread_pool import ThreadPool

PART = 8 << 20
"""Bytes; longer ranges are read in parts of this size, side by side."""
IN_MEMORY = 16 << 20
"""Bytes; longer ranges go to a nameless file in the folder for temporary files, and are mapped."""
GAP = 64 << 10
"""Bytes; ranges that are closer together are read in one request."""
ALIGNMENT = 64


class Requested(Protocol):
    """An object of which ranges are requested."""

    place: StoredPath

    @property
    def pool(self) -> ThreadPool:
        """Threads for single requests."""

    def part(self, start: int, end: int) -> memoryview:
        """One request. Raises StorageError."""


Of = TypeVar("Of", bound=Requested)


class Range(Generic[Of]):
    """Bytes ``start`` to ``end`` of an object: requested when it is made, waited for when they are looked at."""

    def __init__(self, file: Of, start: int, end: int, data: memoryview | None = None) -> None:
        """``data`` where it is there already."""
        self.file, self.start, self.end = file, start, end
        self.in_file = end - start > IN_MEMORY
        self.in_memory = 0 if self.in_file else end - start
        """Bytes that it takes."""
        self._whole = data
        self._lock = threading.Lock()
        self._parts: list[Future[None]] = []
        if data is not None:
            return
        self._put: Callable[[int, memoryview], None]
        self._finish: Callable[[], memoryview]
        self._into_file() if self.in_file else self._into_memory()
        submit = file.pool.submit
        self._parts = [submit(self._read, first, min(end, first + PART)) for first in range(start, end, PART)]

    def data(self) -> memoryview:
        """All of it, read-only. Raises StorageError, and OSError where there is no room for it."""
        with self._lock:
            if self._whole is None:
                for part in self._parts:
                    part.result()
                self._whole = self._finish()
            return self._whole

    @property
    def failed(self) -> bool:
        """Whether a request failed; who asks again may ask for it anew."""
        return any(part.done() and part.exception() is not None for part in self._parts)

    def _read(self, start: int, end: int) -> None:
        self._put(start - self.start, self.file.part(start, end))

    def _into_memory(self) -> None:
        room = np.empty(self.end - self.start + ALIGNMENT, np.uint8)
        skipped = -(room.ctypes.data - self.start % ALIGNMENT) % ALIGNMENT
        view = memoryview(room.data)[skipped : skipped + self.end - self.start]

        def put(at: int, data: memoryview) -> None:
            view[at : at + len(data)] = data

        self._put, self._finish = put, view.toreadonly

    def _into_file(self) -> None:
        # Written and not mapped before all of it is there: a full disk must be an error and not a signal.
        spool = tempfile.TemporaryFile(prefix="tensortap-", buffering=0)  # noqa: SIM115

        def put(at: int, data: memoryview) -> None:
            try:
                while data:
                    written = os.pwrite(spool.fileno(), data, at)
                    at, data = at + written, data[written:]
            except OSError as error:
                reason = f"{error.strerror} in {tempfile.gettempdir()}, where what is read is kept; set TMPDIR"
                raise OSError(error.errno, reason, str(self.file.place)) from None

        def finish() -> memoryview:
            with spool:
                return memoryview(mmap.mmap(spool.fileno(), self.end - self.start, access=mmap.ACCESS_READ))

        self._put, self._finish = put, finish


def aligned(start: int) -> int:
    """Where a range that holds this byte may begin, so that arrays lie in memory as they lie in the file."""
    return start // ALIGNMENT * ALIGNMENT


def merged(ranges: Iterable[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """Ranges in ascending order; those with at most ``GAP`` bytes between them as one, up to the size of a part."""
    first = last = 0
    for start, end in sorted(ranges):
        if start >= end:
            continue
        if last and start - last <= GAP and end - first <= PART:
            last = max(last, end)
            continue
        if last:
            yield first, last
        first, last = start, end
    if last:
        yield first, last
