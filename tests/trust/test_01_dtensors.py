"""DTensors: the local shard, with mesh and placements as parallel layout and dims; no collective is started."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from dumper import open_run
from testbed.ranks import run_ranks
from tests.trust import dtensors

pytestmark = pytest.mark.slow

SIZE = 4


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dtensors")
    errors = run_ranks(dtensors.record, SIZE, SIZE, str(folder), prepare=dtensors.prepare)
    assert not any("not recorded" in error for error in errors), errors
    return folder / "run"


@pytest.mark.slow
def test_shards_come_with_their_dims(recorded: Path) -> None:
    run = open_run(recorded)
    whole = np.arange(24.0).reshape(4, 6)
    assert {(rank, *run.headers[rank].parallel["tp"], *run.headers[rank].parallel["dp"]) for rank in run.ranks} == {
        (0, 0, 2, 0, 2),
        (1, 1, 2, 0, 2),
        (2, 0, 2, 1, 2),
        (3, 1, 2, 1, 2),
    }
    parts = run.select(name="column")
    assert [record.dims for record in parts] == ["d0 d1[tp] # dp:replicated"] * SIZE
    for record in parts:
        np.testing.assert_array_equal(record.array(), whole[:, 3 * (record.rank % 2) :][:, :3])
    assert {record.dims for record in run.select(name="column named")} == {"t h[tp] # dp:replicated"}
    assert {record.dims for record in run.select(name="rows over both")} == {"d0[dp,tp] d1"}
    rows = [record.array().tolist() for record in run.select(name="rows over both")]
    assert [row for part in rows for row in part] == whole.tolist()
    assert {record.dims for record in run.select(name="replicated")} == {"d0 d1 # dp:replicated tp:replicated"}
    assert {record.dims for record in run.select(name="summand")} == {"d0 d1[tp:partial]"}
    assert {record.dims for record in run.select(name="stats")} == {"d0 d1[tp] # dp:replicated"}
    assert [record.shape for record in run.select(name="stats")] == [(4, 3)] * SIZE


@pytest.mark.slow
def test_parameters_of_sharded_modules(recorded: Path) -> None:
    run = open_run(recorded)
    # ColwiseParallel splits the rows of the first weight over tp, fully_shard those rows again over dp.
    assert {record.dims for record in run.select(name="param.0.weight")} == {"d0[tp,dp] d1"}
    assert [record.shape for record in run.select(name="param.0.weight")] == [(2, 6)] * SIZE
    assert len(run.select(name="after.0.weight")) == 2 * SIZE
    assert run.losses == 0
