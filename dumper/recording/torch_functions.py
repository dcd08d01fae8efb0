"""Functions of torch and of the CUDA runtime by their addresses.

The compiled shortcut calls them in place of methods and functions of Python that say the same. Where one cannot be
found, or does not say the same when it is tried, its address is 0, and Python is asked.
"""

from __future__ import annotations

import contextlib
import ctypes
import sys
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    import torch

    from dumper.memory.device_staging import DeviceStager

_GRAPH_TASK = "_ZN5torch8autograd25get_current_graph_task_idEv"
"""``int torch::autograd::get_current_graph_task_id()``: -1 outside of backward passes."""
_STORAGE_SIZE, _STORAGE_OFFSET = "aoti_torch_get_storage_size", "aoti_torch_get_storage_offset"
"""Of torch's C interface (torch/csrc/inductor/aoti_torch/c/shim.h): of ``at::Tensor *``, in bytes and in elements."""
_POINTER = ctypes.sizeof(ctypes.c_void_p)
_PLACES = (2 * _POINTER, 3 * _POINTER)
"""Bytes from the start of an object of Python where torch's releases have its ``at::Tensor``: behind the head of the
object, and in some behind a word that says whether it is borrowed."""


class Functions(NamedTuple):
    """As ``_functions.h`` of the shortcut reads them."""

    graph_task: int = 0
    storage_size: int = 0
    storage_offset: int = 0
    tensor_at: int = 0
    """Bytes; 0 where it is not known, which rules the two above out."""
    current_device: int = 0
    is_capturing: int = 0


def find_functions(types: Collection[type], device: DeviceStager | None) -> Functions:
    """``types``: of the tensors that the shortcut takes; ``device``: where those of CUDA devices go."""
    found = Functions()
    if device is not None:
        found = found._replace(
            current_device=device.address_of_current_device, is_capturing=device.address_of_is_capturing
        )
    torch: Any = sys.modules.get("torch")
    if torch is None or sys.implementation.name != "cpython":
        return found
    with contextlib.suppress(OSError, AttributeError, RuntimeError, TypeError, ValueError):
        library = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"))
        found = found._replace(graph_task=_graph_task(torch, library))
        samples = [torch.empty(12, device="cpu"), torch.nn.Parameter(torch.empty(12, device="cpu"), False)]
        if {type(sample) for sample in samples} == set(types):
            found = found._replace(**_storage(library, [*samples, *(sample.detach()[5:] for sample in samples)]))
    return found


def _graph_task(torch: Any, library: ctypes.CDLL) -> int:
    function = library[_GRAPH_TASK]
    return _address(function) if function() == torch._C._current_graph_task_id() else 0


def _storage(library: ctypes.CDLL, samples: list[torch.Tensor]) -> dict[str, int]:
    """Tried on ``samples``: with the wrong place the functions would read anything."""
    size, offset = library[_STORAGE_SIZE], library[_STORAGE_OFFSET]
    for place in _PLACES:
        if not all(_word(id(sample) + place) == sample._cdata for sample in samples):
            continue
        for sample in samples:
            told = [ctypes.c_int64(-1), ctypes.c_int64(-1)]
            for function, number in zip((size, offset), told, strict=True):
                if function(ctypes.c_void_p(id(sample) + place), ctypes.byref(number)):
                    return {}
            if [number.value for number in told] != [sample.untyped_storage().nbytes(), sample.storage_offset()]:
                return {}
        return {"storage_size": _address(size), "storage_offset": _address(offset), "tensor_at": place}
    return {}


def _word(address: int) -> int:
    return ctypes.c_void_p.from_address(address).value or 0


def _address(function: Any) -> int:
    return ctypes.cast(function, ctypes.c_void_p).value or 0
