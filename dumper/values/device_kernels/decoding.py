"""Elements of tensors as kernels read them.

They are read as unsigned integers and decoded here: what can be read does not depend on the types that a release of
Triton knows.
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

E4M3FN_BEYOND = tl.constexpr(1.875)
"""A NaN of FLOAT8_E4M3FN as it is decoded here; all other magnitudes are smaller."""


@triton.jit
def decode(bits, table, KIND: tl.constexpr):
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
def is_finite(value, KIND: tl.constexpr):
    if KIND == FLOAT8_E4M3FN:
        return tl.abs(value) < E4M3FN_BEYOND
    else:
        return value - value == 0.0


@triton.jit
def is_nan(value, KIND: tl.constexpr):
    if KIND == FLOAT8_E4M3FN:
        return tl.abs(value) >= E4M3FN_BEYOND
    else:
        return value != value


@triton.jit
def widen(bits, KIND: tl.constexpr):
    """Integers of a byte or two as int32, larger ones as they are."""
    if KIND == BOOL:
        return (bits != 0).to(tl.int32)
    elif KIND == UNSIGNED:
        return bits if bits.dtype.primitive_bitwidth >= 32 else bits.to(tl.int32)
    elif bits.dtype == tl.uint8:
        return bits.to(tl.int8, bitcast=True).to(tl.int32)
    elif bits.dtype == tl.uint16:
        return bits.to(tl.int16, bitcast=True).to(tl.int32)
    elif bits.dtype == tl.uint32:
        return bits.to(tl.int32, bitcast=True)
    else:
        return bits.to(tl.int64, bitcast=True)


@triton.jit
def tile_offsets(ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Of the elements in a tile; those of a row lie side by side, and one thread reads them at once."""
    return tl.arange(0, ROWS)[:, None] * COLUMNS + tl.arange(0, COLUMNS)[None, :]
