"""What the tests of this folder share: a cluster of two workers on the loopback interface, and storage in reach."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from comparator.api import open_side
from comparator.options import Options
from comparator.prepared import Prepared, prepare
from dumper.recording.recorder import Recorder
from tensortap.progress import Progress
from testbed.ray_cluster import Cluster, ray_cluster, ray_environment
from tests.moto_server import environment, make_bucket, moto_server


@pytest.fixture(scope="package", autouse=True)
def _environment() -> Iterator[None]:
    """What Ray reads when it is imported, here and in the cluster."""
    assert "ray" not in sys.modules
    with pytest.MonkeyPatch.context() as patch:
        for name, value in ray_environment().items():
            patch.setenv(name, value)
        patch.delenv("RAY_ADDRESS", raising=False)
        yield


@pytest.fixture(scope="package")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return record(tmp_path_factory.mktemp("runs"), steps=3, layers=20)


@pytest.fixture(scope="package")
def storage(_environment: None) -> Iterator[None]:
    """A bucket, with its server in the environment, here and in the cluster."""
    with moto_server() as address, pytest.MonkeyPatch.context() as patch:
        for name, value in environment(address).items():
            patch.setenv(name, value)
        make_bucket(address)
        yield


@pytest.fixture(scope="package")
def cluster(storage: None) -> Iterator[Cluster]:
    """A cluster of two workers."""
    with ray_cluster() as found:
        yield found


def record(folder: Path, steps: int, layers: int) -> tuple[Path, Path]:
    """Two runs, one of them with a fault from the third tap on."""
    import torch

    for name in ("a", "b"):
        recorder = Recorder()
        recorder.configure(enable=True, control=False, dir=str(folder), run=name)
        for step in range(steps):
            recorder.step()
            x = torch.randn(8, 16, generator=torch.Generator().manual_seed(step))
            for layer in range(layers):
                x = x * 1.01 + (0.01 if name == "b" and layer > 2 else 0)
                recorder.dump("x", x.bfloat16(), "t h", layer_id=layer)
            recorder.dump("ids", [step, name])
        recorder.close()
    return folder / "a", folder / "b"


def prepared_of(baseline: Path | str, target: Path | str) -> Prepared:
    return prepare(open_side(baseline, "baseline"), open_side(target, "target"), Options())


def in_the_middle(do: Callable[[], object]) -> Progress:
    """Done once, when a third of the comparison has been measured."""
    done = 0

    @contextmanager
    def progress(what: str, total: int) -> Iterator[Callable[[int], None]]:
        def advance(count: int) -> None:
            nonlocal done
            before, done = done, done + (count if what == "comparing" else 0)
            if before <= total // 3 < done:
                do()

        yield advance

    return progress
