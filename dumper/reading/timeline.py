"""The forward passes of a run in the order in which they ran: what each of them computed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from dumper.format.frames import FormatError
from dumper.reading.headers import ranges
from dumper.reading.text_table import TextTable

if TYPE_CHECKING:
    from dumper.layout import TokenLayout
    from dumper.reading.protocol import Run

MOST_LINES = 30
MOST_STEPS = 2000
"""Steps whose token layouts are read: all of a long run would take long."""
HEADINGS = ("step", "mode", "sequences", "tokens", "padding", "")
BAR = 24
"""Characters of the longest bar."""
Pass = tuple[str, int, int, int]
"""Mode, sequences, tokens, rows of padding; summed over ranks that computed other tokens."""


def step_table(run: Run) -> TextTable:
    """A line for each run of steps that computed as many tokens in the same mode; empty without token layouts."""
    table = TextTable("Steps", HEADINGS, frozenset({"sequences", "tokens"}))
    lines: list[tuple[list[int], Pass]] = []
    for step, found in _passes(run):
        if lines and lines[-1][1] == found:
            lines[-1][0].append(step)
        else:
            lines.append(([step], found))
    most = max((found[2] for _, found in lines), default=0)
    for steps, (mode, sequences, tokens, padding) in lines[:MOST_LINES]:
        bar = "#" * max(1, round(BAR * tokens / most)) if tokens else ""
        table.add(ranges(steps), mode, str(sequences), str(tokens), str(padding) if padding else "", bar)
    cut = sum(len(steps) for steps, _ in lines[MOST_LINES:]) + len(run.steps[MOST_STEPS:])
    if lines and cut:
        table.add("…", f"{cut} more", "", "", "", "")
    return table


def _passes(run: Run) -> Iterator[tuple[int, Pass]]:
    for step in run.steps[:MOST_STEPS]:
        layouts: dict[tuple[tuple[str, int, int], ...], TokenLayout] = {}
        for rank in run.ranks:
            try:
                layout = run.layout(step, rank)
            except (
                ValueError,
                FormatError,
            ):  # a layout that makes no sense; the run's problems and the comparator say so
                continue
            if layout is not None:
                # Ranks that computed the same sequences count once.
                layouts.setdefault(tuple((span.id, span.start, span.count) for span in layout.sequences), layout)
        if layouts:
            modes = dict.fromkeys(layout.forward_mode for layout in layouts.values())
            tokens = sum(span[2] for spans in layouts for span in spans)
            padding = sum(max(0, layout.rows - layout.real_rows) for layout in layouts.values())
            yield step, (", ".join(modes), sum(len(spans) for spans in layouts), tokens, padding)
