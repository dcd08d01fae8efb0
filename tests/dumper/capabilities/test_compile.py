"""Taps inside compiled code: recorded at every run of the graph, without a graph break."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from dumper import open_run
from dumper.recording.recorder import Recorder

pytestmark = pytest.mark.slow


@pytest.fixture
def recorder(tmp_path: Path) -> Iterator[Recorder]:
    torch._dynamo.reset()
    recorder = Recorder()
    recorder.configure(enable=True, dir=str(tmp_path), run="run", control=False)
    yield recorder
    recorder.close()


def tapped(recorder: Recorder) -> Callable[[torch.Tensor, int], torch.Tensor]:
    """A function as the patcher leaves it, with one tap."""
    info = {"id": "m.f#1:y", "name": "y", "kind": "dump", "target": "m.f", "file": "m.py", "line": 1}
    taps = recorder.install_taps("m", (info,), {})

    def function(x: torch.Tensor, layer: int) -> torch.Tensor:
        y = x.sin()
        if taps[0].on:
            try:
                taps[0].record(y, "t h", layer_id=layer, part="attn")
            except Exception:
                taps[0].failed()
        y = y * 2
        recorder.dump("twice", y, scale=0.5)
        return y.cos()

    return function


@pytest.mark.parametrize("backend", ["eager", "aot_eager", "inductor"])
def test_every_run_of_the_graph_is_recorded(recorder: Recorder, backend: str) -> None:
    compiled = torch.compile(tapped(recorder), backend=backend, fullgraph=True)
    inputs = [torch.randn(3, 4, requires_grad=True) for _ in range(3)]
    for layer, x in enumerate(inputs):
        recorder.step()
        out = compiled(x, layer)
        torch.testing.assert_close(out, (2 * x.sin()).cos())
        out.sum().backward()
    path = recorder.settings.run_path
    recorder.close()
    run = open_run(path)
    assert not run.problems
    assert [(tap.id, tap.fired) for tap in run.taps] == [("m.f#1:y", 3)]
    for layer, x in enumerate(inputs):
        y, twice = run.select(step=layer)
        assert (y.name, dict(y.tags), y.dims) == ("y", {"layer_id": layer, "part": "attn"}, "t h")
        assert (twice.name, dict(twice.tags)) == ("twice", {"scale": 0.5})
        torch.testing.assert_close(y.tensor(), x.detach().sin())
        torch.testing.assert_close(twice.tensor(), 2 * x.detach().sin())


def test_a_tap_that_is_switched_off_leaves_nothing_in_the_graph(recorder: Recorder) -> None:
    recorder.configure(enable=False)
    graphs: list[torch.fx.GraphModule] = []

    def backend(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> torch.fx.GraphModule:
        graphs.append(graph)
        return graph

    compiled = torch.compile(tapped(recorder), backend=backend, fullgraph=True)
    compiled(torch.randn(2), 0)
    assert not any("tensortap" in str(node.target) for node in graphs[0].graph.nodes)
    # Switching it on is noticed: the function is traced anew.
    recorder.configure(enable=True)
    compiled(torch.randn(2), 0)
    recorder.flush()
    assert len(open_run(recorder.settings.run_path).records) == 2


class _Opaque:
    """An object of the model, of which a graph knows nothing."""


TAGS = {"text": "a", "float": 0.5, "bool": True, "none": None, "tensor": torch.tensor(3), "pair": (1, 2)}


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_whatever_values_and_tags_are_nothing_reaches_the_model(recorder: Recorder, backend: str) -> None:
    def function(x: torch.Tensor, number: float, counted: torch.Tensor) -> torch.Tensor:
        y = x.sin()
        recorder.dump("tags", y, **TAGS, number=number, counted=counted, opaque=_Opaque)
        recorder.dump("pair", (y, [x, 3]), layer_id=1)
        recorder.dump("map", {"a": y})
        recorder.dump("plain", number)
        recorder.dump("list", [1, 2])
        recorder.dump("opaque", _Opaque)
        recorder.dump(5, y)  # type: ignore[arg-type]
        recorder.dump("dims", y, dims=5)  # type: ignore[arg-type]
        return y.cos()

    compiled = torch.compile(function, backend=backend, fullgraph=True)
    x = torch.randn(3)
    for number in range(3):
        torch.testing.assert_close(compiled(x, number + 0.5, torch.tensor(number)), x.sin().cos())
    path = recorder.settings.run_path
    recorder.close()
    run = open_run(path)
    assert {record.name for record in run.records} == {"tags", "pair.0", "pair.1.0", "map.a", "plain"}
    found = [dict(record.tags) for record in run.select(name="tags")]
    expected = {**TAGS, "tensor": 3, "pair": "(1, 2)", "opaque": "type"}
    assert found == [{**expected, "number": number + 0.5, "counted": number} for number in range(3)]
    assert [record.value for record in run.select(name="plain")] == [0.5, 1.5, 2.5]
    assert run.losses == 4 * 3


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_steps_and_tags_of_blocks_are_opaque(recorder: Recorder, backend: str) -> None:
    """One graph, never compiled anew: what counts steps and taps is part of it."""
    infos = tuple({"id": f"m.f#{n}", "name": kind, "kind": kind} for n, kind in enumerate(("step", "tags", "dump")))
    step, tags, tap = recorder.install_taps("m", infos, {})
    graphs: list[object] = []

    def counting(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> object:
        graphs.append(graph)
        return torch._dynamo.lookup_backend(backend)(graph, inputs)

    def function(x: torch.Tensor) -> torch.Tensor:
        step.step(None, phase="decode")
        with tags.tagging(lambda: {"layer_id": 3}), recorder.ctx(inner="a"):
            y = x + 1
            tap.record(y)
        recorder.dump("outside", y)
        step.end_step()
        return y

    compiled = torch.compile(function, backend=counting, fullgraph=True)
    for _ in range(12):
        compiled(torch.ones(2))
    path = recorder.settings.run_path
    recorder.close()
    run = open_run(path)
    assert len(graphs) == 1
    assert (step.fired, tags.fired, tap.fired) == (24, 12, 12)
    assert run.steps == tuple(range(12))
    for number in run.steps:
        recorded, outside = run.select(step=number)
        assert (dict(recorded.tags), dict(outside.tags)) == ({"layer_id": 3, "inner": "a"}, {})


def test_steps_while_recording_is_off(recorder: Recorder) -> None:
    recorder.configure(enable=False)
    graphs: list[object] = []

    def function(x: torch.Tensor, batch: object) -> torch.Tensor:
        with recorder.step(batch):
            y = x + 1
            recorder.dump("y", y)
        return y

    def backend(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> object:
        graphs.append(graph)
        return graph

    compiled = torch.compile(function, backend=backend, fullgraph=True)
    for _ in range(12):
        compiled(torch.ones(2), _Opaque)
    assert len(graphs) == 1
    recorder.configure(enable=True)
    compiled(torch.ones(2), {"input_ids": torch.ones(1, 2, dtype=torch.int64)})
    recorder.flush()
    assert [record.step for record in open_run(recorder.settings.run_path).records] == [12]
    # Never configured: nothing of ours is in the graph.
    silent = Recorder()

    def untouched(x: torch.Tensor) -> torch.Tensor:
        silent.step()
        silent.end_step()
        return x + 1

    graphs.clear()
    torch.compile(untouched, backend=backend, fullgraph=True)(torch.ones(2))
    assert "tensortap" not in str(graphs[0].graph)  # type: ignore[attr-defined]


def test_no_tensor_of_a_batch_is_kept_while_recording_is_off(recorder: Recorder) -> None:
    """CUDA graph trees refuse to go on with tensors in their memory that nobody declared."""
    recorder.configure(enable=False)
    kept: list[weakref.ref[torch.Tensor]] = []

    def function(x: torch.Tensor) -> torch.Tensor:
        ids = x.long() + 1
        recorder.step({"input_ids": ids})
        return ids * 2

    def backend(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> object:
        def run(*arguments: torch.Tensor) -> object:
            for node in Watching(graph).run(*arguments):
                result = node
            return (result,)

        return run

    class Watching(torch.fx.Interpreter):
        def call_function(self, target: Any, args: Any, kwargs: Any) -> Any:
            result = super().call_function(target, args, kwargs)
            if isinstance(result, torch.Tensor):
                kept.append(weakref.ref(result))
            return result

    torch.compile(function, backend=backend, fullgraph=True)(torch.ones(1, 3))
    assert len(kept) >= 1
    assert [one() for one in kept] == [None] * len(kept)


def test_layouts_are_right_where_graphs_may_break(recorder: Recorder) -> None:
    from dumper.layout import SequenceSpan, TokenLayout

    def function(x: torch.Tensor, layout: TokenLayout) -> torch.Tensor:
        recorder.step(layout=layout)
        y = x + 1
        recorder.dump("y", y, dims="t h")
        return y

    compiled = torch.compile(function, backend="eager")
    for start in range(3):
        layout = TokenLayout("extend", (SequenceSpan("a", start, 2),), 2)
        assert compiled(torch.ones(2, 3), layout).tolist() == [[2.0] * 3] * 2
    path = recorder.settings.run_path
    recorder.close()
    run = open_run(path)
    layouts = [run.layout(step, 0) for step in range(3)]
    assert [layout.sequences[0].start for layout in layouts if layout] == [0, 1, 2]
    assert len(run.records) == 3
