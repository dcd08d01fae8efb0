"""What one program finds in a tensor whose elements have a byte: four of them are handled as one word.

The arithmetic of a GPU in double precision, and its conversions, are slow beside the reading of bytes, and so is each
instruction for a byte alone. Here sums are exact in integers, or in float32 for as many elements as it can hold
exactly. FLOAT8_E5M2 has too wide a range for that: its elements are added in float64, since many may cancel out; of its
magnitudes and squares, which cannot, the sums of 16 are rounded to float32.
"""

from __future__ import annotations

import triton
import triton.language as tl

from dumper.values.device_kernels.decoding import BOOL, FLOAT8_E4M3FN, FLOAT8_E5M2, SIGNED, tile_offsets

WORDS_OF_ROW = tl.constexpr(4)
"""Words in a row of a tile, which a thread reads at once."""
ROW_BYTES = tl.constexpr(16)
FOR_BYTES, FOR_HALVES, FOR_E4M3 = map(tl.constexpr, (1, 2, 3))
"""INSTRUCTIONS is one of them, or 0: what NVIDIA's GPUs have instructions for, more in later ones: sums of products of
bytes; the lesser and the greater of two float16 each (sm_80); two FLOAT8_E4M3FN as float16 (sm_89)."""
OFFSET = tl.constexpr(0x42C00000)
"""The bits of 96.0: float32 from 64 to 128 have the least FLOAT8_E4M3FN, divided by 256, in their last place."""
OFFSET_FOR_E4M3 = tl.constexpr(0x46C00000)
"""The bits of 24576.0, and the least FLOAT8_E4M3FN itself."""


@triton.jit
def _dot(one, other, total, KIND: tl.constexpr, INSTRUCTIONS: tl.constexpr):
    """``total``, int32, and the products of the bytes of two words."""
    if INSTRUCTIONS >= FOR_BYTES and KIND == SIGNED:
        return tl.inline_asm_elementwise(
            "dp4a.s32.s32 $0, $1, $2, $3;", "=r,r,r,r", [one, other, total], dtype=tl.int32, is_pure=True, pack=1
        )
    elif INSTRUCTIONS >= FOR_BYTES:
        return tl.inline_asm_elementwise(
            "dp4a.u32.u32 $0, $1, $2, $3;", "=r,r,r,r", [one, other, total], dtype=tl.int32, is_pure=True, pack=1
        )
    else:
        for place in tl.static_range(4):
            left, right = one << (24 - 8 * place), other << (24 - 8 * place)
            if KIND == SIGNED:
                total += (left.to(tl.int32, bitcast=True) >> 24) * (right.to(tl.int32, bitcast=True) >> 24)
            else:
                total += ((left >> 24) * (right >> 24)).to(tl.int32, bitcast=True)
        return total


@triton.jit
def _extremes(low, high, one, two, three, four):
    low = tl.minimum(tl.minimum(tl.minimum(tl.minimum(low, one), two), three), four)
    return low, tl.maximum(tl.maximum(tl.maximum(tl.maximum(high, one), two), three), four)


@triton.jit
def _add_integers(word, filled, total, magnitude, square, low, high, KIND: tl.constexpr, INSTRUCTIONS: tl.constexpr):
    """Add a tile of words. The extremes are found in the uppermost byte of unsigned words; lower ones do not matter."""
    if KIND == BOOL:
        # Whatever is not 0 is 1.
        word = ((((word & 0x7F7F7F7F) + 0x7F7F7F7F) | word) >> 7) & 0x01010101
        filled = ((((filled & 0x7F7F7F7F) + 0x7F7F7F7F) | filled) >> 7) & 0x01010101
    ones = tl.full(word.shape, 0x01010101, tl.uint32)
    total = _dot(word, ones, total, KIND, INSTRUCTIONS)
    square = _dot(word, word, square, KIND, INSTRUCTIONS)
    if KIND == SIGNED:
        # 1 or -1 in each byte.
        negative = (word >> 7) & 0x01010101
        magnitude = _dot(word, ((negative << 8) - negative) | 0x01010101, magnitude, KIND, INSTRUCTIONS)
        filled = filled ^ 0x80808080
    low, high = _extremes(low, high, filled, filled << 8, filled << 16, filled << 24)
    return total, magnitude, square, low, high


