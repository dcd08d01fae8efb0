"""The measurement itself: it notices twice the work, and does not notice a fifth more."""

from __future__ import annotations

import time
from collections.abc import Callable
from itertools import chain, repeat
from pathlib import Path

import numpy as np
import pytest

from tests.speed import ratios
from tests.speed.cases import arithmetic
from tests.speed.ratios import ATTEMPTS, MARGIN, Work, ratio_within

VALUES = np.linspace(0, 1, 2048, dtype=np.float32)
TABLE = {number: str(number) for number in range(200)}


def of_python() -> None:
    sorted(TABLE.values())


def of_numpy() -> None:
    np.sort(VALUES)


FEW = 3
"""Attempts where the outcome is known."""


def times(call: Callable[[], object], count: int) -> Work:
    return Work(lambda: [call() for _ in range(count)])


@pytest.mark.parametrize("call", [of_python, of_numpy])
def test_twice_the_work_is_noticed_and_a_fifth_more_is_not(call: Callable[[], object]) -> None:
    assert ratio_within(times(call, 10), times(call, 5), MARGIN, FEW) > MARGIN
    assert ratio_within(times(call, 6), times(call, 5), MARGIN) <= MARGIN


def test_twice_the_work_is_noticed_beside_a_reference_of_another_kind(tmp_path: Path) -> None:
    reference = arithmetic(tmp_path)
    found = ratio_within(times(of_numpy, 1), reference, 0.0, FEW)
    assert ratio_within(times(of_numpy, 2), reference, MARGIN * found, FEW) > MARGIN * found


def test_what_waits_does_not_count() -> None:
    def waits() -> None:
        time.sleep(1e-4)
        of_numpy()

    assert ratio_within(Work(waits), times(of_numpy, 2), MARGIN) <= MARGIN


@pytest.mark.parametrize(
    ("first", "expected"), [([], 1.0), ([3.0], 1.0), ([2.0, 9.0, 3.0], 1.0), ([4.0, 2.0] * ATTEMPTS, 2.0)]
)
def test_a_measurement_that_fails_is_not_believed_at_once(
    first: list[float], expected: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    results, asked = chain(first, repeat(1.0)), []

    def measured(ours: Work, reference: Work, rounds: int) -> float:
        asked.append(rounds)
        return next(results)

    monkeypatch.setattr(ratios, "ratio", measured)
    assert ratio_within(Work(of_python), Work(of_python), 1.6) == expected
    assert asked == sorted(set(asked))
    assert len(asked) == min(len(first) + 1, ATTEMPTS)
