"""Passes of vLLM's two model runners as token layouts."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from dumper.adapters.vllm import VLLMAdapter
from dumper.layout import TokenLayout

REQUESTS = [("a", 32, [7]), ("b", 0, [1, 2]), ("c", 4, [3, 4, 5])]
"""Request id, tokens computed before, tokens of this pass."""


def runner(requests: list[tuple[str, int, list[int]]]) -> Any:
    """A ``GPUModelRunner`` with room for more requests than there are, as its buffers have."""
    counts = [len(ids) for _, _, ids in requests]
    return SimpleNamespace(
        input_batch=SimpleNamespace(
            num_reqs=len(requests),
            req_ids=[name for name, _, _ in requests],
            num_computed_tokens_cpu=np.array([start for _, start, _ in requests] + [99, 99], np.int32),
        ),
        query_start_loc=SimpleNamespace(np=np.array([0, *np.cumsum(counts), 0, 0], np.int32)),
    )


def tensors(requests: list[tuple[str, int, list[int]]], padding: int) -> dict[str, torch.Tensor]:
    ids = [token for _, _, tokens in requests for token in tokens]
    positions = [start + offset for _, start, tokens in requests for offset in range(len(tokens))]
    return {
        "input_ids": torch.tensor(ids + [0] * padding, dtype=torch.int32),
        "positions": torch.tensor(positions + [0] * padding),
    }


def read(batch: Any) -> TokenLayout:
    adapter = VLLMAdapter()
    assert adapter.accepts(batch)
    layout = adapter.read_batch(batch)
    assert isinstance(layout, TokenLayout)
    return layout


def test_the_runner_that_keeps_its_requests() -> None:
    layout = read({"runner": runner(REQUESTS), **tensors(REQUESTS, padding=2)})
    assert [(s.id, s.start, s.count) for s in layout.sequences] == [("a", 32, 1), ("b", 0, 2), ("c", 4, 3)]
    assert (layout.rows, layout.real_rows) == (8, 6)
    assert layout.forward_mode == "mixed"
    assert layout.token_ids is not None
    assert layout.token_ids[:6].tolist() == [7, 1, 2, 3, 4, 5]


def test_the_runner_that_makes_an_input_batch() -> None:
    batch = SimpleNamespace(
        num_reqs=2,
        req_ids=["a", "b"],
        num_scheduled_tokens=np.array([1, 2]),
        num_computed_tokens_np=np.array([32, 0]),
        **tensors(REQUESTS[:2], padding=1),
    )
    layout = read(batch)
    assert [(s.start, s.count) for s in layout.sequences] == [(32, 1), (0, 2)]
    assert layout.rows == 4


def test_positions_are_right_where_the_count_of_computed_tokens_runs_ahead() -> None:
    ahead = runner([("a", 35, [7])])
    layout = read({"runner": ahead, **tensors([("a", 33, [7])], padding=0)})
    assert layout.sequences[0].start == 33


@pytest.mark.parametrize(
    ("requests", "mode"),
    [(REQUESTS[:1], "decode"), (REQUESTS[1:], "prefill"), (REQUESTS, "mixed"), ([("d", 0, [1])], "prefill")],
)
def test_modes(requests: Any, mode: str) -> None:
    assert read({"runner": runner(requests), **tensors(requests, padding=0)}).forward_mode == mode


def test_rotary_positions_of_several_dimensions_are_left_aside() -> None:
    given = tensors(REQUESTS, padding=0)
    given["positions"] = given["positions"].expand(3, -1)
    assert read({"runner": runner(REQUESTS), **given}).sequences[0].start == 32


def test_more_tokens_than_rows_are_refused() -> None:
    with pytest.raises(ValueError, match="pass of 6 tokens has only 3 rows"):
        read({"runner": runner(REQUESTS), **tensors(REQUESTS[1:2], padding=1)})


def test_arguments_of_a_transformers_model_are_not_accepted() -> None:
    assert not VLLMAdapter().accepts({"input_ids": torch.zeros(1, 2)})
