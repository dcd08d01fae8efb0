"""Values of a framework: those that a release, or this moment, may not have, and small tensors on a device."""

from __future__ import annotations

import contextlib
import importlib.metadata
import sys
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.int64]


def quietly(read: Callable[[], Any]) -> Any:
    """What ``read`` returns, None when it raises."""
    try:
        return read()
    except Exception:
        return None


def installed_versions(*distributions: str) -> dict[str, str]:
    """Distribution name to version, of those that are installed."""
    found = {}
    for distribution in distributions:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[distribution] = importlib.metadata.version(distribution)
    return found


class HostCopies:
    """Copies of tensors as int64 arrays, started at once and complete after ``wait``.

    Tensors on the CPU are copied at once. From CUDA they go into pinned memory on the current stream, so they
    hold what the pass sees, and nothing waits. From any other device the copy waits.
    """

    def __init__(self, tensors: Mapping[str, Any]) -> None:
        """Raises UnrecordableError for a tensor whose memory is not there."""
        self._parts: dict[str, Callable[[], Array]] = {}
        self._event: Any = None
        for name, tensor in tensors.items():
            if tensor is not None:
                self._start(name, tensor)
        self.pending = self._event is not None

    def _start(self, name: str, tensor: Any) -> None:
        if not hasattr(tensor, "detach"):
            array = np.array(tensor, dtype=np.int64).reshape(-1)
            self._parts[name] = lambda: array
            return
        from dumper.values.readable import readable, undisturbed

        with undisturbed():
            self._start_tensor(name, readable(tensor))

    def _start_tensor(self, name: str, tensor: Any) -> None:
        if tensor.device.type == "cuda":
            torch = sys.modules["torch"]
            if torch.cuda.is_current_stream_capturing():
                return
            pinned = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
            pinned.copy_(tensor, non_blocking=True)
            self._event = self._event or torch.cuda.Event()
            self._event.record()
            self._parts[name] = lambda: _flat(pinned)
            return
        copy = _flat(tensor)
        self._parts[name] = lambda: copy

    def wait(self) -> dict[str, Array]:
        """Name to flat int64 array, of the tensors that were not None."""
        if self._event is not None:
            self._event.synchronize()
        return {name: part() for name, part in self._parts.items()}


def _flat(tensor: Any) -> Array:
    array: Array = np.array(tensor.cpu().numpy(), dtype=np.int64, copy=True).reshape(-1)
    return array
