"""Several values to the writer at once: one copy or one launch, one item of its queue."""

from __future__ import annotations

from collections.abc import Callable

import torch

from dumper.format.status import StatusBlock
from dumper.memory.available import check_room
from dumper.memory.device_reductions import TENSOR_ALIGNMENT
from dumper.memory.staging import Staged, Stager
from dumper.recording.plans import Plan
from dumper.recording.reductions import ReducedValues, ReducedValueWriter
from dumper.writing.items import Description, ManyValues
from dumper.writing.writer import OVERHEAD_BYTES, Writer

Entry = tuple[Description, int, int]
"""A value in a copy: description, offset, number of bytes."""


class Handover:
    """Belongs to a session; its methods run on the model's threads."""

    def __init__(
        self,
        writer: Writer,
        stager: Stager,
        status: StatusBlock,
        next_number: Callable[[], int],
        reduced: ReducedValueWriter,
    ) -> None:
        """``next_number`` counts what is submitted."""
        self._writer = writer
        self._stager = stager
        self._status = status
        self._next_number = next_number
        self._reduced = reduced

    def copy(self, values: tuple[Entry, ...], piece: torch.Tensor, step: int | None) -> None:
        """Record several values that lie in one piece of memory of ours, uint8, as they are when the current stream
        comes to it. Raises what the copy raises; the loss is counted."""
        self._count(len(values))
        reserved = piece.numel() + len(values) * OVERHEAD_BYTES
        try:
            if not self._writer.can_hold(reserved):
                check_room(reserved)
            if not self._writer.reserve(reserved):
                self._status.add("lost_full_memory", len(values))
                return
            try:
                data = self._staged(piece)
            except BaseException:
                self._writer.give_back(reserved)
                raise
        except BaseException:
            self._status.add("lost_encoding", len(values))
            raise
        self._writer.put(ManyValues(values, data, step, reserved))

    def _staged(self, piece: torch.Tensor) -> bytes | Staged:
        device = self._stager.device if piece.is_cuda else None
        return self._stager.stage(piece).data if device is None else device.stage(piece)

    def can_reduce(self, plan: Plan, value: torch.Tensor) -> bool:
        """Whether a kernel computes what is kept of a contiguous tensor, at an address that copies begin at."""
        device = self._stager.device if value.is_cuda and plan.chosen is not None else None
        if device is None or plan.chosen is None or value.data_ptr() % TENSOR_ALIGNMENT:
            return False
        return self._reduced.can_reduce(plan.chosen.kind, value.dtype, device)

    def reduce(self, reduced: ReducedValues, step: int | None) -> bool:
        """Record several values by what a kernel keeps of them, in one launch on the current stream. False where none
        can. Raises what the launch raises; the loss is counted."""
        device = self._stager.device
        stream: int = torch._C._cuda_getCurrentRawStream(reduced.values[0][1].get_device())
        try:
            done = device is not None and self._reduced.put_many(reduced, device, stream, step)
        except BaseException:
            self._count(len(reduced.values))
            self._status.add("lost_encoding", len(reduced.values))
            raise
        if done:
            self._count(len(reduced.values))
        return done

    def _count(self, values: int) -> None:
        number = 0
        for _ in range(values):
            number = self._next_number()
        self._status.submitted(number)
