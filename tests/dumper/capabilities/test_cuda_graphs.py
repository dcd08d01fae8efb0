"""Taps in CUDA graphs, with a stand-in for the graph: a class that keeps what was captured and runs it again.

Real graphs need a GPU; what is tested here is which buffers are recorded after which replay.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from dumper import open_run
from dumper.recording import recorder as recorder_module
from dumper.recording.recorder import Recorder


class StandInGraph:
    """``torch.cuda.CUDAGraph`` as far as taps see it."""

    def __init__(self, fill: dict[str, float]) -> None:
        self.fill = fill
        self.replays = 0

    def capture_end(self) -> None:
        pass

    def replay(self) -> None:
        self.replays += 1


@pytest.fixture
def recorder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Recorder]:
    monkeypatch.setattr(torch.cuda, "CUDAGraph", StandInGraph)
    recorder = Recorder()
    recorder.configure(enable=True, dir=str(tmp_path), run="run", control=False)
    yield recorder
    recorder.close()


def test_buffers_are_recorded_after_each_replay_of_their_own_graph(
    recorder: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    info = {"id": "m.f#1:y", "name": "y", "kind": "dump", "target": "m.f", "file": "m.py", "line": 1}
    [tap] = recorder.install_taps("m", (info,), {})
    graphs = [StandInGraph({}), StandInGraph({})]
    monkeypatch.setattr(recorder_module, "is_capturing", lambda value: True)
    for number, graph in enumerate(graphs):
        tap.record(torch.full((2,), float(number)), "t", graph=number)
        graph.capture_end()
    assert tap.fired == 0  # captured, and silent until a replay
    monkeypatch.setattr(recorder_module, "is_capturing", lambda value: False)
    for number in (1, 0, 1):
        with recorder.step():
            graphs[number].replay()
    assert tap.fired == 3
    path = recorder.settings.run_path
    recorder.close()
    run = open_run(path)
    assert [(record.step, record.tags["graph"], record.array().tolist()) for record in run.records] == [
        (0, 1, [1.0, 1.0]),
        (1, 0, [0.0, 0.0]),
        (2, 1, [1.0, 1.0]),
    ]


def test_a_graph_that_is_gone_takes_its_buffers_along(recorder: Recorder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recorder_module, "is_capturing", lambda value: True)
    graph = StandInGraph({})
    recorder.dump("x", torch.zeros(1))
    graph.capture_end()
    assert len(recorder._graph_taps._by_graph) == 1
    del graph
    assert not recorder._graph_taps._by_graph
