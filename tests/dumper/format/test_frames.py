"""Frames: one valid encoding each, any msgpack library can walk them, every flipped bit is found."""

from __future__ import annotations

import random
import tracemalloc
from collections.abc import Iterator

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dumper.format import frames

SCALARS = (
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False) | st.text(max_size=8)
)
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
)
METAS = st.dictionaries(st.text(max_size=12), VALUES, max_size=6)
KINDS = st.text("abcdefghijklmnopqrstuvwxyz", min_size=1, max_size=31)


@settings(max_examples=40)
@given(KINDS, METAS, st.lists(st.binary(max_size=200), max_size=6), st.integers(0, 200))
def test_a_frame_comes_back_and_is_aligned(
    kind: str, meta: dict[str, object], payloads: list[bytes], before: int
) -> None:
    data = bytes(before) + frames.encode_frame(kind, meta, before, tuple(payloads))
    frame = frames.decode_frame(data, before)
    assert (frame.kind, frames.decode_meta(frame.meta), frame.end) == (kind, meta, len(data))
    assert [data[p.offset : p.offset + p.length] for p in frame.payloads] == payloads
    assert all(p.offset % frames.ALIGNMENT == 0 for p in frame.payloads)
    assert all(frames.payload_is_intact(data, p) for p in frame.payloads)


@settings(max_examples=40)
@given(KINDS, METAS, st.lists(st.binary(max_size=50), max_size=6))
def test_any_msgpack_library_walks_frames(kind: str, meta: dict[str, object], payloads: list[bytes]) -> None:
    data = frames.encode_frame(kind, meta, 0, tuple(payloads))
    fields = msgpack.unpackb(data)
    assert fields[0] == kind
    assert msgpack.unpackb(fields[1]) == meta
    assert fields[4::3] == payloads


def _first_error(data: bytes, end: int) -> str | None:
    """What is wrong with the frames in ``data``, None when every byte is as it should be."""
    offset = 0
    try:
        while offset < len(data):
            frame = frames.decode_frame(data, offset)
            if not all(frames.payload_is_intact(data, payload) for payload in frame.payloads):
                return "payload"
            offset = frame.end
    except frames.FormatError as error:
        return str(error)
    return None


def test_every_flipped_bit_is_found() -> None:
    first = frames.encode_frame("record", {"name": "attn", "shape": [2, 3]}, 0, (bytes(range(120)), b"x" * 33))
    data = first + frames.encode_frame("step", {"step": 1}, len(first))
    assert _first_error(data, len(data)) is None
    for position in range(len(data)):
        for bit in range(8):
            flipped = bytearray(data)
            flipped[position] ^= 1 << bit
            assert _first_error(bytes(flipped), len(data)) is not None, (position, bit)


def test_a_frame_that_is_cut_off_is_truncated_and_nothing_else() -> None:
    data = frames.encode_frame("record", {"name": "a"}, 0, (bytes(100),))
    for length in range(len(data)):
        with pytest.raises(frames.TruncatedError):
            frames.decode_frame(data[:length], 0)


@given(st.binary(max_size=300), st.integers(0, 40))
def test_arbitrary_bytes_are_a_format_error_or_a_frame_inside_them(data: bytes, offset: int) -> None:
    try:
        frame = frames.decode_frame(data, offset)
    except frames.FormatError:
        return
    assert offset < frame.end <= len(data)


@given(st.integers(0, 2**64 - 1), st.integers(0, frames.FOOTER_BYTES * 8 - 1))
def test_a_footer_names_the_index_and_a_damaged_one_does_not(offset: int, bit: int) -> None:
    footer = frames.encode_footer(offset)
    assert len(footer) == frames.FOOTER_BYTES
    assert msgpack.unpackb(footer)[:2] == ["footer", offset]
    assert frames.decode_footer(b"ab" + footer, 2) == offset
    damaged = bytearray(footer)
    damaged[bit // 8] ^= 1 << bit % 8
    assert frames.decode_footer(bytes(damaged), 0) is None


def test_random_garbage_after_a_frame_does_not_disturb_it() -> None:
    generator = random.Random(0)
    data = frames.encode_frame("step", {"step": 3}, 0)
    for _ in range(200):
        noise = generator.randbytes(generator.randrange(64))
        assert frames.decode_frame(data + noise, 0).end == len(data)


class InPieces(frames.ReadInPieces):
    """Three bytes at a time."""

    def __init__(self, data: bytes) -> None:
        self.data = data

    def view(self, start: int, end: int) -> memoryview:
        return memoryview(self.data)[start:end]

    def pieces(self, start: int, end: int) -> Iterator[memoryview]:
        return (self.view(at, min(end, at + 3)) for at in range(start, end, 3))


def test_bytes_that_are_read_in_pieces() -> None:
    data = frames.encode_frame("record", {}, 0, (b"0123456789",))
    (payload,) = frames.decode_frame(data, 0).payloads
    for one in (data, bytearray(data), InPieces(data)):
        assert frames.payload_is_intact(one, payload)
        assert bytes(frames.payload_view(one, payload)) == b"0123456789"
    damaged = data.replace(b"9", b"8")
    assert not frames.payload_is_intact(damaged, payload)
    assert not frames.payload_is_intact(InPieces(damaged), payload)
    for read in (frames.payload_view, frames.payload_is_intact):
        with pytest.raises(TypeError):
            read(object(), payload)


def test_decoding_a_frame_copies_its_metadata_alone() -> None:
    """What stands where a record has its length, in a frame of another kind, may be a number that the file is long
    enough for."""
    frame = frames.encode_frame("step", {"step": 0, "layout": {"rows": 4}}, 0)
    data = bytearray(frame) + bytes(16 << 20)
    tracemalloc.start()
    try:
        assert frames.decode_frame(data, 0).kind == "step"
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()
