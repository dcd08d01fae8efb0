"""The command line on runs that were recorded to disk."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest

import comparator
from comparator.cli import main
from comparator.errors import ComparatorError
from comparator.report.schema import SCHEMA_PATH, json_schema
from dumper import open_run
from dumper.cli import main as dumper_main
from dumper.reading.side_by_side import difference
from dumper.values.fingerprint import FIRST_SCHEME, fingerprint
from dumper.writing import rank_stream, record_encoder
from dumper.writing.items import Description
from tests.comparator.fakes import FakeRecord, FakeRun, one_request, values
from tests.comparator.recording import write_run

TP2 = {0: {"tp": (0, 2)}, 1: {"tp": (1, 2)}}
STEPS = [4, 1, 1]


def single(scale: float = 1.0) -> FakeRun:
    records = [
        FakeRecord(
            "out",
            values(rows, 8, seed=step) * (scale if step == 1 else 1),
            step=step,
            dims="t h[tp]",
            tags={"layer_id": 3},
        )
        for step, rows in enumerate(STEPS)
    ]
    records.append(FakeRecord("settings", None, step=0, value={"eps": 1e-6, "layers": [1, 2]}))
    return FakeRun(records, {0: {"tp": (0, 1)}}, one_request(STEPS))


def sharded(scale: float = 1.0) -> FakeRun:
    whole = single(scale)
    records = []
    for record in whole.records:
        for rank in range(2):
            data = None if record.data is None else np.split(record.data, 2, axis=1)[rank]
            records.append(
                FakeRecord(record.name, data, rank, record.step, record.dims, record.tags, value=record.value)
            )
    layouts = {(step, rank): layout for (step, _), layout in whole.layouts.items() for rank in range(2)}
    return FakeRun(records, TP2, layouts)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("runs")
    made = {"single": single(), "sharded": sharded(), "faulty": sharded(1.5)}
    return {name: str(write_run(run, folder / name)) for name, run in made.items()}


def lines(text: str) -> list[dict[str, object]]:
    return [json.loads(line) for line in text.splitlines()]


def test_runs_that_agree(runs: dict[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([runs["single"], runs["sharded"]]) == 0
    output = capsys.readouterr()
    assert "4 compared: 4 passed, 0 failed; 0 skipped, 0 errored" in output.out
    assert "passed  step 1  out layer_id=3" in output.out
    assert "everything that was compared is bit-identical" in output.out
    assert not list(Path(runs["sharded"]).glob("*report*"))


def test_a_fault_is_found_and_located(runs: dict[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([runs["single"], runs["faulty"], "--report-path", ""]) == 1
    output = capsys.readouterr().out
    assert "first difference: step 1: out layer_id=3 at sequence 0, position 4" in output
    assert "1.5 times the baseline" in output
    assert main([runs["single"], runs["faulty"], "--token-aligner", "smart", "--report-path", ""]) == 1
    assert "first token beyond the threshold: sequence 0, position 4" in capsys.readouterr().out
    assert main([runs["single"], runs["faulty"], "--allow-failed-pattern", "out", "--report-path", ""]) == 0


def test_the_same_as_paths(runs: dict[str, str]) -> None:
    arguments = ["--baseline-path", runs["single"], "--target-path", runs["faulty"], "--report-path", ""]
    assert main([*arguments]) == 1
    assert main([*arguments, "--end-step", "0"]) == 0
    assert main([*arguments, "--start-step", "2"]) == 0
    assert main([*arguments, "--filter", "name == 'settings'"]) == 0
    assert main([*arguments, "--diff-threshold", "0.5"]) == 0
    assert main([*arguments, "--diff-threshold", "se.*", "rel <= 0", "out", "rel <= 0.5"]) == 0


@pytest.mark.parametrize("mode", [[], ["--token-aligner", "concat_steps"], ["--token-aligner", "smart"]])
def test_json_lines_follow_the_schema(
    runs: dict[str, str], capsys: pytest.CaptureFixture[str], mode: list[str]
) -> None:
    main([runs["single"], runs["faulty"], "--output-format", "json", "--report-path", "", *mode])
    records = lines(capsys.readouterr().out)
    validator = jsonschema.Draft202012Validator(json_schema())
    for record in records:
        validator.validate(record)
    kinds = [record["type"] for record in records]
    assert kinds[:3] == ["config", "rank_info", "rank_info"]
    assert kinds[-1] == "summary"
    tensors = [record for record in records if record["type"] == "comparison_tensor"]
    assert {record["category"] for record in tensors} == ({"passed", "failed"} if not mode else {"failed"})
    assert records[1]["rows"] == [{"rank": 0, "tp": "0/1"}]
    assert tensors[0]["raw_bundle_info"]["y"]["files"][1]["parallel_info"] == {"tp": "1/2"}  # type: ignore[index]


def test_the_schema_that_ships_is_the_one_of_the_code() -> None:
    assert json.loads(SCHEMA_PATH.read_text()) == json_schema()


def test_the_report_file_holds_what_json_output_shows(
    runs: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report = tmp_path / "report.jsonl"
    main([runs["single"], runs["sharded"], "--output-format", "json", "--report-path", str(report)])
    assert report.read_text() == capsys.readouterr().out


def test_explain_prints_the_plan(runs: dict[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([runs["single"], runs["sharded"], "--explain", "out"]) == 0
    output = capsys.readouterr().out
    assert "concatenate over tp along dimension 1: [4, 4], [4, 4] -> [4, 8]" in output
    assert "read rank 1 (rank-00001.msgpack@" in output
    assert main([runs["single"], runs["sharded"], "--explain", "outt"]) == 2
    assert "there are out" in capsys.readouterr().err


def usage_errors(runs: dict[str, str], tmp_path: Path) -> list[tuple[list[str], str]]:
    empty = tmp_path / "empty"
    empty.mkdir()
    good = [runs["single"], runs["sharded"]]
    config = tmp_path / "overrides.yaml"
    config.write_text("overrides: [{match: a, dim: t}]")
    return [
        ([], "no baseline"),
        ([runs["single"]], "no target"),
        ([runs["single"], str(tmp_path / "nowhere")], "nowhere"),
        ([str(empty), runs["single"]], "empty"),
        ([*good, "--target-path", "x"], "given twice"),
        ([*good, "--diff-threshold", "a"], "'a' is no number"),
        ([*good, "--diff-threshold", "a", "rel < b"], "'b'"),
        ([*good, "--filter", "("], "--filter"),
        ([*good, "--override-dims", "out"], "NAME:DIMS"),
        ([*good, "--override-dims", "out:t ["], "--override-dims"),
        ([*good, "--override-config", str(tmp_path / "none.yaml")], "none.yaml"),
        ([*good, "--override-config", str(config)], "unknown key 'dim'"),
        ([*good, "--min-matched", "2"], "--min-matched"),
        ([*good, "--report-path", str(config / "report")], "cannot write the report"),
    ]


def test_usage_errors_are_one_line_and_exit_with_2(
    runs: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for arguments, message in usage_errors(runs, tmp_path):
        assert main(arguments) == 2, arguments
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1
        assert "Traceback" not in error


def test_overrides_from_a_file(runs: dict[str, str], tmp_path: Path) -> None:
    config = tmp_path / "overrides.yaml"
    config.write_text("overrides:\n  - {match: '^out$', dims: 't h # tp:replicated', side: target}\n")
    assert main([runs["single"], runs["sharded"], "--report-path", "", "--override-config", str(config)]) == 1


@pytest.mark.parametrize("level", ["hash", "stats", "sample"])
def test_levels_below_full(tmp_path: Path, level: str) -> None:
    same = [str(write_run(single(), tmp_path / name, level=level)) for name in ("a", "b")]
    other = str(write_run(single(1.5), tmp_path / "c", level=level))
    full = str(write_run(single(), tmp_path / "d"))
    assert main([*same, "--report-path", ""]) == 0
    report = comparator.compare(same[0], other)
    assert [(one.location.step, one.name) for one in report.of("failed")] == [(1, "out")]
    mixed = comparator.compare(full, same[1])
    assert not mixed.of("failed")
    assert len(mixed.of("errored")) == (3 if level == "sample" else 0)


def test_statistics_of_shards_are_put_together(tmp_path: Path) -> None:
    whole = str(write_run(single(), tmp_path / "whole", level="stats"))
    split = str(write_run(sharded(), tmp_path / "split", level="stats"))
    assert comparator.compare(whole, split).passed
    assert not comparator.compare(whole, str(write_run(sharded(1.5), tmp_path / "faulty", level="stats"))).passed
    hashes = [str(write_run(run, tmp_path / name, level="hash")) for name, run in (("x", single()), ("y", sharded()))]
    assert "fingerprints cannot be put together" in comparator.compare(*hashes).describe()


def record_as_before(monkeypatch: pytest.MonkeyPatch, scheme: str | None) -> None:
    """Fingerprints as an older version wrote them (its records name no scheme), or a later one."""
    fields = Description.fields

    def other_fields(self: Description) -> dict[str, Any]:
        found = {key: value for key, value in fields(self).items() if key != "fingerprint"}
        return found if scheme is None else {**found, "fingerprint": scheme}

    def first_scheme(description: Description, data: Any) -> bytes:
        return bytes.fromhex(fingerprint(description.dtype or "", description.shape or (), data, FIRST_SCHEME))

    monkeypatch.setattr(Description, "fields", other_fields)
    for module in (rank_stream, record_encoder):
        monkeypatch.setattr(module, "fingerprint_of", first_scheme)


def test_fingerprints_of_different_schemes_are_not_compared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    full = str(write_run(single(), tmp_path / "full"))
    new = str(write_run(single(), tmp_path / "new", level="hash"))
    with monkeypatch.context() as patch:
        record_as_before(patch, None)
        old, old_faulty = (
            str(write_run(run, tmp_path / name, level="hash")) for name, run in (("a", single()), ("b", single(1.5)))
        )
    with monkeypatch.context() as patch:
        record_as_before(patch, "later")
        later = str(write_run(single(), tmp_path / "later", level="hash"))
    # Within a scheme, and with full tensors, all compare.
    assert comparator.compare(old, old, bitwise=True).passed
    assert comparator.compare(later, later).passed
    for fingerprints in (old, new):
        assert comparator.compare(full, fingerprints, bitwise=True).passed
    assert [one.name for one in comparator.compare(full, old_faulty).of("failed")] == ["out"]
    # Across schemes nothing does, and nothing is said to differ.
    for left, right, words in (
        (old, new, "the baseline has xxh3 and the target has block-sums"),
        (new, old_faulty, "the baseline has block-sums and the target has xxh3"),
        (full, later, "does not know fingerprints of scheme 'later'"),
    ):
        report = comparator.compare(left, right)
        assert report.of("errored")
        assert not report.of("failed")
        assert not any(one.name == "out" for one in report.of("passed"))
        assert words in report.describe()
    sides = [next(one for one in open_run(path).records if one.level == "hash") for path in (old, new)]
    assert difference(sides[0], sides[1], None).startswith(
        "not comparable: fingerprints of schemes xxh3 and block-sums"
    )
    assert dumper_main(["ls", old]) == 0
    assert "hash (xxh3)" in capsys.readouterr().out
    assert main([old, new, "--bitwise", "--report-path", ""]) == 1
    assert "record the run with the older scheme again" in capsys.readouterr().out


def test_a_damaged_payload_is_an_error_for_its_tensor_alone(tmp_path: Path) -> None:
    path = write_run(single(), tmp_path / "run")
    baseline = comparator.api.open_side(str(write_run(single(), tmp_path / "good")), "baseline")
    file = path / "rank-00000.msgpack"
    content = bytearray(file.read_bytes())
    at = content.find(values(4, 8, seed=0).tobytes())
    content[at + 5] ^= 0x40
    file.write_bytes(content)
    report = comparator.compare(baseline, str(path))
    assert [(one.category, one.location.step, one.name) for one in report.of("errored")] == [("errored", 0, "out")]
    assert "damaged" in report.describe()
    assert report.summary.passed == 3


def test_a_missing_rank_file(tmp_path: Path, runs: dict[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    path = write_run(sharded(), tmp_path / "run")
    for file in path.glob("rank-00001.*"):
        file.unlink()
    assert main([runs["single"], str(path), "--report-path", ""]) == 1
    output = capsys.readouterr().out
    assert "rank 1" in output.splitlines()[0]
    assert "the piece of tp rank 1 (of 2) is missing: the run has no file of rank 1" in output


def test_what_a_comparison_has_no_use_for_is_not_imported(runs: dict[str, str]) -> None:
    heavy = ("torch", "polars", "libcst", "transformers", "rich", "pydantic", "scipy", "asyncio", "yaml")
    code = (
        "import sys; from comparator.cli import main; code = main(sys.argv[1:]);"
        f"print([name for name in {heavy} if name in sys.modules], code)"
    )
    arguments = [sys.executable, "-c", code, runs["single"], runs["sharded"], "--report-path", ""]
    done = subprocess.run(arguments, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[] 0"


def test_unreadable_settings_of_the_api(runs: dict[str, str]) -> None:
    with pytest.raises(ComparatorError, match="token_alinger"):
        comparator.compare(runs["single"], runs["sharded"], token_alinger="smart")
