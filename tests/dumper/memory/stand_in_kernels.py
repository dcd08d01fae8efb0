"""Kernels of a stand-in for a device: what they leave in a slab is computed on the host, in the order of the stream."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
import pytest
import torch

from dumper.memory.buffers import BufferPool
from dumper.memory.device_reductions import RESULT_BYTES
from dumper.memory.device_staging import DeviceStager
from dumper.memory.staging import Stager
from dumper.recording import short_way
from dumper.recording.short_way import ShortWay
from dumper.values import device_kernels
from dumper.values.device_kernels import many, single
from dumper.values.device_kernels.single import Launch
from dumper.values.direct_launch import DirectLaunch
from dumper.values.fingerprint import block_sums
from dumper.values.measures import device_statistics
from dumper.writing import writer
from tests.dumper.memory.exchange import StandInExchange
from tests.dumper.memory.stand_in import StandInRuntime

STREAM = 77
VALUE = torch.arange(-300, 700, dtype=torch.float32).reshape(10, 100)


class OnDevice:
    """A tensor of the host that says it is on a device. It has what the short way asks of a tensor, and no more."""

    is_cpu, is_cuda, is_nested = False, True, False

    def __init__(self, tensor: torch.Tensor) -> None:
        self.tensor = tensor

    def __getattr__(self, name: str) -> Any:
        return getattr(self.tensor, name)

    def get_device(self) -> int:
        return 0


class Kernels:
    """Launches that a stand-in does later, in the order of the stream."""

    def __init__(self, runtime: StandInRuntime) -> None:
        self.runtime = runtime
        self.launched: list[str] = []
        self.prepared_directly = 0
        self.exchange = StandInExchange(lambda value: value.tensor if isinstance(value, OnDevice) else None, STREAM)
        self.scratch: set[int] = set()
        self.error: Exception | None = None

    def prepare_statistics(self, device: int, dtype: torch.dtype, length: int) -> Launch:
        return self.prepare("stats", dtype, length * dtype.itemsize)

    def prepare_fingerprint(self, device: int, nbytes: int) -> Launch:
        return self.prepare("hash", torch.uint8, nbytes)

    def prepare(self, kind: str, dtype: torch.dtype, nbytes: int) -> Launch:
        def run(address: int, *rest: int) -> None:
            self.launch(kind, address, dtype, nbytes, *rest)

        def compute(programs: int, threads: int, words: tuple[int, ...]) -> None:
            address, length, scratch, out, nothing = words
            assert (programs, threads, length, nothing) == (3, 256, nbytes, 0)
            self.launched.append(kind)
            self.scratch.add(scratch)
            self.compute(kind, address, dtype, nbytes, out)

        def direct(scratch: int) -> DirectLaunch:
            self.prepared_directly += 1
            handle = self.runtime.register(5, compute)
            return DirectLaunch(handle, 3, 256, 64, (0, nbytes, scratch, 0, 0), 0, 3)

        return Launch(run, direct)

    def launch(
        self, kind: str, address: int, dtype: torch.dtype, nbytes: int, out: int, scratch: int, stream: int
    ) -> None:
        if self.error is not None:
            raise self.error
        self.launched.append(kind)
        self.scratch.add(scratch)
        self.runtime._give(stream, "do", lambda: self.compute(kind, address, dtype, nbytes, out))

    def compute(self, kind: str, address: int, dtype: torch.dtype, nbytes: int, out: int) -> None:
        data = np.frombuffer((ctypes.c_char * nbytes).from_address(address), np.uint8)
        if kind == "hash":
            result = block_sums(data)
        else:
            value = torch.from_numpy(data.copy()).view(dtype) if nbytes else torch.empty(0, dtype=dtype)
            result = device_statistics(value).numpy().tobytes()
        ctypes.memmove(out, result, len(result))


class OfMany:
    """Stands for the launches of many."""

    def __init__(self, kernels: Kernels, kind: str, values: list[Any]) -> None:
        self.kernels, self.kind, self.values = kernels, kind, values

    def compile(self) -> None:
        pass

    def launch(self, out: int, stream: int) -> None:
        for number, value in enumerate(self.values):
            place = out + number * RESULT_BYTES[self.kind]
            self.kernels.launch(self.kind, value.data_ptr(), value.dtype, value.nbytes, place, 0, stream)


def stand_in(patches: pytest.MonkeyPatch) -> Kernels:
    """A device that recorders of this process meet; its runtime is to be ended."""
    runtime = StandInRuntime(3)
    kernels = Kernels(runtime)
    look_up = ShortWay.look_up_torch

    def look_up_with_device(self: ShortWay) -> None:
        look_up(self)
        self._plain_tensors |= {OnDevice}  # type: ignore[arg-type]
        self._current_stream = lambda index: STREAM
        self._current_device = lambda: runtime.current_device
        self._is_capturing = lambda: False

    # The writer leaves slabs alone until it is asked for what is in them.
    patches.setattr(writer, "LONG_NAP", 30.0)
    patches.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    patches.setattr(torch._C, "_cuda_getCurrentRawStream", lambda index: STREAM, raising=False)
    patches.setattr(device_kernels, "available", lambda: True)
    stagers = [DeviceStager(runtime, BufferPool(1 << 26), direct_launch) for direct_launch in (False, True)]
    patches.setattr(Stager, "device", property(lambda self: stagers[self.direct_launch]))
    patches.setattr(Stager, "device_is_known", True)
    patches.setattr(torch.Tensor, "__dlpack_c_exchange_api__", kernels.exchange.capsule, raising=False)
    patches.setattr(ShortWay, "look_up_torch", look_up_with_device)
    patches.setattr(single, "prepare_statistics", kernels.prepare_statistics)
    patches.setattr(single, "prepare_fingerprint", kernels.prepare_fingerprint)
    patches.setattr(many, "StatisticsOfMany", lambda values: OfMany(kernels, "stats", values))
    patches.setattr(many, "FingerprintsOfMany", lambda values: OfMany(kernels, "hash", values))
    return kernels


WAYS = ("shortcut", "direct", "direct without the driver", "long way")
"""``direct`` is what settings say by default; ``shortcut``: without ``direct_launch``."""


def set_way(way: str, kernels: Kernels, patches: pytest.MonkeyPatch) -> dict[str, Any]:
    """The settings of one of the WAYS."""
    kernels.runtime.has_driver = way != "direct without the driver"
    if way == "long way":
        patches.setattr(short_way, "Shortcut", None)
    return {} if way.startswith("direct") else {"direct_launch": False}
