"""A stand-in for torch's exchange functions, which tell of tensors in one call (the C exchange API of DLPack): of those
that say they are on a device, as torch would of tensors that are."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

import torch

NAME = b"dlpack_exchange_api"
CUDA = 2
"""``kDLCUDA``."""
_DESCRIBE = ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.py_object, ctypes.c_void_p)
_STREAM = ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.c_int, ctypes.c_int32, ctypes.POINTER(ctypes.c_void_p))
_new, _get = ctypes.pythonapi.PyCapsule_New, ctypes.pythonapi.PyCapsule_GetPointer
_new.restype, _new.argtypes = ctypes.py_object, [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p]
_get.restype, _get.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]


class _Exchange(ctypes.Structure):
    _fields_ = (
        ("version", ctypes.c_uint32 * 2),
        ("before", ctypes.c_void_p * 4),
        ("describe", ctypes.c_void_p),
        ("current_stream", ctypes.c_void_p),
    )


class _Described(ctypes.Structure):
    _fields_ = (("data", ctypes.c_void_p), ("device_type", ctypes.c_int32), ("device", ctypes.c_int32))


class StandInExchange:
    """``capsule`` is to take the place of torch's; None where torch has none."""

    def __init__(self, tensor_of: Callable[[Any], torch.Tensor | None], stream: int | None = None) -> None:
        """``tensor_of``: the tensor that stands for one on device 0; None for one on the host. ``stream``: the current
        one of that device; None where the function for it fails."""
        self.capsule: Any = None
        self.told_stream = 0
        """How often the stream was told of."""
        self.on_device = 0
        """How often one on a device was told of."""
        found = getattr(torch.Tensor, "__dlpack_c_exchange_api__", None)
        if found is None:
            return
        theirs = _Exchange.from_address(_get(found, NAME))
        describe = _DESCRIBE(theirs.describe)

        def told(value: Any, out: int) -> int:
            tensor = tensor_of(value)
            code = describe(value if tensor is None else tensor, out)
            if tensor is not None and not code:
                self.on_device += 1
                described = _Described.from_address(out)
                described.device_type, described.device = CUDA, 0
            return int(code)

        def tell_stream(kind: int, device: int, out: Any) -> int:
            assert (kind, device) == (CUDA, 0)
            if stream is None:
                return -1
            self.told_stream += 1
            out[0] = stream
            return 0

        self._functions = _DESCRIBE(told), _STREAM(tell_stream)
        describe_at, stream_at = (ctypes.cast(one, ctypes.c_void_p).value for one in self._functions)
        self._ours = _Exchange(theirs.version, theirs.before, describe_at, stream_at)
        self.capsule = _new(ctypes.addressof(self._ours), NAME, None)
