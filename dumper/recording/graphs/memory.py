"""Memory on the device for what taps copy inside graphs.

A server captures a graph for each of dozens of batch sizes. They share their memory: the values of each graph lie one
after the other from its beginning, so that it is as large as the largest graph needs it, and what a replay has left is
read in a few pieces. Only one graph's values can be there at a time (``order``).
"""

from __future__ import annotations

import contextlib
import functools
import threading
from dataclasses import dataclass, field
from typing import Any

import torch

from dumper.log_once import log
from dumper.memory.cuda_runtime import loaded_runtime

ALIGNMENT = 256
"""Bytes; values begin at multiples of it."""
FIRST_CHUNK = 8 << 20


@dataclass(frozen=True)
class Place:
    """Where a value lies."""

    chunk: int
    """Number of the chunk among those of its device."""
    offset: int
    """Bytes from the beginning of the chunk."""
    nbytes: int


@dataclass
class Cursor:
    """How far one capture has come, by device: chunk and offset."""

    at: dict[torch.device, tuple[int, int]] = field(default_factory=dict)


class GraphMemory:
    """Chunks by device. ``place`` may be called from several captures at once."""

    def __init__(self, first_chunk: int = FIRST_CHUNK) -> None:
        """``first_chunk``: bytes of the first piece of memory; each that follows doubles what there is."""
        self._first_chunk = first_chunk
        self._chunks: dict[torch.device, list[torch.Tensor]] = {}
        self._lock = threading.RLock()
        """Graphs may be collected, and memory let go, in the middle of anything."""

    def place(self, cursor: Cursor, device: torch.device, nbytes: int, budget: int) -> Place | None:
        """Room for a value behind those that the capture has placed; None where the budget of the device is used up.

        Raises what making memory raises (torch.OutOfMemoryError).
        """
        needed = max(ALIGNMENT, -(-nbytes // ALIGNMENT) * ALIGNMENT)
        with self._lock:
            chunks = self._chunks.setdefault(device, [])
            number, offset = cursor.at.get(device, (0, 0))
            while number < len(chunks) and offset + needed > chunks[number].numel():
                number, offset = number + 1, 0
            if number == len(chunks):
                size = self._size_of_next(device, needed, budget)
                if size is None:
                    return None
                chunks.append(_allocate(size, device))
        cursor.at[device] = (number, offset + needed)
        return Place(number, offset, nbytes)

    def _size_of_next(self, device: torch.device, needed: int, budget: int) -> int | None:
        held = self.held_bytes(device)
        room = budget - held
        return max(needed, min(max(held, self._first_chunk), room)) if needed <= room else None

    def chunk(self, device: torch.device, number: int) -> torch.Tensor:
        """All bytes of a chunk, uint8."""
        return self._chunks[device][number]

    def held_bytes(self, device: torch.device | None = None) -> int:
        """Bytes of all chunks, of one device or of all."""
        return sum(
            chunk.numel() for there, chunks in self._chunks.items() if device in (None, there) for chunk in chunks
        )

    def let_go(self) -> None:
        """Forget all memory; what graphs still write into is kept by them."""
        with self._lock:
            self._chunks.clear()


def _allocate(nbytes: int, device: torch.device) -> torch.Tensor:
    """Memory that no graph owns. Raises torch.cuda.OutOfMemoryError."""
    # What is made in inference mode could not be written outside it.
    with torch.inference_mode(False):
        if device.type != "cuda":
            return torch.empty(nbytes, dtype=torch.uint8, device=device)
        runtime = _runtime()
        # On a stream that is not captured, or the memory would be of the graph's pool: the graph trees of torch.compile
        # set such pools back to earlier states, and would hand it out a second time.
        with runtime.beside_captures() if runtime is not None else contextlib.nullcontext():
            side = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
            with torch.cuda.stream(side):
                try:
                    return torch.empty(nbytes, dtype=torch.uint8, device=device)
                except torch.cuda.OutOfMemoryError:
                    raise
                except RuntimeError:
                    log().debug("tensortap: memory of taps is of a graph's pool", exc_info=True)
            return torch.empty(nbytes, dtype=torch.uint8, device=device)


_runtime = functools.cache(loaded_runtime)


def view(chunk: torch.Tensor, place: Place, like: torch.Tensor) -> torch.Tensor:
    """The bytes of a place as a contiguous tensor of the dtype and shape of ``like``."""
    flat: Any = chunk[place.offset : place.offset + place.nbytes].view(like.dtype)
    return flat.view(like.shape)  # type: ignore[no-any-return]
