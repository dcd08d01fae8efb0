"""The forward pass of one rank. Faults are patched into these functions; each statement is one thing to get wrong."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.nn import functional

from benchmarks.faults.engines.tensor_parallel.numerics import (
    Numerics,
    attend,
    gather_columns,
    linear,
    rms_norm,
    rotate,
    sum_over_ranks,
    torch_dtype,
)
from benchmarks.faults.engines.tensor_parallel.shapes import VOCABULARY, Shape, Weights
from dumper.layout import TokenLayout

ACTIVATIONS = {"silu": functional.silu, "gelu": lambda values: functional.gelu(values, approximate="tanh")}


@dataclass(frozen=True)
class Batch:
    """The tokens of one pass, all sequences back to back, padding at the end."""

    token_ids: torch.Tensor
    """Shape ``(rows,)``."""
    positions: torch.Tensor
    """Shape ``(rows,)``."""
    slots: tuple[int, ...]
    """For each sequence, its place in the key-value cache."""
    starts: tuple[int, ...]
    """For each sequence, its tokens that are cached already."""
    counts: tuple[int, ...]
    """For each sequence, its tokens in this pass."""
    cached_prefixes: tuple[int, ...]
    """For each sequence, how many of the cached tokens another request computed."""
    layout: TokenLayout

    @property
    def decodes(self) -> bool:
        return all(start > 0 and count == 1 for start, count in zip(self.starts, self.counts, strict=True))

    @property
    def last_rows(self) -> torch.Tensor:
        """The row of each sequence's last token."""
        return torch.tensor(self.counts).cumsum(0) - 1


