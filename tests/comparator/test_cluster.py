"""Units of work on a Ray cluster: the same report as here, whatever becomes of its workers."""

from __future__ import annotations

import importlib.util
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

from comparator.api import open_side
from comparator.cli import main
from comparator.elsewhere import OpenedAgain, on_cluster
from comparator.engine.cluster import RayCluster, connected
from comparator.engine.opened import Opened, Worker, installed_version, mark_of
from comparator.errors import ComparatorError
from comparator.match.bundles import BundlePair
from comparator.measure.measurement import Failure, Skipped
from comparator.measure.units import Row, Unit, UnitResult
from comparator.options import Options
from comparator.pipeline import begin
from comparator.prepared import Prepared, prepare
from dumper.recording.recorder import Recorder
from tensortap.progress import Progress

UNITS = [Unit(number, (2 * number, 2 * number + 1)) for number in range(41)]
PAIRS = [BundlePair(f"pair{number}", (), 0, None, None) for number in range(2 * len(UNITS))]


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


def prepared_of(baseline: Path, target: Path) -> Prepared:
    return prepare(open_side(baseline, "baseline"), open_side(target, "target"), Options())


@pytest.fixture(scope="module", autouse=True)
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


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return record(tmp_path_factory.mktemp("runs"), steps=3, layers=20)


