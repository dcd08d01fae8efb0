"""Values of an array as text: what numpy writes, which takes it long; compiled where there is a compiler."""

from __future__ import annotations

import functools
import math
from typing import TYPE_CHECKING, Any

import numpy as np

from comparator.measure.kernel.sums import Array, to_working
from tensortap.compiled import load

if TYPE_CHECKING:
    from comparator.measure.quoting import _compiled
else:
    _compiled = load(f"{__name__}._compiled")

_SUMMARIZED_FROM = 1000
"""Elements of which numpy leaves some out."""


def quoted(values: Array) -> str:
    """``str(values)`` of a float32 array."""
    return quoted_first(values, values.shape)


def quoted_first(values: Array, lengths: tuple[int, ...]) -> str:
    """``str`` of the first elements of an array, so many along each dimension, in float32."""
    limit = _exponents_from()
    small = values.ndim and 0 < math.prod(lengths) <= _SUMMARIZED_FROM
    if _compiled is None or limit is None or not small or np.get_printoptions() != _DEFAULT_OPTIONS:
        return str(_first(values, lengths))
    halves = values.dtype.name == "bfloat16" and values.dtype.isnative
    if not (halves or values.dtype == np.float32) or not values.flags.c_contiguous:
        values, halves = np.ascontiguousarray(_first(values, lengths)), False
    return _compiled.text(values.view(np.uint8), halves, values.shape, lengths, limit)


def _first(values: Array, lengths: tuple[int, ...]) -> Array:
    return to_working(values[tuple(slice(0, length) for length in lengths)], np.dtype(np.float32))


_DEFAULT_OPTIONS: dict[str, Any] = {
    "edgeitems": 3,
    "threshold": _SUMMARIZED_FROM,
    "floatmode": "maxprec",
    "precision": 8,
    "suppress": False,
    "linewidth": 75,
    "nanstr": "nan",
    "infstr": "inf",
    "sign": "-",
    "formatter": None,
    "legacy": False,
    "override_repr": None,
}


@functools.cache
def _exponents_from() -> float | None:
    """The number from which this version of numpy writes an exponent; None for a version that writes otherwise."""
    for limit in (1e6, 1e8):
        below = np.array([np.nextafter(np.float32(limit), np.float32(0)), limit / 10], np.float32)
        if "e" in str(np.array([limit], np.float32)) and "e" not in str(below):
            smallest = np.array([1e-4], np.float32)
            return None if "e" in str(smallest) else limit
    return None
