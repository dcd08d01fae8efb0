"""The table that a terminal shows before the summary."""

from __future__ import annotations

import re
from io import StringIO

import msgspec
import pytest
from rich.console import Console

from comparator.report.records import SummaryRecord, TensorComparison
from comparator.report.reporters import TextReporter, terminal
from testbed.synthetic_reports import report

KINDS = {"comparison_tensor": TensorComparison, "summary": SummaryRecord}


def printed(width: int, *, terminal: bool = True, layers: int = 4, fault: int | None = 2, taps: int = 6) -> list[str]:
    """What is printed of a synthetic comparison."""
    output = StringIO()
    console = Console(file=output, force_terminal=terminal, width=width, color_system=None, soft_wrap=True)
    reporter = TextReporter(console, "minimal")
    names = ("layer_input", "attn_output", *(f"a_tap_with_a_long_name_{number}" for number in range(taps - 2)))
    for record in report(layers, 1, fault=fault, taps=names):
        if record["type"] in KINDS:
            reporter.report(msgspec.convert(record, KINDS[record["type"]]))
    return [line.rstrip() for line in output.getvalue().splitlines()]


@pytest.mark.parametrize("width", [40, 80, 200])
def test_the_table_shows_where_error_comes_in_and_fits(width: int) -> None:
    lines = printed(width)
    start = next(at for at, line in enumerate(lines) if line.startswith("layer 2"))
    rows = lines[start:]
    assert rows[1].startswith("layer 3")
    assert "x" in rows[0]
    caption = next(line for line in rows if "error in multiples" in line)
    table = lines[start - 3 : lines.index(caption)]
    assert all(len(line) <= width for line in table)
    assert ("more taps" in " ".join(rows)) == (width == 40)


def test_no_table_where_nothing_failed_or_nobody_looks() -> None:
    assert not any("error in multiples" in line for line in printed(80, fault=None))
    assert not any("error in multiples" in line for line in printed(80, terminal=False))


def test_many_layers_are_cut() -> None:
    text = " ".join(printed(200, layers=60, fault=10))
    assert "26 more layers" in text
    assert "layer 33" in text


@pytest.mark.parametrize("coloured", [True, False])
def test_no_colour_where_none_is_wanted(coloured: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    output = StringIO()
    monkeypatch.setattr("sys.stdout", output)
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    if not coloured:
        monkeypatch.setenv("NO_COLOR", "1")
    console = terminal()
    reporter = TextReporter(console, "minimal")
    for record in report(2, 1, fault=1):
        if record["type"] in KINDS:
            reporter.report(msgspec.convert(record, KINDS[record["type"]]))
    assert "failed" in output.getvalue()
    assert bool(re.search(r"\x1b\[[0-9;]*3[0-7]", output.getvalue())) == coloured
