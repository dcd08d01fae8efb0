"""Units of work on a Ray cluster: the same report as here, whatever becomes of its workers."""

from __future__ import annotations

import importlib.util
import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

from comparator.cli import main
from comparator.elsewhere import OpenedAgain, on_cluster
from comparator.engine import cluster_connection as engine_module
from comparator.engine.cluster import RayCluster
from comparator.engine.cluster_connection import connected
from comparator.engine.opened import Opened, Worker, installed_version, mark_of
from comparator.errors import ComparatorError
from comparator.match.bundles import BundlePair
from comparator.measure.measurement import Failure, Skipped
from comparator.measure.units import Row, Unit, UnitResult
from comparator.pipeline import begin
from testbed.ray_cluster import Cluster, ray_node
from tests.comparator.cluster.conftest import in_the_middle, prepared_of, record

UNITS = [Unit(number, (2 * number, 2 * number + 1)) for number in range(41)]
PAIRS = [BundlePair(f"pair{number}", (), 0, None, None) for number in range(2 * len(UNITS))]


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


def test_a_head_that_goes_away(monkeypatch: pytest.MonkeyPatch) -> None:
    """It may come back within a while; after that it is said, before Ray ends the process."""
    monkeypatch.setattr(engine_module, "_ASKED_EVERY", 0.0)
    monkeypatch.setattr(engine_module, "_GIVEN_UP", 1000.0)
    with socket.create_server(("127.0.0.1", 0)) as server:
        head = engine_module.Head(server.getsockname())
        head.check()
    head.check()
    monkeypatch.setattr(engine_module, "_GIVEN_UP", 0.0)
    with pytest.raises(ComparatorError, match="broke off: its head does not answer"):
        head.check()


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
    assert [row.packed for row in right.rows] == [row.packed for row in prepared.profiling()(unit).rows]
    assert isinstance(wrong, ComparatorError)


@pytest.mark.slow
def test_reports_are_the_same(runs: tuple[Path, Path], cluster: Cluster, tmp_path: Path, capsys: Any) -> None:
    address = cluster.address
    for more in ([], ["--preset", "raw"], ["--diff-threshold", "1e-3"]):
        printed = []
        for engine in (["--jobs", "1"], ["--engine", "ray", "--address", address]):
            code = main([*map(str, runs), *engine, "--output-format", "json", *more])
            assert code == 1
            printed.append(capsys.readouterr().out)
        assert printed[0] == printed[1]


@pytest.mark.slow
def test_what_the_cluster_says_of_itself_is_not_in_the_report(
    runs: tuple[Path, Path], cluster: Cluster, capfd: pytest.CaptureFixture[str]
) -> None:
    """That a machine has died, say: Ray prints it into the middle of what is printed, and what it kept at the end."""
    from ray._private.utils import push_error_to_driver
    from ray._private.worker import global_worker

    assert main([*map(str, runs), "--output-format", "json"]) == 1
    here = capfd.readouterr().out
    printed = said = ""
    with connected(cluster.address):
        for attempt in range(300):
            if attempt % 20 == 0:  # who does not listen yet misses it; what is said twice is kept
                for _ in range(2):
                    push_error_to_driver(global_worker, "node", "a machine has been marked dead")
            time.sleep(0.1)
            out, err = capfd.readouterr()
            printed, said = printed + out, said + err
            if "marked dead" in printed + said:
                break
        assert main([*map(str, runs), "--engine", "ray", "--output-format", "json"]) == 1
    out, err = capfd.readouterr()
    assert printed + out == here
    assert "marked dead" in said + err


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
def test_workers_that_end(cluster: Cluster, tmp_path: Path, times: int) -> None:
    import ray.cloudpickle

    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    measure = ends(str(tmp_path), 0)().measure
    with connected(cluster.address):
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
                assert [row.packed for row in one.rows] == [row.packed for row in measure(unit).rows]


@pytest.mark.slow
def test_a_node_that_ends(cluster: Cluster, tmp_path: Path) -> None:
    """A machine with two of four workers goes away in the middle: what they had is measured by the others."""
    import ray

    address = cluster.address
    runs = record(tmp_path, steps=4, layers=99)
    prepared = prepared_of(*runs)

    def kill() -> None:
        assert any(process.name() == "raylet" for process in node.children(recursive=True))
        for process in [*node.children(recursive=True), node]:
            with suppress(psutil.NoSuchProcess):
                process.kill()

    with ray_node(f"--address={address}", "--num-cpus=2") as node, connected(address):
        assert ray.cluster_resources()["CPU"] == 4
        found = list(begin(prepared, in_the_middle(kill), engine=on_cluster(prepared)))
        assert not node.is_running() or node.status() == psutil.STATUS_ZOMBIE
    assert found == list(begin(prepared_of(*runs)))


@pytest.mark.slow
def test_twenty_thousand_records_and_a_worker_killed(cluster: Cluster, tmp_path: Path) -> None:
    baseline, target = record(tmp_path, steps=100, layers=99)
    prepared = prepared_of(baseline, target)
    assert len(prepared.baseline.records) + len(prepared.target.records) == 20_000
    killed: list[psutil.Process] = []

    def kill() -> None:
        killed.append(cluster.workers()[0])
        killed[0].kill()

    with connected(cluster.address):
        there = begin(prepared, in_the_middle(kill), engine=on_cluster(prepared))
        found = list(there)
    assert killed
    here = begin(prepared_of(baseline, target))
    assert found == list(here)
    assert there.diagnosis == here.diagnosis
