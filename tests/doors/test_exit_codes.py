"""Exit code 1 means that runs differ and nothing else; whatever is no verdict is 2, in one line, without traceback."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch

import comparator
from comparator.cli import main
from comparator.errors import ComparatorError
from comparator.measure import memory
from dumper.layout import SequenceSpan, TokenLayout
from tensortap.dims import DimsError, parse_dims
from tests.comparator.fakes import FakeRecord, FakeRun, values
from tests.comparator.recording import write_run
from tests.dumper.convert.dumps import DumpWriter


def run_of(layers: int = 2, scale: float = 1, name: str = "x") -> FakeRun:
    return FakeRun(
        [FakeRecord(name, values(3, 4, seed=n) * scale, dims="t h", tags={"layer_id": n}) for n in range(layers)]
    )


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("runs")
    made = {"a": run_of(), "b": run_of(), "off": run_of(scale=2), "many": run_of(400), "as-many": run_of(400)}
    return {name: str(write_run(run, folder / name)) for name, run in made.items()}


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "comparator", *arguments]


def piped_into_head(*arguments: str) -> tuple[int, str]:
    """Exit code and standard error of a command whose reader goes away after one line."""
    done = subprocess.Popen(command(*arguments), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert done.stdout is not None
    assert done.stderr is not None
    done.stdout.readline()
    done.stdout.close()
    error = done.stderr.read()
    done.stderr.close()
    return done.wait(timeout=120), error


@pytest.mark.parametrize("format_", ["text", "json"])
def test_a_reader_that_goes_away_does_not_make_runs_differ(runs: dict[str, str], format_: str) -> None:
    code, error = piped_into_head(runs["many"], runs["as-many"], "--output-format", format_)
    assert code in (0, 2)
    assert "Traceback" not in error
    if format_ == "text":  # everything is measured before the first finding is printed
        assert code == 0
        assert piped_into_head(runs["many"], runs["many"], "--error", "compared-by-statistics")[0] == 0


def test_a_reader_that_goes_away_does_not_make_runs_agree(runs: dict[str, str]) -> None:
    assert piped_into_head(runs["a"], runs["off"])[0] in (1, 2)


@pytest.mark.parametrize("format_", ["text", "json"])
def test_a_full_device(runs: dict[str, str], format_: str) -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            command(runs["a"], runs["b"], "--output-format", format_),
            stdout=full, stderr=subprocess.PIPE, text=True, check=False,
        )  # fmt: skip
    assert done.returncode == 2
    assert "No space left on device" in done.stderr
    assert "Traceback" not in done.stderr


def test_names_that_cannot_be_printed(tmp_path: Path) -> None:
    name = "\x1b[31mred\u202e\nfailed  forged"
    run = str(write_run(run_of(name=name), tmp_path / "run"))
    done = subprocess.run(
        command(run, run), capture_output=True, text=True, check=False, env={**os.environ, "PYTHONIOENCODING": "ascii"}
    )
    assert done.returncode == 0, done.stderr
    assert "\x1b" not in done.stdout
    assert "\\x1b[31mred" in done.stdout
    assert not any(line.startswith("failed") for line in done.stdout.splitlines())
    explained = subprocess.run(command(run, run, "--explain", name), capture_output=True, text=True, check=False)
    assert "\x1b" not in explained.stdout + explained.stderr
    with pytest.raises(AssertionError) as raised:
        comparator.assert_runs_match(run, str(write_run(run_of(name=name, scale=2), tmp_path / "off")))
    assert "\x1b" not in str(raised.value)


def test_a_layout_that_claims_too_much(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    layout = TokenLayout("extend", (SequenceSpan("r", 0, 10**9),), 10**9)
    run = FakeRun([FakeRecord("x", values(3, 4), dims="t h")], {}, {(0, 0): layout})
    with pytest.raises(ComparatorError, match="claims 1000000000 rows"):
        comparator.compare(run, run)
    path = str(write_run(run, tmp_path / "run"))
    assert main([path, path]) == 2
    assert "claims 1000000000 rows" in capsys.readouterr().err


def test_tensors_that_do_not_fit_in_memory(runs: dict[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    with mock.patch.object(memory, "free_memory", return_value=10), mock.patch.object(memory, "_SMALL", 1):
        assert main([runs["a"], runs["b"]]) == 2
    assert "out of memory: x layer_id=0 takes" in capsys.readouterr().err


def test_an_address_space_that_is_too_small(tmp_path: Path) -> None:
    """The allocation itself fails: one pair of 64 MB, with memory for hardly more than the interpreter."""
    large = FakeRun([FakeRecord("x", np.zeros((16, 1 << 20), np.float32), rank, dims="t h[tp]") for rank in range(2)],
                    {rank: {"tp": (rank, 2)} for rank in range(2)})  # fmt: skip
    run = str(write_run(large, tmp_path / "run"))
    code = (
        "import resource, sys, comparator.cli, comparator.pipeline, numpy, ml_dtypes, rich.console\n"
        "used = int(open('/proc/self/statm').read().split()[0]) * resource.getpagesize()\n"
        "resource.setrlimit(resource.RLIMIT_AS, (used + 340_000_000,) * 2)\n"
        "sys.exit(comparator.cli.main(sys.argv[1:]))"
    )
    assert resource.getrlimit(resource.RLIMIT_AS)[0] == resource.RLIM_INFINITY
    done = subprocess.run([sys.executable, "-c", code, run, run], capture_output=True, text=True, check=False)
    assert done.returncode == 2, (done.returncode, done.stderr[-300:])
    assert "out of memory" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_fault_of_ours_is_no_verdict(runs: dict[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    with mock.patch("comparator.prepared.match_bundles", side_effect=ZeroDivisionError("oops")):
        assert main([runs["a"], runs["b"]]) == 2
    error = capsys.readouterr().err
    assert "internal error: ZeroDivisionError: oops" in error
    assert "Traceback" not in error


def test_a_directory_that_cannot_be_read(runs: dict[str, str], tmp_path: Path) -> None:
    assert main([runs["a"], str(tmp_path / "nothing")]) == 2
    assert main([runs["a"], runs["b"], "--map", str(tmp_path)]) == 2
    assert main([runs["a"], runs["b"], "--override-config", str(tmp_path)]) == 2


def test_patterns_take_linear_time(runs: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Each of these backtracks for longer than anybody waits with Python's own engine."""
    evil, name = "(a+)+$", "a" * 60 + "b"
    run = str(write_run(run_of(name=name), tmp_path / "run"))
    assert main([run, run, "--override-dims", f"{evil}:t h", "--allow-failed-pattern", evil]) == 0
    assert main([run, run, "--diff-threshold", evil, "rel <= 0", ".*", "rel <= 1"]) == 0
    assert main([run, run, "--filter", f'search("{evil}", name)']) == 1
    assert main([runs["a"], runs["off"], "--allow-skipped-pattern", evil]) == 1
    capsys.readouterr()
    assert main([run, run, "--allow-failed-pattern", "(?=x)"]) == 2
    assert "without references back and look-around" in capsys.readouterr().err
    assert main([run, run, "--allow-failed-pattern", "a" * 20_000]) == 2


