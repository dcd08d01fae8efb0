"""A comparison that cannot fail is worth nothing: faults are patched into one side and have to be found."""

from __future__ import annotations

import pytest

from testbed.comparison import compare
from tests.e2e.conftest import Recordings


@pytest.mark.parametrize(
    ("baseline", "target", "first"),
    [
        ("tp2", "tp2-scaled", "attn_output layer_id=1 step=0"),
        ("tp2", "tp2-dropped", "pre_mlp_residual layer_id=0 step=0"),
        ("long-tp2", "long-tp2-scaled", "attn_output layer_id=1 step=0"),
    ],
)
def test_failing_taps_start_at_the_fault(baseline: str, target: str, first: str, recordings: Recordings) -> None:
    outcome = compare(recordings(baseline), recordings(target))
    assert outcome.exit_code == 1
    assert outcome.named("failed")[0] == first
    assert not outcome.named("errored")
    first_step = [name for name in outcome.named("passed") if name.endswith("step=0")]
    assert "attn_pre_o_proj layer_id=0 step=0" in first_step, "what comes before the fault still passes"


def test_failing_taps_start_at_the_fault_over_all_steps(recordings: Recordings) -> None:
    outcome = compare(recordings("tp2"), recordings("tp2-scaled"), ("--token-aligner", "concat_steps"))
    assert outcome.exit_code == 1
    assert outcome.named("failed")[0] == "attn_output layer_id=1"
    assert "mlp_output layer_id=0" in outcome.named("passed")
