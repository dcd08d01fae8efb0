"""What a quantised model rounds on the way is read from its config and from the flags of its server."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from transformers import LlamaConfig, LlamaForCausalLM

from dumper.adapters.model_facts import facts_of_model
from dumper.adapters.process_settings import process_settings
from dumper.adapters.quantisation import quantisation_facts


def scheme(bits: int, kind: str) -> dict[str, Any]:
    return {"config_groups": {"g": {"weights": {"num_bits": 4}, "input_activations": {"num_bits": bits, "type": kind}}}}


@pytest.mark.parametrize(
    ("config", "activations"),
    [
        ({"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [128, 128]}, "float8_e4m3fn"),
        ({"quant_method": "fbgemm_fp8"}, "float8_e4m3fn"),
        ({"quant_method": "compressed-tensors", **scheme(8, "float")}, "float8_e4m3fn"),
        ({"quant_method": "compressed-tensors", **scheme(8, "int")}, "int8"),
        ({"quant_method": "compressed-tensors", **scheme(4, "float")}, "float4_e2m1fn"),
        ({"quant_method": "compressed-tensors", "config_groups": {"g": {"input_activations": None}}}, None),
        ({"quant_method": "modelopt", "quant_algo": "NVFP4"}, "float4_e2m1fn"),
        ({"quant_method": "modelopt", "quant_algo": "FP8"}, "float8_e4m3fn"),
        ({"quant_method": "modelopt", "quant_algo": "W4A16_AWQ"}, None),
        (
            {"quant_method": "modelopt", "quant_algo": "MIXED_PRECISION", "quantized_layers": {"a": "FP8"}},
            "float8_e4m3fn",
        ),
        ({"quant_method": "quark", "global_quant_config": {"input_tensors": {"dtype": "fp8_e4m3"}}}, "float8_e4m3fn"),
        ({"quant_method": "quark", "global_quant_config": {"input_tensors": None}}, None),
        ({"quant_method": "torchao", "quant_type": {"default": {"_type": "Int8DynamicActivationInt8Weight"}}}, "int8"),
        ({"quant_method": "torchao", "quant_type": "int4_weight_only"}, None),
        ({"quant_method": "bitsandbytes", "load_in_8bit": True}, "int8"),
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, None),
        ({"quant_method": "awq"}, None),
        ({"quant_method": "gptq", "bits": 8}, None),
        ({"quant_method": "mxfp4"}, None),
        ({"quant_method": "fp8", "dequantize": True}, None),
        ({"quant_method": "a method of tomorrow"}, None),
        ({"quant_method": None, "config_groups": 3}, None),
        ({"quant_method": "compressed-tensors", "config_groups": {"g": None}}, None),
        ({"quant_method": "quark", "global_quant_config": {"input_tensors": [{"dtype": "int8"}]}}, "int8"),
        ("fp8", None),
        (None, None),
    ],
)
def test_methods_and_what_they_round(config: object, activations: str | None) -> None:
    assert quantisation_facts(config).get("activations") == activations


@pytest.mark.parametrize(
    ("flags", "found"),
    [
        ({"--quantization": "fp8"}, {"quantization": "fp8", "activations": "float8_e4m3fn"}),
        ({"--quantization": "w8a8_int8"}, {"quantization": "w8a8_int8", "activations": "int8"}),
        ({"--quantization": "awq_marlin"}, {"quantization": "awq_marlin"}),
        ({"--torchao-config": "fp8dq-per_row"}, {"activations": "float8_e4m3fn"}),
        ({"--torchao-config": "int4wo-128"}, {}),
        ({"--kv-cache-dtype": "fp8_e5m2"}, {"kv_cache": "float8_e5m2"}),
        ({"--kv-cache-dtype": "fp8"}, {"kv_cache": "float8_e4m3fn"}),
        ({"--kv-cache-dtype": "auto"}, {}),
        ({"--kv-cache-dtype": "bfloat16"}, {}),
        ({"--fp8-format": "hybrid"}, {"activations": "float8_e4m3fn"}),
        ({}, {}),
    ],
)
def test_flags_of_servers(flags: dict[str, str], found: dict[str, str]) -> None:
    assert quantisation_facts(None, flags) == found


def test_keys_and_values_of_a_config() -> None:
    assert quantisation_facts({"kv_cache_scheme": {"num_bits": 8, "type": "float"}})["kv_cache"] == "float8_e4m3fn"
    assert quantisation_facts({"kv_cache_quant_algo": "FP8"})["kv_cache"] == "float8_e4m3fn"
    asked = quantisation_facts({"kv_cache_quant_algo": "FP8"}, {"--kv-cache-dtype": "bfloat16"})
    assert "kv_cache" not in asked, "what the server was asked for holds"


@pytest.mark.parametrize("apart", [False, True])
def test_a_server_of_a_quantised_folder(apart: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the model's config, or in a file beside it, as TensorRT-Model-Optimizer writes it."""
    config: dict[str, Any] = {"head_dim": 32}
    if apart:
        (tmp_path / "hf_quant_config.json").write_text(json.dumps({"quantization": {"quant_algo": "FP8"}}))
    else:
        config["quantization_config"] = {"quant_method": "fp8"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    monkeypatch.setattr(sys, "argv", ["x", "--model-path", str(tmp_path), "--kv-cache-dtype", "fp8_e4m3"])
    found = process_settings()
    assert found["model.activations"] == "float8_e4m3fn"
    assert found["model.kv_cache"] == "float8_e4m3fn"
    assert found["model.head_dim"] == "32"


def test_a_model_of_a_hub_is_known_by_its_flags(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["x", "--model-path", "somebody/model", "--quantization", "fp8"])
    assert process_settings()["model.activations"] == "float8_e4m3fn"


def test_a_model_of_transformers() -> None:
    model = LlamaForCausalLM(
        LlamaConfig(hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=1, vocab_size=8)
    )
    assert "model.activations" not in facts_of_model(model)
    model.config.quantization_config = {"quant_method": "fbgemm_fp8"}
    assert facts_of_model(model)["model.activations"] == "float8_e4m3fn"
