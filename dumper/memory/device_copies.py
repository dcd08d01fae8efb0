"""Copies from a CUDA device that never make the model wait.

A value is cloned on the compute stream (so that it may be modified in place next), and the clone goes to pinned host
memory on a side stream. Events order the two; only the writer thread ever waits for one. See "CUDA streams" and
"Memory management" in PyTorch's CUDA notes: ``record_stream`` keeps the clone's memory from being handed out again
before the side stream has read it, so that the clone is let go of at once and the device holds it no longer than that.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from dumper.memory.buffers import Shelf

if TYPE_CHECKING:
    import torch


def pinned_buffer(nbytes: int) -> torch.Tensor:
    """Fresh pinned host memory, which costs far more to make than to fill."""
    import torch

    # A tensor that is made in inference mode could not be written outside it.
    with torch.inference_mode(False):
        return torch.empty(nbytes, dtype=torch.uint8, pin_memory=torch.cuda.is_available())


@dataclass
class DeviceCopy:
    """One value on its way from a device to the host."""

    nbytes: int
    _buffer: torch.Tensor
    _done: torch.cuda.Event
    _shelf: Shelf[torch.Tensor]

    def wait(self) -> memoryview:
        """The bytes, in the logical (row-major) order of the tensor; valid until ``release``. Blocks."""
        self._done.synchronize()
        return memoryview(self._buffer.numpy().data)[: self.nbytes]

    def release(self) -> None:
        """Hand the host buffer back to the pool."""
        self._shelf.give_back(self._buffer)


class DeviceCopier:
    """Starts copies; one side stream per device."""

    def __init__(self, shelf: Shelf[torch.Tensor]) -> None:
        """``shelf``: pinned uint8 tensors."""
        self._shelf = shelf
        self._streams: dict[int, torch.cuda.Stream] = {}

    def start(self, value: torch.Tensor) -> DeviceCopy:
        """Begin to copy a CUDA tensor as it is now; returns at once.

        Raises RuntimeError while the current stream is captured into a CUDA graph (see ``dumper/recording/graphs.py``).
        """
        import torch

        if torch.cuda.is_current_stream_capturing():
            raise RuntimeError("a copy to the host cannot be started while a CUDA graph is being captured")
        nbytes = value.numel() * value.element_size()
        with torch.cuda.device(value.device):
            # Clones of lazily conjugated or negated tensors are lazy, too.
            plain = value.detach().resolve_conj().resolve_neg()
            clone = plain.clone(memory_format=torch.contiguous_format)
            side = self._side_stream(value.device.index)
            side.wait_stream(torch.cuda.current_stream())
            buffer = self._shelf.take(nbytes)
            try:
                with torch.cuda.stream(side):
                    if nbytes:
                        buffer[:nbytes].copy_(clone.reshape(-1).view(torch.uint8), non_blocking=True)
                    done = torch.cuda.Event()  # type: ignore[no-untyped-call]
                    done.record(side)
                clone.record_stream(side)
            except BaseException:
                self._shelf.give_back(buffer)
                raise
        return DeviceCopy(nbytes, buffer, done, self._shelf)

    def _side_stream(self, device: int) -> torch.cuda.Stream:
        import torch

        if device not in self._streams:
            self._streams[device] = torch.cuda.Stream(device=device)  # type: ignore[no-untyped-call]
        return self._streams[device]
