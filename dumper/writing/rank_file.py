"""The file of one rank: frames in, bytes on disk, segments, the index, and what happens when a disk fails.

Disk space is claimed before it is written: ext4 then writes about a third faster, and a full disk shows at once.
"""

from __future__ import annotations

import bisect
import contextlib
import ctypes
import errno
import fcntl
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import xxhash

from dumper.format import frames
from dumper.format.index import IndexColumns
from dumper.format.regular_files import create, open_to_read
from dumper.writing.checksums import ChecksumThread, PendingChecksum
from dumper.writing.whole_write import write_whole

HASHED_BESIDE = 4 << 20
"""Bytes; the checksums of payloads from here on are taken by another thread while this one writes. To hand over
smaller ones would cost more turns of the interpreter lock than it saves."""
CLAIMED_AHEAD = 1 << 20
"""Bytes; space for payloads from here on is claimed first."""
CLAIMED_TOGETHER = 4 << 20
"""The same of small records together: a claim is one more turn of the interpreter lock."""
BLOCK = 1 << 20
"""Bytes that stay in the processor's cache between being hashed and being written."""


class ClaimedError(OSError):
    """Another process, or an earlier run, holds the rank file."""


class RankFile:
    """Appends frames to one segment. Belongs to the writer thread. Any method may raise OSError.

    After an OSError the file ends with the last complete frame again, wherever the disk allows that.
    """

    def __init__(self, path: Path, mode: int, *, hashes_beside: bool = True) -> None:
        """Claim and create the file.

        ``hashes_beside``: checksums of large payloads are taken by another thread. Without it this one takes them block
        by block, which is faster where it need not wait for the interpreter lock between two of them.

        Raises ClaimedError when it exists already, and OSError when it cannot be made.
        """
        self.path = path
        self.index = IndexColumns()
        self.position = 0
        try:
            self._descriptor = create(path, mode)
        except FileExistsError as error:
            raise ClaimedError(errno.EEXIST, _claim_message(path), str(path)) from error
        self._preallocation = Preallocation(self._descriptor)
        self._checksums = ChecksumThread() if hashes_beside else None
        with contextlib.suppress(OSError):
            # Shows to a second process that this one is alive; some network filesystems cannot lock.
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)

    def exists(self) -> bool:
        """Whether the file still has a name: a deleted directory takes it away without any error."""
        return os.fstat(self._descriptor).st_nlink > 0

    def append_small(self, encoded: Sequence[Any], end: int, ends: Callable[[], Sequence[int]] | None = None) -> None:
        """Append complete frames, given as buffers, up to a position, with few system calls.

        Where there is no room for all of them, OSError is raised, and the first frames stay of those whose positions
        ``ends`` gives, up to ``position``; none without it.
        """
        try:
            if end - self.position >= CLAIMED_TOGETHER:
                # Where not all of it has room, the first frames may have.
                with contextlib.suppress(OSError):
                    self._preallocation.claim(self.position, end - self.position)
            write_whole(self._descriptor, encoded)
        except OSError:
            if ends is not None:
                known, reached = ends(), self._reached()
                written = bisect.bisect_right(known, reached)
                self.position = known[written - 1] if written else self.position
            self._cut_back()
            raise
        self.position = end

    def append_large(self, head: bytes, payloads: Sequence[memoryview]) -> list[tuple[int, int, int]]:
        """Append one frame with payloads that are hashed before or while they are written.

        Returns (offset, length, checksum) of each payload.
        """
        placed = []
        position = self.position
        lead = head
        try:
            for payload in payloads:
                lead += frames.encode_padding(position + len(lead), len(payload))
                position += len(lead)
                if len(payload) >= CLAIMED_AHEAD:
                    self._preallocation.claim(position, len(payload))
                checksum = self._write_and_hash(lead, payload)
                placed.append((position, len(payload), checksum))
                position += len(payload)
                lead = frames.encode_checksum(checksum)
            self._write(lead)
            position += len(lead)
        except OSError:
            self._cut_back()
            raise
        self.position = position
        return placed

    def append_frame(self, kind: str, meta: dict[str, Any]) -> None:
        """Append a frame without payload."""
        encoded = frames.encode_frame(kind, meta, self.position)
        self.append_small([encoded], self.position + len(encoded))

    def finish(self) -> None:
        """Write the index and the footer. The file is complete afterwards."""
        offset = self.position
        index = frames.encode_frame("index", self.index.meta(), offset, (self.index.encode(),))
        footer = frames.encode_footer(offset)
        self.append_small([index, footer], offset + len(index) + len(footer))

    def close(self) -> None:
        """Close without writing."""
        if self._checksums is not None:
            self._checksums.end()
        with contextlib.suppress(OSError):
            os.close(self._descriptor)

    def _write(self, *buffers: Any) -> None:
        write_whole(self._descriptor, buffers)

    def _write_and_hash(self, lead: bytes, payload: memoryview) -> int:
        """Write a payload behind what leads to it, and return its checksum."""
        if self._checksums is None:
            return self._write_and_hash_blocks(lead, payload)
        pending = self._checksums.begin(payload) if len(payload) >= HASHED_BESIDE else PendingChecksum(payload)
        if len(payload) < HASHED_BESIDE:
            # Before the write, which finds the bytes in the processor's cache.
            pending.take()
        try:
            self._write(lead, payload)
        except OSError:
            pending.give_up()
            raise
        return pending.result()

    def _write_and_hash_blocks(self, lead: bytes, payload: memoryview) -> int:
        digest = xxhash.xxh3_64()
        self._write(lead)
        for first in range(0, len(payload), BLOCK):
            block = payload[first : first + BLOCK]
            digest.update(block)
            self._write(block)
        return digest.intdigest()

    def _reached(self) -> int:
        """Where the last write ended, whole or not."""
        try:
            return os.lseek(self._descriptor, 0, os.SEEK_CUR)
        except OSError:
            return self.position

    def _cut_back(self) -> None:
        with contextlib.suppress(OSError):
            os.ftruncate(self._descriptor, self.position)
            os.lseek(self._descriptor, self.position, os.SEEK_SET)


