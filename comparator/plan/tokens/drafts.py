"""Trees of drafts: which rows of a verification are on the branch that was accepted.

A pass that verifies a tree computes several tokens for one position, and only one of them becomes part of the sequence.
How many were accepted is known from where the next pass begins; which, from the tokens of the same request in the other
run. Every row at or below the first position that has several drafts gets a number for its *path*, the tokens from the
root to the row. It is the same in every order in which the rows of a pass are put together.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from msgspec import Struct

from dumper.layout import TokenLayout

VERIFY_MODE = "target_verify"
NO_PATH = 0
"""Of a row that no draft of its position competes with."""
LOST_PATH = 1
"""Of a row whose branch is not known, because the layout does not tell which draft follows which."""

_FACTOR, _BITS = 0x9E3779B97F4A7C15, (1 << 63) - 1
Integers = npt.NDArray[np.int64]


class Fork(Struct):
    """The drafts of one sequence in one pass, in the order of their rows; the first is the root."""

    episode: int
    start: int
    """Position of the root."""
    depth: list[int]
    parent: list[int]
    """Per draft the number of the one that it follows, -1 for the root."""
    token: list[int]
    path: list[int]
    accepted: int | None = None
    """How many drafts behind the root were accepted; None when no later pass tells."""

    def follow(self, tokens: Integers) -> tuple[list[int], int | None]:
        """The drafts on the branch that has these tokens (by position, negative where not known), without the root.

        The second result is the position at which an accepted draft has another token, whichever it is; else None.
        """
        possible = self._possible()
        at, found = 0, list[int]()
        for depth in range(1, max(self.depth) + 1 if self.accepted is None else self.accepted + 1):
            children = [node for node in possible if self.parent[node] == at]
            wanted = int(tokens[self.start + depth]) if self.start + depth < len(tokens) else -1
            if wanted >= 0:
                matching = [node for node in children if self.token[node] == wanted]
                if not matching:
                    return found, None if self.accepted is None else self.start + depth
                at = matching[0]
            elif len(children) == 1 and self.accepted is not None:
                at = children[0]
            else:
                break
            found.append(at)
        return found, None

    def _possible(self) -> list[int]:
        """Drafts on a branch that is as long as what was accepted; all, where that is not known."""
        if self.accepted is None:
            return list(range(len(self.depth)))
        kept = set[int]()
        for leaf, depth in enumerate(self.depth):
            node = leaf if depth == self.accepted else -1
            while node >= 0 and node not in kept:
                kept.add(node)
                node = self.parent[node]
        return sorted(kept)


def paths(
    layout: TokenLayout, sequence: npt.NDArray[np.int32], position: Integers, token: Integers, seed: int
) -> Integers:
    """Per row of a pass its path, ``NO_PATH`` for rows that are no drafts with competitors. Shape ``(rows,)``.

    ``seed`` is a number of the pass, so that paths of different passes differ.
    """
    found = np.full(len(sequence), NO_PATH, np.int64)
    for index, rows in _trees(layout, sequence, position):
        parents = _parents(layout, rows)
        numbers: list[int] = []
        first = _first_fork(position[rows])
        for node, row in enumerate(rows.tolist()):
            if parents is None:
                number = LOST_PATH
            else:
                before = seed * 0x1F35 + index if parents[node] < 0 else numbers[parents[node]]
                number = (before * _FACTOR + int(token[row]) + 2) & _BITS
            numbers.append(number)
            if position[row] >= first:
                found[row] = number
    return found


def forks(
    layout: TokenLayout, sequence: npt.NDArray[np.int32], position: Integers, token: Integers, path: Integers
) -> dict[int, Fork]:
    """Per sequence of the pass that has competing drafts, these; the number of the episode is left to be set."""
    found: dict[int, Fork] = {}
    for index, rows in _trees(layout, sequence, position):
        parents = _parents(layout, rows)
        if parents is not None:
            start = int(position[rows[0]])
            found[index] = Fork(
                -1, start, (position[rows] - start).tolist(), parents, token[rows].tolist(), path[rows].tolist()
            )
    return found


def _trees(
    layout: TokenLayout, sequence: npt.NDArray[np.int32], position: Integers
) -> list[tuple[int, npt.NDArray[np.int64]]]:
    """Sequences that have several rows of one position in the pass, and their rows."""
    if layout.forward_mode != VERIFY_MODE or layout.row_position is None:
        return []
    found = []
    for index in range(len(layout.sequences)):
        rows = np.flatnonzero(sequence == index)
        if len(rows) and len(np.unique(position[rows])) < len(rows):
            found.append((index, rows))
    return found


def _parents(layout: TokenLayout, rows: Integers) -> list[int] | None:
    """Per row the number, within these rows, of the one that it follows; None where the layout does not say."""
    recorded: Any = layout.extra.get("parents")
    if not isinstance(recorded, list) or len(recorded) <= int(rows[-1]):
        return None
    number_of = {row: number for number, row in enumerate(rows.tolist())}
    # What a file says of itself may be anything.
    parents = [number_of.get(recorded[row], -1) if isinstance(recorded[row], int) else -1 for row in number_of]
    whole = parents[0] < 0 and all(0 <= parent < node for node, parent in enumerate(parents) if node)
    return parents if whole else None


def _first_fork(position: Integers) -> int:
    """The first position that several rows have."""
    values, counts = np.unique(position, return_counts=True)
    return int(values[counts > 1][0])
