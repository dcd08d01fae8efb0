"""The units of work and the table that they fill.

A unit is a family: all pairs of one name and tags over all steps. It is described by numbers alone, and what comes back
are numbers, so that a unit can be sent to another process that has opened the same runs with the same options.
"""

from __future__ import annotations

from array import array
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Generic, Protocol, TypeVar

import numpy as np
from msgspec import Struct
from msgspec.structs import replace

from comparator.align.aligned import Aligned
from comparator.align.load import cut, let_go, read_together
from comparator.match.bundles import BundlePair, Key, bytes_of_pairs
from comparator.measure.alike import measure_alike
from comparator.measure.family import FamilyRows, pool_rows
from comparator.measure.kernel.sums import RowTable
from comparator.measure.measurement import Measurement, packed, unpacked
from comparator.measure.measurer import Measurer, failure
from comparator.measure.memory import bytes_together
from comparator.measure.quick import settle
from comparator.plan.selection import Selected
from comparator.rules import Rules
from tensortap.lost_pages import lost_pages

P = TypeVar("P")
Made_co = TypeVar("Made_co", covariant=True)

MOST_OBJECTS = 1 << 13
"""Rows that the table keeps as objects, some tens of megabytes."""
KEPT_BYTES = 256 << 20
"""Aligned rows that are kept for the taps that are computed from them."""
MOST_TOGETHER = 32
"""Pairs of a unit where each has a verdict of its own: they are reported together."""
SMALL = 2 << 20
"""Bytes that they take together at most; what takes more is a unit by itself."""
_SHARE = 8
"""Of the memory that may be taken, they take one of so many parts at most."""


class Unit(Struct, frozen=True):
    """A unit of work: pairs by their numbers."""

    number: int
    pairs: tuple[int, ...]


class Row(Struct, frozen=True):
    """One row of the table of measurements."""

    pair: int
    part: int
    """Number of the step, of a pair that was grouped over steps and is compared step by step; else 0."""
    measurement: Measurement

    @property
    def packed(self) -> tuple[int, bytes]:
        """What ``comparator.measure.measurement.packed`` makes of the measurement."""
        return packed(self.measurement)


class PackedRow(Struct, frozen=True):
    """A row with its measurement as bytes."""

    pair: int
    part: int
    packed: tuple[int, bytes]

    @property
    def measurement(self) -> Measurement:
        """Made anew each time that it is asked for."""
        return unpacked(*self.packed)


class Table:
    """The table of measurements: rows in any order in, in the order of the pairs out.

    Rows are packed, since a run has millions of them, but for the first ones that come as objects.
    """

    def __init__(self) -> None:
        self._places = array("q")
        """Of each row its pair, its part and what kind of measurement it has."""
        self._rows: list[bytes | Row] = []
        self._objects = 0

    def __len__(self) -> int:
        return len(self._rows)

    def extend(self, rows: Iterable[Row | PackedRow]) -> None:
        """Add rows."""
        for row in rows:
            if isinstance(row, Row) and self._objects < MOST_OBJECTS:
                self._objects += 1
                self._places.extend((row.pair, row.part, -1))
                self._rows.append(row)
                continue
            kind, data = row.packed
            self._places.extend((row.pair, row.part, kind))
            self._rows.append(data)

    def __iter__(self) -> Iterator[Row | PackedRow]:
        """The rows in the order of the pairs."""
        places = np.frombuffer(self._places, np.int64).reshape(-1, 3) if self._rows else np.empty((0, 3), np.int64)
        order = np.lexsort((places[:, 1], places[:, 0]))
        for at, (pair, part, kind) in zip(order.tolist(), places[order].tolist(), strict=True):
            row = self._rows[at]
            yield row if isinstance(row, Row) else PackedRow(pair, part, (kind, row))


class UnitResult(Struct, Generic[P], frozen=True):
    """What a unit gives: a row per comparison, and the profile of the family where one was asked for."""

    unit: Unit
    rows: tuple[Row | PackedRow, ...]
    profile: P | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        """For other processes: rows go packed, in a fifth of the time that their objects would take."""
        return _of_packed, (self.unit, [(row.pair, row.part, row.packed) for row in self.rows], self.profile)


def _of_packed(unit: Unit, rows: Sequence[tuple[int, int, tuple[int, bytes]]], profile: P | None) -> UnitResult[P]:
    return UnitResult(unit, tuple([PackedRow(*row) for row in rows]), profile)


