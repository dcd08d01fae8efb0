"""Where a rank of plain torch stands: said by ``TENSORTAP_PARALLEL``, or found in a DeviceMesh that was made."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from pathlib import Path

import pytest

from dumper import open_run
from dumper.recording.recorder import Recorder
from dumper.settings import Settings, SettingsError

torch = pytest.importorskip("torch", reason="torch is not installed")
dist = pytest.importorskip("torch.distributed", reason="this torch has no distributed")
fake_pg = pytest.importorskip("torch.testing._internal.distributed.fake_pg", reason="this torch has no fake group")

RANK, SIZE = 5, 8


@pytest.fixture
def group() -> Iterator[None]:
    """A process group of which this process is rank 5 of 8, without the others."""
    dist.init_process_group("fake", rank=RANK, world_size=SIZE, store=fake_pg.FakeStore())
    yield
    dist.destroy_process_group()
    gc.collect()  # meshes of this test are not those of the next


def parallel_of(folder: Path, environment: dict[str, str]) -> tuple[int, dict[str, tuple[int, int]]]:
    """Records one value as a process with this environment would; the rank and the axes in its header."""
    given = {"TENSORTAP_ENABLE": "1", "TENSORTAP_DIR": str(folder), "TENSORTAP_CONTROL": "0", **environment}
    settings, errors = Settings.from_environment(given)
    assert not errors
    recorder = Recorder(settings)
    recorder.dump("x", torch.ones(2))
    recorder.close()
    run = open_run(settings.run_path)
    (rank,) = run.ranks
    return rank, dict(run.headers[rank].parallel)


def test_a_mesh_is_found_before_any_dtensor(tmp_path: Path, group: None) -> None:
    from torch.distributed.device_mesh import init_device_mesh

    mesh = init_device_mesh("cpu", (2, 4), mesh_dim_names=("dp", "tp"))
    assert parallel_of(tmp_path, {}) == (RANK, {"dp": (1, 2), "tp": (1, 4)})
    del mesh


def test_of_several_meshes_the_largest_names_an_axis(tmp_path: Path, group: None) -> None:
    from torch.distributed.device_mesh import init_device_mesh

    whole = init_device_mesh("cpu", (2, 2, 2), mesh_dim_names=("pp", "dp", "tp"))
    other = init_device_mesh("cpu", (8,), mesh_dim_names=("tp",))
    unnamed = init_device_mesh("cpu", (8,))
    _, parallel = parallel_of(tmp_path, {})
    assert parallel == {"pp": (1, 2), "dp": (0, 2), "tp": (1, 2)}
    del whole, other, unnamed


def test_what_the_environment_says_comes_first(tmp_path: Path, group: None) -> None:
    from torch.distributed.device_mesh import init_device_mesh

    mesh = init_device_mesh("cpu", (2, 4), mesh_dim_names=("dp", "tp"))
    rank, parallel = parallel_of(tmp_path, {"TENSORTAP_PARALLEL": " tp=3/4 , ep=1/2"})
    assert (rank, parallel) == (RANK, {"dp": (1, 2), "tp": (3, 4), "ep": (1, 2)})
    del mesh


def test_the_environment_alone(tmp_path: Path) -> None:
    assert parallel_of(tmp_path, {"TENSORTAP_PARALLEL": "tp=1/2"}) == (0, {"tp": (1, 2)})


def test_configure_says_it_while_the_file_is_open(tmp_path: Path) -> None:
    recorder = Recorder(Settings(enable=True, control=False, dir=str(tmp_path)))
    recorder.dump("x", torch.ones(2))
    recorder.configure(parallel={"tp": (1, 2)})
    recorder.dump("x", torch.ones(2))
    recorder.close()
    assert open_run(recorder.settings.run_path).headers[0].parallel == {"tp": (1, 2)}


@pytest.mark.parametrize("text", ["tp", "tp=2/2", "tp=0/0", "tp=-1/2", "tp=0/2;dp=0/1", "0=0/2", "tp=0/2,", "tp=a/b"])
def test_text_that_is_no_parallel_layout(text: str) -> None:
    settings, (error,) = Settings.from_environment({"TENSORTAP_PARALLEL": text})
    assert settings.parallel is None
    assert "TENSORTAP_PARALLEL" in str(error)
    assert "tp=0/2,dp=1/4" in str(error)


@pytest.mark.parametrize("place", [(0.5, 2), (0, float("inf")), (0,), 3, None, "02", (0, "x")])
def test_values_that_are_no_parallel_layout(place: object) -> None:
    with pytest.raises(SettingsError, match="no parallel layout"):
        Settings().changed(parallel={"tp": place})


def test_small_tensors_of_a_batch_whose_memory_is_gone() -> None:
    """Adapters read token ids and positions as safely as values are read."""
    from dumper.adapters.framework_values import layout_of
    from dumper.layout import TokenLayout
    from dumper.values.plain import UnrecordableError

    freed = torch.arange(10_000)
    freed.untyped_storage().resize_(0)
    with pytest.raises(UnrecordableError, match="freed"):
        layout_of({"kept": torch.arange(3), "gone": freed}, lambda arrays: TokenLayout("extend", (), 0))
