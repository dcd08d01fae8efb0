"""Open a run directory: find the files of its ranks, and what its processes counted."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from dumper.format.index import Known
from dumper.format.run_files import BESIDE, MOST_RANKS, RANK_FILE, STATUS_FILE
from dumper.readers.streams.accounts import read_accounts
from dumper.readers.streams.rank_records import RankRecords
from dumper.readers.streams.run import RunDirectory
from dumper.readers.streams.segments import Segment, open_segment
from dumper.reading.protocol import Problem
from dumper.storage.places import Place, StoredPath, Workers, each
from tensortap.progress import Advance, Progress, silent


def holds_streams(path: Place) -> bool:
    """Whether a directory holds the files of a rank. A rank whose every value was lost has counts and no records."""
    names = {file.name for file in path.glob("rank-*")} if isinstance(path, StoredPath) else _names_in(path)
    if any(map(RANK_FILE.fullmatch, names)):
        return True
    return any(map(STATUS_FILE.fullmatch, names)) and bool(read_accounts(path)[0])


def _names_in(path: Path) -> Sequence[str]:
    """Of all files in a directory, of which there may be many thousands; none where it cannot be read."""
    try:
        return [name for name in os.listdir(path) if name.startswith("rank-")]
    except OSError:
        return ()


def open_streams(path: Place, progress: Progress = silent, workers: Workers | None = None) -> RunDirectory:
    """Open a run directory. Damage to files is no error: see ``problems``. ``workers`` read the indexes."""
    # First: what a process that still runs counts meanwhile may not be in a file that was looked at before.
    accounts, problems = read_accounts(path)
    ranks: dict[int, RankRecords] = {}
    files: list[Place] = sorted(
        (file for file in path.glob("rank-*.msgpack") if RANK_FILE.fullmatch(file.name)), key=_segment_key
    )
    with progress("reading", sum(map(_size, files))) as advance:
        for file in files:
            if _segment_key(file)[0] >= MOST_RANKS:
                problems.append(Problem("unreadable", f"{file.name} is left out: there is no rank of that number"))
        believed = [file for file in files if _segment_key(file)[0] < MOST_RANKS]
        known: Known = {}
        known_steps: dict[bytes, dict[str, Any]] = {}
        for file, segment in _segments(believed, advance, known, workers):
            rank = _segment_key(file)[0]
            part = ranks.setdefault(rank, RankRecords(rank, [], known_steps=known_steps))
            if isinstance(segment, OSError):
                part.problems.append(Problem("unreadable", f"{file.name} cannot be read: {segment.strerror}"))
                continue
            part.segments.append(segment)
            if segment.complete or workers is not None or isinstance(file, StoredPath):
                advance(_size(file))
    problems += _beside(path)
    return RunDirectory(path, ranks, accounts, problems)


def _segments(
    files: Sequence[Place], advance: Advance, known: Known, workers: Workers | None
) -> Iterator[tuple[Place, Segment | OSError]]:
    if workers is None:
        yield from each(lambda file: _opened(file, advance, known), files)
        return
    from dumper.readers.streams.elsewhere import as_seen, look

    for file, seen in each(look, files, workers):
        try:
            yield file, seen if isinstance(seen, OSError) else as_seen(file, seen, known)
        except OSError as error:
            yield file, error


def _opened(file: Place, advance: Advance, known: Known) -> Segment:
    # Several threads open files of object storage, and must not all draw the progress bar.
    return open_segment(file, known=known) if isinstance(file, StoredPath) else open_segment(file, advance, known)


def _beside(path: Place) -> list[Problem]:
    folders = (inner for inner in path.iterdir() if BESIDE.fullmatch(inner.name))
    names = sorted(inner.name for inner in folders if next(inner.glob("rank-*.msgpack"), None) is not None)
    message = "runs of other processes of the same ranks are beside this one, since a fork of theirs recorded first: "
    return [Problem("recorded_beside", message + ", ".join(str(path / name) for name in names))] if names else []


def runs_inside(path: Place) -> str | None:
    """What to say of a directory that is no run but holds some."""
    inner = sorted({str(file.parent) for file in path.glob("*/rank-*.msgpack")})
    return f"{path} is no run but holds some: {', '.join(inner[:5])}" if inner else None


def _size(file: Place) -> int:
    try:
        return file.stat().st_size
    except OSError:
        return 0


def _segment_key(file: Place) -> tuple[int, int]:
    found = RANK_FILE.fullmatch(file.name)
    assert found is not None
    return int(found["rank"]), int(found["segment"] or 0)