class Families:
    """Aligned rows of whole families, for what is measured against other families."""

    def __init__(
        self,
        pairs: Sequence[BundlePair],
        members: Mapping[Key, Sequence[int]],
        select: Callable[[int], list[Selected]],
        measurer: Measurer,
    ) -> None:
        self._pairs = pairs
        self._members = members
        self._select = select
        self._measurer = measurer
        memory = measurer.options.memory
        self._most_kept = KEPT_BYTES if memory is None else min(KEPT_BYTES, memory // _SHARE)
        self._kept: OrderedDict[Key, FamilyRows | None] = OrderedDict()
        self._kept_bytes = 0

    @property
    def keys(self) -> tuple[Key, ...]:
        """All families, in the order in which they first come."""
        return tuple(self._members)

    def rows(self, family: Key) -> FamilyRows | None:
        """The aligned rows of a family; None where it has none, or where it cannot be aligned.

        The families that were asked for last are kept while they take at most ``KEPT_BYTES``, and no more than a share
        of ``Options.memory``.
        """
        if family in self._kept:
            self._kept.move_to_end(family)
            return self._kept[family]
        seen: list[Aligned] = []
        members = self._members.get(family, ())
        together = self.bytes_of(members)
        for number in members:
            for selected in self._select(number):
                self._measurer.align(selected, lambda _, aligned, rows: seen.append(aligned), together)
        return self.keep(family, pool_rows(family, seen))

    def bytes_of(self, members: Sequence[int]) -> int:
        """Bytes of pairs, by their numbers, whose arrays are kept together; 0 where they fit whatever is kept."""
        return bytes_together([self._pairs[number] for number in members], self._measurer.options)

    def keep(self, family: Key, rows: FamilyRows | None) -> FamilyRows | None:
        """Remember rows that were aligned: the taps behind this one are measured against it next."""
        self._kept_bytes += _bytes(rows) - _bytes(self._kept.pop(family, None))
        self._kept[family] = rows
        while self._kept_bytes > self._most_kept:
            self._kept_bytes -= _bytes(self._kept.popitem(last=False)[1])
        return rows


def _bytes(rows: FamilyRows | None) -> int:
    return 0 if rows is None else rows.nbytes


class MakeProfile(Protocol[Made_co]):
    """Makes the profile of a family from its aligned rows; may ask for those of other families."""

    def __call__(self, found: FamilyRows, families: Families) -> Made_co | None: ...

    def asks_for(self, family: Key) -> bool:
        """Whether the profiles of other families are made from the rows of this one."""

    def needs_values(self, family: Key) -> bool:
        """Whether the profile holds more than differences, so that rows which are known to be equal must be read."""


def members_of_families(pairs: Sequence[BundlePair]) -> dict[Key, list[int]]:
    """The pairs of each family by their numbers; families in the order of their first pairs."""
    families: dict[Key, list[int]] = {}
    for number, pair in enumerate(pairs):
        families.setdefault(pair.family, []).append(number)
    return families


def units_of(pairs: Sequence[BundlePair], members: Mapping[Key, Sequence[int]], rules: Rules) -> list[Unit]:
    """The units of a comparison: families where verdicts look at the whole table, else single pairs, small ones some
    together."""
    if not rules.whole_table:
        return [Unit(number, members) for number, members in enumerate(_neighbours(pairs))]
    return [Unit(number, tuple(of_family)) for number, of_family in enumerate(members.values())]


def _neighbours(pairs: Sequence[BundlePair]) -> Iterator[tuple[int, ...]]:
    """Numbers of pairs that follow on one another, as many as are small together."""
    together: list[int] = []
    size = 0
    for number, own in enumerate(bytes_of_pairs(pairs)):
        if together and (size + own > SMALL or len(together) == MOST_TOGETHER):
            yield tuple(together)
            together, size = [], 0
        together.append(number)
        size += own
    if together:
        yield tuple(together)


def measure_unit(
    unit: Unit,
    select: Callable[[int], list[Selected]],
    measurer: Measurer,
    families: Families | None = None,
    profiler: MakeProfile[P] | None = None,
) -> UnitResult[P]:
    """Measure all pairs of a unit. With a profiler the aligned arrays of the family are kept until its end."""
    lost = lost_pages()
    if measurer.options.quick:
        found = _settled_unit(unit, select, measurer, families, profiler)
        if found is not None:
            return found
    seen: list[Aligned] = []
    tables: list[RowTable | None] = []

    def see(_: Selected, aligned: Aligned, table: RowTable | None) -> None:
        seen.append(aligned)
        tables.append(table)

    rows: list[Row] = []
    places = [(number, part, one) for number in unit.pairs for part, one in enumerate(select(number))]
    kept = see if profiler is not None else None
    size = 0 if kept is None or families is None else families.bytes_of(unit.pairs)
    alike = {} if size else measure_alike([one for _, _, one in places], measurer, by_channel=profiler is not None)
    if len(alike) < len(places):
        others = [one for at, (_, _, one) in enumerate(places) if at not in alike and one.kept and one.error is None]
        read_together([one.pair for one in others], measurer.planner.contexts)
    for at, (number, part, selected) in enumerate(places):
        one = alike.get(at)
        if one is None:
            rows.append(Row(number, part, measurer.measure(selected, see=kept, together=size)))
            continue
        rows.append(Row(number, part, one.measurement))
        if kept is not None:
            see(selected, one.aligned, one.rows)
    profile: P | None = None
    if profiler is not None and families is not None and seen:
        family = places[0][2].pair.family
        pooled = pool_rows(family, seen, tables)
        if profiler.asks_for(family):
            families.keep(family, None if pooled is None else replace(pooled, look=None))
        profile = None if pooled is None else profiler(pooled, families)
    for at, (_, _, selected) in enumerate(places):
        if at in alike:
            selected.pair.forget()
        else:
            let_go(selected.pair)
    if lost_pages() != lost:
        return UnitResult(
            unit, tuple(Row(number, part, failure(cut(selected.pair))) for number, part, selected in places)
        )
    return UnitResult(unit, tuple(rows), profile)


def _settled_unit(
    unit: Unit,
    select: Callable[[int], list[Selected]],
    measurer: Measurer,
    families: Families | None,
    profiler: MakeProfile[P] | None,
) -> UnitResult[P] | None:
    """A unit that checksums settle; None where a pair of it has to be read."""
    places = [(number, part, one) for number in unit.pairs for part, one in enumerate(select(number))]
    if not places or (profiler is not None and profiler.needs_values(places[0][2].pair.family)):
        return None
    settled = settle([selected for _, _, selected in places], measurer)
    if settled is None:
        return None
    rows = tuple(
        Row(number, part, measurement) for (number, part, _), (measurement, _) in zip(places, settled, strict=True)
    )
    pooled = pool_rows(places[0][2].pair.family, [aligned for _, aligned in settled])
    profile = None if profiler is None or families is None or pooled is None else profiler(pooled, families)
    return UnitResult(unit, rows, profile)
