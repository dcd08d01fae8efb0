"""Records as a polars table: a row per record."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from dumper.reading.protocol import Record

if TYPE_CHECKING:
    import polars

COLUMNS = (
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
    """``COLUMNS`` and a column ``tag.KEY`` per tag, record by record: for recordings that have no index of ours."""
    import polars

    columns: dict[str, list[Any]] = {name: [] for name in COLUMNS}
    tags: list[dict[str, Any]] = []
    for record in records:
        for name in COLUMNS:
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
