"""Taps that ran while CUDA graphs were captured, and what happens with them at replays."""

from __future__ import annotations

import functools
import threading
import weakref
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Protocol

import torch

from dumper.adapters import describe_graph
from dumper.adapters.protocol import PassSize, PendingLayout
from dumper.layout import TokenLayout
from dumper.memory.cuda_runtime import loaded_runtime
from dumper.recording.graphs.account import GraphAccount
from dumper.recording.graphs.captured import (
    NO_MEMORY,
    NOT_CHOSEN,
    OVER_BUDGET,
    CapturedGraph,
    GraphStep,
    GraphTap,
    LeftOut,
    OpenCapture,
)
from dumper.recording.graphs.memory import GraphMemory, Place, view
from dumper.recording.graphs.streams import ReadOrder, capture_number
from dumper.recording.graphs.watch import watch
from dumper.rules.expressions import Expression
from dumper.settings import Settings, SettingsError
from dumper.values.plain import UnrecordableError
from dumper.values.readable import as_bytes, readable, undisturbed

if TYPE_CHECKING:
    from dumper.recording.taps import Tap
    from dumper.values.source import Source

_MOST_OPEN = 64
"""Captures that may be under way at once; older ones have failed without an end."""


class SilentTapError(RuntimeError):
    """In strict mode: what is captured now would not be recorded at replays."""


class Recorder(Protocol):
    """The part of the recorder that graphs need."""

    @property
    def settings(self) -> Settings: ...
    @property
    def has_taps(self) -> bool:
        """Whether any tap is installed."""

    def captures_changed(self) -> None:
        """A capture has begun or ended: ``GraphTaps.open`` has changed."""

    def tap_of(self, tap: str | None) -> Tap | None:
        """The tap of an id."""

    def record_replay(self, graph: CapturedGraph) -> bool:
        """Record what a replay has left; whether recording was on. Never raises."""

    def say(self, message: str, key: str) -> None:
        """Log once."""


