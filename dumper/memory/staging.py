"""Copies of values, or of what a level keeps of them, as they are now: made on the model's thread, read on the
writer's."""

from __future__ import annotations

import ctypes
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from dumper.memory.available import available_bytes
from dumper.memory.buffers import SMALL, BufferPool, host_buffer
from dumper.rules.levels import FULL, HASH, Level
from dumper.values.dtypes import PACKED, name_of
from dumper.values.measures import device_statistics
from dumper.values.memory_rows import MemoryRows, memory_rows
from dumper.values.plain import UnrecordableError, encode_value
from dumper.values.statistics import kind_of, of_array, of_rows

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import torch

    from dumper.memory.device_staging import DeviceStager


LARGE_ELEMENTS = 1 << 24
"""From so many elements on it is asked whether there is room for what statistics need."""
SCRATCH_BYTES = 24
"""Of each element, at most, that statistics take on the way where torch computes them."""


class Staged(Protocol):
    """The bytes of a value, perhaps still on their way."""

    nbytes: int

    @property
    def is_there(self) -> bool:
        """Whether ``wait`` would not block. Called on the writer's thread."""

    def wait(self) -> memoryview:
        """The bytes; valid until ``release``. Called on the writer's thread; may block."""

    def release(self) -> None:
        """The bytes are not needed any more."""


@dataclass
class StagedBuffer:
    """Bytes in a buffer that goes back to a pool."""

    nbytes: int
    _view: memoryview
    _give_back: Callable[[], None]
    is_there: bool = True

    def wait(self) -> memoryview:
        return self._view

    def release(self) -> None:
        self._give_back()


@dataclass(frozen=True)
class Described:
    """A staged value and what it is."""

    data: bytes | Staged
    dtype: str | None
    """None for a value that is no tensor; its bytes are msgpack then."""
    shape: tuple[int, ...] | None


class Stager:
    """Stages tensors of any device, numpy arrays, and plain values."""

    def __init__(self, pool_bytes: int, direct_launch: bool = False) -> None:
        """``pool_bytes``: how much memory copies may hold, those that wait to be used again included;
        ``direct_launch``: whether compiled code launches kernels of CUDA devices by itself."""
        self.pool_bytes = pool_bytes
        self.direct_launch = direct_launch
        self._pool = BufferPool(pool_bytes)
        self.host = self._pool.shelf(host_buffer)
        self._device: DeviceStager | None = None
        self._device_was_looked_for = False
        self._lock = threading.Lock()

    def stage(self, value: Any) -> Described:
        """Copy ``value``. Raises UnrecordableError."""
        torch = sys.modules.get("torch")
        if torch is not None and isinstance(value, torch.Tensor):
            from dumper.values.readable import readable, undisturbed

            with undisturbed():
                return self._stage_tensor(readable(value))
        array = as_host_array(value)
        if array is not None:
            return Described(array.tobytes(), name_of(array.dtype), array.shape)
        return Described(encode_value(value), None, None)

    def _stage_tensor(self, value: torch.Tensor) -> Described:
        """Copy a readable tensor."""
        from dumper.values.readable import as_bytes

        dtype, shape = describe_tensor(value)
        value = as_bytes(value)
        device = self.device if value.device.type == "cuda" else None
        if device is not None:
            return Described(device.stage(value), dtype, shape)
        return Described(self._stage_on_host(value.cpu()), dtype, shape)

    def _stage_on_host(self, value: torch.Tensor) -> bytes | Staged:
        nbytes = value.numel() * value.element_size()
        if nbytes == 0:
            return b""
        buffer = self.host.take(nbytes)
        try:
            _copy_to(buffer, value, nbytes)
        except BaseException:
            self.host.give_back(buffer)
            raise
        if nbytes <= SMALL:
            data = buffer[:nbytes].tobytes()
            self.host.give_back(buffer)
            return data
        return StagedBuffer(nbytes, buffer.data[:nbytes], lambda: self.host.give_back(buffer))

    @property
    def device_is_known(self) -> bool:
        """Whether ``device`` was asked for."""
        return self._device_was_looked_for

    @property
    def device(self) -> DeviceStager | None:
        """For tensors of CUDA devices; None where there is no runtime library, and the model waits for each copy."""
        if not self._device_was_looked_for:
            from dumper.memory.device_staging import DeviceStager

            # No thread goes another way because a second one has only begun.
            with self._lock:
                if not self._device_was_looked_for:
                    self._device = DeviceStager.of_this_process(self._pool, self.direct_launch)
                    self._device_was_looked_for = True
        return self._device


