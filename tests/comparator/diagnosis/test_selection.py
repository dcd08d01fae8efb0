"""Choices of experts by biased scores and among groups, against a plain reading of DeepSeek's rules."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from comparator.diagnosis import Selection
from comparator.diagnosis.expert_scores import scores_of, select
from comparator.diagnosis.routing import choices, chosen

EXPERTS, TOP_K = 8, 2


def as_published(logits: np.ndarray, bias: np.ndarray | None, groups: int, best_groups: int) -> list[set[int]]:
    """Row by row: V2 takes a group's best expert for its score, V3 the sum of its best two with the bias."""
    found = []
    for row in logits.astype(np.float64):
        scores = row if bias is None else 1 / (1 + np.exp(-row)) + bias
        members = np.split(np.arange(EXPERTS), groups)
        rank = [sum(sorted(scores[group])[-(1 if bias is None else 2) :]) for group in members]
        kept = np.concatenate([members[at] for at in np.argsort(rank)[::-1][:best_groups]])
        found.append({int(kept[at]) for at in np.argsort(scores[kept])[::-1][:TOP_K]})
    return found


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1), st.booleans(), st.sampled_from([(1, 1), (4, 2), (2, 1)]))
def test_the_choice_is_the_published_one(seed: int, biased: bool, groups: tuple[int, int]) -> None:
    random = np.random.default_rng(seed)
    logits = random.standard_normal((12, EXPERTS)).astype(np.float32)
    bias = (0.3 * random.standard_normal(EXPERTS)).astype(np.float32) if biased else None
    scoring = "sigmoid" if biased else "softmax"
    selection = Selection(scoring, *groups, biased=biased, baseline_bias=bias, target_bias=bias)
    mask = chosen(logits, TOP_K, selection, bias)
    expected = as_published(logits, bias, *groups)
    assert [set(np.flatnonzero(row).tolist()) for row in mask] == expected


def test_a_margin_is_the_smaller_one_of_experts_and_groups() -> None:
    scores = np.array([[5.0, 4.0, 4.9, 0.0, 0.0, 0.0, 0.0, 0.0]])
    found = select(scores, 1, Selection(groups=4, best_groups=1))
    assert found.experts.tolist() == [[0]]
    assert found.margin == pytest.approx([0.1])


def test_a_bias_decides_where_logits_alone_show_no_flip() -> None:
    """Scores with their bias cross between the sides; the largest logits are the same on both."""
    baseline = np.array([[3.0, 0.0, -0.02, -3, -3, -3, -3, -3]], np.float32)
    target = np.array([[3.0, 0.0, -0.01, -3, -3, -3, -3, -3]], np.float32)
    bias = np.zeros(EXPERTS, np.float32)
    bias[2] = float(1 / (1 + np.exp(0.0)) - 1 / (1 + np.exp(0.015)))
    plain = choices(baseline, target, TOP_K, "float32")
    biased = choices(baseline, target, TOP_K, "float32", Selection("sigmoid", 1, 1, True, bias, bias))
    assert not plain.flipped.any()
    assert biased.flipped.all()
    assert biased.margin[0] < 2 * biased.noise[0]


def test_scores_without_a_bias_are_the_logits() -> None:
    logits = np.random.default_rng(0).standard_normal((4, EXPERTS)).astype(np.float32)
    assert np.array_equal(scores_of(logits, Selection("sigmoid"), None), logits)
    assert not Selection("sigmoid", biased=True).known


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from([0.5, 2.0]))
def test_experts_with_equal_probabilities_in_the_dtype_are_a_tie(seed: int, size: float) -> None:
    """Some engines take the softmax in the dtype of the logits, and then the largest probabilities."""
    random = np.random.default_rng(seed)
    logits = (size * random.standard_normal((200, EXPERTS))).astype(ml_dtypes.bfloat16).astype(np.float32)
    share = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    stored = np.sort(share.astype(ml_dtypes.bfloat16), axis=1)[:, ::-1]
    open_choice = stored[:, TOP_K - 1] == stored[:, TOP_K]
    tied = choices(logits, logits, TOP_K, "bfloat16").tied
    assert tied[open_choice].all()
    assert tied.mean() < 0.2
