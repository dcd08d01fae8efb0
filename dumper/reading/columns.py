"""The records of a run as columns: arrays, by which millions are told apart and grouped without an object for each, and
a polars table with a row per record."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np

from dumper.reading.protocol import Record, RecordColumns

if TYPE_CHECKING:
    import polars

OUTSIDE_STEPS = -1
"""In the column ``step``: outside any, as ``dumper.format.index.NO_STEP``, which a recording of other files has no use
for."""


def columns_of_records(records: Iterable[Record]) -> RecordColumns:
    """Columns in which each record is a kind of its own."""
    kinds = list(records)
    return RecordColumns(
        kinds,
        np.arange(len(kinds), dtype=np.int32),
        np.array([record.rank for record in kinds], np.int32),
        np.array([OUTSIDE_STEPS if record.step is None else record.step for record in kinds], np.int64),
        np.array([record.occurrence for record in kinds], np.uint32),
    )


TABLE_COLUMNS = (
    "rank",
    "order",
    "name",
    "step",
    "occurrence",
    "dtype",
    "shape",
    "dims",
    "level",
    "stream",
    "tap",
    "nbytes",
)
TAG_PREFIX = "tag."


def table_of(records: Iterable[Record]) -> polars.DataFrame:
    """``TABLE_COLUMNS`` and a column ``tag.KEY`` per tag, record by record: for recordings without an index of ours."""
    import polars

    columns: dict[str, list[Any]] = {name: [] for name in TABLE_COLUMNS}
    tags: list[dict[str, Any]] = []
    for record in records:
        for name in TABLE_COLUMNS:
            value = getattr(record, name)
            columns[name].append(list(value) if isinstance(value, tuple) else value)
        tags.append(dict(record.tags))
    keys = sorted({key for tag in tags for key in tag})
    series = {TAG_PREFIX + key: tag_series([tag.get(key) for tag in tags]) for key in keys}
    return polars.DataFrame(columns, strict=False).with_columns(**series)


def tag_series(values: list[Any]) -> polars.Series:
    """A column of one tag; tags of mixed types become text."""
    import polars

    if len({type(value) for value in values if value is not None}) <= 1:
        try:
            return polars.Series(values)
        except (TypeError, OverflowError):
            pass
    return polars.Series([None if value is None else str(value) for value in values], dtype=polars.String)
