"""A compact table for terminals: a row for each layer where something did not pass, a column for each tap."""

from __future__ import annotations

from typing import TYPE_CHECKING

from msgspec import Struct, field

from comparator.report.records import Comparison, SkippedComparison, TensorComparison
from comparator.report.tolerance import times_tolerance
from comparator.verdict.taps import LAYER_TAGS
from tensortap.printable import printable

if TYPE_CHECKING:
    from rich.table import Table
    from rich.text import Text

MOST_ROWS = 24
NAME_WIDTH = 12
"""Characters of a tap's name."""
CELL_WIDTH = 7
LAYER_WIDTH = 10
_RANKS = ("passed", "skipped", "failed", "errored")


class _Cell(Struct):
    category: str = "passed"
    times: float = 0.0
    introduced: bool = False
    inherited: bool = False

    def add(self, finding: Comparison) -> None:
        self.category = max(self.category, finding.category, key=_RANKS.index)
        if isinstance(finding, TensorComparison):
            self.times = max(self.times, times_tolerance(finding.model_dump()) or 0.0)
            judged = None if finding.analysis is None else finding.analysis.judged
            self.introduced |= judged == "introduced-here"
            self.inherited |= judged == "inherited-from"

    def shown(self) -> Text:
        """The cell: how many times what is tolerated, marked where error comes in."""
        from rich.text import Text

        if self.category == "errored":
            return Text("error", "bold magenta")
        if self.category == "skipped":
            return Text("-", "yellow")
        times = ">999x" if self.times > 999 else f"{self.times:.3g}x" if self.times else ""
        if self.category == "passed":
            return Text(times or "=", "green")
        style = "bold reverse red" if self.introduced else "red" if self.inherited else "bold red"
        return Text(times or "failed", style)


class LayerTable(Struct):
    """Takes findings in the order of execution."""

    _cells: dict[tuple[str, str], _Cell] = field(default_factory=dict)
    _layers: dict[str, None] = field(default_factory=dict)
    _taps: dict[str, None] = field(default_factory=dict)

    def add(self, finding: Comparison) -> None:
        """Take one finding."""
        if isinstance(finding, SkippedComparison) and finding.available_side is None:
            return
        tag = next((tag for tag in LAYER_TAGS if finding.tags.get(tag, "").isdecimal()), None)
        layer = "" if tag is None else f"layer {finding.tags[tag]}"
        others = [f"{key}={value}" for key, value in finding.tags.items() if key != tag]
        tap = " ".join([finding.name, *others])
        self._layers.setdefault(layer)
        self._taps.setdefault(tap)
        self._cells.setdefault((layer, tap), _Cell()).add(finding)

    def table(self, width: int) -> Table | None:
        """The table, at most ``width`` characters wide; None where everything passed or there is but one row."""
        from rich.table import Table

        bad = [layer for layer in self._layers if any(self._bad(layer, tap) for tap in self._taps)]
        if not bad or len(self._layers) < 2:
            return None
        present = [tap for tap in self._taps if any((layer, tap) in self._cells for layer in bad)]
        fits = max(1, (width - LAYER_WIDTH) // (CELL_WIDTH + 2))
        shown = [tap for tap in present if any(self._bad(layer, tap) for layer in bad)]
        if len(present) <= fits:
            shown = present
        table = Table(box=None, padding=(0, 2, 0, 0), show_edge=False, header_style="bold", caption_justify="left")
        table.add_column("", no_wrap=True)
        for tap in shown[:fits]:
            table.add_column(printable(tap), overflow="fold", max_width=max(CELL_WIDTH, NAME_WIDTH), justify="right")
        for layer in bad[:MOST_ROWS]:
            cells = [self._cells.get((layer, tap)) for tap in shown[:fits]]
            table.add_row(layer or "no layer", *("" if cell is None else cell.shown() for cell in cells))
        left_out = [
            f"{len(bad) - MOST_ROWS} more layers" if len(bad) > MOST_ROWS else "",
            f"{len(shown) - fits} more taps" if len(shown) > fits else "",
        ]
        said = ", ".join(text for text in left_out if text)
        table.caption = f"error in multiples of what is tolerated{f'; not shown: {said}' if said else ''}"
        return table

    def _bad(self, layer: str, tap: str) -> bool:
        cell = self._cells.get((layer, tap))
        return cell is not None and cell.category in ("failed", "errored")
