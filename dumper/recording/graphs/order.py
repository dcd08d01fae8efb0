"""A replay begins only when what the one before has left is read, on whichever stream and thread that was."""

from __future__ import annotations

import contextlib
from typing import Any

import torch

from dumper.memory.cuda_runtime import CudaRuntime


class ReadOrder:
    """The order of replays and reads on one device. To be used under a lock that is held from before a replay until its
    values are read: the device then does things in the order in which they are handed over here.

    Streams are given by their handles. Methods raise DeviceError.
    """

    def __init__(self, runtime: CudaRuntime, device: int) -> None:
        self._runtime = runtime
        self._device = device
        self._read: int | None = None
        """An event that is reached when what the last replay has left is read; recorded anew each time."""
        self._stream: int | None = None
        """On which it is recorded."""

    def before_replay(self, stream: int) -> None:
        """Have ``stream`` wait for the last read, where it does not come after it anyway."""
        if self._read is not None and self._stream != stream:
            with self._current(stream):
                self._runtime.wait(stream, self._read)

    def after_read(self, stream: int) -> None:
        """What the replay on ``stream`` has left is read, by work that has been handed to ``stream``."""
        if self._read is None:
            with self._runtime.device(self._device):
                self._read = self._runtime.make_event()
        with self._current(stream):
            self._runtime.record(self._read, stream)
        self._stream = stream

    def _current(self, stream: int) -> contextlib.AbstractContextManager[Any]:
        """The handle of a default stream, 0, means that of the current device."""
        if stream or torch._C._cuda_getDevice() == self._device:
            return contextlib.nullcontext()
        return self._runtime.device(self._device)
