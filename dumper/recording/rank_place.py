"""Where a rank's files go: the run that it joins, and the status block that it counts in."""

from __future__ import annotations

import contextlib
import os

from dumper.adapters.protocol import Process
from dumper.format.regular_files import make_folders
from dumper.format.run_files import status_path
from dumper.format.status import StatusBlock
from dumper.settings import Settings
from dumper.writing.run_id import join_run

_STATUS_NAMES = 20
_PROCESSES = 1 << 22
"""More than Linux has process ids."""


def make_and_join_run(settings: Settings) -> str:
    """The id of the run; its directory is made."""
    with contextlib.suppress(OSError):  # the writer says so
        make_folders(settings.run_path, settings.folder_mode)
    return join_run(settings.run_path, settings.file_mode, clean=settings.cleanup_previous)


def open_status(settings: Settings, process: Process, run_id: str) -> StatusBlock:
    """The status block on disk, or in memory alone where the directory cannot be written (the writer says so)."""
    number: int | None = None
    for _ in range(_STATUS_NAMES):
        try:
            return StatusBlock(status_path(settings.run_path, process.rank, number), settings.file_mode, run_id)
        except FileExistsError:
            # Of the process that has the rank's file; or of an earlier one with the number of this one.
            number = os.getpid() if number is None else number + _PROCESSES
        except OSError:
            break
    return StatusBlock(None, run_id=run_id)
