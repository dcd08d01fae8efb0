"""When the program was started that this process belongs to: the same for all ranks of one launch on a machine."""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path

PLACEHOLDER = "{time}"
VARIABLE = "TENSORTAP_LAUNCH_TIME"
"""Set by the first process that is asked, and inherited by those that it starts."""
_OF_RANKS = ("LOCAL_RANK", "OMPI_COMM_WORLD_RANK", "PMI_RANK", "SLURM_PROCID")
"""Variables of processes that a launcher has started beside others, once for every rank."""


def with_time(name: str) -> str:
    """A name whose ``{time}`` is the time of the launch in UTC, such as ``20260131-093000-250``."""
    if PLACEHOLDER not in name:
        return name
    started = os.environ.get(VARIABLE, "")
    if not started.replace("-", "").isdigit():
        started = os.environ[VARIABLE] = _written(_started())
    return name.replace(PLACEHOLDER, started)


def _started() -> float:
    """Seconds since the epoch: of the command of ``patcher run``, of the launcher where this process is one of its
    ranks, else of this process."""
    patched = os.environ.get("TENSORTAP_PATCH_LAUNCH", "").partition(":")[0]
    if patched.isdecimal():
        number = int(patched)
    else:
        number = os.getppid() if any(name in os.environ for name in _OF_RANKS) else os.getpid()
    with contextlib.suppress(OSError, ValueError, IndexError):
        fields = Path(f"/proc/{number}/stat").read_bytes().rpartition(b")")[2].split()
        up = float(Path("/proc/uptime").read_text().split()[0])
        return time.time() - up + int(fields[19]) / os.sysconf("SC_CLK_TCK")
    return time.time()


def _written(seconds: float) -> str:
    return f"{time.strftime('%Y%m%d-%H%M%S', time.gmtime(seconds))}-{int(seconds % 1 * 1000):03d}"
