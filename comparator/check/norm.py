"""Whether a recorded value is the norm of what went into it.

RMS norm: y = w · x / sqrt(mean(x²) + ε) (Zhang and Sennrich, arXiv 1910.07467); layer norm subtracts the mean of a row
first and may add a bias (Ba et al., arXiv 1607.06450). The weights w are not recorded, but they are the same for all
rows. So w is fitted by least squares, channel by channel, and what is left over says whether the output is a norm.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

FEWEST_ROWS = 4
"""With fewer rows the fitted weights explain almost anything."""


@dataclass(frozen=True)
class NormFit:
    """How well a norm explains an output."""

    residual: float
    """‖output − fitted norm‖ / ‖output‖ over all rows, corrected for the fitted weights."""
    worst_row: int
    worst_residual: float
    """The same of the row that fits worst."""
    kind: str
    """``rms`` or ``layer``, whichever fits better."""


def fit_norm(inputs: Array, output: Array) -> NormFit | None:
    """Fit a norm with unknown weights to ``output``, both of shape ``(rows, channels)``.

    None where the rows do not allow it: fewer than ``FEWEST_ROWS``, another shape, values that are not finite, or an
    input or output that is zero.
    """
    if inputs.shape != output.shape or inputs.ndim != 2 or len(inputs) < FEWEST_ROWS:
        return None
    x, y = inputs.astype(np.float64), output.astype(np.float64)
    if not (np.isfinite(x).all() and np.isfinite(y).all()) or not y.any() or not x.any(axis=1).all():
        return None
    fits = [_fit(x, y, "rms", bias=False), _fit(x - x.mean(axis=1, keepdims=True), y, "layer", bias=True)]
    return min(fits, key=lambda fit: fit.residual)


def _fit(centred: Array, y: Array, kind: str, *, bias: bool) -> NormFit:
    scale = np.sqrt(np.mean(centred**2, axis=1, keepdims=True))
    unit = np.divide(centred, scale, out=np.zeros_like(centred), where=scale > 0)
    mean_unit = unit.mean(axis=0) if bias else np.zeros(unit.shape[1])
    mean_y = y.mean(axis=0) if bias else np.zeros(y.shape[1])
    u, v = unit - mean_unit, y - mean_y
    energy = (u**2).sum(axis=0)
    weights = np.divide((u * v).sum(axis=0), energy, out=np.zeros_like(energy), where=energy > 0)
    rest = v - u * weights
    rows = len(y)
    correction = np.sqrt(rows / max(rows - (2 if bias else 1), 1))
    row_norm = np.sqrt((y**2).sum(axis=1))
    of_rows = np.sqrt((rest**2).sum(axis=1)) * correction / np.where(row_norm > 0, row_norm, 1.0)
    worst = int(of_rows.argmax())
    total = float(np.sqrt((rest**2).sum() / (y**2).sum()) * correction)
    return NormFit(total, worst, float(of_rows[worst]), kind)
