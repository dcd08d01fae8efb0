"""Units where the runs are opened again: in a process that is no copy of the one that was started."""

from __future__ import annotations

import socket
from collections.abc import Callable, Sequence
from typing import Any, Generic, TypeVar

import xxhash
from msgspec import Struct

from comparator.engine.protocol import Measure
from comparator.errors import ComparatorError
from comparator.match.bundles import Bundle, BundlePair
from comparator.measure.units import Unit, UnitResult
from tensortap.lost_pages import watching

P = TypeVar("P")
Marked = tuple[Unit, str]
"""A unit, and what tells its pairs from others."""


def _nothing_ahead(units: Sequence[Unit]) -> None:
    pass


class Opened(Struct, Generic[P], frozen=True):
    """A comparison in this process."""

    measure: Measure[P]
    pairs: Sequence[BundlePair]
    expect: Callable[[Sequence[Unit]], None] = _nothing_ahead
    """Told of units that are measured next: what lies on object storage is read ahead."""


Begin = Callable[[], Opened[P]]
"""Opens the runs. It is sent to other processes. Raises ComparatorError."""


class Worker(Generic[P]):
    """What runs in the other process."""

    def __init__(self) -> None:
        self._opened: Opened[P] | None = None

    def begin(self, begin: Begin[P], version: str, count: int) -> str | None:
        """Open the runs. Returns what is wrong with them, or with this installation."""
        here = installed_version()
        if here != version:
            return f"it has tensortap {here}, and this is {version}; install the same on the cluster"
        try:
            with watching(everywhere=True):
                self._opened = begin()
        except (ComparatorError, OSError) as error:
            return str(error)
        found = len(self._opened.pairs)
        if found != count:
            return f"it finds {found} pairs in the runs, where {count} are found here: the files differ"
        return None

    def expect(self, units: Sequence[Marked]) -> None:
        """These will be measured."""
        assert self._opened is not None
        self._opened.expect([unit for unit, _ in units])

    def measure(self, units: Sequence[Marked]) -> list[UnitResult[P] | Exception]:
        """Measure units, each of which comes with its mark."""
        self.expect(units)
        return [self.measured(one) for one in units]

    def measured(self, marked: Marked) -> UnitResult[P] | Exception:
        """Measure one unit."""
        assert self._opened is not None
        unit, mark = marked
        if mark_of(unit, self._opened.pairs) != mark:
            return ComparatorError(f"{socket.gethostname()} sees other records in the runs: the files differ")
        try:
            with watching(everywhere=True):
                return self._opened.measure(unit)
        except Exception as error:
            return error


def installed_version() -> str:
    import importlib.metadata  # which takes half as long as all else that processes need

    return importlib.metadata.version("tensortap")


def mark_of(unit: Unit, pairs: Sequence[BundlePair]) -> str:
    """What tells the pairs of a unit from others."""
    told = [
        (pair.name, pair.tags, pair.step, _told(pair.baseline), _told(pair.target))
        for pair in map(pairs.__getitem__, unit.pairs)
    ]
    return xxhash.xxh3_64_hexdigest(repr(told).encode("utf-8", "surrogatepass"))


def _told(side: Bundle | None) -> list[Any] | None:
    if side is None:
        return None
    return [(entry.rank, entry.step, entry.record.order, entry.record.dtype, entry.shape) for entry in side.entries]
