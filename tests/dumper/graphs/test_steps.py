"""Steps that begin in CUDA graphs, on a stand-in, and the rows of a pass among those of its graph."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

from comparator import compare
from dumper.adapters.protocol import GraphFacts
from dumper.recording.graphs import graph_taps
from dumper.recording.recorder import Recorder
from tests.dumper.graphs.stand_in import capture, layout, ones, run_of


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
