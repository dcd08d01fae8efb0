"""The index of a run as a polars table: a row per record, without touching the records."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from dumper.format.index import NO_STEP
from dumper.readers.streams.segments import Segment
from dumper.reading.columns import TABLE_COLUMNS, TAG_PREFIX, tag_series

if TYPE_CHECKING:
    import polars

_SHARED = ("name", "dtype", "shape", "dims", "level", "stream", "tap")
_DEFAULTS = {"level": "full", "stream": "value"}


def index_table(segments: Iterable[tuple[int, Segment]]) -> polars.DataFrame:
    """``rank order name step occurrence dtype shape dims level stream tap nbytes`` and a column ``tag.KEY`` per tag.

    Takes (rank, segment) pairs. Tags of mixed types become text.
    """
    import polars

    parts = [_segment_table(rank, segment) for rank, segment in segments]
    if not parts:
        return polars.DataFrame()
    table = polars.concat(_with_equal_tags(parts), how="diagonal_relaxed")
    return table.select(*TABLE_COLUMNS, *(column for column in table.columns if column.startswith(TAG_PREFIX)))


def _segment_table(rank: int, segment: Segment) -> polars.DataFrame:
    import polars

    index = segment.index
    steps = polars.Series(index.columns["step"])
    rows = polars.DataFrame(
        {
            "rank": polars.Series([rank], dtype=polars.Int64).new_from_index(0, len(index)),
            "order": index.columns["order"],
            "step": polars.select(polars.when(steps != NO_STEP).then(steps)).to_series(),
            "occurrence": index.columns["occurrence"],
            "nbytes": index.columns["payload_bytes"],
        }
    )
    shared = _descriptor_table(index.descriptors)
    return rows.hstack(shared[index.columns["descriptor"]]) if len(index) else rows.hstack(shared.clear())


def _descriptor_table(descriptors: tuple[dict[str, Any], ...]) -> polars.DataFrame:
    """A row per descriptor."""
    import polars

    columns: dict[str, polars.Series] = {}
    for name in _SHARED:
        values = [descriptor.get(name, _DEFAULTS.get(name)) for descriptor in descriptors]
        kind = polars.List(polars.Int64) if name == "shape" else polars.String
        columns[name] = polars.Series(values, dtype=kind)
    keys = sorted({key for descriptor in descriptors for key in descriptor.get("tags", {})})
    for key in keys:
        columns[TAG_PREFIX + key] = tag_series([descriptor.get("tags", {}).get(key) for descriptor in descriptors])
    return polars.DataFrame(columns)


def _with_equal_tags(parts: list[polars.DataFrame]) -> list[polars.DataFrame]:
    """Tags that are text in one part are text in all."""
    import polars

    texts = {name for part in parts for name, kind in part.schema.items() if kind == polars.String}
    return [
        part.with_columns(
            polars.col(name).cast(polars.String)
            for name in part.columns
            if name in texts and name.startswith(TAG_PREFIX) and part.schema[name] != polars.String
        )
        for part in parts
    ]
