"""Where a report goes as it is made: the terminal as text or JSON lines, and a report file."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol, TextIO

from comparator.errors import ComparatorError
from comparator.report.records import (
    AccountsRecord,
    Comparison,
    ConfigRecord,
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
from comparator.report.sglang_schema import to_json as to_sglang_json
from comparator.report.text import (
    STYLES,
    Verbosity,
    account_lines,
    finding_details,
    finding_line,
    log_lines,
    summary_line,
    summary_lines,
)
from tensortap.printable import printable

if TYPE_CHECKING:
    from rich.console import Console

    from comparator.report.layers import LayerTable

Schema = Literal["tensortap", "sglang"]
"""What JSON lines hold: all that a record has, or what the report of SGLang's comparator has."""


class Reporter(Protocol):
    """Gets every record of a report, in order; the summary comes last."""

    def report(self, record: ReportRecord) -> None:
        """Take one record."""


class ReportFile:
    """A file of JSON lines, which appears under its name once it is complete, and never through a link.

    ``close`` without ``complete`` leaves what was there before. Raises ComparatorError where it cannot be written.
    """

    def __init__(self, path: Path, schema: Schema = "tensortap") -> None:
        self._path = path
        self._schema: Schema = schema
        self._partial = path.with_name(f".{path.name}.{os.getpid()}.{os.urandom(4).hex()}.partial")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            if path.is_symlink() or (path.exists() and not path.is_file()):
                raise ComparatorError(f"the report {path} is not written: a link or something else is there; {_OTHER}")
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
            self._file: TextIO = open(  # noqa: SIM115
                os.open(self._partial, flags, 0o666), "w", encoding="utf-8", errors="backslashreplace"
            )
        except OSError as error:
            raise ComparatorError(f"cannot write the report {path}: {error.strerror}; {_OTHER}") from None

    def report(self, record: ReportRecord) -> None:
        try:
            self._file.write(_json_line(record, self._schema))
        except OSError as error:
            raise ComparatorError(f"cannot write the report {self._path}: {error.strerror}") from None

    def complete(self) -> None:
        """Put the file in place."""
        try:
            self._file.close()
            os.replace(self._partial, self._path)
        except OSError as error:
            raise ComparatorError(f"cannot write the report {self._path}: {error.strerror}") from None

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._file.close()
        with contextlib.suppress(OSError):
            self._partial.unlink(missing_ok=True)


_OTHER = "choose another place with --report-path, or none with --report-path ''"


class JsonReporter:
    """JSON lines on standard output."""

    def __init__(self, schema: Schema = "tensortap") -> None:
        self._schema: Schema = schema

    def report(self, record: ReportRecord) -> None:
        sys.stdout.write(_json_line(record, self._schema))


def _json_line(record: ReportRecord, schema: Schema) -> str:
    """A record as a line; empty where the schema has no such record."""
    line = to_sglang_json(record) if schema == "sglang" else to_json(record)
    return "" if line is None else line + "\n"


