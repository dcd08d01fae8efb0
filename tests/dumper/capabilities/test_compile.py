"""Taps inside compiled code: recorded at every run of the graph, without a graph break."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

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
