"""Runs a command and, when it is told to or left alone, ends it with everything that it started.

``python testbed/supervise.py GRACE_SECONDS COMMAND…`` ends when the command ends, or as soon as its own standard
input closes: the process that started it closes that on purpose, and the kernel closes it when that process dies of
whatever cause. So nothing outlives a test session, not even a killed one.

Only processes that descend from this one are touched. As a subreaper (``prctl(2)``) it adopts descendants whose
own parent has gone, so it knows all of them.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Protocol

import psutil

PR_SET_CHILD_SUBREAPER = 36
"""From ``linux/prctl.h``."""


class Child(Protocol):
    """What is supervised, as in ``subprocess.Popen``."""

    def poll(self) -> int | None: ...

    def wait(self) -> int: ...


def main(arguments: list[str]) -> int:
    become_supervisor()
    child = subprocess.Popen(arguments[1:], stdin=subprocess.DEVNULL)
    return supervise(child, sys.stdin.fileno(), float(arguments[0]))


def become_supervisor() -> None:
    """Adopt what descendants leave behind, and end by nothing but the closing of the lifeline."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: None)  # unlike SIG_IGN, a handler is not inherited
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def supervise(child: Child, lifeline: int, grace: float) -> int:
    """Returns the exit code of the child, when it ended or the other end of ``lifeline`` (a descriptor) was closed."""
    while child.poll() is None:
        readable, _, _ = select.select([lifeline], [], [], 0.1)
        if readable and not os.read(lifeline, 1024):
            break
    end_descendants(grace)
    return child.wait()


def end_descendants(grace: float) -> None:
    """SIGTERM to the processes without children of their own, then SIGKILL to whatever is left.

    The ranks of a server are such leaves: they get ``grace`` seconds to finish their recordings, before their
    launcher learns of it.
    """
    leaves = [process for process in psutil.Process().children(recursive=True) if _ends_on_sigterm(process)]
    for process in leaves:
        _send(process, signal.SIGTERM)
    deadline = time.monotonic() + grace
    while any(map(_runs, leaves)) and time.monotonic() < deadline:
        time.sleep(0.02)
    while remaining := psutil.Process().children(recursive=True):
        for process in remaining:
            _send(process, signal.SIGKILL)
        psutil.wait_procs(remaining, timeout=grace)


def _ends_on_sigterm(process: psutil.Process) -> bool:
    """Whether SIGTERM ends the process and nothing but it: it has no children, except those that ignore SIGTERM, as
    multiprocessing's resource tracker does (a rank that was forked starts one of its own)."""
    try:
        return not _ignores_sigterm(process) and all(_ignores_sigterm(child) for child in process.children())
    except psutil.NoSuchProcess:
        return False


def _ignores_sigterm(process: psutil.Process) -> bool:
    """True also for a process that has ended meanwhile."""
    try:
        status = Path(f"/proc/{process.pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return True
    ignored = int(status.split("SigIgn:")[1].split()[0], 16)  # bit n - 1 is signal n, see proc_pid_status(5)
    return bool(ignored >> (signal.SIGTERM - 1) & 1)


def _runs(process: psutil.Process) -> bool:
    """False for a zombie too: its parent may take long to notice."""
    try:
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def _send(process: psutil.Process, number: signal.Signals) -> None:
    with contextlib.suppress(psutil.NoSuchProcess):
        process.send_signal(number)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
