"""Rows sorted by expert come back to token order."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

import comparator
from tests.comparator.fakes import FakeRecord, FakeRun, values

TOKENS, CHOICES, EXPERTS, WIDTH = 6, 2, 8, 4
Array = npt.NDArray[np.float32]


def routed(seed: int) -> tuple[Array, npt.NDArray[np.int64]]:
    """What each (token, choice) pair gives, and the experts that each token goes to."""
    generator = np.random.default_rng(seed)
    experts = np.stack([generator.permutation(EXPERTS)[:CHOICES] for _ in range(TOKENS)])
    return values(TOKENS, CHOICES, WIDTH, seed=seed), experts


def sorted_run(pairs: Array, experts: npt.NDArray[np.int64], ranks: int, dims: str) -> FakeRun:
    """Every rank holds the rows of its experts, sorted by expert."""
    flat, of_pair = pairs.reshape(-1, WIDTH), experts.reshape(-1)
    records = []
    for rank in range(ranks):
        own = [
            pair
            for expert in range(rank * EXPERTS // ranks, (rank + 1) * EXPERTS // ranks)
            for pair in np.flatnonzero(of_pair == expert)
        ]
        records.append(FakeRecord("topk_ids", experts, rank, dims="t k # moe_ep:replicated", tags={"layer_id": 0}))
        records.append(FakeRecord("expert_out", flat[own], rank, dims=dims, tags={"layer_id": 0}))
    return FakeRun(records, {rank: {"moe_ep": (rank, ranks)} for rank in range(ranks)})


@given(st.integers(0, 20), st.sampled_from([1, 2, 4]))
def test_expert_parallel_ranks_against_one_in_token_order(seed: int, ranks: int) -> None:
    pairs, experts = routed(seed)
    dims = f"t[moe_ep] h # expert_order:=topk_ids/{EXPERTS}"
    target = sorted_run(pairs, experts, ranks, dims)
    plain = [FakeRecord("topk_ids", experts, dims="t k"), FakeRecord("expert_out", pairs, dims="t choice h")]
    for record in plain:
        record.tags = {"layer_id": 0}
    report = comparator.compare(FakeRun(plain), target)
    assert report.summary.passed == 2, report.describe()
    last = [record for record in target.records if record.name == "expert_out" and len(record.data)][-1]  # type: ignore[arg-type]
    assert last.data is not None
    last.data[-1] *= 2
    assert [one.name for one in comparator.compare(FakeRun(plain), target).of("failed")] == ["expert_out"]


def test_a_recorded_permutation() -> None:
    pairs, _ = routed(1)
    order = np.random.default_rng(0).permutation(TOKENS * CHOICES)
    sent = pairs.reshape(-1, WIDTH)[order]
    baseline = FakeRun([FakeRecord("out", pairs, dims="t choice h")])

    def target(rows: npt.NDArray[np.int64]) -> FakeRun:
        return FakeRun(
            [FakeRecord("rows", rows, dims="r"), FakeRecord("out", sent, dims=f"t h # permuted:=rows/{CHOICES}")]
        )

    assert comparator.compare(baseline, target(order), filter="name == 'out'").passed
    assert not comparator.compare(baseline, target(order[::-1].copy()), filter="name == 'out'").passed
    broken = order.copy()
    broken[0] = broken[1]
    assert "no permutation" in comparator.compare(baseline, target(broken), filter="name == 'out'").describe()


@pytest.mark.parametrize(
    ("dims", "message"),
    [
        ("t h # expert_order:=other", "name 'other', which rank 0 did not record"),
        ("h t # expert_order:=topk_ids", "first dimension t"),
        ("t[moe_ep] h # expert_order:=topk_ids", "how many experts there are is not said"),
    ],
)
def test_what_is_missing_is_named(dims: str, message: str) -> None:
    pairs, experts = routed(0)
    target = sorted_run(pairs, experts, 2 if "moe_ep" in dims else 1, dims)
    report = comparator.compare(target, target, filter="name == 'expert_out'")
    assert message in report.describe()
