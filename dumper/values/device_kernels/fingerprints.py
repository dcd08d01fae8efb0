"""The Triton kernels for the sums of fingerprints, in one pass over the bits as they are in memory."""

from __future__ import annotations

import triton
import triton.language as tl

from dumper.values.device_kernels.exchange import PARTIALS, SEGMENT, is_last_program, left_words

STRIPES = tl.constexpr(8)
LANES = tl.constexpr(16)
STRAND = tl.constexpr(0x9E3779B97F4A7C15)
"""Of fingerprints; see ``dumper/values/fingerprint/reference.py``."""


@triton.jit
def _mixed_first(word):
    """The last step of MurmurHash3 with 64 bits."""
    word = (word ^ (word >> 33)) * 0xFF51AFD7ED558CCD
    word = (word ^ (word >> 33)) * 0xC4CEB9FE1A85EC53
    return word ^ (word >> 33)


@triton.jit
def _mixed_second(word):
    """The last step of SplitMix64."""
    word = (word ^ (word >> 30)) * 0xBF58476D1CE4E5B9
    word = (word ^ (word >> 27)) * 0x94D049BB133111EB
    return word ^ (word >> 31)


@triton.jit
def _stripe_key(number: tl.constexpr):
    """Output ``number`` of SplitMix64 with seed 0; for the compiler a constant."""
    return _mixed_second(tl.full([], 0x9E3779B97F4A7C15, tl.uint64) * (number + 1))


@triton.jit
def _product(word):
    return (word & 0xFFFFFFFF) * (word >> 32) + word


@triton.jit
def _fingerprint(
    value, nbytes, program, programs, partials, arrived, out, ROWS: tl.constexpr, MOST_PROGRAMS: tl.constexpr
):
    """A row of a tile is two neighbouring strands."""
    PAIRS: tl.constexpr = LANES // 2
    BLOCK: tl.constexpr = LANES * STRIPES
    TILE: tl.constexpr = ROWS // PAIRS * BLOCK
    words = nbytes // 8
    whole = words // TILE
    row = tl.arange(0, ROWS)[:, None]
    column = tl.arange(0, 2)[None, :]
    offsets = (row // PAIRS) * BLOCK + (row % PAIRS) * 2 + column
    strands = (row * 2 + column + 1).to(tl.uint64) * STRAND
    first = tl.zeros([ROWS, 2], tl.uint64)
    second = tl.zeros([ROWS, 2], tl.uint64)
    tile = program
    while tile < whole:
        one = tl.zeros([ROWS, 2], tl.uint64)
        other = tl.zeros([ROWS, 2], tl.uint64)
        for stripe in tl.static_range(STRIPES):
            word = tl.load(value + (tile * TILE + stripe * LANES + offsets))
            one += _product(word ^ _stripe_key(2 * stripe))
            other += _product(word ^ _stripe_key(2 * stripe + 1))
        key = strands + (tile * (TILE // STRIPES)).to(tl.uint64) * STRAND
        first += _mixed_first(one ^ key)
        second += _mixed_second(other ^ key)
        tile += programs
    if tile == whole:
        # The last one, which the bytes do not fill: zeros behind their end, but no block of zeros alone.
        byte = tl.arange(0, 8)
        left = tl.load(
            value.to(tl.pointer_type(tl.uint8)) + (words * 8 + byte), mask=byte < nbytes - words * 8, other=0
        )
        word_left = tl.sum(left.to(tl.uint64) << (byte * 8).to(tl.uint64), axis=0)
        one = tl.zeros([ROWS, 2], tl.uint64)
        other = tl.zeros([ROWS, 2], tl.uint64)
        for stripe in tl.static_range(STRIPES):
            place = tile * TILE + stripe * LANES + offsets
            word = tl.load(value + place, mask=place < words, other=0)
            word = tl.where(place == words, word_left, word)
            one += _product(word ^ _stripe_key(2 * stripe))
            other += _product(word ^ _stripe_key(2 * stripe + 1))
        key = strands + (tile * (TILE // STRIPES)).to(tl.uint64) * STRAND
        there = (tile * TILE + (row // PAIRS) * BLOCK) * 8 + column * 0 < nbytes
        first += tl.where(there, _mixed_first(one ^ key), 0)
        second += tl.where(there, _mixed_second(other ^ key), 0)
    first_1 = tl.sum(tl.sum(first, axis=1), axis=0)
    second_1 = tl.sum(tl.sum(second, axis=1), axis=0)
    if programs == 1:
        tl.store(out, first_1.to(tl.int64, bitcast=True))
        tl.store(out + 1, second_1.to(tl.int64, bitcast=True))
    else:
        tl.store(partials + program * PARTIALS, first_1.to(tl.int64, bitcast=True))
        tl.store(partials + program * PARTIALS + 1, second_1.to(tl.int64, bitcast=True))
        if is_last_program(arrived, programs):
            rows = tl.arange(0, MOST_PROGRAMS)
            tl.store(out, tl.sum(left_words(partials, 0, rows, programs), axis=0))
            tl.store(out + 1, tl.sum(left_words(partials, 1, rows, programs), axis=0))


@triton.jit(do_not_specialize=["nbytes"])
def fingerprint(value, nbytes: tl.int64, partials, arrived, out, ROWS: tl.constexpr, MOST_PROGRAMS: tl.constexpr):
    """The two sums over ``nbytes`` bytes at ``value`` (uint64) to ``out`` (int64[2]). ``partials`` and ``arrived`` as
    for ``statistics``."""
    program, programs = tl.program_id(0).to(tl.int64), tl.num_programs(0).to(tl.int64)
    _fingerprint(value, nbytes, program, programs, partials, arrived, out, ROWS, MOST_PROGRAMS)


@triton.jit
def fingerprint_of_many(
    segments, segment_of_program, partials, arrived, out, ROWS: tl.constexpr, MOST_PROGRAMS: tl.constexpr
):
    """The sums over several tensors to the rows of ``out`` (int64[segments, 2]); see ``statistics_of_many``."""
    segment = tl.load(segment_of_program + tl.program_id(0)).to(tl.int64)
    entry = segments + segment * SEGMENT
    value = tl.multiple_of(tl.load(entry).to(tl.pointer_type(tl.uint64)), 16)
    first = tl.load(entry + 2)
    _fingerprint(
        value,
        tl.load(entry + 1),
        tl.program_id(0) - first,
        tl.load(entry + 3),
        partials + first * PARTIALS,
        arrived + segment,
        out + segment * 2,
        ROWS,
        MOST_PROGRAMS,
    )
