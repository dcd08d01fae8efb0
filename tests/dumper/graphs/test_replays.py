"""Replays of CUDA graphs, on a stand-in: what is recorded after which, and what is not."""

from __future__ import annotations

import logging

import pytest
import torch

from dumper.recording.recorder import Recorder
from tests.dumper.graphs.stand_in import capture, fill, ones, run_of
from tests.dumper.memory.stand_in import StandInRuntime


def test_a_replay_records_what_it_has_left_in_its_own_graph(recorder: Recorder) -> None:
    info = {"id": "m.f#1:y", "name": "y", "kind": "dump", "target": "m.f", "file": "m.py", "line": 1}
    [tap] = recorder.install_taps("m", (info,), {})
    graphs = []
    for rows in (3, 2):
        graph = torch.cuda.CUDAGraph()
        graph.capture_begin()
        tap.record(torch.zeros(rows), "t", rows=rows)
        graph.capture_end()
        graphs.append(graph)
    assert tap.fired == 0  # captured, and silent until a replay
    for number, graph in enumerate((graphs[1], graphs[0], graphs[1])):
        fill(recorder, graph, float(number))
        with recorder.step():
            graph.replay()
    assert tap.fired == 3
    run = run_of(recorder)
    assert [(record.step, record.tags["rows"], record.array().tolist()) for record in run.records] == [
        (0, 2, [0.0, 0.0]),
        (1, 3, [1.0, 1.0, 1.0]),
        (2, 2, [2.0, 2.0]),
    ]
    assert all(record.graph == {} for record in run.records)
    assert run.losses == 0


@pytest.mark.parametrize("level", ["full", "hash", "stats", "sample(rows=2)", "sample(stride=2)"])
def test_every_level_says_the_same_of_a_graph_as_of_eager_code(recorder: Recorder, level: str) -> None:
    recorder.configure(level=level)
    value = torch.arange(12, dtype=torch.float32).reshape(4, 3)
    scalar, empty = torch.tensor(2.5), torch.zeros(0, 3)
    dumps = [("x", value, "t h"), ("scalar", scalar, None), ("empty", empty, "t h")]
    graph = capture(recorder, *dumps, layer_id=1)
    with recorder.step():
        graph.replay()
        for name, plain, dims in dumps:
            recorder.dump(f"eager.{name}", plain, dims=dims, layer_id=1)
    run = run_of(recorder)
    assert run.losses == 0
    for name, _, _ in dumps:
        [of_graph], [eager] = run.select(name=name), run.select(name=f"eager.{name}")
        assert of_graph.payload() == eager.payload()
        for field in ("dtype", "shape", "level", "dims", "tags", "sampled_rows"):
            assert getattr(of_graph, field) == getattr(eager, field)
        assert eager.graph is None


def test_the_filter_and_the_tags_of_the_thread_are_those_of_the_replay(recorder: Recorder) -> None:
    recorder.configure(filter='name == ""')
    graph = capture(recorder, ("x", ones(2), None), ("y", ones(3), None))
    for text in ('name == ""', 'name == "y"', None):
        recorder.configure(filter=text)
        with recorder.step(), recorder.ctx(microbatch=7):
            graph.replay()
    run = run_of(recorder)
    assert [(record.step, record.name) for record in run.records] == [(1, "y"), (2, "x"), (2, "y")]
    assert all(record.tags == {"microbatch": 7} for record in run.records)


def test_gradients_of_a_captured_backward_pass_are_recorded_at_its_replays(recorder: Recorder) -> None:
    forward, backward = torch.cuda.CUDAGraph(), torch.cuda.CUDAGraph()
    x = torch.ones(2, requires_grad=True)
    forward.capture_begin()
    y = x * 3
    recorder.dump("y", y, grad=True)
    forward.capture_end()
    backward.capture_begin()
    torch.autograd.grad((y * 2).sum(), x)
    backward.capture_end()
    fill(recorder, forward, 3.0)
    fill(recorder, backward, 2.0)
    for _ in range(2):
        with recorder.step():
            forward.replay()
            backward.replay()
    assert [(record.step, record.stream, record.array().tolist()) for record in run_of(recorder).records] == [
        (step, *found) for step in (0, 1) for found in (("value", [3.0, 3.0]), ("grad", [2.0, 2.0]))
    ]