@triton.jit
def _half(bits):
    """The lower 16 bits, a float16, as float32."""
    return bits.to(tl.uint16).to(tl.float16, bitcast=True).to(tl.float32)


@triton.jit
def _half_bits(value):
    """The bits of a float32 as a float16 that has the same value."""
    return value.to(tl.float16).to(tl.uint16, bitcast=True).to(tl.uint32)


@triton.jit
def _lesser_halves(one, other, INSTRUCTIONS: tl.constexpr):
    """Of two float16 in each word, of which one may be NaN."""
    if INSTRUCTIONS >= FOR_HALVES:
        return tl.inline_asm_elementwise(
            "min.f16x2 $0, $1, $2;", "=r,r,r", [one, other], dtype=tl.uint32, is_pure=True, pack=1
        )
    else:
        lower = tl.minimum(_half(one), _half(other))
        return _half_bits(lower) | (_half_bits(tl.minimum(_half(one >> 16), _half(other >> 16))) << 16)


@triton.jit
def _greater_halves(one, other, INSTRUCTIONS: tl.constexpr):
    """Of two float16 in each word, of which one may be NaN."""
    if INSTRUCTIONS >= FOR_HALVES:
        return tl.inline_asm_elementwise(
            "max.f16x2 $0, $1, $2;", "=r,r,r", [one, other], dtype=tl.uint32, is_pure=True, pack=1
        )
    else:
        lower = tl.maximum(_half(one), _half(other))
        return _half_bits(lower) | (_half_bits(tl.maximum(_half(one >> 16), _half(other >> 16))) << 16)


@triton.jit
def _extremes_of_halves(low, high, word, KIND: tl.constexpr, INSTRUCTIONS: tl.constexpr):
    """Of the elements of words and what is known: the least in both halves of ``low``, the greatest in ``high``."""
    first, second = _pairs(word, KIND, INSTRUCTIONS)
    low = _lesser_halves(_lesser_halves(low, first, INSTRUCTIONS), second, INSTRUCTIONS)
    return low, _greater_halves(_greater_halves(high, first, INSTRUCTIONS), second, INSTRUCTIONS)


@triton.jit
def _halves(word, KIND: tl.constexpr):
    """Bytes 1 and 3 of words as the bits of two float16; those of FLOAT8_E4M3FN are divided by 256."""
    if KIND == FLOAT8_E4M3FN:
        # Sign, exponent and mantissa in their places, which has exponents that begin 8 lower.
        return ((word >> 1) & 0x3F803F80) | (word & 0x80008000)
    else:
        return word & 0xFF00FF00


@triton.jit
def _pairs(word, KIND: tl.constexpr, INSTRUCTIONS: tl.constexpr):
    """The elements of words as two float16 in each of two words: of FLOAT8_E4M3FN as ``decode`` has them, divided by
    256, or as they are where there is an instruction FOR_E4M3."""
    if KIND == FLOAT8_E4M3FN and INSTRUCTIONS >= FOR_E4M3:
        return tl.inline_asm_elementwise(
            "{ .reg .b16 lower, upper; mov.b32 {lower, upper}, $2; "
            "cvt.rn.f16x2.e4m3x2 $0, lower; cvt.rn.f16x2.e4m3x2 $1, upper; }",
            "=r,=r,r",
            [word],
            dtype=(tl.uint32, tl.uint32),
            is_pure=True,
            pack=1,
        )
    else:
        return _halves(word << 8, KIND), _halves(word, KIND)


