"""Read a ``.pt`` file without torch: a zip archive of a pickle and of raw bytes, as ``torch.save`` writes it.

Nothing is unpickled by Python's ``pickle``. The few instructions that build plain containers and tensors are carried
out here, and no other; whatever else a file holds is ``Unknown``, and torch's own restricted reader decides. Formats:
the zip specification (APPNOTE.TXT of PKWARE), ``pickletools`` of Python, ``torch/serialization.py``.
"""

from __future__ import annotations

import collections
import mmap
import os
import struct
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from dumper.format.regular_files import open_to_read
from dumper.values.dtypes import numpy_dtype

_DTYPES = {
    "DoubleStorage": "float64",
    "FloatStorage": "float32",
    "HalfStorage": "float16",
    "BFloat16Storage": "bfloat16",
    "LongStorage": "int64",
    "IntStorage": "int32",
    "ShortStorage": "int16",
    "CharStorage": "int8",
    "ByteStorage": "uint8",
    "BoolStorage": "bool",
    "ComplexFloatStorage": "complex64",
    "ComplexDoubleStorage": "complex128",
}
"""Of torch's storages of one type."""
_OTHER_DTYPES = frozenset({"uint16", "uint32", "uint64"}) | {
    f"float8_{kind}" for kind in ("e4m3fn", "e4m3fnuz", "e5m2", "e5m2fnuz", "e8m0fnu")
}
"""Dtypes without a storage of their own: the storage holds bytes, and the tensor names its dtype."""
_END = struct.Struct("<4s4H2LH")
_MEMBER = struct.Struct("<4s6H3L5H2L")
_LOCAL = struct.Struct("<4s5H3L2H")
_MOST_PICKLE = 64 << 20
"""Bytes of a pickle; what is larger is left to torch."""


class Unknown(Exception):
    """The file holds something that is not read here; not to be shown to anyone."""


@dataclass(frozen=True, eq=False)
class StoredTensor:
    """A tensor of a file, mapped."""

    dtype: str
    """torch's name without ``torch.``."""
    array: npt.NDArray[Any]
    """With its strides, read-only."""

    @property
    def shape(self) -> tuple[int, ...]:
        return self.array.shape


def load_plain(path: Path) -> Any:
    """The content of a file: plain containers and values, and ``StoredTensor``.

    Raises Unknown for all that is not read here, damage included, and OSError for a file that cannot be read.
    """
    descriptor = open_to_read(path)
    try:
        if os.read(descriptor, 4) != b"PK\x03\x04":
            raise Unknown
        data = mmap.mmap(descriptor, 0, access=mmap.ACCESS_READ)
    finally:
        os.close(descriptor)
    try:
        members = _members(data)
        pickled = [name for name in members if name.endswith("/data.pkl") and name.count("/") == 1]
        if len(pickled) != 1:
            raise Unknown
        folder = pickled[0].removesuffix("data.pkl")
        order = members.get(f"{folder}byteorder")
        if order is not None and data[order.start : order.stop] != b"little":
            raise Unknown
        content = _Machine(data[_checked(data, members[pickled[0]])], _Storages(data, members, folder)).run()
        _check_plain(content)
    except (struct.error, IndexError, KeyError, TypeError, ValueError, OverflowError, UnicodeDecodeError) as error:
        raise Unknown from error
    return content


@dataclass(frozen=True)
class _Place:
    """Where the bytes of a member are."""

    start: int
    stop: int
    crc: int


def _members(data: mmap.mmap) -> dict[str, _Place]:
    """The members of an archive whose directory is at its end, none of them compressed."""
    end = len(data) - _END.size
    mark, *_, count, size, offset, comment = _END.unpack_from(data, end)
    if mark != b"PK\x05\x06" or comment or 0xFFFF in (count,) or 0xFFFFFFFF in (size, offset):
        raise Unknown  # a comment, or more than 4 GiB
    found: dict[str, _Place] = {}
    at = offset
    for _ in range(count):
        mark, _, _, flags, method, _, _, crc, packed, whole, name, extra, comment, *_, local = _MEMBER.unpack_from(
            data, at
        )
        if mark != b"PK\x01\x02" or method or flags & 1 or packed != whole or 0xFFFFFFFF in (packed, local):
            raise Unknown
        first = at + _MEMBER.size
        text = data[first : first + name].decode("utf-8")
        mark, *_, local_name, local_extra = _LOCAL.unpack_from(data, local)
        start = local + _LOCAL.size + local_name + local_extra
        if mark != b"PK\x03\x04" or start + whole > offset or text in found:
            raise Unknown
        found[text] = _Place(start, start + whole, crc)
        at = first + name + extra + comment
    return found


