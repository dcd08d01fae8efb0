"""Small values of a CUDA device: copied within the device into slabs, which go to the host as a whole.

A tap costs the model's thread one copy within the device, by the handle of the stream that the value was computed on.
When a slab is full, or the writer wants it, it is transferred on a stream of our own; the model's stream waits for
nothing. The writer sends what it wants in one call without the interpreter lock, and looks again later; it waits only
where somebody waits for it.

To send a slab needs an event behind the last copy into it. The model's thread records it where it sends the slab. The
writer records it only while the stream is not being captured into a graph, and uses it only if that is still so
afterwards: an event of a capture would draw our stream into it.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable

from dumper.memory import arrivals, device_buffers
from dumper.memory.arrivals import Words
from dumper.memory.cuda_runtime import ON_DEVICE, CudaRuntime, DeviceError
from dumper.memory.device_buffers import DeviceBuffer, DeviceBuffers
from dumper.memory.pinned import PinnedArena, PinnedBuffer

LARGEST_VALUE = 1 << 20
"""Bytes; larger values go to the host by themselves."""
ALIGNMENT = 256
"""Bytes; where values begin, so that copies and kernels move them in wide pieces."""
_PAUSE = 2e-3
"""Seconds between two looks at a stream that is being captured."""


class DeviceSlab:
    """A slab whose bytes are on a device first. For the writer it is like ``Slab``."""

    __slots__ = ("_device", "_failure", "_lane", "host", "released", "retired", "taken", "used")

    def __init__(self, lane: Lane, device: DeviceBuffer) -> None:
        self._lane = lane
        self._device: DeviceBuffer | None = device
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
    def is_there(self) -> bool:
        """Whether ``view`` would not block. Has the bytes sent. For the writer's thread."""
        return self._device is None or self._lane.has_come(self)

    @property
    def device(self) -> DeviceBuffer | None:
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

    @property
    def is_there(self) -> bool:
        """Whether ``wait`` would not block."""
        return self._slab.is_there

    def release(self) -> None:
        """The bytes are not needed any more."""
        self._slab.release(1)


