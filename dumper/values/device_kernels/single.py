"""Launches for one tensor at a time.

The tensor is contiguous, its address a multiple of ``launching.ALIGNMENT``, its device the current one. Nothing waits,
and nothing is allocated but when a launch is prepared for a first device and type, which compiles the kernel.
"""

from __future__ import annotations

from collections.abc import Callable

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

Launch = Callable[[int, int, int, int], None]
"""Called with an address of a tensor, one for the result, one of ``launching.SCRATCH_BYTES`` bytes, zero at first, that
launches of this stream alone use, and the handle of the stream. Raises what Triton raises."""
_COUNTER = 64 * MOST_PROGRAMS


def prepare_statistics(device: int, dtype: torch.dtype, length: int) -> Launch:
    """What has a stream write the statistics of ``length`` elements, in the order of ``measures.STATISTICS``, as
    float64. Raises ValueError for a type that no kernel knows, and what Triton raises."""
    launcher, elements, table = statistics_launcher(device, dtype, False)
    programs = programs_for(length, elements.block, elements.per_processor * processors(device))
    start = launcher.starter(programs)

    def launch(address: int, out: int, scratch: int, stream: int) -> None:
        start(stream, address, length, table, scratch, scratch + _COUNTER, out)

    return launch


def prepare_fingerprint(device: int, nbytes: int) -> Launch:
    """What has a stream write what ``fingerprint.block_sums`` gives for the bytes. Raises what Triton raises."""
    launcher = fingerprint_launcher(device, False)
    programs = programs_for(nbytes, FINGERPRINT_BLOCK, PROGRAMS_PER_PROCESSOR * processors(device))
    start = launcher.starter(programs)

    def launch(address: int, out: int, scratch: int, stream: int) -> None:
        start(stream, address, nbytes, scratch, scratch + _COUNTER, out)

    return launch
