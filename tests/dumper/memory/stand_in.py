"""A stand-in for the CUDA runtime: device memory is host memory, and what streams are given is done later, by a thread,
in any order that streams and events allow."""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import random
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from typing import Any

import torch

from dumper.memory.cuda_runtime import CudaRuntime, DeviceError
from tests.dumper.memory import ptx as ptx_on_the_host

POISON = 0xA5
_COPY = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_size_t, ctypes.c_size_t, ctypes.c_size_t, ctypes.c_int, ctypes.c_size_t)
_UNSIGNED, _ADDRESS = ctypes.c_uint, ctypes.c_size_t
_LAUNCH = ctypes.CFUNCTYPE(
    ctypes.c_int, _ADDRESS, *(_UNSIGNED,) * 7, _ADDRESS, ctypes.POINTER(ctypes.POINTER(ctypes.c_uint64)), _ADDRESS
)
_TELL = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_int))
_TELL_OF_STREAM = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_size_t, ctypes.POINTER(ctypes.c_int))
Kernel = Callable[[int, int, tuple[int, ...]], None]
"""Called with the programs, the threads of each and the arguments of a launch."""


class StandInRuntime(CudaRuntime):
    """``held`` keeps the device from doing anything; when ``dead``, every call fails, as after an illegal access."""

    def __init__(self, seed: int = 0) -> None:
        self._random = random.Random(seed)
        self._lock = threading.RLock()
        self._numbers = itertools.count(1)
        self._streams: dict[int, deque[tuple[str, Callable[[], None] | int, int]]] = {}
        self._recorded: dict[int, int] = {}
        """Event to the number of its last record."""
        self._reached: dict[int, int] = {}
        self.memory: dict[int, ctypes.Array[ctypes.c_char]] = {}
        self.pinned: dict[int, int] = {}
        """Address to bytes."""
        self.freed: list[int] = []
        self.waited_for: list[tuple[int, int]] = []
        """Streams and the events that they were told to wait for."""
        self.given: Counter[int] = Counter()
        """How much each stream was given to do."""
        self.keeps_memory = True
        """Whether the allocator waits for streams before it hands memory out again."""
        self.kept: set[torch.Tensor] = set()
        """Tensors whose memory it keeps."""
        self.queries = 0
        self.capturing: set[int] = set()
        """Streams that are being captured into a graph."""
        self.from_outside: set[int] = set()
        """Streams that may be destroyed."""
        self.on_question: Callable[[], object] | None = None
        """Called before ``is_capturing`` answers."""
        self.selected: int | None = None
        self.allowed_allocations = 1 << 30
        self.copies_of_compiled_code = 0
        self._compiled_copy = _COPY(self._copy_for_compiled_code)
        self.launches_of_compiled_code = 0
        self.loaded = 0
        """Kernels."""
        self.has_driver = True
        self.refuses_launches = False
        self._compiled_launch = _LAUNCH(self._launch_for_compiled_code)
        self.current_device = 0
        self.questions_of_compiled_code: Counter[str] = Counter()
        self._compiled_device = _TELL(self._device_for_compiled_code)
        self._compiled_capturing = _TELL_OF_STREAM(self._capturing_for_compiled_code)
        self._kernels: dict[int, tuple[int, Kernel]] = {}
        """Number of arguments, and what they do, by handle."""
        self.held = False
        self.dead = False
        self._ended = False
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()

    def end(self) -> None:
        self._ended = True
        self._thread.join()

    # What copies call

    @property
    def address_of_copy(self) -> int:
        return ctypes.cast(self._compiled_copy, ctypes.c_void_p).value or 0

    def _copy_for_compiled_code(self, to: int, source: int, nbytes: int, kind: int, stream: int) -> int:
        self.copies_of_compiled_code += 1
        try:
            self.copy(to, source, nbytes, kind, stream)
        except DeviceError:
            return 700
        return 0

    @property
    def address_of_current_device(self) -> int:
        return ctypes.cast(self._compiled_device, ctypes.c_void_p).value or 0

    def _device_for_compiled_code(self, out: Any) -> int:
        self.questions_of_compiled_code["device"] += 1
        out[0] = self.current_device
        return 700 if self.dead else 0

    @property
    def address_of_is_capturing(self) -> int:
        return ctypes.cast(self._compiled_capturing, ctypes.c_void_p).value or 0

    def _capturing_for_compiled_code(self, stream: int, out: Any) -> int:
        self.questions_of_compiled_code["capturing"] += 1
        out[0] = int(stream in self.capturing)
        return 700 if self.dead else 0

    @property
    def address_of_launch(self) -> int:
        return (ctypes.cast(self._compiled_launch, ctypes.c_void_p).value or 0) if self.has_driver else 0

    def _launch_for_compiled_code(
        self,
        function: int,
        x: int,
        y: int,
        z: int,
        threads: int,
        ty: int,
        tz: int,
        shared: int,
        stream: int,
        given: Any,
        _: int,
    ) -> int:
        assert (y, z, ty, tz) == (1, 1, 1, 1)
        if self.refuses_launches:
            return 201
        count, kernel = self._kernels[function]
        words = tuple(given[at][0] for at in range(count))
        try:
            self._give(stream, "do", lambda: kernel(x, threads, words))
        except DeviceError:
            return 700
        self.launches_of_compiled_code += 1
        return 0

    def load_kernel(self, device: int, ptx: str, kernel: str) -> int:
        with self._lock:
            self._check()
            self.loaded += 1
        return self.register(6, lambda *launch: ptx_on_the_host.run(ptx, *launch))

    def register(self, arguments: int, kernel: Kernel) -> int:
        """The handle of a kernel for ``address_of_launch``."""
        handle = next(self._numbers)
        self._kernels[handle] = arguments, kernel
        return handle

    def copy(self, to: int, source: int, nbytes: int, kind: int, stream: int) -> None:
        self._give(stream, "do", lambda: ctypes.memmove(to, source, nbytes) and None)

    def copy_rows(self, to: int, source: int, width: int, height: int, pitch: int, stream: int) -> None:
        def copy() -> None:
            for row in range(height):
                ctypes.memmove(to + row * width, source + row * pitch, width)

        self._give(stream, "do", copy)

    def fill(self, address: int, byte: int, nbytes: int, stream: int) -> None:
        # As the word that the host looks for.
        self._give(stream, "do", lambda: ctypes.memset(address, byte, nbytes) and None)

    def record(self, event: int, stream: int) -> None:
        with self._lock:
            number = self._recorded[event] = next(self._numbers)
            self._give(stream, "reach", event, number)

    def wait(self, stream: int, event: int) -> None:
        with self._lock:
            self.waited_for.append((stream, event))
            self._give(stream, "wait", event, self._recorded.get(event, 0))

    send = CudaRuntime._send_by_calls

    def check(self, stream: int) -> None:
        with self._lock:
            self.queries += 1
            self._check()

    def is_capturing(self, stream: int) -> bool:
        self._check()
        if self.on_question is not None:
            self.on_question()
        return stream in self.capturing

    def stays(self, device: int, stream: int) -> bool:
        return stream not in self.from_outside

    def let_go_behind(self, tensor: torch.Tensor, device: int, stream: int) -> bool:
        if not self.keeps_memory:
            return False
        self.kept.add(tensor)
        self._give(stream, "do", lambda: self.kept.discard(tensor))
        return True

    def make_event(self) -> int:
        return next(self._numbers)

    def make_stream(self) -> int:
        return next(self._numbers)

    def allocate(self, nbytes: int) -> int:
        with self._lock:
            self._check()
            if self.allowed_allocations <= 0:
                raise DeviceError("Malloc of the CUDA runtime failed with error 2")
            self.allowed_allocations -= 1
            return self._new(nbytes)

    def free(self, address: int) -> None:
        self.freed.append(address)

    def pin(self, nbytes: int) -> int:
        with self._lock:
            address = self._new(nbytes)
            self.pinned[address] = nbytes
            return address

    def unpin(self, address: int) -> None:
        with self._lock:
            del self.pinned[address], self.memory[address]

    @contextlib.contextmanager
    def device(self, number: int) -> Iterator[None]:
        yield

    def select(self, number: int) -> None:
        self.selected = number

    @contextlib.contextmanager
    def beside_captures(self) -> Iterator[None]:
        yield

    # What tests call

    def upload(self, content: bytes) -> int:
        """Memory of the device that holds these bytes."""
        address = self._new(max(1, len(content)))
        ctypes.memmove(address, content, len(content))
        return address

    def overwrite(self, value: torch.Tensor | int, content: bytes, stream: int) -> None:
        """What the model does next with a value, or with memory of the device, on its stream. The value's memory stays
        until that is done, as it does on a device."""

        def write() -> None:
            ctypes.memmove(value if isinstance(value, int) else value.data_ptr(), content, len(content))

        self._give(stream, "do", write)

    def is_reached(self, event: int) -> bool:
        """Whether what was given before the last record of an event is done."""
        with self._lock:
            return self._reached.get(event, 0) >= self._recorded.get(event, 0)

    # The device

    def _new(self, nbytes: int) -> int:
        memory = ctypes.create_string_buffer(bytes([POISON]) * nbytes, nbytes)
        address = ctypes.addressof(memory)
        self.memory[address] = memory
        return address

    def _check(self) -> None:
        if self.dead:
            raise DeviceError("EventQuery of the CUDA runtime failed with error 700")

    def _give(self, stream: int, kind: str, what: Callable[[], None] | int, number: int = 0) -> None:
        with self._lock:
            self._check()
            self.given[stream] += 1
            self._streams.setdefault(stream, deque()).append((kind, what, number))

    def _work(self) -> None:
        while not self._ended:
            with self._lock:
                done = not (self.held or self.dead) and self._do_one()
            if not done:
                time.sleep(0.0005)

    def _do_one(self) -> bool:
        waiting = [stream for stream, work in self._streams.items() if work]
        self._random.shuffle(waiting)
        for stream in waiting:
            kind, what, number = self._streams[stream][0]
            if kind == "wait" and self._reached.get(what, 0) < number:  # type: ignore[call-overload]
                continue
            self._streams[stream].popleft()
            if kind == "do":
                what()  # type: ignore[operator]
            elif kind == "reach":
                self._reached[what] = max(number, self._reached.get(what, 0))  # type: ignore[index,call-overload]
            return True
        return False
