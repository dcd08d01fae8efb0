"""From a training script with ``DistributedDataParallel`` to a verdict: one rank against two, and what goes wrong."""

from __future__ import annotations

from pathlib import Path

import pytest

import comparator
from dumper import open_run
from testbed.ranks import run_ranks
from tests.trust import data_parallel

pytestmark = pytest.mark.slow


def record(folder: Path, run: str, size: int, fault: str = "", grad: str = "") -> Path:
    run_ranks(data_parallel.train, size, size, str(folder), run, fault, grad, prepare=data_parallel.prepare)
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


@pytest.fixture(scope="module")
def with_gradients(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return record(tmp_path_factory.mktemp("gradients"), "alone", 1, grad="values")


@pytest.mark.parametrize("size", [2, 4])
def test_gradients_of_values_are_larger_by_the_number_of_ranks(with_gradients: Path, tmp_path: Path, size: int) -> None:
    run = record(tmp_path, "ranks", size, grad="values")
    for one, other, more in ((with_gradients, run, "target"), (run, with_gradients, "baseline")):
        report = comparator.compare(one, other)
        assert report.passed, report.describe()
        assert f"gradients of values are {size} times as large in the {more}" in str(report.logs)


@pytest.mark.parametrize(
    ("fault", "place", "step"),
    [
        ("summed", "2", 0),  # of the whole loss, beside that of the ranks
        ("doubled", "1", 0),  # one that comes in further down
        ("loss", "2", 1),  # another one
    ],
)
def test_no_other_factor_is_left_out(with_gradients: Path, tmp_path: Path, fault: str, place: str, step: int) -> None:
    report = comparator.compare(with_gradients, record(tmp_path, "ranks", 2, fault, "values"))
    assert not report.passed
    failed = next(one for one in report if one.category == "failed")
    assert (failed.name, failed.location.step, failed.tags["stream"]) == (place, step, "grad")


def test_without_gradients_of_parameters_nothing_tells_whether_the_loss_is_wrong(tmp_path: Path) -> None:
    one, two = (record(tmp_path, f"{size}", size, grad="alone") for size in (1, 2))
    report = comparator.compare(one, two)
    assert not report.passed
    assert "gradients of parameters (dumper.dump_model) would tell" in str(report.logs)
