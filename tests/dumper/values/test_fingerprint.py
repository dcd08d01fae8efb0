"""Fingerprints: one definition in numpy, C and plain integers, which no change of a tensor escapes."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dumper.values import fingerprint as fingerprints
from dumper.values.fingerprint import COMPILED, SCHEME, block_sums, fingerprint, reference
from tests.harness.interpreter_lock import turns_beside

needs_compiler = pytest.mark.skipif(not COMPILED, reason="the module is not built: python setup.py build_ext -i")
MODULO = 2**64


def splitmix(state: int) -> int:
    state = (state ^ state >> 30) * 0xBF58476D1CE4E5B9 % MODULO
    state = (state ^ state >> 27) * 0x94D049BB133111EB % MODULO
    return state ^ state >> 31


def fmix(state: int) -> int:
    state = (state ^ state >> 33) * 0xFF51AFD7ED558CCD % MODULO
    state = (state ^ state >> 33) * 0xC4CEB9FE1A85EC53 % MODULO
    return state ^ state >> 33


def by_the_book(data: bytes) -> bytes:
    """The sums as docs/format.md says them."""
    golden = 0x9E3779B97F4A7C15
    keys = [splitmix((number + 1) * golden % MODULO) for number in range(16)]
    padded = data + bytes(-len(data) % 1024)
    words = [int.from_bytes(padded[at : at + 8], "little") for at in range(0, len(padded), 8)]
    sums = [0, 0]
    for strand in range(len(words) // 8):
        block, lane = divmod(strand, 16)
        for which, mix in enumerate((fmix, splitmix)):
            total = 0
            for stripe in range(8):
                keyed = words[128 * block + 16 * stripe + lane] ^ keys[2 * stripe + which]
                total += keyed % 2**32 * (keyed >> 32) + keyed
            sums[which] += mix(total % MODULO ^ (strand + 1) * golden % MODULO)
    return b"".join((one % MODULO).to_bytes(8, "little") for one in sums)


LENGTHS = st.sampled_from([1, 7, 8, 1016, 1023, 1024, 1025, 2048])
REPEATED = st.builds(lambda byte, count: bytes([byte]) * count, st.integers(0, 255), LENGTHS)
DATA = st.lists(st.binary(max_size=40) | REPEATED, max_size=3).map(b"".join)


@settings(max_examples=60, deadline=None)
@given(DATA)
def test_all_ways_to_compute_it_are_one(data: bytes) -> None:
    expected = by_the_book(data)
    assert reference.block_sums(data) == expected
    for instructions in (0, 1, 2) if COMPILED else ():
        assert fingerprints._compiled.limit(instructions) <= instructions
        assert block_sums(data) == expected
    assert block_sums(data) == expected
    # Behind other bytes, which are no part of it.
    assert block_sums(memoryview(b"12345" + data)[5:]) == expected


@pytest.mark.parametrize("size", [64 * 1024, 64 * 1024 + 1, 700_001])
def test_pieces_of_the_reference_are_put_together(size: int) -> None:
    data = np.random.default_rng(size).integers(0, 256, size, np.uint8)
    assert reference.block_sums(data) == block_sums(data) != bytes(16)


@settings(max_examples=100, deadline=None)
@given(st.binary(min_size=1, max_size=3000), st.data())
def test_a_changed_byte_changes_both_sums(data: bytes, draw: st.DataObject) -> None:
    at = draw.draw(st.integers(0, len(data) - 1))
    changed = bytearray(data)
    changed[at] ^= draw.draw(st.integers(1, 255))
    before, after = block_sums(data), block_sums(bytes(changed))
    assert before[:8] != after[:8]
    assert before[8:] != after[8:]


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(0, 3), min_size=2, max_size=400), st.data())
def test_words_in_another_order_are_something_else(numbers: list[int], draw: st.DataObject) -> None:
    words = np.array(numbers, np.int64)
    order = np.array(draw.draw(st.permutations(range(len(numbers)))))
    equal = bool((words == words[order]).all())
    assert (block_sums(words) == block_sums(words[order])) == equal


def test_a_changed_bit_changes_half_of_all_bits() -> None:
    generator = np.random.default_rng(0)
    data = generator.integers(0, 256, 2048, np.uint8)
    before = np.frombuffer(block_sums(data), np.uint8)
    flipped = np.zeros((256, 128))
    for trial in range(256):
        changed = data.copy()
        bit = int(generator.integers(0, 2048 * 8))
        changed[bit // 8] ^= np.uint8(1 << bit % 8)
        flipped[trial] = np.unpackbits(np.frombuffer(block_sums(changed), np.uint8) ^ before)
    assert abs(flipped.mean() - 0.5) < 0.01
    # Of each bit: the standard deviation over 256 trials is 0.031.
    assert np.abs(flipped.mean(axis=0) - 0.5).max() < 0.16


@pytest.mark.parametrize(
    "positions",
    [
        lambda one, other: (one, other),
        # Within a strand, where words are put together without mixing each of them.
        lambda one, other: (16 * (one % 8), 16 * (other % 8) + 128 * (other // 8 % 8)),
    ],
    ids=["anywhere", "in a strand"],
)
def test_sparse_tensors_do_not_collide_in_few_bits(positions: Callable[[int, int], tuple[int, int]]) -> None:
    """Two elements that are not zero, at all places: 32 bits of each sum hold 2000 of them apart, nearly always."""
    seen: list[set[bytes]] = [set(), set(), set(), set()]
    places = {tuple(sorted(positions(one, other))) for one in range(64) for other in range(64)}
    for one, other in places:
        words = np.zeros(1024, np.int64)
        words[one] += 1
        words[other] += 1
        sums = block_sums(words)
        for quarter, found in enumerate(seen):
            found.add(sums[4 * quarter : 4 * quarter + 4])
    for found in seen:
        # The chance of one collision among n numbers of 32 bits is n * n / 2**33: here one in 2000.
        assert len(found) >= len(places) - 1


def test_dtype_shape_and_length_count() -> None:
    data = bytes(range(48))
    prints = {
        fingerprint("float32", (12,), data),
        fingerprint("int32", (12,), data),
        fingerprint("float32", (3, 4), data),
        fingerprint("float32", (4, 3), data),
        fingerprint("float32", (11,), data[:44]),
        fingerprint("float32", (0,), b""),
        fingerprint("float32", (1, 0), b""),
        fingerprint("uint8", (1000,), bytes(1000)),
        fingerprint("uint8", (1001,), bytes(1001)),
        fingerprint("float32", (12,), data, "xxh3"),
    }
    assert len(prints) == 10
    assert all(len(one) == 32 for one in prints)
    with pytest.raises(fingerprints.UnknownSchemeError, match="'later', only block-sums and xxh3"):
        fingerprint("float32", (12,), data, "later")
    assert fingerprint("float32", (12,), data, SCHEME) == fingerprint("float32", (12,), memoryview(data))


@needs_compiler
def test_the_lock_is_let_go() -> None:
    data = np.zeros(1 << 26, np.uint8)
    assert turns_beside(lambda: block_sums(data)) > 100


@needs_compiler
def test_what_has_no_bytes_in_a_row_is_refused() -> None:
    with pytest.raises((BufferError, ValueError)):
        block_sums(np.zeros((4, 4))[:, 1])