def _checked(data: mmap.mmap, place: _Place) -> slice:
    if place.stop - place.start > _MOST_PICKLE or zlib.crc32(memoryview(data)[place.start : place.stop]) != place.crc:
        raise Unknown
    return slice(place.start, place.stop)


@dataclass(frozen=True)
class _Name:
    """A name that a pickle refers to: ``torch FloatStorage``."""

    module: str
    name: str


@dataclass(frozen=True)
class _Storage:
    dtype: str | None
    """None: bytes, whose dtype the tensor knows."""
    place: _Place
    bytes: int


class _Storages:
    def __init__(self, data: mmap.mmap, members: Mapping[str, _Place], folder: str) -> None:
        self._data, self._members, self._folder = data, members, folder

    def find(self, reference: Any) -> _Storage:
        """The storage that a persistent id names: ``("storage", type, key, device, elements)``."""
        kind, storage_type, key, device, count = reference
        if kind != "storage" or type(storage_type) is not _Name or type(key) is not str or type(count) is not int:
            raise Unknown
        if type(device) is not str or count < 0:
            raise Unknown
        dtype = _DTYPES.get(storage_type.name) if storage_type.module == "torch" else None
        if dtype is None and storage_type != _Name("torch.storage", "UntypedStorage"):
            raise Unknown
        size = count * (1 if dtype is None else numpy_dtype(dtype).itemsize)
        place = self._members[f"{self._folder}data/{key}"]
        if place.stop - place.start != size:
            raise Unknown
        return _Storage(dtype, place, size)

    def tensor(self, storage: Any, offset: Any, shape: Any, strides: Any, dtype: str | None) -> StoredTensor:
        """A view of a storage. Raises Unknown for one that reaches beyond it."""
        if type(storage) is not _Storage or (storage.dtype is None) == (dtype is None):
            raise Unknown
        name = storage.dtype or dtype
        numbers = (offset, *shape, *strides)
        if name is None or len(shape) != len(strides) or any(type(one) is not int or one < 0 for one in numbers):
            raise Unknown
        kind = numpy_dtype(name)
        if storage.bytes % kind.itemsize or len(shape) > 32:
            raise Unknown
        count = storage.bytes // kind.itemsize
        if 0 in shape:
            return StoredTensor(name, np.empty(shape, kind))
        last = offset + sum((length - 1) * stride for length, stride in zip(shape, strides, strict=True))
        if last >= count:
            raise Unknown
        first = storage.place.start + offset * kind.itemsize
        steps = [stride * kind.itemsize for stride in strides]
        return StoredTensor(name, np.ndarray(shape, kind, self._data, first, steps))


class _Mark:
    pass


_MARK = _Mark()


