"""From a training script with ``DistributedDataParallel`` to a verdict: one rank against two, and what goes wrong."""

from __future__ import annotations

from pathlib import Path

import pytest

import comparator
from dumper import open_run
from testbed.ranks import run_ranks
from tests.trust import data_parallel

pytestmark = pytest.mark.slow


def record(folder: Path, run: str, size: int, fault: str = "") -> Path:
    run_ranks(data_parallel.train, size, size, str(folder), run, fault, prepare=data_parallel.prepare)
    return folder / run


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return record(tmp_path_factory.mktemp("training"), "alone", 1)


@pytest.mark.parametrize("size", [2, 4])
def test_ranks_that_share_a_batch_agree_with_one(alone: Path, tmp_path: Path, size: int) -> None:
    run = record(tmp_path, "ranks", size)
    assert [open_run(run).headers[rank].parallel for rank in range(size)] == [{"dp": (n, size)} for n in range(size)]
    report = comparator.compare(alone, run)
    assert report.passed, report.describe()


@pytest.mark.parametrize(
    ("fault", "place", "step"),
    [
        ("loss", "param.0.weight", 1),  # gradients are averaged: those of the values of a rank are not recorded here
        ("gradients", "param.0.weight", 1),
        ("update", "0", 2),
    ],
)
def test_what_one_rank_does_wrong_is_found(alone: Path, tmp_path: Path, fault: str, place: str, step: int) -> None:
    report = comparator.compare(alone, record(tmp_path, "ranks", 2, fault))
    assert not report.passed
    found = report.first_divergence
    assert found is not None
    assert (found.name, found.location.step) == (place, step)
    assert ("Replicas of the target" in report.words) == (fault != "loss")
