"""Copies from a CUDA device that never make the model wait.

A value is cloned on the compute stream (so that it may be modified in place next), and the clone goes to pinned host
memory on a side stream. Events order the two; only the writer thread ever waits for one. See "CUDA streams" and
"Memory management" in PyTorch's CUDA notes: ``record_stream`` keeps the clone's memory from being handed out again
before the side stream has read it.
"""

from __future__ import annotations

import functools
import threading
import weakref
from collections import defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

SMALLEST_BUFFER = 4096
"""Bytes; smaller requests share this size, so that few distinct sizes are pooled."""


class PinnedPool:
    """Pinned host buffers that are used again, since pinning memory costs far more than filling it.

    Thread-safe: the model's threads take buffers, the writer thread gives them back.
    """

    def __init__(self, budget_bytes: int) -> None:
        """``budget_bytes``: how much pinned memory is kept for use again; more is pinned when it is needed, and freed
        when it comes back."""
        self._budget_bytes = budget_bytes
        self._free: dict[int, list[torch.Tensor]] = defaultdict(list)
        self._pooled_bytes = 0
        self._lock = threading.Lock()

    def take(self, nbytes: int) -> torch.Tensor:
        """A pinned uint8 tensor of at least ``nbytes`` bytes, its content undefined."""
        import torch

        size = buffer_size(nbytes)
        with self._lock:
            if self._free[size]:
                self._pooled_bytes -= size
                return self._free[size].pop()
        # A tensor that is made in inference mode could not be written outside it.
        with torch.inference_mode(False):
            return torch.empty(size, dtype=torch.uint8, pin_memory=torch.cuda.is_available())

    def give_back(self, buffer: torch.Tensor) -> None:
        """Return a buffer that nobody reads or writes any more."""
        size = buffer.numel()
        with self._lock:
            if self._pooled_bytes + size <= self._budget_bytes:
                self._free[size].append(buffer)
                self._pooled_bytes += size


def buffer_size(nbytes: int) -> int:
    """The size class of a request: the next power of two, at least ``SMALLEST_BUFFER``."""
    return max(SMALLEST_BUFFER, 1 << max(0, nbytes - 1).bit_length())


@dataclass
class DeviceCopy:
    """One value on its way from a device to the host."""

    nbytes: int
    _buffer: torch.Tensor
    _done: torch.cuda.Event
    _pool: PinnedPool
    _source: torch.Tensor | None = None
    """The clone; alive until the copy is done."""

    def wait(self) -> memoryview:
        """The bytes, in the logical (row-major) order of the tensor; valid until ``release``. Blocks."""
        self._done.synchronize()
        self._source = None
        return memoryview(self._buffer.numpy().data)[: self.nbytes]

    def release(self) -> None:
        """Hand the host buffer back to the pool."""
        self._pool.give_back(self._buffer)


class DeviceCopier:
    """Starts copies; one side stream per device."""

    def __init__(self, pool: PinnedPool) -> None:
        self._pool = pool
        self._streams: dict[int, torch.cuda.Stream] = {}

    def start(self, value: torch.Tensor) -> DeviceCopy:
        """Begin to copy a CUDA tensor as it is now; returns at once.

        Raises RuntimeError when the current stream is being captured into a CUDA graph: ``GraphTaps`` is for that.
        """
        import torch

        if torch.cuda.is_current_stream_capturing():
            raise RuntimeError("a copy to the host cannot be started while a CUDA graph is being captured")
        nbytes = value.numel() * value.element_size()
        buffer = self._pool.take(nbytes)
        with torch.cuda.device(value.device):
            clone = value.detach().clone(memory_format=torch.contiguous_format)
            side = self._side_stream(value.device.index)
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                if nbytes:
                    buffer[:nbytes].copy_(clone.reshape(-1).view(torch.uint8), non_blocking=True)
                done = torch.cuda.Event()  # type: ignore[no-untyped-call]
                done.record(side)
            clone.record_stream(side)
        return DeviceCopy(nbytes, buffer, done, self._pool, clone)

    def _side_stream(self, device: int) -> torch.cuda.Stream:
        import torch

        if device not in self._streams:
            self._streams[device] = torch.cuda.Stream(device=device)  # type: ignore[no-untyped-call]
        return self._streams[device]


@dataclass
class CapturedTap:
    """A value whose copy into a fixed buffer is part of a CUDA graph."""

    record: Any
    """What the recorder needs to record the buffer after a replay; opaque here."""
    buffer: torch.Tensor
    """On the device, of the shape that was captured; every replay fills it anew."""


@dataclass
class GraphTaps:
    """Taps that ran while a CUDA graph was captured, by graph.

    A tap inside a graph runs in Python once, at capture. The copy of its value into a fixed buffer becomes part of
    the graph, and after each replay ``emit(record, buffer)`` is called for every buffer of that graph, in the order of
    capture. To learn of the end of a capture and of replays, ``torch.cuda.CUDAGraph.capture_end`` and ``replay`` are
    wrapped when the first tap is captured, and not before.
    """

    emit: Any
    """Called as ``emit(record, buffer)`` on the thread that replays, with the replay's stream current."""
    _pending: list[CapturedTap] = field(default_factory=list)
    _by_graph: dict[int, list[CapturedTap]] = field(default_factory=dict)
    _installed: bool = False

    def capture(self, record: Any, value: torch.Tensor) -> None:
        """Copy ``value`` into a buffer of its own, as part of the graph that is being captured."""
        import torch

        self._install()
        self._pending.append(CapturedTap(record, value.detach().clone(memory_format=torch.contiguous_format)))

    @property
    def captured(self) -> int:
        """Number of taps that sit in graphs."""
        return len(self._pending) + sum(len(taps) for taps in self._by_graph.values())

    def ended(self, graph: object) -> None:
        """The capture of ``graph`` is complete: what was captured since the last one belongs to it."""
        if self._pending:
            self._by_graph[id(graph)] = self._pending
            self._pending = []

    def replayed(self, graph: object) -> None:
        """Record what a replay left in the buffers of ``graph``."""
        for tap in self._by_graph.get(id(graph), ()):
            self.emit(tap.record, tap.buffer)

    def forget(self, graph_id: int) -> None:
        """A graph is gone, and its buffers with it."""
        self._by_graph.pop(graph_id, None)

    def _install(self) -> None:
        if self._installed:
            return
        import torch

        self._installed = True
        graph_class = torch.cuda.CUDAGraph
        capture_end, replay = graph_class.capture_end, graph_class.replay
        taps = self

        @functools.wraps(capture_end)
        def capture_end_and_attribute(graph: Any) -> None:
            capture_end(graph)
            taps.ended(graph)
            weakref.finalize(graph, taps.forget, id(graph))

        @functools.wraps(replay)
        def replay_and_record(graph: Any) -> None:
            replay(graph)
            taps.replayed(graph)

        setattr(graph_class, "capture_end", capture_end_and_attribute)  # noqa: B010
        setattr(graph_class, "replay", replay_and_record)  # noqa: B010
