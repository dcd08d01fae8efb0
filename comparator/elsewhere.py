"""The same comparison in processes that open the runs again: on other machines, where the runs have the same paths, and
on this one, where the runs lie on object storage."""

from __future__ import annotations

from pathlib import Path

from msgspec import Struct
from msgspec.structs import replace

from comparator.engine.choice import processes_worth_it
from comparator.engine.cluster import RayCluster, cores_of_largest_machine
from comparator.engine.opened import Opened
from comparator.engine.processes import NewProcesses
from comparator.engine.protocol import Engine
from comparator.errors import ComparatorError
from comparator.options import Options
from comparator.prepared import Prepared, prepare
from comparator.verdict.profiles import FamilyProfile
from dumper.reading.open import open_run
from dumper.reading.protocol import Run


class OpenedAgain(Struct, frozen=True):
    """How another process comes by the same comparison: the runs by their paths, and the options."""

    baseline: str
    target: str
    options: Options
    processes: int = 1
    """How many share the memory of ``options`` on a machine."""

    @classmethod
    def of(cls, prepared: Prepared, processes: int = 1) -> OpenedAgain:
        baseline, target = (_path_elsewhere(run) for run in (prepared.baseline, prepared.target))
        config = prepared.options.map_config
        return cls(baseline, target, replace(prepared.options, map_config=config and config.absolute()), processes)

    def __call__(self) -> Opened[FamilyProfile]:
        """Open the runs and plan. Raises ComparatorError."""
        try:
            prepared = prepare(open_run(self.baseline), open_run(self.target), self.options)
        except (OSError, ValueError) as error:
            raise ComparatorError(str(error)) from None
        prepared = replace(prepared, processes=self.processes)
        return Opened(prepared.profiling(), prepared.pairs, prepared.expect)


def _path_elsewhere(run: Run) -> str:
    """The path of a run, wherever a process works."""
    return str(run.path.absolute()) if isinstance(run.path, Path) else str(run.path)


def on_cluster(prepared: Prepared, jobs: int | None = None) -> RayCluster:
    """The engine that compares on the Ray cluster that this process is connected to."""
    together = cores_of_largest_machine()
    if jobs is not None:
        together = min(together, jobs)
    return RayCluster(OpenedAgain.of(prepared, together), prepared.pairs, jobs)


def on_this_machine(prepared: Prepared, jobs: int | None = None) -> Engine | None:
    """New processes, where a run lies on object storage and they are worth it; else None: forks of this process, or
    none, as ``Prepared.comparing`` has it. What reads from object storage has threads, which a fork has not."""
    if not (prepared.baseline.is_stored or prepared.target.is_stored):
        return None
    processes = processes_worth_it(jobs, prepared.pairs, prepared.units, prepared.options.memory)
    if processes < 2:
        return None
    return NewProcesses(processes, OpenedAgain.of(prepared, processes), prepared.pairs)
