"""One pass over both sides of a pair: every sum that a difference is made from.

Compiled where the package was installed with a C compiler (``_compiled.c``), else numpy (``reference``). Both add in
one order, which ``reference`` defines, and agree in every bit.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import numpy as np

from comparator.measure.kernel import reference
from comparator.measure.kernel.sums import COLUMNS, Array, PairSums, RowTable, SideSums, working_dtype
from tensortap.compiled import load

if TYPE_CHECKING:
    from comparator.measure.kernel import _compiled
else:
    _compiled = load(f"{__name__}._compiled")

COMPILED = _compiled is not None
SEGMENT = 4096
"""Elements that are summed like a row where rows are not asked for."""

_KINDS = {"bfloat16": 0, "float16": 1, "float32": 2, "float64": 3, "int8": 4, "uint8": 5, "int16": 6, "uint16": 7}
_KINDS |= {"int32": 8, "uint32": 9, "int64": 10, "uint64": 11, "bool": 12}
_TABLE = 13


def measure_sums(
    baseline: Array,
    target: Array,
    *,
    dtype: np.dtype[Any] | None = None,
    equal_nonfinite: bool = False,
    by_row: bool = False,
    by_channel: bool = False,
) -> tuple[PairSums, RowTable | None]:
    """The sums over two arrays of one shape, of any numeric dtypes.

    They are taken in ``dtype`` (of ``working_dtype``; by default the one that holds both) and added in float64; where
    both sides are of at most 8 significant bits, blocks of a row are added in float32 first. ``equal_nonfinite`` takes
    NaN on both sides, and the same infinity on both, for zeros where the difference is concerned. ``by_row`` also gives
    the sums of each slice along the first dimension, ``by_channel`` then those of each element of a slice too (in
    float32 alone), which mean nothing where values are not finite.
    """
    if dtype is None:
        dtype = np.promote_types(working_dtype(baseline.dtype), working_dtype(target.dtype))
    rows = max(1, baseline.shape[0]) if by_row else 1
    length = max(1, baseline.size // rows) if by_row else SEGMENT
    left, right = (np.ascontiguousarray(side).reshape(-1) for side in (baseline, target))
    table = RowTable(
        np.zeros((baseline.shape[0] if by_row else 0, COLUMNS)),
        np.zeros(length if left.size else 0) if by_row and by_channel and dtype == np.float32 else None,
    )
    rows_found = table.columns if left.size else table.columns[:0]
    kinds = _kind(left.dtype), _kind(right.dtype)
    if _compiled is None or dtype.kind != "f" or None in kinds or not (left.flags.aligned and right.flags.aligned):
        sums = reference.measure_sums(left, right, dtype, length, equal_nonfinite, rows_found, table.energy)
        return sums, table if by_row else None
    (kind_x, table_x), (kind_y, table_y) = kinds  # type: ignore[misc]
    state = _compiled.state()
    _compiled.measure(
        left.view(np.uint8),
        kind_x,
        table_x,
        right.view(np.uint8),
        kind_y,
        table_y,
        left.size,
        length,
        dtype.itemsize == 8,
        equal_nonfinite,
        rows_found,
        _NOTHING if table.energy is None else table.energy,
        state,
    )
    found_x, found_y, *rest = _compiled.sums(state)
    return PairSums._make((SideSums(*found_x), SideSums(*found_y), *rest)), table if by_row else None


_NOTHING = np.empty(0, np.float64)


@functools.cache
def _kind(dtype: np.dtype[Any]) -> tuple[int, Array | None] | None:
    """What the compiled kernel calls a dtype, and for its kind ``TABLE`` the values of all bytes; None: unknown."""
    if not dtype.isnative:
        return None
    kind = _KINDS.get(dtype.name)
    if kind is not None:
        return kind, None
    if dtype.itemsize != 1 or dtype.names is not None or dtype.kind in "SUmM":
        return None
    return _TABLE, np.arange(256, dtype=np.uint8).view(dtype).astype(np.float32)
