"""Copies from a CUDA device that never make the model wait.

A value is cloned on the compute stream (so that it may be modified in place next), and the clone goes to pinned host
memory on a side stream. Events order the two; only the writer thread ever waits for one. See "CUDA streams" and
"Memory management" in PyTorch's CUDA notes: ``record_stream`` keeps the clone's memory from being handed out again
before the side stream has read it.
"""

from __future__ import annotations

import threading
from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

SMALLEST_BUFFER = 4096
"""Bytes; smaller requests share this size, so that few distinct sizes are pooled."""


class PinnedPool:
    """Pinned host buffers that are used again, since pinning memory costs far more than filling it.

    Thread-safe: the model's threads take buffers, the writer thread gives them back.
    """

    def __init__(self, budget_bytes: int) -> None:
        """``budget_bytes``: how much pinned memory is kept for use again; more is pinned when it is needed, and freed
        when it comes back."""
        self._budget_bytes = budget_bytes
        self._free: dict[int, list[torch.Tensor]] = defaultdict(list)
        self._pooled_bytes = 0
        self._lock = threading.Lock()

    def take(self, nbytes: int) -> torch.Tensor:
        """A pinned uint8 tensor of at least ``nbytes`` bytes, its content undefined."""
        import torch

        size = buffer_size(nbytes)
        with self._lock:
            if self._free[size]:
                self._pooled_bytes -= size
                return self._free[size].pop()
        # A tensor that is made in inference mode could not be written outside it.
        with torch.inference_mode(False):
            return torch.empty(size, dtype=torch.uint8, pin_memory=torch.cuda.is_available())

    def give_back(self, buffer: torch.Tensor) -> None:
        """Return a buffer that nobody reads or writes any more."""
        size = buffer.numel()
        with self._lock:
            if self._pooled_bytes + size <= self._budget_bytes:
                self._free[size].append(buffer)
                self._pooled_bytes += size


def buffer_size(nbytes: int) -> int:
    """The size class of a request: the next power of two, at least ``SMALLEST_BUFFER``."""
    return max(SMALLEST_BUFFER, 1 << max(0, nbytes - 1).bit_length())


@dataclass
class DeviceCopy:
    """One value on its way from a device to the host."""

    nbytes: int
    _buffer: torch.Tensor
    _done: torch.cuda.Event
    _pool: PinnedPool
    _source: torch.Tensor | None = None
    """The clone; alive until the copy is done."""

    def wait(self) -> memoryview:
        """The bytes, in the logical (row-major) order of the tensor; valid until ``release``. Blocks."""
        self._done.synchronize()
        self._source = None
        return memoryview(self._buffer.numpy().data)[: self.nbytes]

    def release(self) -> None:
        """Hand the host buffer back to the pool."""
        self._pool.give_back(self._buffer)


class DeviceCopier:
    """Starts copies; one side stream per device."""

    def __init__(self, pool: PinnedPool) -> None:
        self._pool = pool
        self._streams: dict[int, torch.cuda.Stream] = {}

    def start(self, value: torch.Tensor) -> DeviceCopy:
        """Begin to copy a CUDA tensor as it is now; returns at once.

        Raises RuntimeError while the current stream is captured into a CUDA graph (see ``dumper/recording/graphs.py``).
        """
        import torch

        if torch.cuda.is_current_stream_capturing():
            raise RuntimeError("a copy to the host cannot be started while a CUDA graph is being captured")
        nbytes = value.numel() * value.element_size()
        buffer = self._pool.take(nbytes)
        with torch.cuda.device(value.device):
            clone = value.detach().clone(memory_format=torch.contiguous_format)
            side = self._side_stream(value.device.index)
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                if nbytes:
                    buffer[:nbytes].copy_(clone.reshape(-1).view(torch.uint8), non_blocking=True)
                done = torch.cuda.Event()  # type: ignore[no-untyped-call]
                done.record(side)
            clone.record_stream(side)
        return DeviceCopy(nbytes, buffer, done, self._pool, clone)

    def _side_stream(self, device: int) -> torch.cuda.Stream:
        import torch

        if device not in self._streams:
            self._streams[device] = torch.cuda.Stream(device=device)  # type: ignore[no-untyped-call]
        return self._streams[device]
