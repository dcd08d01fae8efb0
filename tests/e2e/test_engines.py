"""Different engines on the same weights: every layer, all steps."""

from __future__ import annotations

from pathlib import Path

import pytest

from demo.scenario import TAPS, compare
from dumper import open_run
from tests.e2e.conftest import Recordings
from tests.support.generate import transformers_generate
from tests.support.layouts import NEW_TOKENS, PROMPT
from tests.support.models import ModelName
from tests.support.paths import CONFIGS
from tests.support.servers import Recording
from tests.support.vllm_server import needs_vllm, vllm_server

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
