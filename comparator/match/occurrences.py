"""A tap that recorded several times in a step: the n-th record goes with the n-th, or all of a step become one tensor.

Micro batches of a pipeline and guidance in two passes make several records where the other side, with one pass, makes
one. Where both sides recorded equally often, with as many rows each, nothing is joined.
"""

from __future__ import annotations

from collections.abc import Sequence

from msgspec.structs import replace

from comparator.errors import PairError
from comparator.match.bundles import Entry, Key
from comparator.match.keys import Keyed
from comparator.options import SIDES, Options, Side
from tensortap.dims import DimsError, count_rows, parse_dims

_OCCURRENCE = "occurrence"
Sides = tuple[Sequence[Keyed], Sequence[Keyed]]


def join_occurrences(baseline: list[Keyed], target: list[Keyed], options: Options) -> tuple[list[Keyed], list[Keyed]]:
    """Leave the occurrence out of the keys of records that have to be joined; the others stay as they are."""
    if not any(one.entry.record.occurrence for one in (*baseline, *target)):
        return baseline, target
    groups: dict[Key, tuple[list[Keyed], list[Keyed]]] = {}
    for number, side in enumerate((baseline, target)):
        for one in side:
            groups.setdefault(_without_occurrence(one.key), ([], []))[number].append(one)
    joined = {key for key, sides in groups.items() if all(sides) and _belong_together(sides, options)}
    return _renamed(baseline, joined), _renamed(target, joined)


def _renamed(side: list[Keyed], joined: set[Key]) -> list[Keyed]:
    found = []
    for one in side:
        key = _without_occurrence(one.key)
        found.append(replace(one, key=key, shared=key) if key in joined else one)
    return found


def _without_occurrence(key: Key) -> Key:
    return tuple(part for part in key if part[0] != _OCCURRENCE)


def _belong_together(sides: Sides, options: Options) -> bool:
    """Whether both sides recorded in other pieces what has a dimension to join it along."""
    counts = []
    for side, found in zip(SIDES, sides, strict=True):
        rows = _rows_by_occurrence(found, side, options)
        if rows is None:
            return False
        counts.append(rows)
    one, other = counts
    if set(one) != set(other):
        return True
    return len(one) > 1 and one != other and sum(one.values()) == sum(other.values())


def _rows_by_occurrence(found: Sequence[Keyed], side: Side, options: Options) -> dict[int, int] | None:
    """Rows of the first rank, by occurrence; None where something has no token dimension, or is no whole tensor."""
    rows: dict[int, int] = {}
    first = min(one.entry.rank for one in found)
    for one in found:
        count = _rows(one.entry, side, options)
        if count is None:
            return None
        if one.entry.rank == first:
            occurrence = one.entry.record.occurrence
            rows[occurrence] = rows.get(occurrence, 0) + count
    return rows


def _rows(entry: Entry, side: Side, options: Options) -> int | None:
    text = options.dims_for(entry.name, entry.dims, side)
    if text is None or not entry.is_tensor or entry.record.level != "full":
        return None
    try:
        positions = parse_dims(text).token_dimensions
        return count_rows(entry.shape, positions) if positions and len(entry.shape) > max(positions) else None
    except (DimsError, PairError):
        return None
