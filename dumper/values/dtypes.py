"""Names of data types, as torch writes them without ``torch.``, and what they are in numpy."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import numpy.typing as npt

_NUMPY_NAMES = {
    "float64": "<f8",
    "float32": "<f4",
    "float16": "<f2",
    "int64": "<i8",
    "int32": "<i4",
    "int16": "<i2",
    "int8": "|i1",
    "uint64": "<u8",
    "uint32": "<u4",
    "uint16": "<u2",
    "uint8": "|u1",
    "bool": "|b1",
    "complex64": "<c8",
    "complex128": "<c16",
}
_ML_DTYPES_NAMES = {
    "bfloat16": "bfloat16",
    "float8_e4m3fn": "float8_e4m3fn",
    "float8_e4m3fnuz": "float8_e4m3fnuz",
    "float8_e5m2": "float8_e5m2",
    "float8_e5m2fnuz": "float8_e5m2fnuz",
    "float8_e8m0fnu": "float8_e8m0fnu",
}
_BYTE_PAIRS = {"complex32": "<f2"}
"""Types that numpy lacks, read as an array of their parts with one more dimension of length 2."""
PACKED = frozenset(
    ["float4_e2m1fn_x2", "bits1x8", "bits2x4", "bits4x2", "bits8"]
    + [f"{kind}{bits}" for kind in ("int", "uint") for bits in range(1, 8)]
)
"""Types of less than a byte, of which torch knows bytes alone: read as uint8, one element for each byte."""
_OF_NUMPY = frozenset(_NUMPY_NAMES) | frozenset(_ML_DTYPES_NAMES) | frozenset(_BYTE_PAIRS)
KNOWN = _OF_NUMPY | PACKED


@functools.cache
def numpy_dtype(name: str) -> np.dtype[Any]:
    """The numpy dtype of a recorded dtype name (``ml_dtypes`` for bf16 and fp8, bytes for packed types), little-endian.

    Raises ValueError for a name that this version does not know.
    """
    if name in _NUMPY_NAMES:
        return np.dtype(_NUMPY_NAMES[name])
    if name in _ML_DTYPES_NAMES:
        import ml_dtypes

        dtype: np.dtype[Any] = np.dtype(getattr(ml_dtypes, _ML_DTYPES_NAMES[name]))
        return dtype
    if name in _BYTE_PAIRS:
        return np.dtype((_BYTE_PAIRS[name], (2,)))
    if name in PACKED:
        return np.dtype("|u1")
    raise ValueError(f"unknown dtype {name!r}; known are {', '.join(sorted(KNOWN))}")


def name_of(dtype: np.dtype[Any]) -> str:
    """The recorded name of a numpy dtype. Raises ValueError when the format has no name for it."""
    if dtype.name in _OF_NUMPY:
        return dtype.name
    raise ValueError(f"arrays of dtype {dtype} cannot be recorded; convert to one of {', '.join(sorted(_OF_NUMPY))}")


def as_array(data: Any, dtype: str, shape: tuple[int, ...]) -> npt.NDArray[Any]:
    """A view of ``data`` with the recorded dtype and shape; read-only where ``data`` is."""
    array: npt.NDArray[Any] = np.frombuffer(data, dtype=numpy_dtype(dtype))
    return array.reshape(shape + array.shape[1:])
