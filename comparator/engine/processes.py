"""Units in several processes of this machine.

Workers are forks of this process: they have the runs open, and what is planned. They are given a few neighbouring units
at a time, since a tap is measured against its inputs, and send back numbers, through pipes that nobody else knows.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import signal
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any, Generic, TypeVar

from comparator.engine.protocol import Measure, lost
from comparator.engine.schedule import Schedule
from comparator.measure.units import Unit, UnitResult

P = TypeVar("P")

_TRIES = 2


@dataclass(eq=False)
class _Worker:
    process: BaseProcess
    pipe: Connection
    given: deque[int] = field(default_factory=deque)
    """Numbers of the units whose results are still to come, in their order."""


@dataclass(frozen=True)
class ForkedProcesses:
    """``jobs`` workers. To be used while this process has no threads that hold locks."""

    jobs: int

    def results(self, units: Sequence[Unit], measure: Measure[P]) -> Iterator[UnitResult[P]]:
        """See ``Engine``. What a worker raised is raised here; one that ends is replaced, and its unit tried again."""
        pool = _Pool(units, measure, self.jobs)
        try:
            yield from pool.results()
        finally:
            pool.end()


class _Pool(Generic[P]):
    def __init__(self, units: Sequence[Unit], measure: Measure[P], jobs: int) -> None:
        self._units = units
        self._measure = measure
        self._schedule: Schedule[P] = Schedule(units, jobs)
        self._jobs = min(jobs, len(units))
        self._context: Any = multiprocessing.get_context("fork")
        self._workers: list[_Worker] = []

    def results(self) -> Iterator[UnitResult[P]]:
        return self._schedule.results(self._give, self._receive)

    def end(self) -> None:
        for worker in self._workers:
            worker.process.kill()
            worker.pipe.close()
        for worker in self._workers:
            worker.process.join()

    def _give(self) -> None:
        """Give units to workers that have none, as far ahead as may be."""
        idle = [worker for worker in self._workers if not worker.given]
        while self._schedule.has_work:
            worker = idle.pop() if idle else self._begin()
            if worker is None:
                return
            numbers = self._schedule.take()
            worker.given.extend(numbers)
            with contextlib.suppress(OSError):  # it has ended, which shows when it is listened to
                worker.pipe.send(numbers)

    def _begin(self) -> _Worker | None:
        if len(self._workers) >= self._jobs:
            return None
        ours, theirs = self._context.Pipe()
        others = [worker.pipe for worker in self._workers]
        process = self._context.Process(target=self._work, args=(theirs, [ours, *others]), daemon=True)
        process.start()
        theirs.close()
        worker = _Worker(process, ours)
        self._workers.append(worker)
        return worker

    def _receive(self) -> None:
        """Take what workers have found."""
        by_pipe = {worker.pipe: worker for worker in self._workers}
        for pipe in wait(list(by_pipe)):
            worker = by_pipe[pipe]  # type: ignore[index]
            try:
                number, found = worker.pipe.recv()
            except (EOFError, OSError):
                self._ended(worker)
            else:
                worker.given.remove(number)
                self._schedule.found[number] = found

    def _ended(self, worker: _Worker) -> None:
        """A worker has ended, while it measured the first of its units."""
        self._workers.remove(worker)
        worker.pipe.close()
        worker.process.join()
        if not worker.given:
            return
        first, *others = worker.given
        tries = self._schedule.tries
        tries[first] = tries.get(first, 0) + 1
        if tries[first] >= _TRIES:
            self._schedule.found[first] = lost(self._units[first], _ending(worker.process.exitcode))
        else:
            others.insert(0, first)
        self._schedule.waiting.extendleft(reversed(others))

    def _work(self, pipe: Connection, foreign: list[Connection]) -> None:
        """What a worker does, until this process has gone."""
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # of the whole group; this process ends its workers
        for other in foreign:
            other.close()
        with contextlib.suppress(EOFError, OSError):
            while True:
                for number in pipe.recv():
                    pipe.send((number, self._measured(self._units[number])))

    def _measured(self, unit: Unit) -> UnitResult[P] | BaseException:
        try:
            return self._measure(unit)
        except Exception as error:
            return error


def _ending(code: int | None) -> str:
    if code is not None and code < 0:
        with contextlib.suppress(ValueError):
            return f"by {signal.Signals(-code).name}"
    return f"with exit code {code}"
