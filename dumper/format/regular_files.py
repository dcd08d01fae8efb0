"""Opening and making files in folders that others may have put something into.

What is no regular file (a FIFO that nobody writes to, a device, a folder) is refused and never waited for; nothing is
written through a link.
"""

from __future__ import annotations

import errno
import mmap
import os
import stat
from pathlib import Path

PRIVATE_FOLDER = 0o700


def open_to_read(path: Path) -> int:
    """A descriptor of a regular file, or of one that a link leads to. Raises OSError, at once, for anything else."""
    return open_with_status(path)[0]


def mapped(path: Path) -> mmap.mmap | bytes:
    """A regular file as read-only bytes. Raises OSError when it cannot be read."""
    descriptor = open_to_read(path)
    try:
        return mmap.mmap(descriptor, 0, access=mmap.ACCESS_READ)
    except ValueError:
        # An empty file cannot be mapped.
        return b""
    finally:
        os.close(descriptor)


def open_with_status(path: str | Path) -> tuple[int, os.stat_result]:
    """As ``open_to_read``, with what the operating system says of the file."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    return descriptor, _check(descriptor, path)


def read_bytes(path: Path, limit: int) -> bytes:
    """The content of a regular file. Raises OSError for anything else, and for more than ``limit`` bytes."""
    descriptor, status = open_with_status(path)
    try:
        size = status.st_size
        if size > limit:
            raise OSError(errno.EFBIG, f"is {size} bytes long; {limit} is the most", str(path))
        return os.read(descriptor, limit)
    finally:
        os.close(descriptor)


def create(path: Path, mode: int) -> int:
    """A descriptor of a new file, for reading and writing. Raises FileExistsError when anything has the name."""
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, mode)


def open_or_create(path: Path, mode: int) -> int:
    """A descriptor of a regular file, made when it is not there, for reading and writing. Raises OSError."""
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    descriptor = os.open(path, flags, mode)
    _check(descriptor, path)
    return descriptor


def make_folders(path: Path, mode: int) -> None:
    """Make a folder and those above it that are missing, all with this mode (less the umask). Raises OSError."""
    if path.is_dir():
        return
    if path.parent != path:
        make_folders(path.parent, mode)
    try:
        os.mkdir(path, mode)
    except FileExistsError:
        if not path.is_dir():
            raise


def folder_mode_within(folder: Path) -> int:
    """The mode of a folder that is as private as the one it lies in."""
    try:
        return stat.S_IMODE(folder.stat().st_mode) & 0o777
    except OSError:
        return PRIVATE_FOLDER


def mode_within(folder: Path) -> int:
    """The mode of a file that is as private as its folder."""
    try:
        return stat.S_IMODE(folder.stat().st_mode) & 0o666 | 0o600
    except OSError:
        return 0o600


def _check(descriptor: int, path: str | Path) -> os.stat_result:
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "is no regular file", str(path))
    return status
