"""Space that is claimed before it is written, on real file systems."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from dumper.writing.rank_file import Preallocation


def test_a_file_with_claimed_space_ends_where_it_was_written(tmp_path: Path) -> None:
    with (tmp_path / "file").open("wb", buffering=0) as file:
        claims = Preallocation(file.fileno())
        claims.claim(0, 1 << 20)
        assert claims.offered
        file.write(b"abc")
        found = os.fstat(file.fileno())
    assert found.st_size == 3
    assert found.st_blocks * 512 >= 1 << 20
    assert (tmp_path / "file").read_bytes() == b"abc"


def test_a_claim_for_which_there_is_no_room_is_an_error(tmp_path: Path) -> None:
    with (tmp_path / "file").open("wb", buffering=0) as file:
        claims = Preallocation(file.fileno())
        with pytest.raises(OSError, match=r"large|space"):
            claims.claim(0, 1 << 60)
        assert claims.offered
        assert os.fstat(file.fileno()).st_size == 0


def test_where_space_cannot_be_claimed_none_is_asked_for_again() -> None:
    descriptor = os.open(os.devnull, os.O_WRONLY)
    try:
        claims = Preallocation(descriptor)
        assert claims.offered
        claims.claim(0, 100)
        assert not claims.offered
        claims.claim(100, 100)
        assert os.write(descriptor, b"abc") == 3
    finally:
        os.close(descriptor)
