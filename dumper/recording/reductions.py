"""Levels ``stats`` and ``hash`` of CUDA tensors: what kernels compute of them goes to the writer in their stead."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from dumper.format.status import StatusBlock
from dumper.memory.device_reductions import RESULT_BYTES, ReductionError
from dumper.memory.device_slabs import SlabPiece
from dumper.recording.plans import Plan
from dumper.writing.items import Description, ManyValues
from dumper.writing.writer import OVERHEAD_BYTES, Writer

if TYPE_CHECKING:
    from dumper.memory.device_staging import DeviceStager

Write = Callable[[int], None]


@dataclass(frozen=True, eq=False)
class ReducedValues:
    """Values that stay where they are on one device, all reduced by one launch: those of a CUDA graph."""

    kind: str
    """``stats``, of tensors of one dtype, or ``hash``."""
    values: tuple[tuple[Plan, Any], ...]
    """Contiguous and aligned tensors."""
    entries: tuple[tuple[Description, int, int], ...]
    """Description, offset and number of bytes of each result."""
    writers: dict[int, Write] = field(default_factory=dict)
    """By stream: memory that a launch needs is given back to the stream that it was made on."""


class ReducedValueWriter:
    """Belongs to a session; its methods run on the model's threads."""

    def __init__(self, writer: Writer, status: StatusBlock, *, watches_for_nan: bool) -> None:
        """``watches_for_nan``: whether the writer looks at the elements of what it is handed."""
        self._writer = writer
        self._status = status
        self.watches_for_nan = watches_for_nan

    def can_reduce(self, kind: str, dtype: Any, device: DeviceStager) -> bool:
        """Whether what a level keeps of tensors of this type is computed on the device."""
        return not (kind == "hash" and self.watches_for_nan) and device.reductions.knows(kind, dtype)

    def put(
        self,
        kind: str,
        description: Description,
        device: DeviceStager,
        index: int,
        stream: int,
        value: Any,
        step: int | None,
    ) -> bool:
        """Hand on what is kept of a contiguous and aligned tensor of the current device; False where no kernel can."""
        nbytes = RESULT_BYTES[kind]
        try:
            write = device.reductions.writer(kind, value, index, stream)
            lane = device.lanes.lane(index, stream)
            if not self._writer.put_from_device(description, nbytes, step, lane.fill, nbytes, write):
                self._status.add("lost_full_memory")
        except ReductionError:
            return False
        return True

    def put_many(self, reduced: ReducedValues, device: DeviceStager, stream: int, step: int | None) -> bool:
        """Hand on what is kept of many values, in one launch; False where no kernel can."""
        count = len(reduced.entries)
        nbytes = count * RESULT_BYTES[reduced.kind]
        index = reduced.values[0][1].get_device()
        reserved = nbytes + count * OVERHEAD_BYTES
        with device.current(index):
            try:
                write = reduced.writers.get(stream)
                if write is None:
                    tensors = [value for _, value in reduced.values]
                    write = reduced.writers[stream] = device.reductions.writer_of_many(reduced.kind, tensors, stream)
                if not self._writer.reserve(reserved):
                    self._status.add("lost_full_memory", count)
                    return True
                try:
                    slab, offset = device.lanes.lane(index, stream).fill(nbytes, write)
                except BaseException:
                    self._writer.give_back(reserved)
                    raise
            except ReductionError:
                return False
        self._writer.put(ManyValues(reduced.entries, SlabPiece(slab, offset, nbytes), step, reserved))
        return True


def reduced_together(kind: str, values: Sequence[tuple[Plan, Any]]) -> ReducedValues:
    """The values in this order, their results one behind the other."""
    nbytes = RESULT_BYTES[kind]
    described = [describe_reduced(plan, str(value.dtype).removeprefix("torch."), value) for plan, value in values]
    entries = tuple((description, number * nbytes, nbytes) for number, description in enumerate(described))
    return ReducedValues(kind, tuple(values), entries)


def describe_reduced(plan: Plan, dtype: str, value: Any, recomputed: bool = False) -> Description:
    """The description of a value that is reduced."""
    assert plan.chosen is not None
    summed_bytes = value.numel() * value.element_size() if plan.chosen.kind == "hash" else None
    return plan.describe(dtype, tuple(value.shape), recomputed, summed_bytes=summed_bytes)
