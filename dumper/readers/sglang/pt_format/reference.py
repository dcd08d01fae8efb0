"""The definition of the compiled module: the members of an archive, and the restricted unpickler.

Formats: the zip specification (APPNOTE.TXT of PKWARE), ``pickletools`` of Python.
"""

from __future__ import annotations

import collections
import struct
from collections.abc import Callable, Iterator, Mapping
from typing import Any

_END = struct.Struct("<4s4H2LH")
_MEMBER = struct.Struct("<4s6H3L5H2L")
_LOCAL = struct.Struct("<4s5H3L2H")


def members(data: Any) -> dict[str, tuple[int, int, int]]:
    """Start, stop and checksum of each member of an archive whose directory is at its end, none of them compressed.

    Raises ValueError, struct.error or IndexError for any other.
    """
    end = len(data) - _END.size
    if end < 0:
        raise ValueError
    mark, *_, count, size, offset, comment = _END.unpack_from(data, end)
    if mark != b"PK\x05\x06" or comment or 0xFFFF in (count,) or 0xFFFFFFFF in (size, offset):
        raise ValueError  # a comment, or more than 4 GiB
    found: dict[str, tuple[int, int, int]] = {}
    at = offset
    for _ in range(count):
        mark, _, _, flags, method, _, _, crc, packed, whole, name, extra, comment, *_, local = _MEMBER.unpack_from(
            data, at
        )
        if mark != b"PK\x01\x02" or method or flags & 1 or packed != whole or 0xFFFFFFFF in (packed, local):
            raise ValueError
        first = at + _MEMBER.size
        text = data[first : first + name].decode("utf-8")
        mark, *_, local_name, local_extra = _LOCAL.unpack_from(data, local)
        start = local + _LOCAL.size + local_name + local_extra
        if mark != b"PK\x03\x04" or start + whole > offset or text in found or first + name > len(data):
            raise ValueError
        found[text] = (start, start + whole, crc)
        at = first + name + extra + comment
    return found


def unpickle(code: bytes, names: Mapping[bytes, Any], find: Callable[[Any], Any], call: Callable[..., Any]) -> Any:
    """What a pickle of protocol 2 holds, as far as it needs no more than plain containers, ``find`` and ``call``.

    ``names``: what the pickle may refer to, by module and name with a newline between. ``find`` takes a persistent id;
    ``call`` takes one of the names and a tuple of arguments. Raises ValueError, and other exceptions of damage.
    """
    return _Machine(code, names, find, call).run()


def is_plain(content: Any, tensor: type) -> bool:
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

    def __init__(
        self, code: bytes, names: Mapping[bytes, Any], find: Callable[[Any], Any], call: Callable[..., Any]
    ) -> None:
        self._code, self._names, self.find, self._call = code, names, find, call
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

    def _reduce(self) -> None:
        arguments, function = self._pop(), self._pop()
        if type(arguments) is not tuple:
            raise ValueError
        self._push(self._call(function, arguments))


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
