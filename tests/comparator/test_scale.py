"""Planning of runs with many ranks, counted in work: nothing is done for every single record."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from comparator.options import Options
from comparator.prepared import Prepared, prepare
from dumper.reading.open import open_run
from testbed.sparse_runs import LAYER_TAPS, OTHER_TAPS, Sparse, write_sparse_run
from tests.harness.counted_calls import calls

SMALL, LONG, WIDE = Sparse(2, 4, 12, 40), Sparse(2, 4, 12, 80), Sparse(2, 8, 12, 40)
"""Of 4,920 records on each of eight ranks; of twice as many; and of as many on each of sixteen."""


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[Sparse, Path]:
    folder = tmp_path_factory.mktemp("sparse")
    return {size: write_sparse_run(folder / f"{size.ranks}-{size.steps}", size) for size in (SMALL, LONG, WIDE)}


def planned(path: Path, **options: Any) -> Prepared:
    prepared = prepare(open_run(path), open_run(path), Options(**options))
    _ = prepared.units
    return prepared


def test_shards_of_all_ranks_and_steps_are_grouped(runs: dict[Sparse, Path]) -> None:
    prepared = planned(runs[SMALL])
    taps = SMALL.layers * len(LAYER_TAPS) + len(OTHER_TAPS)
    assert len(prepared.units) == taps
    assert len({pair.family for pair in prepared.pairs}) == taps
    for pair in prepared.pairs[:: len(prepared.pairs) // 7]:
        for side in (pair.baseline, pair.target):
            assert side is not None
            assert {entry.rank for entry in side.entries} == set(range(SMALL.ranks))
            assert {entry.name for entry in side.entries} == {pair.name}
            assert {entry.step for entry in side.history} == set(range(SMALL.steps))


@pytest.mark.parametrize("options", [{}, {"filter": "layer_id == 3 and step < 9"}])
def test_planning_is_linear_and_takes_no_call_for_each_record(runs: dict[Sparse, Path], options: Any) -> None:
    planned(runs[SMALL], **options)  # what is imported and compiled once
    small, long, wide = (calls(lambda size=size: planned(runs[size], **options)) for size in (SMALL, LONG, WIDE))
    assert long <= 2.2 * small
    assert wide - small < 2 * (WIDE.records - SMALL.records)  # of both sides; for its steps each rank takes some
