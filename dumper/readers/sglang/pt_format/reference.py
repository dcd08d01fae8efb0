"""The restricted unpickler: with ``archive`` the definition of the compiled module.

Format: ``pickletools`` of Python. What torch's part of a pickle means: ``torch/serialization.py``,
``torch/_utils.py``.
"""

from __future__ import annotations

import collections
import struct
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from msgspec import Struct

from dumper.readers.sglang.pt_format.archive import Storages

TYPED_STORAGE, BYTES_STORAGE, DTYPE, TYPED_TENSOR, BYTES_TENSOR, PARAMETER, ORDERED_DICT = range(7)
"""What a name of a pickle stands for."""
MOST_DIMENSIONS = 32


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
