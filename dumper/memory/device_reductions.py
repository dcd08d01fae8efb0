"""What the levels ``stats`` and ``hash`` keep of a CUDA tensor, computed on its device: some bytes in a slab."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

from dumper.log_once import log
from dumper.memory.cuda_runtime import CudaRuntime, DeviceError
from dumper.values import device_kernels
from dumper.values.direct_launch import DirectLaunch
from dumper.values.fingerprint import SUMS_BYTES
from dumper.values.measures import STATISTICS_BYTES

if TYPE_CHECKING:
    import torch

    from dumper.values.device_kernels.single import Launch

RESULT_BYTES = {"stats": STATISTICS_BYTES, "hash": SUMS_BYTES}
"""Of each kind of level."""
_MOST_LAUNCHES = 10_000
TENSOR_ALIGNMENT = 16
"""Bytes that addresses of tensors which kernels read are multiples of."""


class Prepared(NamedTuple):
    """How compiled code puts tensors of one kind into slabs; dumper/recording/shortcut reads it."""

    run: Callable[[int, int, int, int], None] | None
    """Called with the addresses of the tensor, of the result and of ``scratch``, and the stream; None for a copy."""
    scratch: int
    """An address, of this device and stream."""
    kept: int
    """Bytes of the result."""
    direct: DirectLaunch | None
    """The same without a call of Python; None where there is none, or where direct launches are off."""


class DeviceReductions:
    """Launches kernels for the tensors of this process."""

    def __init__(self, runtime: CudaRuntime, direct_launch: bool) -> None:
        self._runtime = runtime
        self._direct_launch = direct_launch
        self._scratch: dict[tuple[int, int], int] = {}
        """Address by device and stream."""
        self._launches: dict[tuple[str, int, torch.dtype, int], Launch] = {}
        """By kind of level, device, type and number of elements."""
        self._failed = not device_kernels.available()

    def knows(self, kind: str, dtype: torch.dtype) -> bool:
        """Whether the kind of level of tensors of this type can be computed."""
        if self._failed or kind not in RESULT_BYTES:
            return False
        from dumper.values.device_kernels.launching import elements_of

        return kind == "hash" or elements_of(dtype) is not None

    def writer(self, kind: str, value: torch.Tensor, device: int, stream: int) -> Callable[[int], None]:
        """What has a stream write the result for a tensor to an address of the device, a multiple of 16.

        The tensor is contiguous, its address aligned, its type known, and its device the current one. Raises
        ReductionError.
        """
        launch, scratch = self._launch_of(kind, value, device, stream)
        address = value.data_ptr()

        def write(out: int) -> None:
            try:
                launch.run(address, out, scratch, stream)
            except Exception as error:
                raise self._failure(error) from error

        return write

    def prepared(self, kind: str, value: torch.Tensor, device: int, stream: int) -> Prepared | None:
        """What ``writer`` does, for tensors like this one; None where there is none."""
        try:
            launch, scratch = self._launch_of(kind, value, device, stream)
        except ReductionError:
            return None
        direct = launch.direct(scratch) if self._direct_launch else None
        return Prepared(launch.run, scratch, RESULT_BYTES[kind], direct)

    def _launch_of(self, kind: str, value: torch.Tensor, device: int, stream: int) -> tuple[Launch, int]:
        if self._failed:
            raise ReductionError("kernels cannot be used")
        key = (kind, device, value.dtype, value.numel())
        try:
            scratch = self._scratch.get((device, stream)) or self._make_scratch(device, stream)
            return self._launches.get(key) or self._prepare(key), scratch
        except Exception as error:
            raise self._failure(error) from error

    def writer_of_many(self, kind: str, values: Sequence[torch.Tensor], stream: int) -> Callable[[int], None]:
        """The same for many tensors of the current device that stay where they are: statistics of those of one type, or
        fingerprints of any. Their results lie one behind the other. Raises ReductionError.

        What it returns may be called again whenever what it did before was given to the same stream, the current one.
        """
        from dumper.values.device_kernels.many import FingerprintsOfMany, StatisticsOfMany
        from dumper.values.readable import undisturbed

        if self._failed:
            raise ReductionError("kernels cannot be used")
        try:
            with undisturbed():
                launch = StatisticsOfMany(values) if kind == "stats" else FingerprintsOfMany(values)
                launch.compile()
        except Exception as error:
            raise self._failure(error) from error

        def write(out: int) -> None:
            try:
                launch.launch(out, stream)
            except Exception as error:
                raise self._failure(error) from error

        return write

    def _make_scratch(self, device: int, stream: int) -> int:
        from dumper.values.device_kernels.launching import SCRATCH_BYTES

        with self._runtime.device(device):
            address = self._runtime.allocate(SCRATCH_BYTES)
        self._runtime.fill(address, 0, SCRATCH_BYTES, stream)
        # Another thread may have been first; what comes second is not worth to be given back.
        return self._scratch.setdefault((device, stream), address)

    def _prepare(self, key: tuple[str, int, torch.dtype, int]) -> Launch:
        """Compile a kernel and load it, if that is not done, which a capture of another thread must not notice."""
        from dumper.values.device_kernels import single
        from dumper.values.readable import undisturbed

        kind, device, dtype, length = key
        with undisturbed(), self._runtime.device(device):
            if kind == "stats":
                launch = single.prepare_statistics(device, dtype, length)
            else:
                launch = single.prepare_fingerprint(device, length * dtype.itemsize)
        if len(self._launches) >= _MOST_LAUNCHES:
            self._launches.clear()
        self._launches[key] = launch
        return launch

    def _failure(self, error: Exception) -> ReductionError:
        """Kernels are not tried again, in this process: what one of them meets, all do."""
        if not self._failed and not isinstance(error, DeviceError):
            self._failed = True
            log().warning(
                "tensortap: the kernels for levels stats and hash cannot be used (%s: %s); torch computes statistics,"
                " and values are fingerprinted on the host",
                type(error).__name__,
                str(error).partition("\n")[0],
            )
        return ReductionError(str(error))


class ReductionError(RuntimeError):
    """No kernel ran; the value is to go another way."""
