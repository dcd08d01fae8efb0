"""Taps inside CUDA graphs.

A tap inside a graph runs in Python once, while the graph is captured. The copy of its value into a buffer becomes part
of the graph, and what a replay has left in the buffers is recorded after it, with the shape that was captured.
Recording must be on during the capture; a graph that was captured without stays without taps.

A server captures a graph for each of dozens of batch sizes. Their taps share buffers, as large as the largest batch
needs them, so a replay begins only after what the one before has left is read, on whichever stream that was.
"""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any

import torch

from dumper.values.readable import as_bytes, readable, undisturbed

Replayed = Callable[[torch.Tensor], None]


@dataclass(frozen=True)
class GraphTap:
    """One value in one graph."""

    replayed: Replayed
    """Called after each replay, on the thread that replays, with the replay's stream current."""
    buffer: torch.Tensor
    """On the device, of the shape that was captured; every replay fills it anew."""


class GraphTaps:
    """Taps that ran while CUDA graphs were captured, by graph.

    To learn of captures and replays, methods of ``torch.cuda.CUDAGraph`` are wrapped when a first tap is captured, and
    not before.
    """

    def __init__(self) -> None:
        self._pending: list[GraphTap] = []
        """Of the graph that is being captured."""
        self._counts: dict[Hashable, int] = {}
        """How often each tap ran in it."""
        self._by_graph: dict[int, list[GraphTap]] = {}
        self._buffers: dict[Hashable, torch.Tensor] = {}
        """Flat, by what they are for."""
        self._read: torch.cuda.Event | None = None
        """Reached when what the last replay has left is read."""
        self._installed = False

    def capture(self, replayed: Replayed, value: torch.Tensor, tap: Hashable) -> None:
        """Copy ``value`` into a buffer, as part of the graph that is being captured.

        ``tap`` tells this value from others of the same graph; the n-th of a tap has the same buffer in every graph.
        Raises UnrecordableError for a value that has no bytes to record.
        """
        self._install()
        number = self._counts.get(tap, 0)
        self._counts[tap] = number + 1
        # A buffer that is made in inference mode could not be written outside it.
        with torch.inference_mode(False), undisturbed():
            plain = readable(value)
            content = as_bytes(plain)
            buffer = self._buffer((tap, number, content.device, content.dtype), content)
            buffer.copy_(content)
            buffer = buffer.view(plain.dtype)
        self._pending.append(GraphTap(replayed, buffer))

    def _buffer(self, key: Hashable, value: torch.Tensor) -> torch.Tensor:
        flat = self._buffers.get(key)
        if flat is None or flat.numel() < value.numel():
            flat = self._buffers[key] = torch.empty(value.numel(), dtype=value.dtype, device=value.device)
        return flat[: value.numel()].view(value.shape)

    def _began(self) -> None:
        """A capture begins; what an earlier one has left belongs to no graph, since it failed."""
        self._pending = []
        self._counts = {}

    def _ended(self, graph: object) -> None:
        """The capture of ``graph`` is complete: what was captured belongs to it."""
        if self._pending:
            self._by_graph[id(graph)] = self._pending
            weakref.finalize(graph, self._forget, id(graph))
        self._began()

    def _forget(self, graph: int) -> None:
        self._by_graph.pop(graph, None)
        if not self._by_graph and not self._pending:
            self._buffers.clear()

    def _replay(self, graph: object, replay: Callable[[], None]) -> None:
        taps = self._by_graph.get(id(graph))
        if not taps:
            replay()
            return
        # Of a whole graph alike, and asked in every decode pass.
        on_device = taps[0].buffer.is_cuda
        if on_device and self._read is not None:
            torch.cuda.current_stream().wait_event(self._read)
        replay()
        for tap in taps:
            tap.replayed(tap.buffer)
        if on_device:
            self._read = torch.cuda.current_stream().record_event()

    def _install(self) -> None:
        if self._installed:
            return
        self._installed = True
        graph_class = torch.cuda.CUDAGraph
        capture_begin, capture_end, replay = graph_class.capture_begin, graph_class.capture_end, graph_class.replay
        taps = self

        @functools.wraps(capture_begin)
        def begin_and_forget(graph: Any, *args: Any, **kwargs: Any) -> None:
            taps._began()
            capture_begin(graph, *args, **kwargs)

        @functools.wraps(capture_end)
        def end_and_attribute(graph: Any) -> None:
            capture_end(graph)
            taps._ended(graph)

        @functools.wraps(replay)
        def replay_and_record(graph: Any) -> None:
            taps._replay(graph, lambda: replay(graph))

        setattr(graph_class, "capture_begin", begin_and_forget)  # noqa: B010
        setattr(graph_class, "capture_end", end_and_attribute)  # noqa: B010
        setattr(graph_class, "replay", replay_and_record)  # noqa: B010
