"""Taps whose steps become one tensor: their records are read together, and what is found of them stays what it was."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from comparator import compare
from comparator.align import aligned
from comparator.align.load import load_array
from comparator.cli import main
from comparator.diagnosis import inheritance
from comparator.diagnosis.tap_rows import label_rows
from comparator.match.entries import Entry
from dumper import open_run
from testbed.synthetic_engine import Engine, Request, serve
from testbed.synthetic_runs import record, write
from tests.harness.counted_calls import calls

NEVER = 1 << 30


def requests(count: int) -> list[Request]:
    return [Request(f"r{one}", tuple(range(100 * one, 100 * one + 5)), tuple(range(40))) for one in range(count)]


def written(path: Path, count: int, engine: Engine, faults: Sequence[tuple[str, int, int, int]] = ()) -> Path:
    run = record(serve(requests(count), engine))
    for fault in faults:
        run = run.with_fault(*fault)
    return write(run, path)


def lines(baseline: Path, target: Path, capsys: pytest.CaptureFixture[str]) -> tuple[int, list[dict[str, Any]]]:
    arguments = [str(baseline), str(target), "--token-aligner", "smart", "--output-format", "json", "--jobs", "1"]
    code = main(arguments)
    return code, [json.loads(line) for line in capsys.readouterr().out.splitlines()]


ENGINES = {
    "tensor parallel": Engine(attention_tensor_parallel=2, max_running=2, chunk=3),
    "padded data parallel": Engine(data_parallel=2, attention_tensor_parallel=2, pad_to=4, seed=1),
}


@pytest.mark.parametrize("engine", ENGINES.values(), ids=ENGINES)
@pytest.mark.parametrize(
    "faults", [(), [("own", 20, 1, 0)], [("scattered", 9, 0, 0), ("gathered", 9, 1, 0)]], ids=["clean", "one", "two"]
)
def test_a_report_is_the_same_when_records_are_read_one_by_one(
    tmp_path: Path,
    engine: Engine,
    faults: Sequence[tuple[str, int, int, int]],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    baseline = written(tmp_path / "baseline", 4, Engine(max_running=2))
    target = written(tmp_path / "target", 4, engine, faults)
    alone: list[Entry] = []
    monkeypatch.setattr(aligned, "load_array", lambda entry: alone.append(entry) or load_array(entry))
    code, together = lines(baseline, target, capsys)
    assert not any(entry.record.nbytes for entry in alone)
    assert code == bool(faults)
    monkeypatch.setattr(aligned, "SEVERAL", NEVER)
    assert (code, together) == lines(baseline, target, capsys)
    assert len(alone) > 100


def test_a_damaged_record_among_many_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    baseline = written(tmp_path / "baseline", 2, Engine(max_running=1))
    target = written(tmp_path / "target", 2, Engine(max_running=2))
    (file,) = target.glob("*.msgpack")
    data = bytearray(file.read_bytes())
    run = record(serve(requests(2), Engine(max_running=2)))
    value = run.tensors["own"][17, 0].tobytes()
    for at in (place for place in range(0, len(data), 8) if data[place : place + len(value)] == value):
        data[at] ^= 1  # in every form that has these rows
    file.write_bytes(data)
    found = [str(one) for one in compare(baseline, target, token_aligner="smart")]
    assert any("is damaged" in one and "do not match their checksum" in one for one in found), found
    monkeypatch.setattr(aligned, "SEVERAL", NEVER)
    assert found == [str(one) for one in compare(baseline, target, token_aligner="smart")]


def test_the_records_of_more_requests_take_as_many_calls_each(tmp_path: Path) -> None:
    costs, records = [], []
    for count in (2, 4, 8):
        engines = [Engine(max_running=running) for running in (1, 2)]
        sides = [written(tmp_path / f"{count}-{engine.max_running}", count, engine) for engine in engines]
        costs.append(calls(lambda sides=sides: compare(*sides, token_aligner="smart")))
        records.append(sum(len(open_run(side).records) for side in sides))
    _, few, many = costs  # the first has what is imported and compiled once
    assert many <= 2.1 * few
    assert (many - few) / (records[2] - records[1]) < 175  # 155, and 193 where they are read one by one


@given(st.lists(st.integers(0, 5), max_size=6), st.data())
def test_rows_that_are_compared_are_shared_out_among_parts(rows: list[int], data: st.DataObject) -> None:
    total = sum(rows)
    index = data.draw(st.none() | st.lists(st.integers(0, max(total - 1, 0)), max_size=8 if total else 0))
    plan: Any = SimpleNamespace(parts=[SimpleNamespace(rows=count) for count in rows])
    found = list(aligned._rows_used(plan, None if index is None else np.array(index, np.int64)))
    starts = [sum(rows[:number]) for number in range(len(rows))]
    if index is None:
        assert found == [None] * len(rows)
    else:
        assert [None if one is None else one.tolist() for one in found] == [
            sorted({row - start for row in index if start <= row < start + count})
            for start, count in zip(starts, rows, strict=True)
        ]


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 6), st.floats(0, 10)), unique_by=lambda one: one[:2]))
def test_errors_of_the_tokens_before(rows: list[tuple[int, int, float]]) -> None:
    sequence, position, error = (np.array([row[at] for row in rows]) for at in range(3))
    labels = label_rows(len(rows), sequence.astype(np.int64), position.astype(np.int64))
    source: Any = SimpleNamespace(labels=labels, error=error.astype(np.float64))
    mean, most = inheritance._over_prefix(source, labels)
    for number, (of, at, _) in enumerate(rows):
        before = [one for other, place, one in rows if other == of and place <= at]
        if len(before) <= at:  # some of them are no rows
            before = before if np.mean(np.square(before)) > np.mean(error**2) else error.tolist()
            assert most[number] == error.max()
        else:
            assert most[number] == max(before)
        assert mean[number] == pytest.approx(np.sqrt(np.mean(np.square(before))))
