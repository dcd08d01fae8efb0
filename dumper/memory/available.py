"""How much memory is left: a value larger than the whole budget is copied only where there is room for it."""

from __future__ import annotations

import contextlib
from pathlib import Path

from dumper.values.plain import UnrecordableError


def available_bytes() -> int:
    """What this process may still take: the machine's free memory, within the limit of its control group.

    A very large number where neither can be read.
    """
    found = [_of_machine(), _of_group()]
    return min((amount for amount in found if amount is not None), default=1 << 62)


def _of_machine() -> int | None:
    with contextlib.suppress(OSError, ValueError, IndexError):
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return None


def _of_group() -> int | None:
    """What is left of the limit of a version 2 control group."""
    with contextlib.suppress(OSError, ValueError):
        folder = Path("/sys/fs/cgroup")
        limit = int((folder / "memory.max").read_text())
        return max(0, limit - int((folder / "memory.current").read_text()))
    return None


def check_room(nbytes: int) -> None:
    """Raises UnrecordableError for a copy that would leave the model without memory."""
    there = available_bytes()
    if nbytes > there:
        raise UnrecordableError(f"its copy would take {nbytes} bytes, and the machine has {there} left")
