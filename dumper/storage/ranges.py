"""The bytes of objects, read in ranges as they are asked for.

``StoredBytes`` stands where a mapped file stands else: it has a length and is indexed and sliced. What is read stays
for a while, so that what is looked at twice is read once; what is known to be needed soon is read ahead, several
requests at a time.
"""

from __future__ import annotations

import bisect
import re
import threading
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from dumper.format.frames import ReadInPieces
from dumper.storage import requested
from dumper.storage.places import CONCURRENT, Listing, Part, StorageError, StorageGoneError, Store, StoredPath
from dumper.storage.requested import Range, aligned, merged

if TYPE_CHECKING:
    from concurrent.futures import Future

    from tensortap.thread_pool import ThreadPool

GIVEN_UP = 8
"""Requests in a row that fail, each of them retried for a while, until no more are made."""
KEPT_MEMORY = 128 << 20
"""Bytes of ranges in memory that are kept."""
KEPT_FILES = 32
"""Ranges in nameless files that are kept."""
AHEAD = 32 << 20
"""Bytes that are on their way, or there and not yet asked for, of what is expected to be asked for."""
MOST_AHEAD = 4096
"""Ranges of these."""
TAIL = 256 << 10
"""Bytes that are read of an object when it is opened: its index, or the last of it."""
WINDOW = 128 << 10
"""Bytes that are read where a few are asked for; more with each window that follows on the one before."""


