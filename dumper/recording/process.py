"""What belongs to the process that records: settings, taps, the step under way, the open recording, and its end."""

from __future__ import annotations

import os
import sys

# What ``threading.RLock`` is; importing all of threading would cost every patched process.
from _thread import RLock

from dumper.log_once import LogOnce
from dumper.recording.compiled import Tracing
from dumper.recording.context import Steps, ThreadTags
from dumper.recording.lifecycle import Lifecycle
from dumper.recording.shortcut import Way
from dumper.recording.taps import TapTable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Any

    from dumper.recording.attach import Attachment
    from dumper.recording.capture import Records
    from dumper.recording.graphs.graph_taps import GraphTaps
    from dumper.recording.session import Session
    from dumper.recording.shortcut import Shortcut
    from dumper.recording.special_values import SpecialValues
    from dumper.recording.taps import Tap
    from dumper.settings import Settings

_TRUE = ("1", "true", "yes", "on")
_LOOKED_AT = frozenset({"TENSORTAP_CONTROL", "TENSORTAP_HTTP_PORT", "TENSORTAP_SGLANG_ENV"})
"""Variables with which a process that records nothing may still have something to do from the start."""


class RecordingProcess:
    """The part of the recorder that no value passes through."""

    def __init__(self, settings: Settings | None = None) -> None:
        """``settings``: None takes them from the environment when they are first needed."""
        self.number: int | None = None
        """How the graphs of ``torch.compile`` name this recorder; None while the process has no torch."""
        self._settings: Settings | None = settings
        self._taps = TapTable()
        self._broken_off: int | None = None
        """The step in whose middle the recording ended, once it did."""
        self._open = Lifecycle(self, self.end, self._taps, self._coverage)
        self._thread_tags = ThreadTags()
        self._common_tags: Mapping[str, Any] = {}
        """Tags of every record of every thread."""
        self._values, self._gradients = True, False
        """Whether values are recorded, and gradients of all of them: ``enable_value``, ``enable_grad``."""
        self._captures: list[Records] = []
        self._attachments: list[Attachment] = []
        """Of ``register_non_intrusive_dumper``."""
        self._special_values: SpecialValues | None = None
        self._lock = RLock()
        self._ending = RLock()
        """Held while the process ends: whoever else wants to end it waits until the files are complete."""
        self._steps = Steps()
        self._recording = self._wanted = False
        """Whether anything is recorded; whether the settings want the step under way."""
        self._log = LogOnce()
        self._graphs: GraphTaps | None = None
        self._only_graphs = False
        """Whether only what goes into a CUDA graph that is being captured is wanted."""
        self._unnested: set[type] = set()
        """Types of values that hold no others: tensors and scalars."""
        self.way = Way()
        self._shortcut: Callable[..., bool] | None = None
        """What records tensors that come as others came before, where there is nothing to decide."""
        self._ended = False
        if settings is not None:
            self._refresh()
        elif os.environ.get("TENSORTAP_ENABLE", "").strip().lower() in _TRUE or not _LOOKED_AT.isdisjoint(os.environ):
            self._load_settings()

    @property
    def _recorder(self) -> Any:
        """This object, as those know it who call what records."""
        return self

    # Settings

    def configure(self, **settings: Any) -> None:
        """Change settings (``dumper/settings.py``). Raises SettingsError for one that is unknown or does not fit.

        Settings of where and how the file is written (``dir``, ``run``, ``memory_budget``, …) take effect when the next
        file begins; call ``close`` first to move a running recording.
        """
        with self._lock:
            self._change(settings)
            # A process with taps is controlled before its first pass; where it is, its first record says for good.
            if self.has_taps and self._open.session is None:
                self._open.stop_control_elsewhere(self.settings)
                self._open.start_control(self.settings)

    def _change(self, settings: Mapping[str, Any]) -> None:
        with self._lock:
            changed = self.settings.changed(**settings)
            if changed.enable and changed.strict and not self.settings.enable and self._graphs is not None:
                self._graphs.check_none_is_silent()
            self._settings = changed
            if self._open.session is not None:
                self._open.session.reconfigure(self._settings)
            self._refresh()

    def apply(self, changes: dict[str, Any]) -> None:
        """What ``configure`` does, asked for from outside (``dumper/control``); another place holds from now on."""
        before = self.settings.run_path
        self._change(changes)
        if self.settings.run_path != before:
            with self._lock:
                session = self._open.take_session()
            if session is not None:
                session.close()

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
            self._log.say(str(error))
        self._refresh()

    def _refresh(self) -> None:
        """Decide anew whether anything is recorded now, and tell the taps."""
        if self.number is None:
            self.number = Tracing.number(self._recorder)
        settings = self._settings
        if settings is not None and not (self._steps.begun or self._steps.announced):
            self._steps.number = settings.first_step
        graphs = self._graph_taps() if settings is not None else None
        wanted = self._wanted = self._wants_step()
        if settings is not None:
            self._values, self._gradients = settings.enable_value, settings.enable_grad
        ended = self._ended and self._open.session is None
        self._recording = (wanted and not ended) or bool(self._captures)
        # What is captured now may be replayed in a step that is wanted.
        self._only_graphs = (
            not self._recording
            and settings is not None
            and settings.enable
            and not ended
            and graphs is not None
            and graphs.open
        )
        self._recording = self._recording or self._only_graphs
        self._take_shortcut(None)
        if self._open.session is not None:
            self._find_shortcut(self._open.session)
        self._taps.switch(self._recording)

    def _wants_step(self) -> bool:
        settings = self._settings
        return settings is not None and settings.enable and settings.wants_step(self._steps.number)

    def _refresh_at_step(self) -> None:
        """``_refresh`` where a step can make a difference: whatever else does so calls it, but for torch, which a
        process may have imported since the last one."""
        if self._graphs is None or self._wants_step() != self._wanted:
            self._refresh()

    # Taps

    def install_taps(
        self, module: str, taps: tuple[Mapping[str, Any], ...], config: Mapping[str, Any]
    ) -> tuple[Tap, ...]:
        """Called by patched modules while they are imported (contract 1)."""
        with self._lock:
            installed = self._taps.install(self._recorder, (module, taps, config))
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

    def _announce_step(self, for_record: bool = False) -> None:
        """Write the step with its token layout, once, when its first record comes or it ends; without a record not
        where nobody knows its tokens."""
        if self._steps.is_unknown and not for_record:
            return
        if self._steps.unannounced and self._recording and not self._captures:
            try:
                session = self._open.session or self._open_session()
                self._steps.announced = True
                layout = self._steps.take_layout()
                session.begin_step(self._steps.number, layout, self._steps.tags, self._steps.updates_before)
                if self._graphs is not None:
                    self._steps.size = self._graphs.size_of_pass(layout)
            except Exception as error:
                self._complain(f"step {self._steps.number} was not recorded: {error}", key=f"step {type(error)}")

    def _coverage(self) -> dict[str, Any]:
        """What taps did, for the end of the file."""
        graphs = self._graphs.account_so_far().fields() if self._graphs is not None else {}
        more = {} if self._broken_off is None else {"broken_off": self._broken_off}
        return {**self._taps.coverage(), **({"graphs": graphs} if graphs else {}), **more}

    # CUDA graphs

    def _graph_taps(self) -> GraphTaps | None:
        """The taps in CUDA graphs; None while the process has no torch."""
        if self._graphs is None:
            torch = sys.modules.get("torch")
            if getattr(getattr(torch, "cuda", None), "CUDAGraph", None) is not None:
                with self._lock:
                    from dumper.recording.graphs.graph_taps import GraphTaps

                    self._graphs = GraphTaps(self._recorder)
        return self._graphs

    def captures_changed(self) -> None:
        """The capture of a CUDA graph has begun or ended."""
        with self._lock:
            self._refresh()

    @property
    def has_taps(self) -> bool:
        """Whether any tap is installed."""
        return bool(self._taps.modules)

    def tap_of(self, tap: str | None) -> Tap | None:
        """The tap of an id."""
        return self._taps.known(tap)

    def say(self, message: str, key: str) -> None:
        """Log once."""
        self._log.say(message, key=key)

    # The session: what is open while something is recorded

    def _open_session(self) -> Session:
        with self._lock:
            if self._ended and self._open.session is None:
                raise RuntimeError("the process is ending")
            return self._open.open(self.settings, self._steps.batch)

    def _find_shortcut(self, session: Session) -> None:
        # Most values that take the long way do so each time: the lock is not for them.
        if self._takes_shortcut(session):
            with self._lock:
                if self._takes_shortcut(session):
                    self._take_shortcut(session.shortcut(self._steps))

    def _take_shortcut(self, shortcut: Shortcut | None) -> None:
        """Taps go there by themselves, unless something has to be added to what they record."""
        self._shortcut = None if shortcut is None else shortcut.submit
        flags = vars(Tracing.flags)
        self.way.take(None if self._common_tags else shortcut, flags if isinstance(flags, dict) else {}, ThreadTags)

    def _takes_shortcut(self, session: Session) -> bool:
        nothing_else = self._values and not (self._gradients or self._captures or self._only_graphs)
        current = self._recording and nothing_else and session is self._open.session
        return current and session.offers_shortcut(self._shortcut)

    def flush(self) -> None:
        """Return when all that was dumped is in the file."""
        session = self._open.session
        if session is not None:
            session.flush()

    def close(self) -> None:
        """Complete the files. What is dumped afterwards begins anew, with step 0, which needs another run name."""
        with self._lock:
            self._announce_step()
            self._broken_off = self._step_broken_off()
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
                self._broken_off = self._step_broken_off()
                self._ended = True
                control = self._open.take_control()
                session = self._open.session
                self._refresh()
            if control is not None:
                control.close()
            if session is not None:
                session.end()
            self._report_graphs()

    def _step_broken_off(self) -> int | None:
        """The step under way, where the recording ends in the middle of it; None where it does not, or where nobody
        tells when steps end."""
        steps = self._steps
        if not (steps.open and steps.announced):
            return None
        return steps.number if steps.ends or any(tap.id.endswith(":end_step") for tap in self._taps) else None

    def _report_graphs(self) -> None:
        """Say what was recorded of CUDA graphs, and what was silent."""
        if self._graphs is not None:
            account = self._graphs.account_so_far()
            if report := account.report():
                self._log.say(report, level="warning" if account.silent else "info")

    def _forked(self, whole: bool) -> None:
        """In the child of a fork: the parent's file and threads are not ours. Unless ``whole``, another thread was
        opening the recording, and the child cannot open one."""
        self._lock, self._ending = RLock(), RLock()
        self._ended = not whole
        self._open.forget()
        self._refresh()

    def _complain(self, message: str, *, key: str) -> None:
        self._log.say(f"{message}. The model runs on; this is said once and counted in the run.", key=key)
