"""The status block of a rank: counts that survive ``kill -9``, a full disk and everything else.

A file of 4096 bytes beside the rank's stream, one msgpack array ``["status", version, count..., padding]`` in which
every count is a 64-bit unsigned integer at a fixed offset. It is written in full when the rank starts and mapped from
then on, so that updating a count needs no room on the disk and no system call, and outlives the process.
"""

from __future__ import annotations

import errno
import mmap
import os
import struct
import threading
from pathlib import Path

STATUS_BYTES = 4096
COUNTS = (
    "submitted",
    "written",
    "lost_full_memory",
    "lost_encoding",
    "lost_writing",
    "lost_claimed",
    "outside_steps",
    "failed_taps",
    "steps",
    "closed",
    "held_back",
)
"""``submitted``: handed over by the model; ``written``: handed to the operating system; ``lost_…``: why not;
``closed``: 1 after an orderly end; ``held_back``: kept from the file on purpose, while ``on_nan`` waits.
submitted - written - lost - held back is what a killed process still held in memory."""
_VERSION = 1
_KIND = b"\xa6status"
_PREFIX = struct.Struct(f">BH{len(_KIND)}sB")
_FIELD = struct.Struct(">BQ")
_UINT64 = struct.Struct(">Q")


def _fresh() -> bytes:
    fields = b"".join(_FIELD.pack(0xCF, 0) for _ in COUNTS)
    head = _PREFIX.pack(0xDC, len(COUNTS) + 3, _KIND, _VERSION) + fields
    padding = STATUS_BYTES - len(head) - 3
    return head + struct.pack(">BH", 0xC5, padding) + bytes(padding)


def _offset(name: str) -> int:
    return _PREFIX.size + COUNTS.index(name) * _FIELD.size + 1


_SUBMITTED = _offset("submitted")


class StatusBlock:
    """The counts of this process; in memory alone when ``path`` is None or cannot be written."""

    def __init__(self, path: Path | None) -> None:
        """Raises OSError when the file cannot be made."""
        self.path = path
        self._values = dict.fromkeys(COUNTS, 0)
        self._map: mmap.mmap | None = None
        self._lock = threading.Lock()
        self.recreate()

    def recreate(self) -> None:
        """Make the file, anew when it was deleted, with the counts as they are. Raises OSError."""
        if self.path is None:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        # Under another name until it is whole: a process that is killed in between must not leave an empty one.
        unfinished = self.path.with_name(f"{self.path.name}.{os.getpid()}.unfinished")
        descriptor = os.open(unfinished, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)
        try:
            # Written, not only mapped: a full disk must show here, and not as a signal at the first count.
            if os.write(descriptor, _fresh()) != STATUS_BYTES:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.path))
            fresh = mmap.mmap(descriptor, STATUS_BYTES)
            os.replace(unfinished, self.path)
        except OSError:
            unfinished.unlink(missing_ok=True)
            raise
        finally:
            os.close(descriptor)
        with self._lock:
            self._map = fresh
            for name, value in self._values.items():
                self.set(name, value)

    def __getitem__(self, name: str) -> int:
        return self._values[name]

    def add(self, name: str, amount: int = 1) -> None:
        """Count. From any thread."""
        with self._lock:
            self.set(name, self._values[name] + amount)

    def submitted(self, number: int) -> None:
        """The model has handed over its ``number``-th value. On the hot path, hence on its own."""
        self._values["submitted"] = number
        mapped = self._map
        if mapped is not None:
            _UINT64.pack_into(mapped, _SUBMITTED, number)

    def set(self, name: str, value: int) -> None:
        """Set a count."""
        self._values[name] = value
        mapped = self._map
        if mapped is not None:
            _UINT64.pack_into(mapped, _offset(name), value)

    def counts(self) -> dict[str, int]:
        """A copy of all counts."""
        return dict(self._values)

    def release(self) -> None:
        """Let go of the file; the counts stay readable, here and in it."""
        self._map = None


def read_status(data: bytes) -> dict[str, int] | None:
    """The counts of a status file, None when the bytes are none. Counts of later versions that are unknown are
    ignored."""
    if len(data) < _PREFIX.size or data[3 : 3 + len(_KIND)] != _KIND or data[0] != 0xDC:
        return None
    fields = min(struct.unpack_from(">H", data, 1)[0] - 3, len(COUNTS))
    counts = dict.fromkeys(COUNTS, 0)
    for name in COUNTS[: max(fields, 0)]:
        if _offset(name) + 8 > len(data):
            return None
        counts[name] = struct.unpack_from(">Q", data, _offset(name))[0]
    return counts
