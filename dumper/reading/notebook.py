"""Runs and records in notebooks: HTML in which every text of a recording is escaped."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING

from dumper.printable import printable
from dumper.reading.contents import as_text
from dumper.reading.listing import counts, tables
from dumper.reading.record_lines import headline
from dumper.reading.text_table import TextTable

if TYPE_CHECKING:
    from dumper.reading.protocol import Record, Run

MOST_ROWS = 50
"""Of a table."""
MOST_PROBLEMS = 10
ELEMENTS = 64
"""Of a tensor; larger ones are shortened."""


def run_html(run: Run) -> str:
    """A run: its counts, its problems, and a table of its records by name."""
    parts = [f"<p><b>{_text(run.path)}</b>: {_text(counts(run))}</p>"]
    if problems := run.problems:
        shown = "".join(f"<li>{_text(problem.message)}</li>" for problem in problems[:MOST_PROBLEMS])
        more = f"<li>… and {len(problems) - MOST_PROBLEMS} more</li>" if len(problems) > MOST_PROBLEMS else ""
        parts.append(f"<ul>{shown}{more}</ul>")
    parts += [_table(table) for table in tables(run) if table.rows]
    return "".join(parts)


def record_html(record: Record) -> str:
    """A record: what it is, and its content."""
    lines = "\n".join(_text(line) for line in as_text(record, ELEMENTS).split("\n"))
    return f"<p><b>{_text(headline(record))}</b></p><pre>{lines}</pre>"


def _table(table: TextTable) -> str:
    head = "".join(f"<th>{_text(heading)}</th>" for heading in table.headings)
    rows = "".join(
        "<tr>" + "".join(f"<td>{_text(cell)}</td>" for cell in row) + "</tr>" for row in table.rows[:MOST_ROWS]
    )
    left_out = len(table.rows) - MOST_ROWS
    more = f"<tr><td colspan={len(table.headings)}>… and {left_out} more</td></tr>" if left_out > 0 else ""
    return f"<table><caption>{_text(table.title)}</caption><tr>{head}</tr>{rows}{more}</table>"


def _text(text: object) -> str:
    return escape(printable(text))
