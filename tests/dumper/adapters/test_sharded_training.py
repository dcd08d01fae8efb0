"""Training that shares out batches among ranks: where each rank stands is found without a word."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import pytest

from testbed.ranks import run_ranks


def prepare(*_: object) -> None:
    importlib.import_module("torch.distributed.fsdp")


def axes_of(rank: int, folder: str, wrapper: str) -> Any:
    import torch
    import torch.distributed as dist
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    from dumper.adapters.torch_distributed import data_parallel_axis

    dist.init_process_group("gloo", init_method=f"file://{folder}/{wrapper}", rank=rank, world_size=2)
    before = data_parallel_axis()
    mesh = init_device_mesh("cpu", (2,))
    if wrapper == "replicated and sharded":
        mesh = init_device_mesh("cpu", (2, 1), mesh_dim_names=("replicas", "shards"))
    model = fully_shard(torch.nn.Linear(4, 4), mesh=mesh)
    found = data_parallel_axis()
    del model
    return before, found


@pytest.mark.parametrize("wrapper", ["sharded", "replicated and sharded"])
def test_ranks_of_fully_shard_have_tokens_of_their_own(tmp_path: Path, wrapper: str) -> None:
    answers = run_ranks(axes_of, 2, str(tmp_path), wrapper, prepare=prepare)
    assert answers == [({}, {"dp": (rank, 2)}) for rank in range(2)]
