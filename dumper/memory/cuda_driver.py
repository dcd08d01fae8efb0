"""The few functions of the CUDA driver that launches of compiled code need; see the "CUDA Driver API" reference."""

from __future__ import annotations

import ctypes

_POINTER = ctypes.c_void_p


class CudaDriver:
    """Modules and functions are the numbers that the driver gives."""

    def __init__(self, library: ctypes.CDLL) -> None:
        """Raises AttributeError for a library without these functions."""
        self._load, self._function = library.cuModuleLoadData, library.cuModuleGetFunction
        self._load.argtypes = [_POINTER, ctypes.c_char_p]
        self._function.argtypes = [_POINTER, _POINTER, ctypes.c_char_p]
        self.address_of_launch: int = ctypes.cast(library.cuLaunchKernel, _POINTER).value or 0
        """Of ``cuLaunchKernel``."""

    def load(self, ptx: str, kernel: str) -> int:
        """Have a kernel translated for the current device, and loaded there for as long as the process lives. Returns
        its handle. Raises RuntimeError."""
        module, function = ctypes.c_void_p(), ctypes.c_void_p()
        code = self._load(ctypes.byref(module), ptx.encode())
        if not code:
            code = self._function(ctypes.byref(function), module, kernel.encode())
        if code:
            raise RuntimeError(f"the CUDA driver cannot load the kernel {kernel}: error {code}")
        return function.value or 0


def loaded_driver() -> CudaDriver | None:
    """The driver that the CUDA runtime of this process uses; None where there is none to be found."""
    try:
        return CudaDriver(ctypes.CDLL("libcuda.so.1"))
    except (OSError, AttributeError):
        return None
