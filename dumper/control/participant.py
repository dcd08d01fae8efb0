"""A rank's part in agreeing on the step at which a change takes effect. ``docs/control.md`` gives the reasoning.

Two threads meet here. The model's thread calls ``at_step`` at the beginning of every step; with nothing pending
that is one store and one comparison. A watcher thread calls ``poll``, which does all the reading and writing.
"""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from dumper.control import files
from dumper.control.changes import PLACES, Changes, describe, resolve
from dumper.format import json_files
from dumper.log_once import log
from tensortap.printable import printable

_NEVER = 1 << 62


class Target(Protocol):
    """What is controlled: the recorder."""

    def apply(self, changes: Changes) -> None:
        """Take over settings, from the step that is just beginning. Called on the model's thread."""

    def state(self) -> dict[str, Any]:
        """Plain values for ``ctl status``, the settings that can be changed among them under ``settings``."""


@dataclass(frozen=True)
class Place:
    """Who a rank is, and which ranks count steps together with it."""

    rank: int
    world_size: int
    group: str = "0"
    """Ranks of one group share one step count: an engine. Whole-model replicas are groups of their own."""


@dataclass
class _Command:
    generation: int
    changes: Changes
    expires: float
    """Monotonic time after which this rank gives the command up."""
    effective: int | None = None
    committed: bool | None = None


@dataclass
class Participant:
    """The rank's state in the agreement. ``now`` and ``sleep`` are seams for tests."""

    folder: Path
    place: Place
    target: Target
    decide_timeout: float = 2.0
    """Seconds that a rank which has reached the agreed step waits for the outcome before it calls it off."""
    first_step: int = -1
    now: Any = time.monotonic
    sleep: Any = time.sleep
    step: int = field(init=False)
    """The step that began last, -1 before the first."""
    applied: int = field(default=0, init=False)
    applied_at: int | None = field(default=None, init=False)
    _due: int = field(default=_NEVER, init=False)
    _commands: dict[int, _Command] = field(default_factory=dict, init=False)
    _seen: int = field(default=0, init=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, init=False)
    initial: Changes = field(default_factory=dict, init=False)
    """The settings to which ``reset`` goes back."""

    def __post_init__(self) -> None:
        self.step = self.first_step
        settings = self.target.state().get("settings", {})
        self.initial = {key: value for key, value in settings.items() if key not in PLACES}
        # What was decided before this rank came is not for it; what is still open is.
        newest = files.read_latest(self.folder)
        while self._seen < newest and files.outcome(self.folder, self._seen + 1).exists():
            self._seen += 1

    # The model's thread.

    def at_step(self, step: int) -> None:
        """Step ``step`` begins. Never raises."""
        self.step = step
        if step >= self._due:
            self._reach(step)

    def _reach(self, step: int) -> None:
        with self._lock:
            due = [c for c in self._commands.values() if c.effective is not None and c.effective <= step]
        for command in sorted(due, key=lambda c: (c.effective or 0, c.generation)):
            # A step behind this one was answered with "too late" and cannot have been agreed on.
            if command.effective == step and self._decided(command):
                self._apply(command, step)
            with self._lock:
                self._commands.pop(command.generation, None)
        with self._lock:
            self._set_due()

    def _decided(self, command: _Command) -> bool:
        """Whether the command holds. Waits for the outcome, and calls the command off when none comes."""
        deadline = self.now() + self.decide_timeout
        while command.committed is None:
            command.committed = self._outcome(command.generation)
            if command.committed is None and self.now() > deadline:
                self._call_off(command, f"rank {self.place.rank} reached step {self.step} without a decision")
                command.committed = bool(self._outcome(command.generation))
            elif command.committed is None:
                self.sleep(0.001)
        return command.committed

    def _apply(self, command: _Command, step: int) -> None:
        try:
            changes = resolve(command.changes, step)
            if changes.pop("reset", False):
                changes = {**self.initial, **changes}
            self.target.apply(changes)
        except Exception as error:
            log().warning("tensortap: cannot apply %s: %s", command.changes, printable(error))
            return
        self.applied, self.applied_at = command.generation, step
        log().info("tensortap: from step %d: %s", step, describe(command.changes))

    # The watcher's thread.

    def poll(self) -> bool:
        """Read what is new and answer it; whether something is under way, so that the next poll should be soon.

        Raises OSError when the folder cannot be used.
        """
        newest = files.read_latest(self.folder)
        while self._seen < newest:
            self._seen += 1
            self._begin(self._seen)
        with self._lock:
            open_commands = [c for c in self._commands.values() if c.committed is None]
        for command in open_commands:
            self._advance(command)
        return bool(open_commands)

    def _begin(self, generation: int) -> None:
        content = json_files.read(files.command(self.folder, generation))
        if content is None or files.outcome(self.folder, generation).exists():
            return
        expires = self.now() + float(content.get("timeout", 30.0)) + 5.0
        with self._lock:
            self._commands[generation] = _Command(generation, dict(content["changes"]), expires)
        self._reply(files.acknowledgement(self.folder, generation, self.place.rank))

    def _advance(self, command: _Command) -> None:
        if command.effective is None:
            agreed = json_files.read(files.plan(self.folder, command.generation))
            if agreed is not None:
                self._schedule(command, int(agreed["effective"].get(self.place.group, _NEVER)))
        decided = self._outcome(command.generation)
        if decided is None and self.now() > command.expires:
            self._call_off(command, f"rank {self.place.rank} saw no decision in time")
            decided = self._outcome(command.generation)
        if decided is not None:
            command.committed = decided
            if not decided or command.effective is None:
                self._forget(command)

    def _schedule(self, command: _Command, effective: int) -> None:
        """Take part in the change at this step, or say that it is too late.

        The order matters: the step to stop at is set before the step under way is read. When the model has not
        reached the step after that, it will find it set. When it has, it may have found it or not; the answer is
        "too late" in both cases, and the change is called off for all.
        """
        in_time = self.step < effective
        if in_time:
            with self._lock:
                command.effective = effective
                self._set_due()
            in_time = self.step < effective
        self._reply(files.answer(self.folder, command.generation, self.place.rank), in_time=in_time)
        if not in_time:
            command.effective = effective

    def _forget(self, command: _Command) -> None:
        with self._lock:
            self._commands.pop(command.generation, None)
            self._set_due()

    def _set_due(self) -> None:
        steps = [c.effective for c in self._commands.values() if c.effective is not None]
        self._due = min(steps, default=_NEVER)

    def _reply(self, path: Path, **more: Any) -> None:
        json_files.write(path, {"rank": self.place.rank, "group": self.place.group, "step": self.step, **more})

    def _outcome(self, generation: int) -> bool | None:
        content = json_files.read(files.outcome(self.folder, generation))
        return None if content is None else content.get("commit") is True

    def _call_off(self, command: _Command, reason: str) -> None:
        try:
            json_files.create(files.outcome(self.folder, command.generation), {"commit": False, "reason": reason})
        except OSError as error:
            log().warning("tensortap: a change is not applied, its outcome cannot be written: %s", error)
