"""One rank of a training under context parallelism (``testbed.ranks`` forks it): ring attention in zigzag order, or
Ulysses, which gives each rank all tokens of some heads for the time of an attention."""

from __future__ import annotations

import importlib
import os

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn

from dumper import dumper

LENGTH, HEADS, WIDTH = 32, 4, 32


def prepare(*arguments: object) -> None:
    """Imports what takes long, once for all ranks."""
    importlib.import_module("torch.distributed.nn.functional")
    importlib.import_module("torch.optim")


class Attention(nn.Module):
    """Causal attention of the tokens of this rank, at ``position``, to those of all."""

    def __init__(self, kind: str, position: torch.Tensor, size: int, wrong: bool) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.kind, self.position, self.size, self.wrong = kind, position, size, wrong
        self.order = torch.argsort(self.gathered(position, 0)) if size > 1 else position

    def gathered(self, values: torch.Tensor, dimension: int) -> torch.Tensor:
        from torch.distributed.nn.functional import all_gather

        return torch.cat(all_gather(values.contiguous()), dimension) if self.size > 1 else values

    def exchanged(self, values: torch.Tensor, given: int, taken: int) -> torch.Tensor:
        """Parts along one dimension for those along another one."""
        from torch.distributed.nn.functional import all_to_all

        parts = [part.contiguous() for part in values.chunk(self.size, given)]
        return torch.cat(all_to_all([torch.empty_like(part) for part in parts], parts), taken)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, length, _ = x.shape
        q, k, v = (part.view(batch, length, HEADS, -1).transpose(1, 2) for part in self.qkv(x).chunk(3, -1))
        if self.kind == "ring":
            k, v = (self.gathered(part, 2)[:, :, self.order] for part in (k, v))
            seen = self.position + (self.position > LENGTH // 2) if self.wrong else self.position
            found = F.scaled_dot_product_attention(q, k, v, attn_mask=seen[:, None] >= torch.arange(LENGTH))
        else:
            if self.size > 1:
                q, k, v = (self.exchanged(part, 1, 2)[:, :, self.order] for part in (q, k, v))
            found = F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=0.36 if self.wrong else None)
            dumper.dump("heads", found, dims="b heads[cp] s d")
            if self.size > 1:
                found = self.exchanged(found[:, :, torch.argsort(self.order)], 2, 1)
        return self.out(found.transpose(1, 2).reshape(batch, length, WIDTH))


def train(rank: int, size: int, folder: str, run: str, kind: str, fault: str) -> None:
    """Two steps; ``fault``: ``attention``, where the last rank looks one token too far ahead, or scales otherwise."""
    os.environ.update(OMP_NUM_THREADS="1", GLOO_SOCKET_IFNAME="lo")
    dist.init_process_group("gloo", init_method=f"file://{folder}/store-{run}", rank=rank, world_size=size)
    dumper.configure(enable=True, dir=folder, run=run, control=False, parallel={"cp": (rank, size)})

    def part_of(values: torch.Tensor, dimension: int) -> torch.Tensor:
        chunks = values.chunk(2 * size, dimension)
        return torch.cat([chunks[rank], chunks[2 * size - 1 - rank]], dimension)

    torch.manual_seed(0)
    attention = Attention(kind, part_of(torch.arange(LENGTH), 0), size, bool(fault) and rank == size - 1)
    model = nn.Sequential(nn.Embedding(64, WIDTH), attention, nn.Linear(WIDTH, 64))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, foreach=False)
    dumper.attach(model, "**", dims="b s[cp:zigzag] h", grad=True)
    for step in range(2):
        ids = torch.randint(64, (2, LENGTH + 1), generator=torch.Generator().manual_seed(step))
        with dumper.step():
            optimizer.zero_grad()
            logits = model(part_of(ids[:, :-1], 1))
            F.cross_entropy(logits.flatten(0, 1), part_of(ids[:, 1:], 1).flatten()).backward()
            for parameter in model.parameters():
                assert parameter.grad is not None
                dist.all_reduce(parameter.grad)
                parameter.grad /= size
            dumper.dump_model(model, dims="# cp:replicated")
            optimizer.step()
    dumper.close()
    dist.barrier()
    dist.destroy_process_group()
