"""Open a directory of ``.pt`` files: their names are the index."""

from __future__ import annotations

import operator
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from pathlib import Path

from dumper.format.run_files import MOST_RANKS
from dumper.readers.sglang import pt_files
from dumper.readers.sglang.dump import SGLangDump, SGLangRecord
from dumper.readers.sglang.facts import FactsAhead, as_found_here, facts_of_files
from dumper.reading.protocol import Problem, RunError
from dumper.storage.places import Workers, names_in
from tensortap.progress import Progress, silent


def holds_dump(path: Path) -> bool:
    """Whether there are ``.pt`` files in a directory or below it."""
    return _holds_files(path) or next(path.rglob("*.pt"), None) is not None


def open_sglang_dump(path: Path, progress: Progress = silent, workers: Workers | None = None) -> SGLangDump:
    """Open a directory of ``.pt`` files, or one with exactly one subdirectory of them. No file is read here;
    ``workers`` read what all of them say of their values.

    Raises RunError when it is not clear which directory is meant, or none holds a dump.
    """
    directory = _directory_of(path)
    records: list[SGLangRecord] = []
    problems: list[Problem] = []
    folder, names = str(directory), pt_files.FileNames()
    for name in names_in(directory):
        if not name.endswith(".pt"):
            continue
        parts, tags = names.parse(name)
        try:
            step, rank, number = int(parts["step"]), int(parts["rank"]), int(parts["dump_index"])
            if "name" not in parts or not 0 <= rank < MOST_RANKS:
                raise ValueError
        except (KeyError, ValueError):
            problems.append(
                Problem("unreadable", f"{name} is not named as SGLang's dumper names files; it is left out")
            )
        else:
            records.append(SGLangRecord(folder, name, parts, tags, step, rank, number))
    if not records:
        raise RunError(f"{directory} holds no file that is named as SGLang's dumper names them (step=…___rank=….pt)")
    records.sort(key=lambda record: (record.rank, record.dump_index))
    ahead = FactsAhead(records)
    for number, (record, occurrence) in enumerate(zip(records, _occurrences(records), strict=True)):
        record.occurrence, record.ahead, record.number = occurrence, ahead, number
    if workers is not None:
        _read_by(workers, records, progress)
    return SGLangDump(directory, records, problems)


def _occurrences(records: Sequence[SGLangRecord]) -> Iterator[int]:
    """Of each record how many before it have a name that differs in ``dump_index`` alone, in whatever order its parts
    are."""
    seen: dict[Hashable, int] = {}
    values: dict[tuple[str, ...], tuple[Callable[[Mapping[str, str]], Hashable], tuple[str, ...]]] = {}
    for record in records:
        order = tuple(record.parts)
        if order not in values:
            names = tuple(sorted(name for name in order if name != "dump_index"))
            values[order] = operator.itemgetter(*names), names
        get, names = values[order]
        key = names, get(record.parts)
        occurrence = seen.get(key, 0)
        seen[key] = occurrence + 1
        yield occurrence


def _read_by(workers: Workers, records: Sequence[SGLangRecord], progress: Progress) -> None:
    found = workers(facts_of_files, [record.path for record in records])
    with progress("reading", len(records)) as advance:
        for record, facts in zip(records, found, strict=True):
            here = None if isinstance(facts, OSError) else as_found_here(facts, record.path)
            if here is not None:  # else it is read here when it is asked for
                record.keep(here)
            advance(1)


def _holds_files(directory: Path) -> bool:
    try:
        return any(name.endswith(".pt") for name in names_in(directory))
    except OSError:
        return False


def _directory_of(path: Path) -> Path:
    if _holds_files(path):
        return path
    inner = sorted({file.parent for file in path.glob("*/*.pt")})
    if len(inner) > 1:
        names = ", ".join(folder.name for folder in inner[:5])
        raise RunError(f"{path}: multiple subdirectories contain data ({names}); give one of them")
    if not inner:
        raise RunError(f"no .pt files found in {path}, nor in a folder directly in it")
    return inner[0]
