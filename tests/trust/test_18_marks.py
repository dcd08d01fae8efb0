"""What is marked as recomputed is, and statistics of large integers are exact."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from tests.dumper.recording.conftest import Recording


@pytest.mark.parametrize("reentrant", [True, False])
def test_gradients_are_not_recomputed_and_what_checkpointing_runs_again_is(
    recording: Recording, reentrant: bool
) -> None:
    recorder = recording.start()

    def block(x: torch.Tensor) -> torch.Tensor:
        y = x.sin()
        recorder.dump("inside", y)
        return y.cos()

    x = torch.randn(4, requires_grad=True)
    recorder.dump("input", x, grad=True)
    checkpoint(block, x, use_reentrant=reentrant).sum().backward()
    run = recording.read()
    marks = [(record.name, record.stream, record.recompute) for record in run.records]
    assert marks == [
        ("input", "value", False),
        ("inside", "value", False),
        ("inside", "value", True),
        ("input", "grad", False),
    ]


@pytest.mark.parametrize("create_graph", [True, False])
def test_code_of_a_backward_pass_is_not_recomputed(recording: Recording, create_graph: bool) -> None:
    recorder = recording.start()

    class Double(torch.autograd.Function):
        @staticmethod
        def forward(context: Any, x: torch.Tensor) -> torch.Tensor:
            return 2 * x

        @staticmethod
        def backward(context: Any, gradient: torch.Tensor) -> torch.Tensor:
            recorder.dump("in backward", gradient)
            return 2 * gradient

    x = torch.randn(4, requires_grad=True)
    Double.apply(x).sum().backward(create_graph=create_graph)
    run = recording.read()
    assert [(record.name, record.recompute) for record in run.records] == [("in backward", False)]


@pytest.mark.parametrize("kind", ["tensor", "array"])
@pytest.mark.parametrize(
    "values", [[2**62, -(2**62), 3], [2**62 + 1, -(2**62), 2], [2**53 + 1, -(2**53), 2], [-(2**63), 2**63 - 1, 4]]
)
def test_means_of_large_integers(recording: Recording, values: list[int], kind: str) -> None:
    tensor = torch.tensor(values)
    recording.start().dump("x", tensor if kind == "tensor" else tensor.numpy(), level="stats")
    assert recording.read().records[0].statistics["mean"] == sum(values) / 3
