"""Small values of a CUDA device: copied within the device into slabs, which go to the host as a whole.

A tap costs the model's thread one copy within the device and the record of an event, both by the handle of the stream
that the value was computed on. When a slab is full, or the writer wants what is in it, the slab is transferred on a
stream of our own; the model's stream waits for nothing. Behind the bytes of a slab comes a word into pinned memory: the
writer looks at that word, and so asks CUDA nothing while another thread may be capturing a graph.

The event is recorded for every value, since nobody but the model's thread can tell whether the model's stream is being
captured just now: whoever transfers a slab only waits for an event.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections import deque
from collections.abc import Callable

from dumper.memory.cuda_runtime import ON_DEVICE, TO_HOST, CudaRuntime, DeviceError
from dumper.memory.pinned import PinnedArena, PinnedBuffer, PinnedPiece

SLAB_BYTES = 8 << 20
"""A transfer of so much reaches four fifths of the bus's rate."""
LARGEST_VALUE = 1 << 20
"""Bytes; larger values go to the host by themselves."""
MOST_SLABS = 16
"""On one device for one stream; when all are on their way the model waits for the bus."""
ALIGNMENT = 256
"""Bytes; where values begin, so that copies and kernels move them in wide pieces."""
ASKED_AFTER = 5.0
"""Seconds without an answer, after which the device is asked whether it is still alive."""
_SHORTEST_SLEEP = 5e-5
_LONGEST_SLEEP = 2e-3
_WORD = 8
_WORDS = 4096
"""Words of a device, one for each slab and each large value on its way."""


class Words:
    """Words in pinned memory that a device sets when what was asked of it before is done."""

    def __init__(self, runtime: CudaRuntime, device: int) -> None:
        """Raises DeviceError."""
        self._runtime = runtime
        self._host = PinnedPiece(runtime, _WORDS * _WORD)
        self._host.array[:] = 0
        self._values = self._host.view.cast("Q")
        self._free = list(range(_WORDS))
        with runtime.device(device):
            self._one = runtime.allocate(_WORD)
            self.stream = runtime.make_stream()
            """Of our own: transfers of all streams of the device."""
        runtime.fill(self._one, 1, _WORD, self.stream)

    def take(self) -> int:
        """A word that is not set, to be given back. Raises DeviceError when there is none."""
        try:
            return self._free.pop()
        except IndexError:
            raise DeviceError("too many values are on their way from the device") from None

    def give_back(self, word: int) -> None:
        """A word that nobody looks at any more, and that the device has set."""
        self._free.append(word)

    def clear(self, word: int) -> None:
        """Before it is asked for."""
        self._values[word] = 0

    def ask_for(self, word: int) -> None:
        """Have the device set it when what the stream was given before is done. Raises DeviceError."""
        self._runtime.copy(self._host.address + word * _WORD, self._one, _WORD, TO_HOST, self.stream)

    def is_set(self, word: int) -> bool:
        """Whether the device has come that far."""
        return self._values[word] != 0

    def wait(self, word: int, done: int, settled: Callable[[], bool] = lambda: False) -> None:
        """Return when the word is set, or ``settled()`` says that somebody else has seen it set. ``done``: an event
        recorded at the same place, asked after a long silence.

        Raises DeviceError when the device has failed.
        """
        values, pause = self._values, _SHORTEST_SLEEP
        silent_since = time.monotonic()
        while not values[word] and not settled():
            time.sleep(pause)
            pause = min(2 * pause, _LONGEST_SLEEP)
            if time.monotonic() - silent_since > ASKED_AFTER:
                self._runtime.is_reached(done)
                silent_since = time.monotonic()


class _DeviceBuffer:
    """The part of a slab that is on the device; used again as soon as it has been transferred."""

    __slots__ = ("_process", "_runtime", "address", "done", "filled", "slab", "word")

    def __init__(self, runtime: CudaRuntime, device: int, words: Words) -> None:
        self._runtime = runtime
        self._process = os.getpid()
        with runtime.device(device):
            self.filled = runtime.make_event()
            self.done = runtime.make_event()
            self.address = runtime.allocate(SLAB_BYTES)
        self.word = words.take()
        self.slab: DeviceSlab | None = None
        """What it holds, until that is on the host."""

    def __del__(self) -> None:
        # To free memory waits for what the device still does with it. In the child of a fork there is no device.
        if getattr(self, "address", 0) and os.getpid() == self._process:
            with contextlib.suppress(Exception):
                self._runtime.free(self.address)


