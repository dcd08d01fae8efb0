"""The order of execution over all ranks, from the order in which each rank recorded."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import xxhash

from comparator.match.numbering import Integers, stable_order

_KNOWN_STEPS = 256
"""Orders of steps that are remembered: most steps record the same taps."""


def execution_order(step: Integers, rank: Integers, place: Integers) -> Integers:
    """The numbers of records by step; within a step in the order of the rank that recorded most, the others' put in
    between.

    Takes a number per record: its step, its rank, and its place, which is equal for the records of several ranks that
    were made at the same place. A rank that has nothing to do in a step may leave taps out, so its places do not count.
    What only another rank recorded follows what came before it there; a rank with nothing in common (another pipeline
    stage) comes before or after as its number says, and one that begins with more than is common (a stage that has
    another copy of tied weights) does so before what is common.
    """
    if not len(step):
        return np.empty(0, np.int64)
    ordered = stable_order(step, rank)
    step, rank, place = step[ordered], rank[ordered], place[ordered]
    ends = np.append(np.flatnonzero(step[1:] != step[:-1]) + 1, len(step)).tolist()
    known: dict[tuple[bytes, bytes], Integers] = {}
    start = 0
    for end in ends:
        ranks, places = rank[start:end], place[start:end]
        if ranks[0] != ranks[-1]:
            mark = xxhash.xxh3_128_digest(ranks.tobytes()), xxhash.xxh3_128_digest(places.tobytes())
            if mark not in known:
                if len(known) >= _KNOWN_STEPS:
                    del known[next(iter(known))]
                known[mark] = _order_of_step(ranks, places)
            ordered[start:end] = ordered[start:end][known[mark]]
        start = end
    return ordered


def _order_of_step(rank: Integers, place: Integers) -> Integers:
    """The order of the records of one step, which come rank by rank."""
    starts = [0, *(np.flatnonzero(rank[1:] != rank[:-1]) + 1).tolist(), len(rank)]
    parts = [place[start:end].tolist() for start, end in pairwise(starts)]
    reference = max(range(len(parts)), key=lambda number: len(parts[number]))
    found = {at: (number, 0) for number, at in enumerate(parts[reference])}
    seen: set[tuple[int, ...]] = {tuple(parts[reference])}
    for number, part in enumerate(parts):
        if tuple(part) not in seen:
            seen.add(tuple(part))
            _put_between(found, part, before=number < reference, length=len(parts[reference]))
    main, behind = (np.array([found[at][key] for part in parts for at in part], np.int64) for key in (0, 1))
    return np.lexsort((rank, behind, main))


def _put_between(found: dict[int, tuple[int, int]], part: Sequence[int], *, before: bool, length: int) -> None:
    common = next((number for number, at in enumerate(part) if at in found), len(part))
    last = (-1, 0) if common < len(part) or before else (length, 0)
    if not before and len(part) > common > len(part) // 2:
        last = found[part[common]][0] - 1, length
    for at in part:
        last = found.setdefault(at, (last[0], last[1] + 1))
