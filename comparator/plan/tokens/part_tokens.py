"""The tokens of the parts that unsharding leaves."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from msgspec import Struct
from msgspec.structs import replace

from comparator.plan.tokens.interface import RowsHold, TokenPart
from comparator.plan.tokens.pass_rows import PassRows, RowMeaning, RowTokens
from comparator.plan.tokens.places import Places


class PartTokens(Struct, frozen=True, eq=False):
    """A part, where its rows lie among all rows of the side, and their tokens."""

    part: TokenPart
    offset: int
    tokens: RowTokens | None
    """None when the layouts do not say which tokens these rows are."""
    last_rows: bool = False
    """Whether there is one row per sequence, that of its last token in the pass."""

    @property
    def indices(self) -> npt.NDArray[np.int64]:
        return np.arange(self.offset, self.offset + self.part.rows, dtype=np.int64)


def tokens_of_parts(places: Places, rows: PassRows, parts: tuple[TokenPart, ...]) -> list[PartTokens]:
    """The tokens of every part, in the order in which the parts were given."""
    whole: dict[_Place, int] = {}
    for part in parts:
        whole[_place(part)] = whole.get(_place(part), 0) + part.rows
    known = {_place(part): _tokens_of(places, rows, replace(part, rows=whole[_place(part)])) for part in parts}
    found = []
    offset = 0
    taken: dict[_Place, int] = {}
    for part in parts:
        place = _place(part)
        tokens, last_rows = known[place]
        if tokens is not None and part.rows != whole[place]:
            # Several records of one step, such as micro batches: each holds the next rows of the pass.
            start = taken.get(place, 0)
            tokens = tokens.take(np.arange(start, start + part.rows))
            taken[place] = start + part.rows
        found.append(PartTokens(part, offset, tokens, last_rows))
        offset += part.rows
    return found


_Place = tuple[int | None, tuple[tuple[str, int], ...], RowsHold]


def _place(part: TokenPart) -> _Place:
    """The same for the records of one step that hold the rows of one pass after each other."""
    return part.step, part.coordinates, part.hold


def in_order_of_steps(parts: list[PartTokens]) -> list[PartTokens]:
    return sorted(parts, key=lambda found: -1 if found.part.step is None else found.part.step)


def _tokens_of(places: Places, rows: PassRows, part: TokenPart) -> tuple[RowTokens | None, bool]:
    """The tokens, and whether they are only the last ones of their sequences."""
    if part.step is None or part.hold == "unknown":
        return None, False
    axes = {axis for axis, _ in part.coordinates}
    for meaning in rows.meanings:
        if meaning.hold != part.hold or not _suits(places, meaning, axes):
            continue
        if meaning.count(part.step, part.rank) == part.rows:
            tokens = meaning.tokens(part.step, part.rank)
            if tokens is not None and len(tokens) == part.rows:
                return tokens, meaning.last_rows
    return rows.graph_tokens(part.hold, part.step, part.rank, part.rows), False


def _suits(places: Places, meaning: RowMeaning, axes: set[str]) -> bool:
    """Whether a part with these token axes can have this meaning: context-parallel parts are parts."""
    if meaning.hold == "gathered":
        return True
    context = {*places.context_axes, *places.split_context_axes}
    return meaning.splits_context == bool(axes & context) if context else True
