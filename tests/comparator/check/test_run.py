"""What one run shows to be wrong by itself: nothing in a clean one, and each planted fault by its name."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from comparator.check.recomputed import fit_norm, fit_sum
from comparator.check.run import check_run
from comparator.cli import main
from comparator.options import Options
from tests.comparator.diagnosis.simulator import Kernels, Model
from tests.comparator.fakes import FakeRecord, FakeRun
from tests.comparator.recording import write_run
from tests.comparator.test_analysis import as_run

WORLD = {rank: {"tp": (rank, 2)} for rank in range(2)}


def two_ranks(change: Callable[[dict[str, np.ndarray]], None] = lambda values: None) -> FakeRun:
    """A layer on two ranks: the attention's output as partial sums, everything else on both."""
    random = np.random.default_rng(0)
    parts = random.standard_normal((2, 12, 16)).astype(np.float32)
    first = random.standard_normal((12, 16)).astype(np.float32)
    values = {"layer_input": first, "part0": parts[0], "part1": parts[1], "pre_mlp_residual": first + parts.sum(0)}
    change(values)
    records = []
    for rank in range(2):
        for name, key, dims in (
            ("layer_input", "layer_input", "t h # tp:replicated"),
            ("attn_output", f"part{rank}", "t h[tp:partial]"),
            ("pre_mlp_residual", f"pre_mlp_residual{rank}", "t h # tp:replicated"),
        ):
            value = values.get(key, values["pre_mlp_residual"])
            records.append(FakeRecord(name, value, rank=rank, dims=dims, tags={"layer_id": 0}))
    return FakeRun(records, parallel=WORLD)


def names(run: FakeRun) -> list[str]:
    return [finding.said.name for finding in check_run(run, Options())]


@pytest.mark.parametrize("experts", [False, True])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_a_clean_run_shows_nothing(experts: bool, dtype: str) -> None:
    assert names(as_run(Model(experts=experts).run(Kernels(pieces=2, dtype=dtype)))) == []
    assert names(two_ranks()) == []


def test_a_partial_sum_that_nobody_took() -> None:
    def fault(values: dict[str, np.ndarray]) -> None:
        values["pre_mlp_residual"] = values["layer_input"] + values["part0"]

    found = check_run(two_ranks(fault), Options())
    assert [one.said.name for one in found] == ["sum-not-taken"]
    assert "rank 0" in found[0].said.message
    assert found[0].tap == "pre_mlp_residual layer_id=0"


def test_a_residual_that_was_added_twice() -> None:
    def fault(values: dict[str, np.ndarray]) -> None:
        values["pre_mlp_residual"] = 2 * values["layer_input"] + values["part0"] + values["part1"]

    found = check_run(two_ranks(fault), Options())
    assert [one.said.name for one in found] == ["sum-is-off"]
    assert "2 times layer_input layer 0" in found[0].said.message


def test_replicas_that_disagree() -> None:
    def fault(values: dict[str, np.ndarray]) -> None:
        values["pre_mlp_residual1"] = values["pre_mlp_residual"] * np.float32(1.001)

    assert names(two_ranks(fault)) == ["replicas-disagree"]


def test_the_first_value_that_is_not_finite_and_its_rank() -> None:
    def fault(values: dict[str, np.ndarray]) -> None:
        values["part1"] = np.where(np.arange(16) == 3, np.nan, values["part1"]).astype(np.float32)

    found = check_run(two_ranks(fault), Options())
    first = next(one for one in found if one.said.name == "non-finite")
    assert first.tap == "attn_output layer_id=0"
    assert "on rank 1 alone" in first.said.message


def test_a_norm_that_is_none() -> None:
    recorded = Model().run()
    key = next(key for key in recorded.values if key.name == "final_norm_output")
    wrong = recorded.values[key] * np.linspace(0.5, 1.5, len(recorded.values[key]), dtype=np.float32)[:, None]
    assert names(as_run(replace(recorded, values={**recorded.values, key: wrong}))) == ["norm-is-off"]


def test_a_norm_whose_weights_are_trained() -> None:
    class Trained(FakeRun):
        def updates(self, step: int) -> int:
            return step

    once = as_run(Model().run())
    weights = np.linspace(0.9, 1.1, once.records[0].data.shape[-1], dtype=np.float32)

    def changed(record: FakeRecord) -> np.ndarray:
        assert record.data is not None
        value = record.data * weights if record.name == "final_norm_output" else record.data
        return value.astype(record.data.dtype)

    later = [replace(record, step=1, data=changed(record)) for record in once.records]
    layouts = {**once.layouts, (1, 0): once.layouts[0, 0]}
    assert names(Trained([*once.records, *later], layouts=layouts)) == []
    assert names(FakeRun([*once.records, *later], layouts=layouts)) == ["norm-is-off"]


@pytest.mark.parametrize("epsilon", [1e-8, 1e-6, 1e-5])
def test_norms_of_small_values(epsilon: float) -> None:
    """What is added to the mean square matters beside the values of a model that is not trained."""
    random = np.random.default_rng(0)
    values = random.standard_normal((20, 64)) * np.geomspace(1e-3, 1e-1, 20)[:, None]
    output = values / np.sqrt((values**2).mean(1, keepdims=True) + epsilon) * random.standard_normal(64)
    fit = fit_norm(values, output)
    assert fit is not None
    assert fit.residual < 1e-9


def test_weights_that_are_nearly_tied() -> None:
    weight = np.random.default_rng(0).standard_normal((400, 8)).astype(np.float32)
    stale = weight.copy()
    stale[3] = 0
    for head, expected in ((weight, []), (stale, ["weights-not-tied"]), (weight[::-1].copy(), [])):
        run = FakeRun([FakeRecord("model.embed_tokens.weight", weight), FakeRecord("lm_head.weight", head)])
        assert names(run) == expected


@pytest.mark.parametrize("value", [np.zeros((6, 4)), np.full((6, 4), np.nan), np.ones((2, 4)), np.ones((0, 4))])
def test_degenerate_values_are_not_fitted(value: np.ndarray) -> None:
    assert fit_norm(value, value) is None
    assert fit_sum(np.zeros((6, 4)), [value]) is None


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def fault(values: dict[str, np.ndarray]) -> None:
        values["pre_mlp_residual"] = values["layer_input"] + values["part0"]

    clean, faulty = write_run(two_ranks(), tmp_path / "clean"), write_run(two_ranks(fault), tmp_path / "faulty")
    assert main(["check", str(clean)]) == 0
    assert "nothing is wrong" in capsys.readouterr().out
    assert main(["check", str(faulty), "--output-format", "json"]) == 1
    assert json.loads(capsys.readouterr().out)["name"] == "sum-not-taken"
    assert main(["check", str(tmp_path / "nowhere")]) == 2