@triton.jit
def _two_floats(pair, KIND: tl.constexpr, INSTRUCTIONS: tl.constexpr):
    """The two float16 in each word as float32."""
    if INSTRUCTIONS >= FOR_BYTES:
        # Where they lie, which the compiler does not see.
        return tl.inline_asm_elementwise(
            "{ .reg .b16 lower, upper; mov.b32 {lower, upper}, $2; cvt.f32.f16 $0, lower; cvt.f32.f16 $1, upper; }",
            "=r,=r,r",
            [pair],
            dtype=(tl.float32, tl.float32),
            is_pure=True,
            pack=1,
        )
    else:
        return _half(pair), _half(pair >> 16)


@triton.jit
def _four_floats(word, KIND: tl.constexpr, INSTRUCTIONS: tl.constexpr):
    """The elements of words, each as float32."""
    first, second = _pairs(word, KIND, INSTRUCTIONS)
    one, two = _two_floats(first, KIND, INSTRUCTIONS)
    three, four = _two_floats(second, KIND, INSTRUCTIONS)
    return one, two, three, four


@triton.jit
def _fixed(value, INSTRUCTIONS: tl.constexpr):
    """Elements of FLOAT8_E4M3FN, as ``_pairs`` gives them, in units of the least one, and an offset more."""
    return (value + (24576.0 if INSTRUCTIONS >= FOR_E4M3 else 96.0)).to(tl.uint32, bitcast=True)


@triton.jit
def _add_square(square, fixed, INSTRUCTIONS: tl.constexpr):
    """``square`` and the square of an unsigned word, in 64 bits."""
    if INSTRUCTIONS >= FOR_BYTES:
        # One instruction, where the compiler would add squares to each other first, in two instructions each.
        return tl.inline_asm_elementwise(
            "mad.wide.u32 $0, $1, $1, $2;", "=l,r,l", [fixed, square], dtype=tl.uint64, is_pure=True, pack=1
        )
    else:
        wide = fixed.to(tl.uint64)
        return square + wide * wide


@triton.jit
def _add_e4m3(word, total, magnitude, square, INSTRUCTIONS: tl.constexpr):
    """``magnitude``, in float32, is exact for 64 elements; the others are integers with the offset in each element."""
    one, two, three, four = _four_floats(word, FLOAT8_E4M3FN, INSTRUCTIONS)
    magnitude += (tl.abs(one) + tl.abs(two)) + (tl.abs(three) + tl.abs(four))
    fixed_1, fixed_2, fixed_3, fixed_4 = (
        _fixed(one, INSTRUCTIONS),
        _fixed(two, INSTRUCTIONS),
        _fixed(three, INSTRUCTIONS),
        _fixed(four, INSTRUCTIONS),
    )
    total += fixed_1 + fixed_2 + fixed_3 + fixed_4
    square = _add_square(square, fixed_1, INSTRUCTIONS)
    square = _add_square(square, fixed_2, INSTRUCTIONS)
    square = _add_square(square, fixed_3, INSTRUCTIONS)
    square = _add_square(square, fixed_4, INSTRUCTIONS)
    return total, magnitude, square


@triton.jit
def _add_e5m2(word, total, magnitude, square, INSTRUCTIONS: tl.constexpr):
    one, two, three, four = _four_floats(word, FLOAT8_E5M2, INSTRUCTIONS)
    total += (one.to(tl.float64) + two.to(tl.float64)) + (three.to(tl.float64) + four.to(tl.float64))
    magnitude += (tl.abs(one) + tl.abs(two)) + (tl.abs(three) + tl.abs(four))
    square += one * one
    square += two * two
    square += three * three
    square += four * four
    return total, magnitude, square


@triton.jit
def _add(word, filled, total, magnitude, square, low, high, KIND: tl.constexpr, INSTRUCTIONS: tl.constexpr):
    """Add a tile of words to what is known of each place in a tile. ``filled`` are the words again, with an element of
    the tensor in the place of those that do not count, which are 0 in ``word``."""
    if KIND >= SIGNED:
        return _add_integers(word, filled, total, magnitude, square, low, high, KIND, INSTRUCTIONS)
    else:
        low, high = _extremes_of_halves(low, high, filled, KIND, INSTRUCTIONS)
        if KIND == FLOAT8_E4M3FN:
            total, magnitude, square = _add_e4m3(word, total, magnitude, square, INSTRUCTIONS)
        else:
            total, magnitude, square = _add_e5m2(word, total, magnitude, square, INSTRUCTIONS)
        return total, magnitude, square, low, high


