"""Models that are quantised as servers do it: weights and the inputs of matrix products in a coarse format, each with a
scale for some of them. What is rounded is handed on in float32, as kernels that add up products of eight bits do."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from transformers.cache_utils import DynamicCache

from benchmarks.faults.engines.huggingface.variants import Variant

GROUP = 128
LARGEST = {"float8_e4m3fn": 448.0, "int8": 127.0}
PROJECTIONS = ("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj")
CUT_PROJECTIONS = ("o_proj", "down_proj")
"""Their inputs are cut over ranks, each of which has scales of its own."""


@dataclass(frozen=True)
class Scheme:
    """What is rounded, and how."""

    dtype: Literal["float8_e4m3fn", "int8"]
    scales: Literal["tensor", "token", "group", "cache"] = "token"
    """A scale for all inputs of a product, for each token, or for each 128 of its channels. ``cache``: keys and values
    are rounded, without a scale, and nothing else."""

    @property
    def config(self) -> dict[str, Any]:
        """As a ``quantization_config``, which the recorder reads."""
        if self.scales == "cache":
            return {"quant_method": "fp8_cache", "kv_cache_scheme": {"num_bits": 8, "type": "float"}}
        return {"quant_method": "fp8" if self.dtype == "float8_e4m3fn" else "w8a8_int8"}


class RoundedLinear(torch.nn.Module):
    """``linear`` with weights and inputs rounded; summands of so many ranks, each rounded to its dtype."""

    def __init__(self, linear: torch.nn.Linear, scheme: Scheme, variant: Variant, pieces: int) -> None:
        super().__init__()
        self.weight, self.bias = _weights(linear.weight.data, scheme), linear.bias
        self.scheme, self.dtype, self.pieces = scheme, linear.weight.dtype, pieces
        self.accumulate = variant.accumulate or self.dtype

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        parts = zip(values.chunk(self.pieces, -1), self.weight.chunk(self.pieces, -1), strict=True)
        summands = [_product(part, weight, self.scheme, self.dtype) for part, weight in parts]
        total = summands[0]
        for summand in summands[1:]:
            total = total.to(self.accumulate) + summand.to(self.accumulate)
        return total.to(self.dtype) if self.bias is None else total.to(self.dtype) + self.bias


def quantise(model: Any, scheme: Scheme, variant: Variant) -> None:
    """Make a fresh model compute so; routers, norms, the table and the logits stay as they are."""
    model.config.quantization_config = scheme.config
    if scheme.scales == "cache":
        model.forward = _with_rounded_cache(model.forward)
        return
    for module in list(model.modules()):
        for name in (*PROJECTIONS, *CUT_PROJECTIONS):
            linear = getattr(module, name, None)
            if isinstance(linear, torch.nn.Linear):
                pieces = variant.pieces if name in CUT_PROJECTIONS else 1
                setattr(module, name, RoundedLinear(linear, scheme, variant, pieces))
        if type(module).__name__.endswith("Experts"):
            module.forward = _experts(module, scheme)


def _experts(module: Any, scheme: Scheme) -> Any:
    up, down = (_weights(weight.data, scheme) for weight in (module.gate_up_proj, module.down_proj))
    dtype = module.gate_up_proj.dtype

    def forward(values: torch.Tensor, chosen: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        total = torch.zeros_like(values)
        for expert in range(module.num_experts):
            token, place = torch.where(chosen == expert)
            if len(token):
                gate, inner = _product(values[token], up[expert], scheme, dtype).chunk(2, -1)
                outcome = _product(module.act_fn(gate) * inner, down[expert], scheme, dtype)
                total.index_add_(0, token, (outcome * weights[token, place, None]).to(dtype))
        return total

    return forward


def _with_rounded_cache(forward: Any) -> Any:
    class Cache(DynamicCache):
        def update(self, keys: torch.Tensor, values: torch.Tensor, *more: Any, **named: Any) -> Any:
            keys, values = (part.to(torch.float8_e4m3fn).to(part.dtype) for part in (keys, values))
            return super().update(keys, values, *more, **named)

    def with_cache(*arguments: Any, **named: Any) -> Any:
        if named.get("past_key_values") is None:
            named["past_key_values"] = Cache()
        return forward(*arguments, **named)

    return with_cache


def _product(values: torch.Tensor, weight: torch.Tensor, scheme: Scheme, dtype: torch.dtype) -> torch.Tensor:
    return torch.nn.functional.linear(_activations(values, scheme), weight).to(dtype)


def _weights(weight: torch.Tensor, scheme: Scheme) -> torch.Tensor:
    """A scale for each output channel."""
    wide = weight.float()
    return _rounded(wide, wide.abs().amax(-1, keepdim=True), scheme)


def _activations(values: torch.Tensor, scheme: Scheme) -> torch.Tensor:
    wide = values.float()
    if scheme.scales == "tensor":
        return _rounded(wide, wide.abs().amax(), scheme)
    if scheme.scales == "group" and wide.shape[-1] % GROUP == 0:
        grouped = wide.unflatten(-1, (-1, GROUP))
        return _rounded(grouped, grouped.abs().amax(-1, keepdim=True), scheme).flatten(-2)
    return _rounded(wide, wide.abs().amax(-1, keepdim=True), scheme)


def _rounded(values: torch.Tensor, largest: torch.Tensor, scheme: Scheme) -> torch.Tensor:
    scale = largest.clamp(min=1e-10) / LARGEST[scheme.dtype]
    if scheme.dtype == "int8":
        return (values / scale).round() * scale
    return (values / scale).to(torch.float8_e4m3fn).float() * scale