def _copy_to(buffer: npt.NDArray[np.uint8], value: torch.Tensor, nbytes: int) -> None:
    """Copy a tensor on the host in row-major order."""
    import torch

    if value.is_contiguous() and not (value.is_conj() or value.is_neg()):
        # One copy on this thread: torch would share it among its threads, and wait for one that the writer keeps busy.
        ctypes.memmove(buffer.ctypes.data, value.data_ptr(), nbytes)
        return
    # copy_ brings any strides into row-major order and resolves lazy conjugation and negation.
    torch.from_numpy(buffer[:nbytes]).view(value.dtype).view(value.shape).copy_(value)


def _check_scratch(value: torch.Tensor, each: int) -> None:
    """Raises UnrecordableError for a tensor on the host whose statistics would leave the model without memory.

    ``each``: bytes of an element that they take on the way.
    """
    elements = value.numel()
    if elements > LARGE_ELEMENTS and value.device.type == "cpu":
        needed, there = elements * each, available_bytes()
        if needed > there:
            raise UnrecordableError(f"its statistics would take {needed} bytes, and the machine has {there} left")


def describe_tensor(value: torch.Tensor) -> tuple[str, tuple[int, ...]]:
    """The dtype's name and the shape of a readable tensor."""
    return str(value.dtype).removeprefix("torch."), tuple(value.shape)


def as_host_array(value: Any) -> npt.NDArray[Any] | None:
    """A little-endian array of a numpy value; None for a value that is none.

    Raises UnrecordableError for an array of a dtype that cannot be recorded.
    """
    numpy = sys.modules.get("numpy")
    if numpy is None or not isinstance(value, numpy.ndarray | numpy.generic):
        return None
    array: npt.NDArray[Any] = numpy.asarray(value)
    try:
        name_of(array.dtype)
    except ValueError as error:
        raise UnrecordableError(str(error)) from None
    little: npt.NDArray[Any] = array.astype(array.dtype.newbyteorder("<"), copy=False)
    return little


@dataclass(frozen=True)
class Reduced:
    """What is kept, and what it was made of."""

    kept: Any
    level: Level
    """``full`` where there is nothing to reduce: values that are no tensors, and samples of scalars; ``hash`` for
    statistics of types of less than a byte."""
    dtype: str | None
    """Of the original; None for a value that is no tensor."""
    shape: tuple[int, ...] | None


def reduce_value(value: Any, level: Level) -> Reduced:
    """Reduce a tensor or array. Raises UnrecordableError for a tensor that has no bytes to record."""
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(value, torch.Tensor):
        return _reduce_tensor(value, level)
    array = as_host_array(value)
    if array is None:
        return Reduced(value, FULL, None, None)
    dtype, shape = name_of(array.dtype), array.shape
    if level.kind == "stats":
        return Reduced(_as_numbers(of_array(array)), level, dtype, shape)
    return Reduced(array[level.row_slice], level, dtype, shape) if shape else Reduced(array, FULL, dtype, shape)


def _reduce_tensor(value: torch.Tensor, level: Level) -> Reduced:
    from dumper.values.readable import readable, undisturbed

    with undisturbed():
        value = readable(value)
        dtype, shape = describe_tensor(value)
        if level.kind == "stats" and dtype in PACKED:
            # Numbers of packed bytes say nothing.
            return Reduced(value, HASH, dtype, shape)
        if level.kind == "stats":
            return Reduced(_statistics(value, dtype), level, dtype, shape)
        return Reduced(value[level.row_slice], level, dtype, shape) if shape else Reduced(value, FULL, dtype, shape)


def _statistics(value: torch.Tensor, dtype: str) -> torch.Tensor | npt.NDArray[Any]:
    kind = kind_of(dtype) if value.device.type == "cpu" else None
    if kind is None:
        _check_scratch(value, SCRATCH_BYTES)
        return device_statistics(value)
    rows = None if value.is_neg() else memory_rows(value.shape, value.stride(), value.element_size(), slice(None))
    if rows is None:
        _check_scratch(value, value.element_size())
        value = value.resolve_neg().contiguous()
        rows = MemoryRows(value.nbytes, 1, 0)
    return _as_numbers(of_rows(value.data_ptr(), rows, kind))


def _as_numbers(statistics: bytes) -> npt.NDArray[Any]:
    import numpy as np

    return np.frombuffer(statistics, "<f8")
