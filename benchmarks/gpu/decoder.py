"""A decoder with random weights, as large as a model of some billion parameters, without taps, with taps, and with any
other call at the same places."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F

from dumper.recording.taps import Tap


@dataclass(frozen=True)
class Size:
    """How large the decoder is, and what it is measured with."""

    layers: int
    hidden: int
    inner: int
    heads: int
    past: int
    """Tokens in the cache when it decodes."""
    mlp_taps: int
    """Layers whose mlp_output is recorded; attn_output is in every layer."""
    tokens: tuple[int, int, int]
    """Rows of a pass: two of decoding, and a prefill."""

    @property
    def taps(self) -> int:
        return self.layers + self.mlp_taps


ON_DEVICE = Size(layers=32, hidden=4096, inner=12288, heads=32, past=1024, mlp_taps=18, tokens=(1, 32, 4096))
TINY = Size(layers=4, hidden=64, inner=128, heads=4, past=16, mlp_taps=2, tokens=(1, 4, 64))

Put = Callable[[str, torch.Tensor, int], None]


class Decoder:
    """Its passes take x, shape (rows, hidden), bfloat16."""

    def __init__(self, size: Size, device: str) -> None:
        self.size = size
        self.device = device
        generator = torch.Generator(device=device).manual_seed(0)

        def weight(rows: int, columns: int) -> torch.Tensor:
            made = torch.empty(rows, columns, device=device, dtype=torch.bfloat16)
            return made.normal_(0, rows**-0.5, generator=generator)

        h, inner = size.hidden, size.inner
        shapes = [(h, h)] * 4 + [(h, inner), (h, inner), (inner, h)]
        self._weights = [[weight(*shape) for shape in shapes] for _ in range(size.layers)]
        self._norm = torch.ones(h, device=device, dtype=torch.bfloat16)
        self._caches = {rows: [self._cache(rows) for _ in range(2)] for rows in size.tokens[:2]}

    def _cache(self, rows: int) -> torch.Tensor:
        shape = rows, self.size.heads, self.size.past, self.size.hidden // self.size.heads
        return torch.randn(*shape, device=self.device, dtype=torch.bfloat16)

    def input(self, rows: int) -> torch.Tensor:
        return torch.randn(rows, self.size.hidden, device=self.device, dtype=torch.bfloat16)

    def _attention(self, x: torch.Tensor, layer: int) -> torch.Tensor:
        q, k, v, o = self._weights[layer][:4]
        rows, heads = x.shape[0], self.size.heads
        h = F.rms_norm(x, (self.size.hidden,), self._norm)
        caches = self._caches.get(rows)
        if caches is None:
            queries, keys, values = ((h @ w).view(1, rows, heads, -1).transpose(1, 2) for w in (q, k, v))
            mixed = F.scaled_dot_product_attention(queries, keys, values, is_causal=True).transpose(1, 2)
        else:
            keys, values = caches
            keys[:, :, -1] = (h @ k).view(rows, heads, -1)
            values[:, :, -1] = (h @ v).view(rows, heads, -1)
            mixed = F.scaled_dot_product_attention((h @ q).view(rows, heads, 1, -1), keys, values)
        return mixed.reshape(rows, self.size.hidden) @ o

    def _mlp(self, x: torch.Tensor, layer: int) -> torch.Tensor:
        gate, up, down = self._weights[layer][4:]
        h = F.rms_norm(x, (self.size.hidden,), self._norm)
        return (F.silu(h @ gate) * (h @ up)) @ down

    def plain(self, x: torch.Tensor) -> torch.Tensor:
        for layer in range(self.size.layers):
            x = x + self._attention(x, layer)
            x = x + self._mlp(x, layer)
        return x

    def tapped(self, x: torch.Tensor, taps: tuple[Tap, ...]) -> torch.Tensor:
        """As the patcher leaves a function."""
        for layer in range(self.size.layers):
            attn_output = self._attention(x, layer)
            if taps[0].on:
                try:
                    taps[0].record(attn_output, "t h", layer_id=layer)
                except Exception:
                    taps[0].failed()
            x = x + attn_output
            mlp_output = self._mlp(x, layer)
            if taps[1].on and layer < self.size.mlp_taps:
                try:
                    taps[1].record(mlp_output, "t h", layer_id=layer)
                except Exception:
                    taps[1].failed()
            x = x + mlp_output
        return x

    def with_calls(self, x: torch.Tensor, put: Put) -> torch.Tensor:
        """The same values, handed to another recorder."""
        for layer in range(self.size.layers):
            attn_output = self._attention(x, layer)
            put("attn_output", attn_output, layer)
            x = x + attn_output
            mlp_output = self._mlp(x, layer)
            if layer < self.size.mlp_taps:
                put("mlp_output", mlp_output, layer)
            x = x + mlp_output
        return x


def infos() -> tuple[dict[str, Any], ...]:
    """The decoder's taps, as ``install_taps`` takes them."""
    return tuple(
        {
            "id": f"decoder#{number}:{name}",
            "name": name,
            "kind": "dump",
            "target": "decoder",
            "file": "",
            "line": number,
        }
        for number, name in enumerate(("attn_output", "mlp_output"), 1)
    )
