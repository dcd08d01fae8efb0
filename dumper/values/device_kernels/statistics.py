"""The Triton kernels for the statistics of tensors, in one pass; a second one where elements are not finite."""

from __future__ import annotations

import triton
import triton.language as tl

from dumper.values.device_kernels.decoding import (
    E4M3FN_BEYOND,
    FLOAT8_E4M3FN,
    FLOAT64,
    SIGNED,
    decode,
    is_finite,
    is_nan,
    tile_offsets,
)
from dumper.values.device_kernels.exchange import (
    PARTIALS,
    SEGMENT,
    as_word,
    is_last_program,
    join_five,
    left_numbers,
    left_words,
)
from dumper.values.device_kernels.packed import measure_bytes
from dumper.values.device_kernels.wide_integers import measure_wide_integers

RESULTS = tl.constexpr(7)


@triton.jit
def _add_floats(found, lowest, highest, total, magnitude, square, low, high):
    """Add a tile of shape [rows, elements in a row] to what is known of its rows. ``lowest`` and ``highest`` are the
    elements again, with infinities for those that do not count."""
    wide = found.to(tl.float64)
    total += tl.sum(wide, axis=1)
    magnitude += tl.sum(tl.abs(wide), axis=1)
    square += tl.sum(wide * wide, axis=1)
    return total, magnitude, square, tl.minimum(low, tl.min(lowest, axis=1)), tl.maximum(high, tl.max(highest, axis=1))


@triton.jit
def _add_some(found, counts, total, magnitude, square, low, high):
    """Add the elements of a tile that count."""
    lowest, highest = tl.where(counts, found, float("inf")), tl.where(counts, found, float("-inf"))
    return _add_floats(tl.where(counts, found, 0.0), lowest, highest, total, magnitude, square, low, high)


@triton.jit
def _join_seven(
    total, magnitude, square, low, high, six, seven, total_2, magnitude_2, square_2, low_2, high_2, six_2, seven_2
):
    total, magnitude, square = total + total_2, magnitude + magnitude_2, square + square_2
    return total, magnitude, square, tl.minimum(low, low_2), tl.maximum(high, high_2), six + six_2, seven + seven_2


