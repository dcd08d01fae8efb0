"""Captures, replays and resets of CUDA graphs, seen through the methods of ``torch.cuda.CUDAGraph``.

``make_graphed_callables``, the graph trees of ``torch.compile`` and the servers' graph runners all go through these
methods. What other libraries capture by calls of the driver goes past them.
"""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable
from typing import Any, Protocol

_WATCHERS = "_tensortap_watchers"


class Watcher(Protocol):
    """What is told of graphs. Only ``begin`` and ``end`` may raise, and then the capture fails."""

    def before_begin(self, graph: Any) -> None:
        """A capture is about to begin."""

    def begin(self, graph: Any) -> None:
        """The capture has begun, on the current stream."""

    def before_end(self, graph: Any) -> None:
        """The capture on the current stream is about to end."""

    def end(self, graph: Any, complete: bool) -> None:
        """The capture has ended; unless ``complete``, it has failed."""

    def replay(self, graph: Any, replay: Callable[[], None]) -> None:
        """To call ``replay`` once, and to raise nothing but what it raises."""

    def reset(self, graph: Any) -> None:
        """The graph holds nothing any more."""


def watch(graph_class: Any, watcher: Watcher) -> None:
    """Tell ``watcher`` of every graph of this class for as long as it lives.

    The methods are wrapped once, however many watch; arguments are handed through, since releases differ in them.
    """
    watchers = getattr(graph_class.replay, _WATCHERS, None)
    if watchers is None:
        watchers = _wrap(graph_class)
    watchers.add(watcher)


def _wrap(graph_class: Any) -> weakref.WeakSet[Any]:
    watchers: weakref.WeakSet[Any] = weakref.WeakSet()
    capture_begin, capture_end = graph_class.capture_begin, graph_class.capture_end
    replay, reset = graph_class.replay, getattr(graph_class, "reset", None)

    @functools.wraps(capture_begin)
    def watched_begin(graph: Any, *args: Any, **kwargs: Any) -> Any:
        told = list(watchers)
        for watcher in told:
            watcher.before_begin(graph)
        try:
            result = capture_begin(graph, *args, **kwargs)
        except BaseException:
            for watcher in told:
                watcher.end(graph, False)
            raise
        for watcher in told:
            watcher.begin(graph)
        return result

    @functools.wraps(capture_end)
    def watched_end(graph: Any, *args: Any, **kwargs: Any) -> Any:
        told = list(watchers)
        for watcher in told:
            watcher.before_end(graph)
        complete = False
        try:
            result = capture_end(graph, *args, **kwargs)
            complete = True
        finally:
            for watcher in told:
                watcher.end(graph, complete)
        return result

    @functools.wraps(replay)
    def watched_replay(graph: Any, *args: Any, **kwargs: Any) -> Any:
        def call() -> None:
            replay(graph, *args, **kwargs)

        for watcher in list(watchers):
            call = functools.partial(watcher.replay, graph, call)
        return call()

    setattr(watched_replay, _WATCHERS, watchers)
    setattr(graph_class, "capture_begin", watched_begin)  # noqa: B010
    setattr(graph_class, "capture_end", watched_end)  # noqa: B010
    setattr(graph_class, "replay", watched_replay)  # noqa: B010
    if reset is not None:

        @functools.wraps(reset)
        def watched_reset(graph: Any, *args: Any, **kwargs: Any) -> Any:
            for watcher in list(watchers):
                watcher.reset(graph)
            return reset(graph, *args, **kwargs)

        setattr(graph_class, "reset", watched_reset)  # noqa: B010
    return watchers
