"""A directory of msprobe's dumps, seen through the interface of a run.

``dump.json`` of every step and rank is the index; a tensor is read when it is asked for. There are no token layouts,
and nothing is known of how ranks hold parts of a tensor.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from dumper.format.regular_files import read_bytes
from dumper.format.run_files import MOST_RANKS
from dumper.readers.msprobe.entries import Entry, entries
from dumper.readers.sglang import pt_files
from dumper.readers.sglang.pt_files import PtFileError
from dumper.reading.base import RecordBase, RunBase
from dumper.reading.headers import RankHeader, ranks_missing
from dumper.reading.protocol import Problem, RunError
from tensortap.printable import printable
from tensortap.progress import Progress, silent

if TYPE_CHECKING:
    import torch

INDEX = "dump.json"
TENSORS = "dump_tensor_data"
LONGEST_INDEX = 1 << 29
"""Bytes of a ``dump.json``."""
_STEP = re.compile(r"step(\d{1,9})")
_RANK = re.compile(r"rank(\d{0,9})|proc\d+")
"""A process that belongs to no group writes into ``proc`` and its id, or into ``rank`` alone."""


@dataclass(eq=False)
class MsprobeRecord(RecordBase):
    """One value of one call."""

    entry: Entry
    step: int
    rank: int
    order: int
    folder: Path
    occurrence: int
    tags: Mapping[str, Any] = field(default_factory=dict, init=False)

    @property
    def name(self) -> str:
        return self.entry.name

    @property
    def stream(self) -> str:
        return self.entry.stream

    @functools.cached_property
    def path(self) -> Path | None:
        """The file of the tensor, None where only statistics were kept."""
        name = self.entry.data_name
        path = None if name is None else self.folder / TENSORS / name
        return path if path is not None and path.is_file() and not path.is_symlink() else None

    @property
    def kind(self) -> str:
        return "tensor" if self.shape is not None and self.dtype is not None else "value"

    @property
    def level(self) -> str:
        return "full" if self.kind == "value" or self.path is not None else "stats"

    @property
    def dtype(self) -> str | None:
        return self.entry.dtype

    @property
    def shape(self) -> tuple[int, ...] | None:
        return self.entry.shape

    @property
    def nbytes(self) -> int:
        return self.path.stat().st_size if self.path is not None else 0

    @property
    def filename(self) -> str | None:
        return self.entry.data_name

    @property
    def source(self) -> str:
        return f"{self.folder.parent.name}/{self.folder.name}: {self.filename or self.name}"

    @property
    def statistics(self) -> Mapping[str, float | int] | None:
        return self.entry.statistics if self.level == "stats" else None

    @property
    def value(self) -> Any:
        """The value of a record that is no tensor. Raises ValueError."""
        if self.kind == "tensor":
            raise ValueError(f"{self.name} is a tensor; read .array() or .tensor()")
        return self.entry.described.get("value")

    def _content(self, *, with_torch: bool) -> Any:
        if self.path is None:
            raise ValueError(f"{self.name} is no tensor, or its statistics alone were kept")
        try:
            if self.path.suffix == ".npy":
                return np.load(self.path, mmap_mode="r", allow_pickle=False)
            found = pt_files.load(self.path, with_torch=with_torch).value
        except (PtFileError, OSError) as error:
            raise ValueError(str(error)) from None
        if not pt_files.is_tensor(found):
            raise ValueError(f"{self.path.name} holds no tensor")
        return found

    def array(self) -> npt.NDArray[Any]:
        """The tensor as numpy. Raises ValueError where there is none."""
        found = self._content(with_torch=False)
        return found if isinstance(found, np.ndarray) else pt_files.to_array(found)

    def tensor(self) -> torch.Tensor:
        """The tensor on the CPU. Raises ValueError where there is none."""
        found = self._content(with_torch=True)
        if isinstance(found, np.ndarray):
            import torch

            return torch.from_numpy(np.array(found))
        tensor: torch.Tensor = found.detach()
        return tensor

    def is_intact(self) -> bool:
        """Whether the file of the tensor can be read; msprobe writes no checksums but those of the zip format."""
        if self.path is None:
            return self.level != "full" or self.kind == "value"
        try:
            return self._content(with_torch=False) is not None
        except ValueError:
            return False

    def __repr__(self) -> str:
        return f"<MsprobeRecord {printable(self.source)}>"


class MsprobeDump(RunBase):
    """A ``dumper.reading.protocol.Run`` on the steps and ranks of a dump. Which row is which token is not in one."""

    def __init__(
        self, path: Path, records: Sequence[MsprobeRecord], problems: Sequence[Problem], frameworks: Mapping[int, str]
    ) -> None:
        """``frameworks``: by rank, of every rank."""
        self.path = path
        self.records = records
        self.ranks = tuple(sorted(frameworks))
        self.steps = tuple(sorted({record.step for record in records}))
        size = max(frameworks, default=-1) + 1
        self.headers = {rank: RankHeader(rank, size, {}, {}, frameworks[rank] or None, {}, None) for rank in self.ranks}
        self.problems = (*problems, *ranks_missing(self.missing_ranks, self.world_size, self.ranks))

    def __repr__(self) -> str:
        from dumper.reading.listing import counts

        return f"<MsprobeDump {printable(self.path)}: {counts(self)}>"


def holds_dump(path: Path) -> bool:
    """Whether a directory has an index of some step and rank, or is a step or rank itself."""
    return next(_folders(path), None) is not None or _dump_around(path) is not None


def _dump_around(path: Path) -> Path | None:
    """The whole dump that a directory is a step or a rank of."""
    if _RANK.fullmatch(path.name) and (path / INDEX).is_file():
        return path.parent.parent
    if _STEP.fullmatch(path.name) and any(_RANK.fullmatch(found.parent.name) for found in path.glob(f"*/{INDEX}")):
        return path.parent
    return None


def open_msprobe_dump(path: Path, progress: Progress = silent) -> MsprobeDump:
    """Open the steps and ranks of a dump; no tensor is read. Raises RunError for a part of one, and
    where no index can be read."""
    outside = _dump_around(path)
    if outside is not None:
        raise RunError(f"{path} is a part of a dump of msprobe; give {outside}")
    records: list[MsprobeRecord] = []
    problems: list[Problem] = []
    frameworks: dict[int, str] = {}
    taken: dict[tuple[int, int], Path] = {}
    for step, rank, folder in sorted(_folders(path)):
        first = taken.setdefault((step, rank), folder)
        if first != folder:
            message = f"{folder.parent.name}: {folder.name} is of the same rank as {first.name}, which is read"
            problems.append(Problem("unreadable", f"{message}; give each process a dump_path of its own"))
            continue
        try:
            index = json.loads(read_bytes(folder / INDEX, LONGEST_INDEX))
            data = index["data"]
            if not isinstance(data, dict):
                raise TypeError
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            reason = (error.strerror if isinstance(error, OSError) else None) or "it is no index of msprobe"
            problems.append(Problem("unreadable", f"{folder.parent.name}/{folder.name}/{INDEX}: {reason}"))
            continue
        frameworks.setdefault(rank, str(index.get("framework", "")))
        seen: dict[tuple[str, str], int] = {}
        for entry in entries(data):
            occurrence = seen.get((entry.name, entry.stream), 0)
            seen[entry.name, entry.stream] = occurrence + 1
            records.append(MsprobeRecord(entry, step, rank, len(records), folder, occurrence))
    if not frameworks:
        raise RunError(f"{path}: no {INDEX} of msprobe can be read: {problems[0].message if problems else 'none'}")
    if not records:
        problems.append(Problem("empty", f"{path} holds no records"))
    records.sort(key=lambda record: (record.rank, record.order))
    return MsprobeDump(path, records, problems, frameworks)


def _folders(path: Path) -> Iterator[tuple[int, int, Path]]:
    """Step, rank and folder of every index."""
    for index in path.glob(f"step*/*/{INDEX}"):
        folder = index.parent
        step, rank = _STEP.fullmatch(folder.parent.name), _RANK.fullmatch(folder.name)
        if step is not None and rank is not None and int(rank[1] or 0) < MOST_RANKS:
            yield int(step[1]), int(rank[1] or 0), folder
