"""Runs in memory, with the interface of what ``open_run`` returns, for tests of single stages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from comparator.api import Report
from dumper.layout import SequenceSpan, TokenLayout
from dumper.reading.base import RecordBase, RunBase

TP1 = {0: {"tp": (0, 1)}}
TP2 = {0: {"tp": (0, 2)}, 1: {"tp": (1, 2)}}


@dataclass
class FakeRecord(RecordBase):
    name: str
    data: npt.NDArray[Any] | None
    rank: int = 0
    step: int | None = 0
    dims: str | None = None
    tags: Mapping[str, Any] = field(default_factory=dict)
    occurrence: int = 0
    level: str = "full"
    stream: str = "value"
    recompute: bool = False
    graph: Mapping[str, Any] | None = None
    value: Any = None
    statistics: Mapping[str, Any] | None = None
    fingerprint: str | None = None
    fingerprint_scheme: str | None = None
    tap: str | None = None
    order: int = 0
    sampled_rows: range | None = None
    source: str = "memory"
    loads: int = 0

    @property
    def dtype(self) -> str | None:
        return None if self.data is None else self.data.dtype.name

    @property
    def shape(self) -> tuple[int, ...] | None:
        return None if self.data is None else self.data.shape

    @property
    def nbytes(self) -> int:
        return 0 if self.data is None else self.data.nbytes

    def is_intact(self) -> bool:
        return True

    def array(self) -> npt.NDArray[Any]:
        assert self.data is not None
        self.loads += 1
        return self.data

    def tensor(self) -> torch.Tensor:
        return torch.from_numpy(self.array())


@dataclass
class FakeHeader:
    parallel: Mapping[str, tuple[int, int]]
    rank: int = 0
    world_size: int = 1
    versions: Mapping[str, str] = field(default_factory=dict)
    framework: str | None = None
    settings: Mapping[str, str] = field(default_factory=dict)
    patch_config: Mapping[str, Any] | None = None


@dataclass
class FakeTap:
    id: str
    fired: int
    file: str = "model.py"
    line: int = 1
    kind: str = "dump"
    installed: bool = True
    name: str = "x"
    operation: str | None = None


@dataclass
class FakeProblem:
    kind: str
    message: str


@dataclass
class FakeRun(RunBase):
    records: Sequence[FakeRecord]
    parallel: Mapping[int, Mapping[str, tuple[int, int]]] = field(default_factory=dict)
    layouts: Mapping[tuple[int, int], TokenLayout] = field(default_factory=dict)
    missing_ranks: tuple[int, ...] = ()
    taps: Sequence[FakeTap] = ()
    problems: Sequence[FakeProblem] = ()
    path: Path = Path("memory")
    losses: int = 0
    settings: Mapping[str, str] = field(default_factory=dict)

    @property
    def ranks(self) -> tuple[int, ...]:
        return tuple(sorted(set(self.parallel) | {record.rank for record in self.records}))

    @property
    def world_size(self) -> int:
        return len(self.ranks) + len(self.missing_ranks)

    @property
    def headers(self) -> Mapping[int, FakeHeader]:
        return {rank: FakeHeader(self.parallel.get(rank, {}), settings=self.settings) for rank in self.ranks}

    @property
    def steps(self) -> tuple[int, ...]:
        return tuple(sorted({record.step for record in self.records if record.step is not None}))

    def layout(self, step: int, rank: int) -> TokenLayout | None:
        return self.layouts.get((step, rank))


def values(*shape: int, seed: int = 0, dtype: Any = np.float32) -> npt.NDArray[Any]:
    """Random values of a shape."""
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def one_request(steps: Sequence[int], rows: Sequence[int] | None = None) -> dict[tuple[int, int], TokenLayout]:
    """Layouts on rank 0 of one request that computes ``steps[i]`` tokens in step i, in ``rows[i]`` rows."""
    found: dict[tuple[int, int], TokenLayout] = {}
    start = 0
    for step, count in enumerate(steps):
        total = count if rows is None else rows[step]
        ids = np.arange(start, start + total, dtype=np.int64)
        span = SequenceSpan("request", start, count)
        found[step, 0] = TokenLayout("extend" if step == 0 else "decode", (span,), total, token_ids=ids)
        start += count
    return found


def run_of(*arrays: Any, dims: str | None = "t h", name: str = "x", **arguments: Any) -> FakeRun:
    """One record per array, on ranks 0, 1, ..."""
    return FakeRun([FakeRecord(name, array, rank=rank, dims=dims) for rank, array in enumerate(arrays)], **arguments)


def only(report: Report) -> Any:
    """The one finding of a report."""
    (finding,) = report.findings
    return finding
