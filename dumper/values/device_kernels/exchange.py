"""What the programs of one launch are told, and what they leave each other.

A launch has some programs for each tensor. A program goes through every so-many-th tile of the tensor and leaves what
it found in its row of ``partials``. The program of a tensor that is done last (``arrived`` counts them) puts the rows
together, in their order, so that the result does not depend on which one that was. Nothing is allocated, and no program
waits for another.
"""

from __future__ import annotations

import triton
import triton.language as tl

PARTIALS = tl.constexpr(8)
"""Words of 64 bits in a row of ``partials``: sum, sum of magnitudes, of squares, least, greatest, number of NaN, of
infinities. Of integers, whose sum is exact, the first is the sum of the upper halves, the sixth of the lower ones."""
SEGMENT = tl.constexpr(4)
"""Words of a row of ``segments``: address, length, first program, number of programs."""


@triton.jit
def as_word(number):
    """The bits of a float64 as int64."""
    return number.to(tl.int64, bitcast=True)


@triton.jit
def left_words(partials, word: tl.constexpr, rows, programs):
    """A word of all rows, 0 where there is none. Not from the cache of one multiprocessor."""
    return tl.load(partials + rows * PARTIALS + word, mask=rows < programs, other=0, cache_modifier=".cg")


@triton.jit
def left_numbers(partials, word: tl.constexpr, rows, programs):
    return left_words(partials, word, rows, programs).to(tl.float64, bitcast=True)


@triton.jit
def is_last_program(arrived, programs):
    """Whether all programs of the tensor have left their rows. To one of them it says so, and begins to count anew."""
    tl.debug_barrier()
    is_last = tl.atomic_add(arrived, 1, sem="acq_rel", scope="gpu") == programs - 1
    if is_last:
        tl.store(arrived, 0)
    return is_last


@triton.jit
def join_five(total, magnitude, square, low, high, total_2, magnitude_2, square_2, low_2, high_2):
    """Two sets of three sums, the least and the largest as one."""
    total, magnitude, square = total + total_2, magnitude + magnitude_2, square + square_2
    return total, magnitude, square, tl.minimum(low, low_2), tl.maximum(high, high_2)
