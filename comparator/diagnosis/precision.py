"""The precision that values really have: what was computed in bfloat16 and handed on as float32 is no more exact."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from comparator.diagnosis.floors import unit_roundoff

ROWS, ELEMENTS = 64, 1 << 14
"""Rows of a tensor, and values of these, that are looked at."""
FEWEST = 32
"""Values other than zero that have to be of a format before it is taken for that of all."""
_UNUSED_BITS: Mapping[str, int] = {"bfloat16": 0xFFFF, "float16": 0x1FFF}
"""Bits of a float32 that are zero where the value is one of the format (float16: but for subnormal ones)."""
_HALVES = frozenset(_UNUSED_BITS)


def precision_of(values: npt.NDArray[np.generic]) -> str:
    """The dtype of ``values``, or the narrower one that a float32's values all have. Shape ``(rows, ...)``."""
    if values.dtype != np.float32 or not values.size:
        return str(values.dtype.name)
    some = np.ascontiguousarray(np.asarray(values[:ROWS], np.float32).reshape(-1)[:ELEMENTS])
    bits = some[np.isfinite(some) & (some != 0)].view(np.uint32)
    if len(bits) < FEWEST:
        return "float32"
    return next((name for name, unused in _UNUSED_BITS.items() if not (bits & np.uint32(unused)).any()), "float32")


def coarsest(own: str, inputs: str) -> str:
    """The precision of what an operation stores on its way from ``inputs`` to a value of precision ``own``: a router
    gives float32, behind a norm in the model's bfloat16. Quantised inputs say nothing of the operation."""
    wide = unit_roundoff(own) <= unit_roundoff("float32")
    return inputs if wide and inputs.removeprefix("torch.") in _HALVES else own