def test_dims_of_any_length() -> None:
    with pytest.raises(DimsError, match="600000 characters"):
        parse_dims("t " * 300_000)
    assert len(parse_dims(" ".join(f"d{n}" for n in range(1000))).dimensions) == 1000


def test_reports_are_written_where_asked_and_nowhere_else(runs: dict[str, str], tmp_path: Path) -> None:
    before = sorted(Path(runs["b"]).iterdir())
    report = tmp_path / "new" / "report.jsonl"
    assert main([runs["a"], runs["b"], "--report-path", str(report)]) == 0
    assert report.read_text().splitlines()[-1].startswith('{"errors":[]')
    assert sorted(Path(runs["b"]).iterdir()) == before
    assert [file.name for file in report.parent.iterdir()] == ["report.jsonl"]


def test_reports_follow_no_link(runs: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    precious = tmp_path / "precious"
    precious.write_text("mine")
    link = tmp_path / "report.jsonl"
    link.symlink_to(precious)
    assert main([runs["a"], runs["b"], "--report-path", str(link)]) == 2
    assert precious.read_text() == "mine"
    assert "a link" in capsys.readouterr().err
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    assert main([runs["a"], runs["b"], "--report-path", str(fifo)]) == 2


def test_a_report_that_breaks_off_leaves_what_was_there(runs: dict[str, str], tmp_path: Path) -> None:
    report = tmp_path / "report.jsonl"
    report.write_text("an earlier one")
    with mock.patch("comparator.report.reporters.to_json", side_effect=MemoryError):
        assert main([runs["a"], runs["b"], "--report-path", str(report)]) == 2
    assert report.read_text() == "an earlier one"
    assert len(list(tmp_path.iterdir())) == 1


def sglang_dump(path: Path) -> Path:
    writer = DumpWriter(path)
    writer.write(0, 0, "x", torch.ones(2, 3))
    return path


def test_between_two_of_sglangs_dumps_the_report_has_its_place_in_the_target(tmp_path: Path) -> None:
    one, other = sglang_dump(tmp_path / "one"), sglang_dump(tmp_path / "other")
    assert main([str(one), str(other)]) == 0
    report = other / "comparator_report.jsonl"
    assert '"type":"summary"' in report.read_text()
    assert main([str(one), str(other), "--report-path", ""]) == 0
    report.unlink()
    precious = tmp_path / "precious"
    precious.write_text("mine")
    report.symlink_to(precious)
    assert main([str(one), str(other)]) == 2
    assert precious.read_text() == "mine"
