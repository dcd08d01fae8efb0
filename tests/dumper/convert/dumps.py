"""Small dumps in the file format of SGLang's dumper."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch


class DumpWriter:
    """Writes files of one directory, numbered as SGLang's dumper numbers them."""

    def __init__(self, path: Path, parallel: Mapping[int, Mapping[str, tuple[int, int]]] | None = None) -> None:
        self.path = path
        self._parallel = parallel or {0: {}}
        self._index = 0
        path.mkdir(parents=True, exist_ok=True)

    def write(
        self,
        step: int,
        rank: int,
        name: str,
        value: Any,
        *,
        dims: str | None = None,
        status: str = "disabled",
        **tags: Any,
    ) -> Path:
        self._index += 1
        parts = {
            "step": step,
            "rank": rank,
            "dump_index": self._index,
            "name": name,
            "recompute_status": status,
            **tags,
        }
        info: dict[str, Any] = {"attn_dp_enabled": False}
        for axis, (at, size) in self._parallel.get(rank, {}).items():
            info |= {f"{axis}_rank": at, f"{axis}_size": size}
        meta = {**parts, "world_rank": rank, "world_size": len(self._parallel), "sglang_parallel_info": info}
        if dims is not None:
            meta["dims"] = dims
        path = self.path / ("___".join(f"{key}={part}" for key, part in parts.items()) + ".pt")
        torch.save({"value": value, "meta": meta}, path)
        return path

    def batch(
        self,
        step: int,
        rank: int,
        token_ids: list[int],
        positions: list[int],
        lengths: list[int],
        rids: list[str] | None,
    ) -> None:
        """What the dumper records of a batch by itself."""
        self.write(step, rank, "input_ids", torch.tensor(token_ids, dtype=torch.int64))
        self.write(step, rank, "positions", torch.tensor(positions, dtype=torch.int64))
        self.write(step, rank, "seq_lens", torch.tensor(lengths, dtype=torch.int64))
        self.write(step, rank, "req_pool_indices", torch.arange(1, len(lengths) + 1))
        if rids is not None:
            self.write(step, rank, "rids", rids)
