"""One rank of a program with DTensors (``testbed.ranks`` forks it)."""

from __future__ import annotations

import importlib
import os
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn

from dumper import dumper


def prepare(size: int, folder: str) -> None:
    """Imports what takes long, once for all ranks; not at the top, for every process that collects the tests."""
    importlib.import_module("torch.distributed.fsdp")
    importlib.import_module("torch.distributed.tensor.parallel")


def record(rank: int, size: int, folder: str) -> str:
    """Record into ``folder/run``; returns what was written to standard error."""
    said = Path(folder, f"stderr-{rank}")
    with said.open("wb") as file:
        os.dup2(file.fileno(), 2)
    _record(rank, size, folder)
    return said.read_text()


def _record(rank: int, size: int, folder: str) -> None:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor import Partial, Replicate, Shard, distribute_tensor
    from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

    os.environ.update(OMP_NUM_THREADS="1", GLOO_SOCKET_IFNAME="lo")
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=size)
    dumper.configure(enable=True, dir=folder, run="run", control=False)
    mesh = init_device_mesh("cpu", (size // 2, 2), mesh_dim_names=("dp", "tp"))
    whole = torch.arange(24.0).reshape(4, 6)
    column = distribute_tensor(whole, mesh, [Replicate(), Shard(1)])
    dumper.step()
    dumper.dump("column", column)
    dumper.dump("column named", column, dims="t h")
    dumper.dump("rows over both", distribute_tensor(whole, mesh, [Shard(0), Shard(0)]))
    dumper.dump("replicated", distribute_tensor(whole, mesh, [Replicate(), Replicate()]))
    dumper.dump("stats", column, level="stats")
    tp = mesh["tp"]
    summand = torch.distributed.tensor.DTensor.from_local(whole * (tp.get_local_rank() + 1), tp, [Partial()])
    dumper.dump("summand", summand)
    model = nn.Sequential(nn.Linear(6, 8), nn.Linear(8, 6))
    parallelize_module(model, mesh["tp"], {"0": ColwiseParallel(), "1": RowwiseParallel()})
    fully_shard(model, mesh=mesh["dp"])
    dumper.dump_model(model)
    model(whole).sum().backward()
    dumper.dump_model(model, prefix="after")
    dumper.close()
    dist.barrier()
    dist.destroy_process_group()
