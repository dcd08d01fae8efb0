"""``torch.compile``: no graph break, no graph more than needed, CUDA graphs kept, and the model's results."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
import torch._dynamo
from torch._dynamo.utils import counters

from tests.gpu.recordings import DEVICE, Recordings, record, taps

CALLS = 4
LAYERS = 3


@dataclass(frozen=True)
class Case:
    """A way to compile the model."""

    options: dict[str, Any] = field(default_factory=dict)
    backward: bool = False
    dtype: torch.dtype = torch.float32
    tags: dict[str, Any] = field(default_factory=dict)

    @property
    def cuda_graphs(self) -> bool:
        return self.options.get("mode") == "reduce-overhead"


CASES = {
    "default": Case(),
    "one graph": Case({"fullgraph": True}),
    "backward": Case({"fullgraph": True}, backward=True),
    "bfloat16": Case(dtype=torch.bfloat16),
    "dynamic": Case({"dynamic": True, "fullgraph": True}),
    "tags": Case({"fullgraph": True}, tags={"part": "mlp", "scale": 0.5, "flag": True, "nothing": None}),
    "CUDA graphs": Case({"mode": "reduce-overhead"}),
    "CUDA graphs, one graph": Case({"mode": "reduce-overhead", "fullgraph": True}),
    "CUDA graphs, backward": Case({"mode": "reduce-overhead"}, backward=True),
}


@pytest.mark.parametrize(
    "case",
    [pytest.param(case, id=name, marks=[pytest.mark.cuda] if case.cuda_graphs else []) for name, case in CASES.items()],
)
def test_compiled_models(recordings: Recordings, case: Case) -> None:
    torch._dynamo.reset()
    counters.clear()
    torch.manual_seed(0)
    recorder = recordings.start(enable=False)
    (tap,) = taps(recorder, "h")
    weights = [torch.randn(64, 64, device=DEVICE, dtype=case.dtype) / 8 for _ in range(LAYERS)]
    for weight in weights:
        weight.requires_grad_(case.backward)
    inputs = [torch.randn(16, 64, device=DEVICE, dtype=case.dtype) for _ in range(CALLS)]

    def model(x: torch.Tensor, number: int) -> torch.Tensor:
        h = x
        for layer, weight in enumerate(weights):
            h = torch.nn.functional.silu(h @ weight)
            record(tap, h, "t h", layer_id=layer, **case.tags)
        out = h + 1
        recorder.dump("out", out, number=number)
        return out * 2

    compiled = torch.compile(model, **case.options)

    def call(number: int, x: torch.Tensor) -> list[torch.Tensor]:
        """The result and the gradients."""
        recorder.step()
        if case.cuda_graphs:
            torch.compiler.cudagraph_mark_step_begin()
        with contextlib.nullcontext() if case.backward else torch.no_grad():
            out = compiled(x, number)
        if case.backward:
            out.float().sum().backward()
        found = [out.detach().clone(), *(weight.grad.clone() for weight in weights if weight.grad is not None)]
        for weight in weights:
            weight.grad = None
        return found

    without = [call(number, x) for number, x in enumerate(inputs)]
    graphs, skips = counters["stats"]["unique_graphs"], counters["inductor"]["cudagraph_skips"]
    recorder.configure(enable=True)
    first = int(recorder.state()["step"]) + 1
    recorded = [call(number, x) for number, x in enumerate(inputs)]
    assert not counters["graph_break"]
    assert counters["stats"]["unique_graphs"] - graphs <= 2
    assert counters["inductor"]["cudagraph_skips"] == skips
    tolerance = 1e-5 if case.dtype == torch.float32 else 5e-2
    for left, right in zip(without, recorded, strict=True):
        torch.testing.assert_close(left, right, atol=tolerance, rtol=1e-2)
    run = recordings.read(recorder)
    for number, x in enumerate(inputs):
        h = x
        for layer, weight in enumerate(weights):
            h = torch.nn.functional.silu(h @ weight)
            (found,) = run.select(name="h", step=first + number, layer_id=layer)
            assert {**found.tags} == {"layer_id": layer, **case.tags}
            torch.testing.assert_close(found.tensor(), h.detach().cpu(), atol=tolerance, rtol=1e-2)
        (out,) = run.select(name="out", step=first + number)
        assert out.tags["number"] == number
        assert torch.equal((out.tensor() * 2).float(), recorded[number][0].cpu().float())


@pytest.mark.parametrize("level", ["stats", "hash", "sample(rows=2)"])
def test_levels_in_compiled_code(recordings: Recordings, level: str) -> None:
    torch._dynamo.reset()
    recorder = recordings.start(level=level)

    def function(x: torch.Tensor) -> torch.Tensor:
        y = x.sin()
        recorder.dump("y", y)
        return y + 1

    compiled, x = torch.compile(function, fullgraph=True), torch.randn(32, 8, device=DEVICE)
    with torch.no_grad():
        for _ in range(3):
            recorder.step()
            compiled(x)
    run = recordings.read(recorder)
    assert len(run.records) == 3
    if level == "stats":
        assert run.records[0].statistics["max"] == pytest.approx(float(x.sin().max()), abs=1e-5)


@pytest.mark.cuda
@pytest.mark.parametrize("level", ["full", "stats", "hash", "sample(rows=8)"])
def test_large_values_in_graphs_of_the_device(recordings: Recordings, level: str) -> None:
    """Graph trees refuse to go on with memory in their pool that nobody declared, such as that of a copy on its way."""
    torch._dynamo.reset()
    recorder = recordings.start(level=level)

    def function(x: torch.Tensor) -> torch.Tensor:
        y = x.sin()
        recorder.dump("y", y)
        recorder.dump("t", y.t())
        return y + 1

    compiled = torch.compile(function, mode="reduce-overhead", fullgraph=True)
    inputs = [torch.randn(2048, 1024, device=DEVICE) for _ in range(4)]
    first = int(recorder.state()["step"])
    with torch.no_grad():
        for x in inputs:
            recorder.step()
            torch.compiler.cudagraph_mark_step_begin()
            compiled(x)
    run = recordings.read(recorder)
    assert len(run.records) == 8
    if level == "full":
        for number, x in enumerate(inputs):
            (y,) = run.select(name="y", step=first + number)
            torch.testing.assert_close(y.tensor(), x.sin().cpu(), atol=1e-5, rtol=1e-5)
            (t,) = run.select(name="t", step=first + number)
            assert torch.equal(t.tensor(), y.tensor().t())
