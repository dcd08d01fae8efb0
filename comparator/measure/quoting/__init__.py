"""Values of an array as text: what numpy writes, which takes it long; compiled where there is a compiler."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import numpy as np

from comparator.measure.kernel.sums import Array
from tensortap.compiled import load

if TYPE_CHECKING:
    from comparator.measure.quoting import _compiled
else:
    _compiled = load(f"{__name__}._compiled")

_SUMMARIZED_FROM = 1000
"""Elements of which numpy leaves some out."""


def quoted(values: Array) -> str:
    """``str(values)`` of a float32 array."""
    limit = _exponents_from()
    small = values.ndim and 0 < values.size <= _SUMMARIZED_FROM
    if _compiled is None or limit is None or not small or np.get_printoptions() != _DEFAULT_OPTIONS:
        return str(values)
    return _compiled.text(np.ascontiguousarray(values, np.float32), values.shape, limit)


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
