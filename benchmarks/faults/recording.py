"""Makes the recordings that are not there yet."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from benchmarks.faults.engines.protocol import Job
from benchmarks.faults.engines.registry import engine
from benchmarks.faults.places import clean_jobs, fault_jobs

AT_ONCE = 40
"""Jobs given to an engine at once; it may start processes for them, which then serve all of them."""


def record_all(root: Path, engines: Sequence[str], what: Sequence[str], only: str) -> None:
    """Record clean runs and faults; prints what could not be recorded, and goes on."""
    for name in engines:
        jobs: list[Job] = []
        if "clean" in what:
            jobs += clean_jobs(root, name)
        if "faults" in what:
            jobs += fault_jobs(root, name)
        jobs = [job for job in jobs if only in str(job.run) and not job.run.exists()]
        for begin in range(0, len(jobs), AT_ONCE):
            chosen = jobs[begin : begin + AT_ONCE]
            problems = engine(name).record(chosen)
            print(f"{name}: {begin + len(chosen)} of {len(jobs)} recordings, {len(problems)} problems", flush=True)
            for run, problem in problems.items():
                print(f"  {run.relative_to(root)}: {problem}", flush=True)
