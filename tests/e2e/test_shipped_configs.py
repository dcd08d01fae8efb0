"""Each shipped config for SGLang meets its model on real servers: one rank against two, without a fault."""

from __future__ import annotations

from pathlib import Path

import pytest

from dumper import Run, open_run
from testbed.comparison import compare
from testbed.layouts import FAMILIES, LAYOUTS, LONG_PROMPT, NEW_TOKENS, PROMPT, TAPS
from testbed.paths import CONFIGS
from testbed.servers import Recording, sglang_server
from testbed.warm import WarmLauncher
from tests.e2e.conftest import Recordings

LAYERS = ("0", "1")
OF_EXPERTS = frozenset({"moe_router_logits", "moe_expert_output"})
LAYERS_OF_EXPERTS = {"qwen3_moe": LAYERS, "mixtral": LAYERS, "deepseek_v2": ("1",)}
"""In DeepSeek the first layer is dense."""
ONE_OF_SEVERAL = {"deepseek_v2": {"attn_pre_o_proj", "moe_correction_bias"}}
"""Taps that lie in several functions, of which a server calls some, and one of what only DeepSeek-V3 has."""
FAULT_IN_POOLING = """
patches:
  - target: sglang.srt.layers.pooler.Pooler.forward
    edits:
      - match: pooled_data = pool_hidden_states(...)
        after: "pooled_data[:, 3] *= 1.5"
"""
NOT_SERVED = {"gpt_oss"}
"""docs/shipped-configs.md says why."""


def expected(model: str) -> set[tuple[str, str | None, int]]:
    """Name, layer and step of what is compared."""
    of_experts = LAYERS_OF_EXPERTS.get(model, ())
    taps = {(name, layer) for name in TAPS for layer in (of_experts if name in OF_EXPERTS else LAYERS)}
    taps |= {("final_norm_output", None), ("next_token_logits", None)}
    return {(name, layer, step) for name, layer in taps for step in range(NEW_TOKENS)}


def assert_each_is_compared_and_passes(baseline: Path, target: Path, model: str) -> None:
    outcome = compare(baseline, target)
    assert outcome.all_passed, (outcome.named("failed"), outcome.named("errored"), outcome.messages)
    compared = [
        (record["name"], record["tags"].get("layer_id"), record["location"]["step"]) for record in outcome.comparisons
    ]
    assert len(compared) == len(set(compared))
    assert set(compared) == expected(model)


def silent_taps(run: Run) -> set[str]:
    return {tap.name for tap in run.taps if tap.silent}


@pytest.mark.parametrize("model", FAMILIES)
def test_two_ranks_against_one(model: str, recordings: Recordings) -> None:
    one, two = (recordings(f"{model}-tp{size}") for size in (1, 2))
    for path, ranks in ((one, 1), (two, 2)):
        run = open_run(path)
        assert not run.problems
        assert (len(run.ranks), run.losses) == (ranks, 0)
        assert silent_taps(run) == ONE_OF_SEVERAL.get(model, set())
    assert_each_is_compared_and_passes(one, two, model)


def test_two_pipeline_stages_against_one(recordings: Recordings) -> None:
    """Each stage records its own layer, and the last one what comes after the layers."""
    run = open_run(recordings("pp2"))
    assert [run.headers[rank].parallel["pp"] for rank in run.ranks] == [(0, 2), (1, 2)]
    layers = [{record.tags["layer_id"] for record in run.select(name="attn_output", rank=rank)} for rank in run.ranks]
    assert layers == [{0}, {1}]
    assert silent_taps(run) == {"final_norm_output", "next_token_logits"}
    assert_each_is_compared_and_passes(recordings("tp1"), recordings("pp2"), "qwen3_moe")


def test_served_for_embeddings(warm: WarmLauncher, tmp_path: Path) -> None:
    """Where a model has no logits, what is pooled and what comes of it is recorded; a fault in between is found."""
    fault = tmp_path / "fault.yaml"
    fault.write_text(FAULT_IN_POOLING)
    configs = (CONFIGS / "sglang" / "embedding.yaml", CONFIGS / "sglang" / "qwen3.yaml")
    for name, flags, patched in (
        ("one", (), configs),
        ("two", ("--tp", "2"), configs),
        ("wrong", (), (fault, *configs)),
    ):
        recording = Recording(patched, tmp_path / name)
        log = tmp_path / f"{name}.log"
        served = ("--is-embedding", "--dtype", "float32", *flags)
        with sglang_server("qwen3", served, log=log, recording=recording, radix_cache=True, warm=warm) as server:
            for prompt in (PROMPT, LONG_PROMPT):
                server.post("/encode", {"input_ids": list(prompt)})
    outcome = compare(tmp_path / "one", tmp_path / "two")
    assert outcome.all_passed, (outcome.named("failed"), outcome.named("errored"), outcome.messages)
    assert {"pooler_input step=0", "pooler_input step=1", "embeddings step=0", "embeddings step=1"} <= set(
        outcome.named("passed")
    )
    assert compare(tmp_path / "one", tmp_path / "wrong").named("failed") == ["embeddings step=0", "embeddings step=1"]


def test_every_config_is_met() -> None:
    shipped = {path.stem for path in (CONFIGS / "sglang").glob("*.yaml")} - {"forward", "embedding"}
    assert shipped - {layout.model for layout in LAYOUTS.values()} == NOT_SERVED
