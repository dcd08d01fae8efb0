"""The sum of arrays of half precision: added in float32 one after the other, and rounded once.

Compiled where the package was installed with a C compiler (``_compiled.c``), else numpy (``reference``, which defines
it).
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from comparator.align.adding import reference
from comparator.align.rearrange import Array
from tensortap.compiled import load

if TYPE_CHECKING:
    from comparator.align.adding import _compiled
else:
    _compiled = load(f"{__name__}._compiled")

_KINDS = {"bfloat16": 0, "float16": 1}


def add_halves(members: Sequence[Array], *, from_zero: bool) -> Array | None:
    """The sum of arrays of bfloat16 or float16 and of one shape, in the order given; None for any others.

    ``from_zero``: the first is added to zero, which makes zero of minus zero.
    """
    first = members[0]
    kind = _kind(first.dtype)
    if kind is None or any(member.dtype != first.dtype or member.shape != first.shape for member in members):
        return None
    if _compiled is None or not all(member.flags.c_contiguous and member.flags.aligned for member in members):
        return reference.add(members, from_zero=from_zero)
    found: Array = np.empty(first.shape, first.dtype)
    _compiled.add(tuple([_bytes(member) for member in members]), kind, from_zero, _bytes(found))
    return found


def _bytes(array: Array) -> Array:
    return array.reshape(-1).view(np.uint8)


@functools.cache
def _kind(dtype: np.dtype[Any]) -> int | None:
    return _KINDS.get(dtype.name) if dtype.isnative else None
