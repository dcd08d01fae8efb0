"""A whole ``GPTModel`` of Megatron-core, trained in other parallel layouts; no dims are given, nothing is renamed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import comparator
from dumper import open_run
from testbed.ranks import run_ranks
from testbed.wheels import unpacked_wheel
from tests.trust import megatron_training

pytestmark = pytest.mark.slow


def record(folder: Path, run: str, fault: str = "", **layout: int) -> Path:
    size = layout.get("tp", 1) * layout.get("pp", 1) * max(layout.get("ep", 1), layout.get("dp", 1))
    packages = str(unpacked_wheel("megatron-core", "0.16.1"))
    arguments: tuple[Any, ...] = (packages, str(folder), run, layout, fault)
    run_ranks(megatron_training.train, size, *arguments, prepare=megatron_training.prepare)
    return folder / run


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return record(tmp_path_factory.mktemp("megatron"), "alone")


@pytest.mark.parametrize(
    "layout",
    [
        {"pp": 2},
        {"pp": 2, "vpp": 2},
        {"tp": 2, "sp": 1},
        {"tp": 2, "pp": 2},
    ],
    ids=lambda layout: "-".join(f"{axis}{size}" for axis, size in layout.items()),
)
def test_layouts_agree_with_one_rank(alone: Path, tmp_path: Path, layout: dict[str, int]) -> None:
    report = comparator.compare(alone, record(tmp_path, "ranks", **layout))
    assert report.passed, report.describe()
    assert report.summary.passed == len(report.findings)
    assert {one.name for one in report.findings} >= {"decoder.layers.3.mlp.0", "param.embedding.word_embeddings.weight"}


def test_values_of_other_micro_batches_agree(tmp_path: Path) -> None:
    one = record(tmp_path, "one", nograd=1)
    report = comparator.compare(one, record(tmp_path, "pairs", pp=2, micro=2, nograd=1))
    assert report.passed, report.describe()


def test_experts_have_their_numbers_in_the_whole_model(tmp_path: Path) -> None:
    one, two = (record(tmp_path, f"ep{size}", ep=size, experts=4, nograd=1) for size in (1, 2))
    report = comparator.compare(one, two)
    assert report.passed, report.describe()
    experts = {record.name for record in open_run(two).records if ".local_experts." in record.name}
    assert len(experts) == 4 * 4 * 2
    assert all(name.startswith("param.") for name in experts), "rows of experts lie in another order on other ranks"


@pytest.mark.parametrize(
    ("fault", "layout", "place"),
    [
        ("weight", {"pp": 2}, "decoder.layers.2.mlp.linear_fc2.0"),
        ("loss", {"pp": 2}, "output_layer.0"),
        ("finalize", {"pp": 2}, "param.embedding.word_embeddings.weight"),
        ("norms", {"tp": 2, "sp": 1}, "param.decoder.layers.0.input_layernorm.weight"),
    ],
)
def test_faults_are_placed(alone: Path, tmp_path: Path, fault: str, layout: dict[str, int], place: str) -> None:
    report = comparator.compare(alone, record(tmp_path, "wrong", fault, **layout))
    assert not report.passed
    found = report.first_divergence
    assert found is not None
    assert (found.name, found.location.step) == (place, 0)
