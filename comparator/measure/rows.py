"""How far single rows are apart: ``rel`` of each token."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from comparator.measure.statistics import CHUNK, Array, common_dtype, to_working, widen


def row_differences(
    baseline: Array, target: Array, dimension: int, *, equal_nonfinite: bool = False
) -> npt.NDArray[np.float64]:
    """``rel`` of each slice along ``dimension``: shape ``(baseline.shape[dimension],)``, 0 where both are zero."""
    dtype = common_dtype(baseline.dtype, target.dtype)
    rows = baseline.shape[dimension]
    found = np.zeros(rows, dtype=np.float64)
    left = np.moveaxis(baseline, dimension, 0).reshape(rows, -1)
    right = np.moveaxis(target, dimension, 0).reshape(rows, -1)
    step = max(1, CHUNK // max(1, left.shape[1] if left.ndim > 1 else 1))
    with np.errstate(all="ignore"):
        for start in range(0, rows, step):
            x = widen(to_working(left[start : start + step], dtype))
            y = widen(to_working(right[start : start + step], dtype))
            if equal_nonfinite:
                same = ~np.isfinite(x) & ((x == y) | (np.isnan(x) & np.isnan(y)))
                x, y = np.where(same, 0, x), np.where(same, 0, y)
            gap = _row_squares(y - x)
            norm = _row_squares(x) + _row_squares(y)
            found[start : start + step] = np.where(gap == 0, 0.0, gap / norm)
    return found


def _row_squares(rows: Array) -> npt.NDArray[np.float64]:
    if rows.dtype.kind == "c":
        return _row_squares(rows.real) + _row_squares(rows.imag)
    squares: npt.NDArray[np.float64] = np.einsum("ij,ij->i", rows, rows)
    return squares
