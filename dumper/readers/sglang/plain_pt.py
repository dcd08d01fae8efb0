"""Read a ``.pt`` file without torch: a zip archive of a pickle and of raw bytes, as ``torch.save`` writes it.

Nothing is unpickled by Python's ``pickle``. The few instructions that build plain containers and tensors are carried
out by ``pt_format``, and no other; whatever else a file holds is ``Unknown``, and torch's own restricted reader
decides. What torch's part of a pickle means: ``torch/serialization.py``, ``torch/_utils.py``.
"""

from __future__ import annotations

import collections
import mmap
import os
import struct
import zlib
from collections.abc import Mapping
from pathlib import Path
from types import FunctionType
from typing import Any

import numpy as np
import numpy.typing as npt
from msgspec import Struct

from dumper.format.regular_files import open_with_status
from dumper.readers.sglang.pt_format import is_plain, members, unpickle
from dumper.values.dtypes import numpy_dtype

STORAGES = {
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
BYTES_DTYPES = frozenset({"uint16", "uint32", "uint64"}) | {
    f"float8_{kind}" for kind in ("e4m3fn", "e4m3fnuz", "e5m2", "e5m2fnuz", "e8m0fnu")
}
"""Dtypes without a storage of their own: the storage holds bytes, and the tensor names its dtype."""
_MOST_PICKLE = 64 << 20
"""Bytes of a pickle; what is larger is left to torch."""
_READ = 64 << 10
"""Bytes up to which reading takes less time than mapping."""


class Unknown(Exception):
    """The file holds something that is not read here; not to be shown to anyone."""


class Place(Struct, frozen=True):
    """Where the elements of a tensor lie, so that they are found again without reading the rest of the file."""

    shape: tuple[int, ...]
    strides: tuple[int, ...]
    """In bytes."""
    start: int
    stop: int
    stamp: tuple[int, int, int]
    """Of the file as it was read: size, time of change, inode."""


class StoredTensor(Struct, frozen=True, eq=False):
    """A tensor of a file, mapped where it is not small."""

    dtype: str
    """torch's name without ``torch.``."""
    array: npt.NDArray[Any]
    """With its strides, read-only."""
    place: Place | None
    """None without elements."""

    @property
    def shape(self) -> tuple[int, ...]:
        return self.array.shape


def load_plain(path: Path) -> Any:
    """The content of a file: plain containers and values, and ``StoredTensor``.

    Raises Unknown for all that is not read here, damage included, and OSError for a file that cannot be read.
    """
    descriptor, status = open_with_status(path)
    try:
        stamp = _stamp(status)
        data = _bytes_of(descriptor, 0, stamp[0])
    finally:
        os.close(descriptor)
    try:
        found = members(data)
        pickled = [name for name in found if name.endswith("/data.pkl") and name.count("/") == 1]
        if data[:4] != b"PK\x03\x04" or len(pickled) != 1:
            raise Unknown
        folder = pickled[0].removesuffix("data.pkl")
        order = found.get(f"{folder}byteorder")
        if order is not None and data[order[0] : order[1]] != b"little":
            raise Unknown
        storages = Storages(data, found, folder, stamp)
        content = unpickle(_checked(data, found[pickled[0]]), NAMES, storages.find, storages.call)
    except (struct.error, IndexError, KeyError, TypeError, ValueError, OverflowError) as error:
        raise Unknown from error
    if not is_plain(content, StoredTensor):
        raise Unknown
    return content


def read_again(path: Path, dtype: str, place: Place) -> StoredTensor | None:
    """A tensor that was read before; None when the file has changed since. Raises OSError."""
    descriptor, status = open_with_status(path)
    try:
        if _stamp(status) != place.stamp:
            return None
        # Mappings begin at whole pages.
        start = place.start if place.stop - place.start <= _READ else place.start // mmap.PAGESIZE * mmap.PAGESIZE
        try:
            data = _bytes_of(descriptor, start, place.stop)
        except Unknown:
            return None
    finally:
        os.close(descriptor)
    array = np.ndarray(place.shape, numpy_dtype(dtype), data, place.start - start, place.strides)
    return StoredTensor(dtype, array, place)


def _stamp(status: os.stat_result) -> tuple[int, int, int]:
    return status.st_size, status.st_mtime_ns, status.st_ino


def _bytes_of(descriptor: int, start: int, stop: int) -> bytes | mmap.mmap:
    """A part of a file; ``start`` is at a page where it is large. Raises Unknown when the file ends before."""
    if stop - start > _READ:
        try:
            return mmap.mmap(descriptor, stop - start, access=mmap.ACCESS_READ, offset=start)
        except ValueError:  # it was longer a moment ago
            raise Unknown from None
    data = os.pread(descriptor, stop - start, start)
    if len(data) != stop - start:
        raise Unknown
    return data


def _checked(data: bytes | mmap.mmap, place: tuple[int, int, int]) -> bytes:
    """The bytes of a pickle, which are copied: they are few."""
    start, stop, checksum = place
    if stop - start > _MOST_PICKLE:
        raise Unknown
    code = data[start:stop]
    if zlib.crc32(code) != checksum:
        raise Unknown
    return code


class _StorageType(Struct, frozen=True):
    dtype: str | None
    """None: bytes, whose dtype the tensor knows."""


class _DtypeName(Struct, frozen=True):
    name: str


class _Storage(Struct, frozen=True):
    dtype: str | None
    start: int
    bytes: int


class Storages:
    """The raw bytes of an archive, and the tensors that a pickle makes of them."""

    def __init__(
        self,
        data: bytes | mmap.mmap,
        found: Mapping[str, tuple[int, int, int]],
        folder: str,
        stamp: tuple[int, int, int],
    ) -> None:
        self._data, self._members, self._folder, self._stamp = data, found, folder, stamp

    def find(self, reference: Any) -> Any:
        """The storage that a persistent id names: ``("storage", type, key, device, elements)``."""
        kind, storage_type, key, device, count = reference
        if kind != "storage" or type(storage_type) is not _StorageType:
            raise Unknown
        if type(key) is not str or type(device) is not str or type(count) is not int or count < 0:
            raise Unknown
        dtype = storage_type.dtype
        size = count * (1 if dtype is None else numpy_dtype(dtype).itemsize)
        start, stop, _ = self._members[f"{self._folder}data/{key}"]
        if stop - start != size:
            raise Unknown
        return _Storage(dtype, start, size)

    def call(self, function: Any, arguments: tuple[Any, ...]) -> Any:
        """The result of one of the functions of ``NAMES``."""
        if type(function) is not FunctionType:
            raise Unknown
        return function(self, *arguments)

    def tensor(self, storage: Any, offset: Any, shape: Any, strides: Any, dtype: str | None) -> StoredTensor:
        """A view of a storage. Raises Unknown for one that reaches beyond it."""
        if type(storage) is not _Storage or (storage.dtype is None) == (dtype is None):
            raise Unknown
        name = storage.dtype or dtype
        numbers = (offset, *shape, *strides)
        if name is None or len(shape) != len(strides) or any(type(one) is not int or one < 0 for one in numbers):
            raise Unknown
        kind = numpy_dtype(name)
        size = kind.itemsize
        if storage.bytes % size or len(shape) > 32:
            raise Unknown
        if 0 in shape:
            return StoredTensor(name, np.empty(shape, kind), None)
        last = offset + sum((length - 1) * stride for length, stride in zip(shape, strides, strict=True))
        if last >= storage.bytes // size:
            raise Unknown
        place = Place(
            tuple(shape),
            tuple(stride * size for stride in strides),
            storage.start + offset * size,
            storage.start + (last + 1) * size,
            self._stamp,
        )
        return StoredTensor(name, np.ndarray(place.shape, kind, self._data, place.start, place.strides), place)


def _ordered_dict(_: Storages) -> Any:
    return collections.OrderedDict()


def _tensor_of_typed_storage(
    storages: Storages, storage: Any, offset: Any, shape: Any, strides: Any, requires_grad: Any, hooks: Any
) -> StoredTensor:
    return storages.tensor(storage, offset, shape, strides, None)


def _tensor_of_bytes(
    storages: Storages, storage: Any, offset: Any, shape: Any, strides: Any, requires_grad: Any, hooks: Any, dtype: Any
) -> StoredTensor:
    if type(dtype) is not _DtypeName:
        raise Unknown
    return storages.tensor(storage, offset, shape, strides, dtype.name)


def _parameter(_: Storages, tensor: Any, requires_grad: Any, hooks: Any) -> StoredTensor:
    if type(tensor) is not StoredTensor:
        raise Unknown
    return tensor


NAMES: dict[bytes, Any] = {
    b"collections\nOrderedDict": _ordered_dict,
    b"torch._utils\n_rebuild_tensor_v2": _tensor_of_typed_storage,
    b"torch._utils\n_rebuild_tensor_v3": _tensor_of_bytes,
    b"torch._utils\n_rebuild_parameter": _parameter,
    b"torch.storage\nUntypedStorage": _StorageType(None),
    **{f"torch\n{name}".encode(): _StorageType(dtype) for name, dtype in STORAGES.items()},
    **{f"torch\n{name}".encode(): _DtypeName(name) for name in BYTES_DTYPES},
}
"""What a pickle may refer to, by module and name."""
