"""The definition of the compiled module."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from comparator.align.rearrange import Array


def add(members: Sequence[Array], *, from_zero: bool) -> Array:
    """The sum of arrays of half precision and of one shape, added in float32 in the order given, and rounded once."""
    first, *others = members
    with np.errstate(all="ignore"):
        total = first.astype(np.float32)
        if from_zero:
            total += 0
        for member in others:
            total += member
        found: Array = total.astype(first.dtype)
    return found
