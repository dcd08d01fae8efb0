"""The definition of the compiled module: what is read of many files at once, and the restricted unpickler.

Formats: the zip specification (APPNOTE.TXT of PKWARE), ``pickletools`` of Python. What torch's part of a pickle means:
``torch/serialization.py``, ``torch/_utils.py``.
"""

from __future__ import annotations

import collections
import mmap
import os
import struct
import sys
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from msgspec import Struct

from dumper.format.regular_files import open_with_status

TYPED_STORAGE, BYTES_STORAGE, DTYPE, TYPED_TENSOR, BYTES_TENSOR, PARAMETER, ORDERED_DICT = range(7)
"""What a name of a pickle stands for."""
MOST_PICKLE = 64 << 20
"""Bytes of a pickle; what is larger is not read here."""
MOST_DIRECTORY = 16 << 20
MOST_DIMENSIONS = 32
REFUSED = (struct.error, IndexError, KeyError, TypeError, ValueError, OverflowError)
"""What is raised for a pickle that is damaged, or holds something else than is read here."""
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


class Named(Struct, frozen=True, eq=False):
    """What a name of a pickle, or a storage that it refers to, stands for. No pickle can make one."""

    kind: int
    dtype: str | None
    """torch's name; None: bytes, whose dtype the tensor knows."""
    item: int
    """Bytes of an element."""
    place: tuple[int, int] = (0, 0)
    """Of a storage."""


_STORAGE = ORDERED_DICT + 1


def named(kind: int, dtype: str | None, item: int) -> Any:
    """What a name of a pickle stands for."""
    return Named(kind, dtype, item)


def unpickle(
    code: bytes, names: Mapping[bytes, Any], storages: Storages, tensor: Callable[..., Any]
) -> tuple[Any, list[Any]]:
    """What a pickle of protocol 2 holds, as far as that is plain containers, plain values and tensors; and the tensors.

    ``names``: what the pickle may refer to, by module and name with a newline between. ``tensor`` is the type of
    tensors; it is given the dtype, the shape, the strides in bytes, and where the bytes start and stop in the file,
    both 0 where there is no element. Raises one of ``REFUSED``.
    """
    machine = _Machine(code, names, storages, tensor)
    content = machine.run()
    if not is_plain(content, tensor):
        raise ValueError
    return content, machine.tensors


def is_plain(content: Any, tensor: Any) -> bool:
    """Whether nothing is in it that has no meaning by itself: plain containers and values, and tensors of this type."""
    seen: set[int] = set()
    waiting = [content]
    while waiting:
        value = waiting.pop()
        if type(value) in (dict, collections.OrderedDict, list, tuple):
            if id(value) not in seen:
                seen.add(id(value))
                waiting.extend(_inside(value))
        elif type(value) not in (str, int, float, bool, bytes, type(None), tensor):
            return False
    return True


def _inside(value: Any) -> Iterator[Any]:
    if isinstance(value, dict):
        yield from value.keys()
        yield from value.values()
    else:
        yield from value


class _Mark:
    pass


_MARK = _Mark()


