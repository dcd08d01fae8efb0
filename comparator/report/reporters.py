"""Where a report goes as it is made: the terminal as text or JSON lines, and a report file."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TextIO

from comparator.errors import ComparatorError
from comparator.report.records import (
    Comparison,
    DiagnosisRecord,
    ErroredComparison,
    LogRecord,
    ReportRecord,
    SkippedComparison,
    SummaryRecord,
    TensorComparison,
    ValueComparison,
    to_json,
)
from comparator.report.text import STYLES, Verbosity, finding_details, finding_line, log_lines, summary_line

if TYPE_CHECKING:
    from rich.console import Console

PROGRESS_FROM = 50
"""Number of pairs from which a terminal gets a progress bar."""


class Reporter(Protocol):
    """Gets every record of a report, in order; the summary comes last."""

    def report(self, record: ReportRecord) -> None:
        """Take one record."""


class ReportFile:
    """A file of JSON lines; every record is in the file once it was reported."""

    def __init__(self, path: Path) -> None:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file: TextIO = path.open("w", encoding="utf-8", buffering=1)
        except OSError as error:
            raise ComparatorError(
                f"cannot write the report {path}: {error.strerror}; choose another place with --report-path, or "
                "none with --report-path ''"
            ) from None

    def report(self, record: ReportRecord) -> None:
        self._file.write(to_json(record) + "\n")
        self._file.flush()

    def close(self) -> None:
        self._file.close()


class JsonReporter:
    """JSON lines on standard output."""

    def report(self, record: ReportRecord) -> None:
        sys.stdout.write(to_json(record) + "\n")


class TextReporter:
    """Text on a console: what people want to see of a record."""

    def __init__(self, console: Console, verbosity: Verbosity) -> None:
        self._console = console
        self._verbosity = verbosity
        self._told: set[str] = set()
        """What was said of the tokens; most tensors have the same to say, and once is enough."""

    def report(self, record: ReportRecord) -> None:
        if isinstance(record, TensorComparison | SkippedComparison | ValueComparison | ErroredComparison):
            self._print(finding_line(record), STYLES[record.category])
            details = finding_details(record, self._verbosity)
            for line in (*details, *self._news_of_tokens(record, details)):
                self._print("        " + line, None)
        elif isinstance(record, LogRecord):
            for line in log_lines(record):
                self._print(line, "yellow")
        elif isinstance(record, DiagnosisRecord):
            self._print(record.words, "bold red" if record.verdict == "differ" else None)
        elif isinstance(record, SummaryRecord):
            self._print(summary_line(record), "bold green" if record.exit_code == 0 else "bold red")
            if record.first_divergence:
                self._print(f"first difference: {record.first_divergence}", "bold red")
            if record.first_divergence_tap:
                self._print(f"recorded by tap {record.first_divergence_tap}", "bold red")

    def _news_of_tokens(self, record: Comparison, shown: list[str]) -> list[str]:
        """Where sequences part and how they were paired, the first time that it comes up."""
        if self._verbosity == "minimal":
            return []
        notes = [note.message for note in record.infos if note.category == "tokens-joined"]
        news = [message for message in notes if message not in self._told and message not in shown]
        self._told.update(notes)
        return news

    def _print(self, line: str, style: str | None) -> None:
        self._console.print(line, style=style, markup=False)


def terminal() -> Console:
    """The console that text and progress share."""
    from rich.console import Console

    return Console(highlight=False, soft_wrap=True)


@contextmanager
def progress(console: Console, total: int) -> Iterator[Callable[[int], None]]:
    """A progress bar on a terminal when there is much to compare: to be called with the pairs that are done."""
    if not console.is_terminal or total < PROGRESS_FROM:
        yield lambda _: None
        return
    from rich.progress import Progress

    with Progress(console=console, transient=True) as bar:
        task = bar.add_task("comparing", total=total)
        yield lambda done: bar.advance(task, done)
