"""The short way of plain tensors of which all bytes are wanted: from their memory into a slab, with as few calls as can
be. Whatever cannot go it goes the long way of the session."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from dumper.format.status import SUBMITTED_AT, StatusBlock
from dumper.memory import device_buffers
from dumper.memory.buffers import SLAB_BYTES, SMALL, Slab, copy_memory, copy_rows
from dumper.memory.cuda_runtime import LARGEST_PITCH
from dumper.memory.device_buffers import DeviceBuffer
from dumper.memory.device_reductions import TENSOR_ALIGNMENT
from dumper.memory.device_slabs import ALIGNMENT, LARGEST_VALUE, DeviceSlab, Lane
from dumper.recording.context import Steps
from dumper.recording.plans import Plan, SmallTensors
from dumper.recording.reductions import ReducedValueWriter, describe_reduced
from dumper.recording.shortcut import Shortcut
from dumper.recording.torch_functions import find_functions
from dumper.values.dtypes import KNOWN
from dumper.values.measures import STATISTICS_BYTES
from dumper.values.memory_rows import MemoryRows, memory_rows
from dumper.values.source import Source
from dumper.values.statistics import INTO, kind_of, put_statistics
from dumper.writing.items import Description
from dumper.writing.writer import OVERHEAD_BYTES, Writer

if TYPE_CHECKING:
    from dumper.memory.device_staging import DeviceStager
    from dumper.memory.staging import Stager


NARROWEST_ROW = 16
"""Bytes."""
MEASURED_AT_ONCE = 256 << 10
"""Bytes of a tensor on the host whose statistics are computed with the interpreter lock: some 40 µs."""


class ShortWay:
    """Belongs to a session; its methods run on the model's threads."""

    def __init__(self, writer: Writer, stager: Stager, status: StatusBlock, reduced: ReducedValueWriter) -> None:
        self._reduced = reduced
        self._writer = writer
        self._stager = stager
        self._status = status
        self._plain_tensors: frozenset[type] = frozenset()
        """Empty until torch was looked up, by the first value that goes the long way."""
        self._dtypes: dict[Any, str] = {}
        self._backward_pass: Callable[[], int] = _no_backward_pass
        self._is_tracing: Callable[[], bool] = _no_tracing
        self._current_stream: Callable[[int], int] = _no_device
        self._current_device: Callable[[], int] = _no_device
        self._is_capturing: Callable[[], bool] | None = None
        """None in a torch without CUDA."""
        self._exchange: object = None
        """Torch's functions for other libraries that ask for tensors; None in releases that have none (2.11 has)."""

    def submit(self, plan: Plan, value: Any, step: int | None) -> bool:
        """Copy a value and hand it to the writer; False for one that cannot go this way."""
        if type(value) not in self._plain_tensors:
            return False
        if not value.is_cpu:
            return self._submit_from_device(plan, value, step)
        try:
            if self._is_tracing():
                return False
            dtype, shape = value.dtype, value.shape
            recomputed = self._backward_pass() != -1 and self.is_recomputed(plan)
            strides = None if value.is_contiguous() else value.stride()
            # To compare with what came last is cheaper than to hash it.
            last = plan.last
            if last[0] is dtype and last[1] == shape and last[2] is recomputed and last[3] == strides:
                small = last[4]
            else:
                key = (dtype, shape, recomputed, strides)
                small = plan.small.get(key) or self._describe(plan, key, value)
                plan.last = (dtype, shape, recomputed, strides, small)
            # The storage may be smaller than the tensor, and the address null: ``dumper.values.readable`` says why.
            offset = value.storage_offset() * small.itemsize
            address = value.data_ptr()
            if (
                small.description is None
                or offset + small.held > value.untyped_storage().nbytes()
                or not (address or small.nbytes == 0)
                or (small.may_be_negated and value.is_neg())
                or (small.may_be_conjugated and value.is_conj())
            ):
                return False
        except (RuntimeError, NotImplementedError):
            # Tensors without a storage (sparse ones), nested ones, and the wrappers of function transforms.
            return False
        nbytes, rows = small.nbytes, small.rows
        if small.reduced_to is None and rows is None:
            put = self._writer.put_small(small.description, nbytes, step, copy_memory, address, nbytes)
        else:
            place = (nbytes, 1, 0) if rows is None else (rows.width, rows.height, rows.pitch)
            if small.reduced_to is None:
                kept = place[0] * place[1]
                put = self._writer.put_small(small.description, kept, step, copy_rows, address, *place)
            else:
                of = (address, *place, small.kind)
                put = self._writer.put_small(small.description, STATISTICS_BYTES, step, put_statistics, *of)
        if not put:
            self._status.add("lost_full_memory")
        return True

    def _submit_from_device(self, plan: Plan, value: Any, step: int | None) -> bool:
        """The same for CUDA tensors, from address to address on their device."""
        try:
            device = self._stager.device if value.is_cuda else None
            if device is None or self._is_tracing():
                return False
            dtype, shape = value.dtype, value.shape
            recomputed = self._backward_pass() != -1 and self.is_recomputed(plan)
            strides = None if value.is_contiguous() else value.stride()
            last = plan.last_on_device
            if last[0] is dtype and last[1] == shape and last[2] is recomputed and last[3] == strides:
                small = last[4]
            else:
                key = (dtype, shape, recomputed, "cuda", strides)
                small = plan.small.get(key) or self._describe_on_device(plan, key, value, device)
                plan.last_on_device = (dtype, shape, recomputed, strides, small)
            offset = value.storage_offset() * small.itemsize
            address = value.data_ptr()
            if (
                small.description is None
                or offset + small.held > value.untyped_storage().nbytes()
                or not (address or small.nbytes == 0)
                or (small.may_be_negated and value.is_neg())
                or (small.may_be_conjugated and value.is_conj())
                or (small.reduced_to is not None and address % TENSOR_ALIGNMENT)
            ):
                return False
            index = value.get_device()
            stream = self._current_stream(index)
            if (not stream or small.reduced_to is not None) and index != self._current_device():
                # The handle 0 means the default stream of the current device, and kernels are loaded on theirs.
                return False
        except (RuntimeError, NotImplementedError):
            return False
        if small.reduced_to is not None:
            return self._reduced.put(small.reduced_to, small.description, device, index, stream, value, step)
        lane, nbytes, rows = device.lanes.lane(index, stream), small.nbytes, small.rows
        if rows is None:
            put = self._writer.put_from_device(small.description, nbytes, step, lane.copy, address, nbytes)
        else:
            place = address, rows.width, rows.height, rows.pitch
            put = self._writer.put_from_device(small.description, rows.nbytes, step, lane.copy_rows, *place)
        if not put:
            self._status.add("lost_full_memory")
        return True

    def submit_reduced(self, plan: Plan, value: Any, step: int | None) -> bool:
        """The statistics, or the sums of the fingerprint, of any CUDA tensor, computed on its device; False where they
        cannot be. Raises UnrecordableError for a tensor that has no bytes to record."""
        torch = sys.modules.get("torch")
        if torch is None or not isinstance(value, torch.Tensor):
            return False
        if type(value) in self._plain_tensors and value.is_cpu:
            return False
        from dumper.values.readable import as_bytes, readable, undisturbed

        assert plan.chosen is not None
        kind = plan.chosen.kind
        with undisturbed():
            plain = readable(value)
            device = self._stager.device if plain.is_cuda else None
            if device is None or not self._reduced.can_reduce(kind, plain.dtype, device):
                return False
            description = describe_reduced(plan, self._dtypes[plain.dtype], plain, self.is_recomputed(plan))
            index = plain.get_device()
            with device.current(index):
                dense = as_bytes(plain).resolve_conj().resolve_neg().contiguous()
                if dense.data_ptr() % TENSOR_ALIGNMENT:
                    dense = dense.clone()
                stream = self._current_stream(index)
                return self._reduced.put(kind, description, device, index, stream, dense, step)

    @property
    def has_shortcut(self) -> bool:
        """Whether ``shortcut`` gives one."""
        self.look_up_torch()  # where the filter rejects all values, none has gone the long way
        return Shortcut is not None and bool(self._plain_tensors)

    def shortcut(self, steps: object, plans: dict[Any, Any], next_number: Callable[[], int]) -> Shortcut | None:
        """What does the same for tensors as they came before; None where nothing can, or before torch was looked up."""
        if Shortcut is None or not self._plain_tensors:
            return None
        device = self._stager.device if self._stager.device_is_known else None
        return Shortcut(
            types=tuple(self._plain_tensors),
            classes=(Source, Steps, Plan, StatusBlock, Writer, Slab, Lane, DeviceSlab, DeviceBuffer),
            steps=steps,
            plans=plans,
            status=self._status,
            next_number=next_number,
            writer=self._writer,
            lanes=None if device is None else device.lanes.by_stream,
            graph_task=self._backward_pass,
            is_tracing=self._is_tracing,
            current_stream=self._current_stream,
            current_device=self._current_device,
            is_capturing=self._is_capturing,
            prepare=None if device is None else device.prepared,
            exchange=self._exchange,
            functions=find_functions(self._plain_tensors, device),
            copy=0 if device is None else device.address_of_copy,
            launch=0 if device is None else device.address_of_launch,
            measure=INTO,
            measured_bytes=STATISTICS_BYTES,
            overhead=OVERHEAD_BYTES,
            alignment=ALIGNMENT,
            host_slab_bytes=SLAB_BYTES,
            device_slab_bytes=device_buffers.SLAB_BYTES,
            counted_at=SUBMITTED_AT,
        )

    def is_backward(self) -> bool:
        """Whether this thread runs a backward pass."""
        return self._backward_pass() != -1

    def is_recomputed(self, plan: Plan) -> bool:
        """Whether what is recorded now is computed a second time, for a backward pass that is under way."""
        return self.is_backward() and plan.source.stream == "value" and checkpoint_is_running()

    def _describe_on_device(self, plan: Plan, key: tuple[Any, ...], value: Any, device: DeviceStager) -> SmallTensors:
        """What is worked out once for tensors of one type and shape."""
        assert plan.chosen is not None
        kind = plan.chosen.kind
        dtype = self._dtypes.get(value.dtype)
        found = SmallTensors(None)
        if dtype is None or value.is_nested:
            pass
        elif self._reduced.can_reduce(kind, value.dtype, device):
            if value.is_contiguous():
                description = describe_reduced(plan, dtype, value, self.is_recomputed(plan))
                found = _small_tensors(description, dtype, value, kind)
        elif not plan.measured:
            found = self._copied(plan, dtype, value, LARGEST_VALUE)
        return plan.remember_small(key, found)

    def _describe(self, plan: Plan, key: tuple[Any, ...], value: Any) -> SmallTensors:
        """The same of tensors on the host."""
        dtype = self._dtypes.get(value.dtype)
        found = SmallTensors(None)
        if dtype is None or value.is_nested:
            pass
        elif plan.measured:
            kind = kind_of(dtype)
            if kind is not None:
                found = self._copied(plan, dtype, value, MEASURED_AT_ONCE)
                found = replace(found, reduced_to="stats", kind=kind)
        else:
            found = self._copied(plan, dtype, value, SMALL)
        return plan.remember_small(key, found)

    def _copied(self, plan: Plan, dtype: str, value: Any, largest: int) -> SmallTensors:
        """Of tensors of which all elements, or some rows, are read; ``largest``: bytes that may be."""
        assert plan.chosen is not None
        is_sample = plan.chosen.kind == "sample"
        if not (plan.whole or plan.measured) and not (is_sample and value.shape and not self._reduced.watches_for_nan):
            return SmallTensors(None)
        kept = plan.chosen.row_slice if is_sample else slice(None)
        rows = memory_rows(value.shape, value.stride(), value.itemsize, kept)
        if rows is None or rows.nbytes > largest or not _is_worth_one_copy(rows):
            return SmallTensors(None)
        description = plan.describe(dtype, tuple(value.shape), self.is_recomputed(plan))
        found = _small_tensors(description, dtype, value, None)
        return replace(found, nbytes=rows.extent, held=_extent(value), rows=rows if rows.height > 1 else None)

    def look_up_torch(self) -> None:
        """Look up what is needed of torch, once it is there."""
        torch = sys.modules.get("torch")
        if torch is None or self._plain_tensors or not hasattr(torch, "Tensor"):
            return
        names = {name: getattr(torch, name, None) for name in KNOWN}
        self._dtypes = {dtype: name for name, dtype in names.items() if dtype is not None}
        self._backward_pass = getattr(torch._C, "_current_graph_task_id", _no_backward_pass)
        self._is_tracing = getattr(torch._C, "_is_tracing", _no_tracing)
        self._current_stream = getattr(torch._C, "_cuda_getCurrentRawStream", _no_device)
        self._current_device = getattr(torch._C, "_cuda_getDevice", _no_device)
        self._is_capturing = getattr(torch._C, "_cuda_isCurrentStreamCapturing", None)
        self._exchange = getattr(torch.Tensor, "__dlpack_c_exchange_api__", None)
        self._plain_tensors = frozenset({torch.Tensor, torch.nn.Parameter})


