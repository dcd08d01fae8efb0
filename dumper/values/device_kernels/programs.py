"""The Triton kernels: the statistics of tensors, and the sums of their fingerprints, each in one pass.

A launch has some programs for each tensor. A program goes through every so-many-th tile of the tensor and leaves what
it found in its row of ``partials``. The program of a tensor that is done last (``arrived`` counts them) puts the rows
together, in their order, so that the result does not depend on which one that was. Nothing is allocated, and no program
waits for another.

Elements are read as unsigned integers and decoded here: what can be read does not depend on the types that a release of
Triton knows, and the bits of a fingerprint are those in memory.
"""

from __future__ import annotations

import triton
import triton.language as tl

BFLOAT16 = tl.constexpr(0)
FLOAT16 = tl.constexpr(1)
FLOAT32 = tl.constexpr(2)
FLOAT64 = tl.constexpr(3)
FLOAT8_E4M3FN = tl.constexpr(4)
FLOAT8_E5M2 = tl.constexpr(5)
FLOAT8_OTHER = tl.constexpr(6)
"""Other types of a byte: the value of each is in a table."""
SIGNED = tl.constexpr(7)
UNSIGNED = tl.constexpr(8)
BOOL = tl.constexpr(9)

PARTIALS = tl.constexpr(8)
"""Words of 64 bits in a row of ``partials``: sum, sum of magnitudes, of squares, least, greatest, number of NaN, of
infinities. Of integers, whose sum is exact, the first is the sum of the upper halves, the sixth of the lower ones."""
RESULTS = tl.constexpr(7)
SEGMENT = tl.constexpr(4)
"""Words of a row of ``segments``: address, length, first program, number of programs."""

E4M3FN_BEYOND = tl.constexpr(1.875)
"""A NaN of FLOAT8_E4M3FN as it is decoded here; all other magnitudes are smaller."""

STRIPES = tl.constexpr(8)
LANES = tl.constexpr(16)
STRAND = tl.constexpr(0x9E3779B97F4A7C15)
"""Of fingerprints; see ``dumper/values/fingerprint/reference.py``."""


@triton.jit
def _decode(bits, table, KIND: tl.constexpr):
    """Elements as float32, of float64 as float64. Those of FLOAT8_E4M3FN are divided by 256."""
    if KIND == BFLOAT16:
        value = (bits.to(tl.uint32) << 16).to(tl.float32, bitcast=True)
    elif KIND == FLOAT16:
        value = bits.to(tl.float16, bitcast=True).to(tl.float32)
    elif KIND == FLOAT32:
        value = bits.to(tl.float32, bitcast=True)
    elif KIND == FLOAT64:
        value = bits.to(tl.float64, bitcast=True)
    elif KIND == FLOAT8_E5M2:
        # The upper byte of a float16.
        value = (bits.to(tl.uint16) << 8).to(tl.float16, bitcast=True).to(tl.float32)
    elif KIND == FLOAT8_E4M3FN:
        # Sign, exponent and mantissa in their places of a float16, whose exponents begin 8 lower.
        wide = bits.to(tl.uint16)
        value = (((wide & 0x80) << 8) | ((wide & 0x7F) << 7)).to(tl.float16, bitcast=True).to(tl.float32)
    else:
        value = tl.load(table + bits.to(tl.int32))
    return value


@triton.jit
def _is_finite(value, KIND: tl.constexpr):
    if KIND == FLOAT8_E4M3FN:
        return tl.abs(value) < E4M3FN_BEYOND
    else:
        return value - value == 0.0


@triton.jit
def _is_nan(value, KIND: tl.constexpr):
    if KIND == FLOAT8_E4M3FN:
        return tl.abs(value) >= E4M3FN_BEYOND
    else:
        return value != value


