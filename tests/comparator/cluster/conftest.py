"""What the tests of this folder share: a cluster of two workers on the loopback interface, and storage in reach."""

from __future__ import annotations

import importlib.util
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from comparator.api import open_side
from comparator.options import Options
from comparator.prepared import Prepared, prepare
from dumper.recording.recorder import Recorder
from tensortap.progress import Progress
from tests.moto_server import environment, make_bucket, moto_server


@dataclass(frozen=True)
class Cluster:
    address: str
    client_address: str | None
    """Of the server for Ray's client; None where its library is not installed."""
    head: psutil.Process

    def workers(self) -> list[psutil.Process]:
        """Processes that have begun to compare."""
        found = []
        for process in self.head.children(recursive=True):
            with suppress(psutil.NoSuchProcess):
                if process.cmdline() and process.cmdline()[0].startswith("ray::Worker"):
                    found.append(process)
        return found


@pytest.fixture(scope="package", autouse=True)
def _environment() -> Iterator[None]:
    """What Ray reads when it is imported, here and in the cluster."""
    assert "ray" not in sys.modules
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")  # else it listens on the machine's other addresses
        patch.setenv("RAY_AUTH_MODE", "token")
        patch.setenv("RAY_AUTH_TOKEN", secrets.token_hex(32))
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
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
    """A cluster of two workers, on the loopback interface alone, that asks for a token."""
    folder = tempfile.mkdtemp(prefix="ray-", dir="/tmp")  # the path of a socket is short
    port, client_port = _free_port(), _free_port()
    more = [f"--port={port}", "--num-cpus=2", "--include-dashboard=false", f"--temp-dir={folder}"]
    client = importlib.util.find_spec("grpc") is not None
    more += [f"--ray-client-server-port={client_port}"] if client else []
    try:
        with node_of("--head", *more) as head:
            yield Cluster(f"127.0.0.1:{port}", f"ray://127.0.0.1:{client_port}" if client else None, head)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port


@contextmanager
def node_of(*more: str) -> Iterator[psutil.Process]:
    """What ``ray start`` begins on this machine; it is ended with all its descendants."""
    # A second node is refused where all listen on the loopback interface alone, though it works on one machine.
    program = "import ray.scripts.scripts as scripts; scripts.ray_constants.ENABLE_RAY_CLUSTER = True; scripts.main()"
    command = [sys.executable, "-u", "-c", program, "start", "--block", "--node-ip-address=127.0.0.1"]
    command += ["--object-store-memory=80000000", "--disable-usage-stats", *more]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    head = psutil.Process(process.pid)
    try:
        assert process.stdout is not None
        printed = []
        for line in process.stdout:
            printed.append(line)
            if "Ray runtime started" in line:
                break
        else:
            pytest.fail("".join(printed))
        yield head
    finally:
        everything = [*head.children(recursive=True), head]
        for one in everything:
            with suppress(psutil.NoSuchProcess):
                one.kill()
        process.wait()


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
