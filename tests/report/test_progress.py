"""The progress bar of what takes long, in a terminal and nowhere else."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from comparator.cli import main
from comparator.options import Options
from comparator.pipeline import begin
from comparator.prepared import prepare
from comparator.report.read import read_report
from dumper.convert.cli import convert
from dumper.format.frames import FOOTER_BYTES
from dumper.readers.streams.verify import verify_run
from dumper.reading.open import open_run
from tensortap import progress as module
from tensortap.progress import Advance, in_terminal, silent, watched


@pytest.fixture
def console(monkeypatch: pytest.MonkeyPatch) -> Console:
    """A terminal, whose bars change with every step."""
    monkeypatch.setattr(module, "BETWEEN", 0.0)
    return Console(file=StringIO(), force_terminal=True, width=100, color_system=None)


def shown(console: Console) -> str:
    assert isinstance(console.file, StringIO)
    return console.file.getvalue()


def test_a_bar_with_an_estimate_that_goes_away(console: Console) -> None:
    assert list(watched("abcd", "reading", in_terminal(console, patience=0.0))) == ["a", "b", "c", "d"]
    assert "reading" in shown(console)
    assert "100%" in shown(console)
    assert "about 0 s left" in shown(console)
    assert shown(console).endswith("\x1b[2K")  # the line is erased


def test_no_bar_for_what_is_quick(console: Console) -> None:
    assert len(list(watched(range(1000), "reading", in_terminal(console)))) == 1000
    assert shown(console) == ""


def test_no_bar_without_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    assert in_terminal() is silent
    assert in_terminal(Console(file=StringIO()), patience=0.0) is silent
    assert capsys.readouterr() == ("", "")


def test_what_an_exception_ends_leaves_no_bar(console: Console) -> None:
    def read() -> None:
        with in_terminal(console, patience=0.0)("reading", 2) as advance:
            advance(1)
            raise OSError("gone")

    with pytest.raises(OSError, match="gone"):
        read()
    assert shown(console).endswith("\x1b[2K")
    with in_terminal(console, patience=0.0)("again", 1) as advance:  # rich allows one at a time
        advance(1)


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0 s"), (89.0, "89 s"), (100.0, "2 min"), (3600.0, "60 min"), (7500.0, "2 h 5 min")]
)
def test_durations(seconds: float, text: str) -> None:
    assert module._duration(seconds) == text


def test_what_reports_how_far_it_is(recorded: dict[str, str], tmp_path: Path) -> None:
    """Reading, comparing, reporting, verifying and converting come to the end of what they announced."""
    total: dict[str, int] = {}
    done: dict[str, int] = {}

    @contextmanager
    def seen(what: str, amount: int) -> Iterator[Advance]:
        total[what] = total.get(what, 0) + amount

        def advance(amount: int) -> None:
            done[what] = done.get(what, 0) + amount

        yield advance

    right, wrong = (open_run(Path(recorded[name]), seen) for name in ("right", "wrong"))
    assert len(list(begin(prepare(right, wrong, Options(), progress=seen), seen))) == 2
    assert verify_run(Path(recorded["right"]), seen).intact
    for wanted in ("safetensors", "pt"):
        assert not convert(Path(recorded["right"]), tmp_path / wanted, wanted, seen).left_out
    convert(tmp_path / "pt", tmp_path / "run", "run", seen)
    total["verifying"] -= FOOTER_BYTES
    assert done == total
    assert set(done) == {"reading", "reading right", "reading wrong", "comparing", "reporting", "verifying",
                         "converting"}  # fmt: skip


def test_a_report_is_read_to_its_end(recorded: dict[str, str], tmp_path: Path, console: Console) -> None:
    lines = tmp_path / "report.jsonl"
    main([recorded["right"], recorded["right"], "-q", "--report-path", str(lines)])
    assert list(read_report(lines, in_terminal(console, patience=0.0))) == list(read_report(lines))
    assert "100%" in shown(console)
