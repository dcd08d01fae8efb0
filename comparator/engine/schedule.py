"""Which units are given out next, and in what order their results are handed on. Whoever measures is not known here."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Generic, TypeVar

from comparator.measure.units import Unit, UnitResult

P = TypeVar("P")

MOST_AT_ONCE = 32
"""Units that a worker is given at a time."""
AHEAD = 4
"""Times what all workers are given at a time: so far ahead of the first missing result measuring may be."""


class Schedule(Generic[P]):
    """Of ``jobs`` workers."""

    def __init__(self, units: Sequence[Unit], jobs: int) -> None:
        self._at_once = max(1, min(MOST_AT_ONCE, len(units) // (4 * max(1, jobs))))
        self._jobs = max(1, jobs)
        self._most_ahead = AHEAD * jobs * self._at_once
        self._count = len(units)
        self._next = 0
        """The first unit whose result was not handed on."""
        self.waiting: deque[int] = deque(range(len(units)))
        self.tries: dict[int, int] = {}
        """Units that were with a worker when it ended; each is given alone from then on."""
        self.found: dict[int, UnitResult[P] | BaseException] = {}

    @property
    def has_work(self) -> bool:
        """Whether a unit waits, and measuring is not too far ahead."""
        return bool(self.waiting) and self.waiting[0] < self._next + self._most_ahead

    def take(self) -> list[int]:
        """Neighbouring units for one worker, where there is work; fewer towards the end, which comes to all at once."""
        waiting, tries = self.waiting, self.tries
        at_once = min(self._at_once, len(waiting) // (2 * self._jobs))
        numbers = [waiting.popleft()]
        alone = numbers[0] in tries
        while not alone and waiting and len(numbers) < at_once and waiting[0] not in tries:
            numbers.append(waiting.popleft())
        return numbers

    def results(self, give: Callable[[], None], receive: Callable[[], None]) -> Iterator[UnitResult[P]]:
        """The results in the order of the units. ``give`` gives out what it can, ``receive`` waits for what is found.

        Raises what was found in place of a result.
        """
        while self._next < self._count:
            give()
            found = self.found.pop(self._next, None)
            if found is None:
                receive()
            elif isinstance(found, BaseException):
                raise found
            else:
                self._next += 1
                yield found
