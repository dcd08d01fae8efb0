"""What is open while something is recorded, from the first value to the end of the process: the session with its
writer, and the control of it."""

from __future__ import annotations

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, Protocol

    from dumper.control import Control, Target
    from dumper.memory.staging import Stager
    from dumper.recording.session import Session
    from dumper.recording.taps import TapTable
    from dumper.settings import Settings

    class Lock(Protocol):
        """A lock that can be waited for."""

        def acquire(self, blocking: bool = True, timeout: float = -1) -> bool: ...
        def release(self) -> None: ...


class Lifecycle:
    """Opens and closes. Its methods are called under the recorder's lock."""

    __slots__ = ("_at_end", "_controlled", "_coverage", "_forked_from", "_stager", "_taps", "control", "session")

    def __init__(
        self, controlled: Target, at_end: Callable[[], None], taps: TapTable, coverage: Callable[[], dict[str, Any]]
    ) -> None:
        """``controlled`` takes over what is changed from outside; ``at_end`` is called when the process ends;
        ``coverage`` tells what taps did, for the end of the file."""
        self._coverage = coverage
        self._controlled = controlled
        self._at_end = at_end
        self._taps = taps
        self._stager: Stager | None = None
        self._forked_from: tuple[int, ...] = ()
        """The processes that had this before."""
        self.session: Session | None = None
        self.control: Control | None = None

    def open(self, settings: Settings, batch: Any = None) -> Session:
        """The session, begun if there is none, with the batch of the step under way. Raises whatever keeps it from
        beginning."""
        if self.session is None:
            self.session = self._begin(settings, batch)
            self.start_control(settings)
            if self.control is not None:
                from dumper.control import place_of

                self.control.set_place(place_of(self.session.process))
            from dumper.recording.process_end import call_at_end

            call_at_end(self._at_end)
        return self.session

    def _begin(self, settings: Settings, batch: Any) -> Session:
        from dumper.memory.staging import Stager
        from dumper.recording.session import Session

        # Kept when a run is closed and another begun: its buffers are expensive to make.
        stager, wanted = self._stager, (settings.memory_budget, settings.direct_launch)
        if stager is None or (stager.pool_bytes, stager.direct_launch) != wanted:
            self._stager = stager = Stager(*wanted)
        session = Session(settings, self._coverage, stager, self._forked_from, batch)
        for module in self._taps.modules:
            session.add_taps(*module)
        from dumper.recording.taps import planned_taps

        planned = planned_taps()
        if planned:
            session.add_taps("", planned, {})
        return session

    def start_control(self, settings: Settings) -> None:
        """Take part in the control of the run, where the settings say so."""
        if self.control is None and settings.controlled:
            from dumper.control import start

            self.control = start(
                settings.run_path, self._controlled, settings.http_port, settings.http_token, settings.folder_mode
            )

    def stop_control_elsewhere(self, settings: Settings) -> None:
        """Take part no longer in the control of a run that the settings have left before anything was recorded."""
        control = self.control
        if control is not None and settings.controlled and control.run != settings.run_path:
            self.control = None
            control.close()

    def take(self) -> tuple[Session | None, Control | None]:
        """What has to be closed; nothing is open afterwards."""
        taken = self.session, self.control
        self.session = self.control = None
        return taken

    def take_session(self) -> Session | None:
        """The session alone, to be closed; control goes on."""
        taken, self.session = self.session, None
        return taken

    def take_control(self) -> Control | None:
        """The control alone, to be closed."""
        taken, self.control = self.control, None
        return taken

    def forget(self) -> None:
        """In the child of a fork: the parent's file, threads and buffers are not ours."""
        self._forked_from = (*self._forked_from, os.getppid())
        self.session = self.control = self._stager = None


LONGEST_FORK_WAIT = 0.5
"""Seconds."""


def watch_forks(lock: Callable[[], Lock], forked: Callable[[bool], None]) -> None:
    """Hold ``lock()`` while this process forks, and call ``forked`` in the child, with whether it was held.

    Whoever opens the recording holds the lock: a module that is half imported stays locked in the child. It is not
    waited for for long: who opens may wait for a lock that the fork holds (that of ``logging``).
    """
    held: list[Lock] = []

    def before() -> None:
        mine = lock()
        if mine.acquire(timeout=LONGEST_FORK_WAIT):
            held.append(mine)

    def after_in_parent() -> None:
        if held:
            held.pop().release()

    def after_in_child() -> None:
        was_held = bool(held)
        held.clear()
        forked(was_held)

    os.register_at_fork(before=before, after_in_parent=after_in_parent, after_in_child=after_in_child)
