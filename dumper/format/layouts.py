"""Token layouts as plain msgpack values, and back."""

from __future__ import annotations

from typing import Any

import numpy as np

from dumper.layout import ContextParallelRows, DataParallelRows, SequenceSpan, TokenLayout

MOST_ROWS = 1 << 27
"""Tokens of one pass on one rank."""
_ARRAYS = {"token_ids": "<i8", "row_sequence": "<i4", "row_position": "<i8"}


def encode_layout(layout: TokenLayout) -> dict[str, Any]:
    """A map of plain values; arrays become little-endian ``bin``."""
    encoded: dict[str, Any] = {
        "forward_mode": layout.forward_mode,
        "sequences": [[span.id, span.start, span.count] for span in layout.sequences],
        "rows": layout.rows,
        "real_rows": layout.real_rows,
    }
    for name, dtype in _ARRAYS.items():
        array = getattr(layout, name)
        if array is not None:
            encoded[name] = np.ascontiguousarray(array, dtype=dtype).tobytes()
    if layout.batch_shape is not None:
        encoded["batch_shape"] = list(layout.batch_shape)
    if (data := layout.data_parallel) is not None:
        encoded["data_parallel"] = {
            "axis": data.axis,
            "rank": data.rank,
            "size": data.size,
            "rows": list(data.rows),
            "real_rows": list(data.real_rows),
            "padding": data.padding,
        }
    if (context := layout.context_parallel) is not None:
        encoded["context_parallel"] = {
            "axis": context.axis,
            "rank": context.rank,
            "size": context.size,
            "ordering": context.ordering,
            "local": context.local,
        }
    if layout.extra:
        encoded["extra"] = layout.extra
    return encoded


def decode_layout(encoded: dict[str, Any]) -> TokenLayout:
    """The token layout in a step's metadata. Raises KeyError, TypeError or ValueError when it is malformed."""
    _check_rows(encoded)
    arrays = {
        name: np.frombuffer(encoded[name], dtype=dtype)
        for name, dtype in _ARRAYS.items()
        if encoded.get(name) is not None
    }
    data, context, batch = (encoded.get(key) for key in ("data_parallel", "context_parallel", "batch_shape"))
    return TokenLayout(
        forward_mode=encoded["forward_mode"],
        sequences=tuple(SequenceSpan(str(span[0]), span[1], span[2]) for span in encoded["sequences"]),
        rows=encoded["rows"],
        batch_shape=None if batch is None else (batch[0], batch[1]),
        data_parallel=None if data is None else _data_parallel(data),
        context_parallel=None if context is None else _context_parallel(context),
        extra=encoded.get("extra", {}),
        **arrays,
    )


def _check_rows(encoded: dict[str, Any]) -> None:
    """Raises ValueError for numbers of rows that no pass has: readers make arrays of that length."""
    rows = encoded["rows"]
    counts = [span[2] for span in encoded["sequences"]]
    numbers = [rows, *counts, *(span[1] for span in encoded["sequences"])]
    if not all(isinstance(number, int) and number >= 0 for number in numbers):
        raise ValueError("rows and spans are not all whole numbers")
    if rows > MOST_ROWS or sum(counts) > MOST_ROWS:
        raise ValueError(f"it claims {max(rows, sum(counts))} rows; {MOST_ROWS} is the most")


def _data_parallel(encoded: dict[str, Any]) -> DataParallelRows:
    return DataParallelRows(
        axis=encoded["axis"],
        rank=encoded["rank"],
        size=encoded["size"],
        rows=tuple(encoded["rows"]),
        real_rows=tuple(encoded["real_rows"]),
        padding=encoded["padding"],
    )


def _context_parallel(encoded: dict[str, Any]) -> ContextParallelRows:
    return ContextParallelRows(
        axis=encoded["axis"],
        rank=encoded["rank"],
        size=encoded["size"],
        ordering=encoded["ordering"],
        local=encoded["local"],
    )
