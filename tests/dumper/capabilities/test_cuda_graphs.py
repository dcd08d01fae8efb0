"""Taps in CUDA graphs, with a stand-in for the graph: a class that keeps what was captured and runs it again.

Real graphs need a GPU (``tests/gpu``). What is tested here is what is recorded after which replay, and what is not.
"""

from __future__ import annotations

import gc
import json
import logging
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from comparator import compare
from dumper import open_run
from dumper.adapters.protocol import GraphFacts
from dumper.cli import main
from dumper.layout import SequenceSpan, TokenLayout
from dumper.recording import recorder as recorder_module
from dumper.recording.graphs import graph_taps
from dumper.recording.graphs.graph_taps import SilentTapError
from dumper.recording.recorder import Recorder
from dumper.settings import SettingsError
from tests.dumper.memory.stand_in import StandInRuntime


class StandInGraph:
    """``torch.cuda.CUDAGraph`` as far as taps see it."""

    open: int | None = None
    """Number of the capture that the only stream takes part in."""
    captures = 0

    def __init__(self) -> None:
        self.work: list[Callable[[], None]] = []
        self.fails = False

    def capture_begin(self, pool: object = None, capture_error_mode: str = "global") -> None:
        StandInGraph.captures += 1
        StandInGraph.open = StandInGraph.captures
        self.work = []

    def capture_end(self) -> None:
        StandInGraph.open = None
        if self.fails:
            raise RuntimeError("capture failed")

    def replay(self) -> None:
        for step in self.work:
            step()

    def reset(self) -> None:
        self.work = []


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


def capture(recorder: Recorder, *dumps: tuple[str, torch.Tensor, str | None], graph: Any = None, **tags: Any) -> Any:
    """A graph in which these values are dumped; a replay gives ``graph.fill`` of each."""
    graph = graph or torch.cuda.CUDAGraph()
    graph.capture_begin()
    try:
        for name, value, dims in dumps:
            recorder.dump(name, value, dims=dims, **tags)
    finally:
        graph.capture_end()
    return graph


def fill(recorder: Recorder, graph: Any, number: float) -> None:
    """What the next replay of a graph leaves in its taps."""
    assert recorder._graphs is not None
    values = [tap.value for tap in recorder._graphs._graphs[id(graph)].taps]
    graph.work = [lambda value=value: value.fill_(number) for value in values]


def run_of(recorder: Recorder) -> Any:
    path = recorder.settings.run_path
    recorder.close()
    return open_run(path)


def ones(*shape: int) -> torch.Tensor:
    return torch.ones(shape)


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


def test_a_capture_in_a_step_that_is_not_wanted_goes_into_the_graph_all_the_same(recorder: Recorder) -> None:
    recorder.configure(steps="2-")
    recorder.step()
    graph = capture(recorder, ("x", ones(2), None))
    recorder.dump("eager", ones(1))
    for _ in range(3):
        recorder.step()
        graph.replay()
    assert [(record.step, record.name) for record in run_of(recorder).records] == [(2, "x"), (3, "x")]


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


def layout(tokens: int, requests: int, start: int = 5, rows: int | None = None) -> TokenLayout:
    counts = [tokens - requests + 1] + [1] * (requests - 1)
    spans = tuple(SequenceSpan(f"r{n}", start, count) for n, count in enumerate(counts))
    rows = rows or tokens
    return TokenLayout("decode", spans, rows=rows, token_ids=np.arange(rows, dtype=np.int64))


@pytest.mark.parametrize("padding", ["trim", "keep"])
def test_rows_of_padding_are_not_recorded_where_dims_tell_them(recorder: Recorder, padding: str) -> None:
    recorder.configure(graph_padding=padding)
    dumps = [
        ("h", ones(8, 2), "t h"),
        ("logits", ones(8, 2), "request v"),
        ("other", ones(8, 2), "e h"),
        ("n", ones(8), None),
    ]
    graph = capture(recorder, *dumps)
    for tokens, requests in ((5, 2), (8, 8)):
        with recorder.step(layout=layout(tokens, requests)):
            graph.replay()
    graph.replay()  # in a step without a layout
    run = run_of(recorder)
    rows = [[run.select(name=name, step=step)[0].shape[0] for name, _, _ in dumps] for step in (0, 1)]
    assert rows == [[5, 2, 8, 8] if padding == "trim" else [8] * 4, [8] * 4]


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


