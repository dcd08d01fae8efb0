"""One rank of a training program with ``DistributedDataParallel`` (``testbed.ranks`` forks it)."""

from __future__ import annotations

import importlib
import os

import torch
import torch.distributed as dist
from torch import nn

from dumper import dumper

BATCH = 4


def prepare(*arguments: object) -> None:
    """Imports what takes long, once for all ranks."""
    importlib.import_module("torch.nn.parallel.distributed")
    importlib.import_module("torch.optim")


class Doubled(torch.autograd.Function):
    """Hands values on as they are, and their gradients twice as large."""

    @staticmethod
    def forward(context: object, values: torch.Tensor) -> torch.Tensor:
        return values.clone()

    @staticmethod
    def backward(context: object, gradient: torch.Tensor) -> torch.Tensor:
        return gradient * 2


def train(rank: int, size: int, folder: str, run: str, fault: str, grad: str = "") -> None:
    """Three steps of a batch of ``BATCH`` sequences that the ranks share; ``fault``: what the last rank does wrong in
    the second one. ``grad``: ``values``, whose gradients are recorded too, or ``alone``, without parameters'."""
    os.environ.update(OMP_NUM_THREADS="1", GLOO_SOCKET_IFNAME="lo")
    dumper.configure(enable=True, dir=folder, run=run, control=False)
    torch.manual_seed(0)
    model: nn.Module = nn.Sequential(nn.Linear(16, 64), nn.Tanh(), nn.Linear(64, 8))
    if size > 1:
        dist.init_process_group("gloo", init_method=f"file://{folder}/store-{run}", rank=rank, world_size=size)
        model = nn.parallel.DistributedDataParallel(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, foreach=False)
    dumper.attach(model, "*", dims="b[dp] s h", grad=bool(grad))
    if fault == "doubled":
        inner = model.module if size > 1 else model
        inner[1].register_forward_hook(lambda module, given, output: Doubled.apply(output))
    for step in range(3):
        batch = torch.randn(BATCH, 6, 16, generator=torch.Generator().manual_seed(step)).chunk(size)[rank]
        wrong = step == 1 and rank == size - 1
        with dumper.step():
            optimizer.zero_grad()
            loss = model(batch).square().mean()
            if wrong and fault == "loss":
                loss = loss * 1.01
            if fault == "summed":
                loss = loss * size
            loss.backward()
            if wrong and fault == "gradients":
                for parameter in model.parameters():
                    parameter.grad.mul_(1.001)
            dumper.dump_model(model, dims="# dp:replicated", grad=grad != "alone")
        if not (wrong and fault == "update"):
            optimizer.step()
    dumper.close()
    if size > 1:
        dist.barrier()
        dist.destroy_process_group()
