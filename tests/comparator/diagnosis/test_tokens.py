"""Sampled tokens: ties and faults, and what follows a tie."""

from __future__ import annotations

import numpy as np
import pytest

from comparator.diagnosis.tap_rows import label_rows
from comparator.diagnosis.tokens import Parting, choose_tokens, explain, summarise

ROWS, TOKENS = 8, 512
LABELS = label_rows(ROWS, np.zeros(ROWS, np.int64), np.arange(ROWS))


def logits(gap: float, row: int = 3) -> tuple[np.ndarray, np.ndarray]:
    """Noise of .01; token 5 wins on the baseline by ``gap``, token 9 on the target, in one row."""
    random = np.random.default_rng(0)
    baseline = random.standard_normal((ROWS, TOKENS)).astype(np.float32)
    baseline[:, 7] = 6.0
    target = baseline + np.float32(0.01) * random.standard_normal(baseline.shape).astype(np.float32)
    baseline[row, 5], baseline[row, 9] = 8.0, 8.0 - gap
    target[row, 5], target[row, 9] = 8.0, 8.0 + 0.01
    return baseline, target


@pytest.mark.parametrize(("gap", "cause"), [(0.01, "tie"), (2.0, "fault")])
def test_a_text_parts_at_a_tie_or_by_a_fault(gap: float, cause: str) -> None:
    found = choose_tokens(*logits(gap), "float32")
    assert np.flatnonzero(found.flipped).tolist() == [3]
    parted = explain([Parting(0, 4, 5, 9)], found, LABELS)
    assert parted[0].cause == cause
    assert summarise(found, LABELS).flipped == 1


def test_logits_that_choose_neither_token_do_not_tell_why_a_text_parts() -> None:
    found = choose_tokens(*logits(0.01), "float32")
    partings = [Parting(0, 4, 1, 2), Parting(0, 6, 5, 9), Parting(1, 4, 5, 9), Parting(0, 40, 5, 9)]
    assert [text.cause for text in explain(partings, found, LABELS)] == ["unknown"] * 4
    assert [text.cause for text in explain(partings[:1], None, None)] == ["unknown"]


def test_log_probabilities_are_those_of_the_baselines_choice() -> None:
    baseline, target = np.zeros((1, 4), np.float32), np.zeros((1, 4), np.float32)
    baseline[0, 2] = target[0, 1] = np.log(3)
    found = choose_tokens(baseline, target, "float32")
    assert found.baseline_log_probability == pytest.approx(np.log(1 / 2))
    assert found.target_log_probability == pytest.approx(np.log(1 / 6))


def test_divergence_is_that_of_the_distributions() -> None:
    baseline, target = logits(0.5)
    found = choose_tokens(baseline, target, "float32")
    first, second = (
        each - np.log(np.exp(each).sum(1, keepdims=True))
        for each in (side.astype(np.float64) for side in (baseline, target))
    )
    expected = (np.exp(first) * (first - second)).sum(1)
    np.testing.assert_allclose(found.divergence, expected, rtol=1e-3, atol=1e-6)
    assert summarise(found, LABELS).divergence == pytest.approx(expected.mean(), rel=1e-3)
    assert not choose_tokens(baseline, baseline, "float32").divergence.any()
