"""Runs and records as text for people, as JSON, and as HTML for notebooks, in which every text of a recording is
escaped."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from msgspec import structs

from dumper.reading.columns import OUTSIDE_STEPS, columns_of_records
from dumper.reading.contents import as_text, indented
from dumper.reading.headers import ranges
from dumper.reading.indexing import Index
from dumper.reading.protocol import RecordColumns
from dumper.reading.record_lines import headline
from dumper.reading.text_table import TextTable, output_console
from dumper.reading.timeline import step_table
from dumper.values.fingerprint import SCHEME
from tensortap.printable import printable
from tensortap.progress import Progress, silent, watched

if TYPE_CHECKING:
    from dumper.reading.protocol import GraphCoverage, Record, RecordColumns, Run, TapCoverage

MOST_ROWS = 50
"""Of a table in a notebook."""
MOST_PROBLEMS = 10
ELEMENTS = 64
"""Of a tensor in a notebook; larger ones are shortened."""


def print_run(run: Run, records: Sequence[Record] | None = None, progress: Progress = silent) -> None:
    """The run in a few tables, on standard output; ``records`` are those to summarise by name, by default all."""
    console = output_console()
    console.print(f"{printable(run.path)}: {counts(run)}", style="bold", soft_wrap=True)
    for table in tables(run, records, progress):
        table.print(console)


def counts(run: Run) -> str:
    """Ranks, steps, records and losses of a run, in one line."""
    steps = f"{len(run.steps)} steps ({ranges(run.steps)})" if run.steps else "no steps"
    ranks = f"{len(run.ranks)} of {run.world_size} ranks"
    outside = f", {run.outside_steps} outside steps and left out" if run.outside_steps else ""
    return f"{ranks}, {steps}, {len(run.records)} records, {run.losses} lost{outside}"


def tables(run: Run, records: Sequence[Record] | None = None, progress: Progress = silent) -> list[TextTable]:
    """Ranks, steps, records by name (all, or ``records``), taps that never fired, and what there was of CUDA graphs."""
    every = run.columns()
    # Of a dump of SGLang's each record is a file, which is read here once.
    for record in watched(every.kinds, "reading", progress):
        _ = record.dtype
    chosen = every if records is None else columns_of_records(records)
    named, taps = _name_table(chosen), _tap_table(run)
    return [_rank_table(run, every), step_table(run), named, taps, _graph_table(run), _left_out(run)]


def _rank_table(run: Run, every: RecordColumns) -> TextTable:
    table = TextTable("Ranks", ("rank", "records", "framework", "parallel layout"), frozenset({"rank", "records"}))
    there, amounts = np.unique(every.rank, return_counts=True)
    counts = dict(zip(there.tolist(), amounts.tolist(), strict=True))
    for rank in run.ranks:
        header = run.headers.get(rank)
        axes = {} if header is None else header.parallel
        layout = " ".join(f"{axis}={place}/{size}" for axis, (place, size) in axes.items())
        framework = (header.framework if header is not None else None) or "-"
        table.add(str(rank), str(counts.get(rank, 0)), framework, layout or "-")
    return table


def _level(record: Record) -> str:
    """With the scheme of fingerprints that are not of this version's."""
    scheme = record.fingerprint_scheme
    return record.level if scheme in (None, SCHEME) else f"{record.level} ({scheme})"


def _name_table(chosen: RecordColumns) -> TextTable:
    headings = ("name", "count", "steps", "ranks", "tags", "dtype", "shape", "dims", "level")
    table = TextTable("Records", headings, frozenset({"count"}))
    names: dict[str, list[Record]] = {}
    for kind in chosen.kinds:
        names.setdefault(kind.name, []).append(kind)
    numbers = {name: number for number, name in enumerate(names)}
    name_of = np.array([numbers[kind.name] for kind in chosen.kinds], np.int64)[chosen.kind]
    counts = np.bincount(name_of, minlength=len(names)).tolist()
    steps, on_ranks = (_distinct_by(name_of, column, len(names)) for column in (chosen.step, chosen.rank))
    for number, (name, kinds) in enumerate(names.items()):
        tags: dict[str, set[Any]] = {}
        for kind in kinds:
            for key, value in kind.tags.items():
                tags.setdefault(key, set()).add(value)
        table.add(
            name,
            str(counts[number]),
            ranges(step for step in steps[number] if step != OUTSIDE_STEPS) or "-",
            ranges(on_ranks[number]),
            " ".join(f"{key}={_values(values)}" for key, values in tags.items()),
            _few(kind.dtype or "value" for kind in kinds),
            _few(map(_shape, kinds)),
            _few(kind.dims or "-" for kind in kinds),
            _few(map(_level, kinds)),
        )
    return table


def _distinct_by(group: npt.NDArray[np.int64], values: npt.NDArray[Any], groups: int) -> list[list[int]]:
    """Of each group the values that its members have, ascending, each once."""
    there, number = np.unique(values, return_inverse=True)
    pairs, _ = np.unique(group * len(there) + number.reshape(-1), return_counts=True)
    ends = np.searchsorted(pairs, np.arange(1, groups) * len(there))
    return [there[part % len(there)].tolist() for part in np.split(pairs, ends)] if len(pairs) else []


