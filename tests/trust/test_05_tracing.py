"""Code that torch traces in other ways than ``torch.compile``: a tap never shows in what comes out."""

from __future__ import annotations

import pytest
import torch

from tests.dumper.recording.conftest import Recording

pytestmark = pytest.mark.slow


class Model(torch.nn.Module):
    def __init__(self, dumper: object) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(3, 3)
        self.dumper = dumper

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.linear(x)
        self.dumper.dump("y", y)  # type: ignore[attr-defined]
        self.dumper.dump("rows", y.t(), level="stats")  # type: ignore[attr-defined]
        self.dumper.dump("some", y, level="sample(rows=1)")  # type: ignore[attr-defined]
        return y.relu()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_jit_trace(recording: Recording) -> None:
    model = Model(recording.start())
    x = torch.randn(2, 3)
    traced = torch.jit.trace(model, x)
    plain = torch.jit.trace(torch.nn.Sequential(model.linear, torch.nn.ReLU()), x)
    kinds = [node.kind() for node in traced.inlined_graph.nodes() if node.kind().startswith("aten")]
    assert kinds == [node.kind() for node in plain.inlined_graph.nodes() if node.kind().startswith("aten")]
    torch.testing.assert_close(traced(x), model(x))
    run = recording.read()
    assert not run.losses, run.problems
    torch.testing.assert_close(run.select(name="y")[0].tensor(), model.linear(x).detach())


def test_make_fx(recording: Recording) -> None:
    from torch.fx.experimental.proxy_tensor import make_fx

    recorder = recording.start()

    def function(x: torch.Tensor) -> torch.Tensor:
        y = x * 2
        recorder.dump("y", y)
        recorder.dump("stats", y, level="stats")
        return y.relu()

    for mode in ("real", "fake", "symbolic"):
        graph = make_fx(function, tracing_mode=mode)(torch.randn(2, 3))
        targets = [str(node.target) for node in graph.graph.nodes if node.op == "call_function"]
        assert not [name for name in targets if "vector_norm" in name or "isfinite" in name], targets
    recording.close()


def test_functionalize(recording: Recording) -> None:
    model = Model(recording.start())
    x = torch.randn(2, 3)
    torch.testing.assert_close(torch.func.functionalize(model)(x), model(x))
    recording.close()


def test_symbolic_trace_of_fx(recording: Recording) -> None:
    """Values are proxies: they are no tensors and hold nothing."""
    model = Model(recording.start())
    graph = torch.fx.symbolic_trace(model)
    assert graph(torch.ones(2, 3)).shape == (2, 3)
    recording.close()


@pytest.mark.slow
@pytest.mark.parametrize("strict", [True, False])
def test_export(recording: Recording, strict: bool) -> None:
    model = Model(recording.start())
    x = torch.randn(2, 3)
    exported = torch.export.export(model, (x,), strict=strict)
    torch.testing.assert_close(exported.module()(x), model.linear(x).relu())
    recording.close()
