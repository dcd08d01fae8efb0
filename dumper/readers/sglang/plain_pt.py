"""Read a ``.pt`` file without torch: a zip archive of a pickle and of raw bytes, as ``torch.save`` writes it.

Nothing is unpickled by Python's ``pickle``. The few instructions that build plain containers and tensors are carried
out by ``pt_format``, and no other; whatever else a file holds is ``Unknown``, and torch's own restricted reader
decides.
"""

from __future__ import annotations

import mmap
import os
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
from msgspec import Struct

from dumper.format.regular_files import open_with_status
from dumper.readers.sglang import pt_format
from dumper.readers.sglang.pt_format import archive, reference
from dumper.readers.sglang.pt_format.archive import Stamp
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
P = TypeVar("P")
T = TypeVar("T")

WORTH_A_THREAD = 128
"""Files from which it pays to look at them in two threads."""
MOST_READ = 64 << 10
"""Bytes up to which reading takes less time than mapping."""


class Unknown(Exception):
    """The file holds something that is not read here; not to be shown to anyone."""


class StoredTensor(Struct, eq=False):
    """A tensor in a file."""

    dtype: str
    """torch's name without ``torch.``."""
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    """In bytes."""
    start: int
    """Of its elements; 0 where it has none."""
    stop: int
    array: npt.NDArray[Any] | None = None
    """With its strides, read-only, mapped where the file is not small; None where only the head of it was read."""

    @property
    def lies_whole(self) -> bool:
        """Whether it has elements, and they are in the file in row-major order, without gaps."""
        behind: int = numpy_dtype(self.dtype).itemsize
        for length, stride in zip(reversed(self.shape), reversed(self.strides), strict=True):
            if length > 1 and stride != behind:
                return False
            behind *= length
        return behind == self.stop - self.start > 0

    def with_array(self, array: npt.NDArray[Any]) -> StoredTensor:
        """The same with its array."""
        return StoredTensor(self.dtype, self.shape, self.strides, self.start, self.stop, array)

    def view(self, data: bytes | mmap.mmap, at: int = 0) -> npt.NDArray[Any]:
        """The tensor, read-only, from bytes of the file, the first of which is the one at ``at``."""
        kind = numpy_dtype(self.dtype)
        if not self.stop:
            return np.empty(self.shape, kind)
        return np.ndarray(self.shape, kind, data, self.start - at, self.strides)


Stored = tuple[bytes, StoredTensor, Stamp]
"""The path of a file, a tensor that was found in it, and the file's stamp."""


class Told(Struct, frozen=True):
    """What a file holds, with the bytes of its tensors still in it."""

    content: Any
    """Plain containers and values, and ``StoredTensor``."""
    tensors: Sequence[StoredTensor]
    stamp: Stamp


def told(head: archive.Head | None) -> Told | None:
    """What a file holds, of which ``pt_format.heads`` has read the head; None where it holds what is not read here, or
    cannot be read, for whatever reason."""
    if head is None:
        return None
    code, storages, stamp = head
    try:
        content, tensors = pt_format.unpickle(code, NAMES, storages, StoredTensor)
    except archive.REFUSED:
        return None
    return Told(content, tensors, stamp)


def load_plain(path: Path) -> Told:
    """What a file holds, with the arrays of its tensors. Raises Unknown for all that is not read here, damage included,
    and OSError for a file that cannot be read."""
    found = told(*pt_format.heads([os.fsencode(path)]))
    if found is None:
        raise Unknown
    if found.tensors:
        stop = max(tensor.stop for tensor in found.tensors)
        data = _read(path, 0, stop, found.stamp) if stop else b""
        if data is None:
            raise Unknown
        for tensor in found.tensors:
            tensor.array = tensor.view(data)
    return found


def read_again(path: str | Path, tensor: StoredTensor, stamp: Stamp) -> StoredTensor | None:
    """A tensor that was found before, with its array; None when the file has changed since. Raises OSError."""
    start, data = tensor.start, _read(path, tensor.start, tensor.stop, stamp)
    if data is None:
        return None
    if isinstance(data, mmap.mmap):
        start = start // mmap.PAGESIZE * mmap.PAGESIZE
    return tensor.with_array(tensor.view(data, start))


