"""``--quick``: nothing is missed that a full comparison finds, and what is known to be equal is not compared."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import comparator
from comparator.align.load import load_array
from comparator.api import Report
from comparator.cli import main
from comparator.match.entries import Entry
from comparator.report.records import TensorComparison
from tests.comparator.fakes import FakeRecord, FakeRun, one_request, values
from tests.comparator.recording import write_run

RANKS = {0: {"tp": (0, 2)}, 1: {"tp": (1, 2)}}
STEPS = [5, 1]
LAYERS = 3


def run_of(**changed: Any) -> FakeRun:
    """Two ranks, of which each holds a shard of one tap and a replica of another, and integers."""
    records = []
    for step, rows in enumerate(STEPS):
        for layer in range(LAYERS):
            whole = values(rows, 8, seed=10 * step + layer)
            ids = np.arange(rows, dtype=np.int64) + layer
            for rank in range(2):
                tags = {"layer_id": layer}
                shard = np.ascontiguousarray(np.split(whole, 2, axis=1)[rank])
                records.append(FakeRecord("sharded", shard, rank, step, "t h[tp]", tags))
                records.append(FakeRecord("pre_mlp_residual", whole.copy(), rank, step, "t h # tp:replicated", tags))
                records.append(FakeRecord("moe_router_logits", whole.copy(), rank, step, "t h # tp:replicated", tags))
                records.append(FakeRecord("ids", ids, rank, step, "t # tp:replicated", tags))
    layouts = {(step, rank): layout for (step, _), layout in one_request(STEPS).items() for rank in range(2)}
    return FakeRun(records, RANKS, layouts)


def found(run: FakeRun, name: str, layer: int, step: int, rank: int) -> np.ndarray[Any, Any]:
    data = next(
        record.data
        for record in run.records
        if (record.name, record.tags["layer_id"], record.step, record.rank) == (name, layer, step, rank)
    )
    assert data is not None
    return data


def fault(run: FakeRun, what: str) -> None:
    """Change a run in one place."""
    if what == "one element":
        found(run, "sharded", 1, 0, 1)[2, 3] += 0.5
    elif what == "one element of a replica":
        found(run, "pre_mlp_residual", 2, 1, 1)[0, 0] += 1.0
    elif what == "an integer":
        for rank in range(2):
            found(run, "ids", 0, 0, rank)[1] += 1
    elif what == "rows of a step":
        found(run, "sharded", 2, 0, 0)[:] = found(run, "sharded", 2, 0, 0)[::-1].copy()
    elif what == "a NaN":
        found(run, "sharded", 0, 1, 0)[0, 1] = np.nan
    elif what == "a scaled layer":
        for rank in range(2):
            found(run, "sharded", 1, 0, rank)[:] *= 1.02


FAULTS = ["one element", "one element of a replica", "an integer", "rows of a step", "a NaN", "a scaled layer"]


def verdicts(report: Report) -> dict[tuple[Any, ...], tuple[str, str | None]]:
    return {
        (one.name, tuple(sorted(one.tags.items())), one.location.step): (
            one.category,
            one.analysis.judged if isinstance(one, TensorComparison) and one.analysis is not None else None,
        )
        for one in report
    }


def settled(report: Report) -> set[str]:
    return {one.name for one in report if any(note.category == "equal-by-checksum" for note in one.infos)}


@pytest.fixture(scope="module")
def baseline(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(run_of(), tmp_path_factory.mktemp("quick") / "baseline")


@pytest.mark.parametrize("both", [False, True], ids=["in the target", "in both"])
@pytest.mark.parametrize("what", FAULTS)
def test_all_is_found_that_a_full_comparison_finds(baseline: Path, tmp_path: Path, what: str, both: bool) -> None:
    faulty = run_of()
    fault(faulty, what)
    target = write_run(faulty, tmp_path / "target")
    first = target if both else baseline
    full, quick = comparator.compare(first, target), comparator.compare(first, target, quick=True)
    assert verdicts(quick) == verdicts(full)
    assert quick.summary.exit_code == full.summary.exit_code
    assert quick.words == full.words
    assert quick.accounts == full.accounts
    assert settled(quick)
    assert "moe_router_logits" not in settled(quick)
    assert not settled(full)


def test_other_tokens_in_the_same_bytes_are_compared(baseline: Path, tmp_path: Path) -> None:
    other = run_of()
    layouts = {key: replace(layout, token_ids=layout.token_ids + 7) for key, layout in other.layouts.items()}
    target = write_run(replace(other, layouts=layouts), tmp_path / "target")
    full, quick = comparator.compare(baseline, target), comparator.compare(baseline, target, quick=True)
    assert verdicts(quick) == verdicts(full)


def test_a_run_that_is_the_same_is_not_read(
    baseline: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    again = write_run(run_of(), tmp_path / "again")

    reads: list[str] = []

    def read(entry: Entry) -> Any:
        reads.append(entry.name)
        return load_array(entry)

    monkeypatch.setattr("comparator.align.aligned.load_array", read)
    monkeypatch.setattr("comparator.measure.quick.load_array", read)
    arguments = [str(baseline), str(again), "--quick", "--filter", 'name != "moe_router_logits"']
    assert main([*arguments, "--bitwise"]) == 0
    assert main([*arguments, "--equal-nan"]) == 0
    assert not reads
    assert capsys.readouterr().out.count("equal bytes, by checksum") == 2 * 3 * LAYERS * len(STEPS)
    assert main(arguments) == 0
    assert len(reads) == 2 * 2 * LAYERS * len(STEPS), "floating-point records of the target, for NaN"


def test_damage_under_equal_checksums_is_found_where_it_is_read(baseline: Path, tmp_path: Path) -> None:
    again = write_run(run_of(), tmp_path / "again")
    file = next(again.glob("rank-00000.msgpack"))
    whole = found(run_of(), "sharded", 1, 0, 0).tobytes()
    content = file.read_bytes()
    assert content.count(whole) == 1
    file.write_bytes(content.replace(whole, whole[:-1] + bytes([whole[-1] ^ 1])))
    report = comparator.compare(baseline, again, quick=True)
    assert [one.name for one in report.of("errored")] == ["sharded"]
