"""The token layouts that real servers recorded: which row of which pass is which token, and which is none."""

from __future__ import annotations

import pytest

from dumper import Run, open_run
from dumper.layout import TokenLayout
from testbed.layouts import NEW_TOKENS, PROMPT
from tests.e2e.conftest import Recordings

DECODES = NEW_TOKENS - 1
"""The last new token is never an input."""


def layout_of(run: Run, step: int, rank: int) -> TokenLayout:
    layout = run.layout(step, rank)
    assert layout is not None, f"step {step} of rank {rank} has no layout"
    return layout


def tokens_of(run: Run, rank: int) -> dict[int, int]:
    """Position to token of the one sequence, from all passes of a rank; every token in one pass only."""
    tokens: dict[int, int] = {}
    for step in run.steps:
        layout = layout_of(run, step, rank)
        assert len({span.id for span in layout.sequences}) <= 1
        assert layout.token_ids is not None
        sequence, position = layout.row_identities()
        for row in range(layout.rows):
            if sequence[row] >= 0:
                assert int(position[row]) not in tokens
                tokens[int(position[row])] = int(layout.token_ids[row])
    return tokens


@pytest.mark.parametrize(("name", "axis"), [("tp2", "tp"), ("dense-tp2", "tp")])
def test_ranks_of_one_replica_see_the_same_tokens(name: str, axis: str, recordings: Recordings) -> None:
    run = open_run(recordings(name))
    assert [run.headers[rank].parallel[axis] for rank in run.ranks] == [(0, 2), (1, 2)]
    assert tokens_of(run, 0) == tokens_of(run, 1)
    tokens = tokens_of(run, 0)
    assert sorted(tokens) == list(range(len(PROMPT) + DECODES))
    assert tuple(tokens[position] for position in range(len(PROMPT))) == PROMPT
    modes = [layout_of(run, step, 0).forward_mode for step in run.steps]
    assert modes == ["extend"] + ["decode"] * DECODES


def test_an_idle_rank_has_dummy_rows_without_a_token(recordings: Recordings) -> None:
    run = open_run(recordings("dp2"))
    for rank in run.ranks:
        axes = run.headers[rank].parallel
        assert axes["tp"] == axes["attn_dp"] == axes["moe_tp"] == (rank, 2)
        assert all(axes[axis] == (0, 1) for axis in ("pp", "attn_tp", "attn_cp", "moe_ep", "moe_dp"))
    (busy,) = [rank for rank in run.ranks if tokens_of(run, rank)]
    (idle,) = [rank for rank in run.ranks if rank != busy]
    assert sorted(tokens_of(run, busy)) == list(range(len(PROMPT) + DECODES))
    for step in run.steps:
        here, there = layout_of(run, step, busy), layout_of(run, step, idle)
        prefill = step == run.steps[0]
        assert here.forward_mode == ("extend" if prefill else "decode")
        assert there.forward_mode == "idle"
        assert (there.real_rows, there.rows) == (0, 0 if prefill else 1)
        for layout, rank in ((here, busy), (there, idle)):
            gather = layout.data_parallel
            assert gather is not None
            assert (gather.axis, gather.rank, gather.size) == ("attn_dp", rank, 2)
            assert gather.rows[busy] == here.rows
            assert gather.rows[idle] == there.rows
            assert gather.real_rows[busy] == here.real_rows
            assert gather.real_rows[idle] == 0
            assert gather.padding == ("sum_len" if prefill else "max_len")
