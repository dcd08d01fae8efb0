"""The Transformers configs on live models: what the taps record adds up to what the model computes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import patcher
from dumper import dumper
from testbed.paths import CONFIGS

transformers = pytest.importorskip("transformers", reason="Transformers is not installed")
torch = pytest.importorskip("torch", reason="torch is not installed")

LAYERS = 2
SHAPE: dict[str, Any] = {
    "vocab_size": 32,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 4,
    "max_position_embeddings": 64,
}
EXPERTS: dict[str, Any] = {"moe_intermediate_size": 8, "num_experts": 4, "num_experts_per_tok": 2}
MODELS = {
    "llama": ("LlamaConfig", "LlamaForCausalLM", SHAPE),
    "qwen3": ("Qwen3Config", "Qwen3ForCausalLM", SHAPE),
    "qwen3_moe": ("Qwen3MoeConfig", "Qwen3MoeForCausalLM", SHAPE | EXPERTS),
}
BATCH, TOKENS = 2, 5


class Recorded:
    """What one call of a model recorded, by name and layer."""

    def __init__(self, records: list[Any]) -> None:
        self.records = records

    def names(self) -> set[str]:
        return {record.name for record in self.records}

    def __call__(self, name: str, layer: int | None = None) -> np.ndarray[Any, Any]:
        found = [one for one in self.records if one.name == name and one.tags.get("layer_id") == layer]
        assert len(found) == 1, f"{name} of layer {layer} was recorded {len(found)} times"
        return np.asarray(found[0].value)


@pytest.fixture(scope="module", params=sorted(MODELS))
def called(request: pytest.FixtureRequest) -> tuple[Any, Any, Recorded]:
    """A model, what it returned for one batch, and what was recorded meanwhile."""
    config_name, model_name, shape = MODELS[request.param]
    torch.manual_seed(0)
    model = getattr(transformers, model_name)(getattr(transformers, config_name)(**shape)).eval()
    ids = torch.arange(BATCH * TOKENS).reshape(BATCH, TOKENS)
    with (
        torch.inference_mode(),
        patcher.patched(CONFIGS / "transformers" / f"{request.param}.yaml"),
        dumper.capture() as records,
    ):
        output = model(ids)
    return model, output, Recorded(records)


@pytest.mark.slow
def test_the_residual_stream_adds_up(called: tuple[Any, Any, Recorded]) -> None:
    _, _, recorded = called
    for layer in range(LAYERS):
        middle = recorded("layer_input", layer) + recorded("attn_output", layer)
        assert np.array_equal(recorded("pre_mlp_residual", layer), middle)
        if layer + 1 < LAYERS:
            after = recorded("pre_mlp_residual", layer) + recorded("mlp_output", layer)
            assert np.array_equal(recorded("layer_input", layer + 1), after)


@pytest.mark.slow
def test_projections_of_what_is_recorded(called: tuple[Any, Any, Recorded]) -> None:
    model, output, recorded = called
    with torch.inference_mode():
        for layer in range(LAYERS):
            heads = torch.tensor(recorded("attn_pre_o_proj", layer))
            projected = model.model.layers[layer].self_attn.o_proj(heads)
            assert np.allclose(projected.numpy(), recorded("attn_output", layer), atol=1e-6)
        logits = model.lm_head(torch.tensor(recorded("final_norm_output")))
    assert np.allclose(logits.numpy(), output.logits.numpy(), atol=1e-6)
    assert np.array_equal(recorded("next_token_logits"), output.logits[:, -1].numpy())


@pytest.mark.slow
def test_experts(called: tuple[Any, Any, Recorded]) -> None:
    model, _, recorded = called
    if model.config.model_type != "qwen3_moe":
        assert not {"moe_router_logits", "moe_expert_output"} & recorded.names()
        return
    for layer in range(LAYERS):
        assert recorded("moe_router_logits", layer).shape == (BATCH * TOKENS, EXPERTS["num_experts"])
        rows = recorded("moe_expert_output", layer)
        assert np.array_equal(rows.reshape(recorded("mlp_output", layer).shape), recorded("mlp_output", layer))


@pytest.mark.slow
def test_logits_of_every_token_where_no_cache_is_filled(called: tuple[Any, Any, Recorded]) -> None:
    """As a trainer calls a model; not where only the last columns are computed, and not with a cache."""
    model = called[0]
    ids = torch.arange(BATCH * TOKENS).reshape(BATCH, TOKENS)
    config = CONFIGS / "transformers" / f"{model.config.model_type}.yaml"

    def recorded(**arguments: Any) -> Any:
        with torch.inference_mode(), patcher.patched(config), dumper.capture() as records:
            output = model(ids, **arguments)
        (record,) = [one for one in records if one.name == "next_token_logits"]
        return np.asarray(record.value), record.dims, output.logits.numpy()

    value, dims, logits = recorded(use_cache=False)
    assert dims == "b s vocab # tp:replicated"
    assert np.array_equal(value, logits)
    for arguments in ({}, {"use_cache": True}, {"use_cache": False, "logits_to_keep": 2}):
        value, dims, logits = recorded(**arguments)
        assert dims == "t vocab # tp:replicated"
        assert np.array_equal(value, logits[:, -1])
    model.config.use_cache = False
    try:
        assert recorded()[0].shape == (BATCH, TOKENS, SHAPE["vocab_size"])
        assert recorded(use_cache=True)[0].shape == (BATCH, SHAPE["vocab_size"])
    finally:
        model.config.use_cache = True
