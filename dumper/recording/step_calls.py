"""Steps begin and end: at calls of a model's programmer, at taps, in compiled code and in CUDA graphs."""

from __future__ import annotations

from dumper.recording.compiled import Tracing
from dumper.recording.context import StepScope
from dumper.recording.in_graph import end_step_in_graph, step_in_graph
from dumper.recording.process import RecordingProcess

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    from dumper.layout import TokenLayout


class StepCalls(RecordingProcess):
    """The part of the recorder that is told where steps begin and end. None of this raises because a recording
    failed."""

    def step(self, batch: Any = None, *, layout: TokenLayout | None = None, **tags: Any) -> StepScope:
        """End the step under way and begin the next; the result is a context manager whose exit ends the step.

        ``batch``: the engine's own batch object, read through an adapter; ``layout``: the token layout itself.
        """
        self.begin_step(batch, layout, tags)
        return StepScope(self.end_step)

    def begin_step(
        self, batch: Any, layout: TokenLayout | None, tags: Mapping[str, Any], tap: str | None = None
    ) -> None:
        """What ``step`` does; ``tap`` is the id of the tap that calls."""
        if (Tracing.by_dynamo() or Tracing.flags._is_compiling_flag) and (
            self._settings is None or step_in_graph(self.number, self._recording, batch, layout, tags, tap)
        ):
            return
        graphs = self._graphs
        try:
            if graphs is not None and graphs.open and graphs.capture_step(batch, tags, tap):
                self._taps.count(tap, -1)
                return
            with self._lock:
                self._begin_step(batch, layout, tags)
        except Exception as error:
            self._complain(f"step {self._steps.number} was not recorded: {error}", key=f"step {type(error)}")

    def begin_step_from_graph(self, batch: Any, tags: Mapping[str, Any], tap: str | None) -> None:
        """What ``begin_step`` does, for a tap whose code does not run, inside compiled code."""
        self.begin_step(batch, None, tags, tap)
        if not self._recording:
            # Compiled code uses the memory of its tensors again, and counts those that are alive.
            self._steps.forget_batch()
            self._steps.is_unknown = True

    def _begin_step(self, batch: Any, layout: TokenLayout | None, tags: Mapping[str, Any]) -> None:
        steps = self._steps
        self._announce_step()
        steps.begin(batch, layout, tags)
        if self._settings is None:
            return
        self._open.start_control(self._settings)
        if self._open.control is not None:
            self._open.control.at_step(steps.number)
        self._refresh_at_step()
        if self._recording and self._is_known(batch):
            self._announce_step()

    def _is_known(self, batch: Any) -> bool:
        """Whether all that the file says of the step under way is known when it begins. Its first record, which would
        announce it otherwise, then takes no longer than others; but where a CUDA graph with taps may be replayed its
        values are recorded behind that, and its device waits for nothing meanwhile. A step alone is no reason to open a
        file."""
        if self._steps.batch_only is None:
            return self._open.session is not None and not (self._graphs and self._graphs.may_be_replayed)
        from dumper.adapters import complete_at_start

        return complete_at_start(batch)

    def end_step(self, tap: str | None = None) -> None:
        """End the step under way. Records that follow are outside any step where steps are explicit."""
        if Tracing.is_compiling():
            if self._settings is not None:
                end_step_in_graph(self.number, tap)
            return
        graphs = self._graphs
        if graphs is not None and graphs.open and graphs.capture_end_of_step(tap):
            self._taps.count(tap, -1)
            return
        with self._lock:
            self._announce_step()
            self._steps.end()
