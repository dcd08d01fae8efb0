"""Taps in captures of CUDA graphs, on a stand-in: what goes into a graph, what does not, and how that is said."""

from __future__ import annotations

import gc
import json
import logging
from pathlib import Path

import pytest
import torch

from dumper.cli import main
from dumper.recording.graphs import graph_taps
from dumper.recording.graphs.graph_taps import SilentTapError
from dumper.recording.recorder import Recorder
from dumper.settings import SettingsError
from tests.dumper.graphs.stand_in import StandInGraph, capture, ones, run_of


def test_a_capture_in_a_step_that_is_not_wanted_goes_into_the_graph_all_the_same(recorder: Recorder) -> None:
    recorder.configure(steps="2-")
    recorder.step()
    graph = capture(recorder, ("x", ones(2), None))
    recorder.dump("eager", ones(1))
    for _ in range(3):
        recorder.step()
        graph.replay()
    assert [(record.step, record.name) for record in run_of(recorder).records] == [(2, "x"), (3, "x")]


def test_graphs_share_memory_as_large_as_the_largest_needs_it(recorder: Recorder) -> None:
    graphs = [capture(recorder, *[(f"x{n}", torch.ones(rows, 64), None) for n in range(5)]) for rows in (4, 2, 300)]
    assert recorder._graphs is not None
    captured = [recorder._graphs._graphs[id(graph)] for graph in graphs]
    chunks = {tap.chunk.data_ptr() for graph in captured for tap in graph.taps}
    assert len(chunks) == 1
    assert all(graph.taps[0].place.offset == 0 for graph in captured)
    for graph in captured:
        ends = [tap.place.offset + tap.place.nbytes for tap in graph.taps]
        assert all(end <= tap.place.offset for end, tap in zip(ends, graph.taps[1:], strict=False))


def test_what_a_failed_capture_has_left_belongs_to_no_graph(recorder: Recorder) -> None:
    failed = torch.cuda.CUDAGraph()
    failed.fails = True  # type: ignore[attr-defined]
    with pytest.raises(RuntimeError, match="capture failed"):
        capture(recorder, ("x", ones(1), None), graph=failed)
    graph = capture(recorder, ("y", ones(1), None))
    with recorder.step():
        graph.replay()
        failed.replay()
    assert [record.name for record in run_of(recorder).records] == ["y"]


def test_a_graph_that_is_reset_and_captured_anew_forgets_its_taps(recorder: Recorder) -> None:
    graph = capture(recorder, ("old", ones(1), None))
    graph.reset()
    with recorder.step():
        graph.replay()
    capture(recorder, graph=graph)
    with recorder.step():
        graph.replay()
    # Captured over it without a reset, which torch allows as well.
    capture(recorder, ("new", ones(1), None), graph=graph)
    capture(recorder, ("newer", ones(1), None), graph=graph)
    with recorder.step():
        graph.replay()
    assert [record.name for record in run_of(recorder).records] == ["newer"]


def test_a_graph_that_is_captured_anew_while_recording_is_off_is_silent(recorder: Recorder) -> None:
    graph = capture(recorder, ("old", ones(1), None))
    recorder.configure(enable=False)
    graph.reset()
    capture(recorder, ("new", ones(1), None), graph=graph)
    recorder.configure(enable=True)
    with recorder.step():
        graph.replay()
        recorder.dump("other", ones(1))
    run = run_of(recorder)
    assert [record.name for record in run.records] == ["other"]


def test_captures_in_several_threads_are_kept_apart(recorder: Recorder, monkeypatch: pytest.MonkeyPatch) -> None:
    """Interleaved on one thread: what counts is which capture the current stream takes part in."""
    current = [0]
    monkeypatch.setattr(graph_taps, "capture_number", lambda: current[0])
    graphs = [torch.cuda.CUDAGraph() for _ in range(2)]
    for number, graph in enumerate(graphs):
        current[0] = number
        graph.capture_begin()
    for number in (1, 0, 1):
        current[0] = number
        recorder.dump("x", torch.full((2,), float(number)), capture=number)
    for number, graph in enumerate(graphs):
        current[0] = number
        StandInGraph.open = 1
        graph.capture_end()
    assert recorder._graphs is not None
    captured = [recorder._graphs._graphs[id(graph)] for graph in graphs]
    assert [[tap.tags["capture"] for tap in graph.taps] for graph in captured] == [[0], [1, 1]]


