"""The table of measurements: a row for every comparison, packed, since a run has millions of them."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator
from typing import Any

import msgspec
import numpy as np

from comparator.measure.measurement import (
    Failure,
    HashMeasurement,
    Measurement,
    Skipped,
    StatisticsMeasurement,
    TensorMeasurement,
    ValueMeasurement,
)
from comparator.measure.units import Row

_KINDS: tuple[type[Measurement], ...] = (
    TensorMeasurement,
    HashMeasurement,
    StatisticsMeasurement,
    ValueMeasurement,
    Skipped,
    Failure,
)
_NUMBERS = {kind: number for number, kind in enumerate(_KINDS)}


def _plain(number: Any) -> Any:
    """A number of numpy's as Python's."""
    if isinstance(number, np.generic):
        return number.item()
    raise NotImplementedError(f"{type(number).__name__} in a measurement")


class Table:
    """Rows in any order in, in the order of the pairs out. As objects they take some kilobytes each, packed some
    hundred bytes."""

    def __init__(self) -> None:
        self._pack = msgspec.msgpack.Encoder(enc_hook=_plain).encode
        self._unpack = [msgspec.msgpack.Decoder(kind).decode for kind in _KINDS]
        self._places = array("q")
        """Of each row its pair, its part and what kind of measurement it has."""
        self._packed: list[bytes] = []

    def __len__(self) -> int:
        return len(self._packed)

    def extend(self, rows: Iterable[Row]) -> None:
        """Add rows."""
        for row in rows:
            self._places.extend((row.pair, row.part, _NUMBERS[type(row.measurement)]))
            self._packed.append(self._pack(row.measurement))

    def __iter__(self) -> Iterator[Row]:
        """The rows in the order of the pairs, each made anew."""
        places = np.frombuffer(self._places, np.int64).reshape(-1, 3) if self._packed else np.empty((0, 3), np.int64)
        for at in np.lexsort((places[:, 1], places[:, 0])).tolist():
            pair, part, kind = places[at].tolist()
            yield Row(pair, part, self._unpack[kind](self._packed[at]))
