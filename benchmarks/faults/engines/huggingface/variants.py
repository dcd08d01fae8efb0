"""Ways to compute the same Transformers model that round differently and are all right.

Each is what some real kernel, layout or scheduler does: other attention kernels, padded batches, chunked prefill,
partial sums over ranks or split-K blocks, fused norms, other orders in which experts are added up.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks.faults.engines.protocol import REFERENCE
from benchmarks.faults.prompts import NEW_TOKENS, Prompt


@dataclass(frozen=True)
class Variant:
    """How a model is computed; the name says what differs from ``Variant("plain")``."""

    name: str
    attention: str = "sdpa"
    """``eager`` or ``sdpa``."""
    backend: str | None = None
    """``math`` or ``flash``: the kernel behind ``sdpa``."""
    batch: bool = False
    """All prompts in one left-padded batch instead of one after the other."""
    order: int = 1
    """-1: the prompts in reverse."""
    chunk: int | None = None
    """Tokens of a prompt that one pass takes at most."""
    pieces: int = 1
    """Summands, each rounded, into which output projections are cut: ranks, or blocks of a split-K kernel."""
    accumulate: torch.dtype | None = None
    """Dtype in which the summands are added; None is the model's."""
    fused_norm: bool = False
    """The norm's weight is applied before its output is rounded, not after."""
    experts: str | None = None
    """``eager``, ``batched_mm`` or ``grouped_mm``."""
    onednn: bool = True
    wide_head: bool = False
    """Logits from float32 operands."""
    dtype: torch.dtype | None = None
    """float32: a reference with the same weights."""


def variants_of(is_mixture: bool, dtype: torch.dtype) -> tuple[Variant, ...]:
    """The clean variants of a model, a reference in float32 last."""
    found = [
        Variant("plain"),
        Variant("eager", attention="eager"),
        Variant("math", backend="math"),
        Variant("batch", batch=True),
        Variant("eager-batch", attention="eager", batch=True),
        Variant("chunk16", chunk=16),
        Variant("eager-chunk48", attention="eager", chunk=48),
        Variant("pieces2", pieces=2),
        Variant("pieces4", pieces=4),
        Variant("pieces4-wide", pieces=4, accumulate=torch.float32),
        Variant("fused-norm", fused_norm=True),
        Variant("eager-pieces2-fused-norm", attention="eager", pieces=2, fused_norm=True),
        Variant("math-pieces4-chunk32", backend="math", pieces=4, chunk=32),
        Variant("no-onednn", onednn=False),
        Variant("no-onednn-eager-pieces8-batch", onednn=False, attention="eager", pieces=8, batch=True),
    ]
    if is_mixture:
        found += [
            Variant("batched-experts", experts="batched_mm"),
            Variant("grouped-experts", experts="grouped_mm"),
            Variant("grouped-experts-eager-pieces2", experts="grouped_mm", attention="eager", pieces=2),
        ]
    if dtype != torch.float32:
        found.append(Variant(REFERENCE, dtype=torch.float32))
    return tuple(found)


@contextlib.contextmanager
def numerics_of(variant: Variant) -> Iterator[None]:
    """The process-wide settings of the variant, for the length of the block."""
    with contextlib.ExitStack() as stack:
        if variant.backend is not None:
            chosen = {"math": SDPBackend.MATH, "flash": SDPBackend.FLASH_ATTENTION}[variant.backend]
            stack.enter_context(sdpa_kernel(chosen))
        if not variant.onednn:
            stack.enter_context(torch.backends.mkldnn.flags(enabled=False))
        yield


def prepare(model: Any, variant: Variant) -> None:
    """Make the modules of a fresh model compute as the variant says."""
    if variant.experts is not None:
        model.config._experts_implementation = variant.experts
    for module in list(model.modules()):
        name = type(module).__name__
        if variant.fused_norm and name.endswith("RMSNorm") and hasattr(module, "variance_epsilon"):
            module.forward = _fused_norm(module)
        if variant.pieces > 1 and name.endswith("Attention"):
            module.o_proj.forward = _in_pieces(module.o_proj, variant.pieces, variant.accumulate)
        if variant.pieces > 1 and name.endswith(("Mixer", "DeltaNet")):
            module.out_proj.forward = _in_pieces(module.out_proj, variant.pieces, variant.accumulate)
        if variant.pieces > 1 and name.endswith("MLP"):
            module.down_proj.forward = _in_pieces(module.down_proj, variant.pieces, variant.accumulate)


def _fused_norm(module: Any) -> Any:
    def forward(hidden: torch.Tensor) -> torch.Tensor:
        wide = hidden.float()
        scale = torch.rsqrt(wide.square().mean(-1, keepdim=True) + module.variance_epsilon)
        return (wide * scale * module.weight.float()).to(hidden.dtype)

    return forward


def _in_pieces(module: Any, pieces: int, accumulate: torch.dtype | None) -> Any:
    def forward(values: torch.Tensor) -> torch.Tensor:
        parts = zip(values.chunk(pieces, -1), module.weight.chunk(pieces, -1), strict=True)
        summands = [torch.nn.functional.linear(part, weight) for part, weight in parts]
        total = summands[0].to(accumulate or values.dtype)
        for summand in summands[1:]:
            total = total + summand.to(total.dtype)
        return total.to(values.dtype)

    return forward


@torch.inference_mode()
def generate(model: Any, variant: Variant, prompts: Sequence[Prompt]) -> None:
    """Prefill and ``NEW_TOKENS`` greedy decode passes for every prompt, scheduled as the variant says."""
    ordered = list(prompts)[:: variant.order]
    groups = [ordered] if variant.batch else [[prompt] for prompt in ordered]
    for group in groups:
        _generate_group(model, group, variant.chunk)


def _generate_group(model: Any, prompts: Sequence[Prompt], chunk: int | None) -> None:
    longest = max(len(prompt) for prompt in prompts)
    ids = torch.tensor([[0] * (longest - len(prompt)) + list(prompt) for prompt in prompts])
    mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    cache = None
    done = 0
    # A recurrence knows no positions, and padding only while it prefills.
    recurrent = model.config.model_type == "mamba2"
    name = "cache_params" if recurrent else "past_key_values"
    for _ in range(10**6):
        end = min(done + (chunk or longest), ids.shape[1])
        seen = mask[:, :end]
        positions = (seen.cumsum(-1) - 1).clamp(min=0)[:, done:end]
        places = {"attention_mask": seen, "position_ids": positions}
        if recurrent:
            places = {"attention_mask": seen} if cache is None else {}
        output = model(input_ids=ids[:, done:end], **places, **{name: cache}, use_cache=True)
        cache, done = output[name], end
        if done < ids.shape[1]:
            continue
        if done >= longest + NEW_TOKENS:
            return
        ids = torch.cat([ids, output.logits[:, -1].argmax(-1, keepdim=True)], -1)
        mask = torch.cat([mask, torch.ones_like(mask[:, :1])], -1)
