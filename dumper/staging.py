"""Copies of values as they are now, made on the model's thread, read on the writer's thread."""

from __future__ import annotations

import ctypes
import sys
import threading
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import msgpack

from dumper.format.dtypes import KNOWN, name_of

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import torch

    from dumper.cuda import DeviceCopier

SMALL = 64 << 10
"""Bytes; up to here a fresh bytes object is cheaper than a pooled buffer."""


class UnrecordableError(Exception):
    """A value that cannot be recorded; the message says why and what to do."""


class Staged(Protocol):
    """The bytes of a value, perhaps still on their way."""

    nbytes: int

    def wait(self) -> memoryview:
        """The bytes; valid until ``release``. Called on the writer's thread; may block."""

    def release(self) -> None:
        """The bytes are not needed any more."""


class StagedBytes:
    """Bytes of their own."""

    __slots__ = ("data", "nbytes")

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.nbytes = len(data)

    def wait(self) -> memoryview:
        return memoryview(self.data)

    def release(self) -> None:
        pass


@dataclass
class StagedBuffer:
    """Bytes in a buffer that goes back to a pool."""

    nbytes: int
    _view: memoryview
    _give_back: Callable[[], None]

    def wait(self) -> memoryview:
        return self._view

    def release(self) -> None:
        self._give_back()


class HostPool:
    """Host buffers that are used again: the first touch of fresh memory costs more than the copy into it."""

    def __init__(self, budget_bytes: int) -> None:
        self._budget_bytes = budget_bytes
        self._free: dict[int, list[torch.Tensor]] = defaultdict(list)
        self._pooled_bytes = 0
        self._lock = threading.Lock()

    def take(self, nbytes: int) -> torch.Tensor:
        """A uint8 tensor of exactly ``nbytes`` bytes, its content undefined."""
        with self._lock:
            if self._free[nbytes]:
                self._pooled_bytes -= nbytes
                return self._free[nbytes].pop()
        import torch

        return torch.empty(nbytes, dtype=torch.uint8)

    def give_back(self, buffer: torch.Tensor) -> None:
        nbytes = buffer.numel()
        with self._lock:
            if self._pooled_bytes + nbytes > self._budget_bytes:
                self._free.clear()
                self._pooled_bytes = 0
            if nbytes <= self._budget_bytes:
                self._free[nbytes].append(buffer)
                self._pooled_bytes += nbytes


@dataclass(frozen=True)
class Described:
    """A staged value and what it is."""

    staged: Staged
    dtype: str | None
    """None for a value that is no tensor; its bytes are msgpack then."""
    shape: tuple[int, ...] | None


class Stager:
    """Stages tensors of any device, numpy arrays, and plain values."""

    def __init__(self, pool_bytes: int) -> None:
        self._pool = HostPool(pool_bytes)
        self._pool_bytes = pool_bytes
        self._dtype_names: dict[Any, str] = {}
        self._device_copier: DeviceCopier | None = None

    def stage(self, value: Any) -> Described:
        """Copy ``value``. Raises UnrecordableError."""
        torch = sys.modules.get("torch")
        if torch is not None and isinstance(value, torch.Tensor):
            return self._stage_tensor(value)
        numpy = sys.modules.get("numpy")
        if numpy is not None and isinstance(value, numpy.ndarray | numpy.generic):
            return _stage_array(numpy.asarray(value))
        if isinstance(value, complex):
            import numpy as np

            return _stage_array(np.asarray(value))
        return Described(StagedBytes(encode_value(value)), None, None)

    def describe(self, value: torch.Tensor) -> Described:
        """What a tensor is, without a copy. Raises UnrecordableError."""
        dtype = self._dtype_names.get(value.dtype) or self._dtype_name(value)
        return Described(StagedBytes(b""), dtype, tuple(value.shape))

    def _stage_tensor(self, value: torch.Tensor) -> Described:
        dtype = self._dtype_names.get(value.dtype) or self._dtype_name(value)
        device = value.device.type
        if device == "cpu":
            return Described(self._stage_on_host(value), dtype, tuple(value.shape))
        _check_storage(value)
        if device == "cuda":
            return Described(self._copier().start(value), dtype, tuple(value.shape))
        return Described(self._stage_on_host(value.detach().cpu()), dtype, tuple(value.shape))

    def _stage_on_host(self, value: torch.Tensor) -> Staged:
        nbytes = value.numel() * value.element_size()
        if value.is_contiguous() and nbytes <= SMALL and not value.is_conj() and not value.is_neg():
            # An empty tensor may have no address.
            return StagedBytes(ctypes.string_at(value.data_ptr(), nbytes) if nbytes else b"")
        import torch

        buffer = self._pool.take(nbytes)
        with torch.no_grad():
            # copy_ brings any strides into row-major order and resolves lazy conjugation.
            buffer.view(value.dtype).view(value.shape).copy_(value)
        return StagedBuffer(nbytes, memoryview(buffer.numpy()), lambda: self._pool.give_back(buffer))  # type: ignore[arg-type]

    def _copier(self) -> DeviceCopier:
        if self._device_copier is None:
            from dumper.cuda import DeviceCopier, PinnedPool

            self._device_copier = DeviceCopier(PinnedPool(self._pool_bytes))
        return self._device_copier

    def _dtype_name(self, value: torch.Tensor) -> str:
        _check_storage(value)
        name = str(value.dtype).removeprefix("torch.")
        if name not in KNOWN:
            raise UnrecordableError(
                f"tensors of dtype {name} cannot be recorded; convert it, for example with .float()"
            )
        self._dtype_names[value.dtype] = name
        return name


def _check_storage(value: torch.Tensor) -> None:
    import torch

    if value.layout != torch.strided:
        raise UnrecordableError(f"tensors of layout {value.layout} cannot be recorded; dump value.to_dense()")
    if value.is_quantized:
        raise UnrecordableError("quantized tensors cannot be recorded; dump value.dequantize() or value.int_repr()")
    if value.device.type == "meta":
        raise UnrecordableError("a tensor on the meta device has no values to record")


def _stage_array(array: npt.NDArray[Any] | np.generic) -> Described:
    import numpy as np

    array = np.asarray(array)
    try:
        dtype = name_of(array.dtype)
    except ValueError as error:
        raise UnrecordableError(str(error)) from None
    little = array.astype(array.dtype.newbyteorder("<"), copy=False)
    return Described(StagedBytes(little.tobytes()), dtype, array.shape)


def encode_value(value: Any) -> bytes:
    """A plain value (None, numbers, text, bytes, lists, tuples and maps of them) as msgpack.

    Raises UnrecordableError for anything else; tuples become lists.
    """
    try:
        packed: bytes = msgpack.packb(value, use_bin_type=True)
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        raise UnrecordableError(
            f"a {type(value).__name__} cannot be recorded ({error}); record tensors, numbers, text and lists or maps "
            "of them, and nested tensors with dumper.dump_dict"
        ) from None
    return packed
