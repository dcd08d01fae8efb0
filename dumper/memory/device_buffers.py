"""Memory of a device that slabs are filled in: a few pieces for all of its streams, made when they are needed."""

from __future__ import annotations

import contextlib
import os
import threading
from typing import Protocol

from dumper.memory.arrivals import Words
from dumper.memory.cuda_runtime import CudaRuntime, DeviceError

SLAB_BYTES = 8 << 20
"""A transfer of so much reaches four fifths of the bus's rate."""
MOST_SLABS = 16
"""On one device; when all are on their way the model waits for the bus. A stream may always have one."""


class _Slab(Protocol):
    def arrived(self) -> None:
        """The bytes are on the host."""


class DeviceBuffer:
    """The part of a slab that is on the device; used again as soon as it has been transferred."""

    __slots__ = ("_process", "_runtime", "address", "filled", "slab", "word")

    def __init__(self, runtime: CudaRuntime, device: int, words: Words) -> None:
        self._runtime = runtime
        self._process = os.getpid()
        with runtime.device(device):
            self.filled = runtime.make_event()
            self.address = runtime.allocate(SLAB_BYTES)
        self.word = words.take()
        self.slab: _Slab | None = None
        """What it holds, until that is on the host."""

    def __del__(self) -> None:
        # To free memory waits for what the device still does with it. In the child of a fork there is no device.
        if getattr(self, "address", 0) and os.getpid() == self._process:
            with contextlib.suppress(Exception):
                self._runtime.free(self.address)


class DeviceBuffers:
    """The buffers of one device, for all of its streams. Thread-safe."""

    def __init__(self, runtime: CudaRuntime, device: int, words: Words) -> None:
        self._runtime = runtime
        self._device = device
        self._words = words
        self._free: list[DeviceBuffer] = []
        self._made = 0
        self._lock = threading.Lock()

    def take(self, may_wait: bool) -> DeviceBuffer | None:
        """One that nobody uses; None for who ``may_wait`` for one of his own, where that is what is left to do.

        Raises DeviceError when the device has no memory for somebody who has none to wait for.
        """
        with self._lock:
            if self._free:
                return self._free.pop()
            if may_wait and self._made >= MOST_SLABS:
                return None
            try:
                made = DeviceBuffer(self._runtime, self._device, self._words)
            except DeviceError:
                if may_wait:
                    return None
                raise
            self._made += 1
            return made

    def give_back(self, buffer: DeviceBuffer) -> None:
        """Return one that no stream will read or write any more."""
        with self._lock:
            self._free.append(buffer)

    def let_go(self) -> None:
        """Free those that nobody uses. Waits for the device."""
        with self._lock:
            self._made -= len(self._free)
            for buffer in self._free:
                self._words.give_back(buffer.word)
            self._free.clear()

    def forget(self) -> None:
        """One is lost."""
        with self._lock:
            self._made -= 1
