"""Different engines on the same weights: every layer, all steps."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from dumper import open_run
from dumper.recording.recorder import Recorder
from testbed.comparison import compare
from testbed.generate import transformers_generate
from testbed.int8_model import int8_model
from testbed.layouts import NEW_TOKENS, PROMPT, TAPS
from testbed.models import ModelName, tiny_model
from testbed.paths import CONFIGS
from testbed.servers import Recording
from testbed.vllm_server import vllm_server
from tests.e2e.conftest import Recordings
from tests.requirements import needs_vllm

DENSE_TAPS = TAPS - {"moe_router_logits", "moe_expert_output"}
LAYERS = ("0", "1")


def assert_every_layer_and_step_passes(baseline: Path, target: Path, taps: frozenset[str], *flags: str) -> None:
    outcome = compare(baseline, target, flags)
    assert outcome.all_passed, (outcome.summary, outcome.named("failed"), outcome.named("errored"), outcome.messages)
    compared = {
        (record["name"], record["tags"].get("layer_id"), record["location"]["step"]) for record in outcome.comparisons
    }
    steps = range(NEW_TOKENS)
    assert {(name, layer, step) for name in taps for layer in LAYERS for step in steps} <= compared


@pytest.mark.parametrize(("model", "layout", "taps"), [("qwen3", "dense-tp2", DENSE_TAPS), ("qwen3_moe", "tp2", TAPS)])
def test_transformers_and_sglang(
    model: ModelName, layout: str, taps: frozenset[str], recordings: Recordings, tmp_path: Path
) -> None:
    """Transformers with eager attention in one process, ``batch x sequence``, against two SGLang ranks."""
    run = tmp_path / "transformers"
    recording = Recording((CONFIGS / "transformers" / f"{model}.yaml",), run)
    answer = transformers_generate(model, PROMPT, new_tokens=NEW_TOKENS, recording=recording)
    recorded = open_run(run)
    assert not recorded.problems
    assert len(answer.output_ids) == NEW_TOKENS
    assert_every_layer_and_step_passes(run, recordings(layout), taps)


def test_modules_of_one_engine_are_mapped_to_taps_of_another(recordings: Recordings, tmp_path: Path) -> None:
    """Transformers recorded by module path, without a patch, against taps of two SGLang ranks; and a wrong map."""
    run = generate_with_module_hooks("qwen3", tmp_path)
    mapped = {"self_attn.o_proj": "attn_output", "mlp": "mlp_output"}
    flags = ("--map", str(write_map(tmp_path / "map.yaml", mapped)))
    outcome = compare(run, recordings("dense-tp2"), flags)
    expected = {
        f"{name} layer_id={layer} step={step}"
        for name in mapped.values()
        for layer in LAYERS
        for step in range(NEW_TOKENS)
    }
    assert set(outcome.named("passed")) == expected
    assert outcome.exit_code == 0

    swapped = {"self_attn.o_proj": "mlp_output", "mlp": "attn_output"}
    outcome = compare(run, recordings("dense-tp2"), ("--map", str(write_map(tmp_path / "wrong.yaml", swapped))))
    assert set(outcome.named("failed")) == expected
    assert outcome.exit_code == 1


def generate_with_module_hooks(model: ModelName, folder: Path) -> Path:
    """Generates with Transformers, recording the outputs of modules by their path; returns the run."""
    from transformers import AutoModelForCausalLM  # seconds, in every process that collects the tests

    loaded = AutoModelForCausalLM.from_pretrained(
        tiny_model(model), attn_implementation="eager", dtype=torch.bfloat16, local_files_only=True
    )
    loaded.generation_config.eos_token_id = None
    recorder = Recorder()
    recorder.configure(enable=True, dir=str(folder), run="modules", control=False)

    def begin_step(module: object, arguments: object, keywords: dict[str, object]) -> None:
        recorder.step(keywords)

    loaded.register_forward_pre_hook(begin_step, with_kwargs=True)
    recorder.attach(loaded, "model.layers.*.self_attn.o_proj")
    recorder.attach(loaded, "model.layers.*.mlp")
    with torch.inference_mode():
        loaded.generate(torch.tensor([PROMPT]), max_new_tokens=NEW_TOKENS, do_sample=False)
    recorder.close()
    return folder / "modules"


def write_map(path: Path, mapped: dict[str, str]) -> Path:
    """A map from modules of each layer to names of taps."""
    rules = [
        {"baseline": f"model.layers.{{i}}.{module}", "target": f"{name}, layer_id={{i}}", "baseline_dims": "b s h"}
        for module, name in mapped.items()
    ]
    path.write_text(json.dumps({"map": rules}))
    return path


@needs_vllm
def test_sglang_and_vllm(recordings: Recordings, tmp_path: Path) -> None:
    """Two ranks of each. What one keeps as a partial sum the other has already summed; the token layouts differ."""
    run = tmp_path / "vllm"
    configs = tuple(CONFIGS / "vllm" / name for name in ("forward.yaml", "qwen3.yaml"))
    with vllm_server(
        "qwen3", tensor_parallel=2, log=run.with_suffix(".log"), recording=Recording(configs, run)
    ) as server:
        server.generate(PROMPT, new_tokens=NEW_TOKENS)
    recorded = open_run(run)
    assert not recorded.problems
    assert_every_layer_and_step_passes(recordings("dense-tp2"), run, DENSE_TAPS)


@needs_vllm
def test_a_server_in_int8_and_the_model_that_it_was_made_from(recordings: Recordings, tmp_path: Path) -> None:
    """Its header says what it rounds, and the verdict that it was allowed for."""
    run = tmp_path / "int8"
    configs = tuple(CONFIGS / "vllm" / name for name in ("forward.yaml", "qwen3.yaml"))
    folder = int8_model("qwen3", tmp_path / "model")
    with vllm_server(folder, log=run.with_suffix(".log"), recording=Recording(configs, run)) as server:
        server.generate(PROMPT, new_tokens=NEW_TOKENS)
    settings = open_run(run).headers[0].settings
    assert settings["model.activations"] == "int8"
    outcome = compare(recordings("dense-tp2"), run, ("--token-aligner", "smart"))
    assert not outcome.named("failed"), outcome.named("failed")
    assert any("round inputs of matrix products" in note for note in outcome.record("diagnosis")["notes"])