@triton.jit
def _add_rows(
    total,
    magnitude,
    square,
    sums,
    magnitudes,
    squares,
    KIND: tl.constexpr,
    TILES: tl.constexpr,
    INSTRUCTIONS: tl.constexpr,
):
    """Add what was found of each place in TILES tiles to what is known of each row."""
    if KIND == FLOAT8_E5M2:
        magnitudes, squares = magnitudes.to(tl.float64), squares.to(tl.float64)
    sum_of_row, square_of_row = tl.sum(sums, axis=1), tl.sum(squares, axis=1)
    if KIND == FLOAT8_E4M3FN:
        # The offset is taken off, modulo 2**32, and modulo 2**64 from (o + x)**2 = o**2 + 2 * o * x + x**2.
        FROM: tl.constexpr = OFFSET_FOR_E4M3 if INSTRUCTIONS >= FOR_E4M3 else OFFSET
        ELEMENTS: tl.constexpr = 4 * WORDS_OF_ROW * TILES
        sum_of_row = (sum_of_row - ELEMENTS * FROM % 2**32).to(tl.int32, bitcast=True)
        square_of_row = (square_of_row - ELEMENTS * FROM * FROM % 2**64).to(tl.int64, bitcast=True)
        square_of_row -= sum_of_row.to(tl.int64) * (2 * FROM)
    return (
        total + sum_of_row.to(total.dtype),
        magnitude + tl.sum(magnitudes, axis=1).to(magnitude.dtype),
        square + square_of_row.to(square.dtype),
    )


@triton.jit
def _zeros(ROWS: tl.constexpr, KIND: tl.constexpr):
    """What the sums, sums of magnitudes and of squares of TILES tiles begin with."""
    SUM: tl.constexpr = tl.int32 if KIND >= SIGNED else (tl.uint32 if KIND == FLOAT8_E4M3FN else tl.float64)
    MAGNITUDE: tl.constexpr = tl.int32 if KIND >= SIGNED else tl.float32
    SQUARE: tl.constexpr = tl.int32 if KIND >= SIGNED else (tl.uint64 if KIND == FLOAT8_E4M3FN else tl.float32)
    return (
        tl.zeros([ROWS, WORDS_OF_ROW], SUM),
        tl.zeros([ROWS, WORDS_OF_ROW], MAGNITUDE),
        tl.zeros([ROWS, WORDS_OF_ROW], SQUARE),
    )


@triton.jit
def _last_row(value, n):
    """The last row of words, [1, WORDS_OF_ROW], which the elements do not fill: with 0 in the place of what is behind
    them, and with the first element there. The first element in all places of a word."""
    place = n // ROW_BYTES * ROW_BYTES + tile_offsets(WORDS_OF_ROW, 4)
    first = tl.load(value).to(tl.uint32)
    found = tl.load(value + place, mask=place < n, other=0).to(tl.uint32)
    filled = tl.where(place < n, found, first)
    shifts = (tl.arange(0, 4) * 8).to(tl.uint32)[None, :]
    return tl.sum(found << shifts, axis=1)[None, :], tl.sum(filled << shifts, axis=1)[None, :], first * 0x01010101


