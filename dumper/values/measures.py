"""What the level ``stats`` keeps of a tensor."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import torch

STATISTICS = ("min", "max", "mean", "abs_mean", "l2", "nan", "inf")
"""``min`` to ``l2`` are over the finite elements alone (of complex values: over their magnitudes), 0 when there are
none; ``abs_mean`` is the mean magnitude, ``l2`` the Euclidean norm; ``nan`` and ``inf`` (of either sign) are counts."""
STATISTICS_BYTES = 8 * len(STATISTICS)
"""Of all of them, as they are recorded."""
_COUNTS = frozenset({"nan", "inf"})


def device_statistics(value: torch.Tensor) -> torch.Tensor:
    """The statistics as a float64 tensor of shape ``(len(STATISTICS),)`` on the device of ``value``.

    Nothing here depends on the values on the host's side, so that a device is not waited for.
    """
    import torch

    with torch.no_grad():
        wide = value.detach()
        if wide.is_complex():
            wide = wide.to(torch.complex64 if wide.element_size() < 8 else wide.dtype).abs()
        elif not wide.is_floating_point():
            wide = wide.to(torch.float64)
        elif wide.element_size() < 4:
            wide = wide.to(torch.float32)
        finite = torch.isfinite(wide)
        nan, count = torch.isnan(wide).sum(), finite.sum()
        infinite = wide.numel() - nan - count
        if wide.numel() == 0:
            return torch.zeros(len(STATISTICS), dtype=torch.float64, device=wide.device)
        kept = torch.where(finite, wide, 0)
        elements = count.clamp(min=1)
        empty = count == 0
        largest, smallest = torch.finfo(wide.dtype).max, torch.finfo(wide.dtype).min
        magnitudes = kept.abs()
        parts = (
            torch.where(empty, 0, torch.where(finite, wide, largest).amin()),
            torch.where(empty, 0, torch.where(finite, wide, smallest).amax()),
            _sum(value, kept) / elements,
            magnitudes.sum(dtype=torch.float64) / elements,
            torch.linalg.vector_norm(kept, dtype=torch.float64),
            nan,
            infinite,
        )
        return torch.stack([part.to(torch.float64) for part in parts])


def _sum(value: torch.Tensor, kept: torch.Tensor) -> torch.Tensor:
    """The sum as float64: of integers exact but for one rounding, of ``kept``, their floating-point form, else."""
    import torch

    if value.is_floating_point() or value.is_complex():
        return kept.sum(dtype=torch.float64)
    if value.element_size() < 8:
        return value.sum(dtype=torch.int64).to(torch.float64)
    # Upper and lower halves: neither sum leaves 64 bits.
    signed = value.detach().view(torch.int64)
    upper = signed >> 32
    if value.dtype == torch.uint64:
        upper = upper & 0xFFFFFFFF
    return upper.sum().to(torch.float64) * 2.0**32 + (signed & 0xFFFFFFFF).sum().to(torch.float64)


def named_statistics(values: Sequence[float]) -> dict[str, float | int]:
    """The values by name, from their order in ``STATISTICS``."""
    return {
        name: int(value) if name in _COUNTS else float(value) for name, value in zip(STATISTICS, values, strict=True)
    }


def decode_statistics(data: Any) -> dict[str, float | int]:
    """The statistics by name, from the bytes that are recorded of them: little-endian float64, in their order."""
    return named_statistics(np.frombuffer(data, dtype="<f8").tolist())


def is_nonfinite(statistics: Mapping[str, float | int]) -> bool:
    """Whether the statistics count a NaN or an infinity."""
    return bool(statistics.get("nan") or statistics.get("inf"))
