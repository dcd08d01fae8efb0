"""The scenario the project exists for: one request, served under different parallel layouts."""

from __future__ import annotations

import pytest

from dumper import open_run
from testbed.comparison import compare
from testbed.layouts import NEW_TOKENS, TAPS
from testbed.scenario import LONG_PROMPT_ROWS, ROWS, Row
from tests.e2e.conftest import Recordings


@pytest.mark.parametrize(
    "row",
    [*ROWS, *(row for row in LONG_PROMPT_ROWS if row.fault is None)],
    ids=["tp1-tp2", "tp2-tp4", "tp2-dp2-first-step", "tp2-dp2-all-steps", "long-prompt"],
)
def test_every_tap_passes(row: Row, recordings: Recordings) -> None:
    outcome = compare(recordings(row.baseline), recordings(row.target), row.flags)
    assert outcome.exit_code == 0, outcome.named("failed") + outcome.named("errored")
    assert outcome.all_passed, outcome.summary
    compared = {(record["name"], record["tags"].get("layer_id")) for record in outcome.comparisons}
    assert {(name, layer) for name in TAPS for layer in ("0", "1")} <= compared


def test_dense_model(recordings: Recordings) -> None:
    outcome = compare(recordings("dense-tp1"), recordings("dense-tp2"))
    assert outcome.all_passed, outcome.named("failed") + outcome.named("errored")


@pytest.mark.parametrize("layout", ["tp1", "tp2", "tp4", "dp2"])
def test_a_recording_is_whole(layout: str, recordings: Recordings) -> None:
    run = open_run(recordings(layout))
    assert not run.problems
    assert run.losses == 0
    assert run.steps == tuple(range(NEW_TOKENS)), "one prefill pass, then one decode pass per further token"
    assert not run.missing_ranks
    silent = [tap for tap in run.taps if tap.silent]
    assert not silent


def test_dims_of_its_own_for_data_parallel_attention(recordings: Recordings) -> None:
    """Nobody needs a second set of dims for it, and those who have one, as SGLang's comparator wants, can keep it."""
    own_rows = "layer_input|attn_output|pre_mlp_residual|final_norm_output:t h # dp:=attn_dp"
    heads = "attn_pre_o_proj:t (num_heads*head_dim) # dp:=attn_dp"
    gathered = "mlp_output|moe_expert_output:t h[moe_tp:partial]"
    overrides = tuple(part for dims in (own_rows, heads, gathered) for part in ("--override-target-dims", dims))
    outcome = compare(recordings("tp2"), recordings("dp2"), ("--token-aligner", "concat_steps", *overrides))
    assert outcome.all_passed, outcome.named("failed") + outcome.named("errored")

    wrong = ("--override-target-dims", "mlp_output:t h # tp:replicated")
    outcome = compare(recordings("tp2"), recordings("dp2"), ("--token-aligner", "concat_steps", *wrong))
    assert outcome.exit_code == 1
    assert outcome.named("failed")[0] == "mlp_output layer_id=0"
    place = outcome.record("diagnosis")["place"]
    assert (place["name"], place["layer"]) == ("mlp_output", 0), "the last layer sums before it returns"