@triton.jit
def _measure_all(value, n, table, program, programs, KIND: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """What one program finds in floating-point elements, when all are finite: five numbers."""
    BLOCK: tl.constexpr = ROWS * COLUMNS
    NUMBER: tl.constexpr = tl.float64 if KIND == FLOAT64 else tl.float32
    offsets = tile_offsets(ROWS, COLUMNS)
    whole = n // BLOCK
    total = tl.zeros([ROWS], tl.float64)
    magnitude = tl.zeros([ROWS], tl.float64)
    square = tl.zeros([ROWS], tl.float64)
    low = tl.full([ROWS], float("inf"), NUMBER)
    high = tl.full([ROWS], float("-inf"), NUMBER)
    tile = program
    while tile < whole:
        found = decode(tl.load(value + (tile * BLOCK + offsets)), table, KIND)
        total, magnitude, square, low, high = _add_floats(found, found, found, total, magnitude, square, low, high)
        tile += programs
    if tile == whole:
        # The last one, which the elements do not fill.
        inside = whole * BLOCK + offsets < n
        found = decode(tl.load(value + (whole * BLOCK + offsets), mask=inside, other=0), table, KIND)
        total, magnitude, square, low, high = _add_some(found, inside, total, magnitude, square, low, high)
    return tl.reduce((total, magnitude, square, low, high), 0, join_five)


@triton.jit
def _measure_finite(
    value,
    n,
    table,
    program,
    programs,
    KIND: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    TILES: tl.constexpr,
):
    """The same of the finite elements alone, and how many are NaN and infinite."""
    BLOCK: tl.constexpr = ROWS * COLUMNS
    # The program looks at the elements that it has looked at before.
    NUMBER: tl.constexpr = tl.float64 if KIND == FLOAT64 else tl.float32
    offsets = tile_offsets(ROWS, COLUMNS)
    total = tl.zeros([ROWS], tl.float64)
    magnitude = tl.zeros([ROWS], tl.float64)
    square = tl.zeros([ROWS], tl.float64)
    low = tl.full([ROWS], float("inf"), NUMBER)
    high = tl.full([ROWS], float("-inf"), NUMBER)
    nan = tl.zeros([ROWS], tl.int64)
    infinite = tl.zeros([ROWS], tl.int64)
    seen = program * 0
    tile = program * TILES
    while tile * BLOCK < n:
        inside = tile * BLOCK + offsets < n
        found = decode(tl.load(value + (tile * BLOCK + offsets), mask=inside, other=0), table, KIND)
        unknown = inside & is_nan(found, KIND)
        finite = inside & is_finite(found, KIND)
        total, magnitude, square, low, high = _add_some(found, finite, total, magnitude, square, low, high)
        nan += tl.sum(unknown.to(tl.int32), axis=1)
        infinite += tl.sum((inside & (finite == 0) & (unknown == 0)).to(tl.int32), axis=1)
        seen += 1
        tile = (program + seen // TILES * programs) * TILES + seen % TILES
    return tl.reduce((total, magnitude, square, low, high, nan, infinite), 0, _join_seven)


@triton.jit
def _measure_floats(
    value,
    n,
    table,
    program,
    programs,
    KIND: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    TILES: tl.constexpr,
    INSTRUCTIONS: tl.constexpr,
):
    """What one program finds in floating-point elements: the seven numbers of a row of partials."""
    if TILES > 1:
        total, magnitude, square, low, high = measure_bytes(
            value, n, program, programs, KIND, ROWS, TILES, INSTRUCTIONS
        )
    else:
        total, magnitude, square, low, high = _measure_all(value, n, table, program, programs, KIND, ROWS, COLUMNS)
    nan = program * 0
    infinite = program * 0
    # What is not finite shows in the sum of the magnitudes. Only then each element is looked at, in a second pass.
    all_finite = magnitude - magnitude == 0.0
    if KIND == FLOAT8_E4M3FN:
        # Where its NaN is decoded as a number.
        all_finite &= tl.maximum(high, -low) < E4M3FN_BEYOND
    if all_finite == 0:
        total, magnitude, square, low, high, nan, infinite = _measure_finite(
            value, n, table, program, programs, KIND, ROWS, COLUMNS, TILES
        )
    low, high = low.to(tl.float64), high.to(tl.float64)
    if KIND == FLOAT8_E4M3FN:
        total, magnitude, square = total * 256.0, magnitude * 256.0, square * 65536.0
        low, high = low * 256.0, high * 256.0
    return total, magnitude, square, low, high, nan, infinite


@triton.jit
def _measure_integers(
    value,
    n,
    program,
    programs,
    KIND: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    TILES: tl.constexpr,
    INSTRUCTIONS: tl.constexpr,
):
    """What one program finds in integers: the seven numbers of a row of partials."""
    if TILES > 1:
        upper = program * 0
        lower, magnitude, square, low, high = measure_bytes(
            value, n, program, programs, KIND, ROWS, TILES, INSTRUCTIONS
        )
    else:
        upper, lower, magnitude, square, low, high = measure_wide_integers(
            value, n, program, programs, KIND, ROWS, COLUMNS
        )
    return upper, magnitude, square, low.to(tl.float64), high.to(tl.float64), lower, program * 0


@triton.jit
def _store_statistics(out, n, total, magnitude, square, low, high, nan, infinite, KIND: tl.constexpr):
    """The seven statistics from the seven numbers of the whole tensor."""
    if KIND >= SIGNED:
        total_wide = total.to(tl.float64) * 4294967296.0 + nan.to(tl.float64)
        count = n
    else:
        total_wide = total
        count = n - nan - infinite
    elements = tl.maximum(count, 1).to(tl.float64)
    tl.store(out, tl.where(count == 0, 0.0, low))
    tl.store(out + 1, tl.where(count == 0, 0.0, high))
    tl.store(out + 2, total_wide / elements)
    tl.store(out + 3, magnitude / elements)
    tl.store(out + 4, tl.sqrt(square))
    tl.store(out + 5, (n - count - infinite).to(tl.float64))
    tl.store(out + 6, infinite.to(tl.float64))


@triton.jit
def _statistics(
    value,
    n,
    table,
    program,
    programs,
    partials,
    arrived,
    out,
    KIND: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    TILES: tl.constexpr,
    MOST_PROGRAMS: tl.constexpr,
    INSTRUCTIONS: tl.constexpr,
):
    if KIND >= SIGNED:
        total, magnitude, square, low, high, nan, infinite = _measure_integers(
            value, n, program, programs, KIND, ROWS, COLUMNS, TILES, INSTRUCTIONS
        )
    else:
        total, magnitude, square, low, high, nan, infinite = _measure_floats(
            value, n, table, program, programs, KIND, ROWS, COLUMNS, TILES, INSTRUCTIONS
        )
    if programs == 1:
        _store_statistics(out, n, total, magnitude, square, low, high, nan, infinite, KIND)
    else:
        row = partials + program * PARTIALS
        tl.store(row, total if KIND >= SIGNED else as_word(total))
        tl.store(row + 1, as_word(magnitude))
        tl.store(row + 2, as_word(square))
        tl.store(row + 3, as_word(low))
        tl.store(row + 4, as_word(high))
        tl.store(row + 5, nan)
        tl.store(row + 6, infinite)
        if is_last_program(arrived, programs):
            rows = tl.arange(0, MOST_PROGRAMS)
            there = rows < programs
            totals = (
                left_words(partials, 0, rows, programs) if KIND >= SIGNED else left_numbers(partials, 0, rows, programs)
            )
            total, magnitude, square, low, high, nan, infinite = tl.reduce(
                (
                    totals,
                    left_numbers(partials, 1, rows, programs),
                    left_numbers(partials, 2, rows, programs),
                    tl.where(there, left_numbers(partials, 3, rows, programs), float("inf")),
                    tl.where(there, left_numbers(partials, 4, rows, programs), float("-inf")),
                    left_words(partials, 5, rows, programs),
                    left_words(partials, 6, rows, programs),
                ),
                0,
                _join_seven,
            )
            _store_statistics(out, n, total, magnitude, square, low, high, nan, infinite, KIND)


@triton.jit(do_not_specialize=["n"])
def statistics(
    value,
    n: tl.int64,
    table,
    partials,
    arrived,
    out,
    KIND: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    TILES: tl.constexpr,
    MOST_PROGRAMS: tl.constexpr,
    INSTRUCTIONS: tl.constexpr,
):
    """The statistics of ``n`` elements at ``value`` (unsigned integers of the element's size) to ``out`` (float64[7]).

    ``partials``: int64, ``PARTIALS`` for each program; ``arrived``: int32[1], 0 before and after. Neither may be used
    by two launches at a time. ``table``: float32[256], the values of FLOAT8_OTHER.
    """
    _statistics(
        value,
        n,
        table,
        tl.program_id(0).to(tl.int64),
        tl.num_programs(0).to(tl.int64),
        partials,
        arrived,
        out,
        KIND,
        ROWS,
        COLUMNS,
        TILES,
        MOST_PROGRAMS,
        INSTRUCTIONS,
    )


@triton.jit
def statistics_of_many(
    segments,
    segment_of_program,
    table,
    partials,
    arrived,
    out,
    KIND: tl.constexpr,
    SIZE: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    TILES: tl.constexpr,
    MOST_PROGRAMS: tl.constexpr,
    INSTRUCTIONS: tl.constexpr,
):
    """The statistics of several tensors of one kind and element size to the rows of ``out`` (float64[segments, 7]).

    ``segments``: int64[segments, 4]; ``segment_of_program``: int32; ``arrived``: int32[segments]. Addresses are
    multiples of 16.
    """
    segment = tl.load(segment_of_program + tl.program_id(0)).to(tl.int64)
    entry = segments + segment * SEGMENT
    SMALL: tl.constexpr = tl.uint8 if SIZE == 1 else tl.uint16
    LARGE: tl.constexpr = tl.uint32 if SIZE == 4 else tl.uint64
    UINT: tl.constexpr = SMALL if SIZE < 4 else LARGE
    value = tl.multiple_of(tl.load(entry).to(tl.pointer_type(UINT)), 16)
    first = tl.load(entry + 2)
    _statistics(
        value,
        tl.load(entry + 1),
        table,
        tl.program_id(0) - first,
        tl.load(entry + 3),
        partials + first * PARTIALS,
        arrived + segment,
        out + segment * RESULTS,
        KIND,
        ROWS,
        COLUMNS,
        TILES,
        MOST_PROGRAMS,
        INSTRUCTIONS,
    )