class TextReporter:
    """Text on a console: what people want to see of a record."""

    def __init__(
        self,
        console: Console | PlainConsole,
        verbosity: Verbosity,
        *,
        only_failed: bool = False,
        quiet: bool = False,
        headings: bool = False,
    ) -> None:
        self._console = console
        self._verbosity = verbosity
        self._only_failed = only_failed or verbosity == "minimal"
        self._quiet = quiet
        self._layers: LayerTable | None = None
        if console.is_terminal:
            from comparator.report.layers import LayerTable

            self._layers = LayerTable()
        self._headings = headings
        """Whether to print the headings that SGLang's comparator prints, for scripts that look for them."""
        self._told: set[str] = set()
        """What was said of the tokens; most tensors have the same to say, and once is enough."""

    def report(self, record: ReportRecord) -> None:
        if isinstance(record, TensorComparison | SkippedComparison | ValueComparison | ErroredComparison):
            self._finding(record)
        elif isinstance(record, ConfigRecord) and self._headings and not self._quiet:
            self._print("Comparator Config", None)
            for key, value in record.config.items():
                if value not in (None, False, [], ()):
                    self._print(f"  {key}: {value}", None)
        elif isinstance(record, LogRecord):
            for line in log_lines(record):
                self._print(line, "yellow")
        elif isinstance(record, DiagnosisRecord):
            self._print(record.words, "bold red" if record.verdict == "differ" else None)
        elif isinstance(record, AccountsRecord):
            for line in account_lines(record):
                self._print(line, None)
        elif isinstance(record, SummaryRecord):
            self._summary(record)

    def _finding(self, record: Comparison) -> None:
        if self._layers is not None:
            self._layers.add(record)
        if self._hides(record):
            return
        self._print(finding_line(record), STYLES[record.category])
        details = finding_details(record, self._verbosity)
        for line in (*details, *self._news_of_tokens(record, details)):
            self._print("        " + line, None)

    def _summary(self, record: SummaryRecord) -> None:
        self._table_of_layers()
        if self._headings:
            self._print("SUMMARY", None)
        self._print(summary_line(record), "bold green" if record.exit_code == 0 else "bold red")
        for line in summary_lines(record):
            self._print(line, _style_of(line))
        if record.first_divergence:
            self._print(f"first difference: {record.first_divergence}", "bold red")
        if record.first_divergence_tap:
            self._print(f"recorded by tap {record.first_divergence_tap}", "bold red")
        for line in record.beside_tensors:
            self._print(f"the runs also differ in {line}", None)

    def _table_of_layers(self) -> None:
        console = self._console
        if isinstance(console, PlainConsole) or self._layers is None or self._quiet:
            return
        table = self._layers.table(console.width)
        if table is not None:
            console.print(table)

    def _hides(self, record: Comparison) -> bool:
        """Whether a finding is left out: with ``--quiet`` any, else what did not fail where only failures matter."""
        return self._quiet or (self._only_failed and record.category not in ("failed", "errored"))

    def _news_of_tokens(self, record: Comparison, shown: list[str]) -> list[str]:
        """Where sequences part and how they were paired, the first time that it comes up."""
        if self._verbosity == "minimal" or not record.infos:
            return []
        notes = [note.message for note in record.infos if note.category == "tokens-joined"]
        news = [message for message in notes if message not in self._told and message not in shown]
        self._told.update(notes)
        return news

    def _print(self, line: str, style: str | None) -> None:
        self._console.print(printable(line), style=style, markup=False, emoji=False)


def _style_of(line: str) -> str | None:
    return {"error": "bold red", "warning": "yellow", "only": "yellow"}.get(line.split(" ", maxsplit=1)[0].rstrip(":"))


_TOGETHER = 64
"""Lines: where Python does not buffer its output (``PYTHONUNBUFFERED``), what is written wakes its reader each time."""


class PlainConsole:
    """Lines on standard output, without colours: for all that is no terminal."""

    is_terminal = False
    at_once = True
    """Whether each line is sent on before the next one is made; else ``send_on`` is to be called at the end."""

    def __init__(self) -> None:
        self._waiting: list[str] = []

    def print(self, line: str, *, style: str | None = None, markup: bool = False, emoji: bool = False) -> None:
        if self.at_once:
            sys.stdout.write(line + "\n")
            sys.stdout.flush()
            return
        self._waiting.append(line)
        if len(self._waiting) >= _TOGETHER:
            self.send_on()

    def send_on(self) -> None:
        """Send on the lines that wait."""
        lines, self._waiting = self._waiting, []
        if lines:
            sys.stdout.write("\n".join(lines) + "\n")


@contextlib.contextmanager
def sent_on(console: Console | PlainConsole) -> Iterator[None]:
    """However it ends, lines that wait are sent on, where that can be: before what is said of an error."""
    try:
        yield
    finally:
        if isinstance(console, PlainConsole):
            with contextlib.suppress(OSError):
                console.send_on()


def terminal() -> Console | PlainConsole:
    """The console that text and progress share. rich is imported for terminals alone."""
    if not sys.stdout.isatty() and not os.environ.get("FORCE_COLOR"):
        return PlainConsole()
    from rich.console import Console

    class Terminal(Console):
        def on_broken_pipe(self) -> None:
            raise  # the exit code is decided elsewhere  # noqa: PLE0704

    return Terminal(highlight=False, soft_wrap=True)
