"""One launch for many tensors that stay where they are: the buffers that a CUDA graph fills."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from dumper.values.device_kernels.launching import (
    ALIGNMENT,
    FINGERPRINT_BLOCK,
    PROGRAMS_PER_PROCESSOR,
    fingerprint_launcher,
    processors,
    programs_for,
    statistics_launcher,
)
from dumper.values.fingerprint import SUMS_BYTES
from dumper.values.measures import STATISTICS

STATISTICS_BYTES = 8 * len(STATISTICS)


class Segments:
    """Tensors of one device, and what a launch needs to know of them, on the device.

    Makes some small tensors and copies to the device, so that it is to be made outside of captures. It keeps neither
    the tensors nor their memory. Launches of one object are to follow one another, in the order of one stream or by
    events.
    """

    def __init__(
        self, addresses: Sequence[int], lengths: Sequence[int], block: int, device: int, per_processor: int
    ) -> None:
        """``lengths`` in what ``block`` counts, elements or bytes. Raises ValueError for unaligned addresses."""
        if any(address % ALIGNMENT for address in addresses):
            raise ValueError(f"addresses have to be multiples of {ALIGNMENT}")
        # Together they fill the device; each program has as many tiles as that leaves it.
        most = per_processor * processors(device)
        tiles = -(-sum(-(-length // block) for length in lengths) // most)
        rows, owners, first = [], [], 0
        for number, (address, length) in enumerate(zip(addresses, lengths, strict=True)):
            programs = programs_for(length, block * max(1, tiles), most)
            rows.append((address, length, first, programs))
            owners += [number] * programs
            first += programs
        pinned = device >= 0
        where = torch.device("cuda", device) if pinned else torch.device("cpu")
        # From pinned memory, so that the device is not waited for.
        with torch.inference_mode(False):
            table = torch.tensor(rows, dtype=torch.int64, pin_memory=pinned)
            self._segments = table.to(where, non_blocking=True)
            self._owners = torch.tensor(owners, dtype=torch.int32, pin_memory=pinned).to(where, non_blocking=True)
            self._partials = torch.zeros(8 * first, dtype=torch.int64, device=where)
            self._arrived = torch.zeros(len(rows), dtype=torch.int32, device=where)
        self.programs = first
        self.device = device

    def addresses(self) -> tuple[int, int, int, int]:
        """Of the segments, of the segment of each program, of partials and of counters."""
        return tuple(part.data_ptr() for part in (self._segments, self._owners, self._partials, self._arrived))  # type: ignore[return-value]


class StatisticsOfMany:
    """The statistics of tensors of one dtype, contiguous, aligned to ``launching.ALIGNMENT``, on one device."""

    def __init__(self, values: Sequence[torch.Tensor]) -> None:
        """Raises ValueError for a type that no kernel knows, and for unaligned tensors."""
        device, dtype = values[0].get_device(), values[0].dtype
        self._launcher, elements, self._table = statistics_launcher(device, dtype, True)
        lengths = [value.numel() for value in values]
        self._segments = Segments(
            [value.data_ptr() for value in values], lengths, elements.block, device, elements.per_processor
        )
        self.nbytes = STATISTICS_BYTES * len(values)
        """Of the results."""

    def compile(self) -> None:
        """Compile the kernel for the current device now, and not at the first launch. Raises what Triton raises."""
        self._launcher.compile()

    def launch(self, out: int, stream: int) -> None:
        """Have a stream write the statistics of each tensor, one behind the other, to an address. The device is the
        current one. Raises what Triton raises."""
        segments, owners, partials, arrived = self._segments.addresses()
        programs = self._segments.programs
        self._launcher.launch(programs, stream, segments, owners, self._table, partials, arrived, out)


class FingerprintsOfMany:
    """The sums of fingerprints of tensors of any dtypes, contiguous and aligned, on one device."""

    def __init__(self, values: Sequence[torch.Tensor]) -> None:
        """Raises ValueError for unaligned tensors."""
        device = values[0].get_device()
        self._launcher = fingerprint_launcher(device, True)
        lengths = [value.numel() * value.itemsize for value in values]
        self._segments = Segments(
            [value.data_ptr() for value in values], lengths, FINGERPRINT_BLOCK, device, PROGRAMS_PER_PROCESSOR
        )
        self.nbytes = SUMS_BYTES * len(values)
        """Of the results."""

    def compile(self) -> None:
        """Compile the kernel for the current device now, and not at the first launch. Raises what Triton raises."""
        self._launcher.compile()

    def launch(self, out: int, stream: int) -> None:
        """Have a stream write the sums of each tensor, one behind the other, to an address. The device is the current
        one. Raises what Triton raises."""
        segments, owners, partials, arrived = self._segments.addresses()
        self._launcher.launch(self._segments.programs, stream, segments, owners, partials, arrived, out)
