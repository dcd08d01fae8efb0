"""Checksums of large payloads, taken on a thread of their own while the writer's thread writes the same bytes: both
together take no longer than the slower of the two."""

from __future__ import annotations

import contextlib
import queue
import threading

import xxhash

CHUNK = 64 << 20
"""Bytes that are hashed at a time, without the interpreter lock; between two of them a checksum can be given up."""
_NOTHING = memoryview(b"")


class PendingChecksum:
    """A checksum that is being taken. ``result`` or ``give_up`` has to be called before the bytes may change."""

    __slots__ = ("_begun", "_digest", "_ended", "_given_up", "_payload")

    def __init__(self, payload: memoryview) -> None:
        self._payload = payload
        self._digest = 0
        self._given_up = False
        self._begun = threading.Lock()
        """Taken by the thread that takes the checksum."""
        self._ended = threading.Lock()
        self._ended.acquire()

    def take(self) -> None:
        """Take the checksum, if nobody has begun to."""
        if not self._begun.acquire(blocking=False):
            return
        try:
            digest = xxhash.xxh3_64()
            for first in range(0, len(self._payload), CHUNK):
                if self._given_up:
                    return
                digest.update(self._payload[first : first + CHUNK])
            self._digest = digest.intdigest()
        finally:
            self._payload = _NOTHING
            self._ended.release()

    def result(self) -> int:
        """XXH3-64 of the payload. Takes it here where the thread has not come to it yet; blocks otherwise."""
        self.take()
        with self._ended:
            return self._digest

    def give_up(self) -> None:
        """Return when nobody reads the payload any more."""
        self._given_up = True
        self.result()


class ChecksumThread:
    """The thread. It is started with the first checksum; without it the caller takes them all."""

    def __init__(self) -> None:
        self._jobs: queue.SimpleQueue[PendingChecksum | None] = queue.SimpleQueue()
        self._is_started = False

    def begin(self, payload: memoryview) -> PendingChecksum:
        """Have the checksum of a payload taken."""
        if not self._is_started:
            self._is_started = True
            # No thread can be started while the interpreter ends, or when the process has too many.
            with contextlib.suppress(RuntimeError):
                threading.Thread(target=self._work, name="tensortap-checksums", daemon=True).start()
        pending = PendingChecksum(payload)
        self._jobs.put(pending)
        return pending

    def _work(self) -> None:
        while (pending := self._jobs.get()) is not None:
            pending.take()
            del pending

    def end(self) -> None:
        """Have the thread end. A later checksum starts another one."""
        if self._is_started:
            self._is_started = False
            self._jobs.put(None)