def test_without_ray(runs: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    assert main([*map(str, runs), "--engine", "ray"]) == 2
    assert "pip install 'tensortap[ray]'" in capsys.readouterr().err


def test_an_address_is_of_a_cluster(runs: tuple[Path, Path], capsys: Any) -> None:
    assert main([*map(str, runs), "--address", "auto"]) == 2
    assert "--engine ray" in capsys.readouterr().err


@pytest.mark.parametrize("address", ["127.0.0.1:{}", "ray://127.0.0.1:{}"])
def test_nobody_answers(runs: tuple[Path, Path], address: str, capsys: Any) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        address = address.format(unused.getsockname()[1])
        assert main([*map(str, runs), "--engine", "ray", "--address", address]) == 2
    assert f"no Ray cluster at {address}" in capsys.readouterr().err


def test_an_address_of_rays_client_without_it(
    runs: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"ray://127.0.0.1:{server.getsockname()[1]}"
        assert main([*map(str, runs), "--engine", "ray", "--address", address]) == 2
    assert "pip install 'ray[client]'" in capsys.readouterr().err


def test_a_worker_that_finds_other_runs_says_so(runs: tuple[Path, Path]) -> None:
    prepared = prepared_of(*runs)
    version, count = installed_version(), len(prepared.pairs)
    begin = OpenedAgain.of(prepared)
    assert "install the same" in (Worker[Any]().begin(begin, version + "1", count) or "")
    assert "the files differ" in (Worker[Any]().begin(begin, version, count + 1) or "")
    missing = OpenedAgain(begin.baseline + "x", begin.target, begin.options)
    assert "no such directory" in (Worker[Any]().begin(missing, version, count) or "")
    worker = Worker[Any]()
    assert worker.begin(begin, version, count) is None
    unit, other = prepared.units[0], prepared.units[1]
    right, wrong = worker.measure([(unit, mark_of(unit, prepared.pairs)), (unit, mark_of(other, prepared.pairs))])
    assert isinstance(right, UnitResult)
    assert right.rows == prepared.profiling()(unit).rows
    assert isinstance(wrong, ComparatorError)


@contextmanager
def _started(folder: str) -> Iterator[tuple[str, psutil.Process]]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    more = [f"--port={port}", "--num-cpus=2", "--include-dashboard=false", f"--temp-dir={folder}"]
    with _node("--head", *more) as head:
        yield f"127.0.0.1:{port}", head


@contextmanager
def _node(*more: str) -> Iterator[psutil.Process]:
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


@pytest.fixture(scope="module")
def cluster() -> Iterator[tuple[str, psutil.Process]]:
    """A cluster of two workers, on the loopback interface alone, that asks for a token."""
    folder = tempfile.mkdtemp(prefix="ray-", dir="/tmp")  # the path of a socket is short
    try:
        with _started(folder) as found:
            yield found
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def workers_of(head: psutil.Process) -> list[psutil.Process]:
    found = []
    for process in head.children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            if process.cmdline() and process.cmdline()[0].startswith("ray::Worker"):
                found.append(process)
    return found


@pytest.mark.slow
def test_reports_are_the_same(
    runs: tuple[Path, Path], cluster: tuple[str, psutil.Process], tmp_path: Path, capsys: Any
) -> None:
    address, _ = cluster
    for more in ([], ["--preset", "raw"], ["--diff-threshold", "1e-3"]):
        printed = []
        for engine in (["--jobs", "1"], ["--engine", "ray", "--address", address]):
            code = main([*map(str, runs), *engine, "--output-format", "json", *more])
            assert code == 1
            printed.append(capsys.readouterr().out)
        assert printed[0] == printed[1]


def ends(folder: str, times: int) -> Callable[[], Opened[int]]:
    """Unit 5 ends its worker so many times."""
    pairs = PAIRS

    def measure(unit: Unit) -> UnitResult[int]:
        if unit.number == 5 and len(os.listdir(folder)) < times:
            open(f"{folder}/{len(os.listdir(folder))}", "w").close()
            os.kill(os.getpid(), signal.SIGKILL)
        if unit.number == 30 and times == -1:
            raise ComparatorError("concerns more than a pair")
        rows = tuple(Row(pair, 0, Skipped("x", "y", f"pair {pair}")) for pair in unit.pairs)
        return UnitResult(unit, rows, 0)

    return lambda: Opened(measure, pairs)


@pytest.mark.slow
@pytest.mark.parametrize("times", [0, 1, 99, -1])
def test_workers_that_end(cluster: tuple[str, psutil.Process], tmp_path: Path, times: int) -> None:
    import ray.cloudpickle

    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    measure = ends(str(tmp_path), 0)().measure
    with connected(cluster[0]):
        results = RayCluster(ends(str(tmp_path), times), PAIRS).results(UNITS, measure)
        if times == -1:
            assert [next(results).unit.number for _ in range(30)] == list(range(30))
            with pytest.raises(ComparatorError, match="concerns more than a pair"):
                next(results)
            return
        for unit, one in zip(UNITS, results, strict=True):
            if unit.number == 5 and times == 99:
                assert [row.pair for row in one.rows] == [10, 11]
                assert all(isinstance(row.measurement, Failure) for row in one.rows)
            else:
                assert one == measure(unit)


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


@pytest.mark.slow
def test_a_node_that_ends(cluster: tuple[str, psutil.Process], tmp_path: Path) -> None:
    """A machine with two of four workers goes away in the middle: what they had is measured by the others."""
    import ray

    address, _ = cluster
    runs = record(tmp_path, steps=4, layers=99)
    prepared = prepared_of(*runs)

    def kill() -> None:
        assert any(process.name() == "raylet" for process in node.children(recursive=True))
        for process in [*node.children(recursive=True), node]:
            with suppress(psutil.NoSuchProcess):
                process.kill()

    with _node(f"--address={address}", "--num-cpus=2") as node, connected(address):
        assert ray.cluster_resources()["CPU"] == 4
        found = list(begin(prepared, in_the_middle(kill), engine=on_cluster(prepared)))
        assert not node.is_running() or node.status() == psutil.STATUS_ZOMBIE
    assert found == list(begin(prepared_of(*runs)))


@pytest.mark.slow
def test_twenty_thousand_records_and_a_worker_killed(cluster: tuple[str, psutil.Process], tmp_path: Path) -> None:
    address, head = cluster
    baseline, target = record(tmp_path, steps=100, layers=99)
    prepared = prepared_of(baseline, target)
    assert len(prepared.baseline.records) + len(prepared.target.records) == 20_000
    killed: list[psutil.Process] = []

    def kill() -> None:
        killed.append(workers_of(head)[0])
        killed[0].kill()

    with connected(address):
        there = begin(prepared, in_the_middle(kill), engine=on_cluster(prepared))
        found = list(there)
    assert killed
    here = begin(prepared_of(baseline, target))
    assert found == list(here)
    assert there.diagnosis == here.diagnosis