def test_what_is_captured_past_torch_is_counted(recorder: Recorder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graph_taps, "capture_number", lambda: 77)
    StandInGraph.open = 77
    recorder.dump("x", ones(1))
    StandInGraph.open = None
    with recorder.step():
        recorder.dump("y", ones(1))
    run = run_of(recorder)
    assert [record.name for record in run.records] == ["y"]
    assert ["1 values went into captures" in problem.message for problem in run.problems] == [True]


def test_graphs_that_are_gone_take_their_memory_along(recorder: Recorder) -> None:
    graph = capture(recorder, ("x", ones(1), None))
    graphs = recorder._graphs
    assert graphs is not None
    assert graphs.memory.held_bytes() > 0
    del graph
    gc.collect()
    assert (len(graphs._graphs), len(graphs._finalizers), graphs.memory.held_bytes()) == (0, 0, 0)


def test_two_recorders_see_the_same_graphs(recorder: Recorder, tmp_path: Path) -> None:
    other = Recorder()
    other.configure(enable=True, dir=str(tmp_path), run="other", control=False)
    graph = torch.cuda.CUDAGraph()
    graph.capture_begin()
    recorder.dump("x", ones(1))
    other.dump("y", ones(1))
    graph.capture_end()
    for one in (recorder, other):
        one.step()
    graph.replay()
    assert [record.name for record in run_of(recorder).records] == ["x"]
    assert [record.name for record in run_of(other).records] == ["y"]


def test_what_is_over_the_budget_is_left_out_in_the_order_of_the_pass(
    recorder: Recorder, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    recorder.configure(graph_memory=1024)
    with caplog.at_level(logging.WARNING, "tensortap"):
        graphs = [capture(recorder, *[(f"x{n}", ones(100), None) for n in range(4)]) for _ in range(2)]
    assert caplog.text.count("are not recorded in CUDA graphs") == 1
    with recorder.step():
        for graph in graphs:
            graph.replay()
    run = run_of(recorder)
    assert [record.name for record in run.records] == ["x0", "x1"] * 2
    [problem] = [problem for problem in run.problems if problem.kind == "left_out"]
    assert "4 values" in problem.message
    assert main(["ls", str(run.path)]) == 0
    assert main(["ls", "--strict-taps", str(run.path)]) == 1
    assert "x3" in capsys.readouterr().out
    assert main(["ls", str(run.path), "--output", "json"]) == 0
    shown = json.loads(capsys.readouterr().out)["cuda_graphs"]["0"]
    assert (shown["captured"], shown["replays"], shown["values"], shown["left_out_values"]) == (2, 2, 4, 4)
    assert [entry["name"] for entry in shown["left_out"]] == ["x2", "x3"]


def test_a_graph_of_which_everything_is_left_out_is_counted(recorder: Recorder) -> None:
    recorder.configure(graph_memory=1)
    graph = capture(recorder, ("x", ones(1), None))
    with recorder.step():
        graph.replay()
    run = run_of(recorder)
    assert [graphs.left_out_values for graphs in run.cuda_graphs] == [1]
    assert "left_out" in {problem.kind for problem in run.problems}


def test_graph_filter_says_what_goes_into_graphs(recorder: Recorder) -> None:
    recorder.configure(graph_filter='name == "x" and layer_id == 1')
    graph = capture(recorder, ("x", ones(1), None), ("y", ones(1), None), layer_id=1)
    other = capture(recorder, ("x", ones(1), None), layer_id=2)
    with recorder.step():
        graph.replay()
        other.replay()
    assert [(record.name, record.tags["layer_id"]) for record in run_of(recorder).records] == [("x", 1)]


def test_strict_raises_when_a_capture_would_be_silent(recorder: Recorder) -> None:
    info = {"id": "m.f#1:y", "name": "y", "kind": "dump", "target": "m.f", "file": "m.py", "line": 1}
    recorder.install_taps("m", (info,), {})
    recorder.configure(strict=True, graph_memory=256)
    with pytest.raises(SilentTapError, match=r"1 values .*y: over the budget"):
        capture(recorder, ("x", ones(1), None), ("y", ones(100), None))
    recorder.configure(enable=False)
    with pytest.raises(SilentTapError, match="while recording is off"):
        capture(recorder)
    recorder.configure(strict=False)
    silent = capture(recorder)
    with pytest.raises(SettingsError, match="1 CUDA graph"):
        recorder.configure(enable=True, strict=True)
    assert not recorder.settings.enable
    del silent
    gc.collect()
    recorder.configure(enable=True, strict=True)
