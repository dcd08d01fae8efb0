"""The side of whoever changes something: propose, collect, decide. Runs anywhere that sees the run directory."""

from __future__ import annotations

import contextlib
import math
import os
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dumper.control import files
from dumper.control.changes import Changes, check
from dumper.format import json_files
from dumper.format.run_files import control_folder

_STALE_SECONDS = 15.0
_MARGIN_SECONDS = 0.5
_ATTEMPTS = 5
_MOST_PENDING = 100


class ControlError(Exception):
    """A change that was not made, with the reason for people. Nothing has changed on any rank."""


@dataclass(frozen=True)
class Rank:
    """What a rank last published."""

    rank: int
    world_size: int
    group: str
    host: str
    pid: int
    step: int
    applied: int
    applied_at: int | None
    ended: bool
    silent_seconds: float
    """How much older this rank's word is than the newest word of any rank (and than now, on this machine)."""
    state: dict[str, Any]


@dataclass(frozen=True)
class Agreed:
    """A change that every rank will make, or has made."""

    generation: int
    effective: dict[str, int]
    """Group of ranks to the step from which the change holds."""
    ranks: tuple[int, ...]


@dataclass(frozen=True)
class Pending:
    """A change that a rank has agreed to and not reached."""

    generation: int
    step: int
    """The step from which it holds."""
    changes: Changes


def pending_changes(run: Path, rank: Rank) -> list[Pending]:
    """The changes that a rank will make when it reaches their step, by step."""
    folder = control_folder(run)
    found = []
    # What is still open is newer than what was applied last, and a run is not changed thousands of times at once.
    newest = files.read_latest(folder)
    for generation in range(max(rank.applied + 1, newest - _MOST_PENDING), newest + 1):
        if not _committed(json_files.read(files.outcome(folder, generation))):
            continue
        plan = json_files.read(files.plan(folder, generation)) or {}
        command = json_files.read(files.command(folder, generation)) or {}
        effective, changes = plan.get("effective"), command.get("changes")
        step = effective.get(rank.group) if isinstance(effective, dict) else None
        if isinstance(step, int) and isinstance(changes, dict) and step > rank.step:
            found.append(Pending(generation, step, changes))
    return sorted(found, key=lambda change: (change.step, change.generation))


def read_ranks(run: Path) -> list[Rank]:
    """All ranks that ever published themselves in this run, by number."""
    found = []
    for path in files.rank_files(control_folder(run)):
        content = json_files.read(path)
        if content is not None:
            found.append((content, path.stat().st_mtime))
    newest = max((mtime for _, mtime in found), default=0.0)
    ranks = []
    for content, mtime in found:
        same_host = content.get("host") == socket.gethostname()
        # What is no word of a rank is left out: the folder may hold anything.
        with contextlib.suppress(KeyError, TypeError, ValueError, OverflowError):
            silent = max(newest - mtime, time.time() - float(content.get("time", 0)) if same_host else 0.0)
            ranks.append(_rank(content, silent))
    return sorted(ranks, key=lambda rank: rank.rank)


def living(ranks: list[Rank]) -> list[Rank]:
    """The ranks that can answer: neither ended nor killed."""
    return [rank for rank in ranks if not rank.ended and not _is_gone(rank)]


def change(
    run: Path, changes: Changes, *, timeout: float = 30.0, report: Callable[[str], None] = lambda line: None
) -> Agreed:
    """Make the changes take effect at one step on all ranks of the run; returns when every rank has agreed.

    With no pass under way they hold from the next pass on. Raises ControlError when a rank is missing or does not
    answer within ``timeout`` seconds, ValueError for changes that cannot be made.
    """
    checked = check(changes)
    ranks = expected_ranks(run)
    margin_seconds = _MARGIN_SECONDS
    for _ in range(_ATTEMPTS):
        agreed = _Attempt(run, checked, ranks, timeout, margin_seconds).run()
        if agreed is not None:
            return agreed
        margin_seconds *= 4
        report("a rank had already passed the step that was to be agreed on; trying a later one")
    raise ControlError(f"the ranks step too fast to agree: {_ATTEMPTS} attempts failed; nothing was changed")


def expected_ranks(run: Path) -> list[Rank]:
    """The ranks that have to agree. Raises ControlError when some or all are missing."""
    if not run.is_dir():
        raise ControlError(f"{run}: no such run directory")
    known = read_ranks(run)
    ranks = living(known)
    if not ranks:
        ended = f" ({len(known)} ended ranks have left their files)" if known else ""
        raise ControlError(
            f"{run}: no process can be controlled through this run{ended}. A process takes part when it was started"
            f" with TENSORTAP_ENABLE=1 or TENSORTAP_CONTROL=1 and this run directory, and has set up its ranks"
        )
    size = max(rank.world_size for rank in ranks)
    missing = sorted(set(range(size)) - {rank.rank for rank in ranks})
    if missing:
        raise ControlError(
            f"{run}: of {size} ranks these have not shown up: {', '.join(map(str, missing))}. A change must reach"
            " all ranks: start them with the same TENSORTAP_DIR, TENSORTAP_RUN and TENSORTAP_CONTROL"
        )
    return ranks


