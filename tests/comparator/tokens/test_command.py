"""The token stage from files to exit code: runs written by the dumper, compared on the command line."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from comparator.cli import main
from dumper.recording.recorder import Recorder
from testbed.synthetic_engine import Engine, Request, Schedule, padded_batches, serve, train_pass
from testbed.synthetic_runs import ContextParallel, SyntheticRun, record, write

ONE = [Request("r", (5, 6, 7, 8, 9), (10, 11, 12, 13))]
SEVERAL = [
    *ONE,
    Request("s", (31, 32, 33), (41, 42)),
    Request("t", (51, 52, 53, 54, 55, 56, 57), (61, 62, 63)),
    Request("u", (51, 52, 53, 54, 55, 56, 58), (64, 65)),
]


def compare(baseline: Path, target: Path, *flags: str) -> tuple[int, list[dict[str, Any]]]:
    """Exit code and JSONL records of the command."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        code = main([str(baseline), str(target), "--output-format", "json", *flags])
    return code, [json.loads(line) for line in printed.getvalue().splitlines()]


def categories(records: list[dict[str, Any]]) -> dict[str, int]:
    found: dict[str, int] = {}
    for entry in records:
        if entry["type"].startswith("comparison"):
            found[entry["category"]] = found.get(entry["category"], 0) + 1
    return found


def served_on(rank: int, engine: Engine) -> SyntheticRun:
    """One request on data-parallel rank ``rank``."""
    for seed in range(20):
        schedule = serve(ONE, Engine(**{**vars(engine), "seed": seed}))
        if schedule.passes[0][rank].layout.sequences:
            return record(schedule)
    raise AssertionError


@pytest.mark.parametrize("padding", ["max_len", "sum_len"])
@pytest.mark.parametrize("served", [0, 1])
def test_one_request_under_data_parallel_attention(tmp_path: Path, served: int, padding: str) -> None:
    """The gathered prefill has 6 rows or 10 where the baseline has 5; decode has dummy rows."""
    engine = Engine(data_parallel=2, padding=padding, idle_prefill_row=True)
    run = served_on(served, engine)
    assert len(run.tensors["gathered"][0, 0]) == (6 if padding == "sum_len" else 10)
    baseline = write(record(serve(ONE, Engine(attention_tensor_parallel=2))), tmp_path / "baseline")
    code, records = compare(baseline, write(run, tmp_path / "target"), "--token-aligner", "concat_steps")
    assert (code, categories(records)) == (0, {"passed": 7})
    faulty = run.with_fault("gathered", 3, 0, served).with_fault("gathered", 3, 1, served)
    code, records = compare(
        baseline, write(faulty, tmp_path / "faulty"), "--token-aligner", "concat_steps", "--diff-threshold", "0"
    )
    failed = [entry for entry in records if entry.get("category") == "failed"]
    assert code == 1
    assert [entry["name"] for entry in failed] == ["gathered"]
    assert failed[0]["diff"]["max_diff_coord"][0] == 7


@pytest.mark.parametrize("served", [0, 1])
def test_axes_that_only_the_token_layouts_name(tmp_path: Path, served: int) -> None:
    """A run that was written without an engine: its header knows tp, its layouts know attn_dp."""
    run = served_on(served, Engine(data_parallel=2, padding="sum_len", idle_prefill_row=True))
    run = dataclasses.replace(run, parallel={rank: {"tp": (rank, 2)} for rank in run.ranks})
    baseline = write(record(serve(ONE, Engine())), tmp_path / "baseline")
    code, records = compare(baseline, write(run, tmp_path / "target"), "--token-aligner", "concat_steps")
    assert (code, categories(records)) == (0, {"passed": 7})