class Lane:
    """The slabs of one stream: one that is being filled, and those on their way."""

    # Compiled code reads them where they lie (dumper/recording/shortcut).
    __slots__ = (
        "_arena",
        "_buffers",
        "_device",
        "_filling",
        "_lock",
        "_on_their_way",
        "_runtime",
        "_slab",
        "_spare",
        "_stays",
        "_stream",
        "_words",
    )

    def __init__(
        self, runtime: CudaRuntime, device: int, stream: int, words: Words, buffers: DeviceBuffers, arena: PinnedArena
    ) -> None:
        self._runtime = runtime
        self._device = device
        self._stream = stream
        self._stays = runtime.stays(device, stream)
        """Whether others than the thread that uses the stream may touch it."""
        self._words = words
        self._arena = arena
        self._lock = threading.Lock()
        self._slab: DeviceSlab | None = None
        self._filling: DeviceBuffer | None = None
        """Of that slab."""
        self._on_their_way: deque[DeviceBuffer] = deque()
        self._buffers = buffers
        self._spare: list[DeviceBuffer] = []
        """Buffers that this stream may still write to, and no other may use."""

    def copy(self, source: int, nbytes: int) -> tuple[DeviceSlab, int]:
        """Copy ``nbytes`` bytes (at most ``LARGEST_VALUE``) at an address of the device, as they are when the stream
        comes to it. Returns the slab and the offset in it. Raises DeviceError."""
        with self._lock:
            slab, buffer, offset = self._room_for(nbytes)
            if nbytes:
                self._runtime.copy(buffer.address + offset, source, nbytes, ON_DEVICE, self._stream)
            self._took(slab, buffer, offset + nbytes)
        return slab, offset

    def copy_rows(self, source: int, width: int, height: int, pitch: int) -> tuple[DeviceSlab, int]:
        """What ``copy`` does, for rows of ``width`` bytes that begin ``pitch`` bytes from each other."""
        nbytes = width * height

        def write(address: int) -> None:
            if nbytes:
                self._runtime.copy_rows(address, source, width, height, pitch, self._stream)

        return self.fill(nbytes, write)

    def fill(self, nbytes: int, write: Callable[[int], None]) -> tuple[DeviceSlab, int]:
        """What ``copy`` does, for bytes that ``write(address)`` has the stream put there, a kernel for example."""
        with self._lock:
            slab, buffer, offset = self._room_for(nbytes)
            write(buffer.address + offset)
            self._took(slab, buffer, offset + nbytes)
        return slab, offset

    def make_room(self, nbytes: int) -> None:
        """See to it that the slab that is being filled has room for so many bytes, until somebody else fills it. For
        the thread that uses the stream, which is not being captured. Raises DeviceError."""
        with self._lock:
            self._room_for(nbytes)

    def _took(self, slab: DeviceSlab, buffer: DeviceBuffer, end: int) -> None:
        """The stream was given a value that ends there."""
        if not self._stays:
            self._runtime.record(buffer.filled, self._stream)
        slab.taken += 1
        slab.used = (end + ALIGNMENT - 1) & -ALIGNMENT

    def _room_for(self, nbytes: int) -> tuple[DeviceSlab, DeviceBuffer, int]:
        slab, buffer = self._slab, self._filling
        if slab is None or buffer is None or slab.used + nbytes > device_buffers.SLAB_BYTES:
            self._send_as_model()
            slab, buffer = self._begin()
        return slab, buffer, slab.used

    def _begin(self) -> tuple[DeviceSlab, DeviceBuffer]:
        buffer = self._device_buffer()
        slab = DeviceSlab(self, buffer)
        buffer.slab = slab
        self._slab, self._filling = slab, buffer
        return slab, buffer

    def _device_buffer(self) -> DeviceBuffer:
        self._collect()
        while not self._spare:
            buffer = self._buffers.take(may_wait=bool(self._on_their_way))
            if buffer is not None:
                return buffer
            self._words.wait(self._on_their_way[0].word)
            self._collect()
        return self._spare.pop()

    def _collect(self) -> None:
        """Take back the buffers whose bytes have arrived."""
        on_their_way, words = self._on_their_way, self._words
        while on_their_way and words.is_set(on_their_way[0].word):
            buffer = on_their_way.popleft()
            if buffer.slab is not None:
                buffer.slab.arrived()
                buffer.slab = None
            self._buffers.give_back(buffer)

    def _send_as_model(self) -> None:
        """Transfer the slab that is being filled, from the thread that fills it: the stream is not being captured."""
        slab, buffer = self._slab, self._filling
        if slab is not None and buffer is not None and not self._send(slab, buffer):
            self._give_up(slab, buffer, _captured(), serves_again=True)

    def _send_as_writer(self) -> bool:
        """The same from another thread; False when the stream is being captured."""
        slab, buffer = self._slab, self._filling
        if slab is None or buffer is None:
            return True
        host = self._arena.take_free(slab.used)
        try:
            # No memory is pinned during a capture. To ask is a turn of the interpreter lock, and to send asks as well.
            if host is None and self._stays and self._runtime.is_capturing(self._stream):
                return False
        except DeviceError as error:
            self._give_up(slab, buffer, error)
            return True
        return self._send(slab, buffer, host)

    def _give_up(self, slab: DeviceSlab, buffer: DeviceBuffer, error: DeviceError, serves_again: bool = False) -> None:
        """The slab that is being filled is lost. Its buffer serves again only where none but the stream of this lane
        may still use it."""
        self._slab = self._filling = None
        slab.retired = True
        slab.failed(error)
        buffer.slab = None
        if serves_again:
            self._spare.append(buffer)
        else:
            self._buffers.forget()

    def _send(self, slab: DeviceSlab, buffer: DeviceBuffer, host: PinnedBuffer | None = None) -> bool:
        """Transfer the slab that is being filled, to ``host`` where room has been found; False when the stream is being
        captured."""
        try:
            host = host or self._arena.take(slab.used)
        except Exception as error:
            self._give_up(slab, buffer, DeviceError(f"no memory on the host: {error}"), serves_again=True)
            return True
        # Of streams that may vanish the event has been recorded.
        stream = self._stream if self._stays else None
        try:
            sent = self._words.send(buffer.word, buffer.filled, stream, host.address, buffer.address, slab.used)
        except DeviceError as error:
            slab.host = host
            self._give_up(slab, buffer, error)
            return True
        if not sent:
            self._arena.give_back(host)
            return False
        slab.host = host
        self._slab = self._filling = None
        slab.retired = True
        self._on_their_way.append(buffer)
        return True

    def has_come(self, slab: DeviceSlab) -> bool:
        """Whether the bytes of a slab are on the host, or lost. Where they are not, they are sent, unless others are on
        their way. Does not block; for the writer's thread."""
        try:
            self._runtime.select(self._device)
        except DeviceError:
            return True  # whoever fetches it learns why
        with self._lock:
            self._collect()
            if slab is self._slab and not self._on_their_way:
                self._send_as_writer()
            return slab.device is None

    def fetch(self, slab: DeviceSlab) -> None:
        """Have the bytes of a slab on the host, or its failure known. Blocks; for the writer's thread."""
        self._runtime.select(self._device)
        if not self._send_when_possible(slab):
            return
        buffer = slab.device
        if buffer is None:
            return
        try:
            # The model's thread may have seen it arrive, and have filled the buffer anew.
            self._words.wait(buffer.word, lambda: slab.device is not buffer)
        except DeviceError as error:
            slab.failed(error)
            return
        with self._lock:
            self._collect()

    def _send_when_possible(self, slab: DeviceSlab) -> bool:
        """Have a slab sent; False when its stream is captured for so long that it is given up."""
        since = time.monotonic()
        while True:
            with self._lock:
                if slab is not self._slab or self._send_as_writer():
                    return True
                if time.monotonic() - since > arrivals.ASKED_AFTER:
                    # Whoever captures may be waiting for us.
                    if self._filling is not None:
                        self._give_up(slab, self._filling, _captured(), serves_again=True)
                    return False
            time.sleep(_PAUSE)

    def release(self, slab: DeviceSlab, values: int) -> None:
        """So many values of a slab are written."""
        with self._lock:
            slab.released += values
            self._give_back_written(slab)

    def _give_back_written(self, slab: DeviceSlab) -> None:
        # Until the bytes have arrived, or for ever after a failure, the device may write into the buffer.
        if slab.retired and slab.released == slab.taken and slab.has_arrived and slab.host is not None:
            self._arena.give_back(slab.host)


