"""Kernels, compiled once for a device and a type of elements, and launched by their handles.

Triton's own way to launch binds and specialises all arguments anew, which takes longer than a small kernel runs.
"""

from __future__ import annotations

import functools
import re
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from dumper.values.direct_launch import MOST_ARGUMENTS, DirectLaunch

MOST_PROGRAMS = 512
"""Of one tensor; a power of two."""
PROGRAMS_PER_PROCESSOR = 2
"""Of one launch; more keep each other from the caches, and leave more to be put together."""
SCRATCH_BYTES = 64 * MOST_PROGRAMS + 64
"""What programs of one launch leave each other. The last 64 bytes are zero before and after."""
ALIGNMENT = 16
"""Bytes that addresses of tensors are multiples of."""
_WARPS = 8
_REGISTERS = 128
"""Of a thread, so that a multiprocessor has room for PROGRAMS_PER_PROCESSOR."""
_BYTES_AT_ONCE = 16
"""That a thread reads."""
_PACKED_TILES = 4
"""That are on their way from memory together. A row of them has the 64 elements of FLOAT8_E4M3FN that a sum
in float32 can take, and each of its words the 16 of FLOAT8_E5M2 that it is to take."""
_FINGERPRINT_ROWS = 256
_FINGERPRINT_ROW_BYTES = 128
_UNSIGNED = {1: torch.uint8, 2: torch.uint16, 4: torch.uint32, 8: torch.uint64}


@dataclass(frozen=True)
class Elements:
    """How a kernel reads the elements of a type."""

    kind: int
    """One of the constants in ``decoding``."""
    size: int
    """Bytes."""
    dtype: torch.dtype
    tiles: int
    """That a program takes at a time. More than 1 where four elements are handled as one word."""

    @property
    def rows(self) -> int:
        """Of a tile."""
        return 256 if self.size == 1 else 512

    @property
    def columns(self) -> int:
        """Elements in a row of a tile."""
        return _BYTES_AT_ONCE // self.size

    @property
    def block(self) -> int:
        """Elements that a program takes at a time."""
        return self.rows * self.columns * self.tiles

    @property
    def per_processor(self) -> int:
        """Programs of one launch on a multiprocessor: those for integers take half as many registers."""
        return PROGRAMS_PER_PROCESSOR if self.dtype.is_floating_point else 2 * PROGRAMS_PER_PROCESSOR

    @property
    def unsigned(self) -> torch.dtype:
        """The type of integers that they are read as."""
        return _UNSIGNED[self.size]


def _elements() -> dict[torch.dtype, Elements]:
    from dumper.values.device_kernels import decoding

    kinds = {
        decoding.BFLOAT16: ["bfloat16"],
        decoding.FLOAT16: ["float16"],
        decoding.FLOAT32: ["float32"],
        decoding.FLOAT64: ["float64"],
        decoding.FLOAT8_E4M3FN: ["float8_e4m3fn"],
        decoding.FLOAT8_E5M2: ["float8_e5m2"],
        decoding.FLOAT8_OTHER: ["float8_e4m3fnuz", "float8_e5m2fnuz", "float8_e8m0fnu"],
        decoding.SIGNED: ["int8", "int16", "int32", "int64"],
        decoding.UNSIGNED: ["uint8", "uint16", "uint32", "uint64"],
        decoding.BOOL: ["bool"],
    }
    known = ((kind, getattr(torch, name, None)) for kind, names in kinds.items() for name in names)
    return {
        dtype: Elements(
            kind.value,
            dtype.itemsize,
            dtype,
            1 if dtype.itemsize > 1 or kind == decoding.FLOAT8_OTHER else _PACKED_TILES,
        )
        for kind, dtype in known
        if dtype is not None
    }


@functools.cache
def elements_of(dtype: torch.dtype) -> Elements | None:
    """None for a type whose statistics no kernel computes: complex numbers and packed types."""
    return _elements().get(dtype)


