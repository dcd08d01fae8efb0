"""The files through which ctl and the ranks agree, in the folder ``control`` of a run."""

from __future__ import annotations

from pathlib import Path

from dumper.format import json_files


def latest(folder: Path) -> Path:
    """Holds the number of the newest command."""
    return folder / "latest"


def command(folder: Path, generation: int) -> Path:
    return folder / f"{generation:06d}.command.json"


def acknowledgement(folder: Path, generation: int, rank: int) -> Path:
    return folder / f"{generation:06d}.seen.rank-{rank:05d}.json"


def plan(folder: Path, generation: int) -> Path:
    return folder / f"{generation:06d}.plan.json"


def answer(folder: Path, generation: int, rank: int) -> Path:
    return folder / f"{generation:06d}.answer.rank-{rank:05d}.json"


def outcome(folder: Path, generation: int) -> Path:
    return folder / f"{generation:06d}.outcome.json"


def rank_file(folder: Path, rank: int) -> Path:
    return folder / f"rank-{rank:05d}.json"


def rank_files(folder: Path) -> list[Path]:
    return sorted(folder.glob("rank-*.json"))


def read_latest(folder: Path) -> int:
    """The newest command's number, 0 when there is none."""
    content = json_files.read(latest(folder))
    generation = content.get("generation") if content is not None else None
    return generation if isinstance(generation, int) else 0
