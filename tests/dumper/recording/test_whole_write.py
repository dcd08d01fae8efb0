"""Buffers written whole, by the compiled module and without it."""

from __future__ import annotations

import os
import resource
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from dumper.writing import whole_write

Write = Callable[[int, Sequence[Any]], None]
PIECE = 1 << 20


@pytest.fixture(params=["compiled", "in Python"])
def write(request: pytest.FixtureRequest) -> Write:
    if request.param == "compiled":
        if not whole_write.COMPILED:
            pytest.skip("installed without a C compiler")
        return whole_write._compiled.write_whole
    return whole_write.in_python


@pytest.fixture
def descriptor(tmp_path: Path) -> Iterator[int]:
    opened = os.open(tmp_path / "file", os.O_RDWR | os.O_CREAT)
    yield opened
    os.close(opened)


def _written(descriptor: int) -> bytes:
    return os.pread(descriptor, 1 << 30, 0)


@pytest.mark.parametrize(
    "sizes",
    [
        [],
        [0],
        [0, 0, 1, 0],
        [PIECE],
        [PIECE - 1, 0, 1, 0, 1],
        [1, PIECE, PIECE + 1, 0],
        [5 * PIECE + 7],
        [3] * 1500 + [2 * PIECE] + [0] * 600 + [1],
    ],
)
def test_all_bytes_come_in_their_order(write: Write, descriptor: int, sizes: list[int]) -> None:
    noise = os.urandom(PIECE)
    buffers = [(bytes([number % 256]) + noise * (size // PIECE + 1))[:size] for number, size in enumerate(sizes)]
    kinds = (bytes, bytearray, memoryview)
    write(descriptor, [kinds[number % 3](buffer) for number, buffer in enumerate(buffers)])
    assert _written(descriptor) == b"".join(buffers)
    assert os.lseek(descriptor, 0, os.SEEK_CUR) == sum(sizes)


def test_what_fits_is_written_before_an_error(write: Write, descriptor: int) -> None:
    room = 2 * PIECE + 12345
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, before[1]))
    try:
        with pytest.raises(OSError, match="too large"):
            write(descriptor, [b"a" * 777, b"b" * (3 * PIECE)])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert _written(descriptor) == b"a" * 777 + b"b" * (room - 777)


def test_errors_of_the_system_are_raised(write: Write) -> None:
    full = os.open("/dev/full", os.O_WRONLY)
    try:
        with pytest.raises(OSError, match="No space"):
            write(full, [b"text"])
    finally:
        os.close(full)
    with pytest.raises(OSError, match="Bad file"):
        write(-1, [b"text"])


def test_buffers_are_let_go(write: Write, descriptor: int) -> None:
    buffer = bytearray(b"text")
    with pytest.raises(TypeError):
        write(descriptor, [buffer, "no buffer"])
    with pytest.raises(OSError, match="Bad file"):
        write(-1, [buffer])
    write(descriptor, [buffer])
    buffer.clear()