@dataclass(frozen=True)
class _Argument:
    """What stands for a tensor while a kernel is compiled: its type, and an address that is a multiple of 16."""

    dtype: torch.dtype

    def data_ptr(self) -> int:
        return 0

    def ptr_range(self) -> int:
        return 0


class Launcher:
    """One kernel, compiled for types of arguments and constants on one device. May be used by any thread."""

    def __init__(self, kernel: Any, types: tuple[torch.dtype | None, ...], constants: dict[str, int]) -> None:
        """``types``: of the elements of each argument; None for an integer."""
        self.kernel = kernel
        self.types = types
        self.constants = constants
        self._place_holders = (0,) * len(constants)
        self._start: Callable[..., None] | None = None
        self._compiled: Any = None
        self._lock = threading.Lock()

    def launch(self, programs: int, stream: int, *arguments: int) -> None:
        """Launch on a stream, by its handle, of the device, which is the current one. Tensors are addresses.

        Raises what Triton raises when it cannot compile or launch the kernel.
        """
        start = self._start or self.compile()
        start(programs, stream, *arguments, *self._place_holders)

    def starter(self, programs: int) -> Callable[..., None]:
        """``launch`` of so many programs, with stream and arguments left to give; compiled now."""
        start, place_holders = self._start or self.compile(), self._place_holders
        return lambda stream, *arguments: start(programs, stream, *arguments, *place_holders)

    def compile(self) -> Callable[..., None]:
        """Compile the kernel and load it on the current device, if that is not done yet."""
        with self._lock:
            if self._start is None:
                arguments = [0 if dtype is None else _Argument(dtype) for dtype in self.types]
                compiled = self.kernel.warmup(
                    *arguments, grid=(1,), num_warps=_WARPS, maxnreg=_REGISTERS, **self.constants
                )
                self._compiled = compiled.result() if hasattr(compiled, "result") else compiled
                self._start = _starter(self._compiled)
            return self._start

    def direct(self, programs: int, *arguments: int) -> DirectLaunch | None:
        """``launch`` of so many programs, for compiled code: the first argument is the value, the last one the result.
        None where this release of Triton has more to do at a launch than to hand on the arguments."""
        self.compile()
        try:
            return _direct(self._compiled, programs, arguments)
        except (AttributeError, KeyError, TypeError):
            return None


def _starter(compiled: Any) -> Callable[..., None]:
    """How a compiled kernel is launched: by its handle, without looking for hooks of profilers or memory that it does
    not need."""
    run, function, metadata = compiled.run, compiled.function, compiled.packed_metadata
    direct = getattr(run, "launch", None)
    if any(getattr(run, name, None) != 0 for name in ("global_scratch_size", "profile_scratch_size")):
        direct = None
    modes = getattr(run, "launch_cooperative_grid", False), getattr(run, "launch_pdl", False)

    def start(programs: int, stream: int, *arguments: int) -> None:
        nonlocal direct
        if direct is not None:
            try:
                direct(programs, 1, 1, stream, function, *modes, None, None, metadata, None, None, None, *arguments)
            except TypeError:
                # Another release of Triton: nothing has been launched.
                direct = None
            else:
                return
        try:
            run(programs, 1, 1, stream, function, metadata, None, None, None, *arguments)
        except TypeError:
            compiled[programs, 1, 1](*arguments, stream=stream)

    return start


def _direct(compiled: Any, programs: int, arguments: tuple[int, ...]) -> DirectLaunch | None:
    run, metadata = compiled.run, compiled.metadata
    plain = (
        metadata.num_ctas == 1
        and not getattr(metadata, "launch_cooperative_grid", False)
        and not getattr(metadata, "launch_pdl", False)
        and not any(getattr(of, f"{kind}_scratch_size", 0) for of in (run, metadata) for kind in ("global", "profile"))
    )
    # Behind the kernel's own parameters Triton adds the addresses of memory that these kernels do not need.
    added = (parameters_of_eight_bytes(compiled.asm["ptx"], metadata.name) or 0) - len(arguments)
    if not plain or added < 0 or len(arguments) + added > MOST_ARGUMENTS:
        return None
    threads = 32 * metadata.num_warps
    words = (*arguments, *(0,) * added)
    return DirectLaunch(compiled.function, programs, threads, metadata.shared, words, 0, len(arguments) - 1)


