"""Values that are no plain tensors, dumped at every level in a process of its own: ``python -m tests.gpu.exotic_values
NAME FOLDER`` prints what came of it as one line of JSON. A broken one may end the process or the device's context."""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from tests.gpu.recordings import DEVICE, Recordings

LEVELS = ("full", "stats", "sample", "hash")
SKIPPED = 77
"""The exit code where this torch cannot make the value; the reason is the last line."""


def _process_group() -> None:
    import torch.distributed as dist

    backend = "nccl" if DEVICE == "cuda" else "gloo"
    dist.init_process_group(backend, init_method=f"file://{tempfile.mktemp()}", rank=0, world_size=1)


def _dtensor(shard: bool) -> torch.Tensor:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Replicate, Shard, distribute_tensor

    _process_group()
    mesh = init_device_mesh(DEVICE, (1,), mesh_dim_names=("tp",))
    return distribute_tensor(
        torch.arange(12.0, device=DEVICE).reshape(3, 4), mesh, [Shard(0) if shard else Replicate()]
    )


def _async_collective() -> torch.Tensor:
    import torch.distributed as dist
    import torch.distributed._functional_collectives as collectives

    _process_group()
    assert dist.group.WORLD is not None
    return collectives.all_reduce(torch.arange(12.0, device=DEVICE), "sum", dist.group.WORLD)


def _fake(*shape: int) -> torch.Tensor:
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        return torch.randn(*shape, device=DEVICE)


class Wrapper(torch.Tensor):
    """Keeps its values in another tensor, and says nothing of it."""

    inner: torch.Tensor

    @staticmethod
    def __new__(cls, inner: torch.Tensor) -> Wrapper:
        made = torch.Tensor._make_wrapper_subclass(cls, inner.shape, dtype=inner.dtype, device=inner.device)
        made.inner = inner
        return made

    @classmethod
    def __torch_dispatch__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        from torch.utils._pytree import tree_map

        args, kwargs = tree_map(lambda a: a.inner if isinstance(a, Wrapper) else a, (args, kwargs or {}))
        return tree_map(lambda a: Wrapper(a) if isinstance(a, torch.Tensor) else a, function(*args, **kwargs))


def _masked() -> torch.Tensor:
    from torch.masked import masked_tensor

    return masked_tensor(torch.arange(12.0, device=DEVICE), torch.arange(12, device=DEVICE) % 2 == 0)


def _without_storage(elements: int) -> torch.Tensor:
    x = torch.randn(elements, device=DEVICE)
    if DEVICE == "cuda":
        torch.cuda.synchronize()
    x.untyped_storage().resize_(0)
    return x


def _two_tensors() -> torch.Tensor:
    from torch.testing._internal.two_tensor import TwoTensor

    a = torch.arange(12.0, device=DEVICE)
    return TwoTensor(a, a.clone())


def _nested(layout: torch.layout) -> torch.Tensor:
    parts = [torch.randn(2, 3, device=DEVICE), torch.randn(4, 3, device=DEVICE)]
    return torch.nested.nested_tensor(parts, layout=layout)


MAKERS: dict[str, Callable[[], torch.Tensor]] = {
    "dtensor_replicate": lambda: _dtensor(shard=False),
    "dtensor_shard": lambda: _dtensor(shard=True),
    "async_collective": _async_collective,
    "fake": lambda: _fake(3, 4),
    "fake_large": lambda: _fake(3000, 4000),
    "wrapper_subclass": lambda: Wrapper(torch.arange(12.0, device=DEVICE).reshape(3, 4)),
    "masked": _masked,
    "two_tensors": _two_tensors,
    "sparse_csr": lambda: torch.eye(5, device=DEVICE).to_sparse_csr(),
    "sparse_coo": lambda: torch.eye(5, device=DEVICE).to_sparse(),
    "quantized": lambda: torch.quantize_per_tensor(torch.randn(4, 4, device=DEVICE), 0.1, 0, torch.qint8),
    "nested_strided": lambda: _nested(torch.strided),
    "nested_jagged": lambda: _nested(torch.jagged),
    "meta": lambda: torch.empty(3, 4, device="meta"),
    "without_storage": lambda: _without_storage(100),
    "large_without_storage": lambda: _without_storage(5_000_000),
}
TRANSFORMS = ("vmap", "functorch_grad")


def main(name: str, folder: str) -> int:
    recordings = Recordings(Path(folder))
    recorders = [recordings.start(level=level) for level in LEVELS]

    def dump(value: Any) -> None:
        for recorder in recorders:
            recorder.dump("x", value)
            recorder.dump("pair", (value, torch.ones(2, device=DEVICE)))

    if name == "vmap":
        torch.vmap(lambda row: (dump(row), row * 2)[1])(torch.randn(3, 4, device=DEVICE))
    elif name == "functorch_grad":
        torch.func.grad(lambda x: (dump(x * 2), (x * 2).sum())[1])(torch.randn(4, device=DEVICE))
    else:
        try:
            value = MAKERS[name]()
        except Exception as error:
            print(f"{type(error).__name__}: {error}")
            return SKIPPED
        dump(value)
    # The model goes on, on a device whose context is alive.
    assert float(torch.ones(3, device=DEVICE).sum()) == 3
    said = []
    for recorder in recorders:
        path = recorder.settings.run_path
        recorder.close()
        from dumper import open_run

        run = open_run(path)
        said.append({"lost": run.losses, "names": [record.name for record in run.records]})
    print(json.dumps(said))
    return 0


if __name__ == "__main__":
    code = main(*sys.argv[1:])
    sys.stdout.flush()
    import os

    os._exit(code)  # process groups end noisily
