"""Whether a recorded sum is the sum of its operands, and which summand is missing or counted twice where it is not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


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
