"""The names of the files in a run directory, for those that write them and those that read them."""

from __future__ import annotations

import contextlib
import os
import re
from pathlib import Path

MOST_RANKS = 1 << 20
"""Ranks of a run; a file of a higher one, and a larger world size, are not believed."""
RANK_FILE = re.compile(r"rank-(?P<rank>[0-9]+)(?:\.(?P<segment>[0-9]+))?\.msgpack")
STATUS_FILE = re.compile(r"rank-(?P<rank>[0-9]+)(?:\.(?P<process>[0-9]+))?\.status")

BESIDE = re.compile(r"process-[0-9]+")
"""The name of a folder as of ``beside_path``."""


def segment_path(run: Path, rank: int, segment: int) -> Path:
    """The file of a rank's n-th segment."""
    return run / (f"rank-{rank:05d}.msgpack" if segment == 0 else f"rank-{rank:05d}.{segment:04d}.msgpack")


def status_path(run: Path, rank: int, process: int | None = None) -> Path:
    """The status file of a rank; of a process that could not claim the rank's file, one with its process id."""
    return run / (f"rank-{rank:05d}.status" if process is None else f"rank-{rank:05d}.{process}.status")


def beside_path(run: Path, process: int) -> Path:
    """The run of a process whose rank's file belongs to a process that was forked from it, or from the same one."""
    return run / f"process-{process}"


def run_id_path(run: Path) -> Path:
    """The file with the id that the ranks of one launch share."""
    return run / "run-id"


def this_host() -> str:
    """This machine since it was started; processes are known by their numbers on no other."""
    names = os.uname()
    with contextlib.suppress(OSError):
        return f"{names.nodename}:{Path('/proc/sys/kernel/random/boot_id').read_text().strip()}"
    return names.nodename


def control_folder(run: Path) -> Path:
    """Where the processes of a run agree on changes, and tell each other of a NaN."""
    return run / "control"
