"""The table of measurements: a row for every comparison, packed, since a run has millions of them."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator

import numpy as np

from comparator.measure.units import PackedRow, Row


class Table:
    """Rows in any order in, in the order of the pairs out."""

    def __init__(self) -> None:
        self._places = array("q")
        """Of each row its pair, its part and what kind of measurement it has."""
        self._packed: list[bytes] = []

    def __len__(self) -> int:
        return len(self._packed)

    def extend(self, rows: Iterable[Row | PackedRow]) -> None:
        """Add rows."""
        for row in rows:
            kind, data = row.packed
            self._places.extend((row.pair, row.part, kind))
            self._packed.append(data)

    def __iter__(self) -> Iterator[PackedRow]:
        """The rows in the order of the pairs."""
        places = np.frombuffer(self._places, np.int64).reshape(-1, 3) if self._packed else np.empty((0, 3), np.int64)
        order = np.lexsort((places[:, 1], places[:, 0]))
        for at, (pair, part, kind) in zip(order.tolist(), places[order].tolist(), strict=True):
            yield PackedRow(pair, part, (kind, self._packed[at]))
