"""The zip archives that ``.pt`` files are, read for many files at once: part of the definition of the compiled module.

Format: the zip specification (APPNOTE.TXT of PKWARE).
"""

from __future__ import annotations

import mmap
import os
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path

from dumper.format.regular_files import open_with_status

MOST_PICKLE = 64 << 20
"""Bytes of a pickle; what is larger is not read here."""
MOST_DIRECTORY = 16 << 20
REFUSED = (struct.error, IndexError, KeyError, TypeError, ValueError, OverflowError)
"""What is raised for a file that is damaged, or holds something else than is read here."""
_END = struct.Struct("<4s4H2LH")
_MEMBER = struct.Struct("<4s6H3L5H2L")
_LOCAL = struct.Struct("<4s5H3L2H")

Stamp = tuple[int, int, int]
"""Of a file as it was read: size, time of change in nanoseconds, inode."""
Storages = dict[str, tuple[int, int]]
Head = tuple[bytes, Storages, Stamp]
"""The pickle of a file; where the bytes of each storage start and stop; the stamp of the file."""
_Member = tuple[int, int, int]
"""Where the header of a member is, and the size and checksum of its bytes."""


def heads(paths: Sequence[bytes]) -> list[Head | None]:
    """What tells what files hold, without the bytes of their tensors; None for a file that cannot be read, or is no
    archive as torch writes it, with nothing compressed in it and everything below 4 GiB."""
    return [_head(path) for path in paths]


def stamps(paths: Sequence[bytes]) -> list[Stamp | None]:
    """The stamps of files as they are now; None for one that is not there."""
    return [_stamp(path) for path in paths]


def _stamp(path: bytes) -> Stamp | None:
    try:
        return stamp(os.stat(path))
    except OSError:
        return None


def stamp(status: os.stat_result) -> Stamp:
    """The stamp of a file, by what the operating system says of it."""
    return status.st_size, status.st_mtime_ns, status.st_ino


def part(path: bytes, start: int, stop: int, known: Stamp) -> bytes | None:
    """Bytes of a file; None where it cannot be read, or has another stamp than is known of it."""
    if start < 0 or stop < start:
        raise ValueError
    try:
        descriptor, status = open_with_status(Path(os.fsdecode(path)))
    except OSError:
        return None
    try:
        data = os.pread(descriptor, stop - start, start) if stamp(status) == known else b""
    except OSError:
        return None
    finally:
        os.close(descriptor)
    return data if data and len(data) == stop - start else None


def parts(
    paths: tuple[bytes, ...], starts: tuple[int, ...], size: int, stamps: tuple[Stamp, ...]
) -> tuple[bytes, list[bool]]:
    """Bytes of many files, so many of each, one after the other, and of each whether they were read: zeros stand for
    those that ``part`` has not."""
    if size < 1:
        raise ValueError
    found = [part(path, start, start + size, known) for path, start, known in zip(paths, starts, stamps, strict=True)]
    return b"".join(bytes(size) if one is None else one for one in found), [one is not None for one in found]


def _head(path: bytes) -> Head | None:
    try:
        descriptor, status = open_with_status(Path(os.fsdecode(path)))
    except OSError:
        return None
    try:
        with mmap.mmap(descriptor, status.st_size, access=mmap.ACCESS_READ) as data:
            code, storages = _told(data)
    except (*REFUSED, OSError):
        return None
    finally:
        os.close(descriptor)
    return code, storages, stamp(status)


def _told(data: mmap.mmap) -> tuple[bytes, Storages]:
    found, directory = _members(data)
    pickled = [name for name in found if name.endswith(b"/data.pkl") and name.count(b"/") == 1]
    if data[:4] != b"PK\x03\x04" or len(pickled) != 1:
        raise ValueError
    folder = pickled[0].removesuffix(b"data.pkl")
    order = found.get(folder + b"byteorder")
    if order is not None and data[slice(*_place(data, order, directory))] != b"little":
        raise ValueError
    start = folder + b"data/"
    storages = {
        name.removeprefix(start).decode(): _place(data, member, directory)
        for name, member in found.items()
        if name.startswith(start)
    }
    pickle = found[pickled[0]]
    if pickle[1] > MOST_PICKLE:
        raise ValueError
    code = data[slice(*_place(data, pickle, directory))]
    if zlib.crc32(code) != pickle[2]:
        raise ValueError
    return code, storages


def _members(data: mmap.mmap) -> tuple[dict[bytes, _Member], int]:
    """The members of an archive whose directory is at its end, and where that is."""
    end = len(data) - _END.size
    if end < 0:
        raise ValueError
    mark, *_, count, size, offset, comment = _END.unpack_from(data, end)
    if mark != b"PK\x05\x06" or comment or 0xFFFF in (count,) or 0xFFFFFFFF in (size, offset):
        raise ValueError  # a comment, or more than 4 GiB
    if len(data) - offset > MOST_DIRECTORY:
        raise ValueError
    found: dict[bytes, _Member] = {}
    at = offset
    for _ in range(count):
        mark, _, _, flags, method, _, _, crc, packed, whole, name, extra, comment, *_, local = _MEMBER.unpack_from(
            data, at
        )
        if mark != b"PK\x01\x02" or method or flags & 1 or packed != whole or 0xFFFFFFFF in (packed, local):
            raise ValueError
        first = at + _MEMBER.size
        text = data[first : first + name]
        at = first + name + extra + comment
        if text in found or at > len(data):
            raise ValueError
        found[text] = (local, whole, crc)
    return found, offset


def _place(data: mmap.mmap, member: _Member, directory: int) -> tuple[int, int]:
    """Where the bytes of a member start and stop."""
    local, size, _ = member
    mark, *_, name, extra = _LOCAL.unpack_from(data, local)
    start = local + _LOCAL.size + name + extra
    if mark != b"PK\x03\x04" or start + size > directory:
        raise ValueError
    return start, start + size
