"""What something costs beside something like it in the same process: the gate for a lost factor of two.

Seconds say nothing on a machine that is shared, and neither do ratios of single measurements. So both sides take turns,
some hundred microseconds each, and what is counted is the processor time of the thread: what waits does not count, and
what slows the processor down (other threads of its core, its frequency) meets both sides. Noise only ever adds to
either side: what is looked at is the least of many rounds, and the median of what one side took beside the other in the
same round, whichever is less. A ratio beyond its bound is not believed before many more rounds have said the same.
"""

from __future__ import annotations

import functools
import gc
import math
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

SAMPLE = 2e-4
"""Seconds of the processor that one side takes in a round."""
WARM_UP = 4
"""Calls in which what is made once is made."""
ROUNDS, ATTEMPTS = 40, 8
"""Rounds that are taken at once, and how often more of them are."""
MARGIN = 1.6
"""Of a bound over what was measured: beyond noise, and less than a lost factor of two."""
ELSEWHERE = 3.0
"""The same on a processor of another make than the one that was measured, whose ratios are others."""
MEASURED_ON = ("AuthenticAMD", "25")
"""Vendor and family: Zen 3 and 4."""


class Work(NamedTuple):
    """Something to be measured."""

    call: Callable[[], object]
    between: Callable[[], object] | None = None
    """Called after each sample, which it is no part of."""
    end: Callable[[], object] | None = None
    """Called by those who have made it, once it was measured."""


def ratio(ours: Work, reference: Work, rounds: int = ROUNDS) -> float:
    """Of what ours takes to what the reference takes."""
    collects = gc.isenabled()
    gc.disable()
    try:
        counts = [_calls_of_a_sample(side) for side in (ours, reference)]
        found = [(_sample(ours, counts[0]), _sample(reference, counts[1])) for _ in range(rounds)]
    finally:
        if collects:
            gc.enable()
    of_least: float = min(mine for mine, _ in found) / min(its for _, its in found)
    return min(of_least, statistics.median(mine / its for mine, its in found))


def ratio_within(ours: Work, reference: Work, at_most: float, attempts: int = ATTEMPTS) -> float:
    """The ratio of two kinds of work; where it is beyond the bound it is the least of several attempts, each of which
    takes more rounds than the one before."""
    found = math.inf
    for attempt in range(1, attempts + 1):
        found = min(found, ratio(ours, reference, ROUNDS * attempt))
        if found <= at_most:
            break
    return found


def _calls_of_a_sample(work: Work) -> int:
    _sample(work, WARM_UP)
    count = 1
    while True:
        took = count * min(_sample(work, count) for _ in range(3))
        if took > SAMPLE / 2:
            return max(1, round(count * SAMPLE / took))
        count *= 2


def _sample(work: Work, count: int) -> float:
    """Seconds of a call."""
    call = work.call
    begin = time.thread_time()
    for _ in range(count):
        call()
    took = time.thread_time() - begin
    if work.between is not None:
        work.between()
    return took / count


@functools.cache
def margin() -> float:
    """That of the processor of this machine."""
    return MARGIN if _make() == MEASURED_ON else ELSEWHERE


def _make() -> tuple[str, str]:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return "", ""
    known: dict[str, str] = {}
    for line in lines:
        name, _, value = line.partition(":")
        known.setdefault(name.strip(), value.strip())
    return known.get("vendor_id", ""), known.get("cpu family", "")
