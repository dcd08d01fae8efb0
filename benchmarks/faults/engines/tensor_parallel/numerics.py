"""The operations whose rounding real kernels disagree about, each with the choices that real kernels make."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch.nn import functional


@dataclass(frozen=True)
class Numerics:
    """How a model is computed. Every combination is right; they round differently."""

    attention: str = "rounded"
    """``rounded``: scores and probabilities in the model's dtype; ``wide``: everything in float32, rounded once;
    ``blocks``: blocks of keys with a running maximum, probabilities rounded."""
    block: int = 32
    """Keys in a block of ``blocks``."""
    split: int = 1
    """Blocks of the reduced dimension that output projections add up one after the other (split-K)."""
    split_dtype: str | None = None
    """Dtype of the summands and sums of ``split``; None is the model's."""
    reduce_dtype: str = "float32"
    """Dtype in which ranks' partial sums are added."""
    reduce_order: int = 1
    """1: from the first rank to the last; -1: from the last to the first."""
    fused_norm: bool = False
    """The norm's weight is applied before its output is rounded, not after."""
    fused_add: bool = False
    """The norm after an addition to the residual sees the sum before it is rounded."""
    expert_dtype: str | None = None
    """Dtype in which experts' outputs are added up; None is the model's."""
    expert_order: int = 1
    """-1: the last expert first."""
    rope_dtype: str = "float32"
    """Dtype in which queries and keys are rotated; the angles are always float32."""
    router_dtype: str | None = None
    """Dtype of the router's product; None is the model's."""
    dtype: str | None = None
    """Dtype of the whole model, where it is not the shape's: a reference with the same weights."""


def torch_dtype(name: str | None, default: torch.dtype) -> torch.dtype:
    if name is None:
        return default
    found = getattr(torch, name)
    assert isinstance(found, torch.dtype)
    return found


def linear(values: torch.Tensor, weight: torch.Tensor, split: int = 1, dtype: str | None = None) -> torch.Tensor:
    """``values @ weight.T`` in ``split`` blocks of the reduced dimension, each block's product rounded to ``dtype``."""
    if split == 1:
        return functional.linear(values, weight)
    wanted = torch_dtype(dtype, values.dtype)
    total: torch.Tensor | None = None
    for part, piece in zip(values.chunk(split, -1), weight.chunk(split, -1), strict=True):
        product = functional.linear(part.to(wanted), piece.to(wanted))
        total = product if total is None else total + product
    assert total is not None
    return total.to(values.dtype)


def rms_norm(
    values: torch.Tensor, weight: torch.Tensor, epsilon: float, fused: bool, dtype: torch.dtype | None = None
) -> torch.Tensor:
    """Root mean square norm over the last dimension; the result is ``dtype``, or the values'."""
    wanted = dtype or values.dtype
    wide = values.float()
    normed = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + epsilon)
    if fused:
        return (normed * weight.float()).to(wanted)
    return weight * normed.to(wanted)


def rotate(values: torch.Tensor, positions: torch.Tensor, base: float, dtype: str) -> torch.Tensor:
    """Rotary embedding of tokens x heads x head size; the first half of a head is paired with the second."""
    half = values.shape[-1] // 2
    frequencies = base ** (-torch.arange(half, dtype=torch.float32) / half)
    angles = positions.float()[:, None] * frequencies
    wanted = torch_dtype(dtype, values.dtype)
    cosine, sine = angles.cos().to(wanted)[:, None], angles.sin().to(wanted)[:, None]
    first, second = values.to(wanted).split(half, -1)
    return torch.cat([first * cosine - second * sine, second * cosine + first * sine], -1).to(values.dtype)


def attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor,
    scale: float,
    cap: float | None,
    numerics: Numerics,
) -> torch.Tensor:
    """Attention of one sequence: query is n x heads x size, key and value m x key-value heads x size, mask n x m."""
    groups = query.shape[1] // key.shape[1]
    query = query.transpose(0, 1)
    key = key.repeat_interleave(groups, 1).transpose(0, 1)
    value = value.repeat_interleave(groups, 1).transpose(0, 1)
    if numerics.attention == "blocks":
        return _attend_in_blocks(query, key, value, mask, scale, cap, numerics.block).transpose(0, 1)
    wide = numerics.attention == "wide"
    scores = query.float() @ key.float().transpose(1, 2) if wide else query @ key.transpose(1, 2)
    scores = _capped(scores * scale, cap).masked_fill(~mask, float("-inf"))
    weights = torch.softmax(scores.float(), -1)
    if wide:
        return (weights @ value.float()).to(query.dtype).transpose(0, 1)
    return (weights.to(query.dtype) @ value).transpose(0, 1)


def _capped(scores: torch.Tensor, cap: float | None) -> torch.Tensor:
    return scores if cap is None else cap * torch.tanh(scores / cap)


def _attend_in_blocks(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor,
    scale: float,
    cap: float | None,
    block: int,
) -> torch.Tensor:
    heads, rows, _ = query.shape
    largest = torch.full((heads, rows, 1), float("-inf"))
    total = torch.zeros(heads, rows, 1)
    output = torch.zeros(heads, rows, value.shape[-1])
    for begin in range(0, key.shape[1], block):
        part = slice(begin, begin + block)
        scores = _capped(query.float() @ key[:, part].float().transpose(1, 2) * scale, cap)
        scores = scores.masked_fill(~mask[:, part], float("-inf"))
        now = torch.maximum(largest, scores.amax(-1, keepdim=True))
        safe = torch.where(now.isinf(), torch.zeros_like(now), now)
        weights = torch.exp(scores - safe)
        decay = torch.exp(largest - safe)
        total = total * decay + weights.sum(-1, keepdim=True)
        output = output * decay + (weights.to(value.dtype) @ value[:, part]).float()
        largest = now
    return (output / total).to(query.dtype)


def sum_over_ranks(value: torch.Tensor, numerics: Numerics) -> torch.Tensor:
    """The sum of every rank's value, the same on every rank, added in the order and dtype of the numerics."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return value
    parts: Sequence[torch.Tensor] = [torch.empty_like(value) for _ in range(dist.get_world_size())]
    dist.all_gather(list(parts), value.contiguous())
    wanted = torch_dtype(numerics.reduce_dtype, value.dtype)
    ordered = parts[:: numerics.reduce_order]
    total = ordered[0].to(wanted)
    for part in ordered[1:]:
        total = total + part.to(wanted)
    return total.to(value.dtype)


def gather_columns(value: torch.Tensor) -> torch.Tensor:
    """The columns of all ranks side by side."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return value
    parts = [torch.empty_like(value) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, value.contiguous())
    return torch.cat(parts, -1)