class Attention:
    """The heads of one rank in one layer."""

    def __init__(
        self, layer_id: int, shape: Shape, numerics: Numerics, weights: dict[str, torch.Tensor], rank: int, world: int
    ):
        self.layer_id, self.shape, self.numerics, self.rank = layer_id, shape, numerics, rank
        self.weights = weights
        self.heads, self.key_value_heads = shape.heads // world, shape.key_value_heads // world
        self.query, self.key, self.value = (weights[name].chunk(world, 0)[rank] for name in ("query", "key", "value"))
        self.biases = (
            tuple(weights[f"{name}_bias"].chunk(world)[rank] for name in ("query", "key", "value"))
            if shape.query_key_bias
            else None
        )
        self.output = weights["output"].chunk(world, 1)[rank]
        self.scale = shape.head_size**-0.5
        self.window = shape.window if layer_id % 2 == 0 else None
        self.keys: dict[int, torch.Tensor] = {}
        self.values: dict[int, torch.Tensor] = {}

    def forward(self, hidden: torch.Tensor, batch: Batch) -> torch.Tensor:
        query, key, value = self.project(hidden)
        query, key = self.normalise(query, key)
        positions = batch.positions
        query = rotate(query, positions, self.shape.rope_base, self.numerics.rope_dtype)
        key = rotate(key, positions, self.shape.rope_base, self.numerics.rope_dtype)
        self.store(key, value, batch)
        heads = self.attend(query, batch)
        output = linear(heads, self.output, self.numerics.split, self.numerics.split_dtype)
        return output

    def project(self, hidden: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        source = hidden
        if self.shape.latent:
            latent = functional.linear(hidden, self.weights["latent"])
            source = rms_norm(latent, self.weights["latent_norm"], self.shape.norm_epsilon, self.numerics.fused_norm)
        query = functional.linear(hidden, self.query)
        key = functional.linear(source, self.key)
        value = functional.linear(source, self.value)
        if self.biases is not None:
            query, key, value = query + self.biases[0], key + self.biases[1], value + self.biases[2]
        size = self.shape.head_size
        return query.unflatten(-1, (-1, size)), key.unflatten(-1, (-1, size)), value.unflatten(-1, (-1, size))

    def normalise(self, query: torch.Tensor, key: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        if self.shape.query_key_norm:
            query = rms_norm(query, self.weights["query_norm"], self.shape.norm_epsilon, self.numerics.fused_norm)
            key = rms_norm(key, self.weights["key_norm"], self.shape.norm_epsilon, self.numerics.fused_norm)
        return query, key

    def store(self, key: torch.Tensor, value: torch.Tensor, batch: Batch) -> None:
        row = 0
        for slot, start, count in zip(batch.slots, batch.starts, batch.counts, strict=True):
            rows = slice(row, row + count)
            self.keys[slot] = torch.cat([self.keys[slot][:start], key[rows]]) if start else key[rows]
            self.values[slot] = torch.cat([self.values[slot][:start], value[rows]]) if start else value[rows]
            row += count

    def attend(self, query: torch.Tensor, batch: Batch) -> torch.Tensor:
        found = query.new_zeros(query.shape)
        row = 0
        for slot, start, count in zip(batch.slots, batch.starts, batch.counts, strict=True):
            rows = slice(row, row + count)
            key, value = self.keys[slot], self.values[slot]
            mask = self.mask(start, count)
            found[rows] = attend(query[rows], key, value, mask, self.scale, self.shape.score_cap, self.numerics)
            row += count
        return found.flatten(1)

    def mask(self, start: int, count: int) -> torch.Tensor:
        """Which tokens (columns) each token of this pass (rows) attends to."""
        rows, columns = torch.arange(start, start + count)[:, None], torch.arange(start + count)[None]
        mask = columns <= rows
        if self.window is not None:
            mask = mask & (columns > rows - self.window)
        return mask


class MLP:
    """One gated MLP, or one expert: this rank's part of the intermediate dimension."""

    def __init__(
        self, prefix: str, shape: Shape, numerics: Numerics, weights: dict[str, torch.Tensor], rank: int, world: int
    ):
        self.numerics, self.rank = numerics, rank
        self.activation = ACTIVATIONS[shape.activation]
        self.gate, self.up = (weights[f"{prefix}{name}"].chunk(world, 0)[rank] for name in ("gate", "up"))
        self.down = weights[f"{prefix}down"].chunk(world, 1)[rank]

    def forward(self, hidden: torch.Tensor, layer_id: int) -> torch.Tensor:
        gate = functional.linear(hidden, self.gate)
        up = functional.linear(hidden, self.up)
        inner = self.activation(gate) * up
        return linear(inner, self.down, self.numerics.split, self.numerics.split_dtype)


class Experts:
    """A mixture of experts, each of which is split over the ranks."""

    def __init__(
        self, layer_id: int, shape: Shape, numerics: Numerics, weights: dict[str, torch.Tensor], rank: int, world: int
    ):
        self.layer_id, self.shape, self.numerics, self.rank = layer_id, shape, numerics, rank
        self.router = weights["router"]
        self.experts = [
            MLP(f"expert{number}_", shape, numerics, weights, rank, world) for number in range(shape.experts)
        ]
        self.shared = MLP("shared_", shape, numerics, weights, rank, world) if shape.shared_expert else None

    def forward(self, hidden: torch.Tensor, batch: Batch) -> torch.Tensor:
        wanted = torch_dtype(self.numerics.router_dtype, hidden.dtype)
        logits = functional.linear(hidden.to(wanted), self.router.to(wanted))
        weights, chosen = self.route(logits)
        output = self.combine(hidden, weights, chosen)
        if self.shared is not None:
            output = output + self.shared.forward(hidden, self.layer_id)
        return output

    def route(self, logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Weights (float32) and numbers of the chosen experts, each tokens x chosen."""
        probabilities = torch.softmax(logits.float(), -1)
        weights, chosen = probabilities.topk(self.shape.chosen, -1)
        if self.shape.renormalise:
            weights = weights / weights.sum(-1, keepdim=True)
        return weights, chosen

    def combine(self, hidden: torch.Tensor, weights: torch.Tensor, chosen: torch.Tensor) -> torch.Tensor:
        wanted = torch_dtype(self.numerics.expert_dtype, hidden.dtype)
        total = torch.zeros(hidden.shape, dtype=wanted)
        for number in range(self.shape.experts)[:: self.numerics.expert_order]:
            rows, places = torch.where(chosen == number)
            if len(rows) == 0:
                continue
            expert = self.experts[number]
            contribution = expert.forward(hidden[rows], self.layer_id)
            scaled = contribution.to(wanted) * weights[rows, places, None].to(wanted)
            total.index_add_(0, rows, scaled)
        return total.to(hidden.dtype)


class Layer:
    """Attention and MLP around a residual stream that is the same on every rank."""

    def __init__(
        self, layer_id: int, shape: Shape, numerics: Numerics, weights: dict[str, torch.Tensor], rank: int, world: int
    ):
        self.layer_id, self.shape, self.numerics, self.rank = layer_id, shape, numerics, rank
        self.weights = weights
        self.attention = Attention(layer_id, shape, numerics, weights, rank, world)
        self.experts = Experts(layer_id, shape, numerics, weights, rank, world) if shape.experts else None
        self.mlp = MLP("", shape, numerics, weights, rank, world) if not shape.experts else None

    def forward(
        self, residual: torch.Tensor, unrounded: torch.Tensor, batch: Batch
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The residual stream after the layer, rounded and not."""
        normed = self.norm(unrounded, "input_norm")
        attention_output = self.attention.forward(normed, batch)
        attention = sum_over_ranks(attention_output, self.numerics)
        if self.shape.output_norms:
            attention = self.norm(attention, "attention_output_norm")
        residual, unrounded = self.add(residual, attention)
        normed = self.norm(unrounded, "mlp_norm")
        if self.experts is not None:
            partial_output = self.experts.forward(normed, batch)
        else:
            partial_output = self.mlp.forward(normed, self.layer_id)
        mlp_output = sum_over_ranks(partial_output, self.numerics)
        added = mlp_output
        if self.shape.output_norms:
            added = self.norm(mlp_output, "mlp_output_norm")
        residual, unrounded = self.add(residual, added)
        return residual, unrounded

    def norm(self, values: torch.Tensor, name: str) -> torch.Tensor:
        weight = self.weights[name]
        return rms_norm(values, weight, self.shape.norm_epsilon, self.numerics.fused_norm, weight.dtype)

    def add(self, residual: torch.Tensor, branch: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The sum rounded, and the sum as the next norm sees it."""
        total = residual + branch
        return total, residual.float() + branch.float() if self.numerics.fused_add else total


class Model:
    """One rank's part of a decoder."""

    def __init__(self, shape: Shape, numerics: Numerics, weights: Weights, rank: int, world: int):
        self.shape, self.numerics, self.rank, self.world = shape, numerics, rank, world
        self.weights = weights
        self.head = weights.head.chunk(world, 0)[rank]
        self.layers = [
            Layer(number, shape, numerics, layer, rank, world) for number, layer in enumerate(weights.layers)
        ]

    def forward(self, batch: Batch) -> torch.Tensor:
        """Logits of each sequence's last token, sequences x vocabulary."""
        residual = self.embed(batch)
        unrounded = residual
        for layer in self.layers:
            residual, unrounded = layer.forward(residual, unrounded, batch)
        normed = self.normalise(unrounded)
        logits = functional.linear(normed[batch.last_rows], self.head)
        logits = gather_columns(logits)[:, :VOCABULARY]
        return logits

    def normalise(self, unrounded: torch.Tensor) -> torch.Tensor:
        weight = self.weights.final_norm
        return rms_norm(unrounded, weight, self.shape.norm_epsilon, self.numerics.fused_norm, weight.dtype)

    def embed(self, batch: Batch) -> torch.Tensor:
        embedded = self.weights.embedding[batch.token_ids]
        if self.shape.embedding_scale != 1.0:
            embedded = embedded * self.shape.embedding_scale
        return embedded
