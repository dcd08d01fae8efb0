"""Units on the workers of a Ray cluster.

A worker opens the runs itself, where it is, and is given a few neighbouring units at a time; rows of numbers come back.
Ray places the workers and says when one has ended, by itself or with its machine.
"""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import socket
import time
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar
from urllib.parse import urlsplit

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
_REACHED = 10.0
"""Seconds for a connection to the cluster to be made."""
_START = "start one with 'ray start --head', or say where it is with --address"
_TRIES = 2
_ASKED_EVERY, _GIVEN_UP = 2.0, 20.0
"""Seconds between two questions to the head of the cluster, and without an answer until it is given up."""
_BEGINNINGS = 3
"""Workers in a row that may end before they have begun."""


@contextlib.contextmanager
def connected(address: str | None) -> Iterator[None]:
    """A connection to the cluster at ``address``, as ``ray.init`` takes it; None: the one of the environment, or
    of this machine. One that there is already is used, and stays.

    Raises ComparatorError where Ray is not installed, or no cluster answers.
    """
    try:
        import ray
    except ImportError as error:
        raise ComparatorError(f"--engine ray needs Ray ({error}); pip install 'tensortap[ray]'") from None
    if ray.is_initialized():
        yield
        return
    _try_to_reach(address)
    if (address or "").startswith("ray://") and importlib.util.find_spec("grpc") is None:
        raise ComparatorError(
            f"--address {address}: ray:// needs Ray's client, which is not here; pip install 'ray[client]' here and on "
            "the head of the cluster, or run this on a machine of the cluster with --address HOST:PORT"
        )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what they say is in the error
            ray.init(address or "auto", log_to_driver=False, logging_level=logging.ERROR)
    except Exception as error:
        hint = "somebody listens there: is it a cluster, and has this process its token (RAY_AUTH_TOKEN)?"
        raise _not_reached(address, str(error), hint if address else _START) from None
    try:
        yield
    finally:
        ray.shutdown()


def _try_to_reach(address: str | None) -> None:
    """Ray waits long for an address where nobody listens, and may then end the process."""
    parts = urlsplit(address or "")
    if "://" not in (address or ""):
        parts = urlsplit(f"//{address or ''}")
    try:
        port = parts.port
        if parts.hostname is None or port is None:
            return  # "auto", "local", or what Ray will refuse
        socket.create_connection((parts.hostname, port), _REACHED).close()
    except (OSError, ValueError) as error:
        raise _not_reached(address, str(error), _START) from None


def _not_reached(address: str | None, why: str, hint: str) -> ComparatorError:
    where = "on this machine" if address is None else f"at {address}"
    first = next(iter(why.strip().splitlines()), "")
    return ComparatorError(f"no Ray cluster {where}: {first}; {hint}")


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


class Head:
    """The head of a cluster, asked now and then whether it is there: where it is gone for a minute, Ray ends the
    process, with an exit code that would be a verdict."""

    def __init__(self, place: tuple[str, int] | None) -> None:
        """``place``: host and port; None: it is not asked."""
        self._place = place
        self._asked = self._answered = time.monotonic()

    @classmethod
    def of_cluster(cls) -> Head:
        """Of the cluster that this process is connected to. Ray's client says itself that the connection broke off."""
        import ray
        from ray.util import client

        through_client: Any = client.ray
        if through_client.is_connected():
            return cls(None)
        host, _, port = str(ray.get_runtime_context().gcs_address).rpartition(":")
        return cls((host.strip("[]"), int(port)))

    def check(self) -> None:
        """Raises ComparatorError where it has not answered for long."""
        now = time.monotonic()
        if self._place is None or now - self._asked < _ASKED_EVERY:
            return
        self._asked = now
        try:
            socket.create_connection(self._place, 1.0).close()
        except OSError as error:
            if now - self._answered > _GIVEN_UP:
                raise lost_connection(f"its head does not answer ({error.strerror or error})") from None
        else:
            self._answered = now


def lost_connection(why: str) -> ComparatorError:
    """What is said where the cluster goes away."""
    return ComparatorError(f"the connection to the Ray cluster broke off: {why}")


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