@functools.lru_cache(maxsize=64)
def parameters_of_eight_bytes(ptx: str, kernel: str) -> int | None:
    """How many parameters a kernel has that is given as PTX ("PTX ISA", Kernel Function Parameters); None where one of
    them has another size, or there is no such kernel."""
    found = re.search(rf"\.entry\s+{re.escape(kernel)}\s*\((.*?)\)", ptx, re.DOTALL)
    parameters = found.group(1).split(",") if found and found.group(1).strip() else []
    if not all(re.match(r"\s*\.param\s+\.[usb]64\s[^\[]*$", parameter) for parameter in parameters):
        return None
    return len(parameters) if found else None


@functools.cache
def processors(device: int) -> int:
    """Streaming multiprocessors of a device."""
    return int(torch.cuda.get_device_properties(device).multi_processor_count)


def _instructions(device: int) -> int:
    """What a device has instructions for."""
    from dumper.values.device_kernels import packed

    capability = torch.cuda.get_device_capability(device) if device >= 0 else (0, 0)
    known = packed.FOR_BYTES if capability < (8, 0) else packed.FOR_HALVES if capability < (8, 9) else packed.FOR_E4M3
    return int(known.value)


def programs_for(length: int, block: int, most: int) -> int:
    """Of a tensor of ``length`` elements, when one takes ``block`` at a time."""
    return max(1, min(-(-length // block), most, MOST_PROGRAMS))


@functools.cache
def statistics_launcher(device: int, dtype: torch.dtype, many: bool) -> tuple[Launcher, Elements, int]:
    """The launcher, how elements are read, and the address of the table of their values. Raises ValueError."""
    from dumper.values.device_kernels import statistics

    elements = elements_of(dtype)
    if elements is None:
        raise ValueError(f"no kernel computes statistics of {dtype}")
    constants = {
        "KIND": elements.kind,
        **({"SIZE": elements.size} if many else {}),
        "ROWS": elements.rows,
        "COLUMNS": elements.columns,
        "TILES": elements.tiles,
        "MOST_PROGRAMS": MOST_PROGRAMS,
        "INSTRUCTIONS": _instructions(device),
    }
    shared = (torch.float32, torch.int64, torch.int32, torch.float64)
    if many:
        launcher = Launcher(statistics.statistics_of_many, (torch.int64, torch.int32, *shared), constants)
    else:
        launcher = Launcher(statistics.statistics, (elements.unsigned, None, *shared), constants)
    return launcher, elements, _table(device, dtype).data_ptr()


@functools.cache
def _table(device: int, dtype: torch.dtype) -> torch.Tensor:
    """The values of all bytes of a type; of larger types nothing that is read."""
    everything = torch.arange(256, dtype=torch.uint8)
    values = everything.view(dtype).to(torch.float32) if dtype.itemsize == 1 and dtype.is_floating_point else everything
    where = torch.device("cuda", device) if device >= 0 else torch.device("cpu")
    with torch.inference_mode(False):
        return values.to(torch.float32).to(where)


FINGERPRINT_BLOCK = _FINGERPRINT_ROWS * _FINGERPRINT_ROW_BYTES
"""Bytes of a tile."""


@functools.cache
def fingerprint_launcher(device: int, many: bool) -> Launcher:
    """The launcher of a device."""
    from dumper.values.device_kernels import fingerprints

    constants = {"ROWS": _FINGERPRINT_ROWS, "MOST_PROGRAMS": MOST_PROGRAMS}
    shared = (torch.int64, torch.int32, torch.int64)
    if many:
        return Launcher(fingerprints.fingerprint_of_many, (torch.int64, torch.int32, *shared), constants)
    return Launcher(fingerprints.fingerprint, (torch.uint64, None, *shared), constants)
