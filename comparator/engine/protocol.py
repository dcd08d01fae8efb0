"""What an engine is: units of work in, rows of the table of measurements out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Protocol, TypeVar

from comparator.measure.measurement import Failure
from comparator.measure.units import Row, Unit, UnitResult

P = TypeVar("P")
Measure = Callable[[Unit], UnitResult[P]]
"""Measures one unit. Raises ComparatorError or MemoryError for what concerns more than its pairs."""


class Engine(Protocol):
    """Measures units, each as if it were the only one."""

    @property
    def jobs(self) -> int | None:
        """Processes that measure at the same time; None where that is found out later."""

    def results(self, units: Sequence[Unit], measure: Measure[P]) -> Iterator[UnitResult[P]]:
        """The result of every unit, in the order of the units. Raises what measuring raises.

        A unit that cannot be measured at all has a failure for each of its pairs. Closing the iterator ends the work.
        """


class InThisProcess:
    """One unit after the other."""

    jobs = 1

    def results(self, units: Sequence[Unit], measure: Measure[P]) -> Iterator[UnitResult[P]]:
        yield from map(measure, units)


def lost(unit: Unit, why: str) -> UnitResult[P]:
    """The result of a unit whose worker ended twice."""
    message = f"the process that compared it ended without a result, twice ({why})"
    hint = "compare with --jobs 1, or less at once with --filter; out of memory, the system ends processes"
    failure = Failure("worker-ended", "WorkerEnded", message, hint, hint)
    return UnitResult(unit, tuple(Row(pair, 0, failure) for pair in unit.pairs))
