"""Runs and records as text for people, and as JSON."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from dumper.printable import printable
from dumper.reading.headers import ranges

if TYPE_CHECKING:
    from rich.table import Table

    from dumper.reading.protocol import Record, Run, TapCoverage

LARGEST_SHOWN = 16 << 20
"""Bytes of a value that is no tensor; larger ones are not decoded for people."""
LONGEST_SHOWN = 2000
"""Characters of one text."""
UNFOLDED_WIDTH = 1000
"""Characters; wider than any table here."""


def print_run(run: Run, records: Sequence[Record]) -> None:
    """The run in a few tables, on standard output; ``records`` are those to summarise by name."""
    from rich.console import Console

    # Dims are in brackets, which are not markup. Without a terminal there is no width to fold to.
    console = Console(markup=False, width=None if sys.stdout.isatty() else UNFOLDED_WIDTH)
    steps = f"{len(run.steps)} steps ({ranges(run.steps)})" if run.steps else "no steps"
    console.print(
        f"{printable(run.path)}: {len(run.ranks)} of {run.world_size} ranks, {steps}, {len(run.records)} records, "
        f"{run.losses} lost",
        style="bold",
        highlight=False,
        soft_wrap=True,
    )
    for table in (_rank_table(run), _name_table(records), _tap_table(run)):
        if table.row_count:
            console.print(table)


def _table(title: str, *columns: str, right: tuple[str, ...] = ()) -> Table:
    from rich import box
    from rich.table import Table

    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, title_style="bold", pad_edge=False)
    for column in columns:
        justify: Literal["left", "right"] = "right" if column in right else "left"
        table.add_column(column, justify=justify, overflow="fold", no_wrap=column == "name")
    return table


def _add_row(table: Table, *cells: str) -> None:
    table.add_row(*map(printable, cells))


def _rank_table(run: Run) -> Table:
    table = _table("Ranks", "rank", "records", "framework", "parallel layout", right=("rank", "records"))
    counts: dict[int, int] = {}
    for record in run.records:
        counts[record.rank] = counts.get(record.rank, 0) + 1
    for rank in run.ranks:
        header = run.headers.get(rank)
        axes = {} if header is None else header.parallel
        layout = " ".join(f"{axis}={place}/{size}" for axis, (place, size) in axes.items())
        framework = (header.framework if header is not None else None) or "-"
        _add_row(table, str(rank), str(counts.get(rank, 0)), framework, layout or "-")
    return table


def _name_table(records: Sequence[Record]) -> Table:
    table = _table(
        "Records", "name", "count", "steps", "ranks", "tags", "dtype", "shape", "dims", "level", right=("count",)
    )
    groups: dict[str, list[Record]] = {}
    for record in records:
        groups.setdefault(record.name, []).append(record)
    for name, group in groups.items():
        steps = sorted({record.step for record in group if record.step is not None})
        tags: dict[str, set[Any]] = {}
        for record in group:
            for key, value in record.tags.items():
                tags.setdefault(key, set()).add(value)
        _add_row(
            table,
            name,
            str(len(group)),
            ranges(steps) or "-",
            ranges(sorted({record.rank for record in group})),
            " ".join(f"{key}={_values(values)}" for key, values in tags.items()),
            _few([record.dtype or "value" for record in group]),
            _few([_shape(record) for record in group]),
            _few([record.dims or "-" for record in group]),
            _few([record.level for record in group]),
        )
    return table


def _tap_table(run: Run) -> Table:
    table = _table("Taps that never fired", "rank", "tap", "where", right=("rank",))
    for tap in run.taps:
        if tap.silent:
            _add_row(table, str(tap.rank), tap.id, _place(tap))
    return table


def _place(tap: TapCoverage) -> str:
    place = f"{tap.file}:{tap.line}" if tap.file else "-"
    return place if tap.installed else f"{place}, never imported here"


def _values(values: set[Any]) -> str:
    if all(isinstance(value, int) and not isinstance(value, bool) for value in values):
        return ranges(sorted(values))
    return _few([str(value) for value in values])


def _few(texts: Sequence[str]) -> str:
    unique = list(dict.fromkeys(texts))
    return ", ".join(unique[:3]) + (", …" if len(unique) > 3 else "")


def _shape(record: Record) -> str:
    return "-" if record.shape is None else "x".join(map(str, record.shape)) or "scalar"


def headline(record: Record) -> str:
    """What a record is, in one line."""
    tags = " ".join(f"{key}={value}" for key, value in record.tags.items())
    parts = [
        record.name,
        f"step={'-' if record.step is None else record.step}",
        f"rank={record.rank}",
        tags,
        f"occurrence={record.occurrence}" if record.occurrence else "",
        f"{record.dtype} {list(record.shape or ())}" if record.dtype else "value",
        f"dims={record.dims!r}" if record.dims else "",
        "" if record.level == "full" else f"level={record.level}",
        "" if record.stream == "value" else record.stream,
        "recomputed" if record.recompute else "",
    ]
    return printable(" ".join(part for part in parts if part))


def described(record: Record, elements: int) -> str:
    """What a record is, and its content; tensors of more elements than ``elements`` are shortened."""
    from dumper.format.frames import FormatError

    try:
        content = _content(record, elements)
    except (FormatError, ValueError, RecursionError) as error:
        content = f"cannot be read: {error}"
    return f"{headline(record)}\n{_indented(content)}"


def _content(record: Record, elements: int) -> str:
    if record.kind != "tensor":
        if record.nbytes > LARGEST_SHOWN:
            return f"a value of {record.nbytes} bytes, too large to show; read it with record.value"
        return _shortened(record.value, elements)
    if record.level == "hash":
        return f"fingerprint {record.fingerprint}"
    if record.level == "stats":
        return " ".join(f"{key}={value:.6g}" for key, value in (record.statistics or {}).items())
    array = record.array()
    # numpy prints the small floats of ml_dtypes badly, and would convert all of a tensor to show its edges.
    formatter: Any = {"all": lambda element: f"{float(element):.6g}"} if array.dtype.kind == "V" else None
    return np.array2string(array, threshold=elements, edgeitems=3, max_line_width=110, formatter=formatter)


def _shortened(value: Any, elements: int) -> str:
    """A plain value as Python writes it, with ``…`` for what is beyond a number of elements."""
    parts: list[str] = []
    room = max(1, elements)

    def add(part: Any) -> None:
        nonlocal room
        if room <= 0:
            parts.append("…")
            return
        room -= 1
        if isinstance(part, list | dict):
            pairs = part.items() if isinstance(part, dict) else ((None, element) for element in part)
            parts.append("{" if isinstance(part, dict) else "[")
            for number, (key, element) in enumerate(pairs):
                parts.append(", " if number else "")
                if room <= 0:
                    parts.append(f"… ({len(part)} in all)")
                    break
                if isinstance(part, dict):
                    parts.append(f"{_cut(repr(key))}: ")
                add(element)
            parts.append("}" if isinstance(part, dict) else "]")
        else:
            parts.append(_cut(repr(part[:LONGEST_SHOWN] if isinstance(part, str | bytes) else part)))

    add(value)
    return "".join(parts)


def _cut(text: str) -> str:
    return text if len(text) <= LONGEST_SHOWN else f"{text[:LONGEST_SHOWN]}… ({len(text)} characters or more)"


def _indented(text: str) -> str:
    return "\n".join(f"    {printable(line)}" for line in text.split("\n"))


def as_json(record: Record) -> dict[str, Any]:
    """The fields of a record without its payload."""
    return {
        "name": record.name,
        "step": record.step,
        "rank": record.rank,
        "tags": dict(record.tags),
        "occurrence": record.occurrence,
        "tap": record.tap,
        "kind": record.kind,
        "level": record.level,
        "dtype": record.dtype,
        "shape": None if record.shape is None else list(record.shape),
        "dims": record.dims,
        "stream": record.stream,
        "recompute": record.recompute,
    }
