"""The few functions of the CUDA runtime that copies need, called by their C names.

torch's own ways to them cost the model's thread several times as much (contexts, new events, views), allocate from
torch's caches, whose bookkeeping may not run while another thread captures a CUDA graph, and take memory from whichever
pool is in force. See the "CUDA Runtime API" reference of the toolkit for each function. On ROCm the functions have the
same meaning under the prefix ``hip``; that has not been run.
"""

from __future__ import annotations

import contextlib
import ctypes
import re
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from dumper.memory import sending
from dumper.memory.cuda_driver import CudaDriver, loaded_driver

if TYPE_CHECKING:
    import torch

ON_DEVICE = 3
"""``cudaMemcpyDeviceToDevice``."""
TO_HOST = 2
"""``cudaMemcpyDeviceToHost``."""
LARGEST_PITCH = (1 << 31) - 1
"""``memPitch`` of ``cudaDeviceProp``, of all devices there are."""
WORD = 8
"""Bytes that tell the host that others have arrived."""
_RELAXED = 2
"""``cudaStreamCaptureModeRelaxed``: calls of this thread invalidate no capture of another one."""
_NON_BLOCKING = 1
"""``cudaStreamNonBlocking``: the stream does not wait for the legacy default stream."""
_NO_TIMING = 2
"""``cudaEventDisableTiming``."""
_PORTABLE = 1
"""``cudaHostAllocPortable``: pinned for every device."""
_NOT_READY = 600
"""``cudaErrorNotReady``."""
_IMPLICIT = 906
"""``cudaErrorStreamCaptureImplicit``: the legacy default stream, while one is captured that it would wait for."""

_KNOW_STREAMS = frozenset({"native", "cudaMallocAsync"})
"""torch's own allocators. One that is plugged in may do nothing on ``record_stream``."""

_POINTER, _SIZE, _INT = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int
_SIGNATURES = {
    "MemcpyAsync": (_POINTER, _POINTER, _SIZE, _INT, _POINTER),
    "Memcpy2DAsync": (_POINTER, _SIZE, _POINTER, _SIZE, _SIZE, _SIZE, _INT, _POINTER),
    "MemsetAsync": (_POINTER, _INT, _SIZE, _POINTER),
    "EventRecord": (_POINTER, _POINTER),
    "StreamWaitEvent": (_POINTER, _POINTER, ctypes.c_uint),
    "StreamQuery": (_POINTER,),
    "StreamIsCapturing": (_POINTER, _POINTER),
    "EventCreateWithFlags": (_POINTER, ctypes.c_uint),
    "StreamCreateWithFlags": (_POINTER, ctypes.c_uint),
    "Malloc": (_POINTER, _SIZE),
    "Free": (_POINTER,),
    "HostAlloc": (_POINTER, _SIZE, ctypes.c_uint),
    "FreeHost": (_POINTER,),
    "GetDevice": (_POINTER,),
    "SetDevice": (_INT,),
    "GetLastError": (),
    "ThreadExchangeStreamCaptureMode": (_POINTER,),
}
_HIP_NAMES = {"HostAlloc": "HostMalloc", "FreeHost": "HostFree"}


class DeviceError(RuntimeError):
    """A call of the runtime failed; the message has its name and the code."""


