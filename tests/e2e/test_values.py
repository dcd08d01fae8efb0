"""What the shipped SGLang configs record on a real server adds up to what the model computes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from dumper import Run, open_run
from testbed.models import tiny_model
from tests.e2e.conftest import Recordings

LAYERS = 2
BF16 = 2.0**-7
"""Two roundings to bfloat16, relative to the largest value."""
Array = np.ndarray[Any, Any]


@pytest.mark.parametrize("layout", ["tp1", "dense-tp1"])
def test_the_residual_stream_adds_up(layout: str, recordings: Recordings) -> None:
    run = open_run(recordings(layout))
    for step in run.steps:
        for layer in range(LAYERS):
            middle = value(run, "pre_mlp_residual", step, layer)
            assert_close(middle, value(run, "layer_input", step, layer) + value(run, "attn_output", step, layer))
            if layer + 1 < LAYERS:
                after = middle + value(run, "mlp_output", step, layer)
                assert_close(value(run, "layer_input", step, layer + 1), after)


def test_partial_sums_are_summands_and_replicas_are_the_same(recordings: Recordings) -> None:
    """Over two ranks: what dims call partial adds up to the residual, what they call replicated is one value."""
    run = open_run(recordings("tp2"))
    for step in run.steps:
        for layer in range(LAYERS):
            for name in ("layer_input", "pre_mlp_residual", "moe_router_logits"):
                first, second = (value(run, name, step, layer, rank) for rank in (0, 1))
                assert np.array_equal(first, second), name
            attention = sum(value(run, "attn_output", step, layer, rank) for rank in (0, 1))
            before = value(run, "layer_input", step, layer)
            assert_close(value(run, "pre_mlp_residual", step, layer), before + attention)
            experts = sum(value(run, "moe_expert_output", step, layer, rank) for rank in (0, 1))
            if layer + 1 < LAYERS:
                middle = value(run, "pre_mlp_residual", step, layer)
                assert_close(value(run, "layer_input", step, layer + 1), middle + experts)


@pytest.mark.parametrize(("layout", "model"), [("tp1", "qwen3_moe"), ("dense-tp1", "qwen3")])
def test_logits_are_those_of_the_last_row(layout: str, model: str, recordings: Recordings) -> None:
    safetensors = pytest.importorskip("safetensors.torch", reason="safetensors is not installed")
    weights = safetensors.load_file(tiny_model(model) / "model.safetensors")  # type: ignore[arg-type]
    head = weights["lm_head.weight"].float().numpy()
    run = open_run(recordings(layout))
    for step in run.steps:
        last = value(run, "final_norm_output", step)[-1]
        assert_close(value(run, "next_token_logits", step)[0], head @ last)


def value(run: Run, name: str, step: int, layer: int | None = None, rank: int = 0) -> Array:
    tags = {} if layer is None else {"layer_id": layer}
    (record,) = run.select(name=name, step=step, rank=rank, **tags)
    return np.asarray(record.array(), dtype=np.float32)


def assert_close(actual: Array, expected: Array) -> None:
    assert actual.shape == expected.shape
    assert np.abs(actual - expected).max() <= BF16 * max(np.abs(expected).max(), 1.0)
