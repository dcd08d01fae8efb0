"""Page-locked host memory: the one kind that a device copies into while everybody goes on."""

from __future__ import annotations

import contextlib
import ctypes
import os
from collections.abc import Callable
from typing import TYPE_CHECKING

from dumper.memory.cuda_runtime import CudaRuntime

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt


class PinnedBuffer:
    """A piece of page-locked memory, given back when nobody has it any more.

    It is asked of the runtime itself: torch rounds each piece up to a power of two and keeps what was freed.
    """

    __slots__ = ("_process", "_runtime", "address", "array", "nbytes", "view")

    def __init__(self, runtime: CudaRuntime, nbytes: int) -> None:
        """Raises DeviceError when there is no memory."""
        import numpy as np

        self._runtime = runtime
        self._process = os.getpid()
        self.nbytes = nbytes
        self.address = runtime.pin(nbytes)
        self.array: npt.NDArray[np.uint8] = np.ctypeslib.as_array((ctypes.c_uint8 * nbytes).from_address(self.address))
        self.view = self.array.data.cast("B")

    def __del__(self) -> None:
        # In the child of a fork there is no device; nor has anything to give back who got nothing.
        if getattr(self, "address", 0) and os.getpid() == self._process:
            with contextlib.suppress(Exception):
                self._runtime.unpin(self.address)


def pinned_buffers(runtime: CudaRuntime) -> Callable[[int], PinnedBuffer]:
    """What makes such buffers, for a ``Shelf``."""
    return lambda nbytes: PinnedBuffer(runtime, nbytes)
