"""Where a rank's files go: the run that it joins, and the status block that it counts in."""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Sequence

from dumper.adapters.protocol import Process
from dumper.format import frames
from dumper.format.regular_files import make_folders, open_to_read
from dumper.format.run_files import beside_path, segment_path, status_path
from dumper.format.status import StatusBlock
from dumper.log_once import log
from dumper.settings import Settings
from dumper.writing.run_id import join_run

_STATUS_NAMES = 20
_PROCESSES = 1 << 22
"""More than Linux has process ids."""
_LONGEST_HEADER = 1 << 20
"""Bytes that are looked at for the first frame of a file."""


def make_and_join_run(settings: Settings) -> str:
    """The id of the run; its directory is made."""
    with contextlib.suppress(OSError):  # the writer says so
        make_folders(settings.run_path, settings.folder_mode)
    return join_run(settings.run_path, settings.file_mode, clean=settings.cleanup_previous)


def beside_relatives(settings: Settings, process: Process, run_id: str, forked_from: Sequence[int]) -> Settings:
    """The settings, with another run where the rank's file belongs to a process that was forked from this one, or from
    the same one, before anything was recorded: both record, and neither loses anything.

    A file of the process that this one was forked from stays that one's alone (``docs/recording.md``). ``forked_from``:
    the processes that this one was forked from, since it has a recorder.
    """
    path = segment_path(settings.run_path, process.rank, 0)
    try:
        descriptor = open_to_read(path)
    except OSError:
        return settings  # as a rule there is none
    try:
        with contextlib.suppress(OSError, frames.FormatError):
            header = frames.decode_meta(frames.decode_frame(os.read(descriptor, _LONGEST_HEADER), 0).meta)
            theirs = header.get("forked_from")
            related = isinstance(theirs, list) and not {os.getpid(), *forked_from}.isdisjoint(theirs)
            if related and header.get("run") == run_id and header.get("process") not in (os.getpid(), *forked_from):
                beside = beside_path(settings.run_path, os.getpid())
                log().warning(
                    "tensortap: rank %d: %s belongs to process %s, a fork that recorded first; this process records "
                    "into %s",
                    process.rank,
                    path.name,
                    header["process"],
                    beside,
                )
                return dataclasses.replace(settings, run=f"{settings.run}/{beside.name}")
    finally:
        os.close(descriptor)
    return settings


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