@triton.jit
def _widen(bits, KIND: tl.constexpr):
    """Integers of a byte or two as int32, others as int64, of uint64 as they are."""
    if KIND == BOOL:
        return (bits != 0).to(tl.int32)
    elif bits.dtype == tl.uint64 and KIND == UNSIGNED:
        return bits
    elif KIND == UNSIGNED:
        return bits.to(tl.int64 if bits.dtype == tl.uint32 else tl.int32)
    elif bits.dtype == tl.uint8:
        return bits.to(tl.int8, bitcast=True).to(tl.int32)
    elif bits.dtype == tl.uint16:
        return bits.to(tl.int16, bitcast=True).to(tl.int32)
    elif bits.dtype == tl.uint32:
        return bits.to(tl.int32, bitcast=True).to(tl.int64)
    else:
        return bits.to(tl.int64, bitcast=True)


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
def _add_integers(found, lowest, highest, upper, lower, magnitude, square, low, high):
    """The same of integers, with two sums."""
    if found.dtype == tl.int32:
        # Of a byte or two: no sum over a row leaves 32 bits, but for squares.
        lower += tl.sum(found, axis=1)
        magnitude += tl.sum(tl.abs(found), axis=1).to(tl.float64)
        square += tl.sum(found.to(tl.int64) * found, axis=1).to(tl.float64)
    else:
        wide = found.to(tl.float64)
        magnitude += tl.sum(tl.abs(wide), axis=1)
        square += tl.sum(wide * wide, axis=1)
        upper += tl.sum((found >> 32).to(tl.int64), axis=1)
        lower += tl.sum((found & 0xFFFFFFFF).to(tl.int64), axis=1)
    low = tl.minimum(low, tl.min(lowest, axis=1))
    high = tl.maximum(high, tl.max(highest, axis=1))
    return upper, lower, magnitude, square, low, high


@triton.jit
def _join_five(total, magnitude, square, low, high, total_2, magnitude_2, square_2, low_2, high_2):
    total, magnitude, square = total + total_2, magnitude + magnitude_2, square + square_2
    return total, magnitude, square, tl.minimum(low, low_2), tl.maximum(high, high_2)


@triton.jit
def _join_seven(
    total, magnitude, square, low, high, six, seven, total_2, magnitude_2, square_2, low_2, high_2, six_2, seven_2
):
    total, magnitude, square = total + total_2, magnitude + magnitude_2, square + square_2
    return total, magnitude, square, tl.minimum(low, low_2), tl.maximum(high, high_2), six + six_2, seven + seven_2