def test_values_of_all_kinds_come_back(recorder: Recorder) -> None:
    freed = torch.ones(100)
    freed.untyped_storage().resize_(0)
    packed = torch.arange(4, dtype=torch.uint8).view(torch.uint4)
    graph = capture(
        recorder,
        ("freed", freed, None),
        ("packed", packed, None),
        ("half", torch.complex(ones(2), ones(2)).conj().imag, None),
        ("strided", torch.arange(12).reshape(3, 4).t()[1:], None),
        ("large", torch.arange(100_000), None),
    )
    with recorder.step():
        graph.replay()
    run = run_of(recorder)
    found = {record.name: (record.dtype, record.array().tolist()) for record in run.records}
    assert found.pop("large") == ("int64", list(range(100_000)))
    assert found == {
        "packed": ("uint4", [0, 1, 2, 3]),
        "half": ("float32", [-1, -1]),
        "strided": ("int64", torch.arange(12).reshape(3, 4).t()[1:].tolist()),
    }
    assert run.losses == 1
    [problem] = [problem for problem in run.problems if problem.kind == "lost"]
    assert "1" in problem.message


def test_replays_on_several_streams_wait_for_what_is_read(
    recorder: Recorder, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    runtime = StandInRuntime()
    current = [11]
    monkeypatch.setattr(torch._C, "_cuda_getCurrentRawStream", lambda device: current[0], raising=False)
    monkeypatch.setattr(torch._C, "_cuda_getDevice", lambda: 0, raising=False)
    graphs = [capture(recorder, ("x", ones(1), None), number=number) for number in range(2)]
    taps = recorder._graphs
    assert taps is not None
    taps._find_runtime = lambda: runtime  # type: ignore[assignment]
    for captured in taps._graphs.values():
        captured.device = torch.device("cuda", 0)
    for stream, graph in ((11, 0), (12, 1), (12, 0), (11, 0)):
        current[0] = stream
        with recorder.step():
            graphs[graph].replay()
    # Graphs of one stream follow one another as they are.
    assert [stream for stream, _ in runtime.waited_for] == [12, 11]
    runtime.dead = True
    current[0] = 12
    with recorder.step():
        graphs[0].replay()  # the model has to find out by itself
    runtime.end()
    assert "replays may overwrite" in caplog.text
    assert [record.tags["number"] for record in run_of(recorder).records] == [0, 1, 0, 0, 0]


def test_no_tag_is_read_from_a_device_after_a_capture(recorder: Recorder) -> None:
    graph = capture(recorder, ("x", ones(1), None), on_device=torch.ones((), device="meta"), on_host=torch.tensor(3))
    with recorder.step():
        graph.replay()
    assert [record.tags for record in run_of(recorder).records] == [{"on_device": "Tensor", "on_host": 3}]


def test_replays_outside_steps_count_each_value(recorder: Recorder) -> None:
    step = {"id": "m.f#1:", "name": "", "kind": "step", "target": "m.f", "file": "m.py", "line": 1}
    recorder.install_taps("m", (step,), {})
    graph = capture(recorder, ("x", ones(1), None), ("y", ones(1), None))
    graph.replay()
    session = recorder._open.session
    assert session is not None
    assert session.status["outside_steps"] == 2


def test_a_replay_can_be_recorded_in_memory(recorder: Recorder) -> None:
    graph = capture(recorder, ("x", ones(2), "t"))
    with recorder.capture() as records:
        graph.replay()
    assert [(record.name, record.value.tolist()) for record in records] == [("x", [1.0, 1.0])]


def test_a_nan_in_a_graph_sets_off_a_recording_that_waits_for_one(recorder: Recorder) -> None:
    recorder.configure(on_nan=1)
    graph = capture(recorder, ("x", ones(2), None), ("y", ones(2), None))
    for number in (1.0, 2.0, float("nan"), 3.0):
        fill(recorder, graph, number)
        with recorder.step():
            graph.replay()
    run = run_of(recorder)
    assert [(record.step, record.name) for record in run.records] == [
        (step, name) for step in (1, 2, 3) for name in ("x", "y")
    ]


def test_the_end_of_the_process_reports_on_graphs(recorder: Recorder, caplog: pytest.LogCaptureFixture) -> None:
    recorder.configure(enable=False)
    silent = capture(recorder)
    recorder.configure(enable=True)
    graph = capture(recorder, ("x", ones(1), None), ("y", ones(1), None))
    with recorder.step():
        graph.replay()
        silent.replay()
    with caplog.at_level(logging.INFO, "tensortap"):
        recorder.end()
    [line] = [record.getMessage() for record in caplog.records if "CUDA graphs" in record.getMessage()]
    assert "1 captured with taps, 1 replays recorded, 2 values" in line
    assert "1 graphs were captured while recording was off" in line
