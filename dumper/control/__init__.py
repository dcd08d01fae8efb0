"""Control of a recording while it runs: switch it on, narrow it, switch it off, at the same step on every rank.

The recorder uses ``start`` and the ``Control`` that it returns; people use ``python -m dumper ctl``.
``docs/control.md`` describes both and why the agreement holds.
"""

from __future__ import annotations

from pathlib import Path

from dumper.adapters import Process, describe_process, is_settled
from dumper.control.participant import Place, Target
from dumper.control.watcher import Control

__all__ = ["Control", "Place", "Target", "place_of", "start"]


def start(
    run: Path, target: Target, http_port: int | None = None, http_token: str | None = None, folder_mode: int = 0o700
) -> Control:
    """Begin to watch the run's control folder in a thread of its own. Never raises.

    The rank is published as soon as a framework knows it, so that a server that has not made a pass yet can be
    controlled; a process without a framework, at its first step. Rank 0 serves ``http_port``, when that is given.
    Folders that are missing are made with ``folder_mode``; files are as private as the folder.
    """
    return Control(run, target, _find_place, http_port, http_token, folder_mode)


def place_of(process: Process) -> Place:
    """The rank's place, whole-model replicas (axis ``dp``) being groups that count steps on their own."""
    replica = process.parallel.get("dp", (0, 1))[0] if process.framework == "sglang" else 0
    return Place(process.rank, process.world_size, str(replica))


def _find_place(steps: bool) -> Place | None:
    process = describe_process(in_full=False)
    return place_of(process) if steps or is_settled(process) else None
