"""A small decoder in numpy that rounds to a dtype where a framework stores, with kernels that differ and faults."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import ml_dtypes
import numpy as np
from msgspec.structs import replace

from comparator.diagnosis import (
    Diagnosis,
    GraphError,
    Options,
    RowLabels,
    SideRows,
    TapDeclaration,
    TapGraph,
    TapKey,
    TapProfile,
    TapRows,
    build_graph,
    diagnose,
    label_rows,
    profile,
)
from comparator.diagnosis.tap_graph import ModelStructure

Array = np.ndarray
Fault = Callable[[str, "int | None", Array], Array]
"""Tap name, layer and value to the value that the model goes on with."""

HIDDEN, HEADS, HEAD_SIZE, EXPERTS, TOP_K, VOCABULARY, LAYERS = 128, 4, 32, 8, 2, 256, 3
LENGTHS, DECODED = (12, 40, 24), 4
DTYPES = {"bfloat16": ml_dtypes.bfloat16, "float16": np.float16, "float32": np.float32}


@dataclass(frozen=True)
class Kernels:
    """How a model is computed; all of it is right."""

    pieces: int = 1
    """Partial sums of the output projections, each rounded, as of so many ranks."""
    eager: bool = False
    """Scores and probabilities of the attention are rounded."""
    fused_norm: bool = False
    """The norm is rounded once, after its weight."""
    cut_off: bool = False
    """Probabilities are cut off to bfloat16, not rounded."""
    dtype: str = "bfloat16"


@dataclass(frozen=True, eq=False)
class Recording:
    values: dict[TapKey, Array]
    labels: RowLabels
    dtype: str


@dataclass(frozen=True, eq=False)
class Model:
    seed: int = 0
    experts: bool = False
    weights: dict[str, Array] = field(default_factory=dict)

    def weight(self, name: str, *shape: int) -> Array:
        if name not in self.weights:
            random = np.random.default_rng([self.seed, *name.encode()])
            value = random.standard_normal(shape).astype(np.float32) / np.float32(np.sqrt(shape[-2]))
            self.weights[name] = value.astype(ml_dtypes.bfloat16).astype(np.float32)
        return self.weights[name]

    def run(self, kernels: Kernels | None = None, fault: Fault | None = None) -> Recording:
        return _Run(self, kernels or Kernels(), fault or (lambda name, layer, value: value)).record()


def labels() -> RowLabels:
    sequence = np.repeat(np.arange(len(LENGTHS)), LENGTHS)
    position = np.concatenate([np.arange(length) for length in LENGTHS])
    step = np.concatenate([np.maximum(np.arange(length) - (length - DECODED - 1), 0) for length in LENGTHS])
    return label_rows(len(sequence), sequence, position, step)


class _Run:
    def __init__(self, model: Model, kernels: Kernels, fault: Fault) -> None:
        self.model, self.kernels, self.fault = model, kernels, fault
        self.labels, self.values = labels(), {}

    def store(self, value: Array) -> Array:
        return value.astype(DTYPES[self.kernels.dtype]).astype(np.float32)

    def tap(self, name: str, layer: int | None, value: Array) -> Array:
        value = self.store(self.fault(name, layer, value.copy()))
        self.values[TapKey(name, layer)] = value
        return value

    def norm(self, value: Array) -> Array:
        scaled = value / np.sqrt(np.mean(value**2, axis=-1, keepdims=True) + 1e-6)
        return self.store((scaled if self.kernels.fused_norm else self.store(scaled)) * np.float32(1.125))

    def project(self, value: Array, weight: Array) -> Array:
        """A row-parallel projection: partial sums in the dtype, added up in it."""
        parts = zip(
            np.split(value, self.kernels.pieces, axis=1), np.split(weight, self.kernels.pieces, axis=0), strict=True
        )
        total: Array | None = None
        for left, right in parts:
            part = self.store(left @ right)
            total = part if total is None else self.store(total + part)
        assert total is not None
        return total

    def record(self) -> Recording:
        random = np.random.default_rng([self.model.seed, 1])
        hidden = self.store(random.standard_normal((len(self.labels), HIDDEN)).astype(np.float32))
        for layer in range(LAYERS):
            hidden = self.layer(layer, hidden)
        normed = self.tap("final_norm_output", None, self.norm(hidden))
        self.tap("next_token_logits", None, normed @ self.model.weight("logits", HIDDEN, VOCABULARY))
        return Recording(self.values, self.labels, self.kernels.dtype)

    def layer(self, at: int, hidden: Array) -> Array:
        width = HEADS * HEAD_SIZE
        hidden = self.tap("layer_input", at, hidden)
        heads = self.tap("attn_pre_o_proj", at, self.attention(at, self.norm(hidden)))
        output = self.project(heads, self.model.weight(f"o{at}", width, HIDDEN))
        output = self.tap("attn_output", at, output)
        hidden = self.tap("pre_mlp_residual", at, hidden + output)
        normed = self.norm(hidden)
        if self.model.experts:
            logits = self.tap("moe_router_logits", at, normed @ self.model.weight(f"r{at}", HIDDEN, EXPERTS))
            output = self.tap("moe_expert_output", at, self.mixture(at, normed, logits))
        else:
            output = self.mlp(f"m{at}", normed)
        output = self.tap("mlp_output", at, output)
        return self.store(self.fault("residual", at, hidden + output))

    def attention(self, at: int, normed: Array) -> Array:
        query, key, value = (
            self.store(normed @ self.model.weight(f"{name}{at}", HIDDEN, HEADS * HEAD_SIZE))
            .reshape(-1, HEADS, HEAD_SIZE)
            .transpose(1, 0, 2)
            for name in "qkv"
        )
        scores = query @ key.transpose(0, 2, 1) / np.float32(np.sqrt(HEAD_SIZE))
        sequence, position = self.labels.sequence, self.labels.position
        seen = (sequence[:, None] == sequence) & (position[:, None] >= position)
        scores = np.where(seen, self.store(scores) if self.kernels.eager else scores, -np.inf)
        scores = np.exp(scores - scores.max(-1, keepdims=True))
        share = scores / scores.sum(-1, keepdims=True)
        if self.kernels.eager:
            share = self.store(share)
        if self.kernels.cut_off:
            share = (share.astype(np.float32).view(np.uint32) & np.uint32(0xFFFF0000)).view(np.float32)
        return self.store((share @ value).transpose(1, 0, 2).reshape(len(normed), -1))

    def mlp(self, name: str, normed: Array) -> Array:
        gate = self.store(normed @ self.model.weight(f"{name}g", HIDDEN, 2 * HIDDEN))
        up = self.store(normed @ self.model.weight(f"{name}u", HIDDEN, 2 * HIDDEN))
        inner = self.store(self.store(gate / (1 + np.exp(-gate))) * up)
        return self.project(inner, self.model.weight(f"{name}d", 2 * HIDDEN, HIDDEN))

    def mixture(self, at: int, normed: Array, logits: Array) -> Array:
        chosen = np.argsort(-logits, axis=1, kind="stable")[:, :TOP_K]
        share = np.exp(logits - logits.max(1, keepdims=True))
        share = np.take_along_axis(share, chosen, 1)
        share = self.store(share / share.sum(1, keepdims=True))
        total = np.zeros_like(normed)
        for expert in range(EXPERTS):
            rows, place = np.nonzero(chosen == expert)
            if len(rows):
                output = self.fault(f"expert {expert}", at, self.mlp(f"e{at}-{expert}", normed[rows]))
                total[rows] += self.store(output) * share[rows, place][:, None]
        return self.store(total)


def profiles_of(
    baseline: Recording,
    target: Recording,
    unmeasured: str | None = None,
    model: ModelStructure | None = None,
    **changes: object,
) -> tuple[list[TapProfile], TapGraph]:
    """Profiles of all taps but those called ``unmeasured``, which are in the graph alone."""
    graph = build_graph([TapDeclaration(key) for key in baseline.values], model)
    assert not isinstance(graph, GraphError)

    def side(key: TapKey) -> SideRows:
        return SideRows(baseline.values[key], target.values[key], baseline.labels)

    profiles = []
    for node in graph.nodes:
        if node.key.name == unmeasured:
            continue
        measured = all(key.name != unmeasured for key in node.operands)
        rows = TapRows(
            node.key,
            side(node.key),
            baseline.dtype,
            target.dtype,
            operands=tuple(side(key) for key in node.operands) if measured else (),
            router=side(node.router) if node.router else None,
            head_size=HEAD_SIZE,
        )
        profiles.append(profile(replace(rows, **changes), node))  # type: ignore[arg-type]
    return profiles, graph


def compare(baseline: Recording, target: Recording, options: Options | None = None, **changes: object) -> Diagnosis:
    return diagnose(*profiles_of(baseline, target, **changes), options)


DENSE = Model(0)


def at(tap, number, change):
    """A fault at one tap of one layer."""

    def fault(name, layer, value):
        return change(value) if (name, layer) == (tap, number) else value

    return fault