def _captured() -> DeviceError:
    return DeviceError("its stream is being captured into a graph")


class DeviceLanes:
    """The lanes of all streams of all devices of a process."""

    def __init__(self, runtime: CudaRuntime, arena: PinnedArena) -> None:
        self._runtime = runtime
        self._arena = arena
        self.by_stream: dict[tuple[int, int], Lane] = {}
        """By device and handle of the stream."""
        self._words: dict[int, Words] = {}
        self._buffers: dict[int, DeviceBuffers] = {}
        self._lock = threading.Lock()

    def lane(self, device: int, stream: int) -> Lane:
        """The lane of a stream, by its handle. Raises DeviceError."""
        found = self.by_stream.get((device, stream))
        return found if found is not None else self._make(device, stream)

    def _make(self, device: int, stream: int) -> Lane:
        with self._lock:
            key = (device, stream)
            if key not in self.by_stream:
                words = self._words_of(device)
                self.by_stream[key] = Lane(self._runtime, device, stream, words, self._buffers[device], self._arena)
            return self.by_stream[key]

    def words(self, device: int) -> Words:
        """The words of a device. Raises DeviceError."""
        with self._lock:
            return self._words_of(device)

    def _words_of(self, device: int) -> Words:
        if device not in self._words:
            words = self._words[device] = Words(self._runtime, device)
            self._buffers[device] = DeviceBuffers(self._runtime, device, words)
        return self._words[device]

    def let_go(self) -> None:
        """Free memory of devices that nothing is on its way in. Waits for them; for the writer's thread."""
        for device, buffers in list(self._buffers.items()):
            with contextlib.suppress(DeviceError):
                self._runtime.select(device)
                buffers.let_go()