@triton.jit
def _measures(total, magnitude, square, low, high, KIND: tl.constexpr, INSTRUCTIONS: tl.constexpr):
    """Of the whole, from those of each row."""
    if KIND < SIGNED:
        low = tl.minimum(_half(low), _half(low >> 16))
        high = tl.maximum(_half(high), _half(high >> 16))
    low_1, high_1 = tl.min(tl.min(low, axis=1), axis=0), tl.max(tl.max(high, axis=1), axis=0)
    total_1, magnitude_1 = tl.sum(total, axis=0), tl.sum(magnitude, axis=0).to(tl.float64)
    square_1 = tl.sum(square.to(tl.float64), axis=0)
    if KIND == FLOAT8_E4M3FN:
        total_1, square_1 = total_1.to(tl.float64) / 131072.0, square_1 / 17179869184.0
        if INSTRUCTIONS >= FOR_E4M3:
            low_1, high_1, magnitude_1 = low_1 / 256.0, high_1 / 256.0, magnitude_1 / 256.0
    elif KIND >= SIGNED:
        low_1, high_1 = (low_1 >> 24).to(tl.int32), (high_1 >> 24).to(tl.int32)
        if KIND == SIGNED:
            low_1, high_1 = low_1 - 128, high_1 - 128
        else:
            magnitude_1 = total_1.to(tl.float64)
    return total_1, magnitude_1, square_1, low_1, high_1


@triton.jit
def measure_bytes(
    value,
    n,
    program,
    programs,
    KIND: tl.constexpr,
    ROWS: tl.constexpr,
    TILES: tl.constexpr,
    INSTRUCTIONS: tl.constexpr,
):
    """What one program finds in elements of a byte: sum, sum of magnitudes and of squares, least and greatest.

    A program takes every so-many-th group of TILES tiles. The sum of integers is int64, other sums are float64;
    extremes are int32 or float32. Elements of FLOAT8_E4M3FN are taken as ``decode`` gives them, NaN as well.
    """
    TILE: tl.constexpr = ROWS * WORDS_OF_ROW
    GROUP: tl.constexpr = TILES * TILE
    # What is beyond all elements: integers, or two float16 that are infinite.
    LEAST: tl.constexpr = 0 if KIND >= SIGNED else 0xFC00FC00
    GREATEST: tl.constexpr = 0xFFFFFFFF if KIND >= SIGNED else 0x7C007C00
    words = tl.multiple_of(value.to(tl.pointer_type(tl.uint32)), 16)
    offsets = tile_offsets(ROWS, WORDS_OF_ROW)
    total = tl.zeros([ROWS], tl.float64 if KIND == FLOAT8_E5M2 else tl.int64)
    magnitude = tl.zeros([ROWS], tl.int64 if KIND >= SIGNED else tl.float64)
    square = tl.zeros([ROWS], tl.float64 if KIND == FLOAT8_E5M2 else tl.int64)
    low = tl.full([ROWS, WORDS_OF_ROW], GREATEST, tl.uint32)
    high = tl.full([ROWS, WORDS_OF_ROW], LEAST, tl.uint32)
    first = program * GROUP
    while (first + GROUP) * 4 <= n:
        sums, magnitudes, squares = _zeros(ROWS, KIND)
        for number in tl.static_range(TILES):
            word = tl.load(words + (first + number * TILE + offsets))
            sums, magnitudes, squares, low, high = _add(
                word, word, sums, magnitudes, squares, low, high, KIND, INSTRUCTIONS
            )
        total, magnitude, square = _add_rows(
            total, magnitude, square, sums, magnitudes, squares, KIND, TILES, INSTRUCTIONS
        )
        first += programs * GROUP
    if first * 4 < n:
        # The elements do not fill the last group, nor, perhaps, its last row.
        last, last_filled, fill = _last_row(value, n)
        whole = (n // ROW_BYTES - first // WORDS_OF_ROW).to(tl.int32)
        sums, magnitudes, squares = _zeros(ROWS, KIND)
        for number in tl.static_range(TILES):
            row = number * ROWS + tl.arange(0, ROWS)[:, None]
            word = tl.load(words + (first + number * TILE + offsets), mask=row < whole, other=0)
            filled = tl.where(row < whole, word, tl.where(row == whole, last_filled, fill))
            word = tl.where(row == whole, last, word)
            sums, magnitudes, squares, low, high = _add(
                word, filled, sums, magnitudes, squares, low, high, KIND, INSTRUCTIONS
            )
        total, magnitude, square = _add_rows(
            total, magnitude, square, sums, magnitudes, squares, KIND, TILES, INSTRUCTIONS
        )
    return _measures(total, magnitude, square, low, high, KIND, INSTRUCTIONS)