def test_the_parting_token_is_named_once_in_the_text(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    baseline = write(record(serve(ONE, Engine())), tmp_path / "baseline")
    other = [dataclasses.replace(ONE[0], output=(10, 99, 98, 97))]
    target = write(record(serve(other, Engine(attention_tensor_parallel=2))), tmp_path / "target")
    assert main([str(baseline), str(target), "--token-aligner", "smart", "--report-path", ""]) == 0
    printed = capsys.readouterr().out
    assert printed.count("outputs part at position 6, token 11 in the baseline and 99 in the target") == 1


def test_every_way_to_serve_the_same_requests(tmp_path: Path) -> None:
    baseline = write(record(serve(SEVERAL, Engine(max_running=1))), tmp_path / "baseline")
    schedules: dict[str, Schedule] = {
        "data-parallel": serve(SEVERAL, Engine(data_parallel=2, attention_tensor_parallel=2, chunk=4, seed=1)),
        "cached": serve(SEVERAL, Engine(max_running=1, cache_page=2)),
        "retracted": serve(SEVERAL, Engine(chunk=6, retract_at=frozenset({3, 5}))),
        "left": padded_batches(SEVERAL, batch=3, side="left"),
        "trained": train_pass(SEVERAL),
    }
    for name, schedule in schedules.items():
        target = write(record(schedule), tmp_path / name)
        code, records = compare(baseline, target, "--token-aligner", "smart", "--diff-threshold", "0")
        assert code == 0, (name, [entry for entry in records if entry.get("category") != "passed"])
        assert set(categories(records)) == {"passed"}, name


@pytest.mark.parametrize("ordering", ["zigzag", "natural"])
@pytest.mark.parametrize("kind", ["packed", "batch"])
@pytest.mark.parametrize("local", [True, False])
def test_context_parallel_runs(tmp_path: Path, ordering: str, kind: str, local: bool) -> None:
    schedule = train_pass(SEVERAL) if kind == "packed" else padded_batches(SEVERAL[:2], batch=2, side="right")
    split = record(schedule, context=ContextParallel(2, ordering, local))
    dims = dict.fromkeys(("own", "scattered"), f"t[attn_cp:{ordering}] h # tp:replicated")
    baseline = write(record(serve(SEVERAL, Engine())), tmp_path / "baseline")
    target = write(split, tmp_path / "target", dims=dims)
    code, records = compare(
        baseline, target, "--token-aligner", "smart", "--filter", "name == 'own'", "--diff-threshold", "0"
    )
    assert code == 0, records
    assert categories(records) == {"passed": 1}


@pytest.mark.parametrize("heads", [0, 3])
def test_batches_without_dims(tmp_path: Path, heads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Batch and sequence have their lengths in every pass, as the token layouts say, and so they are rows; also where
    heads stand between them."""
    if heads:
        dump = Recorder.dump

        def dump_heads(recorder: Recorder, name: str, value: Any, **tags: Any) -> None:
            split = value if tags.get("dims") else np.repeat(value[:, None], heads, axis=1)
            dump(recorder, name, split, **tags)

        monkeypatch.setattr(Recorder, "dump", dump_heads)
    none = {"own": None}
    runs = [record(padded_batches(SEVERAL, batch=size, side="left")) for size in (1, 2)]
    runs = [dataclasses.replace(run, tensors={"own": run.tensors["own"]}) for run in runs]
    one, two = (write(run, tmp_path / name, dims=none) for run, name in zip(runs, ("one", "two"), strict=True))
    code, records = compare(one, two, "--token-aligner", "smart")
    assert (code, categories(records)) == (0, {"passed": 1})
    if not heads:
        with_dims = compare(one, write(runs[1], tmp_path / "with dims"), "--token-aligner", "smart")
        assert with_dims[0] == 0, "where one side alone has dims too"
    values = runs[1].tensors["own"][0, 0].copy()
    values[-1] *= 2  # the last token of a prompt
    faulty = dataclasses.replace(runs[1], tensors={"own": {**runs[1].tensors["own"], (0, 0): values}})
    assert compare(one, write(faulty, tmp_path / "faulty", dims=none), "--token-aligner", "smart")[0] == 1