class _Machine:
    """Carries out the instructions of a pickle."""

    def __init__(self, code: bytes, names: Mapping[bytes, Any], storages: Storages, tensor: Callable[..., Any]) -> None:
        self._code, self._names, self._storages, self._tensor = code, names, storages, tensor
        self.tensors: list[Any] = []
        self._at = 0
        self._stack: list[Any] = []
        self._memo: dict[int, Any] = {}

    def run(self) -> Any:
        if self._take(2) != b"\x80\x02":
            raise ValueError
        while True:
            instruction = self._code[self._at]
            self._at += 1
            if instruction == ord("."):
                break
            _INSTRUCTIONS[instruction](self)
        if len(self._stack) != 1 or self._at != len(self._code):
            raise ValueError
        return self._stack[0]

    def _take(self, count: int) -> bytes:
        piece = self._code[self._at : self._at + count]
        if len(piece) != count or count < 0:
            raise ValueError
        self._at += count
        return piece

    def _number(self, layout: str) -> int:
        number: int = struct.unpack(layout, self._take(struct.calcsize(layout)))[0]
        return number

    def _name(self) -> Any:
        start = self._at
        end = self._code.index(b"\n", self._code.index(b"\n", start) + 1)
        self._at = end + 1
        return self._names[self._code[start:end]]

    def _push(self, value: Any) -> None:
        self._stack.append(value)

    def _pop(self, at: int = -1) -> Any:
        value = self._stack.pop(at)
        if value is _MARK:
            raise ValueError
        return value

    def _since_mark(self) -> list[Any]:
        at = len(self._stack) - 1
        while self._stack[at] is not _MARK:
            at -= 1
            if at < 0:
                raise ValueError
        found = self._stack[at + 1 :]
        del self._stack[at:]
        return found

    def _tuple(self, count: int) -> None:
        items = self._stack[-count:]
        if len(items) != count or _MARK in items:
            raise ValueError
        self._stack[-count:] = [tuple(items)]

    def _append(self, items: list[Any]) -> None:
        if type(self._stack[-1]) is not list:
            raise ValueError
        self._stack[-1].extend(items)

    def _set(self, items: list[Any]) -> None:
        target = self._stack[-1]
        if type(target) not in (dict, collections.OrderedDict) or len(items) % 2:
            raise ValueError
        for key, value in zip(items[::2], items[1::2], strict=True):
            if type(key) not in (str, int, float, bool, bytes, tuple, type(None)):
                raise ValueError
            target[key] = value

    def _remember(self, number: int) -> None:
        if number >= len(self._code) or self._stack[-1] is _MARK:
            raise ValueError
        self._memo[number] = self._stack[-1]

    def _pop_and(self, use: Callable[[Any], Any]) -> None:
        self._push(use(self._pop()))

    def find(self, reference: Any) -> Named:
        """The storage that a persistent id names: ``("storage", type, key, device, elements)``."""
        if type(reference) is not tuple:
            raise ValueError
        kind, storage_type, key, device, count = reference
        if type(storage_type) is not Named or storage_type.kind not in (TYPED_STORAGE, BYTES_STORAGE):
            raise ValueError
        if type(kind) is not str or kind != "storage" or not type(key) is type(device) is str or not _is_count(count):
            raise ValueError
        start, stop = self._storages[key]
        if stop - start != count * storage_type.item:
            raise ValueError
        return Named(_STORAGE, storage_type.dtype, storage_type.item, (start, stop))

    def _reduce(self) -> None:
        arguments, function = self._pop(), self._pop()
        if type(arguments) is not tuple or type(function) is not Named:
            raise ValueError
        if function.kind == TYPED_TENSOR and len(arguments) == 6:
            self._push(self._new_tensor(arguments, None))
        elif function.kind == BYTES_TENSOR and len(arguments) == 7:
            dtype = arguments[6]
            if type(dtype) is not Named or dtype.kind != DTYPE:
                raise ValueError
            self._push(self._new_tensor(arguments, dtype))
        elif function.kind == PARAMETER and len(arguments) == 3 and type(arguments[0]) is self._tensor:
            self._push(arguments[0])
        elif function.kind == ORDERED_DICT and not arguments:
            self._push(collections.OrderedDict())
        else:
            raise ValueError

    def _new_tensor(self, arguments: tuple[Any, ...], dtype: Named | None) -> Any:
        """A view of a storage. Raises ValueError for one that reaches beyond it."""
        storage, offset, shape, strides, *_ = arguments
        if type(storage) is not Named or storage.kind != _STORAGE or (storage.dtype is None) == (dtype is None):
            raise ValueError
        if not type(shape) is type(strides) is tuple or len(shape) != len(strides) or len(shape) > MOST_DIMENSIONS:
            raise ValueError
        item = storage.item if dtype is None else dtype.item
        start, stop = storage.place
        if not all(map(_is_count, (offset, *shape, *strides))) or (stop - start) % item:
            raise ValueError
        elements = 1
        for length, stride in zip(shape, strides, strict=True):
            if stride > sys.maxsize // item or (length and elements > sys.maxsize // item // length):
                raise ValueError
            elements *= length
        first, behind = 0, 0
        if elements:
            last = offset + sum((length - 1) * stride for length, stride in zip(shape, strides, strict=True))
            if last >= (stop - start) // item:
                raise ValueError
            first, behind = start + offset * item, start + (last + 1) * item
        name = storage.dtype if dtype is None else dtype.dtype
        found = self._tensor(name, shape, tuple(stride * item for stride in strides), first, behind)
        self.tensors.append(found)
        return found


def _is_count(number: Any) -> bool:
    return type(number) is int and 0 <= number <= sys.maxsize


_INSTRUCTIONS: Mapping[int, Callable[[_Machine], None]] = {
    ord("("): lambda m: m._push(_MARK),
    ord(")"): lambda m: m._push(()),
    ord("]"): lambda m: m._push([]),
    ord("}"): lambda m: m._push({}),
    ord("N"): lambda m: m._push(None),
    0x88: lambda m: m._push(True),
    0x89: lambda m: m._push(False),
    ord("K"): lambda m: m._push(m._number("<B")),
    ord("M"): lambda m: m._push(m._number("<H")),
    ord("J"): lambda m: m._push(m._number("<i")),
    0x8A: lambda m: m._push(int.from_bytes(m._take(m._number("<B")), "little", signed=True)),
    ord("G"): lambda m: m._push(m._number(">d")),
    ord("X"): lambda m: m._push(m._take(m._number("<I")).decode("utf-8", "surrogatepass")),
    ord("c"): lambda m: m._push(m._name()),
    ord("t"): lambda m: m._push(tuple(m._since_mark())),
    0x85: lambda m: m._tuple(1),
    0x86: lambda m: m._tuple(2),
    0x87: lambda m: m._tuple(3),
    ord("a"): lambda m: m._append([m._pop()]),
    ord("e"): lambda m: m._append(m._since_mark()),
    ord("s"): lambda m: m._set([m._pop(-2), m._pop()]),
    ord("u"): lambda m: m._set(m._since_mark()),
    ord("q"): lambda m: m._remember(m._number("<B")),
    ord("r"): lambda m: m._remember(m._number("<I")),
    ord("h"): lambda m: m._push(m._memo[m._number("<B")]),
    ord("j"): lambda m: m._push(m._memo[m._number("<I")]),
    ord("Q"): lambda m: m._pop_and(m.find),
    ord("R"): lambda m: m._reduce(),
}
