"""The same comparison on other machines, where the runs have the same paths."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from comparator.engine.cluster import RayCluster
from comparator.engine.protocol import Measure
from comparator.errors import ComparatorError
from comparator.match.bundles import BundlePair
from comparator.options import Options
from comparator.pipeline import Prepared, prepare
from comparator.verdict.profiles import FamilyProfile
from dumper.reading.open import open_run
from dumper.reading.protocol import Run


@dataclass(frozen=True)
class OpenedAgain:
    """How another process comes by the same comparison: the runs by their paths, and the options."""

    baseline: str
    target: str
    options: Options

    @classmethod
    def of(cls, prepared: Prepared) -> OpenedAgain:
        baseline, target = (_path_elsewhere(run) for run in (prepared.baseline, prepared.target))
        config = prepared.options.map_config
        return cls(baseline, target, replace(prepared.options, map_config=config and config.absolute()))

    def __call__(self) -> tuple[Measure[FamilyProfile], Sequence[BundlePair]]:
        """What measures a unit, and the pairs. Raises ComparatorError."""
        try:
            prepared = prepare(open_run(self.baseline), open_run(self.target), self.options)
        except (OSError, ValueError) as error:
            raise ComparatorError(str(error)) from None
        return prepared.profiling(), prepared.pairs


def _path_elsewhere(run: Run) -> str:
    """The path of a run, wherever a process works."""
    return str(run.path.absolute()) if isinstance(run.path, Path) else str(run.path)


def on_cluster(prepared: Prepared, jobs: int | None = None) -> RayCluster:
    """The engine that compares on the Ray cluster that this process is connected to (``engine.cluster.connected``)."""
    return RayCluster(OpenedAgain.of(prepared), prepared.pairs, jobs)