def test_a_graph_that_only_begins_a_step_does_so(recorder: Recorder) -> None:
    begins, holds = torch.cuda.CUDAGraph(), torch.cuda.CUDAGraph()
    begins.capture_begin()
    recorder.step(phase="decode")
    begins.capture_end()
    holds.capture_begin()
    recorder.dump("x", ones(1))
    holds.capture_end()
    for _ in range(2):
        begins.replay()
        holds.replay()
    assert [(record.step, record.name) for record in run_of(recorder).records] == [(0, "x"), (1, "x")]


def test_what_the_engine_knows_of_a_graph_is_in_its_records(
    recorder: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    graphs = []
    for tokens in (8, 16):
        facts = GraphFacts("DecodeCudaGraphRunner", "draft", tokens, 4)
        monkeypatch.setattr(graph_taps, "describe_graph", lambda facts=facts: facts)
        graphs.append(capture(recorder, ("x", ones(tokens), "t")))
    recorder.configure(filter='graph_runner == "DecodeCudaGraphRunner" and graph_tokens > 8 and graph_role == "draft"')
    for graph in graphs:
        with recorder.step():
            graph.replay()
    [record] = run_of(recorder).records
    assert record.graph == {"runner": "DecodeCudaGraphRunner", "role": "draft", "tokens": 16, "requests": 4}


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


@pytest.mark.parametrize("padding", ["trim", "keep"])
@pytest.mark.parametrize("rows", [None, 8], ids=["the engine counts tokens", "the engine counts padding"])
def test_a_run_from_graphs_agrees_with_one_without(
    recorder: Recorder, tmp_path: Path, padding: str, rows: int | None
) -> None:
    """What stands in rows of padding decides nothing, whether it is recorded or not."""
    recorder.configure(graph_padding=padding)
    eager = Recorder()
    eager.configure(enable=True, dir=str(tmp_path), run="eager", control=False)
    graph = capture(recorder, ("h", ones(8, 4), "t h"), ("logits", ones(8, 4), "request v"))
    assert recorder._graphs is not None
    captured = [tap.value for tap in recorder._graphs._graphs[id(graph)].taps]
    for step, tokens in enumerate((3, 5, 7)):
        values = torch.randn(8, 4)
        graph.work = [lambda value=value, values=values: value.copy_(values) for value in captured]
        with recorder.step(layout=layout(tokens, tokens, step, rows)):
            graph.replay()
        with eager.step(layout=layout(tokens, tokens, step)):
            eager.dump("h", values[:tokens], dims="t h")
            eager.dump("logits", values[:tokens], dims="request v")
    target = run_of(recorder).path
    eager.close()
    assert compare(tmp_path / "eager", target).passed
    assert compare(tmp_path / "eager", target, token_aligner="smart").passed


def test_a_step_in_a_graph_begins_with_each_replay_and_has_the_layout_of_that_replay(
    recorder: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As with a model that ``torch.compile`` captures as a whole: its code runs at the capture alone."""
    monkeypatch.setitem(sys.modules, "transformers", ModuleType("transformers"))  # the adapter is for its batches
    taps = recorder.install_taps("m", ({"id": "m.f#0:", "name": "", "kind": "step", "target": "m.f"},), {})
    ids = torch.tensor([[5, 6, 7]])
    graph = torch.cuda.CUDAGraph()
    graph.capture_begin()
    taps[0].step({"input_ids": ids, "past_length": 4, "attention_mask": {"full_attention": None}}, phase="a")
    recorder.dump("x", torch.zeros(3), dims="t")
    taps[0].end_step()
    graph.capture_end()
    assert recorder._graphs is not None
    captured = recorder._graphs._graphs[id(graph)]
    assert captured.step is not None
    assert captured.step.batch is not None
    copy = captured.step.batch["input_ids"]
    for number in range(3):
        graph.work = [lambda number=number: copy.copy_(torch.tensor([[number, 8, 9]]))]
        graph.replay()
    run = run_of(recorder)
    assert run.steps == (0, 1, 2)
    assert [record.step for record in run.records] == [0, 1, 2]
    assert (taps[0].fired, ids.tolist()) == (6, [[5, 6, 7]])
    for number in range(3):
        layout = run.layout(number, 0)
        assert layout.token_ids.tolist() == [number, 8, 9]
        assert [(span.start, span.count) for span in layout.sequences] == [(4, 3)]


def test_the_object_of_an_engine_begins_its_step_at_once(recorder: Recorder) -> None:
    graph = torch.cuda.CUDAGraph()
    graph.capture_begin()
    recorder.step(object())
    recorder.dump("x", torch.zeros(3))
    graph.capture_end()
    graph.replay()
    assert [record.step for record in run_of(recorder).records] == [0]
