"""The recorder: what the one ``dumper`` object is. Its methods run on the model's threads and never raise because a
recording failed."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from dumper.complaints import Complaints
from dumper.recording.compiled import Tracing, record_in_graph
from dumper.recording.graphs import GraphTaps, is_capturing
from dumper.recording.steps import Steps, StepScope, ThreadTags
from dumper.recording.taps import Tap

if TYPE_CHECKING:
    from dumper.control import Control
    from dumper.layout import TokenLayout
    from dumper.recording.attach import Attachment
    from dumper.recording.capture import CapturedRecord
    from dumper.recording.session import Session
    from dumper.recording.staging import Stager
    from dumper.settings import Settings


_TRUE = ("1", "true", "yes", "on")


class Recorder:
    """Records values, steps and token layouts of this process. See ``docs/architecture.md``, contract 2."""

    def __init__(self, settings: Settings | None = None) -> None:
        """``settings``: None takes them from the environment when they are first needed."""
        self.number = Tracing.add(self)
        """How the graphs of ``torch.compile`` name this recorder."""
        self._settings: Settings | None = settings
        self._session: Session | None = None
        self._stager: Stager | None = None
        self._control: Control | None = None
        self._taps: list[Tap] = []
        self._installed: list[tuple[str, tuple[Mapping[str, Any], ...], Mapping[str, Any]]] = []
        self._context = ThreadTags()
        self._captures: list[list[CapturedRecord]] = []
        self._graph_taps = GraphTaps()
        self._lock = threading.RLock()
        self._steps = Steps()
        self._recording = False
        self._complaints = Complaints()
        self._unnested: set[type] = set()
        """Types of values that hold no others: tensors and scalars."""
        self._ended = False
        if settings is not None:
            self._refresh()
        elif os.environ.get("TENSORTAP_ENABLE", "").strip().lower() in _TRUE or "TENSORTAP_CONTROL" in os.environ:
            self._load_settings()

    # Settings

    def configure(self, **settings: Any) -> None:
        """Change settings (``dumper/settings.py``). Raises SettingsError for one that is unknown or does not fit.

        Settings of where and how the file is written (``dir``, ``run``, ``memory_budget``, …) take effect when the next
        file begins; call ``close`` first to move a running recording.
        """
        with self._lock:
            self._settings = self.settings.changed(**settings)
            if self._session is not None:
                self._session.reconfigure(self._settings)
            self._refresh()

    def apply(self, changes: dict[str, Any]) -> None:
        """What ``configure`` does, asked for from outside (``dumper/control``)."""
        self.configure(**changes)

    def state(self) -> dict[str, Any]:
        """Plain values for ``python -m dumper ctl RUN status``."""
        settings = self.settings
        counts = self._session.counts() if self._session is not None else {}
        return {
            "settings": {key: getattr(settings, key) for key in ("enable", "filter", "level", "steps")},
            "step": self._steps.number,
            "records": counts.get("written", 0),
            "losses": sum(count for name, count in counts.items() if name.startswith("lost")),
            **counts,
        }

    @property
    def settings(self) -> Settings:
        """The settings in force."""
        if self._settings is None:
            self._load_settings()
        assert self._settings is not None
        return self._settings

    def _load_settings(self) -> None:
        from dumper.settings import Settings

        self._settings, errors = Settings.from_environment()
        for error in errors:
            self._complaints.say(f"{error}; the setting is ignored")
        self._refresh()

    def _refresh(self) -> None:
        """Decide anew whether anything is recorded now, and tell the taps."""
        Tracing.watch()
        settings = self._settings
        wanted = settings is not None and settings.enable and settings.wants_step(self._steps.number)
        self._recording = (wanted and not self._ended) or bool(self._captures)
        for tap in self._taps:
            tap.on = self._recording

    # Taps

    def install_taps(
        self, module: str, taps: tuple[Mapping[str, Any], ...], config: Mapping[str, Any]
    ) -> tuple[Tap, ...]:
        """Called by patched modules while they are imported (contract 1)."""
        installed = tuple(Tap(self, info) for info in taps)
        with self._lock:
            self._taps.extend(installed)
            self._installed.append((module, taps, config))
            if any(tap.kind == "step" for tap in installed):
                self._steps.make_explicit()
            if self._session is not None:
                self._session.add_taps(module, taps, config)
            if self._settings is not None:
                self._start_control()
            self._refresh()
        return installed

    def tap_failed(self, tap: Tap) -> None:
        """An expression of a tap raised: say it once for each tap, count it always."""
        error = sys.exc_info()[1]
        self._complain(f"tap {tap.id}: {type(error).__name__}: {error}; the tap records nothing here", key=tap.id)
        with contextlib.suppress(Exception):
            self._open_session().status.add("failed_taps")

    # Steps

    def step(self, batch: Any = None, *, layout: TokenLayout | None = None, **tags: Any) -> StepScope:
        """End the step under way and begin the next; the result is a context manager whose exit ends the step.

        ``batch``: the engine's own batch object, read through an adapter; ``layout``: the token layout itself.
        """
        with contextlib.suppress(Exception), self._lock:
            self._begin_step(batch, layout, tags)
        return StepScope(self.end_step)

    def _begin_step(self, batch: Any, layout: TokenLayout | None, tags: Mapping[str, Any]) -> None:
        steps = self._steps
        self._announce_step()
        steps.begin(batch, layout, tags)
        if self._settings is None:
            return
        self._start_control()
        if self._control is not None:
            self._control.at_step(steps.number)
        self._refresh()
        if self._recording and steps.batch_only is not None:
            from dumper.adapters import complete_at_start

            if complete_at_start(batch):
                self._announce_step()

    def end_step(self) -> None:
        """End the step under way. Records that follow are outside any step where steps are explicit."""
        with contextlib.suppress(Exception), self._lock:
            self._announce_step()
            self._steps.end()

    def _announce_step(self) -> None:
        """Write the step with its token layout, once, when its first record comes or it ends."""
        if self._steps.unsaid and self._recording and not self._captures:
            session = self._open_session()
            self._steps.announced = True
            session.begin_step(self._steps.number, self._steps.take_layout(), self._steps.tags)

    @contextlib.contextmanager
    def ctx(self, **tags: Any) -> Iterator[None]:
        """Add tags to every record of this thread inside the block; a record's own tags win."""
        before = self._context.tags
        self._context.tags = {**before, **tags}
        try:
            yield
        finally:
            self._context.tags = before

    # Records

    def dump(
        self,
        name: str,
        value: Any,
        *,
        dims: str | None = None,
        level: str | None = None,
        grad: bool = False,
        **tags: Any,
    ) -> None:
        """Record ``value`` (a tensor, an array, a number, text, a list or map of plain values) as it is now."""
        if not self._recording:
            return
        if Tracing.is_compiling():
            record_in_graph(self.number, name, value, dims, tags, level=level, tap=None)
        else:
            self.submit(name, value, dims, tags, level=level, grad=grad)

    def dump_dict(self, name: str, value: Any, *, dims: str | None = None, **tags: Any) -> None:
        """Record every leaf of a nested dict, dataclass, list or tuple as ``name.key``."""
        if self._recording:
            from dumper.recording.flatten import named_leaves

            for leaf_name, leaf in named_leaves(name, value):
                self.submit(leaf_name, leaf, dims, tags)

    def dump_model(self, model: Any, *, prefix: str = "param", grad: bool = True, **tags: Any) -> None:
        """Record every parameter of a module as ``prefix.path``, and its gradient where it has one."""
        if self._recording:
            for path, parameter in model.named_parameters():
                name = f"{prefix}.{path}" if prefix else path
                self.submit(name, parameter, None, tags)
                if grad and parameter.grad is not None:
                    self.submit(name, parameter.grad, None, tags, stream="grad")

    def attach(self, model: Any, pattern: str, **options: Any) -> Attachment:
        """Record inputs and outputs of modules by path (``attach.py``). Raises ValueError without a match."""
        from dumper.recording.attach import attach

        return attach(self.dump, model, pattern, **options)

    @contextlib.contextmanager
    def capture(self) -> Iterator[list[CapturedRecord]]:
        """Record into the list that is yielded, in memory, instead of to disk; recording need not be enabled."""
        records: list[CapturedRecord] = []
        with self._lock:
            self._captures.append(records)
            self._refresh()
        try:
            yield records
        finally:
            with self._lock:
                self._captures.remove(records)
                self._refresh()

    def submit(
        self,
        name: str,
        value: Any,
        dims: str | None,
        tags: Mapping[str, Any],
        level: str | None = None,
        grad: bool = False,
        tap: str | None = None,
        stream: str = "value",
        step: int | None = None,
    ) -> None:
        """Record a value. ``step`` is the current one unless given (gradients come with that of their forward pass)."""
        if not self._recording:
            return
        try:
            context = self._context.tags
            if context:
                tags = {**context, **tags}
            if type(value) not in self._unnested and self._submit_leaves(name, value, dims, tags, level, grad, tap):
                return
            if is_capturing(value):
                self._put_into_graph(name, value, dims, tags, level, tap)
                return
            if self._captures:
                self._capture_value(name, value, dims, tags, stream, step)
            elif step is not None or self._has_step():
                session = self._session or self._open_session()
                if step is None and self._steps.inside:
                    step = self._steps.number
                session.submit(name, value, dims, tags, level, tap, stream, step)
            if grad and stream == "value":
                from dumper.recording.gradients import record_gradient

                record_gradient(self, name, value, dims, tags, tap, self._steps.number)
        except Exception as error:
            self._complain(f"{name} was not recorded: {error}", key=f"{name}{type(error)}")

    def _submit_leaves(
        self,
        name: str,
        value: Any,
        dims: str | None,
        tags: Mapping[str, Any],
        level: str | None,
        grad: bool,
        tap: str | None,
    ) -> bool:
        """Record the tensors in a nested value (a module's tuple, an output object) as ``name.path``; False without."""
        from dumper.recording.flatten import can_hold_tensors, tensor_leaves

        if not can_hold_tensors(type(value)):
            self._unnested.add(type(value))
            return False
        leaves = tensor_leaves(name, value)
        for leaf_name, leaf in leaves:
            self.submit(leaf_name, leaf, dims, tags, level=level, grad=grad, tap=tap)
        return bool(leaves)

    def submit_from_graph(
        self, name: str, value: Any, dims: str | None, tags: Mapping[str, Any], *, level: str | None, tap: str | None
    ) -> None:
        """What ``submit`` does, for a tap whose code does not run: inside compiled code or a CUDA graph."""
        self._count_fired(tap, 1)
        self.submit(name, value, dims, tags, level=level, tap=tap)

    def _put_into_graph(
        self, name: str, value: Any, dims: str | None, tags: Mapping[str, Any], level: str | None, tap: str | None
    ) -> None:
        """Record ``value`` at every replay of the CUDA graph that is being captured; the capture itself is no event."""
        self._count_fired(tap, -1)

        def replayed(buffer: Any) -> None:
            self.submit_from_graph(name, buffer, dims, tags, level=level, tap=tap)

        self._graph_taps.capture(replayed, value)

    def _count_fired(self, tap: str | None, times: int) -> None:
        """Correct the count of a tap, known by its id alone."""
        for installed in self._taps:
            if installed.id == tap:
                installed.fired += times

    def _has_step(self) -> bool:
        """Whether a record that comes now is wanted: it belongs to a step, or need not."""
        steps = self._steps
        if steps.inside:
            if not steps.announced:
                with self._lock:
                    self._announce_step()
                    steps.announced = True
            return True
        if self.settings.outside_steps == "record":
            return True
        self._open_session().status.add("outside_steps")
        return False

    def _capture_value(
        self, name: str, value: Any, dims: str | None, tags: Mapping[str, Any], stream: str, step: int | None
    ) -> None:
        from dumper.recording.capture import captured

        step = self._steps.number if step is None else step
        self._captures[-1].append(captured(name, value, dims, tags, stream, step))

    # The session: what is open while something is recorded

    def _open_session(self) -> Session:
        if self._session is None:
            with self._lock:
                if self._session is None:
                    from dumper.recording.session import Session
                    from dumper.recording.staging import Stager

                    settings = self.settings
                    # Kept when a run is closed and another begun: its buffers are expensive to make.
                    self._stager = self._stager or Stager(settings.memory_budget)
                    self._session = Session(settings, self._taps, self._stager)
                    for installed in self._installed:
                        self._session.add_taps(*installed)
                    self._start_control()
                    if self._control is not None:
                        from dumper.control import place_of

                        self._control.set_place(place_of(self._session.process))
                    from dumper.recording.signals import call_at_end

                    call_at_end(self.end)
        assert self._session is not None
        return self._session

    def _start_control(self) -> None:
        settings = self._settings
        if self._control is None and settings is not None and settings.controlled:
            from dumper.control import start

            self._control = start(settings.run_path, self, settings.http_port, settings.http_token)

    def flush(self) -> None:
        """Return when all that was dumped is in the file."""
        session = self._session
        if session is not None:
            session.flush()

    def close(self) -> None:
        """Complete the files. What is dumped afterwards begins anew, with step 0, which needs another run name."""
        with self._lock:
            with contextlib.suppress(Exception):
                self._announce_step()
            session, self._session = self._session, None
            control, self._control = self._control, None
            self._steps.reset()
            self._refresh()
        if control is not None:
            control.close()
        if session is not None:
            session.close()

    def end(self) -> None:
        """``close`` for good: the process ends, and what is dumped on the way would begin another file."""
        self._ended = True
        self._refresh()
        self.close()

    def _forked(self) -> None:
        """In the child of a fork: the parent's file and threads are not ours."""
        self._lock = threading.RLock()
        self._session = self._control = self._stager = None

    def _complain(self, message: str, *, key: str) -> None:
        self._complaints.say(f"{message}. The model runs on; this is said once and counted in the run.", key=key)


dumper = Recorder()
os.register_at_fork(after_in_child=dumper._forked)
