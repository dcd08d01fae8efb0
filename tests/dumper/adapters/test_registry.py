"""Adapters are found through what is imported, and none of them can hurt the model."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dumper import adapters
from dumper.adapters import Parallel, describe_process, is_settled, read_batch
from dumper.adapters.torch_distributed import TorchDistributedAdapter
from dumper.layout import TokenLayout
from testbed.ranks import run_ranks

LAYOUT = TokenLayout("train", (), 3)


class Adapter:
    name = "mine"
    complete_at_start = True

    def __init__(self, broken: bool = False) -> None:
        self.broken = broken

    def rank(self) -> tuple[int, int] | None:
        if self.broken:
            raise RuntimeError("groups are gone")
        return 3, 8

    def parallel(self) -> Parallel:
        return {"tp": (1, 2)}

    def versions(self) -> dict[str, str]:
        return {"mine": "1.0"}

    def accepts(self, batch: object) -> bool:
        return batch == "batch"

    def read_batch(self, batch: object) -> TokenLayout | None:
        if self.broken:
            raise RuntimeError("no rows")
        return LAYOUT


@pytest.fixture
def registered(monkeypatch: pytest.MonkeyPatch) -> list[adapters.Adapter]:
    found: list[adapters.Adapter] = []
    monkeypatch.setattr(adapters, "_registered", found)
    monkeypatch.setattr(adapters, "_warned", set())
    return found


def test_a_process_without_a_framework_loads_no_adapter() -> None:
    script = (
        "import sys; from dumper.adapters import describe_process; process = describe_process()\n"
        "assert (process.rank, process.world_size, process.framework) == (0, 1, None), process\n"
        "heavy = {'torch', 'numpy.testing', 'sglang', 'vllm', 'transformers', 'megatron'} & set(sys.modules)\n"
        "loaded = {name for name in sys.modules if name.startswith('dumper.adapters.')}\n"
        "helpers = ('protocol', 'process_settings', 'model_facts', 'quantisation')\n"
        "assert not heavy and loaded == {f'dumper.adapters.{name}' for name in helpers}, (heavy, loaded)"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


def test_a_registered_adapter_comes_first(registered: list[adapters.Adapter]) -> None:
    adapters.register(Adapter())
    process = describe_process()
    assert (process.rank, process.world_size, process.framework) == (3, 8, "mine")
    assert process.parallel == {"tp": (1, 2)}
    assert process.versions["mine"] == "1.0"
    assert process.versions["torch"] == torch.__version__
    assert read_batch("batch") is LAYOUT
    assert adapters.complete_at_start("batch")


def test_an_adapter_that_fails_is_named_once_and_changes_nothing(
    registered: list[adapters.Adapter], caplog: pytest.LogCaptureFixture
) -> None:
    adapters.register(Adapter(broken=True))
    for _ in range(2):
        assert describe_process().rank == 0
        assert read_batch("batch") is None
    assert caplog.text.count("groups are gone") == 1
    assert caplog.text.count("no rows") == 1


def test_a_batch_that_nobody_knows_is_said_once(
    registered: list[adapters.Adapter], caplog: pytest.LogCaptureFixture
) -> None:
    assert read_batch(object()) is None
    assert read_batch(object()) is None
    assert caplog.text.count("no adapter understands a builtins.object as a batch") == 1


def test_a_layout_is_its_own_batch() -> None:
    assert read_batch(LAYOUT) is LAYOUT


def test_the_rank_of_torchrun_is_known_before_the_process_group(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "5")
    monkeypatch.setenv("WORLD_SIZE", "8")
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    assert TorchDistributedAdapter().rank() is None  # a cluster scheduler's RANK is the node's
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "run")
    assert TorchDistributedAdapter().rank() == (5, 8)


Seen = tuple[tuple[int, int] | None, dict[str, tuple[int, int]], str | None]


def run_rank(rank: int, rendezvous: str) -> Seen:
    os.environ.update(RANK=str(rank), WORLD_SIZE="4")
    torch.distributed.init_process_group("gloo", init_method=rendezvous, rank=rank, world_size=4)
    mesh = torch.distributed.init_device_mesh("cpu", (2, 2), mesh_dim_names=("dp", "tp"))
    adapter = TorchDistributedAdapter()
    adapter.use_mesh(mesh)
    torch.distributed.barrier()  # no rank leaves the group before all have made their meshes
    return adapter.rank(), dict(adapter.parallel()), describe_process().framework


@pytest.mark.slow
def test_ranks_and_mesh_axes_of_real_ranks(tmp_path: Path) -> None:
    assert run_ranks(run_rank, 4, f"file://{tmp_path}/rendezvous") == [
        ((rank, 4), {"dp": (rank // 2, 2), "tp": (rank % 2, 2)}, "torch.distributed") for rank in range(4)
    ]


def test_an_engine_that_is_still_starting_has_no_final_rank(registered: list[adapters.Adapter]) -> None:
    class Engine(Adapter):
        name = "sglang"
        place: tuple[int, int] | None = None

        def rank(self) -> tuple[int, int] | None:
            return self.place

    engine = Engine()
    adapters.register(engine)
    torch_alone = adapters.Process(framework="torch.distributed")
    assert not is_settled(torch_alone)
    engine.place = 0, 2
    assert is_settled(describe_process())


def test_a_mesh_without_names_is_refused() -> None:
    class Mesh:
        mesh_dim_names = None

    with pytest.raises(ValueError, match="no mesh_dim_names"):
        TorchDistributedAdapter().use_mesh(Mesh())


def test_what_a_layout_needs_comes_as_flat_arrays() -> None:
    from dumper.adapters.framework_values import layout_of

    tensor = torch.tensor([[1, 2], [3, 4]], dtype=torch.int32)
    given: list[dict[str, Any]] = []
    layout = TokenLayout("extend", (), 0)

    def build(arrays: dict[str, Any]) -> TokenLayout:
        given.append(arrays)
        return layout

    tensors = {"tensor": tensor, "list": [5, 6], "none": None, "empty": torch.zeros(0)}
    assert layout_of(tensors, build) is layout
    tensor.zero_()
    (arrays,) = given
    assert arrays["tensor"].tolist() == [1, 2, 3, 4]
    assert arrays["list"].tolist() == [5, 6]
    assert arrays["empty"].size == 0
    assert "none" not in arrays
    assert all(array.dtype == np.int64 for array in arrays.values())
