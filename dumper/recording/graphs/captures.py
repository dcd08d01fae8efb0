"""Which capture the work on the current stream goes into.

Several threads may capture at once, one capture may fork into several streams, and a backward pass is captured on a
thread of autograd's. The driver numbers captures; every stream that takes part in one has its number.
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable
from typing import Any

import torch

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
