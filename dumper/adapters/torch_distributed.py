"""Plain torch.distributed: the rank of the default process group, and the axes of a device mesh."""

from __future__ import annotations

import gc
import os
import sys
from typing import Any

from dumper.adapters.protocol import Parallel
from dumper.layout import TokenLayout


class TorchDistributedAdapter:
    """Any process that has imported torch. Reads no batch: plain torch has no batch object of its own."""

    name = "torch.distributed"
    complete_at_start = False

    def __init__(self) -> None:
        self._mesh: Any = None

    def use_mesh(self, mesh: Any) -> None:
        """Take axes from this ``DeviceMesh``: its dimension names become axis names.

        Raises ValueError when the mesh has no dimension names.
        """
        if not mesh.mesh_dim_names:
            raise ValueError("the DeviceMesh has no mesh_dim_names, so its axes cannot be named")
        self._mesh = mesh

    def rank(self) -> tuple[int, int] | None:
        return group_rank() or _launcher_rank()

    def parallel(self) -> Parallel:
        mesh = self._mesh
        if mesh is None:
            return {}
        return {
            axis: (int(mesh.get_local_rank(axis)), int(mesh.size(index)))
            for index, axis in enumerate(mesh.mesh_dim_names)
        }

    def versions(self) -> dict[str, str]:
        torch = sys.modules.get("torch")
        return {} if torch is None else {"torch": str(getattr(torch, "__version__", "unknown"))}

    def accepts(self, batch: object) -> bool:
        return False

    def read_batch(self, batch: object) -> TokenLayout | None:
        return None


def group_rank() -> tuple[int, int] | None:
    """Rank and size of the default process group; None without one."""
    distributed = sys.modules.get("torch.distributed")
    if distributed is None or not distributed.is_available() or not distributed.is_initialized():
        return None
    return int(distributed.get_rank()), int(distributed.get_world_size())


def data_parallel_axis() -> Parallel:
    """The axis ``dp`` where a model is in ``DistributedDataParallel``, FSDP or ``fully_shard``: the place among ranks
    that get other tokens. Takes milliseconds."""
    wrappers = [
        getattr(sys.modules.get(module), name, None)
        for module, name in (
            ("torch.nn.parallel.distributed", "DistributedDataParallel"),
            ("torch.distributed.fsdp.fully_sharded_data_parallel", "FullyShardedDataParallel"),
        )
    ]
    sharded = getattr(sys.modules.get("torch.distributed.fsdp._fully_shard._fsdp_common"), "FSDPMeshInfo", None)
    places: list[tuple[int, int]] = []
    for thing in gc.get_objects() if any((*wrappers, sharded)) else ():
        if type(thing) in wrappers:
            places.append((int(thing.process_group.rank()), int(thing.process_group.size())))
        elif sharded is not None and issubclass(type(thing), sharded):
            replica, replicas = getattr(thing, "replicate_mesh_rank", 0), getattr(thing, "replicate_mesh_size", 1)
            size = int(thing.shard_mesh_size)
            places.append((int(replica) * size + int(thing.shard_mesh_rank), int(replicas) * size))
    return {"dp": max(places, key=lambda place: place[1])} if places else {}


def _launcher_rank() -> tuple[int, int] | None:
    """What torchrun told this process, before it has made a process group.

    ``RANK`` alone is not trusted: cluster schedulers set it to the number of the node.
    """
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return None
    try:
        return int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    except (KeyError, ValueError):
        return None
