"""What the command line prints, and what a report shows of itself."""

from __future__ import annotations

import contextlib
import importlib
import io
import shutil
import subprocess
from pathlib import Path

import pytest

import comparator
from comparator.cli import main
from tests.comparator.fakes import FakeRecord, FakeRun, one_request, values
from tests.comparator.recording import write_run


def run_of(scale: dict[int, float], layers: int = 6) -> FakeRun:
    records = [
        FakeRecord("out", values(4, 8, seed=n) * scale.get(n, 1), dims="t h", tags={"layer_id": n}, tap=f"model#1:{n}")
        for n in range(layers)
    ]
    return FakeRun(records, {}, one_request([4]))


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("runs")
    made = {"good": run_of({}), "off": run_of({3: 1.5, 4: 2, 5: 3})}
    return {name: str(write_run(run, folder / name)) for name, run in made.items()}


@pytest.mark.parametrize(
    ("flags", "passed", "failed", "details"),
    [
        ([], 3, 3, True),
        (["--only-failed"], 0, 3, True),
        (["--verbosity", "minimal"], 0, 3, False),
        (["-q"], 0, 0, False),
        (["--max-fail", "1"], 3, 1, True),
        (["--exit-first"], 3, 1, True),
    ],
)
def test_how_much_is_printed(
    runs: dict[str, str],
    capsys: pytest.CaptureFixture[str],
    flags: list[str],
    passed: int,
    failed: int,
    details: bool,
) -> None:
    assert main([runs["good"], runs["off"], *flags]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert sum(line.startswith("passed") for line in lines) == passed
    assert sum(line.startswith("failed") for line in lines) == failed
    assert any(line.startswith("    ") for line in lines) == details
    assert any("compared:" in line for line in lines)


def test_max_fail_says_that_it_stopped(runs: dict[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([runs["good"], runs["off"], "--max-fail", "2", "-q"]) == 1
    output = capsys.readouterr().out
    assert "5 compared: 3 passed, 2 failed" in output
    assert "stopped after 2 failures" in output
    assert main([runs["good"], runs["good"], "--max-fail", "1"]) == 0


def test_the_first_bit_that_differs_is_named(runs: dict[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    main([runs["good"], runs["off"], "-q"])
    assert "bit-identical up to out layer_id=3 step 0" in capsys.readouterr().out
    rounded = comparator.compare(run_of({}), run_of({2: 1.0000001}))
    assert rounded.summary.bits == "bit-identical up to out layer_id=2 step 0"
    assert comparator.compare(run_of({}), run_of({})).summary.bits == "everything that was compared is bit-identical"
    from_the_start = comparator.compare(run_of({}), run_of({0: 2})).summary.bits
    assert from_the_start == "not bit-identical from the start: out layer_id=0 step 0"


@pytest.mark.parametrize("package", ["comparator", "dumper", "patcher"])
def test_version(package: str) -> None:
    command = importlib.import_module(f"{package}.cli").main
    with contextlib.redirect_stdout(io.StringIO()) as output, pytest.raises(SystemExit) as ended:
        command(["--version"])
    assert ended.value.code == 0
    assert output.getvalue().startswith("tensortap ")


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts(shell: str, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    with pytest.raises(SystemExit):
        main(["--print-completion", shell])
    script = capsys.readouterr().out
    assert "token-aligner" in script
    if shutil.which(shell):
        file = tmp_path / "script"
        file.write_text(script)
        subprocess.run([shell, "-n", str(file)], check=True)
    if shell == "bash":
        ask = (
            f"source {file}; COMP_WORDS=(comparator --token-aligner s); COMP_CWORD=2; _comparator_complete; "
            'echo "${COMPREPLY[@]}"; COMP_WORDS=(comparator --only); COMP_CWORD=1; _comparator_complete; '
            'echo "${COMPREPLY[@]}"'
        )
        done = subprocess.run(["bash", "-c", ask], capture_output=True, text=True, check=True)
        assert done.stdout.split() == ["smart", "--only-failed"]


def test_a_failed_assertion_names_tap_token_and_coordinate(runs: dict[str, str]) -> None:
    baseline, target = run_of({}), run_of({})
    target.records[2].data[1, 5] += 9  # type: ignore[index]
    with pytest.raises(AssertionError) as raised:
        comparator.assert_runs_match(baseline, target)
    text = str(raised.value)
    assert "first difference: step 0: out layer_id=2 at sequence 0, position 1" in text
    assert "recorded by tap model#1:2" in text
    assert "largest difference at [1, 5] (sequence 0, position 1):" in text


def test_a_report_shows_itself() -> None:
    report = comparator.compare(run_of({}), run_of({3: 2}))
    assert repr(report).startswith("<Report: 6 compared: 5 passed, 1 failed")
    assert "first difference: step 0: out layer_id=3" in repr(report)
    name = "<b>&x"
    odd = [FakeRun([FakeRecord(name, values(2, 2) * scale)]) for scale in (1, 2)]
    shown = comparator.compare(*odd)._repr_html_()
    assert "&lt;b&gt;&amp;x" in shown
    assert "<b>" not in shown
