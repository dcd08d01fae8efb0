"""Space that is claimed before it is written, on real file systems."""

from __future__ import annotations

import os
from pathlib import Path

from dumper.writing.preallocation import Preallocation


def test_a_file_with_claimed_space_ends_where_it_was_written(tmp_path: Path) -> None:
    with (tmp_path / "file").open("wb", buffering=0) as file:
        Preallocation(file.fileno()).claim(0, 1 << 20)
        file.write(b"abc")
        found = os.fstat(file.fileno())
    assert found.st_size == 3
    assert found.st_blocks * 512 >= 1 << 20
    assert (tmp_path / "file").read_bytes() == b"abc"


def test_where_space_cannot_be_claimed_nothing_happens() -> None:
    descriptor = os.open(os.devnull, os.O_WRONLY)
    try:
        claims = Preallocation(descriptor)
        claims.claim(0, 100)
        claims.claim(100, 100)
    finally:
        os.close(descriptor)
