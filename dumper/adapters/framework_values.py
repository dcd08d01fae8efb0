"""Values of a framework: those that a release, or this moment, may not have, and small tensors on a device."""

from __future__ import annotations

import contextlib
import importlib.metadata
import sys
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from dumper.adapters.protocol import PassSize, PendingLayout
from dumper.layout import TokenLayout

if TYPE_CHECKING:
    import torch

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


def layout_of(
    tensors: Mapping[str, Any], build: Callable[[dict[str, Array]], TokenLayout], size: PassSize | None = None
) -> TokenLayout | PendingLayout:
    """The layout that ``build`` makes of the values of ``tensors``, as flat int64 arrays by name, without those that
    are None: at once where all of them are on the host, and else a ``PendingLayout`` of a pass of ``size``.

    What is on a CUDA device while its stream is captured into a graph is left out. From a device of another kind the
    copy waits. Raises UnrecordableError for a tensor whose memory is not there, and what ``build`` raises.
    """
    arrays: dict[str, Array] = {}
    on_device: dict[str, torch.Tensor] = {}
    for name, tensor in tensors.items():
        if tensor is None:
            continue
        if not hasattr(tensor, "detach"):
            arrays[name] = np.array(tensor, dtype=np.int64).reshape(-1)
            continue
        from dumper.values.readable import readable, undisturbed

        with undisturbed():
            plain = readable(tensor)
            if plain.device.type != "cuda":
                arrays[name] = _flat(plain)
            elif not sys.modules["torch"].cuda.is_current_stream_capturing():
                on_device[name] = plain
    if not on_device:
        return build(arrays)
    return PendingLayout(on_device, lambda copied: build({**arrays, **copied}), size)


def _flat(tensor: Any) -> Array:
    array: Array = np.array(tensor.cpu().numpy(), dtype=np.int64, copy=True).reshape(-1)
    return array
