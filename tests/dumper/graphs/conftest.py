"""A recorder beside stand-ins for CUDA graphs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from dumper.recording import recorder as recorder_module
from dumper.recording.graphs import graph_taps
from dumper.recording.recorder import Recorder
from tests.dumper.graphs.stand_in import StandInGraph


@pytest.fixture
def recorder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Recorder]:
    class Graph(StandInGraph):
        """Of one test: methods are wrapped for good."""

    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(recorder_module, "is_capturing", lambda value: StandInGraph.open is not None)
    monkeypatch.setattr(graph_taps, "capture_number", lambda: StandInGraph.open)
    recorder = Recorder()
    recorder.configure(enable=True, dir=str(tmp_path), run="run", control=False)
    yield recorder
    recorder.close()
