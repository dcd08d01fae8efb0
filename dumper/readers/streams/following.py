"""How far a run has come that may still be written: which steps are complete, and whether anybody writes it."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dumper.format.index import NO_STEP
from dumper.format.regular_files import read_bytes
from dumper.format.run_files import run_id_path, this_host
from dumper.readers.streams.accounts import Account
from dumper.readers.streams.rank_records import RankRecords
from dumper.reading.protocol import Written
from dumper.storage.places import Place

_LARGEST_RUN_ID = 1 << 16


def written(path: Place, parts: Mapping[int, RankRecords], accounts: Sequence[Account], world_size: int) -> Written:
    """How far a run has come; of what its files held when they were opened."""
    ended = {account.rank for account in accounts if account.counts["closed"]}
    counted = {account.rank for account in accounts}
    if not parts:
        # Counts come before the first file, and where every value was lost no file does.
        return Written(None, closed=bool(counted) and counted <= ended)
    closed = {
        rank
        for rank, part in parts.items()
        if part.segments and part.segments[-1].complete and (rank in ended or rank not in counted)
    }
    missing = set(range(world_size)) - set(parts)
    steps = {rank: _last_step(part) for rank, part in parts.items()}
    if closed >= set(parts) and not missing:
        return Written(max(steps.values(), default=None), closed=True)
    gone = not any(_lives(path, part) for rank, part in parts.items() if rank not in closed)
    gone = gone and bool(set(parts) - closed)
    if missing and not gone:
        return Written(None, closed=False)
    # A step is complete once the rank has begun the next one.
    complete = [steps[rank] if rank in closed or gone else steps[rank] - 1 for rank in parts]
    last = min(complete, default=-1)
    return Written(last if last >= 0 else None, closed=False, gone=gone)


def _last_step(part: RankRecords) -> int:
    """The last step that a rank has begun; -1 where it has begun none."""
    numbers = [max(part.steps, default=-1)]
    for segment in part.segments:
        steps = segment.index.columns["step"]
        numbers.append(int(steps[steps != NO_STEP].max(initial=-1)))
    return max(numbers)


def _lives(path: Place, part: RankRecords) -> bool:
    """Whether a process that wrote a rank may still be there."""
    processes = [meta.get("process") for meta in part.of_kind("header")]
    known = [number for number in processes if isinstance(number, int) and number > 0]
    if not known or _host_of(path) != this_host():
        return True
    return any(_is_running(number) for number in known)


def _is_running(process: int) -> bool:
    try:
        status = Path(f"/proc/{process}/stat").read_bytes().rpartition(b")")[2].split()
    except OSError:
        return False
    return bool(status) and status[0] not in (b"Z", b"X")


def _host_of(path: Place) -> str | None:
    content: Any = None
    if not isinstance(path, Path):
        return None
    with contextlib.suppress(OSError, ValueError, RecursionError):
        content = json.loads(read_bytes(run_id_path(path), _LARGEST_RUN_ID))
    host = content.get("host") if isinstance(content, dict) else None
    return host if isinstance(host, str) else None
