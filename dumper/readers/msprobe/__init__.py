"""Dumps of msprobe, MindStudio's debugger: ``step0/rank0/dump.json`` with statistics, and tensors beside it."""

from __future__ import annotations

from pathlib import Path

from dumper.reading.protocol import Reader, Run
from dumper.storage.places import names_in
from tensortap.progress import Progress


def _holds(path: Path) -> bool:
    if not (path.name.startswith(("step", "rank")) or _has_steps(path)):
        return False
    from dumper.readers.msprobe.dump import holds_dump  # as below: only where no run of ours was found

    return holds_dump(path)


def _has_steps(path: Path) -> bool:
    return any(name.startswith("step") and name[4:].isdecimal() for name in names_in(path))


def _open(path: Path, progress: Progress) -> Run:
    from dumper.readers.msprobe.dump import open_msprobe_dump

    return open_msprobe_dump(path, progress)


READER = Reader("step*/rank*/dump.json", _holds, _open, order=1)