def read_together(several: Sequence[Stored]) -> tuple[bytes, Sequence[bool]]:
    """The bytes of tensors of one size, one after the other, and of each whether its file is the same still; zeros
    stand for those of others."""
    paths, tensors, known = zip(*several, strict=True)
    size, starts = tensors[0].stop - tensors[0].start, tuple([tensor.start for tensor in tensors])
    return pt_format.parts(paths, starts, size, known)


def views_of_each(tensors: Sequence[StoredTensor], data: bytes) -> list[npt.NDArray[Any]]:
    """The tensors, of one size, whose bytes ``read_together`` has read."""
    first = tensors[0]
    shape, strides, dtype = first.shape, first.strides, first.dtype
    alike = [one.shape == shape and one.strides == strides and one.dtype == dtype for one in tensors]
    if shape and first.lies_whole and all(alike):
        # In a fifth of the time that it takes to make them one by one.
        return list(np.ndarray((len(tensors), *shape), numpy_dtype(dtype), data))
    size = first.stop - first.start
    return [one.view(data, one.start - number * size) for number, one in enumerate(tensors)]


def _read(path: str | Path, start: int, stop: int, stamp: Stamp) -> bytes | mmap.mmap | None:
    """A part of a file; of a large one a mapping, which begins at the page of its start."""
    if stop - start <= MOST_READ:
        return pt_format.part(os.fsencode(path), start, stop, stamp)
    descriptor, status = open_with_status(path)
    try:
        first = start // mmap.PAGESIZE * mmap.PAGESIZE
        return _mapped(descriptor, first, stop) if archive.stamp(status) == stamp else None
    finally:
        os.close(descriptor)


def stamp_of(path: str | Path) -> Stamp | None:
    """The stamp of a file as it is now; None where it is not there."""
    return stamps_of([os.fsencode(path)])[0]


def stamps_of(paths: list[bytes]) -> list[Stamp | None]:
    """The same of many files."""
    return in_halves(pt_format.stamps, paths)


def in_halves(look: Callable[[list[P]], list[T]], files: list[P]) -> list[T]:
    """What ``look`` finds of files, in two threads where there are many: looking at them needs no interpreter."""
    if len(files) < WORTH_A_THREAD:
        return look(files)
    half = len(files) // 2
    second: list[T] = []
    thread = threading.Thread(target=lambda: second.extend(look(files[half:])))
    try:
        thread.start()
    except RuntimeError:  # there may be no more threads
        return look(files)
    first = look(files[:half])
    thread.join()
    # A thread that could not (no memory) has left nothing behind.
    return [*first, *(second or look(files[half:]))]


def _mapped(descriptor: int, start: int, stop: int) -> mmap.mmap | None:
    """None when the file ends before."""
    try:
        return mmap.mmap(descriptor, stop - start, access=mmap.ACCESS_READ, offset=start)
    except ValueError:  # it was longer a moment ago
        return None


def names(named: Callable[[int, str | None, int], Any]) -> dict[bytes, Any]:
    """What a pickle may refer to, by module and name. ``named`` is that of the module which unpickles."""
    found = {
        b"collections\nOrderedDict": named(reference.ORDERED_DICT, None, 1),
        b"torch._utils\n_rebuild_tensor_v2": named(reference.TYPED_TENSOR, None, 1),
        b"torch._utils\n_rebuild_tensor_v3": named(reference.BYTES_TENSOR, None, 1),
        b"torch._utils\n_rebuild_parameter": named(reference.PARAMETER, None, 1),
        b"torch.storage\nUntypedStorage": named(reference.BYTES_STORAGE, None, 1),
    }
    for name, dtype in STORAGES.items():
        found[f"torch\n{name}".encode()] = named(reference.TYPED_STORAGE, dtype, numpy_dtype(dtype).itemsize)
    for dtype in BYTES_DTYPES:
        found[f"torch\n{dtype}".encode()] = named(reference.DTYPE, dtype, numpy_dtype(dtype).itemsize)
    return found


NAMES = names(pt_format.named)
