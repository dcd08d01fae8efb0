"""The statistics of integers of more than a byte, as one program of a kernel adds them."""

from __future__ import annotations

import triton
import triton.language as tl

from dumper.values.device_kernels.decoding import UNSIGNED, tile_offsets, widen
from dumper.values.device_kernels.exchange import join_five


@triton.jit
def _add_integers(found, lowest, highest, upper, lower, magnitude, square, low, high, SIZE: tl.constexpr):
    """The sums and extremes of some integers added to those of each row; of eight bytes, upper and lower halves are
    added apart."""
    if SIZE <= 2:
        # No sum over a row leaves 32 bits, but for squares.
        lower += tl.sum(found, axis=1)
        magnitude += tl.sum(tl.abs(found), axis=1).to(tl.float64)
        square += tl.sum(found.to(tl.int64) * found, axis=1).to(tl.float64)
    else:
        wide = found.to(tl.float64)
        magnitude += tl.sum(tl.abs(wide), axis=1)
        square += tl.sum(wide * wide, axis=1)
        if SIZE == 4:
            lower += tl.sum(found.to(tl.int64), axis=1)
        else:
            upper += tl.sum((found >> 32).to(tl.int64), axis=1)
            lower += tl.sum((found & 0xFFFFFFFF).to(tl.int64), axis=1)
    low = tl.minimum(low, tl.min(lowest, axis=1))
    high = tl.maximum(high, tl.max(highest, axis=1))
    return upper, lower, magnitude, square, low, high


@triton.jit
def measure_wide_integers(value, n, program, programs, KIND: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """What one program finds in integers of more than a byte. Of the sum it gives the upper part and the lower 32 bits
    of integers of more than two, so that neither leaves 64 bits when programs are put together."""
    BLOCK: tl.constexpr = ROWS * COLUMNS
    SIZE: tl.constexpr = value.dtype.element_ty.primitive_bitwidth // 8
    # Comparisons of 64 bits take several instructions.
    IS_UNSIGNED: tl.constexpr = KIND == UNSIGNED and SIZE > 2
    BITS: tl.constexpr = 64 if SIZE == 8 else 32
    WIDE: tl.constexpr = tl.uint64 if IS_UNSIGNED else tl.int64
    NARROW: tl.constexpr = tl.uint32 if IS_UNSIGNED else tl.int32
    NUMBER: tl.constexpr = WIDE if SIZE == 8 else NARROW
    LEAST: tl.constexpr = 0 if IS_UNSIGNED else -(2 ** (BITS - 1))
    GREATEST: tl.constexpr = 2**BITS - 1 if IS_UNSIGNED else 2 ** (BITS - 1) - 1
    offsets = tile_offsets(ROWS, COLUMNS)
    whole = n // BLOCK
    upper = tl.zeros([ROWS], tl.int64)
    lower = tl.zeros([ROWS], tl.int64)
    magnitude = tl.zeros([ROWS], tl.float64)
    square = tl.zeros([ROWS], tl.float64)
    low = tl.full([ROWS], GREATEST, NUMBER)
    high = tl.full([ROWS], LEAST, NUMBER)
    tile = program
    while tile < whole:
        found = widen(tl.load(value + (tile * BLOCK + offsets)), KIND)
        upper, lower, magnitude, square, low, high = _add_integers(
            found, found, found, upper, lower, magnitude, square, low, high, SIZE
        )
        tile += programs
    if tile == whole:
        inside = whole * BLOCK + offsets < n
        found = widen(tl.load(value + (whole * BLOCK + offsets), mask=inside, other=0), KIND)
        upper, lower, magnitude, square, low, high = _add_integers(
            found,
            tl.where(inside, found, tl.full([1, 1], GREATEST, NUMBER)),
            tl.where(inside, found, tl.full([1, 1], LEAST, NUMBER)),
            upper,
            lower,
            magnitude,
            square,
            low,
            high,
            SIZE,
        )
    lower_1, magnitude_1, square_1, low_1, high_1 = tl.reduce((lower, magnitude, square, low, high), 0, join_five)
    upper_1 = program * 0
    if SIZE == 8:
        upper_1 = tl.sum(upper, axis=0)
    elif SIZE == 4:
        upper_1, lower_1 = lower_1 >> 32, lower_1 & 0xFFFFFFFF
    return upper_1, lower_1, magnitude_1, square_1, low_1, high_1
