"""Launches for one tensor.

The tensor is contiguous, its address a multiple of ``launching.ALIGNMENT``, its device the current one. Nothing waits,
and nothing is allocated but at the first launch for a device and type, which compiles the kernel.
"""

from __future__ import annotations

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

_COUNTER = 64 * MOST_PROGRAMS


def launch_statistics(value: torch.Tensor, out: int, scratch: int, stream: int) -> None:
    """Have a stream write the statistics, in the order of ``measures.STATISTICS``, as float64 to an address.

    ``scratch``: the address of ``launching.SCRATCH_BYTES`` bytes, zero at first, that launches of this stream alone
    use. Raises ValueError for a type that no kernel knows, and what Triton raises.
    """
    device = value.get_device()
    launcher, elements, table = statistics_launcher(device, value.dtype, False)
    length = value.numel()
    programs = programs_for(length, elements.block, PROGRAMS_PER_PROCESSOR * processors(device))
    launcher.launch(programs, stream, value.data_ptr(), length, table, scratch, scratch + _COUNTER, out)


def launch_fingerprint(value: torch.Tensor, out: int, scratch: int, stream: int) -> None:
    """Have a stream write what ``fingerprint.block_sums`` gives for the bytes to an address.

    ``scratch`` as for ``launch_statistics``. Raises what Triton raises.
    """
    device, nbytes = value.get_device(), value.numel() * value.itemsize
    programs = programs_for(nbytes, FINGERPRINT_BLOCK, PROGRAMS_PER_PROCESSOR * processors(device))
    launcher = fingerprint_launcher(device, False)
    launcher.launch(programs, stream, value.data_ptr(), nbytes, scratch, scratch + _COUNTER, out)
