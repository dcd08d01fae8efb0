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

    def capture_begin(self, pool: object = None) -> None:
        pass

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


def test_graphs_share_buffers_as_large_as_the_largest_needs_them(
    recorder: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recorder_module, "is_capturing", lambda value: True)
    graphs = [StandInGraph({}) for _ in range(3)]
    for graph, rows in zip(graphs, (4, 2, 3), strict=True):
        for layer in range(2):
            # Twice under one name: they are two values.
            recorder.dump("x", torch.full((rows, 2), float(rows + layer)), layer_id=layer)
            recorder.dump("x", torch.full((rows, 2), -float(rows + layer)), layer_id=layer)
        graph.capture_end()
    taps = recorder._special.graph_taps
    assert taps is not None
    held = {buffer.untyped_storage().data_ptr() for buffer in taps._buffers.values()}
    assert len(held) == 4
    for graph, rows in zip(graphs, (4, 2, 3), strict=True):
        captured = taps._by_graph[id(graph)]
        assert [tuple(tap.buffer.shape) for tap in captured] == [(rows, 2)] * 4
        assert {tap.buffer.untyped_storage().data_ptr() for tap in captured} == held


def test_what_a_failed_capture_has_left_belongs_to_no_graph(
    recorder: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recorder_module, "is_capturing", lambda value: True)
    recorder.dump("x", torch.zeros(1))  # the capture fails after this: it has no end
    graph = StandInGraph({})
    graph.capture_begin()
    recorder.dump("y", torch.ones(1))
    graph.capture_end()
    monkeypatch.setattr(recorder_module, "is_capturing", lambda value: False)
    with recorder.step():
        graph.replay()
    path = recorder.settings.run_path
    recorder.close()
    assert [record.name for record in open_run(path).records] == ["y"]


def test_a_graph_that_is_gone_takes_its_buffers_along(recorder: Recorder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recorder_module, "is_capturing", lambda value: True)
    graph = StandInGraph({})
    recorder.dump("x", torch.zeros(1))
    graph.capture_end()
    taps = recorder._special.graph_taps
    assert taps is not None
    assert (len(taps._by_graph), len(taps._buffers)) == (1, 1)
    del graph
    assert (len(taps._by_graph), len(taps._buffers)) == (0, 0)


def test_what_a_graph_cannot_record_is_counted(recorder: Recorder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recorder_module, "is_capturing", lambda value: True)
    graph = StandInGraph({})
    freed = torch.ones(100)
    freed.untyped_storage().resize_(0)
    recorder.dump("freed", freed)
    recorder.dump("packed", torch.arange(4, dtype=torch.uint8).view(torch.uint4))
    recorder.dump("half", torch.complex(torch.ones(2), torch.ones(2)).conj().imag)
    graph.capture_end()
    monkeypatch.setattr(recorder_module, "is_capturing", lambda value: False)
    with recorder.step():
        graph.replay()
    path = recorder.settings.run_path
    recorder.close()
    run = open_run(path)
    assert [(record.name, record.dtype, record.array().tolist()) for record in run.records] == [
        ("packed", "uint4", [0, 1, 2, 3]),
        ("half", "float32", [-1, -1]),
    ]
    assert run.losses == 1
