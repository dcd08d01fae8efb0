"""How many cores there are to use."""

from __future__ import annotations

import contextlib
import os

_CPU_MAX = "/sys/fs/cgroup/cpu.max"


def available_cores() -> int:
    """Cores that this process may use: by its affinity, and by the quota of its cgroup."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with contextlib.suppress(OSError, ValueError), open(_CPU_MAX, "rb") as file:
        quota, period = file.read().split()
        cores = min(cores, max(1, round(int(quota) / int(period))))
    return cores
