"""Where findings go as they come: the terminal as text or JSON lines, and a report file."""

from __future__ import annotations

import sys
from pathlib import Path
from types import TracebackType
from typing import TextIO

from pydantic import BaseModel

from comparator.errors import ComparatorError
from comparator.report.records import (
    ErroredComparison,
    LogRecord,
    SkippedComparison,
    SummaryRecord,
    TensorComparison,
    ValueComparison,
    to_json,
)
from comparator.report.text import STYLES, Verbosity, finding_details, finding_line, log_lines, summary_line

PROGRESS_FROM = 50
"""Number of pairs from which a terminal gets a progress bar."""


class ReportFile:
    """A file of JSON lines; every record is in the file once it was added."""

    def __init__(self, path: Path) -> None:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file: TextIO = path.open("w", encoding="utf-8", buffering=1)
        except OSError as error:
            raise ComparatorError(
                f"cannot write the report {path}: {error.strerror}; choose another place with --report-path, or "
                "none with --report-path ''"
            ) from None

    def add(self, record: BaseModel) -> None:
        self._file.write(to_json(record) + "\n")
        self._file.flush()

    def close(self) -> None:
        self._file.close()


class JsonOutput:
    """JSON lines on standard output."""

    def add(self, record: BaseModel) -> None:
        sys.stdout.write(to_json(record) + "\n")

    def advance(self) -> None:
        """A pair is done; nothing to show."""

    def __enter__(self) -> JsonOutput:
        return self

    def __exit__(self, *_: object) -> None:
        sys.stdout.flush()


class TextOutput:
    """Text on standard output, with a progress bar when it is a terminal and there is much to compare."""

    def __init__(self, verbosity: Verbosity, total: int) -> None:
        from rich.console import Console

        self._verbosity = verbosity
        self._told: set[str] = set()
        """What was said of the tokens; most tensors have the same to say, and once is enough."""
        self._console = Console(highlight=False, soft_wrap=True)
        self._progress = None
        if self._console.is_terminal and total >= PROGRESS_FROM:
            from rich.progress import Progress

            self._progress = Progress(console=self._console, transient=True)
            self._task = self._progress.add_task("comparing", total=total)

    def __enter__(self) -> TextOutput:
        if self._progress is not None:
            self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._progress is not None:
            self._progress.stop()

    def advance(self) -> None:
        """A pair is done."""
        if self._progress is not None:
            self._progress.advance(self._task)

    def add(self, record: BaseModel) -> None:
        """Print what people want to see of a record."""
        if isinstance(record, TensorComparison | SkippedComparison | ValueComparison | ErroredComparison):
            self._print(finding_line(record), STYLES[record.category])
            details = finding_details(record, self._verbosity)
            for line in (*details, *self._news_of_tokens(record, details)):
                self._print("        " + line, None)
        elif isinstance(record, LogRecord):
            for line in log_lines(record):
                self._print(line, "yellow")
        elif isinstance(record, SummaryRecord):
            self._print(summary_line(record), "bold green" if record.exit_code == 0 else "bold red")
            if record.first_divergence:
                self._print(f"first difference: {record.first_divergence}", "bold red")
            if record.first_divergence_tap:
                self._print(f"recorded by tap {record.first_divergence_tap}", "bold red")

    def _news_of_tokens(
        self, record: TensorComparison | SkippedComparison | ValueComparison | ErroredComparison, shown: list[str]
    ) -> list[str]:
        """Where sequences part and how they were paired, the first time that it comes up."""
        if self._verbosity == "minimal":
            return []
        notes = [note.message for note in record.infos if note.category == "tokens"]
        news = [message for message in notes if message not in self._told and message not in shown]
        self._told.update(notes)
        return news

    def _print(self, line: str, style: str | None) -> None:
        self._console.print(line, style=style, markup=False)