class _Machine:
    """Carries out a pickle of protocol 2."""

    def __init__(self, code: bytes, storages: _Storages) -> None:
        self._code, self._storages = code, storages
        self._at = 0
        self._stack: list[Any] = []
        self._memo: dict[int, Any] = {}

    def run(self) -> Any:
        if self._take(2) != b"\x80\x02":
            raise Unknown
        while True:
            instruction = self._code[self._at]
            self._at += 1
            if instruction == ord("."):
                break
            _INSTRUCTIONS[instruction](self)
        if len(self._stack) != 1 or self._at != len(self._code):
            raise Unknown
        return self._stack[0]

    def _take(self, count: int) -> bytes:
        piece = self._code[self._at : self._at + count]
        if len(piece) != count or count < 0:
            raise Unknown
        self._at += count
        return piece

    def _number(self, layout: str) -> int:
        number: int = struct.unpack(layout, self._take(struct.calcsize(layout)))[0]
        return number

    def _line(self) -> str:
        end = self._code.index(b"\n", self._at)
        line = self._take(end - self._at).decode("utf-8")
        self._at += 1
        return line

    def _push(self, value: Any) -> None:
        self._stack.append(value)

    def _since_mark(self) -> list[Any]:
        at = len(self._stack) - 1
        while self._stack[at] is not _MARK:
            at -= 1
            if at < 0:
                raise Unknown
        found = self._stack[at + 1 :]
        del self._stack[at:]
        return found

    def _tuple(self, count: int) -> None:
        items = self._stack[-count:]
        if len(items) != count:
            raise Unknown
        self._stack[-count:] = [tuple(items)]

    def _append(self, items: list[Any]) -> None:
        if type(self._stack[-1]) is not list:
            raise Unknown
        self._stack[-1].extend(items)

    def _set(self, items: list[Any]) -> None:
        target = self._stack[-1]
        if type(target) not in (dict, collections.OrderedDict) or len(items) % 2:
            raise Unknown
        for key, value in zip(items[::2], items[1::2], strict=True):
            if type(key) not in (str, int, float, bool, bytes, tuple, type(None)):
                raise Unknown
            target[key] = value

    def _remember(self, number: int) -> None:
        self._memo[number] = self._stack[-1]

    def _pop_and(self, use: Callable[[Any], Any]) -> None:
        self._push(use(self._stack.pop()))

    def _reduce(self) -> None:
        arguments, function = self._stack.pop(), self._stack.pop()
        if type(arguments) is not tuple or type(function) is not _Name:
            raise Unknown
        self._push(self._call(function, arguments))

    def _call(self, function: _Name, arguments: tuple[Any, ...]) -> Any:
        if function == _Name("collections", "OrderedDict") and not arguments:
            return collections.OrderedDict()
        if function == _Name("torch._utils", "_rebuild_tensor_v2") and len(arguments) == 6:
            storage, offset, shape, strides, _, _ = arguments
            return self._storages.tensor(storage, offset, shape, strides, None)
        if function == _Name("torch._utils", "_rebuild_tensor_v3") and len(arguments) == 7:
            storage, offset, shape, strides, _, _, dtype = arguments
            if type(dtype) is not _Name or dtype.module != "torch" or dtype.name not in _OTHER_DTYPES:
                raise Unknown
            return self._storages.tensor(storage, offset, shape, strides, dtype.name)
        if function == _Name("torch._utils", "_rebuild_parameter") and len(arguments) == 3:
            if type(arguments[0]) is not StoredTensor:
                raise Unknown
            return arguments[0]
        raise Unknown


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
    ord("c"): lambda m: m._push(_Name(m._line(), m._line())),
    ord("t"): lambda m: m._push(tuple(m._since_mark())),
    0x85: lambda m: m._tuple(1),
    0x86: lambda m: m._tuple(2),
    0x87: lambda m: m._tuple(3),
    ord("a"): lambda m: m._append([m._stack.pop()]),
    ord("e"): lambda m: m._append(m._since_mark()),
    ord("s"): lambda m: m._set([m._stack.pop(-2), m._stack.pop()]),
    ord("u"): lambda m: m._set(m._since_mark()),
    ord("q"): lambda m: m._remember(m._number("<B")),
    ord("r"): lambda m: m._remember(m._number("<I")),
    ord("h"): lambda m: m._push(m._memo[m._number("<B")]),
    ord("j"): lambda m: m._push(m._memo[m._number("<I")]),
    ord("Q"): lambda m: m._pop_and(m._storages.find),
    ord("R"): lambda m: m._reduce(),
}


def _check_plain(content: Any) -> None:
    """Raise Unknown where something is left that has no meaning by itself: a name, a storage."""
    seen: set[int] = set()
    waiting = [content]
    while waiting:
        value = waiting.pop()
        if type(value) in (dict, collections.OrderedDict, list, tuple):
            if id(value) not in seen:
                seen.add(id(value))
                waiting.extend(_inside(value))
        elif type(value) not in (str, int, float, bool, bytes, type(None), StoredTensor):
            raise Unknown


def _inside(value: Any) -> Iterator[Any]:
    if isinstance(value, dict):
        yield from value.keys()
        yield from value.values()
    else:
        yield from value
