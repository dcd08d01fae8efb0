"""Units in several processes of this machine.

Workers are forks of this process: they have the runs open, and what is planned. Where this process has threads, which
a fork has not, they are new processes that open the runs again. They are given a few neighbouring units at a time,
since a tap is measured against its inputs, and send back numbers, through pipes that nobody else knows.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import signal
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any, Generic, TypeVar

from msgspec import Struct, field

from comparator.engine.opened import Begin, Worker, installed_version, mark_of
from comparator.engine.protocol import Measure, lost
from comparator.engine.schedule import Schedule
from comparator.errors import ComparatorError
from comparator.match.bundles import BundlePair
from comparator.measure.units import Unit, UnitResult

P = TypeVar("P")

_TRIES = 2
_TOGETHER = 0.02
"""Seconds of measuring after which a worker sends what it has found: a message for each small pair would take as long
as the pair."""


class _Worker(Struct, eq=False):
    process: BaseProcess
    pipe: Connection
    given: deque[int] = field(default_factory=deque)
    """Numbers of the units whose results are still to come, in their order."""


class ForkedProcesses(Struct, frozen=True):
    """``jobs`` workers. To be used while this process has no threads that hold locks."""

    jobs: int

    def results(self, units: Sequence[Unit], measure: Measure[P]) -> Iterator[UnitResult[P]]:
        """See ``Engine``. What a worker raised is raised here; one that ends is replaced, and its unit tried again."""
        fork: Any = multiprocessing.get_context("fork")

        def measured(number: int) -> UnitResult[P] | BaseException:
            try:
                return measure(units[number])
            except Exception as error:
                return error

        def start(pipe: Connection, foreign: list[Connection]) -> BaseProcess:
            made: BaseProcess = fork.Process(target=_work, args=(pipe, foreign, lambda numbers: measured), daemon=True)
            made.start()
            return made

        yield from _results(_Pool(units, self.jobs, start, lambda number: number))


class NewProcesses(Struct, frozen=True):
    """``jobs`` workers that begin anew and open the runs themselves, as ``begin`` says; ``pairs`` are those found here,
    which must be the same."""

    jobs: int
    begin: Begin[Any]
    pairs: Sequence[BundlePair]

    def results(self, units: Sequence[Unit], measure: Measure[P]) -> Iterator[UnitResult[P]]:
        """See ``Engine``, and ``ForkedProcesses``. ``measure`` is not used: workers measure as ``begin`` gives."""
        spawn = multiprocessing.get_context("spawn")
        given = self.begin, installed_version(), len(self.pairs)

        def start(pipe: Connection, foreign: list[Connection]) -> BaseProcess:
            made = spawn.Process(target=_work_anew, args=(pipe, *given), daemon=True)
            made.start()
            return made

        yield from _results(_Pool(units, self.jobs, start, lambda at: (units[at], mark_of(units[at], self.pairs))))


def _results(pool: _Pool[P]) -> Iterator[UnitResult[P]]:
    try:
        yield from pool.results()
    finally:
        pool.end()


def _work(pipe: Connection, foreign: Sequence[Connection], ready: Callable[[list[Any]], Callable[[Any], Any]]) -> None:
    """What a worker does, until the process that began it has gone. ``ready`` is told of what is measured next, and
    gives what measures one of it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # of the whole group; the process that began it ends its workers
    for other in foreign:
        other.close()
    with contextlib.suppress(EOFError, OSError):
        while True:
            given = pipe.recv()
            measured = ready([one for _, one in given])
            found, sent = [], time.monotonic()
            for number, one in given:
                found.append((number, measured(one)))
                if time.monotonic() - sent >= _TOGETHER:
                    pipe.send(found)
                    found, sent = [], time.monotonic()
            if found:
                pipe.send(found)


def _work_anew(pipe: Connection, begin: Begin[Any], version: str, count: int) -> None:
    worker: Worker[Any] = Worker()
    problem = worker.begin(begin, version, count)

    def ready(given: list[Any]) -> Callable[[Any], Any]:
        if problem is not None:
            return lambda one: ComparatorError(f"a process that opened the runs again cannot compare them: {problem}")
        worker.expect(given)
        return worker.measured

    _work(pipe, (), ready)


class _Pool(Generic[P]):
    def __init__(
        self,
        units: Sequence[Unit],
        jobs: int,
        start: Callable[[Connection, list[Connection]], BaseProcess],
        parcel: Callable[[int], Any],
    ) -> None:
        """``start`` begins a worker that listens at a pipe, and closes those that are of others; ``parcel``: what it is
        sent of the unit of a number."""
        self._units = units
        self._start = start
        self._parcel = parcel
        self._schedule: Schedule[P] = Schedule(units, jobs)
        self._jobs = min(jobs, len(units))
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
                worker.pipe.send([(number, self._parcel(number)) for number in numbers])

    def _begin(self) -> _Worker | None:
        if len(self._workers) >= self._jobs:
            return None
        ours, theirs = multiprocessing.Pipe()
        try:
            process = self._start(theirs, [ours, *(worker.pipe for worker in self._workers)])
        except OSError:  # there may be no more processes, or there is no memory for one
            ours.close()
            if not self._workers:
                raise
            self._jobs = len(self._workers)
            return None
        finally:
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
                several = worker.pipe.recv()
            except (EOFError, OSError):
                self._ended(worker)
            else:
                for number, found in several:
                    worker.given.remove(number)
                    self._schedule.found[number] = found

    def _ended(self, worker: _Worker) -> None:
        """A worker has ended, while it measured the first of its units, or one whose turn comes soon: what it had
        measured and not sent is measured again, the first one alone."""
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


def _ending(code: int | None) -> str:
    if code is not None and code < 0:
        with contextlib.suppress(ValueError):
            return f"by {signal.Signals(-code).name}"
    return f"with exit code {code}"
