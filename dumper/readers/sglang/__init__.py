"""Directories of ``.pt`` files, as SGLang's own dumper writes them."""

from __future__ import annotations

from pathlib import Path

from dumper.reading.protocol import Reader, Run
from dumper.storage.places import Workers
from tensortap.progress import Progress


def _holds(path: Path) -> bool:
    from dumper.readers.sglang.opening import holds_dump  # as below: only where no run of ours was found

    return holds_dump(path)


def _open(path: Path, progress: Progress) -> Run:
    from dumper.readers.sglang.opening import open_sglang_dump

    return open_sglang_dump(path, progress)


def _open_with(path: Path, progress: Progress, workers: Workers) -> Run:
    from dumper.readers.sglang.opening import open_sglang_dump

    return open_sglang_dump(path, progress, workers)


READER = Reader(".pt", _holds, _open, order=2, open_with=_open_with)
