"""How far single rows are apart: ``rel`` of each token."""

from __future__ import annotations

import numpy as np

from comparator.measure.kernel import measure_sums
from comparator.measure.kernel.sums import Array, Float


def row_differences(baseline: Array, target: Array, dimension: int, *, equal_nonfinite: bool = False) -> Float:
    """``rel`` of each slice along ``dimension``: shape ``(baseline.shape[dimension],)``, 0 where both are zero."""
    left, right = (np.moveaxis(side, dimension, 0) for side in (baseline, target))
    _, rows = measure_sums(left, right, equal_nonfinite=equal_nonfinite, by_row=True)
    assert rows is not None
    return rows.rel()
