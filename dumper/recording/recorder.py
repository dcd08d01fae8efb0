"""The recorder: what the one ``dumper`` object is. Its methods run on the model's threads and never raise because a
recording failed."""

from __future__ import annotations

import os
import sys

# What ``threading.RLock`` is; importing all of threading would cost every patched process.
from _thread import RLock

from dumper.log_once import LogOnce
from dumper.recording.compiled import Tracing, is_capturing, record_in_graph
from dumper.recording.context import AddedTags, Steps, StepScope, ThreadTags
from dumper.recording.forks import watch_forks
from dumper.recording.lifecycle import Lifecycle
from dumper.recording.taps import TapTable
from dumper.values.source import Source

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    from dumper.adapters.protocol import Parallel
    from dumper.layout import TokenLayout
    from dumper.recording.attach import Attachment
    from dumper.recording.capture import Capture, CapturedRecord
    from dumper.recording.session import Session
    from dumper.recording.special_values import SpecialValues
    from dumper.recording.taps import Tap
    from dumper.settings import Settings


_TRUE = ("1", "true", "yes", "on")


class Recorder:
    """Records values, steps and token layouts of this process. See ``docs/architecture.md``, contract 2."""

    def __init__(self, settings: Settings | None = None) -> None:
        """``settings``: None takes them from the environment when they are first needed."""
        self.number: int | None = None
        """How the graphs of ``torch.compile`` name this recorder; None while the process has no torch."""
        self._settings: Settings | None = settings
        self._taps = TapTable()
        self._open = Lifecycle(self, self.end, self._taps)
        self._thread_tags = ThreadTags()
        self._captures: list[list[CapturedRecord]] = []
        self._special_values: SpecialValues | None = None
        self._lock = RLock()
        self._ending = RLock()
        """Held while the process ends: whoever else wants to end it waits until the files are complete."""
        self._steps = Steps()
        self._recording = False
        self._log = LogOnce()
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
            if self._open.session is not None:
                self._open.session.reconfigure(self._settings)
            self._refresh()

    def apply(self, changes: dict[str, Any]) -> None:
        """What ``configure`` does, asked for from outside (``dumper/control``)."""
        self.configure(**changes)

    def state(self) -> dict[str, Any]:
        """Plain values for ``python -m dumper ctl RUN status``."""
        from dumper.recording.state import plain_state

        return plain_state(self.settings, self._steps.number, self._open.session)

    def __repr__(self) -> str:
        """Whether and where it records. Loads no settings and opens nothing."""
        from dumper.recording.state import in_one_line

        return in_one_line(self._settings, self._steps.number, self._open.session)

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
            self._log.say(f"{error}; the setting is ignored")
        self._refresh()

    def _refresh(self) -> None:
        """Decide anew whether anything is recorded now, and tell the taps."""
        if self.number is None:
            self.number = Tracing.number(self)
        settings = self._settings
        wanted = settings is not None and settings.enable and settings.wants_step(self._steps.number)
        ended = self._ended and self._open.session is None
        self._recording = (wanted and not ended) or bool(self._captures)
        self._taps.switch(self._recording)

    # Taps

    def install_taps(
        self, module: str, taps: tuple[Mapping[str, Any], ...], config: Mapping[str, Any]
    ) -> tuple[Tap, ...]:
        """Called by patched modules while they are imported (contract 1)."""
        with self._lock:
            installed = self._taps.install(self, (module, taps, config))
            if any(tap.kind == "step" for tap in installed):
                self._steps.make_explicit()
            if self._open.session is not None:
                self._open.session.add_taps(module, taps, config)
            if self._settings is not None:
                self._open.start_control(self._settings)
            self._refresh()
        return installed

    def tap_failed(self, tap: Tap) -> None:
        """An expression of a tap raised: say it once for each tap, count it always."""
        error = sys.exc_info()[1]
        self._complain(f"tap {tap.id}: {type(error).__name__}: {error}; the tap records nothing here", key=tap.id)
        try:
            self._open_session().status.add("failed_taps")
        except Exception as error_of_status:
            self._complain(f"the failure of a tap was not counted: {error_of_status}", key="failed_taps")

    # Steps

    def step(self, batch: Any = None, *, layout: TokenLayout | None = None, **tags: Any) -> StepScope:
        """End the step under way and begin the next; the result is a context manager whose exit ends the step.

        ``batch``: the engine's own batch object, read through an adapter; ``layout``: the token layout itself.
        """
        try:
            with self._lock:
                self._begin_step(batch, layout, tags)
        except Exception as error:
            self._complain(f"step {self._steps.number} was not recorded: {error}", key=f"step {type(error)}")
        return StepScope(self.end_step)

    def _begin_step(self, batch: Any, layout: TokenLayout | None, tags: Mapping[str, Any]) -> None:
        steps = self._steps
        self._announce_step()
        steps.begin(batch, layout, tags)
        if self._settings is None:
            return
        self._open.start_control(self._settings)
        if self._open.control is not None:
            self._open.control.at_step(steps.number)
        self._refresh()
        if self._recording and steps.batch_only is not None:
            from dumper.adapters import complete_at_start

            if complete_at_start(batch):
                self._announce_step()

    def end_step(self) -> None:
        """End the step under way. Records that follow are outside any step where steps are explicit."""
        with self._lock:
            self._announce_step()
            self._steps.end()

    def _announce_step(self) -> None:
        """Write the step with its token layout, once, when its first record comes or it ends."""
        if self._steps.unannounced and self._recording and not self._captures:
            try:
                session = self._open_session()
                self._steps.announced = True
                session.begin_step(self._steps.number, self._steps.take_layout(), self._steps.tags)
            except Exception as error:
                self._complain(f"step {self._steps.number} was not recorded: {error}", key=f"step {type(error)}")

    def ctx(self, **tags: Any) -> AddedTags:
        """Add tags to every record of this thread inside a ``with`` block; a record's own tags win."""
        return self._thread_tags.adding(tags)

    def last_tokens(self, value: Any, batch: Any) -> Any:
        """Of ``value``, shape (batch, sequence, ...), the rows of the last token of each sequence of the engine's
        batch, shape (sequences, ...). For the expressions of taps: raises ValueError where no adapter can tell."""
        from dumper.adapters import last_tokens

        return last_tokens(value, batch)

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
        """Record a value as it is now: a tensor, an array, a number, text, or a list or map of plain values.

        The value is copied before the call returns (from an accelerator the copy is started, and nothing waits for it),
        so it may be modified afterwards. A tuple, a dataclass or a map that holds tensors is recorded tensor by tensor,
        as ``name.key``. Nothing is recorded, and the call costs next to nothing, while recording is off. Never raises:
        a value that cannot be recorded is logged once and counted in the run.

        ``name``: what the comparator pairs by, together with ``tags`` (``layer_id=3``; numbers and text) and the step.
        ``dims``: what the dimensions are and how each is split, such as ``"t h[attn_tp:partial]"`` (docs/dims.md);
        needed to compare runs of different parallel layouts.
        ``level``: how much is kept of this value, ``full``, ``sample(rows=8)``, ``sample(stride=4)``, ``stats`` or
        ``hash``; the setting ``level`` decides where it is None.
        ``grad``: whether the gradient is recorded too, when the backward pass has computed it (stream ``grad``).
        """
        if not self._recording:
            return
        source = Source.of(name, level, grad)
        if Tracing.is_compiling():
            record_in_graph(self.number, source, value, dims, tags)
        else:
            self.submit(source, value, dims, tags)

    def dump_dict(self, name: str, value: Any, *, dims: str | None = None, **tags: Any) -> None:
        """Record every leaf of a nested dict, dataclass, list or tuple as ``name.key``."""
        if self._recording:
            from dumper.recording.flatten import named_leaves

            for leaf_name, leaf in named_leaves(name, value):
                self.submit(Source.of(leaf_name), leaf, dims, tags)

    def dump_model(self, model: Any, *, prefix: str = "param", grad: bool = True, **tags: Any) -> None:
        """Record every parameter of a module as ``prefix.path``, and its gradient where it has one."""
        if self._recording:
            from dumper.recording.flatten import parameters

            for name, value, stream in parameters(model, prefix, with_gradients=grad):
                self.submit(Source.of(name, stream=stream), value, None, tags)

    def attach(self, model: Any, pattern: str, **options: Any) -> Attachment:
        """Record inputs and outputs of modules by path (``attach.py``). Raises ValueError without a match."""
        from dumper.recording.attach import attach

        return attach(
            lambda name, paths: self._taps.of_modules(name, paths, self.install_taps), model, pattern, **options
        )

    def capture(self) -> Capture:
        """Record into the list that a ``with`` block is given, in memory, instead of to disk; recording need not be
        enabled."""
        from dumper.recording.capture import Capture

        return Capture(self._lock, self._captures, self._refresh)

    def submit(
        self, source: Source, value: Any, dims: str | None, tags: Mapping[str, Any], step: int | None = None
    ) -> None:
        """Record a value. ``step`` is the current one unless given (gradients come with that of their forward pass)."""
        if not self._recording:
            return
        try:
            added = self._thread_tags.tags
            if added:
                tags = {**added, **tags}
            if type(value) not in self._unnested:
                taken_apart = self._special.submit_parts(source, value, dims, tags, step, self._steps.number)
                if taken_apart:
                    return
                if taken_apart is None:
                    self._unnested.add(type(value))
            if is_capturing(value):
                self._put_into_graph(source, value, dims, tags)
                return
            if self._captures:
                from dumper.recording.capture import captured

                record = captured(source, value, dims, tags, self._steps.number if step is None else step)
                self._captures[-1].append(record)
            elif step is not None or self._has_step():
                session = self._open.session or self._open_session()
                if step is None and self._steps.inside:
                    step = self._steps.number
                session.submit(source, value, dims, tags, step)
            if source.grad and source.stream == "value":
                self._special.await_gradient(source, value, dims, tags, self._steps.number)
        except Exception as error:
            self._complain(f"{source.name} was not recorded: {error}", key=f"{source.name}{type(error)}")

    @property
    def _special(self) -> SpecialValues:
        """Who takes apart what is not recorded as it comes."""
        if self._special_values is None:
            with self._lock:  # a module that is half imported stays locked in the child of a fork
                from dumper.recording.special_values import SpecialValues

                self._special_values = SpecialValues(self.submit, self._add_axes)
        return self._special_values

    def _add_axes(self, axes: Parallel) -> None:
        if not self._captures:
            self._open_session().add_axes(axes)

    def submit_from_graph(self, source: Source, value: Any, dims: str | None, tags: Mapping[str, Any]) -> None:
        """What ``submit`` does, for a tap whose code does not run: inside compiled code or a CUDA graph."""
        if self._recording:
            self._taps.count(source.tap, 1)
            self.submit(source, value, dims, tags)

    def _put_into_graph(self, source: Source, value: Any, dims: str | None, tags: Mapping[str, Any]) -> None:
        """Record ``value`` at every replay of the CUDA graph that is being captured; the capture itself is no event."""
        self._taps.count(source.tap, -1)
        try:
            self._special.put_into_graph(source, value, dims, tags, self.submit_from_graph)
        except Exception:
            self._open_session().count_lost("lost_encoding")
            raise

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

    # The session: what is open while something is recorded

    def _open_session(self) -> Session:
        with self._lock:
            if self._ended and self._open.session is None:
                raise RuntimeError("the process is ending")
            return self._open.open(self.settings)

    def flush(self) -> None:
        """Return when all that was dumped is in the file."""
        session = self._open.session
        if session is not None:
            session.flush()

    def close(self) -> None:
        """Complete the files. What is dumped afterwards begins anew, with step 0, which needs another run name."""
        with self._lock:
            self._announce_step()
            session, control = self._open.take()
            self._steps.reset()
            self._refresh()
        if control is not None:
            control.close()
        if session is not None:
            session.close()

    def end(self) -> None:
        """``close`` for good, when the process ends: what is dumped on the way is counted as lost."""
        with self._ending:
            with self._lock:
                if self._ended:
                    return
                self._announce_step()
                self._ended = True
                control = self._open.take_control()
                session = self._open.session
                self._refresh()
            if control is not None:
                control.close()
            if session is not None:
                session.end()

    def _forked(self, whole: bool) -> None:
        """In the child of a fork: the parent's file and threads are not ours. Unless ``whole``, another thread was
        opening the recording, and the child cannot open one."""
        self._lock, self._ending = RLock(), RLock()
        self._ended = not whole
        self._open.forget()
        self._refresh()

    def _complain(self, message: str, *, key: str) -> None:
        self._log.say(f"{message}. The model runs on; this is said once and counted in the run.", key=key)


dumper = Recorder()
watch_forks(lambda: dumper._lock, dumper._forked)
