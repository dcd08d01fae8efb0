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
    """The axis ``dp`` where a model is in ``DistributedDataParallel``: the place in its process group. Takes
    milliseconds."""
    kind = getattr(sys.modules.get("torch.nn.parallel.distributed"), "DistributedDataParallel", None)
    if kind is None:
        return {}
    groups = [thing.process_group for thing in gc.get_objects() if type(thing) is kind]
    group = max(groups, key=lambda one: int(one.size()), default=None)
    return {} if group is None else {"dp": (int(group.rank()), int(group.size()))}


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
