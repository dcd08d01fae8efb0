"""How kernels are loaded, with a stand-in for the libraries: in which order, and what of an error."""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from dumper.memory import cuda_runtime
from dumper.memory.cuda_driver import CudaDriver
from dumper.memory.cuda_runtime import CudaRuntime

FUNCTION = 4096


class Libraries:
    """Of the runtime and of the driver; notes what is called."""

    def __init__(self) -> None:
        self.called: list[str] = []
        self.code = self.mode = 0
        self._kept: list[Any] = []

    def function(self, name: str, does: Any = None) -> Any:
        def call(*arguments: int) -> int:
            self.called.append(name)
            return does(*arguments) if does is not None else 0

        made = ctypes.CFUNCTYPE(ctypes.c_int, *(ctypes.c_void_p,) * (3 if name == "cuModuleGetFunction" else 2))(call)
        self._kept.append(made)
        return made

    def __getitem__(self, name: str) -> Any:
        return self.function(name, self._exchange if name.endswith("CaptureMode") else None)

    def _exchange(self, mode: int, _: int) -> int:
        given = ctypes.c_int.from_address(mode)
        self.called[-1] = f"mode {given.value}"
        given.value, self.mode = self.mode, given.value
        return 0

    def driver(self) -> CudaDriver:
        def get(out: int, module: int, name: int) -> int:
            assert ctypes.string_at(name) == b"kernel"
            ctypes.c_void_p.from_address(out).value = FUNCTION
            return self.code

        def load(out: int, text: int) -> int:
            assert ctypes.string_at(text) == b".version 7.0"
            return 0

        class Library:
            cuModuleLoadData = self.function("cuModuleLoadData", load)
            cuModuleGetFunction = self.function("cuModuleGetFunction", get)
            cuLaunchKernel = self.function("cuLaunchKernel")

        return CudaDriver(Library())  # type: ignore[arg-type]


@pytest.fixture
def libraries(monkeypatch: pytest.MonkeyPatch) -> Libraries:
    made = Libraries()

    @contextlib.contextmanager
    def device(number: int) -> Iterator[None]:
        made.called.append(f"device {number}")
        yield
        made.called.append("device before")

    monkeypatch.setattr(torch.cuda, "device", device)
    return made


def test_a_kernel_is_loaded_beside_captures_on_its_device(libraries: Libraries) -> None:
    driver = libraries.driver()
    runtime = CudaRuntime(libraries, driver=driver)  # type: ignore[arg-type]
    assert runtime.load_kernel(3, ".version 7.0", "kernel") == FUNCTION
    assert runtime.address_of_launch == driver.address_of_launch != 0
    relaxed = "mode 2"
    assert libraries.called == [
        relaxed,
        "device 3",
        *(relaxed, "cudaFree", relaxed),
        "cuModuleLoadData",
        "cuModuleGetFunction",
        "device before",
        "mode 0",
    ]


def test_a_kernel_that_the_driver_does_not_take(libraries: Libraries) -> None:
    runtime = CudaRuntime(libraries, driver=libraries.driver())  # type: ignore[arg-type]
    libraries.code = 500
    with pytest.raises(RuntimeError, match="cannot load the kernel kernel: error 500"):
        runtime.load_kernel(0, ".version 7.0", "kernel")
    # Captures of other threads are what they were before.
    assert libraries.called[-1] == "mode 0"


def test_the_driver_is_looked_for_where_direct_launches_are_wanted(
    libraries: Libraries, monkeypatch: pytest.MonkeyPatch
) -> None:
    found, driver = [], libraries.driver()
    monkeypatch.setattr(cuda_runtime.Path, "read_text", lambda self: "7f00 /lib/libcudart.so.12")
    monkeypatch.setattr(ctypes, "CDLL", lambda path: libraries)
    monkeypatch.setattr(cuda_runtime, "loaded_driver", lambda: (found.append(1), driver)[1])
    runtime = cuda_runtime.loaded_runtime()
    assert runtime is not None
    assert (runtime.address_of_launch, found) == (0, [])
    runtime = cuda_runtime.loaded_runtime(with_driver=True)
    assert runtime is not None
    assert (runtime.address_of_launch, found) == (driver.address_of_launch, [1])


def test_without_a_driver(libraries: Libraries) -> None:
    runtime = CudaRuntime(libraries)  # type: ignore[arg-type]
    assert runtime.address_of_launch == 0
    with pytest.raises(RuntimeError, match="driver was not found"):
        runtime.load_kernel(0, ".version 7.0", "kernel")
    assert not libraries.called