def _tap_table(run: Run) -> TextTable:
    table = TextTable("Taps that never fired", ("rank", "tap", "where"), frozenset({"rank"}))
    for tap in run.taps:
        if tap.silent:
            table.add(str(tap.rank), tap.id, _place(tap))
    return table


def _graph_table(run: Run) -> TextTable:
    headings = ("rank", "with taps", "replays", "values", "captured while off", "their replays")
    table = TextTable("CUDA graphs", headings, frozenset(headings))
    for graphs in run.cuda_graphs:
        numbers = (graphs.captured, graphs.replays, graphs.values, graphs.silent_graphs, graphs.silent_replays)
        table.add(str(graphs.rank), *map(str, numbers))
    return table


def _left_out(run: Run) -> TextTable:
    table = TextTable("Left out of CUDA graphs", ("rank", "tap", "captures", "why"), frozenset({"rank", "captures"}))
    for graphs in run.cuda_graphs:
        for name, reason, captures in graphs.left_out:
            table.add(str(graphs.rank), name, str(captures), reason)
    return table


def _place(tap: TapCoverage) -> str:
    place = f"{tap.file}:{tap.line}" if tap.file else "-"
    return place if tap.installed else f"{place}, never imported here"


def _values(values: set[Any]) -> str:
    if all(isinstance(value, int) and not isinstance(value, bool) for value in values):
        return ranges(sorted(values))
    return _few([str(value) for value in values])


def _few(texts: Iterable[str]) -> str:
    unique = list(dict.fromkeys(texts))
    return ", ".join(unique[:3]) + (", …" if len(unique) > 3 else "")


def _shape(record: Record) -> str:
    return "-" if record.shape is None else "x".join(map(str, record.shape)) or "scalar"


def described(record: Record, elements: int, index: Index | None = None) -> str:
    """What a record is, and its content; tensors of more elements than ``elements`` are shortened."""
    part = f" {index.text}" if index is not None else ""
    return f"{headline(record)}{printable(part)}\n{indented(as_text(record, elements, index))}"


def summary_as_json(run: Run) -> dict[str, Any]:
    """What ``print_run`` tells, as plain values."""
    return {
        "path": str(run.path),
        "ranks": list(run.ranks),
        "world_size": run.world_size,
        "steps": list(run.steps),
        "records": len(run.records),
        "losses": run.losses,
        "parallel": {
            str(rank): {axis: list(place) for axis, place in header.parallel.items()}
            for rank, header in run.headers.items()
        },
        "framework": {str(rank): header.framework for rank, header in run.headers.items()},
        "problems": [{"kind": problem.kind, "message": problem.message} for problem in run.problems],
        "silent_taps": list(run.silent_taps),
        "cuda_graphs": {str(graphs.rank): _graphs_as_json(graphs) for graphs in run.cuda_graphs},
    }


def _graphs_as_json(graphs: GraphCoverage) -> dict[str, Any]:
    left_out = [{"name": name, "reason": reason, "captures": captures} for name, reason, captures in graphs.left_out]
    return {**structs.asdict(graphs), "left_out": left_out}


def run_repr(run: Run) -> str:
    """A run in one line."""
    problems = f", {len(run.problems)} problems" if run.problems else ""
    return f"<Run {printable(run.path)}: {counts(run)}{problems}>"


def record_repr(record: Record) -> str:
    """A record in one line, without its content."""
    return f"<Record {headline(record)}>"


def run_html(run: Run) -> str:
    """A run: its counts, its problems, and a table of its records by name."""
    parts = [f"<p><b>{_in_html(run.path)}</b>: {_in_html(counts(run))}</p>"]
    if problems := run.problems:
        shown = "".join(f"<li>{_in_html(problem.message)}</li>" for problem in problems[:MOST_PROBLEMS])
        more = f"<li>… and {len(problems) - MOST_PROBLEMS} more</li>" if len(problems) > MOST_PROBLEMS else ""
        parts.append(f"<ul>{shown}{more}</ul>")
    parts += [_html_table(table) for table in tables(run) if table.rows]
    return "".join(parts)


def record_html(record: Record) -> str:
    """A record: what it is, and its content."""
    lines = "\n".join(_in_html(line) for line in as_text(record, ELEMENTS).split("\n"))
    return f"<p><b>{_in_html(headline(record))}</b></p><pre>{lines}</pre>"


def _html_table(table: TextTable) -> str:
    head = "".join(f"<th>{_in_html(heading)}</th>" for heading in table.headings)
    rows = "".join(
        "<tr>" + "".join(f"<td>{_in_html(cell)}</td>" for cell in row) + "</tr>" for row in table.rows[:MOST_ROWS]
    )
    left_out = len(table.rows) - MOST_ROWS
    more = f"<tr><td colspan={len(table.headings)}>… and {left_out} more</td></tr>" if left_out > 0 else ""
    return f"<table><caption>{_in_html(table.title)}</caption><tr>{head}</tr>{rows}{more}</table>"


def _in_html(text: object) -> str:
    return escape(printable(text))
