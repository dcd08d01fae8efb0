"""Architectures: what the model families of the shipped configs have that differs, as settings of one model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch

VOCABULARY = 320


@dataclass(frozen=True)
class Shape:
    """One model; its weights follow from the shape and the seed."""

    hidden: int = 128
    heads: int = 8
    key_value_heads: int = 4
    head_size: int = 32
    intermediate: int = 256
    layers: int = 4
    query_key_norm: bool = False
    query_key_bias: bool = False
    """Biases of the query, key and value projections (Qwen2)."""
    output_norms: bool = False
    """A norm behind attention and behind the MLP, before each is added to the residual (Gemma)."""
    embedding_scale: float = 1.0
    score_cap: float | None = None
    """Attention scores s become ``cap * tanh(s / cap)`` (Gemma 2)."""
    window: int | None = None
    """Every second layer attends to this many tokens only (Gemma)."""
    latent: int | None = None
    """Keys and values come from a projection to this width, with a norm (DeepSeek's multi-head latent attention)."""
    activation: str = "silu"
    experts: int = 0
    chosen: int = 0
    renormalise: bool = True
    """Whether the chosen experts' weights are divided by their sum."""
    shared_expert: bool = False
    rope_base: float = 10_000.0
    norm_epsilon: float = 1e-6
    massive_channels: tuple[int, ...] = ()
    """Channels of the residual stream that are much larger than the others, as trained models have them."""
    seed: int = 0
    dtype: str = "bfloat16"

    @property
    def torch_dtype(self) -> torch.dtype:
        found = getattr(torch, self.dtype)
        assert isinstance(found, torch.dtype)
        return found


@dataclass
class Weights:
    """Whole weights, the same on every rank; a rank takes its shards from them."""

    embedding: torch.Tensor
    head: torch.Tensor
    final_norm: torch.Tensor
    layers: list[dict[str, torch.Tensor]] = field(default_factory=list)


def make_weights(shape: Shape) -> Weights:
    """Random weights at which activations neither grow nor vanish, in the dtype of the shape."""
    generator = torch.Generator().manual_seed(shape.seed)

    def matrix(rows: int, columns: int) -> torch.Tensor:
        return (torch.randn(rows, columns, generator=generator) / columns**0.5).to(shape.torch_dtype)

    def norm(size: int, gain: float = 1.0) -> torch.Tensor:
        return (gain * torch.exp(0.2 * torch.randn(size, generator=generator))).to(shape.torch_dtype)

    def vector(size: int) -> torch.Tensor:
        return (0.3 * torch.randn(size, generator=generator)).to(shape.torch_dtype)

    embedding = torch.randn(VOCABULARY, shape.hidden, generator=generator)
    massive = list(shape.massive_channels)
    embedding[:, massive] = 60.0 + 5.0 * embedding[:, massive]
    weights = Weights(
        (embedding / shape.embedding_scale).to(shape.torch_dtype), matrix(VOCABULARY, shape.hidden), norm(shape.hidden)
    )
    query, key = shape.heads * shape.head_size, shape.key_value_heads * shape.head_size
    for _ in range(shape.layers):
        layer = {
            "input_norm": norm(shape.hidden),
            "query": matrix(query, shape.hidden),
            "output": matrix(shape.hidden, query),
            "mlp_norm": norm(shape.hidden),
        }
        if shape.latent:
            layer |= {
                "latent": matrix(shape.latent, shape.hidden),
                "latent_norm": norm(shape.latent),
                "key": matrix(key, shape.latent),
                "value": matrix(key, shape.latent),
            }
        else:
            layer |= {"key": matrix(key, shape.hidden), "value": matrix(key, shape.hidden)}
        if shape.query_key_norm:
            layer |= {"query_norm": norm(shape.head_size, 1.6), "key_norm": norm(shape.head_size)}
        if shape.query_key_bias:
            layer |= {"query_bias": vector(query), "key_bias": vector(key), "value_bias": vector(key)}
        if shape.output_norms:
            layer |= {"attention_output_norm": norm(shape.hidden), "mlp_output_norm": norm(shape.hidden)}
        layer |= _mlp_weights(shape, matrix)
        for name in ("input_norm", "mlp_norm"):
            layer[name][massive] *= 0.05
        weights.layers.append(layer)
    weights.final_norm[massive] *= 0.05
    return weights


def _mlp_weights(shape: Shape, matrix: Callable[[int, int], torch.Tensor]) -> dict[str, torch.Tensor]:
    names = ("shared_",) if shape.shared_expert else ()
    prefixes = [f"expert{number}_" for number in range(shape.experts)] + list(names) if shape.experts else [""]
    found = {}
    for prefix in prefixes:
        found |= {
            f"{prefix}gate": matrix(shape.intermediate, shape.hidden),
            f"{prefix}up": matrix(shape.intermediate, shape.hidden),
            f"{prefix}down": matrix(shape.hidden, shape.intermediate),
        }
    if shape.experts:
        found["router"] = matrix(shape.experts, shape.hidden)
    return found
