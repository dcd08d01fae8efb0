"""A tap that recorded several times in a step: the n-th record goes with the n-th, or all of a step become one tensor.

Micro batches of a pipeline and guidance in two passes make several records where the other side, with one pass, makes
one. Where both sides recorded equally often, with as many rows each, nothing is joined.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from msgspec.structs import replace

from comparator.errors import PairError
from comparator.match.bundles import Key
from comparator.match.entries import Entry
from comparator.match.keys import BundleKey, Keyed
from comparator.match.numbering import Integers, numbered
from comparator.options import SIDES, Options, Side
from tensortap.dims import DimsError, count_rows, parse_dims

_OCCURRENCE = "occurrence"


def join_occurrences(baseline: Keyed, target: Keyed, options: Options) -> tuple[Keyed, Keyed]:
    """Leave the occurrence out of the keys of records that have to be joined; the others stay as they are."""
    sides = baseline, target
    if not any(side.entries.occurrence.any() for side in sides):
        return sides
    several = {_without_occurrence(one.key) for side in sides for one in side.keys if _names_occurrence(one.key)}
    if not several:
        return sides
    found = [_rows_by_key(side, several) for side in sides]
    joined = {
        key for key in several if all(key in rows for rows in found) and _belong_together(key, sides, found, options)
    }
    return _renamed(baseline, joined), _renamed(target, joined)


def _names_occurrence(key: Key) -> bool:
    return any(name == _OCCURRENCE for name, _ in key)


def _without_occurrence(key: Key) -> Key:
    return tuple(part for part in key if part[0] != _OCCURRENCE)


def _rows_by_key(side: Keyed, wanted: set[Key]) -> dict[Key, Integers]:
    """The rows of these keys, whatever their occurrence, in order."""
    number, plain = numbered([_without_occurrence(one.key) for one in side.keys])
    numbers = number[side.key]
    order = np.argsort(numbers, kind="stable")
    ends = np.searchsorted(numbers[order], np.arange(len(plain) + 1))
    return {
        key: side.row[order[ends[at] : ends[at + 1]]]
        for at, key in enumerate(plain)
        if key in wanted and ends[at] < ends[at + 1]
    }


def _renamed(side: Keyed, joined: set[Key]) -> Keyed:
    renamed = []
    for one in side.keys:
        key = _without_occurrence(one.key)
        family = _without_occurrence(one.family)
        renamed.append(BundleKey(key, family, key) if key in joined else one)
    number, keys = numbered(renamed)
    return replace(side, key=number[side.key], keys=keys, family=numbered(one.family for one in keys)[0])


def _belong_together(
    key: Key, sides: Sequence[Keyed], found: Sequence[Mapping[Key, Integers]], options: Options
) -> bool:
    """Whether both sides recorded in other pieces what has a dimension to join it along."""
    counts = []
    for name, side, rows in zip(SIDES, sides, found, strict=True):
        counted = _rows_by_occurrence(side, rows[key], name, options)
        if counted is None:
            return False
        counts.append(counted)
    one, other = counts
    if set(one) != set(other):
        return True
    return len(one) > 1 and one != other and sum(one.values()) == sum(other.values())


def _rows_by_occurrence(side: Keyed, row: Integers, name: Side, options: Options) -> dict[int, int] | None:
    """Rows of the first rank, by occurrence; None where something has no token dimension, or is no whole tensor."""
    entries = side.entries
    kinds = entries.kind[row]
    of_kind = {number: _rows(entries.kinds[number], name, options) for number in sorted(set(kinds.tolist()))}
    if None in of_kind.values():
        return None
    ranks = entries.rank[row]
    first = ranks == ranks.min()
    rows: dict[int, int] = {}
    for number, occurrence in zip(kinds[first].tolist(), entries.occurrence[row][first].tolist(), strict=True):
        rows[occurrence] = rows.get(occurrence, 0) + (of_kind[number] or 0)
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
