"""Whether a recorded value is the sum, or the norm, of what went into it.

Of a sum, the summand that is missing or counted twice is found as well.

RMS norm: y = w · x / sqrt(mean(x²) + ε) (Zhang and Sennrich, arXiv 1910.07467); layer norm subtracts the mean of a row
first and may add a bias (Ba et al., arXiv 1607.06450). The weights w are not recorded, but they are the same for all
rows. So w is fitted by least squares, channel by channel, and what is left over says whether the output is a norm.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

FEWEST_ROWS = 4
"""With fewer rows the fitted weights explain almost anything."""
EPSILONS = (0.0, 1e-8, 1e-6, 1e-5)
"""What norms add to the mean square of a row; beside values of an untrained model it matters."""


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
    centred = x - x.mean(axis=1, keepdims=True)
    fits = [
        fit
        for epsilon in EPSILONS
        for fit in (_fit(x, y, "rms", epsilon, bias=False), _fit(centred, y, "layer", epsilon, bias=True))
    ]
    return min(fits, key=lambda fit: fit.residual)


def _fit(centred: Array, y: Array, kind: str, epsilon: float, *, bias: bool) -> NormFit:
    scale = np.sqrt(np.mean(centred**2, axis=1, keepdims=True) + epsilon)
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


@dataclass(frozen=True)
class SumFit:
    """How well the sum of the operands explains a value."""

    residual: float
    """‖value − Σ operands‖ / ‖value‖."""
    factors: tuple[float, ...]
    """Per operand the factor that explains the value best (least squares over all elements); 1 where all is well."""
    factors_residual: float
    """What is left over with these factors."""


def fit_sum(value: Array, operands: Sequence[Array]) -> SumFit | None:
    """Compare ``value`` with the sum of ``operands``, all of one shape; None where that cannot be told.

    It cannot where shapes differ, something is not finite, or the value is zero.
    """
    if not operands or any(operand.shape != value.shape for operand in operands):
        return None
    y = value.astype(np.float64).reshape(-1)
    x = np.stack([operand.astype(np.float64).reshape(-1) for operand in operands])
    norm = float(np.linalg.norm(y))
    if not np.isfinite(y).all() or not np.isfinite(x).all() or norm == 0:
        return None
    factors, *_ = np.linalg.lstsq(x @ x.T, x @ y, rcond=1e-12)
    residual = float(np.linalg.norm(y - x.sum(axis=0)) / norm)
    fitted = float(np.linalg.norm(y - factors @ x) / norm)
    return SumFit(residual, tuple(float(factor) for factor in factors), fitted)


def explain_partial(value: Array, others: Sequence[Array], partials: Mapping[int, Array]) -> tuple[int, float] | None:
    """The rank whose partial sum alone stands where the sum over all ranks should, and what is then left over.

    ``partials`` holds each rank's summand by rank. None when no single rank's summand explains the value better than
    a tenth of what the full sum leaves.
    """
    y = value.astype(np.float64)
    rest = y - sum((other.astype(np.float64) for other in others), start=np.zeros_like(y))
    norm = float(np.linalg.norm(y))
    full = sum((partial.astype(np.float64) for partial in partials.values()), start=np.zeros_like(y))
    if norm == 0 or len(partials) < 2:
        return None
    left = {rank: float(np.linalg.norm(rest - partial) / norm) for rank, partial in partials.items()}
    rank = min(left, key=lambda one: left[one])
    return (rank, left[rank]) if left[rank] < 0.1 * float(np.linalg.norm(rest - full) / norm) else None
