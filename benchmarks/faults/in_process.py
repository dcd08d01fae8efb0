"""Recording a model that runs in this process, with the configs of taps and faults patched into it meanwhile."""

from __future__ import annotations

import contextlib
import shutil
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import patcher
from benchmarks.faults.engines.protocol import Job
from dumper import dumper


def record_each(jobs: Sequence[Job], record: Callable[[Job], None]) -> dict[Path, str]:
    """One job after the other; what went wrong, by run, as ``Engine.record`` returns it."""
    problems = {}
    for job in jobs:
        try:
            record(job)
        except Exception:
            problems[job.run] = traceback.format_exc(limit=-3)
    return problems


def _alone() -> None:
    """Nothing to wait for."""


@contextlib.contextmanager
def recorded(
    run: Path, configs: Sequence[str | Path], rank: int = 0, barrier: Callable[[], object] = _alone
) -> Iterator[None]:
    """What the block computes is recorded to ``run``, in place of what was there; nothing stays patched after it.

    The run appears under its name when the block has ended without an exception on every rank, so that an unfinished
    recording is never taken for one. ``barrier`` returns when all ranks have called it.
    """
    unfinished = run.with_name(f".unfinished-{run.name}")
    if rank == 0:
        run.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(unfinished, ignore_errors=True)
    barrier()
    with patcher.patched(*configs):
        dumper.configure(enable=True, dir=str(unfinished.parent), run=unfinished.name, control=False)
        try:
            yield
        finally:
            dumper.close()
            dumper.configure(enable=False)
    barrier()
    if rank == 0:
        shutil.rmtree(run, ignore_errors=True)
        unfinished.rename(run)
    barrier()
