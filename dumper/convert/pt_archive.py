"""Write a ``.pt`` file without torch, for torch to load: a zip archive of a pickle and of the raw bytes of one tensor.

Nothing is compressed, and the bytes begin at a multiple of 64, as ``torch.save`` has it, so that they can be mapped.
Formats: the zip specification (APPNOTE.TXT of PKWARE), ``pickletools`` of Python, ``torch/serialization.py``.
"""

from __future__ import annotations

import functools
import os
import pickle
import struct
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from dumper.format.regular_files import create
from dumper.readers.sglang.plain_pt import BYTES_DTYPES, STORAGES
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
_SMALL = ((b"archive/byteorder", b"little"), (b"archive/version", b"3\n"))


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
        pieces = _archive(code, payload)
    else:
        pieces = _archive(pickle.dumps({"value": value, "meta": dict(meta)}, 2), None)
    descriptor = create(path, mode)
    try:
        _write(descriptor, pieces)
    except OSError:
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


def _archive(code: bytes, payload: memoryview | bytes | None) -> list[memoryview | bytes]:
    """The pieces of a file: what comes before the bytes of the tensor, these, and what comes after."""
    head = bytearray()
    directory = bytearray()

    def add(name: bytes, data: memoryview | bytes, padding: int = 0) -> None:
        extra = b"" if not padding else b"FB" + struct.pack("<H", padding - 4) + b"Z" * (padding - 4)
        check, size, at = zlib.crc32(data), len(data), len(head)
        head.extend(_LOCAL.pack(b"PK\x03\x04", *_COMMON, check, size, size, len(name), len(extra)) + name + extra)
        entry = (_VERSION, *_COMMON, check, size, size, len(name), 0, 0, 0, 0, 0, at)
        directory.extend(_MEMBER.pack(b"PK\x01\x02", *entry) + name)

    for name, data in ((b"archive/data.pkl", code), *_SMALL):
        add(name, data)
        head.extend(data)
    members = 1 + len(_SMALL)
    if payload is not None:
        name = b"archive/data/0"
        add(name, payload, 4 + -(len(head) + _LOCAL.size + len(name) + 4) % _ALIGNMENT)
        members += 1
    start = len(head) + (0 if payload is None else len(payload))
    end = _END.pack(b"PK\x05\x06", 0, 0, members, members, len(directory), start, 0)
    return [bytes(head), payload or b"", bytes(directory) + end]


def _write(descriptor: int, pieces: list[memoryview | bytes]) -> None:
    rest = [memoryview(piece) for piece in pieces if len(piece)]
    while rest:
        written = os.writev(descriptor, rest)
        while rest and written >= len(rest[0]):
            written -= len(rest.pop(0))
        if rest:
            rest[0] = rest[0][written:]
