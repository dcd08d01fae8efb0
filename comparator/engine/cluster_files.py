"""Files of runs that the workers of a Ray cluster look at: their indexes are read side by side, where the files lie."""

from __future__ import annotations

import contextlib
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from comparator.engine.cluster import PATIENCE, cores_of_cluster, last_line
from comparator.engine.cluster_connection import Head, lost_connection
from comparator.engine.opened import installed_version
from comparator.errors import ComparatorError
from dumper.storage.places import Place
from tensortap.lost_pages import watching

T = TypeVar("T")
_Function = Callable[[Sequence[Place]], Sequence[T | OSError]]

_MOST_TOGETHER = 256
"""Files that a worker looks at in one task."""
_TASKS_PER_WORKER = 4
"""At least, where there are enough files: they do not take equally long."""


@dataclass(frozen=True)
class FilesOnCluster:
    """``dumper.storage.places.Workers``, on the cluster that this process is connected to.

    ``jobs``: at most so many at a time; None: one for each core of the cluster.
    """

    jobs: int | None = None

    def __call__(self, function: _Function[T], places: Sequence[Place]) -> Iterator[T | OSError]:
        """See ``Workers``. A task whose worker ends is done again on another one.

        Raises ComparatorError where no worker can do it, or one cannot read what can be read here.
        """
        jobs = cores_of_cluster() if self.jobs is None else self.jobs
        together = max(1, min(_MOST_TOGETHER, len(places) // (_TASKS_PER_WORKER * jobs)))
        parts = [places[start : start + together] for start in range(0, len(places), together)]
        for part, found in zip(parts, _in_order(function, parts, jobs), strict=True):
            for place, one in zip(part, found, strict=True):
                yield _here(function, place, one) if isinstance(one, OSError) else one


def _here(function: _Function[T], place: Place, there: OSError) -> T | OSError:
    """Why a file cannot be read, as it is said of it here."""
    (found,) = function([place])
    if isinstance(found, OSError):
        return found
    raise ComparatorError(
        f"a worker of the Ray cluster cannot read {place}, which can be read here: {there.strerror or there}; runs "
        "have the same path on all machines of the cluster"
    )


def _in_order(function: _Function[T], parts: Sequence[Sequence[Place]], jobs: int) -> Iterator[Sequence[T | OSError]]:
    import ray

    task: Any = ray.remote(num_cpus=1, max_retries=2)(_look)
    waiting, under_way, head = deque(parts), deque[Any](), Head.of_cluster()
    try:
        while waiting or under_way:
            while waiting and len(under_way) < jobs:
                part = [place.absolute() if isinstance(place, Path) else place for place in waiting.popleft()]
                under_way.append(task.remote(installed_version(), function, part))
            yield _result(ray, under_way[0], head)
            under_way.popleft()
    finally:
        for one in under_way:
            with contextlib.suppress(Exception):  # it may be done, and the cluster may be gone
                ray.cancel(one, force=True)


def _result(ray: Any, task: Any, head: Head) -> Any:
    since = time.monotonic()
    try:
        while not ray.wait([task], timeout=1.0)[0]:
            head.check()
            if time.monotonic() - since > PATIENCE:
                raise ComparatorError(
                    f"no worker of the Ray cluster read a file within {PATIENCE:.0f} s; 'ray status' shows what its "
                    "cores do"
                )
        found = ray.get(task)
    except ConnectionError as error:
        raise lost_connection(last_line(error)) from None
    except ray.exceptions.RayError as error:
        raise ComparatorError(
            "the workers of the Ray cluster cannot read the runs; the same tensortap must be installed there: "
            f"{last_line(error)}"
        ) from None
    if isinstance(found, str):
        raise ComparatorError(f"a worker of the Ray cluster cannot read the runs: {found}")
    return found


def _look(version: str, function: _Function[T], places: Sequence[Place]) -> Sequence[T | OSError] | str:
    """What a worker does. Returns text where it cannot do it."""
    here = installed_version()
    if here != version:
        return f"it has tensortap {here}, and this is {version}; install the same on the cluster"
    with watching(everywhere=True):
        return function(places)