class DeviceSlab:
    """A slab whose bytes are on a device first. For the writer it is like ``Slab``."""

    __slots__ = ("_device", "_failure", "_lane", "host", "released", "retired", "taken", "used")

    def __init__(self, lane: Lane, device: _DeviceBuffer) -> None:
        self._lane = lane
        self._device: _DeviceBuffer | None = device
        self._failure: Exception | None = None
        self.host: PinnedBuffer | None = None
        """Where it is transferred to, as large as what it holds."""
        self.used = 0
        """Bytes."""
        self.taken = 0
        """Values that were put into it."""
        self.released = 0
        """Values that are written."""
        self.retired = False
        """Whether no more will be put into it; it has been transferred, or is on its way."""

    @property
    def view(self) -> memoryview:
        """The bytes on the host; transfers the slab and waits for it where that is needed. For the writer's thread.

        Raises DeviceError when they will not arrive.
        """
        if self._device is not None:
            self._lane.fetch(self)
        if self._failure is not None:
            raise self._failure
        assert self.host is not None
        return self.host.view

    def release(self, values: int) -> None:
        """So many values are written."""
        self._lane.release(self, values)

    def arrived(self) -> None:
        """The bytes are on the host."""
        self._device = None

    def failed(self, failure: Exception) -> None:
        """The bytes will not come."""
        self._failure, self._device = failure, None

    @property
    def device(self) -> _DeviceBuffer | None:
        """None once the bytes are on the host, or lost."""
        return self._device

    @property
    def has_arrived(self) -> bool:
        """Whether the bytes are on the host."""
        return self._device is None and self._failure is None


class SlabPiece:
    """One value in a slab, as something staged."""

    __slots__ = ("_offset", "_slab", "nbytes")

    def __init__(self, slab: DeviceSlab, offset: int, nbytes: int) -> None:
        self._slab = slab
        self._offset = offset
        self.nbytes = nbytes

    def wait(self) -> memoryview:
        """The bytes; blocks until they are there."""
        return self._slab.view[self._offset : self._offset + self.nbytes]

    def release(self) -> None:
        """The bytes are not needed any more."""
        self._slab.release(1)


