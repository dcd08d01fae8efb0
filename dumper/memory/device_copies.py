"""Large values of a CUDA device: cloned on the model's stream, so that they may be modified next, and transferred on a
stream of our own into pinned memory of their size. torch keeps the memory of a clone until it has been transferred, and
waits for that before it would tell the model that there is no memory left."""

from __future__ import annotations

import threading
from collections import deque
from typing import TYPE_CHECKING

from dumper.memory.arrivals import Words
from dumper.memory.cuda_runtime import TO_HOST, CudaRuntime, DeviceError
from dumper.memory.pinned import PinnedArena, PinnedBuffer

if TYPE_CHECKING:
    import torch

MOST_BYTES_OF_CLONES = 512 << 20
"""On a device; beyond it the model waits for the bus."""


class _Ticket:
    """What a copy on its way needs of the device, used again."""

    __slots__ = ("ready", "word")

    def __init__(self, runtime: CudaRuntime, device: int, words: Words) -> None:
        with runtime.device(device):
            self.ready = runtime.make_event()
        self.word = words.take()


class DeviceCopy:
    """One value on its way from a device to the host."""

    def __init__(self, copier: DeviceCopier, nbytes: int, buffer: PinnedBuffer, ticket: _Ticket) -> None:
        self.nbytes = nbytes
        self.buffer = buffer
        self.clone: torch.Tensor | None = None
        """Held while it is on its way, where torch does not keep its memory."""
        self.ticket: _Ticket | None = ticket
        """None once the bytes are there."""
        self._copier = copier

    def wait(self) -> memoryview:
        """The bytes, in the logical (row-major) order of the tensor; valid until ``release``. Blocks.

        Raises DeviceError when they will not arrive.
        """
        self._copier.fetch(self)
        return self.buffer.view[: self.nbytes]

    @property
    def is_there(self) -> bool:
        """Whether ``wait`` would not block."""
        ticket = self.ticket
        return ticket is None or self._copier.is_set(ticket)

    def release(self) -> None:
        """Hand the host buffer back to the pool."""
        # After a failure the device may still write into it.
        if self.ticket is None:
            self._copier.give_back(self.buffer)


class DeviceCopier:
    """Starts the copies of one device."""

    def __init__(self, runtime: CudaRuntime, device: int, words: Words, arena: PinnedArena) -> None:
        self._runtime = runtime
        self._device = device
        self._words = words
        self._arena = arena
        self._lock = threading.Lock()
        self._on_their_way: deque[DeviceCopy] = deque()
        self._bytes_of_clones = 0
        self._tickets: list[_Ticket] = []

    def start(self, value: torch.Tensor, stream: int) -> DeviceCopy:
        """Begin to copy a readable tensor as it is when ``stream``, the caller's current one, comes to it.

        Raises DeviceError.
        """
        nbytes = value.numel() * value.element_size()
        with self._lock:
            self._make_room(nbytes)
            buffer = self._arena.take(nbytes)
            ticket: _Ticket | None = None
            try:
                ticket = self._tickets.pop() if self._tickets else _Ticket(self._runtime, self._device, self._words)
                copy = DeviceCopy(self, nbytes, buffer, ticket)
                self._send(copy, ticket, value, stream)
            except DeviceError:
                # Nobody can tell what the device still does with the buffer.
                raise
            except BaseException:
                self._arena.give_back(buffer)
                if ticket is not None:
                    self._tickets.append(ticket)
                raise
            self._on_their_way.append(copy)
            self._bytes_of_clones += nbytes
        return copy

    def _send(self, copy: DeviceCopy, ticket: _Ticket, value: torch.Tensor, stream: int) -> None:
        runtime, words = self._runtime, self._words
        copy.clone = clone = self._clone(value)
        if clone is None:
            # No memory for a clone: the model's stream makes the transfer, and waits for it.
            runtime.copy(copy.buffer.address, value.data_ptr(), copy.nbytes, TO_HOST, stream)
        runtime.record(ticket.ready, stream)
        words.clear(ticket.word)
        runtime.wait(words.stream, ticket.ready)
        if clone is not None:
            runtime.copy(copy.buffer.address, clone.data_ptr(), copy.nbytes, TO_HOST, words.stream)
        words.ask_for(ticket.word)
        if clone is not None and runtime.let_go_behind(clone, self._device, words.stream):
            copy.clone = None

    def _clone(self, value: torch.Tensor) -> torch.Tensor | None:
        """A contiguous copy on the current stream; None where there is no memory for it and it can be done without."""
        import torch

        # Clones of lazily conjugated or negated tensors are lazy, too.
        plain = value.resolve_conj().resolve_neg()
        with self._runtime.beside_captures():
            try:
                return plain.clone(memory_format=torch.contiguous_format)
            except torch.cuda.OutOfMemoryError:
                if plain is not value or not value.is_contiguous():
                    raise
                return None

    def _make_room(self, nbytes: int) -> None:
        self._collect()
        while self._on_their_way and self._bytes_of_clones + nbytes > MOST_BYTES_OF_CLONES:
            oldest = self._on_their_way[0]
            if oldest.ticket is not None:
                self._words.wait(oldest.ticket.word)
            self._collect()

    def _collect(self) -> None:
        """Let go of the clones that have been transferred."""
        while self._on_their_way:
            copy = self._on_their_way[0]
            ticket = copy.ticket
            if ticket is None or not self._words.is_set(ticket.word):
                return
            self._on_their_way.popleft()
            self._bytes_of_clones -= copy.nbytes
            copy.clone = copy.ticket = None
            self._tickets.append(ticket)

    def is_set(self, ticket: _Ticket) -> bool:
        """Whether what a ticket was for has arrived."""
        return self._words.is_set(ticket.word)

    def fetch(self, copy: DeviceCopy) -> None:
        """Return when the bytes are on the host. Raises DeviceError when they will not arrive."""
        ticket = copy.ticket
        if ticket is None:
            return
        self._runtime.select(self._device)
        self._words.wait(ticket.word, lambda: copy.ticket is None)
        with self._lock:
            self._collect()

    def give_back(self, buffer: PinnedBuffer) -> None:
        """A buffer that is not needed any more."""
        self._arena.give_back(buffer)
