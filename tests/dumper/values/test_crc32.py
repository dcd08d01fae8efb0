"""CRC-32 as zlib has it."""

from __future__ import annotations

import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dumper.values import crc32 as module
from dumper.values.crc32 import crc32
from tensortap.compiled import load


@given(st.binary(max_size=400), st.integers(0, 300), st.integers(0, 8), st.integers(0, (1 << 32) - 1))
def test_every_length_and_place_gives_what_zlib_gives(data: bytes, times: int, first: int, value: int):
    # Longer than what is folded together, from any address on, and behind other bytes.
    view = memoryview(data * times + data)[first:]
    assert crc32(view) == zlib.crc32(view)
    assert crc32(view, value) == zlib.crc32(view, value)


@given(st.binary(max_size=1000), st.integers(0, 1000))
def test_parts_one_after_the_other_are_the_whole(data: bytes, cut: int):
    assert crc32(data[cut:], crc32(data[:cut])) == zlib.crc32(data)


def test_the_compiled_one_is_used_where_it_is_there():
    compiled = load(f"{module.__name__}._compiled")
    if compiled is None:
        pytest.skip("installed without a C compiler")
    assert compiled.is_fast() == module.COMPILED
    assert compiled.crc32(bytes(100), 0) == zlib.crc32(bytes(100))  # by a table where it is not fast
    with pytest.raises(TypeError):
        compiled.crc32("text", 0)
