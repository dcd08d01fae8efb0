"""Which engine a comparison is worth."""

from __future__ import annotations

import os
from collections.abc import Sequence

from comparator.engine.protocol import Engine, InThisProcess
from comparator.match.bundles import BundlePair, bytes_of_pairs
from comparator.measure.memory import free_memory
from comparator.measure.units import Unit
from tensortap.cores import available_cores

PAIRS_WORTH_IT = 256
BYTES_WORTH_IT = 64 << 20
"""From so many pairs or bytes on it takes longer to compare them than to begin processes."""
MOST_PROCESSES = 256
COPIES = 6
"""Times the recorded bytes of a unit that measuring it takes, roughly: rows in double precision, and what is computed
of them."""


def engine_for(
    jobs: int | None, pairs: Sequence[BundlePair], units: Sequence[Unit], memory: int | None = None
) -> Engine:
    """``jobs`` processes; None: as many as there are cores and memory for (``memory`` bytes, or what is free), where
    that saves time."""
    wanted = processes_worth_it(jobs, pairs, units, memory) if hasattr(os, "fork") else 1
    if wanted < 2:
        return InThisProcess()
    from comparator.engine.processes import ForkedProcesses

    return ForkedProcesses(wanted)


def processes_worth_it(
    jobs: int | None, pairs: Sequence[BundlePair], units: Sequence[Unit], memory: int | None = None
) -> int:
    """How many processes an engine of so many ``jobs`` takes."""
    if jobs is not None:
        return jobs
    wanted = available_cores()
    if wanted < 2:
        return 1
    whole = _bytes_of_runs(pairs)
    if len(pairs) >= PAIRS_WORTH_IT and _that_fit(whole, memory) >= wanted:
        return min(wanted, len(units))  # whichever unit is the largest
    sizes = _sizes(pairs, units)
    if len(pairs) < PAIRS_WORTH_IT and sum(sizes) < BYTES_WORTH_IT:
        return 1
    return min(wanted, len(units), _that_fit(max(sizes, default=0), memory))


def processes_of(engine: Engine, units: Sequence[Unit]) -> int:
    """How many processes share the memory of this machine."""
    return max(1, min(engine.jobs or 1, len(units)))


def threads_of(engine: Engine, units: Sequence[Unit], jobs: int | None) -> int:
    """How many threads of a process of this machine measure a large pair together: as many as cores are left to it,
    ``jobs`` in all; None: all that this process may use."""
    cores = available_cores()
    return max(1, (cores if jobs is None else min(jobs, cores)) // processes_of(engine, units))


def _that_fit(largest: int, memory: int | None) -> int:
    """How many units of this size can be measured at once."""
    free = memory or free_memory()
    return MOST_PROCESSES if free is None or not largest else max(1, free // (COPIES * largest))


def _bytes_of_runs(pairs: Sequence[BundlePair]) -> int:
    """Bytes of all entries in the files, those that take part among them."""
    sides = ([pair.baseline for pair in pairs], [pair.target for pair in pairs])
    first = (next((bundle for bundle in side if bundle is not None), None) for side in sides)
    return sum(bundle.entries.places[0].nbytes for bundle in first if bundle is not None)


def _sizes(pairs: Sequence[BundlePair], units: Sequence[Unit]) -> list[int]:
    """Bytes of each unit in the files."""
    found = bytes_of_pairs(pairs)
    return [sum(map(found.__getitem__, unit.pairs)) for unit in units]