def _claim_message(path: Path) -> str:
    holder = "a process that is still running" if _is_locked(path) else "an earlier run"
    return (
        f"{path.name} was already written by {holder}; nothing is overwritten. "
        "Set TENSORTAP_RUN to another name, or delete the run"
    )


def _is_locked(path: Path) -> bool:
    try:
        descriptor = open_to_read(path)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(descriptor)
    return False


_KEEP_SIZE = 1
"""``FALLOC_FL_KEEP_SIZE`` of fallocate(2): the file does not seem longer than what was written to it."""
_NOT_OFFERED = frozenset({errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL, errno.EPERM, errno.ENODEV})


class Preallocation:
    """``fallocate`` for one file, as long as its file system offers it."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._fallocate = _find_fallocate()

    @property
    def offered(self) -> bool:
        """Whether the file system takes claims, as far as the claims so far have shown."""
        return self._fallocate is not None

    def claim(self, offset: int, nbytes: int) -> None:
        """Claim space for bytes that are written next. Raises OSError when there is no room for them."""
        if self._fallocate is None or not self._fallocate(self._descriptor, _KEEP_SIZE, offset, nbytes):
            return
        number = ctypes.get_errno()
        if number in _NOT_OFFERED:
            self._fallocate = None
        elif number != errno.EINTR:
            raise OSError(number, os.strerror(number))


def _find_fallocate() -> Callable[[int, int, int, int], int] | None:
    """The C library's, which Python offers only in a form that writes zeros where the file system cannot do it."""
    try:
        function = ctypes.CDLL(None, use_errno=True).fallocate64
    except (OSError, AttributeError):
        return None
    function.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)
    function.restype = ctypes.c_int
    claim: Callable[[int, int, int, int], int] = function
    return claim
