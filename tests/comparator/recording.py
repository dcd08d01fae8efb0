"""Write runs to disk through the dumper, all ranks from one process."""

from __future__ import annotations

from pathlib import Path
from unittest import mock

import torch

from dumper.adapters.protocol import Process
from dumper.recording.recorder import Recorder
from tests.comparator.fakes import FakeRun


def write_run(run: FakeRun, path: Path, *, level: str | None = None) -> Path:
    """Record what ``run`` holds, one file per rank, in the directory ``path``; returns it."""
    for rank in run.ranks:
        place = Process(rank, run.world_size, dict(run.parallel.get(rank, {})), {"test": "1"}, None)
        with mock.patch("dumper.recording.session.describe_process", return_value=place):
            _write_rank(run, rank, path, level)
    return path


def _write_rank(run: FakeRun, rank: int, path: Path, level: str | None) -> None:
    recorder = Recorder()
    recorder.configure(
        enable=True, dir=str(path.parent), run=path.name, control=False, **({"level": level} if level else {})
    )
    for step in run.steps:
        with recorder.step(layout=run.layout(step, rank)):
            for record in run.records:
                if record.rank == rank and record.step == step:
                    value = record.value if record.data is None else torch.from_numpy(record.data)
                    recorder.dump(record.name, value, dims=record.dims, **record.tags)
    recorder.close()
