"""Write a ``.pt`` file without torch, for torch to load: a zip archive of a pickle and of the raw bytes of one tensor.

Nothing is compressed, and the bytes begin at a multiple of 64, as ``torch.save`` has it, so that they can be mapped.
Formats: the zip specification (APPNOTE.TXT of PKWARE), ``pickletools`` of Python, ``torch/serialization.py``.
"""

from __future__ import annotations

import functools
import os
import pickle
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from dumper.format.regular_files import create
from dumper.readers.sglang.plain_pt import BYTES_DTYPES, STORAGES
from dumper.values.crc32 import crc32
from dumper.values.dtypes import numpy_dtype

_ALIGNMENT = 64
_LARGEST = (1 << 32) - (1 << 20)
"""Bytes of a tensor, from which the archive would need the fields of zip64."""
_LOCAL = struct.Struct("<4s5H3L2H")
_MEMBER = struct.Struct("<4s6H3L5H2L")
_END = struct.Struct("<4s4H2LH")
_VERSION, _UTF8, _STORED, _NO_TIME, _NO_DATE = 20, 0x800, 0, 0, 0x21
_COMMON = (_VERSION, _UTF8, _STORED, _NO_TIME, _NO_DATE)
_STORAGE_NAMES = {dtype: name for name, dtype in STORAGES.items()}
_PICKLE, _STORAGE = b"archive/data.pkl", b"archive/data/0"
_BLOCK = 256 << 10
"""Bytes of a large tensor of which the checksum is taken and which are then written, out of the processor's cache."""


@dataclass(frozen=True)
class PlainTensor:
    """A tensor as a file is to hold it."""

    dtype: str
    """torch's name without ``torch.``."""
    array: npt.NDArray[Any]
    """Of any strides; the file holds it contiguous."""


def holds(dtype: str | None, nbytes: int) -> bool:
    """Whether a tensor of this dtype and size can be written here; the others take ``torch.save``."""
    return (dtype in _STORAGE_NAMES or dtype in BYTES_DTYPES) and nbytes < _LARGEST


def save(path: Path, value: Any, meta: Mapping[str, Any], mode: int = 0o666) -> None:
    """Write ``{"value": value, "meta": meta}``; ``value`` is a ``PlainTensor`` or a plain value without tensors.

    Raises OSError, for a file that is there already too, and ValueError for a tensor that ``holds`` says no of.
    """
    if isinstance(value, PlainTensor):
        if not holds(value.dtype, value.array.nbytes) or value.array.dtype != numpy_dtype(value.dtype):
            raise ValueError(f"a tensor of {value.dtype} and {value.array.nbytes} bytes")
        # The two parts remember nothing in common, so that they can stand in one pickle.
        inside = pickle.dumps(dict(meta), 2)[2:-1]
        code = b"\x80\x02}(" + _text("value") + _tensor(value.dtype, value.array.shape) + _text("meta") + inside + b"u."
        payload = np.ascontiguousarray(value.array).reshape(-1).view(np.uint8).data if value.array.size else b""
    else:
        code, payload = pickle.dumps({"value": value, "meta": dict(meta)}, 2), None
    descriptor = create(path, mode)
    try:
        _write(descriptor, code, payload)
    except BaseException:
        path.unlink(missing_ok=True)
        raise
    finally:
        os.close(descriptor)


def _text(text: str) -> bytes:
    encoded = text.encode()
    return b"X" + struct.pack("<I", len(encoded)) + encoded


@functools.lru_cache(1024)
def _tensor(dtype: str, shape: tuple[int, ...]) -> bytes:
    """The instructions that rebuild a contiguous tensor of the only storage."""
    count = prod(shape)
    storage = _STORAGE_NAMES.get(dtype)
    if storage is None:
        kind, function, count = b"ctorch.storage\nUntypedStorage\n", b"_rebuild_tensor_v3", count * _size(dtype)
        last = b"ctorch\n" + dtype.encode() + b"\n"
    else:
        kind, function, last = b"ctorch\n" + storage.encode() + b"\n", b"_rebuild_tensor_v2", b""
    strides = [prod(max(length, 1) for length in shape[axis + 1 :]) for axis in range(len(shape))]
    reference = b"(" + _text("storage") + kind + _text("0") + _text("cpu") + _integer(count) + b"tQ"
    layout = _integer(0) + _integers(shape) + _integers(strides)
    hooks = b"ccollections\nOrderedDict\n)R"
    return b"ctorch._utils\n" + function + b"\n(" + reference + layout + b"\x89" + hooks + last + b"tR"


