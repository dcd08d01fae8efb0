"""Tables on a terminal of any width: columns where they fit, a block of lines for each row where they do not."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tensortap.printable import printable

if TYPE_CHECKING:
    from rich.console import Console

UNFOLDED_WIDTH = 1000
"""Characters; wider than any table here."""


@dataclass
class TextTable:
    """Rows of text under headings. The first column says what a row is about."""

    title: str
    headings: Sequence[str]
    right: frozenset[str] = frozenset()
    """Headings of columns that are aligned to the right."""
    rows: list[tuple[str, ...]] = field(default_factory=list)

    def add(self, *cells: str) -> None:
        """A row; what is in the cells is escaped."""
        self.rows.append(tuple(map(printable, cells)))

    def print(self, console: Console) -> None:
        """Print the table, or nothing where it has no rows."""
        if not self.rows:
            return
        from rich import box
        from rich.measure import Measurement
        from rich.table import Table

        table = Table(title=self.title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False)
        for heading in self.headings:
            table.add_column(heading, justify="right" if heading in self.right else "left", overflow="fold")
        for row in self.rows:
            table.add_row(*row)
        if Measurement.get(console, console.options.update(max_width=UNFOLDED_WIDTH), table).maximum <= console.width:
            console.print(table)
        else:
            self._print_blocks(console)

    def _print_blocks(self, console: Console) -> None:
        """Each row as a line with its first cell, and the others with their headings below."""
        from rich.padding import Padding
        from rich.text import Text

        console.print(Text(self.title, style="bold"))
        for row in self.rows:
            console.print(Text(f"{self.headings[0]} {row[0]}", overflow="fold"))
            for heading, cell in zip(self.headings[1:], row[1:], strict=True):
                if cell not in ("", "-"):
                    console.print(Padding(Text(f"{heading} {cell}", overflow="fold"), (0, 0, 0, 2)))
        console.print()


def output_console() -> Console:
    """Standard output. Without a terminal there is no width to fold to, unless ``COLUMNS`` says one."""
    from rich.console import Console

    # Dims are in brackets, which are not markup.
    known = sys.stdout.isatty() or os.environ.get("COLUMNS", "").isdigit()
    return Console(markup=False, highlight=False, width=None if known else UNFOLDED_WIDTH)
