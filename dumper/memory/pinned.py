"""Page-locked host memory: the one kind that a device copies into while everybody goes on.

It takes long to make (some 25 ms for 64 MiB), and to free it waits for the device, so it is made in few large pieces
that values of all sizes share.
"""

from __future__ import annotations

import bisect
import contextlib
import ctypes
import os
import threading
from typing import TYPE_CHECKING

from dumper.memory.buffers import BufferPool
from dumper.memory.cuda_runtime import CudaRuntime, DeviceError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

GRANULE = 4096
"""Bytes; parts of pieces are multiples of it."""
PIECE_GRANULE = 2 << 20
"""Bytes; pieces are multiples of it, which is a large page."""
SMALLEST_PIECE = 16 << 20
"""Bytes of the first pieces; so long as the budget allows, each is as large as all before it together."""
LARGEST_PIECE = 256 << 20
"""Bytes; a piece is larger only for a value that is."""
SHARE_OF_GAPS = 4
"""A quarter of the budget is allowed on top of it for the gaps between values, so that pieces are not freed and made
again all the time when the budget is in use."""


class PinnedPiece:
    """Page-locked memory, given back to the system when nobody has it any more.

    It is asked of the runtime itself: torch rounds each piece up to a power of two and keeps what was freed.
    """

    __slots__ = ("_process", "_runtime", "address", "array", "nbytes", "view")

    def __init__(self, runtime: CudaRuntime, nbytes: int) -> None:
        """Raises DeviceError when there is no memory."""
        import numpy as np

        self._runtime = runtime
        self._process = os.getpid()
        self.nbytes = nbytes
        self.address = runtime.pin(nbytes)
        self.array: npt.NDArray[np.uint8] = np.ctypeslib.as_array((ctypes.c_uint8 * nbytes).from_address(self.address))
        self.view = self.array.data.cast("B")

    def __del__(self) -> None:
        # In the child of a fork there is no device; nor has anything to give back who got nothing.
        if getattr(self, "address", 0) and os.getpid() == self._process:
            with contextlib.suppress(Exception):
                self._runtime.unpin(self.address)


class PinnedBuffer:
    """A part of a piece, for one value or slab."""

    __slots__ = ("address", "first", "nbytes", "piece", "view")

    def __init__(self, piece: PinnedPiece, first: int, nbytes: int) -> None:
        self.piece = piece
        self.first = first
        """Where it begins in the piece, in bytes."""
        self.nbytes = nbytes
        self.address: int = piece.address + first
        self.view = piece.view[first : first + nbytes]


class _Piece:
    """A piece and what is free of it."""

    __slots__ = ("ends", "piece", "starts")

    def __init__(self, piece: PinnedPiece) -> None:
        self.piece = piece
        self.starts, self.ends = [0], [piece.nbytes]
        """Of the free parts, in order; no two of them touch."""

    @property
    def is_free(self) -> bool:
        return self.starts == [0] and self.ends == [self.piece.nbytes]

    def take(self, nbytes: int) -> PinnedBuffer | None:
        """The first part that is large enough."""
        nbytes = max(GRANULE, _rounded(nbytes, GRANULE))
        for index, (start, end) in enumerate(zip(self.starts, self.ends, strict=True)):
            if end - start >= nbytes:
                if end - start == nbytes:
                    del self.starts[index], self.ends[index]
                else:
                    self.starts[index] = start + nbytes
                return PinnedBuffer(self.piece, start, nbytes)
        return None

    def give_back(self, buffer: PinnedBuffer) -> None:
        start, end = buffer.first, buffer.first + buffer.nbytes
        index = bisect.bisect_left(self.starts, start)
        self.starts.insert(index, start)
        self.ends.insert(index, end)
        if index + 1 < len(self.starts) and self.starts[index + 1] == end:
            del self.starts[index + 1], self.ends[index]
        if index and self.ends[index - 1] == start:
            del self.starts[index], self.ends[index - 1]


class PinnedArena:
    """All page-locked memory that values of devices are transferred into. Thread-safe.

    What it holds is counted in the pool, as what the system really gave.
    """

    def __init__(self, runtime: CudaRuntime, pool: BufferPool) -> None:
        self._runtime = runtime
        self._pool = pool
        self._gaps = pool.budget_bytes // SHARE_OF_GAPS
        self._pieces: dict[PinnedPiece, _Piece] = {}
        """In the order in which they were made: the first are used first, so that the last become free."""
        self._lock = threading.Lock()
        pool.add_arena(self)

    def take(self, nbytes: int) -> PinnedBuffer:
        """At least so many bytes, their content undefined. Raises DeviceError when the system has no memory."""
        with self._lock:
            buffer = self._free_part(nbytes) or self._grow(max(1, nbytes)).take(nbytes)
            assert buffer is not None
            return buffer

    def take_free(self, nbytes: int) -> PinnedBuffer | None:
        """The same of memory that is there; None, without a call of the runtime, where there is too little."""
        with self._lock:
            return self._free_part(nbytes)

    def _free_part(self, nbytes: int) -> PinnedBuffer | None:
        for piece in self._pieces.values():
            buffer = piece.take(nbytes)
            if buffer is not None:
                return buffer
        return None

    def _grow(self, nbytes: int) -> _Piece:
        needed = _rounded(nbytes, PIECE_GRANULE)
        held = sum(piece.nbytes for piece in self._pieces)
        most = min(LARGEST_PIECE, self._pool.budget_bytes // SHARE_OF_GAPS)
        wanted = max(needed, min(most, max(SMALLEST_PIECE, held)) // PIECE_GRANULE * PIECE_GRANULE)
        if not self._pool.has_room(wanted):
            wanted = needed
        if not self._pool.has_room(wanted - self._gaps):
            # Pieces that are free, but too small.
            self._free_pieces()
        for size in dict.fromkeys((wanted, needed)):
            self._pool.hold(size)
            try:
                piece = PinnedPiece(self._runtime, size)
            except BaseException as error:
                self._pool.forget(size)
                if size == needed or not isinstance(error, DeviceError):
                    raise
                continue
            made = self._pieces[piece] = _Piece(piece)
            return made
        raise AssertionError("one of the sizes is what is needed")

    def give_back(self, buffer: PinnedBuffer) -> None:
        """Return a part that neither the host nor a device reads or writes any more."""
        with self._lock:
            piece = self._pieces[buffer.piece]
            piece.give_back(buffer)
            if not self._pool.has_room(-self._gaps):
                self._free_pieces()

    def let_go(self) -> None:
        """Give pieces of which nothing is in use back to the system. Waits for the device."""
        with self._lock:
            self._free_pieces()

    def _free_pieces(self) -> None:
        for piece in [piece for piece in self._pieces.values() if piece.is_free]:
            self._drop(piece)

    def _drop(self, piece: _Piece) -> None:
        del self._pieces[piece.piece]
        self._pool.forget(piece.piece.nbytes)


def _rounded(nbytes: int, granule: int) -> int:
    return -(-nbytes // granule) * granule
