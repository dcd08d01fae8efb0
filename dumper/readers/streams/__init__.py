"""Runs in tensortap's own format: one stream of frames per rank (docs/format.md)."""

from __future__ import annotations

from pathlib import Path

from dumper.reading.protocol import Reader, Run
from dumper.storage.places import Place, Workers, names_in
from tensortap.progress import Progress


def _holds(path: Place) -> bool:
    if isinstance(path, Path) and not _has_ranks(path):
        return False
    from dumper.readers.streams.opening import holds_streams  # not for recordings of other kinds

    return holds_streams(path)


def _has_ranks(path: Path) -> bool:
    try:
        return any(name.startswith("rank-") for name in names_in(path))
    except OSError:
        return False


def _open(path: Place, progress: Progress, workers: Workers | None = None) -> Run:
    from dumper.readers.streams.opening import open_streams

    return open_streams(path, progress, workers)


def _runs_inside(path: Place) -> str | None:
    from dumper.readers.streams.opening import runs_inside

    return runs_inside(path)


READER = Reader("rank-*.msgpack", _holds, _open, _runs_inside, from_storage=True, open_with=_open)
