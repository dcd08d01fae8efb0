"""The id of a run: what tells ranks that recorded together from files of another launch in the same directory.

The first process that comes writes a fresh id into a file of the run directory, with who it is; the others take the id
over. A process that finds the id of an earlier launch makes a new one, so that the files which that launch left show as
of another run. Ranks of one launch have a parent in common (torchrun, mpirun, a server), or run at the same time, or on
several machines; of a launch that is over, the process that wrote the id is gone, and its parent was another.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import secrets
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dumper.format.regular_files import open_or_create
from dumper.format.run_files import RANK_FILE, STATUS_FILE, run_id_path, this_host

_LOCK_SECONDS = 1.0


def join_run(run: Path, mode: int, *, clean: bool = False) -> str:
    """The id of the run, 32 hexadecimal digits; a fresh one where the file cannot be used. Never raises.

    ``clean``: the first process of a launch deletes what an earlier one has recorded in the directory.
    """
    fresh = secrets.token_hex(16)
    try:
        descriptor = open_or_create(run_id_path(run), mode)
    except OSError:
        return fresh
    try:
        with _locked(descriptor):
            found = _parsed(os.pread(descriptor, 4096, 0))
            if found is not None and _is_of_this_launch(found):
                return str(found["id"])
            if clean:
                _delete_recordings(run)
            mine = {"id": fresh, "host": this_host(), "processes": [_process(os.getpid()), _process(os.getppid())]}
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, json.dumps(mine).encode(), 0)
    except OSError:
        return fresh
    finally:
        os.close(descriptor)
    return fresh


def _delete_recordings(run: Path) -> None:
    """The files of ranks alone; whatever else is in the directory is not ours."""
    for path in [*run.iterdir(), *run.glob("process-*/rank-*")]:
        if RANK_FILE.fullmatch(path.name) or STATUS_FILE.fullmatch(path.name):
            with contextlib.suppress(OSError):
                path.unlink()


def _parsed(data: bytes) -> dict[str, Any] | None:
    try:
        content = json.loads(data)
    except (ValueError, RecursionError):
        return None
    if not isinstance(content, dict) or not isinstance(content.get("processes"), list):
        return None
    identity = content.get("id")
    valid = isinstance(identity, str) and len(identity) == 32 and set(identity) <= set("0123456789abcdef")
    return content if valid else None


def _is_of_this_launch(found: dict[str, Any]) -> bool:
    if found.get("host") != this_host():
        return True  # which processes are alive there cannot be told
    theirs = [process for process in found["processes"] if isinstance(process, str)]
    if {_process(os.getpid()), _process(os.getppid())} & set(theirs):
        return True
    writer = theirs[0] if theirs else ""
    number = writer.partition(":")[0]
    return number.isdecimal() and _process(int(number)) == writer


def _process(number: int) -> str:
    """A process for good: its number, and when it began, since numbers are used again."""
    with contextlib.suppress(OSError, IndexError):
        status = Path(f"/proc/{number}/stat").read_bytes().rpartition(b")")[2].split()
        return f"{number}:{status[19].decode()}"
    return f"{number}:-"


@contextlib.contextmanager
def _locked(descriptor: int) -> Iterator[None]:
    """Alone with the file, where the file system can lock."""
    deadline = time.monotonic() + _LOCK_SECONDS
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except BlockingIOError:
            if time.monotonic() > deadline:
                break
            time.sleep(0.005)
        except OSError:
            break
    yield  # closing the descriptor lets go of the lock
