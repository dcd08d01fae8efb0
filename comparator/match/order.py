"""The order of execution over all ranks, from the order in which each rank recorded."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Protocol, TypeVar


class Recorded(Protocol):
    @property
    def step(self) -> int | None: ...
    @property
    def rank(self) -> int: ...


R = TypeVar("R", bound=Recorded)


def execution_order(records: Sequence[R], key: Callable[[R], Hashable]) -> list[R]:
    """Records by step; within a step in the order of the rank that recorded most, the others' put in between.

    ``key`` is equal for the records of several ranks that were made at the same place. A rank that has nothing to do in
    a step may leave taps out, so its places do not count. What only another rank recorded follows what came before it
    there; a rank with nothing in common (another pipeline stage) comes before or after as its number says.
    """
    steps: dict[int | None, dict[int, list[R]]] = {}
    for record in records:
        steps.setdefault(record.step, {}).setdefault(record.rank, []).append(record)
    ordered: list[R] = []
    for step in sorted(steps, key=lambda at: (at is not None, at or 0)):
        ordered.extend(_order_of_step(steps[step], key))
    return ordered


def _order_of_step(ranks: dict[int, list[R]], key: Callable[[R], Hashable]) -> list[R]:
    if len(ranks) == 1:
        return next(iter(ranks.values()))
    reference = max(sorted(ranks), key=lambda rank: len(ranks[rank]))
    keys = {rank: [key(record) for record in found] for rank, found in ranks.items()}
    places = {place: (number, 0) for number, place in enumerate(keys[reference])}
    for rank in sorted(ranks):
        common = any(place in places for place in keys[rank])
        last = (-1, 0) if common or rank < reference else (len(keys[reference]), 0)
        for place in keys[rank]:
            last = places.setdefault(place, (last[0], last[1] + 1))
    keyed = [
        (places[place], rank, number, record)
        for rank, found in ranks.items()
        for number, (place, record) in enumerate(zip(keys[rank], found, strict=True))
    ]
    keyed.sort(key=lambda item: item[:3])
    return [record for *_, record in keyed]
