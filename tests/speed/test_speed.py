"""No compiled pass and no path that is planned once has lost a factor of two: processor time, beside that of a
reference in the same thread. ``ratios`` says how, and ``cases`` what was measured."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tensortap.compiled import missing
from tests.speed.cases import ALL, CASES, PLAIN, Case
from tests.speed.ratios import MARGIN, Work, margin, ratio_within

pytestmark = pytest.mark.skipif(
    bool(missing()), reason="the compiled modules are not built: python setup.py build_ext -i"
)
LEVELS = [
    pytest.param(case, level, id=f"{case.name}{'' if level is None else f', {level}'}")
    for case in CASES
    for level in case.measured
]
WITH_VECTORS = [pytest.param(case, id=case.name) for case in CASES if case.has_levels]
PLANTED = 2
"""Attempts where the outcome is known: it is beyond the bound after any number of them."""


@pytest.fixture
def works(case: Case, tmp_path: Path) -> Iterator[tuple[Work, Work]]:
    if not case.is_here:
        pytest.skip("this processor has no instructions for vectors that are used")
    ours, reference = case.make(tmp_path), case.reference(tmp_path)
    yield ours, reference
    if case.has_levels:
        case.module._compiled.limit(ALL)
    if ours.end is not None:
        ours.end()


@pytest.mark.parametrize(("case", "level"), LEVELS)
def test_it_takes_as_long_as_it_did_beside_a_reference(case: Case, level: int | None, works: tuple[Work, Work]) -> None:
    if level is not None and case.module._compiled.limit(level) != level:
        pytest.skip("this processor does not have these instructions")
    at_most = margin() * case.expected(level)
    found = ratio_within(*works, at_most)
    assert found <= at_most, f"{found:.2f} times the reference, at most {at_most:.2f}: python -m tests.speed"


@pytest.mark.parametrize("case", WITH_VECTORS)
def test_vectors_are_faster_than_plain_loops(case: Case, works: tuple[Work, Work]) -> None:
    """Whatever the processor: with all instructions that it has, of which ``cases`` need not know."""
    limit = case.module._compiled.limit
    assert ratio_within(_with(limit, ALL, works[0]), _with(limit, PLAIN, works[0]), 0.75) <= 0.75


def _with(limit: Callable[[int], int], level: int, work: Work) -> Work:
    def call() -> None:
        limit(level)
        work.call()

    return Work(call)


@pytest.mark.parametrize("case", [pytest.param(case, id=case.name) for case in CASES])
def test_to_do_it_twice_is_noticed(case: Case, works: tuple[Work, Work]) -> None:
    """Beside what it takes on this processor now; how near the bound of ``cases`` is depends on the processor."""
    ours, reference = works

    def twice() -> None:
        ours.call()
        ours.call()

    at_most = MARGIN * ratio_within(ours, reference, 0.0, PLANTED)
    assert ratio_within(Work(twice, ours.between), reference, at_most, PLANTED) > at_most