class Lane:
    """The slabs of one stream: one that is being filled, and those on their way."""

    def __init__(self, runtime: CudaRuntime, device: int, stream: int, words: Words, arena: PinnedArena) -> None:
        self._runtime = runtime
        self._device = device
        self._stream = stream
        self._words = words
        self._arena = arena
        self._lock = threading.Lock()
        self._slab: DeviceSlab | None = None
        self._filling: _DeviceBuffer | None = None
        """Of that slab."""
        self._on_their_way: deque[_DeviceBuffer] = deque()
        self._free: list[_DeviceBuffer] = []
        self._buffers = 0

    def copy(self, source: int, nbytes: int) -> tuple[DeviceSlab, int]:
        """Copy ``nbytes`` bytes (at most ``LARGEST_VALUE``) at an address of the device, as they are when the stream
        comes to it. Returns the slab and the offset in it. Raises DeviceError."""
        runtime = self._runtime
        with self._lock:
            slab, buffer, offset = self._room_for(nbytes)
            if nbytes:
                runtime.copy(buffer.address + offset, source, nbytes, ON_DEVICE, self._stream)
            runtime.record(buffer.filled, self._stream)
            slab.taken += 1
            slab.used = (offset + nbytes + ALIGNMENT - 1) & -ALIGNMENT
        return slab, offset

    def fill(self, nbytes: int, write: Callable[[int], None]) -> tuple[DeviceSlab, int]:
        """What ``copy`` does, for bytes that ``write(address)`` has the stream put there, a kernel for example."""
        with self._lock:
            slab, buffer, offset = self._room_for(nbytes)
            write(buffer.address + offset)
            self._runtime.record(buffer.filled, self._stream)
            slab.taken += 1
            slab.used = (offset + nbytes + ALIGNMENT - 1) & -ALIGNMENT
        return slab, offset

    def _room_for(self, nbytes: int) -> tuple[DeviceSlab, _DeviceBuffer, int]:
        slab, buffer = self._slab, self._filling
        if slab is None or buffer is None or slab.used + nbytes > SLAB_BYTES:
            self._send()
            slab, buffer = self._begin()
        return slab, buffer, slab.used

    def _begin(self) -> tuple[DeviceSlab, _DeviceBuffer]:
        buffer = self._device_buffer()
        slab = DeviceSlab(self, buffer)
        buffer.slab = slab
        self._slab, self._filling = slab, buffer
        return slab, buffer

    def _device_buffer(self) -> _DeviceBuffer:
        self._collect()
        if self._free:
            return self._free.pop()
        if self._buffers < MOST_SLABS:
            try:
                made = _DeviceBuffer(self._runtime, self._device, self._words)
            except DeviceError:
                # The device has no memory left: those that are there must do.
                if not self._on_their_way:
                    raise
            else:
                self._buffers += 1
                return made
        oldest = self._on_their_way[0]
        self._words.wait(oldest.word, oldest.done)
        self._collect()
        return self._free.pop()

    def _collect(self) -> None:
        """Take back the buffers whose bytes have arrived."""
        on_their_way, words = self._on_their_way, self._words
        while on_their_way and words.is_set(on_their_way[0].word):
            buffer = on_their_way.popleft()
            if buffer.slab is not None:
                buffer.slab.arrived()
                buffer.slab = None
            self._free.append(buffer)

    def _send(self) -> None:
        """Transfer the slab that is being filled."""
        slab, buffer = self._slab, self._filling
        if slab is None or buffer is None:
            return
        self._slab = self._filling = None
        slab.retired = True
        runtime, words = self._runtime, self._words
        try:
            slab.host = host = self._arena.take(slab.used)
        except Exception as error:
            slab.failed(error if isinstance(error, DeviceError) else DeviceError(f"no memory on the host: {error}"))
            buffer.slab = None
            self._free.append(buffer)
            return
        words.clear(buffer.word)
        try:
            runtime.wait(words.stream, buffer.filled)
            runtime.copy(host.address, buffer.address, slab.used, TO_HOST, words.stream)
            words.ask_for(buffer.word)
            runtime.record(buffer.done, words.stream)
        except DeviceError as error:
            # The buffer is not used again: nobody can tell what the device still does with it.
            slab.failed(error)
            buffer.slab = None
            self._buffers -= 1
            return
        self._on_their_way.append(buffer)

    def fetch(self, slab: DeviceSlab) -> None:
        """Have the bytes of a slab on the host, or its failure known. Blocks; for the writer's thread."""
        self._runtime.select(self._device)
        with self._lock:
            if slab is self._slab:
                self._send()
            buffer = slab.device
        if buffer is None:
            return
        try:
            # The model's thread may have seen it arrive, and have filled the buffer anew.
            self._words.wait(buffer.word, buffer.done, lambda: slab.device is not buffer)
        except DeviceError as error:
            slab.failed(error)
            return
        with self._lock:
            self._collect()

    def release(self, slab: DeviceSlab, values: int) -> None:
        """So many values of a slab are written."""
        with self._lock:
            slab.released += values
            self._give_back_written(slab)

    def _give_back_written(self, slab: DeviceSlab) -> None:
        # Until the bytes have arrived, or for ever after a failure, the device may write into the buffer.
        if slab.retired and slab.released == slab.taken and slab.has_arrived and slab.host is not None:
            self._arena.give_back(slab.host)


class DeviceLanes:
    """The lanes of all streams of all devices of a process."""

    def __init__(self, runtime: CudaRuntime, arena: PinnedArena) -> None:
        self._runtime = runtime
        self._arena = arena
        self._lanes: dict[tuple[int, int], Lane] = {}
        self._words: dict[int, Words] = {}
        self._lock = threading.Lock()

    def lane(self, device: int, stream: int) -> Lane:
        """The lane of a stream, by its handle. Raises DeviceError."""
        found = self._lanes.get((device, stream))
        return found if found is not None else self._make(device, stream)

    def _make(self, device: int, stream: int) -> Lane:
        with self._lock:
            key = (device, stream)
            if key not in self._lanes:
                self._lanes[key] = Lane(self._runtime, device, stream, self._words_of(device), self._arena)
            return self._lanes[key]

    def words(self, device: int) -> Words:
        """The words of a device. Raises DeviceError."""
        with self._lock:
            return self._words_of(device)

    def _words_of(self, device: int) -> Words:
        if device not in self._words:
            self._words[device] = Words(self._runtime, device)
        return self._words[device]