class CudaRuntime:
    """Streams, events and addresses are the numbers that the runtime gives."""

    def __init__(self, library: ctypes.CDLL, prefix: str = "cuda", driver: CudaDriver | None = None) -> None:
        """Raises AttributeError for a library without these functions."""
        self._driver = driver
        self._selected = threading.local()
        self._wrapped: dict[int, torch.cuda.Stream] = {}
        """Our own streams by handle, as torch wants them."""
        self._calls: dict[str, Callable[..., int]] = {}
        for name, signature in _SIGNATURES.items():
            function = library[prefix + (_HIP_NAMES.get(name, name) if prefix == "hip" else name)]
            function.argtypes = list(signature)
            function.restype = ctypes.c_int
            self._calls[name] = function
        self._copy = self._calls["MemcpyAsync"]
        self._record = self._calls["EventRecord"]
        self._for_sending = tuple(self._address(name) for name in sending.FUNCTIONS)

    @property
    def address_of_copy(self) -> int:
        """Of ``MemcpyAsync``, for compiled code."""
        return self._address("MemcpyAsync")

    @property
    def address_of_current_device(self) -> int:
        """Of ``GetDevice``, for compiled code."""
        return self._address("GetDevice")

    @property
    def address_of_is_capturing(self) -> int:
        """Of ``StreamIsCapturing``, for compiled code."""
        return self._address("StreamIsCapturing")

    @property
    def address_of_launch(self) -> int:
        """Of the driver's function that launches a kernel, for compiled code; 0 where there is none."""
        return 0 if self._driver is None else self._driver.address_of_launch

    def load_kernel(self, device: int, ptx: str, kernel: str) -> int:
        """The handle of a kernel, loaded on a device. Raises RuntimeError."""
        if self._driver is None:
            raise RuntimeError("the CUDA driver was not found")
        with self.device(device):
            self.free(0)  # has a thread that has not used the device take it up
            return self._driver.load(ptx, kernel)

    def copy(self, to: int, source: int, nbytes: int, kind: int, stream: int) -> None:
        """Copy in the order of ``stream``; returns before it is done. Raises DeviceError."""
        code = self._copy(to, source, nbytes, kind, stream)
        if code:
            raise self._error("MemcpyAsync", code)

    def copy_rows(self, to: int, source: int, width: int, height: int, pitch: int, stream: int) -> None:
        """Copy rows of ``width`` bytes that begin ``pitch`` bytes from each other, to rows one behind the other, within
        the device. ``pitch`` is at most ``LARGEST_PITCH``. Raises DeviceError."""
        self._call("Memcpy2DAsync", to, width, source, pitch, width, height, ON_DEVICE, stream)

    def record(self, event: int, stream: int) -> None:
        """Have ``event`` reached when what ``stream`` has been given so far is done. Raises DeviceError."""
        code = self._record(event, stream)
        if code:
            raise self._error("EventRecord", code)

    def fill(self, address: int, byte: int, nbytes: int, stream: int) -> None:
        """Set memory of the device in the order of ``stream``. Raises DeviceError."""
        self._call("MemsetAsync", address, byte, nbytes, stream)

    def wait(self, stream: int, event: int) -> None:
        """Have ``stream`` wait for the last record of ``event``; the host goes on. Raises DeviceError."""
        self._call("StreamWaitEvent", stream, event, 0)

    def send(
        self, own: int, event: int, stream: int | None, host: int, device: int, nbytes: int, word: int, one: int
    ) -> bool:
        """Have ``own``, a stream of ours, copy bytes to the host behind what ``stream`` has been given so far, and
        behind them 8 bytes from ``one`` to ``word``. ``stream`` None: behind the last record of ``event``, which is
        used otherwise. False, with nothing copied, while ``stream`` is being captured. Raises DeviceError."""
        if sending.send is None:
            return self._send_by_calls(own, event, stream, host, device, nbytes, word, one)
        found, code = sending.send(self._for_sending, own, event, stream, host, device, nbytes, word, one)
        if found == sending.CAPTURED:
            return False
        if found:
            name = sending.FUNCTIONS[found - sending.CAPTURED - 1]
            error = self._error(name, code)
            if name == "StreamIsCapturing" and code == _IMPLICIT:
                return False
            raise error
        return True

    def _send_by_calls(
        self, own: int, event: int, stream: int | None, host: int, device: int, nbytes: int, word: int, one: int
    ) -> bool:
        if stream is not None:
            if self.is_capturing(stream):
                return False
            self.record(event, stream)
            # An event of a capture that has just begun would draw our stream into it.
            if self.is_capturing(stream):
                return False
        self.wait(own, event)
        self.copy(host, device, nbytes, TO_HOST, own)
        self.copy(word, one, WORD, TO_HOST, own)
        return True

    def check(self, stream: int) -> None:
        """Raises DeviceError when the device has failed. ``stream`` is one of our own."""
        with self.beside_captures():
            code = self._calls["StreamQuery"](stream)
        if code == _NOT_READY:
            self._calls["GetLastError"]()
        elif code:
            raise self._error("StreamQuery", code)

    def is_capturing(self, stream: int) -> bool:
        """Whether what a stream is given becomes part of a graph. Raises DeviceError."""
        status = ctypes.c_int()
        code = self._calls["StreamIsCapturing"](stream, ctypes.byref(status))
        if code == _IMPLICIT:
            self._calls["GetLastError"]()
        elif code:
            raise self._error("StreamIsCapturing", code)
        return code == _IMPLICIT or status.value != 0

    def stays(self, device: int, stream: int) -> bool:
        """Whether the current stream of a device will always be there. Those that somebody else has made may be
        destroyed at any time; torch keeps its own."""
        import torch

        # A stream from outside has its handle for a number.
        return not stream or torch.cuda.current_stream(device).stream_id != stream

    def let_go_behind(self, tensor: torch.Tensor, device: int, stream: int) -> bool:
        """Have torch keep the memory of a tensor until ``stream``, one of our own, has done what it was given so far;
        when torch is short of memory it waits for that. False where it cannot: then keep the tensor."""
        import torch

        if torch.cuda.get_allocator_backend() not in _KNOW_STREAMS:
            return False
        if stream not in self._wrapped:
            self._wrapped[stream] = torch.cuda.ExternalStream(stream, device=device)  # type: ignore[no-untyped-call]
        tensor.record_stream(self._wrapped[stream])
        return True

    def make_event(self) -> int:
        """An event of the current device. Raises DeviceError."""
        return self._make("EventCreateWithFlags", _NO_TIMING)

    def make_stream(self) -> int:
        """A stream of the current device. Raises DeviceError."""
        return self._make("StreamCreateWithFlags", _NON_BLOCKING)

    def allocate(self, nbytes: int) -> int:
        """Memory of the current device. Raises DeviceError, when there is none left too."""
        return self._make("Malloc", nbytes)

    def free(self, address: int) -> None:
        """Give memory of a device back."""
        with self.beside_captures():
            self._calls["Free"](address)

    def pin(self, nbytes: int) -> int:
        """Page-locked host memory, of exactly this size. Raises DeviceError."""
        return self._make("HostAlloc", nbytes, _PORTABLE)

    def unpin(self, address: int) -> None:
        """Give page-locked memory back."""
        with self.beside_captures():
            self._calls["FreeHost"](address)

    @contextlib.contextmanager
    def device(self, number: int) -> Iterator[None]:
        """A block in which a device is this thread's current one, and no capture is invalidated. For threads of the
        model."""
        import torch

        # Goes back without making a context on a device that this process does not use.
        with self.beside_captures(), torch.cuda.device(number):
            yield

    def select(self, number: int) -> None:
        """Make a device the current one of this thread for good, and have the thread invalidate no capture. For the
        writer's thread, whose first call would make a context on device 0 otherwise."""
        if getattr(self._selected, "device", None) != number:
            self._calls["ThreadExchangeStreamCaptureMode"](ctypes.byref(ctypes.c_int(_RELAXED)))
            self._call("SetDevice", number)
            self._selected.device = number

    @contextlib.contextmanager
    def beside_captures(self) -> Iterator[None]:
        """A block in which what this thread does invalidates no capture that another thread makes in global mode."""
        exchange = self._calls["ThreadExchangeStreamCaptureMode"]
        mode = ctypes.c_int(_RELAXED)
        exchange(ctypes.byref(mode))
        try:
            yield
        finally:
            exchange(ctypes.byref(mode))

    def _address(self, name: str) -> int:
        return ctypes.cast(self._calls[name], ctypes.c_void_p).value or 0  # type: ignore[arg-type]

    def _make(self, name: str, *arguments: int) -> int:
        made = ctypes.c_void_p()
        with self.beside_captures():
            self._call(name, ctypes.byref(made), *arguments)
        return made.value or 0

    def _call(self, name: str, *arguments: object) -> None:
        code = self._calls[name](*arguments)
        if code:
            raise self._error(name, code)

    def _error(self, name: str, code: int) -> DeviceError:
        # The runtime would hand an error that was not asked for to whoever asks next: the model.
        self._calls["GetLastError"]()
        return DeviceError(f"{name} of the CUDA runtime failed with error {code}")


def loaded_runtime(with_driver: bool = False) -> CudaRuntime | None:
    """The runtime library that torch has loaded into this process, with what launches kernels directly if that is
    wanted; None where there is none to be found."""
    try:
        maps = Path("/proc/self/maps").read_text()
    except OSError:
        return None
    for pattern, prefix in (
        (r"/\S*/libcudart[-.\w]*\.so[.\d]*", "cuda"),
        (r"/\S*/libamdhip64[-.\w]*\.so[.\d]*", "hip"),
    ):
        for path in sorted(set(re.findall(pattern, maps))):
            try:
                return CudaRuntime(
                    ctypes.CDLL(path), prefix, loaded_driver() if with_driver and prefix == "cuda" else None
                )
            except (OSError, AttributeError):
                continue
    return None