class Reads:
    """The store of a run, the requests to it that are under way, and what they brought."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.address = store.address
        self._lock = threading.RLock()
        self._kept: OrderedDict[tuple[StoredBytes, int], Range[StoredBytes]] = OrderedDict()
        self._kept_bytes = self._kept_files = 0
        self._pool: ThreadPool | None = None
        self._expected: Iterator[tuple[StoredBytes, int, int]] = iter(())
        self._coming: OrderedDict[tuple[StoredBytes, int], int] = OrderedDict()
        """What is expected and was requested, and its length; in the order in which it is expected."""
        self._coming_bytes = 0
        self._failures = 0
        self._gone: StorageGoneError | None = None

    def __reduce__(self) -> tuple[type[Reads], tuple[Store]]:
        # Another process makes requests of its own.
        return Reads, (self.store,)

    def list(self, key: str) -> Listing:
        return self.store.list(key)

    def read(self, key: str, start: int, end: int, tag: str | None) -> Part:
        if self._gone is not None:
            raise self._gone
        try:
            part = self.store.read(key, start, end, tag)
        except StorageError as error:
            self._count_failure(error)
            raise
        self._failures = 0
        return part

    def _count_failure(self, error: StorageError) -> None:
        if not error.passing:
            return
        self._failures += 1
        if self._failures >= GIVEN_UP:
            reason = f"{self._failures} requests in a row failed, the last one since {error.strerror}"
            self._gone = StorageGoneError(self.address, reason, True)
            raise self._gone from None

    @property
    def pool(self) -> ThreadPool:
        """Threads for single requests, which wait for nothing else."""
        with self._lock:
            if self._pool is None:
                from tensortap.thread_pool import ThreadPool

                self._pool = ThreadPool(CONCURRENT, "tensortap-ranges")
            return self._pool

    def range(self, file: StoredBytes, start: int, end: int) -> Range[StoredBytes]:
        """A range of a file, on its way or there."""
        with self._lock:
            return self.covering(file, start, end) or self.alone(file, start, end)

    def alone(self, file: StoredBytes, start: int, end: int) -> Range[StoredBytes]:
        """A range of a file in a request of its own, whatever else is on its way."""
        with self._lock:
            found = Range(file, start, end)
            self.keep(found)
            return found

    def expect(self, ranges: Iterable[tuple[StoredBytes, int, int]]) -> None:
        """Ranges that will be asked for, in about this order. They are read ahead, a little at a time."""
        with self._lock:
            self._expected = ((file, aligned(start), end) for file, start, end in ranges)
            self._coming.clear()
            self._coming_bytes = 0
            self._read_ahead()

    def asked_for(self, file: StoredBytes, start: int) -> None:
        """What was expected is wanted now; what was expected before it no longer is."""
        key = file, aligned(start)
        with self._lock:
            if key not in self._coming:
                return
            while True:
                passed, length = self._coming.popitem(last=False)
                self._coming_bytes -= length
                if passed == key:
                    break
            if self._coming_bytes < AHEAD // 2 and len(self._coming) < MOST_AHEAD // 2:
                self._read_ahead()

    def _read_ahead(self) -> None:
        fresh: dict[StoredBytes, list[tuple[int, int]]] = {}
        while self._coming_bytes < AHEAD and len(self._coming) < MOST_AHEAD:
            file, start, end = next(self._expected, (None, 0, 0))
            if file is None:
                break
            if end - start > AHEAD or (file, start) in self._coming:
                continue  # what is large is read in parts, side by side, when its turn comes
            self._coming[file, start] = end - start
            self._coming_bytes += end - start
            fresh.setdefault(file, []).append((start, end))
        for file, ranges in fresh.items():
            file.ahead(ranges)

    def covering(self, file: StoredBytes, start: int, end: int) -> Range[StoredBytes] | None:
        """A range that is kept and holds these bytes."""
        with self._lock:
            at = bisect.bisect_right(file.starts, start)
            # One that begins earlier may reach further than one that begins later.
            for known in reversed(file.starts[max(0, at - 4) : at]):
                found = self._kept[file, known]
                if found.end >= end and not found.failed:
                    self._kept.move_to_end((file, known))
                    return found
            return None

    def keep(self, fresh: Range[StoredBytes]) -> None:
        """Keep a range for a while, and let go of those that were not asked for the longest."""
        with self._lock:
            if (fresh.file, fresh.start) in self._kept:
                self._drop((fresh.file, fresh.start))
            bisect.insort(fresh.file.starts, fresh.start)
            self._kept[fresh.file, fresh.start] = fresh
            self._kept_bytes += fresh.in_memory
            self._kept_files += fresh.in_file
            while self._kept_bytes > KEPT_MEMORY or self._kept_files > KEPT_FILES:
                self._drop(next(iter(self._kept)))

    def _drop(self, key: tuple[StoredBytes, int]) -> None:
        gone = self._kept.pop(key)
        gone.file.starts.remove(gone.start)
        self._kept_bytes -= gone.in_memory
        self._kept_files -= gone.in_file


class StoredBytes(ReadInPieces):
    """An object as a sequence of bytes, in the way of a mapped file.

    Every read is of the content that was there when it was opened: where the object changes meanwhile, it raises
    StorageError.
    """

    def __init__(self, place: StoredPath, seen: tuple[int, str | None] | None = None) -> None:
        """Reads the end of the object, unless it was ``seen`` before, with this size and content. Raises
        StorageError."""
        assert isinstance(place.store, Reads)
        self.place = place
        self.reads = place.store
        self.starts: list[int] = []
        """Of the ranges that are kept; in the care of ``reads``."""
        self._tag: str | None = None
        self._size = place.stat().st_size
        self._window = (0, WINDOW)
        """Where the last window ended, and how long the next one will be."""
        if seen is not None:
            self._size, self._tag = seen
            return
        if not self._size:
            return
        start = aligned(max(0, self._size - TAIL))
        part = self.reads.read(place.key, start, self._size, None)
        if part.size != self._size:
            # It has grown or was replaced since the folder was listed.
            self._size, start = part.size, aligned(max(0, part.size - TAIL))
            part = self.reads.read(place.key, start, self._size, None)
            if part.size != self._size:
                raise StorageError(str(place), "the object changes while it is read; begin again once it is complete")
        self._tag = part.tag
        self.reads.keep(Range(self, start, self._size, part.data))

    def __len__(self) -> int:
        return self._size

    @property
    def pool(self) -> ThreadPool:
        """Threads for single requests."""
        return self.reads.pool

    @property
    def seen(self) -> tuple[int, str | None]:
        """The size of the object, and what tells its content from others."""
        return self._size, self._tag

    def __getitem__(self, at: int | slice) -> Any:
        if isinstance(at, int):
            return self._near(at, at + 1)[0]
        start, end, _ = at.indices(self._size)
        return bytes(self._near(start, end)) if start < end else b""

    def view(self, start: int, end: int) -> memoryview:
        """A piece in memory, or in a mapped file where it is large; read-only."""
        if start >= end:
            return memoryview(b"")
        found = self.reads.range(self, aligned(start), end)
        return found.data()[start - found.start : end - found.start]

    def pieces(self, start: int, end: int) -> Iterator[memoryview]:
        """A piece of any length in pieces, the next ones on their way; none of them is kept for long."""
        if end - start <= requested.IN_MEMORY or self.reads.covering(self, start, end) is not None:
            yield self.view(start, end)
            return
        firsts = range(start, end, requested.PART)
        waiting: list[Future[memoryview]] = []
        for first in firsts:
            waiting.append(self.reads.pool.submit(self.part, first, min(end, first + requested.PART)))
            if len(waiting) > 4:
                yield waiting.pop(0).result()
        for one in waiting:
            yield one.result()

    def load(self, start: int, end: int) -> None:
        """Have a piece there. Raises StorageError when the piece itself cannot be read, whatever was to be read in one
        request with it."""
        start = aligned(start)
        found = self.reads.range(self, start, end)
        try:
            found.data()
        except StorageGoneError:
            raise
        except StorageError:
            if (found.start, found.end) == (start, end):
                raise
            # Another request that holds it may be under way, and fail for what lies beside it too.
            self.reads.alone(self, start, end).data()

    def ahead(self, ranges: Iterable[tuple[int, int]]) -> None:
        """Begin to read ranges that will be asked for; those that lie close together in one request."""
        for start, end in merged(ranges):
            self.reads.range(self, aligned(start), end)

    def part(self, start: int, end: int) -> memoryview:
        """One request. Raises StorageError."""
        part = self.reads.read(self.place.key, start, end, self._tag)
        if part.size != self._size or len(part.data) != end - start:
            raise StorageError(str(self.place), "the object has another size than when it was opened")
        return part.data

    def search(self, pattern: re.Pattern[bytes], start: int) -> tuple[int, int] | None:
        """Where a pattern first matches from a place on; matches of at most a KiB are found."""
        while start < self._size:
            end = min(self._size, start + requested.PART)
            if found := pattern.search(self.view(start, end)):
                if found.end() + start < end or end == self._size:
                    return start + found.start(), start + found.end()
                start += found.start()
                continue
            start = end if end == self._size else end - 1024
        return None

    def _near(self, start: int, end: int) -> memoryview:
        """A few bytes, with what lies around them, since that is what is asked for next."""
        found = self.reads.covering(self, start, end)
        if found is None:
            last, length = self._window
            length = min(requested.PART, length * 2) if last - WINDOW <= start <= last + WINDOW else WINDOW
            stop = min(self._size, max(end, start + length))
            self._window = stop, length
            found = self.reads.range(self, aligned(start), stop)
            if length == requested.PART and stop < self._size:
                self.reads.range(self, aligned(stop), min(self._size, stop + requested.PART))
        return found.data()[start - found.start : end - found.start]
