"""Taps inside CUDA graphs.

A tap inside a graph runs in Python once, while the graph is captured. The copy of its value into a buffer of its own
becomes part of the graph, and what a replay has left in the buffers is recorded after it, with the shape that was
captured. Recording must be on during the capture; a graph that was captured without stays without taps.
"""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


def is_capturing(value: Any) -> bool:
    """Whether ``value`` is a CUDA tensor on a stream that is being captured into a graph."""
    if not getattr(value, "is_cuda", False):
        return False
    import torch

    return bool(torch.cuda.is_current_stream_capturing())


Replayed = Callable[["torch.Tensor"], None]


class GraphTaps:
    """Taps that ran while CUDA graphs were captured, by graph: for each, what to call and the buffer to call it with.

    A buffer is on the device, of the shape that was captured; every replay fills it anew. What is to be called runs on
    the thread that replays, with the replay's stream current. To learn of the end of a capture and of replays,
    ``torch.cuda.CUDAGraph.capture_end`` and ``replay`` are wrapped when the first tap is captured, and not before.
    """

    def __init__(self) -> None:
        self._pending: list[tuple[Replayed, torch.Tensor]] = []
        self._by_graph: dict[int, list[tuple[Replayed, torch.Tensor]]] = {}
        self._installed = False

    def capture(self, replayed: Replayed, value: torch.Tensor) -> None:
        """Copy ``value`` into a buffer of its own, as part of the graph that is being captured."""
        import torch

        self._install()
        self._pending.append((replayed, value.detach().clone(memory_format=torch.contiguous_format)))

    def _ended(self, graph: object) -> None:
        """The capture of ``graph`` is complete: what was captured since the last one belongs to it."""
        if self._pending:
            self._by_graph[id(graph)] = self._pending
            self._pending = []
            weakref.finalize(graph, self._by_graph.pop, id(graph), None)

    def _replayed(self, graph: object) -> None:
        for replayed, buffer in self._by_graph.get(id(graph), ()):
            replayed(buffer)

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
            taps._ended(graph)

        @functools.wraps(replay)
        def replay_and_record(graph: Any) -> None:
            replay(graph)
            taps._replayed(graph)

        setattr(graph_class, "capture_end", capture_end_and_attribute)  # noqa: B010
        setattr(graph_class, "replay", replay_and_record)  # noqa: B010
