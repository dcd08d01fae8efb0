"""A kind of recording as somebody would add it, a folder beside those of ``dumper/readers``: one ``.npy`` file for each
record, ``STEP-RANK-NAME.npy``. The test puts it there."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from dumper.reading.base import RecordBase, RunBase
from dumper.reading.headers import RankHeader
from dumper.reading.protocol import Problem, Reader
from tensortap.progress import Progress

if TYPE_CHECKING:
    import torch


@dataclass
class ArrayRecord(RecordBase):
    path: Path
    step: int
    rank: int
    order: int
    name: str
    occurrence: int = field(default=0, init=False)
    tags: dict[str, Any] = field(default_factory=dict, init=False)

    @property
    def dtype(self) -> str:
        return self.array().dtype.name

    @property
    def shape(self) -> tuple[int, ...]:
        return self.array().shape

    @property
    def nbytes(self) -> int:
        return self.path.stat().st_size

    @property
    def source(self) -> str:
        return self.path.name

    @property
    def value(self) -> Any:
        raise ValueError(f"{self.name} is a tensor")

    def is_intact(self) -> bool:
        try:
            return self.array() is not None
        except ValueError:
            return False

    def array(self) -> npt.NDArray[Any]:
        found: npt.NDArray[Any] = np.load(self.path, allow_pickle=False)
        return found

    def tensor(self) -> torch.Tensor:
        import torch

        return torch.from_numpy(self.array())


class ArrayRun(RunBase):
    def __init__(self, path: Path, progress: Progress) -> None:
        self.path = path
        found = []
        for file in sorted(path.glob("*.npy")):
            step, rank, name = file.stem.split("-", 2)
            found.append((int(rank), int(step), name, file))
        self.records = [
            ArrayRecord(file, step, rank, order, name) for order, (rank, step, name, file) in enumerate(sorted(found))
        ]
        self.ranks = tuple(sorted({record.rank for record in self.records}))
        self.steps = tuple(sorted({record.step for record in self.records}))
        world = len(self.ranks)
        self.headers = {rank: RankHeader(rank, world, {"tp": (rank, world)}, {}, None, {}, None) for rank in self.ranks}
        self.problems: tuple[Problem, ...] = ()


READER = Reader(".npy", lambda path: any(path.glob("*.npy")), ArrayRun)