_PARTS_OF_COMPLEX = frozenset({"float16", "float32", "float64"})
"""Types whose elements may still have to be negated (parts of complex tensors that are). To ask torch lets go of the
interpreter lock, so that it is not asked in vain."""


def _is_worth_one_copy(rows: MemoryRows) -> bool:
    """Whether a copy of rows is as good as torch's way to bring elements together."""
    wide = rows.height <= 1 or rows.width >= NARROWEST_ROW
    return rows.pitch <= LARGEST_PITCH and wide


def _small_tensors(description: Description, dtype: str, value: Any, reduced_to: str | None) -> SmallTensors:
    complex_type = dtype.startswith("complex")
    may_be_negated = complex_type or dtype in _PARTS_OF_COMPLEX
    nbytes = value.nbytes
    return SmallTensors(
        description, nbytes, nbytes, value.itemsize, may_be_negated, complex_type, reduced_to=reduced_to
    )


def _extent(value: Any) -> int:
    """Bytes from the first element of a tensor to the end of its last one."""
    last = sum((length - 1) * stride for length, stride in zip(value.shape, value.stride(), strict=True))
    return (last + 1) * int(value.itemsize) if value.numel() else 0


def checkpoint_is_running() -> bool:
    """Whether a caller is activation checkpointing: torch's, DeepSpeed's or Megatron's. For backward passes alone."""
    frame = sys._getframe(1)
    while frame is not None:
        name = frame.f_code.co_filename
        if "checkpoint" in name.rpartition("/")[2] or name.endswith("tensor_parallel/random.py"):
            return True
        frame = frame.f_back  # type: ignore[assignment]
    return False


def _no_backward_pass() -> int:
    return -1


def _no_tracing() -> bool:
    return False


def _no_device(*index: int) -> int:
    return 0
