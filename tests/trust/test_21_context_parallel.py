"""Context parallelism of a program of one's own: sequences in zigzag order over 1, 2 and 4 ranks, ring and Ulysses."""

from __future__ import annotations

from pathlib import Path

import pytest

import comparator
from testbed.ranks import run_ranks
from tests.trust import context_parallel

pytestmark = pytest.mark.slow


def record(folder: Path, run: str, size: int, kind: str, fault: str = "") -> Path:
    run_ranks(context_parallel.train, size, size, str(folder), run, kind, fault, prepare=context_parallel.prepare)
    return folder / run


@pytest.mark.parametrize("kind", ["ring", "ulysses"])
def test_any_number_of_ranks_agrees_and_a_fault_is_placed(tmp_path: Path, kind: str) -> None:
    alone, two, four = (record(tmp_path, f"{size}", size, kind) for size in (1, 2, 4))
    for one, other in ((alone, two), (alone, four), (two, four)):
        report = comparator.compare(one, other)
        assert report.passed, report.describe()
    report = comparator.compare(alone, record(tmp_path, "wrong", 2, kind, "attention"))
    assert not report.passed
    found = report.first_divergence
    assert found is not None
    assert (found.name, found.location.step) == ({"ring": "1.out", "ulysses": "heads"}[kind], 0)