class _Attempt:
    """One command: written, seen, planned, answered, decided."""

    def __init__(self, run: Path, changes: Changes, ranks: list[Rank], timeout: float, margin_seconds: float) -> None:
        self._run = run
        self._folder = control_folder(run)
        self._ranks = ranks
        self._timeout = timeout
        self._margin_seconds = margin_seconds
        self._changes = changes
        self._generation = 0

    def run(self) -> Agreed | None:
        """None when a rank was too late; the attempt has been called off then."""
        self._propose()
        seen = self._collect(files.acknowledgement, "see the change")
        effective = self._effective(seen)
        json_files.write(files.plan(self._folder, self._generation), {"effective": effective})
        answers = self._collect(files.answer, "agree on a step")
        in_time = all(answer["in_time"] for answer in answers)
        if not in_time:
            self._call_off("a rank had passed the step")
            return None
        outcome = files.outcome(self._folder, self._generation)
        if not json_files.create(outcome, {"commit": True}) and not _committed(json_files.read(outcome)):
            return None
        return Agreed(self._generation, effective, tuple(rank.rank for rank in self._ranks))

    def _propose(self) -> None:
        content = {
            "changes": self._changes,
            "timeout": self._timeout,
            "by": f"{socket.gethostname()}:{os.getpid()}",
            "time": time.time(),
        }
        self._generation = files.read_latest(self._folder) + 1
        while not json_files.create(files.command(self._folder, self._generation), content):
            self._generation += 1
        self._announce()

    def _announce(self) -> None:
        """Somebody who proposed at the same time may have announced an older number after ours."""
        if files.read_latest(self._folder) < self._generation:
            json_files.write(files.latest(self._folder), {"generation": self._generation})

    def _collect(self, path_of: Callable[[Path, int, int], Path], purpose: str) -> list[dict[str, Any]]:
        """One file of every rank. Raises ControlError, after calling the command off, when one is missing."""
        deadline = time.monotonic() + self._timeout
        collected: dict[int, dict[str, Any]] = {}
        while True:
            for rank in self._ranks:
                content = collected.get(rank.rank) or json_files.read(
                    path_of(self._folder, self._generation, rank.rank)
                )
                if content is not None:
                    collected[rank.rank] = content
            missing = [rank for rank in self._ranks if rank.rank not in collected]
            if not missing:
                return list(collected.values())
            if time.monotonic() > deadline:
                self._call_off(f"rank {missing[0].rank} did not {purpose}")
                silent = ", ".join(f"rank {rank.rank} (pid {rank.pid} on {rank.host})" for rank in missing)
                raise ControlError(
                    f"{silent} did not {purpose} within {self._timeout:g} s; nothing was changed on any rank"
                )
            self._announce()
            time.sleep(0.01)

    def _effective(self, seen: list[dict[str, Any]]) -> dict[str, int]:
        """Group to step: beyond every rank's step, by the steps that pass while the ranks agree."""
        effective = effective_steps(
            [(str(word["group"]), int(word["step"])) for word in seen],
            {rank.group: float(rank.state.get("steps_per_second", 0.0)) for rank in self._ranks},
            self._margin_seconds,
        )
        # Not before a change that was agreed on earlier: that would be the last word then.
        for rank in self._ranks:
            ahead = [change.step for change in pending_changes(self._run, rank)]
            effective[rank.group] = max(effective[rank.group], *ahead, 0)
        return effective

    def _call_off(self, reason: str) -> None:
        json_files.create(files.outcome(self._folder, self._generation), {"commit": False, "reason": reason})


def effective_steps(
    steps: list[tuple[str, int]], steps_per_second: dict[str, float], margin_seconds: float
) -> dict[str, int]:
    """Group to the step at which a change takes effect, from ``(group, step under way)`` of every rank.

    The margin only spares the ranks a wait at that step; that all of them change there does not rest on it.
    """
    effective: dict[str, int] = {}
    for group, step in steps:
        margin = 1 + math.ceil(max(steps_per_second.get(group, 0.0), 0.0) * margin_seconds)
        effective[group] = max(effective.get(group, 0), step + margin)
    return effective


def _committed(content: dict[str, Any] | None) -> bool:
    return content is not None and content.get("commit") is True


def _rank(content: dict[str, Any], silent_seconds: float) -> Rank:
    state = dict(content.get("state") or {})
    state["steps_per_second"] = float(content.get("steps_per_second", 0.0))
    state["settings"] = dict(state.get("settings") or {})
    return Rank(
        rank=int(content["rank"]),
        world_size=int(content["world_size"]),
        group=str(content["group"]),
        host=str(content["host"]),
        pid=int(content["pid"]),
        step=int(content["step"]),
        applied=int(content["applied"]),
        applied_at=None if content["applied_at"] is None else int(content["applied_at"]),
        ended=bool(content["ended"]),
        silent_seconds=silent_seconds,
        state=state,
    )


def _is_gone(rank: Rank) -> bool:
    """Whether the process was killed: not there any more on this machine, or long silent on another."""
    if rank.host != socket.gethostname():
        return rank.silent_seconds > _STALE_SECONDS
    try:
        os.kill(rank.pid, 0)
    except (ProcessLookupError, OverflowError):
        return True
    except PermissionError:
        return False
    return False
