"""The thread of a rank that watches the control folder, so that the model's thread never touches a file."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from dumper.control import files
from dumper.control.participant import Participant, Place, Target
from dumper.format import json_files
from dumper.format.regular_files import make_folders
from dumper.format.run_files import control_folder
from dumper.log_once import log

if TYPE_CHECKING:
    from dumper.control.http import ControlServer

_IDLE_SECONDS = 0.1
_BUSY_SECONDS = 0.01
_PLACELESS_SECONDS = 0.5
_HEARTBEAT_SECONDS = 1.0


class Control:
    """Control of one process while it runs: what the recorder holds.

    Until the process has a place among the ranks, nothing is written and no command is answered.
    """

    def __init__(
        self,
        run: Path,
        target: Target,
        find_place: Callable[[bool], Place | None],
        http_port: int | None = None,
        http_token: str | None = None,
        folder_mode: int = 0o700,
    ) -> None:
        """``find_place`` is asked until it knows; with True once the process makes steps, and must know then."""
        self.pid = os.getpid()
        self.run = run
        self._folder = control_folder(run)
        self._folder_mode = folder_mode
        self._http_port = http_port
        self._http_token = http_token
        self._server: ControlServer | None = None
        self._target = target
        self._find_place = find_place
        self._participant: Participant | None = None
        self._step = -1
        self._asked = False
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._heartbeat_due = 0.0
        self._rate = _Rate()
        self._complained = False
        self._thread = threading.Thread(target=self._watch, name="tensortap-control", daemon=True)
        try:
            self._thread.start()
        except RuntimeError as error:  # there may be no more threads
            self._complain(error)

    def at_step(self, step: int) -> None:
        """Step ``step`` begins; agreed changes take effect here. Never raises."""
        self._step = step
        participant = self._participant or self._participant_at_first_step()
        if participant is not None:
            participant.at_step(step)

    def _participant_at_first_step(self) -> Participant | None:
        if not self._asked:
            self._asked = True
            try:
                place = self._find_place(True)
                if place is not None:
                    self.set_place(place)
            except Exception as error:
                self._complain(error)
        return self._participant

    def set_place(self, place: Place) -> None:
        """The process is this rank. Later calls change nothing."""
        with self._lock:
            if self._participant is not None:
                return
            try:
                make_folders(self._folder, self._folder_mode)
                participant = Participant(self._folder, place, self._target, first_step=self._step)
            except OSError as error:
                self._complain(error)
                return
            self._participant = participant
        # A step that began on the model's thread meanwhile must not be missed.
        while participant.step < self._step:
            participant.step = self._step
        if self._http_port is not None and place.rank == 0:
            from dumper.control.http import serve

            self._server = serve(self.run, self._http_port, self._http_token)

    def close(self) -> None:
        """Stop watching; the rank's file says that it has ended. Never raises."""
        self._stop.set()
        if self._server is not None:
            self._server.close()
        if self._thread.is_alive() and self._thread is not threading.current_thread():
            self._thread.join(timeout=1.0)
        if self._participant is not None and self.pid == os.getpid():
            self._beat(self._participant, ended=True)

    def _watch(self) -> None:
        while not self._stop.is_set():
            busy = False
            try:
                busy = self._watch_once()
            except Exception as error:
                self._complain(error)
            placeless = self._participant is None
            self._stop.wait(_BUSY_SECONDS if busy else _PLACELESS_SECONDS if placeless else _IDLE_SECONDS)

    def _watch_once(self) -> bool:
        participant = self._participant
        if participant is None:
            place = self._find_place(False)
            if place is not None:
                self.set_place(place)
            return False
        busy = participant.poll()
        if time.monotonic() >= self._heartbeat_due:
            self._beat(participant)
        return busy

    def _beat(self, participant: Participant, ended: bool = False) -> None:
        """Publish where the rank is."""
        self._heartbeat_due = time.monotonic() + _HEARTBEAT_SECONDS
        place = participant.place
        content = {
            "rank": place.rank,
            "world_size": place.world_size,
            "group": place.group,
            "host": socket.gethostname(),
            "pid": self.pid,
            "step": participant.step,
            "steps_per_second": self._rate.at(participant.step),
            "applied": participant.applied,
            "applied_at": participant.applied_at,
            "ended": ended,
            "time": time.time(),
            "state": {**self._target.state(), "initial": participant.initial},
        }
        try:
            json_files.write(files.rank_file(self._folder, place.rank), content)
        except OSError as error:
            self._complain(error)

    def _complain(self, error: Exception) -> None:
        if not self._complained:
            self._complained = True
            log().warning(
                "tensortap: recording cannot be controlled through %s: %s: %s",
                self._folder,
                type(error).__name__,
                error,
            )


class _Rate:
    """Steps per second since it was last asked."""

    def __init__(self) -> None:
        self._step, self._time = -1, time.monotonic()

    def at(self, step: int) -> float:
        now = time.monotonic()
        rate = (step - self._step) / max(now - self._time, 1e-3)
        self._step, self._time = step, now
        return round(rate, 1)
