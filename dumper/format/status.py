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
from collections.abc import Mapping
from pathlib import Path

from dumper.format.regular_files import PRIVATE_FOLDER, create, make_folders

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
    "lost_ended",
    "run_high",
    "run_low",
)
"""``submitted``: handed over by the model; ``written``: handed to the operating system; ``lost_…``: why not;
``closed``: 1 after an orderly end; ``held_back``: kept from the file on purpose, while ``on_nan`` waits; ``run_…``:
the two halves of the id of the run. submitted - written - lost - held back is what a killed process still held in
memory."""
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


_OFFSETS = {name: _PREFIX.size + number * _FIELD.size + 1 for number, name in enumerate(COUNTS)}
SUBMITTED_AT = _OFFSETS["submitted"]
"""Where the number of values that the model has handed over lies: big-endian, 8 bytes."""


class StatusBlock:
    """The counts of this process; in memory alone when ``path`` is None or cannot be written."""

    # Compiled code puts ``_submitted`` there by itself (dumper/recording/shortcut).
    __slots__ = ("_lock", "_map", "_mode", "_submitted", "_values", "path")

    def __init__(self, path: Path | None, mode: int = 0o600, run_id: str | None = None) -> None:
        """``run_id``: 32 hexadecimal digits. Raises OSError when the file cannot be made or is there already."""
        self.path = path
        self._mode = mode
        self._submitted = 0
        self._values = dict.fromkeys(COUNTS[1:], 0)
        """All counts but that one, which changes with every value."""
        if run_id is not None:
            self._values["run_high"], self._values["run_low"] = int(run_id[:16], 16), int(run_id[16:], 16)
        self._map: mmap.mmap | None = None
        self._lock = threading.Lock()
        self.recreate()

    def recreate(self) -> None:
        """Make the file, anew when it was deleted, with the counts as they are. Raises OSError."""
        if self.path is None:
            return
        make_folders(self.path.parent, PRIVATE_FOLDER if self._mode == 0o600 else 0o777)
        # Under another name until it is whole: a process that is killed in between must not leave an empty one.
        unfinished = self.path.with_name(f"{self.path.name}.{os.getpid()}.unfinished")
        unfinished.unlink(missing_ok=True)
        descriptor = create(unfinished, self._mode)
        try:
            # Written, not only mapped: a full disk must show here, and not as a signal at the first count.
            if os.write(descriptor, _fresh()) != STATUS_BYTES:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.path))
            fresh = mmap.mmap(descriptor, STATUS_BYTES)
            _put_in_place(unfinished, self.path)
        finally:
            unfinished.unlink(missing_ok=True)
            os.close(descriptor)
        with self._lock:
            self._map = fresh
            for name, value in self.counts().items():
                self.set(name, value)

    def __getitem__(self, name: str) -> int:
        return self._submitted if name == "submitted" else self._values[name]

    def add(self, name: str, amount: int = 1) -> None:
        """Count. From any thread."""
        with self._lock:
            self.set(name, self[name] + amount)

    def submitted(self, number: int) -> None:
        """The model has handed over its ``number``-th value. On the hot path, hence on its own."""
        self._submitted = number
        mapped = self._map
        if mapped is not None:
            _UINT64.pack_into(mapped, SUBMITTED_AT, number)

    def set(self, name: str, value: int) -> None:
        """Set a count."""
        if name == "submitted":
            self.submitted(value)
            return
        self._values[name] = value
        mapped = self._map
        if mapped is not None:
            _UINT64.pack_into(mapped, _OFFSETS[name], value)

    def counts(self) -> dict[str, int]:
        """A copy of all counts."""
        return {"submitted": self._submitted, **self._values}

    def release(self) -> None:
        """Let go of the file; the counts stay readable, here and in it."""
        self._map = None


def _put_in_place(unfinished: Path, path: Path) -> None:
    """Give a file its name. Raises FileExistsError when something has it, and OSError."""
    try:
        os.link(unfinished, path)
    except FileExistsError:
        raise
    except OSError:
        # A file system without hard links.
        if os.path.lexists(path):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path)) from None
        os.replace(unfinished, path)


def run_id_of(counts: Mapping[str, int]) -> str | None:
    """The id of the run that counts belong to; None in files of a version without."""
    high, low = counts.get("run_high", 0), counts.get("run_low", 0)
    return f"{high:016x}{low:016x}" if high or low else None


def read_status(data: bytes) -> dict[str, int] | None:
    """The counts of a status file, None when the bytes are none. Counts of later versions that are unknown are
    ignored."""
    if len(data) < _PREFIX.size or data[3 : 3 + len(_KIND)] != _KIND or data[0] != 0xDC:
        return None
    fields = min(struct.unpack_from(">H", data, 1)[0] - 3, len(COUNTS))
    counts = dict.fromkeys(COUNTS, 0)
    for name in COUNTS[: max(fields, 0)]:
        if _OFFSETS[name] + 8 > len(data):
            return None
        counts[name] = struct.unpack_from(">Q", data, _OFFSETS[name])[0]
    return counts