def _size(dtype: str) -> int:
    return numpy_dtype(dtype).itemsize


def _integers(numbers: Sequence[int]) -> bytes:
    return b"(" + b"".join(map(_integer, numbers)) + b"t" if numbers else b")"


def _integer(number: int) -> bytes:
    return pickle.dumps(number, 2)[2:-1]


def _member(name: bytes, check: int, size: int, at: int, extra: bytes = b"") -> tuple[bytes, bytes]:
    """The header of a member that begins at ``at``, and its entry in the directory."""
    local = _LOCAL.pack(b"PK\x03\x04", *_COMMON, check, size, size, len(name), len(extra)) + name + extra
    entry = (_VERSION, *_COMMON, check, size, size, len(name), 0, 0, 0, 0, 0, at)
    return local, _MEMBER.pack(b"PK\x01\x02", *entry) + name


_ORDER, _FORMAT = b"little", b"3\n"
_ORDER_MEMBER = _member(b"archive/byteorder", crc32(_ORDER), len(_ORDER), 0)
_FORMAT_MEMBER = _member(b"archive/version", crc32(_FORMAT), len(_FORMAT), 0)


def _moved(entry: bytes, at: int) -> bytes:
    """An entry of the directory, of a member that begins at ``at``."""
    return entry[: _MEMBER.size - 4] + at.to_bytes(4, "little") + entry[_MEMBER.size :]


def _before(code: bytes) -> tuple[bytes, bytes]:
    """What comes before the tensor, and its part of the directory."""
    local, entry = _member(_PICKLE, crc32(code), len(code), 0)
    first = local + code
    second = _ORDER_MEMBER[0] + _ORDER
    third = len(first) + len(second)
    directory = entry + _moved(_ORDER_MEMBER[1], len(first)) + _moved(_FORMAT_MEMBER[1], third)
    return b"".join((first, second, _FORMAT_MEMBER[0], _FORMAT)), directory


def _after(members: int, directory: bytes, start: int) -> bytes:
    return directory + _END.pack(b"PK\x05\x06", 0, 0, members, members, len(directory), start, 0)


def _write(descriptor: int, code: bytes, payload: memoryview | bytes | None) -> None:
    """Write an archive of a pickle, and of the bytes of a tensor where there are some."""
    head, directory = _before(code)
    if payload is None:
        _write_all(descriptor, [head, _after(3, directory, len(head))], 0)
        return
    at, size = len(head), len(payload)
    padding = 4 + -(at + _LOCAL.size + len(_STORAGE) + 4) % _ALIGNMENT
    extra = b"FB" + struct.pack("<H", padding - 4) + b"Z" * (padding - 4)
    start = at + _LOCAL.size + len(_STORAGE) + padding
    # Of a large tensor the checksum, which stands before it, is known once it is written.
    check = crc32(payload) if size <= _BLOCK else _write_blocks(descriptor, memoryview(payload), start)
    local, entry = _member(_STORAGE, check, size, at, extra)
    tail = _after(4, directory + entry, start + size)
    if size <= _BLOCK:
        _write_all(descriptor, [head, local, payload, tail], 0)
        return
    _write_all(descriptor, [tail], start + size)
    _write_all(descriptor, [head, local], 0)


def _write_blocks(descriptor: int, payload: memoryview, start: int) -> int:
    """Write the bytes of a tensor at ``start``; returns their checksum."""
    check = 0
    for first in range(0, len(payload), _BLOCK):
        block = payload[first : first + _BLOCK]
        check = crc32(block, check)
        _write_all(descriptor, [block], start + first)
    return check


def _write_all(descriptor: int, pieces: Sequence[memoryview | bytes], at: int) -> None:
    rest = [memoryview(piece) for piece in pieces if len(piece)]
    while rest:
        written = os.pwritev(descriptor, rest, at)
        at += written
        while rest and written >= len(rest[0]):
            written -= len(rest.pop(0))
        if rest:
            rest[0] = rest[0][written:]
