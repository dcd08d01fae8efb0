"""The streams of captures and replays.

A replay begins only when what the one before has left is read, on whichever stream and thread that was. Several threads
may capture at once, one capture may fork into several streams, and a backward pass is captured on a thread of
autograd's. The driver numbers captures; every stream that takes part in one has its number.
"""

from __future__ import annotations

import contextlib
import ctypes
import threading
from collections.abc import Callable
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


_ACTIVE = 1
"""``CU_STREAM_CAPTURE_STATUS_ACTIVE``."""


def capture_number() -> int:
    """The number of the capture that the current stream takes part in, unique in the process.

    Where the driver cannot be asked, the number of the thread: then a capture has to stay on one.
    """
    if _asked_driver is not None:
        number = _asked_driver()
        if number is not None:
            return number
    return -threading.get_ident()


def _driver() -> Callable[[], int | None] | None:
    """How to ask the driver; see ``cuStreamGetCaptureInfo`` in its documentation. None where it is not there."""
    library, name = ("libamdhip64.so", "hipStreamGetCaptureInfo") if torch.version.hip else ("libcuda.so.1", None)
    try:
        driver: Any = ctypes.CDLL(library)
        # The second form has three more outputs, which may be null, and is there in every release since 11.3.
        function, more = (getattr(driver, name), ()) if name else (driver.cuStreamGetCaptureInfo_v2, (None, None, None))
        current_stream: Callable[[int], int] = torch._C._cuda_getCurrentRawStream
        current_device: Callable[[], int] = torch._C._cuda_getDevice
    except (OSError, AttributeError):
        return None

    def ask() -> int | None:
        status, number = ctypes.c_int(0), ctypes.c_ulonglong(0)
        stream = ctypes.c_void_p(current_stream(current_device()))
        failed = function(stream, ctypes.byref(status), ctypes.byref(number), *more)
        return number.value if not failed and status.value == _ACTIVE else None

    return ask


_asked_driver = _driver()
