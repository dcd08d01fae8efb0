"""The configs for Transformers and vLLM, against what is installed."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from patcher.check import Checked, check_configs, check_loaded
from patcher.config.load import parse_config
from patcher.source.modules import ModuleFinder
from testbed.paths import CONFIGS
from testbed.vllm_server import PYTHON
from testbed.wheels import TRANSFORMERS_RELEASES, transformers_wheel
from tests.configs.places import Place, function_body, places
from tests.requirements import needs_vllm

TRANSFORMERS = "transformers.models.{file}.modeling_{file}.{name}"
VLLM = "vllm.model_executor.models.{file}.{name}"
MODELS = {"llama": "Llama", "qwen3": "Qwen3", "qwen3_moe": "Qwen3Moe"}
RUNNER = "vllm.model_executor.layers.fused_moe.runner.moe_runner.MoERunner._forward_impl"


@pytest.mark.parametrize("file", sorted(MODELS))
def test_transformers(file: str) -> None:
    check_transformers(file, Path(package("transformers")))


@pytest.mark.slow
@pytest.mark.parametrize("release", TRANSFORMERS_RELEASES)
def test_releases_of_transformers(release: str) -> None:
    for file in MODELS:
        check_transformers(file, transformers_wheel(release))


def laid_on(file: str, model: str) -> Checked:
    """What Transformers' configs have in common, laid on another model."""
    base = CONFIGS / "transformers" / "bases" / "decoder_model.yaml"
    text = f"extends: [{{config: {base}, with: {{module: {file}, model: {model}}}}}]"
    return check_loaded([parse_config(text, "<test>")], ModuleFinder())


@pytest.mark.parametrize(
    ("file", "model"),
    [("olmo2", "Olmo2"), ("gemma2", "Gemma2"), ("glm4", "Glm4"), ("qwen3_next", "Qwen3Next"), ("cohere", "Cohere")],
)
def test_a_model_whose_layers_are_built_otherwise_is_refused(file: str, model: str) -> None:
    """Norms behind attention and MLP, other mixers, both at once: the same statements, and other tensors."""
    checked = laid_on(file, model)
    assert any(f"{model}DecoderLayer.forward" in error or "is found nowhere" in error for error in checked.errors)


@pytest.mark.parametrize(("file", "model"), [("mistral", "Mistral"), ("gemma", "Gemma"), ("gpt_oss", "GptOss")])
def test_a_model_whose_layers_are_built_alike_is_recorded(file: str, model: str) -> None:
    assert not laid_on(file, model).errors


def check_transformers(file: str, root: Path) -> None:
    found = installed(root, CONFIGS / "transformers" / f"{file}.yaml")
    layer = TRANSFORMERS.format(file=file, name=MODELS[file] + "DecoderLayer.forward")
    assert before("layer_input", layer, found) == "residual = hidden_states"
    assert after("attn_output", layer, found).startswith("hidden_states, _ = self.self_attn(")
    assert after("pre_mlp_residual", layer, found) == "hidden_states = self.post_attention_layernorm(hidden_states)"
    assert before("mlp_output", layer, found) == "hidden_states = residual + hidden_states"
    assert "hidden_states = self.mlp(hidden_states)" in after("mlp_output", layer, found)
    attention = TRANSFORMERS.format(file=file, name=MODELS[file] + "Attention.forward")
    assert before("attn_pre_o_proj", attention, found) == "attn_output = self.o_proj(attn_output)"
    model = TRANSFORMERS.format(file=file, name=MODELS[file] + "Model.forward")
    assert after("final_norm_output", model, found) == "hidden_states = self.norm(hidden_states)"
    head = TRANSFORMERS.format(file=file, name=MODELS[file] + "ForCausalLM.forward")
    assert after("next_token_logits", head, found).startswith("logits = self.lm_head(hidden_states")
    if file == "qwen3_moe":
        block = TRANSFORMERS.format(file=file, name="Qwen3MoeSparseMoeBlock.forward")
        assert after("moe_expert_output", block, found).startswith("final_hidden_states = self.experts(")


@pytest.mark.slow
@needs_vllm
@pytest.mark.parametrize("file", sorted(MODELS))
def test_vllm(file: str) -> None:
    site_packages = next((PYTHON.parents[1] / "lib").glob("python*/site-packages"))
    found = installed(site_packages, CONFIGS / "vllm" / f"{file}.yaml")
    layer = VLLM.format(file=file, name=MODELS[file] + "DecoderLayer.forward")
    assert after("layer_input", layer, found).startswith("if residual is None:\n    residual = hidden_states\n")
    assert after("attn_output", layer, found).startswith("hidden_states = self.self_attn(positions=positions")
    assert after("pre_mlp_residual", layer, found).startswith("hidden_states, residual = self.post_attention_layernorm")
    assert after("mlp_output", layer, found) == "hidden_states = self.mlp(hidden_states)"
    attention = VLLM.format(file=file, name=MODELS[file] + "Attention.forward")
    assert before("attn_pre_o_proj", attention, found) == "output, _ = self.o_proj(attn_output)"
    head = VLLM.format(file=file, name=MODELS[file] + "ForCausalLM.compute_logits")
    assert head in {place.function for place in found if place.tap == "next_token_logits"}
    if file == "qwen3_moe":
        assert after("moe_router_logits", RUNNER, found) == "router_logits, _ = self.gate(hidden_states)"
        assert after("moe_expert_output", RUNNER, found).startswith("shared_output, hidden_states = self._apply_quant")


@pytest.mark.slow
@needs_vllm
def test_vllm_forward_pass() -> None:
    """Both runners that a release has; the taps there are steps."""
    site_packages = next((PYTHON.parents[1] / "lib").glob("python*/site-packages"))
    checked = check_configs([CONFIGS / "vllm" / "forward.yaml"], [site_packages])
    assert checked.ok, "\n".join(checked.errors)
    runner = "vllm.v1.worker.gpu_model_runner.GPUModelRunner."
    begin = function_body(checked, runner + "_model_forward")[0]
    assert ".step({'runner': self, 'input_ids': input_ids, 'positions': positions})\nexcept" in begin
    assert function_body(checked, runner + "sample_tokens")[0].endswith(".end_step()")
    assert not places(checked)


def package(name: str) -> str:
    spec = importlib.util.find_spec(name)
    assert spec is not None, f"{name} is not installed"
    assert spec.origin is not None, f"{name} has no file"
    return str(Path(spec.origin).parents[1])


def installed(root: Path, config: Path) -> list[Place]:
    checked = check_configs([config], [root])
    assert checked.ok, "\n".join(checked.errors)
    assert not [note.message for note in checked.plan.notes if note.warning]
    return places(checked)


def after(tap: str, function: str, found: list[Place]) -> str:
    return _one(tap, function, found).previous


def before(tap: str, function: str, found: list[Place]) -> str:
    return _one(tap, function, found).following


def _one(tap: str, function: str, found: list[Place]) -> Place:
    at = [place for place in found if (place.tap, place.function) == (tap, function)]
    assert len(at) == 1, f"{tap} in {function}: {at}; there are: {found}"
    return at[0]
