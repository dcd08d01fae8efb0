"""Which rows of a tap differ: the group of rows that they are, where they are one, else the positions they lie at."""

from __future__ import annotations

from msgspec import Struct

from comparator.diagnosis.rows import Mask, RowLabels, groups_of
from tensortap.distinct import distinct

ALL = 0.9
"""Share of the rows from which all are said to differ."""
PRECISE, COMPLETE = 0.9, 0.8
"""Shares of the rows that are in the group, and of the group that are such rows, from which they are that group."""


class Extent(Struct, frozen=True):
    """The rows whose error is beyond what inputs and rounding explain."""

    rows: int
    of: int
    """Rows that were compared."""
    group: str = ""
    """``decode``, ``last token``, ...: what they have in common; ``all``; empty where they are no group."""
    positions: tuple[int, int] | None = None
    """Lowest and highest position, where positions are known."""
    sequences: int = 0
    """Sequences that have such rows."""


def extent_of(labels: RowLabels, beyond: Mask, compared: Mask) -> Extent | None:
    """None where no single row is beyond: a small factor of all rows, for example."""
    found = beyond & compared
    rows, of = int(found.sum()), int(compared.sum())
    if not rows:
        return None
    if not labels.known:
        return Extent(rows, of, "all" if rows >= ALL * of else "")
    position = labels.position[found]
    place = (int(position.min()), int(position.max()))
    sequences = len(distinct(labels.sequence[found]))
    return Extent(rows, of, _group(labels, found, compared), place, sequences)


def _group(labels: RowLabels, found: Mask, compared: Mask) -> str:
    if found.sum() >= ALL * compared.sum():
        return "all"
    groups = {**groups_of(labels), "prefill": ~labels.decode}
    best, most = "", 0.0
    for name, mask in groups.items():
        inside = int((found & mask).sum())
        precise, complete = inside / int(found.sum()), inside / max(int((mask & compared).sum()), 1)
        if precise >= PRECISE and complete >= COMPLETE and precise + complete > most:
            best, most = name, precise + complete
    return best
