"""A trainer against the server that generated: Megatron-core's GPTModel with the weights that SGLang serves."""

from __future__ import annotations

import importlib
import os
import sys
from pathlib import Path
from typing import Any

import pytest

from dumper import open_run
from testbed.comparison import compare
from testbed.layouts import TAPS
from testbed.models import tiny_model
from testbed.paths import CONFIGS
from testbed.ranks import run_ranks
from testbed.wheels import megatron_sources
from tests.e2e.conftest import Recordings

SMART = ("--token-aligner", "smart")
NOT_RENORMALISED = {"moe_router_pre_softmax": True}
"""The weights of the chosen experts are taken from the softmax over all of them, and do not add up to 1."""


def prepare(sources: str, *_: object) -> None:
    sys.path.insert(0, sources)
    importlib.import_module("torch")


def train(rank: int, sources: str, size: int, run: str, texts: list[list[int]], settings: dict[str, Any]) -> None:
    """One rank of a trainer that goes over whole texts, each in a pass of its own."""
    os.environ.update(OMP_NUM_THREADS="1", GLOO_SOCKET_IFNAME="lo")
    patcher = importlib.import_module("patcher")
    patcher.apply(CONFIGS / "megatron" / "gpt_moe.yaml")
    from dumper import dumper
    from testbed import megatron_gpt

    dumper.configure(enable=True, dir=str(Path(run).parent), run=Path(run).name, control=False)
    megatron_gpt.start(rank, size, Path(f"{run}-store"))
    model = megatron_gpt.load(tiny_model("qwen3_moe"), **settings)
    for text in texts:
        megatron_gpt.forward(model, [text])
    dumper.close()


@pytest.fixture(scope="module")
def server(recordings: Recordings) -> Path:
    return recordings("tp1")


@pytest.fixture(scope="module")
def trained(server: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """``trained(2)`` is the run of two ranks over what the server generated."""
    folder = tmp_path_factory.mktemp("trained")
    done: dict[str, Path] = {}

    def of(size: int, **settings: Any) -> Path:
        name = f"{size}-{'-'.join(settings)}"
        if name not in done:
            done[name] = folder / name
            sources = str(megatron_sources())
            run_ranks(train, size, sources, size, str(done[name]), [text_of(server)], settings, prepare=prepare)
        return done[name]

    return of


def text_of(server: Path) -> list[int]:
    """The tokens that went through the server: prompt and outputs, without the last, which was sampled only."""
    run = open_run(server)
    layouts = [run.layout(step, 0) for step in run.steps]
    return [int(token) for layout in layouts if layout and layout.token_ids is not None for token in layout.token_ids]


@pytest.mark.parametrize("size", [1, 2])
def test_a_trainer_agrees_with_the_server_that_generated(server: Path, trained: Any, size: int) -> None:
    run = open_run(trained(size))
    assert not run.problems
    assert not [tap.name for tap in run.taps if tap.silent]
    outcome = compare(server, trained(size), SMART)
    assert outcome.all_passed, (outcome.named("failed"), outcome.named("errored"), outcome.messages)
    names = {(one["name"], one["tags"].get("layer_id")) for one in outcome.comparisons}
    assert names == {(tap, layer) for tap in TAPS for layer in ("0", "1")} | {
        ("final_norm_output", None),
        ("next_token_logits", None),
    }


def test_two_ranks_of_a_trainer_against_one(trained: Any) -> None:
    assert compare(trained(1), trained(2)).all_passed


def test_weights_of_experts_that_are_not_renormalised_are_placed(server: Path, trained: Any) -> None:
    outcome = compare(server, trained(1, **NOT_RENORMALISED), SMART)
    assert outcome.exit_code == 1
    assert "error is introduced at moe_expert_output layer 0" in outcome.record("diagnosis")["words"]
    told = [
        open_run(path).headers[0].settings["model.norm_topk_prob"]
        for path in (server, trained(1), trained(1, **NOT_RENORMALISED))
    ]
    assert told == ["True", "True", "False"]
