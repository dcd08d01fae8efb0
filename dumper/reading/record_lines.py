"""What a record is, without its content, in one line: as text and as JSON.

What records share is written once, and of a single record only its numbers: a million of them are lines in a second or
two.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from dumper.reading.columns import OUTSIDE_STEPS
from tensortap.printable import printable

if TYPE_CHECKING:
    from dumper.reading.protocol import Record, RecordColumns, Run
    from dumper.rules.expressions import Expression

_AT_ONCE = 1 << 14
"""Records whose numbers are Python's at a time."""
_Parts = tuple[str, str, str]
"""What stands in front of the step, between the rank and the occurrence, and behind it."""


def headline(record: Record) -> str:
    """What a record is, in one line."""
    step = OUTSIDE_STEPS if record.step is None else record.step
    return _text_line(_text_parts(record), step, record.rank, record.occurrence)


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
        "graph": None if record.graph is None else dict(record.graph),
    }


def matching(run: Run, step: int | None, rank: int | None, expression: Expression | None) -> Iterator[Sequence[int]]:
    """Kind, step, rank and occurrence of each record of this step and rank that the expression holds of, in order."""
    columns = run.columns()
    chosen = np.ones(len(columns.kind), np.bool_)
    if step is not None:
        chosen &= columns.step == step
    if rank is not None:
        chosen &= columns.rank == rank
    if expression is not None and not expression.names & {"step", "rank"}:
        holds = [expression.holds(filtered_values(record)) for record in columns.kinds]
        chosen &= np.array(holds, np.bool_)[columns.kind]
        expression = None
    rows = np.flatnonzero(chosen)
    for start in range(0, len(rows), _AT_ONCE):
        piece = rows[start : start + _AT_ONCE]
        numbers = (columns.kind, columns.step, columns.rank, columns.occurrence)
        found = zip(*(column[piece].tolist() for column in numbers), strict=True)
        yield from found if expression is None else (one for one in found if _holds(expression, columns, one))


def _holds(expression: Expression, columns: RecordColumns, one: Sequence[int]) -> bool:
    kind, step, rank, _ = one
    known = None if step == OUTSIDE_STEPS else step
    return expression.holds({**filtered_values(columns.kinds[kind]), "step": known, "rank": rank})


def filtered_values(record: Record) -> dict[str, Any]:
    """What a filter looks at."""
    return {**record.tags, "name": record.name, "step": record.step, "rank": record.rank}


def record_lines(
    run: Run, *, json_lines: bool, step: int | None, rank: int | None, expression: Expression | None
) -> Iterator[str]:
    """``as_json`` of these records as JSON, or their ``headline``, in order."""
    kinds = run.columns().kinds
    parts_of, line = (_json_parts, _json_line) if json_lines else (_text_parts, _text_line)
    known: dict[int, _Parts] = {}
    for kind, at_step, at_rank, occurrence in matching(run, step, rank, expression):
        parts = known.get(kind)
        if parts is None:
            parts = known[kind] = parts_of(kinds[kind])
        yield line(parts, at_step, at_rank, occurrence)


def _json_parts(record: Record) -> _Parts:
    fields = as_json(record)
    name, tags = ({key: fields.pop(key)} for key in ("name", "tags"))
    for number in ("step", "rank", "occurrence"):
        del fields[number]
    return json.dumps(name)[:-1], json.dumps(tags)[1:-1], json.dumps(fields)[1:]


def _json_line(parts: _Parts, step: int, rank: int, occurrence: int) -> str:
    name, tags, rest = parts
    written = "null" if step == OUTSIDE_STEPS else step
    return f'{name}, "step": {written}, "rank": {rank}, {tags}, "occurrence": {occurrence}, {rest}'


def _text_parts(record: Record) -> _Parts:
    parts = [
        f"{record.dtype} {list(record.shape or ())}" if record.dtype else "value",
        f"dims={record.dims!r}" if record.dims else "",
        "" if record.level == "full" else f"level={record.level}",
        "" if record.stream == "value" else record.stream,
        "recomputed" if record.recompute else "",
        "" if record.graph is None else " ".join(["CUDA graph", *(f"{k}={v}" for k, v in record.graph.items())]),
    ]
    tags = "".join(f" {key}={value}" for key, value in record.tags.items())
    name = f"{record.name} " if record.name else ""
    return printable(name), printable(tags), printable("".join(f" {part}" for part in parts if part))


def _text_line(parts: _Parts, step: int, rank: int, occurrence: int) -> str:
    name, tags, rest = parts
    number = f" occurrence={occurrence}" if occurrence else ""
    return f"{name}step={'-' if step == OUTSIDE_STEPS else step} rank={rank}{tags}{number}{rest}"
