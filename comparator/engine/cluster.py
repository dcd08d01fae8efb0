"""Units on the workers of a Ray cluster.

A worker opens the runs itself, where it is, and is given a few neighbouring units at a time; rows of numbers come back.
Ray places the workers and says when one has ended, by itself or with its machine.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from comparator.engine.cluster_connection import Head, lost_connection
from comparator.engine.opened import Begin, Worker, installed_version, mark_of
from comparator.engine.protocol import Measure, lost
from comparator.engine.schedule import Schedule
from comparator.errors import ComparatorError
from comparator.match.bundles import BundlePair
from comparator.measure.units import Unit, UnitResult

P = TypeVar("P")

MOST_WORKERS = 4096
PATIENCE = 300.0
"""Seconds for the first worker to begin."""
_TRIES = 2
_BEGINNINGS = 3
"""Workers in a row that may end before they have begun."""


@dataclass(frozen=True)
class RayCluster:
    """Workers of the cluster that this process is connected to.

    ``begin`` opens the runs on each; ``pairs`` are those found here, which must be the same. ``jobs``: workers; None:
    one for each core of the cluster.
    """

    begin: Begin[Any]
    pairs: Sequence[BundlePair]
    jobs: int | None = None

    def results(self, units: Sequence[Unit], measure: Measure[P]) -> Iterator[UnitResult[P]]:
        """See ``Engine``. ``measure`` is not sent: workers measure with what ``begin`` gives.

        The units of a worker that ends are tried again on others. Raises what a worker raised, and ComparatorError
        where no worker begins or one sees other runs.
        """
        pool: _Pool[P] = _Pool(units, self)
        try:
            yield from pool.results()
        finally:
            pool.end()


@dataclass(eq=False)
class _Task:
    """What a worker was given: units by number; none where it is to begin."""

    worker: Any
    units: list[int] = field(default_factory=list)


class _Pool(Generic[P]):
    def __init__(self, units: Sequence[Unit], engine: RayCluster) -> None:
        import ray

        self._ray: Any = ray
        self._units = units
        self._engine = engine
        self._jobs = min(cores_of_cluster() if engine.jobs is None else engine.jobs, len(units), MOST_WORKERS)
        self._schedule: Schedule[P] = Schedule(units, self._jobs)
        self._actor: Any = ray.remote(num_cpus=1, max_restarts=0)(Worker)
        self._workers: list[Any] = []
        self._idle: list[Any] = []
        self._begun = 0
        self._ended_early = 0
        self._tasks: dict[Any, _Task] = {}
        self._head = Head.of_cluster()

    def results(self) -> Iterator[UnitResult[P]]:
        return self._schedule.results(self._give, self._receive)

    def end(self) -> None:
        for worker in self._workers:
            with contextlib.suppress(Exception):  # it may be gone, and so may the cluster
                self._ray.kill(worker)

    def _begin(self) -> None:
        """Ask for workers in place of those that are missing, while there is something for them."""
        while len(self._workers) < self._jobs and len(self._workers) < len(self._schedule.waiting) + len(self._tasks):
            worker = self._actor.remote()
            self._workers.append(worker)
            begun = worker.begin.remote(self._engine.begin, installed_version(), len(self._engine.pairs))
            self._tasks[begun] = _Task(worker)

    def _give(self) -> None:
        """Give units to workers that have none, as far ahead as may be."""
        self._begin()
        while self._idle and self._schedule.has_work:
            worker = self._idle.pop()
            task = _Task(worker, self._schedule.take())
            marked = [(self._units[number], mark_of(self._units[number], self._engine.pairs)) for number in task.units]
            self._tasks[worker.measure.remote(marked)] = task

    def _receive(self) -> None:
        """Take what workers have found."""
        since = time.monotonic()
        while not (done := self._done()):
            if not self._begun and time.monotonic() - since > PATIENCE:
                raise ComparatorError(
                    f"no worker of the Ray cluster began within {PATIENCE:.0f} s; 'ray status' shows what its cores do"
                )
        for reference in done:
            task = self._tasks.pop(reference)
            try:
                found = self._ray.get(reference)
            except self._ray.exceptions.RayTaskError as error:
                raise ComparatorError(f"a worker of the Ray cluster failed: {last_line(error)}") from None
            except self._ray.exceptions.RayError as error:
                self._ended(task, error)
            else:
                self._take(task, found)

    def _done(self) -> list[Any]:
        """What was done within a second."""
        self._head.check()
        try:
            done: list[Any] = self._ray.wait(list(self._tasks), timeout=1.0)[0]
        except ConnectionError as error:
            raise lost_connection(last_line(error)) from None
        return done

    def _take(self, task: _Task, found: Any) -> None:
        self._idle.append(task.worker)
        self._ended_early = 0
        if task.units:
            self._schedule.found.update(zip(task.units, found, strict=True))
            return
        if found is not None:
            raise ComparatorError(f"a worker of the Ray cluster cannot compare these runs: {found}")
        self._begun += 1

    def _ended(self, task: _Task, error: Exception) -> None:
        """A worker has ended, by itself or with its machine; its units are tried again, each by itself."""
        self._workers.remove(task.worker)
        with contextlib.suppress(Exception):
            self._ray.kill(task.worker)
        if not task.units:
            self._ended_early += 1
            if self._ended_early >= _BEGINNINGS:
                raise ComparatorError(
                    "the workers of the Ray cluster end before they have begun; the same tensortap must be installed "
                    f"there: {last_line(error)}"
                )
            return
        for number in task.units:
            # Of several units, it is not known which one the worker ended at.
            self._schedule.tries[number] = self._schedule.tries.get(number, 0) + (len(task.units) == 1)
        if self._schedule.tries[task.units[0]] >= _TRIES:
            self._schedule.found[task.units[0]] = lost(self._units[task.units[0]], last_line(error))
        else:
            self._schedule.waiting.extendleft(reversed(task.units))


def cores_of_cluster() -> int:
    """Cores of the cluster that this process is connected to."""
    import ray

    resources: Any = ray.cluster_resources  # untyped
    return max(1, int(resources().get("CPU", 1)))


def cores_of_largest_machine() -> int:
    """How many workers may share the memory of a machine of the cluster: each has a core."""
    import ray

    nodes: Any = ray.nodes  # untyped
    return max((int(node["Resources"].get("CPU", 1)) for node in nodes() if node["Alive"]), default=1)


def last_line(error: Exception) -> str:
    """What of a message of Ray's, which holds tracebacks, says what happened."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
