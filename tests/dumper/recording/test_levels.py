"""How much of a value is kept: statistics, samples, hashes, and rules that choose among them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from dumper.reading.protocol import Record
from tests.dumper.recording.conftest import Recording


def _levels(recording: Recording, values: dict[str, Any], level: str) -> dict[str, Record]:
    recorder = recording.start(level=level)
    for name, value in values.items():
        recorder.dump(name, value)
    run = recording.read()
    assert not run.problems
    return {record.name: record for record in run.records}


VALUES = {
    "bf16": torch.tensor([[1.0, -2.0], [0.5, float("nan")], [float("inf"), 4.0]], dtype=torch.bfloat16),
    "int": torch.arange(12).reshape(6, 2),
    "numpy": np.array([[1.0, 2.0], [3.0, np.nan]]),
    "scalar": torch.tensor(3.0),
    "empty": torch.zeros(0, 3),
    "text": "hello",
}


def test_level_stats(recording: Recording) -> None:
    records = _levels(recording, VALUES, "stats")
    assert {name: record.level for name, record in records.items()} == dict.fromkeys(VALUES, "stats") | {"text": "full"}
    assert records["bf16"].statistics == {
        "min": -2.0,
        "max": 4.0,
        "mean": 0.875,
        "abs_mean": 1.875,
        "l2": pytest.approx(21.25**0.5),
        "nan": 1,
        "inf": 1,
    }
    assert (records["bf16"].dtype, records["bf16"].shape) == ("bfloat16", (3, 2))
    assert records["int"].statistics == pytest.approx(
        {"min": 0, "max": 11, "mean": 5.5, "abs_mean": 5.5, "l2": 506**0.5, "nan": 0, "inf": 0}
    )
    assert records["numpy"].statistics == pytest.approx(
        {"min": 1, "max": 3, "mean": 2, "abs_mean": 2, "l2": 14**0.5, "nan": 1, "inf": 0}
    )
    assert records["empty"].statistics == dict.fromkeys(records["empty"].statistics or {}, 0)
    with pytest.raises(ValueError, match="recorded at level stats"):
        records["bf16"].array()


def test_level_sample(recording: Recording) -> None:
    records = _levels(recording, VALUES, 'sample(stride=2) if name == "int"; sample(rows=2)')
    assert records["int"].array().tolist() == [[0, 1], [4, 5], [8, 9]]
    assert records["int"].shape == (6, 2)
    assert records["int"].sampled_rows == range(0, 6, 2)
    assert records["bf16"].array().shape == (2, 2)
    assert records["numpy"].array().tolist()[0] == [1.0, 2.0]
    assert (records["scalar"].level, float(records["scalar"].array())) == ("full", 3.0)
    assert records["empty"].array().shape == (0, 3)


def test_level_hash_is_equal_exactly_when_dtype_shape_and_bytes_are(recording: Recording) -> None:
    base = torch.arange(12, dtype=torch.int32)
    nan = torch.tensor([float("nan")])
    values = {
        "same": base.clone(),
        "same again": torch.arange(24, dtype=torch.int32)[:12],
        "strided": torch.stack([base, base], 1)[:, 0],
        "shape": base.reshape(3, 4),
        "dtype": base.view(torch.float32),
        "bit": base.clone().index_fill_(0, torch.tensor([11]), 10),
        "zero": torch.tensor([0.0]),
        "minus zero": torch.tensor([-0.0]),
        "nan": nan,
        "nan again": nan.clone(),
        "numpy": base.numpy(),
        "large": torch.zeros(500_000),
        "larger": torch.zeros(500_001),
    }
    prints = {name: record.fingerprint for name, record in _levels(recording, values, "hash").items()}
    assert prints["same"] == prints["same again"] == prints["strided"] == prints["numpy"]
    assert prints["nan"] == prints["nan again"]
    assert len(set(prints.values())) == len(prints) - 4


def test_rules_choose_levels_and_calls_overrule_them(recording: Recording) -> None:
    recorder = recording.start(level='hash if layer_id == 0; stats if name.startswith("m")')
    for layer in range(2):
        recorder.dump("attn", torch.ones(2), layer_id=layer)
        recorder.dump("mlp", torch.ones(2), layer_id=layer)
    recorder.dump("mlp", torch.ones(2), layer_id=0, level="full")
    assert [record.level for record in recording.read().records] == ["hash", "hash", "full", "stats", "full"]


def test_on_nan_writes_from_the_steps_before(recording: Recording) -> None:
    recorder = recording.start(on_nan=1)
    for step in range(6):
        recorder.step()
        recorder.dump("x", torch.full((3,), float("nan") if step == 4 else float(step)))
    assert [record.step for record in recording.read().records] == [3, 4, 5]


def test_on_nan_without_any_says_why_the_run_is_empty(recording: Recording) -> None:
    recorder = recording.start(on_nan=1)
    for step in range(4):
        recorder.step()
        recorder.dump("x", float(step))
        recorder.dump("x", torch.ones(2))
    run = recording.read()
    assert (len(run.records), run.losses) == (0, 0)
    assert [problem.kind for problem in run.problems] == ["empty"]
    assert "8 values were held back, since on_nan waited" in run.problems[0].message
