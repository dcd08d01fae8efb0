"""How values of CUDA devices come to the host: small ones through slabs, large ones by themselves."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import TYPE_CHECKING

from dumper.memory.buffers import BufferPool
from dumper.memory.copy_kernel import CopyKernels
from dumper.memory.cuda_runtime import CudaRuntime, loaded_runtime
from dumper.memory.device_copies import DeviceCopier
from dumper.memory.device_reductions import DeviceReductions, Prepared
from dumper.memory.device_slabs import LARGEST_VALUE, DeviceLanes, SlabPiece
from dumper.memory.pinned import PinnedArena

if TYPE_CHECKING:
    import torch

    from dumper.memory.device_copies import DeviceCopy
    from dumper.values.memory_rows import MemoryRows


class DeviceStager:
    """Stages tensors of the CUDA devices of this process. Waits for a device only when its memory is used up."""

    def __init__(self, runtime: CudaRuntime, pool: BufferPool, direct_launch: bool) -> None:
        """``direct_launch``: whether compiled code launches kernels by itself (the setting of that name)."""
        self._runtime = runtime
        self._arena = PinnedArena(runtime, pool)
        self.lanes = DeviceLanes(runtime, self._arena)
        pool.add_arena(self.lanes)
        self.reductions = DeviceReductions(runtime, direct_launch)
        self._copy_kernels = CopyKernels(runtime) if direct_launch else None
        self._copiers: dict[int, DeviceCopier] = {}

    @property
    def address_of_copy(self) -> int:
        """Of the runtime's function that copies, for compiled code; 0 where there is none."""
        return self._runtime.address_of_copy

    @property
    def address_of_current_device(self) -> int:
        """Of the runtime's function that says which device is the current one, for compiled code; 0: there is none."""
        return self._runtime.address_of_current_device

    @property
    def address_of_is_capturing(self) -> int:
        """Of the runtime's function that says whether a stream is being captured, for compiled code; 0: there is
        none."""
        return self._runtime.address_of_is_capturing

    @property
    def address_of_launch(self) -> int:
        """Of the driver's function that launches a kernel, for compiled code; 0 where that launches none."""
        return 0 if self._copy_kernels is None else self._runtime.address_of_launch

    def prepared(
        self,
        reduced_to: str | None,
        value: torch.Tensor,
        device: int,
        stream: int,
        nbytes: int,
        rows: MemoryRows | None,
    ) -> Prepared | None:
        """How compiled code puts tensors like this one into slabs; ``nbytes`` is their extent in memory. None where it
        cannot. Outside of captures."""
        if reduced_to is not None:
            return self.reductions.prepared(reduced_to, value, device, stream)
        kept = nbytes if rows is None else rows.nbytes
        direct = None if self._copy_kernels is None else self._copy_kernels.direct(device, nbytes, rows)
        return Prepared(None, 0, kept, direct)

    @classmethod
    def of_this_process(cls, pool: BufferPool, direct_launch: bool) -> DeviceStager | None:
        """None where the runtime library that torch uses cannot be found."""
        runtime = loaded_runtime(with_driver=direct_launch)
        return None if runtime is None else cls(runtime, pool, direct_launch)

    def stage(self, value: torch.Tensor) -> SlabPiece | DeviceCopy:
        """Begin to copy a readable tensor as it is now. To be called inside ``undisturbed``.

        Raises RuntimeError while the current stream is captured into a CUDA graph (``dumper/recording/graphs``),
        and DeviceError.
        """
        import torch

        if torch.cuda.is_current_stream_capturing():
            raise RuntimeError("a copy to the host cannot be started while a CUDA graph is being captured")
        device = value.get_device()
        stream = torch._C._cuda_getCurrentRawStream(device)
        nbytes = value.numel() * value.element_size()
        # The handle of a default stream means that of the current device.
        with self._runtime.device(device):
            if nbytes > LARGEST_VALUE:
                return self._copier(device).start(value, stream)
            plain = value.resolve_conj().resolve_neg().contiguous()
            slab, offset = self.lanes.lane(device, stream).copy(plain.data_ptr(), nbytes)
        return SlabPiece(slab, offset, nbytes)

    def current(self, device: int) -> AbstractContextManager[None]:
        """A block in which a device is this thread's current one, and no capture is invalidated."""
        return self._runtime.device(device)

    def _copier(self, device: int) -> DeviceCopier:
        if device not in self._copiers:
            words = self.lanes.words(device)
            self._copiers[device] = DeviceCopier(self._runtime, device, words, self._arena)
        return self._copiers[device]