@triton.jit
def _offsets(ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Of the elements in a tile; those of a row lie side by side, and one thread reads them at once."""
    return tl.arange(0, ROWS)[:, None] * COLUMNS + tl.arange(0, COLUMNS)[None, :]


@triton.jit
def _measure_floats(value, n, table, program, programs, KIND: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """What one program finds in floating-point elements: the seven numbers of a row of partials."""
    BLOCK: tl.constexpr = ROWS * COLUMNS
    NUMBER: tl.constexpr = tl.float64 if KIND == FLOAT64 else tl.float32
    offsets = _offsets(ROWS, COLUMNS)
    whole = n // BLOCK
    total = tl.zeros([ROWS], tl.float64)
    magnitude = tl.zeros([ROWS], tl.float64)
    square = tl.zeros([ROWS], tl.float64)
    low = tl.full([ROWS], float("inf"), NUMBER)
    high = tl.full([ROWS], float("-inf"), NUMBER)
    tile = program
    while tile < whole:
        found = _decode(tl.load(value + (tile * BLOCK + offsets)), table, KIND)
        total, magnitude, square, low, high = _add_floats(found, found, found, total, magnitude, square, low, high)
        tile += programs
    if tile == whole:
        # The last one, which the elements do not fill.
        inside = whole * BLOCK + offsets < n
        found = _decode(tl.load(value + (whole * BLOCK + offsets), mask=inside, other=0), table, KIND)
        total, magnitude, square, low, high = _add_floats(
            tl.where(inside, found, 0.0),
            tl.where(inside, found, float("inf")),
            tl.where(inside, found, float("-inf")),
            total,
            magnitude,
            square,
            low,
            high,
        )
    total_1, magnitude_1, square_1, low_1, high_1 = tl.reduce((total, magnitude, square, low, high), 0, _join_five)
    nan_1 = program * 0
    infinite_1 = program * 0
    # What is not finite shows in the sum of the magnitudes. Only then each element is looked at, in a second pass.
    if KIND == FLOAT8_E4M3FN:
        all_finite = tl.maximum(high_1, -low_1) < E4M3FN_BEYOND
    else:
        all_finite = magnitude_1 - magnitude_1 == 0.0
    if all_finite == 0:
        total = tl.zeros([ROWS], tl.float64)
        magnitude = tl.zeros([ROWS], tl.float64)
        square = tl.zeros([ROWS], tl.float64)
        low = tl.full([ROWS], float("inf"), NUMBER)
        high = tl.full([ROWS], float("-inf"), NUMBER)
        nan = tl.zeros([ROWS], tl.int64)
        infinite = tl.zeros([ROWS], tl.int64)
        tile = program
        while tile <= whole:
            inside = tile * BLOCK + offsets < n
            found = _decode(tl.load(value + (tile * BLOCK + offsets), mask=inside, other=0), table, KIND)
            unknown = inside & _is_nan(found, KIND)
            finite = inside & _is_finite(found, KIND)
            total, magnitude, square, low, high = _add_floats(
                tl.where(finite, found, 0.0),
                tl.where(finite, found, float("inf")),
                tl.where(finite, found, float("-inf")),
                total,
                magnitude,
                square,
                low,
                high,
            )
            nan += tl.sum(unknown.to(tl.int32), axis=1)
            infinite += tl.sum((inside & (finite == 0) & (unknown == 0)).to(tl.int32), axis=1)
            tile += programs
        total_1, magnitude_1, square_1, low_1, high_1, nan_1, infinite_1 = tl.reduce(
            (total, magnitude, square, low, high, nan, infinite), 0, _join_seven
        )
    low_1, high_1 = low_1.to(tl.float64), high_1.to(tl.float64)
    if KIND == FLOAT8_E4M3FN:
        total_1, magnitude_1, square_1 = total_1 * 256.0, magnitude_1 * 256.0, square_1 * 65536.0
        low_1, high_1 = low_1 * 256.0, high_1 * 256.0
    return total_1, magnitude_1, square_1, low_1, high_1, nan_1, infinite_1


@triton.jit
def _measure_integers(value, n, program, programs, KIND: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """What one program finds in integers: the seven numbers of a row of partials. Upper and lower halves are added
    apart, so that neither sum leaves 64 bits."""
    BLOCK: tl.constexpr = ROWS * COLUMNS
    SIZE: tl.constexpr = value.dtype.element_ty.primitive_bitwidth // 8
    IS_UINT64: tl.constexpr = KIND == UNSIGNED and SIZE == 8
    NUMBER: tl.constexpr = tl.uint64 if IS_UINT64 else (tl.int32 if SIZE <= 2 else tl.int64)
    LEAST: tl.constexpr = 0 if IS_UINT64 else (-(2**31) if SIZE <= 2 else -(2**63))
    GREATEST: tl.constexpr = 2**64 - 1 if IS_UINT64 else (2**31 - 1 if SIZE <= 2 else 2**63 - 1)
    offsets = _offsets(ROWS, COLUMNS)
    whole = n // BLOCK
    upper = tl.zeros([ROWS], tl.int64)
    lower = tl.zeros([ROWS], tl.int64)
    magnitude = tl.zeros([ROWS], tl.float64)
    square = tl.zeros([ROWS], tl.float64)
    low = tl.full([ROWS], GREATEST, NUMBER)
    high = tl.full([ROWS], LEAST, NUMBER)
    tile = program
    while tile < whole:
        found = _widen(tl.load(value + (tile * BLOCK + offsets)), KIND)
        upper, lower, magnitude, square, low, high = _add_integers(
            found, found, found, upper, lower, magnitude, square, low, high
        )
        tile += programs
    if tile == whole:
        inside = whole * BLOCK + offsets < n
        found = _widen(tl.load(value + (whole * BLOCK + offsets), mask=inside, other=0), KIND)
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
        )
    lower_1, magnitude_1, square_1, low_1, high_1 = tl.reduce((lower, magnitude, square, low, high), 0, _join_five)
    upper_1 = program * 0
    if SIZE > 2:
        upper_1 = tl.sum(upper, axis=0)
    return upper_1, magnitude_1, square_1, low_1.to(tl.float64), high_1.to(tl.float64), lower_1, program * 0


@triton.jit
def _as_word(number):
    """The bits of a float64 as int64."""
    return number.to(tl.int64, bitcast=True)


@triton.jit
def _word(partials, word: tl.constexpr, rows, programs):
    """A word of all rows, 0 where there is none. Not from the cache of one multiprocessor."""
    return tl.load(partials + rows * PARTIALS + word, mask=rows < programs, other=0, cache_modifier=".cg")


@triton.jit
def _number(partials, word: tl.constexpr, rows, programs):
    return _word(partials, word, rows, programs).to(tl.float64, bitcast=True)


@triton.jit
def _is_last(arrived, programs):
    """Whether all programs of the tensor have left their rows. To one of them it says so, and begins to count anew."""
    tl.debug_barrier()
    is_last = tl.atomic_add(arrived, 1, sem="acq_rel", scope="gpu") == programs - 1
    if is_last:
        tl.store(arrived, 0)
    return is_last


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
    MOST_PROGRAMS: tl.constexpr,
):
    if KIND >= SIGNED:
        total, magnitude, square, low, high, nan, infinite = _measure_integers(
            value, n, program, programs, KIND, ROWS, COLUMNS
        )
    else:
        total, magnitude, square, low, high, nan, infinite = _measure_floats(
            value, n, table, program, programs, KIND, ROWS, COLUMNS
        )
    if programs == 1:
        _store_statistics(out, n, total, magnitude, square, low, high, nan, infinite, KIND)
    else:
        row = partials + program * PARTIALS
        tl.store(row, total if KIND >= SIGNED else _as_word(total))
        tl.store(row + 1, _as_word(magnitude))
        tl.store(row + 2, _as_word(square))
        tl.store(row + 3, _as_word(low))
        tl.store(row + 4, _as_word(high))
        tl.store(row + 5, nan)
        tl.store(row + 6, infinite)
        if _is_last(arrived, programs):
            rows = tl.arange(0, MOST_PROGRAMS)
            there = rows < programs
            totals = _word(partials, 0, rows, programs) if KIND >= SIGNED else _number(partials, 0, rows, programs)
            total, magnitude, square, low, high, nan, infinite = tl.reduce(
                (
                    totals,
                    _number(partials, 1, rows, programs),
                    _number(partials, 2, rows, programs),
                    tl.where(there, _number(partials, 3, rows, programs), float("inf")),
                    tl.where(there, _number(partials, 4, rows, programs), float("-inf")),
                    _word(partials, 5, rows, programs),
                    _word(partials, 6, rows, programs),
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
    MOST_PROGRAMS: tl.constexpr,
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
        MOST_PROGRAMS,
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
    MOST_PROGRAMS: tl.constexpr,
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
        MOST_PROGRAMS,
    )


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
        if _is_last(arrived, programs):
            rows = tl.arange(0, MOST_PROGRAMS)
            tl.store(out, tl.sum(_word(partials, 0, rows, programs), axis=0))
            tl.store(out + 1, tl.sum(_word(partials, 1, rows, programs), axis=0))


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
