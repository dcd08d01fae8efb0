"""The kernel that copies within a device, in PTX, run on the host."""

from __future__ import annotations

import ctypes
import importlib.util
import subprocess
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dumper.memory.copy_kernel import KERNEL, PIECE, PTX, CopyKernels
from dumper.memory.cuda_runtime import CudaRuntime
from dumper.values.device_kernels.launching import parameters_of_eight_bytes
from dumper.values.direct_launch import DirectLaunch
from dumper.values.memory_rows import MemoryRows
from tests.dumper.memory import ptx

GUARD = 64


class Loader(CudaRuntime):
    """Loads kernels, or does not."""

    def __init__(self, error: Exception | None = None) -> None:
        self.error = error
        self.loaded: list[int] = []

    def load_kernel(self, device: int, text: str, kernel: str) -> int:
        assert (text, kernel) == (PTX, KERNEL)
        self.loaded.append(device)
        if self.error is not None:
            raise self.error
        return 1000 + device


def copied(direct: DirectLaunch, source: bytes, room: int) -> bytes:
    """What the kernel leaves in so many bytes, with what is before and behind them unchanged."""
    memory = ctypes.create_string_buffer(len(source) + room + 3 * GUARD + 2 * PIECE)
    ctypes.memset(memory, 0xA5, len(memory))
    begin = -(-ctypes.addressof(memory) // PIECE) * PIECE
    out = begin + -(-len(source) // PIECE) * PIECE + GUARD
    ctypes.memmove(begin, source, len(source))
    arguments = list(direct.arguments)
    arguments[direct.value_at], arguments[direct.out_at] = begin, out
    ptx.run(PTX, direct.programs, direct.threads, arguments)
    assert ctypes.string_at(begin, len(source)) == source
    assert {*ctypes.string_at(out - GUARD, GUARD), *ctypes.string_at(out + room, GUARD)} == {0xA5}
    return ctypes.string_at(out, room)


@settings(max_examples=40)
@given(st.one_of(st.integers(1, 100), st.integers(1, 9000)))
def test_bytes_that_follow_on_one_another(nbytes: int) -> None:
    direct = CopyKernels(Loader()).direct(2, nbytes, None)
    assert direct is not None
    assert direct.function == 1002
    source = np.random.default_rng(nbytes).bytes(nbytes)
    assert copied(direct, source, nbytes) == source


@settings(max_examples=40)
@given(st.integers(1, 40), st.integers(1, 12), st.integers(0, 7))
def test_rows(width: int, height: int, gap: int) -> None:
    rows = MemoryRows(width * PIECE, height, (width + gap) * PIECE)
    direct = CopyKernels(Loader()).direct(0, rows.extent, rows)
    assert direct is not None
    source = np.random.default_rng(width).bytes(rows.extent)
    expected = b"".join(source[row * rows.pitch :][: rows.width] for row in range(height))
    assert copied(direct, source, rows.nbytes) == expected


def test_what_the_runtime_is_to_copy() -> None:
    loader = Loader()
    kernels = CopyKernels(loader)
    assert kernels.direct(0, 0, None) is None
    assert kernels.direct(0, 100, MemoryRows(24, 3, 32)) is None
    assert kernels.direct(0, 100, MemoryRows(32, 3, 40)) is None
    assert not loader.loaded
    assert kernels.direct(0, 24, MemoryRows(24, 1, 24)) is not None
    assert kernels.direct(0, 8192, None) is not None
    assert loader.loaded == [0]


def test_a_kernel_that_cannot_be_loaded_is_not_tried_again() -> None:
    loader = Loader(RuntimeError("error 218"))
    kernels = CopyKernels(loader)
    assert [kernels.direct(1, 8192, None) for _ in range(3)] == [None] * 3
    assert loader.loaded == [1]


def test_the_driver_is_given_all_parameters() -> None:
    assert parameters_of_eight_bytes(PTX, KERNEL) == 6


@pytest.mark.parametrize("card", ["sm_75", "sm_90a"])
def test_it_assembles(card: str, tmp_path: Path) -> None:
    spec = importlib.util.find_spec("triton")
    assembler = Path(spec.origin or "").parent / "backends/nvidia/bin/ptxas" if spec is not None else None
    if assembler is None or not assembler.exists():
        pytest.skip("there is no Triton with an assembler here")
    (tmp_path / "copy.ptx").write_text(PTX)
    command = [str(assembler), f"-arch={card}", str(tmp_path / "copy.ptx"), "-o", str(tmp_path / "copy.cubin")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
