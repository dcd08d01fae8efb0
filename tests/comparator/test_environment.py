"""What differs between two runs beside their tensors is said when they fail, in at most three lines."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

import comparator
from tests.comparator.fakes import FakeHeader, FakeRecord, FakeRun


@dataclass
class Run(FakeRun):
    header: FakeHeader | None = None

    @property
    def headers(self) -> Mapping[int, FakeHeader]:
        return {} if self.header is None else {0: self.header}


def run(value: float, size: int, **versions: str) -> Run:
    header = FakeHeader({"tp": (0, size)}, versions=versions, patch_config={"sha256": str(size) * 64})
    return Run([FakeRecord("x", np.full((4, 8), value, np.float32), dims="t h")], header=header)


def test_a_failing_report_says_what_else_differs() -> None:
    report = comparator.compare(run(1, 1, torch="2.12", sglang="0.5.13"), run(2, 2, torch="2.13", sglang="0.5.13"))
    assert report.summary.exit_code == 1
    layout, versions, settings = report.summary.beside_tensors
    assert layout == "parallel layout: tp 1 against 2"
    assert versions == "versions: torch 2.12 against 2.13"
    assert settings == "settings: patch configs 111111111111 against 222222222222"


def test_settings_that_differ_are_named() -> None:
    one, other = run(1, 1), run(2, 1)
    assert one.header is not None
    assert other.header is not None
    one.header.settings = {"--attention-backend": "torch_native", "--tp": "1"}
    other.header.settings = {"--attention-backend": "flashinfer", "--tp": "1"}
    report = comparator.compare(one, other)
    assert report.summary.beside_tensors == ["settings: --attention-backend torch_native against flashinfer"]


def test_weights_come_first_and_what_one_side_did_not_record_comes_last() -> None:
    one, other = run(1, 1), run(2, 1)
    assert one.header is not None
    assert other.header is not None
    one.header.settings = {
        "model.head_dim": "32",
        "--seed": "1",
        "sglang.attention_backend": "a",
        "model.weights": "ab",
    }
    other.header.settings = {"--seed": "2", "sglang.attention_backend": "b", "model.weights": "cd"}
    (line,) = comparator.compare(one, other).summary.beside_tensors
    weights, backend, rest = "model.weights ab against cd", "sglang.attention_backend a against b", "--seed 1 against 2"
    assert line == f"settings: {weights}, {backend}, {rest}, model.head_dim 32 against none"


def test_a_passing_report_and_equal_headers_say_nothing() -> None:
    assert comparator.compare(run(1, 1, torch="2.12"), run(1, 2, torch="2.13")).summary.beside_tensors == []
    assert comparator.compare(run(1, 1), run(2, 1)).summary.beside_tensors == []
    assert comparator.compare(run(1, 1), Run(run(2, 1).records)).summary.beside_tensors == []


def test_settings_of_one_launch_are_left_out() -> None:
    one, other = run(1, 1), run(2, 1)
    assert one.header is not None
    assert other.header is not None
    one.header.settings = {"--port": "30000", "SGLANG_RUN_ID": "a", "--tp": "1"}
    other.header.settings = {"--port": "30001", "SGLANG_RUN_ID": "b", "--tp": "1"}
    report = comparator.compare(one, other)
    assert report.summary.beside_tensors == []