class GraphTaps:
    """All graphs of the process. Lives as long as its recorder."""

    def __init__(self, recorder: Recorder) -> None:
        self._recorder: Callable[[], Recorder | None] = weakref.ref(recorder)
        self._open: dict[int, OpenCapture] = {}
        """Captures that are under way, by their number."""
        self._graphs: dict[int, CapturedGraph] = {}
        """By id of the graph."""
        self._silent: set[int] = set()
        """Ids of graphs that were captured while recording was off."""
        self._finalizers: dict[int, weakref.finalize[Any, Any]] = {}
        self._ended: dict[int, int] = {}
        """Number of the capture that ends on a thread."""
        self.memory = GraphMemory()
        self.account = GraphAccount()
        self._orders: dict[torch.device, ReadOrder | None] = {}
        self._find_runtime = functools.cache(loaded_runtime)
        self._filter: tuple[str | None, Expression | None] = (None, None)
        self._lock = threading.RLock()
        """Held from before a replay until what it has left is read: graphs share their memory."""
        watch(torch.cuda.CUDAGraph, self)

    @property
    def open(self) -> bool:
        """Whether a capture is under way."""
        return bool(self._open) and any(capture.began for capture in list(self._open.values()))

    @property
    def may_be_replayed(self) -> bool:
        """Whether there are graphs with taps, or a capture is under way."""
        return bool(self._graphs or self._open)

    def account_so_far(self) -> GraphAccount:
        """What was recorded and what was silent until now."""
        unended = [capture for capture in list(self._open.values()) if not capture.began]
        self.account.unknown_captures = sum(len(capture.taps) for capture in unended)
        return self.account

    def size_of_pass(self, layout: TokenLayout | PendingLayout | None) -> PassSize | None:
        """The rows that a pass has filled; None where all are to be recorded, as they were captured."""
        if not self._graphs or self._settings().graph_padding == "keep":
            return None
        return PassSize.of(layout)

    # During a capture

    def capture(self, source: Source, value: torch.Tensor, dims: str | None, tags: Mapping[str, Any]) -> bool:
        """Copy ``value`` into memory of ours, as part of the graph that is being captured; False when it is left out.

        Raises UnrecordableError for a value that has no bytes to record.
        """
        capture = self._capture_of_stream()
        settings = self._settings()
        name = source.tap or source.name
        if not self._is_chosen(settings.graph_filter, source, tags):
            capture.left_out.append(LeftOut(name, NOT_CHOSEN))
            return False
        with undisturbed():
            try:
                plain = readable(value)
            except UnrecordableError as error:
                capture.left_out.append(LeftOut(name, str(error)))
                raise
            content = as_bytes(plain)
            copied = self._copy(capture, name, content)
            if copied is None:
                return False
            place, chunk, copy = copied
            with torch.inference_mode(False):
                capture.taps.append(GraphTap(source, dims, _settled(tags), place, chunk, copy.view(plain.dtype)))
        return True

    def _copy(
        self, capture: OpenCapture, name: str, content: torch.Tensor
    ) -> tuple[Place, torch.Tensor, torch.Tensor] | None:
        """A copy that every replay fills anew, with its place and the memory that this is in; None without memory."""
        nbytes = content.numel() * content.element_size()
        try:
            place = self.memory.place(capture.cursor, content.device, nbytes, self._settings().graph_memory)
        except torch.cuda.OutOfMemoryError:
            place = None
            capture.left_out.append(LeftOut(name, NO_MEMORY))
        else:
            if place is None:
                capture.left_out.append(LeftOut(name, OVER_BUDGET))
        if place is None:
            self._say_left_out(capture.left_out[-1])
            return None
        # A view that is made in inference mode could not be written outside it.
        with torch.inference_mode(False):
            chunk = self.memory.chunk(content.device, place.chunk)
            copy = view(chunk, place, content)
            copy.copy_(content)
        return place, chunk, copy

    def capture_step(self, batch: Any, tags: Mapping[str, Any], tap: str | None) -> bool:
        """Have every replay of the graph that is being captured begin a step; False where none is, or where the batch
        is an engine's own object, which no graph fills anew. Of several steps in one graph the first counts."""
        capture = self._open.get(capture_number())
        if capture is None or not (batch is None or isinstance(batch, dict)):
            return False
        if capture.step is None:
            copies = None if batch is None else {name: self._in_graph(capture, value) for name, value in batch.items()}
            capture.step = GraphStep(tap, copies, _settled(tags))
        return True

    def capture_end_of_step(self, tap: str | None) -> bool:
        """Have every replay of the graph that is being captured end its step; False where none is."""
        capture = self._open.get(capture_number())
        if capture is None:
            return False
        capture.step_ends.append(tap)
        return True

    def _in_graph(self, capture: OpenCapture, part: Any) -> Any:
        """A part of a batch as a replay has it."""
        if isinstance(part, dict):
            return {name: self._in_graph(capture, value) for name, value in part.items()}
        if not isinstance(part, torch.Tensor):
            return part
        with undisturbed():
            content = as_bytes(readable(part))
            copied = self._copy(capture, "the batch of a step", content)
        return None if copied is None else copied[2].view(part.dtype)

    def _capture_of_stream(self) -> OpenCapture:
        number = capture_number()
        capture = self._open.get(number)
        if capture is None and number < 0 and len(self._open) == 1:
            # Numbers of threads: a backward pass is captured on another thread.
            capture = next(iter(self._open.values()))
        if capture is None:
            # Its beginning went past us.
            capture = self._begin(number, began=False)
        return capture

    def _begin(self, number: int, *, began: bool) -> OpenCapture:
        while len(self._open) >= _MOST_OPEN:
            del self._open[next(iter(self._open))]
        capture = self._open[number] = OpenCapture(describe_graph(), began)
        return capture

    def _is_chosen(self, text: str | None, source: Source, tags: Mapping[str, Any]) -> bool:
        if text != self._filter[0]:
            self._filter = (text, Expression(text) if text else None)
        expression = self._filter[1]
        return expression is None or expression.holds({**tags, "name": source.name})

    def _say_left_out(self, value: LeftOut) -> None:
        recorder = self._recorder()
        if recorder is not None:
            recorder.say(
                f"{value.name} and perhaps others are not recorded in CUDA graphs: {value.reason}. Raise graph_memory,"
                " or choose fewer taps with graph_filter. The model runs on; what is left out is listed in the run",
                key=value.reason,
            )

    def _settings(self) -> Settings:
        recorder = self._recorder()
        assert recorder is not None, "a recorder outlives its calls"
        return recorder.settings

    # Told by ``watch``

    def before_begin(self, graph: Any) -> None:
        """Raises SilentTapError in strict mode, while recording is off and taps are installed."""
        recorder = self._recorder()
        if recorder is None:
            return
        settings = recorder.settings
        if settings.strict and not settings.enable and recorder.has_taps:
            raise SilentTapError(
                "a CUDA graph is being captured while recording is off, and its taps would stay silent: start with"
                " enable (TENSORTAP_ENABLE=1) and a filter that lets nothing through, or without strict"
            )
        self.reset(graph)

    def begin(self, graph: Any) -> None:
        """A capture has begun on the current stream."""
        recorder = self._recorder()
        if recorder is None:
            return
        if recorder.settings.enable:
            self._begin(capture_number(), began=True)
            recorder.captures_changed()
        else:
            self.account.silent_graphs += 1
            self._silent.add(id(graph))
            self._keep(graph)

    def before_end(self, graph: Any) -> None:
        """The capture of the current stream is about to end."""
        if self._open:
            self._ended[threading.get_ident()] = capture_number()

    def end(self, graph: Any, complete: bool) -> None:
        """Give the graph what was captured. Raises SilentTapError in strict mode when something was left out."""
        number = self._ended.pop(threading.get_ident(), None)
        capture = self._open.pop(number, None) if number is not None else None
        recorder = self._recorder()
        if recorder is None or capture is None:
            return
        recorder.captures_changed()
        if not complete:
            return
        self.account.leave_out(capture.left_out)
        captured = _captured(capture, recorder)
        if captured.taps:
            self.account.captured += 1
        if not captured.is_empty:
            self._graphs[id(graph)] = captured
            self._keep(graph)
        silent = captured.left_out
        if silent and recorder.settings.strict:
            raise SilentTapError(
                f"{len(silent)} values that were captured into a CUDA graph would not be recorded: "
                + ", ".join(f"{value.name}: {value.reason}" for value in silent[:5])
            )

    def replay(self, graph: Any, replay: Callable[[], None]) -> None:
        """Replay, and record what the taps of the graph have copied."""
        captured = self._graphs.get(id(graph))
        if captured is None:
            replay()
            if self._silent and id(graph) in self._silent:
                self._count_silent()
            return
        recorder = self._recorder()
        if recorder is None:
            replay()
            return
        device = captured.device
        with self._lock:
            if device is None or device.type != "cuda":
                replay()
                recorder.record_replay(captured)
                return
            order = self._order(device)
            stream: int = torch._C._cuda_getCurrentRawStream(device.index)
            if order is not None:
                self._never_raise(order.before_replay, stream)
            replay()
            if recorder.record_replay(captured) and order is not None:
                self._never_raise(order.after_read, stream)

    def _order(self, device: torch.device) -> ReadOrder | None:
        """None where values are read before ``record_replay`` returns."""
        if device not in self._orders:
            runtime = self._find_runtime()
            self._orders[device] = None if runtime is None else ReadOrder(runtime, device.index)
        return self._orders[device]

    def _never_raise(self, keep_order: Callable[[int], None], stream: int) -> None:
        try:
            keep_order(stream)
        except Exception as error:
            recorder = self._recorder()
            if recorder is not None:
                recorder.say(f"replays may overwrite what is not recorded yet: {error}", key="order of replays")

    def _count_silent(self) -> None:
        recorder = self._recorder()
        if recorder is not None and recorder.settings.enable:
            self.account.silent_replays += 1

    def reset(self, graph: Any) -> None:
        """The graph holds nothing any more."""
        finalizer = self._finalizers.pop(id(graph), None)
        if finalizer is not None:
            finalizer.detach()
            self._forget(id(graph))

    # What is kept by graph

    def _keep(self, graph: Any) -> None:
        previous = self._finalizers.get(id(graph))
        if previous is not None:
            previous.detach()
        finalizer = self._finalizers[id(graph)] = weakref.finalize(graph, self._gone, id(graph))
        finalizer.atexit = False

    def _gone(self, number: int) -> None:
        """A graph was collected. Called at any moment, from any thread."""
        self._finalizers.pop(number, None)
        self._forget(number)

    def _forget(self, number: int) -> None:
        self._graphs.pop(number, None)
        self._silent.discard(number)
        if not self._graphs and not self._open:
            self.memory.let_go()

    def check_none_is_silent(self) -> None:
        """Raises SettingsError while there are graphs that were captured while recording was off."""
        if self._silent:
            raise SettingsError(
                f"setting enable: {len(self._silent)} CUDA graphs were captured while recording was off and would stay"
                " silent; have it on during the capture, with a filter that lets nothing through, or switch strict off"
            )


def _settled(tags: Mapping[str, Any]) -> dict[str, Any]:
    """Tags of which none has to be read from a device: during a capture its value is not there, and afterwards its
    memory is used for something else."""
    return {
        key: type(tag).__name__ if isinstance(tag, torch.Tensor) and tag.device.type != "cpu" else tag
        for key, tag in tags.items()
    }


def _captured(capture: OpenCapture, recorder: Recorder) -> CapturedGraph:
    counters = [recorder.tap_of(tap.source.tap) for tap in capture.taps]
    return CapturedGraph(
        tuple(capture.taps),
        tuple(value for value in capture.left_out if value.reason != NOT_CHOSEN),
        tuple(tap for tap in counters if tap is not None),
        capture.facts,
        capture.step,
        tuple(capture.step_ends),
        next(iter(capture.cursor.at), None),
    )
