"""Launches for one tensor at a time.

The tensor is contiguous, its address a multiple of ``launching.ALIGNMENT``, its device the current one. Nothing waits,
and nothing is allocated but when a launch is prepared for a first device and type, which compiles the kernel.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from dumper.values.device_kernels.launching import (
    FINGERPRINT_BLOCK,
    MOST_PROGRAMS,
    PROGRAMS_PER_PROCESSOR,
    fingerprint_launcher,
    processors,
    programs_for,
    statistics_launcher,
)
from dumper.values.direct_launch import DirectLaunch

_COUNTER = 64 * MOST_PROGRAMS


@dataclass(frozen=True)
class Launch:
    """A kernel for tensors of one type and length on one device."""

    run: Callable[[int, int, int, int], None]
    """Called with an address of a tensor, one for the result, one of ``launching.SCRATCH_BYTES`` bytes, zero at first,
    that launches of this stream alone use, and the handle of the stream. Raises what Triton raises."""
    direct: Callable[[int], DirectLaunch | None]
    """The same for compiled code, with the address of those bytes; None where Triton alone can launch it."""


def prepare_statistics(device: int, dtype: torch.dtype, length: int) -> Launch:
    """What has a stream write the statistics of ``length`` elements, in the order of ``measures.STATISTICS``, as
    float64. Raises ValueError for a type that no kernel knows, and what Triton raises."""
    launcher, elements, table = statistics_launcher(device, dtype, False)
    programs = programs_for(length, elements.block, elements.per_processor * processors(device))
    start = launcher.starter(programs)

    def run(address: int, out: int, scratch: int, stream: int) -> None:
        start(stream, address, length, table, scratch, scratch + _COUNTER, out)

    def direct(scratch: int) -> DirectLaunch | None:
        return launcher.direct(programs, 0, length, table, scratch, scratch + _COUNTER, 0)

    return Launch(run, direct)


def prepare_fingerprint(device: int, nbytes: int) -> Launch:
    """What has a stream write what ``fingerprint.block_sums`` gives for the bytes. Raises what Triton raises."""
    launcher = fingerprint_launcher(device, False)
    programs = programs_for(nbytes, FINGERPRINT_BLOCK, PROGRAMS_PER_PROCESSOR * processors(device))
    start = launcher.starter(programs)

    def run(address: int, out: int, scratch: int, stream: int) -> None:
        start(stream, address, nbytes, scratch, scratch + _COUNTER, out)

    def direct(scratch: int) -> DirectLaunch | None:
        return launcher.direct(programs, 0, nbytes, scratch, scratch + _COUNTER, 0)

    return Launch(run, direct)
