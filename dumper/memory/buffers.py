"""Buffers that are used again: the first touch of fresh memory costs more than the copy into it."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

SMALL = 64 << 10
"""Bytes; values up to here share slabs."""
SLAB_BYTES = 4 << 20
"""numpy asks for huge pages from this size on."""

copy_memory = ctypes.PYFUNCTYPE(None, ctypes.c_size_t, ctypes.c_size_t, ctypes.c_size_t)(
    ctypes.cast(ctypes.memmove, ctypes.c_void_p).value or 0
)
"""``copy_memory(to, from, length)``, addresses. Keeps the interpreter lock, which takes longer to get back than such a
copy takes; ``ctypes.memmove`` lets go of it."""


def copy_rows(to: int, address: int, width: int, height: int, pitch: int) -> None:
    """Bring ``height`` rows of ``width`` bytes together, which begin ``pitch`` bytes from each other."""
    for row in range(height):
        copy_memory(to + row * width, address + row * pitch, width)


SMALLEST_BUFFER = 4096
"""Bytes; smaller requests share this size."""
_STEPS_PER_DOUBLING = 8


class _Buffer(Protocol):
    @property
    def nbytes(self) -> int: ...


Buffer = TypeVar("Buffer", bound=_Buffer)


class Arena(Protocol):
    """Memory that is not handed out by a shelf."""

    def let_go(self) -> None:
        """Give what is not in use back to the system."""


def buffer_size(nbytes: int) -> int:
    """The size in which a request is served, at most an eighth above it, so that few distinct sizes are pooled."""
    step = max(SMALLEST_BUFFER, (1 << max(0, nbytes - 1).bit_length()) // 2 // _STEPS_PER_DOUBLING)
    return max(SMALLEST_BUFFER, -(-nbytes // step) * step)


class BufferPool:
    """The memory of all shelves together: buffers in use and free ones stay within ``budget_bytes``.

    Only buffers in use can exceed it; how many those are is the writer's to decide. Thread-safe: the model's threads
    take buffers, the writer's thread gives them back.
    """

    def __init__(self, budget_bytes: int) -> None:
        self.budget_bytes = budget_bytes
        self._held_bytes = 0
        """Of buffers in use and free ones."""
        self._free: dict[tuple[Shelf[Any], int], list[Any]] = {}
        """By shelf and size; those that were used last come last."""
        self._arenas: list[Arena] = []
        self._lock = threading.Lock()

    def add_arena(self, arena: Arena) -> None:
        """Memory of another kind, to be let go of with the rest; it counts through ``hold`` and ``forget``."""
        self._arenas.append(arena)

    def shelf(self, allocate: Callable[[int], Buffer]) -> Shelf[Buffer]:
        """Buffers of one kind; ``allocate`` makes a fresh one of so many bytes."""
        return Shelf(self, allocate)

    def take(self, shelf: Shelf[Buffer], size: int) -> Buffer | None:
        """A free buffer; None, with room made for a fresh one, when there is none."""
        with self._lock:
            free = self._free.get((shelf, size))
            if free:
                buffer: Buffer = free.pop()
                return buffer
            self._held_bytes += size
            self._keep_within_budget()
        return None

    def put(self, shelf: Shelf[Buffer], buffer: Buffer) -> None:
        """Keep a buffer that nobody uses any more, where the budget allows."""
        key = (shelf, buffer.nbytes)
        with self._lock:
            free = self._free.pop(key, [])
            free.append(buffer)
            self._free[key] = free
            self._keep_within_budget()

    def _free_bytes(self) -> int:
        return sum(size * len(buffers) for (_, size), buffers in self._free.items())

    def _keep_within_budget(self) -> None:
        """Let go of free buffers, those of sizes that were not used for long first."""
        while self._held_bytes > self.budget_bytes and self._free:
            key = next(iter(self._free))
            free = self._free[key]
            if free:
                free.pop()
                self._held_bytes -= key[1]
            else:
                del self._free[key]

    def let_go(self) -> None:
        """Free what is not in use. For the writer's thread: memory that a device knows is not freed before the device
        has done what it was given."""
        with self._lock:
            self._held_bytes -= self._free_bytes()
            self._free.clear()
        for arena in self._arenas:
            arena.let_go()

    def has_room(self, size: int) -> bool:
        """Whether so much more would be within the budget, if all free buffers of shelves were let go of."""
        with self._lock:
            return self._held_bytes - self._free_bytes() + size <= self.budget_bytes

    def hold(self, size: int) -> None:
        """Memory of that size is made elsewhere."""
        with self._lock:
            self._held_bytes += size
            self._keep_within_budget()

    def forget(self, size: int) -> None:
        """Memory of that size could not be made after all, or was freed."""
        with self._lock:
            self._held_bytes -= size

    @property
    def held_bytes(self) -> int:
        """Bytes of buffers in use and free ones."""
        return self._held_bytes


class Shelf(Generic[Buffer]):
    """Buffers of one kind in a pool."""

    def __init__(self, pool: BufferPool, allocate: Callable[[int], Buffer]) -> None:
        self.pool = pool
        self._allocate = allocate

    def take(self, nbytes: int) -> Buffer:
        """A buffer of ``buffer_size(nbytes)`` bytes, its content undefined. Raises what making a fresh one raises."""
        size = buffer_size(nbytes)
        buffer = self.pool.take(self, size)
        if buffer is not None:
            return buffer
        try:
            return self._allocate(size)
        except BaseException:
            self.pool.forget(size)
            raise

    def give_back(self, buffer: Buffer) -> None:
        """Return a buffer that nobody reads or writes any more."""
        self.pool.put(self, buffer)


class Slab:
    """A buffer that many small values share; it goes back to its pool when all of them are written."""

    __slots__ = ("address", "buffer", "released", "retired", "taken", "used", "view")

    def __init__(self, buffer: npt.NDArray[np.uint8]) -> None:
        self.buffer = buffer
        self.view = buffer.data
        self.address: int = buffer.ctypes.data
        self.used = 0
        """Bytes."""
        self.taken = 0
        """Values that were put into it."""
        self.released = 0
        """Values that are written."""
        self.retired = False
        """Whether no more will be put into it."""


def host_buffer(nbytes: int) -> npt.NDArray[np.uint8]:
    """Fresh host memory; numpy's, since a tensor that was made in inference mode cannot be written outside it."""
    import numpy as np

    return np.empty(nbytes, dtype=np.uint8)
